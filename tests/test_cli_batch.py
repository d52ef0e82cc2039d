"""`nbflow batch` and `nbflow batches`, as a person or a script calls them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

import nbflow as product
from nbflow.cli.app import app
from nbflow.cli.arguments import with_batch
from nbflow.cli.batch import sorted_out
from nbflow.cli.batch_view import Lines, LiveTable, drained
from nbflow.core.model import ErrorInfo
from nbflow.headless.batches.jobs import Item, Outcome, Plan, Progress
from nbflow.headless.batches.line import NotebookLine
from nbflow.runtime.session import Session
from nbflow.store.local import open_store
from tests.headless.kit import code, notebook


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As wide as a pipe, in a folder of its own, whose store is found as a user's is."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NBFLOW_STORE")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A notebook that fails for one year as long as a file says so."""
    return notebook(
        tmp_path / "in.ipynb",
        code("year = 2000\norigin = 'JFK'", "parameters"),
        "double = 2 * year",
        "import os\nif year == 2014 and os.path.exists('boom'): raise ValueError(f'no data for {year}')\nauc = double / 10",
    )


def nbflow(*given: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in given])


def as_json(*given: str | Path, code: int = 0) -> Any:
    result = nbflow(*given, "--json")
    assert code == result.exit_code, result.output
    return json.loads(result.stdout)


# --- the main job -----------------------------------------------------------------------------------------------


def test_the_main_job_word_by_word_and_again_with_resume(source: Path, tmp_path: Path) -> None:
    """What failed is told with its cell and error; --resume completes it, and what was completed never runs again."""
    (tmp_path / "params.csv").write_text("year,origin\n2013,JFK\n2014,LGA\n")
    words = "batch in.ipynb --grid params.csv --workers 4 --out runs/{run_id}.ipynb".split()
    (tmp_path / "boom").touch()
    failed = nbflow(*words, "--collect", "auc", "--resume")  # nothing to resume: it begins
    assert 9 == failed.exit_code, failed.output
    batch = failed.stdout.split("Batch ")[1].split(":")[0]
    assert re.search(r"/2 ✔ #0 year=2013 origin=JFK: ", failed.stdout)
    assert "✘ #1 year=2014 origin=LGA: cell 4: ValueError: no data for 2014" in failed.stdout
    assert "✘ failed: 1 notebook completed, 1 failed" in failed.stdout
    assert f"Carry on: nbflow batch --resume {batch} --workers 4" in failed.stdout

    # The folder `runs` beside the notebook makes the folder no store of nbflow's.
    assert not (tmp_path / "store.duckdb").exists()
    assert (tmp_path / ".nbflow" / "store.duckdb").exists()

    planned = as_json(*words, "--resume", "--dry-run")
    assert (batch, 0, 0, 1, 1) == tuple(planned[n] for n in ("batch", "new", "to_resume", "done", "failed"))
    assert f"Batch {batch} of the same notebook and parameters is not completed" in (
        nbflow(*words, "--dry-run").stderr
    )
    (tmp_path / "boom").unlink()
    done = nbflow(*words, "--resume")
    assert 0 == done.exit_code, done.output
    assert f"Batch {batch}: 2 notebooks, 1 of them completed already." in done.stdout
    assert "2/2 ✔ #1 year=2014 origin=LGA" in done.stdout
    assert ", 1 cell restored" in done.stdout
    assert "✔ completed: 2 notebooks completed" in done.stdout
    assert 2 == len(list((tmp_path / "runs").glob("*.ipynb")))
    assert [402.6, 402.8] == product.batch_results(batch).auc.tolist()

    again = as_json("batch", "--resume", batch)
    assert (batch, "completed", 2, None) == tuple(again[n] for n in ("batch", "state", "completed", "resume"))
    (listed,) = as_json("batches")["batches"]
    assert (batch, "in.ipynb", 2, 2, 0) == tuple(
        listed[name] for name in ("batch", "notebook", "total", "completed", "left")
    )
    assert batch[:13] in nbflow("batches").stdout
    assert "2 notebooks: 2 completed." in nbflow("show", batch).stdout
    over = nbflow("resume", batch)
    assert (1, True) == (over.exit_code, "nothing left to resume" in over.stderr)


@pytest.mark.soak
def test_a_batch_can_be_resumed_by_its_run_and_so_can_one_notebook_of_it(
    source: Path, tmp_path: Path
) -> None:
    """`nbflow resume` takes both; a notebook that completed by itself does not run again with its batch."""
    (tmp_path / "boom").touch()
    failed = as_json("batch", source, "--grid", "year=2014", "origin=a,b", "--workers", "2", code=9)
    assert 2 == failed["failed"]
    assert ["no data for 2014"] * 2 == [each["error"]["message"] for each in failed["failures"]]
    shown = nbflow("show", failed["batch"]).stdout
    assert "2 notebooks: 2 failed." in shown
    assert f"nbflow batch --resume {failed['batch']}" in shown
    (tmp_path / "boom").unlink()
    one = as_json("resume", failed["failures"][0]["run"])
    assert ("completed", 2, 1) == (one["state"], one["attempt"], one["restored"])
    done = as_json("resume", failed["batch"])
    assert ("completed", 2) == (done["state"], done["completed"])
    assert [2, 2] == product.batch_results(failed["batch"]).attempts.tolist()


