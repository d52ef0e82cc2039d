"""Machines: what tasks may do and how a run goes, sync and async, over a real store."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from enum import Enum, IntEnum, StrEnum, auto

import cloudpickle
import pytest

import nbflow
from nbflow import Again, Branch, Continue, Join, Machine, Split
from nbflow.core.errors import (
    CannotStore,
    InvalidMachine,
    InvalidOutcome,
    JoinFailed,
    LeaseHeld,
    RunCancelled,
    RunFinished,
    StepTimeout,
    UnknownRun,
    UnknownState,
    UsageError,
    VersionMismatch,
)
from nbflow.core.history import History
from nbflow.runtime import modes
from nbflow.store.local import open_store
from nbflow.values.fingerprint import fingerprint
from tests.runtime.machine_kit import Power, machine_of, states


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture(params=["sync", "async"])
def go(request, store):
    """Run or resume a machine through one of its two faces."""

    def call(machine, run=None, **params):
        if request.param == "sync":
            return machine.resume(run, store=store) if run else machine.run(store=store, **params)
        if run:
            return asyncio.run(machine.aresume(run, store=store))
        return asyncio.run(machine.arun(store=store, **params))

    return call


def newest(store):
    return store.runs()[0].run


# --- going along --------------------------------------------------------------------------------------------------


def test_tasks_choose_the_next_state_and_data_goes_along(go, store):
    """A run enters the states that the tasks choose; what they keep in ctx, or change in place, later ones find."""

    def a(ctx):
        ctx.rows = [ctx.start]
        return "b"

    async def b(ctx):
        await asyncio.sleep(0)
        ctx.rows.append(ctx["rows"][-1] + 1)
        return "c"

    def c(ctx):
        assert ("c", {"start": 5}) == (ctx.state, ctx.params)
        assert "rows" in ctx
        return "end"

    machine = machine_of({"a": a, "b": b, "c": c})

    assert "end" == go(machine, start=5)
    assert {"rows": [5, 6]} == machine.results(store=store)
    assert ["a completed", "b completed", "c completed", "end completed"] == states(store)
    info = store.run(newest(store))
    assert ("completed", "machine", {"start": 5}) == (info.state, info.workflow_kind, info.params)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Colour(Enum):
    RED = "r"
    BLUE = "b"


class Word(StrEnum):
    FIRST = auto()
    LAST = auto()


@pytest.mark.parametrize("states_of", [Level, Colour, Word])
def test_any_enum_gives_its_own_members_back(states_of, store):
    """States may be of any Enum; the end of a run is the member itself."""
    first, last = list(states_of)
    machine = Machine("enum", states_of, initial=first, final={last})
    machine.state(first)(lambda ctx: last)
    assert last is machine.run(store=store)
    assert last is machine.resume(newest(store), store=store)


def test_a_router_chooses_and_is_not_recorded(go, store):
    """A router's choice leads on, and the journal knows nothing of it."""
    tasks = {
        "a": lambda ctx: "choose",
        "choose": (lambda ctx: "b" if ctx.big else "end", {"kind": "router"}),
        "b": lambda ctx: "end",
    }
    assert "end" == go(machine_of(tasks), big=True)
    assert ["a completed", "b completed", "end completed"] == states(store)


def test_a_loop_keeps_every_round(go, store):
    """Each visit of a state is a step of its own."""

    def again(ctx):
        ctx.round = ctx.get("round", 0) + 1
        return "again" if ctx.round < 3 else "end"

    machine = machine_of({"again": again})
    go(machine)
    keys = [step.step for step in store.steps(newest(store)) if step.name == "again"]
    assert ["again#0", "again#1", "again#2"] == keys
    assert {"round": 3} == machine.results(store=store)


def test_a_failed_try_leaves_no_data_behind(go, store):
    """What a failed try set or changed in place is gone when the next begins."""
    tries = []

    def a(ctx):
        ctx.rows = [1]
        return "b"

    def b(ctx):
        tries.append(list(ctx.rows))
        ctx.rows.append(2)
        ctx.extra = "x"
        if len(tries) < 3:
            raise OSError("not yet")
        return "end"

    machine = machine_of({"a": a, "b": (b, {"retries": 2, "delay": 0})})
    go(machine)
    assert [[1], [1], [1]] == tries
    assert {"rows": [1, 2], "extra": "x"} == machine.results(store=store)


