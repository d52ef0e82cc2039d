"""SQL over recorded frames: `step.variable` and `"run".step.variable` as tables of a query.

The store is attached read-only. Around it stands an in-memory catalog in which
every frame that the query names gets a view: over segment tables where the
frame is compacted, over Arrow arrays of its raw leaves where it is not yet, and
over the decoded value where a column has no native type.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import CorruptLeaf, UnknownRun, UnknownStep, UsageError
from nbflow.core.model import LeafRef, StepCompleted
from nbflow.store import compact
from nbflow.store.proof import proven
from nbflow.values import native

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

#: Schemas of the store itself; every other schema in a query is the name of a step.
_OWN = frozenset({"main", "nbflow", "columns", "frames", "information_schema", "pg_catalog"})
#: Catalogs of DuckDB and the store; every other catalog in a query is a run's id or its beginning.
_CATALOGS = frozenset({"", "store", "memory", "system", "temp"})

#: Gives the bytes of a leaf of a run, from its folder; raises CorruptLeaf when it is not there.
FetchRaw = Callable[[str, LeafRef], memoryview]


@dataclass(frozen=True)
class Name:
    """A table that a query names: `"run".step.variable`, run "" when it is left out."""

    run: str
    step: str
    variable: str


@dataclass(frozen=True)
class _Frame:
    """One recorded frame: the record that holds it, and its columns with their leaves."""

    run: str
    seq: int
    step: str
    variable: str
    columns: tuple[tuple[str, bytes | None], ...]


def answer(
    connection: duckdb.DuckDBPyConnection, query: str, *, run: str | None, fetch: FetchRaw
) -> pd.DataFrame:
    """Run a query over the store, attached read-only, and the frames that the query names.

    Raises:
        UnknownStep: a table names no recorded frame; the message lists what there is.
        UnknownRun: a catalog names no run, or several.
        UsageError: the query is wrong; the message is DuckDB's.
    """
    import duckdb

    try:
        _prepare(connection, query, run=run, fetch=fetch)
        result = connection.execute(query)
        with warnings.catch_warnings():
            # DuckDB 2.0 converts times with zones in a way that pandas 3 calls deprecated.
            warnings.simplefilter("ignore")
            return result.df()
    except duckdb.CatalogException as error:
        text = str(error)
        if "Table with name" in text:
            raise _unknown(connection, text.splitlines()[0], run) from error
        raise UsageError(f"The query does not work: {text}") from error
    except (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError) as error:
        raise UsageError(f"The query does not work: {error}") from error


def _prepare(connection: duckdb.DuckDBPyConnection, query: str, *, run: str | None, fetch: FetchRaw) -> None:
    """Make every frame that the query names a table of the connection."""
    made: set[tuple[str, str, str]] = set()
    for catalog, schema, table in _tables(connection, query):
        key = (catalog.lower(), schema.lower(), table.lower())
        if not schema or key in made or catalog.lower() in _CATALOGS - {""}:
            continue
        made.add(key)
        if schema.lower() in _OWN:
            _forward(connection, catalog, schema, table)
            continue
        frame = _find(connection, Name(catalog, schema, table), run)
        body = _select(connection, frame, fetch, number=len(made))
        if catalog:
            connection.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {quoted(catalog)}")
        where = f"{quoted(catalog or 'memory')}.{quoted(schema)}"
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {where}")
        connection.execute(f"CREATE OR REPLACE VIEW {where}.{quoted(table)} AS {body}")
    # From here on names without a catalog are looked for in memory first, as the query means them.
    connection.execute("SET search_path = 'memory.main,store.main'")


def quoted(name: str) -> str:
    """Return an identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'


def _tables(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[str, str, str]]:
    """Return catalog, schema and name of every table that the query mentions."""
    plain = re.sub(r"(?is)^\s*explain(\s+analyze)?\s+", "", query)
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [plain]).fetchall()[0][0])
    if not tree.get("error"):
        return list(_walk(tree))
    # PIVOT and the like have no JSON form: take every dotted name that could be a table.
    part = r'("(?:[^"]|"")+"|[A-Za-z_]\w*)'
    found = []
    for match in re.finditer(rf"(?i)\b(?:from|join|pivot|unpivot|,)\s*(?:{part}\.)?{part}\.{part}", plain):
        names = [
            name[1:-1].replace('""', '"') if name and name[0] == '"' else name or ""
            for name in match.groups()
        ]
        found.append((names[0], names[1], names[2]))
    return found


