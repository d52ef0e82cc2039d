"""`nbflow.gate`: ask a person, stop or wait until somebody decides, and go on with the decision.

A gate is a wait (`waits.pending`) that ends with a decision. The question, what
is shown and the deadline are recorded when it first opens; whoever resumes the
run finds all three as they were. A decision is taken out of the inbox into the
journal and completes the step in one record, once.
"""

from __future__ import annotations

import contextlib
import inspect
import shlex
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec

from nbflow.core.errors import GateDecided, GateRejected, GateTimedOut, UsageError
from nbflow.core.gates import (
    DECIDED,
    FORM,
    GATE,
    SHOWN,
    TIMEOUT,
    Decision,
    Form,
    OnTimeout,
    decision_of,
    fails,
    find_gate,
    payload_of,
    pending_at,
    plain_of,
)
from nbflow.core.history import Execution
from nbflow.core.lengths import length
from nbflow.core.model import AnyRecord, Message, RunChanged, StepCursor
from nbflow.core.states import DECISION, RunState, StepState
from nbflow.core.timers import Timer
from nbflow.runtime import modes
from nbflow.runtime.gates import ahead, exhibits, waiting
from nbflow.runtime.trying import checkpoint
from nbflow.runtime.verbs import verb
from nbflow.runtime.waits.cancelling import sender
from nbflow.runtime.waits.pending import Wait
from nbflow.runtime.waits.waiting import wait_until, wait_until_async

#: What becomes of a rejection: an error, the decision itself, or what a function makes of it.
OnReject = Literal["raise", "return"] | Callable[[Decision], Any]

#: The name under which a decision is recorded.
RESULT = "return"


@dataclass(frozen=True)
class Question:
    """What is asked, checked. `timeout` is in seconds; `facts` are recorded beside the form.

    `work` tells questions of one name apart that one decision must not answer both
    (the figures of a quality gate, say).

    Raises:
        UsageError: an option makes no sense; nothing is recorded.
    """

    name: str
    text: str = ""
    options: Iterable[str] = ()
    single: bool = False
    timeout: float | str | timedelta | None = None
    on_timeout: OnTimeout = "fail"
    work: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name: object = self.name  # callers are not all type-checked
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UsageError(f"The name of a gate is a printable text that is not empty, not {name!r}.")
        text: object = self.text
        if not isinstance(text, str):
            raise UsageError(f"Gate {name!r}: what it asks is a text, not {text!r}.")
        options = _texts(name, self.options)
        if self.single and not options:
            raise UsageError(
                f"Gate {name!r} wants a single option and offers none.", hint="Give options=[…]."
            )
        if self.on_timeout not in get_args(OnTimeout):
            known = ", ".join(map(repr, get_args(OnTimeout)))
            raise UsageError(f"Gate {name!r}: on_timeout is one of {known}, not {self.on_timeout!r}.")
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "timeout", length(self.timeout, "timeout"))

    def form(self) -> Form:
        """Return the question as a new opening."""
        return Form(
            self.name,
            self.text,
            uuid.uuid4().hex,
            tuple(self.options),
            single=bool(self.single),
            on_timeout=self.on_timeout,
        )


def _texts(name: str, options: object) -> tuple[str, ...]:
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise UsageError(f"Gate {name!r}: options is a list of texts, not {options!r}.")
    found = tuple(options)
    for option in found:
        if not isinstance(option, str) or not option.strip() or not option.isprintable():
            raise UsageError(f"Gate {name!r}: an option is a printable text, not {option!r}.")
    if len(set(found)) < len(found):
        raise UsageError(f"Gate {name!r}: an option is listed twice: {', '.join(map(repr, found))}.")
    return found


