"""Runs as with statements: which one is carried on, and how each ends."""

from __future__ import annotations

import threading

import pytest

import nbflow
from nbflow.core.errors import LeaseHeld, LeaseLost, RunFinished, UnknownRun, UsageError
from nbflow.testing import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """A store without files."""
    return MemoryStore()


def test_leaving_the_body_completes_the_run(store: MemoryStore) -> None:
    """A second use of the same name and parameters is a new run then."""
    with nbflow.run("etl", store=store, day=1) as first:
        assert nbflow.current_run().id == first.id  # type: ignore[union-attr]
    with nbflow.run("etl", store=store, day=1) as second:
        pass

    assert first.id < second.id
    assert ["completed", "completed"] == [info.state for info in store.runs()]
    assert nbflow.current_run() is None


def test_an_exception_fails_the_run_and_the_next_use_carries_it_on(store: MemoryStore) -> None:
    """Same name, same parameters: attempt 2 of the same run."""
    with pytest.raises(ZeroDivisionError), nbflow.run("etl", store=store, day=1) as first:
        1 / 0  # noqa: B018
    assert ("failed", "ZeroDivisionError") == (
        store.runs()[0].state,
        store.runs()[0].error.partition(":")[0].rpartition(".")[2],
    )
    with nbflow.run("etl", store=store, day=1) as second:
        pass

    assert first.id == second.id
    assert 2 == second.attempt


def test_other_parameters_are_another_run(store: MemoryStore) -> None:
    """An unfinished run of day 1 is not carried on by day 2."""
    with pytest.raises(ValueError), nbflow.run("etl", store=store, day=1) as first:
        raise ValueError
    with nbflow.run("etl", store=store, day=2) as second:
        pass

    assert first.id != second.id


def test_new_and_resume_choose_the_run(store: MemoryStore) -> None:
    """`new=True` leaves the unfinished run alone; `resume=` goes back to it by a prefix."""
    with pytest.raises(ValueError), nbflow.run("etl", store=store) as first:
        raise ValueError
    with nbflow.run("etl", store=store, new=True) as second:
        pass
    with nbflow.run("etl", store=store, resume=first.id) as third:
        pass

    assert first.id == third.id != second.id


def test_a_finished_run_cannot_be_resumed(store: MemoryStore) -> None:
    """The error says so and names the run."""
    with nbflow.run("etl", store=store) as run:
        pass
    with pytest.raises(RunFinished, match=run.id), nbflow.run("etl", store=store, resume=run.id):
        raise AssertionError("never here")
    with pytest.raises(UnknownRun), nbflow.run("etl", store=store, resume="no-such-run"):
        raise AssertionError("never here")


def test_a_held_run_is_refused_and_can_be_stolen(store: MemoryStore) -> None:
    """A living owner is named; `steal=True` takes over, and the first owner is told."""
    seen: list[str] = []

    def steal() -> None:
        with nbflow.run("etl", store=store, steal=True) as second:
            seen.append(second.id)

    with pytest.raises(LeaseLost), nbflow.run("etl", store=store) as first:
        with pytest.raises(LeaseHeld), nbflow.run("etl", store=store):
            raise AssertionError("never here")
        thread = threading.Thread(target=steal)
        thread.start()
        thread.join()

    assert [first.id] == seen


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": {1, 2}, "y": lambda: 0}])
def test_parameters_must_be_plain(store: MemoryStore, bad: dict[str, object]) -> None:
    """What JSON cannot hold is refused before anything is created."""
    with pytest.raises(UsageError), nbflow.run("etl", store=store, **bad):
        raise AssertionError("never here")
    assert [] == store.runs()


def test_two_runs_in_two_threads_do_not_mix(store: MemoryStore) -> None:
    """Each thread's calls go to its own run."""

    @nbflow.durable
    def who(name: str) -> str:
        return name

    def work(name: str) -> None:
        with nbflow.run(name, store=store):
            barrier.wait()
            for _ in range(20):
                who(name)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {"a": 20, "b": 20} == {info.workflow: info.steps for info in store.runs()}
