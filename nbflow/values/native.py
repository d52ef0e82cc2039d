"""What a leaf's bytes are, and how DuckDB holds the same values in a native column. For compaction.

A leaf's `form` is one of

- `numpy/<dtype>`: the items of a NumPy array, one after the other ("numpy/<f8");
- `arrow/<type>/<length>/<nulls>`: the layout of `nbflow.values.arrow`;
- "": opaque bytes.

`column_type` names the DuckDB type that keeps a form's values exactly, None where
there is none. It judges by form; some contents do not survive even then (NaN with a
payload, a bool that is neither 0 nor 1, a date beyond DuckDB's range). So whoever
compacts must read the column back, call `from_arrow` and compare digests before the raw
leaf may go.
"""

from __future__ import annotations

from typing import Any

_NUMPY_TYPES = {
    "<f8": "DOUBLE",
    "<f4": "FLOAT",
    "<f2": "FLOAT",
    "<i8": "BIGINT",
    "<i4": "INTEGER",
    "<i2": "SMALLINT",
    "|i1": "TINYINT",
    "<u8": "UBIGINT",
    "<u4": "UINTEGER",
    "<u2": "USMALLINT",
    "|u1": "UTINYINT",
    "|b1": "BOOLEAN",
    "<M8[s]": "TIMESTAMP_S",
    "<M8[ms]": "TIMESTAMP_MS",
    "<M8[us]": "TIMESTAMP",
    "<M8[ns]": "TIMESTAMP_NS",
    # INTERVAL counts microseconds, months and days apart: a whole number is exact.
    "<m8[s]": "BIGINT",
    "<m8[ms]": "BIGINT",
    "<m8[us]": "BIGINT",
    "<m8[ns]": "BIGINT",
}

_ARROW_TYPES = {
    "double": "DOUBLE",
    "float": "FLOAT",
    "int64": "BIGINT",
    "int32": "INTEGER",
    "int16": "SMALLINT",
    "int8": "TINYINT",
    "uint64": "UBIGINT",
    "uint32": "UINTEGER",
    "uint16": "USMALLINT",
    "uint8": "UTINYINT",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "large_string": "VARCHAR",
    "binary": "BLOB",
    "large_binary": "BLOB",
    "date32[day]": "DATE",
    "timestamp[s]": "TIMESTAMP_S",
    "timestamp[ms]": "TIMESTAMP_MS",
    "timestamp[us]": "TIMESTAMP",
    "timestamp[ns]": "TIMESTAMP_NS",
}


def numpy_form(dtype: Any) -> str:
    """Return the form of the items of a NumPy dtype; "" where compaction cannot use it."""
    name = dtype.str
    return f"numpy/{name}" if name in _NUMPY_TYPES and dtype.fields is None else ""


def arrow_form(kind: Any, length: int, nulls: int) -> str:
    """Return the form of an Arrow leaf; "" where compaction cannot use it."""
    name = str(kind)
    return f"arrow/{name}/{length}/{nulls}" if name in _ARROW_TYPES else ""


def column_type(form: str) -> str | None:
    """Return the DuckDB type of a native column for this form; None keeps the leaf a blob.

    >>> column_type("numpy/<f8"), column_type("arrow/large_string/3/0"), column_type("")
    ('DOUBLE', 'VARCHAR', None)
    """
    family, _, rest = form.partition("/")
    if family == "numpy":
        return _NUMPY_TYPES.get(rest)
    if family == "arrow":
        return _ARROW_TYPES.get(rest.split("/")[0])
    return None


def to_arrow(form: str, buffer: Any) -> Any:
    """Return a leaf's bytes as a `pyarrow.Array` of a type that DuckDB takes, without a copy where possible.

    Raises:
        ValueError: the form has no native column, or the bytes do not fit it.
    """
    import numpy as np
    import pyarrow as pa

    if column_type(form) is None:
        raise ValueError(f"The form {form!r} has no native column.")
    family, _, rest = form.partition("/")
    if family == "arrow":
        from nbflow.values.arrow import make_array

        name, length, nulls = rest.split("/")
        return make_array(buffer, _arrow_type(name), int(length), int(nulls))
    dtype = np.dtype(rest)
    items = np.frombuffer(buffer, dtype)
    if dtype.kind == "b":
        flags = pa.py_buffer(np.packbits(items, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), len(items), [None, flags], 0)
    if dtype == np.float16:
        wider = pa.py_buffer(items.astype(np.float32))
        return pa.Array.from_buffers(pa.float32(), len(items), [None, wider], 0)
    if dtype.kind not in "mM":
        return pa.Array.from_buffers(pa.from_numpy_dtype(dtype), len(items), [None, pa.py_buffer(buffer)], 0)
    kind = pa.timestamp(np.datetime_data(dtype)[0]) if dtype.kind == "M" else pa.int64()
    missing = np.isnat(items)
    count = int(missing.sum())
    valid = pa.py_buffer(np.packbits(~missing, bitorder="little")) if count else None
    return pa.Array.from_buffers(kind, len(items), [valid, pa.py_buffer(buffer)], count)


def from_arrow(form: str, array: Any) -> list[memoryview]:
    """Return a column read back from DuckDB as the bytes of its leaf, in parts, in order.

    Raises:
        ValueError: the column cannot be of this form.
    """
    import numpy as np
    import pyarrow as pa

    if column_type(form) is None:
        raise ValueError(f"The form {form!r} has no native column.")
    family, _, rest = form.partition("/")
    if family == "arrow":
        from nbflow.values.arrow import layout

        name, _, _ = rest.split("/")
        kind = _arrow_type(name)
        chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        return layout([chunk if chunk.type == kind else chunk.cast(kind) for chunk in chunks], kind)[0]
    dtype = np.dtype(rest)
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    return [memoryview(_items(chunk, dtype).view(np.uint8)) for chunk in chunks if len(chunk)]


def _items(chunk: Any, dtype: Any) -> Any:
    """Return an Arrow chunk as NumPy items of this dtype; nulls are NaT."""
    import numpy as np
    import pyarrow as pa

    from nbflow.values.arrow import bits, validity

    # `to_numpy` would import pandas, a quarter of a second that a background thread has no use for.
    if dtype.kind == "b":
        if chunk.null_count:
            raise ValueError(f"A column of {dtype} came back with {chunk.null_count:,} nulls.")
        return bits(chunk.buffers()[1], chunk.offset, len(chunk))
    if dtype.kind in "mM":
        if dtype.kind == "M":
            unit = pa.timestamp(np.datetime_data(dtype)[0])
            chunk = chunk if chunk.type == unit else chunk.cast(unit)
        raw = _buffer_items(chunk, np.dtype(np.int64))
        if chunk.null_count:
            raw = raw.copy()
            raw[~validity(chunk)] = np.iinfo(np.int64).min
        return raw
    if chunk.null_count:
        raise ValueError(f"A column of {dtype} came back with {chunk.null_count:,} nulls.")
    if dtype == np.float16:
        return _buffer_items(chunk, np.dtype(np.float32)).astype(dtype)
    plain = pa.from_numpy_dtype(dtype)
    return _buffer_items(chunk if chunk.type == plain else chunk.cast(plain), dtype)


def _buffer_items(chunk: Any, dtype: Any) -> Any:
    import numpy as np

    return np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if name.startswith("timestamp["):
        return pa.timestamp(name[10:-1])
    plain = {"double": pa.float64, "float": pa.float32, "bool": pa.bool_, "date32[day]": pa.date32}
    return plain.get(name, getattr(pa, name, pa.null))()
