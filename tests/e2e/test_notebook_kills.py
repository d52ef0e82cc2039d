"""A notebook whose kernel is killed at any moment: Run All in a new kernel shows what an undisturbed one shows."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import EFFECT, database_is_whole, history, infos, theirs
from tests.notebook.kernel import Cell, Kernel, KernelDied

#: Everything a notebook shows, with seven durable cells and four durable calls, each with an effect that is counted.
CELLS = [
    "%load_ext nbflow\n%config NbFlow.compact_after = 0.05\n%matplotlib inline",
    "",  # EFFECT
    """\
import random, sys
import numpy as np, pandas as pd, matplotlib.pyplot as plt, nbflow
random.seed(4)
np.random.seed(4)

@nbflow.durable
def fetch(n):
    effect(f"fetch{n}")
    return {"day": n, "values": np.random.default_rng(n).random(3).round(3).tolist()}""",
    "%%durable load\neffect('load')\nframe = pd.DataFrame({'a': np.random.rand(20_000), 'b': list('xyzw') * 5_000})\nframe.head(3)",
    "days = [fetch(n) for n in range(3)]\ndays",
    "%%durable noisy\neffect('noisy')\nprint('out')\nprint('err', file=sys.stderr)\nprint(random.random())",
    "%%durable plot\neffect('plot')\nplt.plot(frame.a[:50])\nplt.title(str(days[0]['values'][0]))",
    "%%durable change\neffect('change')\nframe['c'] = frame.a + np.random.rand()\nframe.shape",
    "%%durable waits\nimport asyncio\neffect('waits')\nawait asyncio.sleep(0.01)\ndrawn = [random.random() for _ in range(3)]\ndrawn",
    "late = fetch(7), np.random.rand()\nlate",
    "%%durable summary\neffect('summary')\nsummary = frame.groupby('b').mean().round(6)\nsummary",
    "print(random.random(), np.random.rand(), round(float(frame.c.sum()), 6))",
    "%nbflow finish",
]
STEPS = 6 + 4


@dataclass
class Disturbed:
    """One notebook in a folder of its own, run by kernels that may be armed to die."""

    folder: Path
    env: dict[str, str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.place = self.folder / ".nbflow"
        self.effects = self.folder / "effects"
        self.cells = [EFFECT.format(path=str(self.effects)) if not cell else cell for cell in CELLS]

    def kernel(self, crash: str | None = None) -> Kernel:
        env = {**self.env, "NBFLOW_STORE": str(self.place), "NBFLOW_NOTEBOOK": str(self.folder / "n.ipynb")}
        env.pop("NBFLOW_CRASH", None)
        if crash is not None:
            env["NBFLOW_CRASH"] = crash
        return Kernel(self.folder, env)

    def run_all(self, kernel: Kernel) -> list[Cell] | None:
        """Run every cell; None when the kernel died on the way."""
        done = []
        try:
            for cell in self.cells:
                done.append(kernel.run(cell))
                assert done[-1].ok, (cell, done[-1].errors)
            if not os.environ.get("NBFLOW_CRASH"):
                kernel.run("%unload_ext nbflow")  # ends the background work, or dies in it
        except KernelDied:
            return None
        return done

    def ran(self) -> int:
        return len(self.effects.read_text().split()) if self.effects.exists() else 0


def shown(cells: list[Cell]) -> list[Any]:
    return [theirs(cell) for cell in cells]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the notebook shows when nobody disturbs it."""
    notebook = Disturbed(tmp_path_factory.mktemp("calm") / "n", dict(os.environ))
    with notebook.kernel() as kernel:
        done = notebook.run_all(kernel)
    assert done is not None and notebook.ran() == STEPS
    return shown(done)


@pytest.fixture
def env(kernel_env: dict[str, str]) -> Iterator[dict[str, str]]:
    return kernel_env


