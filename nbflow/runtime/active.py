"""Which session a durable call belongs to: that of its context, else the process's only one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token

from nbflow.core.errors import NoActiveRun
from nbflow.runtime.session import Session

_lock = threading.Lock()
_open: list[Session] = []
_opener: Callable[[], Session] | None = None
_in_context: ContextVar[Session | None] = ContextVar("nbflow_session", default=None)


def current() -> Session | None:
    """Return the session of this context, else the only open one of the process, else None."""
    session = _in_context.get()
    if session is not None:
        return session
    return _open[0] if len(_open) == 1 else None


def expected() -> bool:
    """Tell whether durable things belong to a run here: this context has entered one, or the notebook has its own."""
    return _in_context.get() is not None or _opener is not None


def required() -> Session:
    """Return the current session; attach the notebook's run if nothing is attached yet.

    Raises:
        NoActiveRun: nothing says which run this belongs to.
    """
    session = _in_context.get()
    if session is not None:
        return session
    if len(_open) == 1:
        return _open[0]
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
