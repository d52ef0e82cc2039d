"""The run as its owner holds it: `RunLog` over the files of one run's folder."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence

from nbflow.core.model import AnyRecord, Entry, LeafRef, Message, MessageTaken
from nbflow.store.inbox import Inbox
from nbflow.store.journal import JournalWriter
from nbflow.store.lease import Lease
from nbflow.store.leaves import LeafReader, LeafWriter, references
from nbflow.store.protocol import Durability
from nbflow.values.leaf import Leaf


class FileRunLog:
    """The lease of a run whose folder is on this machine, made by `RunFolder.attach`; a `protocol.RunLog`."""

    def __init__(
        self,
        lease: Lease,
        key: bytes,
        history: list[Entry],
        *,
        attempt: int,
        offset: int,
        now: Callable[[], float],
        verify: bool,
    ) -> None:
        self.run = lease.run
        self.generation = lease.generation
        self.attempt = attempt
        self.history: Sequence[Entry] = history
        self.folder = lease.folder
        self._lease = lease
        path = lease.folder / f"journal.{lease.generation}"
        self._writer = JournalWriter(path, lease, key, seq=history[-1].seq, offset=offset, now=now)
        self._inbox = Inbox(lease.folder, lease.run, key)
        self._reader = LeafReader(lease.folder, lease.run, verify=verify)
        self._leaves: LeafWriter | None = None
        self._mutex = threading.Lock()
        self._taken = {entry.record.message for entry in history if isinstance(entry.record, MessageTaken)}
        self._released = False

    @property
    def seq(self) -> int:
        """The seq of the last record that was accepted."""
        return self._writer.seq

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        """Append records, all or none, and return the seq of the first; see `JournalWriter.append`."""
        first = self._writer.append(records, durability)
        self._note(records)
        return first

    def append_async(self, *records: AnyRecord) -> Awaitable[int]:
        """Append as "synced" without blocking the event loop; see `JournalWriter.append_async`."""
        future = self._writer.append_async(records)
        self._note(records)
        return future

    def _note(self, records: Sequence[AnyRecord]) -> None:
        for record in records:
            if type(record) is MessageTaken:
                self._taken.add(record.message)

    def put_leaves(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        """Write the buffers the run does not hold yet and sync once; see `LeafWriter.put`."""
        return self._leaf_writer().put(leaves) if leaves else ()

    def _leaf_writer(self) -> LeafWriter:
        self._lease.check_process()
        with self._mutex:
            # Made on first use: a run of small outputs never asks what leaves its history names.
            if self._leaves is None:
                self._lease.check()
                self._leaves = LeafWriter(
                    self._lease, (ref for entry in self.history for ref in references(entry))
                )
            return self._leaves

    def leaf(self, ref: LeafRef) -> memoryview:
        """Return the leaf's bytes, mapped copy-on-write; see `LeafReader.leaf`."""
        self._lease.check_process()
        self._lease.check()
        return self._reader.leaf(ref)

    def verify(self, ref: LeafRef) -> None:
        """Check a leaf's digest, once per leaf and process.

        Raises:
            CorruptLeaf: missing, cut or altered.
        """
        self._reader.verify(ref)

    def reclaim(self, keep: set[bytes]) -> int:
        """Delete leaf segments that hold nothing of `keep`; return how many bytes went."""
        freed = self._leaf_writer().reclaim(keep)
        self._reader.forget_missing()
        return freed

    def messages(self) -> list[Message]:
        """Return messages no `MessageTaken` names yet, oldest first; those that are recorded are dropped."""
        self._lease.check_process()
        self._lease.check()
        waiting = self._inbox.messages()
        taken = [message for message in waiting if message.id in self._taken]
        if taken:
            self._writer.flush()  # a message may leave the inbox only once its record is on disk
            for message in taken:
                self._inbox.drop(message.id)
        return [message for message in waiting if message.id not in self._taken]

    def flush(self) -> None:
        """Return when everything appended so far is on disk."""
        self._writer.flush()

    def release(self) -> None:
        """Flush and give the lease up; later calls raise `LeaseLost`. Releasing twice is fine.

        Raises:
            LeaseLost, StoreFull, StoreError: the flush did not succeed; the lease is given up all the same.
        """
        self._lease.check_process()
        with self._mutex:
            if self._released:
                return
            self._released = True
        try:
            self._writer.close()
        finally:
            if self._leaves is not None:
                self._leaves.close()
            self._lease.release()
