"""jupyter-scheduler: a job that died is carried on by the next one, and everything else is as it always was."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_scheduler.models import DescribeJob, JobFeature, Status
from jupyter_scheduler.orm import Job, JobDefinition, create_session, create_tables
from traitlets import Type
from traitlets.config import Config, Configurable

from nbflow.headless.scheduler import NbflowExecutionManager, workflow_of
from tests.headless.kit import EFFECT, HOLD, code, effects, notebook, read, statuses, wait_for


class Desk:
    """What jupyter-scheduler has of its jobs: a database, and a folder with the files of each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"sqlite:///{root / 'scheduler.sqlite'}"
        create_tables(self.url)
        self.session = create_session(self.url)

    def add(self, source: Path, **facts: Any) -> NbflowExecutionManager:
        """Create a job as `Scheduler.create_job` does, up to the point where its process starts."""
        facts = {"name": "report", "output_formats": ["ipynb", "html"], "parameters": {}, **facts}
        with self.session() as session:
            job = Job(runtime_environment_name="here", input_filename=source.name, **facts)
            session.add(job)
            session.commit()
            name = job.job_id
        folder = self.root / "staging" / name
        folder.mkdir(parents=True)
        (folder / source.name).write_bytes(source.read_bytes())
        paths = {each: str(folder / f"report-1.{each}") for each in facts["output_formats"]}
        return NbflowExecutionManager(
            job_id=name,
            root_dir=str(self.root),
            db_url=self.url,
            staging_paths={**paths, "input": str(folder / source.name)},
        )

    def row(self, manager: NbflowExecutionManager) -> Any:
        with self.session() as session:
            return session.query(Job).filter(Job.job_id == manager.job_id).one()

    @contextmanager
    def started(self, manager: NbflowExecutionManager) -> Iterator[multiprocessing.process.BaseProcess]:
        """Run a job in a process of its own, as the scheduler does."""
        process = multiprocessing.get_context("spawn").Process(target=manager.process)
        process.start()
        with self.session() as session:
            session.query(Job).filter(Job.job_id == manager.job_id).update({"pid": process.pid})
            session.commit()
        try:
            yield process
        finally:
            for child in (
                [*psutil.Process(process.pid).children(recursive=True)] if process.is_alive() else []
            ):
                child.kill()
            process.kill()
            process.join(30)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def wait_until_gone(process: psutil.Process) -> None:
    end = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"{process} is still there"
        time.sleep(0.05)


def output(manager: NbflowExecutionManager, kind: str = "ipynb") -> Path:
    return Path(manager.staging_paths[kind])


def test_a_job_that_died_is_carried_on_when_it_is_run_again(desk: Desk, tmp_path: Path) -> None:
    """Its process killed with SIGKILL, the next job of the same name restores what was done, files too."""
    done, hold = tmp_path / "done", tmp_path / "hold"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        code("year = 0", "parameters"),
        "effect('a'); x = year + 1; open('table.csv', 'w').write('x')",
        HOLD.format(path=str(hold)),
        "effect('b'); print(x, open('table.csv').read())",
    )
    first = desk.add(source, parameters={"year": "2013"})
    with desk.started(first) as process:
        wait_for(hold)
        (kernel,) = psutil.Process(process.pid).children()
        process.kill()
        process.join(30)
        wait_until_gone(kernel)  # else it records the cell when it need not hold any more
    assert desk.row(first).status == Status.IN_PROGRESS  # nobody was left to say otherwise
    again = desk.add(source, parameters={"year": "2013"})
    over = threading.Event()

    def let_go() -> None:
        while not over.wait(0.05):
            hold.unlink(missing_ok=True)

    letting_go = threading.Thread(target=let_go)
    letting_go.start()
    again.process()
    over.set()
    letting_go.join()
    assert desk.row(again).status == Status.COMPLETED
    assert effects(done) == ["a", "b"]
    executed = read(output(again))
    assert statuses(executed)[-3:] == ["restored", "ran", "ran"]
    assert executed.cells[-1].outputs[0].text == "2014 x\n"
    assert "2014 x" in output(again, "html").read_text()
    assert "table.csv" in desk.row(again).packaged_files


