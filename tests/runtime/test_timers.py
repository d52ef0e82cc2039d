"""Sleeping: once, for as long as was said, over restarts and whatever somebody does to the clocks."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.core.errors import NoActiveRun, RunCancelled, StoreFull, UsageError
from nbflow.core.history import History
from nbflow.runtime import workers
from nbflow.store.local import open_store
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock
from tests.runtime.timed import InThread, attached, steps, until

HOUR = 3600.0


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


# One process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "seconds"), [(5, 5.0), ("1h 30m", 5400.0), (timedelta(minutes=2), 120.0), (0.25, 0.25)]
)
def test_a_sleep_takes_its_length(store: MemoryStore, length: Any, seconds: float) -> None:
    """Numbers, texts and timedeltas, each recorded as a step of kind `sleep`."""
    clock = VirtualClock()
    with attached(store, clock):
        nbflow.sleep(length)

    assert [seconds] == clock.slept
    assert [("sleep#0", "completed")] == [(step.step, step.state) for step in steps(store, "sleep")]


def test_a_sleep_that_is_over_is_not_slept_again(store: MemoryStore) -> None:
    """A resumed run passes it at once, and each sleep of a run is one of its own."""
    clock = VirtualClock()
    with attached(store, clock):
        nbflow.sleep(5)
    with attached(store, clock):
        nbflow.sleep(5)
        nbflow.sleep(7)

    assert [5, 7] == clock.slept
    assert ["sleep#0", "sleep#1"] == [step.step for step in steps(store, "sleep")]


def test_the_end_of_a_sleep_is_on_disk_before_it_begins(store: MemoryStore) -> None:
    """Synced, and not merely handed to the system: a power cut must not start it anew."""
    clock = VirtualClock(1000.0)
    seen: list[tuple[str, Any]] = []
    with attached(store, clock) as session:
        append = session.log.append

        def spy(*records: Any, durability: Any = "synced") -> int:
            seen.extend((durability, record) for record in records)
            return append(*records, durability=durability)

        session.log.append = spy  # type: ignore[method-assign]
        nbflow.sleep(60)

    (durability, started), _ = seen
    assert "synced" == durability
    assert {"due_at": 1060.0, "seconds": 60.0, "boot": ["boot-1", 0.0]} == started.detail


def test_zero_and_the_past_return_at_once_and_are_recorded(store: MemoryStore) -> None:
    """In one append."""
    clock = VirtualClock()
    with attached(store, clock) as session:
        before = session.history.seq
        nbflow.sleep(0)
        nbflow.sleep_until(clock.now() - 10)
        nbflow.sleep_until(datetime(1999, 1, 1, tzinfo=UTC))

    assert [] == clock.slept
    assert ["completed"] * 3 == [step.state for step in steps(store, "sleep")]
    assert before + 6 == session.history.seq


def test_sleep_until_goes_by_the_wall_clock(store: MemoryStore) -> None:
    """A datetime with a zone, one that is skipped in spring as well."""
    berlin = ZoneInfo("Europe/Berlin")
    clock = VirtualClock(datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp())  # 01:30 in Berlin
    with attached(store, clock):
        nbflow.sleep_until(datetime(2026, 3, 29, 2, 30, tzinfo=berlin))
    assert [HOUR] == clock.slept

    clock = VirtualClock(datetime(2026, 10, 25, 0, 0, tzinfo=UTC).timestamp())  # 02:00 in Berlin, the first
    with attached(store, clock, "fold"):
        nbflow.sleep_until(datetime(2026, 10, 25, 2, 30, tzinfo=berlin))
        nbflow.sleep_until(datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=1))
    assert [HOUR / 2, HOUR] == clock.slept


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_a_relative_sleep_does_not_follow_a_clock_that_is_set(store: MemoryStore, shift: float) -> None:
    """An hour either way in the middle of a sleep: it takes as long as was said."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock):
        sleeper = InThread(nbflow.sleep, 100)
        until(lambda: steps(store, "sleep"))
        clock.advance(40)
        clock.shift_wall(shift)
        clock.advance(59)
        time.sleep(0.03)
        assert sleeper.running
        clock.advance(1)
        sleeper.result()


