"""The digest of a code object that its place in a file does not change.

Code objects, not source: a function that went through a checkpoint has no
source any more and must have the fingerprint it had before. Line numbers, file
names, docstrings, annotations and the function's own name do not count; names
of variables, constants and everything that runs do. Bytecode belongs to one
minor version of Python, and so do these digests: after an upgrade from 3.11 to
3.12 the steps that depend on functions run again.
"""

from __future__ import annotations

import dis
import inspect
import weakref
from types import CodeType
from typing import Any

from nbflow.core.signature import digest
from nbflow.values.in_place import changed_in_place

_CONSTANT = frozenset(dis.hasconst)
_NAMED = frozenset(dis.hasname) | frozenset(dis.haslocal) | frozenset(dis.hasfree)
_JUMP = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)

#: There for the interpreter or for line numbers only.
_IDLE = frozenset({"NOP", "CACHE", "EXTENDED_ARG", "RESUME"})

_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

#: *args, **kwargs, generator, coroutine, async generator: what a caller can tell.
_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


class Code:
    """What is known of one code object, the code within it included.

    `names` are the globals it may read, `changed` the captured variables it changes in place.
    """

    __slots__ = ("changed", "digest", "names", "ref")

    def __init__(self, code: CodeType) -> None:
        names: set[str] = set()
        self.digest = digest(repr(_written(code, names)))
        self.names = tuple(sorted(names))
        self.changed = changed_in_place(code)
        key = id(code)
        self.ref = weakref.ref(code, lambda _ref: _known.pop(key, None))


_known: dict[int, Code] = {}


def code_of(code: CodeType) -> Code:
    r"""Return what is known of a code object; taken apart once in its life.

    >>> first, second = compile("x = 1", "a", "exec"), compile("\n\nx = 1", "b", "exec")
    >>> code_of(first).digest == code_of(second).digest
    True
    """
    known = _known.get(id(code))
    if known is None or known.ref() is not code:
        known = _known[id(code)] = Code(code)
    return known


def _written(code: CodeType, names: set[str]) -> tuple[Any, ...]:
    parameters = code.co_argcount + code.co_kwonlyargcount
    parameters += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _IDLE]
    # A jump to an idle instruction lands on the next real one.
    places: dict[int, int] = {}
    at = 0
    for each in dis.get_instructions(code):
        places[each.offset] = at
        at += each.opname not in _IDLE
    written: list[tuple[Any, ...]] = []
    for each in instructions:
        part: Any = each.arg
        if each.opcode in _CONSTANT:
            part = _constant(each.argval, names)
        elif each.opcode in _NAMED:
            part = each.argval
            if each.opname in _READS and not part.startswith("__"):  # a class body reads __name__
                names.add(each.argval)
            if each.opname == "STORE_NAME" and part in ("__doc__", "__firstlineno__") and written:
                written.pop()  # a class body's docstring, or the line it begins at
                continue
        elif each.opcode in _JUMP:
            part = places.get(each.argval, each.argval)
        written.append((each.opname, part))
    return (
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags & _FLAGS,
        code.co_varnames[:parameters],
        code.co_freevars,
        written,
        getattr(code, "co_exceptiontable", b""),
    )


def _constant(value: Any, names: set[str]) -> Any:
    if isinstance(value, CodeType):
        return _written(value, names)
    if type(value) is tuple:
        return ("tuple", *(_constant(part, names) for part in value))
    if type(value) is frozenset:
        return ("frozenset", *sorted(repr(_constant(part, names)) for part in value))
    if type(value) is int:
        return ("int", f"{value:x}")
    return (type(value).__name__, repr(value))
