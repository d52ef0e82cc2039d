"""Retries: how long, how often, and what nonsense is refused."""

from __future__ import annotations

import math
import pickle
import random

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import CircuitOpen, RateLimited, UsageError
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


BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, True, "2", None, 10**400]


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("field", ["retries", "delay", "factor", "max_delay"])
def test_every_bad_number_is_refused_by_the_name_of_its_field(field: str, bad: object) -> None:
    """NaN, infinite, negative, bool, text and None are a UsageError that names the field."""
    if (field, bad) == ("retries", 10**400):
        return  # a whole number, if an odd one
    with pytest.raises(UsageError, match=field):
        RetryPolicy(**{field: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, True, "soon", "-2s"])
@pytest.mark.parametrize(
    ("make", "field"), [("fixed", "delay"), ("exponential", "delay"), ("exponential", "max_delay")]
)
def test_the_helper_constructors_name_the_field_as_well(make: str, field: str, bad: object) -> None:
    """`fixed` and `exponential` read durations and refuse nonsense by name."""
    arguments = {"retries": 1, "delay": 1, field: bad}
    with pytest.raises(UsageError, match=field):
        getattr(RetryPolicy, make)(**arguments)


def test_no_policy_fixed_and_exponential_wait_as_they_say() -> None:
    """None never again; fixed the same wait each time, exponential a growing one up to its limit."""
    fixed = RetryPolicy.fixed(2, "90s")
    growing = RetryPolicy.exponential(3, delay=1, factor=3, max_delay="5s", jitter=False)

    assert not RetryPolicy.none().again(1, OSError())
    assert [90, 90, None] == [fixed.after(n, OSError(), lambda: 0.1) for n in (1, 2, 3)]
    assert [1, 3, 5, None] == [growing.after(n, OSError(), lambda: 0.1) for n in (1, 2, 3, 4)]


def test_a_class_given_alone_is_no_predicate() -> None:
    """`retry_on=OSError` means the class: calling it would make every error true."""
    policy = RetryPolicy(retries=1, retry_on=OSError)

    assert (True, False) == (policy.again(1, OSError()), policy.again(1, ValueError()))


@pytest.mark.parametrize("bad", [3, "OSError", (OSError, 3), int])
def test_a_retry_on_that_is_neither_class_nor_predicate_is_refused(bad: object) -> None:
    """What cannot be asked about an exception fails when the policy is made."""
    with pytest.raises(UsageError, match="retry_on"):
        RetryPolicy(retries=1, retry_on=bad)  # type: ignore[arg-type]


@given(st.floats(0, 100), st.floats(0, 1e300), st.integers(1, 5))
def test_a_refusal_says_the_least_wait(delay: float, retry_after: float, attempt: int) -> None:
    """No retry comes before an open circuit or an empty bucket says it makes sense."""
    policy = RetryPolicy.exponential(5, delay=delay, max_delay=60)
    waits = [
        policy.after(attempt, error, lambda: 0.0)
        for error in (CircuitOpen("", retry_after=retry_after), RateLimited("", retry_after=retry_after))
    ]

    assert [retry_after, retry_after] == waits
    assert 0.0 == policy.after(attempt, OSError(), lambda: 0.0)


def test_tenacity_waits_and_stops_are_values() -> None:
    """Its wait strategy gives the waits, its stop strategy the end, counted from the first attempt."""
    policy = RetryPolicy(
        wait_strategy=tenacity.wait_exponential(multiplier=1, max=5) + tenacity.wait_fixed(1),
        stop_strategy=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(60),
    )

    assert [2, 3, 5, None] == [policy.after(n, OSError(), lambda: 0.5) for n in (1, 2, 3, 4)]
    assert policy.after(1, OSError(), lambda: 0.5, since_start=59.9) == 2
    assert policy.after(1, OSError(), lambda: 0.5, since_start=60) is None


def test_stopping_before_a_delay_sees_the_coming_wait() -> None:
    """tenacity's stop_before_delay adds the wait that would come."""
    policy = RetryPolicy(wait_strategy=tenacity.wait_fixed(10), stop_strategy=tenacity.stop_before_delay(60))

    assert policy.after(1, OSError(), lambda: 0.5, since_start=49) == 10
    assert policy.after(1, OSError(), lambda: 0.5, since_start=50) is None


def test_tenacity_retry_rules_are_asked_about_the_outcome() -> None:
    """Type, message, cause and combinations of them decide as they do in tenacity."""
    rule = tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_message(match="busy")
    policy = RetryPolicy(retries=3, retry_on=rule)

    assert [True, True, False] == [
        policy.again(1, error) for error in (ConnectionError(), ValueError("busy"), ValueError("no"))
    ]
    assert not RetryPolicy(retries=3, retry_on=tenacity.retry_if_result(bool)).again(1, OSError())


@given(st.integers(1, 1000), st.floats(0, 0.999))
def test_tenacity_draws_leave_the_global_generator_alone(attempt: int, drawn: float) -> None:
    """A retried cell sees the same random numbers as one that was not; the wait hangs on our own draw only."""
    policy = RetryPolicy(retries=1000, wait_strategy=tenacity.wait_random_exponential(max=60))
    random.seed(attempt)
    before = random.getstate()

    first = policy.wait(attempt, lambda: drawn)

    assert before == random.getstate()
    assert 0 <= first <= 60
    assert first == policy.wait(attempt, lambda: drawn)


@pytest.mark.parametrize("answer", [math.nan, math.inf, -1.0, "soon", None])
def test_a_wait_that_is_none_is_an_error(answer: object) -> None:
    """A strategy's nonsense is a UsageError, not a wait for ever."""
    with pytest.raises(UsageError, match="wait_strategy"):
        RetryPolicy(retries=1, wait_strategy=lambda state: answer).after(1, OSError(), lambda: 0.0)  # type: ignore[arg-type,return-value]


def test_contradicting_strategies_are_refused() -> None:
    """Two ends, a wait that never comes, and classes in place of objects are mistakes."""
    for bad in (
        {"retries": 2, "stop_strategy": tenacity.stop_after_attempt(3)},
        {"wait_strategy": tenacity.wait_fixed(1)},
        {"retries": 2, "wait_strategy": tenacity.wait_fixed},
        {"stop_strategy": 3},
        {"jitter": 1},
    ):
        with pytest.raises(UsageError):
            RetryPolicy(**bad)  # type: ignore[arg-type]


def test_policies_are_values() -> None:
    """Equal policies hash alike and come back equal from a pickle, tenacity's strategies included."""
    policy = RetryPolicy.exponential(3, "2s", retry_on=(OSError, ValueError))
    with_strategies = RetryPolicy(
        wait_strategy=tenacity.wait_random_exponential(max=5), stop_strategy=tenacity.stop_after_attempt(3)
    )
    restored = pickle.loads(pickle.dumps(with_strategies))

    assert policy == pickle.loads(pickle.dumps(policy))
    assert hash(policy) == hash(RetryPolicy.exponential(3, "2s", retry_on=(OSError, ValueError)))
    assert [restored.after(n, OSError(), lambda: 0.5) for n in (1, 2, 3)] == [
        with_strategies.after(n, OSError(), lambda: 0.5) for n in (1, 2, 3)
    ]
