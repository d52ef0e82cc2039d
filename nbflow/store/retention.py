"""What may go: runs that somebody deletes, finished runs beyond a limit, raw leaves nobody needs soon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbflow.core.crashpoints import point
from nbflow.core.errors import UnknownRun
from nbflow.core.model import RunInfo
from nbflow.store import compact
from nbflow.store.database import Database
from nbflow.store.folder import RunFolder
from nbflow.store.lease import held
from nbflow.store.listing import FINISHED, matches_name
from nbflow.store.protocol import Retention
from nbflow.store.schema import roll_back

if TYPE_CHECKING:
    import duckdb

    from nbflow.store.local import LocalLog


def delete(database: Database, folder: RunFolder) -> None:
    """Delete a run from the database and its folder.

    The database first: a kill in between leaves a whole run, which may be deleted again.

    Raises:
        LeaseHeld: it has a living owner. StoreBusy: nothing was deleted.
    """
    if folder.exists():
        owner, alive = folder.owner()
        if alive:
            raise held(folder.run, owner)
    if database.exists():
        with database.open() as connection:
            purge(connection, folder.run)
    point("delete.before-folder")
    if folder.exists():
        try:
            folder.remove()
        except UnknownRun:
            return  # somebody else was faster


def purge(connection: duckdb.DuckDBPyConnection, run: str) -> None:
    """Delete all rows of a run, its views, and the leaves that no other run uses."""
    from nbflow.store.frames_sql import quoted

    names = connection.execute(
        "SELECT name FROM nbflow.frame WHERE run = ? AND name IS NOT NULL", [run]
    ).fetchall()
    connection.execute("BEGIN")
    try:
        for (name,) in names:
            connection.execute(f"DROP VIEW IF EXISTS frames.{quoted(name)}")
        for table in ("event", "position", "trouble", "tag", "output", "leaf_use", "frame", "finished"):
            connection.execute(f"DELETE FROM nbflow.{table} WHERE run = ?", [run])
        connection.execute("DELETE FROM nbflow.leaf WHERE digest NOT IN (SELECT digest FROM nbflow.leaf_use)")
        point("delete.before-commit")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    compact.drop_orphans(connection)


def chosen(database: Database, runs: list[RunInfo], retention: Retention, now: float) -> list[RunInfo]:
    """Choose what a retention lets go from these runs (newest first); only finished ones.

    `keep` counts per workflow. `size` keeps the newest finished runs whose
    records and outputs take that many bytes together.
    """
    sizes = _sizes(database) if retention.size is not None else {}
    kept_of: dict[str, int] = {}
    total = 0
    gone = []
    for info in runs:
        if info.state not in FINISHED or info.alive:
            continue
        if retention.workflow is not None and not matches_name(info.workflow, retention.workflow):
            continue
        rank = kept_of[info.workflow] = kept_of.get(info.workflow, 0) + 1
        total += sizes.get(info.run, 0)
        if (
            (retention.age is not None and now - (info.finished_at or info.updated_at) > retention.age)
            or (retention.keep is not None and rank > retention.keep)
            or (retention.size is not None and total > retention.size)
        ):
            gone.append(info)
    return gone


def _sizes(database: Database) -> dict[str, int]:
    """Return the bytes of each run's records and distinct leaves; a leaf of two runs counts in both."""
    if not database.exists():
        return {}
    with database.read() as connection:
        rows = connection.execute(
            """
            SELECT run, sum(size)::BIGINT FROM (
                SELECT run, sum(octet_length(record))::BIGINT AS size FROM nbflow.event GROUP BY run
                UNION ALL
                SELECT run, sum(size)::BIGINT
                FROM (SELECT DISTINCT run, digest, size FROM nbflow.leaf_use) GROUP BY run
            ) GROUP BY run
            """
        ).fetchall()
    return dict(rows)


def reclaim(database: Database, log: LocalLog, budget: int) -> int:
    """Delete raw leaves of a run held here when they exceed `budget` bytes; return how many bytes went.

    Only leaves that the database has, and that no current version of a step
    needs, may go; an older version that is replayed comes from the database.
    """
    if log.leaf_bytes() <= budget or not database.exists():
        return 0
    with database.read() as connection:
        used = dict(
            connection.execute(
                "SELECT digest, max(seq) FROM nbflow.leaf_use WHERE run = ? GROUP BY digest", [log.run]
            ).fetchall()
        )
        needed = connection.execute(
            """
            SELECT DISTINCT u.digest FROM nbflow.leaf_use u
            JOIN nbflow.event e ON e.run = u.run AND e.seq = u.seq
            LEFT JOIN main.steps s ON s.run = e.run AND s.execution = e.execution
            WHERE u.run = ? AND (s.current OR s.state <> 'completed'
                                 OR u.digest NOT IN (SELECT digest FROM nbflow.leaf))
            """,
            [log.run],
        ).fetchall()
    return log.reclaim({row[0] for row in needed}, used)
