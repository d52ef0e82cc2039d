"""A step that takes its time says so: in the cell, or in a terminal; nothing is recorded, nothing costs the steps."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbflow
from nbflow.core.events import Event
from nbflow.notebook.machine_line import MachineLine
from nbflow.notebook.step_line import StepLine
from nbflow.runtime.watch import pulse
from nbflow.runtime.watch.running import Before, Doing, Earlier, doing, ended, lapse, remaining, said
from nbflow.testing import MemoryStore
from tests.notebook.kernel import Cell, Kernel
from tests.runtime.timed import attached, until

SETUP = "%load_ext nbflow\nimport nbflow, time\n@nbflow.durable\ndef fit(n):\n    time.sleep(n)\n    return n"


def told(cell: Cell) -> list[str]:
    """Return what the lines of a cell said, in order."""
    return [
        str(message["content"]["data"]["text/plain"])
        for message in cell.messages
        if message["msg_type"] in ("display_data", "update_display_data")
    ]


# In a cell ---------------------------------------------------------------------------------------


@pytest.fixture
def notebook(kernel: Kernel) -> Kernel:
    """A kernel with nbflow loaded, and a durable function that sleeps."""
    assert kernel.run(SETUP).ok
    return kernel


def test_a_long_cell_says_what_runs_and_for_how_long(notebook: Kernel) -> None:
    """Nothing in the first second; then one line that changes, at last with what it took. A replay has none of it."""
    cell = notebook.run("%%durable outer\nx = fit(2.2)\nprint('done')")
    said = told(cell)
    assert re.match(r"\S outer › fit: \d", said[0])
    assert 1 == len([m for m in cell.messages if m["msg_type"] == "display_data"])
    assert 3 <= len(said) == len(set(said))
    assert said[-1].startswith("outer took ")
    assert [said[-1]] == cell.notices
    again = notebook.run("%%durable outer\nx = fit(2.2)\nprint('done')")
    assert [("stdout", "done\n")] == [one for one in again.shown if one[0] == "stdout"]
    assert ["restored"] == [text.split()[0] for text in told(again)]


def test_short_work_says_nothing(notebook: Kernel) -> None:
    """Many short calls are no long step, however long the cell takes."""
    assert [] == told(notebook.run("for n in range(12):\n    fit(0.1 + n / 1e6)"))


def test_an_earlier_run_tells_how_long_it_may_take(notebook: Kernel) -> None:
    """The same step in a new run of the notebook: about so much is left."""
    notebook.run("%%durable slow\ntime.sleep(1.6)\nx = 1")
    notebook.run("%nbflow new")
    said = told(notebook.run("%%durable slow\ntime.sleep(3)\nx = 1"))
    assert any("(last time " in text for text in said)


def test_attempts_are_counted(notebook: Kernel) -> None:
    """The line says which attempt of how many runs."""
    notebook.run(
        "tries = []\n@nbflow.durable(retries=3, delay=0.001)\ndef flaky():\n"
        "    tries.append(1)\n    time.sleep(0.8)\n    assert len(tries) > 2"
    )
    said = told(notebook.run("flaky()"))
    assert any("attempt 2 of 4" in text for text in said)
    assert said[-1].startswith("flaky took ")
    assert said[-1].endswith("in 3 attempts")


def test_a_map_has_a_line_of_its_own(notebook: Kernel) -> None:
    """Alive before its first item ends, with the time that is left behind it; the step adds none beside it."""
    said = told(notebook.run("found = nbflow.map(lambda n: time.sleep(2.2), range(4), max_parallel=2)"))
    assert "<lambda>: 0 of 4 items, " in said[0]
    assert any("2 of 4 items" in text and "left" in text for text in said)
    assert "<lambda>: 4 of 4 items" == said[-1]


def test_what_is_captured_stays_clean(notebook: Kernel) -> None:
    """%%capture gets what the code shows, and no line."""
    assert [] == told(notebook.run("%%capture found\nx = fit(1.6)"))
    assert "[]" == notebook.run("found.outputs").result


def test_quiet_means_quiet(notebook: Kernel) -> None:
    """Who wants no lines under restored cells wants none about running ones."""
    notebook.run("%config NbFlow.quiet = True")
    try:
        assert [] == told(notebook.run("fit(1.5)"))
    finally:
        notebook.run("%config NbFlow.quiet = False")


def test_unloading_in_a_cell_leaves_nothing_that_beats(notebook: Kernel) -> None:
    """What the extension showed in that cell does not go on, and shows nothing in later ones."""
    notebook.run("%unload_ext nbflow")
    found = notebook.run("from nbflow.runtime.watch import pulse\npulse._beats")
    assert "()" == found.result


def test_the_line_comes_from_another_thread_into_the_right_cell(notebook: Kernel) -> None:
    """An awaiting cell and one that fails: each line stands under its own cell."""
    awaited = notebook.run(
        "import asyncio\n@nbflow.durable\nasync def wait(n):\n    await asyncio.sleep(n)\nawait wait(1.6)"
    )
    assert told(awaited)[-1].startswith("wait took ")
    failed = notebook.run("@nbflow.durable\ndef broken():\n    time.sleep(1.5)\n    1 / 0\nbroken()")
    assert told(failed)[-1].startswith("broken failed after ")
    assert "ZeroDivisionError" == failed.errors[0]["ename"]


# What is said ------------------------------------------------------------------------------------


def test_what_a_run_is_at_is_read_from_its_history() -> None:
    """From the outermost step to the innermost; what was left is not told, what is hidden neither."""
    store, found = MemoryStore(), []

    @nbflow.durable
    def inner() -> None:
        found.append(doing(session.history))
        found.append(doing(session.history, hidden={"call"}))

    @nbflow.durable
    def outer() -> None:
        inner()
        found.append(doing(session.history))

    with attached(store, new=True) as session:
        assert doing(session.history) is None
        outer()
        assert doing(session.history) is None
    within, hidden, after = found
    assert within is not None
    assert after is not None
    assert (("outer", "inner"), 1, None) == (
        tuple(name.rpartition(".")[2] for name in within.names),
        within.attempt,
        hidden,
    )
    assert 1 == len(after.names)


def test_parallel_steps_are_counted() -> None:
    """The longest is told, the others as a number."""
    store, begun, go = MemoryStore(), threading.Barrier(4), threading.Event()

    @nbflow.durable
    def work(n: int) -> int:
        begun.wait(20)
        go.wait(20)
        return n

    with attached(store, new=True) as session:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        begun.wait(20)
        found = doing(session.history)
        go.set()
        for thread in threads:
            thread.join()
    assert found is not None
    assert 2 == found.beside


def test_earlier_asks_the_store_once() -> None:
    """What a step took in this run, else in the newest other run of the workflow; a busy store is no trouble."""
    store = MemoryStore()
    step = nbflow.durable(version="1")(lambda: None)
    with attached(store, new=True) as first:
        step()
    (key,) = first.history.by_step
    assert Earlier(first).of(key) is not None
    with attached(store, new=True) as session:
        asked, runs = [], store.runs
        session.store.runs = lambda query: asked.append(query) or runs(query)  # type: ignore[method-assign]

        def read(earlier: Earlier) -> list[Before | None]:
            earlier.of(key)
            assert earlier.reading is not None
            earlier.reading.join()
            return [earlier.of(key), earlier.of("nothing")]

        known, unknown = read(Earlier(session))
        assert known is not None
        assert (None, 1) == (unknown, len(asked))

        def busy(_query: Any) -> Any:
            raise nbflow.errors.StoreBusy("busy")

        session.store.runs = busy  # type: ignore[method-assign]
        assert [None, None] == read(Earlier(session))


@given(st.floats(0, 1e7), st.none() | st.integers(0, 1000), st.floats(0, 1e6), st.integers(0, 1000))
def test_what_is_left_is_never_negative(gone: float, cursor: int | None, before: float, cursors: int) -> None:
    """Whatever was recorded; and every time can be said."""
    left = remaining(gone, cursor, Before(before, cursors))
    assert left is None or left >= 0
    what = Doing("s", "cell", ("s",), began=0.0, cursor=cursor)
    assert said(what, gone, before=Before(before, cursors)).startswith("s: ")


@given(st.floats(0, 1e8), st.floats(0, 1e8))
def test_a_time_that_passes_is_told_in_two_units(one: float, other: float) -> None:
    """Numbers stay below what the next unit says."""
    for seconds in (one, other):
        parts = lapse(seconds).split()
        assert len(parts) in (2, 4)
        if len(parts) == 4:
            assert int(parts[2]) < {"min": 60, "s": 60, "h": 24}[parts[3]]


class Clock:
    """The seam of the lines: monotonic seconds that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.now = 100.0
        monkeypatch.setattr(f"nbflow.notebook.{module}.time.monotonic", lambda: self.now)


