"""Real SIGKILLs of a machine with a task of every kind: at points of its store and at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery
from tests.e2e.kit import database_is_whole, history
from tests.runtime.machine_model import check_journal

SCRIPT = Path(__file__).with_name("machine_steps.py")

Effect = tuple[str, int]


class Place:
    """A store and the effects of a machine that runs over it, process after process."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / ".nbflow"
        self.effects = folder / "effects"
        self.kills = 0

    def run(self, crash: str | None = None, after: float | None = None) -> dict[str, Any] | None:
        """Run the machine in a process; return its end and data, or None when it was killed."""
        seen, recorded = len(self.done()), self.recorded()
        env = {key: value for key, value in os.environ.items() if key != "NBFLOW_CRASH"}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.store), str(self.effects)],
            env={**env, "NBFLOW_CRASH": crash} if crash else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if after is not None:
            time.sleep(after)
            process.kill()
        out, err = process.communicate(timeout=120)
        repeated = set(self.done()[seen:]) & recorded
        assert not repeated, f"done again although recorded: {repeated}"
        if process.returncode == -signal.SIGKILL:
            self.kills += 1
            return None
        assert process.returncode == 0, err
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def done(self) -> list[Effect]:
        """Return the effects so far, in order; a kill may have cut none in half, they are single writes."""
        lines = self.effects.read_text().splitlines() if self.effects.exists() else []
        return [(step, number) for step, number in map(json.loads, lines)]

    def recorded(self) -> set[Effect]:
        """Return the effects whose steps and cursors are in the journals."""
        found: set[Effect] = set()
        if not self.store.exists():
            return found
        for run in self.runs():
            past = history(self.store, run)
            for step, executions in past.by_step.items():
                cursor = past.cursors.get(step)
                found |= {(step, number) for number in range(cursor.number + 1 if cursor else 0)}
                if any(execution.completed for execution in executions):
                    found |= {effect for effect in self.done() if effect[0] == step}
        return found

    def runs(self) -> list[str]:
        """Return the ids of the runs, parent and child."""
        store = LocalStore(self.store, background=False)
        try:
            return [info.run for info in store.runs(RunQuery(limit=None))]
        finally:
            store.close()

    def check_whole(self) -> None:
        """Assert that there is one run with one child, and that journals and database are as they must be."""
        store = LocalStore(self.store, background=False)
        try:
            infos = store.runs(RunQuery(limit=None))
            assert ["inner", "steps"] == sorted(info.workflow for info in infos)
            for info in infos:
                check_journal(store.entries(info.run))
        finally:
            store.close()
        database_is_whole(self.store)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], set[Effect]]:
    """The end and data of a run that nobody disturbs, and its effects."""
    place = Place(tmp_path_factory.mktemp("calm"))
    found = place.run()
    assert found is not None
    assert {1} == set(Counter(place.done()).values())
    return found, set(place.done())


def killed(place: Path, calm: tuple[dict[str, Any], set[Effect]], crashes: Iterable[str]) -> Place:
    """Kill the machine at each of these points, process after process, let it end, and compare."""
    here, found = Place(place), None
    for crash in crashes:
        found = here.run(crash)
        if found is not None:
            break
    found = found or here.run()
    assert calm[0] == found
    assert calm[1] == set(here.done())
    here.check_whole()
    return here


def test_a_machine_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    tmp_path: Path, calm: tuple[dict[str, Any], set[Effect]]
) -> None:
    """Twelve SIGKILLs at points all over the store: same end, same data, nothing recorded is done again."""
    counts = (2, 12, 21, 17, 26, 19, 33, 15, 41, 24, 18, 37)
    here = killed(tmp_path, calm, [f"*:{count}" for count in counts])
    assert here.kills >= 8, "most of these points are reached"


@pytest.mark.soak
@pytest.mark.parametrize("n", range(1, 241, 4))
def test_a_machine_that_is_killed_at_point_n(
    n: int, tmp_path: Path, calm: tuple[dict[str, Any], set[Effect]]
) -> None:
    """The same for one SIGKILL, at sixty points from the first to the last."""
    killed(tmp_path, calm, [f"*:{n}"])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_a_machine_that_is_killed_at_random_moments(
    seed: int, tmp_path: Path, calm: tuple[dict[str, Any], set[Effect]]
) -> None:
    """Killed up to ten times wherever it is, imports included, and then left alone."""
    draw, here, found = random.Random(seed), Place(tmp_path), None
    for _ in range(10):
        found = here.run(after=draw.uniform(0.3, 1.4))
        if found is not None:
            break
    found = found or here.run()
    assert calm[0] == found
    assert calm[1] == set(here.done())
    here.check_whole()
