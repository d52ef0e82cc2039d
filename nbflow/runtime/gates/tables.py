"""Frames of all kinds as a page shows them: a window of rows as texts, the names and types of columns, the total.

Never the whole frame. Nothing is imported that is not there: who has a polars frame has imported polars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbflow.core.errors import UsageError

#: Rows of a window where nobody says how many, columns that are shown, and characters of a cell.
ROWS, COLUMNS, CELL = 20, 60, 200

#: A table as it was taken apart: names and types of columns, rows of the window, how many rows there are.
Window = tuple[list[tuple[str, str]], list[tuple[Any, ...]], int]


def table_exhibit(frame: Any, offset: int = 0, limit: int = ROWS, *, title: str = "") -> dict[str, Any]:
    """Return rows of a table as an exhibit, from `offset` on and `limit` at the most.

    Takes frames and series of pandas and polars (lazy ones too), Arrow tables and
    record batches, DuckDB relations, and NumPy arrays of one or two dimensions.

    Raises:
        UsageError: it is no table.

    >>> import numpy
    >>> table = table_exhibit(numpy.array([[1.5, float("nan")]]))
    >>> table["columns"], table["rows"], table["total"]
    ([{'name': '0', 'type': 'float64'}, {'name': '1', 'type': 'float64'}], [['1.5', None]], 1)
    """
    take = _way(frame)
    if take is None:
        raise UsageError(f"A {type(frame).__qualname__} is no table.")
    offset, limit = max(0, offset), max(0, limit)
    columns, rows, total = take(frame, offset, limit)
    said = [title] if title else []
    if len(columns) > COLUMNS:
        said.append(f"the first {COLUMNS} of {len(columns)} columns")
    found: dict[str, Any] = {
        "kind": "table",
        "columns": [{"name": clean(name)[:CELL], "type": clean(kind)} for name, kind in columns[:COLUMNS]],
        "rows": [[cell(value) for value in row[:COLUMNS]] for row in rows],
        "total": total,
        "offset": offset,
    }
    if said:
        found["title"] = clean("; ".join(said))
    return found


def is_table(value: Any) -> bool:
    """Tell whether `table_exhibit` takes it."""
    return _way(value) is not None


def clean(text: str) -> str:
    """Return a text that JSON can hold: halves of characters are replaced."""
    return text.encode("utf-8", "replace").decode()


def cell(value: Any) -> str | None:
    """Return a value as the text in its cell; None where there is none.

    >>> cell(0.1 + 0.2), cell(float("nan")), cell(None), cell("x" * 300)[-2:]
    ('0.3', None, None, 'x…')
    """
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, float):
        return None if value != value else f"{value:.10g}"  # noqa: PLR0124 - NaN in any dress
    text = clean(value if isinstance(value, str) else str(value))
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def kinds_of(value: Any) -> set[tuple[str, str]]:
    """Return the library and name of each class that an object is of."""
    return {(base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__}


def _way(value: Any) -> Callable[[Any, int, int], Window] | None:
    kinds = kinds_of(value)
    for kind, take in _WAYS.items():
        if kind in kinds:
            return take if kind != ("numpy", "ndarray") or 1 <= value.ndim <= 2 else None
    return None


def _pandas(frame: Any, offset: int, limit: int) -> Window:
    window = frame.iloc[offset : offset + limit]
    columns: list[tuple[str, str]] = []
    values: list[Sequence[Any]] = []
    if type(frame.index).__name__ != "RangeIndex":
        for level in range(frame.index.nlevels):
            part = window.index.get_level_values(level)
            columns.append(("" if part.name is None else str(part.name), str(part.dtype)))
            values.append(part.tolist())
    for place in range(min(frame.shape[1], COLUMNS)):
        column = window.iloc[:, place]
        columns.append((_name(frame.columns[place]), str(column.dtype)))
        values.append(column.tolist())
    # The others are counted, and not looked at.
    columns += [(_name(name), "") for name in frame.columns[COLUMNS:]]
    return columns, _rows(values, len(window)), len(frame)


def _name(label: Any) -> str:
    return " / ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _rows(columns: Sequence[Sequence[Any]], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


def _pandas_series(series: Any, offset: int, limit: int) -> Window:
    return _pandas(series.to_frame(series.name if series.name is not None else "value"), offset, limit)


def _polars(frame: Any, offset: int, limit: int) -> Window:
    window = frame.slice(offset, limit)
    kinds = [(name, str(kind)) for name, kind in zip(frame.columns, frame.dtypes, strict=True)]
    return kinds, window.rows(), frame.height


def _polars_series(series: Any, offset: int, limit: int) -> Window:
    return _polars(series.to_frame(series.name or "value"), offset, limit)


def _polars_lazy(frame: Any, offset: int, limit: int) -> Window:
    import polars as pl  # loaded already by who made the frame

    window = frame.slice(offset, limit).collect()
    columns, rows, _ = _polars(window, 0, limit)
    counted = frame.select(pl.len()).collect().item()
    return columns, rows, int(counted)


def _arrow(table: Any, offset: int, limit: int) -> Window:
    window = table.slice(offset, limit)
    columns = [(field.name, str(field.type)) for field in table.schema]
    return columns, _rows([column.to_pylist() for column in window.columns], window.num_rows), table.num_rows


def _duckdb(relation: Any, offset: int, limit: int) -> Window:
    columns = [(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)]
    counted = relation.aggregate("count(*)").fetchall()
    return columns, relation.limit(limit, offset).fetchall(), int(counted[0][0])


def _numpy(array: Any, offset: int, limit: int) -> Window:
    window = array[offset : offset + limit]
    if array.dtype.names:
        columns = [(name, str(array.dtype[name])) for name in array.dtype.names]
        return columns, [tuple(row) for row in window.tolist()], len(array)
    if array.ndim == 1:
        return [("value", str(array.dtype))], [(value,) for value in window.tolist()], len(array)
    columns = [(str(place), str(array.dtype)) for place in range(array.shape[1])]
    return columns, [tuple(row) for row in window[:, :COLUMNS].tolist()], len(array)


_WAYS: dict[tuple[str, str], Callable[[Any, int, int], Window]] = {
    ("pandas", "DataFrame"): _pandas,
    ("pandas", "Series"): _pandas_series,
    ("polars", "DataFrame"): _polars,
    ("polars", "Series"): _polars_series,
    ("polars", "LazyFrame"): _polars_lazy,
    ("pyarrow", "Table"): _arrow,
    ("pyarrow", "RecordBatch"): _arrow,
    ("duckdb", "DuckDBPyRelation"): _duckdb,
    ("_duckdb", "DuckDBPyRelation"): _duckdb,
    ("numpy", "ndarray"): _numpy,
}
