"""Fakes for every seam, public because users test their own workflows with them.

- `VirtualClock`: time that moves only when somebody sleeps or `advance`s it.
- `MemoryStore`: a store without files; leases are honoured, nothing survives the process.
- `FaultyStore`: wraps a store and fails at the n-th append, before or after it is kept.
- `RecordingObserver`: keeps what observers are told.
- `crash`, `crash_points`, `armed`: a process that dies at a named point.

`docs/testing.md` shows them at work.
"""

from __future__ import annotations

from nbflow.testing.clock import VirtualClock
from nbflow.testing.crashes import Crash, Crashed, armed, crash, crash_points
from nbflow.testing.faulty import FaultyStore
from nbflow.testing.memory import MemoryStore
from nbflow.testing.recording import RecordingObserver

__all__ = [
    "Crash",
    "Crashed",
    "FaultyStore",
    "MemoryStore",
    "RecordingObserver",
    "VirtualClock",
    "armed",
    "crash",
    "crash_points",
]
