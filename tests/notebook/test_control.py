"""Waiting, signals and cancel in a notebook: cells wait and go on, a cancelled run says so in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nbflow
from nbflow.store.local import LocalStore, open_store
from tests.notebook.kernel import Kernel
from tests.notebook.test_magics import Terminal, terminal  # noqa: F401 - a fixture
from tests.runtime.timed import until

SETUP = "%load_ext nbflow\nimport nbflow"


@pytest.fixture
def notebook(new_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel with nbflow loaded."""
    kernel = new_kernel()
    assert kernel.run(SETUP).ok
    return kernel


@pytest.fixture
def place(tmp_path: Path) -> LocalStore:
    """The kernel's store, seen from here."""
    return open_store(tmp_path / "one" / ".nbflow")


def run_of(place: LocalStore, cell: str) -> str:
    """Return the id of the newest run, as soon as the cell has begun."""
    until(lambda: [step for info in place.runs() for step in place.steps(info.run) if cell in step.step])
    return place.runs()[0].run


@pytest.mark.parametrize("durable", ["%%durable wait\n", ""])
def test_a_cell_that_waits_is_cancelled_in_one_line(
    notebook: Kernel, place: LocalStore, durable: str
) -> None:
    """From another process; the run ends cancelled, and the next durable cell begins a new one."""
    asked = notebook.send(f"{durable}value = nbflow.sleep('1h')")
    run = run_of(place, "sleep#0")
    assert "requested" == nbflow.cancel(run, "wrong data", store=place)
    cell = notebook.collect(asked)

    (error,) = cell.errors
    assert "RunCancelled" == error["ename"]
    assert "wrong data" in error["evalue"]
    assert len(error["traceback"]) <= 2
    assert "cancelled" == place.run(run).state
    assert notebook.run("%%durable next\nx = len('abc')").ok
    assert run != run_of(place, "next")


def test_sync_and_async_cells_wait_and_replay(
    notebook: Kernel, new_kernel: Callable[..., Kernel], place: LocalStore
) -> None:
    """A signal wakes a plain and an awaiting cell; in a fresh kernel both are there at once."""
    cells = [
        "%%durable plain\ngot = nbflow.wait_for('go')",
        "%%durable awaiting\nlater = await nbflow.wait_for.aio('go')\nawait nbflow.sleep.aio(0.01)",
    ]
    for number, source in enumerate(cells):
        asked = notebook.send(source)
        run = run_of(place, "signal:go#0")
        nbflow.signal(run, "go", number, store=place)
        assert notebook.collect(asked).ok
    assert "(0, 1)" == notebook.run("got, later").result
    notebook.kill()

    again = new_kernel()
    for source in (SETUP, *cells):
        assert again.run(source).ok
    assert "(0, 1)" == again.run("got, later").result


def test_a_cancel_that_came_while_no_kernel_ran_is_told_by_the_first_cell(
    notebook: Kernel, new_kernel: Callable[..., Kernel], place: LocalStore
) -> None:
    """The living kernel did not look any more; the next one does, before it restores anything."""
    assert notebook.run("%%durable one\nx = len('abc')").ok
    run = run_of(place, "one")
    assert "requested" == nbflow.cancel(run, store=place)
    notebook.kill()

    again = new_kernel()
    again.run(SETUP)
    cell = again.run("%%durable one\nx = len('abc')")
    assert "RunCancelled" == cell.errors[0]["ename"]
    assert "cancelled" == place.run(run).state
    assert again.run("%%durable one\nx = len('abc')").ok


def test_the_line_commands_signal_and_cancel(terminal: Terminal) -> None:  # noqa: F811
    """`%nbflow signal` reaches the run of this kernel, `%nbflow cancel` ends it; both say so in one line."""
    terminal.run("import nbflow\n@nbflow.durable\ndef f():\n    return nbflow.wait_for('go', timeout=20)")
    terminal.run("%%durable one\nx = len('abc')")
    run = terminal.run("print(nbflow.current_run().id)").strip()
    said = terminal.run(f"""%nbflow signal {run} go --value '{{"build": 7}}'""")
    assert f"Signal go is sent to run {run}" in said
    terminal.run("got = f()")
    assert {"build": 7} == terminal.shell.user_ns["got"]

    said = terminal.run("%nbflow cancel --reason enough --yes")
    assert f"Run {run}" in said
    assert "is cancelled" in said
    assert "cancelled" in terminal.run("%nbflow runs --all")
    assert "RunFinished" in terminal.run(f"%nbflow cancel {run} --yes")
    assert "RunFinished" in terminal.run(f"%nbflow signal {run} go")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%nbflow cancel", "no unfinished run"),
        ("%nbflow signal", "RUN"),
        ("%nbflow signal 0197a3b2 go --value {", "no JSON"),
        ("%nbflow signal 0197a3b2 go --text a --value 1", "contradict"),
    ],
)
def test_lines_that_make_no_sense_are_one_sentence(terminal: Terminal, line: str, says: str) -> None:  # noqa: F811
    """As everywhere in `%nbflow`."""
    text = terminal.run(line)
    assert says in text
    assert 1 == len(text.strip().splitlines())
