"""Anything recorded as plain JSON data of bounded size: what a page is sent must never be refused on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

#: Characters of one text, elements of one container, and levels of nesting that are shown.
TEXT, ITEMS, DEPTH = 2_000, 200, 6

#: JavaScript counts whole numbers exactly up to here.
_EXACT = 2**53

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def plain(value: Any, *, text: int = TEXT, items: int = ITEMS, depth: int = DEPTH) -> Any:
    r"""Return a value as JSON holds it everywhere: no NaN, no raw bytes, no number that JavaScript rounds.

    >>> plain({"n": 2**60, "x": float("nan"), "raw": b"ab", 1: (None, True)})
    {'n': '1152921504606846976', 'x': 'nan', 'raw': '2 bytes', '1': [None, True]}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return cut(value, text)
    if isinstance(value, int):
        return int(value) if -_EXACT <= value <= _EXACT else cut(str(value), text)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if depth == 0:
            return f"{type(value).__name__} of {len(value):,}"
        if isinstance(value, Mapping):
            shown = list(value.items())[:items]
            found = {
                _sound(str(key)): plain(part, text=text, items=items, depth=depth - 1) for key, part in shown
            }
            return found if len(value) <= items else {**found, "…": f"{len(value) - items:,} more"}
        parts = [plain(part, text=text, items=items, depth=depth - 1) for part in list(value)[:items]]
        return parts if len(value) <= items else [*parts, f"… {len(value) - items:,} more"]
    return cut(str(value), text)


def cut(text: str, most: int = TEXT) -> str:
    """Return a text that is no longer than so many characters, and that UTF-8 can carry.

    >>> cut("abcdef", 4)
    'abc…'
    """
    return _sound(text if len(text) <= most else f"{text[: most - 1]}…")


def uncoloured(text: str) -> str:
    r"""Return a text without a terminal's colours and other commands.

    >>> uncoloured("\x1b[31mValueError\x1b[0m: no")
    'ValueError: no'
    """
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def _sound(text: str) -> str:
    """Replace lone surrogates, as a file name that is no UTF-8 leaves them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
