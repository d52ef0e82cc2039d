"""Token buckets: never too many, never nobody, and no tricks with the clock."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.rate_limit import Buckets, Tier, give_back, reserve, take, tiers

LIMITS = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from([0.5, 1.0, 7.0, 60.0, 3600.0])),
    min_size=1,
    max_size=3,
    unique=True,
)
BURSTS = st.none() | st.integers(1, 30)
STEPS = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.3, 1.0, 2.5, 10.0, 61.0, 4000.0]), max_size=120)


def within_bounds(limits: tuple[Tier, ...], uses: list[float]) -> bool:
    """Tell whether each window between two uses holds at most rate · window + burst of them."""
    return all(
        last - first + 1 <= (uses[last] - uses[first] + 1e-5) * tier.number / tier.seconds + tier.burst + 1e-6
        for tier in limits
        for first in range(len(uses))
        for last in range(first, len(uses))
    )


@pytest.mark.parametrize(
    ("text", "number", "seconds"),
    [
        ("10/s", 10, 1),
        ("500/min", 500, 60),
        ("10000/day", 10000, 86400),
        ("3/10s", 3, 10),
        (" 5 / 2 h ", 5, 7200),
        ((3, 10), 3, 10),
        ((3, 0.5), 3, 0.5),
    ],
)
def test_rates_read_as_people_write_them(text: object, number: int, seconds: float) -> None:
    """Text and pairs mean calls per time; a quiet tier allows all its calls at once."""
    tier = Tier.of(text)

    assert (number, seconds, number) == (tier.number, tier.seconds, tier.burst)


@pytest.mark.parametrize(
    "bad",
    [
        "", "10", "10/", "/s", "ten/s", "10/parsec", "0/s", "-1/s", "1.5/s", "10/0s", 10, None, True, (10,), (0, 1),
        (True, 1), (1, True), (1, 0), (1, -1), (1, math.nan), (1, math.inf), (math.nan, 1), (1.5, 1), ("9" * 400 + "/s"),
    ],
)  # fmt: skip
def test_nonsense_rates_are_refused(bad: object) -> None:
    """NaN, zero, negative, bool and unreadable rates are a UsageError that shows them."""
    with pytest.raises(UsageError):
        tiers([bad])


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, math.nan, math.inf])
def test_a_nonsense_burst_is_refused_by_name(bad: object) -> None:
    """`burst` is a whole number from 1 up."""
    with pytest.raises(UsageError, match="burst"):
        tiers(["10/s"], bad)


def test_no_rate_and_a_rate_twice_are_refused() -> None:
    """Both are mistakes."""
    for bad in ([], ["10/s", "10/s"]):
        with pytest.raises(UsageError):
            tiers(bad)


def test_a_refusal_names_the_tier_that_takes_longest() -> None:
    """Two calls a second, three a minute: the fourth waits for the minute."""
    limits = tiers(["2/s", "3/min"])
    state, refusals = Buckets(), []
    for now in (0.0, 0.0, 0.0, 0.5, 1.0):
        state, refusal = take(limits, state, now)
        refusals.append(refusal and (refusal.tier, round(refusal.retry_after, 3)))

    assert [None, None, ("2/s", 0.5), None, ("3/min", 19.0)] == refusals


def test_a_refused_call_takes_from_no_tier() -> None:
    """However often the narrow tier refuses, the wide one stays as full as it was."""
    limits = tiers(["1/s", "3/day"])
    state, _ = take(limits, Buckets(), 0.0)
    for _ in range(100):
        state, refusal = take(limits, state, 0.0)
        assert refusal is not None and refusal.tier == "1/s"

    assert 1.0 == state.by_tier["3/day"].missing
    for now in (1.1, 2.2):
        state, refusal = take(limits, state, now)
        assert refusal is None


def test_burst_is_what_goes_through_at_once() -> None:
    """It replaces the number of the shortest tier."""
    limits = tiers(["10/s", "100/min"], burst=2)
    state, granted = Buckets(), 0
    for _ in range(10):
        state, refusal = take(limits, state, 0.0)
        granted += refusal is None

    assert 2 == granted


@given(LIMITS, BURSTS, STEPS)
def test_no_window_holds_more_than_rate_and_burst(
    given_tiers: list, burst: int | None, steps: list[float]
) -> None:
    """Over any window, in every tier: granted ≤ rate · window + burst."""
    limits = tiers(given_tiers, burst)
    state, now, granted = Buckets(), 1_750_000_000.0, []
    for step in steps:
        now += step
        state, refusal = take(limits, state, now)
        if refusal is None:
            granted.append(now)

    assert within_bounds(limits, granted)


@given(LIMITS, BURSTS, STEPS)
def test_whoever_waits_as_told_is_let_in(given_tiers: list, burst: int | None, steps: list[float]) -> None:
    """No starvation: after `retry_after` alone, the call is granted; and never is it more than a token's time."""
    limits = tiers(given_tiers, burst)
    slowest = max(tier.seconds / tier.number for tier in limits)
    state, now = Buckets(), 1_750_000_000.0
    for step in steps:
        now += step
        state, refusal = take(limits, state, now)
        if refusal is not None:
            assert 0 < refusal.retry_after <= slowest + 1e-5
            now += refusal.retry_after
            state, refusal = take(limits, state, now)
            assert refusal is None


