"""Leaf files: the large buffers of one run, each stored once, read as private memory maps.

A segment `leaves.<generation>.<n>` holds leaves one after the other, each at a
multiple of 64 bytes (what NumPy and Arrow like best); which bytes are which
leaf is told by the records that name them, and by nothing else. A call that
puts more than 4 MiB gets a segment of its own, smaller ones share a segment up
to 64 MiB, so that segments become stale as a whole and can be deleted.

Leaves are on disk before the record that names them is written. A leaf that no
record names (the process died in between) is garbage that goes with its segment.
"""

from __future__ import annotations

import io
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nbflow.core.errors import CorruptLeaf, StoreError
from nbflow.core.model import Entry, LeafRef, StepCompleted, StepCursor, StepEnded
from nbflow.store import disk, early
from nbflow.store.lease import Lease
from nbflow.values.leaf import Leaf, hasher

ALIGNMENT = 64
#: A call that puts more than this gets its own segment (bytes).
OWN_SEGMENT = 4 * 1024 * 1024
#: A shared segment is closed when it has grown to this (bytes).
SEGMENT_LIMIT = 64 * 1024 * 1024
#: A leaf asked for again is copied up to this size, and mapped anew above (bytes).
COPY_LIMIT = 256 * 1024

_ZEROS = bytes(ALIGNMENT)


def references(entry: Entry) -> Iterator[LeafRef]:
    """Yield every leaf the entry's record names."""
    record = entry.record
    if isinstance(record, StepCompleted):
        if record.checkpoint is not None:
            yield from record.checkpoint.leaves
        if record.state is not None:
            yield from record.state.leaves
        if record.display_leaf is not None:
            yield record.display_leaf
    elif isinstance(record, StepCursor):
        yield from record.checkpoint.leaves
    elif isinstance(record, StepEnded) and record.display_leaf is not None:
        yield record.display_leaf


