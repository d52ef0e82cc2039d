"""What became of batches, as tables: real runs of real notebooks, and what is missing where something is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import papermill
import pytest
from nbclient.exceptions import DeadKernelError

import nbflow
from nbflow.core.errors import UnknownRun, UsageError
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import Message, RunOpened
from nbflow.core.states import RunState
from nbflow.headless.batches.jobs import Item, Options, Plan
from nbflow.headless.batches.plan import make_plan
from nbflow.headless.batches.results import batch_results, batches, find_batch
from nbflow.headless.parameters.sources import rows_of
from nbflow.runtime.children.results import record_result
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.store.local import LocalStore
from tests.headless.kit import code, notebook


def open_batch(store: LocalStore, plan: Plan, run: str, name: str = "in.ipynb") -> Session:
    opened = {"run": run, "variant": "batch", "launch": plan.recorded()}
    return Session.open(store, name, kind="batch", new=True, opened=opened)


def perform(batch: Session, item: Item, body: object = None) -> None:
    """Run an item as a step of its batch; what it raises is recorded and goes no further."""

    def attempt(_: int) -> StepResult:
        if callable(body):
            body()
        return StepResult({"return": None})

    spec = StepSpec(
        step=item.step, name=item.step, kind="child", signature=b"i" * 32, detail={"run": item.run}
    )
    try:
        batch.run_step(spec, attempt)
    except (papermill.PapermillExecutionError, DeadKernelError):
        pass


def synthetic(store: LocalStore, batch: Session, item: Item) -> Session:
    """Begin the run of an item without a kernel."""
    store.create(
        RunOpened(
            run=item.run,
            workflow="in.ipynb",
            workflow_kind="notebook",
            params=item.params,
            parent=batch.run,
            parent_step=item.step,
        )
    )
    return Session.open(store, "", run=item.run)


def plan_of(run: str, count: int, *, collect: tuple[str, ...] = (), notebook: str = "/n/in.ipynb") -> Plan:
    items = (Item(n, {"n": n}, child_run_id(run, f"item#{n}"), f"/n/{n}.ipynb") for n in range(count))
    return Plan(notebook, tuple(items), Options(collect=collect))


@dataclass
class Ran:
    """A batch whose notebooks really ran."""

    store: LocalStore
    plan: Plan
    batch: Session


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A batch at work: one notebook completed, one failed, one whose kernel died, one not begun."""
    folder = tmp_path_factory.mktemp("batch")
    source = notebook(
        folder / "in.ipynb",
        code("year = 1\nstate = ''", "parameters"),
        "import os, pandas as pd\nauc = year / 1000",
        "frame = pd.DataFrame({'auc': [auc]})\nloss = 1 - auc",
        "if state == 'fail': raise ValueError(year)\nif state == 'die': os.kill(os.getpid(), 9)",
        "auc = auc * 2\nyear = str(year)",
    )
    rows = rows_of(
        [
            {"year": 100, "state": "go"},
            {"year": 200, "state": "fail"},
            {"year": 300, "state": "die"},
            {"state": "wait"},
        ]
    )
    run = new_run_id()
    options = Options(collect=("auc", "frame", "year", "nowhere"))
    plan = make_plan(source, rows, batch=run, output=str(folder / "{index}.ipynb"), options=options)
    store = LocalStore(folder / ".nbflow", background=False)
    batch = open_batch(store, plan, run)
    for item in plan.items[:3]:

        def execute(item: Item = item) -> None:
            papermill.execute_notebook(
                plan.notebook,
                item.output,
                parameters=item.params,
                engine_name="nbflow",
                progress_bar=False,
                nbflow_store=str(store.root),
                nbflow_collect=options.collect,
                nbflow_item=RunOpened(run=item.run, workflow="", parent=run, parent_step=item.step),
            )

        perform(batch, item, execute)
    yield Ran(store, plan, batch)
    batch.close()
    store.close()