def test_deleted_data_stays_deleted_after_a_resume(go, store):
    """`del ctx.x` is recorded with the state, like an assignment."""
    broken = [True]

    def a(ctx):
        ctx.x, ctx.y = 1, 2
        return "b"

    def b(ctx):
        del ctx.x
        return "c"

    def c(ctx):
        if broken.pop() if broken else False:
            raise Power
        return "end" if "x" not in ctx and ctx.y == 2 else "b"

    machine = machine_of({"a": a, "b": b, "c": c})
    with pytest.raises(Power):
        go(machine)
    assert "end" == go(machine, run=newest(store))
    assert {"y": 2} == machine.results(store=store)


def test_durable_calls_of_a_task_are_steps_under_it(go, store):
    """A retried task finds the calls that its failed try had completed."""
    calls, tries = [], []

    @nbflow.durable(version="1")
    def fetch(part):
        calls.append(part)
        return part * 2

    def a(ctx):
        tries.append(1)
        ctx.both = [fetch(1), fetch(2)]
        if len(tries) == 1:
            raise OSError
        return "end"

    machine = machine_of({"a": (a, {"retries": 1, "delay": 0})})
    go(machine)
    assert [1, 2] == calls
    assert {"a#0"} == {step.parent for step in store.steps(newest(store)) if step.step_kind == "call"}


# --- kinds --------------------------------------------------------------------------------------------------------


def test_a_poll_asks_until_there_is_an_answer_and_forgives_single_errors(go, store):
    """Again and errors lead to another question; an answer resets the count of errors."""
    script = iter([Again(), OSError(), OSError(), Again(after="1ms"), OSError(), OSError(), "end"])

    def look(ctx):
        found = next(script)
        if isinstance(found, Exception):
            raise found
        return found

    assert "end" == go(machine_of({"look": (look, {"kind": "poll", "every": "1ms", "max_errors": 3})}))
    assert [] == list(script)


def test_a_poll_fails_after_too_many_errors_in_a_row(go, store):
    """The error that was one too many is raised as it is."""

    def look(ctx):
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        go(machine_of({"look": (look, {"kind": "poll", "every": "1ms", "max_errors": 2, "to": "end"})}))
    assert ["look failed"] == states(store)


def test_a_stepped_task_continues_from_its_newest_cursor(go, store):
    """After the process ended between two steps, the next continues at the recorded cursor, with its data."""
    seen, die_at = [], [3]

    def train(ctx, cursor):
        fold = cursor or 0
        seen.append(fold)
        if die_at and fold == die_at[0]:
            die_at.pop()
            raise Power
        ctx.scores = [*ctx.get("scores", []), fold * 10]
        return Continue(fold + 1) if fold < 5 else "end"

    machine = machine_of({"train": (train, {"kind": "stepped"})})
    with pytest.raises(Power):
        go(machine)
    assert "end" == go(machine, run=newest(store))
    assert [0, 1, 2, 3, 3, 4, 5] == seen
    assert {"scores": [0, 10, 20, 30, 40, 50]} == machine.results(store=store)
    cursors = [
        e.record.number for e in store.entries(newest(store)) if e.record.__class__.__name__ == "StepCursor"
    ]
    assert list(range(5)) == cursors


def test_a_batch_processes_each_item_once_and_keeps_the_order(go, store):
    """Items run side by side with a limit and retries of their own; a resume repeats none that was recorded."""
    processed, going, most = [], [], []
    lock = threading.Lock()
    broken = [True]

    def one(ctx, item):
        with lock:
            going.append(item)
            most.append(len(going))
        try:
            if item == 2 and processed.count(2) == 0:
                processed.append(2)
                raise OSError("once")
            processed.append(item)
            return item * 10
        finally:
            with lock:
                going.remove(item)

    def finish(ctx, results):
        if broken:
            broken.pop()
            raise Power
        ctx.results = results
        return "end"

    machine = Machine("batch", ["load", "end"], initial="load", final={"end"})
    task = machine.state("load", kind="batch", max_parallel=2, item_retries=nbflow.RetryPolicy(1, delay=0))(
        lambda ctx: range(6)
    )
    task.process(one)
    task.finish(finish)
    with pytest.raises(Power):
        go(machine)
    assert "end" == go(machine, run=newest(store))
    assert {"results": [0, 10, 20, 30, 40, 50]} == machine.results(store=store)
    assert sorted([0, 1, 2, 2, 3, 4, 5]) == sorted(processed)
    assert max(most) <= 2


def test_an_async_batch_runs_its_items_in_the_loop(go, store):
    """The function for one item may be a coroutine function, through either face."""
    machine = Machine("batch", ["load", "end"], initial="load", final={"end"})
    task = machine.state("load", kind="batch")(lambda ctx: ["a", "b"])

    @task.process
    async def one(ctx, item):
        await asyncio.sleep(0)
        return item + ctx.suffix

    @task.finish
    def finish(ctx, results):
        ctx.results = results
        return "end"

    go(machine, suffix="!")
    assert {"results": ["a!", "b!"]} == machine.results(store=store)


