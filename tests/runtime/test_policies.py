"""Policies round real calls: in one process and in several, sync and async, inside durable steps and outside."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tenacity

import nbflow
from nbflow.core.errors import (
    BulkheadFull,
    CircuitOpen,
    RateLimited,
    RunCancelled,
    StepTimeout,
    StoreBusy,
    UsageError,
)
from nbflow.core.model import Message, StepRetried
from nbflow.core.retry import RetryPolicy
from nbflow.runtime import active
from nbflow.runtime.policies.limits import guarded, policies_of
from nbflow.runtime.session import Session
from nbflow.runtime.workers import Workers
from nbflow.store.local import LocalStore
from nbflow.testing import MemoryStore, VirtualClock
from nbflow.values.fingerprint import fingerprint


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


@contextmanager
def running(store: Any, clock: VirtualClock) -> Iterator[Session]:
    """Attach a run with a clock of its own; leave it unfinished."""
    session = Session.open(store, "w", kind="script", clock=clock)
    active.add(session)
    token = active.enter(session)
    try:
        yield session
    finally:
        active.leave(token)
        active.remove(session)
        session.close()


def fail(policy: Any, times: int = 1, error: type[BaseException] = ConnectionError) -> None:
    """Make calls that fail under the policy."""
    for _ in range(times):
        with pytest.raises(error), policy:
            raise error


def retries(run: str, store: Any) -> list[StepRetried]:
    """Return the retries that the run's journal holds."""
    return [entry.record for entry in store.entries(run) if isinstance(entry.record, StepRetried)]


# --- circuit breaker -----------------------------------------------------------------------------------------------


def test_a_breaker_opens_and_recovers_with_the_clock_of_the_run(store: MemoryStore) -> None:
    """After `reset_after` of the run's own time a probe goes through and closes it."""
    clock = VirtualClock()
    breaker = nbflow.CircuitBreaker("service", failures=2, reset_after="30s")
    with running(store, clock):
        fail(breaker, 2)
        assert breaker.phase == "open"
        with pytest.raises(CircuitOpen, match="service") as caught, breaker:
            raise AssertionError("called")
        assert (caught.value.name, caught.value.retry_after) == ("service", 30.0)
        clock.advance(30)
        assert breaker.phase == "half-open"
        with breaker:
            pass
        assert breaker.phase == "closed"


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt,
        asyncio.CancelledError,
        lambda: RunCancelled("stop"),
        lambda: RateLimited("later"),
        lambda: UsageError("no"),
    ],
)
def test_what_says_nothing_about_the_service_is_no_failure(error: Any) -> None:
    """Cancellations, refusals of other policies and nbflow's own trouble neither open nor close a circuit."""
    breaker = nbflow.CircuitBreaker("service", failures=1)
    with pytest.raises(BaseException) as caught, breaker:  # noqa: PT012
        raise error()

    assert breaker.phase == "closed" and not isinstance(caught.value, AssertionError)
    fail(breaker)
    assert breaker.phase == "open"


def test_failure_on_tells_failures_from_answers() -> None:
    """A ValueError shows here that the service is there; it starts the count again."""
    breaker = nbflow.CircuitBreaker("service", failures=2, failure_on=OSError)
    fail(breaker)
    fail(breaker, 5, ValueError)
    fail(breaker)
    assert breaker.phase == "closed"
    fail(breaker)
    assert breaker.phase == "open"


def test_an_outcome_of_a_call_from_before_the_opening_is_discarded() -> None:
    """Calls under way side by side in threads and nested keep their own tickets."""
    breaker = nbflow.CircuitBreaker("service", failures=1, reset_after=1000)
    with breaker:
        fail(breaker)

    assert breaker.phase == "open"


