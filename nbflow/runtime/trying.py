"""Trying a step: start it, run its body until it is recorded or out of tries, record how it ended.

`run` and `run_async` are the two faces of one `Trial`, which decides everything;
they differ in how they call the body and how they wait. What replays and what
runs is decided before, by whoever made the `StepSpec`.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from nbflow.core.errors import (
    GateRejected,
    GateTimedOut,
    LeaseError,
    NbflowError,
    RunCancelled,
    StepError,
    StepTimeout,
)
from nbflow.core.gates import QUALITY
from nbflow.core.history import Execution
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    LeafRef,
    StepCompleted,
    StepEnded,
    StepRetried,
    StepStarted,
    Struct,
)
from nbflow.core.retry import RetryPolicy
from nbflow.core.states import StepState
from nbflow.runtime import attempts
from nbflow.runtime.policies.guards import Policy, guarded, guarded_async
from nbflow.store.protocol import Durability
from nbflow.values.codec import encode
from nbflow.values.failures import encode_error
from nbflow.values.leaf import Digests, Leaf

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Displays longer than this go into a leaf of their own: records stay small to read.
DISPLAY_INLINE = 64 * 1024


class StepSpec(Struct, frozen=True):
    """What is to be run and how: identity, policy, and what the layer above wants to find again."""

    step: str
    name: str
    kind: str
    signature: bytes
    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    parent: str | None = None
    version: str = ""
    detail: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own
    durability: Literal["synced", "buffered"] = "synced"
    check: bool = False
    #: Whether the start must be on disk before the body runs: it holds what cannot be found again (a due instant).
    synced_start: bool = False
    #: Round every attempt, outside its timeout: waiting for a token is not the body's time.
    policies: tuple[Policy, ...] = ()


class StepResult(Struct, frozen=True):
    """What a body hands over to be recorded: values by name, what it showed, ambient state to put back."""

    values: dict[str, Any]
    display: bytes = b""
    state: dict[str, Any] | None = None
    detail: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own
    digests: Digests | None = None
    #: Records that hold from the moment the step is completed: appended with it, all or none.
    along: tuple[AnyRecord, ...] = ()


OnError = Callable[[BaseException], bytes]


def run(
    session: Session, spec: StepSpec, body: Callable[[int], StepResult], on_error: OnError | None
) -> Execution:
    """Run the step's body until it is recorded or out of tries; see `Session.run_step`."""
    trial = Trial(session, spec, on_error)
    session.clock.sleep(trial.start())
    while True:
        trial.begin()
        try:
            if spec.policies:
                result = guarded(spec.policies, session, functools.partial(_attempt, trial, body))
            else:
                result = _attempt(trial, body)
            record = trial.completed(result)
        except BaseException as error:
            delay = trial.failed(error)
            if delay is None:
                raise
            session.clock.sleep(delay)
            continue
        session.recorder.append(record, *result.along, durability=spec.durability)
        return trial.execution


async def run_async(
    session: Session, spec: StepSpec, body: Callable[[int], Awaitable[StepResult]], on_error: OnError | None
) -> Execution:
    """Do as `run` without blocking the event loop while waiting for time or disk."""
    trial = Trial(session, spec, on_error)
    await _pause(session, trial.start())
    while True:
        trial.begin()
        try:
            if spec.policies:
                attempt = functools.partial(_attempt_async, trial, body)
                result = await guarded_async(spec.policies, session, attempt)
            else:
                result = await _attempt_async(trial, body)
            record = trial.completed(result)
        except BaseException as error:
            delay = trial.failed(error)
            if delay is None:
                raise
            await _pause(session, delay)
            continue
        if spec.durability == "buffered":
            session.recorder.append(record, *result.along, durability="buffered")
        else:
            await session.recorder.append_async(record, *result.along)
        return trial.execution


def _attempt(trial: Trial, body: Callable[[int], StepResult]) -> StepResult:
    trial.begin()
    if trial.spec.timeout is None:
        return body(trial.attempt)
    return attempts.call(functools.partial(body, trial.attempt), trial.spec.timeout, trial.spec.step)


async def _attempt_async(trial: Trial, body: Callable[[int], Awaitable[StepResult]]) -> StepResult:
    trial.begin()
    return await attempts.call_async(lambda: body(trial.attempt), trial.spec.timeout, trial.spec.step)


async def _pause(session: Session, seconds: float) -> None:
    if seconds > 0:
        await session.clock.sleep_async(seconds)


