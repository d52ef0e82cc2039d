"""The one thread of a process that keeps lines about long work alive: it calls who asked, four times a second.

Steps pay nothing for being watched: whoever is called looks at what the history
says (`running`). The thread ends when nobody has asked for a while.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger("nbflow")

#: Seconds between two beats; and without anybody to call, before the thread ends.
EVERY = 0.25
_IDLE = 30.0

Beat = Callable[[], None]

_changed = threading.Condition()
_beats: tuple[Beat, ...] = ()
_thread: threading.Thread | None = None


def add(beat: Beat) -> None:
    """Call `beat` on every beat from now on, in the pulse's thread; adding it twice is fine.

    One that raises is logged, and called no more.
    """
    global _beats, _thread  # noqa: PLW0603 - one thread a process
    with _changed:
        if beat not in _beats:
            _beats += (beat,)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="nbflow-pulse", daemon=True)
            _thread.start()
        _changed.notify_all()


def remove(beat: Beat) -> None:
    """Call `beat` no more; a call that is under way goes on. Removing what is not there is fine."""
    global _beats  # noqa: PLW0603 - one thread a process
    with _changed:
        _beats = tuple(other for other in _beats if other != beat)


def _run() -> None:
    while _wanted():
        time.sleep(EVERY)
        for beat in _beats:
            try:
                beat()
            except Exception:
                log.exception("A line about running work failed and is not shown any more; the run goes on.")
                remove(beat)


def _wanted() -> bool:
    """Wait until somebody wants to be called; tell that nobody did for a while."""
    global _thread  # noqa: PLW0603 - one thread a process
    with _changed:
        if not _beats and not _changed.wait_for(lambda: bool(_beats), timeout=_IDLE):
            _thread = None
            return False
        return True


def _after_fork() -> None:
    """The thread stays in the parent, and so does what it showed."""
    global _changed, _beats, _thread
    _changed, _beats, _thread = threading.Condition(), (), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
