"""The journal of an attached run together with what it says: append a record, and `history` has it.

Everything a session records goes through here, so here is the one place that
knows what to do when an acknowledgement is lost, and the one that tells
observers, after the commit and in the journal's order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from nbflow.core.clock import Clock
from nbflow.core.errors import LeaseError
from nbflow.core.history import History
from nbflow.core.model import AnyRecord, Entry, MessageTaken
from nbflow.store.protocol import Durability, RunLog, Store

log = logging.getLogger("nbflow")

#: Told of each entry after it was committed, in the order of `seq`.
Listener = Callable[[Entry], None]


class Recorder:
    """Append to one run's log and keep its history. Safe to use from several threads and tasks."""

    def __init__(self, store: Store, run_log: RunLog, clock: Clock) -> None:
        self.store = store
        self.log = run_log
        self.clock = clock
        self.history = History.of(run_log.history)
        self._lock = threading.RLock()
        self._doubts = 0  # appends that failed, so that nobody knows yet what was kept of them
        self._settled = 0  # … of which so many are cleared up
        self._whole = self.history.seq  # every record up to this one is in the history
        self._early: dict[int, Entry] = {}  # … and these, of threads that were faster than others
        self._listeners: list[Listener] = []
        self._to_tell: list[Entry] = []
        self._telling = False

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        """Append records, all or none, and return the seq of the first.

        Raises:
            As `RunLog.append`. Whether the records are kept is not certain then;
            `settle` finds out before the next step is begun.
        """
        try:
            first = self.log.append(*records, durability=durability)
        except LeaseError:
            raise
        except BaseException:
            with self._lock:
                self._doubts += 1
            raise
        self._remember(first, records)
        return first

    async def append_async(self, *records: AnyRecord) -> int:
        """Append as "synced" without blocking the event loop."""
        try:
            first = await self.log.append_async(*records)
        except LeaseError:
            raise
        except BaseException:
            with self._lock:
                self._doubts += 1
            raise
        self._remember(first, records)
        return first

    def _remember(self, first: int, records: tuple[AnyRecord, ...]) -> None:
        now = self.clock.now()
        with self._lock:
            if len(records) == 1 and first == self._whole + 1 and not self._early and not self._listeners:
                self.history.add(Entry(first, now, records[0]))  # by far the most frequent case
                self._whole = first
                return
            for place, record in enumerate(records):
                self._take(Entry(first + place, now, record))
        if self._listeners:
            self._tell()

    def _take(self, entry: Entry) -> None:
        """Take an entry into the history at once; threads may come in another order than their records."""
        if entry.seq <= self._whole or entry.seq in self._early:
            return  # `settle` found it in the journal meanwhile
        self.history.add(entry)
        if entry.seq == self._whole + 1 and not self._early:
            self._whole = entry.seq
            if self._listeners:
                self._to_tell.append(entry)
            return
        self._early[entry.seq] = entry
        while (following := self._early.pop(self._whole + 1, None)) is not None:
            self._whole += 1
            if self._listeners:
                self._to_tell.append(following)

    # --- a lost acknowledgement -------------------------------------------------------------------------------

    def settle(self) -> None:
        """After an append that failed, read from the store what was kept of it; free when nothing failed."""
        if self._doubts == self._settled:
            return
        doubts = self._doubts  # an append that fails while we read, in another thread, is a doubt of its own
        entries = self.store.entries(self.log.run)
        with self._lock:
            self._settled = max(self._settled, doubts)
            for entry in entries[self._whole :]:
                self._take(entry)
        if self._listeners:
            self._tell()

    def reread(self) -> None:
        """Forget everything kept in memory and read the journal again; for the forced modes of the tests."""
        with self._lock:
            # Under the lock: what another thread recorded meanwhile is taken in once, here or by itself.
            self.log.flush()
            entries = self.store.entries(self.log.run)
            for entry in entries[self._whole :]:
                self._take(entry)
            self.history = History.of(entries)
        if self._listeners:
            self._tell()

    # --- messages ---------------------------------------------------------------------------------------------

    def take_messages(self) -> int:
        """Record the messages that wait in the inbox, so that they are part of the run; return how many."""
        found = self.log.messages()
        with self._lock:
            fresh = [message for message in found if message.id not in self.history.taken]
            if fresh:
                self.append(
                    *(
                        MessageTaken(
                            message=message.id,
                            topic=message.topic,
                            sent_at=message.sent_at,
                            sender=message.sender,
                            payload=message.payload,
                        )
                        for message in fresh
                    )
                )
        return len(fresh)

    # --- listeners --------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Have `listener(entry)` called for every entry from now on, after its commit, in order."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop telling the listener; one that was never told is fine."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def _tell(self) -> None:
        """Tell the listeners what is new. One thread at a time; what comes meanwhile it tells as well."""
        while True:
            with self._lock:
                if self._telling or not self._to_tell:
                    return
                self._telling = True
                entries, self._to_tell = self._to_tell, []
                listeners = tuple(self._listeners)
            try:
                for entry in entries:
                    for listener in listeners:
                        _call(listener, entry)
            finally:
                with self._lock:
                    self._telling = False


def _call(listener: Listener, entry: Entry) -> None:
    try:
        listener(entry)
    except Exception:
        log.exception("An observer of nbflow failed at record %d; the run goes on.", entry.seq)
