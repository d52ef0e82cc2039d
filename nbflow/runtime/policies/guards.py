"""What every policy is, and how several go round one call: `guarded`.

The policies themselves are in `policies.py` and `bulkhead.py`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from nbflow.core.errors import BulkheadFull, CircuitOpen, RateLimited, UsageError

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

#: Errors by which policies refuse a call: they say nothing about what would have been called.
REFUSALS = (CircuitOpen, RateLimited, BulkheadFull)


class Policy(ABC):
    """Something that lets a call through, keeps it waiting or refuses it, and learns how it went.

    `with policy:`, `async with policy:`, `@policy` on a function, or
    `policies=[…]` of a durable function or a state.
    """

    @abstractmethod
    def admit(self, session: Session | None) -> object:
        """Let a call through and return its ticket; wait for that, or raise one of `REFUSALS`."""

    @abstractmethod
    async def admit_async(self, session: Session | None) -> object:
        """Do as `admit` without blocking the event loop."""

    @abstractmethod
    def settle(
        self, session: Session | None, ticket: object, error: BaseException | None, *, made: bool = True
    ) -> None:
        """Take note that the call is over, with what error; `made` is False where another policy refused it."""

    async def settle_async(
        self, session: Session | None, ticket: object, error: BaseException | None, *, made: bool = True
    ) -> None:
        """Do as `settle` without blocking the event loop."""
        self.settle(session, ticket, error, made=made)

    def __enter__(self) -> Self:
        session = attached()
        _push(self, session, self.admit(session))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, ticket = _pop(self)
        self.settle(session, ticket, error)

    async def __aenter__(self) -> Self:
        session = attached()
        _push(self, session, await self.admit_async(session))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, ticket = _pop(self)
        await self.settle_async(session, ticket, error)

    def __call__(self, function: Function) -> Function:
        """Put the policy round every call of a function, sync or async."""
        plain = inspect.unwrap(function)
        if (
            inspect.isgeneratorfunction(plain)
            or inspect.isasyncgenfunction(plain)
            or isinstance(function, type)
        ):
            raise UsageError(
                f"{function!r} is not called once and done, so {self!r} cannot go round it.",
                hint="Use `with` round the part that calls the service.",
            )
        if inspect.iscoroutinefunction(plain):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with self:
                    return await function(*args, **kwargs)

            return cast("Function", call_async)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("Function", call)


def guarded(policies: Sequence[Policy], session: Session | None, body: Callable[[], T]) -> T:
    """Call `body` with the policies round it, the first outermost.

    For one attempt of a step: a refusal fails the attempt, and a `RetryPolicy`
    waits at least the `retry_after` of it. A token that was taken is given back
    when a later policy refuses.

    Raises:
        CircuitOpen, RateLimited, BulkheadFull: `body` was not called.
        RunCancelled: the run is to stop; raised out of a policy's wait.
    """
    if not policies:
        return body()
    call = _Call(session)
    with contextlib.ExitStack() as stack:
        for policy in policies:
            stack.push(call.end(policy, policy.admit(session)))
        call.made = True
        return body()
    raise AssertionError("the end of a call swallows no exception")


async def guarded_async(
    policies: Sequence[Policy], session: Session | None, body: Callable[[], Awaitable[T]]
) -> T:
    """Do as `guarded` without blocking the event loop."""
    if not policies:
        return await body()
    call = _Call(session)
    async with contextlib.AsyncExitStack() as stack:
        for policy in policies:
            stack.push_async_exit(call.end_async(policy, await policy.admit_async(session)))
        call.made = True
        return await body()
    raise AssertionError("the end of a call swallows no exception")


class _Call:
    """One call under several policies, each of which is told of its end whatever the others do."""

    def __init__(self, session: Session | None) -> None:
        self.session = session
        self.made = False

    def end(self, policy: Policy, ticket: object) -> Callable[..., None]:
        def end(_kind: object, error: BaseException | None, _trace: object) -> None:
            policy.settle(self.session, ticket, error, made=self.made)

        return end

    def end_async(self, policy: Policy, ticket: object) -> Callable[..., Awaitable[None]]:
        async def end(_kind: object, error: BaseException | None, _trace: object) -> None:
            await policy.settle_async(self.session, ticket, error, made=self.made)

        return end


def policies_of(given: object) -> tuple[Policy, ...]:
    """Return what was given as `policies=`, one or several, as a tuple.

    Raises:
        UsageError: something else than a policy is among them.
    """
    found = (given,) if isinstance(given, Policy) or not isinstance(given, Iterable) else tuple(given)
    for policy in found:
        if not isinstance(policy, Policy):
            raise UsageError(
                f"policies takes circuit breakers, rate limits and bulkheads, not {policy!r}.",
                hint="A RetryPolicy goes to retries=.",
            )
    return found


#: What this thread or task has entered with `with` or `async with`, in order.
_entered: ContextVar[tuple[tuple[Policy, Session | None, object], ...]] = ContextVar(
    "nbflow_policies", default=()
)


def _push(policy: Policy, session: Session | None, ticket: object) -> None:
    _entered.set((*_entered.get(), (policy, session, ticket)))


def _pop(policy: Policy) -> tuple[Session | None, object]:
    stack = _entered.get()
    for place in range(len(stack) - 1, -1, -1):
        found, session, ticket = stack[place]
        if found is policy:
            _entered.set(stack[:place] + stack[place + 1 :])
            return session, ticket
    raise UsageError(f"{policy!r} is left in another thread or task than it was entered in.")


def attached() -> Session | None:
    """Return the session of this context; None outside any run."""
    from nbflow.runtime import active  # it imports the session, which tries steps with these policies

    return active.current()
