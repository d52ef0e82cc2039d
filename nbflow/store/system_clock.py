"""The machine's own clocks: what `core.clock.Clock` asks for, from the operating system."""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path


class SystemClock:
    """The machine's clock."""

    patience = 0.1

    def now(self) -> float:
        """Return UTC seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that nobody can set; a machine that sleeps counts on where the system says so."""
        return _running()

    def boot(self) -> tuple[str, float] | None:
        """Return the id of this boot and the seconds since; None where the system does not tell."""
        name = _boot_id()
        return None if name is None else (name, _running())

    def sleep(self, seconds: float) -> None:
        """Block this thread; zero or less returns at once."""
        if seconds > 0:
            time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

        await asyncio.sleep(max(0.0, seconds))

    def pause(self, seconds: float, *, expecting: bool = False) -> None:  # noqa: ARG002 - part of the seam
        """Block this thread for at most `seconds` and at most `patience`."""
        self.sleep(min(seconds, self.patience))

    async def pause_async(self, seconds: float, *, expecting: bool = False) -> None:  # noqa: ARG002
        """Do as `pause` without blocking the event loop."""
        await self.sleep_async(min(seconds, self.patience))


def _running() -> float:
    # `time.monotonic` stands still while a laptop is suspended; an hour's sleep would then take longer.
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    return time.monotonic()


@cache
def _boot_id() -> str | None:
    try:
        if sys.platform == "linux":
            with Path("/proc/sys/kernel/random/boot_id").open(encoding="ascii") as file:
                return file.read().strip() or None
        if sys.platform == "darwin":
            return _mac_boot_id()
    except (OSError, AttributeError):  # a sandbox without /proc: the wall clock has to do
        pass
    return None


def _mac_boot_id() -> str | None:
    import ctypes

    size = ctypes.c_size_t(64)
    text = ctypes.create_string_buffer(size.value)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return text.value.decode("ascii") or None
