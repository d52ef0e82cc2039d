"""When a wait is over: due instants, what is left of them, and which clock to believe. Pure.

A relative wait ("for an hour") is a promise about time that passes; an absolute
one ("until 9 o'clock") is about what the wall clock shows. Only the second
follows a wall clock that somebody sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nbflow.core.errors import UsageError

#: Which boot of a machine, and its age in seconds.
Boot = tuple[str, float]


@dataclass(frozen=True)
class Timer:
    """When a wait is over, as it was decided when the wait began or was last resumed.

    `due_at` is in UTC seconds. `seconds` is the length of a relative wait and
    None for an absolute one. `boot` is the boot clock at that moment, `rest`
    what was left then; None for the whole length.
    """

    due_at: float
    seconds: float | None = None
    boot: Boot | None = None
    rest: float | None = None

    @classmethod
    def after(cls, seconds: float, now: float, boot: Boot | None) -> Timer:
        """Return the timer of a wait of so many seconds that begins now.

        >>> Timer.after(60, now=1000.0, boot=None).due_at
        1060.0
        """
        return cls(now + seconds, seconds, boot)

    @classmethod
    def of(cls, detail: dict[str, Any]) -> Timer | None:
        """Return the timer that a step was started with; None when it waits without end."""
        if detail.get("due_at") is None:
            return None
        boot = detail.get("boot")
        seconds, rest = detail.get("seconds"), detail.get("rest")
        return cls(detail["due_at"], seconds, (boot[0], boot[1]) if boot else None, rest)

    def detail(self) -> dict[str, Any]:
        """Return what is recorded of it in `StepStarted.detail`.

        >>> timer = Timer.after(60, now=1000.0, boot=("b", 5.0))
        >>> Timer.of(timer.detail()) == timer
        True
        """
        boot = list(self.boot) if self.boot else None
        found: dict[str, Any] = {"due_at": self.due_at, "seconds": self.seconds, "boot": boot}
        return found if self.rest is None else {**found, "rest": self.rest}

    def left(self, now: float, boot: Boot | None) -> float:
        """Return the seconds that are left, by the most trustworthy clock there is; zero or less when it is over.

        An absolute wait goes by the wall clock. A relative one goes by the boot
        clock as long as the machine was not started again; then the wall clock
        has to do, but whatever it shows, never more is left than when it was recorded.

        >>> timer = Timer.after(60, now=1000.0, boot=("b", 5.0))
        >>> timer.left(4600.0, ("b", 15.0)), timer.left(1010.0, ("c", 1.0)), timer.left(0.0, None)
        (50.0, 50.0, 60)
        """
        if self.seconds is None:
            return self.due_at - now
        rest = self.seconds if self.rest is None else self.rest
        if self.boot is not None and boot is not None and self.boot[0] == boot[0]:
            return min(rest - (boot[1] - self.boot[1]), rest)
        return min(self.due_at - now, rest)

    def resumed(self, now: float, boot: Boot | None) -> Timer:
        """Return the timer of the same wait as it is recorded when a process takes it up again.

        It has what is left now, by the clocks as they are now: however often the
        wait is resumed, a clock that was set misleads it once at most.

        >>> Timer.after(60, now=1000.0, boot=("b", 5.0)).resumed(4600.0, ("b", 15.0))
        Timer(due_at=4650.0, seconds=60, boot=('b', 15.0), rest=50.0)
        """
        if self.seconds is None:
            return self
        rest = self.left(now, boot)
        return Timer(now + rest, self.seconds, boot, rest)


def instant(when: datetime | float) -> float:
    """Return a date and time, or UTC seconds, as UTC seconds.

    A datetime without a zone is local time. Where clocks are set back an hour
    comes twice, and `fold` says which one is meant; a time that is skipped in
    spring counts by the offset before the change, so 02:30 is 03:30 (PEP 495).

    Raises:
        UsageError: NaN, infinite, out of range, or no instant at all.

    >>> from datetime import timezone
    >>> instant(datetime(1970, 1, 2, tzinfo=timezone.utc))
    86400.0
    """
    if isinstance(when, datetime):
        try:
            return when.timestamp()
        except (OverflowError, OSError, ValueError) as error:
            raise UsageError(f"{when!r} is out of range: {error}.") from None
    given: object = when  # callers are not all type-checked
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        try:
            value = float(given)
        except OverflowError:
            value = math.inf
        if math.isfinite(value):
            return value
    raise UsageError(
        f"{when!r} is no instant.", hint="Give a datetime, or UTC seconds since the epoch (time.time() + 60)."
    )
