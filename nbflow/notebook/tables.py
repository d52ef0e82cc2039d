"""The tables of `%nbflow steps`, `outputs`, `runs` and `gates`, made from what the store tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbflow.core.errors import UnknownStep
from nbflow.core.history import History
from nbflow.core.model import OutputInfo, RunInfo, StepInfo
from nbflow.core.states import StepState
from nbflow.notebook.amounts import duration, moment, size
from nbflow.notebook.calls import Calls, calls_of, first_line, place
from nbflow.notebook.cells import PlannedCell
from nbflow.notebook.detail import SOURCE
from nbflow.notebook.identity import is_nameless
from nbflow.notebook.messages import Table

#: Characters of a run's id that are shown: its time in milliseconds, enough to tell it from the others.
SHORT_RUN = 13

_TEXT = 60
#: Columns of the steps that are shown even where they are empty.
_ALWAYS = 5
_NO_ERRORS = {StepState.COMPLETED, StepState.RUNNING}


def run_title(history: History, standing: str) -> str:
    """Return `Run 01a1fa7d-1d75 of nb.ipynb (this kernel, attempt 2)`."""
    info = history.info()
    return f"Run {info.run[:SHORT_RUN]} of {info.workflow} ({standing}, attempt {info.attempts})"


def steps_table(history: History, title: str, cells: Sequence[PlannedCell], *, every: bool) -> Table:
    """Return the steps of a run; the calls of one function in one cell are one line, unless `every` is asked for.

    `cells` are the notebook's, where its file is known: they tell where a call stands.
    """
    groups = {} if every else {call.steps[0].execution: call for call in calls_of(history)}
    grouped = {step.execution for call in groups.values() for step in call.steps}
    rows: list[list[str]] = []
    for step in history.steps():
        if step.execution in groups:
            rows.append(_calls_row(groups[step.execution], cells))
        elif (step.current or every) and step.execution not in grouped:
            rows.append(_step_row(step, history, every))
    columns = ["step", "state", "recorded", "took", "variables", "where", "error"]
    filled = [
        number for number, _ in enumerate(columns) if number < _ALWAYS or any(row[number] for row in rows)
    ]
    columns, rows = [columns[n] for n in filled], [[row[n] for n in filled] for row in rows]
    return Table(title, columns, rows, "" if rows else "Nothing is recorded yet.")


def _step_row(step: StepInfo, history: History, every: bool) -> list[str]:
    source = history.executions[step.execution].started.detail.get(SOURCE, "")
    state = str(step.state).replace("_", " ")
    return [
        step.step,
        f"{state} (old)" if every and not step.current else state,
        moment(step.finished_at or step.started_at),
        "" if step.seconds is None else duration(step.seconds),
        _preview(step.outputs[0]) if step.step_kind == "call" and step.outputs else _names(step),
        first_line(source) if is_nameless(step.step) else "",
        _error(step),
    ]


def _calls_row(calls: Calls, cells: Sequence[PlannedCell]) -> list[str]:
    where = place(calls.scope, cells)
    states = [str(step.state).replace("_", " ") for step in calls.steps]
    kinds = dict.fromkeys(states)
    last = max(step.finished_at or step.started_at for step in calls.steps)
    done = calls.done
    return [
        calls.label,
        states[0] if len(kinds) == 1 else ", ".join(f"{states.count(kind)} {kind}" for kind in kinds),
        moment(last),
        duration(calls.seconds),
        _preview(done[-1].outputs[0]) if done and done[-1].outputs else "",
        f"in {where}" if where else "",
        next((error for error in map(_error, reversed(calls.steps)) if error), ""),
    ]


def outputs_table(history: History | None, wanted: str | None) -> Table:
    """Return the recorded variables of a run, or of the one step or function that is wanted.

    Raises:
        UnknownStep: nothing of that name is recorded.
    """
    wanted = wanted.removesuffix("()") if wanted is not None else None
    # Of a function's many calls the last one stands for all, unless it is asked for.
    groups = calls_of(history) if history is not None and wanted is None else []
    labels = {group.done[-1].execution: group.label for group in groups if group.done}
    hidden = {step.execution for group in groups for step in group.steps} - set(labels)
    rows = [
        [
            labels.get(step.execution) or _owner(step),
            output.name,
            output.type,
            _preview(output),
            size(output.size),
        ]
        for step in (history.steps() if history is not None else ())
        if step.current and step.execution not in hidden and wanted in (None, step.step, step.name)
        for output in step.outputs
    ]
    if wanted and not rows:
        raise UnknownStep(f"No outputs of a step called {wanted!r} are recorded.", step=wanted)
    footer = "" if rows else "Nothing is recorded yet."
    return Table("Recorded variables", ["step", "variable", "type", "value", "size"], rows, footer)


def runs_table(runs: Sequence[RunInfo], workflow: str | None, current: str | None) -> Table:
    """Return a listing of runs; `current` is this kernel's."""
    shown: dict[str, Callable[[RunInfo], str]] = {
        "run": lambda run: run.run[:SHORT_RUN],
        "workflow": lambda run: run.workflow,
        "state": lambda run: _run_state(run, current),
        "created": lambda run: moment(run.created_at),
        "steps": lambda run: str(run.steps),
        "attempts": lambda run: str(run.attempts),
        "error": lambda run: run.error.partition("\n")[0][:_TEXT],
    }
    if workflow is not None:
        del shown["workflow"]
    if not any(run.error for run in runs):
        del shown["error"]
    rows = [[tell(run) for tell in shown.values()] for run in runs]
    return Table(
        f"Runs of {workflow or 'all workflows'}", list(shown), rows, "" if rows else "There is none."
    )


