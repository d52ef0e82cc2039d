"""`nbflow.execute`: one notebook from Python, carried on where it died.

papermill runs it, with nbflow's engine. What is found out beforehand is which
run it will be: so an error can name it, and the command line can say where it
goes on before anything starts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import LeaseLost, RunCancelled, UsageError
from nbflow.headless.identity import (
    Source,
    Wanted,
    identity_params,
    launch_of,
    open_run,
    store_of,
    verbatim,
    workflow_of,
)
from nbflow.headless.waiting import NotebookWaits, Waiting, undecided
from nbflow.runtime.gates.ahead import Approvals

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from nbflow.headless.execution.bookkeeping import Bookkeeper
    from nbflow.notebook.plan import Plan

#: Options of papermill's that `execute` has under its own names, or that make no run at all.
_NOT_HERE = {
    "engine_name": "it is always nbflow",
    "input_path": "it is the first argument",
    "output_path": "it is the second argument",
    "kernel_name": "it is called kernel",
    "progress_bar": "it is called progress",
    "prepare_only": "papermill.execute_notebook prepares a notebook without running it",
}


#: Options of papermill's that a run started again by `nbflow resume` has as well.
_KEPT = ("start_timeout", "execution_timeout", "report_mode", "language")


@dataclass(frozen=True)
class Executed:
    """How an execution of a notebook ended.

    `attempt` counts the executions of this run, `restored` and `ran` its cells in
    this one; both are 0 where the kernel could not record (another language).
    `seconds` is the wall time. `notebook` is the executed notebook as papermill
    returns it, `result` the collected variables by name. `state` is completed, or
    waiting: then `waiting` is the gate that somebody is to decide about, and the
    same call carries on behind it.
    """

    run: str
    state: str
    attempt: int
    restored: int
    ran: int
    seconds: float
    notebook: NotebookNode = field(repr=False)
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    waiting: Waiting | None = None


@dataclass(frozen=True)
class Prepared:
    """An execution that is about to start: its run exists, and papermill knows all it needs.

    `input` and `output` are as papermill takes them: braces are doubled. `attempts` counts
    earlier executions, and `plan` says what is expected of the cells where there were any.
    """

    run: str
    workflow: str
    store: Path
    input: str | NotebookNode
    output: str | None
    attempts: int
    cells: int
    options: dict[str, Any]
    plan: Plan | None = None
    #: The process that has the run as yet; it is waited for, for a while.
    owner: str = ""
    #: The gate at which it stopped, as long as nobody has decided about it.
    undecided: Waiting | None = None

    @property
    def target(self) -> str | None:
        """Where the executed notebook is written, as people write it."""
        return None if self.output is None else self.output.replace("{{", "{").replace("}}", "}")

    def start(self, told: Callable[[Bookkeeper], None] | None = None) -> Executed:
        """Execute the notebook; `told` is called when the run is open and behind every cell.

        Raises:
            PapermillExecutionError: a cell failed. KernelDied: naming cell and signal.
            LeaseHeld: another process works on this run.
        """
        import papermill

        begun = time.monotonic()
        waiting: Waiting | None = None
        try:
            with _sockets(self.options) as sockets:
                done = papermill.execute_notebook(
                    self.input,
                    self.output,
                    engine_name="nbflow",
                    nbflow_run=self.run,
                    nbflow_store=str(self.store),
                    nbflow_told=told,
                    **sockets,
                    **self.options,
                )
        except NotebookWaits as stopped:
            done, waiting = stopped.notebook, stopped.waiting
        except BaseException as error:
            error.add_note(self._note(error))
            raise
        facts = done.metadata.get("nbflow", {})
        return Executed(
            run=self.run,
            state=str(facts.get("state", "")),
            attempt=int(facts.get("attempt") or 0),
            restored=int(facts.get("restored", 0)),
            ran=int(facts.get("ran", 0)),
            seconds=time.monotonic() - begun,
            notebook=done,
            result=self._result() if waiting is None else {},
            waiting=waiting,
        )

    def _result(self) -> dict[str, Any]:
        return _result(self.store, self.run) if self.options.get("nbflow_collect") else {}

    def _note(self, error: BaseException) -> str:
        if isinstance(error, (RunCancelled, LeaseLost)):
            return f"This was nbflow run {self.run}."
        command = f", and so does `nbflow resume {self.run}`" if isinstance(self.input, str) else ""
        return (
            f"This was nbflow run {self.run}. The same call carries it on{command}: "
            "cells that are recorded are restored."
        )


def execute(  # noqa: PLR0913 - what an execution may be told; all but three by name
    notebook: str | Path | NotebookNode,
    output: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    kernel: str | None = None,
    run: str | None = None,
    cwd: str | Path | None = None,
    collect: Sequence[str] = (),
    store: str | Path | None = None,
    approve: Approvals | Iterable[str] | Mapping[str, str] = (),
    progress: bool = False,
    **options: Any,
) -> Executed:
    """Execute a notebook with papermill, every cell a durable step: the same call carries on what died.

    The run is found by notebook, parameters and kernel; `run` names another one, or
    is "new" for a fresh one. A run that was completed is over: the call begins the next
    one. `notebook` and `output` are whatever papermill reads and writes (paths with
    `{parameter}` in them, `s3://…`), `output=None` writes no file. `collect` names
    variables of the notebook that become the run's result. `cwd` is the folder that the
    notebook runs in, `store` the store's place; by default $NBFLOW_STORE, else the nearest
    `.nbflow` above the notebook. A notebook that stops at a gate returns with the state
    "waiting", and its process is needed no more: when somebody has decided, the same call
    carries it on. `approve` decides beforehand: names of gates, or a mapping of names to
    feedback. `options` are those of `papermill.execute_notebook`
    (`execution_timeout=`, `start_timeout=`, `report_mode=`, `log_output=` …), times in seconds.

    Raises:
        papermill.PapermillExecutionError: a cell failed; a note names the run and how to carry it on.
        KernelDied: the kernel was killed, naming the cell and the signal; it is nbclient's DeadKernelError too.
        LeaseHeld: another process works on this run.
        UnknownRun, RunFinished: about `run`.
        UsageError: an option or argument that makes no sense; nothing was run.

    >>> import nbflow
    >>> from nbformat.v4 import new_code_cell, new_notebook
    >>> cells = [new_code_cell("year = 2000", metadata={"tags": ["parameters"]}), new_code_cell("age = 2026 - year")]
    >>> kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    >>> notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    >>> done = nbflow.execute(notebook, parameters={"year": 2013}, collect=["age"])
    >>> done.state, done.restored, done.ran, done.result
    ('completed', 0, 3, {'age': 13})
    """
    return prepare(
        notebook,
        output,
        parameters,
        kernel=kernel,
        run=run,
        cwd=cwd,
        collect=collect,
        store=store,
        approve=approve,
        progress=progress,
        **options,
    ).start()


def prepare(  # noqa: PLR0913 - as `execute`
    notebook: str | Path | NotebookNode,
    output: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    kernel: str | None = None,
    run: str | None = None,
    cwd: str | Path | None = None,
    collect: Sequence[str] = (),
    store: str | Path | None = None,
    approve: Approvals | Iterable[str] | Mapping[str, str] = (),
    progress: bool = False,
    **options: Any,
) -> Prepared:
    """Find or begin the run of an execution; the arguments are those of `execute`.

    Raises:
        As `execute`, and what papermill raises of a notebook that it cannot read.
    """
    from papermill.engines import papermill_engines
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import add_builtin_parameters, parameterize_notebook, parameterize_path

    from nbflow.headless.engine import RUN_VARIABLE, NbflowEngine

    papermill_engines.register("nbflow", NbflowEngine)  # entry points are those of what is installed
    for name, why in _NOT_HERE.items():
        if name in options:
            raise UsageError(f"nbflow.execute has no option {name}: {why}.")
    if isinstance(collect, str):
        raise UsageError(f"collect is a text: {collect!r}.", hint="Give a list of names.")
    ahead = Approvals.of(approve)
    if notebook == "-":
        raise UsageError(
            "A notebook from standard input can be read only once.",
            hint="Use `papermill --engine nbflow`, or pass the notebook itself.",
        )
    given = dict(parameters or {})
    named = add_builtin_parameters(given)
    source = parameterize_path(_text(notebook), named)
    target = parameterize_path(_text(output), named)
    nb = load_notebook_node(source)
    if given:
        nb = parameterize_notebook(
            nb, given, kernel_name=kernel, language=options.get("language"), engine_name="nbflow"
        )
    if cwd is not None and not Path(cwd).is_dir():
        raise UsageError(f"There is no folder {cwd} to run the notebook in.")
    chosen = papermill_engines.nb_kernel_name(engine_name="nbflow", nb=nb, name=kernel)
    _check_kernel(chosen)
    place = Source.of(source)
    opened = store_of(place, store, upkeep=False)
    try:
        wanted = Wanted(
            workflow=workflow_of(place, nb, opened),
            params=identity_params(nb.metadata.get("papermill", {}).get("parameters", {})),
            kernel=chosen,
            launch=launch_of(
                place,
                chosen,
                output=target,
                cwd=str(Path(cwd or ".").absolute()),
                parameters=given,
                collect=collect,
                **{name: options.get(name) for name in _KEPT},
            ),
        )
        info = open_run(opened, wanted, run=run or os.environ.get(RUN_VARIABLE) or None)
        plan = _plan(opened, info.run, nb) if info.attempts else None
        gate = undecided(opened, info.run, time.time(), ahead.gates) if info.attempts else None
    finally:
        opened.close()
    return Prepared(
        run=info.run,
        workflow=info.workflow,
        store=opened.root,
        input=verbatim(source),
        output=verbatim(target),
        attempts=info.attempts,
        cells=len(nb.cells),
        plan=plan,
        owner=f"process {info.owner.pid} on {info.owner.host}" if info.alive and info.owner else "",
        undecided=gate,
        options={
            **options,
            "parameters": given,
            "kernel_name": kernel,
            "cwd": None if cwd is None else str(cwd),
            "progress_bar": progress,
            "nbflow_collect": tuple(collect),
            "nbflow_approve": ahead,
        },
    )


@contextmanager
def _sockets(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the options for a kernel that is spoken to over sockets in a folder of its own, as in a batch.

    Over TCP every user of the machine could listen, and ipykernel says so in each run.
    """
    from nbflow.headless.workers.scratch import kernel_in, short_temporary_folder

    if {"kernel_manager_class", "config"} & options.keys():
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="nbflow-", dir=short_temporary_folder()) as folder:
        yield kernel_in(Path(folder))


def _text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _check_kernel(name: str) -> None:
    """Raise jupyter_client's NoSuchKernel before a run is begun that could never start."""
    from jupyter_client.kernelspec import KernelSpecManager

    KernelSpecManager().get_kernel_spec(name)


def _plan(store: Any, run: str, notebook: NotebookNode) -> Plan:
    """Return what is expected of the cells of a notebook whose run is carried on."""
    from nbflow.core.history import History
    from nbflow.notebook.cells import planned_cells
    from nbflow.notebook.plan import make_plan

    ids = frozenset(cell.id for cell in notebook.cells if cell.get("id"))
    return make_plan(planned_cells(notebook, auto=True), History.of(store.entries(run)), ids=ids)


def _result(store: Path, run: str) -> dict[str, Any]:
    from nbflow.runtime.children.results import result_of
    from nbflow.store.local import LocalStore

    opened = LocalStore(store, background=False, upkeep=False)
    try:
        return dict(result_of(opened, run) or {})
    finally:
        opened.close()
