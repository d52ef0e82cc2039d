"""What is said of all executions that one node of a graph stands for: their state, tries, time and last error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from nbflow.core.errors import GatePending
from nbflow.core.history import Execution, History
from nbflow.core.states import FINAL_RUN_STATES, RunState, StepState

#: Which state a node shows that stands for several steps: the first of these that any is in.
_FIRST = (
    "running",
    "waiting",
    "stopped",
    "failed",
    "timed_out",
    "cancelled",
    "pending",
    "completed",
    "skipped",
)
_OPEN = frozenset({"running", "waiting", "stopped"})
_MESSAGE = 300
#: The error that a step ends with in which a gate waits.
_PENDING = GatePending.__name__


@dataclass
class Tally:
    """The executions behind one node. `add` each in order; a later one of a step replaces what the earlier one was."""

    state: str = "pending"
    visits: int = 0
    attempts: int = 0
    retries: int = 0
    seconds: float | None = None
    execution: int | None = None
    started: float | None = None
    error: str | None = None
    run: str | None = None
    #: The state of each step, and the execution that says so.
    steps: dict[str, tuple[str, Execution]] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def add(self, execution: Execution, state: str) -> None:
        """Take the next execution in; `state` is how it is shown."""
        step = execution.started.step
        earlier = self._tries.get(step)
        if earlier is not None:
            _, before = self.steps.pop(step)  # so that the newest is the last
            if at_gate(before):
                earlier -= 1  # it went on where it had stopped to ask
        self.steps[step] = (state, execution)
        # Attempts count on over restarts; a try that a crash ended is one more all the same.
        self._tries[step] = execution.attempt if earlier is None else max(earlier + 1, execution.attempt)
        end = execution.completed or execution.ended
        if end is not None:
            self.seconds = (self.seconds or 0.0) + end.seconds

    def settle(self, *, newest: bool = False) -> Tally:
        """Draw the conclusions, with the `newest` step alone speaking for the node or all of them; return itself."""
        self.visits = len(self.steps)
        self.attempts = sum(self._tries.values())
        self.retries = self.attempts - self.visits
        if self.steps:
            told = list(self.steps.values())
            self.started = told[-1][1].started_at
            told = told[-1:] if newest else told
            self.state = shown(state for state, _ in told)
            speaks = max(
                (each for state, each in told if state == self.state), key=lambda execution: execution.number
            )
            self.execution, self.error = speaks.number, _error(speaks)
            run = speaks.started.detail.get("run")
            self.run = None if run is None else str(run)
        return self

    def with_earlier(self, others: Iterable[Tally]) -> Tally:
        """Return what these settled tallies did together; what it is now is said by this one."""
        every = [self, *others]
        known = [each.seconds for each in every if each.seconds is not None]
        return replace(
            self,
            visits=sum(each.visits for each in every),
            attempts=sum(each.attempts for each in every),
            retries=sum(each.retries for each in every),
            seconds=sum(known) if known else None,
        )

    @property
    def open(self) -> bool:
        """Whether one of them has begun and not ended."""
        return self.state in _OPEN

    def facts(self) -> dict[str, Any]:
        """Return what a node says of it."""
        return {
            "state": self.state,
            "visits": self.visits,
            "attempts": self.attempts,
            "retries": self.retries,
            "seconds": self.seconds,
            "execution": self.execution,
            "started": self.started,
            "error": self.error,
            "run": self.run,
        }

    def counts(self) -> dict[str, int]:
        """Return how many steps are in which state."""
        return dict(sorted(Counter(state for state, _ in self.steps.values()).items()))


def shown(states: Iterable[str]) -> str:
    """Return the state that stands for several: what needs a look first.

    >>> shown(["completed", "failed", "completed"])
    'failed'
    """
    found = set(states)
    return next((state for state in _FIRST if state in found), "pending")


class Shown:
    """How each execution of a run is shown, beyond what its own records say.

    `alive` tells whether a process is at work on the run; None where nobody
    knows. A step around a gate that waits is waiting itself, and what began in a
    process that is gone is stopped.
    """

    def __init__(self, history: History, *, alive: bool | None = None) -> None:
        self._history = history
        #: Whether it says that it is running while its process is gone.
        self.gone = alive is False and history.state == RunState.RUNNING
        self._waiting: set[str] = set()
        for execution in history.executions.values():
            started = execution.started
            if started.step_kind == "gate" and execution.state == StepState.WAITING and started.parent:
                self._waiting.add(started.parent)

    def state(self, execution: Execution) -> str:
        """Return the state to show: one of a step, or "stopped", or "pending" for what is to run again."""
        if execution.forgotten:
            return "pending"
        state = execution.state
        if at_gate(execution) and self._history.state not in FINAL_RUN_STATES:
            return "waiting"
        if state not in (StepState.RUNNING, StepState.WAITING):
            if execution.interrupted and execution.completed is None and execution.ended is None:
                return "stopped" if self._history.state not in FINAL_RUN_STATES else "cancelled"
            return str(state)
        if self._history.state in FINAL_RUN_STATES:
            return "cancelled"  # the run ended over it
        if execution.started.step in self._waiting or state == StepState.WAITING:
            return "waiting"
        if self._history.state == RunState.WAITING:
            return "waiting"
        return "stopped" if self.gone else "running"


def at_gate(execution: Execution) -> bool:
    """Tell whether it stopped because a gate inside it waits for a person: it goes on when that has decided."""
    error = execution.ended.error if execution.ended is not None else None
    return error is not None and error.type.rpartition(".")[2] == _PENDING


def _error(execution: Execution) -> str | None:
    if at_gate(execution):
        return None
    error = execution.ended.error if execution.ended is not None else None
    if error is None and execution.completed is None and execution.retried is not None:
        error = execution.retried.error
    return None if error is None else _said(error.type, error.message)


def _said(kind: str, message: str) -> str:
    line = message.strip().partition("\n")[0]
    line = f"{line[: _MESSAGE - 1]}…" if len(line) > _MESSAGE else line
    name = kind.rpartition(".")[2]
    return f"{name}: {line}" if line else name
