"""Quality gates: a condition decides, its figures are on record, and a person may have the last word."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbflow
from nbflow.core.errors import GatePending, GateRejected, NoActiveRun, UsageError
from nbflow.core.gates import SHOWN, gates_of
from nbflow.core.model import StepCompleted, StepStarted
from nbflow.runtime.gates.predicates import Predicate
from nbflow.runtime.gates.quality import figures_of
from nbflow.testing import MemoryStore, VirtualClock
from nbflow.values.codec import decode
from tests.runtime.timed import attached, steps

GOOD = {"auc": 0.93, "rows": 1200}
BAD = {"auc": 0.87, "rows": 1200}
CONDITION = "auc > 0.9 and rows >= 1000"


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files, under a clock of its own."""
    memory = MemoryStore(VirtualClock())
    yield memory
    memory.close()


# The gate ---------------------------------------------------------------------------------------------------------


def test_good_figures_pass_and_are_recorded_in_one_append(store: MemoryStore) -> None:
    """As a gate decided by "quality", with the condition and the figures."""
    with attached(store) as session:
        decided = nbflow.quality_gate("model", GOOD, CONDITION, show="beside")
        assert (True, "quality", "quality") == (decided.approved, decided.by, decided.via)
        assert f"{CONDITION} (auc = 0.93, rows = 1200)" == decided.feedback
        assert "running" == session.history.state
        (gate,) = gates_of(session.history)
        assert ("approved", decided, None) == (gate.state, gate.decision, gate.due_at)
        execution = session.history.executions[gate.execution]
        assert {"predicate": CONDITION, "figures": GOOD, "holds": True} == execution.started.detail["quality"]
        shown = decode(session.history.cursors[gate.step].checkpoint, lambda _: memoryview(b""))[SHOWN]
        assert [["auc", "0.93"], ["rows", "1200"]] == shown[0]["rows"]
        assert "beside" == shown[1]["text"]
        seqs = [
            e.seq for e in store.entries(session.run) if isinstance(e.record, StepStarted | StepCompleted)
        ]
        assert [2, 4] == [seq - seqs[0] + 2 for seq in seqs]


def test_bad_figures_reject_and_say_which(store: MemoryStore) -> None:
    """The error has condition and figures, also in a replay; `on_reject` routes it."""
    for _ in range(2):
        with attached(store), pytest.raises(GateRejected, match=r"not auc > 0.9 .*auc = 0.87"):
            nbflow.quality_gate("model", BAD, CONDITION)
    with attached(store):
        assert not nbflow.quality_gate("model", BAD, CONDITION, on_reject="return")
        assert "train" == nbflow.quality_gate("model 2", BAD, CONDITION, on_reject=lambda _: "train")
    assert 2 == len(steps(store, "gate"))


def test_other_figures_and_another_condition_are_decided_anew(store: MemoryStore) -> None:
    """A resume finds the decision about the same ones."""
    with attached(store), pytest.raises(GateRejected):
        nbflow.quality_gate("model", BAD, CONDITION)
    with attached(store):
        assert nbflow.quality_gate("model", GOOD, CONDITION)
    with attached(store):
        assert nbflow.quality_gate("model", GOOD, CONDITION)
        assert 2 == len(steps(store, "gate"))
    with attached(store), pytest.raises(GateRejected):
        nbflow.quality_gate("model", GOOD, "auc > 0.99")


def test_figures_that_are_better_next_time_are_worth_a_retry(store: MemoryStore) -> None:
    """Other than a person's no."""
    tries = iter([0.5, 0.6, 0.95])

    @nbflow.durable(version="1", retries=5, delay=0.01)
    def train() -> float:
        auc = next(tries)
        nbflow.quality_gate("model", auc, "value > 0.9")
        return auc

    with attached(store):
        assert 0.95 == train()


def test_a_person_has_the_last_word(store: MemoryStore) -> None:
    """`or_ask` opens a gate that shows condition and figures; the decision is that person's."""

    def work() -> Any:
        return nbflow.quality_gate(
            "model", BAD, CONDITION, "Deploy?", or_ask=True, options=["canary"], timeout=60
        )

    with (
        attached(store) as session,
        pytest.raises(GatePending, match=r"Deploy\? It is not so that auc > 0\.9"),
    ):
        work()
    with attached(store) as session, pytest.raises(GatePending):
        work()
    nbflow.approve(session.run, "model", "all the same", select="canary", by="ana", store=store)
    for _ in range(2):
        with attached(store):
            assert ("ana", ("canary",)) == (work().by, work_selections(store))
    with attached(store):
        assert "quality" == nbflow.quality_gate("good", GOOD, CONDITION, or_ask=True).by


def work_selections(store: MemoryStore) -> tuple[str, ...]:
    """Return what was selected at the only gate that was asked."""
    (gate,) = [gate for gate in nbflow.gates(state="approved", store=store)["selections"] if gate]
    return tuple(gate)


