"""Calls of `@durable` functions: recorded one by one, from threads, from processes; replayed."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbflow
from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, SyncedFile, Target

WORKFLOW = "benchmark"

ran = [0]


def count() -> None:
    """Count an execution of a body, so that a replay which runs anything is noticed."""
    sys.modules[__name__].ran[0] += 1


def work(number: int) -> dict[str, Any]:
    """Do next to nothing and return 200 bytes, as a step of a user's script or notebook would."""
    count()
    numbers, tags = [1.5] * 8, {"a": "b" * 20, "c": None}
    return {"id": number, "name": "x" * 52, "numbers": numbers, "tags": tags, "done": True}


step = nbflow.durable(work)
pure = nbflow.durable(durability="async")(work)

BYTES = json.dumps(work(0)).encode()
assert 190 <= len(BYTES) <= 230


# --- in the child ---------------------------------------------------------------------------------


def one_by_one(folder: str, blocks: int, size: int) -> list[dict[str, float]]:
    """Time single calls and single synced writes, in alternating blocks; return the medians of each block."""
    floor = SyncedFile(Path(folder) / "floor")
    medians = []
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as _:
        step(-1)
        floor.append(BYTES)
        for block in range(blocks):
            wrote, called = [], []
            for _ in range(size):
                began = time.perf_counter()
                floor.append(BYTES)
                wrote.append(time.perf_counter() - began)
            for number in range(block * size, (block + 1) * size):
                began = time.perf_counter()
                step(number)
                called.append(time.perf_counter() - began)
            medians.append({"floor": statistics.median(wrote), "nbflow": statistics.median(called)})
    return medians