class Trial:
    """The tries of one execution of a step; `attempt` counts them from 1, over restarts too."""

    execution: Execution

    def __init__(self, session: Session, spec: StepSpec, on_error: OnError | None = None) -> None:
        self.session = session
        self.spec = spec
        self.attempt = 1
        self._on_error = on_error
        self._began = 0.0
        #: When the first attempt began (monotonic seconds; of other processes, as much earlier as the wall clock
        #: says), and the seconds waited since in this process.
        self._first = 0.0
        self._idle = 0.0

    def start(self) -> float:
        """Record that the step starts; return the seconds to wait before its first try.

        Raises:
            RunCancelled, BudgetExceeded: the step must not start; nothing is recorded.
        """
        session, spec = self.session, self.spec
        session.before_step(spec)
        wait = 0.0
        last = session.history.latest(spec.step)
        if (
            last is not None
            and last.interrupted
            and not last.forgotten
            and last.retried is not None
            and last.started.signature == spec.signature
        ):
            # The process died during the backoff or in a later attempt: carry on there.
            self.attempt, wait = last.retried.attempt + 1, last.retried.due_at - session.clock.now()
        record = StepStarted(
            step=spec.step,
            name=spec.name,
            step_kind=spec.kind,
            signature=spec.signature,
            attempt=self.attempt,
            parent=spec.parent,
            version=spec.version,
            detail=spec.detail,
        )
        durability: Durability = "written" if spec.durability == "synced" else "buffered"
        seq = session.recorder.append(record, durability="synced" if spec.synced_start else durability)
        self.execution = session.history.executions[seq]
        self._first = self._first_began()
        if wait > 0 and session.on_wait is not None:
            session.on_wait(spec, self.attempt, wait, None)
        return max(0.0, wait)

    def _first_began(self) -> float:
        clock = self.session.clock
        if self.attempt == 1:
            return clock.monotonic()
        first = self.execution
        for earlier in reversed(self.session.history.by_step[self.spec.step]):
            first = earlier
            if earlier.started.attempt == 1:
                break
        return clock.monotonic() - max(0.0, clock.now() - first.started_at)

    def begin(self) -> None:
        """Begin the next try."""
        self._began = time.perf_counter()

    def completed(self, result: StepResult) -> StepCompleted:
        """Return the record of success; large values are on disk when this returns.

        Raises:
            CannotStore: the result cannot be stored.
            StoreFull: the disk refused a large value.
        """
        seconds = time.perf_counter() - self._began
        if self.spec.check:
            from nbflow.values.roundtrip import require_roundtrip

            require_roundtrip(result.values)
        display, display_leaf = self._display(result.display)
        return StepCompleted(
            execution=self.execution.number,
            step=self.spec.step,
            attempt=self.attempt,
            seconds=seconds,
            checkpoint=checkpoint(self.session, result.values, result.digests),
            display=display,
            display_leaf=display_leaf,
            state=checkpoint(self.session, result.state, None) if result.state else None,
            detail=result.detail,
        )

    def _display(self, display: bytes) -> tuple[bytes, LeafRef | None]:
        if len(display) <= DISPLAY_INLINE:
            return display, None
        view = memoryview(display)
        (ref,) = self.session.log.put_leaves([Leaf(Digests().of(view, id(display)), len(display), [view])])
        return b"", ref

    def _retry_delay(self, error: BaseException) -> float | None:
        """Return the seconds to wait before the next attempt, None when there is none."""
        if not isinstance(error, Exception) or is_final(error):
            return None
        since_start = self.session.clock.monotonic() - self._first
        draw = random.SystemRandom().random
        try:
            return self.spec.retry.after(self.attempt, error, draw, since_start=since_start, idle=self._idle)
        except Exception as problem:  # noqa: BLE001 - a policy of the user's own may raise anything
            error.add_note(f"nbflow could not ask the retry policy: {type(problem).__name__}: {problem}")
            return None

    def failed(self, error: BaseException) -> float | None:
        """Record a failed try; return the seconds to wait before the next, None when there is none."""
        session, spec = self.session, self.spec
        if isinstance(error, NbflowError) and error.step is None:
            error.run, error.step = session.run, spec.step
        if isinstance(error, LeaseError):
            return None  # whatever happens now is no longer ours to record
        delay = self._retry_delay(error)
        if delay is not None:
            if session.on_wait is not None:
                session.on_wait(spec, self.attempt + 1, delay, error)
            session.recorder.append(
                StepRetried(
                    execution=self.execution.number,
                    step=spec.step,
                    attempt=self.attempt,
                    due_at=session.clock.now() + delay,
                    error=encode_error(error),
                ),
                durability="written",
            )
            self.attempt += 1
            self._idle += delay
            return delay
        display, display_leaf = self._display(self._on_error(error)) if self._on_error else (b"", None)
        try:
            session.recorder.append(
                StepEnded(
                    execution=self.execution.number,
                    step=spec.step,
                    state=_end_state(error),
                    attempt=self.attempt,
                    seconds=time.perf_counter() - self._began,
                    error=encode_error(error),
                    display=display,
                    display_leaf=display_leaf,
                )
            )
        except NbflowError as problem:
            # The user's own exception matters more than our trouble to note it; both are shown.
            error.add_note(f"nbflow could not record this failure: {problem}")
        return None


def checkpoint(session: Session, values: dict[str, Any], digests: Digests | None = None) -> Checkpoint:
    """Encode values by name and write their large leaves.

    Raises:
        CannotStore: naming variable and path.
        StoreFull: the disk refused the leaves.
    """
    encoded = encode(values, digests=digests)
    refs = session.log.put_leaves(encoded.leaves) if encoded.leaves else ()
    return encoded.checkpoint(refs)


def is_final(error: Exception) -> bool:
    """Tell whether another try cannot help: trouble of nbflow's own, and what a person has decided at a gate.

    A timeout, a rate limit or an open circuit may be over next time, and figures better.
    """
    if isinstance(error, GateTimedOut):
        return True
    if isinstance(error, GateRejected):
        return getattr(error.decision, "via", "") != QUALITY
    return isinstance(error, NbflowError) and not isinstance(error, StepError)


def _end_state(error: BaseException) -> StepState:
    if isinstance(error, StepTimeout):
        return StepState.TIMED_OUT
    if isinstance(error, RunCancelled) or not isinstance(error, Exception):
        return StepState.CANCELLED
    return StepState.FAILED
