"""Slots: never more at work than allowed, a wait gives its slot back, slots nest."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

import pytest

from nbflow.core.errors import UsageError
from nbflow.runtime.workers import Workers, limit_of, released


def beside(body: Callable[[], object], *, inherit: bool = True) -> threading.Thread:
    """Run a body in another thread, with a copy of this context."""
    target = contextvars.copy_context().run if inherit else (lambda function: function())
    thread = threading.Thread(target=target, args=(body,), daemon=True)
    thread.start()
    return thread


def test_a_wait_lets_somebody_else_work() -> None:
    """With one slot, the waiting one is woken by the one that takes its place."""
    workers = Workers(1)
    told = threading.Event()

    def other() -> None:
        with workers.slot():
            told.set()

    with workers.slot():
        thread = beside(other, inherit=False)
        assert not told.wait(0.05)
        with released():
            assert told.wait(10)
        thread.join(10)
    assert 1 == workers.free


def test_without_a_slot_released_does_nothing() -> None:
    """Waits outside of any fan-out."""
    with released():
        pass


def test_an_outer_slot_is_given_back_when_everybody_below_it_waits() -> None:
    """Not before: threads of an inner fan-out count as the outer item's work."""
    outer, inner = Workers(1), Workers(2)
    waiting, on, done = threading.Event(), threading.Event(), threading.Event()

    def helper() -> None:
        with inner.slot():
            assert on.wait(10)
        done.set()

    with outer.slot():
        context = contextvars.copy_context()  # a thread of the fan-out stands where its caller stands
        with inner.slot():
            thread = threading.Thread(target=context.run, args=(helper,), daemon=True)
            thread.start()
            while inner.free:
                pass
            with released():
                waiting.set()
                assert 0 == outer.free
                on.set()
                assert done.wait(10)
                thread.join(10)
                assert 1 == outer.free
            assert 0 == outer.free
        assert 2 == inner.free
    assert 1 == outer.free


def test_a_thread_that_only_inherited_the_slot_may_wait_too() -> None:
    """Its parent waits for it: one too many at work is better than none."""
    workers = Workers(1)
    told = threading.Event()

    def stranger() -> None:
        with released():
            assert told.wait(10)

    def other() -> None:
        with workers.slot():
            told.set()

    with workers.slot():
        thread = beside(stranger)
        beside(other, inherit=False)
        thread.join(10)
        assert not thread.is_alive()
    assert 1 == workers.free


def test_an_interrupted_wait_for_a_slot_loses_none() -> None:
    """Whoever gives up leaves the queue."""

    async def scene() -> int:
        workers = Workers(1)

        async def work() -> None:
            async with workers.slot():
                await asyncio.sleep(0.01)

        async with workers.slot():
            tasks = [asyncio.create_task(work()) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return workers.free

    assert 1 == asyncio.run(scene())


def test_tasks_give_their_slots_back_as_threads_do() -> None:
    """And take them again when somebody else has let go, or at once where they cannot wait."""

    async def scene() -> tuple[list[str], int]:
        workers = Workers(1)
        seen: list[str] = []
        told = asyncio.Event()

        async def first() -> None:
            async with workers.slot():
                async with released():
                    await told.wait()
                seen.append("first")
                with released():
                    await asyncio.sleep(0)

        async def second() -> None:
            async with workers.slot():
                told.set()
                await asyncio.sleep(0.01)
                seen.append("second")

        await asyncio.gather(first(), second())
        return seen, workers.free

    assert (["second", "first"], 1) == asyncio.run(scene())


def test_whoever_frees_a_slot_says_so() -> None:
    """So that somebody may start another worker."""
    freed: list[int] = []
    workers = Workers(2, freed=lambda: freed.append(workers.free))
    with workers.slot(), released():
        assert [2] == freed
    assert [2, 2] == freed


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for counts, nonsense is refused, and the forced mode has one worker."""
    monkeypatch.delenv("NBFLOW_FORCE", raising=False)
    assert 3 == limit_of(3)
    assert 5 <= limit_of(None) <= 32
    for nonsense in (0, -1, 2.5, True, "4"):
        with pytest.raises(UsageError):
            limit_of(nonsense)
    monkeypatch.setenv("NBFLOW_FORCE", "one-worker")
    assert (1, 1) == (limit_of(3), limit_of(None))
