"""Tags and published values: set inside a run, seen from outside, at once and for good."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow
from nbflow.core.errors import CannotStore, NoActiveRun, UnknownStep, UsageError
from nbflow.store.local import LocalStore
from nbflow.store.protocol import Store
from nbflow.testing import MemoryStore


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each kind."""
    made: Store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "s", background=False)
    yield made
    made.close()


# --- tags ---------------------------------------------------------------------------------------------------------


def test_tags_are_merged_over_earlier_ones(store: Store) -> None:
    """A later value of a name counts, the other names stay, and all are text."""
    with nbflow.run("w", store=store, tags={"team": "blue", "site": "north"}) as run:
        nbflow.tag(team="red", fold=3, share=0.5, final=True)

    assert {"team": "red", "site": "north", "fold": "3", "share": "0.5", "final": "True"} == store.run(
        run.id
    ).tags


def test_runs_are_found_by_tags_that_were_set_later(store: Store) -> None:
    """The search sees merged tags, not those that the run began with; numbers may be asked for as such."""
    with nbflow.run("w", store=store, tags={"fold": "1"}):
        nbflow.tag(fold=2)
    with nbflow.run("w", store=store, new=True) as other:
        nbflow.tag(fold=1, best=True)

    assert nbflow.runs(tags={"fold": 1}, store=store)["run"].tolist() == [other.id]
    assert nbflow.runs(tags={"fold": 1, "best": True}, store=store)["run"].tolist() == [other.id]
    assert nbflow.runs(tags={"fold": 3}, store=store).empty


def test_a_tag_that_is_set_already_is_not_recorded_again(store: Store) -> None:
    """A notebook that is run again and again does not grow its journal."""
    with nbflow.run("w", store=store) as run:
        for _ in range(5):
            nbflow.tag(team="blue")

    assert 1 == sum(type(entry.record).__name__ == "RunTagged" for entry in store.entries(run.id))


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"bytes", object()])
def test_a_tag_is_a_text_number_or_bool(store: Store, value: Any) -> None:
    """Anything else is refused by name, and nothing is recorded."""
    with nbflow.run("w", store=store) as run:
        with pytest.raises(UsageError, match="Tag team"):
            nbflow.tag(site="north", team=value)
        assert {} == run.tags


def test_tags_need_a_name_and_a_run(store: Store) -> None:
    """No tag, an empty name, and no run are three different mistakes."""
    with nbflow.run("w", store=store):
        with pytest.raises(UsageError, match="which tags"):
            nbflow.tag()
        with pytest.raises(UsageError, match="not empty"):
            nbflow.tag(**{"": "x"})
    with pytest.raises(NoActiveRun):
        nbflow.tag(team="blue")


# --- publish ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: float


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (1, 1),
        ("text", "text"),
        (None, None),
        ([1, (2, 3)], [1, [2, 3]]),
        ({"a": {1: [True]}}, {"a": {"1": [True]}}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array(3), 3),
        (Point(1, 2.5), {"x": 1, "y": 2.5}),
        ([Point(np.int64(1), 0.0)], [{"x": 1, "y": 0.0}]),
        (dt.date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_what_json_can_hold_is_published(store: Store, value: Any, seen: Any) -> None:
    """Plain values as they are, dataclasses, dates and NumPy numbers as what JSON has for them."""
    with nbflow.run("w", store=store) as run:
        nbflow.publish("value", value)

    assert seen == nbflow.published(run, "value", store=store)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "model"),
        ({"parts": [1, {"fn": print}]}, "model['parts'][1]['fn']"),
        ([Point(1, lambda: 1)], "model[0].y"),  # type: ignore[arg-type]
        ({(1, 2): 3}, "model"),
        ({"a": 2**70}, "model['a']"),
        (["\ud800"], "model[0]"),
        (np.arange(3), "model"),
    ],
)
def test_what_json_cannot_hold_is_an_error_that_names_the_part(store: Store, value: Any, path: str) -> None:
    """The path leads to it; nothing is published."""
    with nbflow.run("w", store=store) as run:
        with pytest.raises(CannotStore) as caught:
            nbflow.publish("model", value)
        assert path == caught.value.path
        assert "model" == caught.value.variable
        assert {} == nbflow.published(run, store=store)


def test_a_value_that_contains_itself_is_refused(store: Store) -> None:
    """No endless loop and no RecursionError."""
    knot: list[Any] = []
    knot.append(knot)
    with nbflow.run("w", store=store), pytest.raises(CannotStore, match="contains itself"):
        nbflow.publish("knot", knot)


def test_a_number_that_is_none_does_not_stop_a_training(store: Store) -> None:
    """NaN is published as what it is; only JSON and SQL call it null."""
    with nbflow.run("w", store=store) as run:
        nbflow.publish("loss", math.nan)

    assert math.isnan(nbflow.published(run, "loss", store=store))


def test_the_latest_value_of_a_name_counts(store: Store) -> None:
    """One value a name, whatever was published before."""
    with nbflow.run("w", store=store) as run:
        for step in range(10):
            nbflow.publish("step", step)
        nbflow.publish("done", True)

    assert {"step": 9, "done": True} == nbflow.published(run, store=store)


def test_an_unknown_name_says_what_there_is(store: Store) -> None:
    """A typing mistake is answered with the names that were published."""
    with nbflow.run("w", store=store) as run:
        nbflow.publish("loss", 1)
    with pytest.raises(UnknownStep, match="It published: loss"):
        nbflow.published(run, "los", store=store)
    with pytest.raises(UsageError):
        nbflow.publish("", 1)


def test_what_was_published_is_seen_while_the_run_goes_on_and_after_a_kill(tmp_path: Path) -> None:
    """Another process sees the value at once, and SIGKILL right after `publish` does not lose it."""
    code = """
import os, signal, sys, nbflow
with nbflow.run("w", store=sys.argv[1]):
    nbflow.publish("progress", {"rows": 10})
    print("published", flush=True)
    sys.stdin.readline()
    nbflow.publish("progress", {"rows": 20})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    place = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "published\n" == process.stdout.readline()
        store = LocalStore(place, background=False)
        assert {"progress": {"rows": 10}} == nbflow.published(store=store)
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait()

    assert {"progress": {"rows": 20}} == nbflow.published(store=store)
    store.close()


def test_sql_sees_published_values_and_charges(tmp_path: Path) -> None:
    """Views hold the latest value of each name, and the ledger with retries counted once."""

    @nbflow.durable(retries=1, delay=0)
    def ask(tries: list[int]) -> None:
        nbflow.charge(tokens=5, source="llm")
        nbflow.charge(tokens=2, dollars=0.5, source="llm")
        if not calls:
            calls.append(1)
            raise ValueError

    calls: list[int] = []
    store = LocalStore(tmp_path / "s", background=False)
    with nbflow.run("w", store=store) as run:
        nbflow.publish("loss", 0.5)
        nbflow.publish("loss", 0.25)
        nbflow.publish("rows", {"n": 3})
        ask([])
    published = store.sql("select name, value, published_at from published order by name")
    charges = store.sql("select run, source, unit, amount from charges order by unit")

    assert [("loss", "0.25"), ("rows", '{"n":3}')] == list(
        zip(published["name"], published["value"], strict=True)
    )
    assert published["published_at"].notna().all()
    assert [(run.id, "llm", "dollars", 0.5), (run.id, "llm", "tokens", 7.0)] == list(
        charges.itertuples(index=False, name=None)
    )
    store.close()
