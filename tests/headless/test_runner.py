"""The runner decides: what is begun, what is recorded, when it stops. Its workers are scripted here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.core.errors import RunFinished, StoreFull, WorkerLost
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import ErrorInfo, RunOpened, StepStarted
from nbflow.headless.batches.jobs import Item, Job, Outcome, Plan, Progress, Unwatched
from nbflow.headless.batches.runner import TRIES, Runner, Tally, _signature
from nbflow.headless.workers.scratch import scratch_of
from nbflow.runtime.session import Session
from nbflow.store.local import LocalStore
from nbflow.testing import FaultyStore
from nbflow.values.failures import encode_error

Script = Callable[[Job], Outcome]


def completed() -> Outcome:
    return Outcome("completed", 0.01, attempt=1, ran=2)


def failed() -> Outcome:
    return Outcome("failed", 0.01, error=ErrorInfo(type="ValueError", message="too hot"), cell=4)


class Scripted:
    """Workers that do what a test says, in the runner's own threads."""

    def __init__(self, width: int, script: Script) -> None:
        self.width, self.script = width, script
        self.jobs: list[Job] = []
        self.at_once = self.most = 0
        self.stopped = threading.Event()
        self._mutex = threading.Lock()

    def run(self, job: Job, told: Callable[[Progress], None]) -> Outcome:
        with self._mutex:
            self.jobs.append(job)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            if self.stopped.is_set():
                raise WorkerLost("stopped")
            told(Progress(1, 2))
            return self.script(job)
        finally:
            with self._mutex:
                self.at_once -= 1

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.stop()

    @property
    def items(self) -> list[int]:
        """The items that were run, in order."""
        return [job.item.index for job in self.jobs]


