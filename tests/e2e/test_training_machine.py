"""The training machine of notebooks/02: killed at any moment and carried on by Run All, it ends as if nothing happened."""

from __future__ import annotations

import ast
import os
import pickle
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import nbflow
from nbflow.core.history import Execution, History
from nbflow.core.model import StepCompleted, StepCursor, StepStarted
from nbflow.store.local import LocalStore
from tests.e2e.kit import EFFECT, database_is_whole, history, infos, theirs
from tests.notebook.kernel import Cell, Kernel, KernelDied

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02-training-machine.ipynb"

#: Sees from outside what the machine does to the world: a card written is a publication, a folder gone takes it back.
WATCH = """
def watch(event, args):
    import os
    if event == "open" and str(args[0]).endswith("card.md") and args[1] == "w":
        effect("publish:" + os.path.basename(os.path.dirname(args[0])))
    if event == "shutil.rmtree" and "published" in str(args[0]):
        effect("unpublish:" + os.path.basename(str(args[0])))
import sys
sys.addaudithook(watch)
"""

#: A record is on disk: few and in the machine's own order, unlike the points of the background work.
SYNCED = "journal.sync.after"

#: Counts the crash points that are passed; only the undisturbed kernel does.
COUNT = f"""
def passed():
    return _points["*"], _points["{SYNCED}"]
from collections import Counter
from nbflow.core import crashpoints
_points = Counter()
def _count(name):
    _points.update((name, "*"))
crashpoints._hooks.append(_count)
"""

#: Cells that show times, or how often something was tried.
VARYING = {"sql", "status"}

#: Cells that run the machine.
MACHINES = ("train", "undo")


@dataclass
class Training:
    """The notebook in a folder of its own, run by kernels that may be armed to die."""

    folder: Path
    env: dict[str, str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.place = self.folder / ".nbflow"
        self.effects = self.folder / "effects"
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        self.cells = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}

    def kernel(self, crash: str | None = None) -> Kernel:
        env = {
            **self.env,
            "NBFLOW_STORE": str(self.place),
            "NBFLOW_NOTEBOOK": str(self.folder / NOTEBOOK.name),
        }
        env.pop("NBFLOW_CRASH", None)
        if crash is not None:
            env["NBFLOW_CRASH"] = crash
        return Kernel(self.folder, env)

    def run_all(self, kernel: Kernel, done: dict[str, Cell] | None = None) -> dict[str, Cell] | None:
        """Run every cell; None when the kernel died on the way, `done` then holds those before."""
        done = {} if done is None else done
        try:
            kernel.run(EFFECT.format(path=str(self.effects)) + WATCH)
            for name, source in self.cells.items():
                done[name] = kernel.run(source, cell_id=name)
                assert done[name].ok, (name, done[name].errors)
        except KernelDied:
            return None
        return done

    def happened(self) -> Counter[str]:
        """Count the effects on the world."""
        return Counter(self.effects.read_text().split()) if self.effects.exists() else Counter()

    def children(self) -> dict[str, str]:
        """The runs of the machine: id by the name of what they publish."""
        found = [info for info in infos(self.place) if info.workflow == "training"]
        names = {str(info.params["name"]): info.run for info in found}
        assert len(names) == len(found), "one run of the machine for each call"
        return names

    def results(self, run: str) -> dict[str, Any]:
        """The data of a run as `Machine.results` gives it, also where the machine's own code is not at hand."""
        machine = nbflow.Machine("training", ["a"], initial="a", final={"a"})
        store = LocalStore(self.place, background=False)
        try:
            return machine.results(run, store=store)
        finally:
            store.close()

    def published(self) -> dict[str, bytes]:
        place = self.folder / "published"
        return {
            str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()
        }


def shown(cells: dict[str, Cell]) -> dict[str, list[Any]]:
    return {name: theirs(cell) for name, cell in cells.items() if name not in VARYING}


@dataclass
class Calm:
    """How the notebook ends when nobody disturbs it, and between which crash points its machine works."""

    shown: dict[str, list[Any]]
    results: dict[str, dict[str, Any]]
    files: dict[str, bytes]
    #: The points of each name passed before and after each cell that runs the machine.
    spans: dict[str, dict[str, tuple[int, int]]]

    def at(self, cell: str, share: float, point: str = "*") -> str:
        """The point at which that share of a cell's work is done."""
        before, after = self.spans[cell][point]
        return f"{point}:{before + max(1, round(share * (after - before)))}"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """One undisturbed run, which counts the points."""
    training = Training(tmp_path_factory.mktemp("calm") / "n", dict(os.environ))
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    done: dict[str, Cell] = {}
    with training.kernel() as kernel:
        kernel.run(EFFECT.format(path=str(training.effects)) + WATCH + COUNT)
        for name, source in training.cells.items():
            before = kernel.run("passed()").result
            done[name] = kernel.run(source, cell_id=name)
            assert done[name].ok, (name, done[name].errors)
            if name in MACHINES:
                counts = [ast.literal_eval(found or "") for found in (before, kernel.run("passed()").result)]
                spans[name] = {
                    point: (counts[0][at], counts[1][at]) for at, point in enumerate(("*", SYNCED))
                }
    runs = training.children()
    assert training.happened() == {"publish:digits": 1, "publish:digits-tiny": 1, "unpublish:digits-tiny": 1}
    return Calm(
        shown=shown(done),
        results={name: training.results(run) for name, run in runs.items()},
        files=training.published(),
        spans=spans,
    )


