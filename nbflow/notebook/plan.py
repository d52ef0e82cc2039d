"""Predict a resume: which cells of a notebook will be restored, which will run, and why.

The notebook's cells are walked in order, with the fingerprint that each
variable will have at that point as far as it is known: from the outputs of
cells that will be restored, from literal constants, and from functions whose
source stands in the file. A recorded execution is expected to be restored if
its code and everything known of its inputs are the same; what a cell that will
run binds makes later readers run too. What cannot be known (a plain cell that
computes something) is taken as unchanged, so the plan may promise too much; the
signature decides when the cell is executed.

Pure: nothing is run, read or written here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nbflow.core.errors import GatePending
from nbflow.core.gates import Gate, gates_of
from nbflow.core.history import Execution, History
from nbflow.core.states import StepState
from nbflow.notebook.amounts import duration, moment
from nbflow.notebook.analysis import CellAnalysis, analyse, code_digest, parse
from nbflow.notebook.calls import Calls, calls_of, first_line, scope_of
from nbflow.notebook.cells import PlannedCell
from nbflow.notebook.detail import CODE, DELETES, HELPERS, READS, UNSTORED, WRITES
from nbflow.notebook.expressions import STORE
from nbflow.notebook.identity import CellNames, is_nameless, similar
from nbflow.notebook.purity import is_atom, may_change_unknown
from nbflow.notebook.tracking import is_private
from nbflow.values.fingerprint import fingerprint

Action = Literal["restore", "run", "gone", "wait"]


#: The recorded type of what stops a cell at a gate.
_PENDING = f"{GatePending.__module__}.{GatePending.__qualname__}"


@dataclass(frozen=True)
class PlannedStep:
    """One line of a plan: a durable cell, all calls of one durable function in a plain cell, or a gate that waits.

    `seconds` that the recorded execution took, `index` of the cell in the file,
    `calls` that are recorded (0 for a cell), `code`: the first line of a cell
    whose name says nothing.
    """

    name: str
    action: Action
    reason: str
    seconds: float | None = None
    index: int | None = None
    calls: int = 0
    code: str = ""
    #: Of a gate that waits: its key.
    step: str = ""


@dataclass(frozen=True)
class Plan:
    """What is expected of a resume, in the order of the notebook; recorded steps without a cell come last.

    `from_file` is False where the notebook's file is not known: then it tells
    what is recorded, and nothing about the cells.
    """

    steps: tuple[PlannedStep, ...] = ()
    from_file: bool = True
    title: str = "nbflow"

    @property
    def restored(self) -> int:
        """How many cells are expected to come back without running."""
        return sum(step.action == "restore" and not step.calls for step in self.steps)

    @property
    def waiting(self) -> int:
        """How many gates wait for somebody to decide."""
        return sum(step.action == "wait" for step in self.steps)

    @property
    def to_run(self) -> int:
        """How many durable cells are expected to run."""
        return sum(step.action == "run" for step in self.steps)

    @property
    def summary(self) -> str:
        """One line: `8 to restore, 4 to run, 12 calls recorded`."""
        calls = sum(step.calls for step in self.steps)
        and_calls = f", {calls} call{'' if calls == 1 else 's'} recorded" if calls else ""
        if self.waiting:
            and_calls += f", {self.waiting} waiting at a gate"
        if not self.from_file:
            return f"{self.restored} recorded, {self.to_run} not{and_calls}"
        return f"{self.restored} to restore, {self.to_run} to run{and_calls}"

    @property
    def saved(self) -> float:
        """Seconds that the cells expected to be restored took when they ran."""
        return sum(step.seconds or 0.0 for step in self.steps if step.action == "restore")

    def text(self) -> str:
        """Return the plan as plain text."""
        from nbflow.notebook.plan_view import plan_text

        return plan_text(self)

    def html(self) -> str:
        """Return the plan as HTML that is right in light and dark themes."""
        from nbflow.notebook.plan_view import plan_html

        return plan_html(self)

    def _repr_mimebundle_(self, **_wanted: Any) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


@dataclass
class _World:
    """What is known of the variables at one point of the walk."""

    #: Fingerprint in hex by name; of what cells that will be restored leave behind, and of literals.
    known: dict[str, str] = field(default_factory=dict)
    #: Variables that a cell which will run binds or changes, with that cell's name.
    dirty: dict[str, str] = field(default_factory=dict)
    #: Code digests in hex of functions and classes defined in plain cells, and the names each uses.
    defined: dict[str, str] = field(default_factory=dict)
    uses: dict[str, frozenset[str]] = field(default_factory=dict)

    def reads_of(self, analysis: CellAnalysis) -> set[str]:
        """Return what a cell reads, through functions defined in earlier cells as well."""
        found: set[str] = set()
        waiting = list(analysis.reads)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self.uses.get(name, ()))
        return found

    def rebound(self, name: str) -> None:
        """Forget all that is known of a name: somebody else binds it now."""
        self.known.pop(name, None)
        self.dirty.pop(name, None)
        self.defined.pop(name, None)
        self.uses.pop(name, None)


def make_plan(
    cells: Sequence[PlannedCell],
    history: History,
    namespace: Mapping[str, Any] | None = None,
    *,
    title: str = "nbflow",
    now: float | None = None,
    alive: bool = False,
    ids: frozenset[str] | None = None,
) -> Plan:
    """Predict what will happen to each durable cell of a notebook.

    `namespace` is the kernel's, where there is one: simple values (numbers,
    strings) of names that only plain cells bind are compared as well. `now` is
    the UTC second that times are told relative to; `alive` says that this run
    has an owner at work, so an execution without an end is no crash. `ids` are
    those of the notebook's cells, where the kernel will know them (see `CellNames`).
    """
    world = _World()
    names = CellNames(ids)
    steps: list[PlannedStep] = []
    analyses = [analyse(cell.source) for cell in cells]
    bound_by_durable = {
        name
        for cell, found in zip(cells, analyses, strict=True)
        if _records(cell, found)
        for name in found.writes
    }
    named: list[str | None] = []
    for cell, found in zip(cells, analyses, strict=True):
        wanted = _records(cell, found) and not cell.problem
        cell_id = cell.cell_id or None
        named.append(names.of(found, name=cell.name, cell_id=cell_id, history=history) if wanted else None)
    present = {name for name in named if name is not None}
    twice = {name for name, count in Counter(cell.name for cell in cells).items() if name and count > 1}
    calls = calls_of(history)
    gates = _waiting(history)
    for cell, found, name in zip(cells, analyses, named, strict=True):
        if name is None:
            steps.extend(_of_calls(one, now, cell.index) for one in calls if one.is_in(cell) and one.done)
            inside = [gate for gate in gates if Calls("", scope_of(gate.step), ()).is_in(cell)]
            steps.extend(_of_gate(gate, now, cell.index) for gate in inside)
            if cell.problem:
                steps.append(
                    PlannedStep(cell.line or f"cell {cell.index}", "run", cell.problem, index=cell.index)
                )
            _take_plain(world, cell, found)
            continue
        if namespace is not None:
            _look_up(world, found, namespace, bound_by_durable)
        step, execution = _predict(world, cell, found, name, history, present, now=now, alive=alive)
        inside_gates = [gate for gate in gates if scope_of(gate.step) == name]
        if name in twice:
            step = PlannedStep(name, "run", "two cells have this name: rename one", index=cell.index)
        elif step.action == "run" and inside_gates:
            step = _of_gate(inside_gates[0], now, cell.index, name)
        elif step.action == "run":
            recorded = [one.count for one in calls if one.scope == name and one.done]
            if recorded:
                step = replace(step, reason=f"{step.reason}; {recorded[0]} in it recorded")
        if is_nameless(name):
            step = replace(step, code=first_line(cell.source))
        steps.append(step)
        _leave_behind(world, found, cell.source, name, execution, history)
    placed = {step.step for step in steps if step.action == "wait"}
    steps.extend(_of_gate(gate, now) for gate in gates if gate.step not in placed)
    steps.extend(_gone(history, present, now))
    return Plan(tuple(steps), title=title)


def plan_of_history(
    history: History, *, title: str = "nbflow", now: float | None = None, alive: bool = False
) -> Plan:
    """Tell what is recorded, for a notebook whose file is not known."""
    steps = []
    for key, executions in history.by_step.items():
        if executions[-1].started.step_kind != "cell":
            continue
        done = [execution for execution in executions if execution.completed and not execution.forgotten]
        if done:
            steps.append(PlannedStep(key, "restore", _recorded(done[-1], now), _seconds(done[-1])))
        else:
            steps.append(PlannedStep(key, "run", _trouble(executions[-1], alive) or "not recorded yet"))
    gates = _waiting(history)
    for number, step in enumerate(steps):
        inside = [gate for gate in gates if step.action == "run" and scope_of(gate.step) == step.name]
        if inside:
            steps[number] = _of_gate(inside[0], now, name=step.name)
    placed = {step.step for step in steps}
    steps.extend(_of_gate(gate, now) for gate in gates if gate.step not in placed)
    plain = [one for one in calls_of(history) if one.scope not in history.by_step and one.done]
    steps.extend(_of_calls(one, now) for one in plain)
    return Plan(tuple(steps), from_file=False, title=title)


# -- one durable cell --------------------------------------------------------


def _predict(
    world: _World,
    cell: PlannedCell,
    analysis: CellAnalysis,
    name: str,
    history: History,
    present: set[str],
    *,
    now: float | None,
    alive: bool,
) -> tuple[PlannedStep, Execution | None]:
    """Return the line of one durable cell, and the execution that it will be restored from."""

    def run(reason: str) -> tuple[PlannedStep, None]:
        return PlannedStep(name, "run", reason, index=cell.index), None

    if analysis.error is not None:
        return run(f"the code has an error: {analysis.error.msg}")
    if cell.refresh:
        return run("--refresh")
    executions = history.by_step.get(name, [])
    code = code_digest(cell.source)
    if not executions:
        old = similar(name, code, history)
        if old is not None and old not in present:
            return run(f"not recorded yet under this name; its code is recorded as {old} (renamed)")
        return run("not recorded yet")
    latest = executions[-1]
    trouble = _trouble(latest, alive)
    done = [execution for execution in executions if execution.completed and not execution.forgotten]
    if not done:
        return run(trouble or "not recorded yet")
    if cell.once:
        return PlannedStep(name, "restore", _recorded(done[-1], now), _seconds(done[-1]), cell.index), done[
            -1
        ]
    same = [execution for execution in done if _same_code(execution, cell, code.hex())]
    if not same:
        return run(
            trouble or ("version changed" if cell.version or done[-1].started.version else "code changed")
        )
    reasons = []
    for execution in reversed(same):
        reason = _changed_input(world, cell, analysis, execution)
        if reason is None:
            step = PlannedStep(name, "restore", _recorded(execution, now), _seconds(execution), cell.index)
            return step, execution
        reasons.append(reason)
    return run(trouble or reasons[0])


def _changed_input(
    world: _World, cell: PlannedCell, analysis: CellAnalysis, execution: Execution
) -> str | None:
    """Return why this execution will not be restored; None when nothing speaks against it."""
    started, completed = execution.started, execution.completed
    assert completed is not None
    unstored = completed.detail.get(UNSTORED, ())
    if unstored:
        return f"{', '.join(unstored)} cannot be stored"
    reads: Mapping[str, str] = started.detail.get(READS, {})
    helpers: Mapping[str, str] = started.detail.get(HELPERS, {})
    names = cell.inputs if cell.inputs is not None else sorted(world.reads_of(analysis))
    for name in names:
        if name in world.dirty:
            cause = world.dirty[name]
            return f"reads {name}, which will run" if cause == name else f"reads {name}, and {cause} will run"
    for name in sorted({*helpers, *(name for name in names if name in world.defined)}):
        if name in helpers and name in world.defined and helpers[name] != world.defined[name]:
            return f"helper {name}() changed"
    for name in names:
        if name in world.known and name in reads and reads[name] != world.known[name]:
            return f"reads {name}, which changed"
        if name in world.known and name in reads and reads[name] == "":
            return f"reads {name}, which was not there before"
    return None


def _same_code(execution: Execution, cell: PlannedCell, code: str) -> bool:
    started = execution.started
    if cell.version or started.version:
        return started.version == cell.version
    return bool(started.detail.get(CODE) == code)


def _trouble(execution: Execution, alive: bool) -> str | None:
    """Return what is wrong with the newest execution, in plain words."""
    if execution.forgotten:
        return "forgotten"
    if execution.interrupted:  # by the attach that followed
        return "was running when the kernel died"
    if execution.state is StepState.RUNNING:
        return "running now" if alive else "was running when the kernel died"
    ended = execution.ended
    if ended is None:
        return None
    if ended.error is not None and ended.error.type == _PENDING:
        return "its gate is decided: it goes on"
    if ended.state == StepState.FAILED and ended.error is not None:
        message = ended.error.message.strip().partition("\n")[0]
        kind = ended.error.type.rpartition(".")[2]
        message = f"{message[:99]}…" if len(message) > 100 else message
        return f"failed last time: {kind}: {message}" if message else f"failed last time: {kind}"
    words = {StepState.CANCELLED: "was interrupted", StepState.TIMED_OUT: "took too long last time"}
    return words.get(StepState(ended.state), f"{ended.state.replace('_', ' ')} last time")


# -- what a cell leaves to the next one --------------------------------------


def _leave_behind(
    world: _World,
    analysis: CellAnalysis,
    source: str,
    name: str,
    execution: Execution | None,
    history: History,
) -> None:
    if execution is not None:
        completed = execution.completed
        assert completed is not None
        for output in completed.checkpoint.outputs if completed.checkpoint else ():
            if is_private(output.name):
                continue  # the results of cells, see `outcome`
            world.rebound(output.name)
            world.known[output.name] = output.fingerprint.hex()
        for deleted in completed.detail.get(DELETES, ()):
            world.rebound(deleted)
        return
    changed = set(analysis.writes)
    unstored: set[str] = set()
    last = [one for one in history.by_step.get(name, ()) if one.completed is not None]
    if last:
        completed = last[-1].completed
        assert completed is not None
        # What it changed in place last time is known better than what it might change.
        changed.update(completed.detail.get(WRITES, ()))
        # What cannot be stored mostly has no content to look at (a connection): it counts by its type.
        if last[-1].started.detail.get(CODE) == code_digest(source).hex():
            unstored.update(completed.detail.get(UNSTORED, ()))
    else:
        changed.update(name for name, uses in analysis.uses.items() if STORE in uses)
    for variable in changed:
        world.rebound(variable)
        if variable not in unstored:
            world.dirty[variable] = name


def _take_plain(world: _World, cell: PlannedCell, analysis: CellAnalysis) -> None:
    """Take in a cell that runs every time: its literals and definitions are known, the rest is not."""
    if analysis.error is not None:
        return
    for name, uses in analysis.uses.items():
        # It may change the object in place; what the object is then, only running tells.
        if name in world.known and may_change_unknown(uses):
            del world.known[name]
    tree, _ = parse(cell.source)
    spoilt = [world.dirty[name] for name in sorted(world.reads_of(analysis)) if name in world.dirty]
    for name in analysis.writes:
        world.rebound(name)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            world.defined[node.name] = code_digest(node).hex()
            # Naming it after its definition makes the analysis say what using it reads.
            found = analyse(f"{ast.unparse(node)}\n{node.name}")
            world.uses[node.name] = found.reads - {node.name}
        elif (
            isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        ):
            try:
                value = ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue  # computed when the cell runs
            world.known[node.targets[0].id] = fingerprint(value).digest.hex()
    if spoilt and not analysis.definition_only:
        for name in analysis.writes:
            if name not in world.known and name not in world.defined:
                world.dirty[name] = spoilt[0]


def _look_up(
    world: _World, analysis: CellAnalysis, namespace: Mapping[str, Any], bound_by_durable: Iterable[str]
) -> None:
    for name in world.reads_of(analysis):
        if (
            name in namespace
            and name not in bound_by_durable
            and name not in world.known
            and name not in world.dirty
        ):
            value = namespace[name]
            if is_atom(value) and not callable(value):
                world.known[name] = fingerprint(value).digest.hex()


# -- the rest ----------------------------------------------------------------


def _records(cell: PlannedCell, analysis: CellAnalysis) -> bool:
    return cell.durable and (cell.gate or not analysis.definition_only)


def _gone(history: History, present: set[str], now: float | None) -> Iterable[PlannedStep]:
    for key, executions in history.by_step.items():
        if (
            key in present
            or executions[-1].started.step_kind != "cell"
            or executions[-1].started.parent is not None
        ):
            continue
        done = [execution for execution in executions if execution.completed and not execution.forgotten]
        if done:
            reason = f"not in the notebook any more; {_recorded(done[-1], now)}"
            yield PlannedStep(key, "gone", reason, _seconds(done[-1]))


def _of_calls(calls: Calls, now: float | None, index: int | None = None) -> PlannedStep:
    last = max(step.finished_at or step.started_at for step in calls.done)
    reason = f"{calls.count} recorded {moment(last, now)}, took {duration(calls.seconds)}"
    return PlannedStep(f"{calls.name}()", "restore", reason, calls.seconds, index, calls=len(calls.done))


def _waiting(history: History) -> list[Gate]:
    return [gate for gate in gates_of(history) if gate.state == "waiting"]


def _of_gate(gate: Gate, now: float | None, index: int | None = None, name: str = "") -> PlannedStep:
    """Return the line of a gate that waits, or of the durable cell that stopped at it."""
    asks = gate.form.text.strip().partition("\n")[0]
    due = f", until {moment(gate.due_at, now)}" if gate.due_at is not None else ""
    at = f"at gate {gate.form.name} " if name not in ("", gate.form.name) else ""
    reason = f"waits {at}since {moment(gate.opened_at, now)}{due}{f': {asks}' if asks else ''}"
    return PlannedStep(name or gate.form.name, "wait", reason, index=index, step=gate.step)


def _seconds(execution: Execution) -> float | None:
    return execution.completed.seconds if execution.completed is not None else None


def _recorded(execution: Execution, now: float | None) -> str:
    """Say when an execution was recorded and how long it took: `recorded 12:03, took 41 s`."""
    at = execution.ended_at if execution.ended_at is not None else execution.started_at
    seconds = _seconds(execution) or 0.0
    return f"recorded {moment(at, now)}, took {duration(seconds)}"
