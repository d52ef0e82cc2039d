"""Cancel: cooperative, visible to other processes, final."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.core.errors import (
    LeaseError,
    NoActiveRun,
    RunCancelled,
    RunFinished,
    UnknownRun,
    UsageError,
)
from nbflow.core.history import History
from nbflow.core.model import MessageTaken, RunChanged, RunOpened
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.local import open_store
from nbflow.testing import MemoryStore, VirtualClock
from tests.runtime.timed import InThread, attached, steps, until


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def ends(store: Any, run: str) -> list[tuple[str, str]]:
    """List the states that the run went to, with their reasons."""
    return [
        (entry.record.state, entry.record.reason)
        for entry in store.entries(run)
        if isinstance(entry.record, RunChanged)
    ]


# With an owner ------------------------------------------------------------------------------------


def test_a_cancelled_run_starts_no_further_step(store: MemoryStore) -> None:
    """From inside: the very next step raises, and the run ends cancelled, with who said why."""
    done: list[int] = []

    @nbflow.durable
    def work(x: int) -> None:
        done.append(x)

    with pytest.raises(RunCancelled) as caught, nbflow.run("w", store=store) as run:
        work(1)
        assert "requested" == nbflow.cancel(reason="the data is wrong")
        work(2)

    assert [1] == done
    assert (run.id, "user", "the data is wrong") == (caught.value.run, caught.value.reason, caught.value.note)
    info = store.run(run.id)
    assert "cancelled" == info.state
    assert "the data is wrong" in info.error
    assert info.finished_at is not None


def test_another_thread_or_process_is_heard_in_every_kind_of_wait(store: MemoryStore) -> None:
    """A sleep and a wait for a signal both end; what was waited for stays undone."""
    for wait in (
        lambda: nbflow.sleep("1h"),
        lambda: nbflow.wait_for("go"),
        lambda: nbflow.wait_for("go", "1h"),
    ):

        def body(wait: Any = wait) -> None:
            with nbflow.run("w", store=store, new=True):
                wait()

        waiter = InThread(body)
        until(lambda: [info for info in store.runs() if info.state == "running" and store.steps(info.run)])
        run = store.runs()[0].run
        assert "requested" == nbflow.cancel(run, store=store)
        with pytest.raises(RunCancelled):
            waiter.result()
        assert [("cancelled", "user")] == ends(store, run)
        assert "cancelled" == store.steps(run)[-1].state


def test_what_was_done_is_undone_before_the_run_ends(store: MemoryStore) -> None:
    """The compensators run, although the run is to stop."""
    undone: list[str] = []

    @nbflow.durable(compensate=lambda result, name: undone.append(name))
    def book(name: str) -> str:
        return name

    with pytest.raises(RunCancelled), nbflow.run("w", store=store) as run:
        book("flight")
        book("hotel")
        nbflow.cancel()
        nbflow.sleep(1)

    assert ["hotel", "flight"] == undone
    assert "cancelled" == store.run(run.id).state


def test_a_cancel_that_came_too_late_for_its_owner_is_heard_at_the_resume(store: MemoryStore) -> None:
    """The run failed before it looked; resumed, it ends before anything of it is replayed."""
    replayed: list[int] = []
    with pytest.raises(ZeroDivisionError), nbflow.run("w", store=store) as run:
        nbflow.cancel()
        1 / 0  # noqa: B018
    with pytest.raises(RunCancelled), nbflow.run("w", store=store):
        replayed.append(1)

    assert [] == replayed
    assert [("failed", ""), ("cancelled", "user")] == ends(store, run.id)


def test_a_cancel_behind_the_last_step_is_heard_as_well(store: MemoryStore) -> None:
    """A run whose cancel was accepted does not end as completed."""
    with pytest.raises(RunCancelled), nbflow.run("w", store=store) as run:
        nbflow.sleep(0)
        nbflow.cancel()
    assert "cancelled" == store.run(run.id).state


def test_a_deadline_cancels_for_timeout(store: MemoryStore) -> None:
    """Even in a wait that would take longer."""
    clock = VirtualClock()
    with attached(store, clock, opened={"deadline": clock.now() + 15}) as session:
        nbflow.sleep(10)
        with pytest.raises(RunCancelled) as caught:
            nbflow.sleep(10)
    assert ("timeout", session.run) == (caught.value.reason, caught.value.run)


# Without an owner ---------------------------------------------------------------------------------


def stopped(store: Any, body: Any = lambda: None) -> str:
    """Run `body` and leave the run as a killed process leaves it; return its id."""
    with attached(store, VirtualClock(), new=True) as session:
        body()
    return session.run


def test_a_run_that_nobody_owns_is_ended_at_once(store: MemoryStore) -> None:
    """Attached, cancelled, done; the record says who and why."""
    run = stopped(store, lambda: nbflow.sleep(1))

    assert "cancelled" == nbflow.cancel(run[:18], "not needed", store=store)
    assert [("cancelled", "user: not needed")] == ends(store, run)
    assert False is store.run(run).alive
    with nbflow.run("w", store=store) as fresh:
        assert run != fresh.id


def test_a_run_that_never_began_and_one_that_failed_can_be_cancelled(store: MemoryStore) -> None:
    """Pending and failed are not final."""
    store.create(RunOpened(run="0197a3b2-pending", workflow="w"))
    with pytest.raises(ZeroDivisionError), nbflow.run("failed", store=store) as failed:
        1 / 0  # noqa: B018

    for run in ("0197a3b2-pending", failed.id):
        assert "cancelled" == nbflow.cancel(run, store=store)
        assert "cancelled" == store.run(run).state


def test_what_has_to_be_undone_waits_for_the_code_that_can(store: MemoryStore) -> None:
    """Nobody owns the run: cancel is asked for, and the resume undoes and ends it before anything else."""
    undone: list[str] = []

    @nbflow.durable(compensate=lambda result, name: undone.append(name))
    def book(name: str) -> str:
        return name

    run = stopped(store, lambda: book("flight"))
    assert "requested" == nbflow.cancel(run, "no money", store=store)
    assert [] == undone
    with pytest.raises(RunCancelled, match="no money"), nbflow.run("w", store=store) as resumed:
        book("flight")
        book("hotel")

    assert run == resumed.id
    assert ["flight"] == undone
    assert "cancelled" == store.run(run).state


def test_children_that_nobody_owns_are_cancelled_with_their_parent(store: MemoryStore) -> None:
    """Down to the grandchildren, with the reason `parent`; a finished child stays what it was."""
    parent = stopped(store)
    for name, above in [("child", parent), ("grandchild", "child"), ("done", parent)]:
        store.create(RunOpened(run=name, workflow=name, parent=above))
    log = store.attach("done", nbflow.runtime.session.this_process())
    log.append(RunChanged(state="completed"))
    log.release()

    assert "cancelled" == nbflow.cancel(parent, store=store)
    assert ["cancelled", "cancelled", "completed"] == [
        store.run(name).state for name in ("child", "grandchild", "done")
    ]
    assert [("cancelled", f"parent: run {parent} is cancelled")] == ends(store, "child")


# Bad input ----------------------------------------------------------------------------------------


def test_a_finished_run_cannot_be_cancelled(store: MemoryStore) -> None:
    """The error names it and what it is; nothing is changed."""
    with nbflow.run("w", store=store) as run:
        pass
    for _ in range(2):
        with pytest.raises(RunFinished, match="is completed already") as caught:
            nbflow.cancel(run, store=store)
        assert run.id == caught.value.run
    cancelled = stopped(store)
    nbflow.cancel(cancelled, store=store)
    with pytest.raises(RunFinished, match="is cancelled already"):
        nbflow.cancel(cancelled, store=store)


def test_no_run_and_no_such_run_are_refused(store: MemoryStore) -> None:
    """Each with its own error."""
    with pytest.raises(NoActiveRun):
        nbflow.cancel(store=store)
    with pytest.raises(UnknownRun):
        nbflow.cancel("0197a3b2", store=store)
    with pytest.raises(UsageError):
        nbflow.cancel(7, store=store)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        nbflow.cancel(stopped(store), 7, store=store)  # type: ignore[arg-type]


# Races --------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Leaves a run as a killed process does."""


