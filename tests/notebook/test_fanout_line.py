"""A fan-out that takes its time says in the notebook how far it is; the line is nbflow's own and never recorded."""

from __future__ import annotations

import os
from pathlib import Path

from tests.notebook.kernel import Kernel

CELL = """\
%%durable waited
import time
def work(n):
    if n == 5:
        raise ValueError(n)
    time.sleep(0.3)
    return n
found = nbflow.map(work, range(12), max_parallel=2, on_error="continue")
print(sum(result for result in found if result))
"""


def test_a_long_map_shows_how_far_it_is_in_one_line(tmp_path: Path) -> None:
    """Kept up to date while it runs; a replay of the cell shows the cell's output without it."""
    env = {
        **os.environ,
        "NBFLOW_NOTEBOOK": str(tmp_path / "nb.ipynb"),
        "NBFLOW_STORE": str(tmp_path / ".nbflow"),
    }
    with Kernel(tmp_path, env) as kernel:
        kernel.run("%load_ext nbflow\nimport nbflow")
        cell = kernel.run(CELL)
        assert cell.ok, cell.errors
        said = [
            output["data"]["text/plain"]
            for output in cell.outputs
            if output["output_type"] in ("display_data", "update_display_data")
            and "nbflow" in output["metadata"]
        ]
        assert said[-1] == "work: 12 of 12 items (1 failed)"
        again = kernel.run(CELL)
        assert again.ok, again.errors
        assert "61" in str(again.shown)
        assert "of 12 items" not in str(again.shown)
