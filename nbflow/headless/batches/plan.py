"""The plan of a batch: which notebooks run with what, and where each is written. All that is wrong is said at once.

make_plan    notebook + rows → Plan, or one error that lists every problem; nothing is created
standing     how far a batch is: what is new, begun, done, failed
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import UsageError
from nbflow.core.history import Execution, History
from nbflow.core.ids import child_run_id
from nbflow.core.states import RunState, StepState
from nbflow.headless.batches.jobs import Item, Options, Plan
from nbflow.headless.batches.outputs import Template, existing_problems
from nbflow.headless.identity import identity_params
from nbflow.headless.parameters.rows import Row
from nbflow.headless.waiting import undecided
from nbflow.store.local import LocalStore

__all__ = [
    "Standing",
    "make_plan",
    "notebook_problems",
    "run_states",
    "standing",
    "unknown_parameters",
]

#: Whether "A.ipynb" and "a.ipynb" are one file here, as they are unless a disk was set up otherwise.
ONE_CASE = sys.platform in {"darwin", "win32"}

#: How many problems of one kind are written out; the rest are counted.
_SHOWN = 5


@dataclass(frozen=True)
class Standing:
    """How far a batch is: the indices of its items by what became of them, each ascending.

    `to_resume` were begun and did not come to an end; `failed` did, and are
    carried on from their last recorded cell all the same; `waiting` stopped at gates
    that nobody has decided about; `cancelled` are final.
    """

    new: tuple[int, ...] = ()
    to_resume: tuple[int, ...] = ()
    done: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    cancelled: tuple[int, ...] = ()

    @property
    def left(self) -> tuple[int, ...]:
        """What still has to run, in order."""
        return tuple(sorted(self.new + self.to_resume + self.failed))

    def __str__(self) -> str:
        counts = {
            "new": self.new,
            "to resume": self.to_resume,
            "done": self.done,
            "failed": self.failed,
            "waiting": self.waiting,
            "cancelled": self.cancelled,
        }
        always = {"new", "to resume", "done"}
        return ", ".join(f"{len(each)} {name}" for name, each in counts.items() if each or name in always)


def make_plan(
    notebook: str | Path,
    rows: Sequence[Row],
    *,
    batch: str,
    output: str = "runs/{run_id}.ipynb",
    options: Options = Options(),  # noqa: B008 - frozen
    overwrite: bool = False,
    skip_duplicates: bool = False,
) -> Plan:
    """Return the plan of a batch whose run has the id `batch`; nothing is created.

    `output` is a path or URL with `{run_id}`, `{batch_id}`, `{index}` and every
    parameter, with format specs as in `{index:04d}`. What a value must not have in a
    file name becomes "_". `skip_duplicates` keeps the first of rows with equal parameters.

    Raises:
        UsageError: lists everything that is wrong.
    """
    path = os.fspath(notebook)
    path = path if "://" in path else os.path.abspath(path)  # noqa: PTH100 - as text
    problems = notebook_problems(path, options, parameters=any(row.values for row in rows))
    if not rows:
        problems.append("There are no parameters: give one row for each notebook.")
    kept, duplicates = _without_duplicates(rows)
    if not skip_duplicates:
        problems += _several(duplicates)
        if duplicates:
            problems.append("Take the duplicates out, or skip them (skip_duplicates, --skip-duplicates).")
    items: list[Item] = []
    try:
        template = Template(output, {name for row in rows for name in row.values})
    except UsageError as error:
        problems.append(str(error))
    else:
        items, unnamed = _items(kept, template, batch)
        problems += _several(unnamed)
        problems += _several(_collisions(items, path))
        problems += _several(existing_problems(items, path, overwrite=overwrite))
    if problems:
        if len(problems) == 1:
            raise UsageError(f"{problems[0]} Nothing was run.")
        raise UsageError("Nothing was run, for:\n" + "\n".join(f"- {problem}" for problem in problems))
    return Plan(notebook=path, items=tuple(items), options=options)


def unknown_parameters(notebook: str | Path, rows: Iterable[Row]) -> list[str]:
    """Return a sentence for each thing that papermill would warn of: parameters the notebook does not know.

    Raises:
        UsageError: the notebook cannot be read.
    """
    from papermill.exceptions import PapermillException
    from papermill.inspection import _infer_parameters

    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if not names:
        return []
    document = _load(os.fspath(notebook))
    tags = {tag for cell in document.cells for tag in cell.metadata.get("tags", ())}
    if "parameters" not in tags:
        return ["No cell of the notebook is tagged `parameters`: they are set before its first cell."]
    try:
        known = {parameter.name for parameter in _infer_parameters(document)}
    except (PapermillException, ValueError):  # it knows nothing of this kernel or its language
        return []
    if not known:  # another language, or a cell that sets nothing: nothing can be said
        return []
    unknown = [name for name in names if name not in known]
    return [f"The notebook's parameters cell does not know {name}." for name in unknown]


def notebook_problems(path: str, options: Options, *, parameters: bool = True) -> list[str]:
    """Return what keeps a notebook from being run: missing, unreadable, or of a kernel that is not installed.

    With `parameters` the language matters too: papermill writes a cell in it.
    """
    problems = []
    if options.cwd is not None and not os.path.isdir(options.cwd):  # noqa: PTH112 - see `_load`
        problems.append(f"The working directory {options.cwd} is not a folder.")
    try:
        document = _load(path)
    except UsageError as error:
        return [str(error), *problems]
    spec = document.metadata.get("kernelspec", {})
    kernel = options.kernel or spec.get("name")
    if not kernel:
        problems.append(f"The notebook {path} names no kernel: name one (kernel, --kernel).")
    else:
        from jupyter_client.kernelspec import KernelSpecManager

        known = KernelSpecManager().find_kernel_specs()
        if kernel not in known:
            whose = "" if options.kernel else f", which {path} asks for,"
            listed = ", ".join(sorted(known)) or "none"
            problems.append(f"The kernel {kernel!r}{whose} is not installed. Installed: {listed}.")
    language = document.metadata.get("language_info", {}).get("name") or spec.get("language")
    if parameters and not language:
        problems.append(
            f"The notebook {path} does not say what language it is in, so papermill cannot write its "
            "parameters: open and save it in Jupyter once."
        )
    return problems


def _load(path: str) -> Any:
    """Read a notebook as papermill does, from wherever it can.

    Raises:
        UsageError: it is missing, or no notebook.
    """
    local = "://" not in path
    # Not by `pathlib`, which raises where a folder may not be looked into, or a name is too long.
    if local and not os.path.exists(path):  # noqa: PTH110
        raise UsageError(f"There is no notebook {path}.", hint="Look at the path.")
    if local and os.path.isdir(path):  # noqa: PTH112
        raise UsageError(f"{path} is a folder, not a notebook.", hint="Name the file.")
    from papermill.iorw import load_notebook_node

    try:
        document = load_notebook_node(path)
        _ = document.metadata, [cell.cell_type for cell in document.cells]
    except Exception as error:
        # nbformat and the readers of remote places raise whatever their libraries do.
        text = " ".join(str(error).split())
        raise UsageError(
            f"{path} cannot be read as a notebook: {type(error).__name__}: {text[:200]}",
            hint="Open it in Jupyter to see what is wrong.",
        ) from error
    return document


def _without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows whose parameters no earlier one has, and a sentence for each that is not among them."""
    encoder = msgspec.json.Encoder(order="deterministic")
    seen: dict[bytes, int] = {}
    kept, problems = [], []
    for number, row in enumerate(rows, start=1):
        first = seen.setdefault(encoder.encode(identity_params(row.values)), number)
        if first == number:
            kept.append(row)
        else:
            problems.append(
                f"Rows {first} and {number} have the same parameters ({rows[first - 1].origin}; {row.origin})."
            )
    return kept, problems


