"""Local workers: a process for each notebook, and nothing left of it, however it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from nbflow.core.errors import UsageError, WorkerLost
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.headless.batches.jobs import Item, Job, Options, Outcome, Progress
from nbflow.headless.workers import forkserver
from nbflow.headless.workers.local import LocalWorkers
from nbflow.headless.workers.perform import require_limits
from nbflow.headless.workers.scratch import CONNECTION
from nbflow.notebook import unattended
from nbflow.notebook.messages import PROTOCOL
from nbflow.runtime.children.results import result_of
from nbflow.store.local import LocalStore
from tests.headless.kit import EFFECT, HOLD, effects, gone, kill, notebook, read, statuses, wait_for


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(2) as made:
        yield made


@dataclasses.dataclass
class Bench:
    """A folder with a store, and jobs in it."""

    folder: Path
    scratch: Path
    batch: str = dataclasses.field(default_factory=new_run_id)

    def job(self, source: Path, number: int = 0, params: dict[str, Any] | None = None, **options: Any) -> Job:
        item = Item(
            index=number,
            params=params or {},
            run=child_run_id(self.batch, f"item#{number}"),
            output=str(self.folder / "out" / f"{number}.ipynb"),
        )
        return Job(
            batch=self.batch,
            item=item,
            notebook=str(source),
            store=str(self.folder / ".nbflow"),
            options=Options(cwd=str(self.folder), **options),
            scratch=str(self.scratch / str(number)),
        )

    def cells(self, *cells: str) -> Path:
        return notebook(self.folder / "in.ipynb", *cells)

    def store(self) -> LocalStore:
        return LocalStore(self.folder / ".nbflow", background=False)

    def processes(self) -> list[str]:
        """The command lines of processes that belong to jobs of this bench."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.scratch) in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        return found

    def kernel(self) -> psutil.Process:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.scratch) in word for word in process.info["cmdline"] or ()):
                return process
        raise AssertionError("no kernel is at work")

    def clean(self) -> None:
        assert self.processes() == []
        assert not self.scratch.exists()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    # Short: sockets lie in it.
    place = Path(tempfile.mkdtemp(prefix="nbflow-t"))
    place.rmdir()
    yield Bench(tmp_path, place)


def ignore(_progress: Progress) -> None:
    """Tell nobody."""


def test_a_notebook_runs_in_a_process_and_environment_of_its_own(workers: LocalWorkers, bench: Bench) -> None:
    """One BLAS thread, its own connection file and sockets, the folder asked for; collected variables are its result."""
    told: list[Progress] = []
    source = bench.cells(
        "x = 1",
        "import os, sys, ipykernel.kernelapp as app\n"
        "seen = {'threads': os.environ['OPENBLAS_NUM_THREADS'], 'cwd': os.getcwd(), 'worker': os.getppid(),\n"
        "        'session': os.getsid(os.getppid()), 'transport': app.IPKernelApp.instance().transport,\n"
        "        'file': app.IPKernelApp.instance().abs_connection_file, 'main': sys.modules['__main__'].__name__}",
    )
    job = bench.job(source, params={"day": 7, "braces": "{}"}, collect=("seen", "day"))
    outcome = workers.run(job, told.append)
    assert (outcome.state, outcome.attempt, outcome.restored, outcome.log) == ("completed", 1, 0, "")
    assert told[-1] == Progress(3, 3, 0)
    assert [each.cells for each in told] == sorted(each.cells for each in told)
    with contextlib.closing(bench.store()) as store:
        info = store.run(job.item.run)
        result = result_of(store, job.item.run)
    assert (info.state, info.parent, info.params) == ("completed", bench.batch, {"day": 7, "braces": "{}"})
    assert result["day"] == 7
    seen = result["seen"]
    assert seen["threads"] == "1"
    assert seen["cwd"] == str(bench.folder)
    assert seen["transport"] == "ipc"
    assert seen["file"] == str(bench.scratch / "0" / CONNECTION)
    assert seen["worker"] == seen["session"] != os.getsid(0)
    assert len(seen["file"]) < 90
    assert read(Path(job.item.output)).metadata.nbflow.state == "completed"
    bench.clean()


def test_a_failing_notebook_is_an_outcome_with_its_own_error(workers: LocalWorkers, bench: Bench) -> None:
    """Type, message and cell are the notebook's, what the worker wrote comes along, and other jobs go on."""
    outcome = workers.run(bench.job(bench.cells("x = 1", "1 / 0", "y = 2"), threads=None), ignore)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message, outcome.cell) == (
        "ZeroDivisionError",
        "division by zero",
        1,
    )
    assert "ZeroDivisionError" in outcome.error.traceback
    assert "begun, attempt 1" in outcome.log
    bench.clean()


