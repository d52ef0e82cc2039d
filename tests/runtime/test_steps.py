"""Durable calls: recorded once, replayed after, each failure kept."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import CannotStore, NoActiveRun, StepTimeout, StoreFull, UsageError
from nbflow.core.states import StepState
from nbflow.runtime.session import Session
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def interrupted(store: Any, body: Any, name: str = "w") -> None:
    """Run `body` in a run that is then left as a killed process leaves it."""

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), nbflow.run(name, store=store):
        body()
        raise Killed


def test_a_recorded_call_is_not_made_again(store: MemoryStore) -> None:
    """After a resume the result comes from the checkpoint."""
    calls: list[int] = []

    @nbflow.durable
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    interrupted(store, lambda: [double(1), double(2)])
    with nbflow.run("w", store=store) as run:
        results = [double(1), double(2), double(3)]

    assert [2, 4, 6] == results
    assert [1, 2, 3] == calls
    assert (2, True) == (run.attempt, run.resumed)


def test_two_identical_calls_keep_two_results(store: MemoryStore) -> None:
    """Occurrence numbers tell equal calls of one scope apart."""
    ticks = iter(range(100))

    @nbflow.durable
    def tick() -> int:
        return next(ticks)

    interrupted(store, lambda: [tick(), tick()])
    with nbflow.run("w", store=store):
        assert [0, 1, 2] == [tick(), tick(), tick()]


def test_positional_and_keyword_arguments_are_the_same_work(store: MemoryStore) -> None:
    """f(1, 2), f(1, b=2) and f(b=2, a=1) share one signature."""

    @nbflow.durable
    def add(a: int, b: int) -> int:
        return a + b

    with nbflow.run("w", store=store):
        add(1, 2), add(1, b=2), add(b=2, a=1)
        steps = nbflow.steps(store=store)

    assert 1 == steps["version"].nunique()
    assert 3 == len(steps)


def test_nested_calls_belong_to_the_outer_one(store: MemoryStore) -> None:
    """When the outer call died half-way its finished inner calls replay, even if the outer one was mended since."""
    calls: list[str] = []

    @nbflow.durable
    def inner(x: int) -> int:
        calls.append(f"inner{x}")
        return x

    @nbflow.durable(name="outer")
    def broken(x: int) -> int:
        return (inner(1) + inner(1) + inner(2)) // x

    @nbflow.durable(name="outer")
    def mended(x: int) -> int:
        return (inner(1) + inner(1) + inner(2)) * x

    with pytest.raises(ZeroDivisionError), nbflow.run("w", store=store):
        broken(0)
    with nbflow.run("w", store=store):
        assert 0 == mended(0)
        steps = nbflow.steps(store=store)

    assert ["inner1", "inner1", "inner2"] == calls
    outer = steps[steps["kind"].eq("call") & steps["step"].str.startswith("outer")]
    assert ["failed", "completed"] == list(outer[~outer["step"].str.contains("inner")]["state"])


def test_threads_record_under_the_run_and_replay(store: MemoryStore) -> None:
    """Calls from a pool without inherited context are found again, each exactly once."""
    calls: list[int] = []

    @nbflow.durable
    def square(x: int) -> int:
        calls.append(x)
        return x * x

    def both() -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(square, [n % 10 for n in range(100)]))

    interrupted(store, both)
    with nbflow.run("w", store=store):
        again = both()

    assert [(n % 10) ** 2 for n in range(100)] == again
    assert 100 == len(calls)


def test_tasks_record_under_the_run_and_replay(store: MemoryStore) -> None:
    """Async durable functions run concurrently and replay."""
    calls: list[int] = []

    @nbflow.durable
    async def square(x: int) -> int:
        await asyncio.sleep(0.001)
        calls.append(x)
        return x * x

    async def main() -> list[int]:
        return await asyncio.gather(*(square(n) for n in range(50)))

    interrupted(store, lambda: asyncio.run(main()))
    with nbflow.run("w", store=store):
        again = asyncio.run(main())

    assert [n * n for n in range(50)] == again
    assert list(range(50)) == sorted(calls)


SCALED: list[int] = []


@dataclass
class Scaler:
    """Something with a durable method."""

    factor: int

    @nbflow.durable
    def scale(self, x: int) -> int:
        """Multiply."""
        SCALED.append(x)
        return self.factor * x


def test_methods_are_durable_with_their_object(store: MemoryStore) -> None:
    """`self` is one of the arguments: another state is other work."""
    SCALED.clear()
    interrupted(store, lambda: [Scaler(2).scale(5), Scaler(3).scale(5)])
    with nbflow.run("w", store=store):
        assert [10, 15, 20] == [Scaler(2).scale(5), Scaler(3).scale(5), Scaler(4).scale(5)]

    assert [5, 5, 5] == SCALED


def test_a_failed_attempt_is_tried_again_with_backoff(store: MemoryStore) -> None:
    """Retries wait between 0 and the doubled delay, and the journal has every attempt."""
    clock = VirtualClock()
    session = Session.open(store, "w", clock=clock)
    attempts: list[int] = []

    def body(attempt: int) -> Any:
        attempts.append(attempt)
        if attempt < 4:
            raise OSError("busy")
        return nbflow_result(attempt)

    execution = session.run_step(spec(retries=5, delay=1.0, jitter=False), body)

    assert [1, 2, 3, 4] == attempts
    assert [1.0, 2.0, 4.0] == clock.slept
    assert 4 == execution.attempt and StepState.COMPLETED == execution.state


def test_backoff_survives_a_restart(store: MemoryStore) -> None:
    """Killed while waiting for the third attempt: the next process waits only the remainder."""
    clock = VirtualClock()
    session = Session.open(store, "w", clock=clock)

    class Killed(BaseException):
        pass

    def die(seconds: float) -> None:
        if seconds > 0:
            clock.slept.append(seconds)
        if len(clock.slept) == 2:
            raise Killed

    clock.sleep = die  # type: ignore[method-assign]

    def fail(attempt: int) -> Any:
        raise OSError("busy")

    with pytest.raises(Killed):
        session.run_step(spec(retries=5, delay=8.0, jitter=False), fail)
    session.close()

    later = VirtualClock(clock.now() + 6)
    again = Session.open(store, "w", clock=later)
    seen: list[int] = []

    def body(attempt: int) -> Any:
        seen.append(attempt)
        return nbflow_result(attempt)

    again.run_step(spec(retries=5, delay=8.0, jitter=False), body)

    assert [3] == seen
    assert [pytest.approx(10.0)] == later.slept  # 16 s were due, 6 are over


def test_retry_on_leaves_other_errors_alone(store: MemoryStore) -> None:
    """An exception that is not named fails at once, unchanged, with its traceback recorded."""
    calls: list[int] = []

    @nbflow.durable(retries=5, retry_on=OSError)
    def broken() -> None:
        calls.append(1)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"), nbflow.run("w", store=store):
        broken()
    (info,) = [step for run in store.runs() for step in store.steps(run.run)]

    assert [1] == calls
    assert "failed" == info.state and info.error is not None
    assert "ValueError" == info.error.type.rpartition(".")[2] and "in broken" in info.error.traceback


@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_a_timeout_ends_sync_code(store: MemoryStore, where: str) -> None:
    """Sleeping code is stopped on the main thread, and given up on in others."""

    @nbflow.durable(timeout=0.1)
    def slow() -> None:
        time.sleep(2)

    caught: list[BaseException] = []

    def call() -> None:
        try:
            slow()
        except StepTimeout as error:
            caught.append(error)

    with nbflow.run("w", store=store):
        began = time.perf_counter()
        if where == "main thread":
            call()
        else:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        took = time.perf_counter() - began
        (step,) = store.steps(store.runs()[0].run)

    assert took < 1.5
    assert 1 == len(caught) and "slow" in str(caught[0])
    assert "timed_out" == step.state


def test_a_timeout_ends_async_code(store: MemoryStore) -> None:
    """The task is cancelled, and the step is timed out."""

    @nbflow.durable(timeout="50ms")
    async def slow() -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        with pytest.raises(StepTimeout):
            await slow()

    with nbflow.run("w", store=store):
        asyncio.run(main())
        (step,) = store.steps(store.runs()[0].run)

    assert "timed_out" == step.state


def test_each_attempt_has_its_own_timeout(store: MemoryStore) -> None:
    """A first slow attempt does not use up the time of the second."""
    calls: list[int] = []

    @nbflow.durable(timeout=0.2, retries=1, delay=0)
    def slow_once() -> str:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(2)
        time.sleep(0.1)
        return "ok"

    with nbflow.run("w", store=store):
        assert "ok" == slow_once()


def test_an_interrupt_leaves_the_run_resumable(store: MemoryStore) -> None:
    """Ctrl-C in a call: the call is cancelled, the run goes on with the next attempt."""
    calls: list[int] = []

    @nbflow.durable
    def work() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return "done"

    with pytest.raises(KeyboardInterrupt), nbflow.run("w", store=store):
        work()
    assert ["cancelled"] == [step.state for step in store.steps(store.runs()[0].run)]
    with nbflow.run("w", store=store) as run:
        assert "done" == work()

    assert 2 == run.attempt
    assert ["completed"] == [info.state for info in store.runs()]


def test_a_result_that_cannot_be_stored_fails_the_step(store: MemoryStore) -> None:
    """The error names the part of the result that is at fault, and the step."""

    @nbflow.durable
    def bad() -> dict[str, Any]:
        return {"fine": 1, "callbacks": [1, {"fn": threading.Lock()}]}

    with pytest.raises(CannotStore) as caught, nbflow.run("w", store=store):
        bad()
    (step,) = store.steps(store.runs()[0].run)

    assert "callbacks" in str(caught.value) and "fn" in str(caught.value)
    assert caught.value.step == step.step
    assert "failed" == step.state


def test_a_full_disk_is_a_clear_error_and_loses_nothing_else(store: MemoryStore) -> None:
    """What was acknowledged before stays; the call whose record failed runs again after a resume."""
    calls: list[int] = []

    @nbflow.durable
    def work(n: int) -> int:
        calls.append(n)
        return n

    faulty = FaultyStore(store, at=4)  # started, completed, started, completed ✗
    with pytest.raises(StoreFull), nbflow.run("w", store=faulty):
        work(1)
        work(2)
    with nbflow.run("w", store=store):
        assert [1, 2] == [work(1), work(2)]

    assert [1, 2, 2] == calls


def test_a_lost_acknowledgement_returns_the_recorded_value(store: MemoryStore) -> None:
    """The commit succeeded and then raised: the resume replays what was committed."""
    calls: list[int] = []

    @nbflow.durable
    def work() -> int:
        calls.append(1)
        return len(calls)

    with pytest.raises(StoreFull), nbflow.run("w", store=FaultyStore(store, at=2, when="after")):
        work()
    with nbflow.run("w", store=store):
        assert 1 == work()

    assert [1] == calls


def test_a_call_outside_any_run_says_what_to_do() -> None:
    """Nothing is run silently unrecorded."""
    calls: list[int] = []

    @nbflow.durable
    def work() -> None:
        calls.append(1)

    with pytest.raises(NoActiveRun, match=r"nbflow\.run"):
        work()
    assert [] == calls
    work.plain()
    assert [1] == calls


def test_a_changed_function_runs_again_and_a_declared_version_does_not(store: MemoryStore) -> None:
    """The code is part of the signature unless `version` stands for it."""
    calls: list[str] = []

    def make(text: str, **options: Any) -> Any:
        namespace: dict[str, Any] = {"calls": calls}
        exec(f"def work():\n    calls.append({text!r})\n    return {text!r}", namespace)
        return nbflow.durable(**options)(namespace["work"])

    interrupted(store, lambda: [make("a")(), make("p", version="1")()])
    with nbflow.run("w", store=store):
        assert ["b", "p"] == [make("b")(), make("q", version="1")()]

    assert ["a", "p", "b"] == calls


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": 0},
        {"timeout": "soon"},
        {"retries": -1},
        {"durability": "never"},
        {"delay": "x"},
    ],
)
def test_nonsense_options_are_refused_at_once(options: dict[str, Any]) -> None:
    """An option that makes no sense fails where it is written."""
    with pytest.raises(UsageError):
        nbflow.durable(**options)(lambda: None)


def test_generators_and_classes_are_refused() -> None:
    """What cannot be recorded is said when it is decorated."""

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(UsageError, match="generator"):
        nbflow.durable(numbers)
    with pytest.raises(UsageError):
        nbflow.durable(int)


def spec(**options: Any) -> Any:
    """A step to run, with a retry policy."""
    from nbflow.core.retry import RetryPolicy
    from nbflow.runtime.session import StepSpec

    return StepSpec(step="s", name="s", kind="call", signature=bytes(32), retry=RetryPolicy(**options))


def nbflow_result(value: Any) -> Any:
    """A result that holds `value`."""
    from nbflow.runtime.session import StepResult

    return StepResult({"return": value})
