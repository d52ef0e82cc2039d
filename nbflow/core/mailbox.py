"""Signals of a run: which have come, which were consumed. A pure fold, first in, first out for each name.

A signal is an inbox message of topic "signal" with payload `{"name": …, "value": …}`.
It has come when its `MessageTaken` record is in the journal, whether anybody
waited or not, and it is consumed by the step whose `StepCompleted.detail` names
it under `CONSUMED`: in one record, so a crash can separate neither.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from nbflow.core.model import Entry, MessageTaken, StepCompleted

SIGNAL = "signal"

#: Key in the detail of a completed wait: the id of the message that ended it.
CONSUMED = "message"


class Mailbox:
    """Signals that have come and were not consumed, oldest first.

    >>> mailbox = Mailbox()
    >>> payload = {"name": "go", "value": 1}
    >>> mailbox.add(Entry(2, 0.0, MessageTaken(message="m1", topic="signal", sent_at=0.0, payload=payload)))
    >>> mailbox.next("go").message, mailbox.next("stop")
    ('m1', None)
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[MessageTaken]] = {}
        self._consumed: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Take an entry in; those that are about no signal are ignored."""
        record = entry.record
        if isinstance(record, MessageTaken):
            if record.topic == SIGNAL and record.message not in self._consumed:
                self._waiting.setdefault(str(record.payload.get("name")), deque()).append(record)
        elif isinstance(record, StepCompleted) and CONSUMED in record.detail:
            self._consume(str(record.detail[CONSUMED]))

    def _consume(self, message: str) -> None:
        self._consumed.add(message)
        for queue in self._waiting.values():
            for signal in queue:
                if signal.message == message:
                    queue.remove(signal)
                    return

    def next(self, name: str) -> MessageTaken | None:
        """Return the oldest signal of this name that nobody consumed; None when there is none."""
        queue = self._waiting.get(name)
        return queue[0] if queue else None

    def waiting(self) -> dict[str, list[Any]]:
        """Return the values of all signals that nobody consumed, by name, oldest first."""
        return {
            name: [s.payload.get("value") for s in queue] for name, queue in self._waiting.items() if queue
        }
