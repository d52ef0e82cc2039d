"""What entering a state does, kind by kind: call once, wait first, ask again and again, go step by step."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nbflow.core import line as lines
from nbflow.core.errors import InvalidOutcome
from nbflow.core.model import StepCursor
from nbflow.core.outcomes import Again, Continue
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.core.signature import digest
from nbflow.core.state_spec import StateSpec
from nbflow.runtime import modes, trying
from nbflow.runtime.machine.context import Context, Data
from nbflow.runtime.machine.gates import pass_gate
from nbflow.runtime.scope import Scope, entered

if TYPE_CHECKING:
    from nbflow.runtime.machine.runner import Runner

#: The name under which a cursor is recorded; other names in its checkpoint are data.
CURSOR = "cursor"
#: … and that of the names deleted so far: no name of data, so it cannot clash with one.
GONE = "-deleted"


class Visit:
    """One visit of a state, over all its tries and restarts: what it can continue from."""

    def __init__(self, runner: Runner, state: StateSpec, key: str, data: Data) -> None:
        self.runner = runner
        self.session = runner.session
        self.state = state
        self.key = key
        self.data = data
        self._cursor: Any = None
        self._number = -1
        self._values: dict[str, Any] | None = None
        self._gone: list[str] = []
        self._scope = Scope(key)
        self._read()

    def _read(self) -> None:
        recorded = self.session.history.cursors.get(self.key)
        if recorded is None:
            return
        values = self.session.restore_cursor(self.key) or {}
        self._cursor, self._number = values.pop(CURSOR), recorded.number
        if self.session.history.executions[recorded.execution].started.detail.get("kind") != self.state.kind:
            self._cursor = None  # the state was of another kind then, and its cursor says nothing to this one
        self._gone = values.pop(GONE, [])
        self._values = values

    @property
    def scope(self) -> Scope:
        """What calls and waits since the newest cursor are counted in."""
        return self._scope

    @property
    def cursor(self) -> Any:
        """The newest recorded cursor; None before the first."""
        return self._cursor

    def start_over(self) -> None:
        """Make the data what it was at the newest cursor, or else when the state was entered: a try starts from it."""
        if self._number >= 0 and self._values is None:
            self._read()
        values, self._values = self._values or {}, None  # the next try gets copies of its own
        self.data.undo(values, self._gone)
        self._begin()

    def _begin(self) -> None:
        """Begin to count calls and waits anew, in a scope that is that of the newest cursor.

        A resume starts behind that cursor. If the calls of all steps were counted
        together, it would take the third step's call for the first one's.
        """
        name = self.key if self._number < 0 else f"{self.key}[{self._number + 1}]"
        self._scope = Scope(name, self.key)

    def when(self) -> dict[str, Any]:
        """Return when a timer is due, as it was recorded at first, for the detail of the state's record."""
        if self.state.kind != "timer":
            return {}
        for before in self.session.history.by_step.get(self.key, ()):
            due_at = before.started.detail.get(lines.DUE_AT)  # None where the state was no timer yet
            if due_at is not None and not before.forgotten:
                return {lines.DUE_AT: due_at}
        at = self.state.options.get("at")
        if at is not None:
            return {lines.DUE_AT: float(at)}
        after = seconds(self.state.options.get("after")) or 0.0
        return {lines.DUE_AT: self.session.clock.now() + after}

    async def keep(self, cursor: Any) -> Any:
        """Record a cursor with the data changed so far, and return it as it is to be given to the next step.

        Raises:
            CannotStore: the cursor or a value cannot be recorded; the last one counts.
        """
        changed, gone = self.data.changed(), self.data.deleted()
        values = {CURSOR: cursor, **changed, **({GONE: gone} if gone else {})}
        number = self._number + 1
        await self.runner.face.append(
            self.session,
            StepCursor(
                execution=self.session.history.by_step[self.key][-1].number,
                step=self.key,
                number=number,
                checkpoint=trying.checkpoint(self.session, values),
            ),
        )
        self._cursor, self._number, self._values, self._gone = cursor, number, None, gone
        self.data.kept(changed)
        self._begin()
        self.session.before_step(_ASKING)
        if modes.current() == "evict":
            self.session.recorder.reread()
            self._values = None
            self.start_over()
        return self._cursor

    def refuse(self, outcome: Any, wanted: str) -> InvalidOutcome:
        """Return the error for an outcome that this kind of state does not allow."""
        name = self.runner.definition.name
        return InvalidOutcome(
            f"State {self.state.label} of machine {name} is {self.state.kind} and its task returned "
            f"{outcome!r} in run {self.session.run}.",
            hint=f"Return {wanted}.",
            machine=name,
            state=self.state.label,
            run=self.session.run,
        )

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a person's function through the run's face; what it calls and waits for belongs to this visit."""
        with entered(self._scope):
            return await self.runner.face.call(function, *args)


#: Between two cursors a run may be cancelled, as between two steps.
_ASKING = trying.StepSpec(step="", name="", kind="cursor", signature=b"")


async def run_task(visit: Visit, ctx: Context) -> Any:
    """Do what the state's kind asks for, and return what its task chose."""
    outcome = await _KINDS[visit.state.kind](visit, ctx)
    if isinstance(outcome, (Continue, Again)):
        raise visit.refuse(outcome, "the state that comes next")
    return outcome


