"""How far a batch is, in the notebook that called `nbflow.batch`: one quiet line, kept up to date, never recorded."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from nbflow.headless.batches.jobs import Unwatched
from nbflow.notebook import messages

if TYPE_CHECKING:
    from nbflow.headless.batches.jobs import Item, Outcome, Plan

#: Seconds between two changes of the line.
_PACE = 0.5


class NotebookLine(Unwatched):
    """A `Watcher` that says how many notebooks are done, failed and left, at most twice a second."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._shown = 0.0
        self._total = self._done = 0
        self._failed: set[int] = set()
        self._held: set[int] = set()
        self._run = self._notice = ""

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """See `Watcher`."""
        self._run, self._total, self._done = run, len(plan.items), len(done)
        self._show()

    def started(self, item: Item, attempt: int) -> None:  # noqa: ARG002 - the protocol's
        """See `Watcher`."""
        self._failed.discard(item.index)
        self._held.discard(item.index)

    def held(self, item: Item, outcome: Outcome) -> None:  # noqa: ARG002 - the protocol's
        """See `Watcher`."""
        self._held.add(item.index)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        self._failed.discard(item.index)
        if outcome.state == "completed":
            self._done += 1
        elif outcome.state == "waiting":
            self._held.add(item.index)
        else:
            self._failed.add(item.index)
        if time.monotonic() - self._shown >= _PACE:
            self._show()

    def stopping(self, why: str) -> None:
        """See `Watcher`."""
        self._notice = f" {why}"
        self._show()

    def end(self, state: str) -> None:
        """See `Watcher`."""
        self._notice = f" It is {state}."
        self._show()

    def _show(self) -> None:
        left = self._total - self._done - len(self._failed) - len(self._held)
        text = f"batch {self._run}: {self._done:,} of {self._total:,} notebooks done"
        text += f", {len(self._failed):,} failed" if self._failed else ""
        text += f", {len(self._held):,} waiting for a decision" if self._held else ""
        text += f", {left:,} left." if left else "."
        update = self._shown > 0
        self._shown = time.monotonic()
        messages.say(self._shell, text + self._notice, display_id=self._display_id, update=update)


def line_of_this_notebook() -> NotebookLine | None:
    """Return a line where this process is a notebook's kernel; None elsewhere."""
    from nbflow.core.loaded import loaded

    ipython = loaded("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return NotebookLine(shell) if shell is not None and hasattr(shell, "kernel") else None
