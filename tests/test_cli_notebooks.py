"""`nbflow run` and `nbflow resume`, as a person or a script calls them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from typer.testing import CliRunner

import nbflow as product
from nbflow.cli import arguments
from nbflow.cli.app import app
from nbflow.cli.notebook_report import beginning
from nbflow.cli.notebooks import default_output
from nbflow.core.errors import UsageError
from nbflow.core.ids import new_run_id
from nbflow.core.model import RunOpened
from nbflow.headless.execute import prepare
from nbflow.headless.parameters import files as param_files
from nbflow.store.local import open_store
from tests.headless.kit import (
    EFFECT,
    HOLD,
    code,
    effects,
    kernel_of,
    kill,
    markdown,
    notebook,
    read,
    wait_for,
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As wide as a pipe, in a folder of its own, and with the store where the commands look for it."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A notebook that fails, or kills its kernel, as long as a file says so."""
    trouble = "import os, signal\nif os.path.exists('boom'): raise ValueError(f'no data for {year}')\n"
    trouble += "if os.path.exists('die'): os.kill(os.getpid(), signal.SIGKILL)\n"
    return notebook(
        tmp_path / "in.ipynb",
        markdown("# A report"),
        code("year = 2000", "parameters"),
        EFFECT.format(path=str(tmp_path / "done")),
        "effect('a'); age = 2026 - year",
        f"{trouble}effect('b'); twice = 2 * age\nprint(twice)",
    )


def nbflow(*given: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in given])


def as_json(*given: str | Path, code: int = 0) -> Any:
    result = nbflow(*given, "--json")
    assert code == result.exit_code, result.output
    return json.loads(result.stdout)


# --- run and resume ------------------------------------------------------------------------------------------


def test_what_failed_and_died_is_carried_on_and_said_in_plain_words(source: Path, tmp_path: Path) -> None:
    """Exit codes 1, 138 and 0; each report says what ran, what stopped it, and the command that carries it on."""
    (tmp_path / "boom").touch()
    failed = nbflow("run", source, "-p", "year", "2013", "--collect", "twice")
    assert 1 == failed.exit_code
    run = failed.stdout.split()[1]
    assert f"Run {run} of in.ipynb begins." in failed.stdout
    assert "✘ failed" in failed.stdout
    assert "Cell 6 of 6:" in failed.stdout
    assert "ValueError: no data for 2013" in failed.stdout
    assert f"Carry on: nbflow resume {run}" in failed.stdout

    (tmp_path / "boom").rename(tmp_path / "die")
    died = nbflow("resume", run)
    assert 138 == died.exit_code
    assert "attempt 2: 1 cell recorded" in died.stdout
    assert "goes on at cell 6 of 6" in died.stdout
    assert "The kernel died by SIGKILL in cell 6 of 6." in died.stdout
    assert f"Carry on: nbflow resume {run}" in died.stdout

    (tmp_path / "die").unlink()
    done = as_json("resume", run)
    assert (run, "completed", 3, 1, None) == tuple(
        done[name] for name in ("run", "state", "attempt", "restored", "error")
    )
    assert {"twice": 26} == done["result"]
    assert str(tmp_path / "in-out.ipynb") == done["output"]
    assert "26\n" == read(tmp_path / "in-out.ipynb").cells[-1].outputs[0].text
    assert ["a", "b"] == list(effects(tmp_path / "done"))
    assert product.runs(store=os.environ["NBFLOW_STORE"]).state.tolist() == ["completed"]

    over = nbflow("resume", run)
    assert 1 == over.exit_code
    assert "nothing left to resume" in over.stderr


def test_the_json_of_a_failure_has_all_that_a_program_asks_for(source: Path, tmp_path: Path) -> None:
    """One object on standard output, the same keys whether the notebook completed or not."""
    (tmp_path / "boom").touch()
    failed = as_json("run", source, "kept/out.ipynb", "-y", "{year: 2013}", code=1)
    assert {"type": "ValueError", "message": "no data for 2013", "cell": 5} == failed["error"]
    assert ("failed", 0, "kept/out.ipynb") == (failed["state"], failed["restored"], failed["output"])
    assert (tmp_path / "kept/out.ipynb").exists()
    (tmp_path / "boom").unlink()
    # Another kind of option, the same parameters: the same run.
    done = as_json("run", source, "kept/out.ipynb", "-p", "year=2013", "--collect", "age,nope")
    assert (failed["run"], 1) == (done["run"], done["restored"])
    assert ["nope is not collected: the notebook has no such variable at its end"] == done["warnings"]
    assert failed.keys() == done.keys() == documented("EXECUTED")