async def _plain(visit: Visit, ctx: Context) -> Any:
    return await visit.call(_handler(visit), ctx)


async def _timer(visit: Visit, ctx: Context) -> Any:
    """Wait until the recorded instant, then call the task."""
    started = visit.session.history.by_step[visit.key][-1].started
    await visit.runner.face.wait(visit.session, started.detail[lines.DUE_AT])
    if visit.state.handler is None:
        return next(iter(visit.state.targets or ()))  # validation: exactly one
    return await visit.call(_handler(visit), ctx)


async def _poll(visit: Visit, ctx: Context) -> Any:
    """Ask until there is an answer; when to ask again and how many errors followed each other is recorded."""
    options = visit.state.options
    every = seconds(options.get("every", 1.0)) or 0.0
    allowed = int(options.get("max_errors", 3))
    errors = 0
    if visit.cursor is not None:
        errors = visit.cursor["errors"]
        await visit.runner.face.wait(visit.session, visit.cursor["due_at"])
    while True:
        delay = every
        try:
            outcome = await visit.call(_handler(visit), ctx)
        except Exception as error:
            if trying.is_final(error):
                raise
            errors += 1
            if errors >= allowed:
                error.add_note(f"nbflow: state {visit.state.label} failed {errors} times in a row.")
                raise
            visit.start_over()  # a look that failed leaves no data behind
        else:
            errors = 0
            if not isinstance(outcome, Again):
                return outcome
            after = seconds(outcome.after)
            delay = every if after is None else after
        kept = await visit.keep({"errors": errors, "due_at": visit.session.clock.now() + delay})
        await visit.runner.face.wait(visit.session, kept["due_at"])


async def _stepped(visit: Visit, ctx: Context) -> Any:
    """Call the task with its cursor until it returns no `Continue`; each cursor is recorded before the next step."""
    cursor = visit.cursor
    while True:
        outcome = await visit.call(_handler(visit), ctx, cursor)
        if not isinstance(outcome, Continue):
            return outcome
        cursor = await visit.keep(outcome.cursor)


async def _batch(visit: Visit, ctx: Context) -> Any:
    """Load items once, process each as a step of its own, and finish with the results in the items' order."""
    from nbflow.runtime.fanout.map import Settings, fan_out, fan_out_async

    options = visit.state.options
    items = visit.cursor
    if items is None:
        loaded = await visit.call(_handler(visit), ctx)
        if not isinstance(loaded, Iterable):
            raise visit.refuse(loaded, "the items to process")
        items = await visit.keep(list(loaded))
    process = options["process"]
    is_async = asyncio.iscoroutinefunction(process)
    name = getattr(process, "__name__", "process")
    # Not the code's digest: as with all else of a machine, its version says when work is other work.
    settings = Settings(
        name,
        digest("batch", visit.key),
        retry=_item_retry(options.get("item_retries", 0)),
        hint="What is done is recorded: resume the run to try the rest; item_retries= tries each again by itself.",
    )
    scope, limit = Scope(visit.key), options.get("max_parallel")

    async def one(item: Any) -> Any:
        # Not `visit.call`: what an item calls belongs to the item.
        return await (process(ctx, item) if is_async else visit.runner.face.call(process, ctx, item))

    def side_by_side() -> Awaitable[list[Any]]:
        return fan_out_async(visit.session, one, items, settings=settings, scope=scope, max_parallel=limit)

    if is_async and not visit.runner.face.looping:
        results = await visit.call(side_by_side)  # in the loop of the run
    elif visit.runner.face.looping:
        results = await side_by_side()
    else:
        results = fan_out(
            visit.session,
            lambda item: process(ctx, item),
            items,
            settings=settings,
            scope=scope,
            max_parallel=limit,
        )
    return await visit.call(options["finish"], ctx, results)


def _item_retry(retries: int | RetryPolicy) -> RetryPolicy:
    return retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries=retries)


