"""The seam for time: everything that waits or stamps asks a clock, so tests need not wait."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time and waiting. `nbflow.testing.VirtualClock` is the fake."""

    def now(self) -> float:
        """Return UTC seconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread; zero or less returns at once."""
        ...

    async def sleep_async(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return UTC seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Block this thread; zero or less returns at once."""
        if seconds > 0:
            time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

        await asyncio.sleep(max(0.0, seconds))
