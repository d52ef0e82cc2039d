"""Lost acknowledgements: an append of a machine's run is kept and then fails, at every place where there is one."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import nbflow
from nbflow import Again, Branch, Continue, Machine, Split
from nbflow.core.history import History
from nbflow.core.model import StepCompleted
from nbflow.runtime.scope import enclosing
from nbflow.store.protocol import RunQuery
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock
from tests.runtime.machine_kit import Power, machine_of
from tests.runtime.machine_model import check_journal

FACES = ["sync", "async"]


class Scenario:
    """A machine with a task of every kind, signals, a child and durable calls; its effects are counted by step."""

    def __init__(self, face: str) -> None:
        self.face = face
        self.memory = MemoryStore(VirtualClock())
        self.effects: Counter[tuple[str, int]] = Counter()
        self.repeated: list[tuple[str, int]] = []
        self.ready = False
        self.machine = self._machine()

    def effect(self, number: int = -1) -> None:
        """Count an effect of the enclosing step; note it when the step is in the journal already."""
        scope = enclosing()
        assert scope is not None
        key = (scope.step, number)
        self.effects[key] += 1
        for run in self.memory.memory:
            history = History.of(self.memory.entries(run))
            cursor = history.cursors.get(scope.step)
            completed = any(one.completed for one in history.by_step.get(scope.step, ()))
            if completed or (cursor is not None and 0 <= number <= cursor.number):
                self.repeated.append(key)

    def _machine(self) -> Machine:  # noqa: C901 - one small task after the other
        effect = self.effect

        @nbflow.durable(version="1", name="fetch")
        def fetch(n: int) -> int:
            effect()
            return n * 2

        def one(ctx: Any) -> str:
            effect(0)
            ctx.doubled = fetch(ctx.n)
            return "end"

        inner = machine_of({"one": one}, name="inner")

        def begin(ctx: Any) -> str:
            if not self.ready:
                raise Power
            ctx.rows = [fetch(1), fetch(1)]
            return "steps"

        def steps(ctx: Any, cursor: Any) -> Any:
            effect(cursor or 0)
            ctx.rows.append(fetch(5))
            return Continue((cursor or 0) + 1) if (cursor or 0) < 2 else "load"

        def left(ctx: Any) -> str:
            effect()
            ctx.first = nbflow.wait_for("go")
            return "right" if ctx.get("again") else "join"

        async def right(ctx: Any) -> str:
            effect()
            ctx.given.append(fetch(7))
            await nbflow.sleep.aio(5)
            return "join"

        def join(ctx: Any) -> str:
            effect()
            ctx.second = nbflow.wait_for("go")
            ctx.third = nbflow.wait_for("go", timeout=60)
            return "child"

        def child(ctx: Any) -> str:
            effect()
            ctx.child = nbflow.child(inner, n=3)
            ctx.mapped = nbflow.map(fetch, [1, 2, 3])
            return "look"

        def look(ctx: Any) -> Any:
            ctx.asked = ctx.get("asked", 0) + 1
            return Again() if ctx.asked < 3 else "late"

        def late(ctx: Any) -> str:
            effect()
            ctx.round = ctx.get("round", 0) + 1
            return "late" if ctx.round < 2 else "end"

        tasks: dict[str, Any] = {
            "begin": (begin, {"to": "steps"}),
            "steps": (steps, {"kind": "stepped", "to": "load"}),
            "load": (lambda ctx: range(3), {"kind": "batch", "max_parallel": 1, "to": "split"}),
            "split": lambda ctx: Split(["left", Branch("right", given=[1])], to="join"),
            "left": (left, {"to": ["join", "right"]}),
            "right": (right, {"to": "join"}),
            "join": (join, {"to": "child"}),
            "child": (child, {"to": "look"}),
            "look": (look, {"kind": "poll", "to": "late"}),
            "late": (late, {"kind": "timer", "after": 10, "to": ["late", "end"]}),
        }
        machine = machine_of(tasks, name="all")
        batch = machine._tasks[2]

        @batch.process
        def process(ctx: Any, item: int) -> int:
            effect()
            return fetch(item)

        @batch.finish
        def finish(ctx: Any, results: list[int]) -> str:
            ctx.results = results
            return "split"

        return machine

    def begin(self) -> str:
        """Open the run and send it the signals; return its id."""
        with pytest.raises(Power):
            self.machine.run(store=self.memory)
        self.memory.restart()
        self.ready = True
        run = self.memory.runs()[0].run
        for number in range(3):
            nbflow.signal(run, "go", number, store=self.memory)
        return run

    def carry_on(self, store: Any, run: str) -> Any:
        """Resume the run through its face."""
        if self.face == "sync":
            return self.machine.resume(run, store=store)
        return asyncio.run(self.machine.aresume(run, store=store))


def calm(face: str) -> tuple[dict[str, Any], Counter[tuple[str, int]], int]:
    """Return the data, the effects and the number of appends of an undisturbed run."""
    scenario = Scenario(face)
    run = scenario.begin()
    store = FaultyStore(scenario.memory, at=0)
    assert "end" == scenario.carry_on(store, run)
    return scenario.machine.results(run, store=scenario.memory), scenario.effects, store.appends


def walk(face: str, when: str, stride: int = 1) -> None:
    """Have each append fail once, carry the run on, and compare with the undisturbed run."""
    data, effects, appends = calm(face)
    assert ([0, 1, 2], 1) == ([data["first"], data["second"], data["third"]], max(effects.values()))
    assert appends > 60
    for n in range(1, appends + 1, stride):
        scenario = Scenario(face)
        run = scenario.begin()
        store = FaultyStore(scenario.memory, at=n, when=when)  # type: ignore[arg-type]
        for _attempt in range(4):
            try:
                end = scenario.carry_on(store, run)
            except nbflow.errors.NbflowError:
                continue
            break
        assert end == "end", n
        assert store.failures or n > appends - 8, (
            "how many appends there are depends a little on who is faster"
        )
        assert data == scenario.machine.results(run, store=scenario.memory), n
        assert [] == scenario.repeated, n
        assert effects.keys() == scenario.effects.keys(), n
        (child,) = scenario.memory.runs(RunQuery(workflow="inner", limit=None))
        assert "completed" == child.state
        entries = scenario.memory.entries(run)
        check_journal(entries)
        signals = [
            e.record for e in entries if isinstance(e.record, StepCompleted) and "wait:go" in e.record.step
        ]
        assert len({record.step for record in signals}) == len(signals)


@pytest.mark.parametrize("face", FACES)
def test_a_lost_acknowledgement_at_any_append_changes_nothing(face: str) -> None:
    """Same end and data, no effect after its record; each signal is consumed once, the child is started once."""
    walk(face, "after")


@pytest.mark.parametrize("face", FACES)
def test_neither_does_an_append_that_fails(face: str) -> None:
    """A full disk at any append: the run fails, and carried on it ends as if nothing had been."""
    walk(face, "before", stride=3)
