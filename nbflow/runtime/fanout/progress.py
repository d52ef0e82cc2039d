"""How far a fan-out is: counts that anybody may read, and a bar for people who wait.

The bar appears once a fan-out has taken a second: in a terminal it is tqdm's;
a notebook shows what the notebook layer sets with `show_with`. Logs and files
get nothing.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Seconds before a bar is shown, between two updates of it, and between two where nothing ended.
_PATIENCE = 1.0
_EVERY = 0.1
_SLOWLY = 1.0


class Counts(NamedTuple):
    """How far one fan-out is. `done` counts what ran now, `restored` what was recorded before."""

    name: str
    total: int
    done: int
    failed: int
    skipped: int
    restored: int

    @property
    def left(self) -> int:
        """How many items have not ended yet."""
        return self.total - self.done - self.failed - self.skipped - self.restored


class Display(Protocol):
    """What shows the counts: a bar, a line, a widget."""

    def show(self, counts: Counts) -> None:
        """Show the counts as they are now; called for each change and, where the pulse beats, once a second."""
        ...

    def close(self, counts: Counts) -> None:
        """Show the last counts; the fan-out is over."""
        ...


_displays: list[Callable[[Counts], Display | None]] = []
_open: weakref.WeakKeyDictionary[Session, list[Progress]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def show_with(make: Callable[[Counts], Display | None] | None) -> None:
    """Have `make` say what shows the next fan-outs (the notebook layer does); where it returns None the bar does.

    None instead of `make` unregisters.
    """
    _displays[:] = [] if make is None else [make]


def progress_of(session: Session) -> list[Counts]:
    """Return how far the fan-outs are that run now in this session, outermost first; [] when there are none."""
    with _lock:
        found = list(_open.get(session, ()))
    return [each.counts for each in found]


def tick() -> tuple[int, int]:
    """Have the fan-outs that take their time shown, though none of their items ended.

    Return how many are shown, and how many are or will be.
    """
    with _lock:
        found = [each for those in list(_open.values()) for each in those]
    shown = sum(each.tick() for each in found)
    return shown, sum(each.wanted for each in found)


class Progress:
    """Counts one fan-out. Safe to use from several threads."""

    def __init__(
        self, session: Session, name: str, total: int, *, restored: int = 0, show: bool | None = None
    ) -> None:
        self._session = weakref.ref(session)
        self._counts = Counts(name, total, 0, 0, 0, restored)
        self._lock = threading.Lock()
        self._next = time.monotonic() + _PATIENCE if show is not False else float("inf")
        self._wanted = show is not False
        self._shown = 0.0
        self._display: Display | None = None
        with _lock:
            _open.setdefault(session, []).append(self)

    @property
    def counts(self) -> Counts:
        """How far it is now."""
        return self._counts

    @property
    def wanted(self) -> bool:
        """Whether it is shown, or will be once it has taken its time."""
        return self._wanted

    def add(self, *, done: int = 0, failed: int = 0, skipped: int = 0) -> None:
        """Count items that ended."""
        with self._lock:
            old = self._counts
            self._counts = old._replace(
                done=old.done + done, failed=old.failed + failed, skipped=old.skipped + skipped
            )
            self._show(_EVERY)

    def tick(self) -> bool:
        """Show the counts anew although nothing ended, so that time is seen to pass; tell whether they are shown."""
        with self._lock:
            self._show(_SLOWLY)
            return self._display is not None

    def _show(self, every: float) -> None:
        now = time.monotonic()
        if not self._wanted or now < self._next or now - self._shown < every:
            return
        if self._display is None:
            self._display = _display(self._counts)
            self._wanted = self._display is not None
        if self._display is not None:
            self._display.show(self._counts)
        self._shown = now

    def close(self) -> None:
        """The fan-out is over."""
        with self._lock:
            if self._display is not None:
                self._display.close(self._counts)
                self._display = None
            self._wanted = False
        session = self._session()
        with _lock:
            mine = _open.get(session, []) if session is not None else []
            if self in mine:
                mine.remove(self)


def _display(counts: Counts) -> Display | None:
    found = _displays[0](counts) if _displays else None
    if found is not None:
        return found
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    return _Bar(counts)


class _Bar:
    """tqdm's bar in a terminal."""

    def __init__(self, counts: Counts) -> None:
        from tqdm.std import tqdm  # not tqdm.auto, which imports ipywidgets to look for a notebook

        self._bar: Any = tqdm(total=counts.total, desc=counts.name, unit="item", initial=counts.restored)

    def show(self, counts: Counts) -> None:
        self._bar.set_postfix_str(said(counts), refresh=False)
        self._bar.update(counts.total - counts.left - self._bar.n)
        self._bar.refresh()

    def close(self, counts: Counts) -> None:
        self.show(counts)
        self._bar.close()


def said(counts: Counts) -> str:
    """Return what is worth saying besides the number that is done.

    >>> said(Counts("load", 9, 5, 1, 0, 2))
    '1 failed, 2 restored'
    """
    parts = (("failed", counts.failed), ("skipped", counts.skipped), ("restored", counts.restored))
    return ", ".join(f"{number} {word}" for word, number in parts if number)
