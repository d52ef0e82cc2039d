"""Which notebook is this, and which cell: the names under which things are recorded.

How a durable cell gets its name, in this order:

1. The one the user gave: `%%durable flights`.
2. The first public variable that the cell is sure to bind: `flights = load()` is `flights`.
   It is readable, it survives edits of the code, reordering, and front ends that
   send no cell ids (nbclient, papermill).
3. `cell-` and 8 digits of the code's digest, for a cell that binds nothing (a plot).

A second cell that would get a taken name is numbered in the order of first
execution: `flights~2`. The cell id (nbformat) tells "the same cell, edited"
from "another cell"; where there is none, the code's digest does. A name that
comes out differently in another session never mixes results: a result is found
by its signature, and the signature does not contain the name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from nbflow.core.errors import UsageError
from nbflow.core.history import Execution, History
from nbflow.notebook.analysis import CellAnalysis, code_digest
from nbflow.notebook.detail import CELL_ID, CODE
from nbflow.notebook.tracking import is_private

_SUFFIX = ".ipynb"
_NAMELESS = re.compile(r"cell-[0-9a-f]{8}(~\d+)?")

#: How far behind the last number in use a name is looked for; a run begun with `%nbflow new` may leave gaps.
_GAP = 8


def notebook_path(
    user_ns: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Path | None:
    """Return the absolute path of the notebook that this kernel runs; None where nobody says.

    Asked in turn: `NBFLOW_NOTEBOOK` (set by the engine), VS Code's
    `__vsc_ipynb_file__`, and `JPY_SESSION_NAME` of Jupyter's server. Papermill by
    itself, Colab and plain terminals tell nothing. The file need not exist: a
    notebook renamed while its kernel lives keeps its first name.

    >>> notebook_path({}, {"JPY_SESSION_NAME": "/work/flights.ipynb"}).name
    'flights.ipynb'
    """
    environ = os.environ if environ is None else environ
    candidates = (
        environ.get("NBFLOW_NOTEBOOK"),
        (user_ns or {}).get("__vsc_ipynb_file__"),
        environ.get("JPY_SESSION_NAME"),
    )
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.endswith(_SUFFIX) and "://" not in candidate:
            return _located(candidate)
    return None


def _located(name: str) -> Path:
    # Real-time collaboration puts the name of its drive in front: "RTC:folder/flights.ipynb".
    drive, colon, rest = name.partition(":")
    if colon and len(drive) > 1 and "/" not in drive and os.sep not in drive:
        name = rest
    path = Path(name)
    if path.is_absolute():
        return Path(os.path.normpath(path))
    # A relative one is relative to the server's root, which is the kernel's folder or above it.
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / path).is_file():
            return folder / path
    return here / path.name


def workflow_name(path: Path, store_root: Path) -> str:
    """Return the notebook's path relative to the folder that holds the store, with forward slashes.

    >>> workflow_name(Path("/work/reports/flights.ipynb"), Path("/work"))
    'reports/flights.ipynb'
    """
    path, root = Path(os.path.realpath(path)), Path(os.path.realpath(store_root))
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:  # another drive, on Windows
        return path.as_posix()


def cell_scope(cell_id: str | None, source: str, seen: MutableMapping[str, int]) -> str:
    """Return the scope in which durable calls of a plain cell are numbered.

    The cell id where the front end sends one, so running a cell again finds its
    calls again. Else the code's digest, with the number of the appearance in
    this kernel, kept in `seen`: two equal cells keep two results.

    >>> seen = {}
    >>> cell_scope("ab12", "f()", seen)
    'cell:ab12'
    >>> cell_scope(None, "f()", seen)[-2:], cell_scope(None, "f( )", seen)[-2:]
    ('~1', '~2')
    """
    if cell_id:
        return f"cell:{cell_id}"
    code = code_digest(source).hex()[:12]
    seen[code] = seen.get(code, 0) + 1
    return f"code:{code}~{seen[code]}"


def suggested_name(analysis: CellAnalysis, code: bytes | None = None) -> str:
    """Return the name of a cell that was given none, before it is told from others of the same name.

    >>> from nbflow.notebook.analysis import analyse
    >>> suggested_name(analyse("_x = 1; flights = load()"))
    'flights'
    """
    candidates = [name for name in analysis.bound_order if not name.startswith("_") and not is_private(name)]
    sure = [name for name in candidates if name in analysis.always_writes]
    for name in (*sure, *candidates):
        return name
    return f"cell-{(code if code is not None else code_digest(analysis.source)).hex()[:8]}"


def is_nameless(name: str) -> bool:
    """Tell whether the name says nothing, being made of the code's digest.

    >>> is_nameless("cell-1f2e9a00"), is_nameless("cell-division")
    (True, False)
    """
    return _NAMELESS.fullmatch(name) is not None


class CellNames:
    """The names given in one kernel, or to the cells of one file: which cell has which.

    `present` holds the ids of the notebook's cells as it is now; None where nobody knows them.

    >>> from nbflow.notebook.analysis import analyse
    >>> names = CellNames()
    >>> names.of(analyse("df = a()")), names.of(analyse("df = b()")), names.of(analyse("df = a()"))
    ('df', 'df~2', 'df')
    """

    def __init__(self, present: frozenset[str] | None = None) -> None:
        self._present = present
        self._owners: dict[str, tuple[str, bytes]] = {}
        self._given: set[str] = set()

    def of(
        self,
        analysis: CellAnalysis,
        *,
        name: str | None = None,
        cell_id: str | None = None,
        history: History | None = None,
    ) -> str:
        """Return the cell's name: the one the user gave, or one that no other cell has.

        With the run's `history` a cell without a name gets the one it had when it was
        recorded, whatever was moved, put in or deleted before it.

        Raises:
            UsageError: the given name holds what would break a key.
        """
        code = code_digest(analysis.source)
        if name:
            _check_name(name)
            self._owners[name] = (cell_id or "", code)
            self._given.add(name)
            return name
        if cell_id:
            for known, (owner, _) in self._owners.items():
                if owner == cell_id and known not in self._given:
                    self._owners[known] = (cell_id, code)
                    return known  # the same cell, edited
        found = self._unnamed(suggested_name(analysis, code), cell_id or "", code, history)
        self._owners[found] = (cell_id or "", code)
        return found

    def _unnamed(self, base: str, cell_id: str, code: bytes, history: History | None) -> str:
        """Return the numbered name that is this cell's here or in the history, else the first that is nobody's."""
        free, number, last = "", 0, 0
        while number < last + _GAP:
            number += 1
            candidate = base if number == 1 else f"{base}~{number}"
            recorded = history.by_step.get(candidate, ()) if history is not None else ()
            if candidate in self._owners:
                last = number
                if self._is_same(candidate, cell_id, code):
                    return candidate
            elif recorded:
                last = number
                if any(self._was(execution, cell_id, code) for execution in recorded):
                    return candidate
            else:
                free = free or candidate
        return free

    def clash(self, analysis: CellAnalysis, name: str, cell_id: str | None) -> str | None:
        """Return a sentence if another cell of this kernel has the given name; ask before `of`.

        Only cell ids can tell: without them an edited cell looks like another one.
        """
        owner = self._owners.get(name)
        if owner is None or not cell_id or not owner[0] or owner[0] == cell_id:
            return None
        if owner[1] == code_digest(analysis.source):
            return None
        return f"Another cell of this notebook is called {name!r} too; only code keeps their results apart."

    def _is_same(self, name: str, cell_id: str, code: bytes) -> bool:
        if name in self._given:
            return False
        owner, known = self._owners[name]
        return owner == cell_id if owner and cell_id else known == code

    def _was(self, execution: Execution, cell_id: str, code: bytes) -> bool:
        """Tell whether this execution was the cell's: by its id where both are known, else by its code.

        A recorded id that no cell has any more says nothing: papermill makes new ones for a notebook without.
        """
        found = execution.started.detail
        recorded_id = found.get(CELL_ID) or ""
        gone = self._present is not None and recorded_id not in self._present
        if recorded_id and cell_id and not gone:
            return bool(recorded_id == cell_id)
        return bool(found.get(CODE) == code.hex())


def similar(name: str, code: bytes, history: History) -> str | None:
    """Return the recorded cell that has the same code under another name: this one is it, renamed.

    The newest wins; None when there is none.
    """
    wanted = code.hex()
    for execution in reversed(history.executions.values()):
        started = execution.started
        if started.step_kind != "cell" or execution.completed is None or execution.forgotten:
            continue
        if started.step != name and started.detail.get(CODE) == wanted:
            return started.step
    return None


def _check_name(name: str) -> None:
    if name.startswith("-") or any(
        sign.isspace() or sign in "#:/\\" or not sign.isprintable() for sign in name
    ):
        raise UsageError(
            f"{name!r} cannot be the name of a cell.",
            hint="Use letters, digits, '-', '_', '.' and '~': %%durable clean_flights",
        )
