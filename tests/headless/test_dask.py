"""Batches on a Dask cluster: notebooks run there, survive the loss of a worker, and end with their runner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
from distributed import Client, LocalCluster

from nbflow.core.errors import UsageError, WorkerLost
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import ErrorInfo
from nbflow.headless.batches.jobs import Item, Job, Options, Outcome, Progress, Workers
from nbflow.headless.workers import dask as dask_module
from nbflow.headless.workers import remote
from nbflow.headless.workers.beacon import Beacon, lit
from nbflow.headless.workers.dask import DaskWorkers
from nbflow.store.local import LocalStore
from nbflow.store.place import locate
from tests.headless.kit import EFFECT, HOLD, code, effects, kill, notebook, read, statuses, wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workers(cluster: LocalCluster) -> Iterator[DaskWorkers]:
    made = DaskWorkers(cluster.scheduler_address)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = locate(tmp_path)
    LocalStore(root, background=False, upkeep=False).close()
    return root


def a_job(tmp_path: Path, store: Path, source: Path, index: int = 0, **params: Any) -> Job:
    batch = new_run_id()
    item = Item(index, params, "", str(tmp_path / f"out-{index}.ipynb"))
    item = msgspec.structs.replace(item, run=child_run_id(batch, item.step))
    scratch = str(tmp_path / "s" / str(index))
    return Job(batch, item, str(source), str(store), Options(kernel="python3"), scratch)


class Running(threading.Thread):
    """A job in a thread of its own, as the runner has it."""

    def __init__(self, workers: Workers, job: Job) -> None:
        super().__init__(daemon=True)
        self.workers, self.job = workers, job
        self.told: list[Progress] = []
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.workers.run(self.job, self.told.append)
        except BaseException as error:
            self.error = error

    def ended(self) -> Outcome:
        self.join(120)
        assert not self.is_alive(), "the job did not end"
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome


def eventually(true: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def kernels_below(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def gone(process: psutil.Process) -> bool:
    """Whether a process is dead; where nobody reaps orphans, a dead one stays in the table."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def dask_workers(cluster: LocalCluster) -> dict[str, int]:
    """The process id of each worker by its address."""
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        return client.run(os.getpid)


# --- the beacon -------------------------------------------------------------------------------------------


def test_a_beacon_is_recognised_by_its_word_and_its_lock(tmp_path: Path) -> None:
    """Who reads the word and cannot take the lock sees the same folder; anything else is named."""
    with lit(tmp_path) as beacon:
        assert beacon.problem() == ""
        assert beacon.burns()
        assert "signs with another key" in msgspec.structs.replace(beacon, seal="other").problem()
        assert f"sees another folder under the name of the store's, {tmp_path}" == (
            msgspec.structs.replace(beacon, word="other").problem()
        )
        assert "sees another folder" in Beacon(str(tmp_path / "beacon-other"), beacon.word).problem()
        assert "does not see the store's folder" in Beacon("/nowhere/beacon-1", beacon.word).problem()
    assert not beacon.burns()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_can_be_taken_twice_is_no_lock(tmp_path: Path) -> None:
    """A file system on which the held lock can be taken keeps no leases, and is refused."""
    with lit(tmp_path) as beacon:
        copy = tmp_path / "copy" / "beacon-1"
        copy.mkdir(parents=True)
        (copy / "word").write_text(beacon.word)
        assert "keeps no locks" in Beacon(str(copy), beacon.word).problem()


