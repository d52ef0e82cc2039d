"""Plain scripts on a real store: buffered calls, threads, tasks, forks, interrupts, timeouts, versions and questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nbflow
from nbflow.core.errors import CannotStore, LeaseHeld, StepTimeout, UnknownStep
from nbflow.store.local import LocalStore
from nbflow.values.codec import decode
from tests.e2e.kit import completed, database_is_whole, history, infos

PRELUDE = """
import asyncio, json, multiprocessing, os, random, signal, sys, threading, time
import nbflow

_effects = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def effect(name):
    os.write(_effects, f"{name}\\n".encode())
    os.fsync(_effects)

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A function that starts a script in this test's store; `effect(name)` in it is on disk when it returns."""
    number = iter(range(100))

    def script(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        path = tmp_path / f"script{next(number)}.py"
        path.write_text(PRELUDE + textwrap.dedent(code))
        return subprocess.Popen(
            [sys.executable, str(path), str(tmp_path / "effects"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
        )

    return script


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out


def effects(tmp_path: Path) -> Counter[str]:
    path = tmp_path / "effects"
    return Counter(path.read_text().split()) if path.exists() else Counter()


# --- durability="async" ----------------------------------------------------------------------------------------------

BUFFERED = """
@nbflow.durable(version="1", durability="async")
def pure(n):
    return n

@nbflow.durable(version="1")
def sync(n):
    return n
"""


def recorded_numbers(place: Path, name: str) -> list[int]:
    """The results of the completed calls of a function, in the order of the journal."""
    return [
        decode(execution.completed.checkpoint, no_leaf)["return"]
        for execution in history(place).executions.values()
        if execution.completed is not None
        and execution.completed.checkpoint is not None
        and execution.started.name == name
    ]


def no_leaf(digest: bytes) -> memoryview:
    raise AssertionError("small numbers have no leaves")


def test_a_sync_step_flushes_the_buffered_ones_before_it(start: Start, _own_store: Path) -> None:
    """SIGKILL right after a sync call returned: every buffered call before it is on disk, in order."""
    code = (
        BUFFERED
        + """
with nbflow.run("w"):
    for n in range(50):
        pure(n)
    sync(1)
    die()
"""
    )
    ended(start(code), -signal.SIGKILL)
    assert recorded_numbers(_own_store, "pure") == list(range(50))
    assert recorded_numbers(_own_store, "sync") == [1]


@pytest.mark.parametrize("how", ["the end of the run", "flush", "an error", "an interrupt"])
def test_buffered_calls_are_on_disk_where_it_is_promised(how: str, start: Start, _own_store: Path) -> None:
    """At the end of the run, after `flush`, and when the body fails or is interrupted, nothing is left in memory."""
    last = {
        "the end of the run": "pass",
        "flush": "run.flush(); die()",
        "an error": "raise OSError('no')",
        "an interrupt": "raise KeyboardInterrupt",
    }[how]
    code = (
        BUFFERED
        + f"""
try:
    with nbflow.run("w") as run:
        for n in range(50):
            pure(n)
        {last}
except BaseException:
    pass
die()
"""
    )
    ended(start(code), -signal.SIGKILL)
    assert recorded_numbers(_own_store, "pure") == list(range(50))


def test_a_kill_costs_no_more_than_a_short_tail_of_buffered_calls(
    start: Start, _own_store: Path, tmp_path: Path
) -> None:
    """What is kept is a prefix of the calls, and what is lost was made within the last few milliseconds."""
    code = (
        BUFFERED
        + """
with nbflow.run("w", round=int(sys.argv[2])):
    begin = time.perf_counter()
    n = 0
    at = []
    while time.perf_counter() - begin < 0.4:
        pure(n)
        at.append(time.perf_counter())
        n += 1
        time.sleep(0.001)
    os.write(_effects, json.dumps([now - at[-1] for now in at]).encode())
    die()
"""
    )
    tails = []
    for attempt in range(5):  # the thread that writes needs a processor: a busy machine may keep it from one
        (tmp_path / "effects").unlink(missing_ok=True)
        ended(start(code, str(attempt)), -signal.SIGKILL)
        made = json.loads((tmp_path / "effects").read_text())
        kept = recorded_numbers(_own_store, "pure")
        assert kept == list(range(len(kept)))
        assert len(kept) > 0
        lost = [-age for age in made[len(kept) :]]
        tails.append(max(lost, default=0.0))
        if tails[-1] <= 0.015:  # 10 ms and the time that a write and a sync take
            return
    pytest.fail(f"the oldest call lost was made so long before the kill: {tails} s")


# --- concurrency -----------------------------------------------------------------------------------------------------

THREADS = """
from concurrent.futures import ThreadPoolExecutor

@nbflow.durable(version="1")
def work(n):
    effect(f"w{n}")
    return {"n": n, "square": n * n}

@nbflow.durable(version="1", durability="async")
def pure(n):
    return n

def one(n):
    result = work(n)["square"] + pure(n) - n
    if n == int(sys.argv[2]):
        die()
    return result

with nbflow.run("w"), ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(one, range(150)))))
"""

TASKS = """
@nbflow.durable(version="1")
async def work(n):
    await asyncio.sleep(random.random() / 200)
    effect(f"w{n}")
    return {"n": n, "square": n * n}

async def one(n):
    result = (await work(n))["square"]
    if n == int(sys.argv[2]):
        die()
    return result

async def main():
    return await asyncio.gather(*(one(n) for n in range(150)))

with nbflow.run("w"):
    print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.parametrize("code", [THREADS, TASKS], ids=["threads", "tasks"])
def test_concurrent_calls_are_recorded_once_whatever_is_killed(
    code: str, start: Start, tmp_path: Path, _own_store: Path
) -> None:
    """150 calls at once, SIGKILL in the middle twice, then to the end: right results, each recorded once, none again."""
    for victim in (40, 110, -1):
        before, done = effects(tmp_path), completed(_own_store)
        out = ended(start(code, str(victim)), 0 if victim < 0 else -signal.SIGKILL)
        work = sum(step.startswith("work") for step in done)
        ran = sum(effects(tmp_path).values()) - sum(before.values())
        assert ran <= 150 - work
        if victim < 0:
            assert ran == 150 - work
    assert json.loads(out) == [n * n for n in range(150)]
    after = completed(_own_store)
    assert set(after.values()) == {1}
    assert sum(step.startswith("work") for step in after) == 150
    database_is_whole(_own_store)


FORK = """
@nbflow.durable(version="1")
def work(n):
    effect(f"w{n}")
    return n

def child(n):
    try:
        return work(n)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    with nbflow.run("w"):
        work(0)
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            said = pool.map(child, [1, 2])
        work(3)
    print(json.dumps(said))
"""


@pytest.mark.parametrize(("method", "error"), [("fork", "NotTheOwner"), ("spawn", "NoActiveRun")])
def test_a_call_in_a_worker_process_is_refused_with_the_way_out(
    method: str, error: str, start: Start, tmp_path: Path, _own_store: Path
) -> None:
    """Forked and spawned children are told to record in the parent; their calls do not run; the parent goes on."""
    said = json.loads(ended(start(FORK, method)))
    assert len(said) == 2
    for sentence in said:
        assert sentence.startswith(error), sentence
        assert "in the parent" in sentence and "nbflow.run" in sentence
    assert effects(tmp_path) == {"w0": 1, "w3": 1}
    assert [info.state for info in infos(_own_store)] == ["completed"]
    assert len(completed(_own_store)) == 2


# --- how a run ends --------------------------------------------------------------------------------------------------

LONG = """
@nbflow.durable(version="1")
def work(n):
    effect(f"begin{n}")
    if n == 2 and len(sys.argv) > 2:
        print("waiting", flush=True)
        time.sleep(60)
    return n

with nbflow.run("w", version="7", day="monday") as run:
    print(json.dumps([work(n) for n in range(4)] + [run.attempt]))
"""


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)]
)
def test_a_script_that_is_interrupted_or_killed_carries_on(
    sign: signal.Signals, start: Start, tmp_path: Path, _own_store: Path
) -> None:
    """Ctrl-C, kill and kill -9 in the middle of a call: the next start is attempt 2 and runs only what was not recorded."""
    process = start(LONG, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(sign)
    process.communicate(timeout=30)
    assert process.returncode != 0
    (info,) = infos(_own_store)
    assert info.state == "running" and not info.alive
    assert json.loads(ended(start(LONG))) == [0, 1, 2, 3, 2]
    assert effects(tmp_path) == {"begin0": 1, "begin1": 1, "begin2": 2, "begin3": 1}
    (info,) = infos(_own_store)
    assert (info.state, info.version, info.params) == ("completed", "7", {"day": "monday"})
    store = LocalStore(_own_store, background=False)
    assert list(store.sql("select version from runs").version) == ["7"]
    assert list(store.sql("select state, count(*) n from steps group by 1 order by 1").n) == [1, 4]
    database_is_whole(_own_store)


def test_a_timeout_on_a_real_store_is_recorded_and_tried_again_after_a_restart(_own_store: Path) -> None:
    """StepTimeout names step and seconds; the state is timed_out in DuckDB as well; the next attempt of the run works."""
    slow = [True]

    @nbflow.durable(version="1", timeout=0.1)
    def work() -> int:
        if slow:
            time.sleep(30)
        return 5

    with pytest.raises(StepTimeout, match=r"work.*0\.1 s"), nbflow.run("w"):
        work()
    assert list(nbflow.sql("select state from steps").state) == ["timed_out"]
    slow.clear()
    with nbflow.run("w"):
        assert work() == 5
    assert sorted(nbflow.sql("select state from steps").state) == ["completed", "timed_out"]


def test_a_result_that_cannot_be_stored_costs_nothing_else(_own_store: Path) -> None:
    """CannotStore names the part; the calls before are kept, and the run is carried on when the function is mended."""
    calls: list[str] = []

    @nbflow.durable(version="1")
    def good() -> int:
        calls.append("good")
        return 1

    @nbflow.durable(version="1")
    def bad(fine: bool) -> dict[str, Any]:
        calls.append("bad")
        return {"rows": [1, {"handle": 2 if fine else open(os.devnull)}]}  # noqa: SIM115

    with pytest.raises(CannotStore, match=r"\['rows'\]\[1\]\['handle'\]"), nbflow.run("w"):
        good()
        bad(False)
    with nbflow.run("w") as run:
        assert (good(), bad(True)["rows"][0]) == (1, 1)
    assert run.attempt == 2
    assert calls == ["good", "bad", "bad"]


# --- questions -------------------------------------------------------------------------------------------------------


def frames(factor: int) -> pd.DataFrame:
    return pd.DataFrame({"carrier": list("abab"), "delay": [1.0 * factor, 2, 3, 4]})


@nbflow.durable(version="1", name="load")
def load(factor: int) -> pd.DataFrame:
    return frames(factor)


def test_sql_sees_frames_of_the_current_run_at_once_and_of_others_by_name(_own_store: Path) -> None:
    """`nbflow.sql` in the middle of a run, nothing compacted: this run's frame, another run's, and both joined; `output` too."""
    with nbflow.run("one", factor=1) as first:
        load(1)
    with nbflow.run("two", factor=10) as second:
        load(10)
        step = nbflow.steps().step[0]
        mine = nbflow.sql(f'select sum(delay) s from "{step}"."return"')
        other_step = nbflow.steps(first.id).step[0]
        other = nbflow.sql(f'select sum(delay) s from "{first.id}"."{other_step}"."return"')
        by_run = nbflow.sql(f'select sum(delay) s from "{other_step}"."return"', run=first)
        pd.testing.assert_frame_equal(nbflow.output(None, "load", "return"), frames(10))
        pd.testing.assert_frame_equal(nbflow.output(first, "load", "return"), frames(1))
    assert (mine.s[0], other.s[0], by_run.s[0]) == (19.0, 10.0, 10.0)
    with pytest.raises(UnknownStep, match="load"):
        nbflow.output(second.id, "nothing")


def test_gc_never_takes_what_a_living_run_needs(start: Start, tmp_path: Path, _own_store: Path) -> None:
    """`nbflow gc` with nothing to be kept, beside a run at work and a failed one: both go on with every value; finished ones go."""
    code = """
    import pandas as pd
    @nbflow.durable(version="1")
    def make(n):
        effect(f"make{n}")
        return pd.DataFrame({"x": range(n * 1000, n * 1000 + 50_000)})
    with nbflow.run("living"):
        frames = [make(n) for n in range(3)]
        if len(sys.argv) > 2:
            print("ready", flush=True)
            sys.stdin.readline()
            time.sleep(60)
        print(int(sum(frame.x.sum() for frame in frames)))
    """
    with pytest.raises(RuntimeError), nbflow.run("failed"):
        load(3)
        raise RuntimeError
    with nbflow.run("done"):
        load(4)
    living = start(code, "wait")
    assert living.stdout is not None
    assert living.stdout.readline() == "ready\n"
    main = [sys.executable, "-c", "from nbflow.cli import main; main()"]
    gone = subprocess.run(
        [*main, "gc", "--keep", "0", "--json", "--yes"], capture_output=True, text=True, check=True
    )
    assert [run["workflow"] for run in json.loads(gone.stdout)["deleted"]] == ["done"], gone.stdout
    assert {info.workflow for info in infos(_own_store)} == {"living", "failed"}
    refused = subprocess.run(
        [*main, "forget", next(i.run for i in infos(_own_store) if i.workflow == "living"), "--yes"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 5, refused.stdout + refused.stderr
    living.kill()
    living.communicate()
    assert int(ended(start(code))) == sum(range(50_000)) * 3 + 50_000 * 3_000
    assert effects(tmp_path) == {"make0": 1, "make1": 1, "make2": 1}
    with nbflow.run("failed") as run:
        assert load(3).delay[0] == 3
    assert run.resumed


def test_a_second_process_is_refused_and_the_first_goes_on(start: Start, tmp_path: Path) -> None:
    """LeaseHeld with host, pid and since as facts of the error."""
    process = start(LONG, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    try:
        with pytest.raises(LeaseHeld) as caught, nbflow.run("w", day="monday"):
            raise AssertionError("never here")
        assert (caught.value.pid, caught.value.host) == (process.pid, os.uname().nodename)
        assert caught.value.since is not None and abs(caught.value.since - time.time()) < 60
    finally:
        process.kill()
        process.communicate()
