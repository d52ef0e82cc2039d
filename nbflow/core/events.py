"""What observers are told: journal entries turned into events. Pure, so that what is told can be tested without a run.

One entry makes one event or several: the end of a state's step is an event for
`on_step`, one for `on_state`, and one for `on_checkpoint` if it has outputs.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from nbflow.core.history import History
from nbflow.core.mailbox import SIGNAL
from nbflow.core.model import (
    Entry,
    ErrorInfo,
    MessageTaken,
    RunAttached,
    RunChanged,
    RunCharged,
    RunOpened,
    RunPublished,
    RunTagged,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
    Struct,
    execution_of,
)
from nbflow.core.states import CANCEL, DECISION, WAITING_KINDS, RunState, StepState

#: Every callback that an observer may have, with what it is told.
CALLBACKS: dict[str, str] = {
    "on_run": "A run was opened, attached, or went to another state.",
    "on_state": "A state of a machine was entered, or ended.",
    "on_step": "A step of any kind started, ended, or was forgotten so that it runs again.",
    "on_retry": "An attempt failed and another is due at `detail['due_at']`.",
    "on_checkpoint": "A step completed with outputs; `detail['outputs']` maps their names to their types.",
    "on_cursor": "A stepped body recorded a point to continue from; `detail['number']` counts them from 0.",
    "on_resume": "A run that had been attached before was attached again; `attempt` is 2 or more.",
    "on_gate": "A gate opened, ended, or got a decision.",
    "on_signal": "A signal came (`state` is received), or a wait for one started or ended.",
    "on_publish": "A named value was published: `name`, `detail['value']`.",
    "on_tag": "Tags were set: `detail`.",
    "on_charge": "Something was spent: `detail['source']`, `detail['amounts']`.",
    "on_compensation": "A compensation started or ended.",
    "on_cancel": "The run was asked to stop (`state` is asked), or was cancelled; `detail['reason']`.",
    "on_item": "An item of a fan-out started or ended.",
    "on_child": "A child run was started, or ended.",
}

#: Kinds of steps that have a callback of their own besides `on_step`.
_OF_KIND = {
    "state": "on_state",
    "gate": "on_gate",
    "signal": "on_signal",
    "compensation": "on_compensation",
    "item": "on_item",
    "child": "on_child",
}


class Event(Struct, frozen=True):
    """Something that happened in a run and is committed.

    `callback` is the method that is told, `seq` the journal record that says so
    and `at` its time (UTC seconds). For steps: `step` is the key, `name` what
    people call it, `kind` its kind, `parent` the key of the enclosing step and
    `execution` the seq at which this execution started, `began` its time. `state`
    is where the run or step now is. `seconds` is how long the last attempt took.
    `detail` holds what only this kind of event has, and `parent_run` and `parent_step`
    say who started this run.
    """

    callback: str
    run: str
    workflow: str
    seq: int
    at: float
    state: str = ""
    step: str = ""
    name: str = ""
    kind: str = ""
    attempt: int = 0
    execution: int = 0
    began: float = 0.0
    seconds: float | None = None
    parent: str | None = None
    parent_run: str | None = None
    parent_step: str | None = None
    error: ErrorInfo | None = None
    detail: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own


def events_of(
    entry: Entry, history: History, wanted: Container[str] = frozenset(CALLBACKS)
) -> tuple[Event, ...]:
    """Return the events of an entry, in the order in which they are told.

    `history` is the run's, which has taken the entry in already and may know more.
    Events for other callbacks than those `wanted` may be left out, to save their making.

    >>> history = History()
    >>> entries = [Entry(1, 0.0, RunOpened(run="r", workflow="etl")), Entry(2, 1.0, RunTagged(tags={"team": "blue"}))]
    >>> for entry in entries:
    ...     history.add(entry)
    >>> [(event.callback, event.detail) for event in events_of(entries[1], history)]
    [('on_tag', {'team': 'blue'})]
    """
    record = entry.record
    if isinstance(record, StepStarted | StepRetried | StepCursor | StepCompleted | StepEnded | StepForgotten):
        return _of_step(entry, history, wanted)
    if isinstance(record, RunChanged):
        facts: dict[str, Any] = {"state": str(record.state), "error": record.error}
        facts["detail"] = {"reason": record.reason} if record.reason else {}
        told = [_event("on_run", entry, history, attempt=_attempt(history), **facts)]
        if record.state == RunState.CANCELLED:
            told.append(_event("on_cancel", entry, history, **facts))
        return tuple(told)
    if isinstance(record, RunOpened):
        detail: dict[str, Any] = {
            "kind": record.workflow_kind,
            "version": record.version,
            "params": record.params,
            "tags": record.tags,
            **({"forked": record.forked} if record.forked else {}),
        }
        return (_event("on_run", entry, history, state=str(RunState.PENDING), detail=detail),)
    if isinstance(record, RunAttached):
        owner: dict[str, Any] = {
            "host": record.owner.host,
            "pid": record.owner.pid,
            "stolen": record.stolen,
            "generation": record.generation,
        }
        facts = {"state": str(RunState.RUNNING), "attempt": record.attempt, "detail": owner}
        again = ("on_resume",) if record.attempt > 1 else ()
        return tuple(_event(callback, entry, history, **facts) for callback in ("on_run", *again))
    if isinstance(record, MessageTaken):
        return _of_message(entry, record, history)
    if isinstance(record, RunTagged):
        return (_event("on_tag", entry, history, detail=dict(record.tags)),)
    if isinstance(record, RunPublished):
        return (_event("on_publish", entry, history, name=record.name, detail={"value": record.value}),)
    assert isinstance(record, RunCharged)
    started = history.latest(record.step)
    return (
        _event(
            "on_charge",
            entry,
            history,
            step=record.step,
            name=started.started.name if started else "",
            kind=started.started.step_kind if started else "",
            attempt=record.attempt,
            detail={"source": record.source, "amounts": dict(record.amounts)},
        ),
    )


def _event(callback: str, entry: Entry, history: History, **facts: Any) -> Event:
    opened = history.opened
    return Event(
        callback=callback,
        run=opened.run if opened else "",
        workflow=opened.workflow if opened else "",
        parent_run=opened.parent if opened else None,
        parent_step=opened.parent_step if opened else None,
        seq=entry.seq,
        at=entry.at,
        **facts,
    )


def _attempt(history: History) -> int:
    return history.attached.attempt if history.attached else 0


def _of_step(entry: Entry, history: History, wanted: Container[str]) -> tuple[Event, ...]:
    record = entry.record
    if isinstance(record, StepForgotten):
        latest = history.latest(record.step)
        facts: dict[str, Any] = {
            "step": record.step,
            "state": "forgotten",
            "detail": {"reason": record.reason},
        }
        if latest is not None:
            facts |= {"name": latest.started.name, "kind": latest.started.step_kind}
        return (_event("on_step", entry, history, **facts),)
    assert isinstance(record, StepStarted | StepRetried | StepCursor | StepCompleted | StepEnded)
    execution = history.executions[entry.seq if isinstance(record, StepStarted) else execution_of(entry)]
    started = execution.started
    callbacks = [callback for callback in _callbacks(record, started.step_kind) if callback in wanted]
    if not callbacks:
        return ()
    facts = {
        "step": started.step,
        "name": started.name,
        "kind": started.step_kind,
        "parent": started.parent,
        "execution": execution.number,
        "began": execution.started_at,
        "attempt": record.attempt if not isinstance(record, StepCursor) else started.attempt,
    }
    if isinstance(record, StepCompleted | StepEnded):
        facts["state"] = "completed" if isinstance(record, StepCompleted) else str(record.state)
        facts["seconds"] = record.seconds
    else:
        facts["state"] = str(StepState.WAITING if started.step_kind in WAITING_KINDS else StepState.RUNNING)
    if isinstance(record, StepRetried | StepEnded):
        facts["error"] = record.error
    return tuple(
        _event(callback, entry, history, **facts, detail=_detail(callback, record)) for callback in callbacks
    )


_StepRecord = StepStarted | StepRetried | StepCursor | StepCompleted | StepEnded


def _callbacks(record: _StepRecord, kind: str) -> tuple[str, ...]:
    if isinstance(record, StepRetried):
        return ("on_retry",)
    if isinstance(record, StepCursor):
        return ("on_cursor",)
    callbacks = ("on_step", _OF_KIND[kind]) if kind in _OF_KIND else ("on_step",)
    if isinstance(record, StepCompleted) and record.checkpoint is not None and record.checkpoint.outputs:
        return (*callbacks, "on_checkpoint")
    return callbacks


def _detail(callback: str, record: _StepRecord) -> dict[str, Any]:
    if isinstance(record, StepRetried):
        return {"due_at": record.due_at}
    if isinstance(record, StepCursor):
        return {"number": record.number}
    if isinstance(record, StepEnded):
        return {}
    if callback == "on_checkpoint" and isinstance(record, StepCompleted) and record.checkpoint is not None:
        outputs = record.checkpoint.outputs
        return {
            "outputs": {output.name: output.type for output in outputs},
            "bytes": sum(output.size for output in outputs),
        }
    return record.detail


def _of_message(entry: Entry, record: MessageTaken, history: History) -> tuple[Event, ...]:
    """Tell of a message that became part of the run; other topics are nobody's callback."""
    payload = record.payload
    detail = {**payload, "sender": record.sender, "sent_at": record.sent_at}
    if record.topic == CANCEL:
        return (_event("on_cancel", entry, history, state="asked", detail=detail),)
    if record.topic == SIGNAL:
        name = str(payload.get("name", ""))
        return (_event("on_signal", entry, history, state="received", name=name, detail=detail),)
    if record.topic == DECISION:
        gate = str(payload.get("step", ""))
        name = str(payload.get("name", ""))
        return (_event("on_gate", entry, history, state="decided", step=gate, name=name, detail=detail),)
    return ()