class Noting(Unwatched):
    """A watcher that keeps what it was told, and in which thread."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def _note(self, *note: Any) -> None:
        self.threads.add(threading.get_ident())
        self.notes.append(note)

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        self._note("begin", done)

    def started(self, item: Item, attempt: int) -> None:
        self._note("started", item.index, attempt)

    def progress(self, item: Item, progress: Progress) -> None:
        self._note("progress", item.index, progress.cells)

    def ended(self, item: Item, outcome: Outcome) -> None:
        self._note("ended", item.index, outcome.state)

    def lost(self, item: Item, error: Exception, again: bool) -> None:
        self._note("lost", item.index, again)

    def stopping(self, why: str) -> None:
        self._note("stopping", why)

    def end(self, state: str) -> None:
        self._note("end", state)

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [note[1:] for note in self.notes if note[0] == kind]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    place = LocalStore(tmp_path / ".nbflow", background=False)
    yield place
    place.close()


def plan_of(batch: str, count: int, folder: Path) -> Plan:
    return Plan(
        notebook=str(folder / "in.ipynb"),
        items=tuple(
            Item(
                index=number,
                params={"day": number},
                run=child_run_id(batch, f"item#{number}"),
                output=str(folder / f"{number}.ipynb"),
                origin=f"days.csv, line {number + 2}",
            )
            for number in range(count)
        ),
    )


def begin(store: Any, count: int) -> tuple[Session, Plan]:
    batch = new_run_id()
    plan = plan_of(batch, count, store.root)
    opened = {"run": batch, "variant": "batch", "launch": plan.recorded()}
    return Session.open(store, "in.ipynb", kind="batch", new=True, opened=opened), plan


def resume(store: Any, run: str) -> tuple[Session, Plan]:
    session = Session.open(store, "", run=run)
    assert session.history.opened is not None
    return session, Plan.read(session.history.opened.launch)


def steps_of(store: LocalStore, run: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for step in store.steps(run):
        found.setdefault(step.step, []).append(step.state)
    return found


def test_every_item_is_done_once_and_no_more_at_a_time_than_there_are_workers(store: LocalStore) -> None:
    """Each item becomes one completed step of kind child that names its run, and the batch is completed."""
    session, plan = begin(store, 9)
    workers = Scripted(3, lambda job: time.sleep(0.01) or completed())
    watcher = Noting()
    assert Runner(session, plan, workers, watcher=watcher).run() == Tally(9, 0, 0, "completed")
    assert sorted(workers.items) == list(range(9))
    assert workers.most <= 3
    assert {("child", "completed", 1)} == {
        (step.step_kind, step.state, step.attempt) for step in store.steps(session.run)
    }
    assert store.run(session.run).state == "completed"
    assert [job.item.run for job in workers.jobs if job.item.index == 4] == [plan.items[4].run]
    assert watcher.threads == {threading.get_ident()}
    assert sorted(watcher.of("ended")) == [(number, "completed") for number in range(9)]
    assert watcher.of("begin") == [(frozenset(),)]
    assert watcher.of("end") == [("completed",)]
    assert len(watcher.of("progress")) == 9
    assert not scratch_of(session.run).exists()


def test_a_resumed_batch_runs_only_what_is_not_completed(store: LocalStore) -> None:
    """What failed is recorded with the notebook's own error and its place; the next runner does that and no more."""
    session, plan = begin(store, 5)
    first = Runner(
        session, plan, Scripted(2, lambda job: failed() if job.item.index in {1, 3} else completed())
    )
    assert first.run() == Tally(3, 2, 0, "failed")
    info = store.run(session.run)
    assert info.state == "failed"
    assert "2 of 5 notebooks failed" in info.error
    [error] = [step.error for step in store.steps(session.run) if step.step == "item#3"]
    assert error is not None
    assert "ChildFailed" in error.type
    assert "(days.csv, line 5)" in error.message
    assert "failed in cell 5: ValueError: too hot" in error.message
    # In the table of results, what the row tells already is not told again.
    assert nbflow.batch_results(session.run, store=store).error[3] == "in cell 5: ValueError: too hot."
    again, plan = resume(store, session.run)
    workers, watcher = Scripted(2, lambda job: completed()), Noting()
    assert Runner(again, plan, workers, watcher=watcher).run() == Tally(5, 0, 0, "completed")
    assert sorted(workers.items) == [1, 3]
    assert watcher.of("begin") == [(frozenset({0, 2, 4}),)]
    assert steps_of(store, session.run)["item#3"] == ["failed", "completed"]
    with pytest.raises(RunFinished):
        resume(store, session.run)


def test_a_notebook_that_ended_just_before_its_runner_was_killed_is_recorded_and_not_run(
    store: LocalStore,
) -> None:
    """Its own run says that it is completed; the batch's step is made up for, and no worker is asked."""
    session, plan = begin(store, 2)
    item = plan.items[1]
    session.recorder.append(
        StepStarted(step=item.step, name="in.ipynb", step_kind="child", signature=_signature(item))
    )
    store.create(RunOpened(run=item.run, workflow="in.ipynb", parent=session.run, parent_step=item.step))
    Session.open(store, "in.ipynb", run=item.run).finish()
    session.close()
    session, plan = resume(store, session.run)
    workers = Scripted(1, lambda job: completed())
    assert Runner(session, plan, workers).run() == Tally(2, 0, 0, "completed")
    assert workers.items == [0]


def test_a_lost_worker_is_replaced_at_once_and_three_losses_are_a_failure(store: LocalStore) -> None:
    """The first item survives one loss; the second is lost every time, fails, and can be resumed."""
    session, plan = begin(store, 2)
    losses: Counter[int] = Counter()

    def script(job: Job) -> Outcome:
        losses[job.item.index] += 1
        if job.item.index == 1 or losses[0] == 1:
            raise WorkerLost("The worker was killed by SIGKILL.")
        return completed()

    watcher = Noting()
    assert Runner(session, plan, Scripted(1, script), watcher=watcher).run() == Tally(1, 1, 0, "failed")
    assert losses == {0: 2, 1: TRIES}
    assert watcher.of("lost") == [(0, True), (1, True), (1, True), (1, False)]
    assert watcher.of("started") == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert steps_of(store, session.run) == {"item#0": ["completed"], "item#1": ["failed"]}
    session, plan = resume(store, session.run)
    assert Runner(session, plan, Scripted(1, lambda job: completed())).run().state == "completed"


