"""One execution of a step for a page: its code, what it read and recorded, its attempts, what it showed, its log."""

from __future__ import annotations

from typing import Any

from nbflow.board.folds import Fold, error_text
from nbflow.board.plain import cut, plain, uncoloured
from nbflow.board.rows import decision_row, gate_row, over_at, short_error, shown_step, step_row
from nbflow.board.shown import Exhibit, display_exhibits, notice, output_row
from nbflow.board.tally import at_gate
from nbflow.core.errors import NbflowError, UnknownStep
from nbflow.core.gates import GATE, SHOWN, Gate, gates_of
from nbflow.core.history import Execution
from nbflow.core.model import OutputInfo
from nbflow.core.states import StepState
from nbflow.notebook.amounts import duration
from nbflow.notebook.capture import decode
from nbflow.notebook.detail import READS, SOURCE
from nbflow.runtime.children.results import values_of
from nbflow.store.protocol import Store

#: Characters of a cell's source and of a traceback that are shown.
_SOURCE, _TRACEBACK = 200_000, 50_000

#: Keys of a step's detail that are for nbflow itself, or shown elsewhere.
_SHOWN_ELSEWHERE = frozenset(
    {SOURCE, READS, GATE, "code", "helpers", "cell_id", "boot", "due_at", "seconds", "rest"}
)


def execution_in(fold: Fold, execution: Any) -> Execution:
    """Return an execution by its number.

    Raises:
        UnknownStep: the run has none of this number.
    """
    found = fold.history.executions.get(execution) if isinstance(execution, int) else None
    if found is None:
        raise UnknownStep(
            f"Run {fold.run} has no step with the number {execution!r}.",
            run=fold.run,
            hint="Look at the run again: its steps have changed.",
        )
    return found


def step(store: Store, fold: Fold, number: Any) -> dict[str, Any]:
    """Return all that is recorded of an execution.

    Raises:
        UnknownStep: the run has no such execution.
    """
    with fold.mutex:
        execution = execution_in(fold, number)
        started = execution.started
        gate = next((gate for gate in gates_of(fold.history) if gate.execution == execution.number), None)
        found = {
            "row": step_row(fold, execution),
            "source": cut(str(started.detail.get(SOURCE, "")), _SOURCE),
            "inputs": _inputs(fold, execution),
            "outputs": [output_row(output) for output in _outputs(execution)],
            "facts": plain({k: v for k, v in started.detail.items() if k not in _SHOWN_ELSEWHERE}, depth=3),
            "attempts": _attempts(fold, execution),
            "error": _error(fold, execution),
            "log": log(fold, execution),
            "decision": gate_row(fold, gate)["decision"] if gate is not None else _decision(execution),
        }
    found["display"] = display(store, fold.run, execution)
    found["exhibits"] = exhibits(store, fold, gate) if gate is not None else []
    return found


def _outputs(execution: Execution) -> tuple[OutputInfo, ...]:
    checkpoint = execution.completed.checkpoint if execution.completed is not None else None
    return checkpoint.outputs if checkpoint is not None else ()


def _inputs(fold: Fold, execution: Execution) -> list[dict[str, str]]:
    """Return what a cell read, each with the preview of the recorded variable that it was."""
    reads = execution.started.detail.get(READS)
    if not isinstance(reads, dict) or not reads:
        return []
    wanted = {(str(name), str(print_)) for name, print_ in reads.items()}
    previews: dict[tuple[str, str], str] = {}
    for other in fold.history.executions.values():
        if other.number >= execution.number or not wanted - previews.keys():
            break
        for output in _outputs(other):
            key = (output.name, output.fingerprint.hex())
            if key in wanted:
                previews[key] = cut(output.preview)
    return [
        {
            "name": str(name),
            "preview": previews.get((str(name), str(print_)), "" if print_ else "was not defined"),
        }
        for name, print_ in reads.items()
    ]


def _attempts(fold: Fold, execution: Execution) -> list[dict[str, Any]]:
    """Return every try at a step: when it began and ended, and how."""
    retries = fold.retries.get(execution.number, [])
    begun = [execution.started_at, *(max(at, record.due_at) for at, record in retries)]
    tries = [
        {
            "attempt": record.attempt,
            "started": began,
            "finished": at,
            "state": str(StepState.FAILED),
            "error": short_error(record.error),
        }
        for began, (at, record) in zip(begun, retries, strict=False)
    ]
    ended = execution.ended.error if execution.ended is not None and not at_gate(execution) else None
    over = over_at(fold, execution)
    last = {
        "attempt": execution.attempt,
        "started": min(begun[-1], over) if over is not None else begun[-1],
        "finished": over,
        "state": shown_step(fold, execution),
        "error": short_error(ended),
    }
    return [*tries, last]


