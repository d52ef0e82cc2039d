"""The bulkhead: so many calls at once, so many waiting, and no more. In one process."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import BulkheadFull
from nbflow.core.numbers import count
from nbflow.runtime.policies.guards import Policy
from nbflow.runtime.workers import released

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Seconds between two looks of a waiting call at whether its run is to stop.
LOOK_EVERY = 0.1


class Bulkhead(Policy):
    """At most `max_concurrent` calls at once in this process, and `max_waiting` in the queue behind them.

    Any further call raises `BulkheadFull` at once. Whoever waits longest goes
    next, threads and tasks alike; a waiting call leaves when its run is cancelled.
    Not re-entrant: a call inside a call needs a place of its own.

    Raises:
        UsageError: an argument makes no sense.

    Example:
        >>> gpu = Bulkhead(1)
        >>> with gpu:
        ...     with gpu:
        ...         pass
        Traceback (most recent call last):
        ...
        nbflow.core.errors.BulkheadFull: The bulkhead has 1 of 1 calls under way and 0 of 0 waiting. ...
    """

    def __init__(self, max_concurrent: int, max_waiting: int = 0, *, name: str = "") -> None:
        self.max_concurrent = count("max_concurrent", max_concurrent, least=1)
        self.max_waiting = count("max_waiting", max_waiting)
        self.name = name
        self._lock = threading.Lock()
        self._running = 0
        self._queue: deque[Future[None]] = deque()

    def admit(self, session: Session | None) -> None:
        """Take a place, wait for one, or raise `BulkheadFull`."""
        turn = self._arrive()
        if turn is None:
            return None
        try:
            with released():
                while True:
                    try:
                        return turn.result(LOOK_EVERY)
                    except TimeoutError:
                        if session is not None:
                            session.check()
        except BaseException:
            self._leave(turn)
            raise

    async def admit_async(self, session: Session | None) -> None:
        """Do as `admit` without blocking the event loop."""
        turn = self._arrive()
        if turn is None:
            return
        import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

        try:
            async with released():
                woken = asyncio.wrap_future(turn)
                while not (await asyncio.wait([woken], timeout=LOOK_EVERY))[0]:
                    if session is not None:
                        session.check()
        except BaseException:
            self._leave(turn)
            raise

    def settle(
        self,
        session: Session | None,  # noqa: ARG002 - the places belong to the process
        ticket: object,  # noqa: ARG002 - one place is like another
        error: BaseException | None,  # noqa: ARG002 - a failure takes no room
        *,
        made: bool = True,  # noqa: ARG002 - nor does a call that was not made
    ) -> None:
        """Give the place to whoever waits longest."""
        with self._lock:
            while self._queue:
                turn = self._queue.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._running -= 1

    def _arrive(self) -> Future[None] | None:
        """Take a place at once (None), or one in the queue."""
        with self._lock:
            if self._running < self.max_concurrent:
                self._running += 1
                return None
            if len(self._queue) < self.max_waiting:
                turn: Future[None] = Future()
                self._queue.append(turn)
                return turn
            running, waits = self._running, len(self._queue)
        raise BulkheadFull(
            f"The bulkhead {self.name + ' ' if self.name else ''}has {running} of {self.max_concurrent} calls "
            f"under way and {waits} of {self.max_waiting} waiting.",
            name=self.name,
            hint="Retry later (retries=…), or give it more room with max_waiting.",
        )

    def _leave(self, turn: Future[None]) -> None:
        """Leave the queue; a place that came at the last moment goes on to the next."""
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
        if turn.done() and not turn.cancelled():
            self.settle(None, None, None)

    def __repr__(self) -> str:
        return f"Bulkhead({self.max_concurrent}, {self.max_waiting})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _bulkhead, (self.max_concurrent, self.max_waiting, self.name)


def _bulkhead(max_concurrent: int, max_waiting: int, name: str) -> Bulkhead:
    return Bulkhead(max_concurrent, max_waiting, name=name)
