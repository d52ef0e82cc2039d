"""Gates in notebooks that run without a person: they stop there, wait, and go on when somebody has decided."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import papermill as papermill_library
import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

import nbflow as product
from nbflow.cli.app import app
from nbflow.cli.desk import exit_code
from nbflow.core.errors import GatePending, GateRejected, GateTimedOut, UsageError
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import ErrorInfo
from nbflow.headless.batches.jobs import Item, Job, Outcome, Plan, Unwatched
from nbflow.headless.batches.runner import Runner, Tally
from nbflow.headless.waiting import WAITS, NotebookWaits, Waiting, undecided
from nbflow.runtime.gates.ahead import Approvals, expect
from nbflow.runtime.runs import conducted
from nbflow.runtime.session import Session
from nbflow.store.local import LocalStore
from tests.headless.driving import Place
from tests.headless.kit import (
    EFFECT,
    HOLD,
    begun,
    code,
    effects,
    gone,
    kernel_of,
    kill,
    notebook,
    papermill,
    papermills,
    read,
    statuses,
    wait_for,
)
from tests.headless.test_runner import Scripted

ASKS = "d = nbflow.gate('publish', 'Publish to the site?', options=['web', 'mail'])"


def gated(folder: Path, *cells: Any, asks: str = ASKS) -> Path:
    """Write a notebook with an effect before its gate and one behind it, which says what was decided."""
    return notebook(
        folder / "in.ipynb",
        code("year = 2000", "parameters"),
        "import nbflow\n" + EFFECT.format(path=str(folder / "done")),
        *cells,
        "effect(f'before-{year}'); x = year + 1",
        asks,
        "effect(f'behind-{year}'); print(x, d.word, d.feedback, *d.selections)",
    )


def nbflow(*given: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in given])


def as_json(*given: str | Path, code: int = 0) -> Any:
    result = nbflow(*given, "--json")
    assert code == result.exit_code, result.output
    return json.loads(result.stdout)


def asked(folder: Path, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
    """Return the gates that wait in a folder's store, when there are so many."""
    end = time.monotonic() + seconds
    while True:
        rows = product.gates(store=folder / ".nbflow").to_dict("records")
        if len(rows) >= count:
            return rows
        assert time.monotonic() < end, f"{len(rows)} gates wait, not {count}"
        time.sleep(0.05)


# --- papermill -----------------------------------------------------------------------------------------------


def test_papermill_stops_at_a_gate_and_the_same_command_goes_on_when_somebody_has_decided(
    tmp_path: Path, done: Path
) -> None:
    """Exit code 10 and one line, a notebook that waits and shows the question; decided elsewhere, it completes."""
    source, output = gated(tmp_path), tmp_path / "out.ipynb"
    stopped = papermill(source, output, "--no-progress-bar", cwd=tmp_path)
    assert stopped.returncode == WAITS == 10, stopped.stderr
    waits = read(output)
    facts = waits.metadata.nbflow
    said = stopped.stderr.strip().splitlines()[-1]
    assert said.startswith(
        f"Waiting: Run {facts.run}: Gate 'publish' waits for a decision: Publish to the site?"
    )
    assert f"`nbflow approve {facts.run} publish`" in said
    assert "Traceback" not in stopped.stderr
    assert facts.state == "waiting"
    [row] = asked(tmp_path)
    assert (facts.waiting.gate, facts.waiting.key, facts.waiting.run) == ("publish", row["step"], facts.run)
    assert statuses(waits) == ["ran", "ran", "ran", "waiting", None]
    assert papermills(waits) == ["completed"] * 3 + ["pending"] * 2
    assert waits.metadata.papermill.exception is None
    assert len(waits.cells) == 5  # no banner of an exception
    [shown] = waits.cells[3].outputs
    assert shown.output_type == "display_data"
    assert all(word in shown.data["text/html"] for word in ("publish", "Publish to the site?", "mail"))
    assert "mail" in shown.data["text/plain"]
    assert product.runs(store=tmp_path / ".nbflow").state.tolist() == ["waiting"]

    product.approve(facts.run, "publish", "looks good", select="mail", by="ana", store=tmp_path / ".nbflow")
    over = papermill(source, output, "--no-progress-bar", cwd=tmp_path)
    assert over.returncode == 0, over.stderr
    executed = read(output)
    assert executed.cells[-1].outputs[0].text == "2001 approved looks good mail\n"
    assert (executed.metadata.nbflow.run, executed.metadata.nbflow.attempt) == (facts.run, 2)
    assert statuses(executed)[2:] == ["restored", "ran", "ran"]
    assert "waiting" not in executed.metadata.nbflow
    assert effects(done) == ["before-2000", "behind-2000"]


