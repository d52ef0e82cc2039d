"""Crashes for tests: a process that dies at a named point, played in this process or done to another.

The store passes named points around every write, fsync and rename. A test can
list those that a piece of work passes (`crash_points`), and have it die at any
of them: within this process (`crash`), quickly and under the debugger, or in
another by SIGKILL (`armed`), for real.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nbflow.core import crashpoints
from nbflow.core.errors import UsageError

#: Threads of the store's own; what they do any process may do later, so the work under test does not die there.
_BACKGROUND = ("nbflow-ingest", "nbflow-journal-", "nbflow-read")


class Crash(BaseException):
    """The process "died" here. No code of a workflow should catch it, as none could outlive its process."""


class Crashed:
    """What `crash` yields: whether the point was reached, and which it was. True once it has crashed."""

    def __init__(self) -> None:
        self.point: str | None = None

    def __bool__(self) -> bool:
        return self.point is not None

    def __repr__(self) -> str:
        return f"<crashed at {self.point}>" if self else "<not crashed>"


@contextmanager
def crash(at: str) -> Iterator[Crashed]:
    """Play the death of this process: raise `Crash` at a point, end the block there, and go on behind it.

    From then on until the block is left every point raises, so nothing more is
    recorded, as if the process were gone: not the failure that unwinds, nor the
    end of the run. What the block does besides recording is not undone; start no
    threads in it that go on by themselves. Behind the block the run can be
    attached again, as after a real death.

    Args:
        at: "name:count" is the count-th pass of that point, "*:count" the
            count-th pass of any. A `MemoryStore` has the points
            "memory.append.before" and "memory.append.after"; `crash_points`
            lists those of other stores.

    Raises:
        UsageError: `at` is not of that form.

    Example:
        >>> import nbflow
        >>> from nbflow.testing import MemoryStore, crash
        >>> store = MemoryStore()
        >>> work = nbflow.durable(version="1")(lambda: print("working"))
        >>> with crash("memory.append.after:2") as crashed, nbflow.run("example", store=store):
        ...     work()
        working
        >>> crashed
        <crashed at memory.append.after>
        >>> with nbflow.run("example", store=store):
        ...     work()
    """
    name, left = _point(at)
    crashed = Crashed()
    counting = threading.Lock()

    def hook(passed: str) -> None:
        nonlocal left
        if threading.current_thread().name.startswith(_BACKGROUND):
            return
        with counting:
            if not crashed:
                left -= name in ("*", passed)
                if left:
                    return
                crashed.point = passed
        raise Crash(f"The process died at {crashed.point} (a crash for tests).")

    with crashpoints.hooked(hook):
        try:
            yield crashed
        except BaseException:
            # Once dead, what unwinds is no longer the program's: its last words reach nobody.
            if not crashed:
                raise


@contextmanager
def crash_points() -> Iterator[list[str]]:
    """List the points that the block passes, in order; each is a place to `crash` at.

    >>> import nbflow
    >>> from nbflow.testing import MemoryStore
    >>> with crash_points() as passed, nbflow.run("example", store=MemoryStore()):
    ...     pass
    >>> passed
    ['memory.append.before', 'memory.append.after']
    """
    passed: list[str] = []

    def hook(name: str) -> None:
        if not threading.current_thread().name.startswith(_BACKGROUND):
            passed.append(name)

    with crashpoints.hooked(hook):
        yield passed


def armed(at: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which a Python process kills itself with SIGKILL at a point.

    Args:
        at: as for `crash`; background threads count here.
        environment: what to add it to; this process's environment by default.

    Raises:
        UsageError: `at` is not of that form.

    Example:
        >>> armed("journal.sync.after:3", {})
        {'NBFLOW_CRASH': 'journal.sync.after:3'}
    """
    _point(at)
    return {**(os.environ if environment is None else environment), "NBFLOW_CRASH": at}


def _point(at: str) -> tuple[str, int]:
    name, _, count = at.rpartition(":")
    if not name or not count.isdecimal() or int(count) < 1:
        raise UsageError(f'{at!r} is no crash point; write "name:count" or "*:count", counting from 1.')
    return name, int(count)
