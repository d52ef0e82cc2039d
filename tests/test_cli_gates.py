"""`nbflow gates`, `approve` and `reject`, as a person or a script calls them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

import nbflow as product
from nbflow.cli import desk
from nbflow.cli import gates as commands
from nbflow.cli.app import app
from nbflow.core.errors import GateDecided, GatePending
from nbflow.testing import MemoryStore
from tests.runtime.timed import attached


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """A store in memory that every command finds."""
    memory = MemoryStore()
    monkeypatch.setattr(desk, "open_existing", lambda place: memory)
    monkeypatch.setattr(commands, "open_existing", lambda place: memory)
    # The commands close what they opened; an owner in this process stays the owner.
    monkeypatch.setattr(memory, "close", lambda: None)
    yield memory


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as a pipe, whatever the terminal or the test runner says."""
    monkeypatch.setenv("COLUMNS", "160")


def nbflow(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def as_json(*arguments: str) -> Any:
    result = nbflow(*arguments, "--json")
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def asked(store: MemoryStore, ask: Callable[[], Any]) -> str:
    """Return the id of a run that stopped at a gate and has no owner."""
    with attached(store, new=True) as session, pytest.raises(GatePending):
        ask()
    return session.run


def publish() -> Any:
    """Ask a question with options and something to look at."""
    shown = ["all is well", pd.DataFrame({"month": [1, 2], "delay": [3.5, None]})]
    return product.gate("publish", "Publish to the site?", options=["web", "mail"], show=shown, timeout="2d")


def test_gates_lists_who_waits(store: MemoryStore) -> None:
    """With age, due time, options and question; decided ones only on request."""
    run = asked(store, publish)
    (row,) = as_json("gates")["gates"]
    assert (run, "w", "publish", "waiting", ["web", "mail"], "Publish to the site?") == tuple(
        row[name] for name in ("run", "workflow", "gate", "state", "options", "text")
    )
    assert row["due"] > row["opened"]
    said = nbflow("gates").stdout
    for words in ("publish", "Publish to the site?", "web, mail", "s ago", "in 1 d"):
        assert words in said

    product.approve(run, "publish", "nice", select="web", by="ana", store=store)
    assert "No gate waits" in nbflow("gates").stdout
    assert [] == as_json("gates")["gates"]
    said = nbflow("gates", "--all").stdout
    assert "approved by ana" in said
    assert "not taken into the run yet" in said


def test_gates_of_one_run_and_one_gate(store: MemoryStore) -> None:
    """A run's gates; and of one gate its texts and tables, also as JSON, before and behind the decision."""
    run = asked(store, publish)
    asked(store, lambda: product.gate("other"))
    assert ["publish"] == [row["gate"] for row in as_json("gates", run)["gates"]]
    assert ["publish", "other"] == [row["gate"] for row in as_json("gates")["gates"]]
    said = nbflow("gates", run[:20], "publish").stdout
    for words in ("Publish to the site?", "all is well", "month", "3.5", f"nbflow approve {run} publish"):
        assert words in said
    assert "%nbflow" not in said
    found = as_json("gates", run, "publish")
    assert ["text", "table"] == [each["kind"] for each in found["exhibits"]]

    nbflow("approve", run, "publish", "--by", "ana", "-f", "nice")
    said = nbflow("gates", run, "publish").stdout
    assert "approved by ana" in said
    assert "has not taken the decision yet" in said


@pytest.mark.parametrize(("word", "decision"), [("approve", "approved"), ("reject", "rejected")])
def test_a_decision_from_the_command_line_arrives(store: MemoryStore, word: str, decision: str) -> None:
    """While nobody has the run; the resumed run gets feedback, selections and who decided."""
    run = asked(store, publish)
    answer = as_json(word, run[:20], "publish", "--feedback", "so be it", "-s", "mail", "--by", "ana")
    assert ("publish", decision, "ana", "so be it", ["mail"], "cli") == tuple(
        answer[name] for name in ("gate", "decision", "by", "feedback", "selections", "via")
    )
    with attached(store):
        found = product.gate("publish", on_reject="return")
    assert (word == "approve", "ana", "so be it", ("mail",), "cli") == (
        found.approved,
        found.by,
        found.feedback,
        found.selections,
        found.via,
    )


def test_a_decision_reaches_a_run_that_is_owned(store: MemoryStore) -> None:
    """Its process waits in place, or comes back to the gate; the command says that the run goes on."""
    with attached(store, new=True) as session:
        with pytest.raises(GatePending):
            publish()
        said = nbflow("approve", session.run, "publish").stdout
        assert "goes on" in said
        assert publish().approved


def test_a_second_decision_shows_the_first(store: MemoryStore) -> None:
    """With an exit code of its own, and nothing is changed."""
    run = asked(store, publish)
    assert 0 == nbflow("approve", run, "publish", "--by", "ana", "-f", "fine").exit_code
    second = nbflow("reject", run, "publish")
    assert desk.EXIT_CODES[GateDecided] == second.exit_code == 11
    assert "approved by ana" in second.stderr
    assert "fine" in second.stderr
    error = json.loads(nbflow("approve", run, "publish", "--json").stderr)["error"]
    assert ("GateDecided", run, 11) == (error["type"], error["run"], error["exit_code"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["approve", "RUN", "publish", "-s", "fax"], 2, "no option 'fax'"),
        (["approve", "RUN", "nothing"], 3, "no gate 'nothing'"),
        (["reject", "0197a3b2", "publish"], 3, "0197a3b2"),
        (["approve", "RUN", "publish", "--by", " "], 2, "--by"),
        (["gates", "RUN", "nothing"], 3, "no gate 'nothing'"),
        (["gates", "0197a3b2"], 3, "0197a3b2"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    store: MemoryStore, arguments: list[str], code: int, says: str
) -> None:
    """With a documented code, and nothing is decided."""
    run = asked(store, publish)
    result = nbflow(*(run if part == "RUN" else part for part in arguments))
    assert (code, True) == (result.exit_code, says in result.stderr), result.stderr
    assert ["waiting"] == [row["state"] for row in as_json("gates")["gates"]]


def test_a_run_that_waits_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says in a sentence which gate waits; it is no failure, and no traceback."""
    import typer

    for as_json_ in (False, True):
        with pytest.raises(typer.Exit) as left, desk.desk(None, as_json_, debug=False):
            raise BaseExceptionGroup(
                "two", [GatePending("Gate 'g' waits.", run="r1", step="gate:g#0", name="g")]
            )
        assert 10 == left.value.exit_code
        said = capsys.readouterr().err
        assert "Gate 'g' waits." in said
        assert "Error" not in said or as_json_


def test_what_a_gate_shows_cannot_steer_the_terminal(store: MemoryStore) -> None:
    """Control characters of others' texts are not printed."""
    run = asked(store, lambda: product.gate("g", "Look:\x1b[2J\x1b]0;x\x07", show=["\x1b[31mred"]))
    said = nbflow("gates", run, "g").stdout
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "red" in said
    assert "\x1b" not in nbflow("gates").stdout


def test_names_are_completed(store: MemoryStore) -> None:
    """Runs that wait, their gates, and the options of the gate that was typed."""
    run = asked(store, publish)

    class Typed:
        def __init__(self, **params: str) -> None:
            self.params = params

    assert [(run, "w: publish")] == commands._runs(Typed(), run[:5])  # type: ignore[arg-type]
    assert [("publish", "Publish to the site?")] == commands._names(Typed(run=run), "pub")  # type: ignore[arg-type]
    assert ["mail"] == commands._options(Typed(run=run, gate="publish"), "m")  # type: ignore[arg-type]
    assert [] == commands._names(Typed(run="ffff"), "")  # type: ignore[arg-type]
