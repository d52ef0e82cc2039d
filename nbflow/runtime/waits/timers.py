"""`nbflow.sleep` and `sleep_until`: waits that survive the process, each recorded as a step.

The instant at which a sleep is over is on disk before it begins. Whoever
resumes the run waits for what is left, and what is past returns at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from nbflow.core.errors import UsageError
from nbflow.core.lengths import length
from nbflow.core.timers import Timer, instant
from nbflow.runtime.verbs import verb
from nbflow.runtime.waits.pending import Wait
from nbflow.runtime.waits.waiting import wait_until, wait_until_async

#: One name for both kinds: a recorded instant counts, whichever of the two the code says now.
_KIND = "sleep"


def _after(wait: Wait, seconds: float) -> Timer:
    clock = wait.session.clock
    return Timer.after(seconds, clock.now(), clock.boot())


def _duration(seconds: float | str | timedelta) -> float:
    duration = length(seconds, "seconds")
    if duration is None:
        raise UsageError("nbflow.sleep wants a duration.", hint="To wait without end: nbflow.wait_for(name).")
    return duration


def _wait(wait: Wait, timer: Timer) -> None:
    if not wait.open(timer, brief=True):
        wait_until(wait.session, wait.due)
        wait.session.recorder.append(wait.completion({}))


async def _wait_async(wait: Wait, timer: Timer) -> None:
    if not await wait.open_async(timer, brief=True):
        await wait_until_async(wait.session, wait.due)
        await wait.session.recorder.append_async(wait.completion({}))


async def _sleep_async(seconds: float | str | timedelta) -> None:
    duration = _duration(seconds)
    with Wait(_KIND, _KIND, _KIND) as wait:
        if wait.over() is None:
            await _wait_async(wait, _after(wait, duration))


@verb(_sleep_async)
def sleep(seconds: float | str | timedelta) -> None:
    """Wait for a length of time, once: a resumed run waits only for what is left of it.

    In async code `await nbflow.sleep.aio(5)`. What counts is time that passes:
    setting the wall clock changes nothing as long as the process lives, nor
    afterwards until the machine is started again; then the wall clock decides,
    and never makes it longer than it was. The first recorded end counts, even
    if the code says another length by now. Cancelling the run ends the wait.

    Args:
        seconds: seconds, a text such as "1h 30m", or a `timedelta`.

    Raises:
        UsageError: negative, NaN, infinite, or not a duration.
        RunCancelled: the run is to stop.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> with nbflow.run("nightly"):
        ...     nbflow.sleep("20ms")
    """
    duration = _duration(seconds)
    with Wait(_KIND, _KIND, _KIND) as wait:
        if wait.over() is None:
            _wait(wait, _after(wait, duration))


async def _sleep_until_async(when: datetime | float) -> None:
    timer = Timer(instant(when))
    with Wait(_KIND, _KIND, _KIND) as wait:
        if wait.over() is None:
            await _wait_async(wait, timer)


@verb(_sleep_until_async)
def sleep_until(when: datetime | float) -> None:
    """Wait until an instant, by the wall clock; one in the past returns at once.

    In async code `await nbflow.sleep_until.aio(when)`. The instant that was
    recorded first counts in every attempt of the run. The clock is looked at
    again and again, so setting it is noticed.

    Args:
        when: a datetime, or UTC seconds since the epoch. A datetime without a
            zone is local time; `fold` tells the two hours apart where clocks are
            set back, and an hour that is skipped counts by the offset before
            the change (PEP 495).

    Raises:
        UsageError: NaN, infinite, or no instant.
        RunCancelled: the run is to stop.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> from datetime import datetime, timedelta
        >>> with nbflow.run("nightly"):
        ...     nbflow.sleep_until(datetime.now() + timedelta(milliseconds=20))
    """
    timer = Timer(instant(when))
    with Wait(_KIND, _KIND, _KIND) as wait:
        if wait.over() is None:
            _wait(wait, timer)
