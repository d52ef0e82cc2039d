"""Listings: rows of the `runs` view as `RunInfo`, and the same filters in SQL and in Python.

Unfinished runs are listed from their journals, finished ones from the
database; a run's row is the same from either (a property test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbflow.core.model import Owner, RunAttached, RunInfo, RunOpened, decode_entry
from nbflow.store.protocol import RunQuery

if TYPE_CHECKING:
    import duckdb

#: A run of these states is only in the database: its folder is gone or about to go.
FINISHED = frozenset({"completed", "cancelled"})
#: Runs of these states have a folder, so the database need not be asked for them.
FOLDER_STATES = frozenset({"pending", "running", "waiting", "failed"})
#: What is listed for a run whose journal cannot be read.
CORRUPT = "corrupt"

_COLUMNS = (
    "run, workflow, workflow_kind, version, state, tags, parent, created, updated, finished, "
    "attempts, generation, steps, error, opened_record, attached_record"
)


def same_params(one: Any, other: Any) -> bool:
    """Tell whether parameters are the same, kind by kind: to Python itself 1, 1.0 and True are equal.

    >>> same_params({"n": [1, 2]}, {"n": [1, 2]}), same_params({"n": 1}, {"n": True})
    (True, False)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_params(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_params, one, other))
    alike = all(isinstance(one, kind) == isinstance(other, kind) for kind in (bool, float))
    return alike and bool(one == other)


def matches(info: RunInfo, query: RunQuery) -> bool:
    """Tell whether a run passes the filters (not the paging) of a query."""
    return (
        (not query.runs or info.run in query.runs)
        and (query.workflow is None or matches_name(info.workflow, query.workflow))
        and (query.children or info.parent is None)
        and (not query.states or info.state in query.states)
        and all(info.tags.get(name) == value for name, value in (query.tags or {}).items())
        and (query.since is None or info.created_at >= query.since)
        and (query.until is None or info.created_at <= query.until)
    )


def matches_name(workflow: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern in which only `*` is special.

    >>> matches_name("load[1].ipynb", "load[1]*")
    True
    """
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), workflow, re.DOTALL) is not None


#: Runs of which the database holds something, and no row among the finished ones: their folder is gone before
#: its time, or they cannot be read.
_OTHERS = """
    SELECT run FROM (SELECT run FROM nbflow.event WHERE kind = 'run.opened' UNION SELECT run FROM nbflow.trouble)
    WHERE run NOT IN (SELECT run FROM nbflow.finished) AND NOT list_contains(?, run)
"""


def from_database(
    connection: duckdb.DuckDBPyConnection, query: RunQuery, *, without: frozenset[str] = frozenset()
) -> list[RunInfo]:
    """List the runs of the database that pass the filters, newest first, `offset + limit` at most.

    `without` names runs that the caller lists from their journals.
    """
    wheres, values = ["NOT list_contains(?, run)"], [list(without)]
    _where(query, wheres, values)
    return _select(connection, wheres, values, query, _others(connection, without))


def by_prefix(connection: duckdb.DuckDBPyConnection, prefix: str) -> list[RunInfo]:
    """List up to 6 runs of the database whose id begins with `prefix`, without the children of such runs."""
    wheres = ["starts_with(run, ?)", "NOT starts_with(coalesce(parent, ''), ?)"]
    others = [run for run in _others(connection, ()) if run.startswith(prefix)]
    found = _select(connection, wheres, [prefix, prefix], RunQuery(limit=None), others)
    return sorted(found, key=lambda info: info.run, reverse=True)[:6]


def _others(connection: duckdb.DuckDBPyConnection, without: Iterable[str]) -> list[str]:
    return [run for (run,) in connection.execute(_OTHERS, [list(without)]).fetchall()]


def _select(
    connection: duckdb.DuckDBPyConnection,
    wheres: list[str],
    values: list[Any],
    query: RunQuery,
    others: list[str],
) -> list[RunInfo]:
    """Return the rows of finished runs that fit, and those of the `others`, which are folded from their events."""
    where = " AND ".join(wheres)
    source = f"SELECT {_COLUMNS} FROM nbflow.finished WHERE {where}"
    if others:
        source += f" UNION ALL SELECT {_COLUMNS} FROM nbflow.run_now WHERE list_contains(?, run) AND {where}"
        values = [*values, others, *values]
    limit = "" if query.limit is None else f" LIMIT {int(query.limit) + int(query.offset)}"
    rows = connection.execute(f"{source} ORDER BY created DESC, run DESC{limit}", values).fetchall()
    return [_info(row) for row in rows]


def _where(query: RunQuery, wheres: list[str], values: list[Any]) -> None:
    if query.runs:
        wheres.append("list_contains(?, run)")
        values.append(list(query.runs))
    if query.workflow is not None:
        wheres.append(r"workflow LIKE ? ESCAPE '\'")
        values.append(re.sub(r"([\\%_])", r"\\\1", query.workflow).replace("*", "%"))
    if not query.children:
        wheres.append("parent IS NULL")
    if query.states:
        wheres.append("list_contains(?, state)")
        values.append(list(query.states))
    for name, value in (query.tags or {}).items():
        wheres.append(
            "run IN (SELECT run FROM nbflow.tag WHERE name = ? GROUP BY run HAVING arg_max(value, seq) = ?)"
        )
        values += [name, value]
    if query.since is not None:
        wheres.append("created >= ?")
        values.append(query.since)
    if query.until is not None:
        wheres.append("created <= ?")
        values.append(query.until)


def _info(row: tuple[Any, ...]) -> RunInfo:
    (
        run,
        workflow,
        workflow_kind,
        version,
        state,
        tags,
        parent,
        created,
        updated,
        finished,
        attempts,
        generation,
        steps,
        error,
        opened_record,
        attached_record,
    ) = row
    params: dict[str, Any] = {}
    owner: Owner | None = None
    forked: str | None = None
    if opened_record is not None:
        # The record itself, because JSON has fewer kinds of values than MessagePack.
        opened = decode_entry(opened_record).record
        assert isinstance(opened, RunOpened)
        params, forked = opened.params, opened.forked
    if attached_record is not None:
        attached = decode_entry(attached_record).record
        assert isinstance(attached, RunAttached)
        owner = attached.owner
    return RunInfo(
        run=run,
        workflow=workflow,
        state=state,
        workflow_kind=workflow_kind,
        version=version,
        params=params,
        tags=dict(tags),
        parent=parent,
        created_at=created,
        updated_at=updated,
        finished_at=finished,
        attempts=attempts,
        generation=generation,
        steps=steps,
        error=error,
        owner=owner,
        alive=False,
        forked=forked,
    )
