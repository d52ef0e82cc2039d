"""`@durable`: functions whose every call is a recorded step.

A call is known by its signature (the function's code, or its declared version,
and its arguments) and by its occurrence number within the enclosing cell or
step. A recorded call gives its result back; any other runs and is recorded.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from nbflow.core.errors import NoActiveRun, UsageError
from nbflow.core.history import Execution
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.core.signature import digest, short
from nbflow.runtime import active, modes
from nbflow.runtime.scope import Scope, entered
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.runtime.surroundings import around, replayed
from nbflow.values.code_digest import function_identity
from nbflow.values.fingerprint import fingerprint

P = ParamSpec("P")
R = TypeVar("R")

#: The name under which a call's result is recorded.
RESULT = "return"


@dataclass(frozen=True)
class Options:
    """What `@durable` was told."""

    name: str | None = None
    version: str | None = None
    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    durability: Literal["synced", "buffered"] = "synced"
    check: bool = False


@dataclass(frozen=True)
class _Place:
    """Where a call stands in the scope around it, and the scope that its own body gets."""

    outer: Scope
    call: str
    number: int
    name: str
    step: str

    def inside(self) -> Scope:
        """Return the scope of the body's calls: counted afresh, so that a retry finds what the first try had done."""
        return Scope(self.name, self.step)

    def give_back(self) -> None:
        """Uncount a call that failed."""
        self.outer.give_back(self.call, self.number)


