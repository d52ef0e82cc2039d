"""The demo kills a real kernel in the middle of a cell, and tells truly what became of each cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbflow.core.errors import NbflowError, UsageError
from nbflow.demo import run_demo

CELLS = {
    "setup": "%load_ext nbflow\nimport time",
    "first": "%%durable first\nnumber = 20\nprint('first ran')",
    "calls": "import nbflow\n@nbflow.durable\ndef half(n):\n    return n / 2\nhalves = [half(n) for n in range(3)]",
    "second": "%%durable second\ntime.sleep(3)\nnumber = number + 1",
    "third": "%%durable third\nnumber = number * 2\nprint(number)",
    "check": "assert number == 42\nnumber",
}


def notebook(folder: Path, **changes: str) -> Path:
    cells = {**CELLS, **changes}
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    )
    path = folder / "small.ipynb"
    nbformat.write(document, path)
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One demo over a small notebook, killed in its second durable cell."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(notebook(folder), kill_at="second", out=folder / "out")


def test_cells_before_the_kill_are_restored_and_the_others_run(result: dict[str, Any]) -> None:
    """The journal says of each cell whether it was restored or ran; plain cells always run."""
    assert {cell["name"]: cell["fate"] for cell in result["cells"]} == {
        "setup": "ran (always does)",
        "first": "restored",
        "calls": "ran (always does)",
        "second": "ran",
        "third": "ran",
        "check": "ran (always does)",
    }
    assert [cell["name"] for cell in result["cells"] if cell["killed"]] == ["second"]
    assert (result["restored"], result["ran"]) == (1, 5)


def test_calls_inside_a_plain_cell_are_restored_though_the_cell_runs(result: dict[str, Any]) -> None:
    """Three calls were recorded before the kill, and none of them ran again."""
    assert {cell["name"]: cell["calls_restored"] for cell in result["cells"] if cell["calls_restored"]} == {
        "calls": 3
    }


def test_times_are_told_for_what_was_measured_only(result: dict[str, Any]) -> None:
    """A cell that the first run did not finish has no "then"; each has a "now"."""
    finished = {cell["name"] for cell in result["cells"] if cell["seconds_then"] is not None}
    assert finished == {"setup", "first", "calls"}
    assert all(cell["seconds_now"] is not None for cell in result["cells"])


def test_executed_notebook_and_page_hold_the_whole_output(result: dict[str, Any]) -> None:
    """What the demo leaves is a complete notebook: restored output, new output, and a page to look at."""
    saved, page = (Path(file) for file in result["files"])
    document = nbformat.read(saved, as_version=4)
    text = {cell.id: "".join(o.get("text", "") for o in cell.outputs) for cell in document.cells}
    assert "first ran\n" in text["first"]
    assert "42\n" in text["third"]
    assert "first ran" in page.read_text(encoding="utf-8")


def test_the_result_can_be_written_as_json(result: dict[str, Any]) -> None:
    """`nbflow demo --json` prints it."""
    assert json.loads(json.dumps(result)) == result


def test_nothing_is_left_behind_unless_asked(result: dict[str, Any]) -> None:
    """Without --keep the demo's folder is gone."""
    assert result["folder"] is None


def test_states_of_a_machine_that_was_killed_are_counted(tmp_path: Path) -> None:
    """A cell that runs a machine tells how many of its states were not entered again."""
    cells = {
        "setup": "%load_ext nbflow\nimport nbflow, time",
        "machine": (
            "m = nbflow.Machine('m', ['one', 'two', 'slow', 'end'], initial='one', final={'end'})\n"
            "@m.state('one')\ndef one(ctx):\n    return 'two'\n"
            "@m.state('two')\ndef two(ctx):\n    return 'slow'\n"
            "@m.state('slow')\ndef slow(ctx):\n    time.sleep(3)\n    return 'end'"
        ),
        "walk": "%%durable walk\nend = m.run()",
    }
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    )
    nbformat.write(document, tmp_path / "machine.ipynb")
    told = run_demo(tmp_path / "machine.ipynb", kill_at="walk", out=tmp_path / "out", kill_after=1.5)
    walk = next(cell for cell in told["cells"] if cell["name"] == "walk")
    assert (walk["killed"], walk["fate"], walk["states_restored"]) == (True, "ran", 2)


def test_a_cell_that_fails_by_itself_is_named(tmp_path: Path) -> None:
    """The demo does not take the notebook's own trouble for its kill."""
    with pytest.raises(NbflowError, match=r"Cell 2 \(first\) failed with ZeroDivisionError"):
        run_demo(notebook(tmp_path, first="%%durable first\n1 / 0"), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("kill_at", "message"), [("fourth", "no code cell 'fourth'"), ("99", "no code cell '99'")]
)
def test_an_unknown_cell_is_refused_before_anything_runs(tmp_path: Path, kill_at: str, message: str) -> None:
    """The message lists the cells to choose from."""
    with pytest.raises(UsageError, match=message) as caught:
        run_demo(notebook(tmp_path), kill_at=kill_at, out=tmp_path / "out")
    assert "first, second, third" in str(caught.value)


def test_a_notebook_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A wrong path is a sentence, not a traceback."""
    with pytest.raises(UsageError, match="no notebook"):
        run_demo(tmp_path / "none.ipynb")
