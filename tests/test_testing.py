"""The testing kit does what its page says, so that users may trust what it shows them."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow import testing
from nbflow.core import crashpoints
from nbflow.core.errors import LeaseHeld, LeaseLost, StoreFull, UsageError
from nbflow.core.model import Message, RunOpened, RunTagged
from nbflow.runtime.session import Session, this_process
from nbflow.store.local import open_store
from nbflow.testing import (
    Crash,
    FaultyStore,
    MemoryStore,
    RecordingObserver,
    armed,
    crash,
    crash_points,
)
from nbflow.values.leaf import Leaf

ROOT = Path(__file__).resolve().parent.parent


class World:
    """Counts what a workflow does outside its run."""

    def __init__(self) -> None:
        self.done: list[int] = []

        @nbflow.durable(version="1", name="work")
        def work(n: int) -> int:
            self.done.append(n)
            return n * 10

        self.work = work

    def run(self, store: Any) -> list[int]:
        with nbflow.run("w", store=store):
            return [self.work(n) for n in range(4)]


def test_every_public_name_is_documented_here_and_on_the_page() -> None:
    """What a user may use, docs/testing.md shows."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    for name in testing.__all__:
        assert (getattr(testing, name).__doc__ or "").strip(), name
        assert f"`{name}" in page or f"{name}(" in page, name


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
def test_a_crash_at_any_point_costs_at_most_the_step_that_was_running(tmp_path: Path, files: bool) -> None:
    """Die at the first point, the second, and so on: the next run ends the same, and does again what was not kept."""
    crashes = 0
    for n in itertools.count(1, 4 if files else 1):  # with files a round takes a quarter of a second
        world = World()
        store: Any = open_store(tmp_path / str(n)) if files else MemoryStore()
        with crash(f"*:{n}") as crashed:
            world.run(store)
        if not crashed:
            break
        crashes += 1
        if [run.state for run in store.runs()] != ["completed"]:
            assert [0, 10, 20, 30] == world.run(store)
        store.close()
        assert [0, 1, 2, 3] == sorted(set(world.done))
        assert 4 <= len(world.done) <= 5, crashed
    assert crashes >= 8
    assert [0, 1, 2, 3] == world.done


def test_after_a_crash_nothing_more_is_recorded() -> None:
    """The unwinding of a dead process leaves no trace: no failed step, no end of the run."""
    store = MemoryStore()
    with crash("memory.append.before:4") as crashed, nbflow.run("w", store=store) as run:
        try:
            World().work(1)
            World().work(2)
        finally:
            nbflow.durable(version="1", name="cleanup")(lambda: None)()

    assert crashed
    assert "memory.append.before" == crashed.point
    assert [("work", "completed"), ("work", "running")] == [
        (step.name, str(step.state)) for step in store.steps(run.id)
    ]
    assert "running" == store.run(run.id).state


def test_an_error_before_the_crash_is_not_hidden() -> None:
    """Only what a dead process says is dropped."""
    with pytest.raises(ZeroDivisionError), crash("never:1") as crashed:
        raise ZeroDivisionError
    assert not crashed
    with crash("never:1") as crashed:
        crashpoints.point("other")
    assert "<not crashed>" == repr(crashed)


def test_a_crash_does_not_outlive_its_block() -> None:
    """Behind the block points are passed as ever."""
    with crash("here:2") as crashed:
        crashpoints.point("here")
        with pytest.raises(Crash):
            crashpoints.point("here")
        with pytest.raises(Crash):
            crashpoints.point("elsewhere")
    assert "here" == crashed.point
    crashpoints.point("here")


@pytest.mark.parametrize("at", ["", "here", "here:0", "here:-1", "here:x", ":3"])
def test_a_point_that_cannot_be_is_refused(at: str) -> None:
    """A slip in the test's own words is an error and not a test that cannot fail."""
    with pytest.raises(UsageError, match="crash point"), crash(at):
        pass
    with pytest.raises(UsageError, match="crash point"):
        armed(at)


def test_crash_points_lists_what_a_block_passes(tmp_path: Path) -> None:
    """The list names the store's own points in order; each can be crashed at."""
    store = open_store(tmp_path / "store")
    with crash_points() as passed:
        World().run(store)
    store.close()
    assert {"journal.write.before", "journal.sync.after"} <= set(passed)
    assert passed.index("journal.write.before") < passed.index("journal.write.after")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_armed_kills_another_process_for_real(tmp_path: Path) -> None:
    """The process dies by SIGKILL at the point; the run is carried on here."""
    script = tmp_path / "script.py"
    script.write_text(
        'import nbflow\nwith nbflow.run("w"):\n    print([nbflow.durable(version="1", name="f")(lambda n: n)(n) for n in range(3)])\n'
    )
    dead = subprocess.run(
        [sys.executable, str(script)], env=armed("journal.sync.after:3"), capture_output=True, check=False
    )
    assert -signal.SIGKILL == dead.returncode
    alive = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "[0, 1, 2]\n" == alive.stdout
    assert "NBFLOW_CRASH" not in os.environ


