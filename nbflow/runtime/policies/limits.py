"""Policies round a call: circuit breakers and rate limits, in one process or shared between many.

What they decide is pure (`core/breaker.py`, `core/rate_limit.py`); here are the
objects that people use and the place where their state is kept. `guarded` puts
them round one attempt of a step.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from nbflow.core import breaker, rate_limit
from nbflow.core.errors import CircuitOpen, NbflowError, RateLimited, StepError, StoreError, UsageError
from nbflow.core.numbers import count
from nbflow.core.retry import RetryOn, condition, matches, seconds
from nbflow.runtime.policies.guards import REFUSALS, Policy, attached, guarded, guarded_async, policies_of

if TYPE_CHECKING:
    from nbflow.runtime.session import Session
    from nbflow.store.protocol import Store

__all__ = ["CircuitBreaker", "Policy", "RateLimit", "guarded", "guarded_async", "policies_of"]

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger("nbflow.policies")


class _Kept(Policy, Generic[S]):
    """A policy whose state is a value: in this object, or in the store under a name."""

    _initial: S
    _key: str
    shared: bool

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._state = self._initial

    def _change(self, session: Session | None, change: Callable[[S, float], tuple[S, T]]) -> T:
        """Change the state; `change` gets it and the time, which is asked while nobody else changes it."""
        now = session.clock.now if session is not None else time.time
        if not self.shared:
            with self._mutex:
                self._state, result = change(self._state, now())
            return result

        def change_bytes(raw: bytes | None) -> tuple[bytes | None, T]:
            before = self._decoded(raw)
            after, result = change(before, now())
            return (raw if after == before else msgspec.msgpack.encode(after)), result

        return _store(session).shared(self._key, change_bytes)

    async def _change_async(self, session: Session | None, change: Callable[[S, float], tuple[S, T]]) -> T:
        if not self.shared:
            return self._change(session, change)
        import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

        return await asyncio.to_thread(self._change, session, change)

    def _decoded(self, raw: bytes | None) -> S:
        if raw is None:
            return self._initial
        try:
            return msgspec.msgpack.decode(raw, type=type(self._initial))
        except (msgspec.DecodeError, msgspec.ValidationError):
            _log.warning("The shared state of %s cannot be read and begins anew.", self._key)
            return self._initial


class CircuitBreaker(_Kept[breaker.Circuit]):
    """Stops calling a service that fails, and tries it again carefully.

    After `failures` consecutive failures the circuit is open: calls raise
    `CircuitOpen` at once. `reset_after` later (seconds, or "30s") it is half-open
    and lets `probes` calls through at a time; the first success closes it, a
    failure opens it again. The outcome of a call that was begun in an earlier
    period changes nothing. A probe that does not report (its process was killed)
    makes room for another after `reset_after`.

    A failure is an exception in `failure_on` (classes or a predicate); others say
    that the service answered. Cancellations, refusals of other policies and
    nbflow's own trouble say nothing about it.

    With `shared=True` the state lies in the run's store (outside a run: in this
    folder's) under `name`, so that all processes see it; a success of a closed circuit writes nothing there.
    Without it, the state belongs to this object, and a copy in another process starts closed.

    Raises:
        UsageError: an argument makes no sense.

    Example:
        >>> prices = CircuitBreaker("prices", failures=2, reset_after="10s")
        >>> for _ in range(2):
        ...     try:
        ...         with prices:
        ...             raise ConnectionError
        ...     except ConnectionError:
        ...         pass
        >>> prices.phase
        'open'
    """

    _initial = breaker.Circuit()

    def __init__(
        self,
        name: str,
        failures: int = 5,
        reset_after: float | str = 30.0,
        probes: int = 1,
        *,
        shared: bool = False,
        failure_on: RetryOn = Exception,
    ) -> None:
        self.name = _named("A circuit breaker", name)
        self.rules = breaker.Rules(
            failures=count("failures", failures, least=1),
            reset_after=seconds(reset_after, "reset_after") or 0.0,
            probes=probes,
        )
        self.shared = _flag("shared", shared)
        self.failure_on = condition(failure_on, "failure_on")
        self._key = f"breaker:{self.name}"
        super().__init__()

    @property
    def phase(self) -> breaker.Phase:
        """What a call made now would find: "closed", "open" or "half-open"."""
        session = attached()
        return self._change(session, lambda state, now: (state, breaker.phase(self.rules, state, now)))

    def admit(self, session: Session | None) -> breaker.Ticket:
        """Let the call through, or raise `CircuitOpen`."""
        return self._admitted(self._change(session, functools.partial(breaker.allow, self.rules)))

    async def admit_async(self, session: Session | None) -> breaker.Ticket:
        """Do as `admit` without blocking the event loop."""
        return self._admitted(await self._change_async(session, functools.partial(breaker.allow, self.rules)))

    def _admitted(self, answer: breaker.Ticket | breaker.Refusal) -> breaker.Ticket:
        if isinstance(answer, breaker.Ticket):
            return answer
        left = answer.retry_after
        raise CircuitOpen(
            f"The circuit breaker {self.name!r} is open"
            + (f" for another {_spoken(left)}." if left else " until its probes have reported."),
            name=self.name,
            retry_after=left,
            hint="What it protects failed repeatedly; look there, or retry later (retries=…).",
        )

    def settle(
        self, session: Session | None, ticket: object, error: BaseException | None, *, made: bool = True
    ) -> None:
        """Count the outcome."""
        try:
            self._change(session, self._recording(ticket, error, made=made))
        except StoreError as problem:
            self._unsettled(problem)

    async def settle_async(
        self, session: Session | None, ticket: object, error: BaseException | None, *, made: bool = True
    ) -> None:
        """Count the outcome without blocking the event loop."""
        try:
            await self._change_async(session, self._recording(ticket, error, made=made))
        except StoreError as problem:
            self._unsettled(problem)

    def _recording(
        self, ticket: object, error: BaseException | None, *, made: bool
    ) -> Callable[[breaker.Circuit, float], tuple[breaker.Circuit, None]]:
        assert isinstance(ticket, breaker.Ticket)
        ok = self._verdict(error) if made else None
        return lambda state, now: (breaker.record(self.rules, state, ticket, ok, now), None)

    def _verdict(self, error: BaseException | None) -> bool | None:
        if error is None:
            return True
        if not isinstance(error, Exception) or isinstance(error, REFUSALS):
            return None
        if isinstance(error, NbflowError) and not isinstance(error, StepError):
            return None
        return not matches(self.failure_on, error)

    def _unsettled(self, problem: StoreError) -> None:
        # The call itself went as it went; failing it now would repeat its effects.
        _log.warning("The circuit breaker %r could not record an outcome: %s", self.name, problem)

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        rules = self.rules
        given = (self.name, rules.failures, rules.reset_after, rules.probes)
        options = {"shared": self.shared, "failure_on": self.failure_on}
        return _rebuilt, (type(self), given, options)


class RateLimit(_Kept[rate_limit.Buckets]):
    """Lets only so many calls through per time; several tiers at once.

    A tier is "10/s", "500/min", "10000/day", "3/10s" or (n, seconds). A call takes
    a token of every tier, or of none: then it raises `RateLimited`, which names the
    tier that takes longest and `retry_after`. A full bucket holds as many tokens as
    the tier has calls, so after a quiet time that many go through at once; `burst`
    sets it for the tier of the shortest time.

    With `wait=True` the call waits for its turn instead, first come first served;
    a wait inside a run ends when the run is cancelled, and the token is given back.
    With `shared=True` the buckets lie in the run's store (outside a run: in this
    folder's) under `name`, and all processes together keep the limit.

    Raises:
        UsageError: an argument makes no sense.

    Example:
        >>> limit = RateLimit("2/s", "100/min")
        >>> def ask():
        ...     with limit:
        ...         return "answer"
        >>> ask(), ask()
        ('answer', 'answer')
        >>> ask()
        Traceback (most recent call last):
        ...
        nbflow.core.errors.RateLimited: The rate limit '2/s, 100/min' allows 2/s; ...
    """

    _initial = rate_limit.Buckets()

    def __init__(
        self,
        *tiers: str | tuple[int, float] | rate_limit.Tier,
        name: str | None = None,
        shared: bool = False,
        wait: bool = False,
        burst: int | None = None,
    ) -> None:
        self.tiers = rate_limit.tiers(tiers, burst)
        self.shared = _flag("shared", shared)
        self.wait = _flag("wait", wait)
        if name is None and shared:
            raise UsageError("A shared rate limit needs a name.", hint='As in name="my api".')
        self.name = (
            ", ".join(tier.text for tier in self.tiers) if name is None else _named("A rate limit", name)
        )
        self._key = f"limit:{self.name}"
        super().__init__()

    def admit(self, session: Session | None) -> None:
        """Take a token, wait for one, or raise `RateLimited`."""
        if not self.wait:
            self._admitted(self._change(session, functools.partial(rate_limit.take, self.tiers)))
            return
        left = self._change(session, functools.partial(rate_limit.reserve, self.tiers))
        if left > 0:
            try:
                _sleep(session, left)
            except BaseException:
                self._give_back(session)
                raise

    async def admit_async(self, session: Session | None) -> None:
        """Do as `admit` without blocking the event loop."""
        if not self.wait:
            self._admitted(await self._change_async(session, functools.partial(rate_limit.take, self.tiers)))
            return
        left = await self._change_async(session, functools.partial(rate_limit.reserve, self.tiers))
        if left > 0:
            try:
                await _sleep_async(session, left)
            except BaseException:
                self._give_back(session)
                raise

    def _admitted(self, refusal: rate_limit.Refusal | None) -> None:
        if refusal is not None:
            raise RateLimited(
                f"The rate limit {self.name!r} allows {refusal.tier}; the next call may be made in "
                f"{_spoken(refusal.retry_after)}.",
                name=self.name,
                tier=refusal.tier,
                retry_after=refusal.retry_after,
                hint="Use wait=True to wait for it, or retries=….",
            )

    def settle(
        self,
        session: Session | None,
        ticket: object,  # noqa: ARG002 - there is none
        error: BaseException | None,  # noqa: ARG002 - a call that failed was made all the same
        *,
        made: bool = True,
    ) -> None:
        """Give the token of a call that was not made back."""
        if not made:
            self._give_back(session)

    def _give_back(self, session: Session | None) -> None:
        try:
            self._change(session, lambda state, _: (rate_limit.give_back(self.tiers, state), None))
        except StoreError as problem:
            _log.warning("The rate limit %r lost a token: %s", self.name, problem)

    def __repr__(self) -> str:
        return f"RateLimit({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"name": self.name, "shared": self.shared, "wait": self.wait}
        return _rebuilt, (type(self), self.tiers, options)


def _store(session: Session | None) -> Store:
    if session is not None:
        return session.store
    from nbflow.store.local import process_store

    return process_store()


def _sleep(session: Session | None, wait: float) -> None:
    if session is None:
        time.sleep(wait)
        return
    from nbflow.runtime.waits import (
        waiting,
    )  # it imports asyncio, which a script without waits need not pay for

    clock = session.clock
    end = clock.monotonic() + wait  # a token drips as time passes, whatever the wall clock is set to
    waiting.wait_until(session, lambda: clock.now() + end - clock.monotonic())


async def _sleep_async(session: Session | None, wait: float) -> None:
    if session is None:
        import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

        await asyncio.sleep(wait)
        return
    from nbflow.runtime.waits import waiting

    clock = session.clock
    end = clock.monotonic() + wait
    await waiting.wait_until_async(session, lambda: clock.now() + end - clock.monotonic())


def _spoken(wait: float) -> str:
    """Return a wait for a message: 1800 s, and not 1.8e+03 s."""
    return f"{wait:.0f} s" if wait >= 100 else f"{wait:.3g} s"


def _named(what: str, name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"{what} needs a name, not {name!r}.")
    return name


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} is True or False, not {value!r}.")
    return value


def _rebuilt(cls: Callable[..., T], args: tuple[Any, ...], options: dict[str, Any]) -> T:
    return cls(*args, **options)