def test_killed_while_it_waits_in_place_a_gate_is_decided_with_nobody_there(
    tmp_path: Path, done: Path
) -> None:
    """papermill and its kernel gone by SIGKILL, it is rejected from outside; the same command then fails of that."""
    source = gated(tmp_path, asks=ASKS.replace(")", ", wait=True)"))
    with begun(source, tmp_path / "out.ipynb", cwd=tmp_path) as process:
        [row] = asked(tmp_path)
        kernel = kernel_of(process)
        kill(process.pid)
        kill(kernel)
        gone(kernel)
    said = [sys.executable, "-m", "nbflow.cli", "reject", row["run"], "publish", "--feedback", "not yet"]
    subprocess.run(said, cwd=tmp_path, check=True, timeout=60, capture_output=True)
    failed = papermill(source, tmp_path / "out.ipynb", "--no-progress-bar", cwd=tmp_path)
    assert failed.returncode == 1
    assert "GateRejected" in failed.stderr
    assert "not yet" in failed.stderr
    assert effects(done) == ["before-2000"]
    document = read(tmp_path / "out.ipynb")
    assert (document.metadata.nbflow.run, document.metadata.nbflow.state) == (row["run"], "failed")


def test_a_gate_that_waits_in_place_goes_on_in_the_same_kernel(tmp_path: Path, done: Path) -> None:
    """Decided by another process while the cell waits, the first attempt completes."""
    source = gated(tmp_path, asks=ASKS.replace(")", ", wait=True)"))
    with begun(source, tmp_path / "out.ipynb", cwd=tmp_path) as process:
        [row] = asked(tmp_path)
        assert product.runs(store=tmp_path / ".nbflow").state.tolist() == ["waiting"]
        product.approve(row["run"], "publish", store=tmp_path / ".nbflow")
        assert process.wait(60) == 0
    assert read(tmp_path / "out.ipynb").metadata.nbflow.attempt == 1
    assert effects(done) == ["before-2000", "behind-2000"]


@pytest.mark.soak
def test_a_timeout_that_passed_while_nobody_ran_it_counts(tmp_path: Path, done: Path) -> None:
    """The clock of the gate goes on without a process: carried on after it, the notebook fails of it."""
    source = gated(tmp_path, asks="d = nbflow.gate('publish', timeout=0.3)")
    waits = product.execute(source, tmp_path / "out.ipynb", {"year": 1})
    assert waits.state == "waiting"
    with closing(LocalStore(tmp_path / ".nbflow", background=False)) as store:
        end = time.monotonic() + 30
        while undecided(store, waits.run, time.time()) is not None:
            assert time.monotonic() < end
            time.sleep(0.02)
    with pytest.raises(papermill_library.PapermillExecutionError) as failed:
        product.execute(source, tmp_path / "out.ipynb", {"year": 1})
    assert failed.value.ename == GateTimedOut.__name__
    assert effects(done) == ["before-1"]


def test_no_tag_leads_past_a_gate_and_a_namesake_of_its_error_is_an_error(tmp_path: Path, done: Path) -> None:
    """Cells tagged `raises-exception` may raise what they like, but behind a gate nothing runs before a decision."""
    namesake = code("class GatePending(BaseException): pass\nraise GatePending('mine')", "raises-exception")
    source = gated(tmp_path, namesake, asks=code(ASKS, "raises-exception"))  # type: ignore[arg-type]
    waits = product.execute(source, tmp_path / "out.ipynb")
    assert waits.state == "waiting"
    assert waits.waiting is not None
    assert waits.waiting.name == "publish"
    assert waits.notebook.cells[2].outputs[0].ename == "GatePending"
    assert effects(done) == ["before-2000"]


