"""`nbflow.child`: a run within a run. The parent's step starts it once, however often the parent is replayed.

The child's id follows from the parent's id and the key of the step, so whoever
carries the parent on finds the child that was begun, whatever was lost in
between. The child records its own result (`record_result`), and the parent's
step records it again: a kill between the two costs nothing.

A child on the calling thread keeps the slot of its parent, for it is the one
that works there; a wait inside it gives the slot back like any other. A
notebook runs in a kernel of its own (`notebook.py`), and the parent
waits without a slot.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbflow.core.crashpoints import point
from nbflow.core.errors import (
    ChildFailed,
    DuplicateRecord,
    LeaseError,
    LeaseHeld,
    NbflowError,
    RunCancelled,
    RunFinished,
    UnknownRun,
    UsageError,
)
from nbflow.core.gates import pending_of
from nbflow.core.history import History
from nbflow.core.ids import child_run_id
from nbflow.core.ledger import Amounts
from nbflow.core.model import RunOpened
from nbflow.core.signature import digest, short
from nbflow.core.states import FINAL_RUN_STATES, CancelReason, RunState
from nbflow.runtime import active, modes, saga
from nbflow.runtime.attributes import tag_texts
from nbflow.runtime.budgets import history_spent, tree_spent
from nbflow.runtime.children import notebook as notebook_child
from nbflow.runtime.children.results import SIGNATURE, has_result, record_result, result_of
from nbflow.runtime.faces import Blocking, Face, Looping, drive
from nbflow.runtime.machine.tasks import code_of
from nbflow.runtime.runs import plain_params
from nbflow.runtime.scope import Scope
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.runtime.steps import RESULT, DurableFunction
from nbflow.runtime.surroundings import around, replayed
from nbflow.runtime.verbs import verb
from nbflow.store.protocol import Store
from nbflow.values.fingerprint import fingerprint

if TYPE_CHECKING:
    from nbflow.runtime.machine.machine import Machine

log = logging.getLogger("nbflow")


#: Key in the detail of a child's step: what its code was.
CODE = "code"


@dataclass(frozen=True)
class Workflow:
    """What a child runs: a machine, a notebook's path or a function, under the name that its runs have.

    `code` stands for the work: the machine's version where it declares one, else
    what its definition, the function or the notebook's cells say.
    """

    target: Any
    name: str
    kind: Literal["machine", "notebook", "script"]
    version: str = ""
    code: str = ""


@dataclass(frozen=True)
class _Place:
    """Where a child stands in its parent: the step, and the scope to give its number back to."""

    spec: StepSpec
    outer: Scope
    call: str
    number: int
    #: Whether the step began before, so that the child may be there.
    begun: bool

    @property
    def run(self) -> str:
        """The child's id."""
        return str(self.spec.detail["run"])


def workflow_of(target: Any, name: str | None, store: Store) -> Workflow:
    """Return what is to be run, and what its runs are called.

    Raises:
        UsageError: it is no machine, notebook or function, or the name is empty.
    """
    given: object = name
    if given is not None and (not isinstance(given, str) or not given):
        raise UsageError(f"A child's name is a text that is not empty, not {given!r}.")
    if isinstance(target, (str, Path)):
        path, own = notebook_child.locate(target, store)
        return Workflow(path, name or own, "notebook", code=notebook_child.code_of(path))
    if hasattr(target, "run_as_child"):
        target.validate()  # what cannot run should not have a run either
        version = str(getattr(target, "version", "") or "")
        return Workflow(target, name or str(target.name), "machine", version, version or target.code())
    if not callable(target) or isinstance(target, type):
        raise UsageError(
            f"A child is a machine, the path of a notebook or a function, not {target!r}.",
        )
    if isinstance(target, DurableFunction):
        own = target.step_name
    else:
        own = str(getattr(target, "__qualname__", "") or type(target).__qualname__).replace("<locals>.", "")
    return Workflow(target, name or own, "script", code=code_of(target))


