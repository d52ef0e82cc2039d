"""Slots for work that runs at the same time: who may run now, and how a wait gives its slot back.

A map of many items takes one slot for each item that runs. Whatever only waits
(a sleep, a signal, a child run) does so inside `released()`: the slot goes to
somebody else meanwhile, so no number of waiting parents keeps their children
from running.

Slots nest: an item may map over items of its own. The outer slot counts as used
while anybody below it works, and is given back when all of them wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from nbflow.core.errors import UsageError
from nbflow.runtime import modes


def limit_of(max_parallel: int | None) -> int:
    """Return how many things may run at a time: what was asked for, by default min(32, cores + 4).

    Raises:
        UsageError: less than one was asked for.

    >>> limit_of(1)
    1
    """
    if max_parallel is not None and (isinstance(max_parallel, bool) or not isinstance(max_parallel, int)):
        raise UsageError(f"max_parallel is a whole number, not {max_parallel!r}.")
    if max_parallel is not None and max_parallel < 1:
        raise UsageError(
            f"max_parallel={max_parallel} lets nothing run.", hint="Use 1 for one after the other."
        )
    if modes.current() == "one-worker":
        return 1
    return max_parallel if max_parallel is not None else min(32, _cores() + 4)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A number of slots, for threads (`with`) and tasks (`async with`).

    >>> workers = Workers(2)
    >>> with workers.slot():
    ...     workers.free
    1
    """

    def __init__(self, limit: int, freed: Callable[[], None] | None = None) -> None:
        self.limit = limit
        #: Called when a slot is given back that nobody waits for, by whoever gave it back.
        self._freed = freed
        self._lock = threading.Lock()
        self._free = limit
        #: Threads and tasks in the order they came.
        self._queue: deque[threading.Event | _Turn] = deque()

    @property
    def free(self) -> int:
        """How many slots nobody holds or waits for."""
        return max(0, self._free)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._queue)

    def slot(self) -> Slot:
        """Return a slot to be held for the body of a `with` or `async with` statement."""
        return Slot(self)

    def take(self, *, ahead: bool = False) -> None:
        """Take a slot; the thread waits for one, `ahead` of all others if it goes on with something."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            turn = threading.Event()
            self._line_up(turn, ahead=ahead)
        try:
            turn.wait()
        except BaseException:
            self._step_back(turn)
            raise

    async def take_async(self, *, ahead: bool = False) -> None:
        """Do as `take`, in a task."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            turn = _Turn()
            self._line_up(turn, ahead=ahead)
        try:
            await turn.future
        except BaseException:
            self._step_back(turn)
            raise

    def take_at_once(self) -> None:
        """Take a slot even if none is free: until as many are given back nobody else gets one."""
        with self._lock:
            self._free -= 1

    def give(self) -> None:
        """Give a slot back, to whoever waits longest."""
        with self._lock:
            self._free += 1
            while self._queue and self._free > 0:
                turn = self._queue.popleft()
                if turn.set() is not False:
                    self._free -= 1
            free = self._free > 0
        if free and self._freed is not None:
            self._freed()

    def _line_up(self, turn: threading.Event | _Turn, *, ahead: bool) -> None:
        if ahead:
            self._queue.appendleft(turn)
        else:
            self._queue.append(turn)

    def _step_back(self, turn: threading.Event | _Turn) -> None:
        """Leave the queue after an interruption; a slot that came at the last moment goes on to the next."""
        with self._lock:
            waiting = turn in self._queue
            if waiting:
                self._queue.remove(turn)
        if not waiting and turn.is_set():
            self.give()


class _Turn:
    """A task's place in the queue; like an event, set from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()
        self._set = False

    def set(self) -> bool:
        """Wake the task; False where its event loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed with the task in it
            return False
        self._set = True
        return True

    def is_set(self) -> bool:
        return self._set

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


_held: ContextVar[tuple[Slot, int | asyncio.Task[object]] | None] = ContextVar("nbflow_slot", default=None)


def _who() -> int | asyncio.Task[object]:
    """Return what tells this thread or task from others that inherited its context."""
    with contextlib.suppress(RuntimeError):
        task = asyncio.current_task()
        if task is not None:
            return task
    return threading.get_ident()


