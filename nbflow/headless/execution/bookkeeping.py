"""What the output notebook, the log and the progress bar say of a durable execution.

papermill's own bookkeeper marks every cell completed that was not heard of,
also those behind the one in which the kernel died. Ours tells what happened.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any

from nbformat.v4 import new_output
from papermill.engines import NotebookExecutionManager, catch_nb_assignment
from papermill.iorw import write_ipynb
from papermill.log import logger

from nbflow.headless.waiting import Waiting
from nbflow.notebook.amounts import duration
from nbflow.notebook.messages import FONT, MARK
from nbflow.notebook.outcome import RAISES_TAG

#: Where nbflow's facts stand, in the metadata of the notebook and of each cell.
KEY = "nbflow"

_WIDGET = "application/vnd.jupyter.widget-view+json"

#: While cells are restored, which takes milliseconds each, the output notebook is written this often (seconds):
#: papermill's two writes for each would take twice as long as the cells.
WHILE_RESTORING = 0.5


def first_failure(notebook: Any) -> tuple[int, Any] | None:
    """Return the first cell (from 0) that an error ended, and that output; None where none did.

    An error that a tag allows is the cell's work, and `SystemExit` without a code ends a notebook well.
    """
    for index, cell in enumerate(notebook.cells):
        if RAISES_TAG in cell.metadata.get("tags", ()):
            continue
        for output in cell.get("outputs", ()):
            if output.output_type != "error" or (output.ename == "SystemExit" and output.evalue in {"", "0"}):
                continue
            return index, output
    return None


class Bookkeeper(NotebookExecutionManager):  # type: ignore[misc]  # papermill ships no types
    """Keeps papermill's books, and beside them which cell was restored and which ran."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._quiet = False
        self._restoring, self._unsaved, self._saved_at = False, False, 0.0
        super().__init__(*arguments, **options)
        #: What stopped the last cell: an exception of nbclient's, or of ours.
        self.problem: BaseException | None = None
        #: The gate at which the last cell stopped.
        self.waiting: Waiting | None = None
        #: Returns the command that approves it.
        self.deciding: Callable[[Waiting], str] = lambda waiting: waiting.command(None)
        #: Whether the end of the notebook was reached, or a cell that ended it as cells do.
        self.ended = False
        self.counts = {"restored": 0, "ran": 0}
        #: How many cells are behind us, of whatever kind, and who is told so (a batch that shows progress).
        self.done = 0
        self.told: Callable[[Bookkeeper], None] | None = None
        #: What is left to do when the executed notebook is written: end the run, and close its store.
        self.conclude: Callable[[], None] = _nothing
        self.put_away: Callable[[], None] = _nothing

    def open(self, run: str, attempt: int | None, state: str = "running", **facts: Any) -> None:
        """Note which run this is."""
        self.nb.metadata[KEY] = {"run": run, "attempt": attempt, "state": state, **self.counts, **facts}
        self._restoring = attempt is not None and attempt > 1
        self._tell()

    def _tell(self) -> None:
        if self.told is not None:
            self.told(self)

    def close(self, state: str, **facts: Any) -> None:
        """Note how the run stands at the end."""
        self.nb.metadata[KEY] = {**self.nb.metadata.get(KEY, {}), "state": state, **self.counts, **facts}

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def save(self, **_options: Any) -> None:
        """Write the output notebook, except while its truth is being worked out."""
        if self._quiet:
            return
        if self._restoring and time.monotonic() - self._saved_at < WHILE_RESTORING:
            self._unsaved = True
            return
        super().save()
        self._saved_at, self._unsaved = time.monotonic(), False

    def catch_up(self, done: int) -> None:
        """Write what was put off, if the cell behind the first `done` ones is still at work: it is not restored."""
        if self._unsaved and self.done == done:
            self._restoring = False
            self.save()

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def notebook_start(self, **_options: Any) -> None:
        """Begin; what an earlier execution said of its run is not true of this one."""
        self.nb.metadata.pop(KEY, None)
        for cell in self.nb.cells:
            cell.metadata.pop(KEY, None)
        super().notebook_start()

    def report(self, cell: Any, index: int, facts: dict[str, Any]) -> None:
        """Take what the kernel says became of a cell: `step`, `restored` and `seconds` (when it ran)."""
        restored = self._restoring = bool(facts["restored"])
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

    def stopped_at(self, waiting: Waiting, cell: Any, index: int, said: list[dict[str, Any]]) -> None:
        """Note that a cell stopped at a gate; what the kernel `said` of it stands where an error would.

        That is a form which shows what is to be decided, and perhaps a widget, which outlives no kernel.
        """
        self.waiting, self._restoring = waiting, False
        shown = [data for data in said if "text/html" in data and _WIDGET not in data]
        data = shown[-1] if shown else _notice(waiting, self.deciding(waiting))
        cell.outputs = [output for output in cell.outputs if output.output_type != "error"]
        cell.outputs.append(new_output("display_data", data=data, metadata=MARK))
        logger.info(f"Cell {index + 1}: {waiting}")

    def executed(self, cell: Any, seconds: float | None) -> None:
        """Note what became of a code cell that the kernel reported nothing of: it is no step, or it failed.

        `seconds` is None where it was not executed (it is empty, or tagged to be skipped).
        """
        if KEY in cell.metadata:
            return
        if seconds is None:
            cell.metadata[KEY] = {"status": "skipped"}
            return
        if self.waiting is not None:
            cell.metadata[KEY] = {"status": "waiting", "seconds": round(seconds, 6)}
            return
        failed = cell.metadata.get("papermill", {}).get("status") == self.FAILED
        cell.metadata[KEY] = {"status": "failed" if failed else "ran", "seconds": round(seconds, 6)}
        self.counts["ran"] += not failed

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def cell_exception(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        """Note a failure, as papermill does, and what it was; to wait is none."""
        if self.waiting is not None:
            return
        self.problem, self._restoring = options.get("exception", self.problem), False
        super().cell_exception(cell, cell_index=cell_index, **options)

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def cell_complete(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        """Finish a cell, as papermill does, and tell whoever wants to know; one that waits is still to be done."""
        if self.waiting is not None:
            cell.metadata.papermill.update(status=self.PENDING, exception=None)
            self.save()
            return
        super().cell_complete(cell, cell_index=cell_index, **options)
        if self.pbar and cell.metadata.get(KEY, {}).get("status") == "restored":
            self.pbar.refresh()  # tqdm itself waits for a tenth of a second
        self.done += 1
        self._tell()

    @catch_nb_assignment  # type: ignore[untyped-decorator]
    def notebook_complete(self, **_options: Any) -> None:
        """Finish, and leave the cells that were not reached pending."""
        unreached = [
            cell
            for cell in self.nb.cells
            if (not self.ended or self.waiting)
            and cell.metadata.get("papermill", {}).get("status") == self.PENDING
        ]
        self._restoring = False
        self._quiet = True  # saved once, with the truth
        try:
            super().notebook_complete()
        finally:
            self._quiet = False
        for cell in unreached:
            cell.metadata.papermill["status"] = self.PENDING
        self.save()

    def save_waiting(self) -> None:
        """Write a notebook that waits to where papermill writes only behind its engine, which raises.

        That is so for standard output, and where nobody wants it written as it grows.
        """
        target = self.nb.metadata.get("papermill", {}).get("output_path")
        if target and not self.output_path:
            write_ipynb(self.nb, target)


def _notice(waiting: Waiting, command: str) -> dict[str, Any]:
    """Return what is shown of a gate where the kernel had no more to say."""
    decide = f"Decide: {command} (or reject), then run the notebook again."
    style = f"border-left:3px solid var(--jp-warn-color1, #e68a00);padding:0.2em 0.8em;{FONT}"
    lines = f"<strong>⏸ {html.escape(str(waiting))}</strong><br>{html.escape(decide)}"
    return {
        "text/plain": f"⏸ {waiting}\n{decide}",
        "text/html": f'<div role="status" style="{style}">{lines}</div>',
    }


def _nothing() -> None:
    """Do nothing: there is no run yet."""
