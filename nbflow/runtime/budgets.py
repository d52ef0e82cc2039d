"""What a run and its children spend, and the budgets that refuse the next step when it is spent.

A charge is a record of the run that its step belongs to; what a tree of runs
has spent is summed when somebody asks: living children from their own
histories, completed ones from the record of their end in the parent, others
(failed, or of a process that died) from their journals.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nbflow.core.errors import BudgetExceeded, UnknownRun, UsageError
from nbflow.core.history import History
from nbflow.core.ledger import Amounts, checked, minus, overrun, plus
from nbflow.core.model import Entry, RunCharged, StepStarted
from nbflow.core.signature import digest
from nbflow.core.states import FINAL_RUN_STATES, RunState
from nbflow.runtime import active
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.store.protocol import Store

__all__ = ["Budget", "adopt", "budget", "charge", "history_spent", "spent", "tree_spent"]

#: The kind of steps that stand for a child run.
CHILD = "child"
#: Detail key of such a step's beginning: the child's run. And of its completion: what the child's tree spent.
RUN, CHARGED = "run", "charged"
#: Seconds between two readings of the journal of a child that lives in another process.
READ_EVERY = 0.5
#: The name under which a budget's baseline is recorded.
BASELINE = "return"


def charge(*, source: str = "", **amounts: float) -> None:
    """Note that the step which calls this has spent something.

    Units are names of your own: tokens, dollars, requests. What one try at a
    step spends from one source adds up. A step that is tried again, by a retry
    or by a resume, is not charged again: of its tries the largest sum of each
    source counts. Outside any step the run itself is charged, and its attempts
    are the tries.

    Args:
        source: tells charges of one step apart, such as the name of a service.
        **amounts: by unit, finite and not negative.

    Raises:
        UsageError: no amount, or one that makes no sense.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> @nbflow.durable
        ... def ask(question):
        ...     nbflow.charge(tokens=len(question), dollars=0.002, source="oracle")
        ...     return "42"
        >>> with nbflow.run("example"):
        ...     answer = ask("What is it?")
        ...     nbflow.spent()
        {'tokens': 11.0, 'dollars': 0.002}
    """
    if not isinstance(source, str):
        raise UsageError(f"A charge's source is a text, not {source!r}.")
    valid = checked(amounts)
    session = active.required()
    step = session.scope().step
    execution = session.history.latest(step) if step else None
    session.recorder.append(
        RunCharged(
            step=step,
            source=source,
            amounts=valid,
            execution=execution.number if execution else 0,
            attempt=execution.attempt if execution else session.attempt,
        ),
        # Before the step's own end in the journal, and so on disk with it.
        durability="buffered",
    )
    adopt(session)


def spent() -> dict[str, float]:
    """Return what the current run and all its children have spent so far, by unit.

    Raises:
        NoActiveRun: outside any run.

    >>> import nbflow
    >>> with nbflow.run("example"):
    ...     nbflow.charge(tokens=5)
    ...     nbflow.spent()
    {'tokens': 5.0}
    """
    return tree_spent(active.required())


@dataclass(frozen=True)
class Budget:
    """A limit on what a tree of runs spends from some moment on; made by `nbflow.budget`."""

    limits: Amounts
    baseline: Amounts
    _session: Session | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Budget, (
            self.limits,
            self.baseline,
        )  # recorded with a cell, say: it is of the run that restores it

    def spent(self) -> Amounts:
        """Return what was spent of it, by unit; units that it does not limit included."""
        return minus(tree_spent(self._session or active.required()), self.baseline)

    def left(self) -> Amounts:
        """Return what may still be spent of each unit that it limits, from 0 up."""
        used = self.spent()
        return {unit: max(0.0, limit - used.get(unit, 0.0)) for unit, limit in self.limits.items()}

    def check(self, spec: StepSpec) -> None:
        """Refuse the step if nothing is left of some unit.

        Raises:
            BudgetExceeded: naming the unit.
        """
        used = self.spent()
        unit = overrun(used, self.limits)
        if unit is None:
            return
        limit = self.limits[unit]
        run = (self._session or active.required()).run
        raise BudgetExceeded(
            f"The budget of run {run} is spent: {used.get(unit, 0.0):g} of {limit:g} {unit}. "
            f"Step {spec.step} was not started.",
            run=run,
            step=spec.step,
            unit=unit,
            spent=used.get(unit, 0.0),
            limit=limit,
            hint="Resume the run with a larger budget; what was recorded is not paid for again.",
        )


@contextmanager
def budget(**limits: float) -> Iterator[Budget]:
    """Limit what this run and all its children spend while the block is open.

    Once as much is spent as a limit says, the next step is refused before it
    starts, in every thread, task and child of the run. Steps that replay are
    never refused, nor are compensations. The block's beginning is recorded: on
    a resume the charges made inside it by earlier processes count. Budgets may
    be nested; all of them hold.

    Args:
        **limits: by unit, finite and not negative; 0 refuses every step that does not replay.

    Raises:
        UsageError: no limit, or one that makes no sense.
        NoActiveRun: outside any run.
        BudgetExceeded: from the steps inside.

    Example:
        >>> import nbflow
        >>> @nbflow.durable
        ... def ask(question):
        ...     nbflow.charge(tokens=600)
        >>> with nbflow.run("example"), nbflow.budget(tokens=1_000) as left:
        ...     ask("one")
        ...     left.left()
        {'tokens': 400.0}
    """
    valid = checked(limits, "Say what is limited, as in budget(tokens=1_000_000).")
    session = active.required()
    made = Budget(valid, _baseline(session), session)
    session.guards.append(made.check)
    try:
        yield made
    finally:
        session.guards.remove(made.check)


def _baseline(session: Session) -> Amounts:
    """Return what was spent when the block was entered for the first time."""
    outer = session.scope()
    call = "budget"
    number = outer.occurrence(call)
    # The limits are no part of its signature: a resume with a larger budget goes on counting.
    spec = StepSpec(
        step=outer.within(f"{call}#{number}"),
        name=call,
        kind="call",
        signature=digest("budget"),
        parent=outer.step or None,
        durability="buffered",
    )
    execution = session.find(spec.step, spec.signature)
    if execution is None:
        try:
            execution = session.run_step(spec, lambda _attempt: StepResult({BASELINE: tree_spent(session)}))
        except BaseException:
            outer.give_back(call, number)
            raise
    found: Amounts = session.restore(execution)[BASELINE]
    return found


# --- the tree --------------------------------------------------------------------------------------------------


def adopt(session: Session) -> None:
    """Ask this child itself for what it spends, as long as it lives, instead of its journal."""
    while (parent := session.parent) is not None:
        _tree(parent).live(session)
        session = parent


def tree_spent(session: Session) -> Amounts:
    """Return what the run and all its children, and theirs, have spent, by unit."""
    total = dict(session.history.ledger.total)
    for amounts in _tree(session).children():
        total = plus(total, amounts)
    return total


def history_spent(store: Store, history: History) -> Amounts:
    """Return the same for a run of which nobody here has the session."""
    total = dict(history.ledger.total)
    for run, step in _children(history).items():
        recorded = _recorded(history, run, step)
        total = plus(total, _journaled(store, run)[0] if recorded is None else recorded)
    return total


class _Tree:
    """The children of one session's run: those that live in this process, and the others."""

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self._lock = threading.Lock()
        self._steps: dict[str, str] = {}  # the child's run → the step that stands for it
        self._living: dict[str, weakref.ref[Session]] = {}
        self._read: dict[str, tuple[Amounts, float]] = {}  # from its journal, and good until when
        session.recorder.listen(self._notice)
        self._steps.update(_children(session.history))

    def _notice(self, entry: Entry) -> None:
        record = entry.record
        if isinstance(record, StepStarted) and record.step_kind == CHILD and RUN in record.detail:
            with self._lock:
                self._steps[record.detail[RUN]] = record.step
                self._read.pop(record.detail[RUN], None)

    def live(self, child: Session) -> None:
        """Ask this child itself from now on."""
        opened = child.history.opened
        step = (opened.parent_step if opened is not None else None) or ""
        with self._lock:
            self._steps.setdefault(child.run, step)
            self._living[child.run] = weakref.ref(child)

    def children(self) -> list[Amounts]:
        """Return what each child's tree spent."""
        session = self._session()
        assert session is not None, "its session asks"
        with self._lock:
            steps = tuple(self._steps.items())
        return [self._child(session, run, step) for run, step in steps]

    def _child(self, session: Session, run: str, step: str) -> Amounts:
        recorded = _recorded(session.history, run, step)
        if recorded is not None:
            return recorded
        with self._lock:
            reference = self._living.get(run)
            amounts, until = self._read.get(run, ({}, -math.inf))
        child = reference() if reference is not None else None
        if child is not None:
            return tree_spent(child)
        now = time.monotonic()
        if now >= until:
            amounts, ended = _journaled(session.store, run)
            with self._lock:
                self._read[run] = amounts, math.inf if ended else now + READ_EVERY
        return amounts


