"""Children: started once however often the parent is replayed, stopped with it, and found again whatever was lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import (
    BudgetExceeded,
    ChildFailed,
    NbflowError,
    NoActiveRun,
    RunCancelled,
    StoreFull,
    UsageError,
)
from nbflow.core.history import History
from nbflow.core.ids import child_run_id
from nbflow.core.model import RunInfo
from nbflow.runtime.children.results import record_result, result_of
from nbflow.runtime.session import Session
from nbflow.runtime.workers import Workers
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery, Store
from nbflow.testing import FaultyStore, MemoryStore


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each kind."""
    made: Store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "s", background=False)
    yield made
    made.close()


class Bodies:
    """Durable steps that count how often their bodies ran."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

        @nbflow.durable(version="1")
        def step(name: str) -> str:
            self.ran[name] += 1
            return name.upper()

        self.step = step

    def three(self, who: str) -> list[str]:
        return [self.step(f"{who}{number}") for number in range(3)]


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


def children(store: Store, run: str) -> list[RunInfo]:
    return [info for info in store.runs(RunQuery(limit=None)) if info.parent == run]


def history(store: Store, run: str) -> History:
    return History.of(store.entries(run))


# --- what a child is ----------------------------------------------------------------------------------------------


def test_a_child_is_a_run_with_steps_of_its_own(store: Store, bodies: Bodies) -> None:
    """The parent has one step for it, which names the run; the child's steps begin at the root of their keys."""
    with nbflow.run("parent", store=store) as run:
        assert ["A0", "A1", "A2"] == nbflow.child(bodies.three, name="three", who="a")

    (info,) = children(store, run.id)
    (step,) = store.steps(run.id)
    opened = history(store, info.run).opened
    assert opened is not None
    assert ("three", "completed", {"who": "a"}) == (info.workflow, info.state, info.params)
    assert ("child", "completed", info.run) == (step.step_kind, step.state, child_run_id(run.id, step.step))
    assert (run.id, step.step) == (opened.parent, opened.parent_step)
    assert all("/" not in each.step for each in store.steps(info.run))
    assert ["A0", "A1", "A2"] == result_of(store, info.run)


def test_a_replay_starts_no_second_child(store: Store, bodies: Bodies) -> None:
    """A resumed parent has the result of its children, and neither runs nor steps are added."""
    for attempt in range(3):
        try:
            with nbflow.run("parent", store=store) as run:
                assert ["A0", "A1", "A2"] == nbflow.child(bodies.three, who="a")
                if attempt < 2:
                    raise ValueError
        except ValueError:
            pass

    assert 1 == len(children(store, run.id))
    assert {"a0": 1, "a1": 1, "a2": 1} == bodies.ran


def test_two_calls_are_two_children_and_both_are_kept(store: Store) -> None:
    """Equal workflow and parameters, another occurrence: another run, in every scope."""
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(random.random())
        return drawn[-1]

    @nbflow.durable
    def twice() -> list[float]:
        return [nbflow.child(draw, name="draw"), nbflow.child(draw, name="draw")]

    with pytest.raises(ValueError, match="stop"), nbflow.run("parent", store=store):
        first = [nbflow.child(draw, name="draw"), nbflow.child(draw, name="draw"), *twice()]
        raise ValueError("stop")
    with nbflow.run("parent", store=store) as run:
        second = [nbflow.child(draw, name="draw"), nbflow.child(draw, name="draw"), *twice()]

    assert drawn == first == second
    assert 4 == len(children(store, run.id))


def test_tags_are_inherited_and_merged(store: Store, bodies: Bodies) -> None:
    """A child has its parent's tags, later ones too, under its own; a search finds it by either."""
    with nbflow.run("parent", store=store, tags={"team": "blue", "site": "north"}) as run:
        nbflow.tag(site="south")
        nbflow.child(bodies.three, who="a", tags={"team": "red"})

    (info,) = children(store, run.id)
    assert {"team": "red", "site": "south"} == info.tags
    assert [info.run] == nbflow.runs(tags={"team": "red", "site": "south"}, store=store)["run"].tolist()


