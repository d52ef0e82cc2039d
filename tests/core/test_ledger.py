"""The fold of charges: each step and source once, however often it was tried."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.ledger import Ledger, checked, minus, overrun, plus
from nbflow.core.model import Entry, RunCharged, RunTagged

amounts = st.dictionaries(
    st.sampled_from(["tokens", "dollars"]), st.integers(0, 100).map(float), min_size=1, max_size=2
)
charges = st.builds(
    RunCharged,
    step=st.sampled_from(["", "ask", "tell"]),
    source=st.sampled_from(["", "oracle"]),
    amounts=amounts,
    execution=st.integers(0, 2),
    attempt=st.integers(1, 3),
)


def reference(records: list[RunCharged]) -> dict[str, float]:
    """Sum over steps and sources the largest of the tries' sums, in the plainest way."""
    tries: dict[tuple[str, str, str], dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        for unit, amount in record.amounts.items():
            tries[record.step, record.source, unit][record.execution, record.attempt] += amount
    total: dict[str, float] = defaultdict(float)
    for (_, _, unit), sums in tries.items():
        total[unit] += max(sums.values())
    return {unit: amount for unit, amount in total.items() if amount}


@given(st.lists(charges, max_size=30))
def test_the_ledger_equals_its_reference(records: list[RunCharged]) -> None:
    """Within a try charges add up, of several tries the largest counts; and the total never falls."""
    ledger, before = Ledger(), 0.0
    for seq, record in enumerate(records, 2):
        ledger.add(Entry(seq, 0.0, record))
        assert before <= sum(ledger.total.values())
        before = sum(ledger.total.values())

    assert reference(records) == {unit: amount for unit, amount in ledger.total.items() if amount}
    by_entry: dict[str, float] = {}
    for spent in ledger.entries().values():
        by_entry = plus(by_entry, spent)
    assert {u: a for u, a in ledger.total.items() if a} == {u: a for u, a in by_entry.items() if a}


@given(amounts, amounts)
def test_taking_away_what_was_added_changes_nothing(
    first: dict[str, float], second: dict[str, float]
) -> None:
    """`minus` undoes `plus`; a unit that was new is 0 then."""
    back = minus(plus(first, second), second)

    assert first == {unit: back[unit] for unit in first}
    assert all(back[unit] == 0 for unit in second.keys() - first.keys())


def test_other_records_are_ignored() -> None:
    """Only charges are money."""
    ledger = Ledger()
    ledger.add(Entry(2, 0.0, RunTagged(tags={"tokens": "5"})))

    assert {} == ledger.total


def test_a_budget_is_spent_when_a_limit_is_reached() -> None:
    """At the limit, not only beyond it; a limit of 0 from the start."""
    assert overrun({"tokens": 9.0}, {"tokens": 10.0}) is None
    assert "tokens" == overrun({"tokens": 10.0}, {"tokens": 10.0})
    assert "dollars" == overrun({}, {"tokens": 1.0, "dollars": 0.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1, "5", None, True])
def test_amounts_that_are_none_are_refused_by_name(bad: object) -> None:
    """The error names the unit and shows the value."""
    with pytest.raises(UsageError, match="tokens must be a finite number"):
        checked({"tokens": bad})  # type: ignore[dict-item]


def test_no_amount_is_refused() -> None:
    """A charge or budget without a unit says nothing."""
    with pytest.raises(UsageError, match="Say what"):
        checked({})
