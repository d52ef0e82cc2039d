"""The only place of the journal side that touches the disk: whole writes, syncs, renames, typed refusals.

A crash point stands just before and just after every call that changes the
disk, and the errors of the operating system become the store's own.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from nbflow.core.crashpoints import point
from nbflow.core.errors import StoreError, StoreFull, StoreReadOnly

_BINARY: int = getattr(os, "O_BINARY", 0)
READ = os.O_RDONLY | _BINARY
EDIT = os.O_RDWR | _BINARY
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY

#: What one call of write is given (bytes); Linux takes at most 2 GiB - 4 KiB at once.
CHUNK = 8 * 1024 * 1024
_IOV_MAX = 512

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}

Buffer = bytes | bytearray | memoryview


def refused(error: OSError, *, run: str | None, doing: str) -> NoReturn:
    """Raise the store's own error for what the operating system answered.

    Raises:
        StoreFull: no room, over quota, or over the file size limit.
        StoreReadOnly: this user may not write there.
        StoreError: anything else; the message has the system's words.
    """
    where = f"run {run}" if run else "the store"
    if error.errno in _FULL:
        raise StoreFull(
            f"The disk has no room while {doing} of {where}: {error.strerror}.",
            run=run,
            hint="Free some space and run the cell again; everything acknowledged before is kept.",
        ) from error
    if error.errno in REFUSED:
        raise StoreReadOnly(
            f"{doing.capitalize()} of {where} is not allowed: {error.strerror} ({error.filename}).",
            run=run,
            hint="Make the folder writable, or name another store with NBFLOW_STORE.",
        ) from error
    raise StoreError(
        f"{doing.capitalize()} of {where} failed: {error.strerror or error}.",
        run=run,
        hint="Look at the disk, then run `nbflow doctor`.",
    ) from error


if sys.platform == "win32":  # no pread and pwrite there: the callers hold a lock around each descriptor

    def pread(fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`."""
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)

    def _pwrite(fd: int, data: Buffer, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)

else:
    pread = os.pread
    _pwrite = os.pwrite


if sys.platform == "darwin":
    import fcntl

    def _sync(fd: int) -> None:
        # fsync on macOS leaves the bytes in the drive's cache; F_FULLFSYNC does not.
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL):
                raise
            os.fsync(fd)

    _sync_data = _sync
else:
    _sync = os.fsync
    _sync_data = getattr(os, "fdatasync", os.fsync)


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`; a partial write goes on until the system refuses. No crash points.

    Raises:
        OSError: some bytes may have been written; the caller knows how far the file counts.
    """
    total = len(data)
    done = _pwrite(fd, data, offset)
    while done < total:
        done += _pwrite(fd, memoryview(data)[done:], offset + done)


_fallocate = getattr(os, "posix_fallocate", None)


def allocate(fd: int, offset: int, size: int) -> None:
    """Extend the file with allocated zeros over this range; a no-op where there is no such call. No crash points.

    Raises:
        OSError: not that much room, or a file system that cannot; some of it may have been allocated.
    """
    if _fallocate is not None:
        _fallocate(fd, offset, size)


def trim(file: int | Path, end: int) -> None:
    """Give back the room a file has behind `end`; one that keeps it (read-only now, say) loses nothing."""
    try:
        if (os.fstat(file) if isinstance(file, int) else file.stat()).st_size > end:
            os.truncate(file, end)
    except OSError:
        return


def write_all(fd: int, parts: Iterable[Buffer], name: str) -> int:
    """Write the parts one after the other at the file's position, never joined; return how many bytes.

    Raises:
        OSError: some bytes may have been written.
    """
    point(f"{name}.write.before")
    total = 0
    small: list[Buffer] = []
    waiting = 0
    for part in parts:
        size = len(part)
        if size >= CHUNK // 8:
            total += _write_small(fd, small, waiting)
            small, waiting = [], 0
            view = memoryview(part)
            done = 0
            while done < size:
                done += os.write(fd, view[done : done + CHUNK])
            total += size
        elif size:
            small.append(part)
            waiting += size
            if waiting >= CHUNK or len(small) == _IOV_MAX:
                total += _write_small(fd, small, waiting)
                small, waiting = [], 0
    total += _write_small(fd, small, waiting)
    point(f"{name}.write.after")
    return total


def _write_small(fd: int, parts: Sequence[Buffer], size: int) -> int:
    if not parts:
        return 0
    writev = getattr(os, "writev", None)
    done = writev(fd, parts) if writev is not None else os.write(fd, b"".join(parts))
    if done < size:
        rest = memoryview(b"".join(parts))[done:]
        while rest:
            rest = rest[os.write(fd, rest) :]
    return size


def sync_data(fd: int) -> None:
    """Return when the file's bytes (and its size) are on disk. No crash points."""
    _sync_data(fd)


def sync_file(fd: int, name: str) -> None:
    """Return when the file's bytes and metadata are on disk."""
    point(f"{name}.sync.before")
    _sync(fd)
    point(f"{name}.sync.after")


def sync_folder(folder: Path, name: str) -> None:
    """Return when the folder's names are on disk; a no-op where folders cannot be synced (Windows)."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        sync_file(fd, name)
    finally:
        os.close(fd)


def rename(source: Path, target: Path, name: str) -> None:
    """Rename atomically; a file that stands at `target` is replaced, a filled folder is not."""
    point(f"{name}.rename.before")
    source.replace(target)
    point(f"{name}.rename.after")


def place(folder: Path, target: str, data: Buffer, name: str, *, temporary: str) -> None:
    """Create the file `target` in `folder` all at once: a crash leaves it whole or not at all.

    Durable on return. `temporary` is the name it has while it grows.

    Raises:
        OSError: nothing stands at `target`.
    """
    path = folder / temporary
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
    try:
        try:
            write_all(fd, [data], name)
            sync_file(fd, name)
        finally:
            os.close(fd)
        rename(path, folder / target, name)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    sync_folder(folder, f"{name}.folder")
