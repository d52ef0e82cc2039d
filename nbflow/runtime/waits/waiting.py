"""Waiting inside a run: for an instant, for something to happen, or both; a cancelled run stops waiting.

Every wait of nbflow goes through here, so here a waiting thread gives its slot
back (twelve parents can wait for their children on four threads), and here
messages are taken in while nothing else happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbflow.runtime.workers import released

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: When a wait is over, in UTC seconds; None is never. Asked at every look, so it may follow a clock that is set.
Due = Callable[[], float | None]


def wait_until(session: Session, due_at: Due, ready: Callable[[], bool] | None = None) -> bool:
    """Block until `ready()` (True) or until `due_at()` has passed (False), whichever is seen first.

    Messages are taken in before every look, and a look comes at least every
    `clock.patience` seconds. What is ready wins over what is due at the same look.

    Raises:
        RunCancelled: the run is to stop.
    """
    with released():
        while True:
            session.check()
            if ready is not None and ready():
                return True
            left = _left(session, due_at)
            if left <= 0:
                return False
            session.clock.pause(left, expecting=ready is not None)


async def wait_until_async(session: Session, due_at: Due, ready: Callable[[], bool] | None = None) -> bool:
    """Do as `wait_until` without blocking the event loop."""
    async with released():
        while True:
            session.check()
            if ready is not None and ready():
                return True
            left = _left(session, due_at)
            if left <= 0:
                return False
            await session.clock.pause_async(left, expecting=ready is not None)


def _left(session: Session, due_at: Due) -> float:
    due = due_at()
    # Rounded: an instant near 2^31 seconds is exact to a quarter of a microsecond only.
    return math.inf if due is None else round(due - session.clock.now(), 6)