@pytest.mark.soak
def test_a_notebook_that_waits_is_written_wherever_papermill_writes_it(tmp_path: Path) -> None:
    """To standard output as well, and for a caller in Python who wants it written once, at the end."""
    source = gated(tmp_path)
    stopped = papermill(source, "-", cwd=tmp_path)
    assert stopped.returncode == WAITS
    assert json.loads(stopped.stdout)["metadata"]["nbflow"]["state"] == "waiting"
    with pytest.raises(NotebookWaits) as waits:
        papermill_library.execute_notebook(
            source,
            tmp_path / "once.ipynb",
            engine_name="nbflow",
            request_save_on_cell_execute=False,
            progress_bar=False,
        )
    assert isinstance(waits.value, GatePending)
    assert waits.value.name == "publish"
    assert read(tmp_path / "once.ipynb").metadata.nbflow.state == "waiting"


@pytest.mark.soak
def test_a_cell_that_waits_in_place_has_papermills_time_limit(tmp_path: Path) -> None:
    """When it is over the cell is interrupted and the run stays resumable: the gate still waits, and is taken up again."""
    source = gated(tmp_path, asks=ASKS.replace(")", ", wait=True)"))
    with pytest.raises(Exception, match="timed out|Timeout|timeout"):
        product.execute(source, tmp_path / "out.ipynb", execution_timeout=2)
    [row] = asked(tmp_path)
    product.approve(row["run"], "publish", store=tmp_path / ".nbflow")
    assert product.execute(source, tmp_path / "out.ipynb", execution_timeout=20).run == row["run"]


# --- the command line and Python -----------------------------------------------------------------------------


