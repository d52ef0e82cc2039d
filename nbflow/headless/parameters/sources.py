"""The parameters of a batch: rows from files, axes and Python objects, multiplied where there are several.

params.csv                one row a line
year=2013,2014            an axis: one row a value
params.csv seed=1,2,3     every line with every seed, the last one changing fastest
"""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbflow.core.errors import UsageError
from nbflow.headless.parameters.files import Grid, read_file, resolve, rows_of_arrow, rows_of_columns
from nbflow.headless.parameters.rows import Place, Row, check_names, plain, row_of

__all__ = ["Row", "grid_rows", "read_rows", "rows_from", "rows_of"]

#: More rows than this are a slip of the pen: each is a notebook with a kernel of its own.
_MOST = 1_000_000

#: What errors call the objects that were given in Python.
_GIVEN = "parameters"


def read_rows(path: str | Path) -> list[Row]:
    r"""Read parameters from a file: .csv, .tsv, .jsonl, .ndjson, .json, .yaml, .yml or .parquet.

    JSON and YAML hold a list of mappings (rows) or one mapping of lists (a grid).

    Raises:
        UsageError: naming file, line or row, and column.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "params.csv"
    >>> _ = path.write_text("year,name\n2013,JFK\n")
    >>> read_rows(path)[0].values
    {'year': 2013, 'name': 'JFK'}
    """
    found = read_file(Path(path))
    return (
        _combined([_axis(name, values) for name, values in found.items()])
        if isinstance(found, Grid)
        else found
    )


def grid_rows(axes: Iterable[str]) -> list[Row]:
    """Return every combination of axes such as "a=1,2,3", in the order given, the last one changing fastest.

    Values are read as papermill's `-p` reads them; one with a comma stands in
    quotes: 'name="x,y",z'.

    Raises:
        UsageError: an axis without name or values, or one that is there twice.

    >>> [row.values for row in grid_rows(["a=1,2", "b=x"])]
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    return _combined([_read_axis(text) for text in axes])


def rows_from(sources: Sequence[str]) -> list[Row]:
    """Return every combination of several sources, each the path of a file or an axis "a=1,2,3".

    Raises:
        UsageError: as `read_rows` and `grid_rows`; two sources give the same parameter.
    """
    return _combined([_source(text) for text in sources])


def rows_of(given: Any) -> list[Row]:
    """Return the rows that a Python object stands for.

    It is the path of a file; an axis "a=1,2,3"; a DataFrame of pandas or polars or an
    Arrow table, whose index does not count and whose missing values are left out; a
    mapping of names to lists, a grid; or an iterable of mappings, of rows, or of paths
    and axes, which multiply.

    Raises:
        UsageError: naming row and column.

    >>> [row.values for row in rows_of({"year": [2013, 2014], "name": ["JFK"]})]
    [{'year': 2013, 'name': 'JFK'}, {'year': 2014, 'name': 'JFK'}]
    """
    if isinstance(given, (str, os.PathLike)):
        return rows_from([os.fspath(given)])
    if type(given).__name__ == "DataFrame" and type(given).__module__.startswith("pandas"):
        names = check_names(given.columns, Place(_GIVEN))
        columns = [given.iloc[:, index].tolist() for index in range(len(names))]
        return _some(rows_of_columns(names, columns, len(given), _GIVEN))
    if hasattr(given, "__arrow_c_stream__"):
        import pyarrow as pa

        return _some(rows_of_arrow(pa.table(given), _GIVEN))
    if isinstance(given, Mapping):
        place = Place(_GIVEN)
        return _combined([_axis(name, _listed(given[name], name)) for name in check_names(given, place)])
    if not isinstance(given, Iterable):
        raise UsageError(
            f"Parameters are a file, a table, a mapping of lists or a list of mappings, not a {type(given).__name__}."
        )
    every = list(given)
    if every and all(isinstance(each, (str, os.PathLike)) for each in every):
        return rows_from([os.fspath(each) for each in every])
    return _some([_given(each, Place(_GIVEN, "row", number)) for number, each in enumerate(every, start=1)])


def _given(each: Any, place: Place) -> Row:
    if isinstance(each, Row):
        return each
    if not isinstance(each, Mapping):
        raise place.problem(f"a row is a mapping of names to values, not a {type(each).__name__}.")
    return row_of(each, place)


def _some(rows: list[Row]) -> list[Row]:
    if not rows:
        raise UsageError("There are no parameters.", hint="Give one row for each notebook.")
    return rows


def _listed(values: Any, name: str) -> list[Any]:
    place = Place(_GIVEN)
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise place.problem(
            f"a mapping is a grid, and its values are lists, not a {type(values).__name__}.",
            column=name,
            hint="Write [value], or give a list of mappings.",
        )
    listed = [plain(value, place, name) for value in values]
    if not listed:
        raise place.problem("the list is empty.", column=name, hint="Give one value or more.")
    return listed


def _source(text: str) -> list[Row]:
    name, equals, _ = text.partition("=")
    if equals and name.strip().isidentifier():
        return _read_axis(text)
    if equals and not os.path.exists(text):  # noqa: PTH110 - pathlib raises where a name is too long
        return _read_axis(text)  # which says what is wrong with the name
    return read_rows(text)


def _read_axis(text: str) -> list[Row]:
    name, equals, values = text.partition("=")
    place = Place(text)
    if not equals:
        raise place.problem("an axis is a name and its values.", hint="Write name=1,2,3.")
    [name] = check_names([name], place)
    try:
        records = list(csv.reader([values], strict=True))
    except csv.Error as error:
        raise place.problem(
            f"its values are no CSV: {error}.", column=name, hint='Write "" for a quote within quotes.'
        ) from error
    cells = records[0] if records else []
    if not cells or not all(cells):
        raise place.problem(
            "it has no values." if len(cells) < 2 else f"value {cells.index('') + 1} is empty.",
            column=name,
            hint="Write name=1,2,3; a file can leave a parameter out, an axis cannot.",
        )
    return _axis(name, [plain(resolve(cell), place, name) for cell in cells])


def _axis(name: str, values: list[Any]) -> list[Row]:
    return [Row({name: value}, f"{name}={value}") for value in values]


def _combined(sources: list[list[Row]]) -> list[Row]:
    """Return every combination of a row of each source.

    Raises:
        UsageError: two sources give the same parameter; more combinations than anybody can mean.
    """
    if not sources:
        raise UsageError("There are no parameters.", hint="Give a file, or an axis such as year=2013,2014.")
    names: dict[str, str] = {}
    for rows in sources:
        own = {name: row.origin for row in rows for name in row.values}
        for name, origin in own.items():
            if name in names:
                raise UsageError(
                    f"The parameter {name} is given twice: by {names[name]} and by {origin}.",
                    hint="Take it out of one of the two.",
                    column=name,
                )
        names.update(own)
    count = math.prod(map(len, sources))
    if count > _MOST:
        raise UsageError(f"That makes {count:,} notebooks, more than {_MOST:,}.", hint="Run fewer at a time.")
    if len(sources) == 1:
        return sources[0]
    combined = []
    for rows_ in itertools.product(*sources):
        values = {name: value for row in rows_ for name, value in row.values.items()}
        combined.append(Row(values, " ".join(row.origin for row in rows_)))
    return combined
