"""`nbflow.map`: many trivial items, a recorded map resumed, items that only wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbflow
from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, SyncedFile, Target

WORKFLOW = "benchmark"

#: Two hundred bytes, as in calls.py: what an item leaves by other means.
BYTES = b"x" * 200

#: Items that share a sync, here and in the floor.
TOGETHER = 64

ran = [0]


def double(number: int) -> int:
    """Do next to nothing, and count it, so that a resume which runs anything is noticed."""
    ran[0] += 1
    return 2 * number


def wait(number: int) -> int:
    """Do what a request to a server does: wait."""
    time.sleep(0.01)
    return number


# --- in the child ---------------------------------------------------------------------------------


def trivial(folder: str, items: int) -> dict[str, float]:
    """Time a map over trivial items, and writes of as many bytes with a sync for every 64; then die in the run."""
    floor = SyncedFile(Path(folder) / "floor")
    floor.append(BYTES)
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as _:
        nbflow.map(double, [-1])
        began = time.perf_counter()
        for _ in range(0, items, TOGETHER):
            floor.append(BYTES * TOGETHER)
        wrote = time.perf_counter() - began
        began = time.perf_counter()
        results = nbflow.map(double, range(items))
        mapped = time.perf_counter() - began
        assert results == [2 * number for number in range(items)]
        harness.tell({"floor": wrote, "nbflow": mapped})
        os._exit(0)


def resumed(folder: str, items: int) -> float:
    """Return the seconds that a recorded map takes in a new process, once its run is attached."""
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as run:
        assert run.attempt == 2
        nbflow.map(double, [-1])
        began = time.perf_counter()
        results = nbflow.map(double, range(items))
        seconds = time.perf_counter() - began
    assert results == [2 * number for number in range(items)]
    assert ran == [0]
    return seconds


def waiting(folder: str, items: int, parallel: int) -> dict[str, float]:
    """Time items that wait, in threads, and the same in a plain thread pool."""
    with ThreadPoolExecutor(parallel) as pool, nbflow.run(WORKFLOW, store=Path(folder) / "store") as _:
        list(pool.map(wait, range(-parallel, 0)))
        nbflow.map(wait, [-1])
        began = time.perf_counter()
        list(pool.map(wait, range(items)))
        plain = time.perf_counter() - began
        began = time.perf_counter()
        nbflow.map(wait, range(items), max_parallel=parallel)
        mapped = time.perf_counter() - began
    return {"floor": plain, "nbflow": mapped}


# --- in the parent --------------------------------------------------------------------------------


def measure_trivial(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A process maps and dies, another one resumes; each pair in a fresh folder."""
    items = bench.count(10_000, 2_000)
    for _ in range(bench.repetitions):
        folder = str(bench.fresh("fanout"))
        answer = harness.child(__file__, "trivial", folder=folder, items=items)
        yield "fanout.trivial", Sample(answer["nbflow"], answer["floor"])
        yield "fanout.resume", Sample(harness.child(__file__, "resumed", folder=folder, items=items))


def measure_waiting(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Four hundred items, eight at a time."""
    items = bench.count(400, 100)
    for _ in range(bench.repetitions):
        folder = str(bench.fresh("waiting"))
        answer = harness.child(__file__, "waiting", folder=folder, items=items, parallel=8)
        yield "fanout.waiting", Sample(answer["nbflow"], answer["floor"])


GROUPS = (
    Group(
        "fanout.trivial",
        (
            Row(
                "fanout.trivial",
                "`nbflow.map` over 10,000 trivial items",
                "200 bytes each, written, and fdatasync for every 64",
                Target("at_most", 1.5),
            ),
            Row(
                "fanout.resume",
                "the same map in a new process, all recorded",
                "",
                Target("at_most", 0.5),
            ),
        ),
        measure_trivial,
    ),
    Group(
        "fanout.waiting",
        (
            Row(
                "fanout.waiting",
                "400 items that wait 10 ms, 8 at a time",
                "a plain thread pool",
                Target("ratio", 1.5),
            ),
        ),
        measure_waiting,
    ),
)

if __name__ == "__main__":
    harness.serve(trivial, resumed, waiting)