def test_a_batch_at_work_is_one_row_a_notebook(ran: Ran) -> None:
    """Parameters, state and results stand side by side while the batch runs; what is not there is missing."""
    found = batch_results(ran.batch.run, store=ran.store)
    assert found.index.name == "item"
    assert list(found.columns) == [
        "year",
        "param_state",
        "state",
        "attempts",
        "restored",
        "ran",
        "seconds",
        "error",
        "run",
        "output",
        "auc",
        "frame",
        "result_year",
        "nowhere",
    ]
    assert found.year.tolist()[:3] == [100, 200, 300]
    assert math.isnan(found.year[3])
    assert found.param_state.tolist() == ["go", "fail", "die", "wait"]
    assert found.state.tolist() == ["completed", "failed", "failed", "pending"]
    assert found.attempts.tolist() == [1, 1, 1, 0]
    assert (found.seconds[:3] > 0).all()
    assert math.isnan(found.seconds[3])
    assert found.error[0] == found.error[3] == ""
    assert found.error[1].startswith("ValueError: 200")
    assert "SIGKILL" in found.error[2]
    assert found.run.tolist() == [item.run for item in ran.plan.items]
    assert found.output.tolist() == [item.output for item in ran.plan.items]
    assert found.result_year[0] == "100"
    assert found.nowhere.isna().all()


def test_the_result_of_a_notebook_counts_before_what_its_cells_recorded(ran: Ran) -> None:
    """What the batch collects is the value at the end; a notebook that did not get there shows its newest value."""
    found = batch_results(ran.batch.run, store=ran.store)
    assert found.auc.tolist()[:3] == [0.2, 0.2, 0.3]
    assert math.isnan(found.auc[3])
    assert isinstance(found.frame[0], pd.DataFrame)
    assert found.frame[0].auc.tolist() == [0.1]
    assert found.frame[3] is None


def test_any_recorded_variable_can_be_collected_afterwards(ran: Ran) -> None:
    """`collect` finds what nobody thought of when the batch began, and takes nothing else along."""
    found = batch_results(ran.batch.run, collect="loss", store=ran.store)
    assert found.loss.tolist()[:3] == [0.9, 0.8, 0.7]
    assert "auc" not in found
    assert "auc" not in batch_results(ran.batch.run, collect=[], store=ran.store)