def test_the_beacon_of_a_killed_runner_goes_out_and_is_cleared_away(tmp_path: Path) -> None:
    """Killed with SIGKILL, the runner's beacon is out at once, and the next runner leaves none of it."""
    program = (
        "import sys, time, pathlib, nbflow.headless.workers.beacon as b\n"
        "with b.lit(pathlib.Path(sys.argv[1])) as lit:\n"
        "    print(lit.folder, lit.word, lit.seal, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as runner:
        try:
            assert runner.stdout is not None
            beacon = Beacon(*runner.stdout.readline().split())
            assert beacon.problem() == ""
        finally:
            runner.kill()
    assert not beacon.burns()
    with lit(tmp_path) as mine:
        assert [Path(mine.folder)] == list(tmp_path.iterdir())


# --- the cluster ------------------------------------------------------------------------------------------


def test_a_notebook_runs_on_the_cluster_and_says_how_far_it_is(
    workers: DaskWorkers, tmp_path: Path, store: Path
) -> None:
    """The outcome, the executed notebook and the progress come from a process that is none of the runner's."""
    source = notebook(tmp_path / "in.ipynb", "year = 0", "x = year + 1; x", "import os; os.getppid()")
    job = a_job(tmp_path, store, source, year=2013)
    told: list[Progress] = []
    outcome = workers.run(job, told.append)
    assert ("completed", None) == (outcome.state, outcome.error)
    assert told[-1].total == 4
    assert [each.cells for each in told] == sorted(each.cells for each in told)
    done = read(Path(job.item.output))
    assert done.metadata.nbflow.run == job.item.run
    assert str(os.getpid()) != done.cells[-1].outputs[0].data["text/plain"]
    assert not (tmp_path / "s").exists()


@pytest.mark.soak
def test_a_failed_notebook_is_an_outcome_and_its_worker_goes_on(
    workers: DaskWorkers, tmp_path: Path, store: Path
) -> None:
    """An error in a cell is no trouble of the cluster's."""
    source = notebook(tmp_path / "in.ipynb", "1 / 0")
    outcome = workers.run(a_job(tmp_path, store, source), lambda _: None)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert outcome.error.type == "ZeroDivisionError"


def test_a_notebook_whose_worker_is_killed_is_carried_on_by_another(
    cluster: LocalCluster, workers: DaskWorkers, tmp_path: Path, store: Path
) -> None:
    """SIGKILL of a Dask worker in the middle of a notebook: it completes, and no finished cell runs again."""
    hold, done = tmp_path / "hold", tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 40",
        "effect('b'); y = x + 2",
        HOLD.format(path=str(hold)),
        "effect('c'); print(x + y)",
    )
    before = dask_workers(cluster)
    running = Running(workers, a_job(tmp_path, store, source))
    wait_for(hold)
    busy = [pid for pid in before.values() if kernels_below(pid)]
    assert len(busy) == 1
    (orphan,) = kernels_below(busy[0])
    kill(busy[0])
    eventually(lambda: gone(orphan))
    while running.is_alive():
        hold.unlink(missing_ok=True)
        running.join(0.05)
    outcome = running.ended()
    assert ("completed", 2) == (outcome.state, outcome.attempt)
    assert effects(done) == ["a", "b", "c"]
    assert statuses(read(Path(running.job.item.output)))[1:] == ["restored", "restored", "ran", "ran"]


def at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path, outcomes: list[Outcome], times: int = 1
) -> list[Job]:
    """Have a task done in this process with these outcomes; return the jobs as its processes got them."""
    jobs: list[Job] = []

    class Crew:
        def do(self, job: Job, _told: Any) -> Outcome:
            jobs.append(job)
            return outcomes.pop(0)

    monkeypatch.setattr(remote, "_crew_of", lambda _parcel: Crew())
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://here"))
    with lit(store) as beacon:
        job = a_job(tmp_path, store, notebook(tmp_path / "in.ipynb", "x = 1"))
        parcel = remote.Parcel(msgspec.structs.replace(job, options=Options()), "token", "key", beacon)
        for _ in range(times):
            assert isinstance(remote.do(parcel), Outcome)
    return jobs


def test_a_try_that_dask_repeats_begins_no_run_a_second_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path
) -> None:
    """Where another worker had this very task before, its run exists: it is carried on, or over."""
    outcomes = [Outcome("completed", 0.1), Outcome("completed", 0.1)]
    assert [job.begun for job in at_once(monkeypatch, tmp_path, store, outcomes, 2)] == [False, True]


