"""papermill's engine: what died is carried on, and the output notebook says so."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import papermill as papermill_library
import pytest
from papermill.iorw import papermill_io

from nbflow.core.errors import RunFinished, UnknownRun, UsageError
from nbflow.headless import engine
from nbflow.runtime.session import Session
from nbflow.store.local import LocalStore
from tests.headless import other_kernels
from tests.headless.kit import (
    EFFECT,
    HOLD,
    begun,
    code,
    effects,
    execute,
    failing,
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

# --- what died is carried on -----------------------------------------------------------------------------


def test_what_a_dead_kernel_had_recorded_is_restored_by_the_same_command(
    tmp_path: Path, hold: Path, done: Path
) -> None:
    """Killed in the last cell, the notebook ends on the second try and runs no finished cell again."""
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 40",
        "effect('b'); y = x + 2; y",
        HOLD.format(path=str(hold)),
        "effect('c'); print(x + y)",
    )
    with begun(source, tmp_path / "out.ipynb", "-p", "year", "2013") as process:
        wait_for(hold)
        kill(kernel_of(process))
        assert process.wait(60) == 138
    hold.unlink()
    first = read(tmp_path / "out.ipynb")
    assert papermills(first)[-2:] == ["failed", "pending"]
    assert "SIGKILL in cell 5 of 6" in first.metadata.nbflow["error"]
    with begun(source, tmp_path / "out.ipynb", "-p", "year", "2013") as process:
        wait_for(hold)
        hold.unlink()
        assert process.wait(60) == 0, process.communicate()[0]
    assert effects(done) == ["a", "b", "c"]
    second = read(tmp_path / "out.ipynb")
    assert statuses(second)[2:] == ["restored", "restored", "ran", "ran"]
    assert second.cells[3].outputs[0].data["text/plain"] == "42"
    assert second.metadata.nbflow["attempt"] == 2
    assert second.metadata.nbflow["run"] == first.metadata.nbflow["run"]
    assert second.metadata.nbflow["state"] == "completed"


def test_a_completed_run_is_over_and_the_same_command_starts_a_new_one(tmp_path: Path, done: Path) -> None:
    """papermill executes a notebook when it is told to, so what is completed is not replayed."""
    source = notebook(tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a'); x = 1")
    for _ in range(2):
        execute(source, tmp_path / "out.ipynb")
    assert effects(done) == ["a", "a"]


def test_a_failed_notebook_is_carried_on_and_says_so_in_log_and_bar(
    tmp_path: Path, done: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Restored cells advance the bar at once, each is named in the log, and their outputs are there."""
    source, bar = failing(tmp_path, done, "print(x + y)"), io.StringIO()
    with pytest.raises(papermill_library.PapermillExecutionError, match="not yet"):
        execute(source, tmp_path / "out.ipynb")
    failed = read(tmp_path / "out.ipynb")
    assert statuses(failed) == ["ran", "ran", "ran", "failed", None]
    assert failed.metadata.nbflow["state"] == "failed"
    (tmp_path / "mended").touch()
    with caplog.at_level(logging.INFO, "papermill"):
        document = execute(source, tmp_path / "out.ipynb", progress_bar={"file": bar})
    assert effects(done) == ["a", "b", "c", "c"]
    assert statuses(document) == ["ran", "restored", "restored", "ran", "ran"]
    facts = document.metadata.nbflow
    assert (facts["restored"], facts["ran"], facts["attempt"]) == (2, 3, 2)
    assert "Cell 2 restored: x (" in caplog.text and "Cell 3 restored: y (" in caplog.text
    assert "2/5" in bar.getvalue() and "1 restored" in bar.getvalue() and "2 restored" in bar.getvalue()


