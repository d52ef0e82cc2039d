"""`nbflow.map` over an async function: tasks instead of threads, the same records."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import ItemsFailed, RunCancelled, StoreFull, UsageError
from nbflow.core.history import History
from nbflow.core.states import StepState
from nbflow.runtime import active
from nbflow.testing import FaultyStore, MemoryStore


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def history(store: Any) -> History:
    """The history of the store's only run."""
    (run,) = store.runs()
    return History.of(store.entries(run.run))


def states(store: Any) -> list[StepState]:
    """The states of all executions, sorted."""
    return sorted(execution.state for execution in history(store).executions.values())


async def test_async_items_run_side_by_side_and_come_in_input_order(store: MemoryStore) -> None:
    """No more at a time than allowed."""
    running, most = 0, 0

    async def work(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 / n)
        running -= 1
        return n * n

    with nbflow.run("w", store=store):
        results = await nbflow.map(work, range(1, 20), max_parallel=3)

    assert [n * n for n in range(1, 20)] == results
    assert [StepState.COMPLETED] * 19 == states(store)
    assert most <= 3


async def test_failures_retries_and_skips_are_those_of_threads(store: MemoryStore) -> None:
    """A failed item is tried again; its dependents are skipped in the end and run on resume."""
    tries: Counter[int] = Counter()
    mended = threading.Event()

    async def work(n: int) -> int:
        tries[n] += 1
        await asyncio.sleep(0)
        if n == 1 and not mended.is_set():
            raise OSError("one")
        return n

    class Killed(BaseException):
        pass

    async def go() -> list[Any]:
        return await nbflow.map(
            work, [0, 1, 2, 3], depends_on={2: 1, 3: 2}, on_error="skip_dependents", retries=1, delay=0
        )

    with pytest.raises(Killed), nbflow.run("w", store=store):
        results = await go()
        raise Killed
    assert 0 == results[0]
    assert isinstance(results[1], nbflow.Failed)
    assert [(1,), (2,)] == [skipped.because for skipped in results[2:]]
    assert Counter({0: 1, 1: 2}) == tries
    tries.clear()
    mended.set()
    with nbflow.run("w", store=store):
        assert [0, 1, 2, 3] == await go()
    assert Counter({1: 1, 2: 1, 3: 1}) == tries


async def test_halt_lets_the_running_ones_end(store: MemoryStore) -> None:
    """And records them."""
    done: list[int] = []

    async def work(n: int) -> int:
        if n == 0:
            raise ValueError
        await asyncio.sleep(0.02)
        done.append(n)
        return n

    with pytest.raises(ItemsFailed) as caught, nbflow.run("w", store=store):
        await nbflow.map(work, range(10), max_parallel=2)
    assert [0] == list(caught.value.failures)
    assert len(done) <= 2
    assert ["completed"] * len(done) + ["failed"] == states(store)


async def test_a_cancelled_task_leaves_the_run_to_be_carried_on(store: MemoryStore) -> None:
    """The items are told, what was done stays done."""
    ran: list[int] = []

    async def work(n: int) -> int:
        ran.append(n)
        if n == 1 and ran.count(n) == 1:
            await asyncio.sleep(60)
        return n

    async def whole() -> list[int]:
        with nbflow.run("w", store=store):
            return await nbflow.map(work, range(3), max_parallel=2)

    task = asyncio.create_task(whole())
    while not task.done() and (1 not in ran or StepState.COMPLETED not in states(store)):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {StepState.COMPLETED, StepState.CANCELLED} == set(states(store))
    with nbflow.run("w", store=store):
        assert [0, 1, 2] == await nbflow.map(work, range(3), max_parallel=1)
    assert 1 == ran.count(0)


async def test_a_cancelled_run_stops_between_items(store: MemoryStore) -> None:
    """As with threads."""
    ran: list[int] = []

    async def work(n: int) -> int:
        ran.append(n)
        if n == 2:
            nbflow.cancel(active.required().run, store=store)
            await asyncio.sleep(0.1)
        return n

    with pytest.raises(RunCancelled), nbflow.run("w", store=store):
        await nbflow.map(work, range(50), max_parallel=1)
    assert [0, 1, 2] == ran
    assert [StepState.COMPLETED] * 3 == states(store)


async def test_twelve_async_parents_map_children_four_wide(store: MemoryStore) -> None:
    """Parents that wait for their children give their slots back."""

    async def child(n: int) -> int:
        await asyncio.sleep(0.001)
        return n

    async def parent(n: int) -> int:
        return sum(await nbflow.map(child, [n, n + 1, n + 2]))

    with nbflow.run("w", store=store):
        results = await asyncio.wait_for(nbflow.map(parent, range(12), max_parallel=4), 30)
    assert [3 * n + 3 for n in range(12)] == results
    assert 48 == len(history(store).executions)


@pytest.mark.parametrize("at", range(2, 10))
async def test_a_lost_acknowledgement_runs_nothing_twice(store: MemoryStore, at: int) -> None:
    """What was kept is found by the next try."""
    ran: Counter[int] = Counter()

    async def work(n: int) -> int:
        ran[n] += 1
        return n

    kept: set[int] = set()
    with nbflow.run("w", store=FaultyStore(store, at=at, when="after")):
        try:
            results = await nbflow.map(work, range(5), max_parallel=2)
        except StoreFull:
            for execution in history(store).executions.values():
                if execution.completed is not None:
                    kept.add(int(execution.completed.checkpoint.outputs[0].preview))
            results = await nbflow.map(work, range(5), max_parallel=2)
    assert list(range(5)) == results
    assert [] == [n for n in kept if ran[n] != 1]


def test_an_async_function_takes_no_executor(store: MemoryStore) -> None:
    """A worker process has no event loop of ours."""

    async def work(n: int) -> int:
        return n

    with nbflow.run("w", store=store), pytest.raises(UsageError, match="async"):
        nbflow.map(work, [1], executor="processes")


async def test_a_slow_async_item_is_on_record_while_it_runs(store: MemoryStore) -> None:
    """So are the quick ones before it."""
    seen: list[list[str]] = []

    async def work(n: int) -> int:
        if n == 9:
            for _ in range(1000):
                found = [str(execution.state) for execution in history(store).executions.values()]
                if sorted(found) == ["completed"] * 9 + ["running"]:
                    break
                await asyncio.sleep(0.005)
            seen.append(sorted(found))
        return n

    with nbflow.run("w", store=store):
        await nbflow.map(work, range(10), max_parallel=1)
    assert [["completed"] * 9 + ["running"]] == seen