@pytest.mark.parametrize(("kind", "tries"), [("nbflow.core.errors.LeaseHeld", 2), ("LeaseHeld", 1)])
def test_a_run_held_by_a_worker_that_is_cut_off_is_waited_for(
    kind: str, tries: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path
) -> None:
    """The engine's own error is tried again, on a run that exists; one that a cell raised is the notebook's failure."""
    held = Outcome("failed", 0.1, error=ErrorInfo(type=kind, message="Run 0198 is at work."))
    jobs = at_once(monkeypatch, tmp_path, store, [held, Outcome("completed", 0.1)])
    assert [job.begun for job in jobs] == [False, True][:tries]


def test_stopped_workers_end_their_notebooks(cluster: LocalCluster, tmp_path: Path, store: Path) -> None:
    """After `stop` the notebook's kernel is gone, its run can be carried on, and nothing new begins."""
    hold = tmp_path / "hold"
    job = a_job(tmp_path, store, notebook(tmp_path / "in.ipynb", HOLD.format(path=str(hold))))
    workers = DaskWorkers(cluster.scheduler_address)
    running = Running(workers, job)
    wait_for(hold)
    (kernel,) = [kernel for pid in dask_workers(cluster).values() for kernel in kernels_below(pid)]
    workers.stop()
    with pytest.raises(WorkerLost):
        running.ended()
    assert gone(kernel)
    with pytest.raises(WorkerLost, match="stopped"):
        workers.run(job, lambda _: None)
    workers.close()
    workers.close()
    assert [path.name for path in store.glob("beacon-*")] == []


def test_nobody_at_the_address_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the address, and what to do; it does not wait for ever."""
    monkeypatch.setattr(dask_module, "_CONNECT", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        address = "tcp://{}:{}".format(*taken.getsockname())
        with pytest.raises(UsageError, match=f"No Dask scheduler answers at {address}.*dask scheduler"):
            DaskWorkers(address)
    with pytest.raises(UsageError, match="There is no scheduler file /nowhere.json"):
        DaskWorkers("/nowhere.json")


def test_without_distributed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the extra is told how to install it."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install nbflow\[dask\]"):
        DaskWorkers("tcp://127.0.0.1:8786")


def test_a_worker_that_sees_other_files_is_named_before_anything_runs(
    cluster: LocalCluster, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address, machine, what is wrong and what to do: for another folder, another notebook, another version."""
    source = notebook(tmp_path / "in.ipynb", "1")
    who = rf"The Dask worker tcp://127\.0\.0\.1:\d+ on {socket.gethostname()} "
    with DaskWorkers(cluster.scheduler_address, store=store, notebook=source) as workers:
        assert workers.width == 2
    with DaskWorkers(cluster.scheduler_address, workers=7) as workers:
        assert workers.width == 7
    with monkeypatch.context() as patch:
        patch.setattr(remote, "digest_of", lambda _: "another")
        with pytest.raises(
            UsageError, match=who + f"sees another file under .*{source}.*same files on every"
        ):
            DaskWorkers(cluster.scheduler_address, store=store, notebook=source)
    with monkeypatch.context() as patch:

        @contextmanager
        def elsewhere(store: Path) -> Iterator[Beacon]:
            with lit(store) as beacon:
                yield msgspec.structs.replace(beacon, word="another")

        patch.setattr(dask_module, "lit", elsewhere)
        with pytest.raises(UsageError, match=who + f"sees another folder under .*{store}"):
            DaskWorkers(cluster.scheduler_address, store=store)
    plain = Client.get_versions
    for package, version, said in (
        ("python", "3.9.1.final.0", "Python 3.9, and"),
        ("nbflow", "9.9", "nbflow 9.9, and"),
    ):

        def versions(self: Client, **options: Any) -> Any:
            told = plain(self, **options)
            for each in told["workers"].values():
                each["packages"][package] = version
            return told

        with monkeypatch.context() as patch:
            patch.setattr(Client, "get_versions", versions)
            with pytest.raises(UsageError, match=f"has {said}"):
                DaskWorkers(cluster.scheduler_address, store=store)
    assert [path.name for path in store.glob("beacon-*")] == []


