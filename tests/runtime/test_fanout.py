"""`nbflow.map`: every item is a step, results come in input order, a resume runs only what is not done."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import (
    CannotStore,
    ItemsFailed,
    NoActiveRun,
    RunCancelled,
    StepTimeout,
    StoreFull,
    UsageError,
)
from nbflow.core.history import History
from nbflow.core.model import StepCompleted, StepStarted
from nbflow.core.states import StepState
from nbflow.runtime import active, modes
from nbflow.testing import FaultyStore, MemoryStore

two_at_once = pytest.mark.skipif(modes.current() == "one-worker", reason="needs two workers at once")


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


class Killed(BaseException):
    """What ends a run as a killed process does: it stays as it is, to be carried on."""


def interrupted(store: Any, body: Any) -> None:
    """Run `body` in a run that is then left open."""
    with pytest.raises(Killed), nbflow.run("w", store=store):
        body()
        raise Killed


def history(store: Any) -> History:
    """The history of the store's only run."""
    (run,) = store.runs()
    return History.of(store.entries(run.run))


def items(store: Any) -> list[StepState]:
    """The states of all executions of items, in the journal's order."""
    return [
        execution.state
        for execution in history(store).executions.values()
        if execution.started.step_kind == "item"
    ]


def test_results_come_in_input_order_and_every_item_is_a_step(store: MemoryStore) -> None:
    """Whatever order the items end in; each has its own record, under the run."""
    with nbflow.run("w", store=store):
        results = nbflow.map(lambda n: time.sleep(0.02 / n) or n * n, [1, 2, 3, 4], max_parallel=4)

    assert [1, 4, 9, 16] == results
    assert [StepState.COMPLETED] * 4 == items(store)


def test_many_quick_items_share_their_commits(store: MemoryStore) -> None:
    """A thousand items are far fewer than a thousand appends, and the journal holds every one."""
    counting = FaultyStore(store, at=0)
    with nbflow.run("w", store=counting):
        results = nbflow.map(lambda n: n + 1, range(1000))

    assert list(range(1, 1001)) == results
    assert [StepState.COMPLETED] * 1000 == items(store)
    assert counting.appends < 500


def test_a_resume_runs_only_what_is_not_done(store: MemoryStore) -> None:
    """Completed items come from the journal, in their places; failed ones run again."""
    ran: list[int] = []
    mended = threading.Event()  # no data: it does not change what the function is

    def work(n: int) -> int:
        ran.append(n)
        if n == 3 and not mended.is_set():
            raise ValueError("three")
        return 10 * n

    def first() -> None:
        with pytest.raises(ItemsFailed):
            nbflow.map(work, [1, 2, 3, 4, 5], max_parallel=1)

    interrupted(store, first)
    assert [1, 2, 3] == ran
    ran.clear()
    mended.set()
    with nbflow.run("w", store=store):
        assert [10, 20, 30, 40, 50] == nbflow.map(work, [1, 2, 3, 4, 5])

    assert {3, 4, 5} == set(ran)
    assert 3 == len(ran)


def test_an_edited_list_keeps_the_results_of_the_items_that_stay(store: MemoryStore) -> None:
    """Items are known by their content, and equal ones by their occurrence."""
    ran: list[str] = []

    def work(item: str) -> str:
        ran.append(item)
        return item.upper()

    interrupted(store, lambda: nbflow.map(work, ["a", "b", "c", "b"]))
    assert Counter("abcb") == Counter(ran)
    ran.clear()
    with nbflow.run("w", store=store):
        assert ["B", "X", "A", "B", "B"] == nbflow.map(work, ["b", "x", "a", "b", "b"])

    assert Counter("xb") == Counter(ran)


