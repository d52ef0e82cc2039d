"""One line under a cell whose step takes longer than a second: what runs, for how long, how much is left.

It is drawn by the pulse, which looks at the run's history: steps pay nothing
for it. While a map or a machine has a line of its own that one is enough. When
the cell is over, the line says how long its steps took. Never recorded.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbflow.runtime.watch.running import PATIENCE, Doing, Earlier, doing, ended, said

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Seconds between two updates: half a second as long as tenths are told, then a whole one.
_EVERY, _SLOWLY, _TENTHS = 0.5, 1.0, 10.0

#: Turns with each update, so that one sees that the kernel is alive.
_TURNS = "◐◓◑◒"

#: Kinds of steps that are not told here: maps and machines have lines of their own, gates a form.
HIDDEN = frozenset({"item", "state", "gate"})

#: How many steps the last word names.
_NAMED = 3

#: Shows a text: (text, display id, whether the line is there already, whether it is the last word).
Say = Callable[[str, str, bool, bool], None]


class StepLine:
    """The line of one cell."""

    def __init__(self, session: Session, earlier: Earlier, tries: dict[str, int], say: Say) -> None:
        self._session, self._earlier, self._tries, self._say = session, earlier, tries, say
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._steps: dict[str, None] = {}
        self._text: str | None = None
        self._next = 0.0
        self._turn = 0
        self._over = False

    def beat(self, *, hidden: bool = False, later: bool = False) -> None:
        """Bring the line up to date; `hidden` while other lines tell what goes on, `later` where they soon will."""
        with self._lock:
            now = time.monotonic()
            if self._over or now < self._next or (later and self._text is None):
                return
            at = self._session.clock.now()
            found = None if hidden else doing(self._session.history, hidden=HIDDEN)
            if found is None or at - found.began < PATIENCE:
                self._rest(hidden=hidden)
                return
            self._next = now + (_EVERY if at - found.began < _TENTHS else _SLOWLY)
            self._steps[found.step] = None
            self._turn += 1
            self._show(f"{_TURNS[self._turn % len(_TURNS)]} {self._told(found, at)}")

    def end(self) -> None:
        """The cell is over: leave the line with what its steps took. No beat comes behind it."""
        with self._lock:
            if not self._over and self._text is not None:
                self._show(self._closing(), last=True)
            self._over = True

    def _told(self, found: Doing, at: float) -> str:
        tries = self._tries.get(found.innermost, 0)
        return said(found, at, tries=tries, before=self._earlier.of(found.step))

    def _rest(self, *, hidden: bool) -> None:
        """Nothing takes its time now: a line that stands does not go on counting."""
        if self._text is not None:
            self._show("" if hidden else self._closing())

    def _closing(self) -> str:
        words = [word for step in self._steps if (word := ended(self._session.history, step))]
        more = f"; {len(words) - _NAMED} more" if len(words) > _NAMED else ""
        return "; ".join(words[:_NAMED]) + more

    def _show(self, text: str, *, last: bool = False) -> None:
        if text != self._text or last:
            self._say(text, self._display_id, self._text is not None, last)
            self._text = text
