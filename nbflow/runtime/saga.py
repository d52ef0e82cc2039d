"""Rollback: undo the completed steps of a run, last first, through crashes and failing compensators.

`nbflow.run` and the machine runner call `rollback` when a run fails and
`resume_rollback` when one is carried on; `nbflow.rollback` is for people. What
is to be undone is decided in `nbflow.core.saga`.
"""

from __future__ import annotations

import contextvars
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nbflow.core import saga
from nbflow.core.errors import CompensationFailed, LeaseError, NbflowError, StepError
from nbflow.core.history import Execution
from nbflow.core.retry import RetryPolicy
from nbflow.core.saga import compensatable, rolled_back_at
from nbflow.core.signature import digest
from nbflow.core.states import COMPENSATE, COMPENSATION, StepState
from nbflow.runtime.scope import Scope, entered
from nbflow.runtime.session import Session, shielded
from nbflow.runtime.trying import StepResult, StepSpec
from nbflow.values.failures import decode_error, encode_error

__all__ = [
    "Compensatable",
    "Find",
    "compensatable",
    "fail",
    "register",
    "resume_rollback",
    "rollback",
    "rolled_back_at",
]

#: Asked first for what undoes an execution: a call without arguments, or None where the registry is to say.
Find = Callable[[Execution], Callable[[], object] | None]


class Compensatable(Protocol):
    """A function whose calls can be undone."""

    @property
    def step_name(self) -> str:
        """What its steps are called."""
        ...

    @property
    def compensated_as(self) -> str:
        """The name under which it is found again, recorded with each call."""
        ...

    @property
    def retry(self) -> RetryPolicy:
        """How its undo is retried."""
        ...

    def undo(self, values: dict[str, Any]) -> object:
        """Undo a call that recorded these values; what it returns may be to be awaited."""
        ...


#: By name with module, and by name alone for code that moved; a later definition wins, as cells are run again.
_registry: dict[str, Compensatable] = {}


def register(function: Compensatable, *, replace: bool = True) -> None:
    """Have the calls of this function undone by its compensator, also those that another process recorded."""
    for name in (function.compensated_as, function.step_name):
        if replace or name not in _registry:
            _registry[name] = function


def _registered(execution: Execution) -> Compensatable | None:
    known_as = str(execution.started.detail.get(COMPENSATE))
    return _registry.get(known_as) or _registry.get(execution.started.name)


def rollback(
    session: Session, error: BaseException | None, find: Find | None = None, *, reason: str = ""
) -> list[str]:
    """Undo everything of the run that can be undone, last first; return the keys of the steps in that order.

    Nothing is recorded where there is nothing to undo. A compensator that fails
    stops none of the others. `error` is what made the run fail, None when
    somebody asked; it is recorded, so that a crash cannot lose it. An
    unfinished rollback is carried on.

    Raises:
        CompensationFailed: something is not undone; `error` is its cause.
        LeaseLost: another process has the run; what is left is for that.
    """
    with shielded():
        session.recorder.settle()
        unfinished = saga.rollback_of(session.history).unfinished
        if not unfinished and not compensatable(session.history):
            return []
        return _Rollback(session, error, find, reason).run()


def resume_rollback(session: Session, find: Find | None = None) -> None:
    """Carry on what a rollback of an earlier process left, before anything else of the run is done.

    One that was interrupted is finished and its original error raised, as in an
    undisturbed run. One that could not undo everything tries the rest once more,
    and the run goes on if that works.

    Raises:
        CompensationFailed: something is still not undone.
        BaseException: the error that made the interrupted rollback necessary.
    """
    found = saga.rollback_of(session.history)
    if not found.unfinished:
        return
    error = decode_error(found.error) if found.error is not None else None
    rollback(session, error, find)
    if found.progress is saga.Progress.INTERRUPTED and error is not None:
        raise error


def fail(session: Session, error: Exception, find: Find | None = None) -> Exception:
    """Undo what the failed run did, and return what it fails with: `error`, or that it could not be undone.

    Raises:
        LeaseLost: as `rollback`.
    """
    if isinstance(error, CompensationFailed) and error.run == session.run:
        return error  # it has just been tried
    try:
        rollback(session, error, find)
    except CompensationFailed as failure:
        return failure
    return error