def resume(store: Any, run: str, how: str) -> None:
    """Resume the run, do a step, and leave it in this way."""

    @nbflow.durable
    def work() -> int:
        return 1

    with nbflow.run("w", store=store, resume=run):
        work()
        nbflow.sleep(0)
        if how == "fail":
            raise ValueError
        if how == "stop":
            raise Stopped


EXPECTED = (RunFinished, RunCancelled, LeaseError, ValueError, Stopped)


def act(store: Any, run: str, what: str) -> None:
    """Do one of the things that different people do to one run at the same time."""
    try:
        if what == "cancel":
            nbflow.cancel(run, "race", store=store)
        elif what == "signal":
            nbflow.signal(run, "go", store=store)
        else:
            resume(store, run, what)
    except EXPECTED:
        pass


ACTIONS = st.lists(st.sampled_from(["cancel", "complete", "fail", "stop", "signal"]), min_size=2, max_size=8)


def terminal(entries: list[Any]) -> None:
    """Check that nothing changed the run after its end, and that no step of it changed after its own."""
    changes = [entry for entry in entries if isinstance(entry.record, RunChanged)]
    final = [entry.seq for entry in changes if entry.record.state in FINAL_RUN_STATES]
    assert len(final) <= 1
    assert not final or final[0] == entries[-1].seq
    history, ended = History(), {}
    for entry in entries:
        history.add(entry)
        for number, execution in history.executions.items():
            if number in ended:
                assert ended[number] == execution.state
            if execution.completed or execution.ended or execution.interrupted:
                ended[number] = execution.state


