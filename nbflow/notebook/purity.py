"""Judge whether a cell may change an object that it reads, from how it touches it and what it is.

Looking for in-place changes costs a second hash of every input after the cell:
14 ms for 85 MB. Most cells only read their frames, so that pass is left out
where a change can be excluded. Everything not listed here counts as a change.

For pandas the judgement rests on copy-on-write (always on in pandas 3): what is
derived from a frame never writes through to it, so only what is done to the
frame itself can change it. Under pandas 2 without that mode nothing is excluded.
"""

# ruff: noqa: SIM905 - long lists of words are read as text

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from nbflow.notebook.expressions import Use

#: Types whose objects never change.
ATOMS: frozenset[type] = frozenset(
    {
        int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice,
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, types.ModuleType,
        types.BuiltinFunctionType, types.BuiltinMethodType, types.CodeType,
        pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath,
    }
)  # fmt: skip

#: Builtins and display functions that leave their arguments as they are (iterators are another matter).
_PURE_CALLEES = frozenset(
    "len print display repr str type isinstance issubclass id hash abs sum min max sorted bool int "
    "float round format range any all list tuple set frozenset dict enumerate zip reversed hasattr "
    "callable iter".split()
)

#: Methods of a frame that change it, or that hand it to a function of the user's.
_FRAME_CHANGES = frozenset({"insert", "pop", "update", "eval", "pipe", "isetitem", "set_flags"})
#: Attributes of a frame that hand out something through which it can be changed.
_FRAME_HANDLES = frozenset({"attrs", "flags", "array", "style"})

_FRAME_FACTS = frozenset({"shape", "dtypes", "dtype", "size", "ndim", "empty", "T", "values", "name"})
_ARRAY_FACTS = frozenset({"shape", "dtype", "size", "ndim", "nbytes", "itemsize", "strides"})

#: ndarray methods that give a scalar or a new array, never a view.
_ARRAY_PURE = frozenset(
    "sum mean std var min max argmin argmax argsort any all prod cumsum cumprod ptp round copy astype "
    "tolist tobytes nonzero dot item repeat clip searchsorted conj trace take compress choose shape "
    "dtype size ndim nbytes itemsize strides".split()
)


def is_atom(value: Any) -> bool:
    """Tell whether the value cannot change in place."""
    kind = type(value)
    return kind in ATOMS or isinstance(value, (type, enum.Enum, types.FunctionType))


def may_change(value: Any, uses: Iterable[Use], namespace: Mapping[str, Any]) -> bool:
    """Tell whether a cell with these uses of `value` could change it in place.

    A False is a promise; a True only costs a look afterwards.

    >>> may_change([1], {Use("operand")}, {}), may_change([1], {Use("chain", ".append()")}, {})
    (False, True)
    """
    if is_atom(value):
        return False
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    if kind in (tuple, frozenset) and all(type(part) in ATOMS for part in value):
        return False
    if module == "pyarrow" and kind.__name__ in ("Table", "RecordBatch", "Schema", "Array", "ChunkedArray"):
        return False
    if module == "pandas" and kind.__name__ in ("DataFrame", "Series"):
        return (
            any(_changes_frame(kind, use, namespace) for use in uses)
            if _is_copy_on_write(value)
            else _touched(uses)
        )
    if module == "pandas" and "Index" in kind.__name__:
        return any(use.how in ("store", "escape") for use in uses)  # names can be set
    if module == "numpy" and kind.__name__ == "ndarray":
        return value.dtype.hasobject or any(_changes_array(use, namespace) for use in uses)
    return may_change_unknown(uses)


def may_change_unknown(uses: Iterable[Use]) -> bool:
    """Do as `may_change` where the value is not at hand.

    >>> may_change_unknown({Use("argument", "print")}), may_change_unknown({Use("argument", "train")})
    (False, True)
    """
    return any(_changes_any(use) for use in uses)


def _touched(uses: Iterable[Use]) -> bool:
    return any(use.how != "show" for use in uses)


def _is_copy_on_write(frame: Any) -> bool:
    """Tell whether copies of this frame are lazy and its cells hold nothing that can change."""
    pandas = sys.modules["pandas"]
    if int(pandas.__version__.partition(".")[0]) < 3 and pandas.get_option("mode.copy_on_write") is not True:
        return False
    dtypes = frame.dtypes.array if frame.ndim == 2 else (frame.dtype,)
    return not any(
        getattr(dtype, "kind", "") == "O" and getattr(dtype, "hasobject", False) for dtype in dtypes
    )


