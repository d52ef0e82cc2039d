"""Cells in a real kernel: what `%%durable` adds, and when an idle kernel's steps are in DuckDB."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.harness import ROOT, Bench, ChildFailed, Group, Row, Sample, Target


@contextmanager
def kernel(folder: Path) -> Iterator[BlockingKernelClient]:
    """Start a kernel that works in `folder` and keeps its store there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NBFLOW_STORE": str(folder / ".nbflow")}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder), env=environment)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        run(client, "%load_ext nbflow")
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> float:
    """Execute a cell and return the seconds until its reply and its last output are here."""
    began = time.perf_counter()
    reply = client.execute_interactive(code, timeout=60, output_hook=lambda message: None)
    took = time.perf_counter() - began
    content = reply["content"]
    if content["status"] != "ok":
        raise ChildFailed(f"{code!r}: {content.get('ename')}: {content.get('evalue')}")
    return took


def _body(prefix: str, number: int) -> str:
    """Return a small cell. It calls something: cells of constants alone always run and are not recorded."""
    return f"{prefix}{number} = dict(n=abs({number}))\nprint({prefix}{number})"


def measure_overhead(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """One kernel; plain and durable cells take turns, and the median of a block is a repetition."""
    size = bench.count(40, 10)
    with kernel(bench.fresh("cells")) as client:
        for number in range(3):
            run(client, f"%%durable warm{number}\n{_body('w', number)}")
        for block in range(bench.repetitions):
            plain, durable = [], []
            for number in range(block * size, (block + 1) * size):
                plain.append(run(client, _body("a", number)))
                durable.append(run(client, f"%%durable c{number}\n{_body('b', number)}"))
            yield "cells.overhead", Sample(statistics.median(durable), statistics.median(plain))


def measure_idle(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A fresh kernel each time: five cells, then look into the database from outside until they are there."""
    for _ in range(bench.repetitions):
        folder = bench.fresh("idle")
        with kernel(folder) as client:
            for number in range(5):
                run(client, f"%%durable c{number}\n{_body('b', number)}")
            began = time.perf_counter()
            while _completed(folder / ".nbflow" / "store.duckdb") < 5:
                if time.perf_counter() - began > 60:
                    raise ChildFailed("the steps of an idle kernel were not in DuckDB after a minute")
                time.sleep(0.05)
            yield "cells.idle", Sample(time.perf_counter() - began)


def _completed(database: Path) -> int:
    """Count the completed steps that a DuckDB client sees; 0 while there is none or it is locked."""
    import duckdb

    if not database.exists():
        return 0
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            found = connection.execute("select count(*) from steps where state = 'completed'").fetchone()
    except (duckdb.IOException, duckdb.CatalogException, duckdb.ConnectionException):
        return 0
    assert found is not None
    return int(found[0])


GROUPS = (
    Group(
        "cells.overhead",
        (
            Row(
                "cells.overhead",
                "`%%durable` cell in a kernel, small outputs",
                "the same cell without `%%durable`",
                Target("extra", 0.005),
            ),
        ),
        measure_overhead,
    ),
    Group(
        "cells.idle",
        (
            Row(
                "cells.idle",
                "an idle kernel's steps are in DuckDB, seconds after the last cell",
                "",
                Target("at_most", 2.0),
            ),
        ),
        measure_idle,
    ),
)