def test_children_nest_three_deep(store: Store, bodies: Bodies) -> None:
    """Each level is a run of its own; a resume of the top finds all of them."""

    def deep() -> str:
        return str(bodies.step("deep"))

    def middle() -> str:
        return f"{bodies.step('middle')} {nbflow.child(deep, name='deep')}"

    def top() -> str:
        return f"{bodies.step('top')} {nbflow.child(middle, name='middle')}"

    with pytest.raises(ValueError, match="stop"), nbflow.run("parent", store=store):
        nbflow.child(top, name="top")
        raise ValueError("stop")
    with nbflow.run("parent", store=store) as run:
        assert "TOP MIDDLE DEEP" == nbflow.child(top, name="top")

    (one,) = children(store, run.id)
    (two,) = children(store, one.run)
    (three,) = children(store, two.run)
    assert ["top", "middle", "deep"] == [one.workflow, two.workflow, three.workflow]
    assert {"top": 1, "middle": 1, "deep": 1} == bodies.ran


def test_a_child_is_nobodys_newest_run(store: Store) -> None:
    """An unfinished child is carried on by its parent only: a run of the same name starts afresh."""

    def half() -> None:
        raise ValueError("half way")

    with pytest.raises(ChildFailed), nbflow.run("parent", store=store) as run:
        nbflow.child(half, name="etl")
    with nbflow.run("etl", store=store) as other:
        pass

    assert "failed" == children(store, run.id)[0].state
    assert other.id not in {run.id, children(store, run.id)[0].run}
    assert nbflow.steps(store=store).empty  # the newest run is `other`, whatever ids its neighbours have


def test_a_child_is_a_run_that_the_body_sees(store: Store) -> None:
    """Inside, `current_run` is the child, with its parameters; outside it is the parent again."""
    seen: list[Any] = []

    def look(day: str, parts: list[int]) -> None:
        current = nbflow.current_run()
        assert current is not None
        seen.append((current.workflow, current.params, day, parts))

    with nbflow.run("parent", store=store) as run:
        nbflow.child(look, name="look", day="monday", parts=(1, 2))
        current = nbflow.current_run()
        assert current is not None
        assert run.id == current.id

    assert [("look", {"day": "monday", "parts": [1, 2]}, "monday", [1, 2])] == seen


# --- failing ------------------------------------------------------------------------------------------------------


def test_a_failed_child_is_carried_on_by_its_resumed_parent(store: Store, bodies: Bodies) -> None:
    """Its exception is the cause; the resume continues the same child behind its last recorded step."""
    trouble = [ValueError("the service is down")]

    def shaky() -> str:
        done = bodies.step("before")
        if trouble:
            raise trouble[0]
        return f"{done} {bodies.step('after')}"

    with pytest.raises(ChildFailed, match="the service is down") as caught:
        with nbflow.run("parent", store=store) as run:
            nbflow.child(shaky, name="shaky")
    (info,) = children(store, run.id)
    assert trouble[0] is caught.value.__cause__
    assert (info.run, "failed", "failed") == (caught.value.child, caught.value.state, info.state)
    assert "failed" == store.run(run.id).state

    trouble.clear()
    with nbflow.run("parent", store=store) as again:
        assert "BEFORE AFTER" == nbflow.child(shaky, name="shaky")
    assert [info.run] == [each.run for each in children(store, again.id)]
    assert {"before": 1, "after": 1} == bodies.ran


def test_a_caught_failure_is_another_try_at_the_same_child(store: Store, bodies: Bodies) -> None:
    """Calling it again in the same process continues it as a resume would."""
    trouble = [1]

    def shaky() -> str:
        bodies.step("before")
        if trouble:
            trouble.clear()
            raise ValueError
        return "fine"

    with nbflow.run("parent", store=store) as run:
        with pytest.raises(ChildFailed):
            nbflow.child(shaky)
        assert "fine" == nbflow.child(shaky)

    assert 1 == len(children(store, run.id))
    assert {"before": 1} == bodies.ran


def test_a_cancelled_child_is_final(store: Store) -> None:
    """The parent is told, also when it is resumed; the parent itself is not cancelled."""

    def stop() -> None:
        current = nbflow.current_run()
        nbflow.cancel(current, "not needed")
        nbflow.sleep("1h")

    for _ in range(2):
        with pytest.raises(ChildFailed) as caught, nbflow.run("parent", store=store) as run:
            nbflow.child(stop, name="stop")
        assert "cancelled" == caught.value.state
    (info,) = children(store, run.id)
    assert ("cancelled", "failed") == (info.state, store.run(run.id).state)


