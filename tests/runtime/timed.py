"""Runs under a clock of the test's own, and runs whose process was killed."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nbflow.core.clock import Clock
from nbflow.core.history import History
from nbflow.core.model import StepInfo
from nbflow.runtime import active
from nbflow.runtime.session import Session


@contextmanager
def attached(store: Any, clock: Clock | None = None, name: str = "w", **options: Any) -> Iterator[Session]:
    """Attach the unfinished run of this name, or a new one, and leave it as it is at the end.

    An owner that is still there loses the run, as a killed process does: what it
    does from then on is not recorded.
    """
    session = Session.open(store, name, kind="script", clock=clock, steal=True, **options)
    active.add(session)
    token = active.enter(session)
    try:
        with session.within(session.root):
            yield session
    finally:
        active.leave(token)
        active.remove(session)
        session.close()


class InThread:
    """A call in a thread that belongs to this run; `result` joins it and gives what came of it."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        context = contextvars.copy_context()

        def target() -> None:
            try:
                self.value = context.run(function, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - handed to the test
                self.error = error

        self.thread = threading.Thread(target=target, daemon=True)
        self.thread.start()

    @property
    def running(self) -> bool:
        """Whether it is still at it."""
        return self.thread.is_alive()

    def result(self) -> Any:
        """Return or raise what the call did."""
        self.thread.join(20)
        assert not self.thread.is_alive(), "the call does not come back"
        if self.error is not None:
            raise self.error
        return self.value


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(4000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come to pass within 20 s")


def steps(store: Any, kind: str) -> list[StepInfo]:
    """List the executions of this kind in the only run of the store."""
    (info,) = store.runs()
    return [step for step in History.of(store.entries(info.run)).steps() if step.step_kind == kind]
