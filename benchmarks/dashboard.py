"""The dashboard, its Python half: the first page of a long history, one long run, and news of a run that records.

What the browser adds (first paint, an event on the screen) is measured in `dashboard_page.py`.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, Target
from benchmarks.past import make_past

#: Seconds between two steps of the run that is followed, and for how many seconds it is.
_STEP, _SECONDS = 0.05, 6.0

# --- in the child ---------------------------------------------------------------------------------


def past(store: str, runs: int) -> str:
    """Fill a store with finished runs."""
    make_past(Path(store), runs)
    return "made"


def fetch(store: str) -> dict[str, float]:
    """The floor: a plain DuckDB client opens the file and fetches one row of 16 columns for each run."""
    import duckdb

    began = time.perf_counter()
    with duckdb.connect(f"{store}/store.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT * FROM nbflow.finished ORDER BY created DESC").fetchall()
    return {"seconds": time.perf_counter() - began, "rows": len(rows)}


def pages(store: str) -> dict[str, float]:
    """Time the first page of runs in a fresh process, and then others: sorted, filtered, searched, far behind."""
    import duckdb  # noqa: F401  (imports are not what this measures)
    import pandas  # noqa: F401, ICN001

    from nbflow.board import Board
    from nbflow.store.local import LocalStore

    began = time.perf_counter()
    board = Board(LocalStore(store, background=False, upkeep=False))
    total = board.ask("runs", {"limit": 50})["total"]
    cold = time.perf_counter() - began
    queries: list[dict[str, Any]] = [
        {"sort": "seconds"},
        {"states": ["cancelled"]},
        {"text": "city=city 7"},
        {"tags": {"team": "red"}, "sort": "workflow"},
        {"offset": total // 2},
    ]
    warm = [_timed(lambda query=query: board.ask("runs", query)) for query in queries]
    board.close()
    return {"rows": total, "cold": cold, "warm": max(warm)}


def long_run(store: str, steps: int) -> dict[str, float]:
    """Time the first look at a run of many steps, and at one of its steps."""
    from nbflow.board import Board
    from nbflow.core.ids import new_run_id
    from nbflow.core.model import Owner, RunOpened, StepCompleted, StepStarted
    from nbflow.store.local import LocalStore

    place = LocalStore(store, background=False, upkeep=False)
    run = new_run_id()
    place.create(RunOpened(run=run, workflow="long", workflow_kind="notebook"))
    log = place.attach(run, Owner("here", os.getpid(), time.time()))
    for first in range(0, steps, 1_000):
        records: list[Any] = []
        for number in range(first, first + 1_000):
            name = f"cell{number % 40}/fit"
            started = StepStarted(
                f"{name}:ab{number}#0", "fit", "call", b"s" * 32, parent=f"cell{number % 40}"
            )
            records += [started, StepCompleted(-1, started.step, seconds=0.1)]
        log.append(*records)
    board = Board(place)
    board.ask("runs", {})
    answer = {"seconds": _timed(lambda: board.ask("run", {"run": run}))}
    board.close()
    log.release()
    return answer


def record(store: str) -> None:
    """Be the run that is followed: a step now and then, until told to stop."""
    import nbflow

    @nbflow.durable(version="1")
    def step(number: int) -> int:
        return number

    over = threading.Event()
    with nbflow.run("followed", store=store) as run:
        step(-1)
        harness.tell(run.id)
        threading.Thread(target=lambda: (input(), over.set()), daemon=True).start()
        number = 0
        while not over.is_set():
            step(number)
            number += 1
            time.sleep(_STEP)


def follow(store: str, run: str) -> dict[str, float]:
    """Follow a run as a dashboard does; return the follower's share of one core and how old news are (seconds)."""
    import duckdb  # noqa: F401 - a kernel with a store has loaded it; 0.1 s is half of what a few seconds may cost

    from nbflow.board import Board
    from nbflow.store.local import LocalStore, find_store

    board = Board(LocalStore(find_store(store), background=False, upkeep=False))
    ages: list[float] = []

    def push(news: dict[str, Any]) -> None:
        if news["push"] == "run":
            ages.append(time.time() - news["at"])

    board.ask("watch", {"view": "v", "run": run, "runs": {}, "gates": True})
    board.listen("v", push)
    time.sleep(1.5)  # what is imported at first is not what following costs
    thread = next(thread for thread in threading.enumerate() if thread.name == "nbflow-board")
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    ages.clear()
    cpu, began = time.clock_gettime(clock), time.monotonic()
    time.sleep(_SECONDS)
    share = (time.clock_gettime(clock) - cpu) / (time.monotonic() - began)
    board.close()
    return {"share": share, "age": statistics.median(ages), "pushes": len(ages)}


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- in the parent --------------------------------------------------------------------------------


def measure_history(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """One long history, looked at by fresh processes."""
    store = bench.fresh("past")
    harness.child(__file__, "past", store=str(store), runs=bench.count(10_000, 1_000))
    for number in range(bench.repetitions + 1):
        floor = harness.child(__file__, "fetch", store=str(store))
        found = harness.child(__file__, "pages", store=str(store))
        if number:  # the first pair only warms the page cache
            yield "dashboard.cold", Sample(found["cold"], floor["seconds"])
            yield "dashboard.page", Sample(found["warm"])


def measure_run(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A run of many steps in a store of its own."""
    steps = bench.count(10_000, 2_000)
    for _ in range(bench.repetitions):
        found = harness.child(__file__, "long_run", store=str(bench.fresh("long")), steps=steps)
        yield "dashboard.run", Sample(found["seconds"])


def measure_following(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A process that records, and another that follows it."""
    for _ in range(bench.count(bench.repetitions, 1)):
        store = str(bench.fresh("followed"))
        recording = harness.start(__file__, "record", store=store)
        run = recording.hear()
        found = harness.child(__file__, "follow", store=store, run=run)
        recording.tell()
        recording.done()
        yield "dashboard.news", Sample(found["age"])
        yield "dashboard.following", Sample(found["share"])


GROUPS = (
    Group(
        "dashboard.history",
        (
            Row(
                "dashboard.cold",
                "the first page of 10,000 finished runs, in a fresh process",
                "DuckDB fetches a row of each",
                Target("at_most", 0.4),
            ),
            Row(
                "dashboard.page",
                "the slowest of: sorted, filtered, searched, the middle page",
                "",
                Target("at_most", 0.2),
            ),
        ),
        measure_history,
    ),
    Group(
        "dashboard.run",
        (Row("dashboard.run", "one run of 10,000 steps, looked at first", "", Target("at_most", 0.3)),),
        measure_run,
    ),
    Group(
        "dashboard.following",
        (
            Row(
                "dashboard.news",
                "age of an event of another process when it is pushed",
                "",
                Target("at_most", 0.3),
            ),
            Row(
                "dashboard.following",
                "CPU seconds a second that following costs",
                "",
                Target("at_most", 0.02),
            ),
        ),
        measure_following,
    ),
)

if __name__ == "__main__":
    harness.serve(past, fetch, pages, long_run, record, follow)
