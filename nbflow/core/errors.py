"""Every error nbflow raises. This page is the map.

    NbflowError
    ├── StoreError
    │   ├── StoreBusy            another process has the database open
    │   ├── StoreFull            the disk refused the bytes
    │   ├── StoreReadOnly        the folder cannot be written
    │   ├── StoreTooNew          written by a later nbflow; left untouched
    │   ├── NotAStore            a foreign or unreadable file stands where the store should
    │   ├── CorruptRecord        a journal record or database row fails its check
    │   ├── CorruptLeaf          a stored buffer is missing or altered
    │   ├── DuplicateRecord      (run, seq) is taken
    │   ├── UnknownRun           no such run
    │   └── UnknownStep          no such step or output in the run
    ├── LeaseError
    │   ├── LeaseHeld            a living owner has the run
    │   ├── LeaseLost            another owner took the run over
    │   └── NotTheOwner          a forked or worker process tried to record
    ├── ValueProblem
    │   ├── CannotStore          a value cannot be pickled; names variable and path
    │   ├── CannotRestore        a recorded value cannot be rebuilt
    │   └── Untrusted            the signature is not by a key this user trusts
    ├── RunError
    │   ├── NoActiveRun          a durable call outside any run
    │   ├── InvalidTransition    a final state cannot change
    │   ├── RunFinished          the run is completed or cancelled
    │   ├── RunCancelled         somebody or something asked this run to stop
    │   ├── VersionMismatch      the run was begun by another version of its machine
    │   ├── CompensationFailed   a rollback could not undo everything
    │   ├── BudgetExceeded       the budget is spent; the step was not started
    │   ├── ChildFailed          a child run failed or was cancelled
    │   ├── GateDecided          a decision was taken already, or came too late; shows the first
    │   ├── HeldBack             a cell was sent before anybody could see that a gate stopped the notebook
    │   ├── KernelDied           the kernel of a notebook that runs unattended died or does not answer
    │   └── WorkerLost           the process that ran a notebook of a batch is gone
    ├── StepError
    │   ├── StepTimeout          an attempt took longer than its timeout
    │   ├── WaitTimeout          no signal came in time
    │   │   └── GateTimedOut     nobody decided in time
    │   ├── GateRejected         somebody said no; carries the decision
    │   ├── JoinFailed           too few branches of a split succeeded
    │   ├── ItemsFailed          items of a map failed
    │   ├── CircuitOpen          the circuit breaker refuses calls
    │   ├── RateLimited          a rate limit refuses the call; names tier and retry-after
    │   ├── BulkheadFull         as many as allowed are running and waiting
    │   └── RecordedFailure      stands for a recorded exception that cannot be rebuilt
    ├── MachineError
    │   ├── InvalidMachine       the definition has problems; lists all of them
    │   ├── UnknownState         a state label that the machine does not have
    │   └── InvalidOutcome       a task returned what its kind does not allow
    └── UsageError               an option or argument that makes no sense

`GatePending` stands beside the tree: it is no error but the way in which a run
stops at a gate, so that `except Exception` does not take it for one.

An error says what happened, to which run and step, and what to do next. The
facts are attributes as well (`error.run`, `error.step`, `error.seq`), so
programs need not parse the sentence.
"""

from __future__ import annotations

from typing import Any