def test_a_dry_run_shows_what_would_run_and_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    """Counts, the first rows, and parameters that the notebook does not know."""
    before = sorted(tmp_path.iterdir())
    result = nbflow("batch", "in.ipynb", "--grid", "year=2013,2014", "colour=red", "--dry-run")
    assert 0 == result.exit_code, result.output
    assert "2 new, 0 to resume, 0 done" in result.stdout
    assert re.search(r"^1 +2014 +red +new +runs/\{run_id\}\.ipynb", result.stdout, re.MULTILINE)
    assert "does not know colour" in result.stderr
    assert "Nothing was run." in result.stdout
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "Which notebook?"),
        (["in.ipynb"], "no parameters"),
        (["in.ipynb", "other.ipynb", "--grid", "a=1"], "'other.ipynb' is neither"),
        (["nope.ipynb", "--grid", "a=1"], "nope.ipynb"),
        (["in.ipynb", "--grid", "no.csv"], "no.csv"),
        (["in.ipynb", "--grid", "bad.csv"], "line 3"),
        (["in.ipynb", "--grid", "a=1,1"], "duplicates"),
        (["in.ipynb", "--grid", "a=1,2", "--out", "one.ipynb"], "one.ipynb"),
        (["in.ipynb", "--grid", "a=1", "--out", "{b}.ipynb"], "b"),
        (["in.ipynb", "--grid", "a=1", "--kernel", "julia"], "julia"),
        (["in.ipynb", "--grid", "a=1", "--memory", "much"], "not a size"),
        (["in.ipynb", "--grid", "a=1", "--cwd", "nowhere"], "no folder nowhere"),
        (["in.ipynb", "--grid", "a=1", "--executor", "slurm"], "slurm"),
        (["in.ipynb", "--grid", "a=1", "--scheduler", "tcp://x"], "Dask"),
        (["in.ipynb", "--resume"], "no batch"),
        (["in.ipynb", "--grid", "a=1", "--tag", "blue"], "no tag"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_told_in_words_with_exit_code_2(
    source: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    """Nothing is run, and no output is begun."""
    (tmp_path / "bad.csv").write_text("year\n2013\n2014,5\n")
    result = nbflow("batch", *given)
    assert 2 == result.exit_code, result.output
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_is_at_work_is_not_begun_twice(source: Path, tmp_path: Path) -> None:
    """It says who has it, and names no way out that a batch does not have."""
    (tmp_path / "boom").touch()
    batch = as_json("batch", source, "year=2014", code=9)["batch"]
    store = open_store(tmp_path / ".nbflow")
    with contextlib.closing(Session.open(store, "in.ipynb", run=batch)):
        refused = nbflow("batch", "--resume", batch)
    store.close()
    assert 5 == refused.exit_code
    assert f"Batch {batch} of in.ipynb is at work in process {os.getpid()} on " in refused.stderr
    assert "--steal" not in refused.stderr


def test_a_batch_that_does_not_exist_is_exit_code_3(tmp_path: Path) -> None:
    """As for every run."""
    assert 3 == nbflow("batches").exit_code  # there is no store here
    open_store(tmp_path / ".nbflow").close()
    assert 3 == nbflow("batch", "--resume", "0000aaaa").exit_code
    assert "No batches." in nbflow("batches").stdout
    assert "No such batches." in nbflow("batches", "other*").stdout


# --- what is typed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        (["in.ipynb", "--resume"], ["in.ipynb", "--resume"]),
        (["--resume", "0198c200-aaaa", "-q"], ["--resume", "--batch", "0198c200-aaaa", "-q"]),
        (["--resume=0198c200"], ["--resume", "--batch", "0198c200"]),
        (["--resume", "in.ipynb"], ["--resume", "in.ipynb"]),
        (["--resume", "a=1"], ["--resume", "a=1"]),
        (["--", "--resume", "0198c200"], ["--", "--resume", "0198c200"]),
    ],
)
def test_resume_may_be_followed_by_an_id(typed: list[str], understood: list[str]) -> None:
    """And by nothing, a notebook or an axis as well."""
    assert understood == with_batch(typed)


def test_notebook_and_axes_may_come_in_any_order() -> None:
    """An axis has an equals sign behind a name."""
    assert ("in.ipynb", ["a=1", "b=x"]) == sorted_out("in.ipynb", ["b=x"], ["a=1"])
    assert ("in.ipynb", ["a=1", "b=x"]) == sorted_out("b=x", ["in.ipynb"], ["a=1"])
    assert (None, ["f.csv"]) == sorted_out(None, [], ["f.csv"])


