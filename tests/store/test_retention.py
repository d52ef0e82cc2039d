"""Retention promises: what goes is gone whole, what is shared stays, and what may be resumed is never touched."""

from __future__ import annotations

import signal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from nbflow.core.clock import Clock
from nbflow.core.model import ErrorInfo, RunChanged
from nbflow.store.local import LocalStore
from nbflow.store.protocol import Retention
from nbflow.testing import VirtualClock
from tests.store.conformance import attached, do_step, finish
from tests.store.store_kit import child, record, restored


def left(root: Path) -> dict[str, int]:
    """Count the rows of every table that holds something of a run, and the segment tables."""
    with duckdb.connect(str(root / "store.duckdb"), read_only=True) as connection:
        tables = [
            row[0]
            for row in connection.execute(
                "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE table_name <> 'migration' "
                "UNION ALL SELECT schema_name || '.\"' || view_name || '\"' FROM duckdb_views() WHERE schema_name = 'frames'"
            ).fetchall()
        ]
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in tables
            if not table.startswith("columns.")
        } | {"segments": sum(table.startswith("columns.") for table in tables)}


def test_deleting_the_only_run_leaves_nothing(tmp_path: Path) -> None:
    """Rows, views, columns, blobs and the folder: all gone."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store, tags={"a": "b"})
    record(
        log,
        "make",
        df=pd.DataFrame({"x": np.arange(4000.0)}),
        raw=b"1" * 20_000,
        odd=pd.DataFrame({"o": [1, "a"]}),
    )
    log.release()
    store.compact()
    assert left(tmp_path)["nbflow.leaf"] > 0
    store.delete(log.run)
    assert {table: count for table, count in left(tmp_path).items() if count} == {}
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_another_run_uses_stays(tmp_path: Path) -> None:
    """A shared leaf goes with the last run that names it."""
    store = LocalStore(tmp_path, background=False)
    df = pd.DataFrame({"x": np.arange(4000.0)})
    one, other = attached(store), attached(store)
    for log in (one, other):
        record(log, "make", df=df)
        finish(log)
    store.compact()
    store.delete(one.run)
    assert restored(store, other.run, "make")["df"].equals(df)
    store.delete(other.run)
    assert left(tmp_path)["segments"] == 0


@pytest.mark.parametrize("point", ["delete.before-commit", "delete.before-folder"])
def test_a_killed_delete_can_be_done_again(tmp_path: Path, point: str) -> None:
    """After SIGKILL the run is there whole, or gone whole, and deleting again works."""
    code = """
    log = attached(store)
    do_step(log, "a", leaves=[b"x" * 30000])
    log.release()
    store.compact()
    print(log.run, flush=True)
    store.delete(log.run)
    """
    process = child(tmp_path, code, NBFLOW_CRASH=f"{point}:1")
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    store = LocalStore(tmp_path, background=False)
    store.ingest()
    run = out.strip()
    assert len(store.entries(run)) == 4
    store.delete(run)
    assert store.runs() == [] and left(tmp_path)["nbflow.event"] == 0


def test_finished_runs_go_by_age_count_and_size(tmp_path: Path) -> None:
    """Each limit by itself; the newest stay longest."""
    clock: Clock = VirtualClock()
    store = LocalStore(tmp_path, background=False, clock=clock)
    runs = []
    for number in range(4):
        log = attached(store, f"flow-{number % 2}")
        do_step(log, "a", leaves=[bytes([number]) * 50_000])
        finish(log)
        runs.append(log.run)
    store.compact()
    names = {run: number for number, run in enumerate(runs)}

    def gone(retention: Retention) -> set[int]:
        return {names[info.run] for info in store.collect(retention, dry_run=True)}

    assert gone(Retention(keep=1)) == {0, 1}
    assert gone(Retention(keep=1, workflow="flow-0")) == {0}
    assert gone(Retention(size=110_000)) == {0, 1}
    assert gone(Retention(size=10)) == {0, 1, 2, 3}
    finished = max(info.finished_at or 0 for info in store.runs())
    assert isinstance(clock, VirtualClock)
    clock.advance(finished - clock.now() + 100)
    assert gone(Retention(age=50)) == {0, 1, 2, 3}
    assert gone(Retention(age=1000)) == set()
    assert gone(Retention()) == set()
    store.collect(Retention(keep=1))
    assert {names[info.run] for info in store.runs()} == {2, 3}


def test_failed_waiting_and_living_runs_are_never_collected(tmp_path: Path) -> None:
    """Whatever the limits: a run that may be resumed stays."""
    store = LocalStore(tmp_path, background=False)
    states = []
    for state in ("failed", "waiting", ""):
        log = attached(store)
        if state:
            log.append(RunChanged(state, error=ErrorInfo("E", "m") if state == "failed" else None))
            log.release()
        states.append(log)
    assert store.collect(Retention(keep=0, age=0.0, size=0)) == []
    assert len(store.runs()) == 3
