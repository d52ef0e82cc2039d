"""The journal of the generation this process owns: append, share syncs, acknowledge only what holds.

Giving a seq and framing is one short critical section. Whoever comes first
leads: one write and one fdatasync for everybody who has come by then; those who
come meanwhile wait, and one of them leads the next (leader-based group commit,
as in write-ahead logs since DeWitt et al., 1984). A daemon thread leads for
buffered records and for asyncio tasks, which must not block.

What may go wrong, and what is kept then:

- The disk refuses bytes: the file is cut back to the last whole append and the
  seqs are given back. Buffered records were acknowledged to their callers, so
  they stay in memory, keep their seqs and go first with the next append.
- fdatasync fails: what is on disk is unknown from then on (the kernel may have
  dropped the pages), so the writer refuses everything until a new attach reads
  what is there.
- KeyboardInterrupt between two lines: the write that was under way is noted
  before it begins, and finished by the next append with the same bytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nbflow.core.crashpoints import point
from nbflow.core.errors import CannotStore, LeaseLost, NbflowError, StoreBusy, StoreError, UnknownRun
from nbflow.core.model import AnyRecord, Entry, RunTagged, encode_entry
from nbflow.store import disk
from nbflow.store.flusher import Flusher
from nbflow.store.framing import pack_frames, sealer
from nbflow.store.journal_file import JournalFile
from nbflow.store.lease import AttachLock, Lease
from nbflow.store.protocol import Durability

if TYPE_CHECKING:
    import asyncio

#: Buffered bytes at which the caller writes them itself, so that memory stays bounded.
BUFFER_LIMIT = 4 * 1024 * 1024


class _Intent(NamedTuple):
    """A write that is under way: doing it again does no harm."""

    offset: int
    data: bytes
    last_seq: int


class _Turn:
    """A thread that wants a sync up to `last_seq`: it leads one, or waits at `lock` for whoever does."""

    __slots__ = ("error", "last_seq", "lead", "lock")

    def __init__(self) -> None:
        self.last_seq = 0
        self.error: NbflowError | None = None
        self.lead = False
        self.lock: threading.Lock | None = None

    def wake(self) -> None:
        """Let the thread that waits go on; waking twice is fine."""
        if self.lock is not None and self.lock.locked():
            with suppress(RuntimeError):  # somebody else was faster
                self.lock.release()


class _Buffered(NamedTuple):
    """An append that was accepted and is not written yet; None waits for it where it is acknowledged."""

    frames: bytes
    last_seq: int
    records: int
    turn: _Turn | None


class _Task(NamedTuple):
    """An asyncio task that waits for a sync up to `last_seq`."""

    last_seq: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[int]
    first: int


class JournalWriter:
    """Append to one journal file under a lease. Safe to use from several threads and event loops.

    `seq` is the last one in the run, `offset` where the file ends, `now` the
    clock (UTC seconds). The file descriptor is closed by `close`.
    """

    def __init__(
        self, path: Path, lease: Lease, key: bytes, *, seq: int, offset: int, now: Callable[[], float]
    ) -> None:
        self.path, self.lease, self.run = path, lease, lease.run
        self._file = JournalFile(path, offset)
        self._seal = sealer(key, lease.run)
        self._now = now
        self._mutex = threading.Lock()
        self._seq = seq
        self._offset = offset
        self._synced = offset
        self._synced_seq = seq
        self._intent: _Intent | None = None
        self._buffer: list[_Buffered] = []
        self._buffered_bytes = 0
        self._stuck: NbflowError | None = None
        self._broken: NbflowError | None = None
        self._leading = False
        self._waiting: list[_Turn] = []
        self._tasks: list[_Task] = []
        self._flusher: Flusher | None = None
        self._closed = False

    # Appending

    @property
    def seq(self) -> int:
        """The seq of the last record that was accepted."""
        return self._buffer[-1].last_seq if self._buffer else self._seq

    @property
    def synced(self) -> int:
        """How many bytes of the file are known to be on disk."""
        return self._synced

    def append(self, records: Sequence[AnyRecord], durability: Durability = "synced") -> int:
        """Append the records, all or none, and return the seq of the first.

        Raises:
            StoreFull, StoreReadOnly, StoreError: nothing of the records is kept.
            LeaseLost, NotTheOwner: this process may not write (any more).
            CannotStore: a record holds what MessagePack cannot.
        """
        self.lease.check_process()
        if durability != "synced":
            with self._mutex:
                # While somebody syncs, a written record goes with the write that follows, see below.
                joins = durability == "written" and self._leading
                first = self._accept(records, buffer=joins or durability == "buffered", rouse=not joins)
            if durability == "written" and not joins:
                self.lease.check()  # acknowledge only what no takeover can have missed
            return first
        turn = _Turn()
        try:
            with self._mutex:
                # While somebody syncs, the record waits in memory and the next leader writes all at once:
                # every system call lets another thread have the interpreter, which costs more than the call.
                first = self._accept(records, buffer=self._leading, turn=turn)
                self._queue_up(turn)
            self._sync(turn)
        except BaseException:
            self._abandon(turn)
            raise
        return first

    def append_async(self, records: Sequence[AnyRecord]) -> asyncio.Future[int]:
        """Append the records now and return a future of the first seq, done when they are on disk.

        All tasks of an event loop that append before the sync begins share it.

        Raises:
            As `append`, at once or through the future.
        """
        import asyncio  # 40 ms, and loaded already wherever a loop runs

        self.lease.check_process()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        with self._mutex:
            first = self._accept(records, buffer=False)
            self._tasks.append(_Task(self._seq, loop, future, first))
            self._rouse(urgent=True)
        return future

    def flush(self) -> None:
        """Return when everything appended so far is on disk.

        Raises:
            As `append`.
        """
        self.lease.check_process()
        self._drain()
        self._sync_written()

    def _drain(self) -> None:
        """Write what is buffered."""
        with self._mutex:
            self._check()
            if self._buffer:
                self._write(b"", self.seq)

    def _sync_written(self) -> None:
        """Return when everything written so far is on disk."""
        turn = _Turn()
        try:
            with self._mutex:
                self._check()
                if self._seq <= self._synced_seq:
                    self.lease.check()
                    return
                self._queue_up(turn)
            self._sync(turn)
        except BaseException:
            self._abandon(turn)
            raise

    def _check(self) -> None:
        """Raise what makes every append impossible; finish a write that was interrupted."""
        if self._broken is not None:
            raise self._broken
        if self._closed:
            self.lease.check()
            raise LeaseLost(
                f"The journal of run {self.run} was closed here.", run=self.run, hint="Attach again."
            )
        if self._intent is not None:
            self.lease.check()
            self._attempt(self._intent)

    def _accept(
        self, records: Sequence[AnyRecord], *, buffer: bool, turn: _Turn | None = None, rouse: bool = True
    ) -> int:
        self._check()
        first = self.seq + 1
        at = self._now()
        bodies: list[bytes] = []
        seq = first
        for record in records:
            try:
                bodies.append(encode_entry(Entry(seq, at, record)))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise CannotStore(
                    f"A {type(record).__name__} record of run {self.run} cannot be encoded: {error}",
                    run=self.run,
                    step=getattr(record, "step", None),
                    hint="Parameters, payloads and details hold plain data only.",
                ) from error
            seq += 1
        if not bodies:
            raise ValueError("append() needs at least one record")
        frames = pack_frames(bodies, self._synced, self._seal)
        if buffer and self._stuck is None and self._buffered_bytes < BUFFER_LIMIT:
            # The generation is looked at by the flusher; a stale owner is told within 10 ms.
            self._buffer.append(_Buffered(frames, seq - 1, len(bodies), turn))
            self._buffered_bytes += len(frames)
            if turn is None and rouse:
                self._rouse()
        else:
            self._write(frames, seq - 1)
        return first

    def _write(self, frames: bytes, last_seq: int) -> None:
        """Write what is buffered and then `frames`; `_mutex` is held.

        The generation is looked at behind the write, by whoever acknowledges it: what an owner
        writes who is stale and does not know it yet lies behind what counts of its journal.
        """
        if self._buffer:
            frames = b"".join([waiting.frames for waiting in self._buffer] + [frames])
        if self.lease.lost:
            self.lease.check()
        self._attempt(_Intent(self._offset, frames, last_seq))

    def _attempt(self, intent: _Intent) -> None:
        self._intent = intent
        try:
            self._file.write(intent.data, intent.offset)
        except OSError as error:
            self._intent = None
            self._cut()
            try:
                disk.refused(error, run=self.run, doing="writing the journal")
            except StoreError as refusal:
                self._retract(refusal)
                raise
        self._offset = intent.offset + len(intent.data)
        self._seq = intent.last_seq
        self._buffer = []
        self._buffered_bytes = 0
        self._stuck = None
        self._intent = None

    def _cut(self) -> None:
        """Cut a failed write off the file, so that no part of an append ever counts.

        Under the attach lock: once a takeover has read this file, what it counted must not go away.
        """
        try:
            # Buffered appends that are whole in the file may have been read and ingested: they stay.
            while self._buffer and self._file.holds(self._buffer[0].frames, self._offset):
                kept = self._buffer.pop(0)
                self._offset += len(kept.frames)
                self._seq = kept.last_seq
            if self._file.blank_from(self._offset):
                return
            with AttachLock(self.lease.folder, self.run):
                self.lease.check()
                self._file.cut(self._offset)
        except (OSError, StoreBusy, UnknownRun) as error:
            self._broken = StoreError(
                f"A failed write to the journal of run {self.run} could not be cut off ({error}).",
                run=self.run,
                hint="Restart the kernel; attaching leaves the torn bytes out.",
            )

    def _retract(self, error: StoreError) -> None:
        """Take waiting appends back after a refused write: nothing of them is kept; their callers learn it.

        Those that were acknowledged keep their place and their seqs. A retracted one between them
        leaves a record that says nothing (no tags), because seqs are dense.
        """
        kept: list[_Buffered] = []
        for waiting in reversed(self._buffer):
            if waiting.turn is None:
                kept.append(waiting)
                continue
            waiting.turn.error = error
            if kept:
                seqs = range(waiting.last_seq - waiting.records + 1, waiting.last_seq + 1)
                nothing = [encode_entry(Entry(seq, self._now(), RunTagged(tags={}))) for seq in seqs]
                kept.append(
                    waiting._replace(frames=pack_frames(nothing, self._synced, self._seal), turn=None)
                )
        self._buffer = kept[::-1]
        if kept:
            self._stuck = error

    # Syncing

    def _queue_up(self, turn: _Turn) -> None:
        """Make the turn lead, or wait for the one who does; `_mutex` is held."""
        turn.last_seq = self.seq
        if self._leading:
            turn.lock = threading.Lock()
            turn.lock.acquire()
            self._waiting.append(turn)
        else:
            turn.lead = self._leading = True

    def _sync(self, turn: _Turn) -> None:
        if turn.lock is not None:
            turn.lock.acquire()
        if turn.lead and turn.error is None:
            self._lead()
        if turn.error is not None:
            raise turn.error

    def _abandon(self, turn: _Turn) -> None:
        """Leave after an error or an interrupt, so that nobody waits for a leader who is gone.

        Handing over twice is fine: at worst two threads sync at once.
        """
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
        if turn.lead:
            self._hand_over(None)

    def _lead(self) -> None:
        """Sync what is written by now, for everybody who waits for it; `_leading` is set."""
        done: tuple[int, int] | None = None
        failure: NbflowError | None = None
        try:
            if self._broken is not None:
                raise self._broken
            with self._mutex:
                if self._buffer:
                    try:
                        self._check()
                        self._write(b"", self.seq)
                    except StoreError:
                        # Those who wait for it know (see `_retract`); what is written is synced all the same.
                        point("journal.retracted")
                target = self._seq, self._offset
            self._file.sync()
            self.lease.check()
            done = target
        except OSError as error:
            failure = self._broken = StoreError(
                f"The disk failed to sync the journal of run {self.run} ({error.strerror or error});"
                " what of the last records is on it is unknown.",
                run=self.run,
                hint="Look at the disk and restart the kernel: attaching reads what is really there.",
            )
        except NbflowError as error:
            failure = error
        finally:
            self._hand_over(done, failure)
        if failure is not None:
            raise failure

    def _hand_over(self, done: tuple[int, int] | None, failure: NbflowError | None = None) -> None:
        """Wake everybody whose bytes are on disk (or never will be); make one of the others lead.

        Each is woken before it is taken off its list: should an interrupt strike in
        between, the next call wakes it again, which does no harm.
        """
        with self._mutex:
            if done is not None and done[0] > self._synced_seq:
                self._synced_seq, self._synced = done
            synced = self._synced_seq
            self._leading = False
            if self._waiting:
                still: list[_Turn] = []
                for turn in self._waiting:
                    if failure is None and turn.error is None and turn.last_seq > synced:
                        still.append(turn)
                    else:
                        turn.error = turn.error or failure
                        turn.wake()
                if still:
                    still[0].lead = self._leading = True
                    still[0].wake()
                self._waiting = still[1:]
            if self._tasks:
                _settle(
                    [task for task in self._tasks if failure is not None or task.last_seq <= synced], failure
                )
                self._tasks = [task for task in self._tasks if failure is None and task.last_seq > synced]
            if not self._leading and (
                self._tasks or (self._buffer and not (self._flusher and self._flusher.due))
            ):
                self._rouse(urgent=True)

    # The flusher

    def _rouse(self, *, urgent: bool = False) -> None:
        """Have the flusher do its work soon; `_mutex` is held."""
        if self._flusher is None:
            name = f"nbflow-journal-{self.run}"
            self._flusher = Flusher(name, self._mutex, self._flush_for_all, self._flush_at_exit)
        self._flusher.rouse(urgent=urgent)

    def _flush_for_all(self) -> None:
        """Write and sync for those who do not wait; their next call, or their future, tells of trouble."""
        try:
            self._drain()
        except NbflowError as error:
            self._stuck = error  # the records stay; the next append tries again, and tells its caller
        try:
            self._sync_written()
        except NbflowError as error:
            self._stuck = error
            self._fail_tasks(error)

    def _fail_tasks(self, error: NbflowError) -> None:
        with self._mutex:
            tasks, self._tasks = self._tasks, []
        _settle(tasks, error)

    def _flush_at_exit(self) -> None:
        if os.getpid() == self.lease.pid and not self._closed and self._broken is None:
            self.flush()

    def close(self) -> None:
        """Flush and close the file; closing twice is fine.

        Raises:
            As `flush`; the file is closed all the same.
        """
        self.lease.check_process()
        if self._closed:
            return
        sound = False
        try:
            if self._broken is None:
                self.flush()
                sound = True
        finally:
            with self._mutex:
                self._closed = True
                flusher = self._flusher
                if flusher is not None:
                    flusher.stop()
            while self._leading:  # another thread is syncing: the descriptor must outlive that
                time.sleep(0.0005)
            if flusher is not None:
                flusher.join()
            self._file.close(self._offset if sound and self._intent is None else None)


def _settle(tasks: list[_Task], failure: NbflowError | None) -> None:
    """Complete the futures, with one call into each event loop."""

    def settle(mine: list[_Task]) -> None:
        for task in mine:
            if not task.future.done():  # a cancelled task's record stays; nobody asks for its seq
                if failure is None:
                    task.future.set_result(task.first)
                else:
                    task.future.set_exception(failure)

    loops: dict[asyncio.AbstractEventLoop, list[_Task]] = {}
    for task in tasks:
        loops.setdefault(task.loop, []).append(task)
    for loop, mine in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, mine)
