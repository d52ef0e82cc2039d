"""Compensation: a failed run undoes what it did, in reverse, through crashes and failing compensators."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core import saga as core
from nbflow.core.errors import CompensationFailed, LeaseLost, RunCancelled, StepError, StoreFull, UsageError
from nbflow.core.history import History
from nbflow.core.model import StepCompleted, StepForgotten
from nbflow.core.saga import Progress
from nbflow.runtime import saga
from nbflow.testing import FaultyStore, MemoryStore
from tests.e2e.kit import history as stored_history

SCRIPT = Path(__file__).with_name("undoing.py")


class Killed(BaseException):
    """Stands for the death of the process: no nbflow code treats it as a failure."""


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a program of its own: what another defined is not found."""
    monkeypatch.setattr(saga, "_registry", {})


class World:
    """What the steps of a test did and undid, in order; `broken` names whose undo fails."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken: set[str] = set()

    def define(self) -> Any:
        """Define the durable function, as a new process would."""

        def undo(result: int, name: str) -> None:
            self.log.append(f"undo {name}")
            if name in self.broken:
                raise ConnectionError(f"cannot undo {name}")
            assert result == len(name)

        @nbflow.durable(name="make", version="1", compensate=undo)
        def make(name: str) -> int:
            self.log.append(name)
            return len(name)

        return make

    def undone(self) -> list[str]:
        """Return what was undone, in order."""
        return [entry.removeprefix("undo ") for entry in self.log if entry.startswith("undo ")]


@pytest.fixture
def world() -> World:
    """A world in which nothing has happened."""
    return World()


def only(store: Any) -> History:
    """Return the history of the store's only run."""
    (info,) = store.runs()
    return History.of(store.entries(info.run))


NAMES = ("a", "bb", "ccc", "dddd")


@pytest.mark.parametrize("k", range(len(NAMES) + 1))
def test_a_failure_at_k_undoes_exactly_the_completed_prefix_in_reverse(
    store: MemoryStore, world: World, k: int
) -> None:
    """k-1, …, 0 and nothing else; the original error comes out unchanged and fails the run."""
    make = world.define()
    error = LookupError("at k")
    with pytest.raises(LookupError) as caught, nbflow.run("w", store=store):
        for place, name in enumerate(NAMES):
            if place == k:
                raise error
            make(name)
        raise error

    assert error is caught.value
    assert list(reversed(NAMES[:k])) == world.undone()
    assert "failed" == store.runs()[0].state
    assert [] == core.compensatable(only(store))


def test_undone_steps_run_again_when_the_run_is_carried_on(store: MemoryStore, world: World) -> None:
    """And are undone again if it fails again; a completed run undoes nothing."""
    make = world.define()
    for _ in range(2):
        with pytest.raises(LookupError), nbflow.run("w", store=store):
            make("a")
            raise LookupError
    with nbflow.run("w", store=store) as run:
        make("a")

    assert 3 == run.attempt
    assert ["a", "undo a", "a", "undo a", "a"] == world.log


def test_a_step_around_an_undone_call_runs_again_as_well(store: MemoryStore, world: World) -> None:
    """Its checkpoint stands for effects that are gone."""
    make = world.define()
    outers: list[int] = []

    @nbflow.durable(version="1")
    def outer() -> int:
        outers.append(1)
        return int(make("a"))

    with pytest.raises(LookupError), nbflow.run("w", store=store):
        outer()
        raise LookupError
    with nbflow.run("w", store=store):
        assert 1 == outer()

    assert ["a", "undo a", "a"] == world.log
    assert 2 == len(outers)


