"""Numbers that callers hand over, checked: each refusal names what it was given for. Pure."""

from __future__ import annotations

import math

from nbflow.core.errors import UsageError


def finite(name: str, value: object, *, above_zero: bool = False) -> float:
    """Return a finite number from 0 up (above 0 on request) as a float; a bool is no number.

    Raises:
        UsageError: NaN, infinite, negative, a bool, or no number at all.

    >>> finite("delay", 2)
    2.0
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and (number > 0 if above_zero else number >= 0):
            return number
    raise UsageError(
        f"{name} must be a finite number {'above 0' if above_zero else 'from 0 up'}, not {value!r}."
    )


def count(name: str, value: object, *, least: int = 0) -> int:
    """Return a whole number from `least` up.

    Raises:
        UsageError: anything else.

    >>> count("failures", 5, least=1)
    5
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise UsageError(f"{name} must be a whole number from {least} up, not {value!r}.")
