"""Structured logs: a sentence for people and facts for machines, at the level that fits."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

import nbflow
from nbflow.core.events import CALLBACKS, Event
from nbflow.core.model import ErrorInfo
from nbflow.runtime.watch import logs
from nbflow.testing import MemoryStore


@nbflow.durable(version="1", name="load")
def load(x: int) -> int:
    return x


def test_each_event_is_a_record_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    """States are INFO, steps DEBUG, retries WARNING, failures ERROR."""

    @nbflow.durable(name="fail", retries=1, delay=0)
    def fail() -> None:
        raise ValueError("bad")

    caplog.set_level(logging.DEBUG, "nbflow.run")
    with pytest.raises(ValueError, match="bad"), nbflow.run("etl", store=MemoryStore()) as run:
        load(1)
        fail()

    told = [(record.levelname, record.nbflow["event"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert [
        ("INFO", "run"),
        ("INFO", "run"),
        ("DEBUG", "step"),
        ("DEBUG", "step"),
        ("DEBUG", "checkpoint"),
        ("DEBUG", "step"),
        ("WARNING", "retry"),
        ("ERROR", "step"),
        ("ERROR", "run"),
    ] == told
    assert f"Attempt 1 at call fail of run {run.id} failed: ValueError: bad." in caplog.messages
    assert f"Run {run.id} of etl is failed: ValueError: bad." in caplog.messages
    assert {"nbflow.run"} == {record.name for record in caplog.records}


def test_facts_are_flat_and_json_able(caplog: pytest.LogCaptureFixture) -> None:
    """A formatter can write `record.nbflow` without knowing nbflow; nested details get dotted names."""
    caplog.set_level(logging.DEBUG, "nbflow.run")
    with nbflow.run("etl", store=MemoryStore(), day="monday") as run:
        load(1)

    for record in caplog.records:
        facts = record.nbflow  # type: ignore[attr-defined]
        assert facts == json.loads(json.dumps(facts))
        assert all(isinstance(value, str | int | float | bool | None) for value in facts.values())
        assert (run.id, "etl") == (facts["run"], facts["workflow"])
    assert "monday" == caplog.records[0].nbflow["detail.params.day"]  # type: ignore[attr-defined]
    done = next(r.nbflow for r in caplog.records if r.nbflow.get("state") == "completed")  # type: ignore[attr-defined]
    assert ("load", "call", 1) == (done["name"], done["kind"], done["attempt"])


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("bare", [True, False])
def test_every_event_has_a_sentence(callback: str, bare: bool) -> None:
    """Whatever is told can be read: it begins like a sentence, ends like one, and names the run."""
    event = Event(callback, "r1", "etl", 7, 0.0)
    if not bare:
        event = Event(
            callback,
            "r1",
            "etl",
            7,
            0.0,
            state="timed_out",
            step="load#0",
            name="load",
            kind="state",
            attempt=2,
            seconds=1.5,
            error=ErrorInfo(type="E", message="m"),
            detail={"reason": "user", "number": 3, "outputs": {"x": "int"}, "source": "llm"},
        )
    said = logs.sentence(event)
    assert said[0].isupper()
    assert said.endswith(".")
    assert "r1" in said
    assert "None" not in said or bare
    json.dumps(logs.facts(event))


def test_nothing_is_made_for_a_level_that_is_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose program logs warnings only formats no sentence as long as all goes well."""
    monkeypatch.setattr(logs, "sentence", None)
    monkeypatch.setattr(logs, "facts", None)
    caplog.set_level(logging.WARNING, "nbflow.run")
    with nbflow.run("etl", store=MemoryStore()):
        load(1)
    assert [] == caplog.records


def test_an_observer_cannot_be_hurt_by_odd_details() -> None:
    """Published values may be of any kind and size; what JSON lacks is logged as text, cut."""
    event = Event(
        "on_publish", "r", "etl", 7, 0.0, name="x", detail={"value": {"b": b"\xff", "long": "y" * 9999}}
    )
    facts = json.loads(json.dumps(logs.facts(event)))
    assert 1001 == len(facts["detail.value.long"])
    assert "xff" in facts["detail.value.b"]


SCRIPT = """
import logging
import nbflow
from nbflow.testing import MemoryStore
{before}
def fail():
    raise ValueError("bad")
try:
    with nbflow.run("etl", store=MemoryStore()):
        {within}
        import time; time.sleep(0.1)
        nbflow.durable(version="1", retries=1, delay=0, name="fail")(fail)()
except ValueError:
    pass
"""


@pytest.mark.parametrize(
    ("before", "within", "expected"),
    [
        ("", "pass", 0),
        ("logging.basicConfig()", "pass", 3),
        ("", "logging.basicConfig()", 3),
        ("logging.basicConfig(); logging.getLogger('nbflow.run').setLevel('CRITICAL')", "pass", 0),
    ],
    ids=["not set up", "set up", "set up while a run is open", "turned off"],
)
def test_a_program_that_has_not_set_logging_up_prints_nothing(
    before: str, within: str, expected: int
) -> None:
    """Logs appear where the program asked for logs, even in the middle of a run, and nowhere else."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before, within=within)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected == done.stderr.count("nbflow.run:")
    assert expected or done.stderr == ""
