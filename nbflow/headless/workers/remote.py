"""A job of a batch on another machine: what a Dask worker does with it.

    the runner         DaskWorkers.run: submits `do`, hears of its progress
      → a Dask worker  do: looks whether it sees the right files, and has the job done
        → a process    LocalWorkers: a fresh one for each notebook, as on one machine
          → a kernel

Nothing of a notebook stays in the Dask worker, its memory is given back, and it
can be ended, which a thread of Dask's cannot. The process ends with the Dask
worker, however that dies; and the Dask worker ends it when the runner is gone.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from nbflow.core.errors import LeaseHeld, WorkerLost
from nbflow.headless.batches.jobs import Job, Outcome, Progress
from nbflow.headless.workers.beacon import Beacon
from nbflow.headless.workers.local import LocalWorkers

#: How often a Dask worker looks whether the runner is alive: a lock on a file server is not free (seconds).
_RUNNER = 2.0
#: How long a file server may keep the lease of a machine that is gone (seconds); NFS takes 90.
_FOREIGN_LEASE = 180.0


class Parcel(msgspec.Struct, frozen=True):
    """All that a Dask worker needs for a job.

    `token` names the runner, `key` this try; `digest` is that of the notebook's file,
    "" for a URL.
    """

    job: Job
    token: str
    key: str
    beacon: Beacon
    digest: str = ""


class Refused(msgspec.Struct, frozen=True):
    """What a Dask worker answers that cannot do a job: `why` continues the sentence "The worker …"."""

    worker: str
    host: str
    why: str


def digest_of(notebook: str) -> str:
    """Return the digest of a notebook's file; "" for a URL, and for a file that is not there.

    >>> digest_of("s3://bucket/flights.ipynb")
    ''
    """
    if "://" in notebook:
        return ""
    try:
        return blake3(Path(notebook).read_bytes()).hexdigest()
    except OSError:
        return ""


def topic_of(token: str) -> str:
    """Return the name under which Dask passes on the progress of a runner's jobs.

    >>> topic_of("a1b2")
    'nbflow-a1b2'
    """
    return f"nbflow-{token}"


def problem_here(beacon: Beacon, notebook: str, digest: str, cwd: str = "") -> tuple[str, str]:
    """Return the name of this machine, and why notebooks cannot run on it ("" when they can)."""
    problem = beacon.problem()
    if not problem and digest:
        found = digest_of(notebook)
        if not found:
            problem = f"does not see the notebook {notebook}"
        elif found != digest:
            problem = f"sees another file under the name of the notebook, {notebook}"
    if not problem and cwd and not Path(cwd).is_dir():
        problem = f"does not see the working directory {cwd}"
    return socket.gethostname(), problem


# --- in the Dask worker ------------------------------------------------------------------------------------


class Crew:
    """The processes that do one runner's jobs in this Dask worker; they end when it ends, or dies."""

    def __init__(self, token: str, beacon: Beacon) -> None:
        self.workers = LocalWorkers(1)
        self.over = threading.Event()
        #: The folder for what must not stay is this crew's own: there may be another on this machine.
        self.mark = secrets.token_hex(2)
        told = token, beacon
        threading.Thread(target=self._watch, args=told, name="nbflow-runner-watch", daemon=True).start()

    def _watch(self, token: str, beacon: Beacon) -> None:
        while not self.over.wait(_RUNNER):
            if not beacon.burns():
                end(token)

    def end(self) -> None:
        """End the jobs at work, and let the processes go."""
        self.over.set()
        self.workers.close()

    def do(self, job: Job, told: Any) -> Outcome:
        """Do a job; see `Workers`."""
        scratch = Path(job.scratch)
        place = scratch.parent.with_name(f"{scratch.parent.name}{self.mark}") / scratch.name
        return self.workers.run(msgspec.structs.replace(job, scratch=str(place)), told)


_guard = threading.Lock()
_crews: dict[str, Crew] = {}
#: Runners that are done here: what still comes of theirs is not begun.
_ended: set[str] = set()


def _crew_of(parcel: Parcel) -> Crew:
    with _guard:
        crew = _crews.get(parcel.token)
        if parcel.token in _ended:
            raise WorkerLost("The batch was stopped.", run=parcel.job.item.run)
        if crew is None:
            crew = _crews[parcel.token] = Crew(parcel.token, parcel.beacon)
        return crew


def end(token: str) -> None:
    """Have the jobs of a runner end in this Dask worker, those at work and those that come."""
    with _guard:
        _ended.add(token)
        crew = _crews.pop(token, None)
    if crew is not None:
        # Not in Dask's own thread, which has others to talk to.
        threading.Thread(target=crew.end, name="nbflow-end", daemon=True).start()


def do(parcel: Parcel) -> Outcome | Refused:
    """Do a job; the task that a Dask worker is given.

    Raises:
        WorkerLost: the process died, the runner is gone, or the batch was stopped.
    """
    from distributed import get_worker

    worker = get_worker()
    job = parcel.job
    host, why = problem_here(parcel.beacon, job.notebook, parcel.digest, job.options.cwd or "")
    if why:
        return Refused(worker.address, host, why)
    crew = _crew_of(parcel)
    job = msgspec.structs.replace(job, begun=job.begun or parcel.beacon.marked(parcel.key))

    def told(progress: Progress) -> None:
        facts = [parcel.key, progress.cells, progress.total, progress.restored]
        worker.log_event(topic_of(parcel.token), facts)

    give_up = time.monotonic() + _FOREIGN_LEASE
    while True:
        outcome = crew.do(job, told)
        if not outcome.is_of(LeaseHeld) or time.monotonic() > give_up:
            return outcome
        # The worker that had this run is cut off, or its machine is gone: its lease ends with it.
        job = msgspec.structs.replace(job, begun=True)


def dask_setup(_worker: Any) -> None:
    """Prepare a Dask worker of our own cluster: Ctrl-C in the terminal is for the runner, which drains."""
    with contextlib.suppress(ValueError):  # not the main thread: then the signal never comes here
        signal.signal(signal.SIGINT, lambda *_: None)
