"""A commit that succeeds and then raises, or fails outright, at every append: nothing is done twice, nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import nbflow
from nbflow.core.errors import StoreFull
from nbflow.core.model import RunOpened
from nbflow.store.local import open_store
from nbflow.store.protocol import RunQuery
from nbflow.testing import FaultyStore, MemoryStore

When = Literal["before", "after"]


class World:
    """What lies outside the run: its effects are counted, and values come from it that no second call gives again."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        self.broken = True

    def effect(self, name: str) -> int:
        self.effects[name] += 1
        return self.effects.total()


class Workflow:
    """Calls, retries, nesting and async tasks: `run` returns everything they returned."""

    def __init__(self, world: World) -> None:
        @nbflow.durable(version="1", name="plain")
        def plain(n: int) -> int:
            return world.effect(f"plain{n}")

        @nbflow.durable(version="1", name="flaky", retries=1, delay=0)
        def flaky() -> int:
            if world.broken:
                world.broken = False
                raise OSError("try again")
            return world.effect("flaky")

        @nbflow.durable(version="1", name="inner")
        def inner(n: int) -> int:
            return world.effect(f"inner{n}")

        @nbflow.durable(version="1", name="outer")
        def outer() -> list[int]:
            return [inner(1), inner(1), inner(2)]

        @nbflow.durable(version="1", name="later")
        async def later(n: int) -> int:
            await asyncio.sleep(0)
            return world.effect(f"later{n}")

        @nbflow.durable(version="1", name="above")
        async def above() -> int:
            return await later(3) + 1

        # One after the other: which of several tasks meets the n-th append would be chance.
        self.parts: list[Callable[[], Any]] = [
            lambda: plain(1),
            lambda: plain(1),
            flaky,
            outer,
            lambda: asyncio.run(later(1)),
            lambda: asyncio.run(later(2)),
            lambda: asyncio.run(above()),
        ]

    def run(self, again: Callable[[Callable[[], Any]], Any] = lambda part: part()) -> list[Any]:
        return [again(part) for part in self.parts]


#: The effects that an undisturbed run has.
EFFECTS = {"plain1": 2, "flaky": 1, "inner1": 2, "inner2": 1, "later1": 1, "later2": 1, "later3": 1}


def appends() -> int:
    """How many appends the workflow makes when nothing fails."""
    store = FaultyStore(MemoryStore(), at=0)
    with nbflow.run("w", store=store):
        Workflow(World()).run()
    return store.appends


APPENDS = appends()


def retried(part: Callable[[], Any]) -> Any:
    """What a user does who sees that the store failed: call it again."""
    try:
        return part()
    except StoreFull:
        return part()


def test_the_scenario_is_worth_walking_through() -> None:
    """It has dozens of appends, and undisturbed it has the effects that the others compare with."""
    world = World()
    with nbflow.run("w", store=MemoryStore()):
        Workflow(world).run()
    assert EFFECTS == world.effects
    assert APPENDS > 20


@pytest.mark.parametrize("n", range(1, APPENDS))
def test_a_lost_acknowledgement_called_again_in_the_same_process(n: int) -> None:
    """Whichever append loses its acknowledgement: calling again, now and after a crash, returns the first attempt's value."""
    world, memory = World(), MemoryStore()
    store = FaultyStore(memory, at=n, when="after")
    with pytest.raises(KeyboardInterrupt), nbflow.run("w", store=store):
        here = Workflow(world).run(retried)
        raise KeyboardInterrupt
    with nbflow.run("w", store=memory):
        later = Workflow(world).run()

    assert 1 == store.failures
    assert here == later
    assert EFFECTS == world.effects


@pytest.mark.parametrize("n", range(1, APPENDS + 1))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_append_carried_on_by_another_attach(n: int, when: When) -> None:
    """Whichever append fails, with its records kept or not: the resumed run ends like an undisturbed one."""
    world, memory = World(), MemoryStore()
    store = FaultyStore(memory, at=n, when=when)
    try:
        with nbflow.run("w", store=store) as run:
            first = Workflow(world).run()
    except StoreFull:
        before = dict(world.effects)
        with nbflow.run("w", store=memory) as run:
            first = Workflow(world).run()
        if when == "after":
            assert EFFECTS == world.effects
        else:  # what was not kept was never done, as far as the run knows: that one step is done again
            again = {name: world.effects[name] - EFFECTS[name] for name in EFFECTS}
            assert sum(again.values()) <= 1
            assert all(before.get(name, 0) for name, more in again.items() if more)
    else:
        assert n == APPENDS  # the end of the run: found to be kept after all
        assert when == "after"
    assert 1 == store.failures
    assert 1 == len(memory.runs(RunQuery(limit=None)))
    assert "completed" == memory.run(run.id).state
    assert len(first) == len(Workflow(world).parts)


@pytest.mark.parametrize("n", range(1, APPENDS + 1))
def test_a_refused_append_called_again_in_the_same_process(n: int) -> None:
    """Whichever append keeps nothing: the step is tried again, all others are not."""
    world, store = World(), FaultyStore(MemoryStore(), at=n, when="before")
    try:
        with nbflow.run("w", store=store):
            Workflow(world).run(retried)
    except StoreFull:
        assert n == APPENDS  # the end of the run was not recorded, and says so
    more = {name: world.effects[name] - EFFECTS[name] for name in EFFECTS}
    assert set(more.values()) <= {0, 1}
    assert sum(more.values()) <= 1


@pytest.mark.parametrize("n", [2, 4, 5])
def test_with_real_files(tmp_path: Path, n: int) -> None:
    """The journal on disk tells what was kept, as the one in memory does; sync and async appends."""
    world = World()
    store = FaultyStore(open_store(tmp_path / "store"), at=n, when="after")
    with nbflow.run("w", store=store):
        Workflow(world).run(retried)
    store.close()
    assert EFFECTS == world.effects


def test_a_lost_run_is_created_once() -> None:
    """The id of a run is chosen before it is created, so whoever asks again with it finds that it is there."""
    memory = MemoryStore()
    store = FaultyStore(memory, at=1, when="after", of=("create",))
    with pytest.raises(StoreFull):
        store.create(RunOpened(run="r", workflow="w"))
    with pytest.raises(nbflow.errors.DuplicateRecord):
        store.create(RunOpened(run="r", workflow="w"))
    assert 1 == len(memory.runs())


def test_two_failures_in_a_row_are_two_doubts() -> None:
    """What a second failure left is looked for as well."""
    world, store = World(), FaultyStore(MemoryStore(), at={2, 3, 5}, when="after")

    def patient(part: Callable[[], Any]) -> Any:
        for _ in range(5):
            try:
                return part()
            except StoreFull:
                pass
        raise AssertionError("it never came through")

    with nbflow.run("w", store=store):
        Workflow(world).run(patient)
    assert 3 == store.failures
    assert EFFECTS == world.effects