@pytest.mark.parametrize(("shift", "rest"), [(HOUR, 0.0), (-HOUR, HOUR + 60)])
def test_an_absolute_sleep_follows_a_clock_that_is_set(store: MemoryStore, shift: float, rest: float) -> None:
    """Nine o'clock is nine o'clock."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock):
        sleeper = InThread(nbflow.sleep_until, clock.now() + 100)
        until(lambda: steps(store, "sleep"))
        clock.advance(40)
        clock.shift_wall(shift)
        if rest:
            clock.advance(rest - 1)
            time.sleep(0.03)
            assert sleeper.running
            clock.advance(1)
        sleeper.result()


@pytest.mark.parametrize(
    "bad", [-1, math.nan, math.inf, "soon", None, True, timedelta(seconds=-1), [5], 10**400]
)
def test_what_is_no_duration_is_refused(store: MemoryStore, bad: Any) -> None:
    """And nothing is recorded."""
    with attached(store, VirtualClock()):
        with pytest.raises(UsageError):
            nbflow.sleep(bad)
        with pytest.raises(UsageError):
            asyncio.run(nbflow.sleep.aio(bad))
    assert [] == steps(store, "sleep")


def test_a_sleep_outside_any_run_is_refused() -> None:
    """Nothing would be recorded."""
    with pytest.raises(NoActiveRun):
        nbflow.sleep(1)


# Sync and async -----------------------------------------------------------------------------------


def test_async_sleeps_of_one_loop_take_the_longest_and_not_the_sum(store: MemoryStore) -> None:
    """The loop is not blocked; a resume sleeps none of them again."""
    clock = VirtualClock()

    async def both() -> float:
        began = clock.monotonic()
        await asyncio.gather(nbflow.sleep.aio(30), nbflow.sleep.aio("20s"), nbflow.sleep_until.aio(0))
        return clock.monotonic() - began

    with attached(store, clock):
        assert 30 == asyncio.run(both())
    with attached(store, clock):
        assert 0 == asyncio.run(both())


def test_sleeps_of_several_threads_take_the_longest_and_not_the_sum(store: MemoryStore) -> None:
    """The virtual clock jumps to the earliest first."""
    clock = VirtualClock(grace=0.05)
    with attached(store, clock):
        sleepers = [InThread(nbflow.sleep, seconds) for seconds in (5, 9, 7)]
        for sleeper in sleepers:
            sleeper.result()

    assert 9 == clock.monotonic()


def test_a_sleeper_gives_its_slot_back(store: MemoryStore) -> None:
    """With one worker, one that sleeps keeps nobody from working."""
    clock = VirtualClock(auto_advance=False)
    pool = workers.Workers(1)

    def sleeping() -> None:
        with pool.slot():
            nbflow.sleep(10)

    with attached(store, clock):
        sleeper = InThread(sleeping)
        until(lambda: steps(store, "sleep"))
        with pool.slot():
            clock.advance(10)
        sleeper.result()


def test_a_verb_looks_like_its_function() -> None:
    """Name, signature and docstring are those of the blocking one, on both faces."""
    for verb in (nbflow.sleep, nbflow.sleep_until, nbflow.wait_for):
        assert verb.__doc__
        assert verb.__doc__ == verb.aio.__doc__
        assert inspect.signature(verb) == inspect.signature(verb.aio)
        assert inspect.iscoroutinefunction(verb.aio)
    assert "sleep" == nbflow.sleep.__name__
    assert ["seconds"] == list(inspect.signature(nbflow.sleep).parameters)


# Restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, HOUR, -HOUR])
@pytest.mark.parametrize("boots", [True, False])
def test_a_resume_sleeps_only_what_is_left(store: MemoryStore, shift: float, boots: bool) -> None:
    """Clock moved an hour either way while nobody ran: right in the same boot, never too long without one."""
    clock = VirtualClock(auto_advance=False, boots=boots)
    with attached(store, clock):
        killed = InThread(nbflow.sleep, 100)
        until(lambda: steps(store, "sleep"))
        clock.advance(30)
        with attached(store, clock) as again:
            with pytest.raises(nbflow.errors.LeaseLost):
                killed.result()
            clock.shift_wall(shift)
            clock.auto_advance = True
            began = clock.monotonic()
            nbflow.sleep(5000)  # whatever the code says now

            took = clock.monotonic() - began
            assert 2 == again.attempt
    expected = 70.0 if boots else min(max(70.0 - shift, 0.0), 100.0)
    assert expected == pytest.approx(took)
    assert ["cancelled", "completed"] == [step.state for step in steps(store, "sleep")]


@pytest.mark.parametrize(("shift", "took"), [(0.0, 70.0), (HOUR, 0.0), (-HOUR, 100.0)])
def test_after_a_reboot_the_wall_clock_decides(store: MemoryStore, shift: float, took: float) -> None:
    """There is no other clock that knows; it is never longer than the whole sleep."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock):
        killed = InThread(nbflow.sleep, 100)
        until(lambda: steps(store, "sleep"))
        clock.advance(30)
        with attached(store, clock):
            with pytest.raises(nbflow.errors.LeaseLost):
                killed.result()
            clock.reboot()
            clock.shift_wall(shift)
            clock.auto_advance = True
            began = clock.monotonic()
            nbflow.sleep(100)
            assert took == pytest.approx(clock.monotonic() - began)


class Killed(BaseException):
    """Ends a process for the tests."""


