"""Gates: what is asked, what was decided, and which decision may still come. Pure.

A gate is a step of kind "gate". What it asks (its `Form`) stands in the detail
of its `StepStarted`, put there when it first opens and carried on by every
resume; its deadline is a `Timer` beside it. A decision is an inbox message of
topic "decision" that names the *opening* it is about, so that an answer to a
question that was asked anew meanwhile is refused. `admit` is asked by the
store, under the lock that orders all senders: of two decisions the first wins.

What a gate shows (plots, tables) is the checkpoint of a `StepCursor` that is
appended with its first start, under the name `SHOWN`: a list of exhibits.

When its time is over the owner sends a decision too, by `TIMEOUT`, so that it
goes through the same admission: a person who decided in the last moment was
either first or is refused, and nobody's decision is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from nbflow.core.errors import GateDecided, GatePending, UnknownStep, UsageError
from nbflow.core.history import Execution, History
from nbflow.core.model import Message, Struct
from nbflow.core.states import DECISION, FINAL_RUN_STATES, StepState
from nbflow.core.timers import Timer

#: The kind of step that a gate is.
GATE = "gate"

#: Key of the form in the detail of a gate's start, and of what is shown in the checkpoint of its cursor.
FORM, SHOWN = "gate", "show"

#: Key in the detail of the completed step: the decision as plain data.
DECIDED = "decision"

#: … and in the payload of a message: the sender's boot clock, which nobody can set (`core.timers`).
BOOT = "boot"

#: Who decides, and how, when nobody did in time.
TIMEOUT = "timeout"

#: … and where a condition on figures decides.
QUALITY = "quality"

OnTimeout = Literal["fail", "continue", "reject"]
State = Literal["waiting", "approved", "rejected", "timed_out", "cancelled"]


class Form(Struct, frozen=True):
    """What a gate asks: a question, and options of which the answer selects some.

    `opening` tells this asking from a later one at the same step. With `single`
    exactly one option is to be selected where there are any, else any number.
    """

    name: str
    text: str
    opening: str
    options: tuple[str, ...] = ()
    single: bool = False
    on_timeout: OnTimeout = "fail"


class Decision(Struct, frozen=True):
    """A person's answer to a gate; true if approved.

    `by` names who decided and `at` when (UTC seconds), `via` how it came
    ("notebook", "cli", "python", "dashboard", "timeout", "quality"). `selections`
    are options of the gate, in its order.

    >>> bool(Decision(approved=False, by="ana", at=0.0, feedback="too early"))
    False
    """

    approved: bool
    by: str
    at: float
    feedback: str = ""
    selections: tuple[str, ...] = ()
    via: str = "python"

    def __bool__(self) -> bool:
        return self.approved

    @property
    def word(self) -> Literal["approved", "rejected"]:
        """The decision as one word."""
        return "approved" if self.approved else "rejected"


@dataclass(frozen=True)
class Gate:
    """A gate as its run's history has it: what it asks, until when (UTC seconds), and what became of it."""

    step: str
    form: Form
    opened_at: float
    due_at: float | None
    state: State
    decision: Decision | None
    execution: int


def gates_of(history: History) -> list[Gate]:
    """Return every gate of a run as it stands now, in the order in which they were first opened.

    A decision that was taken into the run counts, also where its step has not gone on yet.
    """
    found = []
    # A copy, made at once: other threads of the run record their steps meanwhile.
    for step, executions in list(history.by_step.items()):
        if _is_gate(executions[-1]):
            found.append(_gate(history, step, executions))
    return found


def _is_gate(last: Execution) -> bool:
    return last.started.step_kind == GATE and FORM in last.started.detail