def sustained(folder: str, calls: int) -> dict[str, float]:
    """Time many calls with durability="async" until the last is on disk, and synced writes beside them."""
    floor = SyncedFile(Path(folder) / "floor")
    floor.append(BYTES)
    writes = calls // 10  # a tenth of them: the floor's time per write is steady
    wrote = called = 0.0
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as run:
        pure(-1)
        run.flush()
        for half in range(2):
            began = time.perf_counter()
            for _ in range(writes // 2):
                floor.append(BYTES)
            wrote += time.perf_counter() - began
            if half == 0:
                began = time.perf_counter()
                for number in range(calls):
                    pure(number)
                run.flush()
                called = time.perf_counter() - began
    return {"floor": wrote / (writes // 2 * 2), "nbflow": called / calls}


def from_threads(folder: str, calls: int, threads: int) -> dict[str, float]:
    """Time calls from many threads, and as many synced writes one after the other."""
    floor = SyncedFile(Path(folder) / "floor")
    floor.append(BYTES)
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as _:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(step, range(-threads, 0)))  # the threads are up
            began = time.perf_counter()
            for _ in range(calls // 2):
                floor.append(BYTES)
            wrote = time.perf_counter() - began
            began = time.perf_counter()
            shares = [range(first, calls, threads) for first in range(threads)]
            list(pool.map(lambda share: [step(number) for number in share], shares))
            called = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(calls - calls // 2):
            floor.append(BYTES)
        wrote += time.perf_counter() - began
    return {"floor": wrote, "nbflow": called}


def process(store: str, name: str, calls: int) -> None:
    """Be one of several processes on one store: attach an own run, wait for the go, call, tell when done."""
    with nbflow.run(name, store=store):
        step(-1)
        harness.await_go()
        for number in range(calls):
            step(number)
        finished = time.monotonic()
    harness.tell({"called": finished, "ended": time.monotonic()})


def record(store: str, calls: int, fast: bool = False) -> None:
    """Record calls and die without a goodbye, so that the run is there to be resumed."""
    call = pure if fast else step
    with nbflow.run(WORKFLOW, store=store) as run:
        for number in range(calls):
            call(number)
        run.flush()
        harness.tell({"run": run.id})
        os._exit(0)


def replay(store: str, calls: int) -> dict[str, float]:
    """Attach and replay the recorded calls; none may run."""
    import duckdb  # noqa: F401  (start-up is measured beyond these)
    import pandas  # noqa: F401, ICN001

    before = ran[0]
    with nbflow.run(WORKFLOW, store=store):
        began = time.perf_counter()
        for number in range(calls):
            step(number)
        took = time.perf_counter() - began
        ready = time.monotonic()
        if ran[0] > before:
            raise AssertionError(f"{ran[0] - before} recorded calls ran again")
        harness.tell({"per_call": took / calls, "ready": ready})
        os._exit(0)


#: The file whose child imports duckdb and pandas, and nothing of nbflow.
STARTUP = str(Path(__file__).with_name("startup.py"))

# --- in the parent --------------------------------------------------------------------------------


def measure_sync(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """One process, blocks of floor and calls taking turns; a block is a repetition."""
    answer = harness.child(
        __file__,
        "one_by_one",
        folder=bench.fresh("sync"),
        blocks=bench.repetitions,
        size=bench.count(300, 60),
    )
    for medians in answer:
        yield "calls.sync", Sample(medians["nbflow"], medians["floor"])


def measure_async(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process and store each time."""
    for _ in range(bench.repetitions):
        answer = harness.child(
            __file__, "sustained", folder=bench.fresh("async"), calls=bench.count(10_000, 2_000)
        )
        yield "calls.async", Sample(answer["nbflow"], answer["floor"])


def measure_threads(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process and store each time."""
    for _ in range(bench.repetitions):
        answer = harness.child(
            __file__, "from_threads", folder=bench.fresh("threads"), calls=bench.count(2_000, 500), threads=16
        )
        yield "calls.threads", Sample(answer["nbflow"], answer["floor"])


def _processes(store: Path, number: int, calls: int) -> float:
    """Return the seconds from the go until the last process made its last call."""
    children = [
        harness.start(__file__, "process", store=store, name=f"{WORKFLOW}-{index}", calls=calls)
        for index in range(number)
    ]
    for running in children:
        assert running.hear() == "ready"
    began = time.monotonic()
    for running in children:
        running.tell()
    answers = [running.hear() for running in children]
    for running in children:
        running.done()
    return float(max(answer["called"] for answer in answers) - began)


def measure_processes(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """One process alone, then four at once, each pair on a fresh store of its own."""
    calls = bench.count(200, 50)
    for _ in range(bench.repetitions):
        alone = _processes(bench.fresh("alone"), 1, calls)
        yield "calls.processes", Sample(_processes(bench.fresh("processes"), 4, calls), alone)


def measure_replay(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Record once; then a fresh process each time, beside one that only imports."""
    calls = 1_000
    store = bench.fresh("replay")
    harness.child(__file__, "record", store=store, calls=calls)
    for _ in range(bench.repetitions):
        floor = harness.child(STARTUP, "imports")
        answer = harness.child(__file__, "replay", store=store, calls=calls)
        yield "calls.replay", Sample(answer["per_call"])
        yield "calls.start", Sample(answer["ready"] - answer["spawned"], floor["ready"] - floor["spawned"])


WRITE = "write + fdatasync of the same bytes"
GROUPS = (
    Group(
        "calls.sync",
        (
            Row(
                "calls.sync",
                "one `@durable` call recording a 200-byte dict, sync",
                WRITE,
                Target("ratio", 1.6),
            ),
        ),
        measure_sync,
    ),
    Group(
        "calls.async",
        (
            Row(
                "calls.async",
                'the same, `durability="async"`, sustained over 10,000',
                WRITE,
                Target("ratio", 0.3),
            ),
        ),
        measure_async,
    ),
    Group(
        "calls.replay",
        (
            Row(
                "calls.replay",
                "replay of 1,000 recorded calls in a new process, per call after attach",
                "",
                Target("at_most", 30e-6),
            ),
            Row(
                "calls.start",
                "start of the process to 1,000 calls replayed",
                "a process that imports duckdb and pandas",
                Target("extra", 0.15),
            ),
        ),
        measure_replay,
    ),
    Group(
        "calls.threads",
        (
            Row(
                "calls.threads",
                "2,000 calls from 16 threads",
                "2,000 × write + fdatasync, one after the other",
                Target("ratio", 0.7),
            ),
        ),
        measure_threads,
    ),
    Group(
        "calls.processes",
        (
            Row(
                "calls.processes",
                "4 processes × 200 calls on one store",
                "200 calls of one process alone",
                Target("ratio", 1.5),
            ),
        ),
        measure_processes,
    ),
)

if __name__ == "__main__":
    harness.serve(one_by_one, sustained, from_threads, process, record, replay)