@pytest.mark.soak
def test_what_an_interrupted_papermill_had_recorded_is_restored(
    tmp_path: Path, hold: Path, done: Path
) -> None:
    """Ctrl-C ends the kernel with papermill and leaves the run to be carried on."""
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 1",
        HOLD.format(path=str(hold)),
    )
    with begun(source, tmp_path / "out.ipynb") as process:
        wait_for(hold)
        kernel = kernel_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    gone(kernel)
    facts = read(tmp_path / "out.ipynb").metadata.nbflow
    assert (facts["state"], facts["error"]) == ("stopped", "KeyboardInterrupt")
    hold.unlink()
    with begun(source, tmp_path / "out.ipynb") as process:
        wait_for(hold)
        hold.unlink()
        assert process.wait(60) == 0
    assert effects(done) == ["a"]
    assert read(tmp_path / "out.ipynb").metadata.nbflow["run"] == facts["run"]


@pytest.mark.soak
def test_the_kernel_of_a_killed_papermill_is_waited_for(tmp_path: Path, hold: Path, done: Path) -> None:
    """The same command at once after the kill finds the run held for a moment, waits, and carries it on."""
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 1",
        HOLD.format(path=str(hold)),
    )
    with begun(source, tmp_path / "out.ipynb") as process:
        wait_for(hold)
        orphan = kernel_of(process)
        kill(process.pid)
        with begun(source, tmp_path / "out.ipynb") as second:
            gone(orphan)
            hold.unlink()
            wait_for(hold)
            hold.unlink()
            assert second.wait(60) == 0
            said = second.communicate()[0]
    assert effects(done) == ["a"]
    assert "resumed, attempt 2" in said


# --- what the notebook says ------------------------------------------------------------------------------


def test_every_code_cell_says_what_became_of_it(tmp_path: Path) -> None:
    """Key, status and seconds of steps; no key where a cell is none; nothing is wrapped twice."""
    source = notebook(
        tmp_path / "in.ipynb",
        "import math",
        "%load_ext nbflow",
        "%%durable named\nroot = math.sqrt(16)",
        "%%time\ntimed = root + 1",
        code("left = 1", "nbflow-skip"),
        code("never = 1", "skip-execution"),
        "",
        "def f():\n    return root\nvalue = f()",
        code("bad = 1 / 0", "raises-exception"),  # of constants alone, so it is no step
        "%load_ext nbflow",
    )
    with pytest.raises(papermill_library.PapermillExecutionError):  # papermill's way with raises-exception
        execute(source, tmp_path / "out.ipynb")
    said = [cell.metadata.nbflow for cell in read(tmp_path / "out.ipynb").cells if cell.cell_type == "code"]
    assert [(each["status"], each.get("key")) for each in said] == [
        ("ran", None),
        ("ran", None),
        ("ran", "named"),
        ("ran", "timed"),
        ("ran", None),
        ("skipped", None),
        ("skipped", None),
        ("ran", "value"),
        ("ran", None),
        ("ran", None),
    ]
    assert all(each["seconds"] >= 0 for each in said if each["status"] == "ran")
    run = read(tmp_path / "out.ipynb").metadata.nbflow["run"]
    with closing(LocalStore(tmp_path / ".nbflow")) as store:
        recorded = {entry.record.step for entry in store.entries(run) if hasattr(entry.record, "step")}
    assert recorded == {"named", "timed", "value"}


