"""How Arrow data and polars frames are pickled: one leaf a column, its layout a matter of the values only.

The layout of a leaf is: the validity bitmap if there are nulls, offsets if the
type has them, then the items; each starts at a multiple of 64 bytes, items under
nulls are zero, offsets start at 0. So the same values are the same bytes whatever
they were sliced from, and `nbflow.values.native` can make the same leaf again
from a DuckDB column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbflow.core.loaded import loaded
from nbflow.values import links
from nbflow.values.leaf import LEAF_MINIMUM

if TYPE_CHECKING:
    from nbflow.values.pickling import EnvelopePickler

_ALIGN = 64


def is_simple(kind: Any) -> bool:
    """Tell whether arrays of this Arrow type have the leaf layout: fixed width, bool, text and binary."""
    import pyarrow.types as t

    if t.is_dictionary(kind) or t.is_nested(kind) or t.is_null(kind) or _is_extension(kind):
        return False
    if _has_offsets(kind) or t.is_boolean(kind):
        return True
    return bool(t.is_primitive(kind) or t.is_decimal(kind) or t.is_fixed_size_binary(kind))


def _is_extension(kind: Any) -> bool:
    import pyarrow as pa

    return isinstance(kind, pa.BaseExtensionType)


def _has_offsets(kind: Any) -> int:
    """Return the size of an offset in bytes, 0 for types without."""
    import pyarrow.types as t

    if t.is_string(kind) or t.is_binary(kind):
        return 4
    return 8 if t.is_large_string(kind) or t.is_large_binary(kind) else 0


def reduce_arrow_array(pickler: EnvelopePickler, array: Any) -> Any:
    """Reduce a `pyarrow.Array`."""
    import pyarrow.types as t

    if is_simple(array.type):
        reduced, number = reduce_simple(pickler, [array], array.type)
        if number is not None:
            pickler.arrow_leaves[id(array)] = number
        return reduced
    if t.is_dictionary(array.type):
        return make_dictionary, (array.indices, array.dictionary, array.type.ordered)
    return _trimmed(array).__reduce__()


def reduce_chunked(pickler: EnvelopePickler, chunked: Any) -> Any:
    """Reduce a `pyarrow.ChunkedArray`: its chunks are stored as one and cut again."""
    reduced, number = _reduce_chunks(pickler, chunked.chunks, chunked.type)
    if number is not None:
        pickler.arrow_leaves[id(chunked)] = number
    return reduced


def _reduce_chunks(pickler: EnvelopePickler, chunks: list[Any], kind: Any) -> tuple[Any, int | None]:
    import pyarrow as pa

    if not is_simple(kind):
        return (pa.chunked_array, (chunks, kind)), None
    if len(chunks) > 1 and _has_offsets(kind) == 4 and sum(chunk.nbytes for chunk in chunks) >= 1 << 31:
        return (pa.chunked_array, (chunks, kind)), None  # 32-bit offsets cannot reach over all chunks
    reduced, number = reduce_simple(pickler, chunks, kind)
    return (make_chunked, (*reduced[1], tuple(len(chunk) for chunk in chunks))), number


def reduce_table(pickler: EnvelopePickler, table: Any) -> Any:
    """Reduce a `pyarrow.Table` or `RecordBatch` column by column."""
    columns: list[Any] = []
    for place, column in enumerate(table.columns):
        if hasattr(column, "chunks"):
            reduced, number = _reduce_chunks(pickler, column.chunks, column.type)
        elif is_simple(column.type):
            reduced, number = reduce_simple(pickler, [column], column.type)
        else:
            columns.append(column)
            continue
        pickler.arrow_columns[id(table), place] = number
        columns.append(Reduced(reduced))
    return make_table, (type(table), columns, table.schema, table.num_rows)


def reduce_simple(pickler: EnvelopePickler, chunks: Sequence[Any], kind: Any) -> tuple[Any, int | None]:
    """Reduce chunks of a simple type to one array; also return its leaf's number if it has one."""
    parts, length, nulls = layout(chunks, kind)
    size = sum(part.nbytes for part in parts)
    if size < LEAF_MINIMUM:
        return (make_array, (b"".join(parts), kind, length, nulls)), None
    from nbflow.values.native import arrow_form

    number = pickler.add_leaf(parts, arrow_form(kind, length, nulls))
    return (make_array, (LeafMark(number), kind, length, nulls)), number