def test_nested_compensatable_calls_are_both_undone_the_outer_first(store: MemoryStore) -> None:
    """It completed last. An outer call that failed is not undone, what it had done inside is."""
    log: list[str] = []

    @nbflow.durable(compensate=lambda _result: log.append("undo inner"))
    def inner() -> None:
        log.append("inner")

    @nbflow.durable(compensate=lambda _result, fail: log.append(f"undo outer {fail}"))
    def outer(fail: bool) -> None:
        inner()
        if fail:
            raise LookupError

    with pytest.raises(LookupError), nbflow.run("w", store=store):
        outer(False)
        outer(True)

    assert ["inner", "inner", "undo inner", "undo outer False", "undo inner"] == log


def test_a_cancelled_run_is_undone_and_cancelled(store: MemoryStore, world: World) -> None:
    """Cancel keeps new steps from starting, not those that put things right."""
    make = world.define()
    with pytest.raises(RunCancelled), nbflow.run("w", store=store):
        make("a")
        raise RunCancelled("stop", reason="user")

    assert ["a", "undo a"] == world.log
    assert "cancelled" == store.runs()[0].state


def test_an_interrupt_undoes_nothing(store: MemoryStore, world: World) -> None:
    """The run stays resumable, and its steps replay."""
    make = world.define()
    with pytest.raises(KeyboardInterrupt), nbflow.run("w", store=store):
        make("a")
        raise KeyboardInterrupt
    with nbflow.run("w", store=store):
        make("a")

    assert ["a"] == world.log


# --- compensators that fail ---------------------------------------------------------------------------------------


def test_failing_undos_stop_nothing_and_are_collected(store: MemoryStore, world: World) -> None:
    """The error names each, holds the original, and has it as its cause."""
    make = world.define()
    world.broken = {"a", "ccc"}
    error = LookupError("the original")
    with pytest.raises(CompensationFailed) as caught, nbflow.run("w", store=store):
        for name in NAMES:
            make(name)
        raise error

    assert list(reversed(NAMES)) == world.undone()
    assert error is caught.value.original is caught.value.__cause__
    assert ["cannot undo ccc", "cannot undo a"] == [str(e) for e in caught.value.failures.values()]
    assert all(step.startswith("make:") for step in caught.value.failures)
    assert "failed" == store.runs()[0].state


def test_what_could_not_be_undone_is_tried_again_before_the_run_goes_on(
    store: MemoryStore, world: World
) -> None:
    """Only that; and as long as it fails, nothing of the run is done."""
    make = world.define()
    world.broken = {"bb"}
    with pytest.raises(CompensationFailed), nbflow.run("w", store=store):
        for name in NAMES:
            make(name)
        raise LookupError
    for _ in range(2):
        world.log.clear()
        with pytest.raises(CompensationFailed), nbflow.run("w", store=store):
            raise AssertionError("never here")
        assert ["undo bb"] == world.log
    world.broken.clear()
    world.log.clear()
    with nbflow.run("w", store=store):
        make("a")
        make("bb")

    assert ["undo bb", "a", "bb"] == world.log


def test_an_undo_is_retried_as_its_function_is(store: MemoryStore) -> None:
    """A compensator that works at its third try has worked."""
    tries: list[int] = []

    def undo(_result: None) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError

    @nbflow.durable(retries=2, delay=0, compensate=undo)
    def make() -> None:
        pass

    with pytest.raises(LookupError), nbflow.run("w", store=store):
        make()
        raise LookupError

    assert 3 == len(tries)


def test_a_missing_compensator_is_an_error_with_the_recorded_output(store: MemoryStore, world: World) -> None:
    """The others are undone all the same, and when it is back it is tried again."""
    make = world.define()

    @nbflow.durable(version="1", compensate=lambda result: world.log.append(f"undo order {result}"))
    def order() -> dict[str, int]:
        return {"number": 17}

    with pytest.raises(Killed), nbflow.run("w", store=store):
        make("a")
        order()
        make("bb")
        raise Killed
    saga._registry.clear()
    world.log.clear()
    world.define()
    with pytest.raises(CompensationFailed) as caught, nbflow.run("w", store=store):
        raise LookupError
    (step,), (problem,) = caught.value.failures.keys(), caught.value.failures.values()

    assert isinstance(problem, StepError)
    assert {"number": 17} == problem.output  # type: ignore[attr-defined]
    assert problem.step == step
    assert "order" in str(problem)
    assert ["undo bb", "undo a"] == world.log


