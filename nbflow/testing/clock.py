"""A clock for tests: time that moves only when somebody sleeps or advances it."""

from __future__ import annotations

import asyncio
import math
import threading
import time

#: Real seconds between two looks of somebody who waits for more than time.
_LOOK = 0.002

#: Real seconds that such a wait still counts after its last look.
_LINGER = 0.05


class VirtualClock:
    """Time for tests: `sleep` returns at once and moves the clock by as much.

    `slept` lists every wait in seconds, so a test can see the backoff.

    Threads and tasks that sleep at the same time wake in order: the clock jumps
    to the earliest once nobody has stirred for `grace` real seconds, and for
    twenty times as long where something else may end the wait before its time
    (after trio's `MockClock.autojump_threshold`). With `auto_advance=False` a
    sleeper blocks until another thread has `advance`d the clock past its time.
    `boots=False` is a machine that cannot tell one boot from the next.

    >>> clock = VirtualClock(100.0)
    >>> clock.sleep(5)
    >>> clock.now(), clock.slept
    (105.0, [5])
    >>> clock.shift_wall(-3600)  # somebody sets the wall clock; no time has passed
    >>> clock.now(), clock.monotonic()
    (-3495.0, 5.0)
    """

    patience = math.inf

    def __init__(
        self,
        now: float = 1_750_000_000.0,
        *,
        auto_advance: bool = True,
        grace: float = 0.002,
        boots: bool = True,
    ) -> None:
        self.auto_advance = auto_advance
        self.grace = grace
        self.slept: list[float] = []
        self._epoch = now
        self._passed = 0.0
        self._booted = 0.0
        self._boot = 1 if boots else 0
        self._changed = threading.Condition()
        self._stirred = -math.inf
        #: Who waits: until which `_passed`, and up to which real time that counts.
        self._waits: dict[object, tuple[float, float]] = {}

    def now(self) -> float:
        """Return UTC seconds since the epoch."""
        return self._epoch + self._passed

    def monotonic(self) -> float:
        """Return the seconds that have passed since the clock was made."""
        return self._passed

    def boot(self) -> tuple[str, float] | None:
        """Return the name of this boot and the seconds since; None with `boots=False`."""
        return (f"boot-{self._boot}", self._passed - self._booted) if self._boot else None

    def advance(self, seconds: float) -> None:
        """Let time pass and wake whose time has come; negative sets the wall clock back instead."""
        with self._changed:
            if seconds < 0:
                self._epoch += seconds
            else:
                self._passed += seconds
            self._stir()

    def shift_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as a person or NTP does; no time passes."""
        with self._changed:
            self._epoch += seconds
            self._stir()

    def reboot(self) -> None:
        """Start the machine again: another boot, whose age begins at zero."""
        with self._changed:
            self._boot += 1 if self._boot else 0
            self._booted = self._passed
            self._stir()

    # --- waiting --------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Move the clock instead of waiting; zero or less does nothing."""
        if seconds <= 0:
            return
        key, due = self._begin(seconds)
        try:
            while (real := self._turn(due, self.grace)) > 0:
                self._wait(real)
        finally:
            self._end(key)

    async def sleep_async(self, seconds: float) -> None:
        """Move the clock and let other tasks go first."""
        if seconds > 0:
            key, due = self._begin(seconds)
            try:
                while (real := self._turn(due, self.grace)) > 0:  # noqa: ASYNC110 - threads move the clock as well
                    await asyncio.sleep(min(real, _LOOK))
            finally:
                self._end(key)
        await asyncio.sleep(0)

    def pause(self, seconds: float, *, expecting: bool = False) -> None:
        """Sleep; where more than time may end the wait, for two real milliseconds at most."""
        if self._only_time(seconds, expecting):
            self.sleep(seconds)
        elif self._look(threading.get_ident(), seconds) > 0:
            self._wait(_LOOK)

    async def pause_async(self, seconds: float, *, expecting: bool = False) -> None:
        """Do as `pause` without blocking the event loop."""
        if self._only_time(seconds, expecting):
            await self.sleep_async(seconds)
        else:
            left = self._look((threading.get_ident(), id(asyncio.current_task())), seconds)
            await asyncio.sleep(_LOOK if left > 0 else 0)

    def _only_time(self, seconds: float, expecting: bool) -> bool:
        return self.auto_advance and not expecting and seconds < math.inf

    # --- who waits for what ---------------------------------------------------------------------------

    def _begin(self, seconds: float) -> tuple[object, float]:
        key = object()
        with self._changed:
            due = self._passed + seconds
            self._waits[key] = (due, math.inf)
            self.slept.append(seconds)
            self._stir()
        return key, due

    def _end(self, key: object) -> None:
        with self._changed:
            self._waits.pop(key, None)
            self._stir()

    def _stir(self) -> None:
        self._stirred = time.monotonic()
        self._changed.notify_all()

    def _turn(self, due: float, grace: float) -> float:
        """Jump to `due` if it is the next that is due; return the real seconds to the next look, 0 when past."""
        with self._changed:
            if self._passed >= due:
                return 0.0
            if not self.auto_advance:
                return _LINGER  # `advance` wakes everybody earlier
            real = time.monotonic()
            self._waits = {key: wait for key, wait in self._waits.items() if wait[1] > real}
            left = self._stirred + grace - real
            if left > 0:
                return left
            if due > min((wait[0] for wait in self._waits.values()), default=due):
                return _LOOK
            self._passed = due
            self._stir()
            return 0.0

    def _look(self, key: object, seconds: float) -> float:
        """Do as `_turn` for a wait that something else may end; it counts up to its next look."""
        if seconds <= 0:
            return 0.0
        if seconds == math.inf:
            return _LOOK
        real = time.monotonic()
        with self._changed:
            due, until = self._waits.get(key, (0.0, 0.0))
            if until <= real or abs(due - self._passed - seconds) > 1e-5:
                due = self._passed + seconds
                self._stir()
            self._waits[key] = (due, real + _LINGER)
        left = self._turn(due, 20 * self.grace)
        if left == 0:
            with self._changed:
                self._waits.pop(key, None)
                self.slept.append(seconds)
        return left

    def _wait(self, real: float) -> None:
        with self._changed:
            self._changed.wait(real)