class Reduced:
    """Pickled as the reduction it carries, so that one reduction can nest another."""

    __slots__ = ("reduced",)

    def __init__(self, reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


class LeafMark:
    """Pickled as the request for a leaf of this envelope."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return links.leaf, (self.number,)


def _trimmed(array: Any) -> Any:
    """Return a nested array without the bytes of what it was sliced from."""
    import pyarrow as pa

    if array.get_total_buffer_size() > array.nbytes + 1024 or array.offset:
        return pa.concat_arrays([array.slice(0, 0), array]) if len(array) else pa.array([], array.type)
    return array


def bits(buffer: Any, offset: int, size: int) -> Any:
    """Return `size` bits of an Arrow buffer as booleans; `to_numpy` would import pandas to do the same."""
    import numpy as np

    first, skip = divmod(offset, 8)
    packed = np.frombuffer(buffer, np.uint8, (skip + size + 7) // 8, first)
    return np.unpackbits(packed, count=skip + size, bitorder="little")[skip:].view(bool)


def validity(array: Any) -> Any:
    """Return which items of an Arrow array are no nulls, as booleans."""
    import numpy as np

    found = array.buffers()[0]
    return np.ones(len(array), bool) if found is None else bits(found, array.offset, len(array))


def layout(chunks: Sequence[Any], kind: Any) -> tuple[list[memoryview], int, int]:
    """Return the leaf's parts, the number of items and the number of nulls."""
    import numpy as np
    import pyarrow.types as t

    chunks = [chunk for chunk in chunks if len(chunk)]
    length = sum(len(chunk) for chunk in chunks)
    nulls = sum(chunk.null_count for chunk in chunks)
    parts: list[memoryview] = []
    if not length:
        return parts, 0, 0
    valid = None
    if nulls:
        valid = np.concatenate([validity(chunk) for chunk in chunks])
        _append(parts, [np.packbits(valid, bitorder="little")])
    width = _has_offsets(kind)
    if width:
        offsets, data = _text_parts(chunks, width)
        _append(parts, offsets)
        _append(parts, data)
    elif t.is_boolean(kind):
        items = [bits(chunk.buffers()[1], chunk.offset, len(chunk)) for chunk in chunks]
        if nulls:
            items = [found & validity(chunk) for found, chunk in zip(items, chunks, strict=True)]
        _append(parts, [np.packbits(np.concatenate(items), bitorder="little")])
    else:
        _append(parts, _fixed_parts(chunks, kind.bit_width // 8))
    return parts, length, nulls


def _append(parts: list[memoryview], arrays: Sequence[Any]) -> None:
    size = 0
    for array in arrays:
        if array.nbytes:
            parts.append(memoryview(array.reshape(-1).view("u1")))
            size += array.nbytes
    if size % _ALIGN:
        parts.append(memoryview(bytes(_ALIGN - size % _ALIGN)))


def _fixed_parts(chunks: Sequence[Any], width: int) -> list[Any]:
    import numpy as np

    found = []
    for chunk in chunks:
        raw = np.frombuffer(chunk.buffers()[1], np.uint8)
        raw = raw[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        if chunk.null_count:
            valid = validity(chunk)
            items = raw.reshape(-1, width)
            if items[~valid].any():
                raw = np.where(valid[:, None], items, np.uint8(0)).reshape(-1)
        found.append(raw)
    return found


def _text_parts(chunks: Sequence[Any], width: int) -> tuple[list[Any], list[Any]]:
    import numpy as np

    dtype = np.dtype(f"<i{width}")
    offsets, data, total = [], [], 0
    for number, given in enumerate(chunks):
        chunk = _empty_nulls(given, dtype)
        _, places, raw = chunk.buffers()
        own = np.frombuffer(places, dtype)[chunk.offset : chunk.offset + len(chunk) + 1]
        start, stop = int(own[0]), int(own[-1])
        if raw is not None and stop > start:
            data.append(np.frombuffer(raw, np.uint8)[start:stop])
        moved = own if start == total else own + dtype.type(total - start)
        offsets.append(moved if number == 0 else moved[1:])
        total += stop - start
    return offsets, data


def _empty_nulls(chunk: Any, dtype: Any) -> Any:
    """Return the chunk with no bytes under its nulls."""
    import numpy as np
    import pyarrow as pa

    if not chunk.null_count:
        return chunk
    own = np.frombuffer(chunk.buffers()[1], dtype)[chunk.offset : chunk.offset + len(chunk) + 1]
    null = ~validity(chunk)
    if not (np.diff(own)[null] > 0).any():
        return chunk
    import pyarrow.compute as pc

    return pc.if_else(chunk.is_valid(), chunk, pa.scalar(None, chunk.type))


def make_array(raw: Any, kind: Any, length: int, nulls: int) -> Any:
    """Build a `pyarrow.Array` over the bytes of a leaf, without a copy.

    Raises:
        ValueError: the bytes are too few for the type and length.
    """
    import pyarrow as pa
    import pyarrow.types as t

    if not length:
        return pa.array([], kind)
    whole = pa.py_buffer(raw)
    place = 0

    def take(size: int) -> Any:
        nonlocal place
        if place + size > whole.size:
            raise ValueError(
                f"an Arrow leaf of {whole.size:,} bytes is too short for {length:,} items of {kind}"
            )
        found = whole.slice(place, size)
        place += -(-size // _ALIGN) * _ALIGN
        return found

    flags = -(-length // 8)
    buffers = [take(flags) if nulls else None]
    width = _has_offsets(kind)
    if width:
        import numpy as np

        offsets = take((length + 1) * width)
        size = int(np.frombuffer(offsets, f"<i{width}")[-1])
        if size < 0:
            raise ValueError(f"an Arrow leaf of {kind} has offsets that run backwards")
        buffers += [offsets, take(size)]
    else:
        buffers.append(take(flags if t.is_boolean(kind) else length * (kind.bit_width // 8)))
    return pa.Array.from_buffers(kind, length, buffers, nulls)


def make_chunked(raw: Any, kind: Any, length: int, nulls: int, chunks: tuple[int, ...]) -> Any:
    """Build a `pyarrow.ChunkedArray` with chunks of these lengths."""
    import pyarrow as pa

    whole = make_array(raw, kind, length, nulls)
    found, start = [], 0
    for size in chunks:
        found.append(whole.slice(start, size))
        start += size
    return pa.chunked_array(found, kind)


def make_table(cls: Any, columns: list[Any], schema: Any, rows: int) -> Any:
    """Build a `pyarrow.Table` or `RecordBatch` of these columns."""
    import pyarrow as pa

    if columns:
        return cls.from_arrays(columns, schema=schema)
    return pa.Table.from_batches(
        [pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))], schema
    )


def make_dictionary(indices: Any, dictionary: Any, ordered: bool) -> Any:
    """Build a `pyarrow.DictionaryArray`."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=ordered, safe=False)


def reduce_polars_series(pickler: EnvelopePickler, series: Any) -> Any:
    """Reduce a polars series through Arrow where that is exact; others keep polars' own pickle."""
    if not _plain_polars(series.dtype) or loaded("pyarrow") is None:
        return NotImplemented
    array = series.to_arrow()
    number = None
    if is_simple(array.type):
        reduced, number = reduce_simple(pickler, [array], array.type)
        array = Reduced(reduced)
    pickler.polars_leaves[id(series)] = number
    return make_polars_series, (series.name, array, series.dtype)


def reduce_polars_frame(pickler: EnvelopePickler, frame: Any) -> Any:
    """Reduce a polars frame column by column."""
    columns = frame.get_columns()
    pickler.polars_columns[id(frame)] = columns
    return make_polars_frame, (columns, frame.height)


def _plain_polars(dtype: Any) -> bool:
    import polars as pl

    exact = (pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Datetime, pl.Duration)
    return bool(dtype.is_integer() or dtype.is_float() or dtype in exact) and str(dtype) not in _WIDE_POLARS


#: Widths that Arrow has no type for.
_WIDE_POLARS = {"Int128", "UInt128", "Float16"}


def make_polars_series(name: str, array: Any, dtype: Any) -> Any:
    """Build a polars series over Arrow data."""
    import polars as pl

    found = pl.Series(name, pl.from_arrow(array, rechunk=False))
    return found if found.dtype == dtype else found.cast(dtype)


def make_polars_frame(columns: list[Any], height: int) -> Any:
    """Build a polars frame of these columns."""
    import polars as pl

    return pl.DataFrame(columns) if columns else pl.DataFrame(height=height) if height else pl.DataFrame()
