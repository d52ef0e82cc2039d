"""The workers of a batch on a Dask cluster: `nbflow.batch(…, executor="dask", scheduler="tcp://…")`.

Dask decides where a notebook runs, and runs it elsewhere when a worker is lost;
there it carries on from its last recorded cell, for its run lies in the store's
folder, which all see. What happens in a Dask worker is in `remote`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from nbflow.core.errors import UsageError, WorkerLost
from nbflow.headless.batches.jobs import Job, Outcome, Progress, Told
from nbflow.headless.workers import remote
from nbflow.headless.workers.beacon import Beacon, lit
from nbflow.headless.workers.local import processors

if TYPE_CHECKING:
    from distributed import Client

#: Seconds to wait for a scheduler to answer.
_CONNECT = 5.0
#: How often a waiting job looks whether there is anybody left who may do it (seconds).
_LOOK = 2.0
#: How often the workers of the cluster are counted anew: the runner asks behind every cell (seconds).
_COUNT = 1.0
#: How long a stopped job may take to end before its worker is given up (seconds).
_FAREWELL = 15.0

_HINT = (
    "The notebook, the store's folder and the working directory must be the same files on every worker: put them "
    "on a file system that all mount at the same place and that has locks (NFS 4, Lustre with flock, GPFS, CephFS). "
    "So must be the signing key ($NBFLOW_DATA_DIR/key), and the versions of Python and nbflow."
)


class DaskWorkers:
    """Do the jobs of a batch on a Dask cluster; implements `Workers`.

    `scheduler` is an address (`tcp://…`, `tls://…`), the path of a scheduler file
    (`….json`), a `distributed.Client`, or None for a cluster of our own on this
    machine with `workers` processes. `workers` bounds how many notebooks run at a
    time; by default one for each thread of each Dask worker.

    With `store` (the store's folder) and `notebook` every worker is checked at once,
    else with the first job: whether it sees the same files and locks and has the
    same versions of Python and nbflow. Workers that join later are checked when
    they come; one that does not pass gets no notebooks.

    Raises:
        UsageError: `distributed` is not installed, nobody answers at the address, or
            a worker does not pass; it is named, with what to do.

    >>> with_cluster = DaskWorkers("tcp://nowhere.invalid:8786")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    nbflow.core.errors.UsageError: No Dask scheduler answers at tcp://nowhere.invalid:8786 …
    """

    def __init__(
        self,
        scheduler: str | os.PathLike[str] | Client | None = None,
        *,
        workers: int | None = None,
        store: str | os.PathLike[str] | None = None,
        notebook: str | os.PathLike[str] = "",
    ) -> None:
        self._token = secrets.token_hex(8)
        self._limit, self._width, self._counted = workers, 1, float("-inf")
        self._ends = contextlib.ExitStack()
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._waiting: dict[str, queue.SimpleQueue[Progress | None]] = {}
        self._beacons: dict[str, Beacon] = {}
        #: What is wrong with each worker that was looked at; "" where nothing is.
        self._looked_at: dict[str, str] = {}
        try:
            self._client: Any = self._connect(scheduler)
            self._client.subscribe_topic(remote.topic_of(self._token), self._heard)
            if store is not None:
                self.check(store, notebook)
        except BaseException:
            self.close()
            raise

    @property
    def width(self) -> int:
        """How many jobs are done at a time."""
        if self._limit:
            return self._limit
        if time.monotonic() - self._counted > _COUNT:
            with contextlib.suppress(OSError):  # the scheduler does not answer: the jobs at work will say so
                self._width = max(1, sum(self._threads().values()))
            self._counted = time.monotonic()
        return self._width

    def _threads(self) -> dict[str, int]:
        """Return the workers of the cluster by their address, and how many threads each has.

        Raises:
            OSError: the scheduler does not answer.
        """
        try:
            found: dict[str, int] = self._client.nthreads()
        except RuntimeError as error:  # the client has given the scheduler up for good
            raise ConnectionError(str(error)) from error
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scheduler = self._client.scheduler
        return f"DaskWorkers({scheduler.address if scheduler else 'closed'!r})"

    # --- the cluster -------------------------------------------------------------------------------------

    def _connect(self, scheduler: Any) -> Any:
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise UsageError(
                'executor="dask" needs distributed.', hint="Install it with `pip install nbflow[dask]`."
            ) from error
        if isinstance(scheduler, Client):
            if scheduler.asynchronous:
                raise UsageError(
                    "An asynchronous Dask client cannot be used here.",
                    hint="Make it with Client(…, asynchronous=False).",
                )
            return scheduler
        where: dict[str, Any]
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=self._limit or processors(),
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                # The notebooks are not in the Dask workers: `Options.memory` bounds them.
                memory_limit=0,
                preload=[remote.__name__],
            )
            self._ends.callback(cluster.close)
            where = {"address": cluster}
        elif str(scheduler).endswith(".json"):
            where = {"scheduler_file": str(scheduler)}
            if not Path(str(scheduler)).is_file():
                raise UsageError(
                    f"There is no scheduler file {scheduler}.",
                    hint="`dask scheduler --scheduler-file FILE` writes it.",
                )
        else:
            where = {"address": str(scheduler)}
        try:
            client = Client(**where, timeout=_CONNECT, set_as_default=False, direct_to_workers=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"No Dask scheduler answers at {scheduler} within {_CONNECT:g} s ({error}).",
                hint="Start one with `dask scheduler`, or leave the scheduler out for a cluster on this machine.",
            ) from error
        self._ends.callback(client.close)
        return client

    def check(self, store: str | os.PathLike[str], notebook: str | os.PathLike[str] = "") -> None:
        """Look whether all workers of the cluster can do the jobs of a batch.

        Raises:
            UsageError: one cannot; it is named with the reason.
            OSError: the store's folder cannot be written, or has no locks.
        """
        problems = self._look_at_new(self._beacon_in(os.fspath(store)), os.fspath(notebook))
        if problems:
            raise UsageError(" ".join(f"The Dask worker {each}." for each in problems), hint=_HINT)

    def _beacon_in(self, store: str) -> Beacon:
        with self._guard:
            if store not in self._beacons:
                self._beacons[store] = self._ends.enter_context(lit(Path(store)))
            return self._beacons[store]

    def _look_at_new(self, beacon: Beacon, notebook: str) -> list[str]:
        """Look at the workers that have come; return what is wrong with which."""
        with self._guard:
            new = [address for address in self._threads() if address not in self._looked_at]
            if not new:
                return []
            found = self._versions_of(new)
            rest = [address for address in new if not found[address]]
            digest = remote.digest_of(notebook) if notebook else ""
            seen: dict[str, Any] = {}
            if rest:
                seen = self._client.run(
                    remote.problem_here, beacon, notebook, digest, workers=rest, on_error="return"
                )
            for address in rest:
                answer = seen.get(address, ("", ""))  # it left again meanwhile
                if isinstance(answer, BaseException):
                    answer = "", f"does not answer as it should ({type(answer).__name__}: {answer})"
                host, why = answer
                found[address] = f"{address} on {host} {why}" if why else ""
            self._looked_at.update(found)
            return [why for why in found.values() if why]

    def _versions_of(self, addresses: list[str]) -> dict[str, str]:
        """Return what is wrong with the versions of each worker."""
        told = self._client.get_versions(packages=["nbflow"])
        mine = told["client"]["packages"]
        found = {}
        for address in addresses:
            theirs = (told["workers"].get(address) or {}).get("packages")
            found[address] = ""
            if theirs is None:
                continue
            python, here = (".".join(str(each["python"]).split(".")[:2]) for each in (theirs, mine))
            if python != here:
                found[address] = f"{address} has Python {python}, and here it is {here}"
            elif theirs["nbflow"] != mine["nbflow"]:
                has = f"nbflow {theirs['nbflow']}" if theirs["nbflow"] else "no nbflow"
                found[address] = f"{address} has {has}, and here it is {mine['nbflow']}"
        return found

    # --- a job -------------------------------------------------------------------------------------------

    def run(self, job: Job, told: Told) -> Outcome:
        """Do a job on some worker of the cluster; see `Workers`.

        Raises:
            WorkerLost: the batch was stopped, or the workers that did the job died again and again.
            UsageError: no worker of the cluster can do it.
            OSError: the store's folder cannot be written, or has no locks.
        """
        beacon = self._beacon_in(job.store)
        try:
            return self._run(job, beacon, told)
        except OSError as error:  # Dask's own when a connection breaks
            raise WorkerLost(
                f"The Dask scheduler does not answer ({error}).",
                run=job.item.run,
                hint="Where it is gone, start another one and resume the batch there.",
            ) from error

    def _run(self, job: Job, beacon: Beacon, told: Told) -> Outcome:
        if not self._looked_at:
            self.check(job.store, job.notebook)
        while not self._stopped.is_set():
            self._look_at_new(beacon, job.notebook)
            parcel = remote.Parcel(
                job=_anywhere(job),
                token=self._token,
                key=f"nbflow-{job.item.run}-{secrets.token_hex(4)}",  # what failed once must not be taken for this
                beacon=beacon,
                digest=remote.digest_of(job.notebook),
            )
            answer = self._submitted(parcel, told)
            if isinstance(answer, Outcome):
                return answer
            with self._guard:
                self._looked_at[answer.worker] = f"{answer.worker} on {answer.host} {answer.why}"
        raise WorkerLost("The batch was stopped.", run=job.item.run)

    def _submitted(self, parcel: remote.Parcel, told: Told) -> Outcome | remote.Refused:
        chosen = self._fit(parcel)
        heard: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._waiting[parcel.key] = heard
        future = self._client.submit(
            remote.do, parcel, key=parcel.key, pure=False, workers=chosen, allow_other_workers=False
        )
        try:
            future.add_done_callback(lambda _: heard.put(None))
            self._wait(parcel, heard, told, chosen)
            return _result_of(future, parcel)
        finally:
            del self._waiting[parcel.key]
            with contextlib.suppress(Exception):  # the scheduler may be gone: then so is the job
                future.cancel()

    def _fit(self, parcel: remote.Parcel) -> list[str] | None:
        """Return the workers that may do a job; None when all may.

        Raises:
            UsageError: there are workers, and none of them may.
        """
        with self._guard:
            bad = {address: why for address, why in self._looked_at.items() if why}
        if not bad:
            return None
        there = set(self._threads())
        if fit := sorted(there - set(bad)):
            return fit
        reasons = " ".join(f"The Dask worker {why}." for address, why in bad.items() if address in there)
        if not reasons:
            return None
        raise UsageError(f"No worker can do this. {reasons}", run=parcel.job.item.run, hint=_HINT)

    def _wait(
        self,
        parcel: remote.Parcel,
        heard: queue.SimpleQueue[Progress | None],
        told: Told,
        chosen: list[str] | None,
    ) -> None:
        """Return when a job is over, passing on how far it is."""
        patience: float | None = None
        while True:
            try:
                progress = heard.get(timeout=_LOOK)
            except queue.Empty:
                if chosen is not None and not set(chosen) & set(self._threads()):
                    raise WorkerLost(
                        "The Dask workers that could do this are gone.", run=parcel.job.item.run
                    ) from None
            else:
                if progress is None:
                    return
                told(progress)
            if self._stopped.is_set():
                patience = patience or time.monotonic() + _FAREWELL
                if time.monotonic() > patience:
                    raise WorkerLost("The batch was stopped.", run=parcel.job.item.run)

    def _heard(self, event: tuple[float, Any]) -> None:
        """Take in what a worker says of a job; called in the client's own thread."""
        key, cells, total, restored = event[1]
        heard = self._waiting.get(key)
        if heard is not None:
            heard.put(Progress(cells=cells, total=total, restored=restored))

    # --- the end -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the jobs at work now; see `Workers`."""
        self._stopped.set()
        with contextlib.suppress(Exception):  # who cannot be reached finds the beacon out
            self._client.run(remote.end, self._token, on_error="ignore")

    def close(self) -> None:
        """Let the cluster go, and end it if it is our own. Closing twice is fine."""
        client = getattr(self, "_client", None)
        if client is not None and client.status == "running":
            with contextlib.suppress(Exception):  # who cannot be reached finds the beacon out
                client.unsubscribe_topic(remote.topic_of(self._token))
                client.run(remote.end, self._token, on_error="ignore")
        self._ends.close()


def _result_of(future: Any, parcel: remote.Parcel) -> Outcome | remote.Refused:
    from distributed import KilledWorker

    run = parcel.job.item.run
    try:
        answer: Outcome | remote.Refused = future.result(timeout=_FAREWELL)
        return answer
    except KilledWorker as error:
        raise WorkerLost(f"Every Dask worker that ran {run} died: {error}", run=run) from error
    except (CancelledError, TimeoutError) as error:
        raise WorkerLost(
            f"The Dask scheduler has given up run {run} ({type(error).__name__}).",
            run=run,
            hint="It was restarted, or the connection to it broke.",
        ) from error
    except ModuleNotFoundError as error:
        raise UsageError(
            f"A Dask worker has no {error.name}.", run=run, hint="Install the same packages on all."
        ) from error


def _anywhere(job: Job) -> Job:
    """Return a job that means the same in a process with another working directory."""
    cwd = Path.cwd()
    return msgspec.structs.replace(
        job,
        notebook=_absolute(job.notebook, cwd),
        item=msgspec.structs.replace(job.item, output=_absolute(job.item.output, cwd)),
        options=msgspec.structs.replace(job.options, cwd=str(cwd / (job.options.cwd or ""))),
    )


def _absolute(path: str, cwd: Path) -> str:
    return path if "://" in path else str(cwd / path)
