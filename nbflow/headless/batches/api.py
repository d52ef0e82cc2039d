"""`nbflow.batch`: a notebook over many parameters, on the processors of this machine or on a Dask cluster.

It puts the parts together: rows of parameters become a plan, the plan a run
(`Runner`), the run's items jobs for workers. The command line and Python both
come in here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbflow.core.errors import UsageError
from nbflow.core.ids import new_run_id
from nbflow.core.model import RunInfo
from nbflow.core.states import RunState
from nbflow.headless.batches.jobs import Options, Plan, Watcher, Workers
from nbflow.headless.batches.line import line_of_this_notebook
from nbflow.headless.batches.request import Asked, attached, find, recorded_plan, store_for
from nbflow.headless.batches.runner import Runner, State, Tally
from nbflow.headless.workers.local import LocalWorkers, processors
from nbflow.headless.workers.perform import require_limits
from nbflow.runtime.gates.ahead import Approvals
from nbflow.store.local import LocalStore

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Batch:
    """How a batch stands. `left` notebooks did not come to an end; `store` is where the results are.

    `state` is completed; failed (some notebooks failed); waiting (none failed, and some
    stopped at gates); cancelled, which is final; or interrupted: somebody stopped it.
    All but completed and cancelled ones can be resumed.
    """

    id: str
    notebook: str
    state: State
    completed: int
    failed: int
    left: int
    store: Path = field(repr=False)
    waiting: int = 0

    def results(self, collect: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Return one row for each notebook: parameters, state, and variables; see `nbflow.batch_results`."""
        from nbflow.headless.batches.results import batch_results

        return batch_results(self.id, collect=collect, store=self.store)

    def __str__(self) -> str:
        counts = [f"{self.completed} completed"]
        counts += [
            f"{number} {word}"
            for number, word in ((self.failed, "failed"), (self.waiting, "waiting"), (self.left, "left"))
            if number
        ]
        return f"Batch {self.id} of {self.notebook} is {self.state}: {', '.join(counts)}."


def batch(  # noqa: PLR0913 - what a batch may be told; all but two by name
    notebook: str | os.PathLike[str] | None,
    parameters: Any = None,
    *,
    output: str = "runs/{run_id}.ipynb",
    workers: int | None = None,
    executor: Literal["processes", "dask"] | Workers = "processes",
    scheduler: Any = None,
    kernel: str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    collect: str | Sequence[str] = (),
    threads: int | None = 1,
    memory: int | None = None,
    start_timeout: int = 60,
    execution_timeout: int | None = None,
    max_failures: int | None = None,
    retry_failed: int = 0,
    resume: bool | str = False,
    overwrite: bool = False,
    skip_duplicates: bool = False,
    tags: dict[str, str] | None = None,
    approve: Approvals | Iterable[str] | Mapping[str, str] = (),
    store: LocalStore | str | os.PathLike[str] | None = None,
    watcher: Watcher | None = None,
) -> Batch:
    """Run a notebook once for each row of parameters, several at a time, and return how that went.

    Each notebook is a durable run of its own, in a process of its own. Whatever is
    killed (a kernel, a worker, this process, the machine), `resume=True` carries the
    batch on: what is completed does not run again, the rest goes on from its last
    recorded cell. A notebook that stops at a gate leaves its worker to others; when
    somebody has decided it goes on, in this call or a later one with `resume=True`.
    Ctrl-C lets the notebooks at work finish, a second one ends them.

    Args:
        notebook: path or URL, as papermill takes it; None with the id of a batch to resume.
        parameters: a file (CSV, JSON lines, JSON, YAML, Parquet), a data frame, an
            iterable of mappings, or a mapping of names to lists (every combination).
        output: where the executed notebooks go, with `{run_id}`, `{batch_id}`, `{index}`
            and every parameter.
        workers: how many at a time; by default as many as there are processors.
        executor: "processes" of this machine, "dask", or an object with the methods of `Workers`.
        scheduler: the Dask scheduler's address or a client; None starts a cluster here.
        kernel: the kernel's name; by default what the notebook says.
        cwd: where the notebooks run; by default the working directory of now.
        collect: variables to record at the end of each notebook, for `results`.
        threads: how many threads BLAS and OpenMP may use in each kernel; None leaves it to them.
        memory: bytes that each kernel may allocate (Linux).
        start_timeout: seconds that a kernel may take to start.
        execution_timeout: seconds that a cell may take.
        max_failures: begin nothing new once so many have failed.
        retry_failed: how often what failed is tried again, when all others are through.
        resume: True for the newest batch of this notebook with these parameters (or with
            any, where none are given), or the id of one; what was recorded of it counts.
        overwrite: whether outputs that exist may be replaced.
        skip_duplicates: whether rows with equal parameters are left out.
        tags: words to find the batch by.
        approve: gates that are approved as soon as a notebook comes to them: names, or a
            mapping of names to feedback. As with `workers`, it counts for this call.
        store: a store or its place; by default the nearest above the notebook.
        watcher: is told what happens; by default a line in the notebook that calls this.

    Raises:
        UsageError: everything that is wrong with notebook, parameters and outputs.
        LeaseHeld: another process runs this batch.
        UnknownRun, RunFinished: about the batch to resume.

    Example:
        done = nbflow.batch("train.ipynb", {"depth": [2, 4, 8], "model": ["tree", "forest"]}, collect="auc")
        done.results().sort_values("auc")
    """
    if executor == "processes":
        require_limits(memory)
    _check(
        max_failures=max_failures,
        retry_failed=retry_failed,
        workers=workers,
        threads=threads,
        memory=memory,
        start_timeout=start_timeout,
        execution_timeout=execution_timeout,
    )
    options = Options(
        kernel=kernel,
        cwd=str(Path(cwd).absolute()) if cwd is not None else str(Path.cwd()),
        collect=(collect,) if isinstance(collect, str) else tuple(collect),
        threads=threads,
        memory=memory,
        start_timeout=start_timeout,
        execution_timeout=execution_timeout,
    )
    asked = Asked(notebook, parameters, output, options, overwrite, skip_duplicates, tags)
    _check_executor(executor, scheduler)
    ahead = Approvals.of(approve)
    with store_for(store, notebook) as place, contextlib.ExitStack() as ends:
        found = find(place, asked, resume)
        if found is not None and found.state == RunState.COMPLETED:
            return _over(place, found)
        plan = None if found is None else recorded_plan(place, found.run)
        who = None
        if executor == "processes":  # they load papermill while the plan is made
            who = _local(ends, workers, len(plan.items if plan is not None else asked.rows()))
        run = new_run_id() if found is None else found.run
        if plan is None:
            plan = asked.plan(run)
        if who is None:
            who = _others(ends, executor, workers, scheduler, place, plan)
        session = attached(place, asked, plan, run, found)
        ends.callback(session.close)
        runner = Runner(
            session,
            plan,
            who,
            watcher=watcher if watcher is not None else line_of_this_notebook(),
            max_failures=max_failures,
            retry_failed=retry_failed,
            approve=ahead,
        )
        with _interruptible(runner):
            tally = runner.run()
        return _batch(place, run, session.workflow, tally)


