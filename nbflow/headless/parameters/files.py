"""Parameter files: CSV, JSON lines, JSON, YAML and Parquet become rows, or one error that names the place.

Each format is read by its own library. What differs from that library's
defaults, and why, stands at the function that reads the format.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import UsageError
from nbflow.headless.parameters.rows import Place, Row, check_names, is_missing, plain, row_of

if TYPE_CHECKING:
    import pyarrow as pa

#: An unnamed index that pandas wrote into a Parquet file; nobody meant it as a parameter.
_INDEX = "__index_level_"


class Grid(dict[str, list[Any]]):
    """Axes that a file spells out: every combination is one row."""


def read_file(path: Path) -> list[Row] | Grid:
    """Return what a parameter file holds: rows, or the axes of a grid.

    Raises:
        UsageError: naming file, line or row, and column.
    """
    file = str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{file}: parameters are not read from {path.suffix or 'files without a suffix'}.",
            hint=f"Known are {', '.join(READERS)}.",
            file=file,
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {file}.", hint="Look at the path.", file=file) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}.", hint="Look at the path.", file=file) from error
    try:
        found = reader(data, file)
    except RecursionError as error:
        raise UsageError(
            f"{file} is nested too deeply.", hint="Pass the path of a file instead.", file=file
        ) from error
    if not found:
        raise UsageError(f"{file} holds no parameters.", hint="Write one row for each notebook.", file=file)
    return found


def resolve(text: str) -> Any:
    """Return what a text means, as papermill's `-p` understands it.

    >>> [resolve(text) for text in ("True", "None", "12", "1e3", "007", "abc")]
    [True, None, 12, 1000.0, 7, 'abc']
    """
    known = {"True": True, "False": False, "None": None}
    if text in known:
        return known[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _decode(data: bytes, file: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        UsageError: it is something else; names the line.
    """
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise Place(file, "line", 1).problem("this is UTF-16.", hint="Save the file as UTF-8.")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Place(file, "line", line).problem(
            f"the byte 0x{data[error.start]:02x} is not UTF-8.", hint="Save the file as UTF-8."
        ) from error


def _read_csv(data: bytes, file: str, delimiter: str | None = None) -> list[Row]:
    r"""Read CSV: the first line names the parameters, an empty cell leaves one out.

    Values are read as papermill's `-p` reads them, quoted ones too: CSV's quotes
    are for commas and line breaks and say nothing of types. Where "007" must stay
    a text, use JSON lines or YAML. The delimiter is a comma; ";" or a tab if the
    header has these and no comma. Empty lines count for nothing.

    >>> _read_csv(b"year,name\n2013,\n", "params.csv")
    [Row(values={'year': 2013}, origin='params.csv, line 2')]
    """
    text = _decode(data, file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _delimiter(text), strict=True)
    names: list[str] | None = None
    rows: list[Row] = []
    for line, cells in _records(reader, file):
        place = Place(file, "line", line)
        if not cells:
            continue
        if names is None:
            names = check_names(cells, place)
        elif len(cells) != len(names):
            more = len(cells) > len(names)
            raise place.problem(
                f"{len(cells)} cell{'' if len(cells) == 1 else 's'}, but the header names {len(names)} parameters.",
                column=len(names) + 1 if more else names[len(cells)],
                hint="Put quotes round a value that holds the delimiter."
                if more
                else "Leave a cell empty to leave its parameter out, but keep the delimiter.",
            )
        else:
            given = {name: resolve(cell) for name, cell in zip(names, cells, strict=True) if cell}
            rows.append(Row({name: plain(value, place, name) for name, value in given.items()}, str(place)))
    return rows


