"""One recorded variable as an exhibit: a page of a table, a picture, JSON, text; a sentence where that cannot be.

A table is read from the values where its library is loaded anyway, else from
its recorded columns, so that nobody has to import pandas to look at a frame.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from nbflow.board.detail import execution_in
from nbflow.board.folds import Fold
from nbflow.board.plain import cut
from nbflow.board.shown import Exhibit, json_exhibit, notice
from nbflow.core.errors import NbflowError, UnknownStep
from nbflow.core.history import Execution
from nbflow.core.loaded import loaded
from nbflow.core.model import Checkpoint, OutputInfo
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.runtime.children.results import values_of
from nbflow.store.protocol import Store
from nbflow.values.native import column_type, to_arrow

#: Rows of one page of a table at most, and characters of a column's name.
ROWS, _NAME = 1_000, 200

#: Recorded steps whose values are kept, so that the next page of a table costs nothing; and their bytes.
_KEPT, _KEPT_BYTES = 3, 128 * 1024 * 1024

#: A finished run's values come out of the database whole: above this (bytes) nobody is made to wait for it.
_TOO_LARGE = 1024 * 1024 * 1024


class Outputs:
    """Recorded values as exhibits. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._values: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    def exhibit(self, fold: Fold, number: Any, name: str, offset: int = 0, limit: int = 50) -> Exhibit:
        """Return what a step recorded under a name; of a table `limit` rows from `offset` on.

        Raises:
            UnknownStep: no such execution, or it recorded nothing of this name.
        """
        with fold.mutex:
            execution = execution_in(fold, number)
            over = fold.history.state in FINAL_RUN_STATES
        checkpoint = execution.completed.checkpoint if execution.completed is not None else None
        output = (
            next((o for o in checkpoint.outputs if o.name == name), None) if checkpoint is not None else None
        )
        if checkpoint is None or output is None:
            known = ", ".join(o.name for o in checkpoint.outputs) if checkpoint is not None else ""
            raise UnknownStep(
                f"Step {execution.started.name!r} of run {fold.run} recorded no {name!r}.",
                run=fold.run,
                step=execution.started.step,
                hint=f"It recorded: {known or 'nothing'}.",
            )
        size = sum(ref.size for ref in checkpoint.leaves)
        if over and size > _TOO_LARGE:
            return notice(
                f"{cut(output.preview, 200)} (this step recorded {size:,} bytes, too much to be shown here: "
                f"`nbflow outputs {fold.run} --export FILE` writes it to a file)"
            )
        offset, limit = max(0, offset), max(1, min(limit, ROWS))
        table = output.rows is not None and output.columns is not None
        if table and loaded(output.type.partition(".")[0]) is None:
            page = self._columns(fold.run, checkpoint, output, offset, limit)
            if page is not None:
                return page
        try:
            value = self._load(fold.run, execution, checkpoint)[name]
            return json_exhibit(value) if checkpoint.codec == "json" else _of_value(value, offset, limit)
        except Exception as error:  # noqa: BLE001 - other people's classes may raise anything when they are rebuilt
            page = self._columns(fold.run, checkpoint, output, offset, limit) if table else None
            said = str(error) if isinstance(error, NbflowError) else f"{type(error).__name__}: {error}"
            return page or notice(f"{cut(output.preview, 200)} It cannot be shown here: {cut(said)}".strip())

    def _load(self, run: str, execution: Execution, checkpoint: Checkpoint) -> dict[str, Any]:
        key = (run, execution.number)
        with self._mutex:
            values = self._values.get(key)
            if values is not None:
                self._values.move_to_end(key)
                return values
        values = values_of(self._store, run, checkpoint)
        if sum(ref.size for ref in checkpoint.leaves) <= _KEPT_BYTES:
            with self._mutex:
                self._values[key] = values
                while len(self._values) > _KEPT:
                    self._values.popitem(last=False)
        return values

    def forget(self) -> None:
        """Let go of the values that are kept."""
        with self._mutex:
            self._values.clear()

    def _columns(
        self, run: str, checkpoint: Checkpoint, output: OutputInfo, offset: int, limit: int
    ) -> Exhibit | None:
        """Return a page of a table read from its columns alone; None where one of them is elsewhere."""
        refs = {ref.digest: ref for ref in checkpoint.leaves}
        found = []
        for column in output.columns or ():
            ref = refs.get(column.leaf) if column.leaf is not None else None
            if (
                ref is None or column_type(ref.form) is None or ", " in column.type
            ):  # a zone is not in the leaf
                return None
            found.append((column, ref))
        try:
            arrays = [to_arrow(ref.form, self._store.leaf(run, ref)) for _, ref in found]
        except (NbflowError, ValueError):
            return None
        if not arrays or any(len(array) != output.rows for array in arrays):
            return None
        from nbflow.runtime.gates.tables import cell

        columns = [array.slice(offset, limit).to_pylist() for array in arrays]
        return {
            "kind": "table",
            "columns": [{"name": cut(c.name, _NAME), "type": cut(c.type, 100)} for c, _ in found],
            "rows": [[cell(value) for value in row] for row in zip(*columns, strict=True)],
            "total": output.rows,
            "offset": offset,
        }


def _of_value(value: Any, offset: int, limit: int) -> Exhibit:
    """Return a live object as an exhibit; of a table the wanted page."""
    from nbflow.runtime.gates.exhibits import exhibit
    from nbflow.runtime.gates.tables import is_table, table_exhibit

    return table_exhibit(value, offset=offset, limit=limit) if is_table(value) else exhibit(value)