def test_an_interrupt_leaves_child_and_parent_to_be_carried_on(store: Store, bodies: Bodies) -> None:
    """Ctrl-C ends nothing for good."""
    presses = [1]

    def long() -> str:
        bodies.step("first")
        if presses:
            presses.clear()
            raise KeyboardInterrupt
        return str(bodies.step("second"))

    with pytest.raises(KeyboardInterrupt), nbflow.run("parent", store=store) as run:
        nbflow.child(long)
    assert "running" == children(store, run.id)[0].state
    with nbflow.run("parent", store=store):
        assert "SECOND" == nbflow.child(long)
    assert {"first": 1, "second": 1} == bodies.ran


def test_a_child_that_another_process_has_is_a_typed_error(store: Store, bodies: Bodies) -> None:
    """Nothing runs twice at once: the error says who has it, and the parent may be resumed later."""
    trouble = [1]

    def shaky() -> None:
        if trouble:
            raise ValueError

    with pytest.raises(ChildFailed), nbflow.run("parent", store=store) as run:
        nbflow.child(shaky)
    trouble.clear()
    (info,) = children(store, run.id)
    holder = Session.open(store, "", run=info.run)
    with pytest.raises(ChildFailed, match="another process") as caught, nbflow.run("parent", store=store):
        nbflow.child(shaky)
    assert "running" == caught.value.state
    holder.close()
    with nbflow.run("parent", store=store):
        nbflow.child(shaky)


def test_bad_input_is_refused_before_anything_runs(store: Store, tmp_path: Path) -> None:
    """What is no workflow, no name, no tag or no parameter is a typed error, and starts no run."""
    with nbflow.run("parent", store=store) as run:
        for call in (
            lambda: nbflow.child(42),
            lambda: nbflow.child(dict),
            lambda: nbflow.child(lambda: 1, name=""),
            lambda: nbflow.child(lambda: 1, tags={"a": None}),
            lambda: nbflow.child(lambda model: 1, model=object()),
            lambda: nbflow.child("train.py"),
            lambda: nbflow.child(tmp_path / "missing.ipynb"),
        ):
            with pytest.raises(UsageError):
                call()
    assert [] == children(store, run.id)
    assert [] == store.steps(run.id)
    with pytest.raises(NoActiveRun):
        nbflow.child(lambda: 1)


# --- a forgotten child --------------------------------------------------------------------------------------------


def test_a_forgotten_child_runs_again_as_a_new_run(store: Store, bodies: Bodies) -> None:
    """A finished run cannot run again, so its step gets another child, and only one, however often it is resumed."""
    with pytest.raises(ValueError, match="stop"), nbflow.run("parent", store=store) as run:
        nbflow.child(bodies.three, name="three", who="a")
        raise ValueError("stop")
    nbflow.retry_step(run, "three", store=store)
    for _ in range(2):
        with pytest.raises(ValueError, match="stop"), nbflow.run("parent", store=store):
            nbflow.child(bodies.three, name="three", who="a")
            raise ValueError("stop")

    assert 2 == len(children(store, run.id))
    assert {"a0": 2, "a1": 2, "a2": 2} == bodies.ran


# --- what may be lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failing_disk_starts_no_second_child(when: Any, tmp_path: Path) -> None:
    """Whichever append fails, or is kept and not acknowledged: one child, and no recorded step runs again."""
    at = 0
    while True:
        at += 1
        bodies = Bodies()
        faulty = FaultyStore(MemoryStore(), at=at, when=when)
        for _ in range(4):
            try:
                with nbflow.run("parent", store=faulty) as run:  # type: ignore[arg-type]
                    assert ["A0", "A1", "A2"] == nbflow.child(bodies.three, who="a")
                break
            except (StoreFull, ChildFailed):
                continue
        assert "completed" == faulty.run(run.id).state
        assert 1 == len(children(faulty, run.id))  # type: ignore[arg-type]
        lost = sum(bodies.ran.values()) - 3  # what was not kept has to run again
        assert lost == 0 if when == "after" else lost <= 1
        if faulty.appends < at:
            break
    assert at > 10