@pytest.mark.parametrize("source_kind", ["sync", "async"])
def test_a_stream_commits_its_cursor_with_the_window(go, store, source_kind):
    """After the process ended in a window, that window comes again and no earlier one."""
    windows, die_in = [], [[4, 5]]

    def numbers(ctx, cursor):
        for number in range(cursor or 0, 7):
            yield number + 1, number

    async def numbers_async(ctx, cursor):
        for number in range(cursor or 0, 7):
            await asyncio.sleep(0)
            yield number + 1, number

    machine = Machine("stream", ["tail", "end"], initial="tail", final={"end"})
    source = numbers if source_kind == "sync" else numbers_async
    task = machine.state("tail", kind="stream", count=2, to="end")(source)

    @task.window
    def window(ctx, items):
        windows.append(items)
        if die_in and items == die_in[0]:
            die_in.pop()
            raise Power
        ctx.total = ctx.get("total", 0) + sum(items)

    task.finish(lambda ctx: "end")
    with pytest.raises(Power):
        go(machine)
    go(machine, run=newest(store))
    assert [[0, 1], [2, 3], [4, 5], [4, 5], [6]] == windows
    assert {"total": 21} == machine.results(store=store)


def test_a_window_closes_when_its_time_is_over(go, store):
    """A slow source does not hold back the items that came; an empty window is none."""
    release = threading.Event()
    windows = []

    def slow(ctx, cursor):
        yield 1, "a"
        release.wait(10)
        yield 2, "b"

    machine = Machine("stream", ["tail", "end"], initial="tail", final={"end"})
    task = machine.state("tail", kind="stream", count=100, within="50ms", to="end")(slow)

    @task.window
    def window(ctx, items):
        windows.append(items)
        release.set()

    task.finish(lambda ctx: "end")
    go(machine)
    assert [["a"], ["b"]] == windows


def test_a_timer_calls_its_task_when_the_time_has_come(go, store):
    """The instant is recorded when the state is entered, and waited for; without a task the machine just goes on."""
    machine = machine_of({"a": (lambda ctx: "b", {"kind": "timer", "after": "30ms"}), "b": lambda ctx: "end"})
    machine2 = Machine("quiet", ["a", "end"], initial="a", final={"end"})
    machine2.state("a", kind="timer", after="10ms", to="end")
    assert "end" == go(machine)
    entries = store.entries(newest(store))
    started = next(e for e in entries if getattr(e.record, "name", "") == "a")
    left = next(e for e in entries if e.record.__class__.__name__ == "StepCompleted")
    assert left.at >= started.record.detail["due_at"] >= started.at + 0.029
    assert "end" == go(machine2)


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(modes.current() == "one-worker", reason="one branch waits for the other to begin")
def test_all_branches_run_and_their_data_is_joined(go, store):
    """Branches see the data from before, get data of their own, and leave theirs to the state after the join."""
    together = threading.Barrier(2, timeout=10)

    def a(ctx):
        ctx.base = 10
        return Split([Branch("left", number=1), Branch("right", number=2)], to="c")

    def side(ctx):
        together.wait()
        setattr(ctx, ctx.state, ctx.base + ctx.number)
        return "c"

    def c(ctx):
        assert {
            "left": {"state": "completed", "error": ""},
            "right": {"state": "completed", "error": ""},
        } == ctx.branches
        assert "number" not in ctx
        return "end"

    machine = machine_of({"a": a, "left": side, "right": side, "c": c})
    go(machine)
    assert {"base": 10, "left": 11, "right": 12} == machine.results(store=store)


def test_a_branch_may_go_through_several_states(go, store):
    """A branch goes on until it reaches the state after the join, or its task returns None."""
    tasks = {
        "a": lambda ctx: Split(["b1", "c1"], to="d"),
        "b1": lambda ctx: "b2",
        "b2": lambda ctx: "d",
        "c1": (lambda ctx: None, {"to": "d"}),
        "d": lambda ctx: "end",
    }
    assert "end" == go(machine_of(tasks))
    assert {"b1 completed", "b2 completed", "c1 completed"} < set(states(store))


