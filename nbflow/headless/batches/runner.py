"""Runs a batch: hands its items to workers, records each once, and knows when to stop.

One thread decides (whoever called `run`), a thread for each slot waits for a
worker. What happens in the slots, in signal handlers and in other threads comes
to the deciding one as a call in a queue, so that nothing here needs a lock and a
`Watcher` is told by one thread.

The batch is a run, and each item a step of it that starts a child: what is
completed is never run again, whatever is killed. A runner that is killed takes
its workers with it; who resumes the batch finds what each of them had recorded.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from nbflow.core.errors import (
    ChildFailed,
    GatePending,
    NbflowError,
    RunCancelled,
    RunFinished,
    StoreBusy,
    UnknownRun,
    WorkerLost,
)
from nbflow.core.history import History
from nbflow.core.model import ErrorInfo, RunChanged
from nbflow.core.signature import digest
from nbflow.core.states import RunState
from nbflow.headless.batches.jobs import Item, Job, Outcome, Plan, Progress, Unwatched, Watcher, Workers
from nbflow.headless.batches.stops import failure, stop_at
from nbflow.headless.waiting import Waiting, family, undecided
from nbflow.headless.workers.delivery import deliver
from nbflow.headless.workers.scratch import remove_left_over, scratch_of
from nbflow.runtime.budgets import CHARGED, RUN, history_spent
from nbflow.runtime.gates.ahead import Approvals
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.values.failures import encode_error

#: How often an item is tried whose worker is lost, before it counts as failed.
TRIES = 3

#: Seconds between two looks at the inbox: somebody may want the batch to stop.
LOOK = 0.5

#: Seconds between two looks at the gates that notebooks wait at: a decided one goes on while the batch runs.
GATES = 1.0

State = Literal["completed", "failed", "cancelled", "waiting", "interrupted"]


@dataclass(frozen=True)
class Tally:
    """How a batch stands when its runner is done: items by how they ended; `left` did not come to an end.

    Interrupted is what somebody stopped, `waiting` items stopped at gates; like failed, it can be resumed.
    """

    completed: int
    failed: int
    left: int
    state: State
    waiting: int = 0


class Runner:
    """One attempt at a batch, whose run is `session`'s. Its workers belong to the caller, who closes them.

    `max_failures` is the number of failed items from which nothing new starts;
    `retry_failed` how often each failed item is tried again when all others are through;
    `approve` names gates that are approved as soon as a notebook comes to them.
    """

    def __init__(
        self,
        session: Session,
        plan: Plan,
        workers: Workers,
        *,
        watcher: Watcher | None = None,
        max_failures: int | None = None,
        retry_failed: int = 0,
        approve: Approvals = Approvals(),  # noqa: B008 - frozen
    ) -> None:
        self._session, self._plan, self._workers = session, plan, workers
        self._approve = approve
        self._watcher: Watcher = watcher if watcher is not None else Unwatched()
        self._max_failures, self._retries = max_failures, retry_failed
        self._scratch = scratch_of(session.run)
        self._happened: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._slots: list[threading.Thread] = []
        self._waiting: deque[Item] = deque()
        self._running: set[int] = set()
        self._completed: set[int] = set()
        self._failed: dict[int, Item] = {}
        #: What stopped at a gate that is not decided.
        self._held: dict[int, Item] = {}
        #: … and of these what this runner goes on with as soon as it is decided.
        self._followed: set[int] = set()
        self._gates_seen = 0.0
        self._tries: dict[int, int] = {}
        self._looked = 0.0
        #: Why nothing new starts; "" while it does.
        self._draining = ""
        self._by_user = False
        self._stopped = False
        self._cancelled: RunCancelled | None = None
        self._broken: BaseException | None = None

    # --- for others ---------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin nothing new and let what runs come to its end; from any thread or signal handler."""
        self._happened.put(partial(self._close, "what runs is finished, nothing new starts", by_user=True))

    def stop(self) -> None:
        """End what runs now; it can be resumed. From any thread or signal handler."""
        self._happened.put(partial(self._halt, "what runs is ended", by_user=True))

    # --- the deciding thread ------------------------------------------------------------------------------------

    def run(self) -> Tally:
        """Run what is not completed yet, record how the batch stands, and give its run up.

        Raises:
            LeaseLost: another runner took the batch over; the workers are stopped.
            StoreFull, StoreError: what happened could not be recorded; the batch can be resumed.
        """
        session = self._session
        try:
            remove_left_over(self._scratch)
            held: list[tuple[Item, Waiting]] = []
            for item in self._plan.items:
                if session.find(item.step, _signature(item)) is not None:
                    self._completed.add(item.index)
                elif item.step in session.history.by_step and (gate := self._gate_of(item, approve=True)):
                    self._hold(item, gate)
                    held.append((item, gate))
                else:
                    self._waiting.append(item)
            self._watcher.begin(session.run, self._plan, frozenset(self._completed))
            for item, gate in held:
                self._watcher.held(item, Outcome("waiting", 0.0, waiting=gate))
            self._work()
            tally = self._end()
        except BaseException:
            session.close()
            raise
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._watcher.end(tally.state)
        return tally

    def _work(self) -> None:
        try:
            self._decide()
        except BaseException:
            self._halt("", by_user=False)
            raise
        finally:
            for _ in self._slots:
                self._begun.put(None)
            for slot in self._slots:
                slot.join()
        if self._broken is not None:
            raise self._broken

    def _decide(self) -> None:
        while True:
            self._look()
            self._take_decided()
            while self._waiting and not self._draining and len(self._running) < self._workers.width:
                self._start(self._waiting.popleft())
            if not self._running:
                if not self._again():
                    return
                continue
            try:
                happened = self._happened.get(timeout=LOOK)
            except queue.Empty:
                continue
            happened()

    def _look(self) -> None:
        """See twice a second whether the batch is to be cancelled."""
        now = time.monotonic()
        if self._cancelled is not None or self._broken is not None or now - self._looked < LOOK:
            return
        self._looked = now
        try:
            self._session.check()
        except RunCancelled as error:
            self._cancelled = error
            self._halt("the batch is cancelled", by_user=False)

    def _gate_of(self, item: Item, *, approve: bool = False) -> Waiting | None:
        """Return the gate that keeps an item from going on; None where a worker has something to do.

        With `approve` one that is approved beforehand keeps nobody.
        """
        store, now = self._session.store, self._session.clock.now()
        try:
            return undecided(store, item.run, now, self._approve.gates if approve else ())  # type: ignore[arg-type]
        except NbflowError:  # what cannot be read now is found out by whoever does it
            return None

    def _hold(self, item: Item, gate: Waiting | None) -> None:
        """Keep an item that waits, with no worker; followed where its gate can be seen from here, and goes on then."""
        self._held[item.index] = item
        if gate is not None and gate.run in family(self._session.store, item.run):  # type: ignore[arg-type]
            self._followed.add(item.index)

    def _take_decided(self, *, now: bool = False) -> None:
        """Have what waited at gates that are decided by now done."""
        if not self._followed or self._draining or not (now or time.monotonic() - self._gates_seen >= GATES):
            return
        self._gates_seen = time.monotonic()
        for index in sorted(self._followed):
            item = self._held[index]
            if self._gate_of(item) is None and not self._at_work(item):
                self._followed.discard(index)
                self._waiting.append(self._held.pop(index))

    def _at_work(self, item: Item) -> bool:
        """Tell whether somebody else carries an item on: then it comes to its end there, or stops once more."""
        try:
            _, alive = self._session.store.live.folder(item.run).owner()  # type: ignore[attr-defined]  # as in `_do`
        except NbflowError:
            return False  # its folder is gone: it is over
        return bool(alive)

    def _start(self, item: Item) -> None:
        self._running.add(item.index)
        if len(self._slots) < len(self._running):  # a cluster may grow while the batch runs
            name = f"nbflow-slot-{len(self._slots)}"
            self._slots.append(threading.Thread(target=self._slot, name=name, daemon=True))
            self._slots[-1].start()
        self._started(item)
        self._begun.put(item)

    def _started(self, item: Item) -> None:
        self._tries[item.index] = self._tries.get(item.index, 0) + 1
        self._watcher.started(item, self._tries[item.index])

    def _again(self) -> bool:
        """Have what failed tried again when all others are through; tell whether there is anything to do."""
        self._take_decided(now=True)
        if self._draining or not (self._waiting or (self._failed and self._retries)):
            return False
        if not self._waiting:
            self._retries -= 1
            self._waiting.extend(self._failed.values())
            self._failed.clear()
        return True

    def _close(self, why: str, *, by_user: bool) -> None:
        """Begin nothing new."""
        self._by_user |= by_user
        if not self._draining:
            self._draining = why or "something went wrong"
            if why:
                self._watcher.stopping(f"{why[0].upper()}{why[1:]}.")

    def _halt(self, why: str, *, by_user: bool) -> None:
        """Begin nothing new and end what runs."""
        if self._stopped:
            return
        if self._draining and why:
            self._watcher.stopping(f"{why[0].upper()}{why[1:]}.")
        self._stopped = True
        self._close(why, by_user=by_user)
        self._workers.stop()

    # --- what happened in a slot ----------------------------------------------------------------------------------

    def _ended(self, item: Item, outcome: Outcome) -> None:
        self._running.discard(item.index)
        if outcome.state == "completed":
            self._completed.add(item.index)
        elif outcome.state == "waiting":
            self._hold(item, outcome.waiting)
        else:
            self._failed[item.index] = item
        self._watcher.ended(item, outcome)
        limit = self._max_failures
        if limit is not None and len(self._failed) >= limit and not self._draining:
            self._close(f"{len(self._failed)} notebooks failed, nothing new starts", by_user=False)

    def _lost(self, item: Item, error: WorkerLost, *, again: bool) -> None:
        self._watcher.lost(item, error, again)
        if again:
            self._started(item)

    def _left(self, item: Item) -> None:
        self._running.discard(item.index)
        self._waiting.append(item)
        self._looked = 0.0  # a cancel may be why

    def _broke(self, item: Item, error: BaseException) -> None:
        self._running.discard(item.index)
        self._waiting.append(item)
        if self._broken is None:
            self._broken = error
        self._halt("", by_user=False)

    # --- a slot -----------------------------------------------------------------------------------------------------

    def _slot(self) -> None:
        while (item := self._begun.get()) is not None:
            try:
                outcome = self._record(item)
            except (KeyboardInterrupt, RunCancelled):
                self._happened.put(partial(self._left, item))
            except BaseException as error:  # noqa: BLE001 - raised by the deciding thread
                self._happened.put(partial(self._broke, item, error))
            else:
                self._happened.put(partial(self._ended, item, outcome))

    def _record(self, item: Item) -> Outcome:
        """Do an item as a step of the batch."""
        session = self._session
        outcomes: list[Outcome] = []
        begun = bool(session.history.by_step.get(item.step))
        spec = StepSpec(
            step=item.step,
            name=session.workflow,
            kind="child",
            signature=_signature(item),
            detail={RUN: item.run, "index": item.index},
            # A child must never be on disk without the step that began it.
            synced_start=True,
        )

        def body(_attempt: int) -> StepResult:
            outcome = self._do(item, begun=begun)
            outcomes.append(outcome)
            if outcome.waiting is not None:
                raise stop_at(item, outcome.waiting)
            if outcome.state != "completed":
                raise failure(item, outcome)
            facts = {
                "seconds": outcome.seconds,
                "attempt": outcome.attempt,
                "restored": outcome.restored,
                "ran": outcome.ran,
            }
            return StepResult({}, detail={RUN: item.run, CHARGED: self._spent(item), **facts})

        try:
            session.run_step(spec, body)
        except (ChildFailed, GatePending):
            return outcomes[0]
        return outcomes[0]

    def _spent(self, item: Item) -> dict[str, float]:
        """Return what the item's run spent, for budgets and `nbflow.spent`: nobody asks its journal again."""
        store = self._session.store
        try:
            return dict(history_spent(store, History.of(store.entries(item.run))))
        except NbflowError:  # what cannot be read now was completed all the same
            return {}

    def _do(self, item: Item, *, begun: bool) -> Outcome:
        """Have an item done by a worker, or by another one where that is lost; not where its run is over.

        Raises:
            KeyboardInterrupt: the workers are stopped; the item can be resumed.
        """
        plan, session = self._plan, self._session
        job = Job(
            batch=session.run,
            item=item,
            notebook=plan.notebook,
            store=str(session.store.root),  # type: ignore[attr-defined]  # a store in a folder: `batch` sees to it
            options=plan.options,
            # Of this attempt alone: a worker of a killed runner may be about to remove its own.
            scratch=str(self._scratch / f"{item.index}-{session.attempt}"),
            approve=self._approve,
        )
        for number in range(1, TRIES + 1):
            exists, over = self._standing(item) if begun or number > 1 else (False, None)
            if over is not None:
                return over
            try:
                outcome = self._workers.run(
                    msgspec.structs.replace(job, begun=exists), partial(self._told, item)
                )
            except WorkerLost as error:
                if self._stopped:
                    raise KeyboardInterrupt(error.message) from error
                again = number < TRIES
                self._happened.put(partial(self._lost, item, error, again=again))
                if not again:
                    info = ErrorInfo(
                        type="WorkerLost", message=f"{error.message} It was tried {TRIES} times."
                    )
                    lost = Outcome("failed", 0.0, error=info, log=getattr(error, "log", ""))
                    return self._standing(item)[1] or lost
            else:
                # Somebody else may have had it (`nbflow resume`, a worker that was cut off): how did it end?
                if number == TRIES or not outcome.is_of(RunFinished):
                    return outcome
        raise AssertionError("the last try returns")

    def _told(self, item: Item, progress: Progress) -> None:
        self._happened.put(partial(self._watcher.progress, item, progress))

    def _standing(self, item: Item) -> tuple[bool, Outcome | None]:
        """Tell whether an item's run exists, and how it ended, for whoever ran it could not say; None if it goes on."""
        state = None
        while state is None:
            try:
                state = self._session.store.run(item.run).state
            except UnknownRun:
                return False, None
            except StoreBusy:  # somebody looks at the database: whether the run is over stands only there
                if self._stopped:
                    raise KeyboardInterrupt("stopped while the database was busy") from None
                time.sleep(LOOK)
        if state == RunState.COMPLETED:
            try:
                deliver(str(self._session.store.root), item)  # type: ignore[attr-defined]
            except OSError as error:
                info = encode_error(error)
                return True, Outcome("failed", 0.0, error=ErrorInfo(type=info.type, message=info.message))
            return True, Outcome("completed", 0.0)
        if state == RunState.CANCELLED:
            info = ErrorInfo(type="RunCancelled", message=f"Run {item.run} was cancelled, which is final.")
            return True, Outcome("cancelled", 0.0, error=info)
        return True, None

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> Tally:
        session = self._session
        completed, failed, waiting = len(self._completed), len(self._failed), len(self._held)
        left = len(self._plan.items) - completed - failed - waiting
        state: State
        if self._cancelled is not None:
            state = "cancelled"
            session.finish(RunState.CANCELLED, reason=_reason(self._cancelled), error=self._cancelled)
        elif not left and not failed and not waiting:
            state = "completed"
            session.finish(RunState.COMPLETED)
        elif not left and not failed:
            state = "waiting"
            said = f"{waiting} of {len(self._plan.items)} notebooks wait for a decision."
            session.recorder.append(RunChanged(state=RunState.WAITING, reason=said))
            session.close()
        elif left and self._by_user:
            state = "interrupted"
            session.close()
        else:
            state = "failed"
            said = f"{failed} of {len(self._plan.items)} notebooks failed"
            said += f", {left} were not begun." if left else "."
            session.finish(RunState.FAILED, reason=said, error=ErrorInfo(type="ItemsFailed", message=said))
        return Tally(completed, failed, left, state, waiting)


def _signature(item: Item) -> bytes:
    """Return what makes an item the same work: its run, whose id follows from the batch and the item."""
    return digest("item", item.run)


def _reason(error: RunCancelled) -> str:
    return f"{error.reason}: {error.note}" if error.note else error.reason
