"""Object columns that hold nothing but text and gaps, as Arrow text and back, exactly.

An object array of a million strings pickles to a million opcodes; as Arrow it is
one leaf that DuckDB can read. Only exact `str` and gaps (`None`, the usual NaN, `pandas.NA`) qualify;
anything else keeps NumPy's own pickle.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from nbflow.core.loaded import loaded

if TYPE_CHECKING:
    from nbflow.values.pickling import EnvelopePickler

_USUAL_NAN = struct.pack("<d", float("nan"))


def reduce_text(pickler: EnvelopePickler, array: Any) -> tuple[Any, int | None] | None:
    """Reduce an object array of text; None where it holds something else. Also return its leaf's number."""
    import numpy as np

    kinds = set(map(type, array))
    gaps = _gap_values()
    if str not in kinds or loaded("pyarrow") is None or not kinds <= {str, *map(type, gaps)}:
        return None
    import pyarrow as pa

    from nbflow.values.arrow import Reduced, reduce_simple

    fill: list[Any] = []
    which = None
    missing = None
    if kinds != {str}:
        missing = np.fromiter((type(value) is not str for value in array), bool, len(array))
        numbers = {type(value): number for number, value in enumerate(gaps)}
        found = array[missing]
        if any(type(value) is float and struct.pack("<d", value) != _USUAL_NAN for value in _distinct(found)):
            return None  # a number, or a NaN with a payload
        codes = np.fromiter((numbers[type(value)] for value in found), np.int8, len(found))
        fill = gaps
        if (codes == codes[0]).all():
            fill = [gaps[codes[0]]]
        else:
            which = codes
    try:
        arrow = pa.array(array, pa.large_string(), mask=missing)
    except (UnicodeEncodeError, pa.ArrowException):
        return None  # a lone surrogate: text that UTF-8 cannot hold
    reduced, leaf = reduce_simple(pickler, [arrow], arrow.type)
    return (make_text, (Reduced(reduced), fill, which)), leaf


def _gap_values() -> list[Any]:
    """Return what stands for missing text; each has a class of its own."""
    pandas = loaded("pandas")
    return [None, float("nan"), *([] if pandas is None else [pandas.NA])]


def _distinct(values: Any) -> list[Any]:
    return list({id(value): value for value in values}.values())


def make_text(arrow: Any, fill: list[Any], which: Any) -> Any:
    """Build the object array; `fill` are the values of its gaps, `which` numbers them if several."""
    import numpy as np

    found = arrow.to_numpy(zero_copy_only=False)
    if not found.flags.writeable:
        found = found.copy()
    if fill:
        gaps = np.empty(len(fill), object)
        gaps[:] = fill
        missing = arrow.is_null().to_numpy(zero_copy_only=False)
        found[missing] = fill[0] if which is None else gaps[which]
    return found