def test_a_failed_job_is_reported_as_ever_and_carried_on(desk: Desk, tmp_path: Path) -> None:
    """The status, its message and the output files are those of a failed job; the next one begins at that cell."""
    done, flag = tmp_path / "done", tmp_path / "flag"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a')",
        code("1 / 0", "raises-exception"),
        f"import os; effect('b'); assert os.path.exists({str(flag)!r}), 'no flag'",
    )
    first = desk.add(source)
    first.process()
    row = desk.row(first)
    assert row.status == Status.FAILED
    assert "no flag" in row.status_message
    assert read(output(first)).cells[-1].outputs[-1].ename == "AssertionError"
    assert output(first, "html").exists()
    flag.touch()
    again = desk.add(source)
    again.process()
    assert desk.row(again).status == Status.COMPLETED
    assert effects(done) == ["a", "b", "b"]


@pytest.mark.soak
def test_another_notebook_of_the_same_name_and_a_job_at_work_are_left_alone(
    desk: Desk, tmp_path: Path
) -> None:
    """A job carries on only what is its own: neither somebody else's unfinished run nor one that is being worked on."""
    done, hold = tmp_path / "done", tmp_path / "hold"
    source = notebook(
        tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a')", HOLD.format(path=str(hold))
    )
    slow = desk.add(source)
    with desk.started(slow) as process:
        wait_for(hold)
        quick = desk.add(source)
        with desk.started(quick) as beside:
            while beside.is_alive():
                if effects(done) == ["a", "a"]:
                    hold.unlink(missing_ok=True)
                beside.join(0.05)
        process.join(60)
    assert [desk.row(each).status for each in (slow, quick)] == [Status.COMPLETED] * 2
    assert effects(done) == ["a", "a"]
    failing = notebook(tmp_path / "in.ipynb", "effect = 1", "1 / 0")
    desk.add(failing).process()
    other = desk.add(notebook(tmp_path / "in.ipynb", "effect = 1", "2"))
    other.process()
    assert read(output(other)).metadata.nbflow.attempt == 1


@pytest.mark.soak
def test_a_schedule_begins_anew_each_time_it_is_due(desk: Desk, tmp_path: Path) -> None:
    """What an earlier time of the schedule left is not carried on; run again by hand before the next time, it is."""
    due = datetime.now(UTC) - timedelta(hours=1)
    with desk.session() as session:
        nightly = JobDefinition(
            runtime_environment_name="here",
            input_filename="in.ipynb",
            name="nightly",
            schedule=f"{due.minute} {due.hour} * * *",
            timezone="UTC",
        )
        session.add(nightly)
        session.commit()
        definition = nightly.job_definition_id
    source = notebook(tmp_path / "in.ipynb", "x = 1", "1 / 0")
    tonight = desk.add(source, job_definition_id=definition)
    tonight.process()
    by_hand = desk.add(source, job_definition_id=definition)
    by_hand.process()
    assert read(output(by_hand)).metadata.nbflow.attempt == 2
    tomorrow = desk.add(source, job_definition_id=definition)
    with desk.session() as session:
        a_day_later = int((time.time() + 24 * 3600) * 1000)
        session.query(Job).filter(Job.job_id == tomorrow.job_id).update({"create_time": a_day_later})
        session.commit()
    tomorrow.process()
    assert read(output(tomorrow)).metadata.nbflow.attempt == 1
    assert (
        workflow_of(DescribeJob.from_orm(desk.row(tomorrow))) == f"jupyter-scheduler://{definition}/in.ipynb"
    )


def test_the_manager_is_what_jupyter_scheduler_asks_for(tmp_path: Path) -> None:
    """It can be named in the configuration, and supports what the scheduler's own supports."""

    class Scheduler(Configurable):
        execution_manager_class = Type(
            klass="jupyter_scheduler.executors.ExecutionManager",
            config=True,
            default_value=None,
            allow_none=True,
        )

    named = "nbflow.headless.scheduler.NbflowExecutionManager"
    made = Scheduler(config=Config({"Scheduler": {"execution_manager_class": named}}))
    chosen = made.execution_manager_class
    assert chosen is NbflowExecutionManager
    assert chosen.supported_features(chosen)[JobFeature.stop_job] is True
    assert chosen.validate(chosen, str(notebook(tmp_path / "in.ipynb", "1"))) is True
