"""Leaves as the database gives them back: proven by their digest, and rebuilt into memory of their own.

Reading a column takes the processor twice as long as hashing it, and DuckDB alone
does not keep the cores busy. So a table is read a few columns at a time, by
as many threads as there are cores, each of which hashes (and copies) what it
read: a frame of 85 MB is proven in 35 ms on two cores, where one query for all
columns and then all digests takes 62. And what is read at a time is little: its memory
is used again, where fresh memory costs as much as the reading.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nbflow.values import native
from nbflow.values.leaf import hasher

if TYPE_CHECKING:
    import duckdb

#: Columns of one table are read together until they are so many bytes: a query costs a millisecond.
_GROUP = 16_000_000
#: More threads than this only wait for memory.
_THREADS = 4

_T = TypeVar("_T")


@dataclass(frozen=True)
class Kept:
    """One row of `nbflow.leaf`: where a buffer lies in the database."""

    digest: bytes
    size: int
    form: str
    kept: str
    segment: int | None
    place: int | None
    rows: int | None
    tail: bytes | None


def prove(connection: duckdb.DuckDBPyConnection, leaves: Iterable[Kept]) -> set[bytes]:
    """Return the digests of the leaves whose bytes the database gives back as they were recorded."""
    return {digest for digest, sound in _read(connection, leaves, _is_sound) if sound}


def restore_all(connection: duckdb.DuckDBPyConnection, leaves: Iterable[Kept]) -> dict[bytes, memoryview]:
    """Rebuild leaves, each writable; one whose bytes are not those that were recorded is left out."""
    return {digest: raw for digest, raw in _read(connection, leaves, _rebuilt) if raw is not None}


def _is_sound(leaf: Kept, parts: list[Any], threads: int) -> bool:
    digest = hasher(threads)
    for part in parts:
        digest.update(part)
    return digest.digest() == leaf.digest


def _rebuilt(leaf: Kept, parts: list[Any], threads: int) -> memoryview | None:
    import numpy as np

    views = [memoryview(part).cast("B") for part in parts]
    if sum(view.nbytes for view in views) != leaf.size:
        return None
    # NumPy asks for large pages, which are faulted in five times as fast as a bytearray's.
    fresh: Any = np.empty(leaf.size, np.uint8)
    raw = memoryview(fresh)
    place = 0
    for view in views:
        raw[place : place + view.nbytes] = view
        place += view.nbytes
    return raw if _is_sound(leaf, [raw], threads) else None


def _read(
    connection: duckdb.DuckDBPyConnection,
    leaves: Iterable[Kept],
    use: Callable[[Kept, list[Any], int], _T],
) -> list[tuple[bytes, _T]]:
    """Read leaves and return what `use(leaf, its bytes in pieces, bytes to hash with all cores)` makes of each."""
    found: list[tuple[bytes, _T]] = []
    segments: dict[int, list[Kept]] = {}
    for leaf in leaves:
        if leaf.segment is not None:
            segments.setdefault(leaf.segment, []).append(leaf)
            continue
        rows = connection.execute(
            "SELECT data FROM nbflow.leaf_blob WHERE digest = ?", [leaf.digest]
        ).fetchall()
        found.append((leaf.digest, use(leaf, [row[0] for row in rows], leaf.size)))
    groups = [group for columns in segments.values() for group in _grouped(columns)]
    alone = len(groups) == 1

    def work(group: list[Kept]) -> None:
        with connection.cursor() as cursor:
            names = ", ".join(f"c{leaf.place} AS r{number}" for number, leaf in enumerate(group))
            table = cursor.sql(f"SELECT {names} FROM store.columns.s{group[0].segment}").to_arrow_table()
        for number, leaf in enumerate(group):
            parts = _pieces(leaf, table.column(number))
            found.append((leaf.digest, use(leaf, parts, leaf.size if alone else 0)))

    if not groups:
        return found
    import pyarrow  # noqa: F401, ICN001  (once, before the threads want it)

    # DuckDB's text has 32-bit offsets otherwise, and each column would be copied to get 64-bit ones.
    large = any("/large_" in leaf.form for group in groups for leaf in group)
    connection.execute(f"SET arrow_large_buffer_size = {str(large).lower()}")
    try:
        _share(work, groups)
    finally:
        connection.execute("RESET arrow_large_buffer_size")
    return found


def _grouped(columns: Sequence[Kept]) -> list[list[Kept]]:
    """Divide the columns of one table into what is read at a time."""
    groups: list[list[Kept]] = []
    size = _GROUP
    for leaf in columns:
        if size >= _GROUP:
            groups.append([])
            size = 0
        groups[-1].append(leaf)
        size += leaf.size
    return groups


def _share(work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Do the work on every item, in this thread and a few others; raise the first error of any."""
    waiting, errors = list(reversed(items)), list[BaseException]()

    def go_on() -> None:
        while not errors:
            try:
                item = waiting.pop()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
                errors.append(error)

    threads = []
    for _ in range(min(len(items), os.cpu_count() or 1, _THREADS) - 1):
        thread = threading.Thread(target=go_on, name="nbflow-read", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break  # the interpreter is ending: this thread does it all
        threads.append(thread)
    go_on()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _pieces(leaf: Kept, column: Any) -> list[Any]:
    if leaf.kept == "words":
        pieces: list[Any] = [
            memoryview(chunk.buffers()[1])[chunk.offset * 8 : (chunk.offset + len(chunk)) * 8]
            for chunk in column.chunks
        ]
        return [*pieces, leaf.tail]
    try:
        return list(native.from_arrow(leaf.form, column))
    except ValueError:
        return []  # not what was written; the digest will say so