def documented(word: str) -> set[str]:
    import re

    text = (Path(__file__).resolve().parent.parent / "docs/cli.md").read_text()
    found = re.search(rf"^- {word}: (.*?)\.\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", found[1])))


def test_ctrl_c_leaves_the_run_resumable_and_says_how(tmp_path: Path) -> None:
    """Exit code 130, the kernel is gone, and `resume` goes on behind the last recorded cell."""
    hold, done = tmp_path / "hold", tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 1",
        HOLD.format(path=str(hold)),
    )
    command = [sys.executable, "-c", "from nbflow.cli import main; main()", "run", str(source)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(hold)
        kernel = kernel_of(process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    except BaseException:
        kill(process.pid)
        raise
    assert 130 == process.returncode
    assert "■ interrupted" in said
    run = said.split("nbflow resume ")[1].split()[0]
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    hold.unlink()
    begun = as_json("show", run)
    assert ("running", False) == (begun["run"]["state"], begun["run"]["alive"])
    assert ["a"] == list(effects(done))


def test_what_is_said_at_the_start_of_a_notebook_without_ids_is_true(source: Path, tmp_path: Path) -> None:
    """Cells have new ids each time such a notebook is read; those that were recorded are found by their code."""

    def without_ids(*more: str) -> None:
        nb = read(source)
        nb.cells[2:2] = [code(text) for text in more]
        nb.nbformat_minor = 4
        for cell in nb.cells:
            cell.pop("id", None)
        source.write_text(json.dumps(nb))

    without_ids()
    (tmp_path / "boom").touch()
    assert 1 == nbflow("run", source).exit_code
    (tmp_path / "boom").unlink()
    without_ids("more = len('put in')")
    done = nbflow("run", source)
    assert 0 == done.exit_code
    assert "attempt 2: 1 cell recorded, goes on at cell 3 of 6: not recorded yet." in done.stdout
    assert "✔ completed: 1 cell restored" in done.stdout


def test_a_run_that_is_at_work_elsewhere_is_called_that(tmp_path: Path) -> None:
    """Nobody is told that its kernel died."""
    hold = tmp_path / "hold"
    source = notebook(tmp_path / "in.ipynb", "x = max(1, 2)", HOLD.format(path=str(hold)))
    command = [sys.executable, "-c", "from nbflow.cli import main; main()", "run", str(source)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(hold)
        kernel = kernel_of(process)
        said = str(beginning(prepare(str(source))))
    finally:
        kill(process.pid)
        process.communicate(timeout=60)
    assert f"of in.ipynb is at work in process {kernel} on " in said
    assert "died" not in said


def test_a_cell_that_takes_too_long_leaves_the_run_resumable(tmp_path: Path) -> None:
    """A sentence, exit code 1, and the command that carries it on."""
    source = notebook(tmp_path / "in.ipynb", "x = max(1, 2)", "import time\ntime.sleep(60)")
    late = nbflow("run", source, "--execution-timeout", "1")
    assert 1 == late.exit_code, late.output
    assert "■ stopped: 0 cells restored" in late.stdout
    assert "CellTimeoutError: A cell timed out" in late.stdout
    run = late.stdout.split("Carry on: nbflow resume ")[1].strip()
    shown = as_json("show", run)
    assert "running" == shown["run"]["state"]
    assert ["completed"] == [step["state"] for step in shown["steps"] if step["step"] == "x"]


# --- what is given --------------------------------------------------------------------------------------------


@given(
    st.one_of(
        st.text(),
        st.integers().map(str),
        st.floats().map(str),
        st.sampled_from(["True", "False", "None", "1_000", " 7", "١"]),
    )
)
def test_values_mean_what_they_mean_to_papermill(text: str) -> None:
    """`-p` makes of every text what papermill's `-p` makes of it."""
    assert repr(_resolve_type(text)) == repr(param_files.resolve(text))


def test_parameters_of_all_kinds_are_put_together_as_papermill_does(tmp_path: Path) -> None:
    """Base64, files, YAML, pairs, raw pairs: the later kind wins."""
    (tmp_path / "a.yaml").write_text("b: file\nc: file\nd: file\ne: 2013-01-01\n")
    found = arguments.parameters_of(
        encoded=[base64.b64encode(b"{a: 1, b: base64}").decode()],
        files=[str(tmp_path / "a.yaml")],
        yaml=["{c: yaml, d: yaml}"],
        pairs=["d=1=2", "f=7"],
        raw=["f=7", "g="],
    )
    assert {"a": 1, "b": "file", "c": "yaml", "d": "1=2", "e": "2013-01-01", "f": "7", "g": ""} == found


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6))
def test_only_pairs_are_brought_together(words: list[str]) -> None:
    """What stands behind no `-p` or `-r` comes out as it went in."""
    plain = [word for word in words if word not in {"-p", "-r", "--"}]
    assert plain == arguments.paired(plain)
    assert [*plain, "-p", "a=b c", *plain] == arguments.paired([*plain, "-p", "a", "b c", *plain])
    assert ["--", "-p", "a", *words] == arguments.paired(["--", "-p", "a", *words])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["nope.ipynb"], "no notebook nope.ipynb"),
        (["in.ipynb", "in.ipynb"], "the notebook itself"),
        (["in.ipynb", "other.ipynb"], "not an earlier output of in.ipynb"),
        (["in.ipynb", "-"], "writes its report to standard output"),
        (["in.ipynb", "."], "is a folder"),
        (["other.ipynb"], "no notebook"),
        (["in.ipynb", "-k", "julia"], "no kernel 'julia'"),
        (["in.ipynb", "-p", "year"], "-p year is no parameter"),
        (["in.ipynb", "-y", "[1]"], "holds no names"),
        (["in.ipynb", "-y", "{a:"], "cannot be read"),
        (["in.ipynb", "-f", "no.yaml"], "no such file"),
        (["in.ipynb", "-b", "%%%"], "cannot be read"),
        (["in.ipynb", "out-{foo}.ipynb"], "Missing parameter 'foo'"),
        (["in.ipynb", "--cwd", "nowhere"], "no folder nowhere"),
        (["in.ipynb", "in.ipynb/out.ipynb"], "cannot be made"),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    source: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    """Nothing was run, and no file was touched."""
    (tmp_path / "other.ipynb").write_text("not mine")
    before = source.read_bytes()
    result = nbflow("run", *given)
    assert 2 == result.exit_code, result.output
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert ("not mine", before) == ((tmp_path / "other.ipynb").read_text(), source.read_bytes())
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("notebook_path", "output"),
    [
        ("reports/flights.ipynb", "reports/flights-out.ipynb"),
        ("flights", "flights-out.ipynb"),
        ("https://example.org/a/flights.ipynb", "flights-out.ipynb"),
    ],
)
def test_the_output_goes_beside_the_notebook_if_nobody_says(notebook_path: str, output: str) -> None:
    """What comes from elsewhere is written here."""
    assert output == default_output(notebook_path)


