"""What a cell's tags, and nbflow's own magics in a notebook, mean to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from tests.headless.disturbed import Site, shown
from tests.headless.kit import code, notebook

CELLS = {
    "load": code("%load_ext nbflow"),
    "auto": code("%nbflow auto on"),
    "new": code("%nbflow new"),
    "base": code("base = abs(-1)\nprint(base)"),
    "rerun": code("first = abs(-2)\nprint(first)", "nbflow-rerun"),
    "skip": code("second = abs(-3)\nprint(second)", "nbflow-skip"),
    "once": code(
        "third = abs(-4) + len(__import__('os').environ.get('EXTRA', ''))\nprint(third)", "nbflow-once"
    ),
    "named": code("%%durable named --retries 1\nfourth = abs(-5)\nprint(fourth)"),
    "halt": code("print(base, first, second, third, fourth)"),
    "finish": code("%nbflow finish"),
    "behind": code("last = abs(-6)\nprint(last)"),
}


@dataclass
class Executed:
    """A notebook that was killed in `halt` and executed again: its outputs, and which cells ran the second time."""

    document: NotebookNode
    ran: set[str]
    log: str
    whole: list[Any]

    def of(self, name: str) -> dict[str, Any]:
        """Return what the engine says of a cell."""
        return dict(self.document.cells[list(CELLS).index(name)].metadata["nbflow"])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    folder = tmp_path_factory.mktemp("tags")
    source = notebook(folder / "in.ipynb", *CELLS.values())
    whole, site = Site(folder / "whole", source), Site(folder / "killed", source)
    assert whole.execute().returncode == 0
    names = list(CELLS)
    assert site.kill_in(names.index("halt") + 1, "kernel")
    site.ran()
    done = site.execute()
    assert done.returncode == 0, done.stderr
    ran = {names[number - 1] for number in site.ran()}
    return Executed(site.document(), ran, done.stderr, shown(whole.document()))


def test_nbflow_rerun_runs_every_time_and_is_recorded_anew(executed: Executed) -> None:
    """The cell is a step, and never restored."""
    assert executed.of("rerun")["status"] == "ran"
    assert "key" in executed.of("rerun")
    assert "rerun" in executed.ran


def test_nbflow_skip_runs_every_time_and_is_no_step(executed: Executed) -> None:
    """nbflow leaves the cell alone."""
    assert executed.of("skip")["status"] == "ran"
    assert "key" not in executed.of("skip")
    assert "skip" in executed.ran


def test_nbflow_once_is_restored(executed: Executed) -> None:
    """A recorded cell with this tag does not run again in its run."""
    assert executed.of("once")["status"] == "restored"
    assert "once" not in executed.ran


def test_a_durable_cell_is_one_step_under_its_own_name(executed: Executed) -> None:
    """What is in a `%%durable` already is not wrapped again."""
    assert executed.of("named")["key"] == "named"
    assert executed.of("named")["status"] == "restored"
    assert executed.document.cells[list(CELLS).index("halt")].outputs[0].text == "1 2 3 4 5\n"


def test_the_run_stays_the_engines_whatever_the_notebook_says(executed: Executed) -> None:
    """`%load_ext nbflow` and `%nbflow auto` change nothing, `new` and `finish` do nothing and say so in the log."""
    assert "%nbflow new does nothing here" in executed.log
    assert "%nbflow finish does nothing here" in executed.log
    assert executed.document.metadata.nbflow["state"] == "completed"
    assert executed.document.metadata.nbflow["attempt"] == 2
    assert executed.of("base")["status"] == "restored"
    assert executed.of("behind")["status"] == "ran"


def test_a_notebook_with_nbflow_in_it_shows_the_same_when_it_was_killed(executed: Executed) -> None:
    """Tags and magics make no exception to equality."""
    assert shown(executed.document) == executed.whole


def test_going_to_another_run_is_refused(tmp_path: Path) -> None:
    """A notebook that the engine executes cannot leave its run; the error says where the run is chosen."""
    source = notebook(tmp_path / "in.ipynb", "x = abs(-1)", "%nbflow resume 0")
    site = Site(tmp_path / "site", source)
    done = site.execute()
    assert done.returncode == 1
    assert "--nbflow-run" in done.stderr
    assert site.document().metadata.nbflow["state"] == "failed"
