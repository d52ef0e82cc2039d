"""The durable calls of a run as people look at them: by function and by the cell they were made in.

A call's key (`cell:4f1c/fit:1f2e9a#0`) is for machines, and a loop makes
hundreds of them. The plan and the tables show one line for all calls of one
function in one cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nbflow.core.history import History
from nbflow.core.model import StepInfo
from nbflow.core.states import StepState
from nbflow.notebook.analysis import code_digest
from nbflow.notebook.cells import PlannedCell

#: How lines begin that look alike in many cells, or belong to another line.
_SETTING_UP = (
    "#",
    "%",
    "@",
    "def ",
    "async def ",
    "class ",
    "import ",
    "from ",
    " ",
    "\t",
    ")",
    "]",
    "}",
    '"',
)

#: Characters of a line of code that is shown to tell which cell is meant.
_LINE = 40


@dataclass(frozen=True)
class Calls:
    """All calls of one durable function under one cell, in the order in which they first began.

    `scope` is the cell's own key; "" for calls of a run without cells.
    """

    name: str
    scope: str
    steps: tuple[StepInfo, ...]

    @property
    def label(self) -> str:
        """What they are called in a table: `fit() × 12`."""
        return f"{self.name}()" if len(self.steps) == 1 else f"{self.name}() × {len(self.steps)}"

    @property
    def done(self) -> list[StepInfo]:
        """Those that have something to replay."""
        return [step for step in self.steps if step.state == StepState.COMPLETED]

    @property
    def seconds(self) -> float:
        """What the completed ones took together."""
        return sum(step.seconds or 0.0 for step in self.done)

    @property
    def count(self) -> str:
        """How many are recorded: `3 of 4 calls`, `1 call`."""
        done, begun = len(self.done), len(self.steps)
        return f"{done}{f' of {begun}' if done != begun else ''} call{'' if begun == 1 else 's'}"

    def is_in(self, cell: PlannedCell) -> bool:
        """Tell whether they were made in this cell, which is no step itself (see `identity.cell_scope`)."""
        kind, _, rest = self.scope.partition(":")
        if kind == "cell":
            return rest == cell.cell_id
        return kind == "code" and rest.partition("~")[0] == code_digest(cell.source).hex()[:12]


def calls_of(history: History) -> list[Calls]:
    """Group the calls of a run; calls inside other calls count where the outermost one stands."""
    found: dict[tuple[str, str], list[StepInfo]] = {}
    for step in history.steps():
        if step.step_kind == "call" and step.current and not _forgotten(history, step):
            found.setdefault((scope_of(step.step), step.name), []).append(step)
    return [Calls(name, scope, tuple(steps)) for (scope, name), steps in found.items()]


def scope_of(key: str) -> str:
    """Return the key of the cell that a call stands in; "" where it stands in none.

    >>> scope_of("load/fetch:1f2e#0"), scope_of("fetch:1f2e#0")
    ('load', '')
    """
    first, slash, _ = key.partition("/")
    # A call within a call of a plain script: `outer@ab#0/inner:1f2e#0`.
    return first if slash and "#" not in first else ""


def first_line(source: str) -> str:
    r"""Return the first line that does something, cut where it is long: it tells a person which cell is meant.

    >>> first_line("# the year\nimport time\nyear = 2013"), first_line("import time")
    ('year = 2013', 'import time')
    """
    lines = [line.rstrip() for line in source.splitlines() if line.strip()]
    line = next((line for line in lines if not line.startswith(_SETTING_UP)), "".join(lines[:1]).strip())
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"


def place(scope: str, cells: Iterable[PlannedCell]) -> str:
    """Say which cell a scope is: a durable cell's name, the first line of a plain one, "" where nobody knows."""
    if not scope.startswith(("cell:", "code:")):
        return scope
    probe = Calls("", scope, ())
    return next((first_line(cell.source) for cell in cells if probe.is_in(cell)), "")


def _forgotten(history: History, step: StepInfo) -> bool:
    return history.executions[step.execution].forgotten
