"""The seam for what lies around a call and moves with it: the global random generators of a notebook.

A replayed call does not enter its body, so a generator that the body drew from
would stay behind, and plain code after the call would draw other numbers than
it did. Whoever owns the surroundings (the notebook layer) sets
`Session.surroundings`; a plain script has none.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nbflow.core.history import Execution
    from nbflow.runtime.session import Session


class Surroundings(Protocol):
    """What is looked at before and after a call, and put back when the call is replayed."""

    def look(self) -> Any:
        """Return what is there now; cheap, opaque to the caller."""
        ...

    def moved(self, before: Any) -> dict[str, Any]:
        """Return what is needed to go from `before` to now; {} when nothing moved."""
        ...

    def put_back(self, state: dict[str, Any]) -> None:
        """Go to where a recorded call had left it."""
        ...


def around(session: Session) -> Surroundings | None:
    """Return the session's surroundings; None where there are none, and beside the main thread.

    Calls in several threads draw from one generator in no order that could be put back.
    """
    if session.surroundings is None or threading.current_thread() is not threading.main_thread():
        return None
    return session.surroundings


def replayed(session: Session, execution: Execution) -> dict[str, Any]:
    """Return the recorded values of a call, with the surroundings moved to where it had left them."""
    values = session.restore(execution)
    surroundings = session.surroundings
    if surroundings is not None and execution.completed is not None and execution.completed.state is not None:
        surroundings.put_back(session.restore_state(execution))
    return values
