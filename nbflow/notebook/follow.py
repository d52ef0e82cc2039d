"""What functions reach: the global names that a code object loads, stores and deletes.

The compiler has already decided which name is local, free or global, so the
answer is read from its bytecode instead of being worked out a second time.
Used by the cell analysis for functions defined in the cell itself and for
those that live in the notebook (`__main__`), which are followed transitively.
"""

from __future__ import annotations

import dis
import functools
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

#: Containers of functions (`steps = [clean, join]`) are looked into up to this many elements.
CONTAINER_LIMIT = 100


class BodyNames(NamedTuple):
    """Global names that a body loads, binds and deletes when it is run."""

    loads: frozenset[str]
    stores: frozenset[str]
    deletes: frozenset[str]

    def __or__(self, other: BodyNames) -> BodyNames:
        return BodyNames(self.loads | other.loads, self.stores | other.stores, self.deletes | other.deletes)


NOTHING = BodyNames(frozenset(), frozenset(), frozenset())

_LOADS = {
    dis.opmap[name] for name in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS") if name in dis.opmap
}
_STORES = {dis.opmap[name] for name in ("STORE_GLOBAL",)}
_DELETES = {dis.opmap[name] for name in ("DELETE_GLOBAL",)}
_STORE_NAME = dis.opmap["STORE_NAME"]
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]
_EXTENDED_ARG = dis.opmap["EXTENDED_ARG"]

#: pandas resolves `@name` in query() and eval() in the frame of its caller.
AT_NAME = re.compile(r"@([A-Za-z_]\w*)")
#: DuckDB (and magics built on it) look for tables among the caller's variables.
TABLE_NAME = re.compile(r"\b(?:from|join)\s+([A-Za-z_]\w*)\b(?!\s*[.(])", re.IGNORECASE)
_AT_METHODS = frozenset({"query", "eval"})
_SQL_METHODS = frozenset({"sql", "query", "execute", "from_query"})


def names_in_text(method: str, text: str) -> set[str]:
    """Return variables that a call of `method` looks up by itself from a text argument.

    >>> names_in_text("query", "speed > @limit"), names_in_text("sql", "select * from flights")
    ({'limit'}, {'flights'})
    """
    found: set[str] = set()
    if method in _AT_METHODS and "@" in text:
        found.update(AT_NAME.findall(text))
    if method in _SQL_METHODS:
        found.update(TABLE_NAME.findall(text))
    return found


@functools.lru_cache(maxsize=2048)
def code_names(code: types.CodeType) -> BodyNames:
    """Return the global names of a code object and of all code nested in it."""
    loads: set[str] = set()
    stores: set[str] = set()
    deletes: set[str] = set()
    local: set[str] = set()
    names, body, extended = code.co_names, code.co_code, 0
    for at in range(0, len(body), 2):
        opcode, argument = body[at], body[at + 1] | extended
        if opcode == _EXTENDED_ARG:
            extended = argument << 8
            continue
        extended = 0
        if opcode in _LOADS:
            # Since 3.11 the low bit of LOAD_GLOBAL says "push NULL", the index is above it.
            name = names[argument >> 1 if opcode == _LOAD_GLOBAL else argument]
            if name not in local:
                loads.add(name)
        elif opcode == _STORE_NAME:
            local.add(names[argument])  # a class body's own names
        elif opcode in _STORES:
            stores.add(names[argument])
        elif opcode in _DELETES:
            deletes.add(names[argument])
    methods = (_AT_METHODS | _SQL_METHODS).intersection(names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = code_names(constant)
            loads |= inner.loads
            stores |= inner.stores
            deletes |= inner.deletes
        elif methods and isinstance(constant, str):
            for method in methods:
                loads |= names_in_text(method, constant)
    # Names that only a class body sees have no meaning outside of it.
    return BodyNames(frozenset(loads) - {"__name__", "__qualname__"}, frozenset(stores), frozenset(deletes))


def is_ours(value: Any, namespace: Mapping[str, Any]) -> bool:
    """Tell whether a function or class was defined in the notebook rather than imported."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is namespace or value.__module__ == "__main__"
    return isinstance(value, type) and value.__module__ == "__main__"


def callables_of(value: Any, namespace: Mapping[str, Any], *, shallow: bool = False) -> Iterator[Any]:
    """Yield the notebook's own functions and classes that using `value` may run.

    Looks through bound methods, partials, `__wrapped__` (decorators that use
    functools.wraps), closures, instances of notebook classes, and once into
    small containers. Nothing is called and no attribute hook runs.
    """
    kind = type(value)
    if kind is types.FunctionType:
        if is_ours(value, namespace):
            yield value
        if not shallow:
            for cell in value.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:  # an empty cell: the name is not bound yet
                    continue
                if content is not value:
                    yield from callables_of(content, namespace, shallow=True)
            wrapped = value.__dict__.get("__wrapped__")
            if wrapped is not None:
                yield from callables_of(wrapped, namespace, shallow=True)
    elif isinstance(value, type):
        if is_ours(value, namespace):
            yield value
    elif kind is types.MethodType:
        yield from callables_of(value.__func__, namespace, shallow=True)
        yield from callables_of(type(value.__self__), namespace, shallow=True)
    elif kind is functools.partial:
        yield from callables_of(value.func, namespace)
        for part in (*value.args, *value.keywords.values()):
            yield from callables_of(part, namespace, shallow=True)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from callables_of(value.__func__, namespace, shallow=shallow)
    elif kind is property:
        for accessor in (value.fget, value.fset, value.fdel):
            if accessor is not None:
                yield from callables_of(accessor, namespace, shallow=True)
    elif kind in (list, tuple, set, frozenset, dict):
        if not shallow and len(value) <= CONTAINER_LIMIT:
            for part in value.values() if kind is dict else value:
                yield from callables_of(part, namespace, shallow=True)
    else:
        if kind.__module__ == "__main__":
            yield kind
        wrapped = _instance_dict(value).get("__wrapped__")
        if wrapped is not None and not shallow:
            yield from callables_of(wrapped, namespace, shallow=True)


def body_of(value: Any, namespace: Mapping[str, Any]) -> BodyNames:
    """Return the global names that one of the notebook's functions, or any method of a class, uses."""
    if isinstance(value, types.FunctionType):
        return code_names(value.__code__)
    names = NOTHING
    for cls in value.__mro__:
        if not is_ours(cls, namespace):
            continue
        own: str = cls.__name__
        if cls is not value and namespace.get(own) is cls:
            names |= BodyNames(frozenset({own}), frozenset(), frozenset())
        for member in tuple(vars(cls).values()):
            for function in callables_of(member, namespace, shallow=True):
                # A class held as an attribute is followed by name where it has one.
                if isinstance(function, types.FunctionType):
                    names |= code_names(function.__code__)
    return names


def _instance_dict(value: Any) -> Mapping[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:  # no instance dict: slots, or a C type
        return {}
    return found if type(found) is dict else {}
