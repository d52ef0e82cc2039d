"""Random machines, what disturbs them, and what an undisturbed run of them does.

A machine is drawn as a `Plan`: lines of nodes, of which a split has branches
that are lines again. `build` makes a real `Machine` of a plan; its tasks change
their data in all the ways there are and tell the `World` of every effect. The
world plays the trouble: errors, the end of the process in a task or in the
store, appends that fail or lose their acknowledgement. It looks at the journal
at every effect, so an effect whose step is recorded cannot happen unnoticed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

import nbflow
from nbflow import Again, Branch, Continue, Join, Machine, Split
from nbflow.core import crashpoints
from nbflow.core.history import History
from nbflow.core.model import Entry, StepCursor, StepStarted
from nbflow.runtime.scope import enclosing
from nbflow.testing import FaultyStore
from tests.runtime.machine_kit import Power

#: Threads of the store's own: what they do any process may do later.
BACKGROUND = ("nbflow-ingest", "nbflow-journal-", "nbflow-read")
#: Names of branches that always fail; their joins can do without them.
BAD = "bad"


#: The two ways to run a machine.
FACES = ["sync", "async"]


def go(machine: Machine, store: Any, face: str, **params: Any) -> Any:
    """Run the machine, or resume its only run, through one of its faces."""
    runs = [info for info in store.runs() if info.workflow == machine.name]
    if face == "sync":
        return machine.resume(runs[0].run, store=store) if runs else machine.run(store=store, **params)
    if runs:
        return asyncio.run(machine.aresume(runs[0].run, store=store))
    return asyncio.run(machine.arun(store=store, **params))


# --- machines -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A state: its kind, how often it goes on by itself, and what its task does besides."""

    kind: str = "plain"
    #: Steps of a stepped task, questions of a poll, items of a batch.
    count: int = 2
    #: How its task changes data: "set", "append" in place, "delete", "alias" two names to one list.
    change: str = "set"
    calls: int = 0
    is_async: bool = False
    retries: int = 0
    #: How often the machine comes through here; more than once goes back to the beginning of the line.
    rounds: int = 1
    branches: tuple[tuple[Node, ...], ...] = ()
    #: Further branches that always fail.
    bad: int = 0
    join: str = "all"


Plan = tuple[Node, ...]


@st.composite
def nodes(draw: st.DrawFn, depth: int) -> Node:
    """Draw a state; with `depth` it may be a split, whose branches are lines of their own."""
    kinds = ["plain", "plain", "stepped", "poll", "batch", "router", "timer"] + ["split"] * 3 * (depth > 0)
    kind = draw(st.sampled_from(kinds))
    branches: tuple[tuple[Node, ...], ...] = ()
    if kind == "split":
        line = st.lists(nodes(depth - 1), min_size=1, max_size=2).map(tuple)
        branches = tuple(draw(st.lists(line, min_size=1, max_size=3)))
    bad = draw(st.integers(0, 2)) if branches else 0
    return Node(
        kind=kind,
        count=draw(st.integers(1, 3)),
        change=draw(st.sampled_from(["set", "append", "delete", "alias"])),
        calls=draw(st.integers(0, 2)),
        is_async=draw(st.booleans()),
        retries=draw(st.integers(0, 2)),
        rounds=draw(st.sampled_from([1, 1, 1, 2])),
        branches=branches,
        bad=bad,
        join=draw(
            st.sampled_from(["quorum", "percentage", "partial", *(["any"] if len(branches) == 1 else [])])
        )
        if bad
        else draw(st.sampled_from(["all", "quorum", "percentage", "partial"])),
    )


def plans(depth: int = 1, most: int = 4) -> st.SearchStrategy[Plan]:
    """Draw machines of a few states on the main line and some more in branches."""
    return st.lists(nodes(depth), min_size=1, max_size=most).map(tuple)


# --- trouble ------------------------------------------------------------------------------------------------------

#: What may happen, each after so many occasions: an error or the end of the process in a task, the end of the process
#: in the store, an append that fails or loses its acknowledgement.
TROUBLES = ("error", "power", "crash", "before", "after")

Trouble = tuple[str, int]


def troubles(most: int = 5, kinds: tuple[str, ...] = TROUBLES) -> st.SearchStrategy[list[Trouble]]:
    """Draw what happens one after the other, each counted from the one before."""
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(1, 25)), max_size=most)