def _error(fold: Fold, execution: Execution) -> dict[str, str] | None:
    """Return the error that a step ended with, or that its last try failed with while it goes on."""
    if at_gate(execution):
        return None
    error = execution.ended.error if execution.ended is not None else None
    retries = fold.retries.get(execution.number)
    if error is None and retries and execution.completed is None:
        error = retries[-1][1].error
    if error is None:
        return None
    traceback = uncoloured(error.traceback.rstrip())
    if len(traceback) > _TRACEBACK:
        traceback = f"…\n{traceback[-_TRACEBACK:]}"  # the end says what went wrong
    return {"type": error.type, "message": cut(error.message), "traceback": cut(traceback, _TRACEBACK + 2)}


def _decision(execution: Execution) -> dict[str, Any] | None:
    if execution.started.step_kind != GATE or execution.completed is None:
        return None
    found = execution.completed.detail.get("decision")
    if not isinstance(found, dict):
        return None
    from msgspec import convert

    from nbflow.core.gates import Decision

    return decision_row(convert(found, Decision))


def display(store: Store, run: str, execution: Execution) -> list[Exhibit]:
    """Return what a step showed when it ran; a sentence where that cannot be read."""
    end = execution.completed or execution.ended
    if end is None:
        return []
    try:
        raw = store.leaf(run, end.display_leaf) if end.display_leaf is not None else end.display
        return display_exhibits(decode(raw))
    except NbflowError as error:
        return [notice(str(error))]


def exhibits(store: Store, fold: Fold, gate: Gate) -> list[Exhibit]:
    """Return what a gate shows to whoever decides; a sentence where that cannot be read."""
    with fold.mutex:
        cursors = [
            each.cursor
            for each in fold.history.by_step.get(gate.step, ())
            if each.cursor is not None and each.number <= gate.execution
        ]
    if not cursors:
        return []
    try:
        found = values_of(store, fold.run, cursors[-1].checkpoint).get(SHOWN, [])
    except NbflowError as error:
        return [notice(str(error))]
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


# --- the log -------------------------------------------------------------------------------------------------


def log(fold: Fold, execution: Execution) -> list[str]:
    """Return what happened to a step, one line each, in order; times are UTC."""
    started = execution.started
    first = "asked" if started.step_kind == GATE else "started"
    again = f", attempt {started.attempt}" if started.attempt > 1 else ""
    lines: list[tuple[float, str]] = [(execution.started_at, f"{first}{again}")]
    for at, record in fold.retries.get(execution.number, ()):
        wait = (
            f", again in {duration(record.due_at - at)}" if record.due_at - at >= 0.01 else ", again at once"
        )
        lines.append((at, f"attempt {record.attempt} failed{wait}: {error_text(record.error)}"))
    points = list(fold.points.get(execution.number, ()))
    lines += [(at, f"point {number} recorded") for at, number in points if started.step_kind != GATE]
    if execution.ended_at is not None:
        lines.append((execution.ended_at, _ending(execution)))
    elif execution.interrupted:
        found = fold.found_dead.get(execution.number, execution.started_at)
        lines.append((found, "interrupted: its process had ended before the step did"))
    lines += [
        (at, f"asked to run again{f': {reason}' if reason else ''}")
        for at, reason in fold.forgotten.get(started.step, ())
        if at >= execution.started_at
    ]
    lines.sort(key=lambda line: line[0])
    days = {_day(at) for at, _ in lines}
    return [f"{_day(at) + ' ' if len(days) > 1 else ''}{_clock(at)} {cut(text, 500)}" for at, text in lines]


def _ending(execution: Execution) -> str:
    end = execution.completed or execution.ended
    assert end is not None
    took = f" after {duration(end.seconds)}" if end.seconds else ""
    if execution.completed is not None:
        outputs = ", ".join(output.name for output in _outputs(execution))
        return f"completed{took}{f'; recorded {outputs}' if outputs else ''}"
    error = execution.ended.error if execution.ended is not None else None
    if at_gate(execution):
        return f"stopped at a gate{took}"
    word = str(execution.state).replace("_", " ")
    return f"{word}{took}{f': {error_text(error)}' if error is not None else ''}"


def _clock(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]


def _day(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