def same_end(training: Training, calm: Calm, again: dict[str, Cell]) -> None:
    """Assert all that a person could look at, and what the journal says of how it came about."""
    assert shown(again) == calm.shown
    (notebook,) = (info for info in infos(training.place) if info.workflow != "training")
    runs = training.children()
    assert set(runs) == {"digits", "digits-tiny"}
    states = {info.run: (info.state, info.parent) for info in infos(training.place)}
    assert states[runs["digits"]] == ("completed", notebook.run)
    assert states[runs["digits-tiny"]] == ("failed", notebook.run)
    of_notebook = history(training.place, notebook.run).executions.values()
    begun = {e.started.detail["run"] for e in of_notebook if e.started.step_kind == "child"}
    assert begun == set(runs.values()), "no child was begun twice"

    for name, run in runs.items():
        equal(calm.results[name], training.results(run))
        whole = history(training.place, run)
        once(training.place, run)
        each_effect_once(training, name, whole)
    assert [
        e.started.name
        for e in entered(history(training.place, runs["digits"]))
        if e.started.detail.get("final")
    ] == ["PUBLISHED"]
    same_files(calm, training)
    database_is_whole(training.place)


def equal(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    assert set(expected) == set(actual)
    for name, value in expected.items():
        np.testing.assert_equal(actual[name], value, err_msg=name)


def same_files(calm: Calm, training: Training) -> None:
    """The card to the byte; the model by what it says of every picture, since a pickle's bytes are nobody's business."""
    files, found = calm.files, training.results(training.children()["digits"])
    actual = training.published()
    assert set(files) == set(actual) == {"digits/card.md", "digits/model.pickle"}
    assert files["digits/card.md"] == actual["digits/card.md"]
    features = np.hstack([found["pixels"], found["edges"]])
    expected, model = (pickle.loads(each["digits/model.pickle"]) for each in (files, actual))
    np.testing.assert_array_equal(expected.predict_proba(features), model.predict_proba(features))


def entered(found: History) -> list[Execution]:
    return [e for e in found.executions.values() if e.started.step_kind == "state"]


def once(place: Path, run: str) -> None:
    """No state is entered again once it is completed, and the cursors of each visit count 0, 1, 2 … without gap.

    A run that was rolled back may begin anew: then both hold between rollbacks. The
    rollback itself is entered again where the kill came before the run had failed;
    what it undid is not undone again.
    """
    store = LocalStore(place, background=False)
    try:
        records = [entry.record for entry in store.entries(run)]
    finally:
        store.close()
    completed: set[str] = set()
    cursors: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, StepStarted):
            assert record.step not in completed or record.name == "rollback", (
                f"{record.step} was completed and entered again"
            )
        elif isinstance(record, StepCursor):
            cursors.setdefault(record.step, []).append(record.number)
        elif isinstance(record, StepCompleted):
            completed.add(record.step)
            if record.step.startswith("TRAIN#"):
                assert cursors.pop(record.step) == [0, 1, 2, 3]
            elif record.step.startswith("rollback"):
                completed = {step for step in completed if step.startswith(("rollback", "undo"))}
    assert not cursors


def each_effect_once(training: Training, name: str, found: History) -> None:
    """What was done to the world is what the journal holds; a body that was killed may have come to its deed or not."""
    happened = training.happened()
    for effect, step in ((f"publish:{name}", "PUBLISH"), (f"unpublish:{name}", "undo PUBLISH")):
        executions = [e for e in found.executions.values() if e.started.name == step]
        done = sum(e.completed is not None for e in executions)
        killed = sum(e.completed is None for e in executions)
        assert done <= happened[effect] <= done + killed, (effect, happened, done, killed)
    published = sum(e.completed is not None for e in found.executions.values() if e.started.name == "PUBLISH")
    undone = sum(
        e.completed is not None for e in found.executions.values() if e.started.name == "undo PUBLISH"
    )
    assert (published, undone) == (1, 0) if name == "digits" else published == undone >= 1


def kill_and_carry_on(training: Training, calm: Calm, *points: str) -> int:
    """Kill kernel after kernel, each at its point; Run All in a last one and compare. Return how many died."""
    died = 0
    for crash in points:
        with training.kernel(crash) as kernel:
            if training.run_all(kernel) is not None:
                break
        died += 1
    with training.kernel() as kernel:
        again = training.run_all(kernel)
    assert again is not None
    same_end(training, calm, again)
    return died


@pytest.mark.parametrize(("cell", "share"), [("train", 0.1), ("train", 0.25), ("train", 0.6), ("undo", 0.8)])
def test_a_machine_that_is_killed_ends_as_an_undisturbed_one(
    cell: str, share: float, tmp_path: Path, kernel_env: dict[str, str], calm: Calm
) -> None:
    """SIGKILL among the features, between two folds, between two rounds, and in the middle of taking back; then Run All."""
    training = Training(tmp_path / "n", kernel_env)
    assert kill_and_carry_on(training, calm, calm.at(cell, share, SYNCED)) == 1, "the kernel was to die"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_machine_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(
    tmp_path: Path, kernel_env: dict[str, str], calm: Calm
) -> None:
    """Twenty-five times at a random write, fsync or rename of the machines' work, every third time twice in a row."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    died = 0
    for number in range(25):
        points = [calm.at(chance.choice(MACHINES), chance.random())]
        if number % 3 == 2:
            points.append(f"*:{chance.randrange(1, calm.spans['undo']['*'][1])}")
        try:
            died += kill_and_carry_on(Training(tmp_path / f"r{number}", kernel_env), calm, *points)
        except AssertionError as error:
            error.add_note(f"seed {seed}, notebook {number}, points {points}")
            raise
    assert died >= 25