def test_restart_frees_the_leases_and_keeps_what_was_recorded() -> None:
    """A MemoryStore plays the death of its process: the old owner is fenced off, the next one replays."""
    store = MemoryStore()
    first = Session.open(store, "w")
    first.tag(team="blue")
    with pytest.raises(LeaseHeld):
        Session.open(store, "w")
    store.restart()
    second = Session.open(store, "w")

    assert (2, {"team": "blue"}) == (second.attempt, second.history.tags)
    with pytest.raises(LeaseLost):
        first.tag(team="red")
    first.close()
    second.tag(team="green")
    second.finish()


def logs(at: Any, **options: Any) -> tuple[MemoryStore, FaultyStore, Any]:
    memory = MemoryStore()
    memory.create(RunOpened(run="run1", workflow="w"))
    store = FaultyStore(memory, at=at, **options)
    return memory, store, store.attach("run1", this_process())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("when", "kept"), [("before", 3), ("after", 5)])
def test_a_faulty_store_fails_at_the_numbers_it_was_told(when: Any, kept: int, is_async: bool) -> None:
    """Sync and async appends are counted together, and those that fail keep their records or do not."""
    memory, store, log = logs({2, 4}, when=when)
    failed = []
    for n in range(1, 6):
        try:
            if is_async:
                asyncio.run(log.append_async(RunTagged(tags={"n": str(n)})))
            else:
                log.append(RunTagged(tags={"n": str(n)}))
        except StoreFull:
            failed.append(n)
    assert [2, 4] == failed
    assert (5, 5, 2) == (store.appends, store.calls, store.failures)
    assert kept == sum(isinstance(entry.record, RunTagged) for entry in memory.entries("run1"))


def test_a_faulty_store_waits_as_the_store_that_it_wraps_does() -> None:
    """An async append stays one: other tasks go on meanwhile."""
    _, _, log = logs(99)
    order: list[str] = []

    async def record() -> None:
        await log.append_async(RunTagged(tags={}))
        order.append("recorded")

    async def other() -> None:
        order.append("other")

    async def both() -> None:
        await asyncio.gather(record(), other())

    asyncio.run(both())
    assert ["other", "recorded"] == order


def test_a_faulty_store_can_fail_elsewhere_than_in_appends() -> None:
    """Large values, messages, new runs: each only where it is asked for."""
    _, store, log = logs(1, of=("put_leaves",))
    log.append(RunTagged(tags={}))
    with pytest.raises(StoreFull):
        log.put_leaves([Leaf(b"d", 1, [memoryview(b"x")])])

    memory, store, log = logs({1, 3}, when="after", of=("send", "messages"))
    with pytest.raises(StoreFull):
        store.send("run1", Message(id="m1", topic="signal", sent_at=0.0))
    assert ["m1"] == [message.id for message in log.messages()]
    with pytest.raises(StoreFull):
        log.messages()
    assert (0, 3, 2) == (store.appends, store.calls, store.failures)
    assert "run1" == store.run("run1").run  # the rest is the wrapped store's


def test_a_faulty_store_can_fail_with_any_error() -> None:
    """The error is the test's choice."""
    _, _, log = logs(1, error=lambda: OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        log.append(RunTagged(tags={}))


@pytest.mark.parametrize("wrong", [{"when": "later"}, {"of": ("apend",)}])
def test_a_faulty_store_refuses_what_it_cannot_do(wrong: dict[str, Any]) -> None:
    """A slip would be a fault that never happens."""
    with pytest.raises(UsageError):
        FaultyStore(MemoryStore(), at=1, **wrong)


def test_a_faulty_store_counts_every_append_of_several_threads() -> None:
    """One of a hundred fails, whoever comes to it."""
    _, store, log = logs(50)
    failures: list[StoreFull] = []

    def append() -> None:
        for _ in range(25):
            try:
                log.append(RunTagged(tags={}))
            except StoreFull as error:
                failures.append(error)

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (100, 1, 1) == (store.appends, store.failures, len(failures))


def test_a_recording_observer_answers_what_tests_ask() -> None:
    """Names, events of one callback, and the states that were entered."""
    seen = RecordingObserver()
    with nbflow.observe(seen):
        World().run(MemoryStore())
    assert seen.names() == [event.callback for event in seen]
    assert 8 == len(seen.of("on_step"))
    assert [] == seen.states()
    with pytest.raises(UsageError, match="on_stat"):
        seen.of("on_stat")
    seen.clear()
    assert 0 == len(seen)


def test_the_page_on_testing_runs(tmp_path: Path) -> None:
    """Its Python, one block after the other in one script, raises nothing and its assertions hold."""
    run_page("testing.md", tmp_path)


def test_the_page_on_observers_runs(tmp_path: Path) -> None:
    """Its Python, one block after the other in one script, raises nothing and its assertions hold."""
    run_page("observers.md", tmp_path)


def run_page(name: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