def _pure_callee(use: Use, namespace: Mapping[str, Any]) -> bool:
    via = use.via
    if via.endswith("!"):
        return False
    if via in _PURE_CALLEES:
        return via not in namespace
    root, _, method = via.partition(".")
    owner = namespace.get(root)
    if isinstance(owner, types.ModuleType):
        library = owner.__name__.partition(".")[0]
        if library == "numpy":
            return _pure_numpy(owner, method, use.given)
        # Drawing and joining read; a method called through its class (`pd.DataFrame.pop(frame)`) may not.
        return library in _READING_LIBRARIES and "." not in method
    if owner is not None and type(owner).__module__.partition(".")[0] == "pandas":
        return method.rpartition(".")[2] not in ("pipe", "apply", "agg", "update")
    return False


def _pure_numpy(module: types.ModuleType, method: str, count: int) -> bool:
    place, _, name = method.rpartition(".")
    if place not in ("", "linalg", "fft") or name in _NUMPY_CHANGES:
        return False
    function = getattr(module, name, None) if not place else None
    if type(function).__name__ == "ufunc":
        return count <= int(function.nin)  # type: ignore[union-attr]  # one more would be `out`
    return count == 1 or name in _NUMPY_MANY


_READING_LIBRARIES = frozenset({"pandas", "seaborn", "matplotlib", "polars", "pyarrow", "math", "statistics"})
#: Functions of several arguments, none of which is `out` by position.
_NUMPY_MANY = frozenset(
    "where allclose isclose array_equal interp polyfit polyval histogram corrcoef cov isin "
    "searchsorted digitize unique norm solve lstsq append insert delete tile gradient convolve "
    "correlate array2string savetxt save".split()
)
_NUMPY_CHANGES = frozenset(
    "copyto put place putmask fill_diagonal put_along_axis shuffle asarray asanyarray atleast_1d "
    "atleast_2d atleast_3d reshape ravel transpose swapaxes moveaxis squeeze expand_dims split "
    "array_split hsplit vsplit broadcast_to frombuffer ascontiguousarray asfortranarray nditer "
    "ndenumerate nan_to_num diagonal diag real imag rollaxis matrix array flip fliplr flipud rot90 "
    "as_strided sliding_window_view view".split()
)


def _changes_frame(kind: type, use: Use, namespace: Mapping[str, Any]) -> bool:
    if use.how in ("operand", "show", "arithmetic"):
        return False
    if use.how == "argument":
        return use.via != "iter" and not _pure_callee(use, namespace)
    if use.how != "chain":
        return True
    if use.via.endswith("="):
        # `pop = frame.pop` and `at = frame.loc` hand the frame on; a column is a copy.
        return hasattr(kind, use.via[1:-1]) and use.via[1:-1] not in _FRAME_FACTS
    first = use.via.rstrip(">+")
    if first in ("[]", "()"):
        return False
    if first.endswith("(!)"):
        return True
    if first.endswith("()"):
        return first[1:-2] in _FRAME_CHANGES or first.startswith("._")
    name = first[1:]
    return name in _FRAME_HANDLES or name.startswith("_")


def _changes_array(use: Use, namespace: Mapping[str, Any]) -> bool:
    if use.how in ("operand", "show", "arithmetic"):
        return False
    if use.how == "argument":
        # A loop over an array hands out views of its rows; over one of one dimension, scalars.
        return not (use.via != "iter" and _pure_callee(use, namespace) and use.via not in _GIVES_ROWS)
    if use.how != "chain":
        return True
    view = use.via.endswith((">", "+", "="))
    first = use.via.rstrip(">+=")
    if first == "[]":
        return view
    if use.via.endswith("="):
        return first[1:] not in _ARRAY_FACTS  # `fill = array.fill`
    return first.removesuffix("()")[1:] not in _ARRAY_PURE


_GIVES_ROWS = frozenset({"list", "tuple", "enumerate", "zip", "reversed", "iter", "max", "min", "sorted"})


def _changes_any(use: Use) -> bool:
    # Arithmetic is no exception here: `+` of two lists hands their elements on.
    if use.how in ("operand", "show"):
        return False
    return not (
        use.how == "argument"
        and use.via in ("len", "print", "repr", "str", "type", "isinstance", "bool", "id")
    )