def test_a_quorum_goes_on_without_the_branches_that_failed(go, store):
    """Two of three suffice; how the third ended is told and recorded."""
    told = {}

    def join(ctx):
        told.update(ctx.branches)
        return "end"

    def bad(ctx):
        raise ValueError("no data")

    def good(ctx):
        while ctx.state == "z" and "y failed" not in states(store):
            time.sleep(0.05)  # and a little longer, until the join was told
        return "join"

    tasks = {
        "a": lambda ctx: Split(["x", "y", "z"], join=Join.quorum(2), to="join"),
        "x": good,
        "y": (bad, {"to": "join"}),
        "z": good,
        "join": join,
    }
    assert "end" == go(machine_of(tasks))
    assert {"state": "failed", "error": "ValueError: no data"} == told["y"]
    assert "y failed" in states(store)


@pytest.mark.skipif(modes.current() == "one-worker", reason="one branch waits for the other to begin")
def test_a_join_that_is_decided_cancels_the_rest(go, store):
    """The first success of any ends the others: recorded as cancelled, stopped at their next step, not waited for."""
    stopped = threading.Event()
    slow_began = threading.Event()

    @nbflow.durable(version="1")
    def tick(number):
        return number

    def quick(ctx):
        assert slow_began.wait(10)
        return "join"

    def slow(ctx):
        slow_began.set()
        try:
            for number in range(100_000):
                tick(number)
                stopped.wait(0.01)
        except RunCancelled as error:
            assert "failed sibling" == error.reason
            stopped.set()
            raise
        return "join"

    def join(ctx):
        assert stopped.wait(10)
        return "end"

    tasks = {
        "a": lambda ctx: Split(["quick", "slow"], join=Join.any(), to="join"),
        "quick": quick,
        "slow": slow,
        "join": join,
    }
    assert "end" == go(machine_of(tasks))
    assert "slow cancelled" in states(store)
    assert "completed" == store.run(newest(store)).state


def test_a_join_that_can_no_longer_succeed_names_what_failed(go, store):
    """JoinFailed says how many were needed and carries the errors of the branches."""

    def bad(ctx):
        raise ValueError(ctx.state)

    tasks = {
        "a": lambda ctx: Split(["x", "y"], to="b"),
        "x": (bad, {"to": "b"}),
        "y": (bad, {"to": "b"}),
        "b": lambda ctx: "end",
    }
    with pytest.raises(JoinFailed, match="needs 2 of 2") as caught:
        go(machine_of(tasks))
    assert set(caught.value.failures) <= {"x", "y"}
    assert "line" == caught.value.machine
    assert "failed" == store.run(newest(store)).state


def test_a_resume_repeats_no_branch_that_was_completed(go, store):
    """After the process ended inside a split, only the branches that were not completed run."""
    ran, broken = [], [True]

    def side(ctx):
        ran.append(ctx.state)
        setattr(ctx, ctx.state, ctx.state * 2)
        return "join"

    def late(ctx):
        ran.append("late")
        if broken:
            while states(store).count("x completed") + states(store).count("y completed") < 2:
                pass
            broken.pop()
            raise Power
        return "join"

    tasks = {
        "a": lambda ctx: Split(["x", "y", "late"], to="join"),
        "x": side,
        "y": side,
        "late": late,
        "join": lambda ctx: "end",
    }
    machine = machine_of(tasks)
    with pytest.raises(Power):
        go(machine)
    assert "end" == go(machine, run=newest(store))
    assert ["late", "late", "x", "y"] == sorted(ran)
    assert {"x": "xx", "y": "yy"} == machine.results(store=store)


def test_a_partial_join_takes_what_is_there_when_its_time_is_over(go, store):
    """`partial(within=)` goes on with the branches that ended in time."""
    release = threading.Event()

    def slow(ctx):
        release.wait(10)
        return "join"

    def join(ctx):
        assert "completed" == ctx.branches["quick"]["state"]
        assert "cancelled" == ctx.branches["slow"]["state"]
        release.set()
        return "end"

    tasks = {
        "a": lambda ctx: Split(["quick", "slow"], join=Join.partial(1, within="200ms"), to="join"),
        "quick": lambda ctx: "join",
        "slow": slow,
        "join": join,
    }
    assert "end" == go(machine_of(tasks))


def test_splits_nest(go, store):
    """A branch may split again; keys stay apart and data comes up through both joins."""

    def leaf(ctx):
        ctx.values[ctx.state] = True  # the ctx's own view of all data
        return "inner_end"

    tasks = {
        "a": lambda ctx: Split(["b", "c"], to="d"),
        "b": lambda ctx: Split(["b1", "b2"], to="inner_end"),
        "b1": leaf,
        "b2": leaf,
        "inner_end": lambda ctx: "d",
        "c": lambda ctx: "d",
        "d": lambda ctx: "end",
    }
    machine = machine_of(tasks)
    assert "end" == go(machine)
    assert {"b1": True, "b2": True} == machine.results(store=store)


