"""`nbflow fork`, `retry` and `published`: what they print, as JSON too, and the exit codes of their refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import nbflow
from nbflow.cli import desk
from nbflow.cli.app import app
from nbflow.core.model import Owner
from nbflow.testing import MemoryStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store in memory that every command finds."""
    memory = MemoryStore()
    monkeypatch.setattr(desk, "open_existing", lambda _place: memory)
    monkeypatch.setenv("COLUMNS", "160")
    return memory


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert code == result.exit_code, result.output
    return result


def as_json(*arguments: str, code: int = 0) -> Any:
    result = call(*arguments, "--json", code=code)
    return json.loads(result.stdout if code == 0 else result.stderr)


def a_run(store: MemoryStore, *, fails: bool) -> str:
    """A run that loads, publishes, and then trains or fails to."""

    @nbflow.durable(version="1", name="load")
    def load() -> int:
        return 1

    @nbflow.durable(version="1", name="train")
    def train() -> int:
        if fails:
            raise ValueError("no convergence")
        return 2

    try:
        with nbflow.run("pipeline", store=store) as run:
            load()
            nbflow.publish("rows", {"n": 3})
            nbflow.publish("loss", float("nan"))
            train()
    except ValueError:
        pass
    return run.id


def test_fork_names_the_new_run_and_what_it_shares(store: MemoryStore) -> None:
    """The new run holds the steps before, under the workflow's name."""
    run = a_run(store, fails=False)
    answer = as_json("fork", run, "train")

    assert {"run", "forked", "step", "shared"} == set(answer)
    assert (run, "train", 1) == (answer["forked"], answer["step"], answer["shared"])
    assert ["load"] == [step.name for step in store.steps(answer["run"])]
    text = call("fork", run, "train").stdout
    assert f"shares 1 step of run {run}" in text


def test_fork_of_something_unknown_is_exit_code_3(store: MemoryStore) -> None:
    """Unknown run, unknown step: nothing is made, and the error says what there is."""
    run = a_run(store, fails=False)
    assert "UnknownStep" == as_json("fork", run, "deploy", code=3)["error"]["type"]
    assert "UnknownRun" == as_json("fork", "0000-none", "train", code=3)["error"]["type"]
    assert 1 == len(store.runs())


def test_retry_has_the_step_run_again_and_records_the_reason(store: MemoryStore) -> None:
    """A failed step of an unfinished run, found by its name."""
    run = a_run(store, fails=True)
    answer = as_json("retry", run, "train", "--reason", "more memory now")

    assert {"run", "step", "reason", "forgotten"} == set(answer)
    assert (run, "more memory now", True) == (answer["run"], answer["reason"], answer["forgotten"])
    assert answer["step"].startswith("train:")
    records = [entry.record for entry in store.entries(run)]
    assert any(getattr(record, "reason", "").endswith("more memory now") for record in records)
    assert "runs again when the run is resumed" in call("retry", run, "train").stdout


def test_retry_of_a_finished_run_points_to_fork(store: MemoryStore) -> None:
    """Completed is final."""
    run = a_run(store, fails=False)
    assert "nbflow fork" in as_json("retry", run, "train", code=1)["error"]["hint"]


def test_retry_of_a_run_that_somebody_has_is_exit_code_5(store: MemoryStore) -> None:
    """A living owner would not hear of it."""
    run = a_run(store, fails=True)
    log = store.attach(run, Owner(host="elsewhere", pid=1, since=0.0))
    error = as_json("retry", run, "load", code=5)["error"]
    log.release()
    assert "LeaseHeld" == error["type"]


def test_published_shows_the_latest_values(store: MemoryStore) -> None:
    """A table for people; JSON for programs, in which NaN is null."""
    run = a_run(store, fails=False)
    assert {"run": run, "published": {"rows": {"n": 3}, "loss": None}} == as_json("published", run)
    text = call("published", run).stdout
    assert "rows" in text
    assert '{"n":3}' in text


def test_published_of_a_silent_run_says_so(store: MemoryStore) -> None:
    """Nothing published is an answer, not an error."""
    with nbflow.run("silent", store=store) as run:
        pass
    assert "has published nothing" in call("published", run.id).stdout
    assert {} == as_json("published", run.id)["published"]


def test_the_commands_look_into_a_real_store_while_a_run_is_at_work(tmp_path: Path) -> None:
    """No fakes: the values of a run that goes on, and a fork of it."""

    @nbflow.durable(version="1", name="load")
    def load() -> int:
        return 1

    place = str(tmp_path / "s")
    with nbflow.run("w", store=place) as run:
        load()
        nbflow.publish("rows", 3)
        assert {"rows": 3} == as_json("published", run.id, "--store", place)["published"]
        assert 0 == as_json("fork", run.id, "load", "--store", place)["shared"]
