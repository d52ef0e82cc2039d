"""Lengths of time that users give by name: `every="5s"`, `within=timedelta(minutes=5)`."""

from __future__ import annotations

from datetime import timedelta

from nbflow.core.errors import UsageError
from nbflow.core.retry import seconds


def length(value: object, name: str) -> float | None:
    """Return the duration in seconds; numbers, text such as "5m" and `timedelta` are understood, None stays None.

    Raises:
        UsageError: negative, NaN, infinite, or not a duration; names the option.

    >>> length("5m", "within")
    300.0
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        hint = 'Write "30s", "1h 30m", a number of seconds or a timedelta.'
        raise UsageError(f"{name}={value!r} is not a duration.", hint=hint)
    try:
        return seconds(value)
    except OverflowError:
        raise UsageError(f"{name}: the duration is too long.") from None
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from None
