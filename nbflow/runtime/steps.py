"""`@durable`: functions whose every call is a recorded step.

A call is known by its signature (the function's code, or its declared version,
and its arguments) and by its occurrence number within the enclosing cell or
step. A recorded call gives its result back; any other runs and is recorded.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from nbflow.core.errors import NoActiveRun, UsageError
from nbflow.core.history import Execution
from nbflow.core.model import Struct
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.core.signature import digest, short
from nbflow.core.states import COMPENSATE
from nbflow.runtime import active
from nbflow.runtime.policies.guards import Policy, policies_of
from nbflow.runtime.scope import Scope, entered
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.runtime.surroundings import around, replayed
from nbflow.values.code_digest import function_identity
from nbflow.values.fingerprint import fingerprint

P = ParamSpec("P")
R = TypeVar("R")

#: The name under which a call's result is recorded.
RESULT = "return"
#: … and its arguments, where they are needed to undo it.
ARGS, KWARGS = "args", "kwargs"


@dataclass(frozen=True)
class Options:
    """What `@durable` was told."""

    name: str | None = None
    version: str | None = None
    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    durability: Literal["synced", "buffered"] = "synced"
    check: bool = False
    compensate: Callable[..., Any] | None = None
    policies: tuple[Policy, ...] = ()


class _Place(Struct, frozen=True):
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
            state = surroundings.moved(before) if surroundings else None
            return StepResult(self._values(result, args, kwargs), state=state)

        try:
            execution = session.run_step(spec, body)
        except BaseException:
            place.give_back()
            raise
        return cast("R", session.restore(execution)[RESULT]) if session.evicting else value[0]

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
            state = surroundings.moved(before) if surroundings else None
            return StepResult(self._values(result, args, kwargs), state=state)

        try:
            execution = await session.run_step_async(spec, body)
        except BaseException:
            place.give_back()
            raise
        return session.restore(execution)[RESULT] if session.evicting else value[0]

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

    # --- undoing -----------------------------------------------------------------------------------------------

    @property
    def compensated_as(self) -> str:
        """The name under which the compensator of a recorded call is found again."""
        return f"{self.plain.__module__}:{self.step_name}"

    @property
    def retry(self) -> RetryPolicy:
        """How the function is retried, and its compensator too."""
        return self.options.retry

    def undo(self, values: dict[str, Any]) -> object:
        """Undo a call that recorded these values; await what it returns if that is to be awaited."""
        assert self.options.compensate is not None, "only what has a compensator is registered"
        return self.options.compensate(values[RESULT], *values.get(ARGS, ()), **values.get(KWARGS, {}))

    def _values(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what is recorded of a call."""
        if self.options.compensate is None:
            return {RESULT: result}
        return {RESULT: result, ARGS: list(args), KWARGS: kwargs}  # a list is JSON where its items are

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
            detail={COMPENSATE: self.compensated_as} if options.compensate is not None else {},
            durability=options.durability,
            check=options.check,
            policies=options.policies,
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
    function: DurableFunction[..., Any] = DurableFunction(plain, options)
    if options.compensate is not None:
        from nbflow.runtime import saga

        # What a checkpoint holds may be older than what is defined now.
        saga.register(function, replace=False)
    return function


@overload
def durable(function: Callable[P, R], /) -> DurableFunction[P, R]: ...


@overload
def durable(
    *,
    name: str | None = ...,
    version: int | str | None = ...,
    retries: int | RetryPolicy = ...,
    delay: float | str = ...,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = ...,
    timeout: float | str | None = ...,
    durability: Literal["sync", "async"] = ...,
    check: bool = ...,
    compensate: Callable[..., Any] | None = ...,
    policies: Policy | Sequence[Policy] = ...,
) -> Callable[[Callable[P, R]], DurableFunction[P, R]]: ...


def durable(  # noqa: PLR0913 - what a function may be told; all by name
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: int | str | None = None,
    retries: int | RetryPolicy = 0,
    delay: float | str = 0.5,
    retry_on: type[BaseException]
    | tuple[type[BaseException], ...]
    | Callable[[BaseException], bool] = Exception,
    timeout: float | str | None = None,
    durability: Literal["sync", "async"] = "sync",
    check: bool = False,
    compensate: Callable[..., Any] | None = None,
    policies: Policy | Sequence[Policy] = (),
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
        compensate: undoes a completed call when the run fails or is cancelled, or on
            `nbflow.rollback()`: called as `compensate(result, *args, **kwargs)` with the
            recorded result and the call's arguments, which are recorded for that. It may
            be async, is retried as the function is, and should bear being called twice:
            a crash before its end is recorded calls it again.
        policies: circuit breakers, rate limits and bulkheads round every attempt, the first
            outermost; a replay passes none of them. A refusal fails the attempt, and a
            retry comes no earlier than it says.

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
    called, number = _texts(name, version)
    if durability not in ("sync", "async"):
        raise UsageError(f'durability is "sync" or "async", not {durability!r}.')
    policy = (
        retries
        if isinstance(retries, RetryPolicy)
        else RetryPolicy(retries=retries, delay=seconds(delay) or 0.0, retry_on=retry_on)
    )
    if compensate is not None and not callable(compensate):
        raise UsageError(f"compensate is a function that undoes a call, not {compensate!r}.")
    limit = seconds(timeout)
    if limit == 0:
        raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
    options = Options(
        name=called,
        version=number,
        retry=policy,
        timeout=limit,
        durability="synced" if durability == "sync" else "buffered",
        check=check,
        compensate=compensate,
        policies=policies_of(policies),
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
        made: DurableFunction[..., Any] = DurableFunction(plain, options)
        if compensate is not None:
            from nbflow.runtime import saga

            saga.register(made)
        return made

    return decorate if function is None else decorate(function)


def _texts(name: object, version: object) -> tuple[str | None, str | None]:
    """Check name and version: a record with anything but text in it could not be read again."""
    if name is not None and (not isinstance(name, str) or not name):
        raise UsageError(f"The name of a durable function is a text that is not empty, not {name!r}.")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if version is not None and not isinstance(version, str):
        raise UsageError(f"The version of a durable function is a text or a number, not {version!r}.")
    return name, version
