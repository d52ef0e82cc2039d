"""The file under a journal's writer: room allocated ahead of the records, failed writes cut off again.

fdatasync of bytes within space that the file has already need not commit the
file's size and extents: 90 µs where a growing file takes 125. So some room is
allocated ahead of the records, zeros until they are written, and given back
when the journal is closed. A process that was killed leaves the zeros behind
its last record: a torn tail like any other, which the next attach takes off.
"""

from __future__ import annotations

import os
from pathlib import Path

from nbflow.core.crashpoints import point
from nbflow.store import disk

#: Room that is allocated ahead of what is written (bytes): some hundred calls.
AHEAD = 64 * 1024


class JournalFile:
    """One journal file, open for its only writer, who knows up to which byte it counts. Not safe for threads."""

    def __init__(self, path: Path, end: int) -> None:
        self._fd = os.open(path, disk.EDIT)
        self._room = end

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`; where the system refuses, part of it may be in the file.

        Raises:
            OSError.
        """
        if offset + len(data) > self._room:
            self._make_room(offset, offset + len(data) + AHEAD)
        point("journal.write.before")
        disk.write_at(self._fd, data, offset)
        point("journal.write.after")

    def _make_room(self, offset: int, end: int) -> None:
        # Noted first: after a refusal (no space, no such call) the file grows as it is written,
        # and the system is asked again only when it has grown by as much.
        self._room = end
        try:
            point("journal.allocate.before")
            disk.allocate(self._fd, offset, end - offset)
            point("journal.allocate.after")
        except OSError:
            return  # room ahead is for speed only; the write itself tells what is wrong

    def sync(self) -> None:
        """Return when everything written is on disk.

        Raises:
            OSError: what is on disk is unknown from now on.
        """
        point("journal.sync.before")
        disk.sync_data(self._fd)
        point("journal.sync.after")

    def holds(self, data: bytes, offset: int) -> bool:
        """Tell whether these bytes are in the file at `offset`, whole."""
        return self._read(offset, len(data)) == data

    def blank_from(self, offset: int) -> bool:
        """Tell whether nothing but allocated room follows `offset`."""
        size = os.fstat(self._fd).st_size
        return size <= offset or not self._read(offset, size - offset).strip(b"\0")

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := disk.pread(self._fd, size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def cut(self, end: int) -> None:
        """Cut off everything behind `end`, durably.

        Raises:
            OSError.
        """
        point("journal.cut.before")
        os.ftruncate(self._fd, end)
        disk.sync_file(self._fd, "journal.cut")
        self._room = end

    def close(self, end: int | None) -> None:
        """Give back the room behind `end`, the last record that counts (None: leave it), and close.

        No lock and no sync: only zeros go, which no reader and no takeover takes for anything.
        """
        try:
            if end is not None:
                point("journal.trim.before")
                disk.trim(self._fd, end)
                point("journal.trim.after")
        finally:
            os.close(self._fd)