class Asking:
    """One visit to a gate, from finding its place to its decision; what all faces share."""

    def __init__(self, question: Question, show: object = (), *, wait: bool = False) -> None:
        self.question = question
        self.show = show
        self.waits = wait
        name = question.name
        self.wait = Wait(GATE, name, f"{GATE}:{name}", work=question.work, lasting=True)
        self.session = self.wait.session

    @property
    def first(self) -> bool:
        """Whether nobody was asked this before, so that what is to be shown is needed."""
        return self.wait.begun is None

    @property
    def form(self) -> Form:
        """What is asked, as it was recorded when the gate first opened."""
        begun = self.wait.begun
        assert begun is not None, "a gate that opened has begun"
        return msgspec.convert(begun.started.detail[FORM], Form)

    # --- asking -----------------------------------------------------------------------------------------------

    def ask(self) -> Decision:
        """Ask, and return the decision.

        Raises:
            GatePending: nobody has decided, and this gate does not wait in place.
            GateTimedOut: nobody decided in time.
            RunCancelled: the run is to stop.
        """
        with self.wait as wait:
            while (end := self._over()) is None:  # more than once where it is forgotten while it waits
                timer, detail, along = self.opening()
                wait.open(timer, detail=detail, along=along)
                if self._has_to_wait() and not wait_until(self.session, wait.due, self.take):
                    self._expire()
            return self.again(end)

    async def ask_async(self) -> Decision:
        """Do as `ask` without blocking the event loop."""
        with self.wait as wait:
            while (end := self._over()) is None:
                timer, detail, along = self.opening()
                await wait.open_async(timer, detail=detail, along=along)
                if self._has_to_wait() and not await wait_until_async(self.session, wait.due, self.take):
                    self._expire()
            return self.again(end)

    def _over(self) -> Execution | None:
        if modes.current() == "evict":
            self.session.recorder.reread()
        return self.wait.over()

    def opening(self) -> tuple[Timer | None, dict[str, Any], tuple[AnyRecord, ...]]:
        """Return what is recorded when a gate first opens: deadline, form, and what it shows."""
        if not self.first:
            return None, {}, ()
        clock, limit = self.session.clock, self.question.timeout
        assert limit is None or isinstance(limit, float)
        timer = None if limit is None else Timer.after(limit, clock.now(), clock.boot())
        detail = {FORM: plain_of(self.question.form()), **self.question.facts}
        shown = exhibits.encode(self.show)
        if not shown:
            return timer, detail, ()
        point = checkpoint(self.session, {SHOWN: shown})
        cursor = StepCursor(execution=-1, step=self.wait.spec.step, number=0, checkpoint=point)
        return timer, detail, (cursor,)

    def _has_to_wait(self) -> bool:
        """Look for a decision that has come already, and at the clock; tell whether to wait in place.

        Raises:
            GatePending: there is nothing to do but to stop.
        """
        self.session.check()
        if self.take():
            return False
        if ahead.approved(self.session, self.wait.spec.step, self.form) and self.take():
            return False
        due = self.wait.due()
        if due is not None and round(due - self.session.clock.now(), 6) <= 0:
            self._expire()
            return False
        self.session.waits()
        if not self.waits:
            session = self.session
            raise pending_at(session.run, session.workflow, find_gate(session.history, self.wait.spec.step))
        waiting.shown(self.session, self.wait.spec.step, waits=True)
        return True

    # --- deciding ---------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Complete the step with the decision that was taken into the run; False where it has to wait for one.

        One thread at a time: a decision is consumed once, in one record. A gate that
        is forgotten while it waits does not wait any more: it is asked anew.
        """
        with self.session.consuming:
            if self.wait.over() is not None or self.wait.begun is None:
                return True
            taken = self.session.history.decisions.get(self.form.opening)
            if taken is None:
                return False
            decision = decision_of(taken.payload)
            plain = plain_of(decision)
            end: AnyRecord
            if fails(self.form, decision):
                end = self.wait.end(StepState.TIMED_OUT, self._timed_out())
            else:
                end = self.wait.completion({RESULT: plain}, **{DECIDED: plain})
            running = (RunChanged(state=RunState.RUNNING),)
            try:
                self.session.recorder.append(
                    end, *(running if self.session.history.state is RunState.WAITING else ())
                )
            except Exception:
                self.session.recorder.settle()
                raise
        self.session.goes_on()  # those that started this run
        return True

    def _expire(self) -> None:
        """End the gate because its time is over, unless somebody decided at the last moment.

        Through the inbox: the lock that orders all senders orders this one, too.
        """
        session, form = self.session, self.form
        now = session.clock.now()
        decision = Decision(approved=form.on_timeout == "continue", by=TIMEOUT, at=now, via=TIMEOUT)
        gate = find_gate(session.history, self.wait.spec.step)
        message = Message(
            id=uuid.uuid4().hex,
            topic=DECISION,
            sent_at=now,
            sender=sender(),
            payload=payload_of(gate, decision),
        )
        with contextlib.suppress(GateDecided):  # somebody was first, and that counts
            session.store.send(session.run, message)
        session.recorder.take_messages()
        if not self.take():
            raise AssertionError("a gate whose time is over has a decision")

    # --- the outcome ------------------------------------------------------------------------------------------

    def again(self, execution: Execution) -> Decision:
        """Return or raise how this gate ended, now or in an earlier attempt."""
        if execution.completed is None:
            raise self._timed_out()
        return msgspec.convert(execution.completed.detail[DECIDED], Decision)

    def _timed_out(self) -> GateTimedOut:
        session, name, step = self.session, self.question.name, self.wait.spec.step
        last = session.history.latest(step)
        timer = Timer.of(last.started.detail) if last is not None else None
        seconds = timer.seconds if timer is not None else None
        return GateTimedOut(
            f"Run {session.run} of {session.workflow}: "
            f"nobody decided about gate {name!r} within {seconds or 0:g} s.",
            run=session.run,
            step=step,
            name=name,
            timeout=seconds,
            hint=f"That is final. To have it asked anew: nbflow forget {session.run} {shlex.quote(step)}.",
        )

    def rejected(self, decision: Decision) -> GateRejected:
        """Return the error that says so."""
        session, name, step = self.session, self.question.name, self.wait.spec.step
        why = f": {decision.feedback.rstrip('.')}." if decision.feedback else "."
        return GateRejected(
            f"Gate {name!r} of run {session.run} of {session.workflow} was rejected by {decision.by}{why}",
            run=session.run,
            step=step,
            name=name,
            decision=decision,
            hint=f"That is final. To have it asked anew: nbflow forget {session.run} {shlex.quote(step)}.",
        )


def check_on_reject(name: str, on_reject: object) -> None:
    """Refuse what no rejection can be turned into.

    Raises:
        UsageError: it is neither "raise" nor "return" nor a function.
    """
    if on_reject not in ("raise", "return") and not callable(on_reject):
        raise UsageError(
            f'Gate {name!r}: on_reject is "raise", "return" or a function of the decision, not {on_reject!r}.'
        )


def answered(asking: Asking, decision: Decision, on_reject: OnReject) -> Any:
    """Return what a gate returns for a decision; what has to be awaited is for the caller to await.

    Raises:
        GateRejected: it is a rejection, and nothing else is wanted of one.
    """
    if decision.approved or on_reject == "return":
        return decision
    if callable(on_reject):
        return on_reject(decision)
    raise asking.rejected(decision)


async def answered_async(asking: Asking, decision: Decision, on_reject: OnReject) -> Any:
    """Do as `answered`, and await what is to be awaited."""
    result = answered(asking, decision, on_reject)
    return await result if inspect.isawaitable(result) else result


async def agate(
    name: str,
    text: str = "",
    *,
    options: Iterable[str] = (),
    show: object = (),
    timeout: float | str | timedelta | None = None,
    on_timeout: OnTimeout = "fail",
    wait: bool = False,
    single: bool = False,
    on_reject: OnReject = "raise",
) -> Any:
    """Do as `nbflow.gate` in async code: `decision = await nbflow.agate("publish", wait=True)`.

    Waiting does not block the event loop; a function given as `on_reject` may be async.

    Raises:
        GatePending, GateRejected, GateTimedOut, RunCancelled, UsageError, NoActiveRun: as `nbflow.gate`.

    Example:
        >>> import asyncio, nbflow
        >>> async def main(run):
        ...     asking = asyncio.create_task(nbflow.agate("publish", "Publish?", wait=True))
        ...     while nbflow.gates().empty:
        ...         await asyncio.sleep(0.01)
        ...     nbflow.approve(run, "publish", "go ahead", by="ana")
        ...     return await asking
        >>> with nbflow.run("report") as run:
        ...     asyncio.run(main(run)).feedback
        'go ahead'
    """
    question = Question(name, text, options, single, timeout, on_timeout)
    check_on_reject(name, on_reject)
    asking = Asking(question, show, wait=wait)
    decision = await asking.ask_async()
    waiting.shown(asking.session, asking.wait.spec.step, waits=False)
    return await answered_async(asking, decision, on_reject)


async def _gate_aio(
    name: str,
    text: str = "",
    *,
    options: Iterable[str] = (),
    show: object = (),
    timeout: float | str | timedelta | None = None,
    on_timeout: OnTimeout = "fail",
    wait: bool = False,
    single: bool = False,
    on_reject: OnReject = "raise",
) -> Any:
    return await agate(
        name,
        text,
        options=options,
        show=show,
        timeout=timeout,
        on_timeout=on_timeout,
        wait=wait,
        single=single,
        on_reject=on_reject,
    )


@verb(_gate_aio)
def gate(
    name: str,
    text: str = "",
    *,
    options: Iterable[str] = (),
    show: object = (),
    timeout: float | str | timedelta | None = None,
    on_timeout: OnTimeout = "fail",
    wait: bool = False,
    single: bool = False,
    on_reject: OnReject = "raise",
) -> Any:
    """Stop here until somebody approves, and return the decision; in async code `await nbflow.agate(...)`.

    The gate is a step of the run. Whoever may write to the store decides, from
    anywhere: the dashboard, `nbflow approve` in a terminal, `nbflow.approve` in
    another notebook, also while the run's process is gone. The first decision
    counts and is final. A resumed run gets the same one again.

    Nobody has decided: the run stops with `GatePending`, which is no failure.
    Nothing is undone or retried, and what is run again comes back to this gate.
    With `wait` it stays here instead until the decision comes.

    Args:
        name: what the gate is called.
        text: the question, in a sentence.
        options: what may be selected with the decision; `single` wants exactly one for an approval.
        show: what to look at, one object or a list: figures, frames, images, texts,
            dicts. Small pictures of them are recorded when the gate opens.
        timeout: seconds, a text such as "2d", or a `timedelta`, from the first opening
            on; a resume does not start it again. By default it waits without end.
        on_timeout: "fail" raises `GateTimedOut`, "continue" counts as approved and
            "reject" as rejected, both by "timeout".
        wait: wait in place.
        single: an approval selects exactly one of the options.
        on_reject: "raise" raises `GateRejected` with the feedback, "return" returns the
            decision (which is false), a function is called with it and its result returned.

    Raises:
        GatePending: nobody has decided yet. It is no `Exception`.
        GateRejected: somebody said no.
        GateTimedOut: nobody decided in time.
        RunCancelled: the run is to stop.
        UsageError: an option makes no sense.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> def report():
        ...     with nbflow.run("report"):
        ...         return nbflow.gate("publish", "Publish?", options=["web", "mail"])
        >>> try:
        ...     report()
        ... except nbflow.errors.GatePending as pending:
        ...     waits = nbflow.approve(pending.run, "publish", "nice", select="web", by="ana")
        >>> decision = report()
        >>> decision.by, decision.feedback, decision.selections
        ('ana', 'nice', ('web',))
    """
    question = Question(name, text, options, single, timeout, on_timeout)
    check_on_reject(name, on_reject)
    asking = Asking(question, show, wait=wait)
    decision = asking.ask()
    waiting.shown(asking.session, asking.wait.spec.step, waits=False)
    return answered(asking, decision, on_reject)