def test_a_worker_lost_behind_the_end_of_its_notebook_costs_nothing(store: LocalStore) -> None:
    """The run says that it is completed, so the notebook is not run a second time."""
    session, plan = begin(store, 1)

    def script(job: Job) -> Outcome:
        store.create(RunOpened(run=job.item.run, workflow="in.ipynb", parent=job.batch))
        Session.open(store, "in.ipynb", run=job.item.run).finish()
        raise WorkerLost("killed")

    workers = Scripted(1, script)
    assert Runner(session, plan, workers).run() == Tally(1, 0, 0, "completed")
    assert workers.items == [0]


def test_the_last_loss_behind_the_end_of_a_notebook_is_no_failure(store: LocalStore) -> None:
    """Lost three times, the third time when its run was completed: the item is completed."""
    session, plan = begin(store, 1)
    losses: list[bool] = []

    def script(job: Job) -> Outcome:
        losses.append(job.begun)
        if len(losses) == 1:
            store.create(RunOpened(run=job.item.run, workflow="in.ipynb", parent=job.batch))
        if len(losses) == TRIES:
            Session.open(store, "in.ipynb", run=job.item.run).finish()
        raise WorkerLost("killed")

    assert Runner(session, plan, Scripted(1, script)).run() == Tally(1, 0, 0, "completed")
    assert losses == [False, True, True]  # whoever carries it on is told that the run exists


def test_a_notebook_that_somebody_else_brought_to_its_end_is_completed(store: LocalStore) -> None:
    """Its worker finds the run over while it waits for it; that is no failure, and nothing runs again."""
    session, plan = begin(store, 1)

    def script(job: Job) -> Outcome:
        store.create(RunOpened(run=job.item.run, workflow="in.ipynb", parent=job.batch))
        Session.open(store, "in.ipynb", run=job.item.run).finish()
        error = encode_error(RunFinished("It is completed.", run=job.item.run))
        return Outcome("failed", 0.01, error=error)

    workers = Scripted(1, script)
    assert Runner(session, plan, workers).run() == Tally(1, 0, 0, "completed")
    assert workers.items == [0]


def test_an_error_of_the_notebooks_own_that_is_called_as_ours_fails_it_once(store: LocalStore) -> None:
    """A cell may raise a RunFinished: the notebook failed of it and is not run again for that."""
    session, plan = begin(store, 1)
    error = ErrorInfo(type="RunFinished", message="Run 0198 is completed.")
    workers = Scripted(1, lambda job: Outcome("failed", 0.01, error=error, cell=3))
    assert Runner(session, plan, workers).run() == Tally(0, 1, 0, "failed")
    assert workers.items == [0]


def test_workers_that_join_later_get_notebooks_at_once(store: LocalStore) -> None:
    """A cluster that begins with one worker and grows to three runs three notebooks at a time."""
    session, plan = begin(store, 4)
    together = threading.Barrier(3)

    def script(job: Job) -> Outcome:
        if job.item.index == 0:
            workers.width = 3
        else:
            together.wait(30)
        return completed()

    workers = Scripted(1, script)
    assert Runner(session, plan, workers).run() == Tally(4, 0, 0, "completed")
    assert workers.most == 3


def test_so_many_failures_and_nothing_new_starts(store: LocalStore) -> None:
    """With a limit of two, two fail one after the other, and the rest is left to a resume."""
    session, plan = begin(store, 6)
    workers, watcher = Scripted(1, lambda job: failed()), Noting()
    assert Runner(session, plan, workers, watcher=watcher, max_failures=2).run() == Tally(0, 2, 4, "failed")
    assert workers.items == [0, 1]
    [(why,)] = watcher.of("stopping")
    assert "2 notebooks failed" in why
    assert "4 were not begun" in store.run(session.run).error


