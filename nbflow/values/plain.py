"""The safe codec: values that JSON holds exactly, with no pickle at all. The fast path of `codec`.

Exactly None, bool, int (64 bits), finite float, str, list and dict with str keys; no
subclasses; no container met twice (JSON would give two for one). NaN and
infinity have no JSON, integers beyond 64 bits no exact one in every reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_NONE = type(None)
_SCALARS = frozenset({_NONE, bool, str, int, float})
_EASY = frozenset({_NONE, bool, str})
_LEVELS = 200
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
#: From so many items on it pays to look at the set of their types first.
_MANY = 50
#: Up to so many parts, and texts of so many characters, a value is small.
_SMALL = 64
_SHORT = 1000


def is_plain(values: Iterable[Any]) -> bool:
    """Tell whether JSON gives these values back exactly, sharing included."""
    return _plain(list(values), set(), 0)


def _plain(values: Any, seen: set[int], level: int) -> bool:
    # `seen` holds ids of containers, which the caller's variables keep alive.
    if len(values) > _MANY and (kinds := set(map(type, values))) <= _SCALARS:
        return kinds <= _EASY or all(map(_exact, values))
    for value in values:
        kind = type(value)
        if kind is str or kind is bool or value is None:
            continue
        if kind is int:
            if not _LEAST <= value <= _MOST:
                return False
        elif kind is float:
            if not isfinite(value):
                return False
        elif kind is dict or kind is list:
            mark = id(value)
            if mark in seen or level > _LEVELS:
                return False
            seen.add(mark)
            if kind is dict:
                for key in value:
                    if type(key) is not str:
                        return False
            if not _plain(value.values() if kind is dict else value, seen, level + 1):
                return False
        else:
            return False
    return True


def _exact(value: Any) -> bool:
    kind = type(value)
    return (kind is not int or _LEAST <= value <= _MOST) and (kind is not float or isfinite(value))


def small_text(value: Any) -> bytes | None:
    """Return the JSON of a small plain value, `(` in front of it for a tuple of such; None for any other.

    Small is a matter of content alone (parts are counted as often as they
    occur, whether or not they are one object), so equal values fare alike.

    >>> small_text((1, [2.0])), small_text([1, (2,)])
    (b'([1,[2.0]]', None)
    """
    if type(value) is tuple:
        return None if _count(value, _SMALL) < 0 else b"(" + _encode(value)
    return None if _count((value,), _SMALL) < 0 else _encode(value)


def _count(values: Any, left: int) -> int:
    """Take the parts of plain values from `left`; negative when they are too many or not plain."""
    for value in values:
        kind = type(value)
        left -= 1
        if left < 0:
            return -1  # before going deeper: the value may contain itself
        if kind is str:
            if len(value) > _SHORT or not value.isascii():
                return -1
        elif kind is int:
            if not _LEAST <= value <= _MOST:
                return -1
        elif kind is float:
            if not isfinite(value):
                return -1
        elif kind is list:
            left = _count(value, left)
        elif kind is dict:
            for key in value:
                if type(key) is not str or not key.isascii():
                    return -1
            left = _count(value.values(), left)
        elif value is not None and kind is not bool:
            return -1
        if left < 0:
            return -1
    return left


def encode_plain(variables: dict[str, Any]) -> tuple[bytes, list[bytes]] | None:
    """Return the JSON of all variables and of each; None where JSON would not give them back exactly."""
    if not _plain(variables.values(), set(), 0):
        return None
    try:
        body = _encode(variables)
        if len(variables) == 1:
            (name,) = variables
            return body, [body[len(_encode(name)) + 2 : -1]]
        return body, [_encode(value) for value in variables.values()]
    except (UnicodeEncodeError, RecursionError, OverflowError):
        return None  # a lone surrogate, say: pickle can hold it


def decode_plain(body: bytes | memoryview) -> Any:
    """Decode the JSON.

    Raises:
        msgspec.DecodeError: the bytes are no JSON.
    """
    return _decode(body)
