"""Who may write to a run: one lock a generation, and a number that fences off every owner before.

The folder of a run holds `generation` (8 bytes, changed in place and synced),
`lock.<g>` (held by the owner of generation g for its life, let go by the
operating system when it dies), `owner.<g>` (who that is, for people) and
`attach.lock` (held for moments: while attaching, sending, and cutting a failed
write). The generation is raised before the journal of the last owner is read
to its end, and an owner looks at it after everything it writes. So a stale
owner either finished before that reading, and its record counts, or learns that
it is stale before it acknowledges anything.

Locks come from `filelock` by descriptor: unlike a lock by path it never creates
folders, so a run that was just deleted does not come back as an empty one.
"""

from __future__ import annotations

import getpass
import os
import socket
import struct
import sys
import time
import weakref
from pathlib import Path
from typing import Self

import msgspec
from filelock import lock_descriptor

from nbflow.core.crashpoints import point
from nbflow.core.errors import CorruptRecord, LeaseHeld, LeaseLost, NotTheOwner, StoreBusy, UnknownRun
from nbflow.core.model import Owner
from nbflow.store import disk

_NUMBER = struct.Struct("<Q")

#: How long one waits for somebody who attaches or sends; both take milliseconds (seconds).
PATIENCE = 10.0


class Sidecar(msgspec.Struct, frozen=True):
    """What `owner.<g>` says. `space` tells process ids of one container from those of another."""

    owner: Owner
    space: str = ""


def this_owner(now: float, program: str = "") -> Owner:
    """Describe this process as an owner since `now` (UTC seconds)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else ""
    return Owner(host=socket.gethostname(), pid=os.getpid(), since=now, user=user, program=program)


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:  # not Linux: one space of process ids a host
        return ""


def _certainly_dead(sidecar: Sidecar) -> bool:
    """Tell whether the owner's process is gone for certain.

    A child that was forked behind Python's back may hold the lock of a dead
    parent; it may not write, so it must not keep the run either.
    """
    owner = sidecar.owner
    if sys.platform == "win32" or owner.host != socket.gethostname() or sidecar.space != _pid_space():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        stat = Path(f"/proc/{owner.pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


#: Descriptors that carry locks: a forked child closes them, else it would keep the lock of a dead parent.
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """An exclusive lock on a file of an existing folder, between processes and within one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Take the lock, waiting up to `timeout` seconds; tell whether it was had.

        Raises:
            FileNotFoundError: the folder is not there.
            OSError: it cannot be written, or its file system has no locks.
        """
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            try:
                # A file that was unlinked meanwhile locks nothing: look whether the name is still this file.
                if lock_descriptor(fd, blocking=False) and self._names(fd):
                    self._fd, fd = fd, -1
                    _held.add(self)
                    return True
            finally:
                if fd >= 0:
                    os.close(fd)
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def _names(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let the lock go; releasing twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            _held.discard(self)
            os.close(fd)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def __del__(self) -> None:
        self.release()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()  # closes the child's copy only; the parent's lock stays


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class AttachLock:
    """The short mutex of one run's folder, as a context manager.

    Raises on entering:
        UnknownRun: the folder is gone.
        StoreBusy: somebody held it for 10 s (a process that was stopped in the middle, say).
    """

    def __init__(self, folder: Path, run: str, patience: float = PATIENCE) -> None:
        self._lock = FolderLock(folder / "attach.lock")
        self._folder, self._run, self._patience = folder, run, patience

    def __enter__(self) -> Self:
        try:
            got = self._lock.acquire(self._patience)
        except FileNotFoundError:
            raise UnknownRun(f"The store has no folder of run {self._run}.", run=self._run) from None
        if not got:
            raise StoreBusy(
                f"Another process has been attaching or sending to run {self._run} for {self._patience:g} s.",
                run=self._run,
                hint="Look for a stopped process (state T); end it and try again.",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def read_generation(folder: Path, run: str) -> int:
    """Return the run's generation now.

    Raises:
        UnknownRun: there is no such folder or it holds no run.
        CorruptRecord: the file is not 8 bytes.
    """
    try:
        raw = (folder / "generation").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownRun(f"The store has no folder of run {run}.", run=run) from None
    if len(raw) != _NUMBER.size:
        raise CorruptRecord(
            f"The generation file of run {run} has {len(raw)} bytes instead of 8.",
            run=run,
            hint=f"`nbflow doctor` mends it from the journals of run {run}.",
        )
    return int(_NUMBER.unpack(raw)[0])


def pack_generation(generation: int) -> bytes:
    """Return the content of the `generation` file."""
    return _NUMBER.pack(generation)


class Lease:
    """The right of this process to write to one run, in one generation."""

    def __init__(self, folder: Path, run: str, generation: int, lock: FolderLock, fd: int) -> None:
        self.folder, self.run, self.generation = folder, run, generation
        self._lock = lock
        self._fd = fd
        self._mine = _NUMBER.pack(generation)
        self.pid = os.getpid()
        self._lost: str | None = None

    def check_process(self) -> None:
        """Raise `NotTheOwner` in a forked child."""
        if os.getpid() != self.pid:
            raise NotTheOwner(
                f"Run {self.run} is recorded by process {self.pid}; this is its fork, process {os.getpid()}.",
                run=self.run,
                hint="Return the worker's result and record it in the parent"
                " (call the durable function there), or start a run of its own with nbflow.run(...).",
            )

    @property
    def lost(self) -> bool:
        """Whether this process knows already that it may not write any more; `check` looks."""
        return self._lost is not None

    def check(self) -> None:
        """Raise `LeaseLost` unless this generation is still the run's. 1 µs."""
        if self._lost is None:
            try:
                if disk.pread(self._fd, 8, 0) == self._mine:
                    return
                self._lost = "was taken over by another process"
            except OSError as error:
                self._lost = f"cannot be looked at any more ({error.strerror})"
        raise LeaseLost(
            f"Run {self.run} {self._lost}; nothing this process does is recorded any more.",
            run=self.run,
            hint="Restart the kernel to attach again, or start a fresh run with `%nbflow new`.",
        )

    def release(self) -> None:
        """Give the lease up: the lock goes, later checks raise. Releasing twice is fine."""
        if self._fd < 0 or os.getpid() != self.pid:
            return
        if self._lost is None:
            self._lost = "was released here"
            (self.folder / f"owner.{self.generation}").unlink(missing_ok=True)
        self._lock.release()
        os.close(self._fd)
        self._fd = -1


