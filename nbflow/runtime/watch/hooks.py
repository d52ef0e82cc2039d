"""What sessions tell the observers, without loading them where nobody observes: that takes 15 ms of every start."""

from __future__ import annotations

import sys
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: The open sessions of this process.
sessions: weakref.WeakSet[Session] = weakref.WeakSet()

#: Whether this context is a callback of an observer: what it recorded would be told to it, without end.
telling: ContextVar[bool] = ContextVar("nbflow_telling", default=False)

_OBSERVERS = "nbflow.runtime.watch.observers"
_STATUS = "nbflow.runtime.watch.status"


def opened(session: Session) -> None:
    """Count a session in, and tell those who observe how it came by its run."""
    sessions.add(session)
    if _wanted():
        from nbflow.runtime.watch import observers

        observers.opened(session)


def refresh(session: Session) -> None:
    """Find logging and tracing that were set up after the session was opened; call it now and then."""
    if _wanted():
        from nbflow.runtime.watch import observers

        observers.refresh(session)


def closed(session: Session) -> None:
    """Count a session out; what keeps something open for its run lets go of it."""
    sessions.discard(session)
    if _OBSERVERS in sys.modules:
        from nbflow.runtime.watch import observers

        observers.closed(session)


def begun(session: Session) -> None:
    """Say that code of a run begins: on a terminal a line tells what it is at once that takes its time."""
    if sys.stderr is not None and sys.stderr.isatty():
        from nbflow.runtime.watch.status import STATUS

        STATUS.begin(session)


def left(session: Session) -> None:
    """Say that the code of a run was left."""
    if _STATUS in sys.modules:
        from nbflow.runtime.watch.status import STATUS

        STATUS.end(session)


def _wanted() -> bool:
    """Tell whether somebody observes, or logging or tracing were set up."""
    if _OBSERVERS in sys.modules or "opentelemetry.trace" in sys.modules:
        return True
    logging = sys.modules.get("logging")
    return logging is not None and bool(logging.getLogger("nbflow.run").hasHandlers())
