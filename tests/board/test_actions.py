"""What can be done about a run: allowed or not and why, done by the same words as everywhere else, told in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.board import Board, launching
from nbflow.core import errors
from nbflow.core.model import StepCompleted, StepStarted
from nbflow.core.states import COMPENSATE
from nbflow.store.local import LocalStore
from tests.board.board_kit import asked, ended, process, said, until
from tests.store.conformance import attached, do_step


class Kernel:
    """A notebook's kernel that notes what it was told."""

    def __init__(self, workflow: str, run: str | None = None) -> None:
        self.name, self.attached, self.told = workflow, run, []  # type: ignore[var-annotated]

    def run(self) -> str | None:
        return self.attached

    def workflow(self) -> str:
        return self.name

    def attach(self, run: str) -> None:
        self.told.append(run)
        self.attached = run

    def new(self) -> str:
        self.told.append("new")
        return "01a1fff9-new-run-of-this-notebook"


def allowed(board: Board, run: str) -> set[str]:
    """Return what may be done, and make sure that every refusal says why."""
    actions = asked(board, "run", run=run)["actions"]
    assert all(verdict["allowed"] == (verdict["why"] == "") for verdict in actions.values())
    return {name for name, verdict in actions.items() if verdict["allowed"]}


def failed_run(store: LocalStore, workflow: str = "w", **facts: Any) -> str:
    """Record a run with one step that failed; return its id."""
    log = attached(store, workflow, **facts)
    do_step(log, "a")
    do_step(log, "b")
    return ended(log, "failed", "it broke")


def test_what_is_allowed_follows_from_the_state(store: LocalStore, board: Board) -> None:
    """A living run can be cancelled, one that failed retried, forked and deleted too, one that is over only forked."""
    log = attached(store, "w")
    do_step(log, "a")
    assert allowed(board, log.run) == {"cancel", "fork"}
    assert allowed(board, failed_run(store)) == {"cancel", "retry", "fork", "forget", "delete"}
    assert allowed(board, ended(log)) == {"fork", "delete"}
    with pytest.raises(errors.UsageError, match="final") as caught:
        board.ask("act", {"action": "cancel", "run": log.run})
    assert caught.value.run == log.run


def test_a_run_that_nobody_owns_is_cancelled_at_once(store: LocalStore, board: Board) -> None:
    """The reason is recorded, and the table shows it."""
    run = failed_run(store)
    answer = asked(board, "act", action="cancel", run=run, reason="wrong data")
    assert answer == {"said": f"Run {run[:13]} is cancelled."}
    [row] = asked(board, "runs")["rows"]
    assert (row["state"], "wrong data" in row["error"]) == ("cancelled", True)


def test_a_running_run_is_asked_to_stop_and_stops(store: LocalStore, board: Board) -> None:
    """The click reaches the process that owns the run; it ends at its next step."""
    code = """
    import nbflow
    with nbflow.run("long") as run:
        print(run.id, flush=True)
        nbflow.sleep("1h")
    """
    child = process(code, store)
    run = said(child)
    assert "ends at its next step" in asked(board, "act", action="cancel", run=run)["said"]
    until(lambda: asked(board, "run", run=run)["row"]["state"] == "cancelled", what="the end")
    child.communicate()


def test_what_has_to_be_undone_first_is_said(store: LocalStore, board: Board) -> None:
    """A run with effects is not ended behind the back of its own code."""
    log = attached(store, "w")
    number = log.append(StepStarted("a", "a", "call", b"a", detail={COMPENSATE: "m:a"}))
    log.append(StepCompleted(number, "a"))
    run = ended(log, "failed")
    assert "something to undo" in asked(board, "act", action="cancel", run=run)["said"]


def test_a_failed_step_is_retried_when_its_run_goes_on(store: LocalStore, board: Board) -> None:
    """The next start of the program runs the step again, and history says who asked."""
    ran: list[str] = []

    @nbflow.durable(version="1")
    def load() -> int:
        ran.append("load")
        return 1

    def flow() -> None:
        with nbflow.run("again", store=store):
            load()
            if len(ran) < 2:
                raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        flow()
    [row] = asked(board, "runs")["rows"]
    answer = asked(board, "act", action="retry", run=row["run"], step="load", reason="new data")
    assert answer["said"].endswith("runs again when the run is resumed.")
    flow()
    assert ran == ["load", "load"]
    first = asked(board, "run", run=row["run"])["steps"][0]
    assert first["forgotten"] is True
    log = asked(board, "step", run=row["run"], execution=first["execution"])["log"]
    assert log[-1].endswith(": new data")


