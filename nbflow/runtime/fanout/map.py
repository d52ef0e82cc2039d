"""`nbflow.map`: one function over many items, each item a recorded step of the run.

map ─► fan_out        threads          pool
    └► fan_out_async  asyncio tasks    tasks
                      executors        executor
       all of them work off a `Fan`    items, core.fanout
       which counts                    progress
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar, get_args, overload

from nbflow.core.errors import NoActiveRun, UsageError
from nbflow.core.fanout import DependsOn, resolve
from nbflow.core.retry import RetryOn, RetryPolicy, seconds
from nbflow.core.signature import digest
from nbflow.runtime import active
from nbflow.runtime.fanout.executor import Executor, run_elsewhere, way_to
from nbflow.runtime.fanout.items import Failed, Fan, OnFailure, Settings, Skipped
from nbflow.runtime.fanout.pool import run_threads
from nbflow.runtime.fanout.tasks import run_tasks
from nbflow.runtime.scope import Scope
from nbflow.runtime.session import Session
from nbflow.runtime.steps import DurableFunction, Options
from nbflow.runtime.workers import limit_of
from nbflow.values.fingerprint import fingerprint

__all__ = ["Failed", "Settings", "Skipped", "fan_out", "fan_out_async", "map"]

T = TypeVar("T")
R = TypeVar("R")


@overload
def map(  # type: ignore[overload-overlap]  # noqa: A001
    function: Callable[[T], Coroutine[Any, Any, R]],
    items: Iterable[T],
    /,
    *,
    max_parallel: int | None = ...,
    on_error: OnFailure = ...,
    depends_on: DependsOn | None = ...,
    key: Callable[[T], Hashable] | None = ...,
    executor: None = ...,
    retries: int | RetryPolicy = ...,
    delay: float | str = ...,
    retry_on: RetryOn = ...,
    timeout: float | str | None = ...,
    name: str | None = ...,
    progress: bool | None = ...,
) -> Awaitable[list[R]]: ...


@overload
def map(  # noqa: A001
    function: Callable[[T], R],
    items: Iterable[T],
    /,
    *,
    max_parallel: int | None = ...,
    on_error: OnFailure = ...,
    depends_on: DependsOn | None = ...,
    key: Callable[[T], Hashable] | None = ...,
    executor: Executor | Literal["processes"] | None = ...,
    retries: int | RetryPolicy = ...,
    delay: float | str = ...,
    retry_on: RetryOn = ...,
    timeout: float | str | None = ...,
    name: str | None = ...,
    progress: bool | None = ...,
) -> list[R]: ...


def map(  # noqa: A001, PLR0913 - `nbflow.map` is what people look for; all but two by name
    function: Callable[[Any], Any],
    items: Iterable[Any],
    /,
    *,
    max_parallel: int | None = None,
    on_error: OnFailure = "halt",
    depends_on: DependsOn | None = None,
    key: Callable[[Any], Hashable] | None = None,
    executor: Executor | Literal["processes"] | None = None,
    retries: int | RetryPolicy = 0,
    delay: float | str = 0.5,
    retry_on: RetryOn = Exception,
    timeout: float | str | None = None,
    name: str | None = None,
    progress: bool | None = None,
) -> Any:
    """Call a function for each item, several at a time, and record every item as a step of the run.

    A resumed run calls it only for items that are not recorded as completed: those
    that failed, were skipped or never started. An item is known by the function's
    code and its own content, so an edited list keeps the results of what stays.
    Threads do the work, the calling one too; an async function is awaited in tasks.
    Durable calls inside an item are steps of their own.

    Args:
        function: what to call, with one item at a time: a function, a method, a
            `functools.partial`, or a durable function (whose options count, and
            whose result is recorded once).
        items: what to call it for; read to the end at once.
        max_parallel: how many items run at a time; min(32, cores + 4) by default.
        on_error: "halt" starts nothing more once an item has failed, waits for those
            that run, and raises. "continue" runs every item: `depends_on` is then only
            an order, and an item runs even if one before it failed. "skip_dependents"
            skips what depends on a failed item, directly or not, and runs the rest.
            Both return `nbflow.Failed` and `nbflow.Skipped` in the places of items
            without a result.
        depends_on: which items come first: a mapping from a key to keys, or a callable
            that is given an item and returns keys.
        key: a callable that returns an item's key; its place from 0 by default.
        executor: "processes" (loky), or an executor such as `distributed.Client()`.
            Only this process records: durable calls in a worker process are refused.
        retries: how many more tries after a failure, or a whole `RetryPolicy`.
        delay: seconds before the first retry, doubled each time, with full jitter.
        retry_on: the exceptions that are worth another try, or a predicate.
        timeout: seconds (or "30s", "5m") that one attempt may take.
        name: what the steps are called; the function's qualified name by default.
        progress: False shows no bar; otherwise one appears after a second where somebody looks.

    Returns:
        The results in input order, as a list; for an async function an awaitable of it.

    Raises:
        ItemsFailed: items failed, with `on_error="halt"`; `failures` maps places to errors.
        UsageError: dependencies go in a circle or name an unknown key (nothing has run
            then), or an option makes no sense.
        NoActiveRun: outside any run.
        RunCancelled: the run is to stop; items that ran are recorded.

    Example:
        >>> import nbflow
        >>> with nbflow.run("squares"):
        ...     nbflow.map(lambda n: n * n, [1, 2, 3])
        [1, 4, 9]
    """
    plain, options = _unwrapped(function)
    if name is not None and not isinstance(name, str):
        raise UsageError(f"name is a text, not {name!r}.")
    if key is not None and not callable(key):
        raise UsageError(f"key is a function of an item, not {key!r}.")
    called = name or options.name or _name_of(plain)
    listed = _listed(items)
    try:
        session = active.required()
    except NoActiveRun as error:
        error.step = called
        raise
    keys = None if key is None else [key(item) for item in listed]
    after = None
    if depends_on is not None:
        after = resolve(listed, range(len(listed)) if keys is None else keys, depends_on)
    if executor is not None and options.policies:
        raise UsageError(
            f"The policies of {called} are kept by this process, and an executor runs the items elsewhere.",
            hint="Leave `executor` out, or the policies.",
        )
    policy = _policy(retries, delay, retry_on)
    limit = seconds(timeout, "timeout") if timeout is not None else options.timeout
    if limit == 0:
        raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
    settings = Settings(
        name=called,
        code=_code(plain, options, called),
        retry=policy if retries else options.retry,
        timeout=limit,
        version=options.version or "",
        durability=options.durability,
        check=options.check,
        policies=options.policies,
        on_error=on_error,
        compensate=_compensated_as(function),
        arguments=plain.args if isinstance(plain, functools.partial) else (),
        keywords=plain.keywords if isinstance(plain, functools.partial) else {},
    )
    given: dict[str, Any] = {
        "settings": settings,
        "scope": session.scope(),
        "max_parallel": max_parallel,
        "keys": keys,
        "after": after,
        "progress": progress,
    }
    if not _is_async(plain):
        return fan_out(session, plain, listed, executor=executor, **given)
    if executor is not None:
        raise UsageError(
            f"{called} is async, and an executor takes plain functions.",
            hint="Leave `executor` out: async items run in tasks of this event loop.",
        )
    return fan_out_async(session, plain, listed, **given)


def fan_out(  # noqa: PLR0913 - what a fan-out may be told; all by name
    session: Session,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    settings: Settings,
    scope: Scope,
    max_parallel: int | None = None,
    keys: Sequence[Hashable] | None = None,
    after: Sequence[Collection[int]] | None = None,
    executor: Executor | Literal["processes"] | None = None,
    progress: bool | None = None,
) -> list[Any]:
    """Run a fan-out in a session of the caller's choice; `nbflow.map` and batch states come through here.

    `scope` is that of the enclosing step (its name begins the items' keys, its
    step is their parent). `after` holds for each item the places it depends on.

    Raises:
        As `map`.
    """
    _check(settings, max_parallel)
    way = None if executor is None else way_to(executor, max_parallel)
    fan = Fan(session, function, items, settings=settings, scope=scope, keys=keys, after=after, show=progress)
    if not fan.todo:
        return fan.outcome()
    if way is not None:
        return run_elsewhere(fan, way)
    return run_threads(fan, limit_of(max_parallel))


async def fan_out_async(
    session: Session,
    function: Callable[[Any], Awaitable[Any]],
    items: Sequence[Any],
    *,
    settings: Settings,
    scope: Scope,
    max_parallel: int | None = None,
    keys: Sequence[Hashable] | None = None,
    after: Sequence[Collection[int]] | None = None,
    progress: bool | None = None,
) -> list[Any]:
    """Do as `fan_out` with an async function, in tasks of the running event loop."""
    _check(settings, max_parallel)
    fan = Fan(session, function, items, settings=settings, scope=scope, keys=keys, after=after, show=progress)
    if not fan.todo:
        return fan.outcome()
    return await run_tasks(fan, limit_of(max_parallel))


def _check(settings: Settings, max_parallel: int | None) -> None:
    """Refuse what makes no sense before anything is counted or recorded."""
    limit_of(max_parallel)
    if settings.on_error not in get_args(OnFailure):
        known = ", ".join(repr(word) for word in get_args(OnFailure))
        raise UsageError(f"on_error is one of {known}, not {settings.on_error!r}.")


def _listed(items: Iterable[Any]) -> Sequence[Any]:
    try:
        return list(items)
    except TypeError:
        raise UsageError(f"nbflow.map wants items to go through, not {items!r}.") from None


def _policy(retries: int | RetryPolicy, delay: float | str, retry_on: RetryOn) -> RetryPolicy:
    if isinstance(retries, RetryPolicy):
        return retries
    return RetryPolicy(retries=retries, delay=seconds(delay, "delay") or 0.0, retry_on=retry_on)


# --- what is called ---------------------------------------------------------------------------------------------


def _unwrapped(function: Any) -> tuple[Callable[[Any], Any], Options]:
    """Return the function itself and what `@durable` was told of it: an item is recorded once, not twice."""
    if isinstance(function, DurableFunction):
        return function.plain, function.options
    if isinstance(function, functools.partial) and isinstance(function.func, DurableFunction):
        # A durable method that is bound, too.
        inner = function.func
        return functools.partial(inner.plain, *function.args, **function.keywords), inner.options
    if not callable(function):
        raise UsageError(f"nbflow.map wants a function, not {function!r}.")
    return function, Options()


def _compensated_as(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    if isinstance(inner, DurableFunction) and inner.options.compensate is not None:
        return inner.compensated_as
    return ""


def _name_of(plain: Any) -> str:
    while isinstance(plain, functools.partial):
        plain = plain.func
    found = getattr(plain, "__qualname__", None) or type(plain).__qualname__
    return str(found).replace("<locals>.", "")


def _is_async(plain: Any) -> bool:
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None))  # noqa: B004


def _code(plain: Callable[[Any], Any], options: Options, name: str) -> bytes:
    """Return the digest of a function's code, with the data it captures; looked at once for all items."""
    if options.version is not None:
        held = (plain.args, plain.keywords) if isinstance(plain, functools.partial) else ()
        return digest("version", name, options.version, fingerprint(held).digest)
    try:
        return DurableFunction(plain, Options(name=name))._identity((), {})[0]  # noqa: SLF001 - what a call would have
    except TypeError:  # what C code made may be neither looked into nor referred to weakly
        return fingerprint(plain).digest