class Slot:
    """One slot, held by all that work below it: the item itself and the threads of maps inside it.

    A slot counts for one in the slot around it, as long as anybody below works.
    Where one thread holds both, it is counted in the inner one only.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._lock = threading.Lock()
        self._working = 0
        self._strangers = 0
        self._has = False
        self.outer: Slot | None = None
        #: Whether this slot adds to the count of the outer one: another thread holds that.
        self._adds = False
        self._token: Token[tuple[Slot, int | asyncio.Task[object]] | None] | None = None

    # --- holding it -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        beside = self._stand()
        try:
            self._take(self.count_in(alone=True), ahead=False)
            if beside is not None:
                self._adds = True
                beside.resume()
        except BaseException:
            self._end()
            raise
        self._token = _held.set((self, _who()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def __aenter__(self) -> Self:
        beside = self._stand()
        try:
            await self._take_async(self.count_in(alone=True), ahead=False)
            if beside is not None:
                self._adds = True
                await beside.resume_async()
        except BaseException:
            self._end()
            raise
        self._token = _held.set((self, _who()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _stand(self) -> Slot | None:
        """Find the slot around this one; return it if another thread or task holds it."""
        found = _held.get()
        if found is None:
            return None
        outer: Slot | None
        outer, holder = found
        while outer is not None and outer.workers is self.workers:
            # Counted there as well, it would wait for a slot while it holds one of the same.
            outer, holder = outer.outer, 0
        self.outer = outer
        return outer if holder != _who() else None

    def _end(self) -> None:
        if self._token is not None:
            _held.reset(self._token)
            self._token = None
        with self._lock:
            was = self._active
            self._working -= 1
            now = self._active
            give, self._has = self._has and not now, self._has and now
        if give:
            self.workers.give()
        if self.outer is None:
            return
        if self._adds:
            if was and not now:
                self.outer.pause()
        elif now or not was:
            # The holder goes on working in the outer slot, beside what is left here.
            self._adds = True
            self.outer.resume_at_once()

    # --- working and waiting ----------------------------------------------------------------------------------

    @property
    def _active(self) -> bool:
        """Whether anybody works. A stranger waits for the rest or the rest for it: nobody does."""
        return self._working > 0 and self._strangers == 0

    def pause(self, *, stranger: bool = False) -> None:
        """Count one less at work; the last one gives the slot back, and the outer one where that was all."""
        with self._lock:
            was = self._active
            if stranger:
                self._strangers += 1
            else:
                self._working -= 1
            stopped = was and not self._active
            give = stopped and self._has
            if stopped:
                self._has = False
        if give:
            self.workers.give()
        if stopped and self.outer is not None:
            self.outer.pause()

    def resume(self, *, stranger: bool = False) -> None:
        """Count one more at work; the first one takes the slots again, waiting for them."""
        self._take(self.count_in(stranger=stranger))

    async def resume_async(self, *, stranger: bool = False) -> None:
        """Do as `resume`, in a task."""
        await self._take_async(self.count_in(stranger=stranger))

    def resume_at_once(self, *, stranger: bool = False) -> None:
        """Do as `resume` without waiting, even above the limit."""
        for slot in self.count_in(stranger=stranger):
            slot.workers.take_at_once()
            slot.got()

    def pass_on(self) -> None:
        """Let those who wait have the slot first; for who is between two pieces of work."""
        if self._let_go():
            self._take([self], ahead=False)

    async def pass_on_async(self) -> None:
        """Do as `pass_on`, in a task."""
        if self._let_go():
            await self._take_async([self], ahead=False)

    def _let_go(self) -> bool:
        with self._lock:
            has, self._has = self._has, False
        if has:
            self.workers.give()
        return has

    def count_in(self, *, stranger: bool = False, alone: bool = False) -> list[Slot]:
        """Count one more; return the slots that have to be taken for it, the outermost first."""
        with self._lock:
            was = self._active
            if stranger:
                self._strangers -= 1
            else:
                self._working += 1
            begins = self._active and not was
        if not begins:
            return []
        return [self] if alone or self.outer is None else [*self.outer.count_in(), self]

    @staticmethod
    def _take(slots: list[Slot], *, ahead: bool = True) -> None:
        for slot in slots:
            slot.workers.take(ahead=ahead)
            slot.got()

    @staticmethod
    async def _take_async(slots: list[Slot], *, ahead: bool = True) -> None:
        for slot in slots:
            await slot.workers.take_async(ahead=ahead)
            slot.got()

    def got(self) -> None:
        """Keep what was taken, unless everybody has gone to wait meanwhile."""
        with self._lock:
            keep = self._active and not self._has
            self._has = self._has or keep
        if not keep:
            self.workers.give()


class released:  # noqa: N801 - used like contextlib's functions
    """Give the held slot back while the body waits, and take it again afterwards; nothing held, nothing done.

    `with` in threads, `async with` in tasks. A plain `with` in a task works as
    well: it takes the slot again at once, above the limit if it must, for an
    event loop cannot wait there.

    >>> workers = Workers(1)
    >>> with workers.slot():
    ...     with released():
    ...         workers.free
    1
    """

    def __init__(self) -> None:
        self._slot: Slot | None = None
        self._stranger = False

    def _leave(self) -> None:
        found = _held.get()
        if found is not None:
            # A thread or task that only inherited the context was never counted as working. It waits all the
            # same, and its parent most likely for it: better one too many at work than none.
            self._slot, self._stranger = found[0], found[1] != _who()
            self._slot.pause(stranger=self._stranger)

    def __enter__(self) -> None:
        self._leave()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slot is not None:
            slot, self._slot = self._slot, None
            if isinstance(_who(), int):
                slot.resume(stranger=self._stranger)
            else:
                slot.resume_at_once(stranger=self._stranger)

    async def __aenter__(self) -> None:
        self._leave()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slot is not None:
            slot, self._slot = self._slot, None
            await slot.resume_async(stranger=self._stranger)