class NbflowError(Exception):
    """Base of all errors raised by nbflow.

    Keyword facts become attributes and `hint` closes the message:

        >>> error = NbflowError("The lease is gone.", run="r1", hint="Restart the kernel.")
        >>> error.run, str(error)
        ('r1', 'The lease is gone. Restart the kernel.')
    """

    run: str | None = None
    step: str | None = None
    seq: int | None = None
    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        self.message = message
        self.hint = hint
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)
        super().__init__(message if hint is None else f"{message} {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.facts)


def _rebuild(cls: type[NbflowError], message: str, hint: str | None, facts: dict[str, Any]) -> NbflowError:
    return cls(message, hint=hint, **facts)


class StoreError(NbflowError):
    """The store could not do what was asked."""


class StoreBusy(StoreError):
    """Another process has the database open; `pid` names it where DuckDB tells."""

    pid: int | None = None


class StoreFull(StoreError):
    """The disk has no room; nothing that was acknowledged is lost."""


class StoreReadOnly(StoreError):
    """The store's folder cannot be written by this user."""


class StoreTooNew(StoreError):
    """The store was written by a later nbflow; it was left untouched."""


class NotAStore(StoreError):
    """The path holds something that is not an nbflow store."""


class CorruptRecord(StoreError):
    """A journal record or a database row fails its check; `run` and `seq` name it."""


class CorruptLeaf(StoreError):
    """A stored buffer is missing, cut or altered; `digest` names it."""

    digest: bytes | None = None


class DuplicateRecord(StoreError):
    """The pair `(run, seq)` is taken; nothing was overwritten."""


class UnknownRun(StoreError):
    """The store holds no run of this id."""


class UnknownStep(StoreError):
    """The run holds no step or output of this name."""


class LeaseError(NbflowError):
    """The right to write to a run."""


class LeaseHeld(LeaseError):
    """A living owner has the run; `host`, `pid` and `since` say who."""

    host: str | None = None
    pid: int | None = None
    since: float | None = None


class LeaseLost(LeaseError):
    """Another owner took the run over; nothing this process does is recorded any more."""


class NotTheOwner(LeaseError):
    """A forked or worker process tried to record into its parent's run."""


class ValueProblem(NbflowError):
    """A value that cannot be stored, restored or trusted."""


class CannotStore(ValueProblem):
    """A value cannot be pickled; `variable` and `path` say which part of it."""

    variable: str | None = None
    path: str | None = None


class CannotRestore(ValueProblem):
    """A recorded value cannot be rebuilt here (a class is gone, say)."""


class Untrusted(ValueProblem):
    """A checkpoint is not signed by a key this user trusts; it was not unpickled."""


class RunError(NbflowError):
    """A run cannot do this now."""


class NoActiveRun(RunError):
    """A durable call was made outside any run."""


class InvalidTransition(RunError):
    """The state machine of runs or steps forbids this change."""


class RunFinished(RunError):
    """The run is completed or cancelled, and final."""


class RunCancelled(RunError):
    """The run is to stop; `reason` is a `CancelReason`, `note` what was said about it."""

    reason: str = ""
    note: str = ""


class VersionMismatch(RunError):
    """The run was begun by another version of its machine; nothing was run."""

    stored: str = ""
    expected: str = ""


class CompensationFailed(RunError):
    """A rollback could not undo everything.

    `failures` maps the steps that are not undone to the errors of their
    compensators, `original` is what made the run fail.
    """

    failures: dict[str, BaseException]
    original: BaseException | None = None


class BudgetExceeded(RunError):
    """The budget is spent, so the step was not started; `unit`, `spent` and `limit` say of what."""

    unit: str = ""
    spent: float = 0.0
    limit: float = 0.0


class ChildFailed(RunError):
    """A child run failed or was cancelled; `child` is its id, `state` how it ended."""

    child: str = ""
    state: str = ""


class GateDecided(RunError):
    """A gate takes no decision any more; `decision` is the one it has (None where it timed out)."""

    decision: Any = None


class HeldBack(RunError):
    """A cell was not run, for it was sent before anybody could see that the gate `name` stopped the notebook."""

    name: str = ""


class KernelDied(RunError):
    """The kernel of a notebook that runs unattended died or does not answer; `cell` counts from 0."""

    cell: int | None = None


class WorkerLost(RunError):
    """The process that ran a notebook of a batch is gone; the notebook's run can be carried on."""


class StepError(NbflowError):
    """A step did not end well."""


class StepTimeout(StepError, TimeoutError):
    """An attempt took longer than its `timeout` (seconds)."""

    timeout: float | None = None


class WaitTimeout(StepTimeout):
    """No signal of this `name` came in time."""

    name: str = ""


class GateTimedOut(WaitTimeout):
    """Nobody decided about the gate `name` in time."""


class GateRejected(StepError):
    """A gate was rejected; `decision` says by whom and why (`nbflow.core.gates.Decision`)."""

    name: str = ""
    decision: Any = None


class JoinFailed(StepError):
    """Too few branches of a split succeeded; `failures` maps branches to their errors."""

    failures: dict[str, BaseException]


class ItemsFailed(StepError):
    """Items of a map failed; `failures` maps their places in the input (from 0) to their errors."""

    failures: dict[int, BaseException]


class CircuitOpen(StepError):
    """The circuit breaker `name` refuses calls for another `retry_after` seconds."""

    name: str = ""
    retry_after: float = 0.0


class RateLimited(StepError):
    """The rate limit refuses the call: `tier` says which, `retry_after` (seconds) until when."""

    tier: str = ""
    retry_after: float = 0.0


class BulkheadFull(StepError):
    """As many as the bulkhead allows are running and waiting already."""


class RecordedFailure(StepError):
    """Stands for a recorded exception that cannot be rebuilt; `error` has its text."""


class MachineError(NbflowError):
    """A state machine or one of its tasks is not right; `machine` and `state` say which."""

    machine: str = ""
    state: str = ""


class InvalidMachine(MachineError):
    """The definition has problems, all of them in `problems`; nothing was run."""

    problems: tuple[str, ...] = ()


class UnknownState(MachineError):
    """A state label that the machine does not have."""


class InvalidOutcome(MachineError):
    """A task returned what its kind does not allow."""


class UsageError(NbflowError, ValueError):
    """An option or argument that makes no sense; nothing was run."""


class GatePending(BaseException):
    """A run stops here until somebody decides: `run`, `step` and `name` say which gate waits.

    Like an interrupt it is no `Exception`: nothing is retried, undone or failed
    because of it, and the run can be carried on.
    """

    def __init__(self, message: str, *, run: str, step: str, name: str, hint: str | None = None) -> None:
        self.message, self.run, self.step, self.name, self.hint = message, run, step, name, hint
        super().__init__(message if hint is None else f"{message} {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {"run": self.run, "step": self.step, "name": self.name, "hint": self.hint}
        return _rebuild_pending, (self.message, facts)


def _rebuild_pending(message: str, facts: dict[str, Any]) -> GatePending:
    return GatePending(message, **facts)
