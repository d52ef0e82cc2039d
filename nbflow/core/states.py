"""The state machines of runs and steps, as data.

The tables are the only place that says which change is allowed; the docs'
diagram (`docs/how-it-works.md`) and the property tests are made from them.
"""

from __future__ import annotations

from enum import StrEnum

from nbflow.core.errors import InvalidTransition


class RunState(StrEnum):
    """The life of a run. Completed and cancelled are final; failed may be resumed."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """The life of one execution of a step. The last five are final."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    TIMED_OUT = "timed_out"


class CancelReason(StrEnum):
    """Why a run was cancelled; the first word of its `reason`."""

    USER = "user"
    TIMEOUT = "timeout"
    PARENT = "parent"
    FAILED_SIBLING = "failed sibling"
    SHUTDOWN = "shutdown"
    LEASE_LOST = "lease lost"


#: The topic of an inbox message that asks for the run to be cancelled; its payload holds `reason` and `note`.
CANCEL = "cancel"

#: The topic of an inbox message with a person's answer to a gate.
DECISION = "decision"

#: Detail key of a step that can be undone: the name under which its compensator is found again.
COMPENSATE = "compensate"

#: The kind of steps that undo others, and of the rollback around them.
COMPENSATION = "compensation"

#: Kinds of steps that wait for something outside instead of computing: open, they are waiting and not running.
WAITING_KINDS = frozenset({"sleep", "signal", "gate", "child"})

RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.WAITING, RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}),
    RunState.WAITING: frozenset({RunState.RUNNING, RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}),
    RunState.FAILED: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.COMPLETED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

STEP_TRANSITIONS: dict[StepState, frozenset[StepState]] = {
    StepState.PENDING: frozenset({StepState.RUNNING, StepState.CANCELLED, StepState.SKIPPED}),
    StepState.RUNNING: frozenset(
        {
            StepState.WAITING,
            StepState.COMPLETED,
            StepState.FAILED,
            StepState.CANCELLED,
            StepState.SKIPPED,
            StepState.TIMED_OUT,
        }
    ),
    StepState.WAITING: frozenset(
        {StepState.RUNNING, StepState.COMPLETED, StepState.FAILED, StepState.CANCELLED, StepState.TIMED_OUT}
    ),
    StepState.COMPLETED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
    StepState.SKIPPED: frozenset(),
    StepState.TIMED_OUT: frozenset(),
}

FINAL_RUN_STATES = frozenset(state for state, targets in RUN_TRANSITIONS.items() if not targets)
FINAL_STEP_STATES = frozenset(state for state, targets in STEP_TRANSITIONS.items() if not targets)


def advance_run(current: RunState, target: RunState, *, run: str | None = None) -> RunState:
    """Return `target` if a run may go there from `current`; same to same is allowed unless final.

    Raises:
        InvalidTransition: the table forbids it.

    >>> advance_run(RunState.RUNNING, RunState.COMPLETED)
    <RunState.COMPLETED: 'completed'>
    """
    if target in RUN_TRANSITIONS[current] or (target == current and current not in FINAL_RUN_STATES):
        return target
    raise InvalidTransition(
        f"Run {run or '?'} is {current} and cannot become {target}.",
        run=run,
        hint="Start a new run instead." if current in FINAL_RUN_STATES else None,
    )


def advance_step(
    current: StepState, target: StepState, *, run: str | None = None, step: str | None = None
) -> StepState:
    """Return `target` if a step may go there from `current`.

    Raises:
        InvalidTransition: the table forbids it.
    """
    if target in STEP_TRANSITIONS[current]:
        return target
    raise InvalidTransition(
        f"Step {step or '?'} of run {run or '?'} is {current} and cannot become {target}.", run=run, step=step
    )
