"""A fan-out whose bodies run elsewhere: in other processes, or on a Dask cluster. This process records.

An executor is anything with `submit(function, *arguments)` that returns a
future with `result()`, `cancel()` and `add_done_callback`: those of
`concurrent.futures`, loky's, `distributed.Client`.
"""

from __future__ import annotations

import contextvars
import heapq
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

from nbflow.core.errors import StepTimeout, UsageError
from nbflow.core.model import AnyRecord
from nbflow.runtime.fanout.items import Fan
from nbflow.runtime.scope import Scope, entered
from nbflow.runtime.trying import StepResult, Trial
from nbflow.runtime.workers import limit_of, released

#: How many bodies are handed out at a time where nobody knows how many the executor can take.
_MANY = 32
#: The longest wait in one piece, so that an interrupt is noticed on every system.
_LOOK = 0.5


class Future(Protocol):
    """A result that will come."""

    def result(self) -> Any:
        """Return it, or raise what the body raised."""
        ...

    def cancel(self) -> Any:
        """Stop it if it has not begun."""
        ...

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> Any:
        """Have `callback(future)` called once it is there."""
        ...


class Executor(Protocol):
    """What takes bodies and runs them."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Start `function(*arguments)` elsewhere and return its future."""
        ...


class Way(NamedTuple):
    """How a body (function, item, scope) is sent off, and how many may be out at a time."""

    send: Callable[[Callable[[Any], Any], Any, Scope], Any]
    limit: int


def run_elsewhere(fan: Fan, way: Way) -> list[Any]:
    """Run a fan-out on an executor; return its outcome (see `Fan.outcome`)."""
    dispatch = _Dispatch(fan, way)
    try:
        with released():
            dispatch.run()
    except BaseException as error:  # noqa: BLE001 - raised by `outcome`
        fan.stop(error)
        dispatch.abandon()
    return fan.outcome()


class _Dispatch:
    """Who is out, who comes again, who has come back."""

    def __init__(self, fan: Fan, way: Way) -> None:
        self.fan, self.session = fan, fan.session
        self._way = way
        self._back: queue.SimpleQueue[tuple[int, int, Any]] = queue.SimpleQueue()
        self._out: dict[int, tuple[Trial, Any, float | None]] = {}
        self._again: list[tuple[float, int, Trial]] = []

    def run(self) -> None:
        """Hand out and take back until the fan-out is over."""
        while True:
            self._hand_out()
            if not self._out and not self._again:
                return
            self._take_back()

    def abandon(self) -> None:
        """Cancel what has not begun; what runs elsewhere cannot be stopped, its result is not recorded."""
        for _, future, _ in self._out.values():
            future.cancel()

    def _hand_out(self) -> None:
        while len(self._out) < self._way.limit:
            if self._again and self._again[0][0] <= time.monotonic():
                _, place, trial = heapq.heappop(self._again)
            else:
                taken = self.fan.take()
                if taken is None:
                    return
                place, trial = taken, Trial(self.session, self.fan.spec(taken))
                try:
                    wait = trial.start()
                except BaseException as error:
                    self.fan.stop(error, place)
                    raise
                if wait > 0:
                    heapq.heappush(self._again, (time.monotonic() + wait, place, trial))
                    continue
            self._send(place, trial)

    def _send(self, place: int, trial: Trial) -> None:
        fan = self.fan
        trial.begin()
        limit = trial.spec.timeout
        due = None if limit is None else time.monotonic() + limit
        number = trial.attempt
        try:
            future = self._way.send(fan.function, fan.items[place], fan.inside(place))
        except Exception as error:  # noqa: BLE001 - an item that cannot be sent has failed
            self._failed(place, trial, error)
            return
        self._out[place] = trial, future, due
        future.add_done_callback(lambda done: self._back.put((place, number, done)))

    def _take_back(self) -> None:
        """Wait for something to come back, and record all that has in one append."""
        records: list[AnyRecord] = []
        places: list[int] = []
        values: list[Any] = []
        found = self._next(self._patience())
        while found is not None:
            place, number, future = found
            trial = self._out[place][0] if place in self._out else None
            if trial is not None and trial.attempt == number:  # else it is too late: the attempt was given up
                del self._out[place]
                try:
                    value = future.result()
                    records.append(trial.completed(StepResult(self.fan.values(place, value))))
                except BaseException as error:  # noqa: BLE001 - recorded, and raised where it is no item's business
                    self._failed(place, trial, error)
                else:
                    places.append(place)
                    values.append(value)
            found = self._next(0)
        if records:
            self.session.recorder.append(*records)
            self.fan.completed(places, values)
        self._time_out()

    def _next(self, seconds: float) -> tuple[int, int, Any] | None:
        try:
            return self._back.get(timeout=seconds) if seconds > 0 else self._back.get_nowait()
        except queue.Empty:
            return None

    def _patience(self) -> float:
        dues = [due for _, _, due in self._out.values() if due is not None]
        if self._again and len(self._out) < self._way.limit:
            dues.append(self._again[0][0])
        return max(0.0, min(_LOOK, min(dues, default=_LOOK + time.monotonic()) - time.monotonic()))

    def _time_out(self) -> None:
        now = time.monotonic()
        for place, (trial, future, due) in list(self._out.items()):
            if due is not None and due <= now:
                del self._out[place]
                future.cancel()
                limit = trial.spec.timeout
                error = StepTimeout(
                    f"Step {trial.spec.step} took longer than its timeout of {limit:g} s.",
                    step=trial.spec.step,
                    timeout=limit,
                )
                self._failed(place, trial, error)

    def _failed(self, place: int, trial: Trial, error: BaseException) -> None:
        delay = trial.failed(error)
        if delay is None:
            self.fan.failed(place, error)
        else:
            heapq.heappush(self._again, (time.monotonic() + delay, place, trial))


