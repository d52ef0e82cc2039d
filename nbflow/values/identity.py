"""Classes and functions defined in `__main__`: stored by value, restored as what stands in `__main__` now.

A notebook defines its classes in cells that run again on every start. An object
restored from a checkpoint must be an instance of the class that is there now,
else `isinstance` fails on it; only where there is none the recorded definition
is used. A function is taken from `__main__` if its code is unchanged.
"""

from __future__ import annotations

import functools
import sys
from types import CodeType, FunctionType
from typing import Any

from nbflow.core.signature import digest


def is_main(obj: Any) -> bool:
    """Tell whether a class or function was defined at the top of `__main__` (nested classes included)."""
    name = getattr(obj, "__qualname__", None)
    return getattr(obj, "__module__", None) == "__main__" and isinstance(name, str) and "<" not in name


def find(qualname: str) -> Any:
    """Return what `__main__` holds under a qualified name; None when it holds nothing."""
    found: Any = sys.modules.get("__main__")
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
        if found is None:
            return None
    return found


def same_code(one: CodeType, other: CodeType) -> bool:
    """Tell whether two code objects do the same; where they were written does not count."""
    return _code(one) == _code(other)


def _code(code: CodeType) -> tuple[Any, ...]:
    consts = tuple(_code(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
    return (
        code.co_code,
        consts,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
    )


def definition(cls: type) -> bytes:
    """Return a digest of what a class defines: its methods' code and its other names' types."""
    parts = [cls.__qualname__, *(base.__qualname__ for base in cls.__bases__)]
    for name, value in sorted(vars(cls).items()):
        if name in ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "_abc_impl"):
            continue
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(inner, FunctionType):
            parts.append(f"{name}:{_code(inner.__code__)!r}")
        elif isinstance(value, (str, int, float, bool, bytes, type(None))):
            parts.append(f"{name}:{value!r}")
        else:
            parts.append(f"{name}:{type(value).__qualname__}")
    return digest(*parts)


def main_class(qualname: str, exact: bytes | None, maker: Any, arguments: Any) -> Any:
    """Return the class now in `__main__`, else build the recorded one.

    With `exact` (the class is itself a recorded variable) only an unchanged
    definition counts, so an old version can be restored.
    """
    present = find(qualname)
    if isinstance(present, type) and (exact is None or definition(present) == exact):
        return present
    made = maker(*arguments)
    made.__qualname__ = qualname  # cloudpickle gives a nested class its short name only
    return made


def main_class_state(cls: Any, state: Any) -> Any:
    """Fill a rebuilt class; one that stands in `__main__` is left as it is."""
    if find(cls.__qualname__) is cls:
        return cls
    from cloudpickle.cloudpickle import _class_setstate

    return _class_setstate(cls, state)


def main_function(qualname: str, *arguments: Any) -> Any:
    """Return the function now in `__main__` if its code is unchanged, else build the recorded one."""
    from cloudpickle.cloudpickle import _make_function

    present = find(qualname)
    code = arguments[0]
    if (
        isinstance(present, FunctionType)
        and present.__closure__ is None
        and same_code(present.__code__, code)
    ):
        return present
    return _make_function(*arguments)


def main_function_state(function: Any, state: Any) -> Any:
    """Fill a rebuilt function; one that stands in `__main__` is left as it is."""
    if find(function.__qualname__) is function:
        return function
    from cloudpickle.cloudpickle import _function_setstate

    return _function_setstate(function, state)


def reduce_cached_property(value: functools.cached_property[Any]) -> tuple[Any, ...]:
    """Reduce a cached property of a notebook class: before Python 3.12 it holds a lock, which no pickle takes."""
    return _cached_property, (value.func, value.attrname)


def _cached_property(func: Any, name: str | None) -> functools.cached_property[Any]:
    made: functools.cached_property[Any] = functools.cached_property(func)
    if (
        name is not None
    ):  # cloudpickle sets the attributes of a class later, when Python no longer tells the name
        made.__set_name__(object, name)
    return made
