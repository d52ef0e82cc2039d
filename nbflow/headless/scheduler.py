"""jupyter-scheduler with durable jobs: a job that died is carried on when it is run again.

In the configuration of the Jupyter server:

    c.Scheduler.execution_manager_class = "nbflow.headless.scheduler.NbflowExecutionManager"

Every run of a job in jupyter-scheduler is a job of its own, with a copy of the
notebook in a folder of its own. So a run is found here by what these copies
have in common: the notebook's name, its cells, the job's name and parameters,
the kernel, and the definition that the job comes from. A job of a schedule
never carries on what an earlier time of the schedule left: tonight's job
computes tonight's data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import nbformat
from jupyter_scheduler.executors import DefaultExecutionManager
from jupyter_scheduler.models import DescribeJob, Status
from jupyter_scheduler.orm import Job, JobDefinition
from jupyter_scheduler.parameterize import add_parameters
from nbformat import NotebookNode
from papermill.engines import papermill_engines  # before nbflow's engine, which it loads itself
from papermill.exceptions import PapermillExecutionError
from papermill.execute import prepare_notebook_metadata
from papermill.iorw import load_notebook_node

from nbflow.core.model import RunInfo, RunOpened
from nbflow.core.signature import digest, short
from nbflow.headless.engine import RUN_VARIABLE
from nbflow.headless.execution.bookkeeping import first_failure
from nbflow.headless.identity import NEW, Source, Wanted, open_run, store_of
from nbflow.headless.relaunch import opening_of
from nbflow.headless.waiting import NotebookWaits
from nbflow.store.local import LocalStore

#: What a workflow's name begins with: the notebook is the scheduler's copy, and no file that anybody opens.
SCHEME = "jupyter-scheduler://"


class NbflowExecutionManager(DefaultExecutionManager):  # type: ignore[misc]  # it ships no types
    """Executes the notebooks of jobs as durable runs, in the store of the server's root folder or $NBFLOW_STORE.

    Everything else is as with jupyter-scheduler's own: parameters, output formats,
    files that a notebook writes, the status of a failed job. A job whose notebook
    waits at a gate is stopped, and its message names the gate. Files that restored
    cells wrote for the job that died are copied to the one that carries it on.
    """

    def execute(self) -> None:
        """Execute the job's notebook, then write its outputs, whatever became of it.

        Raises:
            PapermillExecutionError: a cell failed. KernelDied: naming cell and signal.
            NotebookWaits: a cell stopped at a gate.
        """
        job = self.model
        staged = Path(self.staging_paths["input"]).absolute()
        nb = load_notebook_node(str(staged))
        if job.parameters:
            nb = add_parameters(nb, job.parameters)
        nb = prepare_notebook_metadata(nb, str(staged), "")
        nb.metadata.papermill["parameters"] = dict(job.parameters or {})
        kernel = nb.metadata.kernelspec["name"]
        workflow = workflow_of(job)
        store = store_of(Source("", None), self._place())
        try:
            run = self._run(store, job, Wanted(workflow, dict(job.parameters or {}), kernel), staged)
        finally:
            store.close()
        try:
            with contextlib.chdir(staged.parent):
                papermill_engines.execute_notebook_with_engine(
                    "nbflow",
                    nb,
                    kernel,
                    progress_bar=False,
                    input_path=workflow,
                    nbflow_run=run,
                    nbflow_store=str(store.root),
                )
        finally:
            self.add_side_effects_files(str(staged.parent))
            self.create_output_files(job, nb)
        _raise_failure(nb)

    def on_failure(self, e: Exception) -> None:
        """Note what became of a job that did not complete; one that waits at a gate has not failed, and says so."""
        if not isinstance(e, NotebookWaits):
            super().on_failure(e)
            return
        with self.db_session() as session:
            session.query(Job).filter(Job.job_id == self.job_id).update(
                {"status": Status.STOPPED, "status_message": f"Waiting: {e.message}"}
            )
            session.commit()

    def _place(self) -> str | None:
        """Return where the store is; None leaves it to $NBFLOW_STORE."""
        return None if os.environ.get("NBFLOW_STORE") else str(Path(self.root_dir or ".").expanduser())

    def _run(self, store: LocalStore, job: DescribeJob, wanted: Wanted, staged: Path) -> str:
        """Return the run of a job: that of the job that died, or a new one."""
        cells = _cells(staged)
        wanted.launch.update(
            input=wanted.workflow,
            kernel=wanted.kernel,
            cwd=str(staged.parent),
            job=self.job_id,
            cells=cells,
        )
        chosen = os.environ.get(RUN_VARIABLE) or None
        if chosen is None:
            left = store.newest_open(wanted.workflow, wanted.params, wanted.variant)
            if left is not None:
                opened = opening_of(store, left)
                if self._carries_on(job, left, opened, cells):
                    _bring_files(Path(opened.launch["cwd"]), staged.parent)
                    return left.run
            chosen = NEW
        return open_run(store, wanted, run=chosen).run

    def _carries_on(self, job: DescribeJob, left: RunInfo, opened: RunOpened, cells: list[str]) -> bool:
        """Tell whether this job is the one that was left, run again."""
        if cells and not set(cells) & set(opened.launch["cells"]):
            return False  # another notebook of the same name
        earlier = opened.launch["job"]
        if left.alive and earlier != self.job_id and self._at_work(earlier):
            return False  # two at a time are two runs
        return left.created_at >= self._latest_time(job)

    def _at_work(self, job: str) -> bool:
        """Tell whether the process of another job is alive; its kernel outlives it for a moment."""
        import psutil  # jupyter-scheduler needs it, so it is there

        with self.db_session() as session:
            row = session.query(Job).filter(Job.job_id == job).first()
            if row is None or row.status != Status.IN_PROGRESS:
                return False
            pid = row.pid
        try:
            return pid is None or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _latest_time(self, job: DescribeJob) -> float:
        """Return when the schedule that the job comes from was last due (UTC seconds); 0 where there is none."""
        from croniter import croniter  # of jupyter-scheduler

        if not job.job_definition_id:
            return 0.0
        with self.db_session() as session:
            row = session.query(JobDefinition).filter(
                JobDefinition.job_definition_id == job.job_definition_id
            ).first()  # fmt: skip
            if row is None or not row.schedule:
                return 0.0
            schedule, zone = row.schedule, ZoneInfo(row.timezone or "UTC")
        begun = datetime.fromtimestamp(job.create_time / 1000, zone)
        return float(croniter(schedule, begun).get_prev(float))


def workflow_of(job: DescribeJob) -> str:
    """Return what the runs of a job are called."""
    return f"{SCHEME}{job.job_definition_id or job.name}/{job.input_filename}"


def _cells(notebook: Path) -> list[str]:
    """Return what tells a notebook from others of its name, even when it was edited meanwhile."""
    plain = nbformat.read(notebook, as_version=nbformat.NO_CONVERT)
    return [cell.get("id") or short(digest(cell["source"])) for cell in plain.get("cells", ())]


def _bring_files(there: Path, here: Path) -> None:
    """Copy what the job that died left beside its notebook, except what the new one has already."""
    if there == here or not there.is_dir():
        return
    for path in _files(there):
        target = here / path.relative_to(there)
        # The earlier notebook and its outputs have names that the new job's have too, or with a time in them.
        if path.suffix == ".ipynb" or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _raise_failure(nb: NotebookNode) -> None:
    """Raise what the first failed cell raised, as papermill does."""
    failed = first_failure(nb)
    if failed is None:
        return
    index, output = failed
    raise PapermillExecutionError(
        cell_index=index,
        exec_count=nb.cells[index].execution_count,
        source=nb.cells[index].source,
        ename=output.ename,
        evalue=output.evalue,
        traceback=output.traceback,
    )