def _items(rows: Sequence[Row], template: Template, batch: str) -> tuple[list[Item], list[str]]:
    items, problems = [], []
    for index, row in enumerate(rows):
        bare = Item(index=index, params=row.values, run="", output="", origin=row.origin)
        run = child_run_id(batch, bare.step)
        try:
            output = template.output(row, index=index, run=run, batch=batch)
        except UsageError as error:
            problems.append(str(error))
        else:
            items.append(msgspec.structs.replace(bare, run=run, output=output))
    return items, problems


def _collisions(items: Sequence[Item], notebook: str) -> list[str]:
    """Return a sentence for each item that would write where another one does, or over its notebook."""
    first: dict[str, Item] = {}
    problems = []
    for item in items:
        other = first.setdefault(item.output.casefold() if ONE_CASE else item.output, item)
        if item.output == notebook:
            problems.append(f"{item.origin}: the output is the notebook itself, {notebook}.")
        elif other is not item:
            problems.append(f"{other.origin} and {item.origin} would both be written to {item.output}.")
    if problems:
        problems[0] += " Put {index}, {run_id} or more parameters into the output's name."
    return problems


def _several(problems: list[str]) -> list[str]:
    more = len(problems) - _SHOWN
    return problems if more <= 0 else [*problems[:_SHOWN], f"… and {more:,} more of this kind."]


