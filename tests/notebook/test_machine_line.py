"""A machine that takes its time says in the notebook where it is; the line is nbflow's own and never recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbflow.core.events import Event
from nbflow.notebook.machine_line import MachineLine
from tests.notebook.kernel import Kernel

CELL = """\
%%durable trained
import time
machine = nbflow.Machine("training", ["load", "train", "done"], initial="load", final={"done"})
@machine.state("load")
def load(ctx):
    time.sleep(0.8)
    return "train"
@machine.state("train", kind="stepped", to="done")
def train(ctx, cursor):
    time.sleep(0.3)
    return nbflow.Continue((cursor or 0) + 1) if (cursor or 0) < 3 else "done"
print(machine.run())
"""


def event(callback: str, state: str, name: str = "", step: str = "", **detail: int) -> Event:
    return Event(
        callback=callback,
        run="r",
        workflow="w",
        at=0.0,
        seq=1,
        step=step,
        name=name,
        kind="state",
        state=state,
        detail=detail,
    )


def test_the_line_follows_states_branches_and_cursors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the first second, then where it is, at most five times a second."""
    now = [100.0]
    monkeypatch.setattr("nbflow.notebook.machine_line.time.monotonic", lambda: now[0])
    said: list[tuple[str, bool]] = []
    line = MachineLine("training", lambda text, _id, update, _last: said.append((text, update)))
    line.on_state(event("on_state", "running", "load", "load#0"))
    line.on_state(event("on_state", "completed", "load", "load#0"))
    assert [] == said
    now[0] += 1.5
    line.on_state(event("on_state", "running", "left", "l#0"))
    line.on_state(event("on_state", "running", "right", "r#0"))
    now[0] += 0.3
    line.on_cursor(event("on_cursor", "", "right", "r#0", number=1))
    line.on_run(event("on_run", "failed"))
    assert [
        ("training: in left (1 states left behind)", False),
        ("training: in left; right, cursor 2 (1 states left behind)", True),
        ("training: failed after 1 states in 1.8 s", True),
    ] == said


def test_a_machine_that_takes_its_time_shows_where_it_is_in_one_line(tmp_path: Path) -> None:
    """Its last word is how the run ended; a replay shows the cell's output without it."""
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
        assert said[-1].startswith("training: completed after 3 states in ")
        again = kernel.run(CELL)
        assert again.ok, again.errors
        assert "done" in str(again.shown)
        assert "training: in" not in str(again.shown)
