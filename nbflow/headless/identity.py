"""Which run an execution of a notebook belongs to: found by notebook, parameters and kernel, or begun.

The same command carries the same run on: that is the whole idea. A completed
run is over, so the same command starts a new one, as papermill always does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbflow.core.errors import CorruptRecord, RunFinished, UsageError
from nbflow.core.ids import new_run_id
from nbflow.core.model import RunInfo, RunOpened
from nbflow.core.signature import digest, short
from nbflow.core.states import FINAL_RUN_STATES, RunState
from nbflow.notebook.identity import workflow_name
from nbflow.store.local import LocalStore
from nbflow.store.place import locate

#: Asks for a fresh run where an id could stand.
NEW = "new"

#: What `RunInfo.workflow_kind` says of a run of the engine: it is a notebook like any other.
KIND = "notebook"


@dataclass(frozen=True)
class Source:
    """Where a notebook comes from: its file where it is one of this machine, and what papermill was told."""

    told: str
    path: Path | None

    @classmethod
    def of(cls, told: Any, folder: str | Path = "") -> Source:
        """Understand the input path that papermill gives its engine; a notebook object has none.

        `folder` is what a relative path starts from; by default the working directory.

        >>> Source.of("s3://bucket/flights.ipynb").path is None
        True
        """
        if not isinstance(told, (str, os.PathLike)):
            return cls("", None)
        text = os.fspath(told)
        if text == "-" or "://" in text:
            return cls(text, None)
        return cls(text, Path(folder, text).absolute())


@dataclass(frozen=True)
class Wanted:
    """What is to be run: a workflow with parameters in a kernel, and how it was started (`launch`)."""

    workflow: str
    params: dict[str, Any]
    kernel: str
    launch: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """What else tells its runs from others of the same workflow and parameters."""
        return variant_of(self.kernel)


def variant_of(kernel: str) -> str:
    """Return what tells the runs of a kernel from those of others, and from JupyterLab's.

    >>> variant_of("python3")
    'papermill:python3'
    """
    return f"papermill:{kernel}"


def verbatim(path: Any) -> Any:
    """Return a path as papermill, which fills in parameters between braces, takes it for what it is.

    >>> verbatim("out/{year}.ipynb")
    'out/{{year}}.ipynb'
    """
    return path.replace("{", "{{").replace("}", "}}") if isinstance(path, str) else path


def place_of(source: Source, place: str | os.PathLike[str] | None = None) -> Path:
    """Return where the store of a notebook's runs is, whether it exists or not; see `store_of`.

    Raises:
        UsageError: it is a place that this version cannot open.
    """
    if not place and not os.environ.get("NBFLOW_STORE") and source.path is not None:
        place = source.path.parent
    return locate(os.fspath(place) if place else None)


def store_of(source: Source, place: str | Path | None = None, *, upkeep: bool = True) -> LocalStore:
    """Open the store that a notebook's runs belong to: `place`, $NBFLOW_STORE, else the nearest above the notebook.

    A notebook from elsewhere (a URL, standard input) belongs to the working directory.

    Raises:
        NotAStore, StoreReadOnly, UsageError.
    """
    # Cells are recorded by the kernel: this process is idle meanwhile and keeps the database up.
    return LocalStore(place_of(source, place), upkeep=upkeep, idle=1.0, compact_after=0.0, aside=True)


def workflow_of(source: Source, notebook: Any, store: LocalStore) -> str:
    """Return what the runs of a notebook are called: its path from the store's folder, or its URL.

    Where there is neither, the name is made of the notebook's code.
    """
    if source.path is not None:
        return workflow_name(source.path, store.root.parent)
    if source.told and source.told != "-":
        return source.told
    written = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    code = [cell.source for cell in written if cell.cell_type == "code"]
    return f"notebook-{short(digest(*code))}.ipynb"


def identity_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters in the form in which runs are compared and listed: JSON's, whatever papermill takes.

    What JSON cannot hold, or not as what it is, stands as a text that says of which
    kind it was: papermill itself accepts every object and writes its text.

    >>> identity_params({"year": 2013, "limit": float("inf"), "pair": (1, 2)})
    {'year': 2013, 'limit': '‹float› inf', 'pair': '‹tuple› (1, 2)'}
    """
    return {str(name): _plain(value) for name, value in params.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        return value if not value.startswith("‹") else _text(value)
    if type(value) is int:
        return value if -(2**63) <= value < 2**64 else _text(value)
    if type(value) is float:
        return value if math.isfinite(value) else _text(value)
    if type(value) is list:
        return [_plain(part) for part in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(part) for key, part in value.items()}
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (set, frozenset)):  # their order is another one in every process
        text = "{" + ", ".join(sorted(map(repr, value))) + "}"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key!r}: {part!r}" for key, part in value.items()) + "}"
    else:
        text = str(value)
    return f"‹{type(value).__name__}› {text}"


