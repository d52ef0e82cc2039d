"""One line under a cell in which a machine runs: where it is, once it has taken a second. Never recorded."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from nbflow.core.events import Event

#: Seconds of running from which on it is worth a line, and between two updates of it.
_PATIENCE = 1.0
_EVERY = 0.2

#: Shows a text: (text, display id, whether the line is there already).
Say = Callable[[str, str, bool], None]


class MachineLine:
    """Observes one run of a machine."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE
        self._shown = False
        self._at: dict[str, str] = {}
        self._left = 0

    def on_state(self, event: Event) -> None:
        """A state was entered, or ended."""
        if event.state == "running":
            self._at[event.step] = event.name
            self._show()
        else:
            self._at.pop(event.step, None)
            self._left += event.state == "completed"

    def on_cursor(self, event: Event) -> None:
        """A stepped state went on by one cursor."""
        self._at[event.step] = f"{event.name}, cursor {event.detail['number'] + 1:,}"
        self._show()

    def on_run(self, event: Event) -> None:
        """The run ended, or waits."""
        if self._shown and event.state not in ("running", "pending"):
            took = time.monotonic() - self._began
            self._tell(f"{self._name}: {event.state} after {self._left:,} states in {took:.1f} s")

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next or not self._at:
            return
        self._next = now + _EVERY
        self._tell(f"{self._name}: in {'; '.join(self._at.values())} ({self._left:,} states left behind)")

    def _tell(self, text: str) -> None:
        self._say(text, self._display_id, self._shown)
        self._shown = True
