"""One set of parameters, whatever it was written in: checked names, plain values, and where it stands.

A value is what a journal and a notebook's cell can both hold: None, bool, int
of 64 bits, float, text, and lists and mappings of these. What is more than that
and has a text of its own (dates, decimals, paths) becomes that text, as
papermill would write it; anything else is refused here, before anything runs.
"""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import keyword
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from nbflow.core.errors import UsageError

#: Lists in lists in lists: deeper than this nobody writes, and a value that contains itself is.
_DEPTH = 64
#: How many values one parameter may hold; YAML's aliases can mean more than any memory.
_VALUES = 100_000

_TEXTS = (decimal.Decimal, fractions.Fraction, uuid.UUID, dt.timedelta, os.PathLike)


@dataclass(frozen=True)
class Row:
    """The parameters of one notebook, and where they stand ("params.csv, line 3")."""

    values: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Place:
    """Where something stands: a file (or what was given instead) and a line or row of it.

    >>> str(Place("params.csv", "line", 3))
    'params.csv, line 3'
    """

    file: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}" if self.unit else self.file

    def problem(
        self, message: str, *, column: str | int | None = None, hint: str | None = None
    ) -> UsageError:
        """Return the error that names this place, and the column where there is one."""
        facts: dict[str, Any] = {"file": self.file}
        if self.unit:
            facts[self.unit] = self.number
        if column is not None:
            facts["column"] = column
        where = f"{self}, column {column}" if column is not None else str(self)
        return UsageError(f"{where}: {message}", hint=hint, **facts)


def check_names(names: Iterable[Any], place: Place) -> list[str]:
    """Return the names if each can be a variable of a notebook.

    Raises:
        UsageError: one is empty, is given twice, or is no name.

    >>> check_names(["year", "rate"], Place("params.csv"))
    ['year', 'rate']
    """
    checked: list[str] = []
    for number, name in enumerate(names, start=1):
        if isinstance(name, str) and not name.strip():
            raise place.problem(
                "the parameter has no name.", column=number, hint="Give it one, or take the column out."
            )
        if not isinstance(name, str):
            raise place.problem(
                f"{name!r} is not the name of a parameter but a {type(name).__name__}.",
                column=number,
                hint="Names are texts; put quotes round it where the format needs them.",
            )
        if name != name.strip() and name.strip().isidentifier():
            raise place.problem(
                f"the name {name!r} has spaces round it.",
                column=number,
                hint=f"Write {name.strip()!r}.",
            )
        if not name.isidentifier() or keyword.iskeyword(name):
            why = "is a word of Python's own" if keyword.iskeyword(name) else "cannot be a variable"
            raise place.problem(
                f"{name!r} {why}, so it cannot be a parameter.",
                column=number,
                hint="Use letters, digits and _, beginning with a letter.",
            )
        if name in checked:
            raise place.problem(
                f"the parameter {name!r} is there twice.", column=number, hint="Take one of the two out."
            )
        checked.append(name)
    return checked


def row_of(values: Mapping[Any, Any], place: Place) -> Row:
    """Return the row that a mapping stands for.

    Raises:
        UsageError: a name or a value that cannot be a parameter.
    """
    names = check_names(values, place)
    return Row({name: plain(values[name], place, name) for name in names}, str(place))


def plain(value: Any, place: Place, column: str) -> Any:
    """Return a value as a journal and a notebook can hold it.

    Raises:
        UsageError: it is of a kind that cannot be written into a notebook, or too large.

    >>> plain((1, dt.date(2013, 1, 31)), Place("params.csv"), "when")
    [1, '2013-01-31']
    """
    return _Plain(place, column).of(value, 0)


def is_missing(value: Any) -> bool:
    """Tell whether a table has no value here: null, NaN, NaT, NA.

    >>> is_missing(float("nan")), is_missing(""), is_missing([])
    (True, False, False)
    """
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return bool(value != value)  # noqa: PLR0124 - what NaN and NaT have in common
    return isinstance(value, float) and math.isnan(value)


class _Plain:
    def __init__(self, place: Place, column: str) -> None:
        self.place, self.column, self.left = place, column, _VALUES

    def of(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if depth > _DEPTH or self.left < 0:
            raise self._refused(
                "the value is nested too deeply or holds too much", "Pass the path of a file."
            )
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return self._int(int(value))
        if isinstance(value, float):
            return float(value)
        if isinstance(value, Mapping):
            return {self._key(key): self.of(part, depth + 1) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(part, depth + 1) for part in value]
        return self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        if is_missing(value):
            return None
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            if value.dtype.kind in "mM":
                import pandas as pd

                stamps = pd.Series(value.ravel())
                texts = [None if is_missing(stamp) else stamp.isoformat() for stamp in stamps]
                return texts[0] if value.shape == () else texts
            return self.of(value.tolist(), depth + 1)
        if isinstance(value, (dt.datetime, dt.date, dt.time)):
            return value.isoformat()
        if isinstance(value, _TEXTS):
            return self._text(os.fspath(value) if isinstance(value, os.PathLike) else str(value))
        if isinstance(value, range):
            return self.of(list(value), depth)
        kind = (
            "a set, which has no order"
            if isinstance(value, AbstractSet)
            else f"of type {type(value).__name__}"
        )
        raise self._refused(
            f"the value {_short(value)} is {kind}", "Give numbers, texts, and lists or mappings of these."
        )

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise self._refused(
                f"a mapping in it has the key {_short(key)}, which is no text", "Put it in quotes."
            )
        return self._text(key)

    def _int(self, value: int) -> int:
        if not -(2**63) <= value < 2**64:
            raise self._refused(
                "the whole number has more than 64 bits", "Give it as a text, in JSON or YAML."
            )
        return value

    def _text(self, value: Any) -> str:
        try:
            value.encode()
        except (UnicodeEncodeError, AttributeError) as error:
            raise self._refused(
                "the text has characters that are not Unicode", "Look for a broken escape such as \\ud800."
            ) from error
        return str(value)

    def _refused(self, why: str, hint: str) -> UsageError:
        return self.place.problem(f"{why}.", column=self.column, hint=hint)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - the repr of somebody's object; the refusal matters, not its text
        text = f"<{type(error).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