def test_a_fork_shares_what_came_before_a_step(store: LocalStore, board: Board) -> None:
    """The answer names the new run, which is in the table and says what it was forked from."""
    run = failed_run(store)
    answer = asked(board, "act", action="fork", run=run, step="b")
    rows = {row["run"]: row for row in asked(board, "runs")["rows"]}
    assert (rows[answer["run"]]["forked"], rows[run]["forked"]) == (run, None)
    assert [step["step"] for step in asked(board, "run", run=answer["run"])["steps"]] == ["a"]


def test_a_click_without_a_step_changes_nothing(store: LocalStore, board: Board) -> None:
    """Fork, retry and forget are about a step; without one, or with an unknown one, the sentence says so."""
    run = failed_run(store)
    before = store.entries(run)
    for action in ("retry", "fork", "forget"):
        with pytest.raises(errors.UsageError):
            board.ask("act", {"action": action, "run": run})
        with pytest.raises(errors.UnknownStep) as caught:
            board.ask("act", {"action": action, "run": run, "step": "none"})
        assert (caught.value.run, caught.value.step) == (run, "none")
    assert before == store.entries(run)


def test_a_run_of_this_notebook_is_taken_up_by_its_kernel(store: LocalStore) -> None:
    """Resume attaches it and says to press Run All; a run of another notebook says where to go instead."""
    run = failed_run(store, "nb.ipynb", workflow_kind="notebook")
    other = failed_run(store, "other.ipynb", workflow_kind="notebook")
    kernel = Kernel("nb.ipynb")
    board = Board(store, here=kernel)
    assert "press Run All" in asked(board, "act", action="resume", run=run)["said"]
    assert kernel.told == [run]
    page = asked(board, "run", run=run)
    assert (page["row"]["current"], page["actions"]["resume"]["why"]) == (
        True,
        "This kernel has the run: press Run All.",
    )
    assert "press Run All" in asked(board, "act", action="new", run=run)["said"]
    assert f"%nbflow resume {other}" in asked(board, "run", run=other)["actions"]["resume"]["why"]
    board.close()


def test_a_gate_is_decided_and_stays_decided(store: LocalStore, board: Board) -> None:
    """The page shows "sent" until the run takes it; the second decision shows the first; nonsense decides nothing."""

    def flow() -> tuple[str, tuple[str, ...]]:
        with nbflow.run("weekly", store=store):
            decision = nbflow.gate(
                "publish", "Publish?", options=["web", "mail"], show=["<b>look</b>", {"auc": 0.9}]
            )
            return decision.feedback, decision.selections

    with pytest.raises(nbflow.errors.GatePending) as pending:
        flow()
    [gate] = asked(board, "gates")["rows"]
    assert (gate["run"], gate["state"], gate["options"]) == (pending.value.run, "waiting", ["web", "mail"])
    assert asked(board, "runs")["rows"][0]["gates"] == 1
    shown = asked(board, "gate", run=gate["run"], step=gate["step"])["exhibits"]
    assert [(each["kind"], each["text"]) for each in shown][0] == ("text", "<b>look</b>")
    about = {"run": gate["run"], "step": gate["step"], "opening": gate["opening"]}
    for wrong in (
        {"approved": "yes"},
        {"approved": True, "selections": ["fax"]},
        {"approved": True, "selections": "web"},
    ):
        with pytest.raises(errors.UsageError):
            board.ask("decide", {**about, **wrong})
    with pytest.raises(errors.GateDecided, match="asked anew"):
        board.ask("decide", {**about, "opening": "another", "approved": True})
    row = asked(board, "decide", **about, approved=True, feedback="<i>ok</i>", selections=["web"], by="ana")
    assert (row["state"], row["decision"]["by"], row["decision"]["via"]) == ("sent", "ana", "dashboard")
    with pytest.raises(errors.GateDecided, match="by ana") as caught:
        board.ask("decide", {**about, "approved": False})
    assert caught.value.run == gate["run"]
    assert asked(board, "gates", state="sent")["rows"][0]["decision"]["feedback"] == "<i>ok</i>"
    assert flow() == ("<i>ok</i>", ("web",))
    page = asked(board, "run", run=gate["run"])
    assert [row["state"] for row in page["gates"]] == ["approved"]
    step = asked(board, "step", run=gate["run"], execution=page["gates"][0]["execution"])
    assert (step["decision"]["by"], len(step["exhibits"])) == ("ana", 2)


def test_disk_use_names_the_place_and_the_largest_runs(store: LocalStore, board: Board) -> None:
    """Sizes in bytes; the total is that of the database and of the unfinished runs."""
    log = attached(store, "large")
    do_step(log, "a", leaves=[b"x" * 200_000])
    store.ingest()
    asked(board, "runs")
    answer = asked(board, "disk")
    assert answer["place"] == str(store.root)
    assert answer["total"] == answer["database"] + answer["live"]
    assert (answer["runs"][0]["run"], answer["runs"][0]["workflow"]) == (log.run, "large")
    assert answer["runs"][0]["bytes"] > 200_000