# --- what is shown -------------------------------------------------------------------------------------------------

ITEMS = tuple(
    Item(index, {"year": 2013 + index}, f"run-{index}", f"runs/{index}.ipynb") for index in range(4)
)
PLAN = Plan("in.ipynb", ITEMS)
FAILED = Outcome("failed", 1.0, error=ErrorInfo("builtins.ValueError", "no data\nat all"), cell=3)


def story(watcher: Any) -> None:
    """Item 0 was done before, 1 completes, 2 fails, 3 loses its worker and is at work in another one."""
    watcher.begin("0198c200-aaaa", PLAN, frozenset({0}))
    for item in ITEMS[1:]:
        watcher.started(item, 1)
    watcher.progress(ITEMS[1], Progress(3, 12, restored=2))
    watcher.ended(ITEMS[1], Outcome("completed", 2.0, restored=2))
    watcher.ended(ITEMS[2], FAILED)
    watcher.lost(ITEMS[3], RuntimeError("The worker was killed."), True)
    watcher.started(ITEMS[3], 2)
    watcher.progress(ITEMS[3], Progress(3, 12, restored=3))
    watcher.stopping("What runs is finished, nothing new starts.")


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_table_shows_what_is_at_work_what_failed_and_what_was_asked(width: int) -> None:
    """All in so many columns that no line is broken."""
    console = Console(file=StringIO(), width=width, force_terminal=True)
    table = LiveTable(console)
    story(table)
    with console.capture() as captured:
        console.print(table._picture())
    shown = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    assert "batch 0198c200-aaaa" in shown
    assert "2 done, 1 failed, 1 left" in shown
    assert re.search(r"▶ #3 year=2016 \(try 2\) +cell 4/12 +3 restored", shown)
    assert "#2 year=2015: cell 4: ValueError: no data" in shown
    assert "Finishing 1 notebook; Ctrl-C again stops them." in shown
    assert max(map(len, shown.splitlines())) <= width


def test_the_bar_gives_way_before_its_words_are_broken() -> None:
    """With counts of thousands, a rate and the time to go, 80 columns are still one line."""
    console = Console(file=StringIO(), width=80, force_terminal=True)
    table = LiveTable(console)
    table.begin("0198c200-aaaa", PLAN, frozenset({0}))
    table.counts.total, table.counts.done, table.counts.begun = 8_000, 1_234, time.monotonic() - 6_000
    table.counts.ends.append(time.monotonic())
    with console.capture() as captured:
        console.print(table._picture())
    [line] = [line for line in captured.get().splitlines() if "1,234 done" in line]
    assert "notebooks/h" in line
    assert line.rstrip().endswith("to go")


def test_lines_for_a_pipe_tell_each_notebook_once() -> None:
    """One line for each end, one for a lost worker, one for what was asked."""
    said: list[str] = []
    story(Lines(lambda text: said.append(str(text))))
    assert [
        "Batch 0198c200-aaaa: 4 notebooks, 1 of them completed already.",
        "2/4 ✔ #1 year=2014: 2.0 s, 2 cells restored",
        "3/4 ✘ #2 year=2015: cell 4: ValueError: no data (run run-2)",
        "#3 year=2016: The worker was killed. It goes on in another one.",
        "Finishing 1 notebook; Ctrl-C again stops them.",
    ] == said


def test_a_notebook_that_is_tried_again_is_not_counted_twice() -> None:
    """Failed and then completed is completed."""
    lines = Lines(lambda _text: None)
    lines.begin("run", PLAN, frozenset())
    for attempt, outcome in ((1, FAILED), (2, Outcome("completed", 1.0))):
        lines.started(ITEMS[0], attempt)
        lines.ended(ITEMS[0], outcome)
    assert (1, 0, 3) == (lines.counts.done, len(lines.counts.failed), lines.counts.left)


def test_what_drains_says_what_is_waited_for() -> None:
    """Nobody at work, nothing to wait for."""
    assert "Enough." == drained("Enough.", 0)
    assert "Enough. Finishing 2 notebooks; Ctrl-C stops them." == drained("Enough.", 2)


def test_in_a_notebook_it_is_one_line_that_is_kept_up_to_date() -> None:
    """One display, updated at most twice a second, and at the end with the state."""

    class Publisher:
        def __init__(self) -> None:
            self.said: list[dict[str, Any]] = []

        def publish(self, **message: Any) -> None:
            self.said.append(message)

    class Shell:
        display_pub = Publisher()

    line = NotebookLine(Shell)
    story(line)
    line.end("interrupted")
    said = Shell.display_pub.said
    assert [False, True, True] == [each["update"] for each in said]
    assert 1 == len({each["transient"]["display_id"] for each in said})
    assert (
        "batch 0198c200-aaaa: 2 of 4 notebooks done, 1 failed, 1 left. It is interrupted."
        == said[-1]["data"]["text/plain"]
    )
    assert os.environ.get("NBFLOW_STORE") is None