def test_nbflow_run_says_what_waits_and_takes_decisions_beforehand(
    tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 10 with the gate and the commands; `--approve` decides when the gate is asked, as the user's word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    source = gated(tmp_path)
    stopped = nbflow("run", source)
    assert stopped.exit_code == WAITS == exit_code(GatePending("", run="", step="", name=""))
    run = stopped.stdout.split()[1]
    assert "⏸ waiting: 0 cells restored, 3 ran" in stopped.stdout
    assert "Gate 'publish' waits for a decision: Publish to the site?" in stopped.stdout
    assert f"Decide:   nbflow approve {run} publish" in stopped.stdout
    assert f"Carry on: nbflow resume {run}" in stopped.stdout

    over = as_json("resume", run, "--approve", "other", "--approve", "publish=as every night")
    assert (over["state"], over["restored"], over["waiting"]) == ("completed", 1, None)
    [row] = product.gates(state=None, store=tmp_path / ".nbflow").to_dict("records")
    assert (row["decision"], row["feedback"]) == ("approved", "as every night")
    assert row["by"].partition("@")[0]
    output = read(tmp_path / "in-out.ipynb")
    assert output.cells[-1].outputs[0].text == "2001 approved as every night\n"
    assert effects(done) == ["before-2000", "behind-2000"]


@pytest.mark.parametrize(
    ("given", "says"),
    [("publish", "approve is 'publish'"), ({"publish": 1}, "feedback is a text"), ([""], "have names")],
)
def test_what_cannot_be_approved_is_refused_before_anything_runs(
    given: Any, says: str, tmp_path: Path
) -> None:
    """With words, and no run is begun."""
    with pytest.raises(UsageError, match=says):
        product.execute(gated(tmp_path), approve=given)
    assert not (tmp_path / ".nbflow").exists()


def test_a_gate_that_wants_an_option_is_left_to_a_person(tmp_path: Path) -> None:
    """Approved beforehand, it still waits, for nobody said which; any other one of its name is decided."""
    expect(Approvals.of({"route": "as ever"}, via="cli"))
    try:
        with pytest.raises(GatePending), product.run("trip", store=tmp_path / "s"):
            product.gate("route", options=["sea", "air"], single=True)
        with product.run("walk", store=tmp_path / "s"):
            decision = product.gate("route", options=["sea", "air"])
    finally:
        expect(Approvals())
    assert (decision.approved, decision.feedback, decision.via) == (True, "as ever", "cli")
    assert product.gates(store=tmp_path / "s").workflow.tolist() == ["trip"]


# --- what a run waits for ------------------------------------------------------------------------------------


def waiting_run(place: Path, body: Callable[[], Any]) -> str:
    """Have a run stop at a gate, and return its id."""
    with pytest.raises(GatePending), product.run("report", store=place, new=True) as current:
        body()
    return current.id


def test_a_run_need_not_be_started_as_long_as_nobody_decided(tmp_path: Path) -> None:
    """Its journal and inbox tell: an answer, a cancel, the end of its time and an approval beforehand are reasons."""
    place, now = tmp_path / "s", time.time()
    runs = [waiting_run(place, lambda: product.gate("publish", "Now?", timeout="1h")) for _ in range(3)]
    with closing(LocalStore(place, background=False)) as store:
        gate = undecided(store, runs[0], now)
        assert gate is not None
        assert (gate.run, gate.name, gate.text) == (runs[0], "publish", "Now?")
        assert str(gate) == "Gate 'publish' waits for a decision: Now?"
        assert undecided(store, runs[0], now + 3601) is None
        assert undecided(store, runs[0], now, ["publish"]) is None
        assert undecided(store, runs[0], now, ["other"]) == gate
        product.approve(runs[0], "publish", store=store)
        product.reject(runs[1], "publish", store=store)
        assert [undecided(store, run, now) is None for run in runs] == [True, True, False]
        assert undecided(store, new_run_id(), now) is None


def test_a_gate_of_a_child_is_seen_from_the_run_that_waits_for_it(tmp_path: Path) -> None:
    """A notebook whose machine stopped is not started before that gate is decided."""

    def child() -> Any:
        return product.gate("inner", "Deeper?")

    run = waiting_run(tmp_path / "s", lambda: product.child(child))
    with closing(LocalStore(tmp_path / "s", background=False)) as store:
        gate = undecided(store, run, time.time())
        assert gate is not None
        assert (gate.name, gate.run == run) == ("inner", False)
        product.approve(gate.run, "inner", store=store)
        assert undecided(store, run, time.time()) is None


# --- batches -------------------------------------------------------------------------------------------------


class Held(Unwatched):
    """A watcher that notes what waited from the beginning, and how items ended."""

    def __init__(self) -> None:
        self.held_ones: list[int] = []
        self.ends: list[tuple[int, str]] = []

    def held(self, item: Item, outcome: Outcome) -> None:
        assert outcome.state == "waiting"
        self.held_ones.append(item.index)

    def ended(self, item: Item, outcome: Outcome) -> None:
        self.ends.append((item.index, outcome.state))


class Batch:
    """A batch whose items are runs at gates, and whose workers are scripted: no kernels."""

    def __init__(self, place: Path, count: int) -> None:
        self.store = LocalStore(place, background=False)
        self.run = new_run_id()
        items = [Item(n, {"n": n}, child_run_id(self.run, f"item#{n}"), f"{n}.ipynb") for n in range(count)]
        self.plan = Plan("in.ipynb", tuple(items))

    def attempt(self, workers: Scripted, watcher: Held, **options: Any) -> Tally:
        opened = {"run": self.run, "variant": "batch", "launch": self.plan.recorded()}
        begun = self.run in self.store.live.names()
        how: dict[str, Any] = {"run": self.run} if begun else {"new": True, "opened": opened}
        session = Session.open(self.store, "in.ipynb", kind="batch", **how)
        with closing(session):
            return Runner(session, self.plan, workers, watcher=watcher, **options).run()

    def notebook(self, job: Job) -> Outcome:
        """Do what a notebook with a gate does, in its own run."""
        names = self.store.live.names()
        how: dict[str, Any] = {"new": True, "opened": {"run": job.item.run, "parent": job.batch}}
        session = Session.open(
            self.store, "in.ipynb", **({"run": job.item.run} if job.item.run in names else how)
        )
        expect(job.approve)
        try:
            with conducted(session):
                product.gate("publish", "Now?")
        except GatePending as pending:
            gate = Waiting(pending.run, pending.step, pending.name, "Now?")
            return Outcome("waiting", 0.01, waiting=gate)
        except GateRejected as error:
            return Outcome("failed", 0.01, error=ErrorInfo(type="GateRejected", message=str(error)))
        finally:
            expect(Approvals())
        return Outcome("completed", 0.01)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Batch]:
    made = Batch(tmp_path / "s", 3)
    yield made
    made.store.close()


