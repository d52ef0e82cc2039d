"""Say what a cell waits for while a step of it is tried again: one line, kept up to date, never recorded.

A retry that comes at once is nobody's business. Once a step has kept its cell
waiting for a second, the line says which attempt failed, why, and when the
next one begins; after the cell it says how many there were. A fan-out that takes
as long gets a line as well, with how many of its items have ended.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.notebook import messages
from nbflow.notebook.machine_line import MachineLine
from nbflow.runtime.fanout import progress as fanout_progress
from nbflow.runtime.fanout.progress import Counts, Display
from nbflow.runtime.machine import progress as machine_progress

if TYPE_CHECKING:
    from nbflow.runtime.session import Session, StepSpec

#: Seconds of waiting from which on it is worth a line.
_PATIENCE = 1.0

#: Characters of an error's message.
_TEXT = 80


@dataclass
class _Line:
    """What is shown of one step: its display, and the sentence for when the cell is over."""

    since: float
    display_id: str = ""
    closing: str = ""


class Progress:
    """Watches one session. Steps may wait in several threads at once."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._session: Session | None = None

    def watch(self, session: Session) -> None:
        """Listen to the waits of this session instead of another's."""
        self.stop()
        self._session = session
        session.on_wait = self._wait
        fanout_progress.show_with(self._fan_out)
        machine_progress.show_with(self._machine)

    def stop(self) -> None:
        """Listen no more."""
        if self._session is not None:
            self._session.on_wait = None
            self._session = None
            fanout_progress.show_with(None)
            machine_progress.show_with(None)

    def clear(self) -> None:
        """The cell is over: put every line into the past."""
        with self._lock:
            lines, self._lines = self._lines, {}
        for line in lines.values():
            if line.display_id:
                self._show(line.closing, line.display_id, update=True)

    def _wait(self, spec: StepSpec, attempt: int, seconds: float, error: BaseException | None) -> None:
        """A step waits `seconds` for its next attempt, the number of which is `attempt`."""
        now = time.monotonic()
        with self._lock:
            line = self._lines.setdefault(spec.step, _Line(now))
            if seconds < _PATIENCE and now - line.since < _PATIENCE:
                return
            begin = not line.display_id
            line.display_id = line.display_id or f"nbflow-{uuid.uuid4().hex}"
            why = f" ({_told(error)})" if error is not None else ""
            line.closing = f"{spec.name}: {attempt} attempts, the one before the last failed{why}"
        at = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        self._show(
            f"{spec.name}: attempt {attempt - 1} of {spec.retry.retries + 1} failed{why}; "
            f"the next one begins at {at}, in {seconds:.0f} s",
            line.display_id,
            update=not begin,
        )

    def _fan_out(self, _counts: Counts) -> Display | None:
        """A fan-out takes its time: say what shows how far it is. A terminal has its bar."""
        return None if sys.stderr.isatty() else _FanLine(self)

    def _machine(self, name: str) -> MachineLine:
        """A machine begins to run."""
        return MachineLine(name, lambda text, display_id, update: self._show(text, display_id, update=update))

    def _show(self, text: str, display_id: str, *, update: bool) -> None:
        messages.say(self._shell, text, display_id=display_id, update=update)


class _FanLine:
    """One line for one fan-out, kept up to date."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._shown = False

    def show(self, counts: Counts) -> None:
        """Show the counts as they are now."""
        ended = counts.total - counts.left
        more = fanout_progress.said(counts)
        text = f"{counts.name}: {ended:,} of {counts.total:,} items{f' ({more})' if more else ''}"
        self._progress._show(text, self._display_id, update=self._shown)  # noqa: SLF001 - of the same file
        self._shown = True

    def close(self, counts: Counts) -> None:
        """Show the last counts."""
        self.show(counts)


def _told(error: BaseException) -> str:
    """Return an exception in one short line."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:_TEXT]}" if line else type(error).__name__