def test_functions_of_one_name_in_two_modules_are_told_apart(store: MemoryStore) -> None:
    """A call is undone by the compensator of its own function."""
    log: list[str] = []

    def define(module: str) -> Any:
        def make() -> str:
            return module

        make.__module__, make.__qualname__ = module, "make"
        return nbflow.durable(version=module, compensate=lambda result: log.append(f"{module} {result}"))(
            make
        )

    first, second = define("orders"), define("users")
    with pytest.raises(LookupError), nbflow.run("w", store=store):
        first()
        second()
        raise LookupError

    assert ["users users", "orders orders"] == log


def test_a_compensator_defined_again_replaces_the_old_one(store: MemoryStore) -> None:
    """As a mended cell does in a notebook."""
    log: list[str] = []

    def define(undo: str) -> Any:
        @nbflow.durable(name="make", version="1", compensate=lambda _result: log.append(undo))
        def make() -> None:
            pass

        return make

    with pytest.raises(LookupError), nbflow.run("w", store=store):
        define("old")()
        define("new")
        raise LookupError

    assert ["new"] == log


# --- by hand, and async -------------------------------------------------------------------------------------------


def test_rollback_by_hand_undoes_everything_and_the_run_goes_on(store: MemoryStore, world: World) -> None:
    """It returns what it undid, in order; a second one finds nothing."""
    make = world.define()
    with nbflow.run("w", store=store):
        for name in NAMES[:2]:
            make(name)
        undone = nbflow.rollback("changed my mind")
        assert [] == nbflow.rollback()
        make("ccc")

    history = only(store)
    assert ["a", "bb", "undo bb", "undo a", "ccc"] == world.log
    assert [True, True] == [step.startswith("make:") for step in undone]
    assert "changed my mind" == history.by_step["rollback#0"][0].started.detail[core.REASON]
    assert "completed" == history.state


async def _delete(log: list[str], result: str) -> None:
    await asyncio.sleep(0)
    log.append(f"undo {result}")


@pytest.mark.parametrize("in_loop", [False, True])
def test_async_compensators_work_with_and_without_a_running_loop(store: MemoryStore, in_loop: bool) -> None:
    """From sync code in a loop they run in another one; they know their run, so durable calls in them are recorded."""
    log: list[str] = []

    @nbflow.durable(version="1")
    async def note(result: str) -> None:
        await _delete(log, result)

    @nbflow.durable(version="1", compensate=lambda result, _name: note(result))
    async def make(name: str) -> str:
        await asyncio.sleep(0)
        return name.upper()

    async def body() -> None:
        for name in ("a", "b"):
            await make(name)

    async def whole() -> None:
        with nbflow.run("w", store=store):
            await body()
            raise LookupError

    with pytest.raises(LookupError):
        if in_loop:
            asyncio.run(whole())
        else:
            with nbflow.run("w", store=store):
                asyncio.run(body())
                raise LookupError

    assert ["undo B", "undo A"] == log
    recorded = [
        e for e in only(store).executions.values() if e.started.name == note.step_name and e.completed
    ]
    assert 2 == len(recorded)


def test_durable_calls_of_a_compensator_replay_when_it_is_tried_again(store: MemoryStore) -> None:
    """A compensator of two steps does the first once, though the second fails; and they are not undone themselves."""
    log: list[str] = []

    @nbflow.durable(version="1", compensate=lambda *_: log.append("never"))
    def first() -> None:
        log.append("first")

    @nbflow.durable(version="1")
    def second() -> None:
        log.append("second")
        if log.count("second") == 1:
            raise ConnectionError

    def undo(_result: None) -> None:
        first()
        second()

    @nbflow.durable(version="1", compensate=undo)
    def make() -> None:
        pass

    with pytest.raises(CompensationFailed), nbflow.run("w", store=store):
        make()
        raise LookupError
    with nbflow.run("w", store=store):
        pass

    assert ["first", "second", "second"] == log


