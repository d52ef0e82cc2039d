"""Sync and async from one core: a machine is run by coroutines that wait only through a `Face`.

`Blocking` does everything at once, so that a coroutine over it never suspends
and `drive` can run it without an event loop: what a person calls from a script
or a sync cell, on the calling thread. `Looping` is for `await`: async tasks run
in the caller's loop, sync ones in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from nbflow.core.history import Execution
from nbflow.runtime import workers
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.runtime.waits import waiting

T = TypeVar("T")

#: Seconds between two looks at the inbox and the clock while branches work.
LOOK_EVERY = 0.05

#: Seconds that tasks have to end when their run is over and they are cancelled.
STOP_WITHIN = 5.0

#: Told of each piece of work that ended, by name, with its error or None; True when the rest is not needed.
OnEnd = Callable[[str, BaseException | None], bool]


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns.

    >>> async def answer():
    ...     return 42
    >>> drive(answer())
    42
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("a coroutine over the blocking face waited for an event loop")


class Face(Protocol):
    """How a runner waits: the five things in which sync and async differ."""

    #: Whether an event loop runs it.
    looping: bool

    async def step(
        self, session: Session, spec: StepSpec, body: Callable[[int], Coroutine[Any, Any, StepResult]]
    ) -> Execution:
        """Run and record a step; see `Session.run_step`."""
        ...

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a person's function, sync or async, and return its result."""
        ...

    async def wait(
        self, session: Session, due_at: float | None, ready: Callable[[], bool] | None = None
    ) -> bool:
        """Wait; see `waiting.wait_until`."""
        ...

    async def append(self, session: Session, *records: Any) -> int:
        """Append records, on disk when this returns."""
        ...

    async def together(
        self,
        session: Session,
        work: Mapping[str, Callable[[Face], Coroutine[Any, Any, None]]],
        on_end: OnEnd,
        due_at: float | None,
        pool: workers.Workers,
    ) -> None:
        """Do pieces of work side by side until all ended, `on_end` says enough or `due_at` (UTC seconds) passed.

        Work that is still going on then is asked to stop and not waited for.

        Raises:
            RunCancelled: the run is to stop; the work was asked to stop as well.
        """
        ...


class Blocking:
    """Everything on the calling thread; async tasks run in a loop of this run's own, in a thread."""

    looping = False

    def __init__(self) -> None:
        self._loop: _LoopThread | None = None
        self._making = threading.Lock()  # branches run in threads and share the loop
        self._closed = False

    async def step(
        self, session: Session, spec: StepSpec, body: Callable[[int], Coroutine[Any, Any, StepResult]]
    ) -> Execution:
        """Run and record a step."""
        return session.run_step(spec, lambda attempt: drive(body(attempt)))

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function here; what it returns to be awaited is awaited in the loop's thread."""
        result = function(*args)
        if inspect.isawaitable(result):
            with self._making:
                if self._closed:  # in a branch that nobody waits for any more
                    if inspect.iscoroutine(result):
                        result.close()
                    raise asyncio.CancelledError("The run is over.")
                loop = self._loop = self._loop or _LoopThread()
            return loop.run(result)
        return result

    async def wait(
        self, session: Session, due_at: float | None, ready: Callable[[], bool] | None = None
    ) -> bool:
        """Block until `ready()` or `due_at`."""
        return waiting.wait_until(session, lambda: due_at, ready)

    async def append(self, session: Session, *records: Any) -> int:
        """Append records, on disk when this returns."""
        return session.recorder.append(*records)

    async def together(
        self,
        session: Session,
        work: Mapping[str, Callable[[Face], Coroutine[Any, Any, None]]],
        on_end: OnEnd,
        due_at: float | None,
        pool: workers.Workers,
    ) -> None:
        """Give each piece of work a thread; at most as many run at once as the pool has slots."""
        ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

        def target(name: str, begin: Callable[[Face], Coroutine[Any, Any, None]]) -> None:
            error: BaseException | None = None
            try:
                with pool.slot():
                    drive(begin(self))
            except BaseException as problem:  # noqa: BLE001 - handed to the waiting thread, whatever it is
                error = problem
            ended.put((name, error))

        for name, begin in work.items():
            context = contextvars.copy_context()
            threading.Thread(
                target=context.run, args=(target, name, begin), name=f"nbflow {name}", daemon=True
            ).start()
        left = len(work)
        with workers.released():
            while left:
                session.check()
                try:
                    end = ended.get(timeout=LOOK_EVERY)
                except queue.Empty:
                    if due_at is not None and session.clock.now() >= due_at:
                        return
                    continue
                left -= 1
                if on_end(*end):
                    return

    def close(self) -> None:
        """Stop the loop's thread, if there is one; none is started any more."""
        with self._making:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()