def _walk(node: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node.get("catalog_name", ""), node.get("schema_name", ""), node.get("table_name", "")
        for value in node.values():
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def _forward(connection: duckdb.DuckDBPyConnection, catalog: str, schema: str, table: str) -> None:
    """Let `nbflow.event` mean the store's, though the default catalog is the one in memory."""
    if catalog or schema.lower() in {"main", "information_schema", "pg_catalog"}:
        return
    rows = connection.execute(
        "SELECT 1 FROM (SELECT schema_name, table_name AS name FROM duckdb_tables() "
        "WHERE database_name = 'store' "
        "UNION ALL SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = 'store') "
        "WHERE lower(schema_name) = lower(?) AND lower(name) = lower(?)",
        [schema, table],
    ).fetchall()
    if rows:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS memory.{quoted(schema)}")
        name = f"{quoted(schema)}.{quoted(table)}"
        connection.execute(f"CREATE OR REPLACE VIEW memory.{name} AS FROM store.{name}")


def _find(connection: duckdb.DuckDBPyConnection, name: Name, run: str | None) -> _Frame:
    wanted = _whole_id(connection, name.run) if name.run else run
    rows = connection.execute(
        """
        SELECT o.run, o.seq, o.step, o.variable, o.type, o.columns
        FROM store.nbflow.output o JOIN store.main.steps s ON s.run = o.run AND s.execution = o.execution
        WHERE (? IS NULL OR o.run = ?) AND lower(o.variable) = lower(?)
        AND (s.step = ? OR lower(s.name) = lower(?))
        ORDER BY o.run DESC, o.variable = ? DESC, s.step = ? DESC, s.current DESC, o.execution DESC LIMIT 1
        """,
        [wanted, wanted, name.variable, name.step, name.step, name.variable, name.step],
    ).fetchall()
    if not rows:
        asked = f"{_plain(name.step)}.{_plain(name.variable)}"
        raise _unknown(connection, f"{_where(wanted)} has no recorded frame {asked}.", wanted, asked)
    found, seq, step, variable, type_, columns = rows[0]
    if columns is None:
        raise UnknownStep(
            f"{name.step}.{name.variable} of run {found} is a {type_}, not a table.",
            run=found,
            step=step,
            hint="SQL reads data frames; nbflow.output(run, step, name) loads any value.",
        )
    return _Frame(found, seq, step, variable, tuple((c["name"], c["leaf"]) for c in columns))


def _whole_id(connection: duckdb.DuckDBPyConnection, prefix: str) -> str:
    rows = connection.execute(
        "SELECT DISTINCT run FROM store.nbflow.event WHERE kind = 'run.opened' AND starts_with(run, ?) "
        "ORDER BY run DESC",
        [prefix],
    ).fetchall()
    ids = [row[0] for row in rows]
    if prefix in ids:
        return prefix
    if len(ids) == 1 and len(prefix) >= 4:
        return str(ids[0])
    raise UnknownRun(
        f"{'No run begins' if not ids else f'{len(ids)} runs begin'} with {prefix!r}.",
        run=prefix,
        hint=f"They are {', '.join(ids[:5])}." if ids else "`nbflow runs` lists them.",
    )


def _where(run: str | None) -> str:
    return f"Run {run}" if run else "The store"


def _unknown(
    connection: duckdb.DuckDBPyConnection, message: str, run: str | None, asked: str = ""
) -> UnknownStep:
    rows = connection.execute(
        """
        SELECT DISTINCT s.name, o.variable FROM store.nbflow.output o
        JOIN store.main.steps s ON s.run = o.run AND s.execution = o.execution
        WHERE (? IS NULL OR o.run = ?) AND o.columns IS NOT NULL ORDER BY ALL
        """,
        [run, run],
    ).fetchall()
    known = [f"{_plain(step)}.{_plain(variable)}" for step, variable in rows]
    close = difflib.get_close_matches(asked, known, n=1)
    listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
    hint = f"Did you mean {close[0]}? " if close else ""
    return UnknownStep(
        message,
        run=run,
        step=asked.partition(".")[0] or None,
        hint=hint + (f"Recorded frames: {listed}." if known else f"{_where(run)} has recorded no frame."),
    )


def _plain(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else quoted(name)


def _select(connection: duckdb.DuckDBPyConnection, frame: _Frame, fetch: FetchRaw, *, number: int) -> str:
    """Return the SELECT that gives the frame's columns; what it needs besides the store is registered."""
    digests = {leaf for _, leaf in frame.columns if leaf is not None}
    kept = {d: k for d, k in compact.find(connection, digests).items() if k.kept == "column"}
    raw = _uses(connection, frame)
    missing = digests - kept.keys()
    if (
        not frame.columns
        or any(leaf is None for _, leaf in frame.columns)
        or any(d not in raw or native.column_type(raw[d].form) is None for d in missing)
    ):
        return _decoded(connection, frame, fetch, number)
    arrays: dict[bytes, Any] = {}
    for digest in missing:
        try:
            arrays[digest] = native.to_arrow(raw[digest].form, fetch(frame.run, raw[digest]))
        except CorruptLeaf as error:
            error.step = frame.step
            raise
    registered = ""
    places = {d: f"s{k.segment}.c{k.place}" for d, k in kept.items()}
    if arrays:
        import pyarrow as pa

        registered = f"nbflow_leaves_{number}"
        names = [f"c{place}" for place in range(len(arrays))]
        connection.register(registered, pa.table(list(arrays.values()), names=names))
        places.update({digest: f"{registered}.{name}" for digest, name in zip(arrays, names, strict=True)})
    sources = [
        f"store.columns.s{segment} AS s{segment}"
        for segment in sorted({k.segment or 0 for k in kept.values()})
    ]
    titles = [name for name, _ in frame.columns]
    chosen = [places[leaf] for _, leaf in frame.columns if leaf is not None]
    return select_columns(titles, chosen, sources + ([registered] if registered else []))


def select_columns(names: Iterable[str], places: Sequence[str], sources: Sequence[str]) -> str:
    """Return SELECT of columns at these places of sources of one length."""
    chosen = [f"{place} AS {quoted(name)}" for name, place in zip(unique(names), places, strict=True)]
    return f"SELECT {', '.join(chosen)} FROM {' POSITIONAL JOIN '.join(sources)}"


def _uses(connection: duckdb.DuckDBPyConnection, frame: _Frame) -> dict[bytes, LeafRef]:
    rows = connection.execute(
        "SELECT digest, size, file, byte, form FROM store.nbflow.leaf_use WHERE run = ? AND seq = ?",
        [frame.run, frame.seq],
    ).fetchall()
    return {row[0]: LeafRef(*row) for row in rows}


def _decoded(connection: duckdb.DuckDBPyConnection, frame: _Frame, fetch: FetchRaw, number: int) -> str:
    """Register the decoded frame."""
    registered = f"nbflow_value_{number}"
    connection.register(registered, decoded(connection, frame.run, frame.seq, frame.variable, fetch))
    return f"FROM {registered}"


def decoded(
    connection: duckdb.DuckDBPyConnection, run: str, seq: int, variable: str, fetch: FetchRaw
) -> pa.Table:
    """Decode the checkpoint that a record holds and return one of its frames as an Arrow table.

    Raises:
        Untrusted, CorruptRecord, CorruptLeaf, CannotRestore.
    """
    from nbflow.values.codec import decode

    [row] = connection.execute(
        "SELECT record, mac, signer FROM nbflow.event WHERE run = ? AND seq = ?", [run, seq]
    ).fetchall()
    record = proven(run, seq, *row).record
    assert isinstance(record, StepCompleted), "an output of another record"
    assert record.checkpoint is not None
    refs = {ref.digest: ref for ref in record.checkpoint.leaves}
    kept = compact.find(connection, refs)

    def leaf(digest: bytes) -> memoryview:
        if digest in kept:
            return compact.restore(connection, kept[digest], run=run)
        return fetch(run, refs[digest])

    return as_arrow(decode(record.checkpoint, leaf)[variable])


def as_arrow(value: Any) -> pa.Table:
    """Return a pandas, polars or Arrow table in types that DuckDB knows; what it cannot type becomes text."""
    import pyarrow as pa

    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    elif hasattr(value, "to_arrow"):
        value = value.to_arrow()
    if isinstance(value, pa.Table):
        names = [str(name) for name in value.column_names]
        arrays = [_plain_array(column, column.to_pylist) for column in value.columns]
    else:
        names = [str(name) for name in value.columns]
        arrays = [_series(value.iloc[:, place]) for place in range(len(names))]
    return pa.table(arrays, names=unique(names))


def _series(series: pd.Series[Any]) -> Any:
    import pyarrow as pa

    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _text(series)
    return _plain_array(array, lambda: series)


def _plain_array(array: Any, items: Callable[[], Iterable[Any]]) -> Any:
    import pyarrow as pa

    if isinstance(array.type, pa.BaseExtensionType):  # periods, intervals and what libraries register
        return _text(items())
    return array.cast(pa.float32()) if pa.types.is_float16(array.type) else array


def _text(items: Iterable[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if item is None else str(item) for item in items], pa.string())


def unique(names: Iterable[str]) -> list[str]:
    """Number names that DuckDB would take for the same: a, A_1."""
    taken: set[str] = set()
    found = []
    for name in names:
        free, count = name, 0
        while free.lower() in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free.lower())
        found.append(free)
    return found