async def test_tasks_that_interleave_settle_their_own_calls() -> None:
    """The first task in is the first out; each outcome goes with its own ticket."""
    breaker = nbflow.CircuitBreaker("service", failures=2)
    gates = [asyncio.Event() for _ in range(3)]

    async def call(gate: asyncio.Event, ok: bool) -> None:
        async with breaker:
            await gate.wait()
            if not ok:
                raise ConnectionError

    tasks = [
        asyncio.create_task(call(gate, ok)) for gate, ok in zip(gates, (False, False, True), strict=True)
    ]
    await asyncio.sleep(0)
    for gate, task in zip(gates, tasks, strict=True):
        gate.set()
        await asyncio.wait([task])

    assert [True, True, False] == [task.exception() is not None for task in tasks]
    assert breaker.phase == "open"


def test_a_decorated_function_passes_the_policy_on_every_call() -> None:
    """Sync and async functions are both wrapped; what is not called and done is refused."""
    breaker = nbflow.CircuitBreaker("service", failures=1)

    @breaker
    def call(x: int) -> float:
        return 1 / x

    @breaker
    async def call_async(x: int) -> float:
        return 1 / x

    def items() -> Iterator[int]:
        yield 1

    assert 1.0 == call(1) == asyncio.run(call_async(1))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(call_async(0))
    with pytest.raises(CircuitOpen):
        call(1)
    with pytest.raises(UsageError):
        breaker(items)


# --- rate limit ----------------------------------------------------------------------------------------------------


def test_a_refused_call_names_tier_and_time(store: MemoryStore) -> None:
    """The error has what a program needs, and so does its sentence."""
    limit = nbflow.RateLimit("2/s", "3/min", name="api")
    clock = VirtualClock()
    with running(store, clock):
        with limit, limit:
            pass
        with pytest.raises(RateLimited, match=r"'api' allows 2/s") as caught, limit:
            raise AssertionError("called")
        assert ("2/s", 0.5) == (caught.value.tier, round(caught.value.retry_after, 3))
        clock.advance(caught.value.retry_after)
        with limit:
            pass
        with pytest.raises(RateLimited) as caught, limit:
            raise AssertionError("called")
        assert "3/min" == caught.value.tier


@pytest.mark.parametrize(("shift", "expected"), [(0, 4.0), (-3600, 4.5)])
def test_a_waiting_limit_takes_its_time_from_the_clock(
    store: MemoryStore, shift: float, expected: float
) -> None:
    """Ten calls at two a second take four seconds; a clock that is set back costs the fill of one wait, no hour."""
    limit = nbflow.RateLimit("2/s", wait=True)
    clock = VirtualClock()
    with running(store, clock):
        for number in range(10):
            with limit:
                if number == 5:
                    clock.shift_wall(shift)
    assert expected == pytest.approx(clock.monotonic(), abs=0.01)


def test_a_clock_set_back_during_a_wait_does_not_prolong_it(store: MemoryStore) -> None:
    """The wait is for time that passes, not for an hour on the wall."""
    limit = nbflow.RateLimit("1/min", wait=True)
    clock = VirtualClock(auto_advance=False)
    done = threading.Event()

    def call() -> None:
        with limit:
            done.set()

    with running(store, clock), limit:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
        thread.start()
        while not limit._state.by_tier["1/min"].missing > 1.0:
            time.sleep(0.001)
        clock.shift_wall(-3600)
        clock.advance(59)
        assert not done.wait(0.1)
        clock.advance(1.1)
        assert done.wait(10)
        thread.join()


async def test_waiting_tasks_are_served_in_their_order(store: MemoryStore) -> None:
    """First come, first served, and nobody before the time."""
    limit = nbflow.RateLimit("50/s", burst=1, wait=True)
    order: list[int] = []

    async def call(number: int) -> None:
        async with limit:
            order.append(number)

    began = time.monotonic()
    await asyncio.gather(*(call(number) for number in range(10)))

    assert list(range(10)) == order
    assert time.monotonic() - began >= 9 / 50 - 0.01


def test_a_cancelled_wait_gives_its_token_back(store: MemoryStore) -> None:
    """A run that is to stop leaves the queue, and the next call does not wait for it."""
    limit = nbflow.RateLimit("1/h", wait=True)
    with limit:
        pass
    with pytest.raises(RunCancelled), nbflow.run("w", store=store) as run:
        store.send(run.id, Message(id="m", sent_at=0.0, topic="cancel", payload={"reason": "user"}))
        with limit:
            raise AssertionError("called")

    missing = limit._state.by_tier["1/h"].missing
    assert missing == pytest.approx(1.0, abs=0.01)


