"""Which part of a value cannot be pickled: a bounded search along the parts people know by name.

The search tries the parts of the value one after the other, goes into the first
that fails, and stops at a part none of whose own parts fails. Its path reads like
the expression that reaches it: `model.callbacks[2].fn`.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from nbflow.core.loaded import loaded

#: The search gives up refining after so many seconds, or so many levels, and reports what it has.
SECONDS = 10.0
LEVELS = 60


def locate(name: str, value: Any, error: BaseException) -> tuple[str, Any, BaseException]:
    """Return the path of the offending part, the part itself, and why it fails."""
    from nbflow.values.pickling import can_pickle

    deadline = time.monotonic() + SECONDS
    path, part, reason = name, value, error
    visited = {id(value)}
    for _ in range(LEVELS):
        for step, child in parts(part):
            if time.monotonic() > deadline:
                return path, part, reason
            if id(child) in visited or isinstance(child, (str, bytes, int, float, bool, type(None))):
                continue
            failure = can_pickle(child)
            if failure is not None:
                visited.add(id(child))
                path, part, reason = path + step, child, failure
                break
        else:
            return path, part, reason
    return path, part, reason


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value with what to write behind its name to reach them."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{_short(key)}]", item
        for number, key in enumerate(list(value)):
            yield f".keys()[{number}]", key
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field, item in zip(value._fields, value, strict=False):
            yield f".{field}", item
    elif isinstance(value, (list, tuple, deque)):
        for number, item in enumerate(list(value)):
            yield f"[{number}]", item
    elif isinstance(value, (set, frozenset)):
        for item in list(value):
            yield f"{{{_short(item)}}}", item
    if isinstance(value, FunctionType):
        yield from _function_parts(value)
        return
    if isinstance(value, MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
        return
    if isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args[{number}]", item) for number, item in enumerate(value.args))
        yield from ((f".keywords[{_short(key)}]", item) for key, item in value.keywords.items())
    if isinstance(value, type):
        yield from ((f".{key}", item) for key, item in list(vars(value).items()) if not key.startswith("__"))
        return
    yield from _table_parts(value)
    yield from _attributes(value)
    if isinstance(value, BaseException):
        yield from ((f".args[{number}]", item) for number, item in enumerate(value.args))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        attributes = {}
    if isinstance(attributes, dict):
        yield from ((f".{key}", item) for key, item in list(attributes.items()))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            hidden = slot.startswith("__") and not slot.endswith("__")
            attribute = f"_{cls.__name__.lstrip('_')}{slot}" if hidden else slot
            if attribute in ("__dict__", "__weakref__"):
                continue
            try:
                yield f".{attribute}", object.__getattribute__(value, attribute)
            except AttributeError:
                continue  # an empty slot


def _function_parts(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".<closure {name}>", cell.cell_contents
        except ValueError:
            continue  # a cell that is still empty
    yield from ((f".<default {number}>", item) for number, item in enumerate(function.__defaults__ or ()))
    yield from ((f".<default {key}>", item) for key, item in (function.__kwdefaults__ or {}).items())
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f".<global {name}>", function.__globals__[name]
    yield from ((f".{key}", item) for key, item in vars(function).items())


def _global_names(code: Any) -> list[str]:
    names = list(code.co_names)
    for const in code.co_consts:
        if hasattr(const, "co_names"):
            names += _global_names(const)
    return list(dict.fromkeys(names))


def _table_parts(value: Any) -> Iterator[tuple[str, Any]]:
    numpy, pandas = loaded("numpy"), loaded("pandas")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype == object:
        for place in numpy.ndindex(value.shape):
            yield f"[{', '.join(map(str, place))}]", value[place]
    if pandas is None:
        return
    if isinstance(value, pandas.DataFrame):
        for number in range(value.shape[1]):
            label = value.columns[number]
            step = f"[{_short(label)}]" if value.columns.is_unique else f".iloc[:, {number}]"
            if value.dtypes.iloc[number].kind == "O":
                yield step, value.iloc[:, number]
        yield ".attrs", value.attrs
    elif isinstance(value, pandas.Series) and value.dtype == object:
        for number in range(len(value)):
            yield f".iloc[{number}]", value.iloc[number]
        yield ".attrs", value.attrs
    elif isinstance(value, pandas.Index) and value.dtype == object:
        for number in range(len(value)):
            yield f"[{number}]", value[number]


def _short(key: Any) -> str:
    if type(key) in (str, int, float, bool, bytes, type(None)):
        text = repr(key)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"<{type(key).__qualname__}>"
