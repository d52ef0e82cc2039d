"""What nbflow says in its own name in a real kernel: why a cell runs again, waits and losses; never part of a recording."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernel import Kernel

SETUP = "%load_ext nbflow\nimport nbflow"
FLAKY = (
    "import pathlib\n"
    "def flaky():\n"
    "    tries = pathlib.Path('tries')\n"
    "    number = len(tries.read_text()) if tries.exists() else 0\n"
    "    tries.write_text('x' * (number + 1))\n"
    "    if number % 2 == 0:\n"
    "        raise ConnectionError('no route to host')\n"
    "    return number\n"
)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel with the extension, which is told the path of a notebook in a folder of its own."""
    env = {
        **os.environ,
        "NBFLOW_NOTEBOOK": str(tmp_path / "nb.ipynb"),
        "NBFLOW_STORE": str(tmp_path / ".nbflow"),
    }
    with Kernel(tmp_path, env) as kernel:
        kernel.run(SETUP)
        yield kernel


def restart(kernel: Kernel) -> None:
    """SIGKILL the kernel and begin anew."""
    kernel.kill()
    kernel.restart()
    kernel.run(SETUP)


def save(kernel: Kernel, *cells: str) -> None:
    """Write the notebook's file as a front end does."""
    found = [
        {"cell_type": "code", "id": f"c{number}", "source": source, "metadata": {}, "outputs": []}
        for number, source in enumerate(cells)
    ]
    path = kernel.folder / "nb.ipynb"
    path.write_text(json.dumps({"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def test_a_cell_that_runs_again_says_why(notebook: Kernel) -> None:
    """Edited code, a changed input, an edited helper and an old recording are told apart, in one line each."""
    run = notebook.run
    run("n = 1\ndef scale(x):\n    return 2 * x")
    assert run("%%durable one\na = n + 1").notices == []
    assert run("%%durable one\na = n + 2").notices == ["one runs again: code changed"]
    assert run("%%durable two\nb = scale(n)").notices == []
    run("n = 5")
    assert run("%%durable two\nb = scale(n)").notices == ["two runs again: reads n, which changed"]
    run("def scale(x):\n    return 3 * x")
    assert run("%%durable two\nb = scale(n)").notices == ["two runs again: helper scale() changed"]
    assert "--ttl" in run("%%durable two --ttl 0s\nb = scale(n)").notices[0]
    assert run("%%durable two --refresh\nb = scale(n)").notices == []
    run("%config NbFlow.quiet = True")
    assert run("%%durable one\na = n + 3").notices == []


def test_a_restored_plot_keeps_later_cells_restored(notebook: Kernel) -> None:
    """Objects of matplotlib that hang together with a later figure are no reason to run, restored and untouched as they are."""
    cells = [
        "%matplotlib inline\nimport matplotlib.pyplot as plt",
        "%%durable first\nfigure, axes = plt.subplots()\nimage = axes.imshow([[1, 2], [3, 4]])\nplt.show()",
        "%%durable second\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\nplt.show()",
        "%%durable third\nfigure.suptitle('both')\nplt.show()",
    ]
    for cell in cells:
        assert notebook.run(cell).ok
    restart(notebook)
    done = [notebook.run(cell) for cell in cells]
    assert [cell.notices[-1].split()[:2] for cell in done[1:]] == [
        ["restored", "first"],
        ["restored", "second"],
        ["restored", "third"],
    ]


def test_a_wait_for_the_next_attempt_is_shown_and_not_recorded(notebook: Kernel) -> None:
    """The line names attempt, reason and time, stands in the past when the cell is over, and is no output of the step."""
    notebook.run(FLAKY)
    retry = "nbflow.durable(retries=nbflow_policy)(flaky)"
    notebook.run(
        "from nbflow.core.retry import RetryPolicy\nnbflow_policy = RetryPolicy(2, 1.2, jitter=False)"
    )
    cell = notebook.run(f"%%durable outer\nprint('before')\nvalue = {retry}()\nprint('after')")
    assert cell.ok and cell.stdout == "before\nafter\n"
    (line,) = cell.notices
    assert line == "flaky: 2 attempts, the one before the last failed (ConnectionError: no route to host)"
    shown = [m["content"]["data"]["text/plain"] for m in cell.messages if m["msg_type"] == "display_data"]
    assert "attempt 1 of 3 failed" in shown[0] and "the next one begins at" in shown[0]
    again = notebook.run(f"%%durable outer\nprint('before')\nvalue = {retry}()\nprint('after')")
    assert len(again.notices) == 1 and again.notices[0].startswith("restored outer")
    assert [o["output_type"] for o in again.outputs] == ["stream", "display_data"]


def test_a_retry_that_comes_at_once_says_nothing(notebook: Kernel) -> None:
    """What keeps nobody waiting is not worth a line."""
    notebook.run(FLAKY)
    assert notebook.run("%%durable quick --retries 2 --delay 0\nvalue = flaky()").notices == []


def test_a_lost_run_is_told_once_at_length(notebook: Kernel) -> None:
    """A durable call in a plain cell says who has the run now; the next ones say in one sentence that nothing was run."""
    notebook.run("@nbflow.durable\ndef g(x):\n    return x\ng(0)")
    other = Kernel(notebook.folder, notebook.env)
    try:
        other.run(SETUP)
        assert other.run("%nbflow steal").ok
        first, second = notebook.run("g(1)"), notebook.run("g(2)")
        assert "taken over by another process" in first.errors[0]["evalue"]
        assert second.errors[0]["evalue"].startswith(
            "Another kernel took this run over: not run, not recorded."
        )
        assert len(second.errors[0]["evalue"]) < len(first.errors[0]["evalue"])
        assert notebook.run("%nbflow steal").ok and notebook.run("g(3)").result == "3"
        assert "already" in notebook.run("%nbflow steal").notices[0]
    finally:
        other.close()


def test_calls_are_shown_by_function_and_cell(notebook: Kernel) -> None:
    """Plan, steps and outputs have one readable line for all calls of a function in a cell; keys only on request."""
    cells = [
        SETUP,
        "@nbflow.durable\ndef fit(month):\n    return {'month': month}\nyear = [fit(m) for m in range(3)]",
    ]
    save(notebook, *cells)
    notebook.run(cells[1], cell_id="c1")
    for line in ("%nbflow status", "%nbflow steps", "%nbflow outputs"):
        text = str(notebook.run(line).result)
        assert "fit()" in text and "cell:" not in text and "#" not in text, text
    assert "3 calls recorded" in str(notebook.run("%nbflow status").result)
    assert "in year = [fit(m)" in str(notebook.run("%nbflow steps").result)
    assert str(notebook.run("%nbflow steps --all").result).count("cell:c1/fit:") == 3
    assert str(notebook.run("%nbflow outputs fit").result).count("month") >= 3
    parents = (
        "{e.started.parent for e in get_ipython()._nbflow_extension.host.session.history.executions.values()}"
    )
    assert notebook.run(parents).result == "{None}"


def test_forgetting_a_gate_of_a_plain_cell_names_it(notebook: Kernel) -> None:
    """`%nbflow forget` says what is asked anew, also where the cell around it is no step."""
    assert not notebook.run("import nbflow\nnbflow.gate('publish')").ok
    assert notebook.run("%nbflow forget publish").notices[0].startswith("Forgotten, to run again: publish.")


def test_forgetting_a_function_runs_all_its_calls_and_the_cells_around_them(notebook: Kernel) -> None:
    """`%nbflow forget fit()` needs no keys; a durable cell that holds such a call has to run for it."""
    define = "log = []\n@nbflow.durable(version='1')\ndef fit(m):\n    log.append(m)\n    return m"
    plain, durable = "year = [fit(m) for m in range(2)]", "%%durable one\nfirst = fit(9)"
    for cell in (define, plain, durable):
        assert notebook.run(cell).ok
    assert (
        notebook.run("%nbflow forget fit()").notices[0].startswith("Forgotten, to run again: one, fit() × 2.")
    )
    assert notebook.run("log.clear()").ok
    for cell in (plain, durable):
        assert notebook.run(cell).ok
    assert notebook.run("log").result == "[0, 1, 9]"


def test_what_a_plain_cell_changes_in_place_is_not_held_against_the_next(notebook: Kernel) -> None:
    """The plan takes what a plain cell may have changed as unchanged, as it takes all that only running tells."""
    cells = [
        SETUP,
        "%%durable a\nitems = list(range(2))",
        "items.append(2)",
        "%%durable b\ntotal = sum(items)",
    ]
    save(notebook, *cells)
    for cell in cells[1:]:
        notebook.run(cell)
    assert "2 to restore, 0 to run" in str(notebook.run("%nbflow status").result)
