"""Joins: when the branches of a split have done enough for the machine to go on. Pure: counts in, verdict out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Literal

from nbflow.core.errors import UsageError
from nbflow.core.lengths import length

JoinKind = Literal["all", "any", "quorum", "percentage", "partial"]

_TEXT = re.compile(r"(?P<kind>[a-z]+)(?:\((?P<amount>[^,()\s]+)(?:, within=(?P<within>[^,()\s]+))?\))?")
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,400})?([eE][-+]?[0-9]{1,3})?|[0-9]{1,40}/[0-9]{1,40}")


class Verdict(Enum):
    """What a join says about its branches so far."""

    WAIT = "wait"
    SATISFIED = "satisfied"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Join:
    """How many branches of a split must succeed; made by `all`, `any`, `quorum`, `percentage` and `partial`.

    A join that is satisfied while branches still run has them cancelled; only
    `partial` waits for all of them, or until `within` (seconds) is over.

    >>> Join.percentage(60).needed(4)
    3
    >>> Join.quorum(2).verdict(total=3, succeeded=1, failed=1)
    <Verdict.WAIT: 'wait'>
    """

    kind: JoinKind = "all"
    amount: Fraction = Fraction(0)
    within: float | None = None

    @classmethod
    def all(cls) -> Join:
        """Need every branch."""
        return cls("all")

    @classmethod
    def any(cls) -> Join:
        """Need one branch; the first success cancels the others."""
        return cls("any")

    @classmethod
    def quorum(cls, n: int) -> Join:
        """Need `n` branches.

        Raises:
            UsageError: `n` is no whole number from 1 up.
        """
        return cls("quorum", Fraction(_whole(n, "A quorum", least=1)))

    @classmethod
    def percentage(cls, p: float | str | Fraction | Decimal) -> Join:
        """Need `p` percent of the branches, rounded up.

        A float is taken as the decimal number it is written as: 7 % of 100 branches
        are 7, which binary floating point would make 8.

        Raises:
            UsageError: `p` is not a number with 0 < p <= 100.

        >>> Join.percentage(33.4).needed(3), Join.percentage("100/3").needed(3)
        (2, 1)
        """
        exact = p if isinstance(p, Fraction) else _number(p)
        if exact is None or not 0 < exact <= 100:
            raise UsageError(f"A percentage must be a number above 0 and up to 100, not {p!r}.")
        return cls("percentage", exact)

    @classmethod
    def partial(cls, minimum: int = 0, *, within: float | str | None = None) -> Join:
        """Wait until all ended or `within` is over, and go on with what succeeded, at least `minimum` branches.

        Raises:
            UsageError: `minimum` is no whole number from 0 up, or `within` no duration.

        >>> Join.partial(2, within="5m").text()
        'partial(2, within=300.0)'
        """
        return cls("partial", Fraction(_whole(minimum, "The minimum", least=0)), length(within, "within"))

    def needed(self, total: int) -> int:
        """Return how many of `total` branches must succeed; may be more than there are for a quorum or a minimum."""
        _whole(total, "The number of branches", least=1)
        if self.kind == "all":
            return total
        if self.kind == "any":
            return 1
        if self.kind == "percentage":
            return -int(-total * self.amount // 100)
        return int(self.amount)

    def verdict(self, total: int, succeeded: int, failed: int, *, expired: bool = False) -> Verdict:
        """Judge a split of `total` branches, of which some succeeded and some failed (or were cancelled).

        `expired` says that the time of the split is over: what still runs does not
        count any more.

        Raises:
            UsageError: the counts contradict each other.
        """
        needed = self.needed(total)
        _whole(succeeded, "The number of successes", least=0)
        _whole(failed, "The number of failures", least=0)
        open_ = total - succeeded - failed
        if open_ < 0:
            raise UsageError(f"{succeeded} successes and {failed} failures are more than {total} branches.")
        if expired:
            open_ = 0
        if succeeded + open_ < needed:
            return Verdict.IMPOSSIBLE
        if open_ and (self.kind == "partial" or succeeded < needed):
            return Verdict.WAIT
        return Verdict.SATISFIED

    def text(self) -> str:
        """Return the text form for records; `Join.parse` reads it back.

        >>> Join.percentage(33.4).text(), Join.all().text()
        ('percentage(33.4)', 'all')
        """
        if self.kind in ("all", "any"):
            return self.kind
        within = "" if self.within is None else f", within={self.within!r}"
        return f"{self.kind}({_written(self.amount)}{within})"

    @classmethod
    def parse(cls, text: str) -> Join:
        """Read the text form of a join.

        Raises:
            UsageError: the text is not that of a join.

        >>> Join.parse("quorum(2)") == Join.quorum(2)
        True
        """
        found = _TEXT.fullmatch(text)
        kind, amount, within = found.group("kind", "amount", "within") if found else (None, None, None)
        if kind in ("all", "any") and amount is None:
            return cls.all() if kind == "all" else cls.any()
        if kind == "percentage" and amount is not None and within is None:
            return cls.percentage(amount)
        if kind == "quorum" and amount is not None and within is None and amount.isdecimal():
            return cls.quorum(int(amount))
        if kind == "partial" and amount is not None and amount.isdecimal():
            return cls.partial(int(amount), within=within)
        raise UsageError(
            f"{text!r} is not a join.",
            hint='Known are "all", "any", "quorum(2)", "percentage(60)", "partial(0)" and "partial(0, within=300)".',
        )


def _whole(value: object, what: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{what} must be a whole number from {least} up, not {value!r}.")
    return value


def _number(value: object) -> Fraction | None:
    """Return the number exactly as it is written, or None; 1e-999999999 would fill the memory and is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    text = str(value)
    try:
        return Fraction(text) if _NUMBER.fullmatch(text) else None
    except ZeroDivisionError:
        return None


def _written(amount: Fraction) -> str:
    """Return the number as a decimal where that is exact, else as a fraction."""
    decimal = Decimal(amount.numerator) / Decimal(amount.denominator)
    return str(decimal) if Fraction(decimal) == amount else str(amount)
