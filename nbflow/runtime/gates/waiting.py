"""Who shows a gate where code waits at it in place, or finds it decided: the notebook does, in the cell that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

log = logging.getLogger("nbflow")

#: Shows a gate: the session of its run, its key, and whether code waits there now (else it is decided).
Show = Callable[["Session", str, bool], None]

_shows: list[Show] = []


def show_with(show: Show | None) -> None:
    """Have `show(session, step, waits)` called in the thread that comes to a gate; None unregisters."""
    _shows[:] = [] if show is None else [show]


def shown(session: Session, step: str, *, waits: bool) -> None:
    """Say that code begins to wait at this gate, or goes on with its decision; showing it never stops the run."""
    for show in _shows:
        try:
            show(session, step, waits)
        except Exception:
            log.exception("Gate %s of run %s could not be shown.", step, session.run)
