"""Gates and dying processes: whoever is killed, and whenever, a decision is taken once and nothing else is decided."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import GateDecided, GatePending
from nbflow.core.gates import find_gate
from nbflow.core.history import History
from nbflow.core.model import StepCompleted
from nbflow.store.local import open_store
from nbflow.testing import MemoryStore, armed, crash, crash_points
from tests.runtime.timed import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")

REPORT = """
import nbflow

@nbflow.durable(version="1")
def send(what):
    print("sent", what, flush=True)

with nbflow.run("report"):
    decided = nbflow.gate("publish", "Publish?", options=["web", "mail"], show={"rows": 3}, wait=%s)
    send(decided.feedback)
"""


@pytest.fixture
def place(_own_store: Path) -> Iterator[Any]:
    """The store that the processes of this test share."""
    store = open_store(_own_store)
    yield store
    store.close()


def report(python: str, *, wait: bool = False, at: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the report in a process of its own, which kills itself at a point."""
    return subprocess.run(
        [python, "-c", REPORT % wait],
        env=armed(at) if at else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def ask(store: Any) -> str:
    """Bring the report to its gate in this process; return its run."""
    with pytest.raises(GatePending) as stopped, nbflow.run("report", store=store):
        nbflow.gate("publish", "Publish?", options=["web", "mail"], show={"rows": 3})
    return stopped.value.run


def decided_once(store: Any, run: str) -> bool:
    """Tell whether the run has exactly one completed gate, with the decision that its message brought."""
    history = History.of(store.entries(run))
    done = [
        e for e in store.entries(run) if isinstance(e.record, StepCompleted) and "decision" in e.record.detail
    ]
    return len(done) == 1 and len(history.decisions) == 1


def test_a_process_killed_while_it_waits_is_answered_in_its_absence(python: str, place: Any) -> None:
    """SIGKILL in the wait; the decision is taken by whoever runs it next, and what is behind the gate runs once."""
    with subprocess.Popen([python, "-c", REPORT % True], stdout=subprocess.PIPE, text=True) as first:
        until(lambda: [info.state for info in place.runs()] == ["waiting"])
        (info,) = place.runs()
        os.kill(first.pid, signal.SIGKILL)
    form = find_gate(History.of(place.entries(info.run)), "publish").form
    nbflow.approve(info.run, "publish", "go", select="web", by="ana", store=place)
    with pytest.raises(GateDecided, match="approved by ana"):
        nbflow.reject(info.run, "publish", store=place)
    done = report(python, wait=True)
    assert (0, "sent go\n") == (done.returncode, done.stdout)
    gate = find_gate(History.of(place.entries(info.run)), "publish")
    assert (form, "approved", ("web",)) == (gate.form, gate.state, gate.decision and gate.decision.selections)
    assert decided_once(place, info.run)


@pytest.mark.parametrize("at", ["journal.write.after:1", "journal.write.after:3", "journal.write.before:4"])
def test_a_process_killed_between_decision_and_record_takes_it_once(python: str, place: Any, at: str) -> None:
    """Before it took the message, between that and the gate's end, behind it: the next process finds one decision."""
    run = ask(place)
    nbflow.approve(run, "publish", "go", by="ana", store=place)
    killed = report(python, at=at)
    assert -signal.SIGKILL == killed.returncode
    second = report(python)
    assert 0 == second.returncode, second.stderr
    assert "sent go\n" in killed.stdout + second.stdout
    assert decided_once(place, run)
    assert "completed" == place.run(run).state


DECIDE = """
import sys, nbflow
from nbflow.core.errors import GateDecided
run, by = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    nbflow.approve(run, "publish", by=by)
    print("won", flush=True)
except GateDecided as error:
    print("lost to", error.decision.by, flush=True)
"""


def test_of_deciders_in_several_processes_exactly_one_wins(python: str, place: Any) -> None:
    """The others are told who was first, with nobody owning the run."""
    run = ask(place)
    deciders = [
        subprocess.Popen(
            [python, "-c", DECIDE, run, f"p{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for decider in deciders:
        assert decider.stdout is not None
        assert "ready\n" == decider.stdout.readline()
    for decider in deciders:
        assert decider.stdin is not None
        decider.stdin.write("\n")
        decider.stdin.flush()
    said = [decider.communicate(timeout=60)[0].strip() for decider in deciders]
    assert 1 == said.count("won")
    winner = f"p{said.index('won')}"
    assert {"won", f"lost to {winner}"} == set(said)
    gate = find_gate(History.of(place.entries(run)), "publish")
    assert "waiting" == gate.state  # nobody has taken it yet
    assert report(python).returncode == 0
    gate = find_gate(History.of(place.entries(run)), "publish")
    assert gate.decision is not None
    assert winner == gate.decision.by


def test_a_decider_killed_at_any_point_has_decided_or_not(tmp_path: Path) -> None:
    """What counts is whether the message is in the inbox: then it is final, else the gate waits for another."""
    with open_place(tmp_path / "list") as store:
        run = ask(store)
        with crash_points() as passed:
            nbflow.approve(run, "publish", by="killed", store=store)
    inbox = [name for name in passed if name.startswith("inbox")]
    assert len(inbox) >= 3
    for name in dict.fromkeys(inbox):
        with open_place(tmp_path / name) as store:
            run = ask(store)
            with crash(f"{name}:1") as crashed:
                nbflow.approve(run, "publish", by="killed", store=store)
            assert crashed
            try:
                who = nbflow.approve(run, "publish", by="ana", store=store).by
            except GateDecided as refused:
                assert refused.decision is not None
                who = refused.decision.by
            with nbflow.run("report", store=store):
                assert who == nbflow.gate("publish").by
            assert decided_once(store, run)


@contextlib.contextmanager
def open_place(folder: Path) -> Iterator[Any]:
    """Open a store of its own."""
    store = open_store(folder / ".nbflow")
    try:
        yield store
    finally:
        store.close()


def rounds(store: Any, sent: list[str]) -> None:
    """Run the report to its end in this process, deciding whenever it waits."""

    @nbflow.durable(version="1")
    def send(what: str) -> None:
        sent.append(what)

    for _ in range(4):
        try:
            with nbflow.run("report", store=store):
                send(nbflow.gate("publish", show=["a", "b"]).feedback)
            return
        except GatePending as pending:
            nbflow.approve(pending.run, "publish", "go", by="ana", store=store)


def outlive_every(step: int, new: Callable[[int], Any]) -> None:
    """Die at every `step`-th point of asking, deciding and resuming, and go on to the one outcome."""
    store = new(0)
    with crash_points() as passed:
        rounds(store, [])
    store.close()
    assert passed
    for number in range(1, len(passed) + 1, step):
        store = new(number)
        sent: list[str] = []
        try:
            with crash(f"*:{number}"):
                rounds(store, sent)
            try:
                rounds(store, sent)
            except GateDecided:  # it died behind the decision, and we ask for it again
                rounds(store, sent)
            runs = store.runs()
            done = [info.run for info in runs if decided_once(store, info.run)]
            assert len(runs) == len(done), (number, passed[number - 1])
            assert {"completed"} == {str(info.state) for info in runs}
            assert sent[-1] == "go"
        finally:
            store.close()


def test_whatever_dies_and_whenever_the_outcome_is_one() -> None:
    """Played deaths at every append: whoever comes after goes on to one decision."""
    outlive_every(1, lambda _: MemoryStore())


@pytest.mark.soak
def test_whatever_write_it_dies_at_the_outcome_is_one(tmp_path: Path) -> None:
    """The same at every write, sync and rename of a store in a folder."""
    outlive_every(1, lambda number: open_store(tmp_path / f"{number}" / ".nbflow"))
