"""Take Arrow and polars data apart. Imported when one is met, so its library is loaded.

Columns count by type and logical content: how they are cut into chunks, where
in a shared buffer they begin, and what lies in memory under a null do not count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from nbflow.values.leaf import LEAF_MINIMUM

if TYPE_CHECKING:
    from nbflow.values.canonical import Walk
    from nbflow.values.canonical_objects import Handler, Parts


def handler(base: type, kind: type) -> Handler | None:
    """Return how a class of pyarrow or polars is taken apart; None to go on looking."""
    if kind.__module__.partition(".")[0] == "polars":
        return _POLARS.get(base.__name__)
    pa = sys.modules["pyarrow"]
    for name, found in _ARROW.items():
        if base is getattr(pa, name, None):
            return found
    return None


# --- Arrow ---


def chunked_parts(walk: Walk, column: Any) -> Parts:
    """Return the parts of an Arrow array or chunked array; equal content gives equal parts."""
    import pyarrow as pa

    chunks = list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        inner = pa.chunked_array([chunk.storage for chunk in chunks], kind.storage_type)
        return ("extension", str(kind), chunked_parts(walk, inner))
    return ("column", str(kind), len(column), _streams(walk, kind, [chunk for chunk in chunks if len(chunk)]))


def _streams(walk: Walk, kind: Any, chunks: list[Any]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    nulls = any(chunk.null_count for chunk in chunks)
    valid = [pc.is_valid(chunk) for chunk in chunks] if nulls and not types.is_null(kind) else []
    parts: list[Any] = [_stream(walk, (_fixed(each.cast(pa.uint8()), 1) for each in valid))]
    if types.is_null(kind):
        return parts
    if types.is_boolean(kind):
        parts.append(_stream(walk, (_fixed(chunk.cast(pa.uint8()), 1) for chunk in chunks)))
    elif _is_primitive(kind):
        width = kind.bit_width // 8
        parts.append(_stream(walk, (_fixed(chunk, width) for chunk in chunks)))
    elif types.is_string_view(kind) or types.is_binary_view(kind):
        plain = pa.large_string() if types.is_string_view(kind) else pa.large_binary()
        return _streams(walk, plain, [chunk.cast(plain) for chunk in chunks])
    elif (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        parts.append(_stream(walk, (_fixed(pc.binary_length(chunk).cast(pa.int64()), 8) for chunk in chunks)))
        parts.append(_stream(walk, (_text(chunk) for chunk in chunks)))
    elif types.is_dictionary(kind):
        united = pa.chunked_array(chunks, kind).unify_dictionaries()
        parts.append(_streams(walk, kind.index_type, [chunk.indices for chunk in united.chunks]))
        if united.num_chunks:
            parts.append(chunked_parts(walk, united.chunk(0).dictionary))
    elif types.is_struct(kind):
        flat = [chunk.flatten() for chunk in chunks]
        fields = (
            pa.chunked_array([each[at] for each in flat], kind.field(at).type)
            for at in range(kind.num_fields)
        )
        parts += [chunked_parts(walk, field) for field in fields]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = (pc.list_value_length(chunk).cast(pa.int64()) for chunk in chunks)
        parts.append(_stream(walk, (_fixed(each, 8) for each in lengths)))
        parts.append(
            chunked_parts(walk, pa.chunked_array([chunk.flatten() for chunk in chunks], kind.value_type))
        )
    else:  # maps, unions, views, decimals: Python values are slower and always right
        parts.append([chunk.to_pylist() for chunk in [pa.concat_arrays(chunks)] if chunks] if chunks else [])
    return parts


def _is_primitive(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_primitive(kind)) and kind.bit_width in (8, 16, 32, 64)


_Piece = tuple[memoryview, int]


def _fixed(array: Any, width: int) -> _Piece:
    """Return the bytes of an array of fixed width and where they begin; nulls are zeros."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if array.null_count:
        array = pc.fill_null(array.view(getattr(pa, f"int{8 * width}")()), 0)
    return _slice(array.buffers()[1], array.offset * width, len(array) * width)


