"""What all benchmarks share: rows and their targets, samples, child processes. Nothing here knows nbflow.

A *row* is a line of the speed table: a thing, the floor measured beside it and
the target. A *group* measures one or several rows: a generator that yields
`(row name, Sample)` pairs, floor and thing taken one after the other within
each repetition, so that both meet the same weather on a shared machine.

What needs a fresh process is a function of the same file that `child` calls in
one. There the file is `__main__`, as a user's script or notebook would be.
Only the standard library is imported here: start-up time is measured too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """What a row should reach.

    `ratio`: nbflow / floor at most. `extra`: nbflow - floor at most, in the
    row's unit. `at_most` and `at_least`: nbflow by itself.
    """

    kind: Literal["ratio", "extra", "at_most", "at_least"]
    value: float


@dataclass(frozen=True)
class Row:
    """A line of the table. `unit` is "s", "bytes" or "/s"; `floor` says in words what stands beside it."""

    name: str
    what: str
    floor: str
    target: Target
    unit: Literal["s", "bytes", "/s"] = "s"


@dataclass(frozen=True)
class Sample:
    """One repetition: the figure of nbflow, and that of the floor where there is one."""

    nbflow: float
    floor: float | None = None


@dataclass(frozen=True)
class Bench:
    """How to measure: a fresh folder, how often, and whether only gross regressions matter."""

    folder: Path
    repetitions: int
    quick: bool

    def count(self, full: int, quick: int) -> int:
        """Return how many operations a repetition has."""
        return quick if self.quick else full

    def fresh(self, name: str) -> Path:
        """Return a new empty folder; it stays until the end, as ext4 is slow for a while after deletions."""
        number = 0
        while (path := self.folder / f"{name}-{number}").exists():
            number += 1
        path.mkdir(parents=True)
        return path


Measure = Callable[[Bench], Iterator[tuple[str, Sample]]]


@dataclass(frozen=True)
class Group:
    """Rows that one measurement fills."""

    name: str
    rows: tuple[Row, ...]
    measure: Measure


@dataclass
class Result:
    """What was measured for a row; `problem` is set when it could not be."""

    row: Row
    samples: list[Sample] = field(default_factory=list)
    problem: str = ""

    @property
    def nbflow(self) -> float:
        """The median of nbflow's figures."""
        return statistics.median(sample.nbflow for sample in self.samples)

    @property
    def floor(self) -> float | None:
        """The median of the floor's figures, None where the row has none."""
        floors = [sample.floor for sample in self.samples if sample.floor is not None]
        return statistics.median(floors) if floors else None

    @property
    def scores(self) -> list[float]:
        """What is compared with the target, one score per repetition."""
        return [_score(self.row.target.kind, sample) for sample in self.samples]

    @property
    def met(self) -> bool:
        """Whether the median repetition reached the target."""
        if not self.samples:
            return False
        middle, target = statistics.median(self.scores), self.row.target
        return middle >= target.value if target.kind == "at_least" else middle <= target.value

    @property
    def gross(self) -> bool:
        """Whether this is a gross regression: a ratio over three times its target, or no figure at all.

        Seconds by themselves never count: they say more about the machine than about nbflow.
        """
        if not self.samples:
            return True
        return self.row.target.kind == "ratio" and statistics.median(self.scores) > 3 * self.row.target.value


def _score(kind: str, sample: Sample) -> float:
    if kind in ("at_most", "at_least"):
        return sample.nbflow
    assert sample.floor is not None, "a ratio needs its floor"
    return sample.nbflow / sample.floor if kind == "ratio" else sample.nbflow - sample.floor


def measure(groups: Iterable[Group], bench: Bench, report: Callable[[str], None]) -> list[Result]:
    """Measure the groups one after the other; one that fails says so in its rows and stops no other."""
    results: list[Result] = []
    for group in groups:
        report(group.name)
        found = {row.name: Result(row) for row in group.rows}
        try:
            for name, sample in group.measure(bench):
                found[name].samples.append(sample)
        except Exception as error:  # shown in the table, and the exit code tells
            for result in found.values():
                result.problem = f"{type(error).__name__}: {error}"
        results.extend(found.values())
    return results


# --- child processes ------------------------------------------------------------------------------


class ChildFailed(RuntimeError):
    """A measurement's process ended badly; the message has the end of its stderr."""


@dataclass
class Child:
    """A started process: `spawned` is `time.monotonic()` just before, a clock that processes share."""

    process: subprocess.Popen[str]
    spawned: float

    def tell(self, line: str = "go") -> None:
        """Send a line to the child."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """Return the next thing the child reports."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise ChildFailed(f"exit code {self.process.returncode}: {errors.strip()[-2000:]}")
        return json.loads(line)

    def done(self) -> None:
        """Wait for the end."""
        self.process.communicate(timeout=60)


def start(file: str, function: str, python: str = sys.executable, **arguments: Any) -> Child:
    """Start `function(**arguments)` of a benchmark file in a fresh process; arguments are JSON-able."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # -P: the folder of the file is no place to import from (it holds a `store.py`).
    command = [python, "-P", file, function, json.dumps(arguments, default=str)]
    spawned = time.monotonic()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT
    )
    return Child(process, spawned)


def child(file: str, function: str, python: str = sys.executable, **arguments: Any) -> Any:
    """Run `function(**arguments)` in a fresh process and return its report; a dict gets `spawned` added."""
    running = start(file, function, python, **arguments)
    answer = running.hear()
    running.done()
    if isinstance(answer, dict):
        answer["spawned"] = running.spawned
    return answer


def serve(*functions: Callable[..., Any]) -> None:
    """Be the child: call the function named on the command line and report its result."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    result = {function.__name__: function for function in functions}[name](**arguments)
    if result is not None:
        tell(result)


def tell(result: Any) -> None:
    """Report to the parent: one line of JSON."""
    print(json.dumps(result), flush=True)


def await_go() -> None:
    """Say that this process is ready and wait until the parent says go."""
    tell("ready")
    sys.stdin.readline()


# --- floors ---------------------------------------------------------------------------------------


class SyncedFile:
    """The floor of durable calls: append some bytes to a file and fdatasync, nothing else."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def append(self, data: bytes) -> None:
        """Write the bytes; they are on disk when this returns."""
        os.write(self._descriptor, data)
        _fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


#: macOS has no fdatasync.
_fdatasync = getattr(os, "fdatasync", os.fsync)


def write_synced(path: Path, parts: Iterable[Any]) -> float:
    """Write buffers to a new file and fsync it; return the seconds."""
    views = [memoryview(part).cast("B") for part in parts]
    began = time.perf_counter()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    for view in views:
        written = 0
        while written < len(view):
            written += os.write(descriptor, view[written:])
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - began
