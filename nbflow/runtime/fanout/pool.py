"""Threads that work off a fan-out, the calling one first.

Quick items are gathered: a worker runs items for a few milliseconds, or until
it has sixty-four, and appends their starts and ends in one synced append. 10,000
appends of their own would take 3 s of fdatasync alone. An item that takes
longer is on record as started, and so is whatever was done before it: a thread
that watches sees to that.

The calling thread works too, so a fan-out inside an item needs no thread that
somebody else holds. Others join as soon as an item turns out to take its time;
for items that only compute a microsecond they would only fight for the interpreter.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from contextlib import ExitStack
from typing import Any

from nbflow.core.model import AnyRecord, StepCompleted
from nbflow.runtime import attempts
from nbflow.runtime.fanout.items import GATHERED, SLICE, SLOW, Fan, started
from nbflow.runtime.policies.guards import guarded
from nbflow.runtime.scope import entered
from nbflow.runtime.trying import StepResult, StepSpec, Trial, checkpoint
from nbflow.runtime.workers import Slot, Workers, released
from nbflow.store.protocol import Durability

#: Seconds an item must take on average for a second thread to be worth its switches.
WORTH_A_THREAD = 0.0002
#: Seconds between two looks at whether an item takes its time.
_LOOK = 0.004
#: Seconds that an interrupted fan-out waits for what is running.
_FAREWELL = 2.0


def run_threads(fan: Fan, limit: int) -> list[Any]:
    """Run a fan-out in this thread and up to `limit` - 1 others; return its outcome (see `Fan.outcome`)."""
    crew = _Crew(fan, limit)
    try:
        crew.run()
    except BaseException as error:  # noqa: BLE001 - an interrupt, or trouble with the journal: raised by `outcome`
        fan.stop(error)
        crew.farewell()
    return fan.outcome()


class _Crew:
    """The threads of one fan-out."""

    def __init__(self, fan: Fan, limit: int) -> None:
        self.fan = fan
        self.workers = Workers(limit, freed=self.staff)
        self._benches: list[_Bench] = []
        #: Whether the last item that ended had taken its time.
        self.slow = fan.todo == 1
        # Taken here, outside any slot of this crew: each thread stands where the caller stands.
        self._context = contextvars.copy_context()
        self._coming = 0
        self._watching = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """Work until the fan-out is over."""
        fan = self.fan
        while True:
            self.work()
            # The slot around this fan-out is given back only for a real wait: it may take long to come again.
            if not fan.over:
                with released(), fan.changed:
                    fan.changed.wait_for(lambda: fan.over or fan.ready or self._interrupted)
            if self._interrupted:
                assert fan.fatal is not None
                raise fan.fatal
            if fan.over:
                return

    @property
    def _interrupted(self) -> bool:
        """Whether somebody wants to stop now, and not when everything that runs has come to its end."""
        return self.fan.fatal is not None and not isinstance(self.fan.fatal, Exception)

    def farewell(self) -> None:
        """Wait a little for what is running, so that it is recorded; it is interrupted, not over."""
        with self.fan.changed:
            self.fan.changed.wait_for(lambda: not self.fan.running, timeout=_FAREWELL)

    def work(self, *, helping: bool = False) -> None:
        """Do what is ready, with a slot."""
        with ExitStack() as stack:
            try:
                slot = stack.enter_context(self.workers.slot())
            finally:
                if helping:
                    with self._lock:
                        self._coming -= 1
            bench = _Bench(self, slot)
            with self._lock:
                self._benches.append(bench)
            try:
                if not bench.slow:
                    self.watch()
                bench.work()
            finally:
                with self._lock:
                    self._benches.remove(bench)

    # --- more threads ---------------------------------------------------------------------------------------------

    def staff(self, most: int | None = None) -> None:
        """Start threads for what is ready, as far as there are slots, `most` at the most."""
        with self._lock:
            wanted = min(self.fan.ready, self.workers.free - self._coming)
            if most is not None:
                wanted = min(wanted, most)
            if wanted <= 0:
                return
            self._coming += wanted
        for _ in range(wanted):
            context = self._context.copy()
            name = f"nbflow {self.fan.settings.name}"
            try:
                threading.Thread(target=context.run, args=(self._help,), name=name, daemon=True).start()
            except RuntimeError:  # the system gives no more threads: those that are there do the work
                with self._lock:
                    self._coming -= 1

    def _help(self) -> None:
        """Be one of the other threads."""
        try:
            self.work(helping=True)
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            self.fan.stop(error)

    # --- the watch ------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Have somebody look whether an item takes its time, unless somebody does."""
        with self._lock:
            if self._watching:
                return
            self._watching = True
        threading.Thread(target=self._watch, name="nbflow watch", daemon=True).start()

    def _watch(self) -> None:
        """Look at those who believe that their items are quick; the others record each start at once."""
        try:
            while True:
                time.sleep(_LOOK)
                with self._lock:
                    quick = [bench for bench in self._benches if not bench.slow]
                    if not quick:
                        self._watching = False
                        return
                if [bench for bench in quick if bench.look()]:
                    self.staff()
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            self.fan.stop(error)