def test_items_at_gates_leave_their_workers_to_others_and_go_on_one_by_one(three: Batch) -> None:
    """None failed, so the batch waits; resumed, only what was decided is given to a worker, and a rejection fails."""
    workers, watcher = Scripted(1, three.notebook), Held()
    assert three.attempt(workers, watcher) == Tally(0, 0, 0, "waiting", 3)
    assert watcher.ends == [(0, "waiting"), (1, "waiting"), (2, "waiting")]
    info = three.store.run(three.run)
    assert (info.state, info.error) == ("waiting", "3 of 3 notebooks wait for a decision.")

    product.approve(three.plan.items[1].run, "publish", store=three.store)
    workers, watcher = Scripted(1, three.notebook), Held()
    assert three.attempt(workers, watcher) == Tally(1, 0, 0, "waiting", 2)
    assert (workers.items, watcher.held_ones) == ([1], [0, 2])
    assert three.attempt(Scripted(1, three.notebook), Held()) == Tally(1, 0, 0, "waiting", 2)

    product.reject(three.plan.items[0].run, "publish", store=three.store)
    workers = Scripted(1, three.notebook)
    assert three.attempt(workers, Held()) == Tally(1, 1, 0, "failed", 1)
    assert workers.items == [0]

    workers = Scripted(1, three.notebook)
    tally = three.attempt(workers, Held(), approve=Approvals.of(["publish"]))
    assert tally == Tally(2, 1, 0, "failed", 0)
    assert set(workers.items) == {0, 2}


def test_what_is_decided_while_the_batch_runs_goes_on_in_it(three: Batch) -> None:
    """As soon as a worker is free, and without a resume."""

    def script(job: Job) -> Outcome:
        if job.item.index == 2:  # a person decides while this one is at work
            product.approve(three.plan.items[0].run, "publish", store=three.store)
        return three.notebook(job)

    workers, watcher = Scripted(1, script), Held()
    assert three.attempt(workers, watcher) == Tally(1, 0, 0, "waiting", 2)
    assert sorted(workers.items) == [0, 0, 1, 2]
    assert (0, "completed") in watcher.ends