@given(
    length=st.integers(1, 1000),
    pieces=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0.0, HOUR, -HOUR])), max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_a_sleep_takes_its_length_over_any_number_of_stops(
    length: int, pieces: list[tuple[int, float]]
) -> None:
    """Stopped again and again, with the wall clock set each time: awake when the time has passed, once."""
    store, clock = MemoryStore(), VirtualClock()
    began = clock.monotonic()
    for lives, shift in pieces:

        def die(seconds: float, *, expecting: bool = False, lives: int = lives) -> None:  # noqa: ARG001
            clock.advance(min(lives, seconds))
            if lives < seconds:
                raise Killed

        clock.pause = die  # type: ignore[method-assign]
        try:
            with attached(store, clock):
                nbflow.sleep(length)
        except Killed:
            pass
        clock.shift_wall(shift)
    vars(clock).pop("pause", None)
    with attached(store, clock):
        nbflow.sleep(length)

    assert length == pytest.approx(clock.monotonic() - began)
    assert 1 == sum(step.state == "completed" for step in steps(store, "sleep"))


def test_an_interrupted_sleep_waits_on_when_it_is_called_again(store: MemoryStore) -> None:
    """Stop the cell, run it again: the first end counts."""
    clock = VirtualClock()

    def interrupt(seconds: float, *, expecting: bool = False) -> None:  # noqa: ARG001
        clock.advance(4)
        raise KeyboardInterrupt

    with attached(store, clock):
        clock.pause = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            nbflow.sleep(10)
        del clock.pause  # type: ignore[attr-defined]
        nbflow.sleep(10)

    assert [6] == clock.slept
    assert [("sleep#0", "cancelled"), ("sleep#0", "completed")] == [
        (step.step, step.state) for step in steps(store, "sleep")
    ]


def test_a_forgotten_sleep_is_slept_anew(store: MemoryStore) -> None:
    """Its old end does not count any more."""
    clock = VirtualClock()
    with attached(store, clock) as session:
        nbflow.sleep(10)
        session.forget("sleep#0")
    with attached(store, clock):
        nbflow.sleep(10)

    assert [10, 10] == clock.slept


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_acknowledgement_makes_nobody_sleep_twice(at: int, when: Any) -> None:
    """Whatever the disk refused or kept, the next try knows the end that was recorded first."""
    memory, clock = MemoryStore(), VirtualClock()
    with attached(FaultyStore(memory, at=at, when=when), clock):
        with pytest.raises(StoreFull):
            nbflow.sleep(10)
        nbflow.sleep(10)
        nbflow.sleep(1)

    assert 11 == clock.monotonic()
    assert ["sleep#0", "sleep#1"] == [s.step for s in steps(memory, "sleep") if s.state == "completed"]


def test_a_sleep_inside_a_durable_call_is_below_it(store: MemoryStore) -> None:
    """A retry of the call does not sleep again."""
    clock = VirtualClock()
    tries = []

    @nbflow.durable(retries=1, delay=0)
    def work() -> str:
        nbflow.sleep(10)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError
        return "done"

    with attached(store, clock):
        assert "done" == work()

    (slept,) = steps(store, "sleep")
    (call,) = steps(store, "call")
    assert call.step == slept.parent
    assert [10] == clock.slept


def test_a_cancelled_run_does_not_sleep_on(store: MemoryStore) -> None:
    """The wait ends, and the next one does not begin."""
    clock = VirtualClock(auto_advance=False)
    with attached(store, clock) as session:
        sleeper = InThread(nbflow.sleep, 100)
        until(lambda: steps(store, "sleep"))
        nbflow.cancel(session.run, "enough", store=store)
        with pytest.raises(RunCancelled, match="enough"):
            sleeper.result()
        with pytest.raises(RunCancelled):
            nbflow.sleep(1)
    assert ["cancelled"] == [step.state for step in steps(store, "sleep")]


# A real kill, a real clock ------------------------------------------------------------------------

SCRIPT = """
import sys, time
import nbflow

@nbflow.durable
def effect():
    with open(sys.argv[1], "a") as file:
        print("fired", file=file)

with nbflow.run("w"):
    print("asleep", flush=True)
    began = time.monotonic()
    nbflow.sleep(2)
    effect()
    print(time.monotonic() - began, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_in_its_sleep_a_run_sleeps_only_the_rest_and_fires_once(
    tmp_path: Path, python: str, _own_store: Path
) -> None:
    """SIGKILL in the middle of two seconds; the end comes two seconds after the first beginning."""
    fired = tmp_path / "fired"
    command = [python, "-c", SCRIPT, str(fired)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert "asleep\n" == first.stdout.readline()
        place = open_store(_own_store)
        until(lambda: steps(place, "sleep"))
        time.sleep(0.8)
        os.kill(first.pid, signal.SIGKILL)
    assert not fired.exists()

    second = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)

    (info,) = place.runs()
    history = History.of(place.entries(info.run))
    began, ended = (history.by_step["sleep#0"][i] for i in (0, -1))
    assert ended.ended_at is not None
    assert ended.ended_at - began.started_at >= 1.99
    assert float(second.stdout.splitlines()[-1]) < 1.9  # two seconds and more if it slept anew
    assert ["fired"] == fired.read_text().split()
    assert 1 == sum(step.state == "completed" for step in steps(place, "sleep"))
    place.close()
