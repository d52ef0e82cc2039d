"""Where a machine is: one line of states, read from the run's history. Pure.

A machine moves along one main line; a split starts a line for each branch. A
step of kind "state" belongs to the line that its detail names. Re-entering a
state gives it a new visit, so a loop keeps the checkpoints of every round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nbflow.core.history import Execution, History

STATE = "state"

# Keys in the detail of a state's `StepStarted`.
LINE = "line"
KIND = "kind"
DUE_AT = "due_at"
FINAL = "final"
#: The kind of the step that brings a run to another version of its machine.
MIGRATION = "migration"
# Keys in the detail of its `StepCompleted`.
NEXT = "next"
SPLIT = "split"
VERSION = "version"
DELETED = "deleted"
BRANCHES = "branches"


@dataclass
class Line:
    """The states that one line went through: `last` is the newest, `visits` counts them by label.

    `data` says for each recorded name which execution or cursor (by step key) has its latest value.
    """

    name: str = ""
    last: Execution | None = None
    visits: dict[str, int] = field(default_factory=dict)
    data: dict[str, Execution] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    version: str = ""
    #: Names that were deleted here and not set again: what lies around this line hides behind them.
    deleted: set[str] = field(default_factory=set)
    #: How the branches of the last join ended: name → {"state": …, "error": …}.
    branches: dict[str, Any] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether the last state was entered and not left."""
        return self.last is not None and self.last.completed is None

    @property
    def final(self) -> str | None:
        """The label of the final state, if it was reached."""
        arrived = self.last is not None and self.last.started.detail.get(FINAL)
        return self.last.started.name if arrived and self.last is not None else None

    def key(self, label: str) -> str:
        """Return the key of the next visit of a state.

        >>> line = Line("prepare/left")
        >>> line.key("SCALE")
        'prepare/left/SCALE#0'
        """
        number = self.visits.get(label, 0)
        while (key := f"{self.name}{'/' if self.name else ''}{label}#{number}") in self.keys:
            number += 1  # a visit that was forgotten gave its number back
        return key

    def count(self, execution: Execution) -> None:
        """Count a visit, so that its key is not given to a later one."""
        started = execution.started
        if started.step not in self.keys:
            self.keys[started.step] = started.name
            self.visits[started.name] = self.visits.get(started.name, 0) + 1

    def add(self, execution: Execution) -> None:
        """Take the next execution of this line in, in the order of their numbers."""
        self.count(execution)
        completed = execution.completed
        if completed is None and execution.started.detail.get(KIND) == MIGRATION:
            return  # it changed nothing: the run is where it was before
        self.last = execution
        if completed is not None:
            self.version = str(completed.detail.get(VERSION, self.version))
            self.branches = completed.detail.get(BRANCHES, self.branches)
            for name in completed.detail.get(DELETED, ()):
                self.data.pop(name, None)
                self.deleted.add(name)
            if completed.checkpoint is not None:
                for output in completed.checkpoint.outputs:
                    self.data[output.name] = execution
                    self.deleted.discard(output.name)


def read_lines(history: History, after: int = 0) -> dict[str, Line]:
    """Return all lines of a run by name ("" is the main one); executions up to number `after` count as visits only."""
    lines: dict[str, Line] = {"": Line()}
    cuts: dict[str, int] = {}
    for execution in list(history.executions.values()):
        started = execution.started
        if started.step_kind != STATE:
            continue
        name = str(started.detail.get(LINE, ""))
        if name not in lines:
            lines[name] = Line(name)
        if execution.number <= after:
            lines[name].count(execution)
        elif execution.forgotten:
            # The line goes back to here: what it did from here on, until it was told so, does not count.
            cuts[name] = max(cuts.get(name, 0), execution.forgotten_at)
        elif execution.number < cuts.get(name, 0):
            lines[name].count(execution)
        else:
            lines[name].add(execution)
    return lines
