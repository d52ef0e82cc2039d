"""Retries: how long, how often, and what nonsense is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.retry import RetryPolicy, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", 30),
        ("1h 30m", 5400),
        ("250ms", 0.25),
        ("1.5", 1.5),
        (2, 2),
        ("2d", 172800),
        (None, None),
        ("1min", 60),
    ],
)
def test_durations_read_as_people_write_them(text: str | float | None, expected: float | None) -> None:
    """Units and plain numbers are both understood."""
    assert expected == seconds(text)


@pytest.mark.parametrize("bad", ["", "soon", "3 parsecs", "-1s", -1, math.nan, math.inf, "nan", "5s later"])
def test_nonsense_durations_are_refused(bad: str | float) -> None:
    """Negative, NaN, infinite or unreadable durations are a UsageError."""
    with pytest.raises(UsageError):
        seconds(bad)


@given(st.integers(1, 10_000), st.floats(0, 100), st.floats(0, 10), st.floats(0, 0.999999))
def test_waits_are_bounded(retry: int, delay: float, factor: float, drawn: float) -> None:
    """A wait is never negative, never over the bound, never NaN, however many retries there were."""
    policy = RetryPolicy(retries=retry, delay=delay, factor=factor, max_delay=30)

    assert 0 <= policy.wait(retry, lambda: drawn) <= 30


def test_backoff_doubles_up_to_the_limit() -> None:
    """Without jitter the waits are 1, 2, 4, 8, 8 …"""
    policy = RetryPolicy(retries=5, delay=1, max_delay=8, jitter=False)

    assert [1, 2, 4, 8, 8] == [policy.wait(n, lambda: 0.0) for n in range(1, 6)]


def test_only_matching_errors_are_tried_again() -> None:
    """`retry_on` takes classes or a predicate."""
    by_class = RetryPolicy(retries=2, retry_on=(OSError,))
    by_rule = RetryPolicy(retries=2, retry_on=lambda error: "busy" in str(error))

    assert by_class.again(1, ConnectionError()) and not by_class.again(1, ValueError())
    assert by_rule.again(2, ValueError("busy")) and not by_rule.again(3, ValueError("busy"))


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"retries": 1.5}, {"delay": math.nan}, {"max_delay": -1}]
)
def test_nonsense_policies_are_refused(options: dict[str, float]) -> None:
    """A policy that makes no sense fails when it is made, not when it is needed."""
    with pytest.raises(UsageError):
        RetryPolicy(**options)  # type: ignore[arg-type]
