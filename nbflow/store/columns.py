"""Arrow columns from Python values, straight from their bytes. Used by `rows` only.

`pyarrow.array` imports pandas to find out whether a list is a pandas object: a
quarter of a second in a process that has none, and an import in the background
that a user's own would meet. What the database's tables need is little enough to be built here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

_NUMBERS = ("int32", "int64", "float64")
#: The columns of a recorded table: a list of these in `nbflow.output.columns`.
_STRUCT = (("name", "string"), ("type", "string"), ("leaf", "binary"))


def arrow_array(values: Sequence[Any], kind: str) -> Any:
    """Return a `pyarrow.Array` of int32, int64, float64, bool, string, binary or "columns"; None is a null.

    Text may be given as `str` or as UTF-8. Text and bytes get 64-bit offsets: a batch may hold more than 2 GiB.
    """
    import numpy as np
    import pyarrow as pa

    type_ = _type(kind)
    size = len(values)
    nulls = values.count(None)
    if nulls == size:
        return pa.nulls(size, type_)
    valid = None
    if nulls:
        there = np.fromiter((value is not None for value in values), bool, size)
        valid = pa.py_buffer(np.packbits(there, bitorder="little"))
    if kind in _NUMBERS or kind == "bool":
        given = (0 if value is None else value for value in values) if nulls else values
        items = np.fromiter(given, bool if kind == "bool" else kind, size)
        packed = np.packbits(items, bitorder="little") if kind == "bool" else items
        return pa.Array.from_buffers(type_, size, [valid, pa.py_buffer(packed)], nulls)
    if kind == "columns":
        lists = [value or () for value in values] if nulls else values
        flat = list(chain.from_iterable(lists))
        fields = [arrow_array([item[name] for item in flat], each) for name, each in _STRUCT]
        struct = pa.StructArray.from_arrays(fields, names=[name for name, _ in _STRUCT])
        return pa.Array.from_buffers(
            type_, size, [valid, _offsets(map(len, lists), size, np.int32)], nulls, children=[struct]
        )
    lengths, data = _joined([value or "" for value in values] if nulls and kind == "string" else values)
    offsets = _offsets(lengths, size, np.int64)
    return pa.Array.from_buffers(type_, size, [valid, offsets, pa.py_buffer(data)], nulls)


def _joined(values: Sequence[Any]) -> tuple[Iterable[int], bytes]:
    """Return the lengths of texts or byte strings in bytes, and the bytes."""
    if all(isinstance(value, str) for value in values):
        text = "".join(values)
        if text.isascii():
            return map(len, values), text.encode()
    raw = [value.encode() if isinstance(value, str) else value or b"" for value in values]
    return map(len, raw), b"".join(raw)


def _offsets(lengths: Any, size: int, dtype: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    found = np.zeros(size + 1, dtype)
    np.cumsum(np.fromiter(lengths, dtype, size), out=found[1:])
    return pa.py_buffer(found)


def _type(kind: str) -> Any:
    import pyarrow as pa

    if kind == "columns":
        return pa.list_(pa.struct([(name, _type(each)) for name, each in _STRUCT]))
    return {"string": pa.large_string(), "binary": pa.large_binary(), "bool": pa.bool_()}.get(
        kind
    ) or getattr(pa, kind)()
