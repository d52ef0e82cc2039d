"""`nbflow signal` and `nbflow cancel`, as a person or a script calls them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import nbflow as product
from nbflow.cli import desk
from nbflow.cli.app import app
from nbflow.core.model import RunChanged
from nbflow.testing import MemoryStore
from tests.runtime.timed import attached


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """A store in memory that every command finds."""
    memory = MemoryStore()
    monkeypatch.setattr(desk, "open_existing", lambda place: memory)
    # The commands close what they opened; an owner in this process stays the owner.
    monkeypatch.setattr(memory, "close", lambda: None)
    yield memory


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as a pipe, whatever the terminal or the test runner says."""
    monkeypatch.setenv("COLUMNS", "160")


def nbflow(*arguments: str, input: str | None = None) -> Result:  # noqa: A002 - click's word
    return CliRunner().invoke(app, list(arguments), input=input)


def as_json(*arguments: str) -> Any:
    result = nbflow(*arguments, "--json")
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def unowned(store: MemoryStore, body: Any = lambda: None) -> str:
    """Return the id of an unfinished run without an owner."""
    with attached(store, new=True) as session:
        body()
    return session.run


# signal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "payload"),
    [
        ([], None),
        (["--value", '{"build": 7}'], {"build": 7}),
        (["--text", "7"], "7"),
        (["--value", "7"], 7),
    ],
)
def test_a_signal_from_the_command_line_arrives(store: MemoryStore, options: list[str], payload: Any) -> None:
    """As JSON or as a text; without either it is None."""
    run = unowned(store)
    answer = as_json("signal", run[:18], "go", *options, "--id", "one")
    assert {"run": run, "signal": "go", "value": payload, "id": "one", "sent": True} == answer

    said = nbflow("signal", run, "go", *options, "--id", "one").stdout
    assert "nobody runs it now" in said
    with attached(store):
        assert payload == product.wait_for("go")
        with pytest.raises(product.errors.WaitTimeout):
            product.wait_for("go", timeout=0)
        assert "nobody runs it" not in nbflow("signal", run, "other").stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--value", "{"], "no JSON"),
        (["--value", "1", "--text", "1"], "contradict"),
        (["--id", ""], "id of a signal"),
    ],
)
def test_a_payload_that_makes_no_sense_is_one_sentence(
    store: MemoryStore, options: list[str], says: str
) -> None:
    """Exit code 2, and nothing is sent."""
    run = unowned(store)
    result = nbflow("signal", run, "go", *options)
    assert 2 == result.exit_code
    assert says in result.stderr
    assert [] == store.memory[run].inbox


def test_a_signal_for_a_finished_run_is_an_error_that_names_both(store: MemoryStore) -> None:
    """On standard error, with a code."""
    with product.run("deploy", store=store) as run:
        pass
    result = nbflow("signal", run.id, "go")
    assert 1 == result.exit_code
    assert run.id in result.stderr
    assert "'go'" in result.stderr
    assert 3 == nbflow("signal", "0197a3b2", "go").exit_code


# cancel -------------------------------------------------------------------------------------------


def test_cancel_asks_first(store: MemoryStore) -> None:
    """A no changes nothing; neither does silence, which names the option that answers for you."""
    run = unowned(store)
    refused = nbflow("cancel", run, input="n\n")
    assert 1 == refused.exit_code
    assert run in refused.stderr
    silent = nbflow("cancel", run)
    assert 2 == silent.exit_code
    assert "--yes" in silent.stderr
    assert "running" == store.run(run).state

    agreed = nbflow("cancel", run, "--reason", "not needed", input="y\n")
    assert 0 == agreed.exit_code
    assert f"Run {run} of w is cancelled." in agreed.stdout
    (change,) = [e.record for e in store.entries(run) if isinstance(e.record, RunChanged)]
    assert ("cancelled", "user: not needed") == (change.state, change.reason)


def test_cancel_says_who_ends_the_run(store: MemoryStore) -> None:
    """Its owner where there is one; a resume where something has to be undone."""

    @product.durable(compensate=lambda result: None)
    def book() -> int:
        return 1

    with attached(store) as session:
        assert {"run": session.run, "answer": "requested", "reason": "x"} == as_json(
            "cancel", session.run, "--yes", "-r", "x"
        )
        assert "stops at its next step" in nbflow("cancel", session.run, "-y").stdout
        with pytest.raises(product.errors.RunCancelled):
            book()
    run = unowned(store, book)
    assert "something to undo" in nbflow("cancel", run, "-y").stdout


def test_a_finished_run_is_not_even_asked_about(store: MemoryStore) -> None:
    """Cancelled twice is an error that says so."""
    run = unowned(store)
    assert 0 == nbflow("cancel", run, "--yes").exit_code
    again = nbflow("cancel", run)
    assert 1 == again.exit_code
    assert "is cancelled already" in again.stderr
