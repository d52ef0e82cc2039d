"""Which session a durable call belongs to: that of its context, else the process's only one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token

from nbflow.core.errors import NoActiveRun, UsageError
from nbflow.runtime.session import Session
from nbflow.runtime.watch.hooks import telling

_lock = threading.Lock()
_open: list[Session] = []
_opener: Callable[[], Session] | None = None
_in_context: ContextVar[Session | None] = ContextVar("nbflow_session", default=None)


def current() -> Session | None:
    """Return the session of this context, else the only open one of the process, else None."""
    session = _in_context.get()
    return session if session is not None else _only()


def _only() -> Session | None:
    """Return the session of code that has entered none: the only one, or in a notebook the notebook's own.

    A cell enters none, and neither do its threads and tasks, while machines that
    it runs side by side are open as children.
    """
    sessions = tuple(_open)
    if len(sessions) > 1 and _opener is not None:
        sessions = tuple(session for session in sessions if session.parent is None)
    return sessions[0] if len(sessions) == 1 else None


def expected() -> bool:
    """Tell whether durable things belong to a run here: this context has entered one, or the notebook has its own."""
    return _in_context.get() is not None or _opener is not None


def required() -> Session:
    """Return the current session; attach the notebook's run if nothing is attached yet.

    Raises:
        NoActiveRun: nothing says which run this belongs to.
        UsageError: called by an observer, which would be told of what it records, without end.
    """
    if telling.get():
        raise UsageError(
            "An observer tried to record something in the run that it observes; nothing was recorded.",
            hint="Put the event into a queue there and act on it elsewhere. `nbflow.cancel(event.run)` may be called.",
        )
    session = _in_context.get()
    if session is not None:
        return session
    session = _only()
    if session is not None:
        return session
    if _open:
        raise NoActiveRun(
            f"{len(_open)} runs are open in this process and this thread belongs to none of them.",
            hint="Start the thread with contextvars.copy_context().run, so that it inherits its run.",
        )
    if _opener is not None:
        return _opener()
    raise NoActiveRun(
        "A durable function was called outside any run, so nothing would be recorded.",
        hint=(
            'Call it inside `with nbflow.run("name"):`, or in a notebook after `%load_ext nbflow`. '
            "In a worker process call the plain function (`fetch.plain(...)`) and record in the parent."
        ),
    )


def set_opener(opener: Callable[[], Session] | None) -> None:
    """Register how the first durable thing attaches a run (the notebook layer does); None unregisters."""
    global _opener  # noqa: PLW0603 - one a process, like the list of open sessions
    _opener = opener


def add(session: Session) -> None:
    """Count the session among the open ones of this process."""
    with _lock:
        _open.append(session)


def remove(session: Session) -> None:
    """Take the session out again; removing one that is not there is fine."""
    with _lock:
        if session in _open:
            _open.remove(session)


def enter(session: Session) -> Token[Session | None]:
    """Make the session that of this context; undo with `leave`."""
    return _in_context.set(session)


def leave(token: Token[Session | None]) -> None:
    """Undo `enter`."""
    _in_context.reset(token)