@dataclass
class World:
    """What lies outside the run. Its trouble comes from a list, each piece once."""

    store: FaultyStore
    plan: list[Trouble] = field(default_factory=list)
    effects: Counter[tuple[str, int]] = field(default_factory=Counter)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    happened: list[Trouble] = field(default_factory=list)
    run: str | None = None
    dead: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._looking = threading.Lock()
        self._read = self._failures = 0
        self._history = History()
        self.plan = list(self.plan)
        self._arm()

    def _arm(self) -> None:
        self.store.at = 0
        self._left = self.plan[0][1] if self.plan else 0
        if self.plan and self.plan[0][0] in ("before", "after"):
            self.store.when = self.plan[0][0]  # type: ignore[assignment]
            self.store.at = self.store.calls + self.plan[0][1]

    def _due(self, *kinds: str) -> str | None:
        """Count an occasion; return the trouble that it brings."""
        if not self.plan or self.plan[0][0] not in kinds:
            return None
        self._left -= 1
        if self._left:
            return None
        self.happened.append(self.plan.pop(0))
        self._arm()
        return self.happened[-1][0]

    def occasion(self) -> None:
        """Pass a place in a task where something may go wrong."""
        with self._lock:
            if self.dead:
                raise Power
            kind = self._due("error", "power")
            if kind == "power":
                self.dead = True
                raise Power
        if kind == "error":
            raise OSError("something went wrong")

    def effect(self, number: int = -1) -> int:
        """Do something to the world on behalf of the enclosing step; return what no second call would return."""
        self.occasion()
        scope = enclosing()
        assert scope is not None
        key = (scope.step, number)
        with (
            self._looking
        ):  # not the other lock: who is in the store holds locks of its own and waits for that
            recorded = self.recorded(*key)
        with self._lock:
            if self.dead:
                raise Power
            if recorded:
                self.repeated.append(key)
            self.effects[key] += 1
        self.occasion()
        return number

    def recorded(self, step: str, number: int) -> bool:
        """Say whether the journal holds what this effect is part of."""
        if self.run is None:
            self.run = self.store.runs()[0].run
        entries = self.store.entries(self.run)
        for entry in entries[self._read :]:
            self._history.add(entry)
        self._read = len(entries)
        cursor = self._history.cursors.get(step)
        return any(execution.completed for execution in self._history.by_step.get(step, ())) or (
            cursor is not None and 0 <= number <= cursor.number
        )

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Run a process in this block; it is over, with its threads, when the block is left."""
        before = set(threading.enumerate())

        def hook(_name: str) -> None:
            if threading.current_thread().name.startswith(BACKGROUND):
                return
            with self._lock:
                if self.dead or self._due("crash"):
                    self.dead = True
                    raise Power

        with crashpoints.hooked(hook):
            try:
                yield
            finally:
                with self._lock:
                    self.dead = True
                for thread in set(threading.enumerate()) - before:
                    if thread.name.startswith("nbflow ") and thread is not threading.current_thread():
                        while not thread._started.is_set():  # it is listed before it has begun
                            time.sleep(0.001)
                        thread.join(20)
                        assert not thread.is_alive(), f"goes on after its process:\n{where(thread)}"
                if self.store.failures > self._failures:
                    self._failures = self.store.failures
                    self.happened.append(self.plan.pop(0))
                    self._arm()
                self.dead = False

    def real(self) -> dict[tuple[str, int], int]:
        """Return the effects without those of branches that always fail."""
        return {key: count for key, count in self.effects.items() if f"/{BAD}" not in key[0]}


def where(thread: threading.Thread) -> str:
    """Say what a thread is doing."""
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}\n{''.join(traceback.format_stack(frame)[-6:])}"


# --- building -----------------------------------------------------------------------------------------------------


class Builder:
    """Makes a machine of a plan."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.world = world
        self._labels: list[str] = []
        self._tasks: list[tuple[str, Node, str, str]] = []
        self._branches: dict[str, list[str]] = {}
        self._line(plan, "m", "end")
        self.machine = Machine(
            "random", [*self._labels, "fail", "end"], initial=self._labels[0], final={"end"}
        )
        for label, node, following, first in self._tasks:
            self._define(label, node, following, first)
        self.machine.state("fail", to="end")(self._fail)

        @nbflow.durable(version="1", name="call")
        def call(label: str, n: int) -> str:
            world.effect()
            return f"{label}-{n}"

        self._call = call

    def _line(self, plan: Plan, name: str, end: str) -> str:
        labels = [f"{name}{place}" for place in range(len(plan))]
        self._labels += labels
        for place, node in enumerate(plan):
            following = labels[place + 1] if place + 1 < len(plan) else end
            self._tasks.append((labels[place], node, following, labels[0]))
            self._branches[labels[place]] = [
                self._line(branch, f"{labels[place]}{chr(97 + n)}", following)
                for n, branch in enumerate(node.branches)
            ]
        return labels[0]

    def _fail(self, ctx: Any) -> str:
        self.world.occasion()
        raise LookupError("this branch always fails")

    def _work(self, ctx: Any, node: Node, number: int = -1) -> None:
        """Change data as the node says, call durable functions, and have an effect."""
        label = ctx.state
        if node.change == "set":
            ctx[f"v_{label}"] = [*ctx.get(f"v_{label}", []), number]
        elif node.change == "append":
            ctx.rows.append(f"{label}:{number}")
        elif node.change == "delete":
            for name in [name for name in ctx.values if name.startswith("v_")][:1]:
                del ctx.values[name]
        else:
            ctx[f"w_{label}"] = [ctx.get("shared", ctx.rows)]
            ctx.shared = ctx[f"w_{label}"][0]
            ctx.shared.append(label)
        self.world.effect(number)
        # A look of a poll that failed is no look that an undisturbed run has, and so are its calls.
        for n in range(node.calls if node.kind != "poll" else 0):
            ctx[f"c_{label}"] = self._call(f"{label}:{number}", n)
        self.world.occasion()

    def _next(self, ctx: Any, node: Node, following: str, first: str) -> str:
        name = f"n_{ctx.state}"
        ctx[name] = ctx.get(name, 0) + 1
        return first if ctx[name] < node.rounds else following

    def _split(self, ctx: Any, node: Node, following: str) -> Any:
        good = self._branches[ctx.state]
        branches = [Branch(label, name=label, given=[label]) for label in good]
        branches += [Branch("fail", name=f"{BAD}{n}") for n in range(node.bad)]
        join = {
            "all": Join.all,
            "any": Join.any,
            "quorum": lambda: Join.quorum(len(good)),
            "partial": lambda: Join.partial(len(good)),
            "percentage": lambda: Join.percentage(Fraction(100 * len(good), len(branches))),
        }[node.join]()
        return Split(branches, join=join, to=following)

    def _define(self, label: str, node: Node, following: str, first: str) -> None:
        work, leave, state = self._work, self._next, self.machine.state
        retry = {"retries": node.retries, "delay": 0}

        def plain(ctx: Any) -> Any:
            work(ctx, node)
            return leave(ctx, node, following, first)

        def stepped(ctx: Any, cursor: Any) -> Any:
            done = (cursor or {"n": 0})["n"]
            if cursor:
                cursor["n"] = -7  # a task may do what it likes with its cursor
            work(ctx, node, done)
            return Continue({"n": done + 1}) if done + 1 < node.count else leave(ctx, node, following, first)

        def poll(ctx: Any) -> Any:
            asked = ctx[f"asked_{label}"] = ctx.get(f"asked_{label}", 0) + 1
            work(ctx, node, -1 - asked)
            if asked % (node.count + 1):
                return Again()
            return leave(ctx, node, following, first)

        def choose(ctx: Any) -> Any:
            return following if ctx.rows else "fail"

        def split(ctx: Any) -> Any:
            work(ctx, node)
            return self._split(ctx, node, following)

        if node.kind == "batch":
            task = state(
                label, kind="batch", max_parallel=2, item_retries=nbflow.RetryPolicy(node.retries, delay=0)
            )(lambda ctx: (work(ctx, node, 0), list(range(node.count)))[1])

            def one(ctx: Any, item: int) -> Any:
                self.world.effect()
                return [item, ctx.state]

            async def one_async(ctx: Any, item: int) -> Any:
                await asyncio.sleep(0)
                return one(ctx, item)

            def finish(ctx: Any, results: Any) -> Any:
                ctx[f"r_{label}"] = results
                self.world.occasion()
                return leave(ctx, node, following, first)

            task.process(one_async if node.is_async else one)
            task.finish(finish)
            return
        if node.kind == "router":
            state(label, kind="router")(choose)
            return
        if node.kind == "stepped":

            async def stepped_async(ctx: Any, cursor: Any) -> Any:
                await asyncio.sleep(0)
                return stepped(ctx, cursor)

            state(label, kind="stepped", **retry)(stepped_async if node.is_async else stepped)
            return
        function = {"poll": poll, "split": split}.get(node.kind, plain)

        async def function_async(ctx: Any) -> Any:
            await asyncio.sleep(0)
            return function(ctx)

        options: dict[str, Any] = dict(retry)
        if node.kind in ("poll", "timer"):
            options = {
                "kind": node.kind,
                **({"every": 0.5} if node.kind == "poll" else {"after": 30, **retry}),
            }
        state(label, **options)(function_async if node.is_async else function)


# --- what holds ---------------------------------------------------------------------------------------------------


def check_journal(entries: list[Entry]) -> None:
    """Assert what holds for the journal of every machine: dense cursors, no way back, no step begun when completed."""
    history = History()
    cursors: dict[str, int] = {}
    newest: dict[str, list[str]] = {}
    for entry in entries:
        record = entry.record
        if isinstance(record, StepCursor):
            assert record.number == cursors.get(record.step, -1) + 1, (
                f"cursors of {record.step} are not dense"
            )
            cursors[record.step] = record.number
        elif isinstance(record, StepStarted):
            before = history.by_step.get(record.step, ())
            assert not any(one.completed for one in before), f"{record.step} began after it was completed"
            if record.step_kind == "state":
                line = newest.setdefault(str(record.detail.get("line")), [])
                if record.step in line:
                    assert line[-1] == record.step, f"{record.step} was entered again after {line[-1]}"
                else:
                    line.append(record.step)
        history.add(entry)
    assert history.state == "completed"