def test_a_waiting_call_gives_its_worker_slot_back(store: MemoryStore) -> None:
    """Whoever waits for a token keeps nobody from working."""
    limit = nbflow.RateLimit("5/s", burst=1, wait=True)
    workers = Workers(1)
    seen: list[str] = []

    def waits() -> None:
        with workers.slot(), limit:
            seen.append("waited")

    with nbflow.run("w", store=store):
        with limit:
            pass
        thread = threading.Thread(target=contextvars.copy_context().run, args=(waits,))
        thread.start()
        while not limit._state.by_tier["5/s"].missing > 1.0:
            time.sleep(0.001)
        with workers.slot():
            seen.append("worked")
        thread.join()

    assert ["worked", "waited"] == seen


# --- bulkhead ------------------------------------------------------------------------------------------------------


def test_a_bulkhead_refuses_beyond_its_places_and_its_queue() -> None:
    """Two run, one waits, the fourth is refused; the one that waits goes next."""
    bulkhead = nbflow.Bulkhead(2, 1)
    inside, leave = threading.Semaphore(0), threading.Event()
    peak: list[int] = []

    def call() -> None:
        with bulkhead:
            inside.release()
            peak.append(bulkhead._running)
            leave.wait(10)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
        assert inside.acquire(timeout=10)
    threads[2].start()
    while not bulkhead._queue:
        time.sleep(0.001)
    with pytest.raises(BulkheadFull, match="2 of 2 calls under way and 1 of 1 waiting"), bulkhead:
        raise AssertionError("called")
    leave.set()
    for thread in threads:
        thread.join()

    assert 2 == max(peak)
    assert (0, 0) == (bulkhead._running, len(bulkhead._queue))