async def run_child(
    face: Face, target: Any, name: str | None, tags: dict[str, str] | None, params: dict[str, Any]
) -> Any:
    """Start a child, or find it again, and return its result; `child` with everything given, through either face."""
    session = active.required()
    workflow = workflow_of(target, name, session.store)
    params, tags = plain_params(params), tag_texts(tags or {})
    place = _place(session, workflow, params)
    if workflow.kind == "machine" and hasattr(target, "note_run"):
        target.note_run(session.store, place.run)
    execution = session.find(place.spec.step, place.spec.signature)
    if execution is not None and execution.started.detail.get(CODE, "") == workflow.code:
        return replayed(session, execution)[RESULT]
    value: list[Any] = []

    async def body(_attempt: int) -> StepResult:
        surroundings = around(session)
        before = surroundings.look() if surroundings else None
        result, detail = await _through(face, session, workflow, place, tags, params)
        value[:] = [result]
        point("child.done")
        state = surroundings.moved(before) if surroundings else None
        return StepResult({RESULT: result}, state=state, detail=detail)

    try:
        execution = await face.step(session, place.spec, body)
    except BaseException:
        place.outer.give_back(place.call, place.number)
        raise
    return session.restore(execution)[RESULT] if modes.current() == "evict" else value[0]


def _place(session: Session, workflow: Workflow, params: dict[str, Any]) -> _Place:
    signature = digest("child", workflow.name, fingerprint(params).digest)
    outer = session.scope()
    call = f"child:{workflow.name}:{short(signature)}"
    number = outer.occurrence(call)
    step = outer.within(f"{call}#{number}")
    spec = StepSpec(
        step=step,
        name=workflow.name,
        kind="child",
        signature=signature,
        parent=outer.step or None,
        version=workflow.version,
        detail={"run": _child_id(session, step, workflow.code), CODE: workflow.code},
    )
    return _Place(spec, outer, call, number, bool(session.history.by_step.get(step)))


def _child_id(session: Session, step: str, code: str) -> str:
    """Return the id of the step's child: the one that was begun, or a new one.

    A new one after a finished one was forgotten, or when its code is another by
    now. An unfinished one is carried on whatever its code: mending it is why it is resumed.
    """
    session.recorder.settle()
    earlier = session.history.by_step.get(step)
    if not earlier:
        return child_run_id(session.run, step)
    last = earlier[-1]
    run = str(last.started.detail["run"])
    other = last.completed is not None and last.started.detail.get(CODE, "") != code
    if (last.forgotten or other) and _state(session.store, run) in FINAL_RUN_STATES:
        return child_run_id(session.run, f"{step}~{len(earlier)}")
    return run


def _state(store: Store, run: str) -> str | None:
    try:
        return store.run(run).state
    except UnknownRun:
        return None


# --- running it ---------------------------------------------------------------------------------------------------


