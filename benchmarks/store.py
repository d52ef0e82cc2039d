"""The store: ingest into DuckDB, compaction of the frame, restoring it from there, attaching a long run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbflow
from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, Target
from benchmarks.values import build, total

WORKFLOW = "benchmark"

CALLS = str(Path(__file__).with_name("calls.py"))
FRAMES = str(Path(__file__).with_name("frames.py"))

# --- in the child ---------------------------------------------------------------------------------


def ingest(store: str) -> dict[str, float]:
    """Time the ingest of everything that a killed process left in its journal."""
    import duckdb  # noqa: F401  (imports are not what this measures)
    import pyarrow  # noqa: F401, ICN001

    from nbflow.store.local import open_store

    place = open_store(store)
    began = time.perf_counter()
    records = place.ingest()
    took = time.perf_counter() - began
    place.close()
    return {"records": records, "seconds": took}


def attach(store: str) -> float:
    """Time the attach to a long run: lease, journal, history."""
    entering = nbflow.run(WORKFLOW, store=store)
    began = time.perf_counter()
    run = entering.__enter__()
    took = time.perf_counter() - began
    if not run.resumed:
        raise AssertionError("this should be the recorded run")
    harness.tell(took)
    os._exit(0)


def compact(folder: str, run: str, floor_first: bool) -> dict[str, float]:
    """Time the compaction of the recorded frame, and `CREATE TABLE AS` of the same frame from Arrow."""
    from nbflow.store.local import open_store

    place = Path(folder)
    answer: dict[str, float] = {}
    if floor_first:
        answer["floor"] = _create_table(place / "floor.duckdb")
    store = open_store(place / "store")
    store.ingest()
    database = place / "store" / "store.duckdb"
    before = _size(database)
    began = time.perf_counter()
    leaves = store.compact(run)
    store.close()
    answer["nbflow"] = time.perf_counter() - began
    answer["leaves"], answer["grown"] = leaves, _size(database) - before
    if not floor_first:
        answer["floor"] = _create_table(place / "floor.duckdb")
    return answer


def _create_table(database: Path) -> float:
    """Return the seconds of `CREATE TABLE AS` from Arrow until the file is closed."""
    import duckdb
    import pyarrow as pa

    arrow = pa.Table.from_pandas(build("frame"))
    connection = duckdb.connect(str(database))
    connection.register("arrow", arrow)
    began = time.perf_counter()
    connection.execute("create table frame as select * from arrow")
    connection.close()
    return time.perf_counter() - began


def _size(database: Path) -> int:
    """Return the bytes of a database with its write-ahead log."""
    log = database.with_name(database.name + ".wal")
    return sum(path.stat().st_size for path in (database, log) if path.exists())


def finish(store: str, run: str) -> None:
    """Complete the run, so that its folder with the raw leaves goes away."""
    from nbflow.store.local import open_store

    place = open_store(store)
    with nbflow.run(WORKFLOW, store=place, resume=run):
        pass
    place.compact(run)
    place.close()
    if (Path(store) / "runs" / run).exists():
        raise AssertionError("a finished run's folder should be gone: its leaves are in the database")
    harness.tell({})


def restore_compacted(folder: str, run: str) -> dict[str, float]:
    """Time loading the frame out of nbflow's database, its file being opened included."""
    import duckdb  # noqa: F401  (imports are not what this measures)
    import pyarrow  # noqa: F401, ICN001

    load = nbflow.output  # its module is imported when the name is first asked for
    total(build("frame", 10_000))
    began = time.perf_counter()
    value = load(run, "keep", "return", store=Path(folder) / "store")
    took = time.perf_counter() - began
    return {"seconds": took, "total": total(value)}


def read_table(folder: str) -> dict[str, float]:
    """Time reading the columns of the `CREATE TABLE AS` table, its file being opened included."""
    import duckdb
    import pyarrow  # noqa: F401, ICN001

    frame = build("frame", 10_000)
    total(frame)
    began = time.perf_counter()
    with duckdb.connect(str(Path(folder) / "floor.duckdb"), read_only=True) as connection:
        columns = [connection.sql(f'select "{name}" from frame').to_arrow_table() for name in frame.columns]
    took = time.perf_counter() - began
    return {"seconds": took, "rows": min(column.num_rows for column in columns)}


# --- in the parent --------------------------------------------------------------------------------


def measure_ingest(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh store each time, filled by a process that died right after its last call."""
    calls = bench.count(10_000, 2_000)
    for _ in range(bench.repetitions):
        store = bench.fresh("ingest")
        harness.child(CALLS, "record", store=store, calls=calls, fast=True)
        answer = harness.child(__file__, "ingest", store=store)
        if answer["records"] < calls:  # two records a call; the dead process may have ingested some itself
            raise AssertionError(f"only {answer['records']} records were left to ingest")
        yield "store.ingest", Sample(answer["records"] / answer["seconds"])


def measure_attach(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """One run of 5,000 calls (10,000 records), attached by a fresh process each time."""
    store = bench.fresh("attach")
    harness.child(CALLS, "record", store=store, calls=5_000, fast=True)
    for _ in range(bench.repetitions):
        yield "store.attach", Sample(harness.child(__file__, "attach", store=store))


def measure_compaction(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh store each time: record, compact, finish the run, load the frame from the database alone."""
    for number in range(bench.repetitions):
        folder = bench.fresh("compact")
        recorded = harness.child(FRAMES, "record", folder=folder)
        compacted = harness.child(
            __file__, "compact", folder=folder, run=recorded["run"], floor_first=number % 2 == 0
        )
        if not compacted["leaves"]:
            raise AssertionError("nothing was compacted")
        yield "store.compaction", Sample(compacted["nbflow"], compacted["floor"])
        yield "store.size", Sample(compacted["grown"], recorded["bytes"])
        harness.child(__file__, "finish", store=folder / "store", run=recorded["run"])
        names: dict[str, dict[str, Any]] = {"read_table": {}, "restore_compacted": {"run": recorded["run"]}}
        answers = {
            name: harness.child(__file__, name, folder=folder, **names[name])
            for name in (names if number % 2 == 0 else reversed(names))
        }
        if not math.isclose(answers["restore_compacted"]["total"], recorded["total"], rel_tol=1e-9):
            raise AssertionError("the frame from the database is not the recorded one")
        yield (
            "store.restore",
            Sample(answers["restore_compacted"]["seconds"], answers["read_table"]["seconds"]),
        )


GROUPS = (
    Group(
        "store.ingest",
        (Row("store.ingest", "ingest of a journal into DuckDB", "", Target("at_least", 30_000), "/s"),),
        measure_ingest,
    ),
    Group(
        "store.compaction",
        (
            Row(
                "store.compaction",
                "compaction of the frame: time",
                "`CREATE TABLE AS` from Arrow",
                Target("ratio", 1.5),
            ),
            Row(
                "store.size",
                "compaction of the frame: size on disk",
                "raw bytes",
                Target("ratio", 0.65),
                "bytes",
            ),
            Row(
                "store.restore",
                "the compacted frame restored",
                "reading its columns from DuckDB",
                Target("ratio", 1.5),
            ),
        ),
        measure_compaction,
    ),
    Group(
        "store.attach",
        (Row("store.attach", "attach to a run with 10,000 records", "", Target("at_most", 0.2)),),
        measure_attach,
    ),
)

if __name__ == "__main__":
    harness.serve(ingest, attach, compact, finish, restore_compacted, read_table)
