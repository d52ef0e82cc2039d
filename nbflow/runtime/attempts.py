"""One attempt, bounded in time, for sync code as well as async.

Python cannot stop a thread. On the main thread the interval timer's signal
raises inside the body, which ends sleeps and most blocking calls; elsewhere
the body runs in a thread of its own which is asked to stop (an exception is
raised in it at its next bytecode) and is abandoned.
"""

from __future__ import annotations

import contextvars
import ctypes
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nbflow.core.errors import StepTimeout

Result = TypeVar("Result")


def call(body: Callable[[], Result], timeout: float | None, step: str) -> Result:
    """Call `body`, for `timeout` seconds at the most.

    Raises:
        StepTimeout: the time is over. Code that does not return to the
            interpreter (a long call into C) is stopped only when it does.
    """
    if timeout is None or timeout >= threading.TIMEOUT_MAX:  # centuries: no timer can be set to that
        return body()
    if _timer_is_free():
        return _call_with_signal(body, timeout, step)
    return _call_in_thread(body, timeout, step)


async def call_async(body: Callable[[], Awaitable[Result]], timeout: float | None, step: str) -> Result:
    """Await `body()`, for `timeout` seconds at the most; the task is cancelled when they are over."""
    if timeout is None:
        return await body()
    import asyncio  # loaded already wherever a coroutine runs; 20 ms elsewhere

    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            return await body()
    except TimeoutError as error:
        if deadline.expired():
            raise _timed_out(timeout, step) from error
        raise  # the body's own TimeoutError


def _timed_out(timeout: float, step: str) -> StepTimeout:
    return StepTimeout(
        f"Step {step} took longer than its timeout of {timeout:g} s.", step=step, timeout=timeout
    )


def _timer_is_free() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    )


def _call_with_signal(body: Callable[[], Result], timeout: float, step: str) -> Result:
    def ring(_signum: int, _frame: Any) -> None:
        raise _timed_out(timeout, step)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(timeout, 1e-6))
        return body()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _call_in_thread(body: Callable[[], Result], timeout: float, step: str) -> Result:
    context = contextvars.copy_context()
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(context.run(body))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=target, name=f"nbflow {step}", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(StepTimeout)
        )
        raise _timed_out(timeout, step)
    if errors:
        raise errors[0]
    return results[0]