@given(LIMITS, BURSTS, STEPS)
def test_reserved_calls_keep_the_limit_and_their_order(
    given_tiers: list, burst: int | None, steps: list[float]
) -> None:
    """Calls that wait for their token come in the order in which they asked, and no window holds too many."""
    limits = tiers(given_tiers, burst)
    state, now, uses = Buckets(), 1_750_000_000.0, []
    for step in steps:
        now += step
        state, wait = reserve(limits, state, now)
        uses.append(now + wait)

    assert all(before <= after + 1e-5 for before, after in zip(uses, uses[1:], strict=False))
    assert within_bounds(limits, sorted(uses))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.1]), st.sampled_from([0.0, -0.5, -0.9])),
        min_size=20,
        max_size=100,
    )
)
def test_a_clock_that_trembles_mints_nothing(steps: list[tuple[float, float]]) -> None:
    """Steps back of less than a second are never counted twice."""
    limits = tiers(["5/s"])
    state, latest, granted = Buckets(), 1000.0, 0
    for forward, back in steps:
        latest += forward
        state, refusal = take(limits, state, latest + back)
        granted += refusal is None

    assert granted <= (latest - 1000.0 + 0.9) * 5 + 5 + 1e-6


@pytest.mark.parametrize("back", [2.0, 3600.0, 1e9])
def test_a_clock_set_back_neither_mints_nor_loses(back: float) -> None:
    """An empty bucket stays empty at that moment, and fills at its rate from there."""
    limits = tiers(["2/s"])
    state = Buckets()
    for _ in range(2):
        state, _ = take(limits, state, 2e9)
    state, refusal = take(limits, state, 2e9 - back)
    assert refusal is not None and refusal.retry_after < 0.6
    state, refusal = take(limits, state, 2e9 - back + 0.6)

    assert refusal is None
    assert take(limits, state, 2e9 - back + 0.6)[1] is not None


@given(LIMITS, st.integers(1, 30))
def test_what_is_given_back_can_be_taken_again(given_tiers: list, calls: int) -> None:
    """Taking and giving back any number of times leaves all tokens there."""
    limits = tiers(given_tiers)
    state = Buckets()
    for _ in range(calls):
        state, refusal = take(limits, state, 5.0)
        assert refusal is None
        state = give_back(limits, state)

    assert all(bucket.missing == 0 for bucket in state.by_tier.values())


def test_another_setting_leaves_the_other_tiers_alone() -> None:
    """Processes with an older setting of a shared limit do not empty or fill what they do not know."""
    old, new = tiers(["1/s"]), tiers(["1/s", "1/day"])
    state, _ = take(new, Buckets(), 0.0)
    state, _ = take(old, state, 10.0)
    _, refusal = take(new, state, 20.0)

    assert refusal is not None and refusal.tier == "1/day"


def test_the_state_is_a_value() -> None:
    """It comes back from MessagePack equal."""
    state, _ = take(tiers(["10/s", (3, 7)]), Buckets(), 1_750_000_000.25)

    assert state == msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Buckets)