class _Rollback:
    """One rollback: its step, what it undid and what it could not."""

    def __init__(self, session: Session, error: BaseException | None, find: Find | None, reason: str) -> None:
        self._session = session
        self._error = error
        self._find = find
        self._undone: list[str] = []
        self._failures: dict[str, BaseException] = {}
        key = saga.next_rollback(session.history)
        self._spec = StepSpec(
            step=key,
            name=saga.ROLLBACK,
            kind=COMPENSATION,
            signature=digest(saga.ROLLBACK, key),
            parent=session.scope().step or None,
            detail=saga.rollback_detail(encode_error(error) if error is not None else None, reason),
        )

    def run(self) -> list[str]:
        """Undo, and record how that ended."""
        try:
            self._session.run_step(self._spec, lambda _attempt: self._undo_all())
        except (CompensationFailed, LeaseError):
            raise
        except Exception as problem:  # noqa: BLE001 - nothing may hide the error that the run fails with
            if not self._kept(self._spec.step):
                raise self._stopped(problem) from self._error
        return self._undone

    def _undo_all(self) -> StepResult:
        tried: set[int] = set()
        # Again and again: a thread that was slow to stop may complete a step meanwhile.
        while todo := [e for e in compensatable(self._session.history) if e.number not in tried]:
            left = Counter(e.started.step for e in todo)
            left.update(self._failures.keys())
            for execution in todo:
                tried.add(execution.number)
                step = execution.started.step
                left[step] -= 1
                problem = self._undo(execution, left)
                if problem is None:
                    self._undone.append(step)
                else:
                    left[step] += 1
                    self._failures[step] = problem
        if self._failures:
            raise self._failed() from self._error
        return StepResult({})

    def _undo(self, execution: Execution, left: Counter[str]) -> Exception | None:
        """Undo one execution; return what went wrong."""
        session, key = self._session, saga.undo_key(execution.number)
        call, retry = self._compensator(execution)

        def body(_attempt: int) -> StepResult:
            with entered(Scope(key)):
                _finish(call())
            return StepResult({}, along=saga.forgotten_with(session.history, execution, left))

        spec = StepSpec(
            step=key,
            name=f"undo {execution.started.name}",
            kind=COMPENSATION,
            signature=digest("undo", key),
            retry=retry,
            parent=self._spec.step,
            detail={saga.OF: execution.number},
        )
        try:
            session.run_step(spec, body)
        except LeaseError:
            raise
        except Exception as problem:  # noqa: BLE001 - collected; the others are undone all the same
            return None if self._kept(key) else problem
        return None

    def _kept(self, step: str) -> bool:
        """Say whether the step is completed after all: its record was kept and the acknowledgement was lost."""
        try:
            self._session.recorder.settle()
        except NbflowError:  # the store is out of reach: the next attach will know
            return False
        latest = self._session.history.latest(step)
        return latest is not None and latest.state is StepState.COMPLETED

    def _compensator(self, execution: Execution) -> tuple[Callable[[], object], RetryPolicy]:
        session = self._session
        call = self._find(execution) if self._find is not None else None
        if call is not None:
            return call, RetryPolicy()
        function = _registered(execution)
        if function is not None:
            return lambda: function.undo(session.restore(execution)), function.retry

        def missing() -> object:
            values = session.restore(execution)
            raise StepError(
                f"Step {execution.started.step} of run {session.run} cannot be undone: "
                f"{execution.started.detail.get(COMPENSATE)} has no compensator in this program.",
                run=session.run,
                step=execution.started.step,
                output=values.get("return", values),
                hint="Define it again with `compensate=` and resume the run; `error.output` is what the step gave.",
            )

        return missing, RetryPolicy()

    def _stopped(self, problem: Exception) -> CompensationFailed:
        """Return the error for a rollback that could not be recorded itself."""
        session = self._session
        return CompensationFailed(
            f"The rollback of run {session.run} of {session.workflow} could not be recorded "
            f"({type(problem).__name__}: {problem}); {len(self._undone)} steps were undone before.",
            run=session.run,
            failures={**self._failures, self._spec.step: problem},
            original=self._error,
            hint="What was not undone is still recorded; resume the run when the store works again.",
        )

    def _failed(self) -> CompensationFailed:
        session, count = self._session, len(self._failures)
        names = ", ".join(self._failures)
        told = "; ".join(f"{type(problem).__name__}: {problem}" for problem in self._failures.values())
        return CompensationFailed(
            f"Run {session.run} of {session.workflow} was rolled back, but {count} of "
            f"{count + len(self._undone)} steps could not be undone: {names} ({told}).",
            run=session.run,
            failures=dict(self._failures),
            original=self._error,
            hint="Mend what keeps them from being undone and resume the run: they are tried again first.",
        )


def _finish(value: object) -> None:
    """Wait for what a compensator returned, if it is to be awaited, whether or not a loop runs in this thread."""
    if not inspect.isawaitable(value):
        return
    import asyncio  # loaded already wherever a coroutine function is; 20 ms elsewhere

    async def wait(awaitable: Awaitable[object]) -> None:
        await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(wait(value))
        return
    from concurrent.futures import ThreadPoolExecutor

    # The loop here is busy with the code that called us: another one, in a thread that knows the same run.
    with ThreadPoolExecutor(1, thread_name_prefix="nbflow undo") as pool:
        pool.submit(contextvars.copy_context().run, asyncio.run, wait(value)).result()