# --- resume -------------------------------------------------------------------------------------------------------


def test_a_resume_enters_the_last_state_again_and_no_earlier_one(go, store):
    """After the process ended in b, a is not run again, and b finds a's data as it was."""
    ran, broken = [], [True]

    def a(ctx):
        ran.append("a")
        ctx.table = {"x": 1}
        return "b"

    def b(ctx):
        ran.append("b")
        ctx.table["x"] += 1
        if broken:
            broken.pop()
            raise Power
        return "end"

    machine = machine_of({"a": a, "b": b})
    with pytest.raises(Power):
        go(machine)
    assert "end" == go(machine, run=newest(store))
    assert ["a", "b", "b"] == ran
    assert {"table": {"x": 2}} == machine.results(store=store)


def test_run_carries_the_unfinished_run_of_equal_parameters_on(go, store):
    """`run` with the same parameters resumes a failed run; with others it starts a new one."""
    broken = [True]

    def a(ctx):
        if ctx.day == 1 and broken:
            broken.pop()
            raise OSError
        return "end"

    machine = machine_of({"a": a})
    with pytest.raises(OSError):
        go(machine, day=1)
    failed = newest(store)
    go(machine, day=2)
    go(machine, day=1)
    assert "completed" == store.run(failed).state
    assert 2 == len(store.runs())
    go(machine, day=1)
    assert 3 == len(store.runs())


def test_a_completed_run_returns_its_final_state_and_runs_nothing(go, store):
    """Resuming what is completed gives the end back; history stays."""
    ran = []
    machine = machine_of({"a": lambda ctx: ran.append(1) or "end"})
    go(machine)
    before = store.entries(newest(store))
    assert "end" == go(machine, run=newest(store))
    assert [1] == ran
    assert before == store.entries(newest(store))


def test_errors_of_a_resume_are_told_apart(go, store):
    """Unknown run, foreign run, cancelled run and unknown state label are errors of their own; none runs a task."""
    ran = []

    def a(ctx):
        ran.append(1)
        raise Power

    machine = machine_of({"a": (a, {"to": "end"})})
    with pytest.raises(UnknownRun):
        go(machine, run="0000-none")
    with pytest.raises(Power):
        go(machine)
    run = newest(store)
    renamed = machine_of({"z": lambda ctx: ran.append(2) or "end"})
    with pytest.raises(UnknownState, match="'a'") as caught:
        go(renamed, run=run)
    assert ("line", "a") == (caught.value.machine, caught.value.state)
    assert "failed" == store.run(run).state  # which can be resumed
    with pytest.raises(UsageError, match="not of machine other"):
        go(machine_of({"a": (a, {"to": "end"})}, name="other"), run=run)
    nbflow.cancel(run, "enough", store=store)
    with pytest.raises(RunFinished, match="cancelled"):
        go(machine, run=run)
    assert [1] == ran


def test_another_version_is_refused_before_anything_runs(go, store):
    """VersionMismatch names both versions; the run is untouched, and its own version still resumes it."""
    ran, broken = [], [True]

    def a(ctx):
        ran.append("a")
        if broken:
            broken.pop()
            raise Power
        return "end"

    with pytest.raises(Power):
        go(machine_of({"a": a}, version=1))
    run, before = newest(store), store.entries(newest(store))
    for attempt in (lambda m: go(m, run=run), lambda m: go(m)):
        with pytest.raises(VersionMismatch) as caught:
            attempt(machine_of({"a": a}, version=2))
        assert ("1", "2") == (caught.value.stored, caught.value.expected)
    assert before == store.entries(run)
    assert "end" == go(machine_of({"a": a}, version=1), run=run)
    assert ["a", "a"] == ran


def test_migrations_bring_a_run_to_the_new_version(go, store):
    """Registered migrations run in turn, once, may change data and place, and are recorded."""
    migrated, broken = [], [True, True]

    def a(ctx):
        ctx.rows = [1]
        return "b"

    def b(ctx):
        if broken:
            broken.pop()
            raise Power
        return "end"

    with pytest.raises(Power):
        go(machine_of({"a": a, "b": b}, version=1))
    run = newest(store)
    third = machine_of({"a": a, "c": lambda ctx: "b", "b": b}, version=3)
    third._tasks[0]._to = ["b", "c"]

    @third.migration(1, to=2)
    def two(state, data):
        migrated.append((2, state))
        data["rows"].append(2)

    @third.migration(2)
    def three(state, data):
        migrated.append((3, state))
        return "c"

    with pytest.raises(Power):
        go(third, run=run)
    assert "end" == go(third, run=run)
    assert [(2, "b"), (3, "b")] == migrated
    assert {"rows": [1, 2]} == third.results(store=store)
    assert "c completed" in states(store)


