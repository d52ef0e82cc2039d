"""When a failed attempt is tried again, and how long to wait first. Pure: no clock, no sleep.

Exponential backoff with full jitter, after Brooker, "Exponential Backoff And
Jitter" (AWS Architecture Blog, 2015). tenacity's strategies are accepted as
values; they are called with a `RetryState`, which has what they read.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from nbflow.core.errors import CircuitOpen, RateLimited, UsageError
from nbflow.core.numbers import count, finite

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")

RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[..., bool]


def seconds(duration: float | str | None, name: str = "A duration") -> float | None:
    """Return a duration in seconds; text such as "90s", "1h 30m" or "250ms" is understood.

    Raises:
        UsageError: negative, NaN, infinite, or not a duration; `name` says of what.

    >>> seconds("1h 30m"), seconds(2), seconds(None)
    (5400.0, 2.0, None)
    """
    if duration is None:
        return None
    value: object = duration
    if isinstance(duration, str):
        text = duration.strip()
        try:
            value = float(text)
        except ValueError:
            matches = _DURATION.findall(text)
            if not matches or _DURATION.sub("", text).strip():
                hint = 'Write "30s", "1h 30m" or a number of seconds.'
                raise UsageError(f"{name} cannot be {duration!r}.", hint=hint) from None
            value = sum(float(number) * _UNITS[unit] for number, unit in matches)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and found >= 0:
            return found
    raise UsageError(f"{name} must be a finite number of seconds from 0 up, not {duration!r}.")


class Outcome:
    """How the attempt ended, as tenacity's strategies ask a future: it failed with `exception()`."""

    failed = True

    def __init__(self, attempt_number: int, error: BaseException) -> None:
        self.attempt_number = attempt_number
        self._error = error

    def exception(self, timeout: float | None = None) -> BaseException:  # noqa: ARG002 - a future's signature
        """Return what the attempt raised."""
        return self._error

    def result(self, timeout: float | None = None) -> NoReturn:  # noqa: ARG002 - a future's signature
        """Raise what the attempt raised."""
        raise self._error

    def done(self) -> bool:
        """Tell that the attempt is over."""
        return True

    def cancelled(self) -> bool:
        """Tell that nobody cancelled it."""
        return False