def test_what_failed_is_tried_again_when_all_others_are_through(store: LocalStore) -> None:
    """One more try each, behind everything else; what fails again stays failed."""
    session, plan = begin(store, 4)
    tries: Counter[int] = Counter()

    def script(job: Job) -> Outcome:
        tries[job.item.index] += 1
        bad = job.item.index == 0 or (job.item.index == 1 and tries[1] == 1)
        return failed() if bad else completed()

    workers = Scripted(1, script)
    assert Runner(session, plan, workers, retry_failed=1).run() == Tally(3, 1, 0, "failed")
    assert workers.items == [0, 1, 2, 3, 0, 1]
    assert steps_of(store, session.run)["item#1"] == ["failed", "completed"]


def test_a_drained_batch_finishes_what_runs_and_leaves_the_rest(store: LocalStore) -> None:
    """Nothing new starts, the run stays resumable, and nobody holds it any more."""
    session, plan = begin(store, 5)
    runner: Runner

    def script(job: Job) -> Outcome:
        if job.item.index == 1:
            runner.drain()
            runner.drain()  # asking twice is no stop
            time.sleep(0.05)
        return completed()

    workers, watcher = Scripted(1, script), Noting()
    runner = Runner(session, plan, workers, watcher=watcher)
    assert runner.run() == Tally(2, 0, 3, "interrupted")
    assert len(watcher.of("stopping")) == 1
    info = store.run(session.run)
    assert (info.state, info.alive) == ("running", False)
    session, plan = resume(store, session.run)
    rest = Scripted(2, lambda job: completed())
    assert Runner(session, plan, rest).run() == Tally(5, 0, 0, "completed")
    assert sorted(rest.items) == [2, 3, 4]


def test_a_stopped_batch_ends_what_runs_and_it_can_be_resumed(store: LocalStore) -> None:
    """The workers are stopped; what they were at has no result, is no failure, and runs on resume."""
    session, plan = begin(store, 4)
    runner: Runner
    first = threading.Event()

    def script(job: Job) -> Outcome:
        if job.item.index == 0:
            first.set()
            return completed()
        assert first.wait(10)
        runner.drain()
        runner.stop()
        assert workers.stopped.wait(10)
        raise WorkerLost("stopped")

    workers, watcher = Scripted(2, script), Noting()
    runner = Runner(session, plan, workers, watcher=watcher)
    tally = runner.run()
    assert (tally.failed, tally.state) == (0, "interrupted")
    assert watcher.of("lost") == []
    assert len(watcher.of("stopping")) == 2
    session, plan = resume(store, session.run)
    rest = Scripted(2, lambda job: completed())
    assert Runner(session, plan, rest).run() == Tally(4, 0, 0, "completed")
    assert 0 not in rest.items


def test_a_batch_cancelled_from_outside_stops_and_so_do_its_notebooks(store: LocalStore) -> None:
    """The message in the inbox stops the workers; the batch and the runs they were at are cancelled, for good."""
    session, plan = begin(store, 3)

    def script(job: Job) -> Outcome:
        if job.item.index == 0:
            return completed()
        store.create(RunOpened(run=job.item.run, workflow="in.ipynb", parent=job.batch, parent_step="item#1"))
        nbflow.cancel(session.run, "wrong data", store=store)
        assert workers.stopped.wait(10)
        raise WorkerLost("stopped")

    workers = Scripted(1, script)
    tally = Runner(session, plan, workers).run()
    assert tally == Tally(1, 0, 2, "cancelled")
    info = store.run(session.run)
    assert info.state == "cancelled"
    assert "wrong data" in info.error
    assert store.run(plan.items[1].run).state == "cancelled"