class DurableFunction(Generic[P, R]):
    """A function whose calls are recorded; made by `nbflow.durable`.

    `plain` is the function itself: `fetch.plain(day)` runs it unrecorded.
    """

    plain: Callable[P, R]

    def __init__(self, plain: Callable[P, R], options: Options) -> None:
        functools.update_wrapper(self, plain)
        self.plain = plain
        self.options = options
        self.step_name = options.name or plain.__qualname__.replace("<locals>.", "")
        self._signature: inspect.Signature | None = None
        self._is_async = inspect.iscoroutinefunction(plain)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the recorded result of this call, or run it and record it."""
        if self._is_async:
            return cast("R", self._call_async(args, kwargs))
        session, spec, place = self._prepare(args, kwargs)
        execution = session.find(spec.step, spec.signature)
        if execution is not None:
            return cast("R", replayed(session, execution)[RESULT])
        value: list[R] = []

        def body(_attempt: int) -> StepResult:
            surroundings = around(session)
            before = surroundings.look() if surroundings else None
            with entered(place.inside()):
                result = self.plain(*args, **kwargs)
            value[:] = [result]
            return StepResult({RESULT: result}, state=surroundings.moved(before) if surroundings else None)

        try:
            execution = session.run_step(spec, body)
        except BaseException:
            place.give_back()
            raise
        return cast("R", session.restore(execution)[RESULT]) if modes.current() == "evict" else value[0]

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        session, spec, place = self._prepare(args, kwargs)
        execution = session.find(spec.step, spec.signature)
        if execution is not None:
            return replayed(session, execution)[RESULT]
        value: list[Any] = []

        async def body(_attempt: int) -> StepResult:
            surroundings = around(session)
            before = surroundings.look() if surroundings else None
            with entered(place.inside()):
                result = await cast("Awaitable[Any]", self.plain(*args, **kwargs))
            value[:] = [result]
            return StepResult({RESULT: result}, state=surroundings.moved(before) if surroundings else None)

        try:
            execution = await session.run_step_async(spec, body)
        except BaseException:
            place.give_back()
            raise
        return session.restore(execution)[RESULT] if modes.current() == "evict" else value[0]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind as a method does; `self` is one of the arguments."""
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<durable {self.step_name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _durable_function, (self.plain, self.options)

    def recorded(self, *args: P.args, **kwargs: P.kwargs) -> Execution | None:
        """Return the newest recorded execution of such a call in the current run, in any scope; None when none is."""
        session = active.current()
        if session is None:
            return None
        signature = digest(b"call", *self._identity(args, kwargs))
        found = [
            execution
            for execution in session.history.executions.values()
            if execution.completed and not execution.forgotten and execution.started.signature == signature
        ]
        return found[-1] if found else None

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Session, StepSpec, _Place]:
        try:
            session = active.required()
        except NoActiveRun as error:
            error.step = self.step_name
            raise
        code, given = self._identity(args, kwargs)
        signature = digest(b"call", code, given)
        outer = session.scope()
        call = f"{self.step_name}:{short(signature)}"
        number = outer.occurrence(call)
        options = self.options
        spec = StepSpec(
            step=outer.within(f"{call}#{number}"),
            name=self.step_name,
            kind="call",
            signature=signature,
            retry=options.retry,
            timeout=options.timeout,
            parent=outer.step or None,
            version=options.version or "",
            durability=options.durability,
            check=options.check,
        )
        inner = outer.within(f"{self.step_name}@{short(given)}#{number}")
        return session, spec, _Place(outer, call, number, inner, spec.step)

    def _identity(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Return the digests of the code (with the data it captures) and of the arguments."""
        if kwargs:  # f(1) and f(day=1) are the same work
            if self._signature is None:
                self._signature = inspect.signature(self.plain)
            bound = self._signature.bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        if self.options.version is not None:
            code = digest("version", self.step_name, self.options.version)
        else:
            code, captured = function_identity(self.plain)
            if captured:
                code = digest(code, *_fingerprints(captured))
        given = (args, tuple(sorted(kwargs.items()))) if kwargs else args
        return code, fingerprint(given).digest


def _fingerprints(captured: dict[str, Any]) -> list[bytes]:
    """Return what the captured data adds to a signature.

    Iterators are positions, not data; and what has no stable fingerprint
    (a connection, a lock) would make every call new in every process.
    """
    parts: list[bytes] = []
    for name, value in captured.items():
        if isinstance(value, Iterator):
            continue
        found = fingerprint(value)
        if found.stable:
            parts += (name.encode(), found.digest)
    return parts


def _durable_function(plain: Callable[..., Any], options: Options) -> DurableFunction[..., Any]:
    return DurableFunction(plain, options)


@overload
def durable(function: Callable[P, R], /) -> DurableFunction[P, R]: ...


@overload
def durable(
    *,
    name: str | None = ...,
    version: str | None = ...,
    retries: int | RetryPolicy = ...,
    delay: float | str = ...,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = ...,
    timeout: float | str | None = ...,
    durability: Literal["sync", "async"] = ...,
    check: bool = ...,
) -> Callable[[Callable[P, R]], DurableFunction[P, R]]: ...


def durable(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    retries: int | RetryPolicy = 0,
    delay: float | str = 0.5,
    retry_on: type[BaseException]
    | tuple[type[BaseException], ...]
    | Callable[[BaseException], bool] = Exception,
    timeout: float | str | None = None,
    durability: Literal["sync", "async"] = "sync",
    check: bool = False,
) -> Any:
    """Record every call of a function, so that a resumed run does not repeat it.

    Works on sync and async functions and on methods.

    Args:
        function: what to make durable, where the decorator is used without options.
        name: what the step is called; the function's qualified name by default.
        version: stands for the code in the signature; without it a change of the
            function, or of a notebook helper that it calls, makes its calls run again.
        retries: how many more tries after a failure, or a whole `RetryPolicy`.
        delay: seconds before the first retry, doubled each time, with full jitter.
        retry_on: the exceptions that are worth another try, or a predicate.
        timeout: seconds (or "30s", "5m") that one attempt may take.
        durability: "sync" is on disk when the call returns. "async", for pure work,
            returns at once and is on disk within 10 ms; a crash costs that tail.
        check: restore each result once before it is recorded; one that comes back
            different (a `__reduce__` that lies) fails the step with `CannotStore`.

    Raises:
        UsageError: an option makes no sense.
        NoActiveRun: on a call outside any run.

    Example:
        >>> import nbflow
        >>> @nbflow.durable(retries=3, timeout="30s")
        ... def fetch(day):
        ...     return day.upper()
        >>> with nbflow.run("example"):
        ...     fetch("monday")
        'MONDAY'
    """
    if durability not in ("sync", "async"):
        raise UsageError(f'durability is "sync" or "async", not {durability!r}.')
    policy = (
        retries
        if isinstance(retries, RetryPolicy)
        else RetryPolicy(retries=retries, delay=seconds(delay) or 0.0, retry_on=_condition(retry_on))
    )
    limit = seconds(timeout)
    if limit == 0:
        raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
    options = Options(
        name=name,
        version=version,
        retry=policy,
        timeout=limit,
        durability="synced" if durability == "sync" else "buffered",
        check=check,
    )

    def decorate(plain: Any) -> DurableFunction[..., Any]:
        if not callable(plain) or inspect.isclass(plain):
            raise UsageError(f"@durable wants a function, not {plain!r}.")
        if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
            raise UsageError(
                f"{plain.__qualname__} is a generator, whose result cannot be recorded.",
                hint="Return a list, or make each item a durable call of its own.",
            )
        if isinstance(plain, (staticmethod, classmethod)):
            raise UsageError("Put @durable below @staticmethod or @classmethod.")
        return DurableFunction(plain, options)

    return decorate if function is None else decorate(function)


def _condition(
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool],
) -> tuple[type[BaseException], ...] | Callable[[BaseException], bool]:
    if isinstance(retry_on, type):
        return (retry_on,)
    return retry_on
