"""What a run is now: a pure fold over its journal entries.

The session replays from it, the store lists from it, and the property tests
compare it with a reference model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nbflow.core.ledger import Ledger
from nbflow.core.mailbox import Mailbox
from nbflow.core.model import (
    Entry,
    ErrorInfo,
    MessageTaken,
    RunAttached,
    RunChanged,
    RunCharged,
    RunInfo,
    RunOpened,
    RunPublished,
    RunTagged,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepInfo,
    StepRetried,
    StepStarted,
    execution_of,
)
from nbflow.core.states import (
    CANCEL,
    COMPENSATE,
    COMPENSATION,
    DECISION,
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    WAITING_KINDS,
    RunState,
    StepState,
    advance_run,
)


@dataclass(slots=True)
class Execution:
    """One execution of a step: how it began, how it ended, what it can continue from."""

    number: int
    started_at: float
    started: StepStarted
    attempt: int = 1
    ended_at: float | None = None
    ended_seq: int = 0
    completed: StepCompleted | None = None
    ended: StepEnded | None = None
    retried: StepRetried | None = None
    cursor: StepCursor | None = None
    forgotten_at: int = 0
    interrupted: bool = False

    @property
    def forgotten(self) -> bool:
        """Whether the step is to run again, from the record `forgotten_at` on."""
        return self.forgotten_at > 0

    @property
    def state(self) -> StepState:
        """The state this execution is in; one whose process died counts as cancelled once the run is attached again."""
        if self.completed is not None:
            return StepState.COMPLETED
        if self.ended is not None:
            return StepState(self.ended.state)
        if self.interrupted:
            return StepState.CANCELLED
        return StepState.WAITING if self.started.step_kind in WAITING_KINDS else StepState.RUNNING


@dataclass
class History:
    """The fold: feed it entries in order with `add`, ask it anything in constant time.

    >>> history = History()
    >>> history.add(Entry(1, 0.0, RunOpened(run="r", workflow="w")))
    >>> history.state, history.seq
    (<RunState.PENDING: 'pending'>, 1)
    """

    opened: RunOpened | None = None
    opened_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None
    seq: int = 0
    state: RunState = RunState.PENDING
    #: The seq at which the run last failed or ended; 0 before.
    stopped: int = 0
    reason: str = ""
    error: ErrorInfo | None = None
    attached: RunAttached | None = None
    tags: dict[str, str] = field(default_factory=dict)
    executions: dict[int, Execution] = field(default_factory=dict)
    by_step: dict[str, list[Execution]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    #: Why the run is to be cancelled, from the first cancel message that was taken; None where nobody asked.
    cancelling: str | None = None
    #: The first decision about each opening of a gate that was taken.
    decisions: dict[str, MessageTaken] = field(default_factory=dict)
    mailbox: Mailbox = field(default_factory=Mailbox)
    ledger: Ledger = field(default_factory=Ledger)
    #: Whether any step can be undone, or a rollback was begun.
    undoable: bool = False
    published: dict[str, Any] = field(default_factory=dict)
    #: The newest cursor of each step, whichever execution recorded it.
    cursors: dict[str, StepCursor] = field(default_factory=dict)
    _done: dict[tuple[str, bytes], Execution] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _completed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> History:
        """Fold all entries of a run."""
        history = cls()
        for entry in entries:
            history.add(entry)
        return history

    def add(self, entry: Entry) -> None:
        """Take the next entry in, in the order of `seq`; those of different steps may change places."""
        record = entry.record
        self.seq = max(self.seq, entry.seq)
        self.updated_at = entry.at
        if isinstance(record, StepStarted):
            execution = Execution(entry.seq, entry.at, record, attempt=record.attempt)
            self.executions[entry.seq] = execution
            self._open.add(entry.seq)
            self.by_step.setdefault(record.step, []).append(execution)
            if record.detail and (COMPENSATE in record.detail or record.step_kind == COMPENSATION):
                self.undoable = True
        elif isinstance(record, StepCompleted):
            number = record.execution  # see `execution_of`, which costs a call
            execution = self.executions[number if number > 0 else entry.seq + number]
            if execution.state in FINAL_STEP_STATES:
                return  # terminal states never change; the first end counts
            self._open.discard(execution.number)
            execution.completed, execution.ended_at, execution.attempt = record, entry.at, record.attempt
            execution.ended_seq = entry.seq
            if record.detail:
                self.mailbox.add(entry)
            self._done[execution.started.step, execution.started.signature] = execution
            self._completed.add(execution.started.step)
        elif isinstance(record, StepEnded):
            execution = self.executions[execution_of(entry)]
            if execution.state not in FINAL_STEP_STATES:
                self._open.discard(execution.number)
                execution.ended, execution.ended_at, execution.attempt = record, entry.at, record.attempt
                execution.ended_seq = entry.seq
        elif isinstance(record, StepRetried):
            execution = self.executions[execution_of(entry)]
            execution.retried, execution.attempt = record, record.attempt + 1
        elif isinstance(record, StepCursor):
            self.executions[execution_of(entry)].cursor = self.cursors[record.step] = record
        elif isinstance(record, StepForgotten):
            for execution in self.by_step.get(record.step, ()):
                execution.forgotten_at = execution.forgotten_at or entry.seq
                self._done.pop((record.step, execution.started.signature), None)
            self.cursors.pop(record.step, None)
        elif isinstance(record, RunChanged):
            if self.state not in FINAL_RUN_STATES:
                self.state = advance_run(self.state, RunState(record.state))
                self.reason, self.error = record.reason, record.error
                self.finished_at = entry.at if self.state in FINAL_RUN_STATES else None
                if self.state is RunState.FAILED or self.state in FINAL_RUN_STATES:
                    self.stopped = entry.seq
        elif isinstance(record, RunAttached):
            self.attached = record
            for number in self._open:  # their process is gone: nobody can end them any more
                self.executions[number].interrupted = True
            self._open.clear()
            if self.state not in FINAL_RUN_STATES:
                self.state = advance_run(self.state, RunState.RUNNING)
                self.reason, self.error = "", None
        elif isinstance(record, RunTagged):
            self.tags.update(record.tags)
        elif isinstance(record, MessageTaken):
            self.taken.add(record.message)
            if record.topic == CANCEL and self.cancelling is None:
                self.cancelling = str(record.payload.get("reason", ""))
            elif record.topic == DECISION:
                self.decisions.setdefault(str(record.payload.get("opening")), record)
            else:
                self.mailbox.add(entry)
        elif isinstance(record, RunPublished):
            self.published[record.name] = record.value
        elif isinstance(record, RunCharged):
            self.ledger.add(entry)
        else:
            self.opened, self.opened_at = record, entry.at
            self.tags.update(record.tags)

    def completed(self, step: str, signature: bytes) -> Execution | None:
        """Return the newest completed, not forgotten execution of this step with this signature."""
        return self._done.get((step, signature))

    def open(self) -> list[Execution]:
        """Return the executions that have not ended, in the order in which they began."""
        numbers = sorted(tuple(self._open))  # noqa: C414 - another thread may add to it meanwhile
        return [self.executions[number] for number in numbers]

    def latest(self, step: str) -> Execution | None:
        """Return the newest execution of the step in whatever state, forgotten ones included."""
        executions = self.by_step.get(step)
        return executions[-1] if executions else None

    def steps(self) -> list[StepInfo]:
        """List every execution in order; `current` marks the newest completed or else newest one of each step."""
        current = set()
        for executions in self.by_step.values():
            done = [e for e in executions if e.completed is not None and not e.forgotten]
            current.add((done or executions)[-1].number)
        return [self._info(execution, execution.number in current) for execution in self.executions.values()]

    def _info(self, execution: Execution, current: bool) -> StepInfo:
        end = execution.completed or execution.ended
        checkpoint = execution.completed.checkpoint if execution.completed else None
        started = execution.started
        error = execution.ended.error if execution.ended else None
        return StepInfo(
            run=self.opened.run if self.opened else "",
            execution=execution.number,
            step=started.step,
            name=started.name,
            step_kind=started.step_kind,
            signature=started.signature,
            state=execution.state,
            attempt=execution.attempt,
            parent=started.parent,
            version=started.version,
            started_at=execution.started_at,
            finished_at=execution.ended_at,
            seconds=end.seconds if end else None,
            error=error,
            outputs=checkpoint.outputs if checkpoint else (),
            current=current,
        )

    def info(self) -> RunInfo:
        """Return the run as one row of a listing."""
        assert self.opened is not None, "a history without its first record has no row"
        return RunInfo(
            run=self.opened.run,
            workflow=self.opened.workflow,
            state=self.state,
            workflow_kind=self.opened.workflow_kind,
            version=self.opened.version,
            params=self.opened.params,
            tags=dict(self.tags),
            parent=self.opened.parent,
            created_at=self.opened_at,
            updated_at=self.updated_at,
            finished_at=self.finished_at,
            attempts=self.attached.attempt if self.attached else 0,
            generation=self.attached.generation if self.attached else 0,
            steps=len(self._completed),
            error=f"{self.error.type}: {self.error.message}" if self.error else self.reason,
            owner=self.attached.owner if self.attached else None,
            forked=self.opened.forked,
        )
