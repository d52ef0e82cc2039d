"""What the output notebook, the log and the progress bar say of a durable execution.

papermill's own bookkeeper marks every cell completed that was not heard of,
also those behind the one in which the kernel died. Ours tells what happened.
"""

from __future__ import annotations

from typing import Any

from papermill.engines import NotebookExecutionManager, catch_nb_assignment
from papermill.log import logger

from nbflow.notebook.amounts import duration

#: Where nbflow's facts stand, in the metadata of the notebook and of each cell.
KEY = "nbflow"


class Bookkeeper(NotebookExecutionManager):  # type: ignore[misc]  # papermill ships no types
    """Keeps papermill's books, and beside them which cell was restored and which ran."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._quiet = False
        super().__init__(*arguments, **options)
        #: What stopped the last cell: an exception of nbclient's, or of ours.
        self.problem: BaseException | None = None
        #: Whether the end of the notebook was reached, or a cell that ended it as cells do.
        self.ended = False
        self.counts = {"restored": 0, "ran": 0}

    def open(self, run: str, attempt: int | None, state: str = "running") -> None:
        """Note which run this is."""
        self.nb.metadata[KEY] = {"run": run, "attempt": attempt, "state": state, **self.counts}

    def close(self, state: str, **facts: Any) -> None:
        """Note how the run stands at the end."""
        self.nb.metadata[KEY] = {**self.nb.metadata.get(KEY, {}), "state": state, **self.counts, **facts}

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def save(self, **_options: Any) -> None:
        """Write the output notebook, except while its truth is being worked out."""
        if not self._quiet:
            super().save()

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def notebook_start(self, **_options: Any) -> None:
        """Begin; what an earlier execution said of its run is not true of this one."""
        self.nb.metadata.pop(KEY, None)
        for cell in self.nb.cells:
            cell.metadata.pop(KEY, None)
        super().notebook_start()

    def report(self, cell: Any, index: int, facts: dict[str, Any]) -> None:
        """Take what the kernel says became of a cell: `step`, `restored` and `seconds` (when it ran)."""
        restored = bool(facts["restored"])
        cell.metadata[KEY] = {
            "key": facts["step"],
            "status": "restored" if restored else "ran",
            "seconds": round(float(facts["seconds"]), 6),
        }
        if restored:
            self.counts["restored"] += 1
            logger.info(
                f"Cell {index + 1} restored: {facts['step']} ({duration(facts['seconds'])} when it ran)"
            )
            if self.pbar:
                self.pbar.set_postfix_str(f"{self.counts['restored']} restored", refresh=False)
        else:
            self.counts["ran"] += 1

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def cell_exception(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        """Note a failure, as papermill does, and what it was."""
        self.problem = options.get("exception", self.problem)
        super().cell_exception(cell, cell_index=cell_index, **options)

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def notebook_complete(self, **_options: Any) -> None:
        """Finish, and leave the cells that were not reached pending."""
        unreached = [
            cell
            for cell in self.nb.cells
            if not self.ended and cell.metadata.get("papermill", {}).get("status") == self.PENDING
        ]
        self._quiet = True  # saved once, with the truth
        try:
            super().notebook_complete()
        finally:
            self._quiet = False
        for cell in unreached:
            cell.metadata.papermill["status"] = self.PENDING
        self.save()