async def _stream(visit: Visit, ctx: Context) -> Any:
    """Gather what the source yields into windows; the cursor is recorded with the window that it ends."""
    options = visit.state.options
    count = int(options.get("count") or 0)
    within = seconds(options.get("within"))
    source = await visit.call(_handler(visit), ctx, visit.cursor)
    with entered(visit.scope):
        reader = _Reader(visit, source, ahead=max(1, count), threaded=within is not None)
    clock = visit.session.clock
    try:
        while True:
            window: list[Any] = []
            position: Any = None
            ends_at = None if within is None else clock.now() + within
            while not count or len(window) < count:
                left = None if ends_at is None else ends_at - clock.now()
                if left is not None and left <= 0:
                    break
                found = await reader.next(left)
                if found is _LATE:
                    break
                if found is _END:
                    return await _last_window(visit, ctx, window, position)
                position, item = _pair(visit, found)
                window.append(item)
            if not window:
                visit.session.before_step(_ASKING)
                continue
            outcome = await visit.call(options["window"], ctx, window)
            await visit.keep(position)
            if outcome is not None:
                return outcome
    finally:
        await reader.close()


async def _last_window(visit: Visit, ctx: Context, window: list[Any], position: Any) -> Any:
    options = visit.state.options
    if window:
        outcome = await visit.call(options["window"], ctx, window)
        await visit.keep(position)
        if outcome is not None:
            return outcome
    return await visit.call(options["finish"], ctx)


def _pair(visit: Visit, found: Any) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        raise visit.refuse(found, "an iterator of (cursor, item) pairs")
    return found


def _handler(visit: Visit) -> Callable[..., Any]:
    assert visit.state.handler is not None, "validation refuses a state without a task"
    return visit.state.handler


_KINDS: dict[str, Callable[[Visit, Context], Any]] = {
    "plain": _plain,
    "timer": _timer,
    "gate": pass_gate,
    "poll": _poll,
    "stepped": _stepped,
    "batch": _batch,
    "stream": _stream,
}

_END = object()
_LATE = object()


class _Reader:
    """Read a sync or async iterator item by item, waiting for each at most so many seconds.

    Where there is a time limit somebody else must do the waiting: a thread for
    a sync iterator, a task for an async one, at most one window ahead.
    """

    def __init__(self, visit: Visit, source: Any, *, ahead: int, threaded: bool) -> None:
        self._visit = visit
        self._ahead = ahead
        self._iterator: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        self._pending: asyncio.Task[Any] | None = None
        self._queue: queue.Queue[Any] | None = None
        self._closed = threading.Event()
        if hasattr(source, "__aiter__"):
            self._async = aiter(source)
        else:
            try:
                self._iterator = iter(source)
            except TypeError:
                raise visit.refuse(source, "an iterator of (cursor, item) pairs") from None
            if threaded:
                self._queue = queue.Queue(maxsize=ahead)
                context = contextvars.copy_context()
                threading.Thread(
                    target=context.run, args=(self._pump,), name="nbflow stream", daemon=True
                ).start()

    def _pump(self) -> None:
        assert self._iterator is not None
        try:
            for found in self._iterator:
                if not self._put((found, None)):
                    return
            self._put((_END, None))
        except BaseException as error:  # noqa: BLE001 - raised where the item is asked for
            self._put((None, error))

    def _put(self, found: tuple[Any, BaseException | None]) -> bool:
        assert self._queue is not None
        while not self._closed.is_set():
            try:
                self._queue.put(found, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    async def next(self, limit: float | None) -> Any:
        """Return the next item, `_END`, or `_LATE` when `limit` seconds are over."""
        if self._async is not None:
            return await self._visit.call(self._next_async, limit)
        if self._queue is None:
            return await self._visit.call(next, self._iterator, _END)
        found = await self._visit.call(self._next_queued, limit)
        if found is _LATE:
            return _LATE
        item, error = found
        if error is not None:
            raise error
        return item

    def _next_queued(self, limit: float | None) -> Any:
        assert self._queue is not None
        try:
            return self._queue.get(timeout=limit)
        except queue.Empty:
            return _LATE

    async def _next_async(self, limit: float | None) -> Any:
        assert self._async is not None
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._async, _END))
        done, _ = await asyncio.wait({self._pending}, timeout=limit)
        if not done:
            return _LATE
        pending, self._pending = self._pending, None
        return pending.result()

    async def close(self) -> None:
        """Stop reading; the iterator is closed where it can be."""
        self._closed.set()
        if self._async is not None:
            await self._visit.call(self._close_async)
        elif self._queue is None and isinstance(self._iterator, Generator):
            await self._visit.call(self._iterator.close)

    async def _close_async(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
        if isinstance(self._async, AsyncGenerator):
            await self._async.aclose()
