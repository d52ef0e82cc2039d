"""Joins: what each of them needs, and that its verdicts never contradict each other."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.joins import Join, Verdict

PERCENTAGES = st.one_of(
    st.integers(1, 100),
    st.floats(0, 100, exclude_min=True, allow_subnormal=False).filter(lambda p: p > 1e-300),
    st.fractions(0, 100, max_denominator=1000).filter(bool),
)
JOINS = st.one_of(
    st.just(Join.all()),
    st.just(Join.any()),
    st.integers(1, 30).map(Join.quorum),
    PERCENTAGES.map(Join.percentage),
    st.builds(Join.partial, st.integers(0, 30), within=st.none() | st.floats(0, 1e6)),
)


@st.composite
def counts(draw):
    """A split at some time: its size, successes and failures."""
    total = draw(st.integers(1, 25))
    succeeded = draw(st.integers(0, total))
    return total, succeeded, draw(st.integers(0, total - succeeded))


@pytest.mark.parametrize(
    ("join", "total", "expected"),
    [
        (Join.all(), 3, 3),
        (Join.any(), 3, 1),
        (Join.quorum(2), 3, 2),
        (Join.percentage(60), 4, 3),
        (Join.percentage(33.4), 3, 2),
        (Join.percentage(33.3), 3, 1),
        (Join.percentage(7), 100, 7),
        (Join.percentage(0.1), 1000, 1),
        (Join.percentage(Decimal("66.6")), 1000, 666),
        (Join.percentage("100/3"), 3, 1),
        (Join.percentage(100), 7, 7),
        (Join.partial(), 5, 0),
        (Join.partial(2), 5, 2),
    ],
)
def test_each_join_needs_as_many_as_it_says(join: Join, total: int, expected: int) -> None:
    """A percentage is rounded up, exactly: 7 % of 100 are 7, and 33.4 % of 3 are 2."""
    assert expected == join.needed(total)


@given(st.integers(1, 100), st.integers(1, 500))
def test_a_percentage_is_the_least_count_that_reaches_it(percent: int, total: int) -> None:
    """What is needed reaches the percentage, and one less does not; a float says the same as an integer."""
    needed = Join.percentage(percent).needed(total)

    assert needed * 100 >= percent * total > (needed - 1) * 100
    assert needed == Join.percentage(float(percent)).needed(total)


@given(JOINS, counts(), st.booleans())
def test_a_join_does_not_wait_for_nothing(join: Join, numbers: tuple[int, int, int], expired: bool) -> None:
    """It never waits when all branches ended or the time is over."""
    total, succeeded, failed = numbers
    verdict = join.verdict(total, succeeded, failed, expired=expired)

    if expired or succeeded + failed == total:
        assert Verdict.WAIT is not verdict
        assert (verdict is Verdict.SATISFIED) == (succeeded >= join.needed(total))


@given(JOINS, counts())
def test_a_join_is_impossible_exactly_when_the_rest_cannot_suffice(
    join: Join, numbers: tuple[int, int, int]
) -> None:
    """As long as the branches that still run could make it, it is not given up; and no longer."""
    total, succeeded, failed = numbers

    assert (total - failed < join.needed(total)) == (join.verdict(*numbers) is Verdict.IMPOSSIBLE)


@given(JOINS, counts(), st.booleans())
def test_more_successes_keep_a_satisfied_join(
    join: Join, numbers: tuple[int, int, int], expired: bool
) -> None:
    """A join that is satisfied stays so, and one that is impossible stays that, however the others end."""
    total, succeeded, failed = numbers
    verdict = join.verdict(total, succeeded, failed, expired=expired)
    for more in range(total - succeeded - failed + 1):
        later = join.verdict(total, succeeded + more, failed, expired=expired)
        if verdict is Verdict.SATISFIED:
            assert Verdict.SATISFIED is later
        if verdict is Verdict.IMPOSSIBLE and not expired:
            assert Verdict.IMPOSSIBLE is later
            assert Verdict.IMPOSSIBLE is join.verdict(total, succeeded, failed + more)


def test_only_partial_waits_for_more_than_it_needs() -> None:
    """Any, quorum and percentage are satisfied early; partial waits for all, or for the end of its time."""
    assert Verdict.SATISFIED is Join.any().verdict(3, 1, 0)
    assert Verdict.SATISFIED is Join.quorum(2).verdict(3, 2, 0)
    assert Verdict.WAIT is Join.partial(1).verdict(3, 2, 0)
    assert Verdict.SATISFIED is Join.partial(1).verdict(3, 2, 0, expired=True)
    assert Verdict.IMPOSSIBLE is Join.partial(2).verdict(3, 1, 0, expired=True)
    assert Verdict.SATISFIED is Join.partial().verdict(3, 0, 3)


@given(JOINS)
def test_a_join_survives_its_record(join: Join) -> None:
    """The text form gives the same join back."""
    assert join == Join.parse(join.text())


@pytest.mark.parametrize(
    "text",
    ["", "most", "all(1)", "quorum", "quorum()", "quorum(0)", "quorum(2.5)", "quorum(-1)", "percentage(0)"]
    + ["percentage(101)", "percentage(nan)", "percentage(1/0)", "percentage(1e-999999999)", "partial"]
    + ["partial(0, within=-1)", "any(2)", "quorum(2, within=3)", "percentage(5, within=3)", "all "],
)
def test_text_that_is_no_join_is_refused(text: str) -> None:
    """A typed error, also for numbers that would fill the memory."""
    with pytest.raises(UsageError):
        Join.parse(text)


@pytest.mark.parametrize(
    "p", [0, -1, 100.1, math.nan, math.inf, True, None, "half", [], Fraction(101), 10**400]
)
def test_nonsense_percentages_are_refused(p: object) -> None:
    """Only numbers above 0 and up to 100 are percentages."""
    with pytest.raises(UsageError, match="percentage"):
        Join.percentage(p)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Join.quorum(0),
        lambda: Join.quorum(True),
        lambda: Join.quorum(1.5),
        lambda: Join.partial(-1),
        lambda: Join.partial(within=-1),
        lambda: Join.partial(within=math.nan),
        lambda: Join.all().needed(0),
        lambda: Join.all().verdict(3, 2, 2),
        lambda: Join.all().verdict(3, -1, 0),
    ],
)
def test_nonsense_counts_are_refused(make) -> None:
    """Quorums, minimums and counts that contradict each other are typed errors."""
    with pytest.raises(UsageError):
        make()