def test_a_batch_of_notebooks_with_gates_waits_and_is_resumed(
    tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 10, the gates in every view of it; a kernel is started again only for the notebook that was decided."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    source = gated(tmp_path, asks=f"if year > 1:\n    {ASKS}")
    waits = as_json("batch", source, "--grid", "year=2,3", "--workers", "2", code=WAITS)
    assert (waits["state"], waits["completed"], waits["waiting"], waits["left"]) == ("waiting", 0, 2, 0)
    assert [gate["waiting"]["gate"] for gate in waits["gates"]] == ["publish"] * 2
    assert "nbflow batch --resume" in waits["resume"]
    results = product.batch_results(waits["batch"])
    assert results.state.tolist() == ["waiting"] * 2
    [listed] = product.batches().to_dict("records")
    assert (listed["state"], listed["waiting"], listed["left"]) == ("waiting", 2, 0)
    assert product.batches(state="waiting").batch.tolist() == [waits["batch"]]
    assert "2 waiting" in nbflow("batch", "--resume", waits["batch"], "--dry-run").stdout
    shown = nbflow("show", waits["batch"]).stdout
    assert "2 notebooks: 2 waiting." in shown
    assert "Gate 'publish' waits for a decision: Publish to the site?" in " ".join(shown.split())
    assert {read(Path(each)).metadata.nbflow.state for each in results.output} == {"waiting"}

    product.approve(results.run[1], "publish", "go", store=tmp_path / ".nbflow")
    again = nbflow("batch", "--resume", waits["batch"])
    assert again.exit_code == WAITS
    assert "⏸ waiting: 1 notebook completed, 1 waiting" in again.stdout
    assert f"nbflow approve {results.run[0]} publish" in again.stdout
    now = product.batch_results(waits["batch"])
    assert now.state.tolist() == ["waiting", "completed"]
    assert now.attempts.tolist() == [1, 2]
    assert sorted(effects(done)) == ["before-2", "before-3", "behind-3"]


@pytest.mark.soak
def test_a_runner_killed_while_a_notebook_waits_is_replaced_by_a_resume(
    tmp_path: Path, done: Path, hold: Path
) -> None:
    """The only worker went on with the next notebook; both killed, the decided one and the interrupted one complete."""
    source = notebook(
        tmp_path / "in.ipynb",
        code("day = 0", "parameters"),
        "import nbflow\n" + EFFECT.format(path=str(done)),
        "effect(f'{day}/a')",
        "if day == 0: nbflow.gate('publish')",
        f"if day == 1:\n    {textwrap.indent(HOLD.format(path=str(hold)), '    ').strip()}",
        "effect(f'{day}/b')",
    )
    place = Place(tmp_path)
    try:
        with place.driver(notebook=source, parameters={"day": [0, 1]}, workers=1) as driver:
            driver.wait("ended", "0", "waiting")
            wait_for(hold)
            driver.kill()
        [row] = asked(tmp_path)
        product.approve(row["run"], "publish", store=tmp_path / ".nbflow")
        hold.unlink()
        with place.driver(notebook=source, resume=True, workers=1) as driver:
            held = iter(lambda: hold.exists() or driver.process.poll() is not None, True)
            for _ in held:
                time.sleep(0.02)
            hold.unlink(missing_ok=True)
            assert driver.over() == ["completed", "2", "0", "0"]
        place.clean()
    finally:
        place.remove()
    assert sorted(effects(done)) == ["0/a", "0/b", "1/a", "1/b"]


@pytest.mark.soak
def test_dask_workers_are_free_while_notebooks_wait(tmp_path: Path, done: Path) -> None:
    """On a cluster as here: two notebooks wait with one worker, and are completed by the next call."""
    pytest.importorskip("distributed")
    source = gated(tmp_path)
    options: dict[str, Any] = {"executor": "dask", "workers": 1, "output": str(tmp_path / "{year}.ipynb")}
    waits = product.batch(source, {"year": [1, 2]}, **options)
    assert (waits.state, waits.waiting) == ("waiting", 2)
    over = product.batch(source, {"year": [1, 2]}, resume=True, approve={"publish": "all"}, **options)
    assert (over.state, over.completed) == ("completed", 2)
    decided = product.gates(state="approved", store=over.store)
    assert decided.feedback.tolist() == ["all", "all"]
    assert sorted(effects(done)) == ["before-1", "before-2", "behind-1", "behind-2"]


@pytest.mark.soak
def test_a_scheduled_job_that_waits_is_stopped_and_says_so(tmp_path: Path, done: Path) -> None:
    """Not failed: its message names the gate, and the job run again after the decision completes."""
    pytest.importorskip("jupyter_scheduler")
    from jupyter_scheduler.models import Status

    from tests.headless.test_scheduler import Desk, output

    desk, source = Desk(tmp_path), gated(tmp_path)
    first = desk.add(source)
    first.process()
    row = desk.row(first)
    assert row.status == Status.STOPPED
    assert "Gate 'publish' waits for a decision: Publish to the site?" in row.status_message
    run = read(output(first)).metadata.nbflow.run
    product.approve(run, "publish", store=tmp_path / ".nbflow")
    again = desk.add(source)
    again.process()
    assert desk.row(again).status == Status.COMPLETED
    assert effects(done) == ["before-2000", "behind-2000"]


@pytest.mark.soak
def test_nothing_is_left_of_a_notebook_that_waits(tmp_path: Path) -> None:
    """No kernel, no lease: the run needs nobody until somebody decides."""
    before = {process.pid for process in psutil.process_iter()}
    stopped = papermill(gated(tmp_path), tmp_path / "out.ipynb", cwd=tmp_path)
    assert stopped.returncode == WAITS
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # of others, ended meanwhile
            if process.pid not in before and str(tmp_path) in " ".join(process.cmdline()):
                left.append(process)
    assert left == []
    with closing(LocalStore(tmp_path / ".nbflow", background=False)) as store:
        [info] = store.runs()
        assert (info.state, info.alive) == ("waiting", False)
