"""The session: one run attached to this process.

Cells, calls and states all go through `Session.run_step`: it starts the step in
the journal, tries and retries the body, and records how it ended (`trying.py`).
What replays and what runs is decided by the layers above, with `find`.
"""

from __future__ import annotations

import getpass
import math
import os
import platform
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from nbflow.core.clock import Clock
from nbflow.core.errors import CorruptLeaf, CorruptRecord, LeaseError, NbflowError, RunCancelled, RunFinished
from nbflow.core.gates import GATE
from nbflow.core.history import Execution, History
from nbflow.core.ids import new_run_id
from nbflow.core.model import (
    Checkpoint,
    ErrorInfo,
    Owner,
    RunChanged,
    RunInfo,
    RunOpened,
    RunTagged,
    StepForgotten,
)
from nbflow.core.states import FINAL_RUN_STATES, CancelReason, RunState
from nbflow.runtime import modes, trying
from nbflow.runtime.recorder import Recorder
from nbflow.runtime.scope import Scope, enclosing, entered
from nbflow.runtime.surroundings import Surroundings
from nbflow.runtime.trying import OnError, StepResult, StepSpec
from nbflow.runtime.watch import hooks
from nbflow.store.protocol import RunLog, Store
from nbflow.store.system_clock import SystemClock
from nbflow.values.codec import decode
from nbflow.values.failures import encode_error

__all__ = ["Session", "StepResult", "StepSpec", "shielded", "this_process"]

#: Kinds of steps that put things right: no cancel and no budget keeps them from running.
UNDOING = frozenset({"compensation"})

#: Up to this record the mode "evict" reads the journal again after every step, then after some: it is quadratic.
EVICT_EVERY = 400

#: Seconds between two looks at the inbox by steps that follow each other quickly.
LOOK_EVERY = 0.05

_shielded: ContextVar[bool] = ContextVar("nbflow_shielded", default=False)


@contextmanager
def shielded() -> Iterator[None]:
    """Let nothing keep the steps of this block from running, not even a cancelled run: for putting things right."""
    token = _shielded.set(True)
    try:
        yield
    finally:
        _shielded.reset(token)