@dataclass
class RetryState:
    """A failed attempt, as tenacity's wait, stop and retry strategies read it.

    `attempt_number` counts from 1, over restarts too; `seconds_since_start` runs
    from the beginning of the step's first attempt, over restarts too; `idle_for`
    is the seconds waited between attempts in this process.
    """

    attempt_number: int
    seconds_since_start: float
    outcome: Outcome
    idle_for: float = 0.0
    upcoming_sleep: float = 0.0
    start_time: float = 0.0
    outcome_timestamp: float = 0.0
    next_action: None = None
    retry_object: None = None
    fn: None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RetryPolicy:
    """How often a step is tried again.

    `retries` counts the tries after the first. The wait before retry n (from 1)
    is drawn between 0 and `min(max_delay, delay * factor ** (n - 1))` with
    `jitter`, and is that bound without. `CircuitOpen` and `RateLimited` say when
    the next call may succeed: no retry comes before, whatever the delay.

    `wait_strategy`, `stop_strategy` and `retry_on` may be tenacity's
    (`tenacity.wait_random_exponential(max=60)`, `tenacity.stop_after_delay(600)`,
    `tenacity.retry_if_exception_type(OSError)`) or callables of your own that take a
    `RetryState`; such a `wait_strategy` replaces delay, factor and jitter, such a
    `stop_strategy` replaces `retries`. `retry_on` otherwise is exception classes
    or a predicate of the exception.

    >>> RetryPolicy(retries=2, delay=1, jitter=False).wait(2, draw=lambda: 0.5)
    2.0
    """

    retries: int = 0
    delay: float = 0.5
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    retry_on: RetryOn = (Exception,)
    wait_strategy: Callable[[Any], float] | None = None
    stop_strategy: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        count("retries", self.retries)
        for name in ("delay", "factor", "max_delay"):
            finite(name, getattr(self, name))
        jitter: object = self.jitter  # callers are not all type-checked
        if not isinstance(jitter, bool):
            raise UsageError(f"jitter is True or False, not {jitter!r}.")
        object.__setattr__(self, "retry_on", condition(self.retry_on))
        for name in ("wait_strategy", "stop_strategy"):
            strategy = getattr(self, name)
            if strategy is not None and (not callable(strategy) or isinstance(strategy, type)):
                raise UsageError(
                    f"{name} must be a callable that takes a RetryState, not {strategy!r}.",
                    hint="tenacity's strategies are objects, as in tenacity.wait_fixed(2).",
                )
        if self.stop_strategy is not None and self.retries:
            raise UsageError(
                f"retries={self.retries} and a stop_strategy both say when to stop.",
                hint="Give one of them; tenacity.stop_after_attempt(n) counts the first try too.",
            )
        if self.wait_strategy is not None and self.stop_strategy is None and not self.retries:
            raise UsageError(
                "A wait_strategy without retries never waits.",
                hint="Give retries=n or a stop_strategy as well.",
            )

    @classmethod
    def none(cls) -> RetryPolicy:
        """Return the policy that never tries again.

        >>> RetryPolicy.none().again(1, OSError())
        False
        """
        return cls()

    @classmethod
    def fixed(cls, retries: int, delay: float | str, *, retry_on: RetryOn = Exception) -> RetryPolicy:
        """Return the policy that waits the same `delay` (seconds, or "2s") before each of `retries` tries.

        Raises:
            UsageError: naming the argument that makes no sense.

        >>> [RetryPolicy.fixed(3, "2s").wait(n, draw=lambda: 0.5) for n in (1, 2, 3)]
        [2.0, 2.0, 2.0]
        """
        wait = seconds(delay, "delay") or 0.0
        return cls(retries=retries, delay=wait, factor=1.0, max_delay=wait, jitter=False, retry_on=retry_on)

    @classmethod
    def exponential(
        cls,
        retries: int,
        delay: float | str = 0.5,
        factor: float = 2.0,
        max_delay: float | str = 60.0,
        *,
        jitter: bool = True,
        retry_on: RetryOn = Exception,
    ) -> RetryPolicy:
        """Return the policy whose waits grow by `factor` from `delay` up to `max_delay` (seconds, or "1m").

        Raises:
            UsageError: naming the argument that makes no sense.

        >>> policy = RetryPolicy.exponential(4, delay=1, max_delay="5s", jitter=False)
        >>> [policy.wait(n, draw=lambda: 0.5) for n in (1, 2, 3, 4)]
        [1.0, 2.0, 4.0, 5.0]
        """
        return cls(
            retries=retries,
            delay=seconds(delay, "delay") or 0.0,
            factor=factor,
            max_delay=seconds(max_delay, "max_delay") or 0.0,
            jitter=jitter,
            retry_on=retry_on,
        )

    def after(
        self,
        attempt: int,
        error: BaseException,
        draw: Callable[[], float],
        *,
        since_start: float = 0.0,
        idle: float = 0.0,
    ) -> float | None:
        """Return the seconds to wait after a failed attempt (from 1), None when it was the last.

        `draw` gives numbers in [0, 1); `since_start` and `idle` are the seconds since
        the first attempt began and those spent waiting.

        Raises:
            UsageError: a strategy answered what is no wait.

        >>> RetryPolicy.fixed(1, 2).after(1, OSError(), draw=lambda: 0.5)
        2.0
        """
        if self.stop_strategy is None and attempt > self.retries:
            return None
        state = RetryState(
            attempt_number=attempt,
            seconds_since_start=max(0.0, since_start),
            outcome=Outcome(attempt, error),
            idle_for=idle,
            outcome_timestamp=max(0.0, since_start),
        )
        if not self._matches(error, state):
            return None
        wait = self._backoff(attempt, draw) if self.wait_strategy is None else self._asked(state, draw)
        # Before that the answer is known: the circuit is open, the bucket is empty.
        wait = max(wait, error.retry_after) if isinstance(error, (CircuitOpen, RateLimited)) else wait
        state.upcoming_sleep = wait
        if self.stop_strategy is not None and self.stop_strategy(state):
            return None
        return wait

    def again(self, attempt: int, error: BaseException) -> bool:
        """Tell whether a failed attempt (from 1) is followed by another; `after` knows the time as well."""
        return self.after(attempt, error, lambda: 0.0) is not None

    def wait(self, retry: int, draw: Callable[[], float]) -> float:
        """Return the seconds to wait before retry number `retry` (from 1), whatever made it necessary."""
        if self.wait_strategy is None:
            return self._backoff(retry, draw)
        return self._asked(RetryState(retry, 0.0, Outcome(retry, Exception())), draw)

    def _matches(self, error: BaseException, state: RetryState) -> bool:
        rule = self.retry_on
        if isinstance(rule, tuple):
            return isinstance(error, rule)
        return bool(rule(state if _is_of_tenacity(rule) else error))

    def _backoff(self, retry: int, draw: Callable[[], float]) -> float:
        try:
            bound = min(self.max_delay, self.delay * self.factor ** (retry - 1)) if self.delay else 0.0
        except OverflowError:  # 2.0 ** 5000
            bound = self.max_delay
        return float(bound * draw() if self.jitter else bound)

    def _asked(self, state: RetryState, draw: Callable[[], float]) -> float:
        assert self.wait_strategy is not None
        # tenacity draws from the global generator, whose state belongs to the notebook: a cell that
        # was retried must see the same random numbers as one that was not.
        before = random.getstate()
        random.seed(draw())
        try:
            return finite("The answer of wait_strategy", self.wait_strategy(state))
        finally:
            random.setstate(before)


def matches(rule: RetryOn, error: BaseException) -> bool:
    """Tell whether exception classes or a predicate, as `condition` leaves them, take an error."""
    return isinstance(error, rule) if isinstance(rule, tuple) else bool(rule(error))


def condition(rule: object, name: str = "retry_on") -> tuple[type[BaseException], ...] | Callable[..., bool]:
    """Return exception classes as a tuple, a predicate as it is.

    Raises:
        UsageError: neither.

    >>> condition(OSError)
    (<class 'OSError'>,)
    """
    classes = rule if isinstance(rule, tuple) else (rule,)
    if all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        return classes
    if callable(rule) and not isinstance(rule, type):
        return rule
    raise UsageError(f"{name} takes exception classes or a predicate, not {rule!r}.")


def _is_of_tenacity(rule: object) -> bool:
    """Tell whether a rule is one of tenacity's, which take the state of the attempt and not its exception."""
    return any(base.__module__.partition(".")[0] == "tenacity" for base in type(rule).__mro__)