def test_a_batch_is_listed_with_its_counts(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest comes first; a path, a name and a pattern find the batches of a notebook."""
    [row] = batches(store=ran.store).to_dict("records")
    assert row["batch"] == ran.batch.run
    assert (row["notebook"], row["state"]) == ("in.ipynb", "running")
    assert (row["total"], row["completed"], row["failed"], row["left"]) == (4, 1, 2, 1)
    assert row["created"].tzinfo is not None
    assert row["seconds"] > 0
    monkeypatch.chdir(Path(ran.plan.notebook).parent)
    for told in ("in.ipynb", "i*", ran.plan.notebook, Path(ran.plan.notebook)):
        assert len(batches(told, store=ran.store)) == 1
    assert batches("other.ipynb", store=ran.store).empty
    assert batches(state="stopped", store=ran.store).empty
    with pytest.raises(UsageError, match="It is running, waiting, stopped, completed"):
        batches(state="done", store=ran.store)


@pytest.fixture
def store(_own_store: Path) -> Iterator[LocalStore]:
    made = LocalStore(_own_store, background=False)
    yield made
    made.close()


def test_the_state_of_a_notebook_is_that_of_now(store: LocalStore) -> None:
    """At work, waiting for a worker, left behind by a killed runner, completed behind its back, and cancelled."""
    run = new_run_id()
    plan = plan_of(run, 6)
    batch = open_batch(store, plan, run)
    seen: list[str] = []
    started = synthetic(store, batch, plan.items[0])
    perform(batch, plan.items[0], lambda: seen.extend(batch_results(run, store=store).state))
    assert seen == ["running", *["pending"] * 5]
    started.close()
    ended = synthetic(store, batch, plan.items[1])
    record_result(ended, {"auc": 0.5})
    ended.finish(RunState.COMPLETED)
    by_hand = synthetic(store, batch, plan.items[2])
    synthetic(store, batch, plan.items[3]).close()
    synthetic(store, batch, plan.items[4]).finish(RunState.CANCELLED, reason="user")
    batch.close()
    found = batch_results(run, collect=["auc"], store=store)
    assert found.state.tolist() == ["completed", "completed", "running", "stopped", "cancelled", "pending"]
    assert found.auc[1] == 0.5
    assert batches(store=store).state.tolist() == ["stopped"]
    by_hand.close()
    cancelled = Session.open(store, "", run=run)
    cancelled.finish(RunState.CANCELLED, reason="user")
    cancelled.close()
    found = batch_results(run, store=store)
    assert found.state.tolist() == [
        "completed",
        "completed",
        "cancelled",
        "cancelled",
        "cancelled",
        "cancelled",
    ]
    assert batches(store=store).state.tolist() == ["cancelled"]


def test_a_runner_that_died_leaves_no_notebook_running(store: LocalStore) -> None:
    """A step that nobody can end any more is not at work, before and after the batch is taken up again."""
    run = new_run_id()
    plan = plan_of(run, 2)
    batch = open_batch(store, plan, run)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(batch, plan.items[0], die)
    synthetic(store, batch, plan.items[1]).close()
    batch.close()
    assert batch_results(run, store=store).state.tolist() == ["pending", "stopped"]
    again = Session.open(store, "", run=run)
    assert batch_results(run, store=store).state.tolist() == ["pending", "stopped"]
    again.close()


def test_the_newest_batch_is_meant_where_none_is_named(store: LocalStore, _own_store: Path) -> None:
    """Neither notebooks run by themselves nor the notebooks of a batch are taken for one; a prefix will do."""
    with pytest.raises(UnknownRun, match="has no batch yet"):
        nbflow.batch_results()
    assert nbflow.batches().empty
    first, second = new_run_id(), new_run_id()
    for run, count in ((first, 2), (second, 3)):
        batch = open_batch(store, plan_of(run, count), run)
        synthetic(store, batch, plan_of(run, count).items[0]).close()
        batch.close()
    alone = Session.open(store, "other.ipynb", new=True)
    alone.close()
    assert len(nbflow.batch_results()) == 3
    assert len(nbflow.batch_results(first)) == 2
    assert nbflow.batches().batch.tolist() == [second, first]
    assert nbflow.batches(limit=1).batch.tolist() == [second]
    assert find_batch(store, second[:-3]) == second
    with pytest.raises(UnknownRun, match="2 batches begin with"):
        find_batch(store, first[:4])
    with pytest.raises(UnknownRun):
        nbflow.batch_results("ffffffff")
    with pytest.raises(UsageError, match="is no batch"):
        nbflow.batch_results(alone.run)


def test_what_cannot_be_loaded_is_missing_and_said(store: LocalStore) -> None:
    """One notebook's damaged result costs that one value and a warning that names its run."""
    run = new_run_id()
    plan = plan_of(run, 2, collect=("model", "auc"))
    batch = open_batch(store, plan, run)
    for item in plan.items:
        child = synthetic(store, batch, item)
        record_result(child, {"model": Unloadable() if item.index == 0 else [1, 2], "auc": 0.5})
        child.finish(RunState.COMPLETED)
    Unloadable.gone = True
    with pytest.warns(RuntimeWarning, match=plan.items[0].run):
        found = batch_results(run, store=store)
    assert found.model.tolist() == [None, [1, 2]]
    assert math.isnan(found.auc[0])
    batch.close()


def test_results_that_were_moved_into_the_database_are_the_same(store: LocalStore) -> None:
    """Frames of finished runs come back from the database, each in memory of its own, also where it keeps them once."""
    run = new_run_id()
    plan = plan_of(run, 3, collect=("table",))
    batch = open_batch(store, plan, run)
    table = pd.DataFrame({"x": range(5000), "name": ["a", "b"] * 2500})
    for item in plan.items:
        child = synthetic(store, batch, item)
        child.run_step(spec_of("load"), lambda _: StepResult({"extra": table * 2}))
        record_result(child, {"table": table})
        child.finish(RunState.COMPLETED)
    before = batch_results(run, collect=["table", "extra"], store=store)
    store.compact()
    assert [name for name in store.live.names() if name != run] == []
    after = batch_results(run, collect=["table", "extra"], store=store)
    for found in (before, after):
        for each in found.table:
            pd.testing.assert_frame_equal(table, each)
        for each in found.extra:
            pd.testing.assert_frame_equal(table * 2, each)
    after.table[0].loc[0, "x"] = -1
    assert after.table[1].x[0] == after.table[2].x[0] == 0
    batch.close()


def spec_of(step: str) -> StepSpec:
    return StepSpec(step=step, name=step, kind="cell", signature=b"c" * 32)


class Unloadable:
    """Pickles well, and cannot be rebuilt later."""

    gone = False

    def __reduce__(self) -> tuple[object, ...]:
        return rebuilt, ()


def rebuilt() -> Unloadable:
    if Unloadable.gone:
        raise ImportError("no such library any more")
    return Unloadable()


def test_messages_in_the_inbox_change_nothing(store: LocalStore) -> None:
    """A cancel that nobody took yet is not a state."""
    run = new_run_id()
    batch = open_batch(store, plan_of(run, 1), run)
    store.send(run, Message(id="m", topic="cancel", sent_at=0.0, payload={"reason": "user"}))
    assert batch_results(run, store=store).state.tolist() == ["pending"]
    batch.close()