def test_a_living_owner_keeps_its_run(store):
    """A second run of equal parameters at the same time is refused with the owner's name."""
    inside, release = threading.Event(), threading.Event()

    def a(ctx):
        inside.set()
        assert release.wait(10)
        return "end"

    machine = machine_of({"a": a})
    thread = threading.Thread(target=lambda: machine.run(store=store))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(LeaseHeld):
        machine.run(store=store)
    release.set()
    thread.join()


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_task_that_returns_no_state_is_an_error_that_names_everything(go, store):
    """Unknown states and outcomes of the wrong kind name machine, state and run."""
    for outcome in ("nowhere", None, 7, Continue(1), Again()):
        machine = machine_of({"a": (lambda ctx, outcome=outcome: outcome, {})})
        with pytest.raises((UnknownState, InvalidOutcome)) as caught:
            go(machine)
        run = newest(store)
        assert "line" in str(caught.value)
        assert run in str(caught.value)
        assert "state a" in str(caught.value).lower()
        nbflow.cancel(run, store=store)


def test_a_cursor_that_cannot_be_stored_is_named(go, store):
    """CannotStore says machine, state and run; the cursors before it count."""

    def a(ctx, cursor):
        return Continue(1) if cursor is None else Continue(threading.Lock())

    with pytest.raises(CannotStore, match=r"machine line, state a, run") as caught:
        go(machine_of({"a": (a, {"kind": "stepped", "to": "end"})}))
    assert ("line", "a", newest(store)) == (caught.value.machine, caught.value.state, caught.value.run)
    assert 0 == History.of(store.entries(newest(store))).cursors["a#0"].number


def test_a_definition_is_checked_before_anything_runs(store):
    """All problems come in one error, and no run was created."""
    machine = Machine("bad", ["a", "b", "end"], initial="a", final={"end"})
    machine.state("a", to="nowhere")(lambda ctx: "nowhere")
    with pytest.raises(InvalidMachine) as caught:
        machine.run(store=store)
    assert len(caught.value.problems) >= 2
    assert [] == store.runs()


def test_options_that_make_no_sense_are_refused_where_they_are_written():
    """Names, durations, counts and shares are checked at once."""
    with pytest.raises(UsageError):
        Machine("", ["a"], initial="a", final={"a"})
    for bad in (-1, math.nan, math.inf, 0):
        with pytest.raises(UsageError):
            Machine("m", ["a"], initial="a", final={"a"}, timeout=bad)
    with pytest.raises(UsageError):
        Machine("m", ["a"], initial="a", final={"a"}, compensation_share=1)
    machine = Machine("m", ["a", "b"], initial="a", final={"b"})
    for options in (
        {"retries": -1},
        {"timeout": 0},
        {"kind": "guess"},
        {"every": -1},
        {"count": 0},
        {"delay": math.nan},
    ):
        with pytest.raises(UsageError):
            machine.state("a", **options)
    with pytest.raises(UnknownState):
        machine.state("c")


def test_names_that_belong_to_nbflow_cannot_be_data(store):
    """Setting ctx.state or ctx.cursor is a clear error and not a silent loss."""
    for name in ("params", "state", "cursor", "branches", "return"):
        machine = machine_of({"a": lambda ctx, name=name: setattr(ctx, name, 1) or "end"})
        with pytest.raises(UsageError, match=name):
            machine.run(store=store)
        nbflow.cancel(newest(store), store=store)


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_state_that_takes_too_long_times_out(store):
    """A state's timeout ends its task and is recorded."""
    machine = machine_of({"a": (lambda ctx: threading.Event().wait(10), {"timeout": "50ms", "to": "end"})})
    with pytest.raises(StepTimeout):
        machine.run(store=store)
    assert ["a timed_out"] == states(store)


def test_a_run_that_takes_too_long_is_cancelled_and_undone_in_its_share_of_time(store):
    """The total timeout stops the work early enough to undo what was done; the reason is timeout."""
    undone = []

    def slow(ctx):
        threading.Event().wait(10)
        return "end"

    tasks = {"a": (lambda ctx: "b", {"compensate": lambda ctx: undone.append(ctx.state)}), "b": slow}
    machine = machine_of(tasks, timeout=0.4, compensation_share=0.5)
    with pytest.raises(RunCancelled) as caught:
        machine.run(store=store)
    assert "timeout" == caught.value.reason
    info = store.run(newest(store))
    assert ("cancelled", ["a"]) == (info.state, undone)
    entries = store.entries(info.run)
    assert entries[0].record.deadline == pytest.approx(entries[0].at + 0.2, abs=0.05)