def _gate(history: History, step: str, executions: list[Execution]) -> Gate:
    last = executions[-1]
    form = msgspec.convert(last.started.detail[FORM], Form)
    same = [each for each in executions if opening_of(each) == form.opening]
    timer = Timer.of(last.started.detail)
    decision = _decision(history, form, last)
    state: State = "waiting"
    if last.state == StepState.TIMED_OUT or (decision is not None and fails(form, decision)):
        state, decision = "timed_out", None
    elif decision is not None:
        state = decision.word
    elif last.forgotten or last.ended is not None or history.state in FINAL_RUN_STATES:
        state = "cancelled"  # one that a dead or interrupted process left is not ended: it still waits
    return Gate(
        step=step,
        form=form,
        opened_at=same[0].started_at,
        due_at=timer.due_at if timer is not None else None,
        state=state,
        decision=decision,
        execution=last.number,
    )


def _decision(history: History, form: Form, last: Execution) -> Decision | None:
    if last.completed is not None and DECIDED in last.completed.detail:
        return msgspec.convert(last.completed.detail[DECIDED], Decision)
    taken = history.decisions.get(form.opening)
    return None if taken is None else decision_of(taken.payload)


def fails(form: Form, decision: Decision) -> bool:
    """Tell whether a decision says that nobody decided in time, where that is a failure."""
    return decision.via == TIMEOUT and form.on_timeout == "fail"


def opening_of(execution: Execution) -> str:
    """Return which asking an execution of a gate belongs to; "" where it says none."""
    return str(execution.started.detail.get(FORM, {}).get("opening", ""))


def decision_of(payload: dict[str, Any]) -> Decision:
    """Return the decision that a message carries."""
    return msgspec.convert(payload[DECIDED], Decision)


def payload_of(gate: Gate, decision: Decision) -> dict[str, Any]:
    """Return the payload of the message that decides a gate."""
    opening = gate.form.opening
    return {"step": gate.step, "name": gate.form.name, "opening": opening, DECIDED: plain_of(decision)}


def plain_of(facts: Form | Decision) -> dict[str, Any]:
    """Return a form or decision as JSON has it, and thus as it comes back from a journal: lists, no tuples."""
    return dict(msgspec.json.decode(msgspec.json.encode(facts)))


def selected(form: Form, selections: Iterable[str], *, approved: bool = True) -> tuple[str, ...]:
    """Return selections in the order of the gate's options, each once.

    Raises:
        UsageError: one is not among the options, or exactly one is wanted; nothing was decided.

    >>> selected(Form("g", "?", "o", options=("web", "mail")), ["mail", "web"])
    ('web', 'mail')
    """
    chosen = list(dict.fromkeys(selections))
    unlisted = [each for each in chosen if each not in form.options]
    listed = ", ".join(map(repr, form.options))
    if unlisted:
        raise UsageError(
            f"Gate {form.name!r} has no option {', '.join(map(repr, unlisted))}; nothing was decided.",
            hint=f"Its options are {listed}." if form.options else "It has no options.",
        )
    if form.single and form.options and approved and len(chosen) != 1:
        raise UsageError(
            f"Gate {form.name!r} wants exactly one option, not {len(chosen)}; nothing was decided.",
            hint=f"Select one of {listed}.",
        )
    return tuple(each for each in form.options if each in chosen)


def find_gate(history: History, name: str) -> Gate:
    """Return the gate of this key or name; of several of one name the one that waits.

    Raises:
        UnknownStep: the run has no such gate, or several wait.
    """
    executions = history.by_step.get(name)
    if executions and _is_gate(executions[-1]):
        return _gate(history, name, executions)
    gates = gates_of(history)
    run = history.opened.run if history.opened is not None else ""
    named = [gate for gate in gates if gate.form.name == name]
    waiting = [gate for gate in named if gate.state == "waiting"]
    if len(waiting or named) == 1:
        return (waiting or named)[0]
    if waiting:
        keys = ", ".join(gate.step for gate in waiting)
        raise UnknownStep(
            f"{len(waiting)} gates {name!r} of run {run} wait.",
            run=run,
            step=name,
            hint=f"Give the key of one: {keys}.",
        )
    if named:
        return named[-1]
    known = ", ".join(dict.fromkeys(gate.form.name for gate in gates)) or "none"
    raise UnknownStep(f"Run {run} has no gate {name!r}.", run=run, step=name, hint=f"Its gates: {known}.")


