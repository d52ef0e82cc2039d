"""The session: one run attached to this process, and the one place where steps are recorded.

Cells, calls and (later) machines all go through `Session.run_step`: it starts
the step in the journal, tries and retries the body, and records how it ended.
What replays and what runs is decided by the layers above, with `find`.
"""

from __future__ import annotations

import functools
import getpass
import os
import platform
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from nbflow.core.clock import Clock, SystemClock
from nbflow.core.errors import CorruptLeaf, CorruptRecord, LeaseError, NbflowError, RunFinished, StepTimeout
from nbflow.core.history import Execution, History
from nbflow.core.ids import new_run_id
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    ErrorInfo,
    LeafRef,
    Owner,
    RunChanged,
    RunInfo,
    RunOpened,
    RunTagged,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
    Struct,
)
from nbflow.core.retry import RetryPolicy
from nbflow.core.states import FINAL_RUN_STATES, RunState, StepState
from nbflow.runtime import attempts
from nbflow.runtime.scope import Scope, enclosing, entered
from nbflow.runtime.surroundings import Surroundings
from nbflow.store.protocol import Durability, RunLog, Store
from nbflow.values.codec import decode, encode
from nbflow.values.failures import encode_error
from nbflow.values.leaf import Digests, Leaf

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


class StepResult(Struct, frozen=True):
    """What a body hands over to be recorded: values by name, what it showed, ambient state to put back."""

    values: dict[str, Any]
    display: bytes = b""
    state: dict[str, Any] | None = None
    detail: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own
    digests: Digests | None = None