# --- undoing ------------------------------------------------------------------------------------------------------


def test_a_failure_undoes_the_completed_states_in_reverse(go, store):
    """Each undo sees the data as its state had left it; the original error is raised, and a resume starts over."""
    undone, broken = [], [True]

    def add(ctx):
        ctx.rows = [*ctx.get("rows", []), ctx.state]
        return {"a": "b", "b": "c"}[ctx.state]

    def undo(ctx):
        undone.append((ctx.state, list(ctx.rows)))

    def c(ctx):
        if broken:
            broken.pop()
            raise ValueError("no")
        return "end"

    tasks = {"a": (add, {"compensate": undo, "to": "b"}), "b": (add, {"compensate": undo, "to": "c"}), "c": c}
    machine = machine_of(tasks)
    with pytest.raises(ValueError, match="no"):
        go(machine)
    assert [("b", ["a", "b"]), ("a", ["a"])] == undone
    assert "failed" == store.run(newest(store)).state
    assert "end" == go(machine, run=newest(store))
    assert {"rows": ["a", "b"]} == machine.results(store=store)


def test_a_compensator_that_is_gone_is_an_error_with_the_output(go, store):
    """The new code lacks the undo of a: what a had recorded is in the error, and b is undone all the same."""
    undone = []

    def fail(ctx):
        raise Power

    def make(**a_options):
        return machine_of(
            {
                "a": (lambda ctx: setattr(ctx, "receipt", 17) or "b", {"to": "b", **a_options}),
                "b": (lambda ctx: "c", {"compensate": lambda ctx: undone.append("b")}),
                "c": (fail, {"to": "end"}),
            }
        )

    with pytest.raises(Power):
        go(make(compensate=lambda ctx: undone.append("a")))
    run = newest(store)
    broken = make()
    broken._tasks[2].handler = lambda ctx: 1 / 0
    with pytest.raises(nbflow.errors.CompensationFailed) as caught:
        go(broken, run=run)
    assert ["b"] == undone
    assert isinstance(caught.value.original, ZeroDivisionError)
    (failure,) = caught.value.failures.values()
    assert 17 == failure.output["receipt"]


# --- inside another run -------------------------------------------------------------------------------------------


def test_inside_a_run_a_machine_is_its_child(store):
    """`machine.run()` in another run is a child of it, run once however often the parent is resumed."""
    ran = []
    machine = machine_of({"a": lambda ctx: ran.append(ctx.n) or "end"})
    with pytest.raises(Power), nbflow.run("outer", store=store):
        assert "end" == machine.run(n=1)
        raise Power
    with nbflow.run("outer", store=store) as outer:
        assert "end" == machine.run(n=1)
        parent = outer.id
    assert [1] == ran
    (child,) = [info for info in store.runs() if info.workflow == "line"]
    assert (parent, "completed", "machine") == (child.parent, child.state, child.workflow_kind)
    with nbflow.run("other", store=store), pytest.raises(UsageError, match="child"):
        machine.run(new=True)


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_machine_draws_itself():
    """The diagram is Mermaid and shows states, arrows, beginning and end."""
    machine = machine_of({"a": (lambda ctx: "b", {"to": "b"}), "b": (lambda ctx: "end", {"to": "end"})})
    text = machine.diagram()
    assert text.startswith("stateDiagram-v2")
    for row in ("[*] --> s0", "s0 --> s1", "s1 --> s2", "s2 --> [*]"):
        assert f"    {row}" in text
    assert text == machine.to_mermaid()
    shown = machine._repr_mimebundle_()
    assert shown["text/plain"] == repr(machine)
    assert "<svg" in shown["text/html"]
    assert "line" in repr(machine)


def test_after_a_rollback_a_stepped_state_begins_anew(go, store):
    """The cursors of a try that was undone are not continued."""
    seen, broken = [], [True]

    def train(ctx, cursor):
        seen.append(cursor)
        if cursor == 1 and broken:
            broken.pop()
            raise ValueError
        return Continue((cursor or 0) + 1) if (cursor or 0) < 2 else "end"

    tasks = {
        "a": (lambda ctx: "train", {"compensate": lambda ctx: None}),
        "train": (train, {"kind": "stepped", "to": "end"}),
    }
    machine = machine_of(tasks)
    with pytest.raises(ValueError):
        go(machine)
    go(machine, run=newest(store))
    assert [None, 1, None, 1, 2] == seen