class Looping:
    """Over the caller's event loop; sync tasks run in threads of their own."""

    looping = True

    async def step(
        self, session: Session, spec: StepSpec, body: Callable[[int], Coroutine[Any, Any, StepResult]]
    ) -> Execution:
        """Run and record a step."""
        return await session.run_step_async(spec, body)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Await an async function here; call a sync one in a thread."""
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        result = await in_thread(function, *args)
        return await result if inspect.isawaitable(result) else result

    async def wait(
        self, session: Session, due_at: float | None, ready: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until `ready()` or `due_at`."""
        return await waiting.wait_until_async(session, lambda: due_at, ready)

    async def append(self, session: Session, *records: Any) -> int:
        """Append records, on disk when this returns."""
        return await session.recorder.append_async(*records)

    async def together(
        self,
        session: Session,
        work: Mapping[str, Callable[[Face], Coroutine[Any, Any, None]]],
        on_end: OnEnd,
        due_at: float | None,
        pool: workers.Workers,
    ) -> None:
        """Give each piece of work a task; at most as many run at once as the pool has slots."""
        tasks: dict[asyncio.Task[None], str] = {}

        async def target(begin: Callable[[Face], Coroutine[Any, Any, None]]) -> None:
            async with pool.slot():
                await begin(self)

        for name, begin in work.items():
            tasks[asyncio.create_task(target(begin), name=f"nbflow {name}")] = name
        try:
            going = set(tasks)
            with workers.released():
                while going:
                    session.check()
                    done, going = await asyncio.wait(
                        going, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in [task for task in tasks if task in done]:
                        error = asyncio.CancelledError() if task.cancelled() else task.exception()
                        if on_end(tasks[task], error):
                            return
                    if not done and due_at is not None and session.clock.now() >= due_at:
                        return
        finally:
            for task in tasks:
                task.cancel()
            # Of all: asyncio complains of an error that nobody looked at, and of two that ended at once one decides.
            await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread of its own, in a copy of this context, and wait for it without blocking the loop.

    Not in the loop's executor: that has few threads, and a task may wait for a child that needs one as well.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def target() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function, *args)
        except BaseException as problem:  # noqa: BLE001 - handed to the waiting task, whatever it is
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=target, name="nbflow task", daemon=True).start()
    return await future


class _LoopThread:
    """An event loop in a thread, for async tasks of a run that somebody waits for without a loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="nbflow loop", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[T]) -> T:
        """Await it in the loop, in a copy of this context, and return its result."""
        results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        async def work() -> None:
            try:
                results.put((await awaitable, None))
            except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, whatever it is
                results.put((None, error))

        context = contextvars.copy_context()
        with self._closing:
            if self._closed:
                raise asyncio.CancelledError("The run is over.")
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(work(), context=context))
        result, error = results.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Cancel what is still going on (a branch that nobody needs), stop the loop and wait for its thread."""

        async def end() -> None:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=STOP_WITHIN)
            self._loop.stop()

        with self._closing:
            self._closed = True
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(end()))
        self._thread.join()
        self._loop.close()