def test_two_maps_over_equal_items_keep_two_results(store: MemoryStore) -> None:
    """Occurrence numbers go on over the maps of one scope, and replay in the same order."""
    ticks = iter(range(100))

    def tick(_item: int) -> int:
        return next(ticks)

    seen: list[list[int]] = []
    interrupted(store, lambda: seen.extend([nbflow.map(tick, [7]), nbflow.map(tick, [7])]))
    with nbflow.run("w", store=store):
        again = [nbflow.map(tick, [7]), nbflow.map(tick, [7]), nbflow.map(tick, [7])]

    assert [[0], [1]] == seen
    assert [[0], [1], [2]] == again


@two_at_once
def test_halt_starts_nothing_more_and_records_what_runs(store: MemoryStore) -> None:
    """The running neighbour ends and is recorded; the one failure is the cause of the error that names its place."""
    begun = threading.Event()
    ran: list[int] = []

    def work(n: int) -> int:
        ran.append(n)
        if n == 0:
            assert begun.wait(10)
            raise ValueError("zero")
        begun.set()
        time.sleep(0.05)
        return n

    with pytest.raises(ItemsFailed) as caught, nbflow.run("w", store=store):
        nbflow.map(work, range(20), max_parallel=2)

    assert {0} == set(caught.value.failures)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "item 0" in str(caught.value)
    assert {0, 1} == set(ran)
    assert [StepState.COMPLETED, StepState.FAILED] == sorted(items(store))


def test_continue_runs_everything_and_says_what_failed(store: MemoryStore) -> None:
    """A failed place holds a falsy value with the error; dependencies are only an order."""

    def work(n: int) -> int:
        if n % 2:
            raise ValueError(n)
        return n

    with nbflow.run("w", store=store):
        results = nbflow.map(work, [1, 2, 3], on_error="continue", depends_on={1: [0], 2: [1]})

    assert [False, True, False] == [bool(result) for result in results]
    assert 2 == results[1]
    assert isinstance(results[0], nbflow.Failed)
    assert (3,) == results[2].error.args
    assert [StepState.FAILED, StepState.COMPLETED, StepState.FAILED] == items(store)


def test_dependents_of_a_failed_item_are_skipped_and_run_once_it_is_mended(store: MemoryStore) -> None:
    """Skips are transitive, recorded, and name what they wait for; a resume runs failed and skipped ones alone."""
    ran: list[str] = []
    mended = threading.Event()

    def work(item: str) -> str:
        ran.append(item)
        if item == "b" and not mended.is_set():
            raise ValueError(item)
        return item.upper()

    def go() -> list[Any]:
        after = {"b": ["a"], "c": ["b"], "d": ["c", "a"], "e": ["a"]}
        return nbflow.map(work, "edcba", key=lambda item: item, depends_on=after, on_error="skip_dependents")

    seen: list[Any] = []
    interrupted(store, lambda: seen.extend(go()))
    e, d, c, b, a = seen
    assert ("E", "A") == (e, a)
    assert ("b",) == c.because
    assert ("c",) == d.because
    assert isinstance(b, nbflow.Failed)
    assert isinstance(d, nbflow.Skipped)
    assert not d
    skipped = [found for found in history(store).executions.values() if found.state is StepState.SKIPPED]
    assert 2 == len(skipped)
    assert "'b'" in skipped[1].ended.error.message or "'b'" in skipped[0].ended.error.message
    assert "a" == ran[0]
    assert {"a", "b", "e"} == set(ran)

    ran.clear()
    mended.set()
    with nbflow.run("w", store=store):
        assert list("EDCBA") == go()
    assert ["b", "c", "d"] == ran