def test_a_cell_that_takes_too_long_is_named(workers: LocalWorkers, bench: Bench) -> None:
    """nbclient's own error does not say which cell it was."""
    source = bench.cells("x = 1", "import time; time.sleep(60)")
    outcome = workers.run(bench.job(source, execution_timeout=1), ignore)
    assert outcome.error is not None
    assert "CellTimeoutError" in outcome.error.type
    assert outcome.cell == 1
    bench.clean()


def test_a_notebook_that_is_not_there_is_an_outcome(workers: LocalWorkers, bench: Bench) -> None:
    """What goes wrong before the first cell is told as plainly."""
    outcome = workers.run(bench.job(bench.folder / "nowhere.ipynb"), ignore)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert "nowhere.ipynb" in outcome.error.message
    bench.clean()


def test_a_notebook_over_its_memory_fails_with_a_memory_error(workers: LocalWorkers, bench: Bench) -> None:
    """Within 1 GiB a small array is made; one of 4 GiB is refused, in this notebook alone."""
    if sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process")
    source = bench.cells("small = bytearray(2**20)", "large = bytearray(2**32)")
    outcome = workers.run(bench.job(source, memory=2**30), ignore)
    assert outcome.error is not None
    assert (outcome.state, outcome.error.type, outcome.cell) == ("failed", "MemoryError", 1)


def test_a_limit_of_memory_is_refused_where_nobody_enforces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux it is a clear error and no empty promise."""
    monkeypatch.setattr(sys, "platform", "darwin")
    require_limits(None)
    with pytest.raises(UsageError, match="needs Linux"):
        require_limits(2**30)


class Held:
    """A job in a thread that waits in its second cell."""

    def __init__(self, workers: LocalWorkers, bench: Bench) -> None:
        self.bench, self.hold, self.done = bench, bench.folder / "hold", bench.folder / "done"
        source = bench.cells(
            EFFECT.format(path=str(self.done)), "effect('a')", HOLD.format(path=str(self.hold)), "effect('b')"
        )
        self.job = bench.job(source)
        self.workers = workers
        self.outcome: Outcome | None = None
        self.error: WorkerLost | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.outcome = self.workers.run(self.job, ignore)
        except WorkerLost as error:
            self.error = error

    def __enter__(self) -> Held:
        self.thread.start()
        wait_for(self.hold)
        self.kernel = self.bench.kernel()
        self.worker = self.kernel.parent()
        assert self.worker is not None
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.unlink(missing_ok=True)
        self.thread.join(60)
        assert not self.thread.is_alive()


def carried_on(workers: LocalWorkers, held: Held) -> Outcome:
    """Run the job again, to its end."""
    held.hold.unlink(missing_ok=True)
    stop = threading.Event()

    def let_go() -> None:
        while not stop.wait(0.02):
            held.hold.unlink(missing_ok=True)

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        return workers.run(held.job, ignore)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda held: kill(held.worker.pid), "was killed by SIGKILL"),
        pytest.param(
            lambda held: held.worker.send_signal(signal.SIGTERM), "exit code 143", marks=pytest.mark.soak
        ),
    ],
    ids=["SIGKILL", "SIGTERM"],
)
def test_a_killed_worker_is_lost_with_its_kernel_and_the_notebook_carries_on(
    workers: LocalWorkers, bench: Bench, how: Callable[[Held], None], said: str
) -> None:
    """Kernel, sockets and folder are gone when the loss is told; the next try restores what was recorded."""
    with Held(workers, bench) as held:
        how(held)
        held.thread.join(60)
    assert held.error is not None
    assert said in str(held.error)
    gone(held.kernel.pid, 0)
    bench.clean()
    outcome = carried_on(workers, held)
    assert (outcome.state, outcome.attempt) == ("completed", 2)
    assert outcome.restored >= 1
    assert effects(held.done) == ["a", "b"]
    bench.clean()


def test_a_killed_kernel_fails_its_notebook_alone_and_it_carries_on(
    workers: LocalWorkers, bench: Bench
) -> None:
    """The outcome names the signal and the cell; the next try restores what was recorded."""
    with Held(workers, bench) as held:
        kill(held.kernel.pid)
        held.thread.join(60)
    outcome = held.outcome
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.state == "failed"
    assert "KernelDied" in outcome.error.type or "DeadKernel" in outcome.error.type
    assert "SIGKILL in cell 3 of 4" in outcome.error.message
    assert "same command" not in outcome.error.message  # that of a batch would begin another one
    assert outcome.cell == 2
    assert carried_on(workers, held).state == "completed"
    assert statuses(read(Path(held.job.item.output)))[1:] == ["restored", "ran", "ran"]
    assert effects(held.done) == ["a", "b"]
    bench.clean()


@pytest.mark.soak
def test_stopped_workers_end_at_once_and_take_no_more_jobs(bench: Bench) -> None:
    """`stop` from another thread ends worker and kernel; what comes behind it is refused as lost."""
    with LocalWorkers(1) as workers:
        with Held(workers, bench) as held:
            workers.stop()
            held.thread.join(60)
        assert held.error is not None
        assert "was stopped" in str(held.error)
        gone(held.kernel.pid, 0)
        bench.clean()
        with pytest.raises(WorkerLost, match="stopped"):
            workers.run(held.job, ignore)
    workers.close()


@pytest.mark.soak
def test_a_killed_fork_server_is_replaced_and_its_workers_work_on(bench: Bench) -> None:
    """Jobs at work do not notice, and the next job gets a worker from a new server."""
    with LocalWorkers(1) as workers:
        with Held(workers, bench) as held:
            server = held.worker.parent()
            assert server is not None
            assert "nbflow.headless.workers.forkserver" in " ".join(server.cmdline())
            names = [path.read_text().strip() for path in Path(f"/proc/{server.pid}/task").glob("*/comm")]
            assert len(set(names) - {"jemalloc_bg_thd"}) == 1, names
            assert len(names) <= 2, "who forks must have one thread, besides the one of Arrow's allocator"
            kill(server.pid)
            server.wait(30)
        assert held.outcome is not None
        assert held.outcome.state == "completed"
        again = msgspec.structs.replace(held.job, item=bench.job(bench.cells("x = 1"), 1).item)
        assert workers.run(again, ignore).state == "completed"
    bench.clean()


@pytest.mark.soak
def test_where_forking_is_not_safe_a_worker_is_an_interpreter_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: the same promises, with a slower start."""
    monkeypatch.setattr("nbflow.headless.workers.local.FORKS", False)
    with LocalWorkers(1) as workers:
        with Held(workers, bench) as held:
            assert os.getsid(held.worker.pid) == held.worker.pid
            kill(held.worker.pid)
            held.thread.join(60)
        assert "was killed by SIGKILL" in str(held.error)
        gone(held.kernel.pid, 0)
        assert carried_on(workers, held).state == "completed"
        assert effects(held.done) == ["a", "b"]
    bench.clean()