def test_a_failed_child_undoes_what_it_did_and_a_recorded_result_stands() -> None:
    """Whichever acknowledgement is lost: in the end there is one order that is not undone."""
    at, undone_ever = 0, 0
    while True:
        at += 1
        orders: list[int] = []
        undone: list[int] = []

        @nbflow.durable(version="1", name="order", compensate=lambda number: undone.append(number))
        def order() -> int:
            orders.append(len(orders))
            return orders[-1]

        @nbflow.durable(version="1", name="pay")
        def pay() -> None:
            pass

        def buy() -> int:
            number = order()
            pay()
            return number

        faulty = FaultyStore(MemoryStore(), at=at, when="after")
        for _ in range(5):
            try:
                with nbflow.run("parent", store=faulty):  # type: ignore[arg-type]
                    kept = nbflow.child(buy)
                break
            except (StoreFull, ChildFailed):
                continue
        assert {kept} == set(orders) - set(undone)
        undone_ever += len(undone)
        if faulty.appends < at:
            break
    assert undone_ever > 0


SCRIPT = """
import os, sys, nbflow
def effect(name):
    fd = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (name + "\\n").encode())
    os.fsync(fd)
    os.close(fd)
@nbflow.durable(version="1")
def step(name):
    effect(name)
    return name.upper()
def kid(who):
    return [step(who + str(number)) for number in range(3)]
from nbflow.store.local import LocalStore
store = LocalStore(sys.argv[1], background=False)
with nbflow.run("parent", store=store):
    first = step("first")
    result = nbflow.child(kid, name="kid", who="a")
    print(first, *result, step("last"))
"""


def killed_at(spec: str, place: Path) -> bool:
    """Kill a fresh run at a point and carry it on; False when it ended before that point."""
    effects = place / "effects"
    place.mkdir()

    def start(crash: str | None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **({"NBFLOW_CRASH": crash} if crash else {})}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(place / "s"), str(effects)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = start(spec)
    if done.returncode == 0:
        return False
    assert -signal.SIGKILL == done.returncode, done.stderr
    before = Counter(effects.read_text().split()) if effects.exists() else Counter()
    recorded = recorded_names(place / "s")
    if "parent" not in recorded["finished"]:
        again = start(None)
        assert again.stdout == "FIRST A0 A1 A2 LAST\n", again.stderr
    after = Counter(effects.read_text().split())
    for name in ("first", "a0", "a1", "a2", "last"):
        expected = before[name] + (name not in recorded["steps"])
        assert expected == after[name], f"{spec}: {name} ran {after[name]} times"
    store = LocalStore(place / "s", background=False)
    runs = store.runs()
    store.close()
    assert ["completed", "completed"] == [info.state for info in runs], spec
    return True


def recorded_names(place: Path) -> dict[str, set[str]]:
    """Which steps are recorded over all runs, by their argument; and which workflows are finished."""
    found: dict[str, set[str]] = {"steps": set(), "finished": set()}
    if not place.exists():
        return found
    store = LocalStore(place, background=False)
    for info in store.runs():
        if info.state == "completed":
            found["finished"].add(info.workflow)
        for execution in history(store, info.run).executions.values():
            if execution.completed is not None and execution.started.name == "step":
                value = nbflow.output(info.run, execution.started.step, "return", store=store)
                found["steps"].add(value.lower())
    store.close()
    return found


@pytest.mark.parametrize(
    "point",
    [
        "child.create.before:1",
        "create.rename.after:2",
        "child.create.after:1",
        "child.recorded:1",
        "child.done:1",
    ],
)
def test_a_parent_killed_around_its_child_finds_it_again(point: str, tmp_path: Path) -> None:
    """Between creating the child and recording its result: one child, no recorded step runs again."""
    assert killed_at(point, tmp_path / "run")


def test_a_parent_killed_at_sampled_points_finds_its_child_again(tmp_path: Path) -> None:
    """Every thirty-first write, fsync and rename of parent and child, from a random start."""
    number, killed = random.randrange(1, 32), 0
    while killed_at(f"*:{number}", tmp_path / str(number)):
        number += 31
        killed += 1

    assert killed >= 2


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_parent_killed_at_every_point_finds_its_child_again(tmp_path: Path) -> None:
    """Just before and just after every write, fsync and rename of parent and child."""
    number = 1
    while killed_at(f"*:{number}", tmp_path / str(number)):
        number += 1

    assert number > 40


