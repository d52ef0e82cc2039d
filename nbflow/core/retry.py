"""When a failed attempt is tried again, and how long to wait first. Pure: no clock, no sleep.

Exponential backoff with full jitter, after Brooker, "Exponential Backoff And
Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from nbflow.core.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")


def seconds(duration: float | str | None) -> float | None:
    """Return a duration in seconds; text such as "90s", "1h 30m" or "250ms" is understood.

    Raises:
        UsageError: negative, NaN, infinite, or not a duration.

    >>> seconds("1h 30m"), seconds(2), seconds(None)
    (5400.0, 2.0, None)
    """
    if duration is None:
        return None
    if isinstance(duration, str):
        text = duration.strip()
        try:
            value = float(text)
        except ValueError:
            matches = _DURATION.findall(text)
            if not matches or _DURATION.sub("", text).strip():
                hint = 'Write "30s", "1h 30m" or a number of seconds.'
                raise UsageError(f"{duration!r} is not a duration.", hint=hint) from None
            value = sum(float(number) * _UNITS[unit] for number, unit in matches)
    else:
        value = float(duration)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"A duration must be a finite number of seconds from 0 up, not {duration!r}.")
    return value


@dataclass(frozen=True)
class RetryPolicy:
    """How often a step is tried again.

    `retries` counts the tries after the first. The wait before retry n (from 1)
    is drawn between 0 and `min(max_delay, delay * factor ** (n - 1))` with
    `jitter`, and is that bound without.

    >>> RetryPolicy(retries=2, delay=1, jitter=False).wait(2, draw=lambda: 0.5)
    2.0
    """

    retries: int = 0
    delay: float = 0.5
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (Exception,)

    def __post_init__(self) -> None:
        retries: object = self.retries  # callers are not all type-checked
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise UsageError(f"retries must be a whole number from 0 up, not {self.retries!r}.")
        for name in ("delay", "factor", "max_delay"):
            value: object = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise UsageError(f"{name} must be a finite number from 0 up, not {value!r}.")

    def again(self, attempt: int, error: BaseException) -> bool:
        """Tell whether a failed attempt (from 1) is followed by another."""
        if attempt > self.retries:
            return False
        if isinstance(self.retry_on, tuple):
            return isinstance(error, self.retry_on)
        return bool(self.retry_on(error))

    def wait(self, retry: int, draw: Callable[[], float]) -> float:
        """Return the seconds to wait before retry number `retry` (from 1); `draw` gives [0, 1)."""
        # The exponent is bounded first: 2.0 ** 5000 overflows.
        bound = min(self.max_delay, self.delay * self.factor ** min(retry - 1, 64))
        return float(bound * draw() if self.jitter else bound)