def test_an_item_starts_after_all_it_depends_on_completed(store: MemoryStore) -> None:
    """With eight threads and quick items too: the journal has their ends before its start."""
    after = {n: [n // 2, n // 3] for n in range(2, 60)}
    with nbflow.run("w", store=store):
        nbflow.map(lambda n: n, range(60), depends_on=after, max_parallel=8)

    found = history(store)
    # Each item has its own value, so its preview tells which it is.
    by_item = {
        int(execution.completed.checkpoint.outputs[0].preview): execution
        for execution in found.executions.values()
    }
    assert 60 == len(by_item)
    for item, needed in after.items():
        for each in needed:
            assert by_item[each].ended_seq < by_item[item].number, (item, each)


def test_nothing_runs_where_dependencies_make_no_sense(store: MemoryStore) -> None:
    """A circle or an unknown key is refused before the first item, by name."""
    ran: list[int] = []
    with nbflow.run("w", store=store):
        with pytest.raises(UsageError, match="0 → 1 → 0"):
            nbflow.map(ran.append, [1, 2], depends_on={0: [1], 1: [0]})
        with pytest.raises(UsageError, match="'x'"):
            nbflow.map(ran.append, [1, 2], depends_on={1: ["x"]})
    assert [] == ran
    assert [] == items(store)


@pytest.mark.parametrize(
    "options",
    [
        {"max_parallel": 0},
        {"max_parallel": 1.5},
        {"max_parallel": True},
        {"on_error": "ignore"},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"delay": "soon"},
        {"executor": "threads"},
        {"executor": object()},
    ],
)
def test_options_that_make_no_sense_are_refused(store: MemoryStore, options: dict[str, Any]) -> None:
    """Before anything runs."""
    ran: list[int] = []
    with nbflow.run("w", store=store), pytest.raises(UsageError):
        nbflow.map(ran.append, [1], **options)
    assert [] == ran


def test_items_must_be_iterable_and_the_function_callable(store: MemoryStore) -> None:
    """Mixed-up arguments are named."""
    with nbflow.run("w", store=store):
        with pytest.raises(UsageError, match="items"):
            nbflow.map(print, 3)
        with pytest.raises(UsageError, match="function"):
            nbflow.map([1, 2], print)


def test_outside_a_run_it_says_so() -> None:
    """Nothing would be recorded."""
    with pytest.raises(NoActiveRun):
        nbflow.map(print, [1])


def test_no_items_are_no_results(store: MemoryStore) -> None:
    """And no records."""
    with nbflow.run("w", store=store):
        assert [] == nbflow.map(print, [])


def test_failed_tries_are_tried_again_and_recorded(store: MemoryStore) -> None:
    """Retries by item; the neighbours run once."""
    tries: Counter[int] = Counter()

    def work(n: int) -> int:
        tries[n] += 1
        if n == 2 and tries[n] < 3:
            raise OSError("again")
        return n

    with nbflow.run("w", store=store):
        assert [0, 1, 2, 3] == nbflow.map(work, range(4), retries=2, delay=0, retry_on=OSError)
    assert Counter({0: 1, 1: 1, 2: 3, 3: 1}) == tries
    assert [1, 1, 1, 3] == sorted(execution.attempt for execution in history(store).executions.values())


def test_an_attempt_takes_no_longer_than_its_timeout(store: MemoryStore) -> None:
    """The item is timed out, the others are not."""
    with pytest.raises(ItemsFailed) as caught, nbflow.run("w", store=store):
        nbflow.map(lambda n: time.sleep(n) or n, [0, 30], timeout=0.1)
    assert isinstance(caught.value.failures[1], StepTimeout)
    assert [StepState.COMPLETED, StepState.TIMED_OUT] == sorted(items(store))


def test_a_result_that_cannot_be_stored_is_that_items_failure(store: MemoryStore) -> None:
    """And names what cannot."""
    with nbflow.run("w", store=store):
        results = nbflow.map(lambda n: threading.Lock() if n else n, [0, 1], on_error="continue")
    assert isinstance(results[1].error, CannotStore)


def test_calling_again_after_a_failure_is_another_try(store: MemoryStore) -> None:
    """In the same process too, completed items are not run again."""
    ran: list[int] = []

    def work(n: int) -> int:
        ran.append(n)
        if n == 1 and ran.count(1) == 1:
            raise ValueError
        return n

    with nbflow.run("w", store=store):
        with pytest.raises(ItemsFailed):
            nbflow.map(work, [0, 1, 2], max_parallel=1)
        assert [0, 1, 2] == nbflow.map(work, [0, 1, 2], max_parallel=1)
    assert [0, 1, 1, 2] == ran


def test_a_slow_item_is_on_record_while_it_runs(store: MemoryStore) -> None:
    """So are the quick ones before it: a kill in the middle of the slow one costs nothing of theirs."""
    seen: list[list[str]] = []

    def work(n: int) -> int:
        if n == 9:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                found = history(store).executions.values()
                states = [str(execution.state) for execution in found]
                if states == ["completed"] * 9 + ["running"]:
                    break
                time.sleep(0.005)
            seen.append(states)
        return n

    with nbflow.run("w", store=store):
        nbflow.map(work, range(10), max_parallel=1)
    assert [["completed"] * 9 + ["running"]] == seen


def test_a_cancelled_run_stops_between_items(store: MemoryStore) -> None:
    """What runs ends and is recorded, what has not started is not."""
    ran: list[int] = []

    def work(n: int) -> int:
        ran.append(n)
        if n == 3:
            run = active.required().run
            nbflow.cancel(run, store=store)
            time.sleep(0.1)
        return n

    with pytest.raises(RunCancelled), nbflow.run("w", store=store):
        nbflow.map(work, range(100), max_parallel=1)
    assert [0, 1, 2, 3] == ran
    assert [StepState.COMPLETED] * 4 == items(store)


def test_an_interrupt_leaves_the_run_to_be_carried_on(store: MemoryStore) -> None:
    """What was done stays done, nothing more starts, the interrupt is raised as it is."""
    ran: list[int] = []

    def work(n: int) -> int:
        ran.append(n)
        if n == 5 and ran.count(5) == 1:
            raise KeyboardInterrupt
        return n

    with pytest.raises(KeyboardInterrupt), nbflow.run("w", store=store):
        nbflow.map(work, range(10), max_parallel=1)
    with nbflow.run("w", store=store) as run:
        assert list(range(10)) == nbflow.map(work, range(10), max_parallel=1)
    assert 2 == run.attempt
    assert [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9] == ran


@pytest.mark.parametrize("at", range(2, 12))
def test_a_lost_acknowledgement_runs_nothing_twice(store: MemoryStore, at: int) -> None:
    """An append that is kept and then fails stops the map; the next try finds what is recorded and runs only the rest."""
    ran: Counter[int] = Counter()
    kept: set[int] = set()
    faulty = FaultyStore(store, at=at, when="after")

    def work(n: int) -> int:
        ran[n] += 1
        time.sleep(0.003 if n % 3 == 0 else 0)
        return n

    with nbflow.run("w", store=faulty):
        try:
            results = nbflow.map(work, range(12), max_parallel=2)
        except (StoreFull, ItemsFailed):
            for execution in history(store).executions.values():
                if execution.completed is not None:
                    kept.add(int(execution.completed.checkpoint.outputs[0].preview))
            results = nbflow.map(work, range(12), max_parallel=2)

    assert list(range(12)) == results
    assert [] == [n for n in kept if ran[n] != 1]
    assert max(ran.values()) <= 2


def test_observers_see_every_item_after_its_commit(store: MemoryStore) -> None:
    """In the journal's order, starts and ends."""
    seen: list[Any] = []
    with nbflow.run("w", store=store):
        active.required().recorder.listen(lambda entry: seen.append(entry))
        nbflow.map(lambda n: n, range(100))
    assert sorted(entry.seq for entry in seen) == [entry.seq for entry in seen]
    assert 100 == sum(isinstance(entry.record, StepStarted) for entry in seen)
    assert 100 == sum(isinstance(entry.record, StepCompleted) for entry in seen)