def _check(**numbers: int | None) -> None:
    for name, number in numbers.items():
        given: object = number
        least = 0 if name == "retry_failed" else 1
        if given is None:
            continue
        if not isinstance(given, int) or isinstance(given, bool) or given < least:
            raise UsageError(f"{name} is a number from {least} on, not {number!r}.")


# --- who does it --------------------------------------------------------------------------------------------------


def _check_executor(executor: object, scheduler: object) -> None:
    if executor != "dask" and scheduler is not None:
        raise UsageError("A scheduler is Dask's.", hint='Say executor="dask".')
    if executor not in ("processes", "dask") and (isinstance(executor, str) or not hasattr(executor, "run")):
        raise UsageError(f'executor is "processes", "dask" or an object that does jobs, not {executor!r}.')


def _local(ends: contextlib.ExitStack, workers: int | None, items: int) -> Workers:
    return ends.enter_context(LocalWorkers(max(1, min(workers or processors(), items))))


def _others(
    ends: contextlib.ExitStack,
    executor: str | Workers,
    workers: int | None,
    scheduler: Any,
    store: LocalStore,
    plan: Plan,
) -> Workers:
    """Return Dask's workers, or those given: they are closed by whoever made them.

    Raises:
        UsageError: the cluster cannot be used.
    """
    if not isinstance(executor, str):
        return executor
    from nbflow.headless.workers.dask import DaskWorkers

    found = DaskWorkers(scheduler, workers=workers, store=store.root, notebook=plan.notebook)
    ends.callback(found.close)
    return found


@contextlib.contextmanager
def _interruptible(runner: Runner) -> Iterator[None]:
    """Have Ctrl-C drain the batch, a second one stop it and a third one interrupt as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    steps = iter((runner.drain, runner.stop))

    def interrupted(_signal: int, _frame: Any) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _batch(store: LocalStore, run: str, workflow: str, tally: Tally) -> Batch:
    counts = tally.completed, tally.failed, tally.left
    return Batch(run, workflow, tally.state, *counts, store.root, tally.waiting)


def _over(store: LocalStore, info: RunInfo) -> Batch:
    """Return a batch that is completed: there is nothing to resume."""
    return Batch(info.run, info.workflow, "completed", int(info.params.get("notebooks", 0)), 0, 0, store.root)
