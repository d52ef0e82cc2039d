"""Asyncio tasks that work off a fan-out over an async function.

As with threads (`pool`), quick items share their commits: what is done
within a few milliseconds is one append, and an item that takes longer is on
record as started.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable
from typing import Any, cast

from nbflow.core.model import AnyRecord, StepCompleted
from nbflow.runtime import attempts
from nbflow.runtime.fanout.items import GATHERED, SLICE, SLOW, Fan, started
from nbflow.runtime.policies.guards import guarded_async
from nbflow.runtime.scope import entered
from nbflow.runtime.trying import StepResult, StepSpec, Trial, checkpoint
from nbflow.runtime.workers import Workers, released


async def run_tasks(fan: Fan, limit: int) -> list[Any]:
    """Run a fan-out with up to `limit` items at a time; return its outcome (see `Fan.outcome`)."""
    crew = _Crew(fan, limit)
    try:
        await crew.run()
    except BaseException as error:  # noqa: BLE001 - raised by `outcome`, a cancellation from outside too
        fan.stop(error)
        await crew.dismiss()
    return fan.outcome()


class _Crew:
    """The tasks of one fan-out, all in one event loop, and what they have done and not recorded yet."""

    def __init__(self, fan: Fan, limit: int) -> None:
        self.fan, self.session = fan, fan.session
        #: Whether the last item that ended had taken its time.
        self.slow = fan.todo == 1
        self.workers = Workers(limit, freed=self._rouse)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = 0
        self._records: list[AnyRecord] = []
        self._places: list[int] = []
        self._values: list[Any] = []
        self._first = 0.0
        fan.told = self._rouse

    async def run(self) -> None:
        """Hand items out until the fan-out is over."""
        fan = self.fan
        async with released():
            while not fan.over:
                self._staff()
                await self._wake.wait()
                self._wake.clear()
                if fan.fatal is not None and not isinstance(fan.fatal, Exception):
                    raise fan.fatal

    async def dismiss(self) -> None:
        """Cancel what is running, and wait until it has noticed and what is done is recorded."""
        for task in self._tasks:
            if task.get_name() != _COMMIT:
                task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _rouse(self) -> None:
        """Have the loop look again; from any thread."""
        if threading.get_ident() == self._thread:
            self._wake.set()
        else:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _staff(self) -> None:
        """Start tasks for what is ready, as far as there are slots."""
        for _ in range(min(self.fan.ready, self.workers.free - self._coming)):
            self._coming += 1
            self._start(asyncio.create_task(self._work()))

    def _start(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fan.stop(error)
        self._wake.set()

    async def _work(self) -> None:
        """Be one of the tasks."""
        slot = self.workers.slot()
        try:
            await slot.__aenter__()
        finally:
            self._coming -= 1
        try:
            while True:
                place = self.fan.take()
                if place is None:
                    # What waits for the gathered ones becomes ready once they are recorded.
                    if not self._places:
                        return
                    await self._flush()
                    continue
                try:
                    await self._do(place)
                except BaseException as error:
                    self.fan.stop(error, place)
                    raise
                if self._places and (
                    self.slow or len(self._places) >= GATHERED or time.perf_counter() - self._first >= SLICE
                ):
                    await self._flush()
                if self.workers.wanted:
                    await slot.pass_on_async()  # to an item that comes back from a wait
        finally:
            if self._places:
                self.commit_soon()
            await slot.__aexit__(None, None, None)

    # --- recording ------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Record what is gathered; who asks waits, so that no task runs ahead of the disk."""
        await asyncio.shield(self.commit_soon())

    def commit_soon(self) -> asyncio.Task[None]:
        """Record what is gathered; without waiting for the disk."""
        gathered = self._records, self._places, self._values
        self._records, self._places, self._values = [], [], []
        task = asyncio.create_task(self._commit(*gathered), name=_COMMIT)
        self._start(task)
        return task

    async def _commit(self, records: list[AnyRecord], places: list[int], values: list[Any]) -> None:
        if not records:
            return
        try:
            await self.session.recorder.append_async(*records)
        except BaseException as error:
            for place in places:
                self.fan.stop(error, place)
            raise
        self.fan.completed(places, values)

    # --- one item -------------------------------------------------------------------------------------------------

    async def _do(self, place: int) -> None:
        fan, session = self.fan, self.session
        spec = fan.spec(place)
        trial = Trial(session, spec)
        if spec.timeout is not None or spec.check or spec.policies or fan.latest(place) is not None:
            await self._try(place, trial)
            return
        session.before_step(spec)
        start = _Start(self, spec)
        trial.begin()
        since = time.perf_counter()
        if self.slow:
            start.begin()
        timer = self._loop.call_later(SLOW, start.slow)
        try:
            with entered(fan.inside(place, start.begin)):
                value = await cast("Awaitable[Any]", fan.function(fan.items[place]))
            point = checkpoint(session, fan.values(place, value))
        except BaseException as error:  # noqa: BLE001 - recorded, and raised where it is no item's business
            timer.cancel()
            start.begin()
            trial.execution = session.history.executions[start.number]
            delay = trial.failed(error)
            if delay is None:
                fan.failed(place, error)
            else:
                await self._try(place, trial, delay)
            return
        timer.cancel()
        took = time.perf_counter() - since
        if not start.number:
            self._records.append(started(spec))
        self._records.append(
            StepCompleted(execution=start.number or -1, step=spec.step, seconds=took, checkpoint=point)
        )
        if not self._places:
            self._first = since
        self._places.append(place)
        self._values.append(value)
        self.slow = took >= SLOW or fan.todo == 1

    async def _try(self, place: int, trial: Trial, delay: float | None = None) -> None:
        """Try an item until it is recorded or out of tries; `delay` comes before the next try."""
        fan, session, spec = self.fan, self.session, trial.spec
        value: list[Any] = []

        async def body() -> StepResult:
            with entered(fan.inside(place)):
                value[:] = [await cast("Awaitable[Any]", fan.function(fan.items[place]))]
            return StepResult(fan.values(place, value[0]))

        wait = trial.start() if delay is None else delay
        while True:
            if wait > 0:
                async with released():
                    await session.clock.sleep_async(wait)
            trial.begin()
            try:
                attempt = functools.partial(attempts.call_async, body, spec.timeout, spec.step)
                result = await (
                    guarded_async(spec.policies, session, attempt) if spec.policies else attempt()
                )
                record = trial.completed(result)
            except BaseException as error:  # noqa: BLE001 - recorded, and raised where it is no item's business
                again = trial.failed(error)
                if again is None:
                    fan.failed(place, error)
                    return
                wait = again
                continue
            if spec.durability == "buffered":
                session.recorder.append(record, durability="buffered")
            else:
                await session.recorder.append_async(record)
            fan.completed([place], value)
            return


_COMMIT = "nbflow commit"


class _Start:
    """The start of an item, recorded when it turns out to matter; `number` is then its execution's."""

    def __init__(self, crew: _Crew, spec: StepSpec) -> None:
        self._crew, self._spec = crew, spec
        self.number = 0

    def begin(self) -> None:
        """Record it, once."""
        if not self.number:
            durability: Any = "written" if self._spec.durability == "synced" else "buffered"
            recorder = self._crew.session.recorder
            self.number = recorder.append(started(self._spec), durability=durability)

    def slow(self) -> None:
        """The item takes its time: it is on record as started, and what was done before it as done."""
        self._crew.slow = True
        try:
            self.begin()
            self._crew.commit_soon()
        except BaseException as error:  # noqa: BLE001 - nobody waits for a timer; the fan-out raises it
            self._crew.fan.stop(error)