class Session:
    """A run that this process owns. Safe to use from several threads and tasks.

    `resumed` tells whether the run had completed steps when it was attached.
    """

    def __init__(self, store: Store, log: RunLog, clock: Clock | None = None) -> None:
        self.store = store
        self.log = log
        self.clock: Clock = clock or SystemClock()
        self.history = History.of(log.history)
        self.root = Scope()
        self._active = self.root
        self._lock = threading.Lock()
        self._closed = False
        #: Told before a step waits for its next attempt: spec, number of that attempt, seconds, what failed.
        self.on_wait: Callable[[StepSpec, int, float, BaseException | None], None] | None = None
        #: What moves with a call besides its result; the notebook layer sets it.
        self.surroundings: Surroundings | None = None
        self.resumed = any(execution.completed for execution in self.history.executions.values())

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
    ) -> Session:
        """Attach the newest unfinished run of the workflow, or `run`, or else a new one.

        With `params` only an unfinished run of equal parameters is carried on.

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
            run = new_run_id()
            store.create(
                RunOpened(
                    run=run,
                    workflow=workflow,
                    version=version,
                    params=params or {},
                    tags=tags or {},
                    workflow_kind=kind,
                )
            )
        return cls(store, store.attach(run, this_process(), steal=steal, versions=_versions()), clock)

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
        self,
        spec: StepSpec,
        body: Callable[[int], StepResult],
        on_error: Callable[[BaseException], bytes] | None = None,
    ) -> Execution:
        """Run the step's body until it is recorded or out of tries, and return its execution.

        `body` gets the number of the attempt, from 1. `on_error` returns what a
        failed attempt showed. The exception of the last attempt is raised unchanged.

        Raises:
            CannotStore: the result cannot be stored; the step is failed.
            LeaseLost, StoreFull: nothing of this step was recorded.
        """
        execution, first, wait = self._start(spec)
        self.clock.sleep(wait)
        for attempt in _from(first):
            began = time.perf_counter()
            try:
                if spec.timeout is None:
                    result = body(attempt)
                else:
                    result = attempts.call(functools.partial(body, attempt), spec.timeout, spec.step)
                record = self._completed(spec, execution, attempt, result, began)
            except BaseException as error:
                delay = self._failed(spec, execution, attempt, error, began, on_error)
                if delay is None:
                    raise
                self.clock.sleep(delay)
                continue
            self._append(record, durability=spec.durability)
            return execution
        raise AssertionError("unreachable")

    async def run_step_async(
        self,
        spec: StepSpec,
        body: Callable[[int], Awaitable[StepResult]],
        on_error: Callable[[BaseException], bytes] | None = None,
    ) -> Execution:
        """Do as `run_step` without blocking the event loop while waiting for time or disk."""
        execution, first, wait = self._start(spec)
        await self._pause(wait)
        for attempt in _from(first):
            began = time.perf_counter()
            try:
                result = await attempts.call_async(lambda n=attempt: body(n), spec.timeout, spec.step)  # type: ignore[misc]
                record = self._completed(spec, execution, attempt, result, began)
            except BaseException as error:
                delay = self._failed(spec, execution, attempt, error, began, on_error)
                if delay is None:
                    raise
                await self._pause(delay)
                continue
            if spec.durability == "buffered":
                self._append(record, durability="buffered")
            else:
                seq = await self.log.append_async(record)
                self._remember(seq, record)
            return execution
        raise AssertionError("unreachable")

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self.clock.sleep_async(seconds)

    def _start(self, spec: StepSpec) -> tuple[Execution, int, float]:
        """Record that the step starts; return its execution, the attempt to make and the seconds to wait first."""
        first, wait = 1, 0.0
        last = self.history.latest(spec.step)
        if (
            last is not None
            and last.interrupted
            and last.retried is not None
            and last.started.signature == spec.signature
        ):
            # The process died during the backoff or in a later attempt: carry on there.
            first, wait = last.retried.attempt + 1, last.retried.due_at - self.clock.now()
        record = StepStarted(
            step=spec.step,
            name=spec.name,
            step_kind=spec.kind,
            signature=spec.signature,
            attempt=first,
            parent=spec.parent,
            version=spec.version,
            detail=spec.detail,
        )
        seq = self._append(record, durability="written" if spec.durability == "synced" else "buffered")
        if wait > 0 and self.on_wait is not None:
            self.on_wait(spec, first, wait, None)
        return self.history.executions[seq], first, max(0.0, wait)

    def _completed(
        self, spec: StepSpec, execution: Execution, attempt: int, result: StepResult, began: float
    ) -> StepCompleted:
        seconds = time.perf_counter() - began
        if spec.check:
            from nbflow.values.roundtrip import require_roundtrip

            require_roundtrip(result.values)
        checkpoint = self._checkpoint(result.values, result.digests)
        state = self._checkpoint(result.state, None) if result.state else None
        display, display_leaf = self._display(result.display)
        return StepCompleted(
            execution=execution.number,
            step=spec.step,
            attempt=attempt,
            seconds=seconds,
            checkpoint=checkpoint,
            display=display,
            display_leaf=display_leaf,
            state=state,
            detail=result.detail,
        )

    def _checkpoint(self, values: dict[str, Any], digests: Digests | None) -> Checkpoint:
        encoded = encode(values, digests=digests)
        refs = self.log.put_leaves(encoded.leaves) if encoded.leaves else ()
        return encoded.checkpoint(refs)

    def _display(self, display: bytes) -> tuple[bytes, LeafRef | None]:
        if len(display) <= DISPLAY_INLINE:
            return display, None
        view = memoryview(display)
        (ref,) = self.log.put_leaves([Leaf(Digests().of(view, id(display)), len(display), [view])])
        return b"", ref

    def _failed(
        self,
        spec: StepSpec,
        execution: Execution,
        attempt: int,
        error: BaseException,
        began: float,
        on_error: Callable[[BaseException], bytes] | None,
    ) -> float | None:
        """Record a failed attempt; return the seconds to wait before the next, None when there is none."""
        if isinstance(error, NbflowError) and error.step is None:
            error.run, error.step = self.run, spec.step
        if isinstance(error, LeaseError):
            return None  # whatever happens now is no longer ours to record
        if isinstance(error, Exception) and not _final(error) and spec.retry.again(attempt, error):
            delay = spec.retry.wait(attempt, random.SystemRandom().random)
            if self.on_wait is not None:
                self.on_wait(spec, attempt + 1, delay, error)
            self._append(
                StepRetried(
                    execution=execution.number,
                    step=spec.step,
                    attempt=attempt,
                    due_at=self.clock.now() + delay,
                    error=encode_error(error),
                ),
                durability="written",
            )
            return delay
        display, display_leaf = self._display(on_error(error)) if on_error else (b"", None)
        try:
            self._append(
                StepEnded(
                    execution=execution.number,
                    step=spec.step,
                    state=_end_state(error),
                    attempt=attempt,
                    seconds=time.perf_counter() - began,
                    error=encode_error(error),
                    display=display,
                    display_leaf=display_leaf,
                )
            )
        except NbflowError as problem:
            # The user's own exception matters more than our trouble to note it; both are shown.
            error.add_note(f"nbflow could not record this failure: {problem}")
        return None

    def _append(self, record: AnyRecord, *, durability: Durability = "synced") -> int:
        seq = self.log.append(record, durability=durability)
        self._remember(seq, record)
        return seq

    def _remember(self, seq: int, record: AnyRecord) -> None:
        entry = Entry(seq, self.clock.now(), record)
        with self._lock:
            self.history.add(entry)

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
        self._append(StepForgotten(step=step, reason=reason))

    def tag(self, **tags: str) -> None:
        """Merge tags into the run's."""
        self._append(RunTagged(tags=tags))

    def finish(
        self,
        state: RunState = RunState.COMPLETED,
        *,
        reason: str = "",
        error: BaseException | ErrorInfo | None = None,
    ) -> None:
        """Record the run's end and give the lease up. A failed run may be resumed, the other ends are final."""
        info = encode_error(error) if isinstance(error, BaseException) else error
        self._append(RunChanged(state=state, reason=reason, error=info))
        self.close()

    def close(self) -> None:
        """Give the lease up and leave the run as it is, to be carried on later. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.log.release()


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


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _final(error: Exception) -> bool:
    """Trouble of nbflow's own is not cured by another try; a timeout may be."""
    return isinstance(error, NbflowError) and not isinstance(error, StepTimeout)


def _end_state(error: BaseException) -> StepState:
    if isinstance(error, StepTimeout):
        return StepState.TIMED_OUT
    return StepState.FAILED if isinstance(error, Exception) else StepState.CANCELLED
