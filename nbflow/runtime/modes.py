"""Forced modes: the functional tests run again with a crutch taken away. Only tests set them.

`NBFLOW_FORCE` is one of

- `evict`: nothing is kept in memory after a step; its result is read back from the journal;
- `timers`: a wait asks the journal again and again when it is due, instead of remembering;
- `one-worker`: whatever runs things in parallel has one worker.
"""

from __future__ import annotations

import os
from typing import Literal

Mode = Literal["", "evict", "timers", "one-worker"]
MODES: tuple[Mode, ...] = ("evict", "timers", "one-worker")


def current() -> Mode:
    """Return the forced mode; "" where there is none.

    Raises:
        ValueError: `NBFLOW_FORCE` names no mode.
    """
    mode = os.environ.get("NBFLOW_FORCE", "")
    if mode and mode not in MODES:
        raise ValueError(f"NBFLOW_FORCE is one of {', '.join(MODES)}, not {mode!r}.")
    return mode