# --- what resume cannot do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened", "says"),
    [
        ({"workflow_kind": "notebook"}, "Open the notebook in Jupyter"),
        ({"workflow_kind": "machine"}, "that has the machine"),
        ({"workflow_kind": "script"}, "Run the program again"),
        ({"workflow_kind": "script", "parent": "0198c200-aaaa"}, "a child of run 0198c200-aaaa"),
        ({"variant": "papermill:python3", "launch": {"input": ""}}, "as an object"),
        ({"variant": "papermill:python3", "launch": {"input": "-"}}, "from standard input"),
        ({"variant": "papermill:python3", "launch": {"input": "/gone.ipynb"}}, "is gone: /gone.ipynb"),
        ({"variant": "papermill:python3", "launch": {"cwd": "/gone"}}, "is gone: /gone"),
        ({"variant": "papermill:python3", "launch": {"exact": False}}, "recorded as texts"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_run_that_cannot_be_started_from_here_says_how_it_can(
    source: Path, tmp_path: Path, opened: dict[str, Any], says: str
) -> None:
    """A clear sentence, exit code 2, and the run stays as it is."""
    launch = {"input": str(source), "output": "", "kernel": "python3", "cwd": str(tmp_path), "exact": True}
    if "launch" in opened:
        opened = {**opened, "launch": {**launch, **opened["launch"]}}
    run = new_run_id()
    store = open_store(os.environ["NBFLOW_STORE"])
    store.create(RunOpened(run=run, workflow="in.ipynb", **opened))
    store.close()
    result = nbflow("resume", run)
    assert 2 == result.exit_code, result.output
    assert says in " ".join(result.stderr.split())
    assert "pending" == as_json("show", run)["run"]["state"]


def test_a_pair_that_is_none_is_refused_by_name() -> None:
    """A parameter is a Python name."""
    with pytest.raises(UsageError, match="-r 1a=2"):
        arguments.parameters_of(raw=["1a=2"])