@given(actions=ACTIONS)
@settings(max_examples=40, deadline=None)
def test_one_after_the_other_nothing_changes_a_final_state(actions: list[str]) -> None:
    """Random cancels, resumes and ends: the first completed or cancelled stays."""
    store = MemoryStore()
    run = stopped(store)
    final = ""
    for action in actions:
        act(store, run, action)
        state = store.run(run).state
        assert not final or final == state
        final = state if state in FINAL_RUN_STATES else ""
    terminal(store.entries(run))


@given(actions=ACTIONS, seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_at_the_same_time_nothing_changes_a_final_state(actions: list[str], seed: int) -> None:
    """The same in threads that race; an accepted cancel is never lost silently."""
    store = MemoryStore()
    run = stopped(store)
    start = threading.Barrier(len(actions))
    delays = random.Random(seed)

    def racing(action: str, delay: float) -> None:
        start.wait(10)
        threading.Event().wait(delay)
        act(store, run, action)

    threads = [
        threading.Thread(target=racing, args=(action, delays.choice([0, 0.0005, 0.002])))
        for action in actions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    terminal(store.entries(run))
    if store.run(run).state not in FINAL_RUN_STATES:
        asked = [message for message in store.memory[run].inbox if message.topic == "cancel"]
        act(store, run, "complete")
        assert ("cancelled" if asked else "completed") == store.run(run).state


# A real kill --------------------------------------------------------------------------------------

SCRIPT = """
import nbflow
with nbflow.run("w"):
    nbflow.sleep("1h")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("killed", [True, False])
def test_cancelling_a_process_that_sleeps_and_one_that_was_killed(
    python: str, _own_store: Path, killed: bool
) -> None:
    """The living one ends itself within moments; of the dead one the run is ended here."""
    place = open_store(_own_store)
    with subprocess.Popen([python, "-c", SCRIPT], stderr=subprocess.PIPE, text=True) as process:
        until(lambda: place.runs() and steps(place, "sleep"))
        (info,) = place.runs()
        if killed:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert ("cancelled" if killed else "requested") == nbflow.cancel(info.run, "enough", store=place)
        assert process.stderr is not None
        said = process.stderr.read()
    if not killed:
        assert "RunCancelled" in said
        assert "enough" in said
    assert "cancelled" == place.run(info.run).state
    taken = [e.record for e in place.entries(info.run) if isinstance(e.record, MessageTaken)]
    assert ["user: enough"] == [record.payload["reason"] for record in taken]
    place.close()