def way_to(executor: Executor | Literal["processes"], max_parallel: int | None) -> Way:
    """Return how bodies get to an executor.

    Raises:
        UsageError: it is none, or loky is not installed.
    """
    if executor == "processes":
        limit = limit_of(max_parallel if max_parallel is not None else _processes())
        pool = _loky()
        # Asked for again each time: after a worker was killed it gives a new one.
        return Way(lambda body, item, _: pool(max_workers=limit).submit(body, item), limit)
    if isinstance(executor, (str, type)) or not callable(getattr(executor, "submit", None)):
        raise UsageError(
            f"executor={executor!r} is no executor.",
            hint='Use "processes", or an object with submit(), such as distributed.Client().',
        )
    limit = limit_of(max_parallel if max_parallel is not None else _width(executor))
    if isinstance(executor, ThreadPoolExecutor):
        return Way(lambda body, item, scope: _beside(executor, body, item, scope), limit)
    if hasattr(executor, "scheduler_info"):
        # Dask takes the same function of the same item for the same result; a retry would get the old failure.
        cluster: Any = executor
        return Way(lambda body, item, _: cluster.submit(body, item, pure=False), limit)
    return Way(lambda body, item, _: executor.submit(body, item), limit)


def _beside(executor: Executor, function: Callable[[Any], Any], item: Any, scope: Scope) -> Any:
    """Run a body in a thread of this process, where durable calls may be made as well."""

    def body() -> Any:
        with entered(scope):
            return function(item)

    return executor.submit(contextvars.copy_context().run, body)


def _loky() -> Callable[..., Any]:
    try:
        from loky import get_reusable_executor
    except ImportError as error:
        raise UsageError(
            'executor="processes" needs loky.', hint="Install it with `pip install nbflow[processes]`."
        ) from error
    found: Callable[..., Any] = get_reusable_executor
    return found


def _processes() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _width(executor: Any) -> int:
    """Return how many bodies an executor runs at a time, as far as it tells."""
    if hasattr(executor, "nthreads"):
        return max(1, sum(int(count) for count in executor.nthreads().values()))
    return int(getattr(executor, "_max_workers", 0) or _MANY)