class Session:
    """A run that this process owns. Safe to use from several threads and tasks.

    `resumed` tells whether the run had completed steps when it was attached.
    """

    def __init__(
        self, store: Store, log: RunLog, clock: Clock | None = None, parent: Session | None = None
    ) -> None:
        self.store = store
        self.log = log
        self.clock: Clock = clock or clock_of(store)
        self.recorder = Recorder(store, log, self.clock)
        #: The session of the run that started this one, in this process.
        self.parent = parent
        self.root = Scope()
        self._active = self.root
        self._closed = False
        self._looked = -math.inf
        #: Whether steps are to be forgotten and read back, see `modes`; looked up once, as every step asks.
        self.evicting = modes.current() == "evict"
        #: Held by who takes a signal out of the mailbox until that is recorded: each is consumed once.
        self.consuming = threading.RLock()
        #: Called before every step but those that undo; one that raises keeps the step from starting.
        self.guards: list[Callable[[StepSpec], None]] = []
        #: Asked before every step and in every wait; one that raises `RunCancelled` stops this thread or task alone.
        self.stops: list[Callable[[], None]] = []
        #: Told before a step waits for its next attempt: spec, number of that attempt, seconds, what failed.
        self.on_wait: Callable[[StepSpec, int, float, BaseException | None], None] | None = None
        #: What moves with a call besides its result; the notebook layer sets it.
        self.surroundings: Surroundings | None = None
        self.resumed = any(execution.completed for execution in self.history.executions.values())
        hooks.opened(self)

    @property
    def history(self) -> History:
        """What the run's journal says so far."""
        return self.recorder.history

    @classmethod
    def open(  # noqa: PLR0913 - what a run may be told; all but two by name
        cls,
        store: Store,
        workflow: str,
        *,
        kind: str = "notebook",
        params: dict[str, Any] | None = None,
        version: str = "",
        tags: dict[str, str] | None = None,
        new: bool = False,
        run: str | None = None,
        steal: bool = False,
        clock: Clock | None = None,
        parent: Session | None = None,
        opened: dict[str, Any] | None = None,
    ) -> Session:
        """Attach the newest unfinished run of the workflow, or `run`, or else a new one.

        With `params` only an unfinished run of equal parameters is carried on.
        `opened` holds further fields of `RunOpened` for a new run (its id `run`,
        say, for a child); `parent` is the session that starts a child.

        Raises:
            LeaseHeld: a living process owns the run; `steal=True` takes it over.
            UnknownRun, RunFinished: about `run`.
        """
        if run is not None:
            found: RunInfo | None = store.run(run)
            assert found is not None
            if found.state == "corrupt":
                raise CorruptRecord(
                    f"Run {found.run} cannot be read: {found.error}",
                    run=found.run,
                    hint="`nbflow doctor` shows what can be saved.",
                )
            if RunState(found.state) in FINAL_RUN_STATES:
                raise RunFinished(
                    f"Run {found.run} of {found.workflow} is {found.state}.",
                    run=found.run,
                    hint="Its outputs stay readable; start a new run to compute again.",
                )
        else:
            found = None if new else store.newest_open(workflow, params)
        if found is not None:
            run = found.run
        else:
            facts = {"run": new_run_id(), **(opened or {})}
            run = str(facts.pop("run"))
            store.create(
                RunOpened(
                    run=run,
                    workflow=workflow,
                    version=version,
                    params=params or {},
                    tags=tags or {},
                    workflow_kind=kind,
                    **facts,
                )
            )
        log = store.attach(run, this_process(), steal=steal, versions=_versions())
        return cls(store, log, clock, parent)

    @property
    def run(self) -> str:
        """The run's id."""
        return self.log.run

    @property
    def workflow(self) -> str:
        """What is run: a notebook's path, or the name given to `nbflow.run`."""
        assert self.history.opened is not None
        return self.history.opened.workflow

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, from 1."""
        return self.log.attempt

    # --- replay ------------------------------------------------------------------------------------------------

    def find(self, step: str, signature: bytes) -> Execution | None:
        """Return the recorded execution that stands for this work, or None when it has to run."""
        self.recorder.settle()  # what was kept although its acknowledgement was lost is found
        return self.history.completed(step, signature)

    def restore(self, execution: Execution) -> dict[str, Any]:
        """Return the recorded values by name.

        Raises:
            CannotRestore, CorruptLeaf: naming run and step.
        """
        assert execution.completed is not None, "only a completed step has values"
        return self._decode(execution, execution.completed.checkpoint)

    def restore_state(self, execution: Execution) -> dict[str, Any]:
        """Return the ambient state that was recorded with the step; {} when none was."""
        assert execution.completed is not None, "only a completed step has state"
        return self._decode(execution, execution.completed.state)

    def restore_cursor(self, step: str) -> dict[str, Any] | None:
        """Return the values of the step's newest cursor by name; None when it has none."""
        cursor = self.history.cursors.get(step)
        if cursor is None:
            return None
        return self._decode(self.history.by_step[step][-1], cursor.checkpoint)

    def display(self, execution: Execution) -> bytes:
        """Return what the step showed, as the notebook layer encoded it; b"" when nothing."""
        end = execution.completed or execution.ended
        if end is None:
            return b""
        return bytes(self.log.leaf(end.display_leaf)) if end.display_leaf else end.display

    def _decode(self, execution: Execution, checkpoint: Checkpoint | None) -> dict[str, Any]:
        if checkpoint is None:
            return {}
        if not checkpoint.leaves:
            return self._named(execution, lambda: decode(checkpoint, _no_leaves))
        refs = {ref.digest: ref for ref in checkpoint.leaves}
        return self._named(execution, lambda: decode(checkpoint, lambda digest: self.log.leaf(refs[digest])))

    def _named(self, execution: Execution, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return action()
        except NbflowError as error:
            error.run, error.step = self.run, execution.started.step
            error.add_note(f"nbflow: run {self.run}, step {execution.started.step}")
            raise

    # --- recording ---------------------------------------------------------------------------------------------

    def run_step(
        self, spec: StepSpec, body: Callable[[int], StepResult], on_error: OnError | None = None
    ) -> Execution:
        """Run the step's body until it is recorded or out of tries, and return its execution.

        `body` gets the number of the attempt, from 1. `on_error` returns what a
        failed attempt showed. The exception of the last attempt is raised unchanged.

        Raises:
            CannotStore: the result cannot be stored; the step is failed.
            RunCancelled, BudgetExceeded: the step must not start; nothing is recorded.
            LeaseLost, StoreFull: nothing of this step was recorded.
        """
        execution = trying.run(self, spec, body, on_error)
        return self._evicted(execution)

    async def run_step_async(
        self, spec: StepSpec, body: Callable[[int], Awaitable[StepResult]], on_error: OnError | None = None
    ) -> Execution:
        """Do as `run_step` without blocking the event loop while waiting for time or disk."""
        execution = await trying.run_async(self, spec, body, on_error)
        return self._evicted(execution)

    def _evicted(self, execution: Execution) -> Execution:
        if self.evicting and (execution.number <= EVICT_EVERY or execution.number % 100 < 2):
            self.recorder.reread()
            return self.history.executions[execution.number]
        return execution

    def before_step(self, spec: StepSpec) -> None:
        """Look at what may keep a step from starting.

        Raises:
            RunCancelled: the run, or the one that started it, is to stop.
            BudgetExceeded: a budget is spent.
        """
        self.recorder.settle()
        if spec.kind in UNDOING or _shielded.get():
            return
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            hooks.refresh(self)
            self.check()
        elif self.history.cancelling is not None:
            self.check()
        for stop in self.stops:
            stop()
        session: Session | None = self
        while session is not None:  # what limits a run limits its children
            if session.guards:
                for guard in tuple(session.guards):
                    guard(spec)
            session = session.parent
        if self.history.state is RunState.WAITING and spec.kind != GATE:
            self.goes_on()

    def waits(self) -> None:
        """Record that the run, and those that started it, wait for a person; nothing where they are said to already."""
        self._all_become(RunState.WAITING, RunState.RUNNING)

    def goes_on(self) -> None:
        """Record that the run, and those that started it, are running again."""
        self._all_become(RunState.RUNNING, RunState.WAITING)

    def _all_become(self, state: RunState, instead_of: RunState) -> None:
        session: Session | None = self
        while session is not None:
            if session.history.state is instead_of:
                session.recorder.append(RunChanged(state=state), durability="written")
            session = session.parent

    def check(self) -> None:
        """Take messages in and raise if the run is to stop: the place for long bodies to ask.

        Raises:
            RunCancelled: somebody asked for it, the time is over, or the parent is to stop.
        """
        self.recorder.settle()
        self.recorder.take_messages()  # also where nothing may stop us: a compensator may wait for a signal
        if _shielded.get():
            return
        for stop in self.stops:
            stop()
        reason = self.history.cancelling
        if reason is not None:
            word, _, note = reason.partition(": ")
            raise self.cancelled(CancelReason(word), note)
        opened = self.history.opened
        if opened is not None and opened.deadline is not None and self.clock.now() >= opened.deadline:
            raise self.cancelled(CancelReason.TIMEOUT)
        if self.parent is not None:
            try:
                self.parent.check()
            except RunCancelled as error:
                raise self.cancelled(CancelReason.PARENT, error.message) from error

    def cancelled(self, reason: CancelReason, note: str = "") -> RunCancelled:
        """Return the error that stops this run."""
        said = f" ({note})" if note else ""
        return RunCancelled(
            f"Run {self.run} of {self.workflow} is cancelled: {reason}{said}.",
            run=self.run,
            reason=str(reason),
            note=note,
            hint="Cancelled is final; start a new run to compute again.",
        )

    # --- the run -----------------------------------------------------------------------------------------------

    def scope(self) -> Scope:
        """Return the scope of a durable call made here and now."""
        return enclosing() or self._active

    @contextmanager
    def within(self, scope: Scope) -> Iterator[Scope]:
        """Make `scope` the enclosing one, for this context and for threads that inherit none.

        For cells and runs, of which one is active at a time. A call enters its
        scope for its own context only (`scope.entered`): others run beside it.
        """
        before, self._active = self._active, scope
        try:
            with entered(scope):
                yield scope
        finally:
            self._active = before

    def enter_cell(self, scope: Scope | None) -> None:
        """Make `scope` the one of code that inherited none, until the next call; None is the run itself.

        For cells that are no steps: they begin in one context and end in another,
        so `within` cannot be used.
        """
        self._active = scope or self.root

    def forget(self, step: str, reason: str = "") -> None:
        """Have the step run again next time; its old checkpoints stay in history."""
        self.recorder.append(StepForgotten(step=step, reason=reason))

    def tag(self, **tags: str) -> None:
        """Merge tags into the run's."""
        self.recorder.append(RunTagged(tags=tags))

    def finish(
        self,
        state: RunState = RunState.COMPLETED,
        *,
        reason: str = "",
        error: BaseException | ErrorInfo | None = None,
    ) -> None:
        """Record the run's end and give the lease up. A failed run may be resumed, the other ends are final."""
        info = encode_error(error) if isinstance(error, BaseException) else error
        if state == RunState.CANCELLED:
            from nbflow.runtime.children.child import cancel_open

            cancel_open(self)  # before the run's own end: after it nobody would come back for them
        try:
            self.recorder.append(RunChanged(state=state, reason=reason, error=info))
        except LeaseError:
            raise
        except Exception:
            # Without the acknowledgement nobody knows. A run that is over cannot be tried again: look.
            self.recorder.settle()
            if self.history.state != state:
                raise
        self.close()

    def close(self) -> None:
        """Give the lease up and leave the run as it is, to be carried on later. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            hooks.closed(self)
            self.log.release()


def clock_of(store: Store) -> Clock:
    """Return the clock of a store that has one (those of `nbflow.testing` do), else the machine's."""
    return getattr(store, "clock", None) or SystemClock()


def this_process() -> Owner:
    """Describe this process as the owner of a lease."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's uid without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else ""
    return Owner(host=socket.gethostname(), pid=os.getpid(), since=time.time(), user=user, program="python")


def _versions() -> dict[str, str]:
    from nbflow import __version__

    return {"nbflow": __version__, "python": platform.python_version()}


def _no_leaves(digest: bytes) -> memoryview:
    raise CorruptLeaf("The envelope asks for a leaf that its record does not name.", digest=digest)