# --- which run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "left", "run"),
    [
        (["papermill", "--engine", "nbflow", "--nbflow-run", "R", "in", "out"], 5, "R"),
        (["papermill", "--nbflow-run=R", "in", "out", "--engine=nbflow"], 4, "R"),
        (["papermill", "--engine", "nbflow", "in", "out", "--nbflow-run", "new"], 5, "new"),
        (["papermill", "--engine", "nbflow", "--nbflow-run=A", "in", "--nbflow-run", "B", "out"], 5, "B"),
        (["papermill", "--engine", "nbflow", "--", "--nbflow-run", "out"], 6, None),
        (["papermill", "-h"], 2, None),
    ],
)
def test_the_option_is_taken_out_of_papermills_command_line(
    given: list[str], left: int, run: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is spelt and wherever it stands; what is not ours stays, in its order."""
    monkeypatch.setenv("NBFLOW_RUN", "before")
    before = [
        word for word in given if word not in {"R", "A", "B", "new"} and not word.startswith("--nbflow-run=")
    ]
    engine._take_option(given)
    assert len(given) == left
    if run is not None:
        assert given == [word for word in before if word != "--nbflow-run"]
    assert os.environ["NBFLOW_RUN"] == (run or "before")


@pytest.mark.parametrize(
    "words",
    [
        ["--nbflow-run"],
        ["--nbflow-run="],
        ["--nbflow-run", "--engine", "nbflow"],
        ["--nbflow-run", "R", "--engine", "other"],
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing value, or another engine: exit code 2 and a sentence, as papermill's own options."""
    monkeypatch.setenv("NBFLOW_RUN", "")
    with pytest.raises(SystemExit) as refused:
        engine._take_option(["papermill", "in", "out", *words])
    assert refused.value.code == 2
    assert "Option '--nbflow-run'" in capsys.readouterr().err


def test_a_run_is_chosen_on_the_command_line_and_stays_between_papermill_and_its_kernel(
    tmp_path: Path, done: Path
) -> None:
    """`--nbflow-run` carries an older run on than the newest; processes of the notebook do not see which."""
    source = failing(tmp_path, done, '!echo "[$NBFLOW_RUN]"', "import os\nos.environ.get('NBFLOW_RUN')")
    runs = []
    for _ in range(2):
        with pytest.raises(papermill_library.PapermillExecutionError):
            execute(source, tmp_path / "out.ipynb", nbflow_run="new")
        runs.append(read(tmp_path / "out.ipynb").metadata.nbflow["run"])
    (tmp_path / "mended").touch()
    ended = papermill("--nbflow-run", runs[0], source, tmp_path / "out.ipynb")
    assert ended.returncode == 0, ended.stderr
    document = read(tmp_path / "out.ipynb")
    assert (document.metadata.nbflow["run"], runs[0] == runs[1]) == (runs[0], False)
    assert document.cells[-2].outputs[0].text.strip() == "[]"
    assert document.cells[-1].outputs == []


def test_a_run_that_cannot_be_carried_on_runs_nothing(
    tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown, finished or another notebook's: an error says which, and no cell claims to be completed."""
    source, out = (
        notebook(tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a')"),
        tmp_path / "o.ipynb",
    )
    finished = execute(source, out).metadata.nbflow["run"]
    with closing(LocalStore(tmp_path / ".nbflow")) as store:
        foreign = Session.open(store, "other.ipynb")
        foreign.close()
    for run, error in (
        ("0197a3b2-0000-7000-8000-000000000000", UnknownRun),
        (finished, RunFinished),
        (foreign.run, UsageError),
    ):
        monkeypatch.setenv("NBFLOW_RUN", run)
        with pytest.raises(error, match=run[:8]):
            execute(source, out)
        assert papermills(read(out)) == ["pending", "pending"]
        assert statuses(read(out)) == [None, None]
    assert effects(done) == ["a"]


def test_an_option_of_the_engine_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A typing error must not start the notebook with other settings than were meant."""
    with pytest.raises(UsageError, match="nbflow_colect"):
        execute(notebook(tmp_path / "in.ipynb", "1"), None, nbflow_colect=["x"])


# --- other kernels, other places -------------------------------------------------------------------------


def test_a_kernel_that_cannot_record_runs_its_notebook_unresumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another language, or a Python without nbflow: a warning, `recorded` is false, and all of it runs each time."""
    other_kernels.install(tmp_path / "jupyter", monkeypatch)
    source = notebook(tmp_path / "in.ipynb", "some words", kernel="echo")
    document = execute(source, tmp_path / "out.ipynb", kernel_name="echo", language="python")
    assert document.cells[0].outputs[0].text == "some words"
    assert "without being recorded, for its kernel speaks echo" in caplog.text
    facts = document.metadata.nbflow
    assert (facts["recorded"], facts["state"]) == (False, "completed")
    assert statuses(document) == ["ran"]
    source = notebook(tmp_path / "fails.ipynb", "fail here", "behind", kernel="echo")
    with pytest.raises(papermill_library.PapermillExecutionError, match="fail here"):
        execute(source, tmp_path / "out.ipynb")
    assert statuses(read(tmp_path / "out.ipynb")) == ["failed", None]
    assert read(tmp_path / "out.ipynb").metadata.nbflow["state"] == "failed"
    source = notebook(tmp_path / "bare.ipynb", "x = 1", "x + 1", kernel="bare")
    document = execute(source, tmp_path / "out.ipynb")
    assert document.cells[1].outputs[0].data["text/plain"] == "2"
    assert "nbflow cannot be loaded in its kernel" in caplog.text
    assert document.metadata.nbflow["recorded"] is False


class _Shelf:
    """A place that papermill can be taught to read and write, as S3 is one."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def read(self, path: str) -> str:
        return self.kept[path]

    def write(self, text: str, path: str) -> None:
        self.kept[path] = text

    def listdir(self, path: str) -> list[str]:
        return [each for each in self.kept if each.startswith(path)]

    def pretty_path(self, path: str) -> str:
        return path


@pytest.fixture
def shelf() -> Iterator[_Shelf]:
    made, before = _Shelf(), list(papermill_io._handlers)
    papermill_io.register("shelf://", made)
    yield made
    papermill_io._handlers[:] = before


def test_a_notebook_from_elsewhere_is_carried_on_by_its_address(
    tmp_path: Path, shelf: _Shelf, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever papermill reads and writes: the run is named after the address, the store is the working folder's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBFLOW_STORE")
    shelf.kept["shelf://in.ipynb"] = failing(tmp_path, done).read_text()
    with pytest.raises(papermill_library.PapermillExecutionError):
        execute("shelf://in.ipynb", "shelf://out.ipynb")  # type: ignore[arg-type]
    (tmp_path / "mended").touch()
    document = execute("shelf://in.ipynb", "shelf://out.ipynb")  # type: ignore[arg-type]
    assert statuses(document) == ["ran", "restored", "restored", "ran"]
    assert '"restored"' in shelf.kept["shelf://out.ipynb"]
    with closing(LocalStore(tmp_path / ".nbflow")) as store:
        assert store.run(document.metadata.nbflow["run"]).workflow == "shelf://in.ipynb"


# --- where nobody asked for the engine -------------------------------------------------------------------


def test_importing_papermill_costs_next_to_nothing_more() -> None:
    """papermill loads all engines when it is imported: ours brings in nothing heavy, and nothing of the store."""
    program = (
        "import sys, entrypoints\n"
        "entrypoints.get_group_all = lambda _group: []\n"
        "import papermill\n"
        "before = set(sys.modules)\n"
        "import nbflow.headless.engine\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["nbflow", "nbflow.headless", "nbflow.headless.engine"]


@pytest.mark.soak
def test_nbconvert_and_papermill_without_the_engine_know_nothing_of_nbflow(tmp_path: Path) -> None:
    """A kernel that neither was told to be durable does not import nbflow, and no store is made."""
    nbconvert = pytest.importorskip("nbconvert.preprocessors")
    source = notebook(tmp_path / "in.ipynb", "import sys\n'nbflow' in sys.modules")
    document, _ = nbconvert.ExecutePreprocessor(kernel_name="python3").preprocess(read(source), {})
    assert document.cells[0].outputs[0].data["text/plain"] == "False"
    plain = papermill_library.execute_notebook(source, tmp_path / "out.ipynb", progress_bar=False)
    assert plain.cells[0].outputs[0].data["text/plain"] == "False"
    assert "nbflow" not in plain.metadata and "nbflow" not in plain.cells[0].metadata
    assert not (tmp_path / ".nbflow").exists()
