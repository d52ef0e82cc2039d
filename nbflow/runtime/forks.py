"""A new run from an old one: `fork` shares what was done before a step, `retry_step` has a step run again."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

import msgspec

from nbflow.core.errors import LeaseHeld, NbflowError, RunFinished, UnknownStep, UsageError
from nbflow.core.history import Execution, History
from nbflow.core.ids import new_run_id
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    LeafRef,
    RunOpened,
    RunPublished,
    StepCompleted,
    StepForgotten,
)
from nbflow.core.states import COMPENSATE, FINAL_RUN_STATES
from nbflow.runtime import active
from nbflow.runtime.budgets import CHARGED
from nbflow.runtime.runs import Run
from nbflow.runtime.session import clock_of, this_process
from nbflow.runtime.waits.cancelling import addressed
from nbflow.store.protocol import RunLog, Store
from nbflow.values.leaf import Leaf


def fork(run: Run | str, step: str, *, store: Store | str | Path | None = None) -> str:
    """Start a new run that shares every checkpoint that a run had before a step; return its id.

    The new run has the workflow, parameters and tags of the old one. What was
    completed before the step first started is replayed in it, and the step and
    all that comes later run again. The next `nbflow.run`, notebook or machine of
    this workflow takes the fork up, for it is the newest. The old run is not
    touched; it may be finished, or be at work elsewhere.

    Args:
        run: the run to share with, by id or unambiguous prefix.
        step: a step's key, or a name that only one step has.
        store: a store or its place; the current run's by default.

    Raises:
        UnknownRun, UnknownStep: naming what there is.
        UsageError: several steps have that name.
        CorruptLeaf: a recorded value cannot be read; the fork was not made.

    Example:
        >>> import nbflow
        >>> @nbflow.durable(version="1")
        ... def double(x):
        ...     return 2 * x
        >>> with nbflow.run("forked") as first:
        ...     first_result = double(1) + double(2)
        >>> key = nbflow.steps(first)["step"][1]
        >>> fork = nbflow.fork(first, key)
        >>> nbflow.steps(fork)["step"].tolist() == nbflow.steps(first)["step"].tolist()[:1]
        True
    """
    place, source = _found(run, store)
    entries = place.entries(source)
    history = History.of(entries)
    opened = history.opened
    if opened is None:
        raise UnknownStep(f"Run {source} holds nothing to share.", run=source, step=step)
    begin = history.by_step[find_step(history, step)][0].number
    target = new_run_id()
    place.create(
        RunOpened(
            run=target,
            workflow=opened.workflow,
            version=opened.version,
            params=opened.params,
            tags=dict(history.tags),
            workflow_kind=opened.workflow_kind,
            forked=source,
            variant=opened.variant,
            launch=opened.launch,
            deadline=_deadline(place, opened, entries[0].at),
        )
    )
    try:
        log = place.attach(target, this_process())
        try:
            # One append, so that a kill leaves all of what is shared or nothing.
            records = _shared(place, source, history, entries, begin, log)
            if records:
                log.append(*records)
        finally:
            log.release()
    except BaseException:
        with contextlib.suppress(NbflowError):  # what went wrong first matters more than what is left of it
            place.delete(target)
        raise
    return target


def _deadline(store: Store, opened: RunOpened, begun_at: float) -> float | None:
    """Return when the fork is to be over: it may take as long as the run that it shares with, from now on."""
    if opened.deadline is None:
        return None
    return clock_of(store).now() + max(0.0, opened.deadline - begun_at)


def _shared(
    store: Store, source: str, history: History, entries: list[Entry], begin: int, log: RunLog
) -> list[AnyRecord]:
    """Return the records for what was completed or published before record `begin`, its leaves written."""
    before = (entry.record for entry in entries[: begin - 1])
    records: list[AnyRecord] = [record for record in before if isinstance(record, RunPublished)]
    done = [e for e in history.executions.values() if _is_shared(e, begin)]
    for execution in sorted(done, key=lambda e: e.ended_seq):  # as they ended: a machine goes by that order
        completed = execution.completed
        assert completed is not None
        # The effects, and what they cost, are the old run's: the new one neither undoes nor pays for them.
        mine = {key: value for key, value in execution.started.detail.items() if key != COMPENSATE}
        records += (
            msgspec.structs.replace(execution.started, detail=mine),
            _copied(store, source, completed, log),
        )
    return records


def _is_shared(execution: Execution, begin: int) -> bool:
    return execution.completed is not None and not execution.forgotten and execution.ended_seq < begin


def _copied(store: Store, source: str, completed: StepCompleted, log: RunLog) -> StepCompleted:
    """Return the record for the fork, after its leaves are there; a leaf that both have is kept once."""
    refs = [*(completed.checkpoint.leaves if completed.checkpoint else ())]
    refs += completed.state.leaves if completed.state else ()
    if completed.display_leaf is not None:
        refs.append(completed.display_leaf)
    leaves = [Leaf(ref.digest, ref.size, [store.leaf(source, ref)], ref.form) for ref in refs]
    placed = dict(zip((ref.digest for ref in refs), log.put_leaves(leaves), strict=True)) if leaves else {}
    return msgspec.structs.replace(
        completed,
        execution=-1,
        detail={key: value for key, value in completed.detail.items() if key != CHARGED},
        checkpoint=_moved(completed.checkpoint, placed),
        state=_moved(completed.state, placed),
        display_leaf=placed[completed.display_leaf.digest] if completed.display_leaf is not None else None,
    )


def _moved(checkpoint: Checkpoint | None, placed: dict[bytes, LeafRef]) -> Checkpoint | None:
    if checkpoint is None or not checkpoint.leaves:
        return checkpoint
    return msgspec.structs.replace(checkpoint, leaves=tuple(placed[ref.digest] for ref in checkpoint.leaves))


def retry_step(
    run: Run | str, step: str, reason: str = "", *, store: Store | str | Path | None = None
) -> str:
    """Have a step of an unfinished run run again when the run is resumed; return the step's key.

    Whatever state the step is in, its recorded result is not used any more; it
    stays in history. Completed steps around it run again too, because otherwise
    the step would not be reached. Who asked, and why, is recorded.

    Args:
        run: the run, by id or unambiguous prefix; this process's own run is fine.
        step: a step's key, or a name that only one step has.
        reason: why, for those who read the history later.
        store: a store or its place; the current run's by default.

    Raises:
        LeaseHeld: a living process has the run.
        RunFinished: it is completed or cancelled; `nbflow.fork` starts a new run from it.
        UnknownRun, UnknownStep: naming what there is.
        UsageError: several steps have that name.

    Example:
        >>> import nbflow
        >>> @nbflow.durable
        ... def flaky():
        ...     raise ValueError("today it fails")
        >>> try:
        ...     with nbflow.run("retried") as current:
        ...         flaky()
        ... except ValueError:
        ...     key = nbflow.retry_step(current, "flaky", "the service is back")
        >>> key.partition(":")[0]
        'flaky'
    """
    place, name = _found(run, store)
    own = active.current()
    history = own.history if own is not None and own.run == name else History.of(place.entries(name))
    key = find_step(history, step)
    if history.state in FINAL_RUN_STATES:
        raise RunFinished(
            f"Run {name} is {history.state}, so its step {step} cannot run again.",
            run=name,
            step=step,
            hint="`nbflow fork` (nbflow.fork) starts a new run that shares what came before this step.",
        )
    who = this_process()
    said = f"retry by {who.user}" + (f": {reason}" if reason else "")
    records = [StepForgotten(step=each, reason=said) for each in (key, *_around(history, key))]
    if own is not None and own.run == name:
        own.recorder.append(*records)
        return key
    try:
        log = place.attach(name, who)
    except LeaseHeld as error:
        raise LeaseHeld(
            error.message,
            hint="Stop its process first, or ask there: %nbflow forget, or nbflow.retry_step in its notebook.",
            **error.facts,
        ) from None
    try:
        log.append(*records)
    finally:
        log.release()
    return key


def _around(history: History, key: str) -> list[str]:
    """Return the keys of the completed steps around a step, from the inside."""
    around: list[str] = []
    parent = history.by_step[key][-1].started.parent
    while parent is not None and parent in history.by_step and parent not in around:
        executions = history.by_step[parent]
        if any(e.completed is not None and not e.forgotten for e in executions):
            around.append(parent)
        parent = executions[-1].started.parent
    return around


def find_step(history: History, step: str) -> str:
    """Return the key of the step that has this key, or alone has this name (or one that ends with it behind a dot).

    Raises:
        UnknownStep: none has.
        UsageError: several have; the message lists their keys.
    """
    run = history.opened.run if history.opened is not None else ""
    given: object = step  # callers are not all type-checked
    if not isinstance(given, str) or not given:
        raise UsageError(f"A step is named by its key or its name, not by {step!r}.", run=run)
    if step in history.by_step:
        return step
    names = {key: executions[-1].started.name for key, executions in history.by_step.items()}
    keys = [key for key, name in names.items() if name == step]
    keys = keys or [key for key, name in names.items() if name.endswith(f".{step}")]
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise UsageError(
            f"{len(keys)} steps of run {run} are named {step}.",
            run=run,
            step=step,
            hint=f"Give the key of one: {_some(keys)}.",
        )
    near = difflib.get_close_matches(step, [*names, *names.values()], n=3)
    raise UnknownStep(
        f"Run {run} has no step {step}.",
        run=run,
        step=step,
        hint=(f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else "")
        + (f"It has: {_some(list(names))}." if names else "It has none."),
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:10]) + (" …" if len(keys) > 10 else "")


def _found(run: Run | str, store: Store | str | Path | None) -> tuple[Store, str]:
    """Return the store and the whole id of a run; what the current run has recorded so far is on disk.

    Raises:
        UnknownRun: no such run, or an ambiguous prefix.
    """
    place, key = addressed(run, store)
    name = place.run(key).run
    own = active.current()
    if own is not None and own.run == name:
        own.log.flush()
    return place, name
