"""Views over recorded frames that any DuckDB client sees: `frames."<run>/<step>.<variable>"`.

Each shows the newest version. A frame whose columns are all native leaves is a view over their segments. One
that has short or object columns, which lie in the envelope, is decoded if it is
not large, and those columns are written as a table beside.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from nbflow.core.crashpoints import point
from nbflow.core.errors import NbflowError
from nbflow.store import compact
from nbflow.store.frames_sql import decoded, quoted, select_columns
from nbflow.store.schema import roll_back

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger("nbflow.store")

#: A checkpoint with more than this in large buffers is not decoded for the sake of a view (bytes);
#: `nbflow.sql` decodes it when it is asked for.
DECODE_LIMIT = 64 * 1024 * 1024


class _Unseen(NamedTuple):
    """A frame that has no view yet."""

    run: str
    seq: int
    step: str
    variable: str
    columns: list[tuple[str, bytes | None]]
    size: int


def _unseen(connection: duckdb.DuckDBPyConnection) -> list[_Unseen]:
    """List the newest version of each frame that has no view and whose leaves are all in the database."""
    rows = connection.execute(
        """
        WITH newest AS (
            SELECT run, seq, step, variable, columns FROM nbflow.output WHERE len(columns) > 0
            QUALIFY row_number() OVER (PARTITION BY run, step, variable ORDER BY seq DESC) = 1
        )
        SELECT n.run, n.seq, n.step, n.variable, n.columns,
               (SELECT coalesce(sum(size), 0)::BIGINT FROM nbflow.leaf_use u
                WHERE u.run = n.run AND u.seq = n.seq)
        FROM newest n
        WHERE NOT EXISTS (
            SELECT 1 FROM nbflow.frame f WHERE f.run = n.run AND f.seq = n.seq AND f.variable = n.variable
        )
        AND NOT EXISTS (
            SELECT 1 FROM nbflow.leaf_use u WHERE u.run = n.run AND u.seq = n.seq
            AND NOT EXISTS (SELECT 1 FROM nbflow.leaf l WHERE l.digest = u.digest)
        )
        ORDER BY n.run, n.seq
        """
    ).fetchall()
    return [
        _Unseen(run, seq, step, variable, [(column["name"], column["leaf"]) for column in columns], size)
        for run, seq, step, variable, columns, size in rows
    ]


def show_frames(
    connection: duckdb.DuckDBPyConnection, fetch: compact.FetchRaw, *, decode: bool = True
) -> int:
    """Make the views that are missing; return how many frames were looked at. Safe to kill.

    With `decode=False` only frames whose columns are all native leaves get one;
    the others wait for a process in which their values may be unpickled.
    """
    import duckdb

    unseen = _unseen(connection)
    for frame in unseen:
        try:
            _show(connection, frame, fetch, decode=decode)
        except (duckdb.Error, NbflowError) as error:
            roll_back(connection)
            # One frame that cannot be shown (a class is gone, say) must not keep the others from it.
            log.info("%s.%s of run %s has no view: %s", frame.step, frame.variable, frame.run, error)
            _note(connection, frame, None, None)
    return len(unseen)


def _show(
    connection: duckdb.DuckDBPyConnection, frame: _Unseen, fetch: compact.FetchRaw, *, decode: bool
) -> None:
    """Make one view, in one transaction."""
    leaves = {leaf for _, leaf in frame.columns if leaf is not None}
    native = {
        digest: leaf for digest, leaf in compact.find(connection, leaves).items() if leaf.kept == "column"
    }
    places = {digest: f"s{leaf.segment}.c{leaf.place}" for digest, leaf in native.items()}
    segments = {leaf.segment for leaf in native.values() if leaf.segment is not None}
    others = [place for place, (_, leaf) in enumerate(frame.columns) if leaf not in native]
    if others and not decode:
        return
    name: str | None = f"{frame.run}/{frame.step}.{frame.variable}"
    number: int | None = None
    if others and frame.size > DECODE_LIMIT:
        name = None
    connection.execute("BEGIN")
    if others and name:
        table = decoded(connection, frame.run, frame.seq, frame.variable, fetch)
        number = compact.next_segment(connection)
        connection.register(
            "nbflow_frame", table.select(others).rename_columns([f"c{place}" for place in others])
        )
        connection.execute(f"CREATE TABLE columns.s{number} AS FROM nbflow_frame")
        segments.add(number)
    if name:
        chosen = [
            places[leaf] if leaf in native else f"s{number}.c{place}"
            for place, (_, leaf) in enumerate(frame.columns)
        ]
        sources = [f"columns.s{segment} AS s{segment}" for segment in sorted(segments)]
        body = select_columns([title for title, _ in frame.columns], chosen, sources)
        connection.execute(f"CREATE OR REPLACE VIEW frames.{quoted(name)} AS {body}")
    _note(connection, frame, name, number)
    point("frames.before-commit")
    connection.execute("COMMIT")


def _note(
    connection: duckdb.DuckDBPyConnection, frame: _Unseen, name: str | None, segment: int | None
) -> None:
    connection.execute(
        "DELETE FROM nbflow.frame WHERE run = ? AND step = ? AND variable = ?",
        [frame.run, frame.step, frame.variable],
    )
    connection.execute(
        "INSERT INTO nbflow.frame VALUES (?, ?, ?, ?, ?, ?)",
        [frame.run, frame.seq, frame.step, frame.variable, name, segment],
    )