def test_running_a_machine_does_not_change_what_it_is(store):
    """Its fingerprint, which decides whether a durable cell that uses it runs again, is that of its definition."""
    machine = machine_of({"a": lambda ctx: "end"})
    before = fingerprint(machine)
    machine.run(store=store)
    assert before == fingerprint(machine)
    assert before == fingerprint(cloudpickle.loads(cloudpickle.dumps(machine)))
    assert before != fingerprint(machine_of({"a": lambda ctx: ctx.x or "end"}))


def test_a_state_that_is_to_run_again_takes_the_machine_back_to_it(go, store):
    """`retry_step` on a state that was left: the run goes on from there, with the data from before it."""
    ran, broken = [], [True]

    def a(ctx):
        ctx.x = [0]
        return "b"

    def b(ctx):
        ran.append(("b", list(ctx.x)))
        ctx.x.append(len(ran))
        return "c"

    def c(ctx):
        ran.append(("c", list(ctx.x)))
        if broken:
            broken.pop()
            raise OSError
        return "end"

    machine = machine_of({"a": a, "b": b, "c": c})
    with pytest.raises(OSError):
        go(machine)
    nbflow.retry_step(newest(store), "b#0", "wrong settings", store=store)
    assert "end" == go(machine, run=newest(store))
    assert [("b", [0]), ("c", [0, 1]), ("b", [0]), ("c", [0, 3])] == ran
    assert {"x": [0, 3]} == machine.results(store=store)


def test_a_branch_that_is_to_run_again_leaves_its_siblings_alone(go, store):
    """`retry_step` on a branch's state runs that branch and the join again, and no branch that is done."""
    ran, broken = [], [True]

    def side(ctx):
        ran.append(ctx.state)
        setattr(ctx, ctx.state, len(ran))
        return "join"

    def join(ctx):
        if broken:
            broken.pop()
            raise OSError
        return "end"

    tasks = {"a": lambda ctx: Split(["x", "y"], to="join"), "x": side, "y": side, "join": join}
    machine = machine_of(tasks)
    with pytest.raises(OSError):
        go(machine)
    nbflow.retry_step(newest(store), "x + y#0/x/x#0", store=store)
    assert "end" == go(machine, run=newest(store))
    assert ["x", "x", "y"] == sorted(ran)
    assert 3 == machine.results(store=store)["x"]


def test_an_edited_machine_runs_again_inside_a_run_and_its_version_stands_for_its_code(store):
    """A completed child is replayed as long as its code, or else the version it declares, is the same."""
    ran = []

    def first(ctx):
        ran.append(1)
        return "end"

    def second(ctx):
        ran.append(2)
        return "end"

    def replay(task, **options):
        with pytest.raises(Power), nbflow.run("outer", store=store):
            machine_of({"a": (task, {"to": "end"})}, **options).run()
            raise Power

    for task in (first, first, second, second):
        replay(task)
    assert [1, 2] == ran
    replay(first, name="declared", version=1)
    replay(second, name="declared", version=1)
    replay(second, name="declared", version=2)
    assert [1, 2, 1, 2] == ran
    assert 4 == sum(info.parent is not None for info in store.runs())


def test_a_state_of_another_kind_begins_anew(go, store):
    """After an edit that changes a state's kind, the old kind's cursor or due time is not misread."""

    def stop(ctx, *_cursor):
        raise Power

    def count(ctx, cursor):
        return Continue(1) if cursor is None else stop(ctx)

    for before, after in (("stepped", "poll"), ("plain", "timer"), ("poll", "stepped")):
        first = {"stepped": count, "plain": stop, "poll": iter_poll([Again(), Power()])}[before]
        options = {"kind": before, "to": "end", **({"every": 0} if before == "poll" else {})}
        with pytest.raises(Power):
            go(machine_of({"a": (first, options)}, name=before))
        more = {"timer": {"after": 0}, "poll": {}, "stepped": {}}[after]
        changed = machine_of(
            {"a": (lambda ctx, *_: "end", {"kind": after, "to": "end", **more})}, name=before
        )
        assert "end" == go(changed, run=newest(store))


def iter_poll(script):
    """Return a poll's task that goes through a script."""
    left = list(script)

    def look(ctx):
        found = left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    return look


def test_a_router_that_names_no_state_says_where(go, store):
    """Also a kind that records nothing names machine, state and run."""
    for outcome in ("nowhere", None, Split(["a"], to="end")):
        machine = machine_of({"a": (lambda ctx, outcome=outcome: outcome, {"kind": "router", "to": "end"})})
        with pytest.raises((UnknownState, InvalidOutcome)) as caught:
            go(machine)
        assert ("line", newest(store)) == (caught.value.machine, caught.value.run)
        assert newest(store) in str(caught.value)
        nbflow.cancel(newest(store), store=store)
