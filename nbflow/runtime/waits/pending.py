"""A step that waits: found in the journal or opened in it, with a deadline that stays where it was first put.

Timers and signals are steps of this kind. They are not tried and retried, as
those of `trying.py` are; what began to wait in a process that died waits on in
the next one, for as long as was left.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from nbflow.core.errors import LeaseError, NbflowError, RunCancelled, WaitTimeout
from nbflow.core.history import Execution, History
from nbflow.core.model import AnyRecord, StepCompleted, StepEnded, StepStarted
from nbflow.core.signature import digest
from nbflow.core.states import StepState
from nbflow.core.timers import Timer
from nbflow.runtime import active, modes
from nbflow.runtime.trying import StepSpec, checkpoint
from nbflow.values.failures import encode_error


class Wait:
    """One wait, from finding it to its end; the body of its with statement is the waiting.

    What stops the body is recorded as the end of the step, but such a step is
    not over: the same wait in the same place waits on.
    """

    def __init__(self, kind: str, name: str, call: str, *, work: bytes = b"", lasting: bool = False) -> None:
        """Find the place of a wait.

        `work` tells waits of one place apart that must not stand for each other. A
        `lasting` one stays open whatever stops the code that waits, but for a cancel.
        """
        self._lasting = lasting
        self.session = active.required()
        self._scope = self.session.scope()
        self._call = call
        self._occurrence = self._scope.occurrence(call)
        self.spec = StepSpec(
            step=self._scope.within(f"{call}#{self._occurrence}"),
            name=name,
            kind=kind,
            signature=digest(kind, work) if work else digest(kind),
            parent=self._scope.step or None,
        )
        self._number = 0
        self._timer: Timer | None = None
        self._until = 0.0
        self._began = 0.0

    # --- what the journal says --------------------------------------------------------------------------------

    def over(self) -> Execution | None:
        """Return the execution in which this wait came to its end, completed or timed out; None when it has to wait."""
        self.session.recorder.settle()
        done = self.session.find(self.spec.step, self.spec.signature)
        if done is not None:
            return done
        last = self._last()
        return last if last is not None and last.state == StepState.TIMED_OUT else None

    def _last(self) -> Execution | None:
        last = self.session.history.latest(self.spec.step)
        other = last is None or last.forgotten or last.started.signature != self.spec.signature
        return None if other else last

    @property
    def begun(self) -> Execution | None:
        """The newest execution of this wait, which it goes on with; None where it never began, or begins anew."""
        self.session.recorder.settle()
        return self._last()

    @property
    def number(self) -> int:
        """The execution in which it waits; 0 before it opened."""
        return self._number

    # --- opening ----------------------------------------------------------------------------------------------

    def open(
        self,
        timer: Timer | None,
        *,
        brief: bool = False,
        detail: dict[str, Any] | None = None,
        along: tuple[AnyRecord, ...] = (),
    ) -> bool:
        """Record that the wait began; tell whether it is over already.

        What was recorded when it first began counts instead of `timer` and `detail`,
        and `along` (records of the same append) is left out then. With `brief` a
        wait that is over at once is recorded as completed in the same append.

        Raises:
            RunCancelled, BudgetExceeded: nothing is recorded.
        """
        records, over = self._opening(timer, brief, detail or {}, along)
        if records:
            self._number = self.session.recorder.append(*records)
        return over

    async def open_async(
        self,
        timer: Timer | None,
        *,
        brief: bool = False,
        detail: dict[str, Any] | None = None,
        along: tuple[AnyRecord, ...] = (),
    ) -> bool:
        """Do as `open` without blocking the event loop."""
        records, over = self._opening(timer, brief, detail or {}, along)
        if records:
            self._number = await self.session.recorder.append_async(*records)
        return over

    def _opening(
        self, timer: Timer | None, brief: bool, detail: dict[str, Any], along: tuple[AnyRecord, ...]
    ) -> tuple[list[AnyRecord], bool]:
        """Return what is to be recorded of the opening, and whether the wait is over with it."""
        session, spec = self.session, self.spec
        session.before_step(spec)
        last, clock = self._last(), session.clock
        still_open = self._lasting and last is not None and last.state == StepState.WAITING
        if last is not None:
            timer = Timer.of(last.started.detail)
            detail, along = last.started.detail, ()
            if timer is not None and not still_open:
                timer = timer.resumed(clock.now(), clock.boot())
        self._timer = timer
        left = self._left(timer)
        self._began = clock.monotonic()
        self._until = self._began + (left or 0.0)
        if still_open and last is not None:
            self._number = last.number  # this process opened it, and came back
            return [], False
        started = StepStarted(
            step=spec.step,
            name=spec.name,
            step_kind=spec.kind,
            signature=spec.signature,
            parent=spec.parent,
            detail={**detail, **(timer.detail() if timer is not None else {})},
        )
        if brief and left is not None and left <= 0:
            done = StepCompleted(execution=-1, step=spec.step, checkpoint=checkpoint(session, {}))
            return [started, done], True
        return [started, *along], False

    def _left(self, timer: Timer | None) -> float | None:
        clock = self.session.clock
        return None if timer is None else timer.left(clock.now(), clock.boot())

    # --- waiting ----------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """Return the UTC second at which the wait is over, by the wall clock as it is now; None when never."""
        timer, clock = self._timer, self.session.clock
        if modes.current() == "timers":
            # As if nothing were remembered: the journal alone says when it is over.
            history = History.of(self.session.store.entries(self.session.run))
            left = self._left(Timer.of(history.executions[self._number].started.detail))
            return None if left is None else clock.now() + left
        if timer is None or timer.seconds is None:
            return timer.due_at if timer is not None else None
        return clock.now() + self._until - clock.monotonic()

    # --- the end ----------------------------------------------------------------------------------------------

    def completion(self, values: dict[str, Any], **detail: Any) -> StepCompleted:
        """Return the record of success."""
        return StepCompleted(
            execution=self._number,
            step=self.spec.step,
            seconds=self.session.clock.monotonic() - self._began,
            checkpoint=checkpoint(self.session, values),
            detail=detail,
        )

    def end(self, state: StepState, error: BaseException) -> StepEnded:
        """Return the record of an end without a result."""
        return StepEnded(
            execution=self._number,
            step=self.spec.step,
            state=state,
            seconds=self.session.clock.monotonic() - self._began,
            error=encode_error(error),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if isinstance(error, NbflowError) and error.step is None:
            error.run, error.step = self.session.run, self.spec.step
        if isinstance(error, (LeaseError, WaitTimeout)):
            return  # not ours to record any more; or recorded, and the next such wait is another one
        try:
            if self._number and (not self._lasting or isinstance(error, RunCancelled)):
                self.session.recorder.settle()
                if not self._ended():
                    self.session.recorder.append(self.end(_state(error), error))
        except NbflowError as problem:
            error.add_note(f"nbflow could not record the end of this wait: {problem}")
        self._scope.give_back(self._call, self._occurrence)

    def _ended(self) -> bool:
        execution = self.session.history.executions.get(self._number)
        return execution is not None and execution.ended_seq > 0


def _state(error: BaseException) -> StepState:
    if isinstance(error, RunCancelled) or not isinstance(error, Exception):
        return StepState.CANCELLED
    return StepState.FAILED
