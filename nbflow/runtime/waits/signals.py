"""Signals: `wait_for` in a run waits for a word from outside, `signal` sends it.

A signal goes to the run's inbox, durably, whether anybody waits or not; the
owner of the run takes it into the journal. The record that ends a wait names
the signal it consumed, so a signal is consumed once and a crash separates
neither from the other. Whatever ended a wait first, signal or timeout, ends it
in every replay.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import RunFinished, UsageError, WaitTimeout
from nbflow.core.history import Execution
from nbflow.core.lengths import length
from nbflow.core.mailbox import CONSUMED, SIGNAL
from nbflow.core.model import Message
from nbflow.core.states import FINAL_RUN_STATES, StepState
from nbflow.core.timers import Timer
from nbflow.runtime import modes
from nbflow.runtime.runs import Run
from nbflow.runtime.verbs import verb
from nbflow.runtime.waits.cancelling import addressed, sender
from nbflow.runtime.waits.pending import Wait
from nbflow.runtime.waits.waiting import wait_until, wait_until_async
from nbflow.store.protocol import Store

_RESULT = "return"


class _Reception:
    """One wait for a signal: what the sync and the async verb share."""

    def __init__(self, name: str, timeout: float | str | timedelta | None) -> None:
        self.name = _checked(name)
        self.timeout = length(timeout, "timeout")
        self.wait = Wait(SIGNAL, name, f"signal:{name}")
        self.session = self.wait.session
        self._value: Any = None

    def timer(self) -> Timer | None:
        clock = self.session.clock
        return None if self.timeout is None else Timer.after(self.timeout, clock.now(), clock.boot())

    def consume(self) -> bool:
        """Take the oldest signal that nobody consumed; False where there is none.

        One thread at a time. If the record is not acknowledged, what was kept of
        it is found out before anybody else may look.
        """
        with self.session.consuming:
            return self._consume()

    def _consume(self) -> bool:
        message = self.session.history.mailbox.next(self.name)
        if message is None:
            return False
        value = message.payload.get("value")
        record = self.wait.completion({_RESULT: value}, **{CONSUMED: message.message})
        try:
            self.session.recorder.append(record)
        except Exception:
            self.session.recorder.settle()
            raise
        self._value = value
        return True

    def result(self) -> Any:
        """Return what was received."""
        if modes.current() == "evict":
            self.session.recorder.reread()
            execution = self.wait.over()
            assert execution is not None
            return self.session.restore(execution)[_RESULT]
        return self._value

    def expired(self) -> Any:
        """Record the timeout, unless a signal came at the last moment; return its value then.

        Raises:
            WaitTimeout: none came.
        """
        with self.session.consuming:
            if self._consume():
                return self.result()
            error = self._timeout()
            self.session.recorder.append(self.wait.end(StepState.TIMED_OUT, error))
        raise error

    def again(self, execution: Execution) -> Any:
        """Return or raise what ended this wait in an earlier attempt."""
        if execution.completed is None:
            raise self._timeout()
        return self.session.restore(execution)[_RESULT]

    def _timeout(self) -> WaitTimeout:
        last = self.session.history.latest(self.wait.spec.step)
        timer = Timer.of(last.started.detail) if last is not None else None
        seconds = self.timeout if timer is None else timer.seconds
        step = self.wait.spec.step
        return WaitTimeout(
            f"Run {self.session.run} of {self.session.workflow}: "
            f"no signal {self.name!r} came within {seconds or 0:g} s.",
            run=self.session.run,
            step=step,
            name=self.name,
            timeout=seconds,
            hint=f"This wait stays timed out. To wait anew: nbflow forget {self.session.run} {step!r}.",
        )


async def _wait_for_async(name: str, timeout: float | str | timedelta | None = None) -> Any:
    reception = _Reception(name, timeout)
    with reception.wait as wait:
        execution = wait.over()
        if execution is not None:
            return reception.again(execution)
        await wait.open_async(reception.timer())
        if await wait_until_async(wait.session, wait.due, reception.consume):
            return reception.result()
        return reception.expired()


@verb(_wait_for_async)
def wait_for(name: str, timeout: float | str | timedelta | None = None) -> Any:
    """Wait for a signal of this name and return its payload.

    In async code `await nbflow.wait_for.aio("go")`. Signals of one name are
    consumed first in, first out, each once; one that was sent before the wait
    counts. A resumed run gets the same signal again. The deadline is recorded
    when the wait first begins and stays where it is over restarts; a wait that
    has timed out is timed out in every attempt of the run.

    Args:
        name: the signal's name.
        timeout: seconds, a text such as "2h", or a `timedelta`; by default it waits without end.

    Raises:
        WaitTimeout: no signal came in time.
        RunCancelled: the run is to stop.
        UsageError: the name is empty, or the timeout is no duration.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> with nbflow.run("deploy") as run:
        ...     nbflow.signal(run, "go", {"build": 7})
        ...     nbflow.wait_for("go", timeout="1h")
        {'build': 7}
    """
    reception = _Reception(name, timeout)
    with reception.wait as wait:
        execution = wait.over()
        if execution is not None:
            return reception.again(execution)
        wait.open(reception.timer())
        if wait_until(wait.session, wait.due, reception.consume):
            return reception.result()
        return reception.expired()


def signal(
    run: Run | str,
    name: str,
    payload: Any = None,
    *,
    store: Store | str | Path | None = None,
    id: str | None = None,  # noqa: A002 - what a message's own name is called
) -> None:
    """Send a signal to a run, from any process; it is on disk when this returns.

    The run may be waiting for it or not, and its process may be alive or not.

    Args:
        run: the run, its id, or an unambiguous prefix of it.
        name: what `wait_for` waits for.
        payload: JSON-able; what `wait_for` returns.
        store: a store or its place; that of the current run, else the nearest `.nbflow` folder.
        id: makes sending repeatable: two signals of one name and id are one.

    Raises:
        RunFinished: the run is completed or cancelled, and will never wait again.
        UnknownRun: the store has no such run.
        UsageError: the payload is not JSON-able, or a name is empty.

    Example:
        >>> import nbflow
        >>> with nbflow.run("deploy") as run:
        ...     nbflow.signal(run, "go", id="ticket-17")
        ...     nbflow.signal(run, "go", id="ticket-17")  # sent again to be sure; one signal
        ...     nbflow.wait_for("go")
    """
    name, value = _checked(name), _plain(name, payload)
    if id is not None:
        _checked(id, "id")
    place, key = addressed(run, store)
    info = place.run(key)
    message = Message(
        id=uuid.uuid4().hex if id is None else f"{name}:{id}",
        topic=SIGNAL,
        sent_at=time.time(),
        sender=sender(),
        payload={"name": name, "value": value},
    )
    state = str(info.state)
    try:
        if info.state not in FINAL_RUN_STATES:
            place.send(info.run, message)
            return
    except RunFinished:
        state = "finished"
    raise RunFinished(
        f"Signal {name!r} was not sent: run {info.run} of {info.workflow} is {state} and waits for nothing.",
        run=info.run,
        hint="`nbflow runs` lists those that are still going.",
    )


def payload_of(value: str | None, text: str | None) -> Any:
    """Return the payload that a command line gives: `--value` as JSON, or `--text` as it stands; else None.

    Raises:
        UsageError: both are given, or the value is no JSON.

    >>> payload_of('{"build": 7}', None), payload_of(None, "7")
    ({'build': 7}, '7')
    """
    if value is not None and text is not None:
        raise UsageError("--value and --text contradict each other.", hint="Nothing was sent.")
    if value is None:
        return text
    try:
        return json.loads(value)
    except ValueError as error:
        raise UsageError(
            f"--value {value} is no JSON: {error}.", hint="Put it in quotation marks, or use --text."
        ) from None


def _checked(text: object, what: str = "name") -> str:
    if not isinstance(text, str) or not text or not text.isprintable():
        raise UsageError(f"The {what} of a signal is a printable text that is not empty, not {text!r}.")
    return text


def _plain(name: str, payload: Any) -> Any:
    """Bring a payload into the form in which it arrives."""
    try:
        value = json.loads(json.dumps(payload, allow_nan=False))
        msgspec.msgpack.encode(value)  # integers beyond 64 bits, halves of characters
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"The payload of signal {name!r} is not JSON-able: {error}.",
            hint="Send numbers, texts, lists and dicts; of anything larger send a path.",
        ) from None
    return value
