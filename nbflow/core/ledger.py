"""The ledger of a run: what its steps spent, each step and source once however often it was retried. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nbflow.core.errors import UsageError
from nbflow.core.model import Entry, RunCharged

#: Amounts by unit: {"tokens": 1200.0, "dollars": 0.02}.
Amounts = dict[str, float]


def plus(first: Mapping[str, float], second: Mapping[str, float]) -> Amounts:
    """Add amounts unit by unit.

    >>> plus({"tokens": 1.0}, {"tokens": 2.0, "dollars": 0.5})
    {'tokens': 3.0, 'dollars': 0.5}
    """
    total = dict(first)
    for unit, amount in second.items():
        total[unit] = total.get(unit, 0.0) + amount
    return total


def minus(first: Mapping[str, float], second: Mapping[str, float]) -> Amounts:
    """Take amounts away unit by unit.

    >>> minus({"tokens": 5.0, "dollars": 1.0}, {"tokens": 2.0})
    {'tokens': 3.0, 'dollars': 1.0}
    """
    return plus(first, {unit: -amount for unit, amount in second.items()})


def overrun(spent: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """Return the first unit of which nothing is left, None while some of each is.

    >>> overrun({"tokens": 10.0}, {"dollars": 1.0, "tokens": 10.0})
    'tokens'
    """
    return next((unit for unit, limit in limits.items() if spent.get(unit, 0.0) >= limit), None)


def checked(
    amounts: Mapping[str, float], empty: str = "Say what is spent, as in charge(tokens=123)."
) -> Amounts:
    """Return the amounts as floats.

    Raises:
        UsageError: none at all (with the sentence `empty`), negative, NaN or infinite.
    """
    if not amounts:
        raise UsageError(empty)
    for unit, amount in amounts.items():
        value: object = amount
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            raise UsageError(f"{unit} must be a finite number from 0 up, not {amount!r}.")
    return {unit: float(amount) for unit, amount in amounts.items()}


class Ledger:
    """What was spent in one run, children not included.

    An entry is known by step and source. Charges of one attempt add up; of
    several attempts at the same step the largest sum of each unit counts, so a
    retry is not paid for twice and the total never falls.

    >>> ledger = Ledger()
    >>> for seq, attempt in ((2, 1), (3, 2)):
    ...     ledger.add(Entry(seq, 0.0, RunCharged(step="ask", source="llm", amounts={"tokens": 5.0}, attempt=attempt)))
    >>> ledger.total
    {'tokens': 5.0}
    """

    def __init__(self) -> None:
        self.total: Amounts = {}
        self._tries: dict[tuple[str, str, int, int], Amounts] = {}
        self._entries: dict[tuple[str, str], Amounts] = {}

    def add(self, entry: Entry) -> None:
        """Take an entry in; those that are no charge are ignored."""
        record = entry.record
        if not isinstance(record, RunCharged):
            return
        attempt = (record.step, record.source, record.execution, record.attempt)
        tried = self._tries[attempt] = plus(self._tries.get(attempt, {}), record.amounts)
        held = self._entries.setdefault((record.step, record.source), {})
        for unit, amount in tried.items():
            more = amount - held.get(unit, 0.0)
            if more > 0:
                held[unit] = amount
                self.total[unit] = self.total.get(unit, 0.0) + more

    def entries(self) -> dict[tuple[str, str], Amounts]:
        """Return the amounts by (step, source)."""
        return {key: dict(amounts) for key, amounts in self._entries.items()}
