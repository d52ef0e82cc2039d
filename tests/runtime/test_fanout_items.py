"""What an item of `nbflow.map` is: any callable, its identity, what happens inside it, and how many have ended."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import ItemsFailed
from nbflow.core.history import History
from nbflow.core.states import StepState
from nbflow.runtime import active
from nbflow.runtime.fanout.progress import Counts, progress_of, show_with
from nbflow.testing import MemoryStore


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


@nbflow.durable(version="1", retries=1, delay=0)
def doubled(n: int) -> int:
    tries[n] += 1
    if tries[n] == 1:
        raise OSError
    return 2 * n


tries: Counter[int] = Counter()


def test_a_durable_function_is_recorded_once_with_its_own_options(store: MemoryStore) -> None:
    """No call is recorded inside the item; its retries count."""
    tries.clear()
    with nbflow.run("w", store=store):
        assert [2, 4] == nbflow.map(doubled, [1, 2])
    kinds = [execution.started.step_kind for execution in history(store).executions.values()]
    assert ["item", "item"] == kinds
    assert Counter({1: 2, 2: 2}) == tries


class Shop:
    """Methods, plain and durable."""

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def price(self, n: int) -> int:
        return self.rate * n

    @nbflow.durable
    def sale(self, n: int) -> int:
        return self.rate * n // 2

    def __call__(self, n: int) -> int:
        return self.rate + n


def test_any_callable_may_be_mapped(store: MemoryStore) -> None:
    """Methods, durable methods, partials, objects, built-in functions; what they hold is part of their identity."""
    with nbflow.run("w", store=store):
        assert [10, 20] == nbflow.map(Shop(10).price, [1, 2])
        assert [20, 40] == nbflow.map(Shop(20).price, [1, 2])
        assert [5, 10] == nbflow.map(Shop(10).sale, [1, 2])
        assert [15, 30] == nbflow.map(Shop(30).sale, [1, 2])
        assert [11, 12] == nbflow.map(Shop(10), [1, 2])
        assert [8, 9] == nbflow.map(functools.partial(max, 8), [1, 9])
        assert [1, 2] == nbflow.map(abs, [-1, -2])
    kinds = {execution.started.step_kind for execution in history(store).executions.values()}
    assert {"item"} == kinds
    assert 14 == len(items(store))


def test_changed_code_runs_again(store: MemoryStore) -> None:
    """The function's code is part of an item's identity."""
    interrupted(store, lambda: nbflow.map(lambda n: n + 1, [1, 2]))
    with nbflow.run("w", store=store):
        assert [11, 12] == nbflow.map(lambda n: n + 10, [1, 2])


def test_calls_inside_an_item_are_steps_under_it(store: MemoryStore) -> None:
    """Each item has a scope of its own, and is on record before what it calls."""

    @nbflow.durable
    def inner(n: int) -> int:
        return n + 1

    with nbflow.run("w", store=store):
        assert [4, 4, 6] == nbflow.map(lambda n: inner(n) + inner(n), [1, 1, 2])

    found = history(store).executions.values()
    calls = [execution for execution in found if execution.started.step_kind == "call"]
    begun = {execution.started.step: execution.number for execution in found}
    assert 6 == len(calls)
    assert 6 == len({execution.started.step for execution in calls})
    for call in calls:
        assert call.started.parent in begun
        assert begun[call.started.parent] < call.number


def test_inner_calls_of_an_unfinished_item_replay(store: MemoryStore) -> None:
    """When an item failed half-way, the calls it had finished are not made again."""
    made: list[int] = []
    mended = threading.Event()

    @nbflow.durable
    def inner(n: int) -> int:
        made.append(n)
        return n

    def work(n: int) -> int:
        found = inner(n)
        if n == 2 and not mended.is_set():
            raise ValueError
        return found

    def first() -> None:
        with pytest.raises(ItemsFailed):
            nbflow.map(work, [1, 2], max_parallel=1)

    interrupted(store, first)
    mended.set()
    with nbflow.run("w", store=store):
        assert [1, 2] == nbflow.map(work, [1, 2])
    assert [1, 2] == made


def test_a_map_inside_a_step_belongs_to_it(store: MemoryStore) -> None:
    """The enclosing step is the parent of its items."""

    @nbflow.durable
    def outer() -> list[int]:
        return nbflow.map(lambda n: n, [1, 2])

    with nbflow.run("w", store=store):
        assert [1, 2] == outer()
    found = list(history(store).executions.values())
    assert {found[0].started.step} == {each.started.parent for each in found[1:]}


def test_charges_inside_an_item_are_its_own(store: MemoryStore) -> None:
    """An item that spends is on record before what it spent."""
    with nbflow.run("w", store=store):
        nbflow.map(lambda n: nbflow.charge(tokens=n), [1, 2, 3])
        assert {"tokens": 6.0} == nbflow.spent()
    found = history(store)
    assert 3 == len(found.ledger.entries())
    assert {step for step, _ in found.ledger.entries()} == set(found.by_step)


def test_a_durable_functions_compensator_undoes_its_items(store: MemoryStore) -> None:
    """A rollback gives it the item and the result."""
    undone: list[tuple[int, int]] = []

    @nbflow.durable(compensate=lambda result, item: undone.append((item, result)))
    def book(n: int) -> int:
        if n == 3:
            raise ValueError
        return 10 * n

    with pytest.raises(ItemsFailed), nbflow.run("w", store=store):
        nbflow.map(book, [1, 2, 3], max_parallel=1)
    assert [(2, 20), (1, 10)] == undone


def test_progress_can_be_read_and_shown(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are there for whoever asks; a display gets them once a fan-out has taken its time."""
    monkeypatch.setattr("nbflow.runtime.fanout.progress._PATIENCE", 0.0)
    monkeypatch.setattr("nbflow.runtime.fanout.progress._EVERY", 0.0)
    shown: list[Counts] = []
    closed: list[Counts] = []

    class Display:
        def show(self, counts: Counts) -> None:
            shown.append(counts)

        def close(self, counts: Counts) -> None:
            closed.append(counts)

    read: list[Counts] = []

    def work(n: int) -> int:
        (counts,) = progress_of(active.required())
        read.append(counts)
        if n == 1:
            raise ValueError
        return n

    interrupted(store, lambda: nbflow.map(work, [0], name="work"))
    read.clear()
    show_with(lambda _counts: Display())
    try:
        with nbflow.run("w", store=store):
            nbflow.map(work, [0, 1, 2, 3], on_error="skip_dependents", depends_on={2: 1, 3: 1}, name="work")
            nbflow.map(work, [0, 5], name="work", progress=False)
            assert [] == progress_of(active.required())
    finally:
        show_with(None)
    assert Counts("work", 4, 0, 0, 0, 1) == read[0]
    assert [Counts("work", 4, 0, 1, 2, 1)] == closed
    assert 0 == closed[0].left
    assert closed[0] == shown[-1]


def test_a_terminal_gets_a_bar_and_a_file_does_not(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, and only where somebody looks."""
    monkeypatch.setattr("nbflow.runtime.fanout.progress._PATIENCE", 0.0)
    with nbflow.run("w", store=store):
        nbflow.map(lambda n: n, range(5), name="quiet")
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        nbflow.map(lambda n: n, range(5), name="loud")
        nbflow.map(lambda n: n, range(5), name="hushed", progress=False)
    said = capsys.readouterr().err
    assert "loud" in said
    assert "5/5" in said
    assert "quiet" not in said
    assert "hushed" not in said