def _text(array: Any) -> _Piece:
    """Return the bytes of all strings one after the other."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _, offsets, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    at = memoryview(offsets).cast("B").cast("q" if wide else "i")
    begin, end = at[array.offset], at[array.offset + len(array)]
    if array.null_count and (pc.sum(pc.binary_length(array)).as_py() or 0) != end - begin:
        return _text(pa.concat_arrays([pc.drop_null(array)]))  # there is text under the nulls
    return _slice(data, begin, end - begin) if data is not None else (memoryview(b""), 0)


def _slice(buffer: Any, begin: int, size: int) -> _Piece:
    if buffer is None or size == 0:
        return memoryview(b""), 0
    return memoryview(buffer).cast("B")[begin : begin + size], buffer.address + begin


def _stream(walk: Walk, pieces: Iterable[_Piece]) -> bytes:
    """Return what stands for the pieces as if they were one buffer."""
    known = list(pieces)
    if len(known) == 1:
        return walk.buffer(*known[0])
    if sum(piece.nbytes for piece, _ in known) < LEAF_MINIMUM:
        return b"".join(piece for piece, _ in known)
    hasher = blake3()
    for piece, _ in known:
        hasher.update(piece)
    return hasher.digest()


def _arrow_column(walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("arrow column", walk.token(type(value)), chunked_parts(walk, value)), False


def _arrow_table(walk: Walk, value: Any) -> tuple[Parts, bool]:
    columns = [chunked_parts(walk, column) for column in value.columns]
    return (
        "arrow table",
        walk.token(type(value)),
        _schema_parts(value.schema),
        value.num_rows,
        columns,
    ), False


def _schema_parts(schema: Any) -> Parts:
    fields = [(field.name, str(field.type), field.nullable, _metadata(field)) for field in schema]
    return ("arrow schema", fields, _metadata(schema))


def _metadata(value: Any) -> list[tuple[bytes, bytes]]:
    return sorted((value.metadata or {}).items())


def _arrow_schema(_walk: Walk, value: Any) -> tuple[Parts, bool]:
    return _schema_parts(value), True


def _arrow_field(_walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("arrow field", value.name, str(value.type), value.nullable, _metadata(value)), True


def _arrow_type(_walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("arrow type", str(value)), True


def _arrow_scalar(_walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("arrow scalar", str(value.type), value.as_py()), False


def _arrow_buffer(walk: Walk, value: Any) -> tuple[Parts, bool]:
    return (
        "arrow buffer",
        value.size,
        walk.buffer(memoryview(value), value.address) if value.size else b"",
    ), True


_ARROW: dict[str, Callable[[Walk, Any], tuple[Parts, bool]]] = {
    "Array": _arrow_column,
    "ChunkedArray": _arrow_column,
    "Table": _arrow_table,
    "RecordBatch": _arrow_table,
    "Schema": _arrow_schema,
    "Field": _arrow_field,
    "DataType": _arrow_type,
    "Scalar": _arrow_scalar,
    "Buffer": _arrow_buffer,
}


# --- polars ---


def _polars_frame(walk: Walk, value: Any) -> tuple[Parts, bool]:
    columns = [_polars_parts(walk, column) for column in value.get_columns()]
    return ("polars frame", walk.token(type(value)), value.height, columns), False


def _polars_series(walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("polars series", walk.token(type(value)), _polars_parts(walk, value)), False


def _polars_parts(walk: Walk, series: Any) -> Parts:
    import polars as pl

    dtype = series.dtype
    head: Parts = ("column", series.name, repr(dtype), len(series))
    if dtype == pl.Object:
        return (*head, series.to_list())
    if dtype == pl.Categorical:
        series = series.cast(pl.String)  # the codes depend on which strings this process met first
    # Through Arrow, without a copy for most types: what lies under nulls differs after a round trip.
    return (*head, chunked_parts(walk, series.rechunk().to_arrow(compat_level=_oldest())))


def _oldest() -> Any:
    import polars as pl

    return pl.CompatLevel.oldest()  # large strings instead of views


_POLARS: dict[str, Callable[[Walk, Any], tuple[Parts, bool]]] = {
    "DataFrame": _polars_frame,
    "Series": _polars_series,
}
