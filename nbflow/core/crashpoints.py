"""Named points around every write, fsync and rename, where a test may kill the process or make the disk fail.

`point(name)` costs less than 50 ns while nothing is armed. A process is armed
by the environment (`NBFLOW_CRASH="journal.sync.after:3"` kills it with SIGKILL
at the third pass of that point, `"*:17"` at the seventeenth point of all) or in
process by a hook: a callable that is given the name, and may raise OSError in
the disk's place.

Test-only by intent: nothing in the product arms it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Hook = Callable[[str], None]

_hooks: list[Hook] = []


def point(name: str) -> None:
    """Pass a named point; a no-op unless a test has armed it."""
    if _hooks:
        for hook in tuple(_hooks):
            hook(name)


@contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Call `hook(name)` at every point passed while the block runs, in any thread of this process.

    >>> seen = []
    >>> with hooked(seen.append):
    ...     point("journal.write.before")
    >>> seen
    ['journal.write.before']
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def arm(spec: str) -> None:
    """Kill this process with SIGKILL at a point: "name:count", or "*:count" for the count-th point of all.

    Raises:
        ValueError: the spec is not of that form.
    """
    name, _, count = spec.rpartition(":")
    left = int(count)
    if not name or left < 1:
        raise ValueError(f'{spec!r} is no crash point; write "name:count" or "*:count".')

    def kill(passed: str) -> None:
        nonlocal left
        if name in ("*", passed):
            left -= 1
            if left == 0:
                # SIGKILL where there is one: no handler, no flush, no atexit may soften it.
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    _hooks.append(kill)


if _spec := os.environ.get("NBFLOW_CRASH"):
    arm(_spec)