async def _through(
    face: Face,
    session: Session,
    workflow: Workflow,
    place: _Place,
    tags: dict[str, str],
    params: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Bring the child to its end, from wherever it is; return its result and what the step notes of it.

    Raises:
        ChildFailed: it failed, was cancelled, or another process has it.
        RunCancelled: the parent is to stop; the child was stopped first.
    """
    store, run = session.store, place.run
    state = _ensure(session, workflow, place, tags, params)
    if state == RunState.COMPLETED:
        history = History.of(store.entries(run))
        return result_of(store, run, history), _detail(run, history_spent(store, history))
    if state == RunState.CANCELLED:
        raise _failed(workflow, run, RunState.CANCELLED, "was cancelled", "Cancelled is final.")
    if workflow.kind == "notebook":
        return await _notebook(face, session, workflow, run, params)
    child = _attach(session, workflow, run)
    active.add(child)
    token = active.enter(child)
    try:
        with child.within(child.root):
            execution = child.find(RESULT, SIGNATURE)
            if execution is not None:  # killed before the run was finished
                result = child.restore(execution)[RESULT]
            else:
                if workflow.kind == "script":
                    saga.resume_rollback(child)
                result = await _call(face, workflow, child, params)
                record_result(child, result)
        point("child.recorded")
        _finish(child)
    except BaseException as error:
        _stopped(session, child, workflow, error)
        raise
    finally:
        active.leave(token)
        active.remove(child)
        child.close()
    return result, _detail(run, tree_spent(child))


def _ensure(
    session: Session, workflow: Workflow, place: _Place, tags: dict[str, str], params: dict[str, Any]
) -> str:
    """Create the child unless it is there; return its state."""
    store, run = session.store, place.run
    if place.begun:  # only then can it be there, and only then is the question worth its price
        state = _state(store, run)
        if state is not None:
            return state
    session.log.flush()  # a child must never be on disk without the step that began it
    point("child.create.before")
    try:
        store.create(
            RunOpened(
                run=run,
                workflow=workflow.name,
                version=workflow.version,
                params=params,
                tags={**session.history.tags, **tags},
                parent=session.run,
                parent_step=place.spec.step,
                workflow_kind=workflow.kind,
                **(workflow.target.opened(session.clock) if workflow.kind == "machine" else {}),
            )
        )
    except DuplicateRecord:
        return store.run(run).state
    point("child.create.after")
    return RunState.PENDING


def _attach(session: Session, workflow: Workflow, run: str) -> Session:
    try:
        child = Session.open(session.store, workflow.name, run=run, clock=session.clock, parent=session)
    except LeaseHeld as error:
        raise _failed(
            workflow,
            run,
            RunState.RUNNING,
            f"is at work in another process ({error.message})",
            "Wait for it or stop it, then resume this run.",
        ) from error
    child.surroundings = session.surroundings
    return child


async def _call(face: Face, workflow: Workflow, child: Session, params: dict[str, Any]) -> Any:
    if workflow.kind == "machine":
        blocking = isinstance(face, Blocking)
        target: Machine = workflow.target
        begin = target.run_as_child if blocking else target.arun_as_child
        return await face.call(begin, child, params)
    return await face.call(functools.partial(workflow.target, **params))


def _finish(child: Session) -> None:
    """Complete the run, unless whoever ran it has done so."""
    if child.history.state not in FINAL_RUN_STATES:
        child.finish()


def _stopped(session: Session, child: Session, workflow: Workflow, error: BaseException) -> None:
    """Record that the child did not come to its end; raise what the parent is to be told instead of `error`."""
    if isinstance(error, LeaseError):
        if error.run == child.run:
            raise _failed(
                workflow, child.run, RunState.RUNNING, "was taken over by another process", "Wait for it."
            ) from error
        return  # the parent's own lease: whoever has it now needs the child as it is
    if workflow.kind == "script" and isinstance(error, Exception) and not has_result(child):
        error = saga.fail(child, error)
    if isinstance(error, RunCancelled):
        _end(child, RunState.CANCELLED, error, error.reason)
        _raise_if_stopping(session, error)
        raise _failed(
            workflow, child.run, RunState.CANCELLED, f"was cancelled: {error.reason}", "Cancelled is final."
        ) from error
    if isinstance(error, Exception):
        _end(child, RunState.FAILED, error)
        raise failed_by(workflow.name, child.run, error) from error
    if pending_of(error) is not None:
        child.waits()
    child.log.flush()  # an interrupt, or a gate that waits, leaves it to be carried on


def _end(child: Session, state: RunState, error: Exception, reason: str = "") -> None:
    child.recorder.settle()
    if child.history.state in FINAL_RUN_STATES or child.history.state == state:
        return
    try:
        child.finish(state, reason=reason, error=error)
    except LeaseError:
        raise
    except NbflowError as problem:
        error.add_note(f"nbflow could not record this end of run {child.run}: {problem}")


def _raise_if_stopping(session: Session, error: RunCancelled) -> None:
    """Raise the parent's own cancel where that is what stopped the child."""
    try:
        session.check()
    except RunCancelled as own:
        raise own from error


def _failed(workflow: Workflow, run: str, state: str, what: str, hint: str) -> ChildFailed:
    return ChildFailed(f"Child run {run} of {workflow.name} {what}.", hint=hint, child=run, state=str(state))


def failed_by(name: str, run: str, error: BaseException) -> ChildFailed:
    """Return the error for a child that an exception ended."""
    said = error.message if isinstance(error, NbflowError) else str(error)
    return ChildFailed(
        f"Child run {run} of {name} failed: {type(error).__name__}: {said.rstrip('.')}.",
        hint="Resume this run and the child carries on from its last recorded step.",
        child=run,
        state=str(RunState.FAILED),
    )


async def _notebook(
    face: Face, session: Session, workflow: Workflow, run: str, params: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Run a notebook in its kernel, and then, when the kernel is gone, end its run."""
    trouble: BaseException | None = None
    kernel = notebook_child.KernelRun(session, workflow.target, run, params)
    try:
        if isinstance(face, Blocking):
            kernel.execute()
        else:
            await kernel.execute_async()
    except LeaseHeld as error:
        raise _failed(
            workflow, run, RunState.RUNNING, "is at work in another process", "Wait for it or stop it."
        ) from error
    except BaseException as error:  # noqa: BLE001 - raised again below, after the child's end is recorded
        trouble = error
    gate = None if trouble is None else notebook_child.waits_at(session.store, run)
    if gate is not None:
        session.waits()
        raise gate from trouble
    try:
        child = _attach(session, workflow, run)
    except RunFinished:  # by `%nbflow finish` in the notebook, or cancelled from outside
        child = None
    if child is not None:
        if isinstance(trouble, Exception):
            trouble = _cause(child, trouble)
        try:
            if trouble is None:
                record_result(child, dict(child.history.published))
                point("child.recorded")
                _finish(child)
            else:
                _stopped(session, child, workflow, trouble)
        finally:
            child.close()
    if trouble is not None:
        raise trouble
    history = History.of(session.store.entries(run))
    if history.state == RunState.CANCELLED:
        raise _failed(workflow, run, RunState.CANCELLED, "was cancelled", "Cancelled is final.")
    spent = history_spent(session.store, history)
    return result_of(session.store, run, history), _detail(run, spent) | {"notebook": str(kernel.copy)}


def _cause(child: Session, trouble: Exception) -> Exception:
    """Return the cancel that made the notebook stop, where there was one; what the kernel raised otherwise."""
    try:
        child.check()
    except RunCancelled as cancelled:
        return cancelled
    return trouble


def _detail(run: str, spent: Amounts) -> dict[str, Any]:
    """Return what the parent's step keeps of its child: its run, and what its tree spent."""
    return {"run": run, "charged": spent}


# --- cancel goes down ---------------------------------------------------------------------------------------------


def cancel_open(session: Session) -> None:
    """Cancel the children of a run that is being cancelled: those that it waited for and that are not over.

    A child that another process runs is told, and stops at its next step; one
    that has something to undo does that when it is resumed.
    """
    for executions in list(session.history.by_step.values()):
        last = executions[-1]
        if last.started.step_kind == "child" and last.completed is None and "run" in last.started.detail:
            _cancel(session, str(last.started.detail["run"]))


def _cancel(session: Session, run: str) -> None:
    from nbflow.runtime.waits import cancelling

    try:
        info = session.store.run(run)
        if info.state not in FINAL_RUN_STATES:
            note = f"run {session.run} is cancelled"
            cancelling.cancel_run(session.store, info, CancelReason.PARENT, note)
    except (UnknownRun, RunFinished):
        return  # it was never created, or has come to its own end
    except NbflowError:  # a child that cannot be read must not keep its parent from ending
        log.warning("Child %s of run %s could not be cancelled.", run, session.run, exc_info=True)


# --- the verb -----------------------------------------------------------------------------------------------------


async def _child_aio(
    workflow: Any, /, *, name: str | None = None, tags: dict[str, str] | None = None, **params: Any
) -> Any:
    return await run_child(Looping(), workflow, name, tags, params)


@verb(_child_aio)
def child(
    workflow: Any, /, *, name: str | None = None, tags: dict[str, str] | None = None, **params: Any
) -> Any:
    """Start another workflow as a run of its own, wait for its end and return its result; `await child.aio(...)` too.

    The child is a step of the current run and a run by itself, with a journal,
    steps and outputs of its own. It is started once: a resumed parent carries
    the same child on, and one that ended gives its result back. It inherits the
    tags of its parent, stops when the parent is cancelled, and what it spends
    counts against the parent's budget.

    Args:
        workflow: a machine; the path of a notebook, which runs in a kernel of its
            own and results in a dict of what it published; or a function.
        name: what the child's runs are called; by default the machine's name, the
            notebook's path, or the function's name.
        tags: tags for the child, over those of its parent.
        **params: the child's parameters, JSON-able.

    Raises:
        ChildFailed: it failed (the resumed parent carries it on), or it was
            cancelled, which is final. The child's own exception is the cause.
        RunCancelled: the parent is to stop; the child was stopped first.
        UsageError: no such workflow, or parameters that JSON cannot hold.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> def clean(day):
        ...     return day.title()
        >>> with nbflow.run("week"):
        ...     [nbflow.child(clean, day=day) for day in ("monday", "tuesday")]
        ['Monday', 'Tuesday']
    """
    face = Blocking()
    try:
        return drive(run_child(face, workflow, name, tags, params))
    finally:
        face.close()
