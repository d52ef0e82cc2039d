"""Take NumPy arrays, scalars and dtypes apart. Imported when one is met, so NumPy is loaded.

An array counts by dtype, shape and logical content. C and Fortran order differ
(each is hashed as it lies, without a copy); any other layout counts as C order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nbflow.values.canonical import Walk
    from nbflow.values.canonical_objects import Handler, Parts


def handler(base: type, kind: type) -> Handler | None:
    """Return how a class of NumPy, or a class derived from one, is taken apart; None to go on looking."""
    if base is np.ma.MaskedArray:
        return _masked
    if base is np.ndarray:
        return _array if kind in (np.ndarray, np.memmap) else _derived
    if base is np.generic:
        return _scalar
    if base is np.dtype:
        return _dtype
    return None


def array_parts(walk: Walk, array: np.ndarray[Any, Any]) -> Parts:
    """Return the parts of an array of any dtype; large buffers go through the walk's digests."""
    dtype = array.dtype
    if dtype.names is None and not dtype.hasobject and dtype.kind != "T":
        # NumPy 1 gives a datetime dtype empty metadata when it is unpickled.
        token = dtype_parts(dtype) if dtype.metadata else dtype.str
        if array.flags.c_contiguous:
            return ("array", token, array.shape, "C", _bytes(walk, array))
        if array.flags.f_contiguous:
            return ("array", token, array.shape, "F", _bytes(walk, array.T))
        return ("array", token, array.shape, "C", _bytes(None, np.ascontiguousarray(array), walk))
    if dtype.names is not None:
        # Field by field: the padding between fields holds whatever was in memory.
        fields = [array_parts(walk, array[name]) for name in dtype.names]
        return ("records", dtype_parts(dtype), array.shape, fields)
    # A list that the walk writes at the speed of the C pickler.
    return ("array", dtype_parts(dtype), array.shape, "C", array.reshape(-1).tolist())


def _bytes(walk: Walk | None, array: np.ndarray[Any, Any], copied_for: Walk | None = None) -> bytes:
    """Return what stands for the bytes of a C-contiguous array; a copy's address means nothing to a checkpoint."""
    if array.nbytes == 0:
        return b""
    flat = array.view(np.ndarray).reshape(-1)
    buffer = memoryview(flat.view(np.uint8))  # type: ignore[arg-type]
    if walk is None:
        assert copied_for is not None
        return copied_for.content(buffer)
    return walk.buffer(buffer, flat.__array_interface__["data"][0])


def dtype_parts(dtype: np.dtype[Any]) -> Parts:
    """Return the parts of a dtype: names, offsets, titles and metadata included."""
    metadata = dict(dtype.metadata) if dtype.metadata else None
    if dtype.subdtype is not None:
        inner, shape = dtype.subdtype
        return ("subarray", dtype_parts(inner), shape, metadata)
    if dtype.names is not None and dtype.fields is not None:
        fields = [(name, dtype_parts(dtype.fields[name][0]), *dtype.fields[name][1:]) for name in dtype.names]
        return ("struct", fields, dtype.itemsize, dtype.isalignedstruct, dtype.type.__name__, metadata)
    # Not the type's name: `longlong` and `int64` are one dtype here, and a pickle turns one into the other.
    return ("dtype", dtype.str if dtype.kind != "T" else repr(dtype), metadata)


def _array(walk: Walk, value: np.ndarray[Any, Any]) -> tuple[Parts, bool]:
    # Whole where no other object is in it; the parts of a small one are cheaper than a digest of their own.
    return array_parts(walk, value), not value.dtype.hasobject


def _masked(walk: Walk, value: Any) -> tuple[Parts, bool]:
    data = array_parts(walk, np.asarray(value.data))
    mask = array_parts(walk, np.ma.getmaskarray(value))
    return ("masked", walk.token(type(value)), data, mask, value.fill_value, bool(value.hardmask)), False


def _derived(walk: Walk, value: np.ndarray[Any, Any]) -> tuple[Parts, bool]:
    state = dict(getattr(value, "__dict__", {}))
    return ("derived", walk.token(type(value)), array_parts(walk, value.view(np.ndarray)), state), False


def _scalar(walk: Walk, value: Any) -> tuple[Parts, bool]:
    dtype = value.dtype
    if dtype.hasobject or dtype.names is not None:
        return ("scalar", array_parts(walk, np.asarray(value))), False
    return ("scalar", dtype.str, value.tobytes()), True


def _dtype(_walk: Walk, value: np.dtype[Any]) -> tuple[Parts, bool]:
    return dtype_parts(value), True
