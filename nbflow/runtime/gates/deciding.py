"""Deciding about gates, from any process: `nbflow.approve`, `nbflow.reject`, and who waits for whom (`nbflow.gates`).

A decision is checked, put into the run's inbox under the lock that orders all
senders, and is final from then on, whether anybody runs the run or not.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from nbflow.core.clock import Clock
from nbflow.core.errors import NbflowError, RunFinished, UnknownRun, UsageError
from nbflow.core.gates import (
    BOOT,
    GATE,
    QUALITY,
    TIMEOUT,
    Decision,
    Gate,
    State,
    admit,
    decision_of,
    find_gate,
    gates_of,
    payload_of,
    selected,
)
from nbflow.core.history import History
from nbflow.core.model import Message, RunInfo
from nbflow.core.states import DECISION, FINAL_RUN_STATES, RunState
from nbflow.runtime import active
from nbflow.runtime.runs import Run
from nbflow.runtime.session import clock_of
from nbflow.runtime.waits.cancelling import addressed, sender
from nbflow.store.protocol import RunQuery, Store

if TYPE_CHECKING:
    import pandas as pd

#: As a gate is shown: "sent" is decided, but nobody has taken the decision into the run yet.
SENT = "sent"

_UNFINISHED = tuple(str(state) for state in RunState if state not in FINAL_RUN_STATES)
_COLUMNS = [
    "run",
    "workflow",
    "gate",
    "state",
    "opened",
    "due",
    "text",
    "options",
    "decision",
    "by",
    "at",
    "feedback",
    "selections",
    "step",
]


def decide(
    store: Store,
    run: str,
    gate: str,
    approved: bool,
    *,
    feedback: str = "",
    selections: Iterable[str] = (),
    by: str | None = None,
    via: str = "python",
    opening: str | None = None,
) -> Decision:
    """Decide about a gate of a run (ids or beginnings of them; the gate's name or key), and return the decision.

    It is on disk when this returns. `opening` is the asking that the person saw:
    where it was asked anew meanwhile, the decision is refused.

    Raises:
        GateDecided: somebody was first (the message shows it), the time is over, or it was asked anew.
        UsageError: a selection is not among the options.
        UnknownRun, UnknownStep: no such run or gate.
        RunFinished: the run is over, and its gate was never decided.
    """
    if _text("way", via) in (
        TIMEOUT,
        QUALITY,
    ):  # what only the run itself may say: it is admitted late, and unasked
        raise UsageError(f"Nobody decides by {via!r} but the run itself; nothing was decided.")
    info = store.run(run)
    entries, waiting, _ = store.tail(info.run)
    history = History.of(entries)
    found = find_gate(history, gate)
    clock = _clock(store, info.run)
    now, boot = clock.now(), clock.boot()
    decision = Decision(
        approved=bool(approved),
        by=_text("by", by) if by else sender(),
        at=now,
        feedback=_text("feedback", feedback),
        selections=tuple(selections),
        via=via,
    )
    payload = {**payload_of(found, decision), BOOT: list(boot) if boot else None}
    if opening is not None:
        payload["opening"] = opening
    message = Message(id=uuid.uuid4().hex, topic=DECISION, sent_at=now, sender=sender(), payload=payload)
    admit(history, waiting, message)  # a clear answer without the lock, also about a run that is over
    chosen = selected(found.form, decision.selections, approved=decision.approved)
    decision = msgspec.structs.replace(decision, selections=chosen)
    message.payload.update(payload_of(found, decision), opening=payload["opening"])
    try:
        store.send(info.run, message)
    except RunFinished:
        raise RunFinished(
            f"Run {info.run} of {info.workflow} came to its end meanwhile; nothing was decided.",
            run=info.run,
            step=found.step,
        ) from None
    return decision


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"The {what} of a decision is a text, not {value!r}; nothing was decided.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The {what} of a decision holds half a character; nothing was decided.") from None
    return value


def _clock(store: Store, run: str) -> Clock:
    own = active.current()
    return own.clock if own is not None and own.run == run else clock_of(store)


def _select(select: object) -> tuple[str, ...]:
    """Return selections as they are given: one text, or several."""
    if isinstance(select, str):
        return (select,)
    if not isinstance(select, Iterable):
        raise UsageError(f"select is a text or a list of texts, not {select!r}; nothing was decided.")
    found = tuple(select)
    for each in found:
        _text("selection", each)
    return found


def approve(
    run: Run | str,
    gate: str,
    feedback: str = "",
    *,
    select: str | Iterable[str] = (),
    by: str | None = None,
    store: Store | str | Path | None = None,
) -> Decision:
    """Approve what a gate asks, from any process; it is on disk and final when this returns.

    The run may be waiting in place, may be stopped, or its process may be gone:
    it takes the decision at once, or when it is resumed.

    Args:
        run: the run, its id or an unambiguous prefix of it.
        gate: the gate's name, or its step's key where several of that name wait.
        feedback: what to say about it; part of the step's result.
        select: which of the gate's options.
        by: who decides; user@host of this process by default.
        store: a store or its place; that of the current run, else the nearest `.nbflow` folder.

    Raises:
        GateDecided: it was decided already (the message shows how), or its time is over.
        UsageError: a selection is not among the options.
        UnknownRun, UnknownStep: no such run or gate; the message says which there are.
        RunFinished: the run is over.

    Example:
        >>> import nbflow
        >>> def report():
        ...     with nbflow.run("weekly"):
        ...         return nbflow.gate("publish").feedback
        >>> try:
        ...     report()
        ... except nbflow.errors.GatePending as pending:
        ...     decision = nbflow.approve(pending.run, "publish", "looks good", by="ana")
        >>> report()
        'looks good'
    """
    place, key = addressed(run, store)
    return decide(place, key, gate, True, feedback=feedback, selections=_select(select), by=by)


def reject(
    run: Run | str,
    gate: str,
    feedback: str = "",
    *,
    select: str | Iterable[str] = (),
    by: str | None = None,
    store: Store | str | Path | None = None,
) -> Decision:
    """Reject what a gate asks, from any process; on disk and final when this returns.

    Arguments and errors are those of `nbflow.approve`.

    Example:
        >>> import nbflow
        >>> def report():
        ...     with nbflow.run("monthly"):
        ...         nbflow.gate("publish")
        >>> try:
        ...     report()
        ... except nbflow.errors.GatePending as pending:
        ...     decision = nbflow.reject(pending.run, "publish", "the axis has no unit", by="ana")
        >>> try:
        ...     report()
        ... except nbflow.errors.GateRejected as rejected:
        ...     rejected.decision.feedback
        'the axis has no unit'
    """
    place, key = addressed(run, store)
    return decide(place, key, gate, False, feedback=feedback, selections=_select(select), by=by)


def shown_state(gate: Gate, waiting: Iterable[Message], now: float) -> tuple[str, Decision | None]:
    """Return the state of a gate as it is shown, with its decision: what waits in the inbox counts, and the clock."""
    if gate.state != "waiting":
        return gate.state, gate.decision
    for message in waiting:
        if message.topic == DECISION and message.payload.get("opening") == gate.form.opening:
            return SENT, decision_of(message.payload)
    return ("timed_out" if gate.due_at is not None and now >= gate.due_at else "waiting"), None


def pending(store: Store) -> list[tuple[RunInfo, Gate]]:
    """Return the gates of all runs that a person may decide about now, the longest open first."""
    rows = [(info, gate) for info, gate, state, _ in _all(store, _UNFINISHED, None) if state == "waiting"]
    return sorted(rows, key=lambda row: row[1].opened_at)


def _all(
    store: Store, states: tuple[str, ...], workflow: str | None
) -> Iterator[tuple[RunInfo, Gate, str, Decision | None]]:
    """Go through the gates of runs, those of the newest run first; each costs a look into its run."""
    found = store.runs(RunQuery(states=states, workflow=workflow, limit=None))
    if any(info.state in FINAL_RUN_STATES for info in found):
        asked = _runs_with_gates(store)
        found = [info for info in found if asked is None or info.run in asked]
    for info in found:
        try:
            entries, waiting, _ = store.tail(info.run)
            gates = gates_of(History.of(entries))
        except UnknownRun:
            continue  # deleted meanwhile
        except NbflowError:
            if info.state == "corrupt":
                continue  # listed as such; it must not hide the gates of others
            raise
        now = _clock(store, info.run).now()
        for gate in gates:
            yield info, gate, *shown_state(gate, waiting, now)


def _runs_with_gates(store: Store) -> set[str] | None:
    """Return the runs that ever came to a gate, by one query; None where the store cannot be asked that."""
    try:
        return set(store.sql(f"SELECT DISTINCT run FROM steps WHERE kind = '{GATE}'")["run"])
    except NbflowError:  # without a database, or with one that somebody else has open
        return None


def gates(
    *,
    state: str | None = "waiting",
    workflow: str | None = None,
    limit: int | None = 100,
    store: Store | str | Path | None = None,
) -> pd.DataFrame:
    """List gates as a table: by default those that wait for somebody, the longest open first.

    Columns: run, workflow, gate (its name), state, opened, due, text, options,
    decision ("approved", "rejected" or ""), by, at, feedback, selections, step (its key).
    Times are UTC.

    Args:
        state: "waiting", "sent" (decided, and not yet taken into the run), "approved",
            "rejected", "timed_out" or "cancelled"; None lists all, of finished runs too.
        workflow: only runs of this workflow; may hold `*`.
        limit: how many, those of the newest runs; None for all. Finished runs cost some 10 ms each.
        store: a store or its place; that of the current run, else the nearest `.nbflow` folder.

    Raises:
        UsageError: no such state.

    >>> import nbflow
    >>> nbflow.gates(workflow="nothing").empty
    True
    """
    import pandas as pd

    known = (*get_args(State), SENT)
    if state is not None and state not in known:
        raise UsageError(f"state is one of {', '.join(map(repr, known))} or None, not {state!r}.")
    place = _place(store)
    states = _UNFINISHED if state in ("waiting", SENT) else ()
    wanted = (row for row in _all(place, states, workflow) if state is None or row[2] == state)
    found = list(itertools.islice(wanted, limit))
    rows = [
        {
            "run": info.run,
            "workflow": info.workflow,
            "gate": gate.form.name,
            "state": shown,
            "opened": pd.Timestamp(gate.opened_at, unit="s", tz="UTC"),
            "due": None if gate.due_at is None else pd.Timestamp(gate.due_at, unit="s", tz="UTC"),
            "text": gate.form.text,
            "options": list(gate.form.options),
            "decision": decision.word if decision is not None else "",
            "by": decision.by if decision is not None else "",
            "at": None if decision is None else pd.Timestamp(decision.at, unit="s", tz="UTC"),
            "feedback": decision.feedback if decision is not None else "",
            "selections": list(decision.selections) if decision is not None else [],
            "step": gate.step,
        }
        for info, gate, shown, decision in sorted(found, key=lambda row: row[1].opened_at)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _place(store: Store | str | Path | None) -> Store:
    current = active.current()
    if store is None and current is not None:
        return current.store
    if store is not None and not isinstance(store, (str, Path)):
        return store
    from nbflow.store.local import process_store

    return process_store(store)