def test_a_result_is_recorded_once(store: Store) -> None:
    """Whoever records it a second time changes nothing."""
    session = Session.open(store, "w")
    record_result(session, {"a": 1})
    record_result(session, {"a": 2})
    session.finish()

    assert {"a": 1} == result_of(store, session.run)


# --- cancel and budget go down ------------------------------------------------------------------------------------


def test_a_cancelled_parent_stops_its_children_at_their_next_step(store: Store) -> None:
    """Three deep, while they run: each is cancelled with reason parent, the top one with its own."""
    reached = threading.Event()
    steps: list[int] = []

    @nbflow.durable(version="1")
    def step(number: int) -> None:
        steps.append(number)
        if number == 3:
            reached.set()
        time.sleep(0.02)

    def deep() -> None:
        for number in range(500):
            step(number)

    def middle() -> None:
        nbflow.child(deep, name="deep")

    def cancel() -> None:
        assert reached.wait(10)
        (info,) = store.runs(RunQuery(workflow="parent"))
        nbflow.cancel(info.run, "enough", store=store)

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(RunCancelled) as caught, nbflow.run("parent", store=store) as run:
        nbflow.child(middle, name="middle")
    other.join()

    assert ("user", "enough", run.id) == (caught.value.reason, caught.value.note, caught.value.run)
    assert len(steps) < 500
    assert {"cancelled"} == {info.state for info in store.runs()}
    assert 3 == len(store.runs())
    (one,) = children(store, run.id)
    assert "parent" == history(store, one.run).reason
    assert "parent" == history(store, children(store, one.run)[0].run).reason


def test_children_of_a_parent_that_is_cancelled_later_do_not_stay_open(store: Store, bodies: Bodies) -> None:
    """Left behind by an interrupt or a failure, they end with their parent, whether or not it runs again."""

    def left(how: str) -> None:
        bodies.step(how)
        raise KeyboardInterrupt if how == "interrupted" else ValueError

    for resumed in (False, True):
        for how in ("interrupted", "failed"):
            with pytest.raises((KeyboardInterrupt, ChildFailed)):
                with nbflow.run(f"{how} {resumed}", store=store) as run:
                    nbflow.child(left, how=how)
            assert children(store, run.id)[0].state in ("running", "failed")
            if resumed:
                with pytest.raises(RunCancelled), nbflow.run(f"{how} {resumed}", store=store):
                    nbflow.cancel(reason="while it runs")
                    bodies.step("another")
            else:
                nbflow.cancel(run.id, store=store)
            assert {"cancelled"} == {store.run(run.id).state, children(store, run.id)[0].state}


def test_a_budget_holds_for_the_whole_tree(store: Store) -> None:
    """What children spend counts, recorded with their step; a spent budget refuses the next step inside a child."""

    @nbflow.durable(version="1")
    def spend(number: int) -> int:
        nbflow.charge(tokens=40)
        return number

    def kid(count: int) -> list[int]:
        return [spend(number) for number in range(count)]

    with pytest.raises(ChildFailed) as caught, nbflow.run("parent", store=store) as run:
        with nbflow.budget(tokens=100):
            nbflow.child(kid, name="kid", count=1)
            assert {"tokens": 40.0} == nbflow.spent()
            nbflow.child(kid, name="kid", count=5)

    assert isinstance(caught.value.__cause__, BudgetExceeded)
    done = [e.completed for e in history(store, run.id).executions.values() if e.completed is not None]
    details = [record.detail for record in done if record.detail]
    assert {"tokens": 40.0} in [detail.get("charged") for detail in details]


# --- side by side -------------------------------------------------------------------------------------------------


