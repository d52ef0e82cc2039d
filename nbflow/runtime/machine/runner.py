"""Running a machine: read from the journal where it is, enter the next state, record how it was left.

The decisions are pure and lie below (`core/machine.py`, `core/line.py`,
`core/joins.py`); here they are executed, through a `Face`, so sync and async
are one piece of code. Before its task runs a state is in the journal, so a
resume re-enters the last entered state and never an earlier one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nbflow.core import line as lines
from nbflow.core.errors import InvalidOutcome, NbflowError, RunCancelled, StepTimeout
from nbflow.core.history import Execution
from nbflow.core.joins import Join
from nbflow.core.line import Line
from nbflow.core.machine import Definition
from nbflow.core.model import RunOpened, StepCompleted, StepStarted
from nbflow.core.outcomes import Branch, Split
from nbflow.core.retry import RetryPolicy
from nbflow.core.signature import digest
from nbflow.core.state_spec import StateSpec
from nbflow.core.states import COMPENSATE, CancelReason
from nbflow.runtime import modes, saga, workers
from nbflow.runtime.faces import Face
from nbflow.runtime.machine.branches import Branches
from nbflow.runtime.machine.context import Context, Data
from nbflow.runtime.machine.kinds import Visit, run_task
from nbflow.runtime.scope import Scope, entered
from nbflow.runtime.session import Session, StepResult, StepSpec

if TYPE_CHECKING:
    from nbflow.runtime.machine.machine import Machine


class Runner:
    """One attempt at one run of a machine."""

    def __init__(self, machine: Machine, definition: Definition, session: Session, face: Face) -> None:
        self.machine = machine
        self.definition = definition
        self.session = session
        self.face = face
        self.pool = workers.Workers(workers.limit_of(machine.max_parallel))
        self.lines: dict[str, Line] = {}
        assert definition.initial is not None, "validation refuses a machine without beginning"
        self._initial = definition.initial

    async def run(self) -> str:
        """Go on until a final state is reached, and return its label.

        When it fails, the completed compensatable states and calls are undone and
        the error goes on; the caller records the run's end.
        """
        session = self.session
        await self.face.call(functools.partial(saga.resume_rollback, session, find=self.undo_of))
        try:
            main = self._read()
            await self._migrate(main)
            label = await self.walk(main, Data(session, main), self._initial, frozenset())
        except (RunCancelled, Exception) as error:
            if saga.compensatable(session.history):
                await self.face.call(functools.partial(saga.rollback, session, error, find=self.undo_of))
            raise
        await self._arrive(main, label)
        return label

    def _read(self) -> Line:
        """Read the lines from the journal; return the main one."""
        history = self.session.history
        # What was rolled back is to be done again: only what came after it counts.
        self.lines = lines.read_lines(history, after=saga.rolled_back_at(history))
        return self.lines[""]

    def check(self) -> None:
        """Check that the machine knows the states that the run is in, before anything is run.

        Raises:
            UnknownState: it does not, and no migration is going to change that.
        """
        opened = self.session.history.opened
        main = self._read()
        if opened is None or (main.version or opened.version) != self.machine.version:
            return  # a migration says where to go on
        for line in self.lines.values():
            last = line.last
            if last is None or last.started.detail.get("kind") == "join":
                continue
            self.definition.label(last.started.name)
            after = last.completed.detail.get(lines.NEXT) if last.completed is not None else None
            if after is not None:
                self.definition.label(after)

    async def _arrive(self, main: Line, label: str) -> None:
        """Record the final state: it has no task, so it is entered and left in one."""
        if main.final is not None:
            return
        key = main.key(label)
        signature = digest("state", self.definition.name, label)
        await self.face.append(
            self.session,
            StepStarted(
                step=key,
                name=label,
                step_kind=lines.STATE,
                signature=signature,
                detail={lines.LINE: "", lines.FINAL: True},
            ),
            StepCompleted(execution=-1, step=key),
        )

    async def _migrate(self, main: Line) -> None:
        """Let the registered migrations bring the run to this version of the machine, one recorded step each."""
        opened = self.session.history.opened
        assert opened is not None
        found, wanted = main.version or opened.version, self.machine.version
        for target, function in self.machine.path(found, wanted, self.session.run):
            data = Data(self.session, main)
            label = main.last.started.name if main.last is not None else self._initial
            if main.last is not None and main.last.completed is not None:
                label = str(main.last.completed.detail.get(lines.NEXT, label))
            key = f"migrate:{found}→{target}#{main.visits.get(f'migrate to {target}', 0)}"

            async def body(
                _attempt: int,
                data: Data = data,
                label: str = label,
                target: str = target,
                function: Callable[..., Any] = function,
            ) -> StepResult:
                answer = await self.face.call(function, label, data)
                goes_on = self.definition.label(label if answer is None else answer)
                return StepResult(
                    data.changed(),
                    detail={lines.NEXT: goes_on, lines.VERSION: target, lines.DELETED: data.deleted()},
                )

            spec = StepSpec(
                step=key,
                name=f"migrate to {target}",
                kind=lines.STATE,
                signature=digest("migrate", target),
                detail={lines.LINE: "", lines.KIND: lines.MIGRATION},
            )
            main.add(await self.face.step(self.session, spec, body))
            found = target

    # --- one line ---------------------------------------------------------------------------------------------

    async def walk(
        self, line: Line, data: Data, start: str, ends: frozenset[str], parent: str | None = None
    ) -> str:
        """Go along a line until a final state, or one of `ends`, or (in a branch) until a task returns None."""
        outcome: str | Split | None = self._where(line, start)
        while outcome is not None:
            if isinstance(outcome, Split):
                outcome = await self._join(line, data, outcome, parent)
                continue
            label = outcome
            if label in ends or label in self.definition.final:
                return label
            state = self.definition.specs[label]
            if state.kind == "router":
                self.session.check()
                outcome = await self._route(line, data, state)
                continue
            outcome = await self._visit(line, data, state, parent, in_branch=bool(ends))
        return ""

    async def _route(self, line: Line, data: Data, state: StateSpec) -> str:
        """Ask a router, which records nothing."""
        with entered(Scope(line.key(state.label))):
            chosen = await self.face.call(_task_of(state), self._context(data, state.label, 1, line))
        try:
            if isinstance(chosen, Split):
                raise self._not_allowed(
                    state, chosen, "the state that comes next; only other kinds may split"
                )
            return self.definition.label(self._plain(state, chosen))
        except NbflowError as error:
            raise self._about(error, state.label) from None

    def _where(self, line: Line, start: str) -> str | Split | None:
        """Return what comes next on a line: a label, a split whose branches are not joined, None at a branch's end."""
        last = line.last
        if last is None:
            return start
        if line.final is not None:
            return line.final
        if last.completed is None:
            split = last.started.detail.get(lines.SPLIT)
            return self._split(split) if split else last.started.name
        if lines.SPLIT in last.completed.detail:
            return self._split(last.completed.detail[lines.SPLIT])
        label = last.completed.detail.get(lines.NEXT)
        return None if label is None else self.definition.label(label)

    async def _visit(
        self, line: Line, data: Data, state: StateSpec, parent: str | None, *, in_branch: bool
    ) -> str | Split | None:
        """Enter a state, or enter it again, and return what its task chose."""
        again = line.open and line.last is not None and line.last.started.name == state.label
        key = line.last.started.step if again and line.last is not None else line.key(state.label)
        visit = Visit(self, state, key, data)
        left: list[tuple[dict[str, Any], str | Split | None]] = []

        async def body(attempt: int) -> StepResult:
            visit.start_over()
            outcome = await run_task(visit, self._context(data, state.label, attempt, line))
            chosen = self._chosen(state, outcome, in_branch=in_branch)
            values, detail = data.changed(), self._detail(chosen)
            if isinstance(chosen, Split) and any(branch.data for branch in chosen.branches):
                values[lines.BRANCHES] = {
                    branch.name: dict(branch.data) for branch in chosen.branches if branch.data
                }
            if data.deleted():
                detail[lines.DELETED] = data.deleted()
            left[:] = [(values, chosen)]
            return StepResult(values, detail=detail)

        detail: dict[str, Any] = {lines.LINE: line.name, "kind": state.kind, **visit.when()}
        if state.compensate is not None:
            detail[COMPENSATE] = state.label
        spec = StepSpec(
            step=key,
            name=state.label,
            kind=lines.STATE,
            signature=digest("state", self.definition.name, state.label),
            retry=RetryPolicy() if state.kind == "poll" else state.retry,
            timeout=self._timeout(state),
            parent=parent,
            detail=detail,
            synced_start=state.kind == "timer",
            policies=state.options.get("policies", ()),
        )
        try:
            execution = await self.face.step(self.session, spec, body)
        except NbflowError as error:
            raise self._named(error, state) from error.__cause__
        line.add(execution)
        ((values, chosen),) = left
        data.recorded(execution, values)
        if modes.current() == "evict":
            data.forget()
            return self._where(line, "")
        return chosen

    def _context(self, data: Data, label: str, attempt: int, line: Line) -> Context:
        return Context(self.session, data, label, attempt, line.branches)

    def _plain(self, state: StateSpec, outcome: Any) -> Any:
        if outcome is None:
            raise self._not_allowed(state, outcome, "the state that comes next")
        return outcome

    def _chosen(self, state: StateSpec, outcome: Any, *, in_branch: bool) -> str | Split | None:
        """Check what a task returned.

        Raises:
            InvalidOutcome: it is nothing that may come next.
            UnknownState: it is no state of the machine.
        """
        if isinstance(outcome, Split):
            for branch in outcome.branches:
                self.definition.label(branch.state)
            if outcome.to is None:
                raise self._not_allowed(state, outcome, "a Split with `to=`, the state after the join")
            self.definition.label(outcome.to)
            return outcome
        if outcome is None and in_branch:
            return None
        label = self.definition.label(self._plain(state, outcome))
        if state.targets is not None and label not in state.targets:
            raise self._not_allowed(state, label, f"one of its targets ({', '.join(sorted(state.targets))})")
        return label

    def _not_allowed(self, state: StateSpec, outcome: Any, wanted: str) -> InvalidOutcome:
        return InvalidOutcome(
            f"The task of state {state.label} of machine {self.definition.name} returned {outcome!r} "
            f"in run {self.session.run}.",
            hint=f"Return {wanted}.",
            machine=self.definition.name,
            state=state.label,
            run=self.session.run,
        )

    def _detail(self, chosen: str | Split | None) -> dict[str, Any]:
        if not isinstance(chosen, Split):
            return {lines.NEXT: chosen}
        label = self.definition.label
        return {
            lines.SPLIT: {
                "branches": [[branch.name, label(branch.state)] for branch in chosen.branches],
                "join": chosen.join.text(),
                "to": label(chosen.to),
                "within": chosen.within,
            }
        }

    def _split(self, recorded: Mapping[str, Any]) -> Split:
        return Split(
            [Branch(label, name) for name, label in recorded["branches"]],
            join=Join.parse(recorded["join"]),
            to=recorded["to"],
            within=recorded["within"],
        )

    # --- splits -----------------------------------------------------------------------------------------------

    async def _join(self, line: Line, data: Data, split: Split, parent: str | None) -> str:
        """Run the branches of a split side by side, record how they ended, and return the state after the join."""
        again = line.open and line.last is not None and lines.SPLIT in line.last.started.detail
        name = " + ".join(str(branch.name) for branch in split.branches)
        key = line.last.started.step if again and line.last is not None else line.key(name)
        splitting = self._splitting(line.name, key) if again else line.last
        due_at = self._join_due(key, split)
        detail = {lines.LINE: line.name, "kind": "join", **self._detail(split)}
        if due_at is not None:
            detail[lines.DUE_AT] = due_at
        merged: dict[str, Any] = {}

        async def body(_attempt: int) -> StepResult:
            branches = Branches(self, split, key, due_at)
            ends = await branches.run(
                lambda branch, branch_line: Data(
                    self.session, branch_line, data, split=splitting, branch=str(branch.name)
                )
            )
            merged.clear()
            merged.update(branches.merged())
            return StepResult(
                dict(merged), detail={lines.NEXT: self.definition.label(split.to), lines.BRANCHES: ends}
            )

        spec = StepSpec(
            step=key,
            name=name,
            kind=lines.STATE,
            signature=digest("join", self.definition.name, name),
            parent=parent,
            detail=detail,
            synced_start=due_at is not None,
        )
        try:
            execution = await self.face.step(self.session, spec, body)
        except NbflowError as error:
            raise self._about(error, name) from error.__cause__
        line.add(execution)
        for value_name, value in merged.items():
            data[value_name] = value
        data.recorded(execution, merged)
        if modes.current() == "evict":
            data.forget()
        return self.definition.label(split.to)

    def _splitting(self, line: str, join_key: str) -> Execution | None:
        """Return the execution of the state that split this line before the join `join_key`."""
        history = self.session.history
        join = history.by_step[join_key][0].number
        return next(
            (
                execution
                for execution in reversed(list(history.executions.values()))
                if execution.number < join
                and execution.completed is not None
                and lines.SPLIT in execution.completed.detail
                and execution.started.detail.get(lines.LINE) == line
            ),
            None,
        )

    def _join_due(self, key: str, split: Split) -> float | None:
        for before in self.session.history.by_step.get(key, ()):
            if not before.forgotten:
                recorded: float | None = before.started.detail.get(lines.DUE_AT)
                return recorded
        return None if split.within is None else self.session.clock.now() + split.within

    # --- time, errors, undoing --------------------------------------------------------------------------------

    def _timeout(self, state: StateSpec) -> float | None:
        """Return the seconds that an attempt at the state may take: its own limit, or what is left of the run's."""
        opened = self.session.history.opened
        assert isinstance(opened, RunOpened)
        if opened.deadline is None or state.kind in ("timer", "poll", "gate"):
            return state.timeout  # a wait asks for the deadline itself
        left = max(0.001, opened.deadline - self.session.clock.now())
        return left if state.timeout is None else min(state.timeout, left)

    def _named(self, error: NbflowError, state: StateSpec) -> NbflowError:
        opened = self.session.history.opened
        assert opened is not None
        if (
            isinstance(error, StepTimeout)
            and opened.deadline is not None
            and self.session.clock.now() >= opened.deadline
        ):
            stopped = self.session.cancelled(CancelReason.TIMEOUT)
            stopped.__cause__ = error
            return self._about(stopped, state.label)
        return self._about(error, state.label)

    def _about(self, error: NbflowError, label: str) -> NbflowError:
        """Have the error say which machine, state and run it is about."""
        if isinstance(error, RunCancelled):
            return error
        if not getattr(error, "machine", ""):
            error.machine, error.state = self.definition.name, label  # type: ignore[attr-defined]
        error.run = error.run or self.session.run
        if self.session.run in str(error):
            return error
        place = f"(machine {self.definition.name}, state {label}, run {self.session.run})"
        error.args = (f"{error.args[0] if error.args else error.message} {place}", *error.args[1:])
        return error

    def undo_of(self, execution: Execution) -> Callable[[], object] | None:
        """Return what undoes a completed state: its compensator over the data as that state had left it."""
        label = execution.started.detail.get(COMPENSATE)
        if execution.started.step_kind != lines.STATE or label is None:
            return None
        state = self.definition.specs.get(str(label))
        if state is None or state.compensate is None:
            return None
        undo = state.compensate

        def call() -> object:
            line, data = self._left_behind(execution)
            context = self._context(data, state.label, execution.attempt, line)
            with entered(Scope(f"undo/{execution.number}")):
                return undo(context)

        return call

    def _left_behind(self, execution: Execution) -> tuple[Line, Data]:
        """Return the line of a state and its data as that state had left them."""
        history = self.session.history
        # By their ends: the join around a branch began before the branch and was completed after it.
        done = [e for e in list(history.executions.values()) if e.completed is not None]
        until = [e for e in done if e.ended_seq <= execution.ended_seq]
        found: dict[str, Line] = {}
        for earlier in until:
            if earlier.started.step_kind == lines.STATE:
                name = str(earlier.started.detail.get(lines.LINE, ""))
                found.setdefault(name, Line(name)).add(earlier)

        def data_of(line: Line, join_key: str | None) -> Data:
            join = history.latest(join_key) if line.name and join_key else None
            if join is None or join_key is None:
                return Data(self.session, line)
            name = str(join.started.detail.get(lines.LINE, ""))
            return Data(
                self.session,
                line,
                data_of(found.get(name) or Line(name), join.started.parent),
                split=self._splitting(name, join_key),
                branch=line.name[len(join_key) + 1 :],
            )

        line = found[str(execution.started.detail.get(lines.LINE, ""))]
        return line, data_of(line, execution.started.parent)


def _task_of(state: StateSpec) -> Callable[..., Any]:
    assert state.handler is not None, "validation refuses a state without a task"
    return state.handler