def launch_of(
    source: Source,
    kernel: str,
    *,
    output: Any,
    cwd: str,
    parameters: Mapping[str, Any],
    collect: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Return what a run needs to be started again: it is recorded with the run, for `nbflow resume`.

    `exact` tells whether the recorded parameters are those that were given, and not
    a text in place of what JSON cannot hold. `options` are papermill's.
    """
    return {
        "input": str(source.path) if source.path is not None else source.told,
        "output": _absolute(output),
        "kernel": kernel,
        "cwd": cwd,
        "exact": _exact(parameters),
        "collect": list(collect),
        "options": {name: value for name, value in options.items() if value is not None},
    }


def _exact(value: Any) -> bool:
    """Tell whether JSON gives a value back as it was."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _exact(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_exact, value))
    return value is None or (isinstance(value, (bool, str, int, float)) and bool(_plain(value) == value))


def _absolute(path: Any) -> str:
    text = os.fspath(path) if path else ""
    return text if not text or "://" in text or text == "-" else os.path.abspath(text)  # noqa: PTH100


def open_run(
    store: LocalStore,
    wanted: Wanted,
    *,
    run: str | None = None,
    parent: RunOpened | None = None,
    begun: bool = False,
) -> RunInfo:
    """Return the run to carry on, or begin one; nobody holds it yet.

    `run` is an id (or a prefix), "new", or None for the newest unfinished one. With
    `parent` (a record whose `run`, `parent` and `parent_step` are set) the run with
    exactly that id is carried on or begun: the item of a batch; with `begun` it is
    known to exist, and only carried on.

    Raises:
        UnknownRun, RunFinished, CorruptRecord, UsageError: about `run`.
    """
    if parent is not None:
        return _item(store, wanted, parent, begun=begun)
    if run and run != NEW:
        return _chosen(store, wanted, run)
    found = None if run == NEW else store.newest_open(wanted.workflow, wanted.params, wanted.variant)
    if found is None:
        fresh = new_run_id()
        store.create(_opened(wanted, fresh))
        found = store.run(fresh)
    return found


def _item(store: LocalStore, wanted: Wanted, parent: RunOpened, *, begun: bool) -> RunInfo:
    if parent.run not in store.live.names():
        if begun:  # a folder goes away when its run is over; a second one would run everything again
            raise RunFinished(
                f"Run {parent.run} of {wanted.workflow} came to its end elsewhere.",
                run=parent.run,
                hint="The database has it, and what its cells recorded.",
            )
        store.create(_opened(wanted, parent.run, parent=parent.parent, parent_step=parent.parent_step))
    return store.run(parent.run)


def _opened(wanted: Wanted, run: str, **facts: Any) -> RunOpened:
    return RunOpened(
        run=run,
        workflow=wanted.workflow,
        params=wanted.params,
        tags=wanted.tags,
        workflow_kind=KIND,
        variant=wanted.variant,
        launch=wanted.launch,
        **facts,
    )


def _chosen(store: LocalStore, wanted: Wanted, run: str) -> RunInfo:
    found = store.run(run)
    if found.state == "corrupt":
        raise CorruptRecord(
            f"Run {found.run} cannot be read: {found.error}",
            run=found.run,
            hint="`nbflow doctor` shows what can be saved.",
        )
    if RunState(found.state) in FINAL_RUN_STATES:
        raise RunFinished(
            f"Run {found.run} of {found.workflow} is {found.state}.",
            run=found.run,
            hint="Its outputs stay readable; leave the run out, or ask for a `new` one.",
        )
    if found.workflow != wanted.workflow:
        raise UsageError(
            f"Run {found.run} is one of {found.workflow}, not of {wanted.workflow}.",
            run=found.run,
            hint="Nothing was run.",
        )
    return found
