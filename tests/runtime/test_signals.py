"""Signals: first in, first out, each once; whatever ends a wait first ends it in every replay."""

from __future__ import annotations

import asyncio
import os
import signal as signals
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
    RunCancelled,
    RunFinished,
    StepTimeout,
    StoreFull,
    UnknownRun,
    UsageError,
    WaitTimeout,
)
from nbflow.core.history import History
from nbflow.runtime import workers
from nbflow.runtime.session import shielded
from nbflow.store.local import open_store
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock
from tests.runtime.timed import InThread, attached, steps, until


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


# Order and once -----------------------------------------------------------------------------------


def test_signals_of_one_name_are_received_in_the_order_they_were_sent(store: MemoryStore) -> None:
    """Those of another name wait for their own."""
    with attached(store) as session:
        for name, value in [("a", 1), ("b", 10), ("a", 2), ("b", 20)]:
            nbflow.signal(session.run, name, value)

        assert [1, 2, 10, 20] == [nbflow.wait_for(name) for name in "aabb"]


def test_a_resumed_run_gets_the_same_signals_again(store: MemoryStore) -> None:
    """A replay consumes nothing; the next wait goes on with the next signal."""
    with attached(store) as session:
        for value in ("one", "two", "three"):
            nbflow.signal(session.run, "go", value)
        assert ["one", "two"] == [nbflow.wait_for("go"), nbflow.wait_for("go")]
    with attached(store):
        assert ["one", "two", "three"] == [nbflow.wait_for("go") for _ in range(3)]


def test_a_waiting_run_is_woken(store: MemoryStore) -> None:
    """The step is waiting meanwhile, and completed by the signal."""
    with attached(store) as session:
        waiter = InThread(nbflow.wait_for, "go")
        until(lambda: steps(store, "signal"))
        assert ["waiting"] == [step.state for step in steps(store, "signal")]
        nbflow.signal(session.run, "go", {"build": 7})
        assert {"build": 7} == waiter.result()

    assert [("signal:go#0", "completed")] == [(step.step, step.state) for step in steps(store, "signal")]


def test_a_signal_needs_neither_a_wait_nor_an_owner(store: MemoryStore) -> None:
    """It is kept until somebody resumes the run and waits for it."""
    with attached(store) as session:
        pass
    nbflow.signal(session.run[:18], "go", [1, 2], store=store)
    with attached(store):
        assert [1, 2] == nbflow.wait_for("go")


def test_an_id_makes_sending_repeatable(store: MemoryStore) -> None:
    """Before it is taken and after it was consumed."""
    with attached(store) as session:
        for _ in range(3):
            nbflow.signal(session.run, "go", 1, id="ticket-17")
        assert 1 == nbflow.wait_for("go")
        nbflow.signal(session.run, "go", 1, id="ticket-17")
        with pytest.raises(WaitTimeout):
            nbflow.wait_for("go", timeout=0)