def test_a_function_may_decide(store: MemoryStore) -> None:
    """It gets the figures as they were given; changed code is decided anew."""
    frame = pd.DataFrame({"x": [1, 2]})
    with attached(store):
        assert nbflow.quality_gate("rows", frame.describe().loc["count"], lambda row: row["x"] == 2)
        assert asyncio.run(nbflow.quality_gate.aio("rows", 3, lambda value: value == 3))
        with pytest.raises(GateRejected, match="is_large"):
            nbflow.quality_gate("rows", 3, is_large)


def is_large(value: int) -> bool:
    """Tell whether a number is large."""
    return value > 100


def test_a_condition_that_cannot_be_asked_decides_nothing(store: MemoryStore) -> None:
    """A missing figure, a wrong type, no condition, no figures: errors, and nothing is recorded."""
    with attached(store):
        for figures, predicate, said in [
            (GOOD, "auk > 0.9", "speaks of 'auk'"),
            ({"auc": "high"}, "auc > 0.9", "cannot be asked"),
            (GOOD, "auc >", "is no condition"),
            (GOOD, 3, "a text or a function"),
            ("text", "value > 1", "not a str"),
            (pd.DataFrame({"a": [1, 2]}), "a > 1", r"not a DataFrame of shape \(2, 1\)"),
        ]:
            with pytest.raises(UsageError, match=said):
                nbflow.quality_gate("model", figures, predicate)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="offers none"):
            nbflow.quality_gate("model", GOOD, CONDITION, single=True)
        assert [] == steps(store, "gate")
    with pytest.raises(NoActiveRun):
        nbflow.quality_gate("model", GOOD, CONDITION)


# Figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"a": 1, "b": 2.5},
        {"a": np.int64(1), "b": np.float64(2.5)},
        pd.Series({"a": 1, "b": 2.5}),
        pd.DataFrame({"a": [1], "b": [2.5]}),
        pl.DataFrame({"a": [1], "b": [2.5]}),
        pa.table({"a": [1], "b": [2.5]}),
    ],
    ids=lambda each: type(each).__module__.split(".")[0],
)
def test_figures_come_from_all_kinds_of_rows(given: Any) -> None:
    """By name, as Python numbers."""
    assert {"a": 1, "b": 2.5} == figures_of("g", given)
    assert {"value": 3} == figures_of("g", np.array(3))


# Conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a < b < c", True),
        ("not a > b", True),
        ("a == 1 or missing_never_asked == 2 if False else True", None),
        ("abs(-a) == 1 and max(a, b) == 2 and len(name) == 3 and round(2.4) == 2", True),
        ("(a + b) * 2 - 1 == 5 and c / 2 == 1.5 and c // 2 == 1 and c % 2 == 1", True),
        ("name in ('abc', 'def') and 'x' not in name", True),
        ("parts['p'] > 0.5 and items[1] == 8", True),
        ("flag is True and nothing is None", True),
        ("nan > 0 or nan <= 0 or nan != nan", False),
        ("not nan > 0", False),
        ("a > b", False),
    ],
)
def test_conditions_say_what_python_would_say(text: str, holds: bool | None) -> None:  # noqa: FBT001
    """Over figures, numbers and texts; of NaN nothing is so."""
    figures = {
        "a": 1,
        "b": 2,
        "c": 3,
        "name": "abc",
        "parts": {"p": 0.9},
        "items": [7, 8],
        "flag": True,
        "nothing": None,
        "nan": math.nan,
    }
    if holds is None:
        with pytest.raises(UsageError):
            Predicate(text)
    else:
        assert holds == Predicate(text).holds(figures)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.__class__",
        "[x for x in a]",
        "(lambda: 1)()",
        "open('f')",
        "f'{a}'",
        "a ** 99999999",
        "a if b else c",
        "a[b]",
        "a[1:2]",
        "max(*a)",
        "max(a, key=b)",
        "{'a': 1}",
        "{1, 2}",
        "(a := 1)",
        "~a",
        "a << 9999",
        "b'bytes'",
        "await a",
        "a; b",
        "",
        "   ",
        "x" * 3000,
        "(" * 500 + ")" * 500,
        "-" * 1900 + "1",
    ],
)
def test_what_is_more_than_a_condition_is_refused(text: str) -> None:
    """Nothing of it is ever run."""
    with pytest.raises(UsageError):
        Predicate(text)


@given(st.text(max_size=60) | st.text("ab<>=()+-*/%.,'[]01 andornti", max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    """By one typed error, whatever the text, and asking ends in a truth value or that error."""
    try:
        held = Predicate(text).holds({"a": 1, "b": 0.5})
    except UsageError:
        return
    assert isinstance(held, bool)