class _Mapping:
    """One private map of a whole segment, and which leaves of it were handed out."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.given: set[int] = set()


class LeafReader:
    """Read leaves of one run's folder; anybody may. Safe to use from several threads.

    With `verify` a leaf's digest is checked when it is first asked for (6 GB/s
    a core), and remembered; without, only its size is.
    """

    def __init__(self, folder: Path, run: str, *, verify: bool = True) -> None:
        self.folder, self.run = folder, run
        self._verify = verify
        self._mutex = threading.Lock()
        self._mappings: dict[str, _Mapping] = {}
        self._sound: set[tuple[str, int, bytes]] = set()

    def leaf(self, ref: LeafRef) -> memoryview:
        """Return the leaf's bytes: writable, and private to this call, so that nobody sees another's changes.

        Raises:
            CorruptLeaf: missing, cut, or (with `verify`) altered.
        """
        with self._mutex:
            view = self._view(ref)
        if self._verify:
            self._check_digest(ref, view)
        return view

    def verify(self, ref: LeafRef) -> None:
        """Check the leaf's digest, once per leaf and process.

        Raises:
            CorruptLeaf: missing, cut or altered.
        """
        if (ref.segment, ref.offset, ref.digest) not in self._sound:
            self._check_digest(ref, self._map(ref, whole=False) if ref.size else memoryview(b""))

    def _check_digest(self, ref: LeafRef, view: memoryview) -> None:
        name = (ref.segment, ref.offset, ref.digest)
        if name in self._sound:
            return
        digest = hasher(ref.size)
        digest.update(view)
        if digest.digest() != ref.digest:
            raise self._corrupt(ref, "its bytes were altered")
        self._sound.add(name)

    def _view(self, ref: LeafRef) -> memoryview:
        if ref.size == 0:
            return memoryview(bytearray())
        # One map serves every leaf of a segment, because a map keeps a descriptor open. But a leaf
        # that was handed out may have been changed since: the next one to ask gets its own pages.
        mapping = self._mappings.get(ref.segment)
        if mapping is None or len(mapping.view) < ref.offset + ref.size:
            mapping = self._mappings[ref.segment] = _Mapping(self._map(ref, whole=True))
        if ref.offset not in mapping.given:
            mapping.given.add(ref.offset)
            return mapping.view[ref.offset : ref.offset + ref.size]
        if ref.size > COPY_LIMIT:
            return self._map(ref, whole=False)
        with self._open(ref) as file:
            data = bytearray(ref.size)
            file.seek(ref.offset)
            if file.readinto(data) != ref.size:
                raise self._corrupt(ref, "its segment was cut")
            return memoryview(data)

    def _map(self, ref: LeafRef, *, whole: bool) -> memoryview:
        with self._open(ref) as file:
            size = os.fstat(file.fileno()).st_size
            if size < ref.offset + ref.size:
                raise self._corrupt(
                    ref, f"its segment {ref.segment} has {size} bytes instead of {ref.offset + ref.size}"
                )
            if whole:
                return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
            start = ref.offset - ref.offset % mmap.ALLOCATIONGRANULARITY
            skip = ref.offset - start
            page = mmap.mmap(file.fileno(), skip + ref.size, access=mmap.ACCESS_COPY, offset=start)
            return memoryview(page)[skip:]

    def _open(self, ref: LeafRef) -> io.FileIO:
        if (
            not ref.segment.startswith("leaves.")
            or "/" in ref.segment
            or "\\" in ref.segment
            or ref.offset < 0
        ):
            raise self._corrupt(ref, f"it has no segment of the run's folder ({ref.segment!r})")
        try:
            return (self.folder / ref.segment).open("rb", buffering=0)
        except FileNotFoundError:
            raise self._corrupt(ref, f"its segment {ref.segment} is missing") from None
        except OSError as error:
            raise self._corrupt(ref, f"its segment {ref.segment} cannot be read: {error.strerror}") from error

    def _corrupt(self, ref: LeafRef, why: str) -> CorruptLeaf:
        return CorruptLeaf(
            f"Leaf {ref.digest.hex()[:12]} of run {self.run} cannot be used: {why}.",
            run=self.run,
            digest=ref.digest,
            hint="`%nbflow forget STEP` runs its step again; `nbflow doctor` lists all damage.",
        )

    def forget_missing(self) -> None:
        """Drop the maps of segments that were deleted; memory handed out of them stays valid."""
        with self._mutex:
            self._mappings = {n: m for n, m in self._mappings.items() if (self.folder / n).exists()}


class LeafWriter:
    """Put leaves into the segments of the generation this process owns. Safe to use from several threads."""

    def __init__(self, lease: Lease, known: Iterable[LeafRef] = ()) -> None:
        self.lease, self.folder, self.run = lease, lease.folder, lease.run
        self._mutex = threading.Lock()
        self._number = 0
        self._shared: int | None = None
        self._shared_name = ""
        self._shared_size = 0
        self._index: dict[bytes, LeafRef] = {}
        sizes: dict[str, int] = {}
        for ref in known:
            if ref.segment not in sizes:
                sizes[ref.segment] = _size(self.folder / ref.segment) if ref.segment else -1
            # A reference whose segment was reclaimed or cut cannot be shared; the leaf is written anew.
            if ref.offset + ref.size <= sizes[ref.segment]:
                self._index[ref.digest] = ref

    def put(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        """Write the leaves the run does not hold yet and sync once; return references in the order given.

        Raises:
            StoreFull, StoreReadOnly, StoreError: nothing of them is kept.
            LeaseLost, NotTheOwner.
        """
        self.lease.check_process()
        with self._mutex:
            self.lease.check()
            fresh: dict[bytes, Leaf] = {}
            for leaf in leaves:
                if leaf.digest not in self._index:
                    fresh.setdefault(leaf.digest, leaf)
            if fresh:
                try:
                    self._index.update(self._store(list(fresh.values())))
                except OSError as error:
                    disk.refused(error, run=self.run, doing="writing large outputs")
                self.lease.check()
            return tuple(
                ref
                if ref.form == leaf.form
                else LeafRef(ref.digest, ref.size, ref.segment, ref.offset, leaf.form)
                for leaf, ref in ((leaf, self._index[leaf.digest]) for leaf in leaves)
            )

    def _store(self, leaves: list[Leaf]) -> dict[bytes, LeafRef]:
        total = sum(leaf.size for leaf in leaves)
        if total > OWN_SEGMENT:
            return self._fill_new(leaves)
        if self._shared is None or self._shared_size + total > SEGMENT_LIMIT:
            self._close_shared()
            return self._fill_new(leaves, keep=True)
        start = self._shared_size
        try:
            os.lseek(self._shared, start, os.SEEK_SET)
            refs, end = self._write(self._shared, self._shared_name, start, leaves)
            disk.sync_file(self._shared, "leaves")
        except BaseException:
            # The segment is left as it is (leaves in it may be mapped); the next put takes another one.
            self._close_shared()
            raise
        self._shared_size = end
        return refs

    def _fill_new(self, leaves: list[Leaf], *, keep: bool = False) -> dict[bytes, LeafRef]:
        name = f"leaves.{self.lease.generation}.{self._number}"
        self._number += 1
        path = self.folder / name
        fd = os.open(path, disk.NEW, 0o600)
        try:
            refs, end = self._write(fd, name, 0, leaves)
            disk.sync_file(fd, "leaves")
            disk.sync_folder(self.folder, "leaves.folder")
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if keep:
            self._shared, self._shared_name, self._shared_size = fd, name, end
        else:
            os.close(fd)
        return refs

    def _write(self, fd: int, name: str, start: int, leaves: list[Leaf]) -> tuple[dict[bytes, LeafRef], int]:
        refs: dict[bytes, LeafRef] = {}
        parts: list[disk.Buffer] = []
        offset = start
        for leaf in leaves:
            gap = -offset % ALIGNMENT
            if gap:
                parts.append(_ZEROS[:gap])
            offset += gap
            refs[leaf.digest] = LeafRef(leaf.digest, leaf.size, name, offset, leaf.form)
            held = 0
            for part in leaf.parts:
                if part.nbytes:
                    parts.append(part if part.format == "B" and part.ndim == 1 else part.cast("B"))
                    held += part.nbytes
            if held != leaf.size:
                raise StoreError(
                    f"A leaf of run {self.run} was announced with {leaf.size} bytes and has {held}.",
                    run=self.run,
                )
            offset += leaf.size
        much = offset - start > OWN_SEGMENT
        disk.write_all(fd, early.fed(fd, parts) if much else parts, "leaves")
        return refs, offset

    def reclaim(self, keep: set[bytes]) -> int:
        """Delete every segment none of whose leaves is in `keep`; return how many bytes went.

        Segments this process still fills stay. References to a deleted segment
        give `CorruptLeaf`, so the caller has their bytes elsewhere or lets them go.
        """
        self.lease.check_process()
        with self._mutex:
            self.lease.check()
            needed = {ref.segment for digest, ref in self._index.items() if digest in keep}
            needed.add(self._shared_name)
            freed = 0
            for path in self.folder.glob("leaves.*.*"):
                if path.name not in needed:
                    freed += max(0, _size(path))
                    path.unlink(missing_ok=True)
            self._index = {digest: ref for digest, ref in self._index.items() if ref.segment in needed}
            disk.sync_folder(self.folder, "leaves.folder")
            return freed

    def close(self) -> None:
        """Close the shared segment; closing twice is fine."""
        with self._mutex:
            self._close_shared()

    def _close_shared(self) -> None:
        if self._shared is not None:
            os.close(self._shared)
            self._shared = None
            self._shared_name = ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