async def test_children_run_beside_each_other_in_async_code(store: Store) -> None:
    """`child.aio` takes async and sync functions; siblings meet, so they run at the same time."""
    meeting = asyncio.Barrier(2)

    @nbflow.durable(version="1")
    async def arrive(who: str) -> str:
        await asyncio.wait_for(meeting.wait(), 10)
        return who.upper()

    async def kid(who: str) -> str:
        return str(await arrive(who))

    def plain(who: str) -> str:
        return who

    with nbflow.run("parent", store=store) as run:
        found = await asyncio.gather(
            nbflow.child.aio(kid, who="a"), nbflow.child.aio(kid, who="b"), nbflow.child.aio(plain, who="c")
        )

    assert ["A", "B", "c"] == found
    assert {"completed"} == {info.state for info in children(store, run.id)}


def test_an_async_function_is_a_child_of_sync_code_too(store: Store) -> None:
    """Nobody has to know which kind a workflow is."""

    @nbflow.durable(version="1")
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def kid(x: int) -> int:
        return int(await double(x))

    with nbflow.run("parent", store=store):
        assert 42 == nbflow.child(kid, x=21)


def test_twelve_parents_wait_for_their_children_on_four_threads(store: Store, bodies: Bodies) -> None:
    """Each parent holds one of four slots; all of them come to their end."""
    workers = Workers(4)

    def deep(who: str) -> list[str]:
        nbflow.sleep(0.01)
        return bodies.three(who)

    def kid(who: str) -> list[str]:
        return list(nbflow.child(deep, name="deep", who=who))

    def parent(number: int) -> list[str]:
        with workers.slot():
            return list(nbflow.child(kid, name="kid", who=f"p{number}-"))

    with nbflow.run("parent", store=store) as run, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(copy_context().run, parent, number) for number in range(12)]
        found = [future.result(timeout=60) for future in futures]

    assert [[f"P{number}-{each}" for each in range(3)] for number in range(12)] == found
    assert 12 == len(children(store, run.id))
    assert 4 == workers.free
    assert set(bodies.ran.values()) == {1}


def test_children_of_mapped_items_are_started_once(store: Store, bodies: Bodies) -> None:
    """Items of a map may have children; a resume finds them."""

    def kid(who: str) -> list[str]:
        return bodies.three(who)

    def item(who: str) -> list[str]:
        return list(nbflow.child(kid, name="kid", who=who))

    names = [f"i{number}-" for number in range(12)]
    with pytest.raises(ValueError, match="stop"), nbflow.run("parent", store=store):
        nbflow.map(item, names, max_parallel=4)
        raise ValueError("stop")
    with nbflow.run("parent", store=store) as run:
        assert 12 == len(nbflow.map(item, names, max_parallel=4))

    assert 12 == len(children(store, run.id))
    assert set(bodies.ran.values()) == {1}


# --- machines -----------------------------------------------------------------------------------------------------


def test_a_machine_is_a_child_and_is_carried_on_in_its_state(store: Store) -> None:
    """Inside a run `m.run()` and `nbflow.child(m)` are the same; the resume re-enters the state that failed."""
    ran: list[str] = []
    trouble = [1]
    machine = nbflow.Machine("training", ["LOAD", "TRAIN", "DONE"], initial="LOAD", final={"DONE"})

    @machine.state("LOAD")
    def load(ctx: Any) -> str:
        ran.append(f"load {ctx.day}")
        return "TRAIN"

    @machine.state("TRAIN")
    def train(ctx: Any) -> str:
        ran.append("train")
        if trouble:
            raise ValueError("no convergence")
        return "DONE"

    with pytest.raises(ChildFailed, match="no convergence"), nbflow.run("parent", store=store) as run:
        machine.run(day="monday")
    trouble.clear()
    with nbflow.run("parent", store=store):
        assert "DONE" == nbflow.child(machine, day="monday")

    (info,) = children(store, run.id)
    assert ("training", "machine", "completed") == (info.workflow, info.workflow_kind, info.state)
    assert ["load monday", "train", "train"] == ran


def test_errors_are_typed(store: Store) -> None:
    """Everything that a child raises by itself is an NbflowError that names child and state."""

    def fails() -> None:
        raise ValueError("boom")

    with pytest.raises(NbflowError) as caught, nbflow.run("parent", store=store) as run:
        nbflow.child(fails)

    assert isinstance(caught.value, ChildFailed)
    assert children(store, run.id)[0].run == caught.value.child
    assert run.id == caught.value.run