def notebook(path: Path, code: str) -> Path:
    """Write a notebook of one cell with parameters and one with code."""
    cells = [
        {
            "cell_type": "code",
            "id": name,
            "metadata": meta,
            "outputs": [],
            "execution_count": None,
            "source": source,
        }
        for name, meta, source in (("p", {"tags": ["parameters"]}, "n = 1"), ("c", {}, code))
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    body = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(body))
    return path


@pytest.mark.soak
def test_a_notebook_that_papermill_began_is_resumed_from_the_page(
    store: LocalStore, board: Board, tmp_path: Path
) -> None:
    """Resume carries the run on in a process of its own; new begins another with changed parameters."""
    source = notebook(
        tmp_path / "nb.ipynb", "import pathlib\nassert pathlib.Path('ready').exists() or n == 5\nm = n + 1"
    )
    with pytest.raises(Exception, match="Assertion"):
        nbflow.execute(source, tmp_path / "out.ipynb", {"n": 3}, cwd=tmp_path, store=store.root)
    [row] = asked(board, "runs")["rows"]
    assert {"resume", "new"} <= allowed(board, row["run"])
    (tmp_path / "ready").touch()
    answer = asked(board, "act", action="resume", run=row["run"])
    until(lambda: asked(board, "run", run=row["run"])["row"]["state"] == "completed", what=answer["said"])
    asked(board, "act", action="new", run=row["run"], params={"n": 5})
    done = until(
        lambda: [
            r for r in asked(board, "runs")["rows"] if r["params"].get("n") == 5 and r["state"] == "completed"
        ],
        what="the new run",
    )
    assert done[0]["run"] != row["run"]
    with pytest.raises(errors.UsageError, match="no parameter k"):
        board.ask("act", {"action": "new", "run": row["run"], "params": {"k": 5}})


def test_a_start_that_fails_at_once_says_why(
    store: LocalStore, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of the process that was started are the error of the click."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*"\nprintf "\\033[31mNo room.\\033[0m\\n" >&2\nexit 3\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    run = failed_run(store, "nb.ipynb", variant="papermill:python3", launch={"input": "nb.ipynb"})
    with pytest.raises(errors.NbflowError) as caught:
        board.ask("act", {"action": "resume", "run": run})
    command = f"-m nbflow.cli resume {run} --no-progress-bar --store {store.root}"
    assert caught.value.message == f"Run {run} could not be started: {command} No room."
    [words] = (store.root / launching.FOLDER).iterdir()
    assert words.name.startswith(run)


@pytest.mark.soak
def test_a_notebook_that_is_gone_is_told_by_the_click(
    store: LocalStore, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `nbflow resume` refuses is refused on the page, in its words."""
    monkeypatch.setattr(launching, "PATIENCE", 60.0)
    launch = {"input": str(tmp_path / "gone.ipynb"), "output": "", "kernel": "python3", "cwd": str(tmp_path)}
    run = failed_run(
        store, "gone.ipynb", workflow_kind="notebook", variant="papermill:python3", launch=launch
    )
    with pytest.raises(errors.NbflowError, match="is gone") as caught:
        board.ask("act", {"action": "resume", "run": run})
    assert caught.value.run == run


def test_runs_that_no_page_can_start_say_how(store: LocalStore, board: Board) -> None:
    """Scripts, machines, parts of other runs and batches each have their own way, and it is told."""
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "script": ({}, "Run the program again", "Run the program again"),
        "machine": ({"workflow_kind": "machine"}, "that has the machine", "that has the machine"),
        "child": ({"parent": "01a1fff9-parent"}, "resume that one", "It is a part"),
        "batch": ({"workflow_kind": "batch", "launch": {"notebook": "n", "items": []}}, "", "nbflow batch"),
        "object": ({"launch": {"input": "", "kernel": "python3"}}, "", "not given as a file"),
    }
    for name, (facts, resume, new) in cases.items():
        actions = asked(board, "run", run=failed_run(store, name, **facts))["actions"]
        assert (name, resume in actions["resume"]["why"]) == (name, True)
        assert (name, new in actions["new"]["why"]) == (name, True)


def test_a_row_of_a_run_is_the_same_from_its_page_and_from_the_table(store: LocalStore, board: Board) -> None:
    """The two ways to a run's line never disagree."""
    runs = [failed_run(store), ended(attached(store, "w"))]
    table = {row["run"]: row for row in asked(board, "runs")["rows"]}
    assert table == {run: asked(board, "run", run=run)["row"] for run in runs}
