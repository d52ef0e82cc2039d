"""Fan-outs under load: serial and concurrent ones agree, kills cost nothing recorded, nested ones do not deadlock."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nbflow
from nbflow.core.history import History
from nbflow.core.model import Entry, StepCompleted, StepEnded, StepRetried, StepStarted, execution_of
from nbflow.core.states import StepState
from nbflow.runtime import modes
from nbflow.testing import MemoryStore

SCRIPT = """\
import os, sys, time
import nbflow

effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def work(n):
    if n % 7 == 0:
        time.sleep(0.004)
    os.write(effects, f"{n}\\n".encode())
    return n * n

with nbflow.run("killed", store=sys.argv[1]):
    results = nbflow.map(work, range(60), max_parallel=int(sys.argv[3]), depends_on={59: range(59)})
print(sum(results))
"""

two_at_once = pytest.mark.skipif(modes.current() == "one-worker", reason="needs two workers at once")


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def plan(seed: int) -> tuple[list[int], dict[int, list[int]], dict[int, int], str]:
    """Random items, dependencies, numbers of failing tries, and what to do about failures."""
    draw = random.Random(seed)
    count = draw.randint(5, 40)
    # Values repeat, so that occurrence numbers are needed.
    items = [draw.randint(0, count // 2) for _ in range(count)]
    order = list(range(count))
    draw.shuffle(order)
    after = {
        place: draw.sample(order[:position], draw.randint(0, min(2, position)))
        for position, place in enumerate(order)
        if draw.random() < 0.5
    }
    fails = {value: draw.randint(1, 3) for value in range(count) if draw.random() < 0.2}
    return items, after, fails, draw.choice(["continue", "skip_dependents"])


def journal(seed: int, parallel: int, way: str) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """Run a planned fan-out; return its records without what time and order decide, sorted, and its results."""
    items, after, fails, on_error = plan(seed)
    lock = threading.Lock()
    tries: Counter[int] = Counter()

    @nbflow.durable(version="1")
    def inner(value: int) -> int:
        return -value

    def work(value: int) -> int:
        if value % 5 == 4:
            time.sleep(0.0025)
        if value in fails and fails[value] > 2:
            raise ValueError(value)
        if value % 3 == 0:
            inner(value)
        return 10 * value

    @nbflow.durable(version="1", name="item")
    def flaky(value: int) -> int:
        with lock:
            tries[value] += 1
            again = tries[value] <= fails.get(value, 0) <= 2 and items.count(value) == 1
        if again:
            raise OSError(value)
        return work(value)

    @nbflow.durable(version="1", name="item")
    async def flaky_task(value: int) -> int:
        await asyncio.sleep(0.003 if value % 4 == 3 else 0)
        return flaky.plain(value)

    async def in_tasks() -> list[Any]:
        return await nbflow.map(flaky_task, items, max_parallel=parallel, **options)

    memory = MemoryStore()
    options: dict[str, Any] = {
        "depends_on": after,
        "on_error": on_error,
        "retries": nbflow.RetryPolicy(retries=2, delay=0, retry_on=OSError),
    }
    with nbflow.run("w", store=memory):
        if way == "pool":
            with ThreadPoolExecutor(parallel) as pool:
                results = nbflow.map(flaky, items, executor=pool, **options)
        elif way == "tasks":
            results = asyncio.run(in_tasks())
        else:
            results = nbflow.map(flaky, items, max_parallel=parallel, **options)
    (run,) = memory.runs()
    entries = memory.entries(run.run)
    memory.close()
    return sorted(plain(entries)), [repr(result) for result in results]


def plain(entries: list[Entry]) -> list[tuple[Any, ...]]:
    """The records of steps without seqs, times and durations."""
    begun = {entry.seq: entry.record.step for entry in entries if isinstance(entry.record, StepStarted)}
    found = []
    for entry in entries:
        record = entry.record
        if not isinstance(record, StepStarted | StepCompleted | StepEnded | StepRetried):
            continue
        body = msgspec.to_builtins(record)
        if not isinstance(record, StepStarted):
            assert begun[execution_of(entry)] == record.step
        for name in ("execution", "seconds", "due_at"):
            body.pop(name, None)
        if body.get("error"):
            body["error"] = (body["error"]["type"], body["error"]["message"])
        found.append((record.step, type(record).__name__, repr(sorted(body.items()))))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_serial_and_concurrent_fan_outs_give_equal_journals(seed: int) -> None:
    """In threads, tasks and an executor; after sorting, without times and numbers. Their results are equal too."""
    expected = journal(seed, 1, "threads")
    assert expected == journal(seed, 8, "threads")
    assert expected == journal(seed, 4, "tasks")
    assert expected == journal(seed, 4, "pool")


def start(script: Path, place: Path, effects: Path, parallel: int, crash: str | None) -> Any:
    """Start the script, armed or not."""
    env = {name: value for name, value in os.environ.items() if name != "NBFLOW_CRASH"}
    if crash is not None:
        env["NBFLOW_CRASH"] = crash
    return subprocess.Popen(
        [sys.executable, str(script), str(place), str(effects), str(parallel)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def recorded(place: Path, root: float = 0.5) -> set[int]:
    """The items that are recorded as completed, by their results."""
    from nbflow.store.local import LocalStore

    if not place.exists():
        return set()
    found = LocalStore(place, background=False)
    try:
        return {
            round(int(execution.completed.checkpoint.outputs[0].preview) ** root)
            for info in found.runs()
            for execution in History.of(found.entries(info.run)).executions.values()
            if execution.completed is not None
        }
    finally:
        found.close()


@pytest.mark.parametrize(
    ("crash", "parallel"),
    [
        ("journal.sync.after:2", 1),
        ("journal.sync.before:4", 1),
        ("journal.sync.after:6", 4),
        ("journal.write.after:7", 4),
    ],
)
def test_a_killed_map_runs_again_only_what_is_not_recorded(tmp_path: Path, crash: str, parallel: int) -> None:
    """SIGKILL in the middle, on a real disk: the resume runs exactly the rest, and the result is the same."""
    script, place, effects = tmp_path / "killed.py", tmp_path / ".nbflow", tmp_path / "effects"
    script.write_text(SCRIPT)
    killed = start(script, place, effects, parallel, crash)
    _, said = killed.communicate(timeout=120)
    assert -signal.SIGKILL == killed.returncode, said
    done = recorded(place)
    before = Counter(map(int, effects.read_text().split())) if effects.exists() else Counter()
    assert 59 not in done or len(done) == 60
    assert done <= set(before)

    again = start(script, place, effects, parallel, None)
    out, said = again.communicate(timeout=120)
    assert 0 == again.returncode, said
    assert sum(n * n for n in range(60)) == int(out)
    ran = Counter(map(int, effects.read_text().split())) - before
    assert Counter(set(range(60)) - done) == ran


def test_some_crash_point_strikes_in_the_middle(tmp_path: Path) -> None:
    """The test above proves something: a kill after six syncs leaves some items recorded and some not."""
    script, place, effects = tmp_path / "killed.py", tmp_path / ".nbflow", tmp_path / "effects"
    script.write_text(SCRIPT)
    start(script, place, effects, 1, "journal.sync.after:6").communicate(timeout=120)
    assert 0 < len(recorded(place)) < 60


INTERRUPTED = """\
import sys, time
import nbflow