def take(folder: Path, run: str, owner: Owner, *, steal: bool) -> tuple[Lease, bool]:
    """Take the lease and raise the generation, durably; tell whether it was stolen from a living owner.

    The caller holds `attach.lock`.

    Raises:
        LeaseHeld: a living owner has it (this very process counts) and `steal` is False.
        UnknownRun, CorruptRecord, OSError.
    """
    generation = read_generation(folder, run)
    current = FolderLock(folder / f"lock.{generation}")
    stolen = False
    if not current.acquire():
        sidecar = read_sidecar(folder, generation)
        if sidecar is None or not _certainly_dead(sidecar):
            if not steal:
                raise held(run, sidecar.owner if sidecar else None)
            stolen = True
    lock = FolderLock(folder / f"lock.{generation + 1}")
    fd = -1
    try:
        if not lock.acquire():
            raise held(run, None)
        sidecar = Sidecar(owner, _pid_space())
        (folder / f"owner.{generation + 1}").write_bytes(msgspec.json.encode(sidecar))
        fd = os.open(folder / "generation", disk.EDIT)
        point("generation.write.before")
        disk.write_at(fd, _NUMBER.pack(generation + 1), 0)
        point("generation.write.after")
        disk.sync_file(fd, "generation")
    except BaseException:
        lock.release()
        if fd >= 0:
            os.close(fd)
        raise
    finally:
        current.release()
    _sweep(folder, generation)
    return Lease(folder, run, generation + 1, lock, fd), stolen


def _sweep(folder: Path, generation: int) -> None:
    """Unlink the lock and owner files of `generation` and before: nobody asks for them again."""
    for path in list(folder.iterdir()):
        kind, _, number = path.name.partition(".")
        if kind in ("lock", "owner") and number.isdigit() and int(number) <= generation:
            path.unlink(missing_ok=True)


def held(run: str, owner: Owner | None) -> LeaseHeld:
    """Return the error that names who has the run and the way out."""
    who = "another process"
    since = None
    if owner is not None:
        since = owner.since
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.since))
        who = (
            f"process {owner.pid} on {owner.host}"
            + (f" ({owner.program})" if owner.program else "")
            + f" since {at}"
        )
    return LeaseHeld(
        f"Run {run} is held by {who}.",
        run=run,
        host=owner.host if owner else None,
        pid=owner.pid if owner else None,
        since=since,
        hint="Use that kernel, shut it down, or take it over with --steal; `%nbflow new` starts another run.",
    )


def read_sidecar(folder: Path, generation: int) -> Sidecar | None:
    """Return what is known of the owner of a generation; None when nothing is, or it was given back."""
    try:
        return msgspec.json.decode((folder / f"owner.{generation}").read_bytes(), type=Sidecar)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError:
        return None  # torn by a crash: it only ever names somebody for people


def owner_of(folder: Path, run: str | None = None) -> tuple[Owner | None, bool]:
    """Return who holds the run, or held it last, and whether that owner is alive.

    (None, False) where nobody attached yet or the last owner gave it back.

    Raises:
        UnknownRun, CorruptRecord, StoreBusy.
    """
    run = run or folder.name
    generation = read_generation(folder, run)
    if not (folder / f"lock.{generation}").exists():
        return _owner(folder, generation), False
    try:
        # Under the mutex, so that an attach never meets this look and believes the run held.
        with AttachLock(folder, run, patience=2.0):
            return is_alive(folder, run)
    except OSError as error:
        if error.errno not in disk.REFUSED:
            raise
        # A folder one may only read: the process id is all there is to ask.
        sidecar = read_sidecar(folder, generation)
        return _owner(folder, generation), sidecar is not None and not _certainly_dead(sidecar)


def is_alive(folder: Path, run: str) -> tuple[Owner | None, bool]:
    """Do what `owner_of` does for a caller who holds the attach lock."""
    generation = read_generation(folder, run)
    path = folder / f"lock.{generation}"
    sidecar = read_sidecar(folder, generation)
    owner = sidecar.owner if sidecar else None
    if not path.exists():
        return owner, False
    probe = FolderLock(path)
    free = probe.acquire()
    probe.release()
    return owner, not (free or (sidecar is not None and _certainly_dead(sidecar)))


def _owner(folder: Path, generation: int) -> Owner | None:
    sidecar = read_sidecar(folder, generation)
    return sidecar.owner if sidecar else None
