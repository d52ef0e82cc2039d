"""Which of the variables that a function captures it visibly changes in place.

Such a variable is something the function writes to (a log, a cache, a counter),
not something its result is made from. If it counted as an input, every call
would have another signature than the one before.
"""

from __future__ import annotations

import dis
from types import CodeType

#: Methods of the built-in containers, queues, files and locks that change their object.
_CHANGING = frozenset(
    [
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "extendleft",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "put",
        "put_nowait",
        "remove",
        "reverse",
        "setdefault",
        "sort",
        "update",
        "write",
        "writelines",
        "intersection_update",
        "difference_update",
        "symmetric_difference_update",
        "subtract",
        "move_to_end",
        "rotate",
        "send",
        "throw",
        "close",
        "acquire",
        "release",
        "set",
        "inc",
        "dec",
        "observe",
    ]
)
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_METHODS = frozenset({"LOAD_METHOD", "LOAD_ATTR"})
_STORES = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR", "DELETE_ATTR", "STORE_SLICE"})
_REBINDS = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"})
#: How many values lie on the stack above the object that is stored into.
_ABOVE = {"STORE_SUBSCR": 1, "DELETE_SUBSCR": 1, "STORE_ATTR": 0, "DELETE_ATTR": 0, "STORE_SLICE": 2}
_SKIPPED = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME", "PRECALL", "PUSH_NULL"})


def changed_in_place(code: CodeType) -> frozenset[str]:
    """Return the captured names (globals and closure variables) that this code, or code within it, changes.

    Seen are calls of changing methods (`log.append(x)`), stores into items and
    attributes (`cache[key] = x`, `state.total += 1`) and rebinding (`global n`).

    >>> log, rates = [], {}
    >>> def convert(x):
    ...     log.append(x)
    ...     return x * rates["eur"]
    >>> changed_in_place(convert.__code__)
    frozenset({'log'})
    """
    own = frozenset(code.co_varnames) | frozenset(code.co_cellvars)
    found: set[str] = set()
    steps = [each for each in dis.get_instructions(code) if each.opname not in _SKIPPED]
    for place, step in enumerate(steps):
        if step.opname in _REBINDS:
            found.add(step.argval)
        elif (
            step.opname in _METHODS
            and step.argval in _CHANGING
            and place
            and steps[place - 1].opname in _LOADS
        ):
            found.add(steps[place - 1].argval)
        elif step.opname in _STORES:
            name = _base(steps, place, _ABOVE[step.opname])
            if name is not None:
                found.add(name)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= changed_in_place(constant)
    return frozenset(found) - own


def _base(steps: list[dis.Instruction], place: int, above: int) -> str | None:
    """Return the name at the root of what a store goes into: `x` for `x[i].y = 1`; None when it is no name."""
    needed = above + 1  # step back until the value under the `above` others has been pushed
    at = place - 1
    if steps[at].opname == "SWAP":  # `x[i] += 1` copies container and key first; they stand before the copies
        while at >= 0 and steps[at].opname != "COPY":
            at -= 1
        while at >= 0 and steps[at].opname == "COPY":
            at -= 1
    while at >= 0:
        step = steps[at]
        if step.opname in _LOADS or step.opname in ("LOAD_CONST", "LOAD_FAST"):
            needed -= 1
            if needed == 0:
                return step.argval if step.opname in _LOADS else None
        elif step.opname == "LOAD_ATTR":
            pass  # one in, one out
        elif step.opname in ("BINARY_SUBSCR", "BINARY_OP", "BINARY_SLICE"):
            needed += 1
        else:
            return None
        at -= 1
    return None
