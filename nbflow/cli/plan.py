"""What a resume of a run would do, as far as the store can tell without the notebook."""

from __future__ import annotations

from dataclasses import dataclass

from nbflow.core.history import Execution, History
from nbflow.core.states import FINAL_RUN_STATES, StepState


@dataclass(frozen=True)
class Planned:
    """One step of the plan: it is `restored`, or runs because of `why`."""

    step: str
    restored: bool
    why: str


def plan(history: History) -> list[Planned]:
    """Return the steps in order of their first execution; [] for a run that is final.

    A step inside another (a call inside a cell) is left out where the outer
    one is restored: its body is not entered. Changed code or inputs are known
    to the notebook only, so "restored" means: unless they changed.
    """
    if history.state in FINAL_RUN_STATES:
        return []
    steps = {step: _planned(step, executions) for step, executions in history.by_step.items()}
    parents = {step: executions[-1].started.parent for step, executions in history.by_step.items()}

    def reached(step: str) -> bool:
        seen = {step}
        parent = parents[step]
        while parent is not None and parent not in seen:
            if parent in steps and steps[parent].restored:
                return False
            seen.add(parent)
            parent = parents.get(parent)
        return True

    return [planned for step, planned in steps.items() if reached(step)]


def _planned(step: str, executions: list[Execution]) -> Planned:
    if any(execution.completed is not None and not execution.forgotten for execution in executions):
        return Planned(step, restored=True, why="")
    last = executions[-1]
    if last.forgotten:
        why = "forgotten on request"
    elif last.ended is None:
        why = f"was interrupted in attempt {last.attempt}"
    elif last.state is StepState.FAILED and last.ended.error is not None:
        why = f"failed with {last.ended.error.type} in attempt {last.attempt}"
    else:
        why = f"{last.state.replace('_', ' ')} in attempt {last.attempt}"
    return Planned(step, restored=False, why=why)