def blind(dask_worker: Any) -> None:
    """Make a Dask worker one that does not see the files."""
    remote.problem_here = lambda *_: ("moon", "does not see the store's folder")


def sighted(dask_worker: Any) -> None:
    import importlib

    importlib.reload(remote)


@pytest.mark.soak
def test_a_worker_that_joins_later_and_sees_other_files_gets_no_notebooks(
    cluster: LocalCluster, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first job finds out and goes to another worker; where none is left, the error says why."""
    job = a_job(tmp_path, store, notebook(tmp_path / "in.ipynb", "1"))
    with (
        DaskWorkers(cluster.scheduler_address, store=store) as workers,
        Client(cluster.scheduler_address, set_as_default=False) as client,
    ):
        bad, good = client.nthreads()
        client.run(blind, workers=[bad])
        try:
            answers = iter([[bad]])
            fit = workers._fit
            monkeypatch.setattr(workers, "_fit", lambda parcel: next(answers, None) or fit(parcel))
            assert workers.run(job, lambda _: None).state == "completed"
            assert workers._looked_at == {
                bad: f"{bad} on moon does not see the store's folder",
                good: "",
            }
            client.run(blind, workers=[good])
            other = a_job(tmp_path, store, Path(job.notebook), 1)
            with pytest.raises(UsageError, match=f"No worker can do this.*{bad} on moon.*{good} on moon"):
                workers.run(other, lambda _: None)
        finally:
            client.run(sighted)


@pytest.mark.soak
def test_a_killed_runner_leaves_nothing_behind_on_the_cluster(
    cluster: LocalCluster, tmp_path: Path, store: Path
) -> None:
    """SIGKILL of the runner: its notebooks' kernels end, and the next runner carries on from the last recorded cell."""
    hold, done = tmp_path / "hold", tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a')",
        HOLD.format(path=str(hold)),
        "effect('b')",
    )
    job = a_job(tmp_path, store, source)
    program = (
        "import sys, msgspec; from nbflow.headless.workers.dask import DaskWorkers; from nbflow.headless.batches.jobs import Job\n"
        "DaskWorkers(sys.argv[1]).run(msgspec.json.decode(sys.argv[2], type=Job), print)"
    )
    told = msgspec.json.encode(job).decode()
    with subprocess.Popen([sys.executable, "-c", program, cluster.scheduler_address, told]) as runner:
        try:
            wait_for(hold)
            kernels = [kernel for pid in dask_workers(cluster).values() for kernel in kernels_below(pid)]
        finally:
            runner.kill()
    assert len(kernels) == 1
    eventually(lambda: gone(kernels[0]))
    with DaskWorkers(cluster.scheduler_address) as workers:
        running = Running(workers, job)
        while running.is_alive():
            hold.unlink(missing_ok=True)
            running.join(0.05)
        assert running.ended().state == "completed"
    assert effects(done) == ["a", "b"]
    assert [path.name for path in store.glob("beacon-*")] == []


