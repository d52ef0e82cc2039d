"""`nbflow.fsm`, what a run keeps of its machine, and the page about both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbflow
from nbflow.board.board import Board
from nbflow.board.graph import graph_of
from nbflow.core.errors import UnknownRun
from nbflow.core.history import History
from nbflow.core.outline import MACHINE, outline_of, plain, read_outline
from nbflow.store.local import LocalStore
from nbflow.widgets.fsm import asked
from nbflow.widgets.snapshots import answers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fsm.md").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store of its own."""
    return LocalStore(tmp_path / "graphs")


def light() -> nbflow.Machine:
    machine = nbflow.Machine("light", ["red", "green", "blue", "off"], initial="red", final={"off"})
    machine.state("red", to=["green", "blue"])(lambda ctx: "green")
    machine.state("green", to="off")(lambda ctx: "off")
    machine.state("blue", kind="router")(lambda ctx: ctx.anywhere)
    return machine


def labels(store: LocalStore, run: str) -> list[str]:
    """The states that the run is drawn with, by whoever has nothing but the store."""
    return [node["label"] for node in graph_of(History.of(store.entries(run)))["nodes"]]


def test_an_outline_is_read_as_it_was_recorded() -> None:
    """States, ends, kinds and arrows survive their way through the journal."""
    outline = outline_of(light().definition)
    assert read_outline(plain(outline)) == outline
    assert ("blue", None, "any") in outline.arrows


def test_every_run_of_a_machine_can_be_drawn_whole(store: LocalStore) -> None:
    """The definition is with the run: of one that was started by itself, as a child, and as a fork."""
    whole = ["red", "green", "blue", "off"]
    light().run(store=store)
    (alone,) = store.runs()
    assert labels(store, alone.run) == whole
    with nbflow.run("outer", store=store):
        light().run()
    child = next(info for info in store.runs() if info.parent)
    assert labels(store, child.run) == whole
    assert labels(store, nbflow.fork(alone.run, "green#0", store=store)) == whole
    opened = History.of(store.entries(alone.run)).opened
    assert opened is not None
    assert opened.launch[MACHINE] == light().outline()


def test_a_view_of_a_machine_is_about_its_newest_run(store: LocalStore) -> None:
    """Before the first run it shows the definition, afterwards what ran last."""
    board = Board(store)
    view, about, asks = asked(board, light())
    assert (about, answers(view, asks)["run"]) == ({"workflow": "light", "run": None}, {})
    assert answers(view, asks)["graph"]["run"] is None
    for number in range(2):
        light().run(store=store, number=number)
    view, about, asks = asked(board, light())
    assert about["run"] == store.runs()[0].run
    assert answers(view, asks)["run"]["row"]["params"] == {"number": 1}
    board.close()


def test_outside_of_a_notebook_the_states_are_printed(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal gets the same facts as text, of a machine and of a run given by the beginning of its id."""
    assert nbflow.fsm(light(), store=store) is None
    assert re.search(r"green +off", capsys.readouterr().out)
    light().run(store=store)
    assert nbflow.fsm(store.runs()[0].run[:20], store=store) is None
    assert re.search(r"green +✔ Completed", capsys.readouterr().out)
    with pytest.raises(UnknownRun):
        nbflow.fsm("nothing-like-it", store=store)


def test_a_machine_shows_its_picture() -> None:
    """As the last line of a cell a machine is drawn, and what is wrong with it is said."""
    shown = light()._repr_mimebundle_()
    assert "<svg" in shown["text/html"]
    assert "leads to" in shown["text/html"]
    assert "⚠" not in shown["text/html"]
    broken = nbflow.Machine("broken", ["a", "<b>"], initial="a", final={"<b>"})
    assert "⚠ State &#x27;a&#x27; has no handler." in broken._repr_mimebundle_()["text/html"]


def test_running_machines_loads_nothing_that_draws() -> None:
    """Who only runs a machine pays nothing for pictures."""
    code = (
        "import sys, tempfile, nbflow\n"
        "m = nbflow.Machine('m', ['a', 'b'], initial='a', final={'b'})\n"
        "m.state('a', to='b')(lambda ctx: 'b')\n"
        "m.run(store=tempfile.mkdtemp())\n"
        "print([name for name in sys.modules if name == 'igraph' or name.startswith(('nbflow.board', 'nbflow.widgets'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_on_graphs_runs(tmp_path: Path) -> None:
    """Its Python raises nothing and its assertions hold."""
    script = tmp_path / "fsm.py"
    script.write_text(
        "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), "utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "FLY" in done.stdout
