"""One line of a table each, as plain data: a run, a step, a gate. Times in UTC seconds, sizes in bytes."""

from __future__ import annotations

import time
from typing import Any

from nbflow.board.folds import Fold
from nbflow.board.plain import cut, plain
from nbflow.board.tally import at_gate
from nbflow.core.gates import Decision, Gate
from nbflow.core.history import Execution
from nbflow.core.model import ErrorInfo, Owner, RunInfo
from nbflow.core.states import FINAL_RUN_STATES, FINAL_STEP_STATES, WAITING_KINDS, RunState, StepState
from nbflow.runtime.gates.deciding import shown_state as shown_gate

#: What is shown of a run that says it is running while its process is gone.
STOPPED = "stopped"

#: Characters of an error in a line of a table, and of one parameter.
_ERROR, _PARAM = 500, 200


def shown_state(info: RunInfo) -> str:
    """Return the state of a run as people are shown it.

    >>> shown_state(RunInfo("r", "w", "running", alive=False)), shown_state(RunInfo("r", "w", "waiting"))
    ('stopped', 'waiting')
    """
    return STOPPED if info.state == RunState.RUNNING and info.alive is False else str(info.state)


def run_row(info: RunInfo, *, gates: int = 0, current: bool = False) -> dict[str, Any]:
    """Return a run's line; `gates` is how many of its gates wait, `current` whether this kernel has it."""
    return {
        "run": info.run,
        "workflow": cut(info.workflow, _ERROR),
        "kind": info.workflow_kind,
        "version": cut(info.version, _PARAM),
        "state": shown_state(info),
        "created": info.created_at,
        "updated": info.updated_at,
        "finished": info.finished_at,
        "seconds": seconds_of(info),
        "attempts": info.attempts,
        "steps": info.steps,
        "tags": plain(info.tags, text=_PARAM),
        "params": plain(info.params, text=_PARAM, items=50, depth=3),
        "error": cut(info.error.strip(), _ERROR),
        "parent": info.parent,
        "forked": info.forked,
        "gates": gates,
        "owner": owner_text(info.owner) if info.state not in FINAL_RUN_STATES else None,
        "current": current,
    }


def seconds_of(info: RunInfo) -> float:
    """Return how long a run took, or has taken up to its newest record."""
    return max(0.0, (info.finished_at or info.updated_at) - info.created_at)


def owner_text(owner: Owner | None) -> str | None:
    """Return who has a run, or had it last: `ana@lab, 4711`.

    >>> owner_text(Owner("lab", 4711, 0.0, user="ana"))
    'ana@lab, 4711'
    """
    if owner is None:
        return None
    return f"{owner.user}@{owner.host}, {owner.pid}" if owner.user else f"{owner.host}, {owner.pid}"


def step_row(fold: Fold, execution: Execution) -> dict[str, Any]:
    """Return the line of one execution of a step."""
    started = execution.started
    end = execution.completed or execution.ended
    checkpoint = execution.completed.checkpoint if execution.completed is not None else None
    retries = fold.retries.get(execution.number, ())
    ended = execution.ended.error if execution.ended is not None else None
    return {
        "execution": execution.number,
        "step": started.step,
        "name": started.name,
        "kind": started.step_kind,
        "state": shown_step(fold, execution),
        "attempt": execution.attempt,
        "started": execution.started_at,
        "finished": over_at(fold, execution),
        "seconds": end.seconds if end is not None else None,
        "parent": started.parent,
        "error": None if at_gate(execution) else short_error(ended),
        "outputs": len(checkpoint.outputs) if checkpoint is not None else 0,
        "current": fold.current(execution),
        "forgotten": execution.forgotten,
        "retries": [
            {"at": at, "attempt": record.attempt, "due_at": record.due_at, "error": short_error(record.error)}
            for at, record in retries
        ],
    }


def shown_step(fold: Fold, execution: Execution) -> str:
    """Return the state of an execution as people are shown it: what a crash or a gate ended, nobody cancelled."""
    if stands_at_gate(fold, execution):
        return str(StepState.WAITING)
    if fold.history.state in FINAL_RUN_STATES:  # the run ended over what had not
        return str(execution.state if execution.state in FINAL_STEP_STATES else StepState.CANCELLED)
    if _broken_off(execution) or at_gate(execution):
        return STOPPED
    return str(execution.state)


def over_at(fold: Fold, execution: Execution) -> float | None:
    """Return when an execution was over; of one that a crash broke off that is the last word of its attempt.

    A wait lasts until the next attempt found it: no process was needed for it meanwhile.
    """
    if not _broken_off(execution):
        return execution.ended_at
    found = fold.found_dead.get(execution.number, execution.started_at)
    if execution.started.step_kind in WAITING_KINDS:
        return found
    return max(
        (last for _, began, last in fold.attempts if began <= execution.started_at <= last), default=found
    )


def _broken_off(execution: Execution) -> bool:
    return execution.interrupted and execution.completed is None and execution.ended is None


def stands_at_gate(fold: Fold, execution: Execution) -> bool:
    """Tell whether a step stopped at a gate inside it and goes on from there: it waits, and nothing went wrong."""
    history = fold.history
    newest = history.by_step[execution.started.step][-1] is execution
    return newest and at_gate(execution) and history.state not in FINAL_RUN_STATES


def short_error(error: ErrorInfo | None) -> dict[str, str] | None:
    """Return an error for a line of a table; None where there is none."""
    if error is None:
        return None
    return {"type": cut(error.type, _PARAM), "message": cut(error.message.strip(), _ERROR)}


def gate_row(fold: Fold, gate: Gate) -> dict[str, Any]:
    """Return a gate's line; it is "sent" where a decision waits that nobody has taken into the run yet."""
    history = fold.history
    state, decision = shown_gate(gate, fold.waiting, time.time())
    opened = history.opened
    return {
        "run": fold.run,
        "workflow": opened.workflow if opened is not None else "",
        "step": gate.step,
        "name": gate.form.name,
        "text": gate.form.text,
        "options": list(gate.form.options),
        "single": gate.form.single,
        "opening": gate.form.opening,
        "opened": gate.opened_at,
        "due": gate.due_at,
        "on_timeout": gate.form.on_timeout,
        "state": state,
        "execution": gate.execution,
        "decision": decision_row(decision),
    }


def decision_row(decision: Decision | None) -> dict[str, Any] | None:
    """Return a decision as plain data; None where there is none."""
    if decision is None:
        return None
    return {
        "approved": decision.approved,
        "by": decision.by,
        "at": decision.at,
        "feedback": decision.feedback,
        "selections": list(decision.selections),
        "via": decision.via,
    }
