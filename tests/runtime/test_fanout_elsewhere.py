"""`nbflow.map` on executors: bodies run in other processes, this one records."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import ItemsFailed, NoActiveRun, StepTimeout
from nbflow.core.history import History
from nbflow.core.states import StepState
from nbflow.testing import MemoryStore


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def history(store: Any) -> History:
    """The history of the store's only run."""
    (run,) = store.runs()
    return History.of(store.entries(run.run))


class Killed(BaseException):
    """What ends a run as a killed process does."""


def test_processes_do_the_work_and_the_parent_records(store: MemoryStore, tmp_path: Path) -> None:
    """A function of a notebook reaches them; a resume runs only what is not done."""
    log = tmp_path / "log"

    def work(n: int) -> tuple[int, int]:
        with log.open("a") as file:
            file.write(f"{n}\n")
        return n * n, os.getpid()

    with pytest.raises(Killed), nbflow.run("w", store=store):
        results = nbflow.map(work, range(4), executor="processes", max_parallel=2)
        raise Killed
    assert [0, 1, 4, 9] == [square for square, _ in results]
    assert os.getpid() not in {pid for _, pid in results}
    with nbflow.run("w", store=store):
        again = nbflow.map(work, range(6), executor="processes", max_parallel=2)
    assert results == again[:4]
    assert ["0", "1", "2", "3", "4", "5"] == sorted(log.read_text().split())
    assert [StepState.COMPLETED] * 6 == [each.state for each in history(store).executions.values()]


def test_a_killed_worker_fails_its_items_or_is_replaced(store: MemoryStore, tmp_path: Path) -> None:
    """With retries the map goes on in a new worker."""
    once = tmp_path / "once"

    def work(n: int) -> int:
        if n == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with nbflow.run("w", store=store):
        assert [0, 1, 2] == nbflow.map(
            work, range(3), executor="processes", max_parallel=1, retries=3, delay=0.01
        )


def test_a_durable_call_in_a_worker_process_is_refused_with_the_way_out(store: MemoryStore) -> None:
    """It says to call the plain function there."""

    @nbflow.durable(version="1")
    def inner(n: int) -> int:
        return n

    with nbflow.run("w", store=store), pytest.raises(ItemsFailed) as caught:
        nbflow.map(lambda n: inner(n), [1], executor="processes", max_parallel=1)
    (error,) = caught.value.failures.values()
    assert isinstance(error, NoActiveRun)
    assert ".plain" in str(error)


def test_an_attempt_elsewhere_takes_no_longer_than_its_timeout(store: MemoryStore) -> None:
    """The map goes on; what comes back too late is not recorded."""
    with ThreadPoolExecutor(3) as pool, nbflow.run("w", store=store):
        results = nbflow.map(
            lambda n: time.sleep(n) or n, [0, 0.3, 0], executor=pool, timeout=0.1, on_error="continue"
        )
    assert [0, 0] == [results[0], results[2]]
    assert isinstance(results[1].error, StepTimeout)
    assert ["completed", "completed", "timed_out"] == sorted(
        each.state for each in history(store).executions.values()
    )


def test_threads_of_an_executor_may_call_durable_functions(store: MemoryStore) -> None:
    """They are steps under their item, for it is the same process."""

    @nbflow.durable
    def inner(n: int) -> int:
        return n + 1

    with ThreadPoolExecutor(2) as pool, nbflow.run("w", store=store):
        assert [3, 4] == nbflow.map(lambda n: inner(n) + 1, [1, 2], executor=pool)
    found = list(history(store).executions.values())
    items = {each.started.step for each in found if each.started.step_kind == "item"}
    assert items == {each.started.parent for each in found if each.started.step_kind == "call"}


def test_skips_and_retries_are_those_of_threads(store: MemoryStore) -> None:
    """Dependencies are honoured, failures tried again, dependents skipped."""
    tries: list[int] = []

    def work(n: int) -> int:
        tries.append(n)
        if n == 1:
            raise ValueError
        return n

    with ThreadPoolExecutor(4) as pool, nbflow.run("w", store=store):
        results = nbflow.map(
            work,
            [3, 2, 1, 0],
            key=lambda n: n,
            depends_on=lambda n: [n - 1] if n else [],
            on_error="skip_dependents",
            retries=1,
            delay=0,
            executor=pool,
        )
    assert [0, 1, 1] == tries
    assert 0 == results[3]
    assert [(2,), (1,)] == [skipped.because for skipped in results[:2]]


class Slow:
    """The smallest executor: runs a body when it is submitted, as a cluster that answers at once would."""

    def __init__(self) -> None:
        self.most = 0

    def submit(self, function: Any, /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def test_anything_with_submit_is_an_executor(store: MemoryStore) -> None:
    """Two hundred items share their commits, and fail by themselves."""
    with nbflow.run("w", store=store):
        results = nbflow.map(lambda n: 1 // n, range(200), executor=Slow(), on_error="continue")
    assert isinstance(results[0].error, ZeroDivisionError)
    assert [1] + [0] * 198 == results[1:]


def double(n: int) -> int:
    """Be importable: the standard library's processes pickle by name."""
    return 2 * n


def test_the_standard_librarys_processes_work_too(store: MemoryStore) -> None:
    """With functions that they can import."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool, nbflow.run("w", store=store):
        assert [2, 4] == nbflow.map(abs, [-2, 4], executor=pool)


def test_a_dask_cluster_does_the_work(store: MemoryStore) -> None:
    """Retries are new tasks and not the old result; the parent records."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        nbflow.run("w", store=store),
    ):
        assert [0, 2, 4] == nbflow.map(lambda n: 2 * n, range(3), executor=client)
        results = nbflow.map(
            lambda n: 1 // n, [0, 1], executor=client, retries=1, delay=0, on_error="continue"
        )
    assert isinstance(results[0].error, ZeroDivisionError)
    assert 1 == results[1]
    assert [1, 1, 1, 1, 2] == sorted(each.attempt for each in history(store).executions.values())
