"""Large values: a frame of a million rows and an array of 100 MB, written, restored, grown; peak memory."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbflow
from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, Target, write_synced
from benchmarks.values import buffers, build, total

WORKFLOW = "benchmark"

held: dict[str, Any] = {}


@nbflow.durable
def keep(name: str) -> Any:
    """Return a value that exists already, so that the call costs what recording it costs."""
    # Through sys.modules: a global that the function reads would be an input of the call.
    return sys.modules["__main__"].held[name]


# --- in the child ---------------------------------------------------------------------------------


def checkpoint(folder: str, kind: str, floor_first: bool) -> dict[str, Any]:
    """Record the value, then with one more column, and write the same bytes plainly; the run stays open."""
    import numpy as np

    place = Path(folder)
    value = held["value"] = build(kind)
    held["small"] = build(kind, 10_000)
    parts = buffers(value)
    answer: dict[str, Any] = {"bytes": sum(memoryview(part).nbytes for part in parts)}
    (place / "sizes.json").write_text(json.dumps([memoryview(part).nbytes for part in parts]))
    with nbflow.run(WORKFLOW, store=place / "store") as run:
        keep("small")  # what is imported late is imported now
        if floor_first:
            answer["floor"] = write_synced(place / "floor", parts)
        began = time.perf_counter()
        keep("value")
        answer["nbflow"] = time.perf_counter() - began
        if not floor_first:
            answer["floor"] = write_synced(place / "floor", parts)
        if kind == "frame":
            held["wider"] = value.assign(more=np.random.default_rng(1).standard_normal(len(value)))
            began = time.perf_counter()
            keep("wider")
            answer["wider"] = time.perf_counter() - began
        answer["total"], answer["run"] = total(value), run.id
        harness.tell(answer)
        os._exit(0)


def record(folder: str) -> None:
    """Record the frame only, and die without a goodbye."""
    value = held["value"] = build("frame")
    size = sum(memoryview(part).nbytes for part in buffers(value))
    with nbflow.run(WORKFLOW, store=Path(folder) / "store") as run:
        keep("value")
        harness.tell({"bytes": size, "total": total(value), "run": run.id})
        os._exit(0)


def restore(folder: str, kind: str) -> dict[str, float]:
    """Attach, then time the replay of the step that made the value, and the sums."""
    with nbflow.run(WORKFLOW, store=Path(folder) / "store"):
        total(keep("small"))  # an earlier step of the notebook; what is imported late is imported now
        began = time.perf_counter()
        value = keep("value")
        result = total(value)
        took = time.perf_counter() - began
        harness.tell({"seconds": took, "total": result})
        os._exit(0)


def read_plainly(folder: str, kind: str) -> dict[str, float]:
    """Time reading the same bytes from one file into memory, and the same sums."""
    import numpy as np

    total(build(kind, 10_000))  # pandas is imported
    sizes = json.loads((Path(folder) / "sizes.json").read_text())
    began = time.perf_counter()
    memory: Any = np.empty(sum(sizes), np.uint8)
    with (Path(folder) / "floor").open("rb", buffering=0) as file:
        view = memoryview(memory)
        while view:
            view = view[file.readinto(view) :]
    parts, offset = [], 0
    for size in sizes:
        parts.append(memoryview(memory)[offset : offset + size])
        offset += size
    result = total(pickle.loads(parts[0], buffers=parts[1:]))
    return {"seconds": time.perf_counter() - began, "total": result}


def peak(folder: str, kind: str) -> dict[str, float]:
    """Return by how many bytes the process grew at most while it recorded the value (Linux)."""
    import ctypes

    held["value"] = build(kind)
    held["small"] = build(kind, 10_000)
    size = sum(memoryview(part).nbytes for part in buffers(held["value"]))
    with nbflow.run(WORKFLOW, store=Path(folder) / "store"):
        keep("small")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed already must not hide what is taken
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        keep("value")
        harness.tell({"grown": _status("VmHWM") - before, "bytes": size})
        os._exit(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


# --- in the parent --------------------------------------------------------------------------------


def measure(bench: Bench, kind: str) -> Iterator[tuple[str, Sample]]:
    """Fresh processes and files each time; whether the floor or nbflow comes first alternates."""
    for number in range(bench.repetitions):
        folder = bench.fresh(kind)
        wrote = harness.child(__file__, "checkpoint", folder=folder, kind=kind, floor_first=number % 2 == 0)
        yield f"{kind}.checkpoint", Sample(wrote["nbflow"], wrote["floor"])
        if "wider" in wrote:
            yield f"{kind}.column", Sample(wrote["wider"], wrote["nbflow"])
        names = ["read_plainly", "restore"]
        answers = {
            name: harness.child(__file__, name, folder=folder, kind=kind)
            for name in (names if number % 2 == 0 else reversed(names))
        }
        # To rounding: the order of NumPy's additions depends on how the memory is aligned.
        if not all(
            math.isclose(answer["total"], wrote["total"], rel_tol=1e-9) for answer in answers.values()
        ):
            raise AssertionError("a restored value is not the recorded one")
        yield f"{kind}.restore", Sample(answers["restore"]["seconds"], answers["read_plainly"]["seconds"])


def measure_peak(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process each time: the high-water mark of its memory."""
    for _ in range(min(3, bench.repetitions)):
        for kind in ("frame", "array"):
            grown = harness.child(__file__, "peak", folder=bench.fresh("peak"), kind=kind)
            yield f"peak.{kind}", Sample(grown["grown"], grown["bytes"])


GROUPS = (
    Group(
        "frame",
        (
            Row(
                "frame.checkpoint",
                "frame of 1M × 10: checkpoint",
                "write + fsync of the same bytes",
                Target("ratio", 1.3),
            ),
            Row(
                "frame.restore",
                "the same: restore in a new process and sum every column",
                "read of the same bytes from a file, and the same sums",
                Target("ratio", 1.2),
            ),
            Row(
                "frame.column",
                "the same frame with one more column: checkpoint",
                "the first checkpoint",
                Target("ratio", 0.15),
            ),
        ),
        lambda bench: measure(bench, "frame"),
    ),
    Group(
        "array",
        (
            Row(
                "array.checkpoint",
                "100 MB float64 array: checkpoint",
                "raw write + fsync",
                Target("ratio", 1.2),
            ),
            Row(
                "array.restore",
                "the same: restore in a new process and sum",
                "read and sum",
                Target("ratio", 1.1),
            ),
        ),
        lambda bench: measure(bench, "array"),
    ),
    Group(
        "peak",
        (
            Row(
                "peak.frame",
                "more memory at the peak of the frame's checkpoint",
                "its size",
                Target("ratio", 0.2),
                "bytes",
            ),
            Row(
                "peak.array",
                "more memory at the peak of the array's checkpoint",
                "its size",
                Target("ratio", 0.2),
                "bytes",
            ),
        ),
        measure_peak,
    ),
)

if __name__ == "__main__":
    harness.serve(checkpoint, record, restore, read_plainly, peak)
