"""What the tests of the board share: recorded runs, processes that record, and waiting for news."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbflow.board import Board
from nbflow.core.model import RunChanged
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunLog

PATIENCE = 30.0


def until(true: Callable[[], Any], *, what: str = "it") -> Any:
    """Wait until something is true and return it; fails after half a minute."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


class News:
    """A page that notes every push, with when it came."""

    def __init__(self) -> None:
        self.pushes: list[dict[str, Any]] = []
        self.times: list[float] = []

    def __call__(self, push: dict[str, Any]) -> None:
        json.dumps(push, allow_nan=False)  # what no page can be sent fails here
        self.pushes.append(push)
        self.times.append(time.monotonic())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the pushes of a kind."""
        return [push for push in self.pushes if push["push"] == kind]


def asked(board: Board, method: str, **params: Any) -> dict[str, Any]:
    """Ask, and make sure that any page can be sent the answer."""
    answer = board.ask(method, params)
    json.dumps(answer, allow_nan=False)
    return answer


def ended(log: RunLog, state: str = "completed", reason: str = "") -> str:
    """End a run and return its id."""
    log.append(RunChanged(state, reason))
    log.release()
    return log.run


def process(code: str, store: LocalStore | Path, **env: str) -> subprocess.Popen[str]:
    """Start a process that runs code with `NBFLOW_STORE` set to the store; its output is a pipe."""
    place = store.root if isinstance(store, LocalStore) else store
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NBFLOW_STORE": str(place), **env},
    )


def said(child: subprocess.Popen[str]) -> str:
    """Return the next line of a process."""
    assert child.stdout is not None
    return child.stdout.readline().strip()
