"""`nbflow.cancel`: ask for a run to stop, from anywhere; and end it here where nobody is left to ask.

Cancel is a word in the run's inbox. The run's owner reads it at its next step
or in its wait, undoes what can be undone, and records the end. A run without a
living owner is ended at once, unless something has to be undone: for that it
takes the run's own code, so it happens when the run is resumed.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Literal

from nbflow.core.errors import LeaseHeld, RunCancelled, RunFinished, UnknownRun, UsageError
from nbflow.core.history import History
from nbflow.core.model import Message, RunInfo
from nbflow.core.saga import compensatable, rollback_of
from nbflow.core.states import CANCEL, FINAL_RUN_STATES, CancelReason, RunState
from nbflow.runtime import active
from nbflow.runtime.runs import Run
from nbflow.runtime.session import Session, this_process
from nbflow.store.protocol import RunQuery, Store

#: "cancelled": the run is over. "requested": its owner, or whoever resumes it, ends it.
Answer = Literal["cancelled", "requested"]

_UNFINISHED = tuple(state for state in RunState if state not in FINAL_RUN_STATES)


def cancel(
    run: Run | str | None = None, reason: str = "", *, store: Store | str | Path | None = None
) -> Answer:
    """Ask for a run to be cancelled, from any process; it is on disk when this returns.

    A running run ends at its next step, or in the wait that it is in: it undoes
    what can be undone, its children stop as well, and cancelled is final. A run
    whose process is gone is ended here and now, unless there is something to
    undo; then the next resume does that and ends it.

    Args:
        run: the run, its id or an unambiguous prefix of it; by default the current one.
        reason: what to say about it, recorded behind the word "user"; or one of the words that
            `errors.RunCancelled.reason` may be ("shutdown", say), alone or with ": " and a note behind it.
        store: a store or its place; that of the current run, else the nearest `.nbflow` folder.

    Returns:
        "cancelled" where the run is over, "requested" where its owner has to end it.

    Raises:
        RunFinished: the run is completed or cancelled already.
        UnknownRun: the store has no such run.
        NoActiveRun: no run was named and there is no current one.

    Example:
        >>> import nbflow
        >>> try:
        ...     with nbflow.run("training") as run:
        ...         answer = nbflow.cancel(run, "the data is wrong")
        ...         nbflow.sleep("1h")
        ... except nbflow.errors.RunCancelled as error:
        ...     answer, error.reason, error.note
        ('requested', 'user', 'the data is wrong')
    """
    if not isinstance(reason, str):
        raise UsageError(f"The reason of a cancel is a text, not {reason!r}.")
    if run is None:
        run = Run(active.required())
    place, key = addressed(run, store)
    info = place.run(key)
    answer = cancel_run(place, info, *_why(reason))
    own = active.current()
    if own is not None and own.run == info.run:
        own.recorder.take_messages()  # its very next step stops
    return answer


def _why(reason: str) -> tuple[CancelReason, str]:
    """Return the reason's word and note; what begins with none of the words is a note of the user's.

    >>> _why("shutdown: new kernel"), _why("wrong data")
    ((<CancelReason.SHUTDOWN: 'shutdown'>, 'new kernel'), (<CancelReason.USER: 'user'>, 'wrong data'))
    """
    word, _, note = reason.partition(": ")
    try:
        return CancelReason(word), note
    except ValueError:
        return CancelReason.USER, reason


def addressed(run: Run | str, store: Store | str | Path | None) -> tuple[Store, str]:
    """Return the store of a run and its id or prefix, as callers name them.

    Raises:
        UsageError: `run` is neither a run nor a text.
    """
    given: object = run  # callers are not all type-checked
    if isinstance(given, Run):
        key = given.id
        if store is None:
            return given._session.store, key  # noqa: SLF001 - a run is the public face of its session
    elif isinstance(given, str) and given:
        key = given
    else:
        raise UsageError(f"A run is named by its id or by a beginning of it, not by {run!r}.")
    if store is not None and not isinstance(store, (str, Path)):
        return store, key
    current = active.current()
    if store is None and current is not None:
        return current.store, key
    from nbflow.store.local import process_store

    return process_store(store), key


def sender() -> str:
    """Return who sends a message from this process."""
    owner = this_process()
    return f"{owner.user}@{owner.host}"


def cancel_run(store: Store, info: RunInfo, why: CancelReason, note: str) -> Answer:
    """Ask for a run to be cancelled, and end it here where nobody owns it; `cancel` with everything found out."""
    if info.state not in FINAL_RUN_STATES:
        said = f"{why}: {note}" if note else str(why)
        message = Message(
            id=uuid.uuid4().hex,
            topic=CANCEL,
            sent_at=time.time(),
            sender=sender(),
            payload={"reason": said},
        )
        try:
            store.send(info.run, message)
        except RunFinished:
            raise _finished(store, info) from None
        return _end_here(store, info)
    raise _finished(store, info)


def _finished(store: Store, info: RunInfo) -> RunFinished:
    state = store.run(info.run).state
    return RunFinished(
        f"Run {info.run} of {info.workflow} is {state} already and cannot be cancelled.",
        run=info.run,
        hint="Nothing was changed.",
    )


def _end_here(store: Store, info: RunInfo) -> Answer:
    """Record the end of a run that nobody owns; leave it to its owner where there is one, or to a resume."""
    if info.alive or needs_undoing(History.of(store.entries(info.run))):
        return "requested"
    children = [
        child
        for child in store.runs(RunQuery(states=_UNFINISHED, limit=None))
        if child.parent == info.run and child.run != info.run
    ]
    open_children = False
    for child in children:
        try:
            note = f"run {info.run} is cancelled"
            open_children |= cancel_run(store, child, CancelReason.PARENT, note) == "requested"
        except (RunFinished, UnknownRun):
            continue  # it came to its own end meanwhile
    if open_children:
        return "requested"
    try:
        log = store.attach(info.run, this_process())
    except LeaseHeld:
        return "requested"  # somebody resumed it just now, and reads the message
    except RunFinished:
        return _how_it_ended(store, info)
    session = Session(store, log)
    try:
        if needs_undoing(session.history):
            return "requested"
        try:
            session.check()
        except RunCancelled:
            session.finish(RunState.CANCELLED, reason=session.history.cancelling or str(CancelReason.USER))
            return "cancelled"
        return "requested"
    finally:
        session.close()


def _how_it_ended(store: Store, info: RunInfo) -> Answer:
    """Answer for a run that came to its end between our message and our look."""
    if store.run(info.run).state == RunState.CANCELLED:
        return "cancelled"
    raise _finished(store, info)


def needs_undoing(history: History) -> bool:
    """Tell whether a run has done something that its own code has to undo before it may end."""
    return bool(compensatable(history)) or rollback_of(history).unfinished
