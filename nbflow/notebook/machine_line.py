"""One line under a cell in which a machine runs: where it is and since when, once it has taken a second.

Never recorded. Between two events the pulse keeps it up to date (`beat`).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

from nbflow.core.events import Event
from nbflow.runtime.watch.running import Before, lapse, remaining

#: Seconds of running from which on it is worth a line, and between two updates of it.
_PATIENCE = 1.0
_EVERY = 0.25
#: … and where nothing happened meanwhile.
_SLOWLY = 1.0

#: Shows a text: (text, display id, whether the line is there already, whether it is the last word).
Say = Callable[[str, str, bool, bool], None]


class MachineLine:
    """Observes one run of a machine."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE
        self._shown = False
        self._at: dict[str, _At] = {}
        self._left = 0
        self._before: dict[str, Before] = {}
        self._last = 0.0
        self._lock = threading.Lock()
        self.over = False

    def on_state(self, event: Event) -> None:
        """A state was entered, or ended."""
        with self._lock:
            if event.state == "running":
                self._at[event.step] = _At(event.name, time.monotonic())
                self._show(_EVERY)
                return
            at = self._at.pop(event.step, None)
            self._left += event.state == "completed"
            if at is not None and event.state == "completed":
                self._before[event.name] = Before(time.monotonic() - at.since, at.cursors)

    def on_cursor(self, event: Event) -> None:
        """A stepped state went on by one cursor."""
        with self._lock:
            number = event.detail["number"] + 1
            at = self._at.get(event.step) or _At(event.name, time.monotonic())
            self._at[event.step] = at._replace(cursors=number)
            self._show(_EVERY)

    def beat(self) -> bool:
        """Show that time passes although nothing happened; tell whether the line is shown."""
        with self._lock:
            if not self.over:
                self._show(_SLOWLY)
            return self._shown and not self.over

    def on_run(self, event: Event) -> None:
        """The run ended, or waits."""
        if event.state in ("running", "pending"):
            return
        with self._lock:
            self.over = event.state != "waiting"
            if self._shown:
                took = time.monotonic() - self._began
                self._tell(
                    f"{self._name}: {event.state} after {self._left:,} states in {took:.1f} s", last=True
                )

    def _show(self, every: float) -> None:
        now = time.monotonic()
        if now < self._next or now - self._last < every or not self._at:
            return
        self._last = now
        where = "; ".join(self._where(at, now) for at in self._at.values())
        self._tell(f"{self._name}: in {where} ({self._left:,} states left behind)")

    def _where(self, at: _At, now: float) -> str:
        """Return where one line of the machine is; what it took at its last visit says how long it may take now."""
        gone = now - at.since
        said = f"{at.name}, cursor {at.cursors:,}" if at.cursors else at.name
        if gone >= _PATIENCE:
            said += f", {lapse(gone)}"
        left = remaining(gone, at.cursors, self._before.get(at.name))
        return said if left is None else f"{said}, about {lapse(left)} left"

    def _tell(self, text: str, *, last: bool = False) -> None:
        self._say(text, self._display_id, self._shown, last)
        self._shown = True


class _At(NamedTuple):
    """A state that was entered: since when (monotonic seconds), and how many cursors it has recorded."""

    name: str
    since: float
    cursors: int = 0