@pytest.mark.parametrize("bad", [1, "undo", []])
def test_a_compensator_that_is_no_function_is_refused(bad: Any) -> None:
    """When it is defined, not when it is needed."""
    with pytest.raises(UsageError, match="compensate"):
        nbflow.durable(compensate=bad)


# --- crashes ------------------------------------------------------------------------------------------------------


def test_an_undo_and_the_word_that_its_step_runs_again_are_one_append(
    store: MemoryStore, world: World
) -> None:
    """No crash can come between them: the records are neighbours in the journal."""
    make = world.define()
    with pytest.raises(LookupError), nbflow.run("w", store=store):
        make("a")
        raise LookupError
    records = [entry.record for entry in store.entries(store.runs()[0].run)]
    place = next(
        n for n, r in enumerate(records) if isinstance(r, StepCompleted) and r.step.startswith("undo/")
    )

    following = records[place + 1]
    assert isinstance(following, StepForgotten)
    assert (True, "undone") == (following.step.startswith("make:"), following.reason)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 10))
def test_a_failed_append_during_rollback_repeats_nothing_recorded(
    store: MemoryStore, world: World, at: int, when: Any
) -> None:
    """Whether the record was kept or only its acknowledgement lost: the next resume does what is left, once."""
    make = world.define()
    faulty = FaultyStore(store, at=0, when=when)
    with (
        pytest.raises((LookupError, CompensationFailed, StoreFull)) as caught,
        nbflow.run("w", store=faulty),
    ):
        for name in NAMES[:3]:
            make(name)
        faulty.at = faulty.appends + at
        raise LookupError("the original")
    recorded = 3 - len(core.compensatable(only(store)))
    if core.rollback_of(only(store)).progress is Progress.NONE:  # it could not even begin
        assert ("before", 1, []) == (when, at, world.undone())
        assert isinstance(caught.value, CompensationFailed)
        return
    if when == "after" and at in (3, 5, 7):  # the ends of the three undos
        assert isinstance(caught.value, LookupError), "an undo whose record was kept has worked"
    before = world.undone()
    world.log.clear()
    if only(store).state != "failed" or core.rollback_of(only(store)).progress is Progress.INCOMPLETE:
        try:
            with nbflow.run("w", store=store):
                pass
        except LookupError as error:
            assert "the original" == str(error)

    assert 3 - recorded == len(world.undone())
    assert [] == core.compensatable(only(store))
    assert set(NAMES[:3]) == {*before, *world.undone()}


def test_an_interrupted_rollback_is_finished_before_anything_else(store: MemoryStore, world: World) -> None:
    """And the original error comes out, as in an undisturbed run; the body is not entered."""
    make = world.define()
    with pytest.raises(Killed), nbflow.run("w", store=store):
        for name in NAMES:
            make(name)
        try:
            world.define = None  # type: ignore[method-assign, assignment]
            _kill_at(world, "bb")
            raise LookupError("the original")
        except LookupError as error:
            saga.rollback(_session(), error)
    world.log.clear()
    with pytest.raises(LookupError, match="the original"), nbflow.run("w", store=store):
        raise AssertionError("never here")

    assert ["undo bb", "undo a"] == world.log
    assert ("failed", Progress.ENDED) == (
        only(store).state,
        core.rollback_of(only(store)).progress,
    )


def _session() -> Any:
    from nbflow.runtime import active

    return active.required()


def _kill_at(world: World, victim: str) -> None:
    """Have the process die when this is to be undone, the first time."""

    class Trap(list[str]):
        armed = True

        def append(self, entry: str) -> None:
            super().append(entry)
            if self.armed and entry == f"undo {victim}":
                self.armed = False
                raise Killed

    world.log = Trap(world.log)


