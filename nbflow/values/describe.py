"""What people see of a recorded value without loading it: type, size, a short preview, a table's columns.

A preview never calls a `__repr__` that somebody else wrote, except of a few
classes known to be cheap: it may be slow, print, or raise.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nbflow.core.loaded import loaded
from nbflow.core.model import Column

if TYPE_CHECKING:
    from nbflow.values.frames import Owned
    from nbflow.values.pickling import EnvelopePickler

PREVIEW = 200
_ITEMS = 6
_DEPTH = 3

#: Classes whose repr is short, cheap and says what one wants to know.
_CHEAP = {
    "datetime.datetime",
    "datetime.date",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "zoneinfo.ZoneInfo",
    "pandas.Timestamp",
    "pandas.Timedelta",
    "pandas._libs.tslibs.timestamps.Timestamp",
    "pandas._libs.tslibs.timedeltas.Timedelta",
    "re.Pattern",
}


def type_name(value: Any) -> str:
    """Return the name of a value's class as it is written in code: `int`, `pandas.DataFrame`.

    >>> type_name(1), type_name([])
    ('int', 'list')
    """
    cls = type(value)
    module = cls.__module__
    if module in ("builtins", "__main__"):
        return cls.__qualname__
    top = module.partition(".")[0]
    if module != top and getattr(sys.modules.get(top), "__dict__", {}).get(cls.__name__) is cls:
        module = top
    return f"{module}.{cls.__qualname__}"


def preview(value: Any) -> str:
    """Return one line of at most 200 characters about a value; never raises and runs no foreign code.

    >>> preview({"a": [1, 2]})
    "{'a': [1, 2]}"
    """
    try:
        text = _text(value, _DEPTH)
    except Exception as error:  # noqa: BLE001 - another's object may do anything; a preview must not
        text = f"<{type(value).__qualname__}: no preview, {type(error).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"


def _text(value: Any, depth: int) -> str:
    cls = type(value)
    if cls is str:
        return repr(value if len(value) <= PREVIEW else value[:PREVIEW])
    if cls is int:
        return repr(value) if value.bit_length() <= 512 else f"<int of {value.bit_length():,} bits>"
    if cls in (float, bool, type(None), complex, range, slice, type(Ellipsis)):
        return repr(value)
    if cls in (bytes, bytearray):
        return f"{bytes(value[:40])!r}" if len(value) <= 40 else f"{cls.__name__} of {len(value):,} bytes"
    if cls in (list, tuple, set, frozenset, dict):
        return _container(value, depth)
    if isinstance(value, type):
        return f"class {value.__qualname__}"
    name = type_name(value)
    table = _table(value, name)
    if table is not None:
        return table
    if name in _CHEAP:
        return repr(value)
    return _object(value, name, depth)


def _container(value: Any, depth: int) -> str:
    cls = type(value)
    if not value:
        return repr(value)
    if depth == 0:
        return f"{cls.__name__} of {len(value):,}"
    shown = []
    for number, item in enumerate(value):
        if number == _ITEMS:
            shown.append(f"… {len(value) - _ITEMS:,} more")
            break
        text = _text(item, depth - 1)
        shown.append(f"{text}: {_text(value[item], depth - 1)}" if cls is dict else text)
    inner = ", ".join(shown)
    if cls is tuple:
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if cls is frozenset:
        return f"frozenset({{{inner}}})"
    return f"[{inner}]" if cls is list else f"{{{inner}}}"


def _table(value: Any, name: str) -> str | None:
    """Describe arrays and tables by their shape; None for anything else."""
    numpy, pandas = loaded("numpy"), loaded("pandas")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            shape = " × ".join(f"{size:,}" for size in value.shape) or "0-d"
            return f"{name.removeprefix('numpy.')} {shape} {value.dtype}"
        if isinstance(value, numpy.generic) and value.dtype.kind in "biufcmMUS":
            return (
                f"{value.item()!r} ({value.dtype})"
                if value.dtype.kind not in "mM"
                else f"{value} ({value.dtype})"
            )
    if pandas is not None:
        if isinstance(value, pandas.DataFrame):
            return _size(value.shape[0], value.shape[1])
        if isinstance(value, (pandas.Series, pandas.Index)):
            label = f" {value.name!r}" if type(value.name) is str else ""
            return f"{type(value).__name__}{label} of {len(value):,} {value.dtype}"
    top = name.partition(".")[0]
    if top == "pyarrow" and type(value).__name__ in ("Table", "RecordBatch"):
        return _size(value.num_rows, value.num_columns)
    if top == "pyarrow" and hasattr(value, "type") and hasattr(value, "__len__"):
        return f"{name} of {len(value):,} {value.type}"
    if top == "polars" and type(value).__name__ == "DataFrame":
        return _size(value.height, value.width)
    if top == "polars" and type(value).__name__ == "Series":
        return f"Series {value.name!r} of {len(value):,} {value.dtype}"
    if top in ("scipy", "torch") and isinstance(getattr(value, "shape", None), tuple):
        return (
            f"{name} {' × '.join(f'{size:,}' for size in value.shape)} {getattr(value, 'dtype', '')}".rstrip()
        )
    return None


def _size(rows: int, columns: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'} × {columns:,} column{'' if columns == 1 else 's'}"


def _object(value: Any, name: str, depth: int) -> str:
    try:
        qualname = object.__getattribute__(value, "__qualname__")
    except (AttributeError, TypeError):
        qualname = None
    if type(qualname) is str:
        return f"{type(value).__name__} {qualname}"
    if isinstance(value, type(sys)):
        return f"module {value.__name__}"
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        attributes = None
    short = type(value).__qualname__
    fields = getattr(type(value), "_fields", None)
    if isinstance(value, tuple) and type(fields) is tuple:
        attributes = dict(zip(fields, tuple.__iter__(value), strict=False))
    if isinstance(value, BaseException):
        return f"{short}({', '.join(_text(item, 1) for item in value.args[:3])})"
    if type(attributes) is not dict or not attributes:
        return f"<{name}>"
    if depth == 0:
        return f"{short}(…)"
    shown = [
        f"{key}={_text(item, depth - 1)}"
        for key, item in list(attributes.items())[:_ITEMS]
        if type(key) is str
    ]
    more = ", …" if len(attributes) > _ITEMS else ""
    return f"{short}({', '.join(shown)}{more})"


def table_facts(value: Any, pickler: EnvelopePickler) -> tuple[int | None, tuple[Column, ...] | None]:
    """Return the rows and columns of a table, with the leaf of each column; (None, None) for other values."""
    pandas = loaded("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        found = pickler.columns.get(id(vars(value)["_mgr"]), {})
        dtypes = list(value.dtypes)
        columns = tuple(
            Column(_label(label), str(dtypes[place]), _leaf(found.get(place), pickler))
            for place, label in enumerate(value.columns)
        )
        return len(value), columns
    top = type(value).__module__.partition(".")[0]
    if top == "pyarrow" and type(value).__name__ in ("Table", "RecordBatch"):
        columns = tuple(Column(field.name, str(field.type)) for field in value.schema)
        leaves = [pickler.arrow_columns.get((id(value), place)) for place in range(len(columns))]
        return value.num_rows, _with_leaves(columns, leaves, pickler)
    if top == "polars" and type(value).__name__ == "DataFrame":
        series = pickler.polars_columns.get(id(value), [])
        columns = tuple(Column(name, str(dtype)) for name, dtype in value.schema.items())
        return value.height, _with_leaves(
            columns, [pickler.polars_leaves.get(id(s)) for s in series], pickler
        )
    return None, None


def _label(label: Any) -> str:
    return label if type(label) is str else preview(label)


def _with_leaves(
    columns: tuple[Column, ...], leaves: list[int | None], pickler: EnvelopePickler
) -> tuple[Column, ...]:
    if len(leaves) != len(columns):
        return columns
    return tuple(
        column if number is None else Column(column.name, column.type, pickler.leaves[number].digest)
        for column, number in zip(columns, leaves, strict=True)
    )


def _leaf(column: Owned | None, pickler: EnvelopePickler) -> bytes | None:
    """Return the leaf that *is* this column; None where it takes several, or lies in the envelope."""
    if column is None:
        return None
    if column.view is not None:
        return pickler.leaf_of_view(column.view)
    if column.leaf is not None:
        return pickler.leaves[column.leaf].digest
    chunked = getattr(column.array, "_pa_array", None)
    if chunked is not None:
        number = pickler.arrow_leaves.get(id(chunked))
        return None if number is None else pickler.leaves[number].digest
    # Dates are one array of numbers; of a categorical or a masked array that array is not the values.
    if len(column.parts) == 1 and type(column.array).__name__ in ("DatetimeArray", "TimedeltaArray"):
        return _leaf(column.parts[0], pickler)
    return None