def test_stopping_does_not_wait_until_the_server_has_loaded() -> None:
    """A batch that is stopped in its first second is stopped then."""
    with LocalWorkers(1) as workers:
        waiting = threading.Thread(target=lambda: pytest.raises(WorkerLost, workers._begin))
        waiting.start()
        workers.stop()
        waiting.join(60)
        assert not waiting.is_alive()
        assert workers._server is None or not workers._server.ready


def test_forking_warns_nobody_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 warns where a process with threads is forked: the batch of a user must not print that."""

    def fork() -> int:
        warnings.warn(
            "This process is multi-threaded, use of fork() may lead to deadlocks.", DeprecationWarning
        )
        return 42

    monkeypatch.setattr(os, "fork", fork)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert forkserver._fork(0, [], lambda: None) == 42


def test_a_limit_of_memory_that_the_system_refuses_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the hard limit is an error that says so, and not a notebook without the limit."""
    import resource

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    terms = {"protocol": PROTOCOL, "memory": 2**40}
    answer = json.loads(unattended.begin(None, json.dumps(terms)))
    assert answer["error"]["type"] == "UsageError"
    assert "not allowed to raise" in answer["error"]["message"]


def test_a_kernel_with_another_version_of_the_protocol_records_nothing() -> None:
    """papermill and kernel may be of two environments: the error says so before anything is misunderstood."""
    answer = json.loads(unattended.begin(None, json.dumps({"protocol": PROTOCOL + 1})))
    assert answer["error"]["type"] == "UsageError"
    assert f"version {PROTOCOL + 1}" in answer["error"]["message"]


def test_closing_leaves_no_process(bench: Bench) -> None:
    """The fork server ends with its workers' owner."""
    before = set(psutil.Process().children(recursive=True))
    workers = LocalWorkers(1)
    workers.close()
    workers.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_width_that_makes_no_sense_is_refused() -> None:
    """Nothing is started for zero workers."""
    with pytest.raises(UsageError, match="one worker or more"):
        LocalWorkers(0)
