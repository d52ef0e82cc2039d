"""One run's folder: create it, attach to it, read it from outside, send to it, remove it.

    runs/<run_id>/
        generation            which owner may write; raised by every attach
        attach.lock           held for moments while attaching, sending, removing
        lock.<g>, owner.<g>   the lease of generation g, and who has it
        journal.<g>           the records of generation g
        leaves.<g>.<n>        large buffers that records name
        inbox/                words from others

What the run *is* are the records of all generations in order, of each journal
only up to the end that the next generation found. A journal may have room
allocated behind its last record, so its size tells nothing. Whoever reads looks
at the generation before and after, and syncs what it read before it trusts it:
a reader must never know of a record that a power cut can still take back.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nbflow.core.crashpoints import point
from nbflow.core.errors import CorruptRecord, DuplicateRecord, RunFinished, StoreBusy, UnknownRun
from nbflow.core.model import Entry, LeafRef, Message, Owner, RunAttached, RunChanged, RunOpened, encode_entry
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store import disk
from nbflow.store.framing import (
    HEADER,
    Frame,
    check_header,
    first_entry,
    pack_frames,
    pack_header,
    read_frames,
    sealer,
)
from nbflow.store.inbox import Inbox
from nbflow.store.lease import AttachLock, held, is_alive, owner_of, pack_generation, read_generation, take
from nbflow.store.leaves import LeafReader
from nbflow.store.log import FileRunLog

#: A check of a sender: given the run's entries and its waiting messages, raise to refuse.
Check = Callable[[list[Entry], list[Message]], None]


class Position(NamedTuple):
    """How far somebody has read a run: the journal's generation, the byte in it, the last seq."""

    generation: int
    offset: int
    seq: int


START = Position(0, 0, 0)


class _File(NamedTuple):
    """A journal as it was read: `data` begins at byte `base` of the file."""

    generation: int
    data: bytes
    base: int


