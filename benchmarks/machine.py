"""State machines: many small states, many cursors, a long run resumed, a large definition checked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, SyncedFile, Target
from nbflow import Continue, Machine

#: What a trivial state leaves in a journal by other means: its name and the next one.
BYTES = json.dumps(
    {"state": "s0001", "next": "s0002", "kind": "plain", "attempt": 1, "seconds": 1e-05}
).encode()


def states(count: int) -> Machine:
    """Return a machine of so many trivial states in a row, each with a task of its own."""
    machine = Machine(
        "states", [f"s{number}" for number in range(count)] + ["end"], initial="s0", final={"end"}
    )
    for number in range(count):
        after = f"s{number + 1}" if number + 1 < count else "end"
        scope: dict[str, Any] = {}
        exec(f"def task(ctx):\n    return {after!r}\n", scope)
        machine.state(f"s{number}", to=after)(scope["task"])
    return machine


def cursors(count: int) -> Machine:
    """Return a machine of one stepped state with so many cursors."""
    machine = Machine("cursors", ["count", "end"], initial="count", final={"end"})

    @machine.state("count", kind="stepped", to="end")
    def task(ctx, cursor):
        cursor = cursor or 0
        return Continue(cursor + 1) if cursor < count else "end"

    return machine


# --- in the child ---------------------------------------------------------------------------------


def _synced(path: Path, count: int) -> float:
    floor = SyncedFile(path)
    began = time.perf_counter()
    for _ in range(count):
        floor.append(BYTES)
    floor.close()
    return time.perf_counter() - began


def run_all(folder: str, kind: str, count: int) -> dict[str, float]:
    """Time a whole run beside as many synced writes, half of them before it and half behind it."""
    place = Path(folder)
    machine = states(count) if kind == "states" else cursors(count)
    machine.validate()
    (states(2) if kind == "states" else cursors(2)).run(store=place / "warm")
    floor = _synced(place / "before", count // 2)
    began = time.perf_counter()
    machine.run(store=place / "store")
    took = time.perf_counter() - began
    return {"nbflow": took, "floor": floor + _synced(place / "behind", count - count // 2)}


def leave_unfinished(store: str, count: int) -> None:
    """Record a run of so many cursors that stopped before its end."""

    def stop(_ctx):
        raise KeyboardInterrupt

    try:
        _long(count, stop).run(store=store)
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was to be interrupted")


def _long(count: int, last: Any) -> Machine:
    machine = Machine("long", ["count", "last", "end"], initial="count", final={"end"})

    @machine.state("count", kind="stepped", to="last")
    def task(ctx, cursor):
        cursor = cursor or 0
        return Continue(cursor + 1) if cursor < count else "last"

    machine.state("last", to="end")(last)
    return machine


def resume(store: str, count: int) -> dict[str, float]:
    """Time from asking for the run to its first new task."""
    first: list[float] = []
    machine = _long(count, lambda ctx: first.append(time.perf_counter()) or "end")
    machine.validate()
    from nbflow.store.local import process_store

    process_store(store)
    began = time.perf_counter()
    machine.run(store=store)
    return {"first": first[0] - began}


def check(count: int) -> dict[str, float]:
    """Time the check of a machine whose tasks tell where they lead in their source only."""
    lines = ["def define(machine):"]
    for number in range(count):
        after = f"s{number + 1}" if number + 1 < count else "end"
        lines += [
            f"    @machine.state('s{number}')",
            f"    def task_{number}(ctx):",
            f"        if ctx.get('back'):\n            return 's{number // 2}'",
            f"        return {after!r}",
        ]
    source = "\n".join(lines) + "\n"
    import linecache

    linecache.cache["<machine>"] = (len(source), None, source.splitlines(keepends=True), "<machine>")
    scope: dict[str, Any] = {}
    exec(compile(source, "<machine>", "exec"), scope)
    machine = Machine(
        "large", [f"s{number}" for number in range(count)] + ["end"], initial="s0", final={"end"}
    )
    scope["define"](machine)
    began = time.perf_counter()
    machine.validate()
    took = time.perf_counter() - began
    assert len(machine.edges()) >= count
    return {"took": took}


# --- in the parent --------------------------------------------------------------------------------


def measure_states(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process and store each time."""
    for _ in range(bench.repetitions):
        answer = harness.child(
            __file__, "run_all", folder=bench.fresh("states"), kind="states", count=bench.count(1_000, 200)
        )
        yield "machine.states", Sample(answer["nbflow"], answer["floor"])


def measure_cursors(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process and store each time."""
    for _ in range(bench.repetitions):
        answer = harness.child(
            __file__, "run_all", folder=bench.fresh("cursors"), kind="cursors", count=bench.count(1_000, 200)
        )
        yield "machine.cursors", Sample(answer["nbflow"], answer["floor"])


def measure_resume(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Record the same long run afresh for each resume, as a resume finishes it."""
    count = bench.count(10_000, 2_000)
    for _ in range(bench.repetitions):
        store = bench.fresh("resume")
        _leave(store, count)
        answer = harness.child(__file__, "resume", store=store, count=count)
        yield "machine.resume", Sample(answer["first"])


def _leave(store: Path, count: int) -> None:
    running = harness.start(__file__, "leave_unfinished", store=store, count=count)
    running.done()
    if running.process.returncode:
        raise harness.ChildFailed(f"exit code {running.process.returncode}")


def measure_check(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh process each time: what was inferred is kept."""
    for _ in range(bench.repetitions):
        yield (
            "machine.validate",
            Sample(harness.child(__file__, "check", count=bench.count(1_000, 200))["took"]),
        )


WRITES = "as many × write + fdatasync, one after the other"
GROUPS = (
    Group(
        "machine.states",
        (Row("machine.states", "a machine of 1,000 trivial states", WRITES, Target("ratio", 2.5)),),
        measure_states,
    ),
    Group(
        "machine.cursors",
        (Row("machine.cursors", "a stepped task of 1,000 cursors", WRITES, Target("ratio", 1.6)),),
        measure_cursors,
    ),
    Group(
        "machine.resume",
        (
            Row(
                "machine.resume",
                "resume of a run of 10,000 records, to its first new task",
                "",
                Target("at_most", 0.5),
            ),
        ),
        measure_resume,
    ),
    Group(
        "machine.validate",
        (
            Row(
                "machine.validate",
                "check of a machine of 1,000 states, targets read from the source",
                "",
                Target("at_most", 0.2),
            ),
        ),
        measure_check,
    ),
)

if __name__ == "__main__":
    harness.serve(run_all, leave_unfinished, resume, check)
