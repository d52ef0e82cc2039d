"""`nbflow.execute`: one notebook from Python, and what it says of a notebook that failed or died."""

from __future__ import annotations

import doctest
import os
from pathlib import Path
from typing import Any

import papermill
import pytest
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError

import nbflow
from nbflow.headless import execute as module
from nbflow.headless.execute import prepare
from nbflow.headless.identity import verbatim
from nbflow.store.local import open_store
from tests.headless.kit import EFFECT, code, effects, markdown, notebook, read, statuses


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A notebook that fails, or kills its kernel, as long as a file says so."""
    trouble = (
        f"import os, signal\nif os.path.exists({str(tmp_path / 'boom')!r}): raise ValueError('no data')\n"
    )
    trouble += f"if os.path.exists({str(tmp_path / 'die')!r}): os.kill(os.getpid(), signal.SIGKILL)\n"
    return notebook(
        tmp_path / "in.ipynb",
        markdown("# A report"),
        code("year = 2000", "parameters"),
        EFFECT.format(path=str(tmp_path / "done")),
        "effect('a'); age = 2026 - year",
        f"{trouble}effect('b'); twice = 2 * age\ntwice",
    )


def test_a_failure_and_a_death_are_carried_on_by_the_same_call(source: Path, tmp_path: Path) -> None:
    """The error is papermill's own, its note names the run, and no finished cell runs twice."""
    call: dict[str, Any] = {
        "output": tmp_path / "out.ipynb",
        "parameters": {"year": 2013},
        "collect": ["twice"],
    }
    (tmp_path / "boom").touch()
    with pytest.raises(papermill.PapermillExecutionError) as failed:
        nbflow.execute(source, **call)
    (note,) = failed.value.__notes__
    run = note.split("nbflow run ")[1].split(".")[0]
    assert f"nbflow resume {run}" in note

    # What is expected of a resume is known before it starts.
    plan = prepare(source, **call).plan
    assert plan is not None
    assert ["age"] == [step.name for step in plan.steps if step.action == "restore"]
    (first, *_) = [step for step in plan.steps if step.action == "run"]
    assert "failed last time: ValueError: no data" == first.reason

    (tmp_path / "boom").rename(tmp_path / "die")
    with pytest.raises(nbflow.errors.KernelDied, match="SIGKILL") as died:
        nbflow.execute(source, **call)
    assert isinstance(died.value, DeadKernelError)
    assert run in died.value.__notes__[0]

    (tmp_path / "die").unlink()
    done = nbflow.execute(source, **call)
    assert (run, "completed", 3, {"twice": 26}) == (done.run, done.state, done.attempt, done.result)
    assert ["a", "b"] == list(effects(tmp_path / "done"))
    assert (1, 26) == (done.restored, int(done.notebook.cells[-1].outputs[0].data["text/plain"]))
    assert statuses(done.notebook) == statuses(read(tmp_path / "out.ipynb"))


def test_which_run_is_carried_on_is_found_or_chosen(source: Path) -> None:
    """Equal parameters find it, others and "new" begin another one, and a completed one is over."""
    begun = prepare(source, parameters={"year": 1})
    assert prepare(source, parameters={"year": 1}).run == begun.run
    assert prepare(source, parameters={"year": 2}).run != begun.run
    assert prepare(source, parameters={"year": 1}, run="new").run != begun.run
    first = nbflow.execute(source, run=begun.run[:23], parameters={"year": 1})
    assert (begun.run, 1, "completed") == (first.run, first.attempt, first.state)
    with pytest.raises(nbflow.errors.RunFinished):
        nbflow.execute(source, run=first.run)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"engine_name": "nbclient"}, nbflow.errors.UsageError, "always nbflow"),
        ({"prepare_only": True}, nbflow.errors.UsageError, "without running"),
        ({"collect": "age"}, nbflow.errors.UsageError, "list of names"),
        ({"cwd": "nowhere"}, nbflow.errors.UsageError, "no folder nowhere"),
        ({"kernel": "fortran"}, NoSuchKernel, "fortran"),
        ({"run": "0000aaaa"}, nbflow.errors.UnknownRun, "0000aaaa"),
    ],
)
def test_what_makes_no_sense_begins_no_run(
    source: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    """It is refused before a run or a file exists."""
    with pytest.raises(error, match=says):
        nbflow.execute(source, tmp_path / "out.ipynb", **arguments)
    store = open_store(os.environ["NBFLOW_STORE"])
    assert [] == store.runs()
    store.close()
    assert not (tmp_path / "out.ipynb").exists()


def test_braces_in_a_path_that_is_meant_as_it_stands_survive(tmp_path: Path) -> None:
    """papermill fills in parameters between braces, once; what comes out of that is not filled in again."""
    folder = tmp_path / "{odd}"
    folder.mkdir()
    made = prepare(notebook(tmp_path / "in.ipynb", "1"), verbatim(str(folder / "out.ipynb")))
    assert str(folder / "out.ipynb") == made.target
    made.start()
    assert (folder / "out.ipynb").exists()


def test_the_example_in_the_docstring_runs() -> None:
    """It prints what it says."""
    found = doctest.DocTestFinder(recurse=False).find(module.execute, "execute", globs={})
    runner = doctest.DocTestRunner()
    for each in found:
        runner.run(each)
    assert (0, True) == (runner.failures, runner.tries >= 6)
