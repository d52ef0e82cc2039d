"""The workloads, once for all peers: what a peer's script has to offer, and how it is timed.

A peer's script makes a `Peer` and hands it to `serve`. It runs in the peer's
own virtual environment, so only the standard library, numpy, pandas and
pyarrow may be imported here.
"""

from __future__ import annotations

import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.values import build, total

STEPS = 1_000
AT_ONCE = 2_000
EACH = 200

#: How often bodies were executed in this process, and the large value that a step returns.
ran = [0]
held: list[Any] = []


def work(number: int) -> dict[str, Any]:
    """Do next to nothing and return 200 bytes: the body of a small step."""
    ran[0] += 1
    numbers, tags = [1.5] * 8, {"a": "b" * 20, "c": None}
    return {"id": number, "name": "x" * 52, "numbers": numbers, "tags": tags, "done": True}


def big() -> Any:
    """Return the frame that exists already: the body of a large step."""
    ran[0] += 1
    return held[0]


@dataclass(frozen=True)
class Steps:
    """What a workflow's body may do: a small durable step, a large one."""

    step: Callable[[int], Any]
    frame: Callable[[], Any]


Body = Callable[[Steps], None]


class Peer(ABC):
    """One tool. `saved_with_the_run`: results are on disk when the run returns, loaded before its body."""

    saved_with_the_run = False

    @abstractmethod
    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Call the body inside a workflow of this name, or resume the one that crashed."""

    @abstractmethod
    def at_once(self, folder: Path, count: int) -> float:
        """Run many small steps at once the way this tool does it; return the seconds."""

    def crash(self) -> None:
        """End the process in the middle of the workflow, so that it can be resumed."""
        os._exit(0)


_peer: list[Peer] = []


def serve(peer: Peer) -> None:
    """Be the child that the parent asked for."""
    _peer.append(peer)
    harness.serve(record, replay, save, restore, at_once, process)


def record(folder: str) -> None:
    """Time steps one after the other; then crash in the middle of the workflow."""

    def body(steps: Steps) -> None:
        times = []
        for number in range(STEPS):
            began = time.perf_counter()
            steps.step(number)
            times.append(time.perf_counter() - began)
        harness.tell({"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1]})
        _peer[0].crash()

    _peer[0].run(Path(folder), "long", body)


def replay(folder: str) -> None:
    """Resume in a new process: time each hit, and when the last is there."""

    def body(steps: Steps) -> None:
        before, times = ran[0], []
        for number in range(STEPS):
            began = time.perf_counter()
            steps.step(number)
            times.append(time.perf_counter() - began)
        ready = time.monotonic()
        harness.tell({"median": statistics.median(times), "ready": ready, "ran": ran[0] - before})
        os._exit(0)

    _peer[0].run(Path(folder), "long", body, resume=True)


def save(folder: str) -> None:
    """Time a step that returns the frame; then crash."""
    held.append(build("frame"))
    began = [0.0]
    result = total(held[0])

    def body(steps: Steps) -> None:
        steps.step(0)  # what is imported late is imported now
        began[0] = time.perf_counter()
        steps.frame()
        if not _peer[0].saved_with_the_run:
            harness.tell({"seconds": time.perf_counter() - began[0], "total": result})
        _peer[0].crash()

    _peer[0].run(Path(folder), "frame", body)
    harness.tell({"seconds": time.perf_counter() - began[0], "total": result})
    os._exit(0)


def restore(folder: str) -> None:
    """Resume in a new process: time the hit of the step that returned the frame, and its sums."""
    total(build("frame", 10_000))  # pandas is imported
    began = [time.perf_counter()]

    def body(steps: Steps) -> None:
        steps.step(0)
        if not _peer[0].saved_with_the_run:
            began[0] = time.perf_counter()
        frame = steps.frame()
        took = time.perf_counter() - began[0]
        result = total(frame)
        harness.tell({"seconds": took, "touched": time.perf_counter() - began[0], "total": result})
        os._exit(0)

    _peer[0].run(Path(folder), "frame", body, resume=True)


def at_once(folder: str) -> None:
    """Time many steps at once."""
    harness.tell({"seconds": _peer[0].at_once(Path(folder), AT_ONCE)})
    os._exit(0)


def process(folder: str, name: str) -> None:
    """Be one of several processes on one store: wait for the go inside the workflow, then step."""

    def body(steps: Steps) -> None:
        harness.await_go()
        for number in range(EACH):
            steps.step(number)
        harness.tell({"called": time.monotonic()})

    _peer[0].run(Path(folder), name, body)
    os._exit(0)
