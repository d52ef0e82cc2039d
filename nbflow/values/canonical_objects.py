"""Take an object apart into what its fingerprint depends on.

`take_apart` finds the handler of a type: an exact built-in, a class of a library
that is loaded (`canonical_numpy` and its neighbours, imported when first
needed), else whatever the object gives to pickle. It never raises for what the
object does: one that cannot be taken apart is known by identity.
"""

from __future__ import annotations

import copyreg
import datetime as dt
import decimal
import enum
import functools
import io
import itertools
import os
import pathlib
import types
import uuid
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nbflow.values.failures import has_frames_pickled

if TYPE_CHECKING:
    from nbflow.values.canonical import Walk

#: What an object is made of: plain values and other objects, each walked in turn.
Parts = tuple[Any, ...]
#: Returns the parts, and whether they stand for the object in place ("whole") or as their digest.
Handler = Callable[["Walk", Any], tuple[Parts, bool]]

#: Types that hold no other object and are written by the C pickler itself.
ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class Unfit(Exception):
    """The pickler at work cannot write this value; another can. Never leaves `values`."""


def take_apart(walk: Walk, value: Any) -> tuple[Parts, bool]:
    """Return the parts of an object that is no plain built-in; identity where there are none to be had."""
    handler = handler_of(type(value))
    try:
        return handler(walk, value)
    except (Unfit, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - the object's own code (__reduce__, __getstate__) may raise anything
        walk.unstable()
        return identity_parts(value), True


def handler_of(kind: type) -> Handler:
    """Return how a type is taken apart, remembered per type."""
    handler = _EXACT.get(kind)
    if handler is None:
        handler = _seen.get(kind)
        if handler is None:
            handler = _seen[kind] = _find(kind)
    return handler


def is_whole(kind: type) -> bool:
    """Tell whether values of this type count by content only, even in a value that contains itself."""
    return kind in _WHOLE or handler_of(kind) in _WHOLE_HANDLERS


_seen: weakref.WeakKeyDictionary[type, Handler] = weakref.WeakKeyDictionary()

#: Where the handlers of a library live; the module is imported only when a class of the library is met.
_LIBRARIES = {
    "numpy": "canonical_numpy",
    "pandas": "canonical_pandas",
    "pyarrow": "canonical_arrow",
    "polars": "canonical_arrow",
    "matplotlib": "canonical_libraries",
    "scipy": "canonical_libraries",
    "sklearn": "canonical_libraries",
    "sympy": "canonical_libraries",
    "torch": "canonical_libraries",
}


def _find(kind: type) -> Handler:
    for base in kind.__mro__:
        if base in _BASES:
            return _BASES[base]
        library = _LIBRARIES.get(str(base.__module__).partition(".")[0])
        if library is not None:
            found: Handler | None = import_module(f"nbflow.values.{library}").handler(base, kind)
            if found is not None:
                return found
    return _reduced


# --- classes of the standard library that need more than their pickle, or less ---


def _same(name: str, parts: Callable[[Any], Any]) -> Handler:
    """Make a handler for a type with plain parts."""

    def handler(_walk: Walk, value: Any) -> tuple[Parts, bool]:
        return (name, parts(value)), True

    return handler


def _inner(name: str, parts: Callable[[Any], Any]) -> Handler:
    """Make a handler for a type that holds other objects."""

    def handler(_walk: Walk, value: Any) -> tuple[Parts, bool]:
        return (name, parts(value)), False

    return handler


def _bytearray(walk: Walk, value: bytearray) -> tuple[Parts, bool]:
    return ("bytearray", len(value), walk.content(memoryview(value))), True


def _memoryview(walk: Walk, value: memoryview) -> tuple[Parts, bool]:
    flat = memoryview(value.tobytes())
    return ("memoryview", value.format, value.shape, walk.content(flat)), True


def _enum(walk: Walk, value: enum.Enum) -> tuple[Parts, bool]:
    return ("enum", walk.token(type(value)), value.name, value.value), False


def _module(_walk: Walk, value: types.ModuleType) -> tuple[Parts, bool]:
    from nbflow.values.code_digest import module_token

    return ("module", *module_token(value)), True


def _code_bearing(walk: Walk, value: Any) -> tuple[Parts, bool]:
    """Functions and classes: by name where they are imported, by code where the notebook defines them."""
    from nbflow.values.code_digest import code_fingerprint

    token, stable = code_fingerprint(value)
    if not stable:
        walk.unstable()
    return ("code", token), False


def _builtin(_walk: Walk, value: types.BuiltinFunctionType) -> tuple[Parts, bool]:
    owner = value.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        return ("code", f"{value.__module__}:{value.__qualname__}"), True
    return ("method", value.__name__, owner), False


def _method(_walk: Walk, value: types.MethodType) -> tuple[Parts, bool]:
    return ("method", value.__func__, value.__self__), False


def _cell(_walk: Walk, value: types.CellType) -> tuple[Parts, bool]:
    try:
        return ("cell", value.cell_contents), False
    except ValueError:
        return ("cell",), False


def _exception(walk: Walk, value: BaseException) -> tuple[Parts, bool]:
    """Args and attributes; the cause counts, the traceback (which does not survive a pickle) does not."""
    state = {name: part for name, part in vars(value).items() if not name.startswith("__")}
    return ("exception", walk.token(type(value)), value.args, sorted(state.items())), False


def _partial(walk: Walk, value: functools.partial[Any]) -> tuple[Parts, bool]:
    # Its own pickle tells None and an empty namespace apart, which nobody can see.
    return (
        "partial",
        walk.token(type(value)),
        value.func,
        value.args,
        value.keywords,
        sorted(vars(value).items()),
    ), False


def _weak_reference(_walk: Walk, value: weakref.ref[Any]) -> tuple[Parts, bool]:
    return ("weakref", value()), False


def _cached_function(_walk: Walk, value: Any) -> tuple[Parts, bool]:
    """What is in the cache does not count: it changes no result."""
    return ("cached function", value.__wrapped__, sorted(value.cache_parameters().items())), False


def _memory_file(walk: Walk, value: io.BytesIO | io.StringIO) -> tuple[Parts, bool]:
    return (
        "file",
        walk.token(type(value)),
        value.closed or (value.getvalue(), value.tell()),
        sorted(vars(value).items()),
    ), False


def _path(_walk: Walk, value: pathlib.PurePath) -> tuple[Parts, bool]:
    return ("path", type(value).__qualname__, os.fspath(value)), True


# --- everything else: what it gives to pickle ---


def _reduced(walk: Walk, value: Any) -> tuple[Parts, bool]:
    kind = type(value)
    reducer = None if has_frames_pickled(kind) else copyreg.dispatch_table.get(kind)
    reduced = value.__reduce_ex__(4) if reducer is None else reducer(value)
    if isinstance(reduced, str):
        return ("global", f"{getattr(value, '__module__', kind.__module__)}:{reduced}"), True
    function: Any
    function, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    parts: list[Any] = ["object", walk.token(kind), function, arguments]
    plain = items is None and pairs is None and function is _newobj and len(arguments) == 1
    if plain:
        del parts[2:]
    if state is not None:
        settled = _settled(kind, state)
        parts.append(settled)
        plain = plain and type(state) is dict and ATOMS.issuperset(map(type, state.values()))
    if items is not None:
        parts.append(("items", list(items)))
    if pairs is not None:
        parts.append(("pairs", [tuple(pair) for pair in pairs]))
    # An object of plain attributes (a record) is written in place: it can neither nest nor be shared deeply.
    return tuple(parts), plain


_getstate: Any = object.__getstate__
_newobj: Any = copyreg.__newobj__  # type: ignore[attr-defined]


def _settled(kind: type, state: Any) -> Any:
    """Return an object's state without the order of its attributes and without cached properties."""
    if type(state) is dict and all(type(name) is str for name in state):
        caches = _caches(kind)
        if caches:
            state = {name: part for name, part in state.items() if name not in caches}
        return tuple(sorted(state.items(), key=_name))
    if type(state) is tuple and len(state) == 2 and kind.__getstate__ is _getstate:
        # (attributes or None, slots). Merged: a class of the notebook that is rebuilt has no slots any more.
        attributes, slots = state
        if type(slots) is dict and (attributes is None or type(attributes) is dict):
            return _settled(kind, {**(attributes or {}), **slots})
    return state


def _name(pair: tuple[str, Any]) -> str:
    return pair[0]


_cache_names: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def _caches(kind: type) -> frozenset[str]:
    """Return the attributes that reading a property fills: filling them changes nothing that can be seen."""
    found = _cache_names.get(kind)
    if found is None:
        found = _cache_names[kind] = frozenset(
            name
            for base in kind.__mro__
            for name, part in vars(base).items()
            if isinstance(part, functools.cached_property)
        ) | (frozenset({"__networkx_cache__"}) if hasattr(kind, "__networkx_backend__") else frozenset())
    return found


# --- identity ---

_process = uuid.uuid4().bytes
_serials: dict[int, tuple[weakref.ref[Any], int]] = {}
_next = itertools.count()


def identity_parts(value: Any) -> Parts:
    """Return parts that are equal for this one object in this process only; the caller notes it as unstable."""
    kind = type(value)
    return ("identity", f"{kind.__module__}:{kind.__qualname__}", _process, id(value), _serial(value))


def _serial(value: Any) -> int:
    """Tell objects apart that get the same address one after the other, where weak references are possible."""
    key = id(value)
    known = _serials.get(key)
    if known is None or known[0]() is not value:
        try:
            known = _serials[key] = (weakref.ref(value, lambda ref: _forget(key, ref)), next(_next))
        except TypeError:
            return -1
    return known[1]


def _forget(key: int, ref: weakref.ref[Any]) -> None:
    if (known := _serials.get(key)) is not None and known[0] is ref:
        del _serials[key]


_CachedFunction = type(functools.lru_cache(len))

_EXACT: dict[type, Handler] = {
    complex: _same("complex", lambda value: (value.real, value.imag)),
    type(...): _same("ellipsis", lambda _value: None),
    type(NotImplemented): _same("not implemented", lambda _value: None),
    type(None): _same("none type", lambda _value: None),
    range: _same("range", lambda value: (value.start, value.stop, value.step)),
    slice: _inner("slice", lambda value: (value.start, value.stop, value.step)),
    bytearray: _bytearray,
    memoryview: _memoryview,
    dt.date: _same("date", lambda value: value.toordinal()),
    dt.time: _same("time", lambda value: value.__reduce_ex__(4)[1]),
    dt.datetime: _same("datetime", lambda value: value.__reduce_ex__(4)[1]),
    dt.timedelta: _same("timedelta", lambda value: (value.days, value.seconds, value.microseconds)),
    decimal.Decimal: _same("decimal", str),
    uuid.UUID: _same("uuid", lambda value: value.int),
    type({}.keys()): _inner("dict_keys", list),
    type({}.values()): _inner("dict_values", list),
    type({}.items()): _inner("dict_items", list),
    types.MappingProxyType: _inner("mappingproxy", dict),
    types.ModuleType: _module,
    types.FunctionType: _code_bearing,
    type: _code_bearing,
    types.BuiltinFunctionType: _builtin,
    types.MethodType: _method,
    types.CellType: _cell,
    types.CodeType: _code_bearing,
    property: _inner("property", lambda value: (value.fget, value.fset, value.fdel)),
    staticmethod: _inner("staticmethod", lambda value: value.__func__),
    classmethod: _inner("classmethod", lambda value: value.__func__),
    weakref.ref: _weak_reference,
    _CachedFunction: _cached_function,
}

#: Found through the bases of a class.
_BASES: dict[type, Handler] = {
    type: _code_bearing,
    types.ModuleType: _module,
    enum.Enum: _enum,
    BaseException: _exception,
    functools.partial: _partial,
    io.BytesIO: _memory_file,
    io.StringIO: _memory_file,
    pathlib.PurePath: _path,
}

_WHOLE = frozenset(_EXACT) - {
    slice,
    bytearray,
    types.MappingProxyType,
    types.MethodType,
    types.CellType,
    property,
    staticmethod,
    classmethod,
    weakref.ref,
    _CachedFunction,
    types.BuiltinFunctionType,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
}
_WHOLE_HANDLERS = frozenset({_code_bearing, _module, _enum, _path})