@given(
    values=st.lists(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_payloads_arrive_as_they_were_sent(values: list[Any]) -> None:
    """Now and in a replay."""
    store = MemoryStore()
    try:
        with attached(store) as session:
            for value in values:
                nbflow.signal(session.run, "go", value)
            assert values == [nbflow.wait_for("go") for _ in values]
        with attached(store):
            assert values == [nbflow.wait_for("go") for _ in values]
    except UsageError as error:  # a half of a character pair is no text that can be kept
        assert "surrogate" in str(error)


@pytest.mark.parametrize("waiters", [2, 8])
def test_of_many_waiters_each_gets_another_signal(store: MemoryStore, waiters: int) -> None:
    """Threads that wait at the same time never share one."""
    with attached(store) as session:
        waiting = [InThread(nbflow.wait_for, "go") for _ in range(waiters)]
        for value in range(waiters):
            nbflow.signal(session.run, "go", value)
        assert list(range(waiters)) == sorted(one.result() for one in waiting)


def test_async_waiters_do_not_block_their_loop(store: MemoryStore) -> None:
    """Ten tasks of one loop, one of which sends."""

    async def main(run: str) -> list[int]:
        async def send() -> None:
            for value in range(10):
                await asyncio.sleep(0)
                nbflow.signal(run, "go", value)

        *found, _ = await asyncio.gather(*(nbflow.wait_for.aio("go") for _ in range(10)), send())
        return sorted(found)  # type: ignore[type-var]

    with attached(store, VirtualClock()) as session:
        assert list(range(10)) == asyncio.run(main(session.run))
    with attached(store, VirtualClock()) as session:
        assert list(range(10)) == sorted(nbflow.wait_for("go") for _ in range(10))


def test_a_waiting_thread_gives_its_slot_back(store: MemoryStore) -> None:
    """With one worker, the one who sends can still work."""
    pool = workers.Workers(1)

    def waiting() -> Any:
        with pool.slot():
            return nbflow.wait_for("go")

    with attached(store) as session:
        waiter = InThread(waiting)
        until(lambda: steps(store, "signal"))
        with pool.slot():
            nbflow.signal(session.run, "go", "on")
        assert "on" == waiter.result()


def test_a_compensator_may_wait_for_a_signal_in_a_cancelled_run(store: MemoryStore) -> None:
    """What puts things right is not stopped, and messages still arrive."""
    with attached(store) as session:
        nbflow.cancel(session.run)
        nbflow.signal(session.run, "refunded", 99)
        with shielded():
            assert 99 == nbflow.wait_for("refunded")
        with pytest.raises(RunCancelled):
            nbflow.wait_for("refunded")


# Timeouts -----------------------------------------------------------------------------------------


def test_a_wait_that_times_out_times_out_in_every_replay(store: MemoryStore) -> None:
    """Even if the signal has come since; the next wait of that name gets it."""
    clock = VirtualClock()
    with attached(store, clock) as session:
        with pytest.raises(WaitTimeout, match=r"'go'.* 60 s") as caught:
            nbflow.wait_for("go", timeout="1m")
        assert isinstance(caught.value, StepTimeout)
        assert (session.run, "signal:go#0", "go", 60.0) == (
            caught.value.run,
            caught.value.step,
            caught.value.name,
            caught.value.timeout,
        )
        nbflow.signal(session.run, "go", "late")
    for timeout in ("1m", None, 5):
        with attached(store, clock):
            with pytest.raises(WaitTimeout, match=" 60 s"):
                nbflow.wait_for("go", timeout=timeout)
            assert "late" == nbflow.wait_for("go", timeout=timeout)
    assert [60] == clock.slept
    assert ["timed_out", "completed"] == [step.state for step in steps(store, "signal")]


def test_a_signal_that_came_first_wins_in_every_replay(store: MemoryStore) -> None:
    """Even if the deadline has passed when the run is resumed."""
    clock = VirtualClock()
    with attached(store, clock) as session:
        nbflow.signal(session.run, "go", "in time")
        assert "in time" == nbflow.wait_for("go", timeout=1)
    clock.advance(1000)
    with attached(store, clock):
        assert "in time" == nbflow.wait_for("go", timeout=1)
        assert 0 == len(clock.slept)


def test_what_is_in_the_inbox_when_the_deadline_is_noticed_still_counts(store: MemoryStore) -> None:
    """The journal's order decides, and the signal is taken into it before the timeout."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock) as session:
        killed = InThread(nbflow.wait_for, "go", timeout=10)
        until(lambda: steps(store, "signal"))
        with attached(store, clock):
            with pytest.raises(nbflow.errors.LeaseLost):
                killed.result()
            clock.advance(1000)
            nbflow.signal(session.run, "go", "while nobody looked")
            assert "while nobody looked" == nbflow.wait_for("go", timeout=10)


@pytest.mark.parametrize("signal_first", [True, False])
@pytest.mark.parametrize("shift", [0.0, 3600.0, -3600.0])
def test_the_deadline_stays_over_restarts(store: MemoryStore, signal_first: bool, shift: float) -> None:
    """A resume waits what is left of the first timeout, and both orders of the race replay as they were."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock) as session:
        killed = InThread(nbflow.wait_for, "go", timeout=100)
        until(lambda: steps(store, "signal"))
        clock.advance(30)
        with attached(store, clock):
            with pytest.raises(nbflow.errors.LeaseLost):
                killed.result()
            clock.shift_wall(shift)
            waiter = InThread(nbflow.wait_for, "go", timeout=5000)
            until(lambda: len(steps(store, "signal")) == 2)
            clock.advance(69)
            if signal_first:
                nbflow.signal(session.run, "go", "yes")
                assert "yes" == waiter.result()
            else:
                threading.Event().wait(0.03)
                assert waiter.running
            clock.advance(1)
            if not signal_first:
                with pytest.raises(WaitTimeout, match=" 100 s"):
                    waiter.result()
                nbflow.signal(session.run, "go", "too late")
    for _ in range(2):
        with attached(store, clock):
            if signal_first:
                assert "yes" == nbflow.wait_for("go", timeout=100)
            else:
                with pytest.raises(WaitTimeout):
                    nbflow.wait_for("go", timeout=100)


def test_a_loop_that_catches_timeouts_waits_anew(store: MemoryStore) -> None:
    """Each pass is a wait of its own, in the replay as well."""
    clock = VirtualClock()

    def reminders(run: str) -> int:
        count = 0
        while True:
            try:
                nbflow.wait_for("answer", timeout=10)
            except WaitTimeout:
                count += 1
                if count == 3:
                    nbflow.signal(run, "answer", id="only one")
            else:
                return count

    for _ in range(2):
        with attached(store, clock) as session:
            assert 3 == reminders(session.run)
    assert [10, 10, 10] == clock.slept


def test_a_forgotten_timeout_is_waited_for_anew(store: MemoryStore) -> None:
    """The error says how to open the wait again."""
    clock = VirtualClock()
    with attached(store, clock) as session:
        with pytest.raises(WaitTimeout, match="nbflow forget"):
            nbflow.wait_for("go", timeout=10)
        session.forget("signal:go#0")
        nbflow.signal(session.run, "go", 1)
    with attached(store, clock):
        assert 1 == nbflow.wait_for("go", timeout=10)


def test_async_timeouts_end_the_same_way(store: MemoryStore) -> None:
    """And replay in sync code, for both faces are one wait."""
    clock = VirtualClock()
    with attached(store, clock), pytest.raises(WaitTimeout):
        asyncio.run(nbflow.wait_for.aio("go", timeout=10))
    with attached(store, clock), pytest.raises(WaitTimeout):
        nbflow.wait_for("go", timeout=10)
    assert [10] == clock.slept


# Lost acknowledgements ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_is_consumed_once_whatever_the_disk_says(at: int, when: Any) -> None:
    """The wait fails; the same wait again returns the same signal, and the next one the next."""
    memory = MemoryStore()
    store = FaultyStore(memory, at=at, when=when)
    with attached(store) as session:
        nbflow.signal(session.run, "go", "first")
        nbflow.signal(session.run, "go", "second")
        with pytest.raises(StoreFull):
            nbflow.wait_for("go")
        assert ["first", "second"] == [nbflow.wait_for("go"), nbflow.wait_for("go")]
    with attached(memory):
        assert ["first", "second"] == [nbflow.wait_for("go"), nbflow.wait_for("go")]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_timeout_whose_record_failed_was_not_seen(when: Any) -> None:
    """Then the disk's error is raised; if the record was kept, every replay times out."""
    memory, clock = MemoryStore(), VirtualClock()
    store = FaultyStore(memory, at=2, when=when)
    with attached(store, clock) as session:
        with pytest.raises(StoreFull):
            nbflow.wait_for("go", timeout=10)
        nbflow.signal(session.run, "go", 1)
        if when == "after":
            with pytest.raises(WaitTimeout):
                nbflow.wait_for("go", timeout=10)
        else:
            assert 1 == nbflow.wait_for("go", timeout=10)


def test_waiters_do_not_share_a_signal_when_an_acknowledgement_is_lost() -> None:
    """Many threads, and a disk that keeps the record and says it did not."""
    memory = MemoryStore()
    for at in range(8, 14):
        store = FaultyStore(memory, at=at, when="after")
        with attached(store, new=True) as session:

            def receive() -> Any:
                for _ in range(3):
                    try:
                        return nbflow.wait_for("go", timeout=20)
                    except StoreFull:
                        continue
                raise AssertionError("the disk fails once only")

            waiting = [InThread(receive) for _ in range(4)]
            for value in range(8):  # of a wait whose number another took meanwhile, nobody asks again
                nbflow.signal(session.run, "go", value)
            found = [one.result() for one in waiting]
            assert 4 == len(set(found))
            consumed = [
                execution.completed.detail["message"]
                for execution in History.of(memory.entries(session.run)).executions.values()
                if execution.completed
            ]
            assert len(set(consumed)) == len(consumed)


# Bad input ----------------------------------------------------------------------------------------


def test_a_signal_for_a_finished_run_is_refused(store: MemoryStore) -> None:
    """The error names the run and the signal."""
    with nbflow.run("deploy", store=store) as run:
        pass
    with pytest.raises(RunFinished, match="'go'") as caught:
        nbflow.signal(run, "go", store=store)
    assert run.id == caught.value.run
    assert run.id in str(caught.value)
    assert "completed" in str(caught.value)


def test_a_signal_for_no_run_is_refused(store: MemoryStore) -> None:
    """As every question about a run that is not there."""
    with pytest.raises(UnknownRun):
        nbflow.signal("0197a3b2", "go", store=store)


class _Thing:
    pass


_LOOP: list[Any] = []
_LOOP.append(_LOOP)


@pytest.mark.parametrize(
    "payload", [_Thing(), float("nan"), float("inf"), {1, 2}, b"bytes", 2**70, "\ud800", _LOOP, {(1, 2): 3}]
)
def test_a_payload_that_json_cannot_hold_is_refused(store: MemoryStore, payload: Any) -> None:
    """Before anything is sent; the error names the signal."""
    with attached(store) as session:
        with pytest.raises(UsageError, match="'go'"):
            nbflow.signal(session.run, "go", payload)
        with pytest.raises(WaitTimeout):
            nbflow.wait_for("go", timeout=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda run: nbflow.signal(run, ""),
        lambda run: nbflow.signal(run, 7),  # type: ignore[arg-type]
        lambda run: nbflow.signal(run, "go", id=""),
        lambda run: nbflow.signal(None, "go"),  # type: ignore[arg-type]
        lambda _run: nbflow.wait_for(""),
        lambda _run: nbflow.wait_for("go", timeout=-1),
        lambda _run: nbflow.wait_for("go", timeout=float("nan")),
        lambda _run: nbflow.wait_for("go", timeout="soon"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(store: MemoryStore, call: Any) -> None:
    """And nothing is recorded."""
    with attached(store) as session:
        before = session.history.seq
        with pytest.raises(UsageError):
            call(session.run)
        assert before == session.history.seq


# A real kill --------------------------------------------------------------------------------------

SCRIPT = """
import nbflow
with nbflow.run("w"):
    print(nbflow.wait_for("first"), flush=True)
    print("waiting", flush=True)
    print(nbflow.wait_for("second"), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_signal_sent_while_the_process_was_dead_is_received(python: str, _own_store: Path) -> None:
    """SIGKILL in a wait; what was received before is not asked for again."""
    command = [python, "-c", SCRIPT]
    place = open_store(_own_store)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        until(lambda: place.runs() and place.steps(place.runs()[0].run))
        (info,) = place.runs()
        nbflow.signal(info.run, "first", "one", store=place)
        assert first.stdout is not None
        assert ["one\n", "waiting\n"] == [first.stdout.readline() for _ in range(2)]
        until(lambda: len(place.steps(info.run)) == 2)
        os.kill(first.pid, signals.SIGKILL)
    nbflow.signal(info.run, "second", "two", store=place)

    second = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)

    assert ["one", "waiting", "two"] == second.stdout.split()
    assert "completed" == place.run(info.run).state
    place.close()
