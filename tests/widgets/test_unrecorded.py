"""What a view says by itself while a cell runs is no output of that cell."""

from __future__ import annotations

from pathlib import Path

import nbflow
from tests.notebook.kernel import Kernel
from tests.widgets.page import KernelPage

LONG = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.02)"


def test_a_record_that_is_updated_while_a_cell_runs_is_not_recorded_with_the_cell(
    tmp_path: Path, kernel_env: dict[str, str]
) -> None:
    """A replay of the cell would put the dashboard's record back to what it said then."""
    with Kernel(tmp_path, kernel_env) as kernel:
        assert kernel.run("%load_ext nbflow\nimport nbflow.widgets.view as view; view.RECORD_EVERY = 0.0").ok
        page = KernelPage(kernel, kernel.run("%nbflow dashboard"))
        page.ask("watch", view="page", runs={}, run=None, gates=False)
        cell = kernel.send(f"%%durable\n{LONG}\nx = 3\nprint(x)")
        with nbflow.run("elsewhere", store=tmp_path):
            pass
        page.until(lambda told: "record" in told and "elsewhere" in told["record"]["text/plain"])
        assert cell not in page.idle, "the cell was still running"
        (tmp_path / "go").touch()
        page.until_idle(cell)
        rows = page.ask("runs", workflow="notebook.ipynb")["result"]["rows"]
        [step] = page.ask("run", run=rows[0]["run"])["result"]["steps"]
        shown = page.ask("step", run=rows[0]["run"], execution=step["execution"])["result"]["display"]
        assert shown == [{"kind": "text", "text": "3\n", "stream": "stdout"}]