def test_a_takeover_during_rollback_leaves_the_rest_to_the_new_owner(
    store: MemoryStore, world: World
) -> None:
    """The old owner stops at once with LeaseLost and undoes nothing more."""
    make = world.define()
    taken: list[Any] = []

    @nbflow.durable(version="1", compensate=lambda _result: taken.append(_steal(store)))
    def last() -> None:
        pass

    with pytest.raises(LeaseLost), nbflow.run("w", store=store):
        make("a")
        last()
        raise LookupError

    assert [] == world.undone()
    assert 2 == len(core.compensatable(only(store)))


def _steal(store: MemoryStore) -> Any:
    from nbflow.runtime.session import this_process

    return store.attach(store.runs()[0].run, this_process(), steal=True)


def start(place: Path, effects: Path, number: int, crash: str | None = None) -> list[str] | None:
    """Run the script; return the error it ended with, None when it was killed. `crash` arms it from the start."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(place), str(effects), str(number)],
        env={**os.environ, "NBFLOW_CRASH": crash} if crash else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert 0 == done.returncode, done.stderr
    error: list[str] = json.loads(done.stdout.splitlines()[-1])
    return error


def test_sigkill_at_sampled_points_of_a_rollback_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """What has a recorded undo is not undone again, the rest is, in order; the original error ends the run."""
    _sigkill_at(tmp_path, range(2, 200, 5))


@pytest.mark.soak
def test_sigkill_at_every_point_of_a_rollback_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The same, with no point left out."""
    _sigkill_at(tmp_path, range(1, 200))


def _sigkill_at(tmp_path: Path, numbers: range) -> None:
    original = ["LookupError", "the original"]
    for number in numbers:
        place, effects = tmp_path / f"s{number}", tmp_path / f"effects{number}"
        end = start(place, effects, number)
        before = effects.read_text().split()
        if end is not None:
            assert original == end
            break
        history = stored_history(place)
        left = [str(e.started.detail[core.COMPENSATE]) for e in core.compensatable(history)]
        assert before[:3] == ["do-a", "do-b", "do-c"]
        if history.state == "failed":  # it was over, and the next start would begin again
            assert not left
            continue
        assert original == start(place, effects, 0)
        if (
            core.rollback_of(history).progress is not Progress.NONE
        ):  # else it was killed before the failure was known
            assert ["undo-c", "undo-b", "undo-a"][3 - len(left) :] == effects.read_text().split()[
                len(before) :
            ]
        history = stored_history(place)
        assert ("failed", []) == (history.state, core.compensatable(history))
        undone = [line for line in effects.read_text().split() if line.startswith("undo")]
        assert {"undo-a", "undo-b", "undo-c"} == set(undone)
    else:
        raise AssertionError("the rollback has more crash points than anybody would believe")
    assert number > 10


@pytest.mark.parametrize("second", [3, 9, 14, 20, 26])
def test_a_rollback_that_is_killed_again_and_again_still_ends_well(tmp_path: Path, second: int) -> None:
    """Carrying it on is as safe as the rollback itself."""
    place, effects = tmp_path / "s", tmp_path / "effects"
    assert start(place, effects, 6) is None, "killed early in the rollback"
    recorded = core.compensatable(stored_history(place))
    end = start(place, effects, 0, crash=f"*:{second}")
    while end is None:
        before, left = effects.read_text().split(), core.compensatable(stored_history(place))
        assert len(left) <= len(recorded)
        recorded = left
        if stored_history(place).state == "failed":
            break
        end = start(place, effects, 0)
        assert len(left) == len(effects.read_text().split()) - len(before)
    history = stored_history(place)

    assert end in (None, ["LookupError", "the original"])
    assert ("failed", []) == (history.state, core.compensatable(history))
    assert ["do-a", "do-b", "do-c"] == effects.read_text().split()[:3]