async def test_tasks_and_threads_share_a_bulkhead() -> None:
    """A place goes to whoever waits longest; a task that is cancelled in the queue leaves no hole."""
    bulkhead = nbflow.Bulkhead(1, 10)
    order: list[int] = []

    async def call(number: int) -> None:
        async with bulkhead:
            order.append(number)
            await asyncio.sleep(0)

    async with bulkhead:
        tasks = [asyncio.create_task(call(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        thread = threading.Thread(target=lambda: asyncio.run(call(5)))
        thread.start()
        while len(bulkhead._queue) < 5:
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(thread.join)

    assert [0, 2, 3, 4, 5] == order
    assert (0, 0) == (bulkhead._running, len(bulkhead._queue))


def test_a_call_that_waits_for_a_place_leaves_when_its_run_is_cancelled(store: MemoryStore) -> None:
    """The queue is as it was before."""
    bulkhead = nbflow.Bulkhead(1, 1)
    with bulkhead, pytest.raises(RunCancelled), nbflow.run("w", store=store) as run:
        store.send(run.id, Message(id="m", sent_at=0.0, topic="cancel", payload={"reason": "user"}))
        with bulkhead:
            raise AssertionError("called")

    assert (0, 0) == (bulkhead._running, len(bulkhead._queue))


# --- several at once -----------------------------------------------------------------------------------------------


def test_a_later_refusal_undoes_what_was_admitted() -> None:
    """The token goes back, the place is free, and the breaker has learned nothing."""
    breaker = nbflow.CircuitBreaker("service", failures=1)
    limit, bulkhead, empty = (
        nbflow.RateLimit("1/h"),
        nbflow.Bulkhead(1),
        nbflow.RateLimit("1/h", name="empty"),
    )
    with empty:
        pass
    with pytest.raises(RateLimited, match="empty"):
        guarded([breaker, limit, bulkhead, empty], None, lambda: 1)

    assert 42 == guarded([breaker, limit, bulkhead], None, lambda: 42)
    with pytest.raises(RateLimited):
        guarded([breaker, limit, bulkhead], None, lambda: 42)
    assert breaker.phase == "closed"


def test_only_policies_are_policies() -> None:
    """One or several; anything else is a UsageError."""
    limit = nbflow.RateLimit("1/s")

    assert (limit,) == policies_of(limit) == policies_of([limit])
    for bad in (RetryPolicy(), [limit, "10/s"], None):
        with pytest.raises(UsageError):
            policies_of(bad)


# --- round durable steps -------------------------------------------------------------------------------------------


def test_a_retry_waits_until_the_circuit_may_close(store: MemoryStore) -> None:
    """The refused attempt's `retry_after` is the least wait, and its due time is in the journal."""
    clock = VirtualClock()
    breaker = nbflow.CircuitBreaker("service", failures=1, reset_after=100)
    answers = iter([ConnectionError, "answer"])

    @nbflow.durable(retries=RetryPolicy.fixed(2, 1), policies=[breaker])
    def ask() -> str:
        answer = next(answers)
        if not isinstance(answer, str):
            raise answer
        return answer

    with running(store, clock) as session:
        assert "answer" == ask()
    assert [1.0, 99.0] == pytest.approx(clock.slept)
    assert ["ConnectionError", "CircuitOpen"] == [
        record.error.type.rpartition(".")[2] for record in retries(session.run, store)
    ]


def test_a_replay_passes_no_policy(store: MemoryStore) -> None:
    """A recorded call takes no token."""
    limit = nbflow.RateLimit("1/h")

    @nbflow.durable(policies=limit)
    def ask() -> int:
        return 1

    class Killed(BaseException):
        pass

    for _ in range(2):
        with pytest.raises(Killed), nbflow.run("w", store=store):
            ask()
            raise Killed
    with pytest.raises(RateLimited) as caught, nbflow.run("w", store=store):
        ask(), ask()
    assert caught.value.step is not None


async def test_a_timeout_of_an_async_body_is_a_failure_of_the_service(store: MemoryStore) -> None:
    """The breaker stands outside the timeout: it sees StepTimeout and not the cancellation that makes it."""
    breaker = nbflow.CircuitBreaker("service", failures=1)

    @nbflow.durable(timeout=0.01, policies=[breaker])
    async def hang() -> None:
        await asyncio.sleep(60)

    with pytest.raises(StepTimeout), nbflow.run("w", store=store):
        await hang()
    assert breaker.phase == "open"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_waiting_for_a_token_is_not_the_bodys_time(store: MemoryStore, asynchronous: bool) -> None:
    """The wait counts neither towards the timeout nor into the recorded seconds."""
    limit = nbflow.RateLimit("4/s", burst=1, wait=True)

    def ask(n: int) -> int:
        return n

    async def ask_async(n: int) -> int:
        return n

    durable = nbflow.durable(timeout=0.15, policies=limit)
    with nbflow.run("w", store=store) as run:
        if asynchronous:
            asyncio.run(_both(durable(ask_async)))
        else:
            for n in range(2):
                durable(ask)(n)

    assert 2 == len(store.steps(run.id))
    assert all(step.seconds < 0.15 for step in store.steps(run.id))


async def _both(ask: Any) -> None:
    for n in range(2):
        await ask(n)


def test_the_time_since_the_first_attempt_survives_a_restart() -> None:
    """tenacity's stop_after_delay counts from before the kill; the attempt number goes on, too."""
    clock = VirtualClock()
    store = MemoryStore(clock)
    seen: list[tuple[int, float]] = []

    def stop(state: Any) -> bool:
        seen.append((state.attempt_number, state.seconds_since_start))
        return tenacity.stop_after_delay(100)(state)

    class Killed(BaseException):
        pass

    outcomes = iter([OSError, Killed, OSError])

    @nbflow.durable(
        retries=RetryPolicy(wait_strategy=tenacity.wait_fixed(60), stop_strategy=stop), version="1"
    )
    def ask() -> None:
        raise next(outcomes)

    with pytest.raises(Killed), running(KeepsNoEnd(store), clock):
        ask()
    clock.advance(50)
    with pytest.raises(OSError), running(store, clock):
        ask()

    assert [(1, 0.0), (2, 110.0)] == [(number, round(elapsed, 3)) for number, elapsed in seen]


class KeepsNoEnd:
    """A store whose process is dead from the moment that a step or run would be recorded as ended."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def attach(self, *args: Any, **kwargs: Any) -> Any:
        return _Dying(self._store.attach(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Dying:
    def __init__(self, log: Any) -> None:
        self._log = log

    def append(self, *records: Any, **options: Any) -> int:
        if any(type(record).__name__ in ("StepEnded", "RunChanged") for record in records):
            raise StoreBusy("dead")
        return self._log.append(*records, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def test_a_policy_that_raises_does_not_hide_the_failure(store: MemoryStore) -> None:
    """The step's own error comes out, with a note about the policy, and the step is recorded as failed."""
    policy = RetryPolicy(retries=1, retry_on=lambda error: error.status == 503)  # type: ignore[attr-defined]

    @nbflow.durable(retries=policy)
    def ask() -> None:
        raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="mine") as caught, nbflow.run("w", store=store) as run:
        ask()
    assert any("AttributeError" in note for note in caught.value.__notes__)
    assert ["failed"] == [step.state for step in store.steps(run.id)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_state_of_a_machine_passes_its_policies(store: MemoryStore, asynchronous: bool) -> None:
    """Shared and waiting ones as well, in machines that are run and those that are awaited."""
    gate = nbflow.RateLimit("20/s", burst=1, name="gate", shared=True, wait=True)
    breaker = nbflow.CircuitBreaker("service", failures=1, reset_after=0.05, shared=True)
    tries: list[int] = []
    machine = nbflow.Machine("flow", ["ask", "done"], initial="ask", final={"done"})

    @machine.state("ask", retries=RetryPolicy.fixed(2, 0), policies=[breaker, gate])
    def ask(ctx: Any) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        return "done"

    began = time.monotonic()
    if asynchronous:
        asyncio.run(machine.arun(store=store))
    else:
        machine.run(store=store)

    assert 2 == len(tries)
    assert time.monotonic() - began >= 0.05


# --- values --------------------------------------------------------------------------------------------------------

POLICIES = [
    lambda: nbflow.CircuitBreaker(
        "service", failures=2, reset_after="1m", probes=3, failure_on=(OSError, ValueError)
    ),
    lambda: nbflow.RateLimit("10/s", (500, 60), name="api", wait=True, burst=3),
    lambda: nbflow.RateLimit("10/s"),
    lambda: nbflow.Bulkhead(3, 4, name="gpu"),
]


@pytest.mark.parametrize("make", POLICIES)
def test_policies_travel_as_their_settings(make: Any) -> None:
    """A pickle has the settings and no state; the fingerprint does not change with use, so no cell runs again for it."""
    policy = make()
    before = fingerprint(policy)
    with policy:
        pass
    restored = pickle.loads(pickle.dumps(policy))

    assert before.stable and before.digest == fingerprint(policy).digest == fingerprint(make()).digest
    assert pickle.dumps(make()) == pickle.dumps(restored)
    for name in ("rules", "tiers", "failure_on", "wait", "shared", "max_concurrent", "max_waiting", "name"):
        assert getattr(policy, name, None) == getattr(restored, name, None)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: nbflow.CircuitBreaker(""), "name"),
        (lambda: nbflow.CircuitBreaker("a", failures=True), "failures"),
        (lambda: nbflow.CircuitBreaker("a", reset_after=float("nan")), "reset_after"),
        (lambda: nbflow.CircuitBreaker("a", reset_after=0), "reset_after"),
        (lambda: nbflow.CircuitBreaker("a", reset_after="-5s"), "reset_after"),
        (lambda: nbflow.CircuitBreaker("a", reset_after=True), "reset_after"),
        (lambda: nbflow.CircuitBreaker("a", probes=0), "probes"),
        (lambda: nbflow.CircuitBreaker("a", shared=1), "shared"),
        (lambda: nbflow.CircuitBreaker("a", failure_on=3), "failure_on"),
        (lambda: nbflow.RateLimit(), "rate"),
        (lambda: nbflow.RateLimit("1/s", shared=True), "name"),
        (lambda: nbflow.RateLimit("1/s", wait="yes"), "wait"),
        (lambda: nbflow.RateLimit("1/s", burst=float("inf")), "burst"),
        (lambda: nbflow.Bulkhead(0), "max_concurrent"),
        (lambda: nbflow.Bulkhead(1, float("nan")), "max_waiting"),
        (lambda: nbflow.Bulkhead(True), "max_concurrent"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Any, field: str) -> None:
    """A policy that makes no sense fails when it is made."""
    with pytest.raises(UsageError, match=field):
        make()


# --- shared --------------------------------------------------------------------------------------------------------


def in_process(store: Path, code: str) -> subprocess.Popen[str]:
    """Start a Python that uses the store."""
    return subprocess.Popen(
        [sys.executable, "-c", "import nbflow, sys, time\nfrom nbflow.core.errors import *\n" + code],
        env={**os.environ, "NBFLOW_STORE": str(store)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_keep_a_shared_limit_together(tmp_path: Path) -> None:
    """Four processes that try fifty times each get the twenty calls there are, not eighty."""
    code = """
limit = nbflow.RateLimit("20/day", name="api", shared=True)
print("ready", flush=True); sys.stdin.readline()
granted = 0
for _ in range(50):
    try:
        with limit:
            granted += 1
    except RateLimited as error:
        assert error.tier == "20/day" and error.retry_after > 0
print(granted)
"""
    LocalStore(tmp_path / "store", background=False).close()
    processes = [in_process(tmp_path / "store", code) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    granted = [int(process.communicate("go\n")[0]) for process in processes]

    assert 20 == sum(granted)


def test_a_circuit_that_one_process_opens_is_open_for_all(tmp_path: Path) -> None:
    """Also inside a run of the same store, and a healthy call writes nothing."""
    local = LocalStore(tmp_path / "store", background=False)
    code = """
breaker = nbflow.CircuitBreaker("service", failures=2, reset_after=1000, shared=True)
for _ in range(2):
    try:
        with breaker:
            raise ConnectionError
    except ConnectionError:
        pass
"""
    breaker = nbflow.CircuitBreaker("service", failures=2, reset_after=1000, shared=True)
    with nbflow.run("w", store=local):
        with breaker:
            pass
        assert not [path for path in (local.root / "shared").iterdir() if path.suffix != ".lock"]
        process = in_process(local.root, code)
        process.communicate()
        assert 0 == process.returncode
        with pytest.raises(CircuitOpen), breaker:
            raise AssertionError("called")
    local.close()


async def test_a_shared_policy_works_in_tasks(store: MemoryStore) -> None:
    """The store is asked in a thread; tickets and tokens are those of the store."""
    limit = nbflow.RateLimit("3/h", name="api", shared=True)
    breaker = nbflow.CircuitBreaker("service", failures=1, shared=True)
    with nbflow.run("w", store=store):
        for _ in range(3):
            async with limit, breaker:
                pass
        with pytest.raises(RateLimited):
            async with limit:
                raise AssertionError("called")
        with pytest.raises(ConnectionError):
            async with breaker:
                raise ConnectionError
        assert nbflow.CircuitBreaker("service", failures=1, shared=True).phase == "open"


def test_a_shared_state_that_cannot_be_read_begins_anew(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log; a limit is never a reason that nothing works any more."""
    store.shared("limit:api", lambda _: (b"\xff", None))
    with nbflow.run("w", store=store), nbflow.RateLimit("1/h", name="api", shared=True):
        pass

    assert "limit:api" in caplog.text


def test_an_outcome_that_cannot_be_recorded_does_not_fail_the_call(
    store: MemoryStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is done: failing now would repeat it."""
    breaker = nbflow.CircuitBreaker("service", shared=True)

    def busy(*_: Any) -> None:
        raise StoreBusy("busy")

    with nbflow.run("w", store=store), breaker:
        monkeypatch.setattr(store, "shared", busy)

    assert "could not record an outcome" in caplog.text
