"""The seam for time: everything that waits or stamps asks a clock, so tests need not wait.

Three kinds of time, because each lies in its own way. The wall clock (`now`)
is the same on all machines, but somebody may set it. The monotonic clock counts
what has really passed, but only within one process. The boot clock counts on
over restarts of a process, until the machine itself starts again.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time and waiting. `nbflow.testing.VirtualClock` is the fake."""

    #: The longest wait in seconds without a look around, by whoever waits for more than time.
    patience: float

    def now(self) -> float:
        """Return UTC seconds since the epoch; they jump when somebody sets the clock."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some instant; never set back, counting while the machine is suspended if it can."""
        ...

    def boot(self) -> tuple[str, float] | None:
        """Return which boot of the machine this is and its age in seconds; None where nobody can tell."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread; zero or less returns at once."""
        ...

    async def sleep_async(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        ...

    def pause(self, seconds: float, *, expecting: bool = False) -> None:
        """Block this thread for at most `seconds` and at most `patience`; infinite is allowed.

        `expecting` says that something may end the wait before its time.
        """
        ...

    async def pause_async(self, seconds: float, *, expecting: bool = False) -> None:
        """Do as `pause` without blocking the event loop."""
        ...
