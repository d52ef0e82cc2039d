"""Real SIGKILLs at every named point of a run of twelve steps, and at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nbflow.core.history import History
from nbflow.store.local import open_store
from nbflow.store.protocol import RunQuery

SCRIPT = Path(__file__).with_name("twelve.py")


def start(place: Path, effects: Path, crash: str | None = None) -> subprocess.Popen[str]:
    """Start the script, armed or not."""
    env = dict(os.environ)
    env.pop("NBFLOW_CRASH", None)
    if crash is not None:
        env["NBFLOW_CRASH"] = crash
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(place), str(effects)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int | None:
    """Return the script's result, or None when it was killed; any other end is a failure."""
    out, err = process.communicate(timeout=120)
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, err
    return int(json.loads(out.splitlines()[-1])["total"])


def recorded(place: Path) -> tuple[set[str], bool]:
    """Return the keys of the completed steps, and whether the run itself is completed."""
    if not place.exists():
        return set(), False
    store = open_store(place)
    try:
        done: set[str] = set()
        finished = False
        for info in store.runs(RunQuery(limit=None)):
            assert info.state != "corrupt", info.error
            finished = info.state == "completed"
            for execution in History.of(store.entries(info.run)).executions.values():
                if execution.completed is not None:
                    done.add(execution.started.step)
        return done, finished
    finally:
        store.close()


def counts(effects: Path) -> Counter[str]:
    """Count how often each body really ran."""
    return Counter(effects.read_text().split()) if effects.exists() else Counter()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The result of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    result = finish(start(folder / ".nbflow", folder / "effects"))
    assert result is not None
    return result


def carry_on(place: Path, effects: Path, expected: int) -> None:
    """Run again until the end; results equal the calm run's, and what was recorded did not run again."""
    before = counts(effects)
    keys, finished = recorded(place)
    done = len(keys)
    if not finished:  # else the next start would be a new run
        assert expected == finish(start(place, effects))
    after = counts(effects)

    assert 12 == len(after), "every body ran"
    again = [name for name in after if after[name] > max(1, before[name])]
    ran = sum(after.values()) - sum(before.values())
    assert ran == 12 - done, f"{done} steps were recorded, yet {ran} bodies ran (again: {again})"
    in_database_once(place)


def in_database_once(place: Path) -> None:
    """The database holds every record of the finished run once, and nothing else."""
    store = open_store(place)
    try:
        frame = store.sql(
            "select run, count(*) n, count(distinct seq) d, max(seq) m from events group by run"
        )
        steps = store.sql("select count(*) n from steps where state = 'completed'")
        states = store.sql("select state from runs")
    finally:
        store.close()
    assert list(frame["n"]) == list(frame["d"]) == list(frame["m"])
    assert 12 == steps["n"][0]
    assert ["completed"] == list(states["state"])


def kill_at(number: int, tmp_path: Path, expected: int) -> bool:
    """Kill a fresh run at the number-th point and carry it on; False when it ended before that point."""
    place, effects = tmp_path / f"s{number}" / ".nbflow", tmp_path / f"effects{number}"
    result = finish(start(place, effects, f"*:{number}"))
    if result is not None:
        assert expected == result
        return False
    carry_on(place, effects, expected)
    return True


def test_a_run_killed_at_sampled_points_carries_on(tmp_path: Path, expected: int) -> None:
    """Every ninth write, fsync and rename, from a random start: the result is that of a calm run."""
    number = random.randrange(1, 10)
    killed = 0
    while kill_at(number, tmp_path, expected):
        killed += 1
        number += 9

    assert killed >= 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_killed_at_every_point_carries_on(tmp_path: Path, expected: int) -> None:
    """Just before and just after every write, fsync and rename, ingest and compaction included."""
    number = 1
    while kill_at(number, tmp_path, expected):
        number += 1

    assert number > 60


def random_kills(rounds: int, tmp_path: Path, expected: int) -> None:
    """Kill at random moments, again and again within one run, until it is through."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    killed = place_number = 0
    place, effects = tmp_path / "s0" / ".nbflow", tmp_path / "effects0"
    while killed < rounds:
        before, (done, _) = counts(effects), recorded(place)
        process = start(place, effects)
        time.sleep(chance.uniform(0.05, 0.9))
        process.send_signal(signal.SIGKILL)
        result = finish(process)
        killed += result is None
        kept, finished = recorded(place)
        ran = sum(counts(effects).values()) - sum(before.values())
        assert done <= kept, f"an acknowledged step was lost (seed {seed})"
        assert ran <= 12 - len(done), f"a recorded step ran again (seed {seed})"
        if finished:
            assert result in (None, expected)
            in_database_once(place)
            place_number += 1  # not the count of kills: a run that got through unharmed does not raise that
            place, effects = tmp_path / f"s{place_number}" / ".nbflow", tmp_path / f"effects{place_number}"


def test_random_kills_lose_nothing(tmp_path: Path, expected: int) -> None:
    """Ten kills at random moments: no recorded step is lost, none runs again."""
    random_kills(10, tmp_path, expected)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_random_kills_lose_nothing(tmp_path: Path, expected: int) -> None:
    """A hundred kills at random moments: no recorded step is lost, none runs again."""
    random_kills(100, tmp_path, expected)
