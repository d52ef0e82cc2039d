"""Compaction: raw leaves become native DuckDB columns, each proven by its digest before it counts.

New leaves of one step that have a DuckDB type and the same length share a table
`columns.s<N>` with columns `c0`, `c1`, …. The others are kept as 8-byte words
(100 MB: 0.2 s to write, where BLOBs take 1.3 s) or, when short, as BLOBs. A
leaf is written once however many runs use it.

A leaf counts (has its row in `nbflow.leaf`) only when its bytes were rebuilt
from what DuckDB stored and have the digest they had. A kill before leaves a
table that nothing refers to, which the next compaction drops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from nbflow.core.crashpoints import point
from nbflow.core.errors import CorruptLeaf
from nbflow.core.model import LeafRef
from nbflow.store import rebuild
from nbflow.store.rows import LEAF, insert_rows
from nbflow.values import native

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Kept = rebuild.Kept

#: Shorter leaves without a native type are BLOB rows; a table of their own would take more than it saves.
WORDS_MINIMUM = 256 * 1024
#: Rows of one piece of an Arrow table on its way in: DuckDB's row group, so that both cores work.
_ROW_GROUP = 122_880

#: Gives the raw bytes of a leaf of a run, or raises CorruptLeaf.
FetchRaw = Callable[[str, LeafRef], memoryview]


@dataclass(frozen=True)
class Waiting:
    """The leaves of one record that the database lacks."""

    run: str
    seq: int
    leaves: tuple[LeafRef, ...]


def waiting(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[str], *, without: Iterable[bytes] = ()
) -> list[Waiting]:
    """List, record by record, the leaves of these runs that the database lacks; each leaf once."""
    rows = connection.execute(
        """
        SELECT run, seq, digest, size, file, byte, form FROM nbflow.leaf_use
        WHERE list_contains(?, run) AND digest NOT IN (SELECT digest FROM nbflow.leaf)
        AND NOT list_contains(?, digest)
        QUALIFY row_number() OVER (PARTITION BY digest ORDER BY run, seq) = 1
        ORDER BY run, seq
        """,
        [list(runs), list(without)],
    ).fetchall()
    groups: dict[tuple[str, int], list[LeafRef]] = {}
    for run, seq, digest, size, file, byte, form in rows:
        groups.setdefault((run, seq), []).append(LeafRef(digest, size, file, byte, form))
    return [Waiting(run, seq, tuple(leaves)) for (run, seq), leaves in groups.items()]


def orphans(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """List the segment tables that nothing refers to: a compaction was killed, or a run was deleted."""
    rows = connection.execute(
        """
        SELECT table_name FROM duckdb_tables() WHERE database_name = 'store' AND schema_name = 'columns'
        AND table_name NOT IN (SELECT 's' || segment FROM nbflow.leaf WHERE segment IS NOT NULL)
        AND table_name NOT IN (SELECT 's' || segment FROM nbflow.frame WHERE segment IS NOT NULL) ORDER BY ALL
        """
    ).fetchall()
    return [row[0] for row in rows]


def drop_orphans(connection: duckdb.DuckDBPyConnection) -> int:
    """Drop segment tables and BLOBs that no leaf refers to; return how many tables."""
    found = orphans(connection)
    for name in found:
        connection.execute(f'DROP TABLE columns."{name}"')
    connection.execute("DELETE FROM nbflow.leaf_blob WHERE digest NOT IN (SELECT digest FROM nbflow.leaf)")
    return len(found)


def write(connection: duckdb.DuckDBPyConnection, group: Waiting, fetch: FetchRaw) -> list[CorruptLeaf]:
    """Keep the leaves of one record, verified; return the damaged ones, which stay as they are."""
    by_length: dict[int, list[tuple[LeafRef, pa.Array]]] = {}
    opaque: list[tuple[LeafRef, memoryview]] = []
    damaged: list[CorruptLeaf] = []
    for ref in group.leaves:
        try:
            raw = fetch(group.run, ref)
        except CorruptLeaf as error:
            damaged.append(error)
            continue
        array = _typed(ref, raw)
        if array is None:
            opaque.append((ref, raw))
        else:
            by_length.setdefault(len(array), []).append((ref, array))
    kept: list[Kept] = []
    for length, columns in by_length.items():
        stored, refused = _native_segment(connection, length, columns)
        kept += stored
        opaque += [(ref, fetch(group.run, ref)) for ref in refused]
    for ref, raw in opaque:
        leaf = _opaque(connection, ref, raw)
        if rebuild.prove(connection, [leaf]):
            kept.append(leaf)
        else:
            damaged.append(_altered(group.run, ref))
    point("compact.before-commit")
    _note(connection, kept)
    point("compact.after-commit")
    return damaged


def _typed(ref: LeafRef, raw: memoryview) -> Any:
    """Return the leaf as an Arrow array for its native column; None where it stays opaque."""
    if native.column_type(ref.form) is None:
        return None
    try:
        return native.to_arrow(ref.form, raw)
    except ValueError:
        return None


def _altered(run: str, ref: LeafRef) -> CorruptLeaf:
    return CorruptLeaf(
        f"A stored buffer of run {run} ({ref.size} bytes) is not what was recorded.",
        run=run,
        digest=ref.digest,
        hint="Run the step that made it again: %nbflow forget STEP.",
    )


def _native_segment(
    connection: duckdb.DuckDBPyConnection, length: int, columns: Sequence[tuple[LeafRef, pa.Array]]
) -> tuple[list[Kept], list[LeafRef]]:
    """Write columns of one length into one table; return what is proven, and what came back changed."""
    import duckdb

    try:
        number = _new_segment(
            connection,
            [array for _, array in columns],
            [native.column_type(ref.form) for ref, _ in columns],
        )
    except (duckdb.DataError, duckdb.InvalidInputException):
        # Text that is no UTF-8, say. One such column must not keep the others from being native.
        if len(columns) == 1:
            return [], [columns[0][0]]
        parts = [_native_segment(connection, length, [column]) for column in columns]
        return [kept for part in parts for kept in part[0]], [ref for part in parts for ref in part[1]]
    leaves = [
        Kept(ref.digest, ref.size, ref.form, "column", number, place, length, None)
        for place, (ref, _) in enumerate(columns)
    ]
    proven = rebuild.prove(connection, leaves)
    kept = [leaf for leaf in leaves if leaf.digest in proven]
    return kept, [ref for ref, _ in columns if ref.digest not in proven]


def _opaque(connection: duckdb.DuckDBPyConnection, ref: LeafRef, raw: memoryview) -> Kept:
    """Keep bytes as they are."""
    import pyarrow as pa

    if ref.size < WORDS_MINIMUM:
        connection.execute("INSERT INTO nbflow.leaf_blob VALUES (?, ?)", [ref.digest, bytes(raw)])
        return Kept(ref.digest, ref.size, ref.form, "blob", None, None, None, None)
    rows = ref.size // 8
    words = pa.Array.from_buffers(pa.uint64(), rows, [None, pa.py_buffer(raw[: rows * 8])])
    number = _new_segment(connection, [words], ["UBIGINT"])
    return Kept(ref.digest, ref.size, ref.form, "words", number, 0, rows, bytes(raw[rows * 8 :]))


def _new_segment(
    connection: duckdb.DuckDBPyConnection, arrays: Sequence[pa.Array], types: Sequence[str | None]
) -> int:
    """Write arrays of one length as a new table, on disk when this returns; give its number."""
    import pyarrow as pa

    number = next_segment(connection)
    names = [f"c{place}" for place in range(len(arrays))]
    whole = pa.Table.from_arrays(list(arrays), names=names)
    connection.register("nbflow_columns", pa.Table.from_batches(whole.to_batches(_ROW_GROUP), whole.schema))
    chosen = ", ".join(f"{name}::{type_} AS {name}" for name, type_ in zip(names, types, strict=True))
    point("compact.before-segment")
    connection.execute(f"CREATE TABLE columns.s{number} AS SELECT {chosen} FROM nbflow_columns")
    connection.unregister("nbflow_columns")
    # What is read back for the proof is what was compressed, not what waits in the log.
    connection.execute("CHECKPOINT store")
    point("compact.after-segment")
    return number


def next_segment(connection: duckdb.DuckDBPyConnection) -> int:
    """Return a number that no segment table has had yet."""
    return int(connection.execute("SELECT nextval('nbflow.segment_number')").fetchall()[0][0])


def _note(connection: duckdb.DuckDBPyConnection, kept: Sequence[Kept]) -> None:
    if kept:
        connection.execute("BEGIN")
        insert_rows(connection, "leaf", LEAF, [astuple(leaf) for leaf in kept])
        connection.execute("COMMIT")


def find(connection: duckdb.DuckDBPyConnection, digests: Iterable[bytes]) -> dict[bytes, Kept]:
    """Return where these leaves lie in the database; what it lacks is left out."""
    rows = connection.execute(
        "SELECT digest, size, form, kept, segment, place, rows, tail FROM nbflow.leaf "
        "WHERE list_contains(?, digest)",
        [list(digests)],
    ).fetchall()
    return {row[0]: Kept(*row) for row in rows}


def siblings(connection: duckdb.DuckDBPyConnection, run: str, digest: bytes) -> list[Kept]:
    """Return the leaves that were recorded together with this one in the run, itself included.

    Who restores one column of a frame asks for the next one a moment later.
    """
    rows = connection.execute(
        """
        SELECT DISTINCT l.digest, l.size, l.form, l.kept, l.segment, l.place, l.rows, l.tail
        FROM nbflow.leaf l JOIN nbflow.leaf_use u ON u.digest = l.digest
        WHERE u.run = ? AND u.seq = (SELECT max(seq) FROM nbflow.leaf_use WHERE run = ? AND digest = ?)
        """,
        [run, run, digest],
    ).fetchall()
    return [Kept(*row) for row in rows]


def restore(connection: duckdb.DuckDBPyConnection, leaf: Kept, *, run: str) -> memoryview:
    """Rebuild a leaf's bytes, writable, and prove them.

    Raises:
        CorruptLeaf: they are not those that were recorded.
    """
    found = rebuild.restore_all(connection, [leaf]).get(leaf.digest)
    if found is None:
        raise _altered(run, LeafRef(leaf.digest, leaf.size, form=leaf.form))
    return found