def admit(history: History, waiting: Iterable[Message], message: Message) -> None:
    """Refuse a decision that comes too late, is about another asking, or selects what is not offered.

    `waiting` are the messages of the inbox that nobody took yet.

    Raises:
        UnknownStep, GateDecided, UsageError: nothing was decided.
    """
    payload = message.payload
    gate = find_gate(history, str(payload.get("step")))
    run = history.opened.run if history.opened is not None else ""
    about: dict[str, Any] = {"run": run, "step": gate.step}
    first = gate.decision
    for other in waiting:
        if first is None and other.topic == DECISION and other.payload.get("opening") == gate.form.opening:
            first = decision_of(other.payload)
    if first is not None and not fails(gate.form, first):
        raise GateDecided(decided_text(gate.form.name, run, first), decision=first, **about)
    if gate.form.opening != payload.get("opening"):
        raise GateDecided(
            f"Gate {gate.form.name!r} of run {run} was asked anew meanwhile; nothing was decided.",
            hint="Look at what it shows now, and decide again.",
            **about,
        )
    decision = decision_of(payload)
    late = first is not None or (decision.via != TIMEOUT and _is_late(history, gate, message))
    if gate.state != "waiting" or late:
        how = "timed out" if late or gate.state == "timed_out" else "was given up"
        raise GateDecided(
            f"Gate {gate.form.name!r} of run {run} {how}; nothing was decided.",
            hint=f"`nbflow retry {run} '{gate.step}'` has it asked anew when the run is resumed.",
            **about,
        )
    if decision.via != TIMEOUT:
        selected(gate.form, decision.selections, approved=decision.approved)


def _is_late(history: History, gate: Gate, message: Message) -> bool:
    """Tell whether a message was sent behind the deadline, by the clock that whoever waits goes by as well."""
    first = next(each for each in history.by_step[gate.step] if opening_of(each) == gate.form.opening)
    timer = Timer.of(first.started.detail)
    boot = message.payload.get(BOOT)
    return timer is not None and timer.left(message.sent_at, (boot[0], boot[1]) if boot else None) <= 0


def decided_text(name: str, run: str, first: Decision) -> str:
    """Return the sentence that shows an earlier decision to whoever decides again."""
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(first.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"Gate {name!r} of run {run} was {first.word} by {first.by} at {at}"
    text += f" ({', '.join(first.selections)})" if first.selections else ""
    text += f": {first.feedback}" if first.feedback else "."
    return f"{text} That is final."


def pending_at(run: str, workflow: str, gate: Gate) -> GatePending:
    """Return what stops the code of a run at a gate that waits."""
    from datetime import UTC, datetime
    from shlex import quote

    form = gate.form
    until = ""
    if gate.due_at is not None:
        until = f" until {datetime.fromtimestamp(gate.due_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return GatePending(
        f"Gate {form.name!r} of run {run} of {workflow} waits for a decision{until}"
        + (f": {form.text}" if form.text else "."),
        run=run,
        step=gate.step,
        name=form.name,
        hint=f"Decide in the dashboard or with `nbflow approve {run} {quote(form.name)}` (or `reject`), "
        "then run this again: it goes on from here.",
    )


def pending_of(error: BaseException) -> GatePending | None:
    """Return the gate that stopped the code which raised this, also out of a group of exceptions; None where none did.

    >>> pending = GatePending("Gate 'g' waits.", run="r", step="gate:g#0", name="g")
    >>> pending_of(BaseExceptionGroup("two tasks", [ValueError(), pending])) is pending, pending_of(ValueError())
    (True, None)
    """
    if isinstance(error, GatePending):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for found in map(pending_of, error.exceptions) if found is not None), None)
    return None