def carry_on(notebook: Disturbed, calm: list[Any]) -> None:
    """Run All in a new kernel: equal outputs in order, each recorded step once, and all of it in the database."""
    found, before = infos(notebook.place), notebook.ran()
    resumes = (
        bool(found) and found[0].state != "completed"
    )  # killed after `finish`: the next Run All is a new run
    done = recorded(notebook, found[0].run) if resumes else 0
    with notebook.kernel() as kernel:
        again = notebook.run_all(kernel)
    assert again is not None
    assert shown(again) == calm
    ran = notebook.ran() - before
    assert ran == STEPS - done, f"{done} steps were recorded, yet {ran} bodies ran"
    after = infos(notebook.place)
    assert len(after) == len(found) + (not resumes)
    assert [(info.state, recorded(notebook, info.run)) for info in after] == [("completed", STEPS)] * len(
        after
    )
    database_is_whole(notebook.place)


def recorded(notebook: Disturbed, run: str) -> int:
    """Count the completed executions of a run; a step that was recorded twice counts twice."""
    return sum(
        execution.completed is not None for execution in history(notebook.place, run).executions.values()
    )


def kill_at(number: int, tmp_path: Path, env: dict[str, str], calm: list[Any]) -> bool:
    """Kill at the number-th write, fsync or rename of the kernel; False when it ended before that."""
    notebook = Disturbed(tmp_path / f"at{number}", env)
    with notebook.kernel(f"*:{number}") as kernel:
        done = notebook.run_all(kernel)
    if done is not None:
        assert shown(done) == calm
        return False
    carry_on(notebook, calm)
    return True


@pytest.mark.parametrize(
    "point",
    [
        "journal.sync.after:9",
        "compact.before-commit:1",
        pytest.param("leaves.sync.before:1", marks=pytest.mark.soak),
        pytest.param("ingest.before-commit:1", marks=pytest.mark.soak),
    ],
)
def test_a_notebook_killed_at_a_named_point_shows_what_an_undisturbed_one_shows(
    point: str, tmp_path: Path, kernel_env: dict[str, str], calm: list[Any]
) -> None:
    """SIGKILL while recording, while writing a large output, during ingest and during compaction."""
    notebook = Disturbed(tmp_path / "n", kernel_env)
    with notebook.kernel(point) as kernel:
        assert notebook.run_all(kernel) is None, f"{point} was never passed"
    carry_on(notebook, calm)


def test_numbers_drawn_behind_a_replayed_call_are_those_of_an_undisturbed_notebook(
    tmp_path: Path, kernel_env: dict[str, str]
) -> None:
    """A durable call in a plain cell draws from the global generator; after its replay the next number is the same."""
    cells = [
        "%load_ext nbflow\nimport nbflow, random\nrandom.seed(3)",
        "@nbflow.durable\ndef draw():\n    return random.random()",
        "draw()",
        "random.random()",
    ]
    with Kernel(tmp_path, kernel_env) as kernel:
        first = [kernel.run(cell).result for cell in cells]
        kernel.kill()
        kernel.restart()
        assert [kernel.run(cell).result for cell in cells] == first


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_notebook_killed_at_every_fourth_point_shows_what_an_undisturbed_one_shows(
    tmp_path: Path, kernel_env: dict[str, str], calm: list[Any]
) -> None:
    """Just before and after writes, fsyncs and renames all over the run, ingest and compaction included."""
    number = random.randrange(1, 5)
    killed = 0
    while kill_at(number, tmp_path, kernel_env, calm):
        number, killed = number + 4, killed + 1
    assert killed > 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_notebook_killed_at_random_moments_shows_what_an_undisturbed_one_shows(
    tmp_path: Path, kernel_env: dict[str, str], calm: list[Any]
) -> None:
    """Twenty times: SIGKILL from outside at a random moment, often more than once in a run, then Run All."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for number in range(20):
        notebook = Disturbed(tmp_path / f"r{number}", kernel_env)
        for _ in range(chance.choice([1, 1, 2, 3])):
            with notebook.kernel() as kernel:
                pid = kernel.pid
                timer = threading.Timer(
                    chance.uniform(0.0, 2.0), lambda pid=pid: os.kill(pid, signal.SIGKILL)
                )
                timer.start()
                try:
                    done = notebook.run_all(kernel)
                finally:
                    timer.cancel()
                    time.sleep(0.05)
                if done is not None:
                    break
        try:
            carry_on(notebook, calm)
        except AssertionError as error:
            error.add_note(f"seed {seed}, notebook {number}")
            raise