def test_a_machine_reckons_by_its_last_visit() -> None:
    """A state that was left before says how long it may take now; a stepped one goes by its cursors."""
    said: list[str] = []
    line = MachineLine("training", lambda text, *_about: said.append(text))
    now = time.monotonic()
    line._began = line._next = now - 10

    def event(state: str, **detail: int) -> Event:
        return Event(
            callback="on_state",
            run="r",
            workflow="w",
            at=0.0,
            seq=1,
            step="fit#0",
            name="fit",
            state=state,
            detail=detail,
        )

    line.on_state(event("running"))
    line._before["fit"] = Before(60.0)
    line._last = 0.0
    line._at["fit#0"] = line._at["fit#0"]._replace(since=now - 20)
    assert line.beat()
    assert re.fullmatch(r"training: in fit, \d+ s, about \d+ s left \(0 states left behind\)", said[-1])
    line.on_run(event("completed"))
    assert not line.beat()


def test_no_beat_comes_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands under a cell that is over does not change any more; hidden, the line is empty and comes back."""
    store, shown = MemoryStore(), []
    clock = Clock(monkeypatch, "step_line")
    with attached(store, new=True) as session:
        line = StepLine(
            session, Earlier(session), {}, lambda text, _id, _update, last: shown.append((text, last))
        )

        def look(*, seconds: float, **how: bool) -> None:
            clock.now += 5
            monkeypatch.setattr(session.clock, "now", lambda: began + seconds, raising=False)
            line.beat(**how)

        began = session.clock.now()

        @nbflow.durable(name="slow")
        def slow() -> None:
            look(seconds=0.5)
            assert [] == shown
            look(seconds=3.0, later=True)
            assert [] == shown
            look(seconds=3.0)
            look(seconds=4.0, hidden=True)
            look(seconds=12.0)

        slow()
        line.end()
        line.beat()
        line.end()
    texts = [text for text, _ in shown]
    assert "slow: " in texts[0]
    assert "" == texts[1]
    assert "slow: " in texts[2]
    assert texts[-1].startswith("slow took")
    assert [False, False, False, True] == [last for _, last in shown]


def test_ended_steps_are_told_in_words() -> None:
    """Of a step that is still open nothing is said."""
    store = MemoryStore()

    @nbflow.durable(name="bad")
    def bad() -> None:
        assert "" == ended(session.history, key())
        raise KeyError("x")

    def key() -> str:
        return next(iter(session.history.by_step))

    with attached(store, new=True) as session:
        with pytest.raises(KeyError):
            bad()
        assert ended(session.history, key()).startswith("bad failed after ")


# The pulse ---------------------------------------------------------------------------------------


def test_the_pulse_calls_until_it_is_told_not_to(caplog: pytest.LogCaptureFixture) -> None:
    """One thread for all; one that raises is logged and called no more, the others are."""
    calls: list[str] = []

    def broken() -> None:
        calls.append("broken")
        raise ValueError("no")

    def fine() -> None:
        calls.append("fine")

    pulse.add(broken)
    pulse.add(fine)
    pulse.add(fine)
    until(lambda: calls.count("fine") > 2)
    pulse.remove(fine)
    pulse.remove(fine)
    assert 1 == calls.count("broken")
    assert "not shown any more" in caplog.text
    assert 1 == len([thread for thread in threading.enumerate() if thread.name == "nbflow-pulse"])


# In a terminal -----------------------------------------------------------------------------------

SCRIPT = """
import time, nbflow
@nbflow.durable
def fit(n):
    time.sleep(n)
    print("printed")
with nbflow.run("script", new=True):
    fit(1.8)
print("end")
"""


def run_on_terminal(script: Path, folder: Path) -> str:
    """Return what a person's terminal gets from a script."""
    pid, descriptor = pty.fork()
    if pid == 0:
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NBFLOW_STORE": str(folder / "store")}
        os.execve(sys.executable, [sys.executable, str(script)], env)
    found = b""
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:
            break
        if not piece:
            break
        found += piece
    os.close(descriptor)
    assert 0 == os.waitpid(pid, 0)[1], found
    return found.decode()


def test_a_script_has_a_status_line_on_a_terminal_only(tmp_path: Path, python: str) -> None:
    """It goes on while the step runs, is taken away at the end, and what is printed stands whole; pipes get nothing."""
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    shown = run_on_terminal(script, tmp_path)
    assert "fit: " in shown
    assert "printed\r\n" in shown
    assert shown.endswith("\x1b[2Kend\r\n")
    piped = subprocess.run([python, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert ("printed\nend\n", "") == (piped.stdout, piped.stderr)