def test_a_cancelled_notebook_is_a_failure_that_no_resume_repeats(store: LocalStore) -> None:
    """Who cancels one notebook of a batch has the others run on, and that one stays cancelled."""
    session, plan = begin(store, 2)

    def script(job: Job) -> Outcome:
        if job.item.index == 0:
            store.create(RunOpened(run=job.item.run, workflow="in.ipynb", parent=job.batch))
            nbflow.cancel(job.item.run, store=store)
            return Outcome("cancelled", 0.1)
        return completed()

    assert Runner(session, plan, Scripted(1, script)).run() == Tally(1, 1, 0, "failed")
    session, plan = resume(store, session.run)
    workers = Scripted(1, lambda job: completed())
    assert Runner(session, plan, workers).run() == Tally(1, 1, 0, "failed")
    assert workers.items == []


def test_a_full_disk_ends_the_batch_with_its_own_error_and_loses_nothing(store: LocalStore) -> None:
    """An item that could not be recorded is not counted as completed; with room again, only it is looked at."""
    session, plan = begin(store, 3)
    session.close()
    # After the attach: started 0, completed 0, started 1, completed 1.
    faulty = FaultyStore(store, at=4)
    session = Session.open(faulty, "", run=session.run)
    workers = Scripted(1, lambda job: completed())
    with pytest.raises(StoreFull):
        Runner(session, plan, workers).run()
    assert workers.stopped.is_set()
    session, plan = resume(store, session.run)
    rest = Scripted(1, lambda job: completed())
    assert Runner(session, plan, rest).run() == Tally(3, 0, 0, "completed")
    assert sorted(rest.items) == [1, 2]


def test_a_batch_that_was_taken_over_records_nothing_more(store: LocalStore) -> None:
    """The runner that lost its lease stops its workers and says so."""
    session, plan = begin(store, 2)
    taken: list[Session] = []

    def script(job: Job) -> Outcome:
        if not taken:
            taken.append(Session.open(store, "", run=job.batch, steal=True))
        return completed()

    workers = Scripted(1, script)
    with pytest.raises(nbflow.errors.LeaseLost):
        Runner(session, plan, workers).run()
    assert workers.stopped.is_set()
    assert workers.items == [0]
    taken[0].close()


#: What becomes of each try of an item: completed, failed, lost.
_FATES = st.lists(st.sampled_from("cfl"), max_size=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(_FATES, min_size=1, max_size=6),
    width=st.integers(1, 4),
    limit=st.none() | st.integers(1, 3),
    retries=st.integers(0, 2),
)
def test_whatever_happens_each_item_is_completed_exactly_once_in_the_end(
    store: LocalStore, fates: list[list[str]], width: int, limit: int | None, retries: int
) -> None:
    """Resumed often enough every item is completed; none runs behind its completion, and the counts always add up."""
    session, plan = begin(store, len(fates))
    done: set[int] = set()
    left = [list(each) for each in fates]
    mutex = threading.Lock()

    def script(job: Job) -> Outcome:
        number = job.item.index
        with mutex:
            assert number not in done, "it ran although it was completed"
            fate = left[number].pop(0) if left[number] else "c"
            if fate == "c":
                done.add(number)
                return completed()
        if fate == "f":
            return failed()
        raise WorkerLost("gone")

    for _ in range(5 * len(fates) + 1):
        workers = Scripted(width, script)
        tally = Runner(session, plan, workers, max_failures=limit, retry_failed=retries).run()
        assert workers.most <= width
        assert tally.completed == len(done)
        assert tally.completed + tally.failed + tally.left == len(fates)
        assert store.run(session.run).state == tally.state
        if tally.state == "completed":
            break
        session, plan = resume(store, session.run)
    assert done == set(range(len(fates)))
    ends = Counter(step.step for step in store.steps(session.run) if step.state == "completed")
    assert ends == {item.step: 1 for item in plan.items}