_trees: weakref.WeakKeyDictionary[Session, _Tree] = weakref.WeakKeyDictionary()
_trees_lock = threading.Lock()


def _tree(session: Session) -> _Tree:
    with _trees_lock:
        tree = _trees.get(session)
        if tree is None:
            tree = _trees[session] = _Tree(session)
        return tree


def _children(history: History) -> dict[str, str]:
    """Return the runs that were started as children, with the steps that stand for them."""
    return {
        str(execution.started.detail[RUN]): execution.started.step
        for execution in list(history.executions.values())
        if execution.started.step_kind == CHILD and RUN in execution.started.detail
    }


def _recorded(history: History, run: str, step: str) -> Amounts | None:
    """Return what the child's completed step says that it spent; None where none is completed."""
    for execution in reversed(history.by_step.get(step, ())):
        if execution.completed is not None and execution.started.detail.get(RUN) == run:
            return dict(execution.completed.detail.get(CHARGED, {}))
    return None


def _journaled(store: Store, run: str) -> tuple[Amounts, bool]:
    """Return what a run that does not live here spent, from its journal, and whether it came to an end."""
    try:
        history = History.of(store.entries(run))
    except UnknownRun:  # begun, and killed before it was created
        return {}, False
    return history_spent(
        store, history
    ), history.state in FINAL_RUN_STATES or history.state is RunState.FAILED