def gates_table(gates: Sequence[Mapping[str, Any]], current: str | None, *, every: bool) -> Table:
    """Return a listing of gates, as `nbflow.gates` has them; `current` is this kernel's run."""
    columns = ["gate", "run", "workflow", "state", "asked", "until", "options", "question"]
    rows = [
        [
            str(gate["gate"]),
            f"{gate['run'][:SHORT_RUN]}{' (this kernel)' if gate['run'] == current else ''}",
            str(gate["workflow"]),
            _gate_state(gate),
            moment(gate["opened"].timestamp()),
            moment(gate["due"].timestamp()) if gate["due"] == gate["due"] and gate["due"] is not None else "",
            ", ".join(gate["options"]),
            _line(str(gate["text"])),
        ]
        for gate in gates
    ]
    footer = "" if rows else "There is none."
    if rows and not every:
        footer = "Decide with %nbflow approve [RUN] GATE or %nbflow reject [RUN] GATE."
    return Table("Gates" if every else "Gates that wait for a decision", columns, rows, footer)


def _gate_state(gate: Mapping[str, Any]) -> str:
    said = str(gate["state"]).replace("_", " ")
    if not gate["decision"]:
        return said
    by = f"{gate['decision']} by {gate['by']}"
    by = f"{by}: {gate['feedback']}" if gate["feedback"] else by
    return _line(f"{by}, not taken yet" if said == "sent" else by)


def _line(text: str) -> str:
    line, _, more = text.strip().partition("\n")
    return f"{line[: _TEXT - 1]}…" if more or len(line) > _TEXT else line


def _run_state(run: RunInfo, current: str | None) -> str:
    if run.run == current:
        return f"{run.state} (this kernel)"
    if run.state == "running" and run.alive is not None:
        return "running elsewhere" if run.alive else "stopped, can be resumed"
    return str(run.state)


def _owner(step: StepInfo) -> str:
    return f"{step.name}()" if step.step_kind == "call" else step.step


def _names(step: StepInfo) -> str:
    text = ", ".join(output.name for output in step.outputs)
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"


def _preview(output: OutputInfo) -> str:
    if output.rows is not None:
        return f"{output.rows:,} rows × {len(output.columns or ())} columns"
    return _line(output.preview)


def _error(step: StepInfo) -> str:
    if step.error is None or step.state in _NO_ERRORS:
        return ""
    line = step.error.message.strip().partition("\n")[0]
    return line[:_TEXT] or step.error.type