# --- how far it is ------------------------------------------------------------------------------------------------


def standing(store: LocalStore, plan: Plan, batch: str | None) -> Standing:
    """Return how far a batch is; everything is new where its run is not begun (`batch` None).

    The batch's own journal is asked, and of items that it does not know to be
    completed their runs: one may have ended just before its runner was killed.

    Raises:
        UnknownRun, CorruptRecord: about the batch's run.
    """
    if batch is None:
        return Standing(new=tuple(item.index for item in plan.items))
    history = History.of(store.entries(batch))
    found: dict[str, list[int]] = {
        name: [] for name in ("new", "to_resume", "done", "failed", "waiting", "cancelled")
    }
    begun: list[tuple[Item, Execution]] = []
    for item in plan.items:
        executions = history.by_step.get(item.step)
        if not executions:
            found["new"].append(item.index)
        elif any(execution.completed is not None for execution in executions):
            found["done"].append(item.index)
        else:
            begun.append((item, executions[-1]))
    states = run_states(store, [item.run for item, _ in begun])
    for item, execution in begun:
        state = states.get(item.run)
        if state == RunState.WAITING and undecided(store, item.run, time.time()) is not None:
            found["waiting"].append(item.index)
        else:
            found[_standing_of(state, execution)].append(item.index)
    return Standing(**{name: tuple(sorted(indices)) for name, indices in found.items()})


def _standing_of(state: str | None, execution: Execution) -> str:
    if state == RunState.COMPLETED:
        return "done"
    if state == RunState.CANCELLED:
        return "cancelled"
    if state == RunState.FAILED or execution.state is StepState.FAILED:
        return "failed"
    return "to_resume" if state is not None else "new"


def run_states(store: LocalStore, runs: Sequence[str]) -> dict[str, str]:
    """Return the state of each run that there is, from its journal or with one question to the database.

    A run that cannot be read counts as "failed".

    Raises:
        StoreBusy: another program keeps the database open.
    """
    live = set(store.live.names())
    states = {run: store.live.info(run).state for run in runs if run in live}
    finished = [run for run in runs if run not in live]
    if finished and store.database.exists():
        with store.database.read() as connection:
            rows = connection.execute(
                "SELECT run, state FROM nbflow.run_now WHERE list_contains(?, run)", [finished]
            ).fetchall()
        states |= dict(rows)
    return {run: "failed" if state == "corrupt" else state for run, state in states.items()}
