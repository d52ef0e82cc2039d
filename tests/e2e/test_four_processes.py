"""Four processes record on one store while a fifth keeps the database open: nobody waits for it, nothing is lost."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from nbflow.store.local import LocalStore
from tests.e2e.kit import database_is_whole, infos

WORKER = """
import json, os, sys, time
import nbflow
from nbflow.store.local import LocalStore

effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@nbflow.durable(version="1")
def step(n):
    os.write(effects, f"{sys.argv[3]}-{n}\\n".encode())
    return {"n": n, "text": "x" * 150}

store = LocalStore(sys.argv[1], idle=0.05)
print("ready", flush=True)
sys.stdin.readline()
took = []
with nbflow.run("busy", store=store, worker=sys.argv[3]):
    begin = time.perf_counter()
    for n in range(200):
        at = time.perf_counter()
        step(n)
        took.append(time.perf_counter() - at)
    total = time.perf_counter() - begin
print(json.dumps({"total": total, "longest": max(took)}), flush=True)
sys.stdin.readline()
store.close()
"""

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("select count(*) from runs").fetchall()
print("open", flush=True)
sys.stdin.readline()
connection.close()
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def record(place: Path, effects: Path, *, held: bool) -> list[dict[str, float]]:
    """Let four processes record 200 steps each, with the database held open by a SQL client or free."""
    holder = start(HOLDER, place / "store.duckdb") if held else None
    workers = [start(WORKER, place, effects, name) for name in "abcd"]
    try:
        if holder is not None:
            assert hear(holder) == "open\n"
        assert [hear(worker) for worker in workers] == ["ready\n"] * 4
        for worker in workers:
            say(worker)
        # The client lets go only after all of them have reported: a step that waits for it would never end.
        times = [json.loads(hear(worker)) for worker in workers]
        if holder is not None:
            assert holder.poll() is None
            holder.communicate("go\n")
        for worker in workers:
            worker.communicate("go\n", timeout=60)
            assert worker.returncode == 0
        return times
    finally:
        for process in [*workers, *([holder] if holder else [])]:
            process.kill()
            process.wait()


def test_a_held_database_delays_no_step_of_four_processes(tmp_path: Path) -> None:
    """4 × 200 durable calls while a SQL client has the database open: as fast as without it, each once, all in DuckDB afterwards."""
    ratios = []
    for attempt in range(3):  # the machine may be busy with something else once
        free, held = tmp_path / f"free{attempt}", tmp_path / f"held{attempt}"
        for place in (free, held):
            store = LocalStore(place, background=False)
            store.ingest()
            store.close()
        alone = record(free, tmp_path / f"effects-free{attempt}", held=False)
        beside = record(held, tmp_path / f"effects{attempt}", held=True)
        lines = (tmp_path / f"effects{attempt}").read_text().split()
        assert sorted(lines) == sorted(f"{name}-{n}" for name in "abcd" for n in range(200))
        found = infos(held)
        assert [(info.state, info.steps) for info in found] == [("completed", 200)] * 4
        database_is_whole(held)
        store = LocalStore(held, background=False)
        counts = store.sql(
            "select count(*) n, count(distinct step) m from steps where state = 'completed' group by run"
        )
        store.close()
        assert counts.to_dict("records") == [{"n": 200, "m": 200}] * 4
        ratios.append(
            statistics.median(one["total"] for one in beside)
            / statistics.median(one["total"] for one in alone)
        )
        if ratios[-1] < 1.5:
            return
    raise AssertionError(f"with the database held open the same steps took {ratios} times as long")