class _Bench:
    """Where one thread works: what it has done and not recorded yet, and what it is doing."""

    def __init__(self, crew: _Crew, slot: Slot) -> None:
        self._slot = slot
        self.crew, self.fan, self.session = crew, crew.fan, crew.fan.session
        #: Whether the last item took its time, so that the next one probably does.
        self.slow = crew.slow
        self._lock = threading.RLock()
        self._records: list[AnyRecord] = []
        self._places: list[int] = []
        self._values: list[Any] = []
        self._first = 0.0
        self._worked = 0.0
        self._current: StepSpec | None = None
        self._execution = 0
        self._since = 0.0

    def work(self) -> None:
        """Do items until none is ready."""
        fan = self.fan
        try:
            while True:
                place = fan.take()
                if place is None:
                    # What waits for the gathered ones becomes ready once they are recorded.
                    if not self._places:
                        return
                    self.commit()
                    continue
                try:
                    self._do(place)
                except BaseException as error:
                    fan.stop(error, place)
                    raise
                if self._places and (
                    self.slow or len(self._places) >= GATHERED or time.perf_counter() - self._first >= SLICE
                ):
                    self.commit()
                if self.crew.workers.wanted:
                    self.commit()
                    self._slot.pass_on()  # to an item that comes back from a wait
        finally:
            self.commit()

    # --- recording ------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Record what is gathered, in one append."""
        with self._lock:
            if not self._places:
                return
            places, values, worked = self._places, self._values, self._worked
            records, self._records, self._places, self._values, self._worked = self._records, [], [], [], 0.0
            try:
                self.session.recorder.append(*records)
            except BaseException as error:
                for place in places:
                    self.fan.stop(error, place)
                raise
        self.fan.completed(places, values)
        if worked / len(places) >= WORTH_A_THREAD:
            self.crew.staff(1)

    def begin(self) -> None:
        """Record that the current item has started, and with it what is gathered; once."""
        with self._lock:
            if self._current is None or self._execution:
                return
            self.commit()
            durability: Durability = "written" if self._current.durability == "synced" else "buffered"
            self._execution = self.session.recorder.append(started(self._current), durability=durability)

    def look(self) -> bool:
        """Put the current item on record if it takes its time, and tell whether it does; for the watch."""
        with self._lock:
            if self._current is None or time.perf_counter() - self._since < SLOW:
                return False
            self.begin()
            self.slow = True
            return True

    # --- one item -------------------------------------------------------------------------------------------------

    def _do(self, place: int) -> None:
        fan, session = self.fan, self.session
        spec = fan.spec(place)
        if spec.timeout is not None or spec.check or spec.policies or fan.latest(place) is not None:
            self.commit()
            self.slow = True
            _try(fan, place, Trial(session, spec))
            return
        session.before_step(spec)
        trial = Trial(session, spec)
        with self._lock:
            self._current, self._execution = spec, 0
            if self.slow:
                self.begin()
            self._since = time.perf_counter()
        trial.begin()
        try:
            with entered(fan.inside(place, self.begin)):
                value = fan.function(fan.items[place])
            point = checkpoint(session, fan.values(place, value))
        except BaseException as error:  # noqa: BLE001 - recorded, and raised if it is no item's business
            self._recover(place, trial, error)
            return
        took = time.perf_counter() - self._since
        with self._lock:
            execution, self._current = self._execution, None
            if not execution:
                self._records.append(started(spec))
            self._records.append(
                StepCompleted(execution=execution or -1, step=spec.step, seconds=took, checkpoint=point)
            )
            if not self._places:
                self._first = self._since
            self._places.append(place)
            self._values.append(value)
            self._worked += took
        was_slow, self.slow = self.slow, took >= SLOW or fan.todo == 1
        self.crew.slow = self.slow
        if was_slow and not self.slow:
            self.crew.watch()

    def _recover(self, place: int, trial: Trial, error: BaseException) -> None:
        """The first attempt failed: record it, and try again if its policy says so."""
        self.begin()
        self.commit()
        with self._lock:
            number, self._current = self._execution, None
        trial.execution = self.session.history.executions[number]
        delay = trial.failed(error)
        if delay is None:
            self.fan.failed(place, error)
        else:
            _try(self.fan, place, trial, delay)


def _try(fan: Fan, place: int, trial: Trial, delay: float | None = None) -> None:
    """Try an item until it is recorded or out of tries, each record by itself; `delay` comes before the next try."""
    session, spec = fan.session, trial.spec
    value: list[Any] = []

    def body() -> StepResult:
        with entered(fan.inside(place)):
            value[:] = [fan.function(fan.items[place])]
        return StepResult(fan.values(place, value[0]))

    wait = trial.start() if delay is None else delay
    while True:
        if wait > 0:
            with released():
                session.clock.sleep(wait)
        trial.begin()
        try:
            attempt = functools.partial(attempts.call, body, spec.timeout, spec.step)
            result = guarded(spec.policies, session, attempt) if spec.policies else attempt()
            record = trial.completed(result)
        except BaseException as error:  # noqa: BLE001 - recorded, and raised where it is no item's business
            again = trial.failed(error)
            if again is None:
                fan.failed(place, error)
                return
            wait = again
            continue
        session.recorder.append(record, durability=spec.durability)
        fan.completed([place], value)
        return