@pytest.mark.soak
def test_a_dead_scheduler_is_a_lost_worker_and_leaves_no_kernel(tmp_path: Path, store: Path) -> None:
    """The job at work and those that come are told so within seconds, and the kernel ends with the runner."""
    hold, file = tmp_path / "hold", tmp_path / "scheduler.json"
    job = a_job(tmp_path, store, notebook(tmp_path / "in.ipynb", HOLD.format(path=str(hold))))
    here = ["--scheduler-file", str(file), "--dashboard-address", "127.0.0.1:0"]
    cli = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*cli, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *here]
    )
    worker = subprocess.Popen([*cli, "distributed.cli.dask_worker", "--nthreads", "1", *here])
    try:
        wait_for(file)
        with DaskWorkers(file) as workers:
            running = Running(workers, job)
            wait_for(hold)
            kernels = kernels_below(worker.pid)
            scheduler.kill()
            with pytest.raises(WorkerLost, match="given up"):
                running.ended()
            for _ in range(2):
                with pytest.raises(WorkerLost, match="does not answer"):
                    workers.run(job, lambda _: None)
            assert workers.width == 1  # whoever asks meanwhile gets what was known, and no error of Dask's
        assert len(kernels) == 1
        eventually(lambda: gone(kernels[0]))
    finally:
        for process in (scheduler, worker):
            process.terminate()
            process.wait(30)


#: Says in a file which process waits here, until the file is gone.
WAITS = """\
if n == 1:
    import os, pathlib, time
    pathlib.Path({path!r}).write_text(str(os.getpid()))
    while pathlib.Path({path!r}).exists(): time.sleep(0.02)"""


@pytest.mark.soak
def test_a_batch_survives_the_loss_of_a_worker(tmp_path: Path, store: Path) -> None:
    """Two worker processes, one killed in the middle of a notebook: all are completed, and each cell has run once."""
    import nbflow

    hold, done = tmp_path / "hold", tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        code("n = -1", "parameters"),
        EFFECT.format(path=str(done)),
        "effect(f'a{n}')",
        WAITS.format(path=str(hold)),
        "effect(f'b{n}')",
        "total = n + 1",
    )
    found: list[Any] = []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:

        def batch() -> None:
            found.append(
                nbflow.batch(
                    source,
                    {"n": list(range(6))},
                    output=str(tmp_path / "runs" / "{n}.ipynb"),
                    executor="dask",
                    scheduler=cluster.scheduler_address,
                    collect=["total"],
                    store=store,
                )
            )

        running = threading.Thread(target=batch, daemon=True)
        running.start()
        eventually(lambda: hold.exists() and hold.read_text(), 60)
        kernel = psutil.Process(int(hold.read_text()))
        above = {parent.pid for parent in kernel.parents()}
        (busy,) = above & set(dask_workers(cluster).values())
        kill(busy)
        eventually(lambda: gone(kernel))
        while running.is_alive():
            hold.unlink(missing_ok=True)
            running.join(0.05)
    (ended,) = found
    assert (ended.state, ended.completed) == ("completed", 6)
    assert sorted(effects(done)) == sorted(f"{letter}{n}" for n in range(6) for letter in "ab")
    assert sorted(ended.results()["total"]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.soak
def test_ctrl_c_in_the_terminal_does_not_reach_our_own_cluster() -> None:
    """The terminal signals every process of the foreground group; the runner drains, and its workers must live on."""
    with DaskWorkers(workers=2) as workers:
        before = workers._client.run(os.getpid)
        for pid in before.values():
            os.kill(pid, signal.SIGINT)
        assert workers._client.submit(sum, [1, 2]).result(timeout=30) == 3
        assert workers._client.run(os.getpid) == before


@pytest.mark.soak
def test_without_a_scheduler_a_cluster_is_started_and_ended(tmp_path: Path, store: Path) -> None:
    """`executor="dask"` alone has as many worker processes of this machine as are asked for, and leaves none."""
    import nbflow

    source = notebook(tmp_path / "in.ipynb", code("n = -1", "parameters"), "n + 1")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    output = str(tmp_path / "runs" / "{n}.ipynb")
    ended = nbflow.batch(source, {"n": [1, 2]}, output=output, executor="dask", workers=2, store=store)
    assert (ended.state, ended.completed) == ("completed", 2)

    def left() -> list[str]:
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        # multiprocessing's own, which stays with the program.
        return [name for child in children if "tracker" not in (name := " ".join(child.cmdline()))]

    eventually(lambda: left() == [])