def _records(reader: Any, file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV reader, each with the line on which it begins."""
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Place(file, "line", line).problem(
                f"this is no CSV: {error}.",
                hint='Look for a quote that is not closed; write "" for one in a text.',
            ) from error


def _delimiter(text: str) -> str:
    header = next((line for line in text.splitlines() if line.strip()), "")
    return "," if "," in header else ";" if ";" in header else "\t" if "\t" in header else ","


def _read_tsv(data: bytes, file: str) -> list[Row]:
    """Read CSV whose delimiter is the tab, whatever its header says."""
    return _read_csv(data, file, "\t")


def _read_lines(data: bytes, file: str) -> list[Row]:
    r"""Read JSON lines: one object a line; null is None; empty lines count for nothing.

    >>> _read_lines(b'{"year": 2013, "zip": "007"}\n', "params.jsonl")
    [Row(values={'year': 2013, 'zip': '007'}, origin='params.jsonl, line 1')]
    """
    rows = []
    for line, text in enumerate(_decode(data, file).split("\n"), start=1):
        if not text.strip():
            continue
        place = Place(file, "line", line)
        rows.append(_mapping(_json(text, place, lines=False), place))
    return rows


def _read_json(data: bytes, file: str) -> list[Row] | Grid:
    """Read JSON: a list of objects is rows, an object of lists is a grid."""
    found = _json(_decode(data, file), Place(file), lines=True)
    if isinstance(found, list):
        rows = ((each, Place(file, "row", number)) for number, each in enumerate(found, start=1))
        return [_mapping(each, place) for each, place in rows]
    return _grid(found, Place(file))


def _json(text: str, place: Place, *, lines: bool) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise place.problem(
                "the name is there twice in one object.", column=twice, hint="Take one of the two out."
            )
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = Place(place.file, "line", error.lineno) if lines else place
        raise where.problem(f"this is no JSON: {error.msg}.", column=error.colno) from error
    except UsageError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise place.problem(f"this is no JSON for parameters: {error}.") from error


def _read_yaml(data: bytes, file: str) -> list[Row] | Grid:
    """Read YAML: a list of mappings is rows, a mapping of lists is a grid. Dates stay texts, as in papermill."""
    import yaml
    from papermill.iorw import NoDatesSafeLoader

    text = _decode(data, file)
    try:
        loader = NoDatesSafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return []
            for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                _unique(each, file)
            found = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Place(file, "line", mark.line + 1) if mark else Place(file)
        raise where.problem(
            f"this is no YAML: {error.problem or error.context}.", column=mark.column + 1 if mark else None
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        # Beside its own errors PyYAML raises what int(), float() and the like do with a tagged value.
        if isinstance(error, UsageError):
            raise
        raise Place(file).problem(f"this is no YAML for parameters: {error}.") from error
    if isinstance(found, list):
        lines = [each.start_mark.line + 1 for each in node.value]
        places = (Place(file, "line", line) for line in lines)
        return [_mapping(each, place) for each, place in zip(found, places, strict=True)]
    return _grid(found, Place(file))


def _unique(node: Any, file: str) -> None:
    """Refuse a name that a mapping has twice: YAML would take the last one."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise Place(file, "line", key.start_mark.line + 1).problem(
                    "the name is there twice in one mapping.",
                    column=key.value,
                    hint="Take one of the two out.",
                )
            seen.add(key.value)


def _mapping(found: Any, place: Place) -> Row:
    if not isinstance(found, Mapping):
        raise place.problem(
            f"a row is names with values, not a {type(found).__name__}.", hint='Write {"name": value}.'
        )
    return row_of(found, place)


def _grid(found: Any, place: Place) -> Grid:
    if not isinstance(found, dict):
        raise place.problem(
            f"this is neither a list of rows nor a grid but a {type(found).__name__}.",
            hint="Write a list of mappings, or one mapping whose values are lists.",
        )
    grid = Grid()
    for name in check_names(found, place):
        values = found[name]
        if not isinstance(values, list) or not values:
            raise place.problem(
                "an axis of a grid is a list with one value or more.",
                column=name,
                hint="Write a list here, or a list of mappings for rows.",
            )
        grid[name] = [plain(value, place, name) for value in values]
    return grid


def _read_parquet(data: bytes, file: str) -> list[Row]:
    """Read Parquet; null and NaN leave a parameter out, timestamps become ISO texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Place(file).problem(f"this is no Parquet: {error}.") from error
    return rows_of_arrow(table, file)


def rows_of_arrow(table: pa.Table, file: str) -> list[Row]:
    """Return the rows of an Arrow table, see `_read_parquet`.

    Raises:
        UsageError: naming row and column.
    """
    import pyarrow as pa

    columns = [index for index, name in enumerate(table.column_names) if not name.startswith(_INDEX)]
    names = check_names((table.column_names[index] for index in columns), Place(file))
    lists = []
    for name, index in zip(names, columns, strict=True):
        try:
            lists.append(table.column(index).to_pylist())
        except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
            raise Place(file).problem(f"its values cannot be read: {error}.", column=name) from error
    return rows_of_columns(names, lists, table.num_rows, file)


def rows_of_columns(names: list[str], columns: list[list[Any]], count: int, file: str) -> list[Row]:
    """Return the rows of a table given by its columns; what is missing there is left out."""
    rows = []
    for number in range(count):
        place = Place(file, "row", number + 1)
        given = ((name, column[number]) for name, column in zip(names, columns, strict=True))
        values = {name: plain(value, place, name) for name, value in given if not is_missing(value)}
        rows.append(Row(values, str(place)))
    return rows


#: Suffix → how the file is read.
READERS: dict[str, Callable[[bytes, str], list[Row] | Grid]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".parquet": _read_parquet,
}