def work(n):
    with open(sys.argv[2], "a") as file:
        file.write(f"{n}\\n")
    time.sleep(0 if n < 3 or len(sys.argv) > 3 else 0.7)
    return n

with nbflow.run("interrupted", store=sys.argv[1]):
    print(sum(nbflow.map(work, range(40), max_parallel=3)))
"""


def test_ctrl_c_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    """A real SIGINT, with threads at work: what runs is recorded where it ends soon, and the run is carried on."""
    script, place, effects = tmp_path / "interrupted.py", tmp_path / ".nbflow", tmp_path / "effects"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(place), str(effects)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (effects.exists() and len(effects.read_text().split()) >= 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    begun = [int(line) for line in effects.read_text().split()]
    assert len(begun) < 20
    done = recorded(place, root=1)
    assert {0, 1, 2} <= done <= set(begun)

    again = subprocess.run(
        [sys.executable, str(script), str(place), str(effects), "fast"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == again.returncode, again.stderr
    assert sum(range(40)) == int(again.stdout)
    ran = Counter(map(int, effects.read_text().split()))
    assert [] == [n for n in done if ran[n] != 1]
    assert set(range(40)) == set(ran)


@pytest.mark.parametrize("force", ["", "one-worker", "evict"])
def test_twelve_parents_that_map_children_do_not_deadlock(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, force: str
) -> None:
    """Four wide, three deep, with durable calls at the bottom; also with one worker, and with nothing kept in memory."""
    if force:
        monkeypatch.setenv("NBFLOW_FORCE", force)

    @nbflow.durable(version="1")
    def leaf(n: int) -> int:
        time.sleep(0.001)
        return n

    def child(n: int) -> int:
        return sum(nbflow.map(leaf, [n, n + 1], max_parallel=2))

    def parent(n: int) -> int:
        return sum(nbflow.map(child, [10 * n, 10 * n + 5], max_parallel=4))

    with nbflow.run("w", store=store):
        results = nbflow.map(parent, range(12), max_parallel=4)
    assert [40 * n + 12 for n in range(12)] == results
    (run,) = store.runs()
    states = Counter(e.state for e in History.of(store.entries(run.run)).executions.values())
    assert {StepState.COMPLETED: 12 + 24 + 48} == dict(states)


@pytest.mark.parametrize("force", ["", "one-worker"])
def test_parents_that_wait_for_signals_of_their_siblings_do_not_deadlock(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, force: str
) -> None:
    """A wait gives its slot back: the item that sends what all others wait for comes last, and gets to run."""
    if force:
        monkeypatch.setenv("NBFLOW_FORCE", force)

    def work(n: int) -> Any:
        if n == 12:
            run = nbflow.current_run()
            assert run is not None
            for other in range(12):
                nbflow.signal(run.id, f"go-{other}", other, store=store)
            return n
        # From a nested map, so that two slots wait at once.
        return nbflow.map(lambda name: nbflow.wait_for(name, timeout=60), [f"go-{n}"], max_parallel=2)[0]

    with nbflow.run("w", store=store):
        results = nbflow.map(work, range(13), max_parallel=4)
    assert list(range(13)) == results


@two_at_once
def test_no_more_items_run_at_a_time_than_allowed(store: MemoryStore) -> None:
    """Whoever comes back from a wait waits for a slot."""
    lock = threading.Lock()
    running, most = 0, 0

    def busy() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.003)
        with lock:
            running -= 1

    def work(n: int) -> int:
        busy()
        nbflow.sleep(0.002)
        busy()
        return n

    with nbflow.run("w", store=store):
        assert list(range(24)) == nbflow.map(work, range(24), max_parallel=3)
    assert 1 < most <= 3


@pytest.mark.parametrize("force", ["", "one-worker"])
def test_an_item_that_comes_back_from_a_wait_goes_before_those_that_have_not_begun(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, force: str
) -> None:
    """It does not wait for the whole list: with one slot, few others begin in between."""
    if force:
        monkeypatch.setenv("NBFLOW_FORCE", force)
    begun: list[int] = []
    back: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 0:
            nbflow.sleep(0.01)
            back.append(len(begun))
        else:
            time.sleep(0.005)
        return n

    with nbflow.run("w", store=store):
        nbflow.map(work, range(200), max_parallel=1)
    assert back[0] < 100
