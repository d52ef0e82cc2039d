"""The local workers: a fresh process for each notebook, and nothing of it left when it is over, however it ended.

Each job gets a process that shares nothing with the one before: it is forked
from a process that only has papermill loaded (`forkserver.py`), has a session of
its own, so that Ctrl-C in the terminal does not reach it, and ends with its
runner. The kernel is its child and lives in the job's scratch folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import msgspec

from nbflow.core.errors import NbflowError, UsageError, WorkerLost
from nbflow.headless.batches.jobs import Job, Outcome, Progress, Told
from nbflow.headless.workers.forkserver import NUMBER
from nbflow.headless.workers.process import OUTCOME, tail
from nbflow.headless.workers.scratch import alive, end_orphans, remove_scratch

#: Seconds that a worker has to end by itself once nobody listens to it any more.
GRACE = 5.0

#: Forking a process that has loaded as much as papermill is safe on Linux; macOS starts an interpreter instead.
FORKS = sys.platform == "linux"


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Worker:
    """A worker process as its runner knows it: the connection, its id, and how to hear of its end."""

    connection: socket.socket
    ending: _ForkEnd | _ChildEnd

    def hang_up(self) -> None:
        """Have it end itself, and its kernel first; from any thread."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def gone(self) -> int | None:
        """Return its exit code when it is gone, killed if it does not go; None where nobody knows the code."""
        if not self.ending.wait(GRACE):
            self.ending.kill()
            self.ending.wait(GRACE)
        return self.ending.code


