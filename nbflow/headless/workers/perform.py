"""One notebook of a batch, executed in this process: `execute` takes a job and returns how it ended.

It needs a process that does nothing else (`process.py` is its life): the job's
environment variables are this process's while it works, see `surroundings`;
`perform` is both, for workers of one's own. Whoever wants a
notebook done on another machine (Dask) best calls `LocalWorkers(1).run` there:
then the notebook has a process of its own, which ends with whoever asked for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import KernelDied, RunCancelled, UsageError
from nbflow.core.model import ErrorInfo, RunOpened
from nbflow.headless.batches.jobs import Job, Outcome, Progress, Told
from nbflow.headless.identity import verbatim
from nbflow.headless.waiting import NotebookWaits, Waiting
from nbflow.headless.workers.delivery import keep, make_folder, whole_files
from nbflow.headless.workers.scratch import kernel_in, make_scratch, remove_scratch
from nbflow.values.failures import encode_error

#: What numeric libraries ask for the number of their threads.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)

#: What a process that was itself started by a kernel says of that kernel's run, and not of ours.
FOREIGN = ("NBFLOW_RUN", "NBFLOW_NOTEBOOK", "JPY_SESSION_NAME", "JPY_PARENT_PID")

#: Text of a traceback that travels (characters).
_TRACEBACK = 20_000


def perform(job: Job, told: Told) -> Outcome:
    """Execute one notebook to its end, carrying its run on where there is something to carry on.

    A notebook that fails is an outcome and raises nothing. The scratch folder is
    made before and gone afterwards; the environment is as it was.
    """
    began = time.monotonic()
    try:
        with surroundings(job):
            return execute(job, told)
    except OSError as error:  # the scratch folder cannot be made
        return failed(error, time.monotonic() - began)


def execute(job: Job, told: Told) -> Outcome:
    """Do as `perform` within `surroundings`."""
    import papermill

    began = time.monotonic()
    books: list[Any] = []

    def tell(its: Any) -> None:
        books[:] = [its]
        told(Progress(its.done, len(its.nb.cells), its.counts["restored"]))

    problem: Exception | None = None
    waiting: Waiting | None = None
    item, options = job.item, job.options
    try:
        require_limits(options.memory)
        make_folder(item.output)
        with whole_files():
            papermill.execute_notebook(
                verbatim(job.notebook),
                verbatim(item.output),
                parameters=dict(item.params) or None,
                engine_name="nbflow",
                kernel_name=options.kernel,
                progress_bar=False,
                start_timeout=options.start_timeout,
                execution_timeout=options.execution_timeout,
                report_mode=options.report_mode,
                cwd=options.cwd,
                nbflow_item=RunOpened(run=item.run, workflow="", parent=job.batch, parent_step=item.step),
                nbflow_begun=job.begun,
                nbflow_store=job.store,
                nbflow_collect=options.collect,
                nbflow_memory=options.memory,
                nbflow_approve=job.approve,
                nbflow_told=tell,
                **kernel_in(Path(job.scratch)),
            )
    except NotebookWaits as error:
        waiting = error.waiting
    except Exception as error:  # noqa: BLE001 - whatever went wrong is how this item ended
        problem = error
        if books and books[0].nb.metadata.get("nbflow", {}).get("state") == "completed":
            keep(job, books[0].nb)
    facts = books[0].nb.metadata.get("nbflow", {}) if books else {}
    return Outcome(
        state="waiting" if waiting is not None else _state(problem),
        seconds=time.monotonic() - began,
        attempt=facts.get("attempt"),
        restored=int(facts.get("restored", 0)),
        ran=int(facts.get("ran", 0)),
        error=None if problem is None else _info(problem, options.memory),
        cell=getattr(problem, "cell_index", getattr(problem, "cell", None)),
        waiting=waiting,
    )


def failed(problem: Exception, seconds: float) -> Outcome:
    """Return the outcome of a job that could not even begin."""
    return Outcome(state="failed", seconds=seconds, error=_info(problem, None))


def require_limits(memory: int | None) -> None:
    """Refuse a limit of memory where the system knows none.

    Raises:
        UsageError: this is not Linux.
    """
    if memory is not None and sys.platform != "linux":
        raise UsageError(
            "A limit of memory for each notebook needs Linux: other systems do not enforce one.",
            hint="Leave the limit out.",
        )


@contextmanager
def surroundings(job: Job) -> Iterator[None]:
    """Have the scratch folder and the environment of a job for the body of a with statement.

    Raises:
        OSError: the scratch folder cannot be made.
    """
    scratch = Path(job.scratch)
    make_scratch(scratch)
    before = dict(os.environ)
    for name in FOREIGN:
        os.environ.pop(name, None)
    if job.options.threads is not None:
        os.environ.update(dict.fromkeys(THREADS, str(job.options.threads)))
    os.environ["JUPYTER_RUNTIME_DIR"] = str(scratch)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        remove_scratch(scratch)


def _state(problem: Exception | None) -> Any:
    if problem is None:
        return "completed"
    return "cancelled" if isinstance(problem, RunCancelled) else "failed"


def _info(problem: Exception, memory: int | None) -> ErrorInfo:
    """Return the notebook's own error where that is what ended it, else what went wrong around it."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(problem, PapermillExecutionError):
        traceback = "\n".join(problem.traceback)[-_TRACEBACK:]
        return ErrorInfo(type=str(problem.ename), message=str(problem.evalue), traceback=traceback)
    info = msgspec.structs.replace(encode_error(problem), pickled=None)
    if isinstance(problem, KernelDied):  # its hint is for one notebook; the runner has that of a batch
        info = msgspec.structs.replace(info, message=problem.message)
    if memory is not None and isinstance(problem, KernelDied):
        said = f"{info.message} Its memory is limited to {memory / 2**20:.0f} MiB, which may be the reason."
        info = msgspec.structs.replace(info, message=said)
    return info