class RunFolder:
    """The folder of one run. Cheap to make; holds nothing open. Safe to use from several threads.

    `key` signs and checks records (`nbflow.values.trust.user_key`), `now` is the
    clock (UTC seconds), `verify` checks each leaf's digest when it is first read.
    """

    def __init__(
        self, path: Path, key: bytes, *, now: Callable[[], float] = time.time, verify: bool = True
    ) -> None:
        self.path = path
        self.run = path.name
        self.key = key
        self._now = now
        self._verify = verify
        self._leaves = LeafReader(path, self.run, verify=verify)
        self.inbox = Inbox(path, self.run, key)

    def exists(self) -> bool:
        """Tell whether the folder is there and holds a run."""
        return (self.path / "generation").exists()

    def create(self, opened: RunOpened) -> None:
        """Create the folder with its first record; durable, and all at once.

        Raises:
            DuplicateRecord: the run exists.
            StoreFull, StoreReadOnly, StoreError: nothing is left behind.
        """
        root = self.path.parent
        growing = root / f".new-{self.run}-{secrets.token_hex(4)}"
        entry = encode_entry(Entry(1, self._now(), opened))
        journal = pack_header(self.run, 0, self.key) + pack_frames([entry], 0, sealer(self.key, self.run))
        try:
            root.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                raise self._duplicate()
            growing.mkdir()
            (growing / "inbox").mkdir()
            for name, data in (("journal.0", journal), ("generation", pack_generation(0))):
                fd = os.open(growing / name, disk.NEW, 0o600)
                try:
                    disk.write_all(fd, [data], "create")
                    disk.sync_file(fd, "create")
                finally:
                    os.close(fd)
            disk.sync_folder(growing, "create.folder")
            disk.rename(growing, self.path, "create")
            disk.sync_folder(root, "create.folder")
        except OSError as error:
            shutil.rmtree(growing, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise self._duplicate() from error
            disk.refused(error, run=self.run, doing="creating the folder")

    def _duplicate(self) -> DuplicateRecord:
        return DuplicateRecord(
            f"Run {self.run} exists; its record 1 was not written again.",
            run=self.run,
            seq=1,
            hint="Attach to it, or start a run with another id.",
        )

    # Owning

    def attach(
        self,
        owner: Owner,
        *,
        steal: bool = False,
        continued: bool = False,
        versions: dict[str, str] | None = None,
    ) -> FileRunLog:
        """Take the lease, raise the generation and append `RunAttached`; durable on return.

        With `continued` no new attempt is counted.

        Raises:
            LeaseHeld: a living owner has the run (this very process counts) and `steal` is False.
            RunFinished, UnknownRun, CorruptRecord, Untrusted, StoreBusy.
            StoreFull, StoreReadOnly, StoreError.
        """
        try:
            with AttachLock(self.path, self.run):
                return self._attach(owner, steal, continued, versions or {})
        except OSError as error:
            disk.refused(error, run=self.run, doing="attaching to the folder")

    def _attach(self, owner: Owner, steal: bool, continued: bool, versions: dict[str, str]) -> FileRunLog:
        # Most is read before the generation is raised: a run that is finished or damaged keeps its owner.
        frames, position = self._read_surely(START)
        self._refuse_finished(frames)
        lease, stolen = take(self.path, self.run, owner, steal=steal)
        try:
            # Only now: what a stale owner wrote before it looked at the generation for the last time is here,
            # and what it writes from now on it finds the generation raised before it acknowledges.
            more, position = self._read_surely(position)
            self._refuse_finished(more)
            frames += more
            if not stolen:
                self._give_back_room(position)
            last = max(
                (f.entry.record.attempt for f in reversed(frames) if isinstance(f.entry.record, RunAttached)),
                default=0,
            )
            attempt = last if continued and last else last + 1
            record = RunAttached(
                lease.generation, attempt, owner, counted=position.offset, stolen=stolen, versions=versions
            )
            entry = Entry(position.seq + 1, self._now(), record)
            data = pack_header(self.run, lease.generation, self.key)
            data += pack_frames([encode_entry(entry)], 0, sealer(self.key, self.run))
            name = f"journal.{lease.generation}"
            self._sweep()
            disk.place(self.path, name, data, "attach", temporary=f"{name}.new")
            history = [frame.entry for frame in frames]
            history.append(entry)
            return FileRunLog(
                lease,
                self.key,
                history,
                attempt=attempt,
                offset=len(data),
                now=self._now,
                verify=self._verify,
            )
        except BaseException:
            lease.release()
            raise

    def _refuse_finished(self, frames: list[Frame]) -> None:
        for frame in reversed(frames):
            record = frame.entry.record
            if isinstance(record, RunChanged) and record.state in FINAL_RUN_STATES:
                raise RunFinished(
                    f"Run {self.run} is {record.state}, and final.",
                    run=self.run,
                    hint="Start a new run instead.",
                )

    def _give_back_room(self, position: Position) -> None:
        """Take the torn tail off the journal of a dead owner; it may be all the room it had allocated."""
        point("attach.trim.before")
        disk.trim(self.path / f"journal.{position.generation}", position.offset)
        point("attach.trim.after")

    def _sweep(self) -> None:
        for path in self.path.glob("journal.*.new"):
            path.unlink(missing_ok=True)
        self.inbox.sweep()

    def owner(self) -> tuple[Owner | None, bool]:
        """Return who holds the run, or held it last, and whether that owner is alive.

        Raises:
            UnknownRun, CorruptRecord, StoreBusy.
        """
        return owner_of(self.path, self.run)

    # Reading from outside

    def entries(self) -> list[Entry]:
        """Return all counted entries in order.

        Raises:
            UnknownRun, CorruptRecord, Untrusted, StoreTooNew, StoreBusy.
        """
        return [frame.entry for frame in self.tail()[0]]

    def tail(self, position: Position = START) -> tuple[list[Frame], Position]:
        """Return what counts behind `position`, on disk for good, and the new position.

        A frame is (entry, body, mac): the very bytes of the journal, so that a
        database row can be verified as the frame was.

        Raises:
            UnknownRun, CorruptRecord, Untrusted, StoreTooNew, StoreBusy.
        """
        try:
            for _ in range(20):
                generation = read_generation(self.path, self.run)
                try:
                    if not (self.path / f"journal.{generation}").exists():
                        return self._tail_locked(position)
                    found = self._read_surely(position)
                except CorruptRecord:
                    if read_generation(self.path, self.run) == generation:
                        raise
                    continue
                if read_generation(self.path, self.run) == generation:
                    return found
            raise StoreBusy(f"Run {self.run} changes hands faster than it can be read.", run=self.run)
        except FileNotFoundError as error:
            raise UnknownRun(
                f"The folder of run {self.run} went away ({error.filename}).", run=self.run
            ) from error
        except OSError as error:
            disk.refused(error, run=self.run, doing="reading the journal")

    def grew(self, position: Position) -> bool:
        """Tell whether something was written behind `position` in its journal; costs two system calls.

        Its size and time of change do not tell: records go into room that it has already, and many
        within one tick of the file system's clock.
        """
        try:
            fd = os.open(self.path / f"journal.{position.generation}", disk.READ)
        except OSError:
            return True  # gone, or put aside: whoever reads finds out
        try:
            return disk.pread(fd, 1, position.offset) not in (b"", b"\0")
        finally:
            os.close(fd)

    def _tail_locked(self, position: Position) -> tuple[list[Frame], Position]:
        """Read while nobody attaches.

        The generation was raised and its journal is not there (yet): what the
        last one holds counts, once it is certain that nobody is just measuring it.
        """
        try:
            with AttachLock(self.path, self.run):
                return self._read_surely(position)
        except OSError as error:
            if error.errno not in disk.REFUSED:
                raise
            return self._read_surely(position)  # read-only for this user, so nobody attaches with this key

    def _read_surely(self, position: Position) -> tuple[list[Frame], Position]:
        """Read all journals from `position` on, and believe damage only when it is found twice at one place.

        The owner may be writing: of two pages read one after the other the second may have a record
        already and the first not yet, which looks as if a record before another had gone bad.
        """
        found: str | None = None
        while True:
            try:
                return self._read_files(position)
            except CorruptRecord as error:
                if str(error) == found:
                    raise
                found = str(error)

    def _read_files(self, position: Position) -> tuple[list[Frame], Position]:
        """Read all journals from `position` on."""
        generations = self._generations()
        if position != START and position.generation not in generations:
            raise self._corrupt(
                f"Journal {position.generation} of run {self.run} is missing.", position.seq + 1
            )
        wanted = [g for g in generations if g >= position.generation]
        files = [self._read_file(g, position, newest=g == wanted[-1]) for g in wanted]
        frames: list[Frame] = []
        for index, (generation, raw, base) in enumerate(files):
            data = raw
            if index + 1 < len(files):
                counted = self._counted(files[index + 1])
                if counted < base:
                    raise self._corrupt(
                        f"Journal {generation} of run {self.run} counts to {counted}; {base} were read.",
                        position.seq,
                    )
                data = raw[: counted - base]
            start = 0
            if base == 0:
                check_header(data, self.run, generation, self.key, place=f"Journal {generation}")
                start = HEADER.size
            reading = read_frames(data, self.run, self.key, position.seq + 1, start=start, base=base)
            if reading.frames:
                frames += reading.frames
            position = Position(generation, reading.end, position.seq + len(reading.frames))
        return frames, position

    def _generations(self) -> list[int]:
        """Return the generations that have a journal, ascending, one at least."""
        found = []
        for path in self.path.iterdir():
            kind, _, number = path.name.partition(".")
            if kind == "journal" and number.isdigit():
                found.append(int(number))
        if not found:
            raise self._corrupt(f"Run {self.run} has no journal.", 1)
        found.sort()
        # Listed before: a journal is created after its generation was raised.
        generation = read_generation(self.path, self.run)
        if found[-1] > generation:
            raise self._corrupt(
                f"Run {self.run} has a journal of generation {found[-1]}, but is of generation {generation}.",
                None,
            )
        return found

    def _read_file(self, generation: int, position: Position, *, newest: bool) -> _File:
        base = position.offset if generation == position.generation else 0
        fd = os.open(self.path / f"journal.{generation}", disk.READ)
        try:
            size = os.fstat(fd).st_size
            if size <= base:
                if size < base:
                    raise self._corrupt(
                        f"Journal {generation} of run {self.run} shrank to {size} bytes; {base} were read.",
                        position.seq,
                    )
                return _File(generation, b"", base)
            parts = []
            offset = base
            while offset < size:
                part = disk.pread(fd, size - offset, offset)
                if not part:
                    break  # cut meanwhile, after a failed write
                parts.append(part)
                offset += len(part)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            # After the look, so that nothing was seen that is not on disk; room that is still empty needs none.
            if newest and data[:1] != b"\0":
                disk.sync_data(fd)
                if base == 0:
                    disk.sync_folder(self.path, "read.folder")
            return _File(generation, data, base)
        finally:
            os.close(fd)

    def _counted(self, file: _File) -> int:
        """Return how many bytes of the journal before this one count."""
        place = f"Journal {file.generation}"
        check_header(file.data, self.run, file.generation, self.key, place=place)
        record = first_entry(file.data, self.run, self.key, place=place).record
        if not isinstance(record, RunAttached) or record.generation != file.generation:
            raise self._corrupt(f"{place} of run {self.run} does not begin with its attach.", None)
        return record.counted

    def _corrupt(self, message: str, seq: int | None) -> CorruptRecord:
        hint = f"`nbflow doctor` offers what can be saved of run {self.run}."
        return (
            CorruptRecord(message, run=self.run, hint=hint)
            if seq is None
            else CorruptRecord(message, run=self.run, seq=seq, hint=hint)
        )

    def leaf(self, ref: LeafRef) -> memoryview:
        """Return a leaf's bytes: writable, private, mapped lazily.

        Raises:
            CorruptLeaf: missing, cut or altered.
        """
        return self._leaves.leaf(ref)

    def verify(self, ref: LeafRef) -> None:
        """Check a leaf's digest.

        Raises:
            CorruptLeaf: missing, cut or altered.
        """
        self._leaves.verify(ref)

    # Sending and removing

    def send(self, message: Message, check: Check | None = None) -> None:
        """Put a message into the inbox, durably.

        `check(entries, waiting)` may raise to refuse; nobody else sends, attaches
        or removes meanwhile, so of two decisions the first one wins.

        Raises:
            UnknownRun, RunFinished, CorruptRecord, StoreBusy.
            StoreFull, StoreReadOnly, StoreError: nothing was sent.
        """
        try:
            with AttachLock(self.path, self.run):
                # The inbox first: what is taken out of it is in the record before.
                waiting = self.inbox.messages()
                frames, _ = self._read_surely(START)
                self._refuse_finished(frames)
                if check is not None:
                    check([frame.entry for frame in frames], waiting)
                self.inbox.put(message)
        except FileNotFoundError as error:
            raise UnknownRun(f"The folder of run {self.run} went away.", run=self.run) from error
        except OSError as error:
            disk.refused(error, run=self.run, doing="sending to the inbox")

    def remove(self) -> None:
        """Delete the folder: gone at once and as a whole, its space shortly after.

        Raises:
            UnknownRun: there is none.
            LeaseHeld: it has a living owner (this process, before `release`, is one).
            StoreReadOnly, StoreError.
        """
        root = self.path.parent
        trash = root / f".trash-{self.run}-{secrets.token_hex(4)}"
        try:
            with AttachLock(self.path, self.run):
                owner, alive = is_alive(self.path, self.run)
                if alive:
                    raise held(self.run, owner)
                disk.rename(self.path, trash, "remove")
                disk.sync_folder(root, "remove.folder")
        except OSError as error:
            disk.refused(error, run=self.run, doing="removing the folder")
        # The run is gone already; what cannot be deleted now (a file mapped on Windows) is swept later.
        shutil.rmtree(trash, ignore_errors=True)


def list_folders(root: Path) -> Iterator[Path]:
    """Yield the run folders below `root`, oldest run id first; none where there is no such folder."""
    try:
        paths = sorted(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in paths:
        if not path.name.startswith(".") and (path / "generation").exists():
            yield path


def sweep_folders(root: Path, *, older_than: float = 3600.0) -> int:
    """Delete what killed processes left of removed and half-created runs; return how many folders.

    Half-created ones count only when they are older than `older_than` seconds.
    """
    swept = 0
    for path in list(root.iterdir()) if root.is_dir() else ():
        if path.name.startswith(".trash-") or (path.name.startswith(".new-") and _age(path) > older_than):
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
