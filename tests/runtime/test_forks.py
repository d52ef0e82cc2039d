"""Forks share what was done before a step and run the rest anew; a retry has one step run again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.core.errors import LeaseHeld, RunFinished, UnknownRun, UnknownStep, UsageError
from nbflow.core.history import History
from nbflow.runtime import active
from nbflow.runtime.runs import Run
from nbflow.runtime.session import this_process
from nbflow.store.local import LocalStore
from nbflow.store.protocol import Store
from nbflow.store.system_clock import SystemClock
from nbflow.testing import MemoryStore


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each kind."""
    made: Store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "s", background=False)
    yield made
    made.close()


class Pipeline:
    """load → clean → train → report, whose bodies are counted; `train` fails as long as `broken`."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.broken = False

        @nbflow.durable(version="1", name="load")
        def load() -> np.ndarray:
            self.ran["load"] += 1
            return np.arange(10_000)  # a leaf

        @nbflow.durable(version="1", name="clean")
        def clean(rows: np.ndarray) -> np.ndarray:
            self.ran["clean"] += 1
            return rows[rows % 2 == 0]

        @nbflow.durable(version="1", name="train")
        def train(rows: np.ndarray) -> int:
            self.ran["train"] += 1
            if self.broken:
                raise ValueError("no convergence")
            return int(rows.sum())

        @nbflow.durable(version="1", name="report")
        def report(score: int) -> str:
            self.ran["report"] += 1
            return f"score {score}"

        self.load, self.clean, self.train, self.report = load, clean, train, report

    def run(self, store: Store) -> tuple[Run, str]:
        with nbflow.run("pipeline", store=store, tags={"team": "blue"}, day="monday") as run:
            rows = self.load()
            nbflow.publish("rows", len(rows))
            text = self.report(self.train(self.clean(rows)))
            nbflow.publish("text", text)
        return run, text


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


# --- fork ---------------------------------------------------------------------------------------------------------


def test_a_fork_shares_what_came_before_the_step_and_reruns_the_rest(
    store: Store, pipeline: Pipeline
) -> None:
    """The next run takes the fork up: steps before replay, the step and all behind it run again."""
    first, text = pipeline.run(store)
    before = store.entries(first.id)
    fork = nbflow.fork(first, "train", store=store)
    second, again = pipeline.run(store)

    assert fork == second.id != first.id
    assert text == again
    assert {"load": 1, "clean": 1, "train": 2, "report": 2} == pipeline.ran
    assert before == store.entries(first.id)
    info = store.run(fork)
    opened = History.of(store.entries(fork)).opened
    assert opened is not None
    assert ("pipeline", {"day": "monday"}, {"team": "blue"}) == (info.workflow, info.params, info.tags)
    assert first.id == opened.forked
    assert opened.parent is None


def test_what_was_published_before_the_step_is_shared_too(store: Store, pipeline: Pipeline) -> None:
    """And what was published later is not."""
    first, _ = pipeline.run(store)
    fork = nbflow.fork(first, "clean", store=store)

    assert {"rows": 10_000} == nbflow.published(fork, store=store)


def test_shared_checkpoints_are_those_of_the_source(store: Store, pipeline: Pipeline) -> None:
    """Values, large ones too, can be read from the fork, before and after both runs went into the database."""
    first, _ = pipeline.run(store)
    fork = nbflow.fork(first, "report", store=store)
    for _ in range(2):
        for step in ("load", "clean", "train"):
            expected = nbflow.output(first.id, step, "return", store=store)
            assert np.array_equal(expected, nbflow.output(fork, step, "return", store=store))
        store.ingest()
        store.compact()
    pipeline.run(store)
    assert {"load": 1, "clean": 1, "train": 1, "report": 2} == pipeline.ran


def test_a_shared_leaf_is_kept_once_in_the_database(tmp_path: Path, pipeline: Pipeline) -> None:
    """Buffers are known by their content, so a fork costs the database no room for them."""
    store = LocalStore(tmp_path / "s", background=False)
    first, _ = pipeline.run(store)
    store.compact()
    count = "select count(*) n from nbflow.leaf"
    before = store.sql(count)["n"][0]
    nbflow.fork(first, "report", store=store)
    store.compact()

    assert before == store.sql(count)["n"][0] > 0
    store.close()


def test_a_fork_of_a_run_that_is_at_work(store: Store, pipeline: Pipeline) -> None:
    """The source may be owned by a living process: nothing of it is touched, and it goes on."""
    with nbflow.run("pipeline", store=store) as run:
        rows = pipeline.load()
        pipeline.clean(rows)
        fork = nbflow.fork(run, "clean", store=store)
        pipeline.train(rows)
        assert "running" == run.state

    assert ["load"] == [step.name for step in store.steps(fork)]


def test_a_fork_of_a_failed_run_leaves_the_source_resumable(store: Store, pipeline: Pipeline) -> None:
    """Both may be carried on, each by its id."""
    pipeline.broken = True
    with pytest.raises(ValueError, match="convergence"):
        pipeline.run(store)
    (source,) = store.runs()
    fork = nbflow.fork(source.run, "clean", store=store)
    pipeline.broken = False
    run, _ = pipeline.run(store)

    assert fork == run.id
    assert "failed" == store.run(source.run).state
    with nbflow.run("pipeline", store=store, resume=source.run) as resumed:
        pipeline.load()
    assert source.run == resumed.id
    assert 1 == pipeline.ran["load"]


def test_a_fork_at_a_call_inside_another_shares_the_calls_before_it(store: Store) -> None:
    """The step around it is not shared, for it was completed later; what it had called before is."""
    ran: list[str] = []

    @nbflow.durable(version="1")
    def inner(name: str) -> str:
        ran.append(name)
        return name

    @nbflow.durable(version="1")
    def outer() -> list[str]:
        ran.append("outer")
        return [inner("a"), inner("b"), inner("c")]

    with nbflow.run("nested", store=store) as run:
        outer()
    key = [step.step for step in store.steps(run.id) if step.name.endswith("inner")][1]
    ran.clear()
    nbflow.fork(run, key, store=store)
    with nbflow.run("nested", store=store):
        outer()

    assert ["outer", "b", "c"] == ran


def test_a_forgotten_step_is_not_shared(store: Store, pipeline: Pipeline) -> None:
    """Somebody asked that it run again, in whatever run comes next."""
    pipeline.broken = True
    with pytest.raises(ValueError, match="convergence"):
        pipeline.run(store)
    (source,) = store.runs()
    nbflow.retry_step(source.run, "load", store=store)
    fork = nbflow.fork(source.run, "train", store=store)

    assert [pipeline.clean.step_name] == [step.name for step in store.steps(fork)]


def test_an_unknown_step_or_run_makes_no_fork(store: Store, pipeline: Pipeline) -> None:
    """The error names what is near or there; the store holds no more runs than before."""
    first, _ = pipeline.run(store)
    with pytest.raises(UnknownStep, match="It has: .*load"):
        nbflow.fork(first, "deploy", store=store)
    key = store.steps(first.id)[2].step
    with pytest.raises(UnknownStep, match="Did you mean .*train"):
        nbflow.fork(first, key[:-3], store=store)
    with pytest.raises(UnknownRun):
        nbflow.fork("0000-none", "load", store=store)
    assert 1 == len(store.runs())


def test_an_ambiguous_name_lists_the_keys(store: Store) -> None:
    """A name that two steps have is no place to fork at."""

    @nbflow.durable(version="1")
    def fetch(day: int) -> int:
        return day

    with nbflow.run("w", store=store) as run:
        fetch(1)
        fetch(2)
    with pytest.raises(UsageError, match="2 steps") as caught:
        nbflow.fork(run, "fetch", store=store)
    assert all(step.step in str(caught.value) for step in store.steps(run.id))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 8), data=st.data())
def test_a_fork_reruns_exactly_from_the_step_on(count: int, data: st.DataObject) -> None:
    """For every length and every place: the steps before replay, the others run, and a fork of the fork does too."""
    store = MemoryStore()
    ran: list[int] = []

    @nbflow.durable(version="1")
    def step(number: int) -> int:
        ran.append(number)
        return number

    def run() -> Run:
        with nbflow.run("w", store=store) as current:
            assert list(range(count)) == [step(number) for number in range(count)]
        return current

    source = run().id
    for _ in range(2):
        at = data.draw(st.integers(0, count - 1))
        ran.clear()
        fork = nbflow.fork(source, store.steps(source)[at].step, store=store)
        assert fork == run().id
        assert list(range(at, count)) == ran
        source = fork


def test_a_killed_fork_leaves_all_that_is_shared_or_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    """SIGKILL before its one append: the run that was begun holds no step, and the source is whole."""
    place = tmp_path / "s"
    store = LocalStore(place, background=False)
    first, _ = pipeline.run(store)
    before = store.entries(first.id)
    code = (
        "import sys, nbflow\n"
        "from nbflow.core import crashpoints\n"
        "from nbflow.store.local import LocalStore\n"
        "store = LocalStore(sys.argv[1], background=False)\n"
        "crashpoints.arm(sys.argv[3])\n"
        "nbflow.fork(sys.argv[2], 'report', store=store)\n"
    )
    number, killed = 1, 0
    while True:
        done = subprocess.run([sys.executable, "-c", code, str(place), first.id, f"*:{number}"], check=False)
        if done.returncode == 0:
            break
        killed += 1
        number += 11
    shared = {len(store.steps(info.run)) for info in store.runs() if info.run != first.id}

    assert killed >= 2
    assert shared <= {0, 3}
    assert 3 in shared
    assert before == store.entries(first.id)
    store.close()


def test_a_fork_of_a_machine_begins_in_the_state_that_was_named(store: Store) -> None:
    """States before it are not entered again; their data is there."""
    ran: list[str] = []
    machine = nbflow.Machine("training", ["LOAD", "TRAIN", "DONE"], initial="LOAD", final={"DONE"})

    @machine.state("LOAD")
    def load(ctx: Any) -> str:
        ran.append("load")
        ctx.rows = 3
        return "TRAIN"

    @machine.state("TRAIN")
    def train(ctx: Any) -> str:
        ran.append(f"train {ctx.rows}")
        return "DONE"

    machine.run(store=store)
    (source,) = store.runs()
    ran.clear()
    fork = nbflow.fork(source.run, "TRAIN", store=store)
    assert "DONE" == machine.run(store=store)

    assert ["train 3"] == ran
    assert "completed" == store.run(fork).state


# --- retry --------------------------------------------------------------------------------------------------------


def test_a_retried_step_runs_again_and_says_why(store: Store, pipeline: Pipeline) -> None:
    """A completed step of an unfinished run; the reason and who asked are in the journal."""
    pipeline.broken = True
    with pytest.raises(ValueError, match="convergence"):
        pipeline.run(store)
    (info,) = store.runs()
    key = nbflow.retry_step(info.run, "clean", "the rules have changed", store=store)
    pipeline.broken = False
    run, _ = pipeline.run(store)

    assert info.run == run.id
    assert {"load": 1, "clean": 2, "train": 2, "report": 1} == pipeline.ran
    (word,) = [e.record for e in store.entries(run.id) if type(e.record).__name__ == "StepForgotten"]
    assert (key, f"retry by {this_process().user}: the rules have changed") == (word.step, word.reason)  # type: ignore[union-attr]


def test_a_retried_call_is_reached_again_although_its_caller_was_completed(store: Store) -> None:
    """The completed steps around it run again too; other calls inside them replay."""
    ran: list[str] = []

    @nbflow.durable(version="1")
    def inner(name: str) -> str:
        ran.append(name)
        return name

    @nbflow.durable(version="1")
    def outer() -> list[str]:
        ran.append("outer")
        return [inner("a"), inner("b")]

    def run() -> Run:
        with nbflow.run("nested", store=store) as current:
            outer()
            raise ValueError("stop")
        return current

    with pytest.raises(ValueError, match="stop"):
        run()
    (info,) = store.runs()
    key = [step.step for step in store.steps(info.run) if step.name.endswith("inner")][1]
    ran.clear()
    assert key == nbflow.retry_step(info.run, key, store=store)
    with pytest.raises(ValueError, match="stop"):
        run()

    assert ["outer", "b"] == ran


def test_a_retried_step_does_not_wait_for_an_old_backoff(store: Store) -> None:
    """Its tries are counted anew, and the first begins at once."""
    tries: list[int] = []

    @nbflow.durable(version="1", retries=1, delay="1h")
    def shaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError
        return "fine"

    class Interrupted(SystemClock):
        def sleep(self, seconds: float) -> None:
            if seconds > 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), nbflow.run("w", store=store) as run:
        session = active.required()
        session.clock = Interrupted()
        shaky()
    nbflow.retry_step(run.id, "shaky", store=store)
    with nbflow.run("w", store=store):
        assert "fine" == shaky()
    assert 1 == store.steps(run.id)[-1].attempt


def test_the_current_run_can_retry_its_own_steps(store: Store, pipeline: Pipeline) -> None:
    """In a notebook one has the lease oneself; the step runs again in this very process."""
    with nbflow.run("w", store=store) as run:
        pipeline.load()
        nbflow.retry_step(run, "load")
    assert pipeline.load.step_name in {step.name for step in store.steps(run.id)}
    assert all(e.forgotten for e in History.of(store.entries(run.id)).executions.values())


def test_a_living_owner_keeps_others_from_retrying(tmp_path: Path, pipeline: Pipeline) -> None:
    """The lease is held: nothing is recorded, and the error says what to do."""
    place = tmp_path / "s"
    code = (
        "import sys, nbflow\n"
        "@nbflow.durable\n"
        "def load():\n    return 1\n"
        "with nbflow.run('w', store=sys.argv[1]):\n"
        "    load()\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        store = LocalStore(place, background=False)
        (info,) = store.runs()
        with pytest.raises(LeaseHeld, match="Stop its process"):
            nbflow.retry_step(info.run, "load", store=store)
        fork = nbflow.fork(info.run, "load", store=store)
        process.communicate("\n")

    assert [] == store.steps(fork)
    assert "completed" == store.run(info.run).state
    store.close()


def test_a_finished_run_is_not_retried_but_forked(store: Store, pipeline: Pipeline) -> None:
    """Completed is final; the error names the way out."""
    run, _ = pipeline.run(store)
    with pytest.raises(RunFinished, match="nbflow fork"):
        nbflow.retry_step(run.id, "train", store=store)
    with pytest.raises(UnknownStep, match="It has"):
        nbflow.retry_step(run.id, "deploy", store=store)
