"""How times, durations and sizes are said, in notebooks and in the command line alike."""

from __future__ import annotations

import time

#: Seconds after which a moment is told with its date.
_SAME_DAY = 20 * 3600


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(0.0004), duration(0.021), duration(41.2), duration(7260)
    ('0.4 ms', '0.02 s', '41 s', '2 h 1 min')
    """
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(at: float, now: float | None = None) -> str:
    """Return a UTC second as local time, with the date unless it was within the last 20 hours; "" for 0.

    >>> len(moment(1.0)), moment(0.0)
    (16, '')
    """
    if not at:
        return ""
    now = time.time() if now is None else now
    form = "%H:%M" if -60 < now - at < _SAME_DAY else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(at))


def size(count: int) -> str:
    """Return a number of bytes in decimal units.

    >>> size(999), size(84_800_000)
    ('999 B', '84.8 MB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