class LocalWorkers:
    """`width` processes of this machine at a time; see `Workers`.

    >>> with LocalWorkers(2) as workers:
    ...     workers.width
    2
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise UsageError(f"A batch needs one worker or more, not {width}.")
        if os.name != "posix":
            raise UsageError(
                "Local workers need Linux or macOS.", hint="Run the batch in WSL, or on a Dask cluster."
            )
        self._width = width
        self._mutex = threading.Lock()
        #: Held while a process is started, which takes seconds where the server is still loading.
        self._starting = threading.Lock()
        self._at_work: set[_Worker] = set()
        self._stopped = False
        self._server: _Server | None = _Server() if FORKS else None  # it loads while the runner gets ready

    @property
    def width(self) -> int:
        """See `Workers`."""
        return self._width

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job, told: Told) -> Outcome:
        """Do as `Workers` says.

        Raises:
            NbflowError: no process can be started at all.
        """
        worker = self._begin()
        outcome = None
        try:
            outcome = _hear(worker, job, told)
        finally:
            worker.hang_up()
            code = worker.gone()
            with self._mutex:
                self._at_work.discard(worker)
            worker.connection.close()
            log = "" if outcome is not None else _clean(Path(job.scratch))
        if outcome is None:
            raise WorkerLost(_how(job, code, log, stopped=self._stopped), run=job.item.run, log=log)
        return outcome

    def _begin(self) -> _Worker:
        ours, its = socket.socketpair()
        try:
            with its:
                worker = self._forked(ours, its) if FORKS else _spawned(ours, its)
        except BaseException:
            ours.close()
            raise
        with self._mutex:
            self._at_work.add(worker)
            if self._stopped:
                worker.hang_up()
        return worker

    def _forked(self, ours: socket.socket, its: socket.socket) -> _Worker:
        with self._starting:
            for _ in range(2):
                with self._mutex:
                    if self._stopped:
                        raise WorkerLost("The workers of this batch are stopped.")
                    if self._server is None:
                        self._server = _Server()
                    server = self._server
                ending = server.fork(its)
                if ending is not None:
                    return _Worker(ours, ending)
                server.close()  # somebody killed it: a new one is there in a moment
                with self._mutex:
                    self._server = None
        raise NbflowError(
            "No worker process can be started: the process that starts them ends at once.",
            hint=f'`{sys.executable} -c "import papermill, nbflow.headless.execution.conduct"` may say why.',
        )

    def stop(self) -> None:
        """See `Workers`."""
        with self._mutex:
            self._stopped = True
            for worker in self._at_work:
                worker.hang_up()
            if self._server is not None and not self._server.ready:
                self._server.kill()  # nobody waits for what it loads

    def close(self) -> None:
        """See `Workers`."""
        self.stop()
        with self._mutex:
            server, self._server = self._server, None
        if server is not None:
            server.close()


def _hear(worker: _Worker, job: Job, told: Told) -> Outcome | None:
    """Give the worker its job and listen to its end; None when it is gone without a word."""
    connection = Connection(os.dup(worker.connection.fileno()))
    try:
        connection.send_bytes(msgspec.msgpack.encode(job))
        while True:
            message = connection.recv_bytes()
            if message[:1] == OUTCOME:
                return msgspec.msgpack.decode(message[1:], type=Outcome)
            told(msgspec.msgpack.decode(message[1:], type=Progress))
    except (EOFError, OSError):
        return None
    finally:
        connection.close()


def _how(job: Job, code: int | None, log: str, *, stopped: bool) -> str:
    subject = f"The worker of item {job.item.index} ({job.item.output})"
    if stopped:
        return f"{subject} was stopped."
    if code is not None and code < 0:
        try:
            how = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
        memory = " The machine may have run out of memory." if code == -signal.SIGKILL else ""
        return f"{subject} {how}.{memory}"
    ended = "is gone" if code is None else f"ended with exit code {code}"
    return f"{subject} {ended}." + (f" Its last words:\n{log}" if log else "")


def _clean(scratch: Path) -> str:
    """End the kernel that a lost worker left and remove its folder; return the end of its log."""
    log = tail(scratch)
    if scratch.exists():
        end_orphans(scratch)
        remove_scratch(scratch)
    return log


# --- starting a process ---------------------------------------------------------------------------------------


class _Server:
    """The process that forks workers."""

    def __init__(self) -> None:
        #: Whether it has loaded what it forks, as its first answer shows.
        self.ready = False
        self._control, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nbflow.headless.workers.forkserver", str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def fork(self, its: socket.socket) -> _ForkEnd | None:
        """Start a worker at the other end of a connection; None when the server is gone."""
        ending, tell = os.pipe()
        try:
            socket.send_fds(self._control, [b"."], [its.fileno(), tell])
        except OSError:
            os.close(ending)
            return None
        finally:
            os.close(tell)
        pid = os.read(ending, NUMBER)
        if len(pid) != NUMBER:
            os.close(ending)
            return None
        self.ready = True
        return _ForkEnd(int.from_bytes(pid, sys.byteorder), ending)

    def kill(self) -> None:
        """End the server; it has nothing to put away."""
        self._process.kill()

    def close(self) -> None:
        """End the server and see it gone."""
        self._control.close()
        self.kill()
        self._process.wait()


class _ForkEnd:
    """The end of a forked worker, as the server tells it; where the server is gone, the system has to."""

    def __init__(self, pid: int, pipe: int) -> None:
        import psutil

        self._pipe: int | None = pipe
        self._process: psutil.Process | None
        try:
            self._process = psutil.Process(pid)  # knows it from a later one with the same id
        except psutil.NoSuchProcess:
            self._process = None
        self.code: int | None = None

    def kill(self) -> None:
        """Kill the worker."""
        import psutil

        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; False when it did not come."""
        end = time.monotonic() + seconds
        if self._pipe is not None:
            # `select` cannot take descriptors above 1023.
            poll = select.poll()
            poll.register(self._pipe, select.POLLIN | select.POLLHUP)
            if not poll.poll(seconds * 1000):
                return False
            said = os.read(self._pipe, NUMBER)
            os.close(self._pipe)
            self._pipe = None
            if len(said) == NUMBER:
                self.code = int.from_bytes(said, sys.byteorder, signed=True)
        if self.code is not None or self._process is None:
            return True
        while alive(self._process):
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


class _ChildEnd:
    """The end of a worker that is a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def code(self) -> int | None:
        """The exit code, when it is there."""
        return self._process.returncode

    def kill(self) -> None:
        """Kill the worker."""
        self._process.kill()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; False when it did not come."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _spawned(ours: socket.socket, its: socket.socket) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-m", "nbflow.headless.workers.process", str(its.fileno())],
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return _Worker(ours, _ChildEnd(process))
