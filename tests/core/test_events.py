"""What observers are told: a pure function of the journal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.events import CALLBACKS, Event, events_of
from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    ErrorInfo,
    MessageTaken,
    OutputInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunCharged,
    RunOpened,
    RunPublished,
    RunTagged,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)

OWNER = Owner(host="h", pid=7, since=0.0)
ERROR = ErrorInfo(type="ValueError", message="bad")
OPENED = RunOpened(run="r", workflow="etl", parent="p", parent_step="child:x#0")


def told(*records: AnyRecord) -> list[Event]:
    """The events of the last record, after the others."""
    history = History()
    entries = [Entry(seq, float(seq), record) for seq, record in enumerate(records, 1)]
    for entry in entries:
        history.add(entry)
    return list(events_of(entries[-1], history))


def started(kind: str = "call", **facts: Any) -> StepStarted:
    return StepStarted(**{"step": "load#0", "name": "load", "step_kind": kind, "signature": b"s", **facts})


def attached(attempt: int = 1) -> RunAttached:
    return RunAttached(generation=attempt, attempt=attempt, owner=OWNER)


OUTPUT = OutputInfo(name="return", type="int", fingerprint=b"f", size=8)
COMPLETED = StepCompleted(
    execution=3, step="load#0", seconds=0.5, checkpoint=Checkpoint(codec="json", outputs=(OUTPUT,))
)

#: The records before, the record itself, and the callbacks with the states that it makes.
CASES: list[tuple[str, list[AnyRecord], list[tuple[str, str]]]] = [
    ("opened", [OPENED], [("on_run", "pending")]),
    ("attached", [OPENED, attached()], [("on_run", "running")]),
    ("resumed", [OPENED, attached(), attached(2)], [("on_run", "running"), ("on_resume", "running")]),
    ("finished", [OPENED, attached(), RunChanged(state="completed")], [("on_run", "completed")]),
    (
        "cancelled",
        [OPENED, attached(), RunChanged(state="cancelled", reason="user")],
        [("on_run", "cancelled"), ("on_cancel", "cancelled")],
    ),
    ("tagged", [OPENED, RunTagged(tags={"a": "b"})], [("on_tag", "")]),
    ("published", [OPENED, RunPublished(name="loss", value=0.5)], [("on_publish", "")]),
    (
        "charged",
        [OPENED, attached(), started(), RunCharged(step="load#0", source="llm", amounts={"tokens": 3.0})],
        [("on_charge", "")],
    ),
    ("started", [OPENED, attached(), started()], [("on_step", "running")]),
    ("waiting", [OPENED, attached(), started("sleep")], [("on_step", "waiting")]),
    ("state", [OPENED, attached(), started("state")], [("on_step", "running"), ("on_state", "running")]),
    ("gate", [OPENED, attached(), started("gate")], [("on_step", "waiting"), ("on_gate", "waiting")]),
    ("signal", [OPENED, attached(), started("signal")], [("on_step", "waiting"), ("on_signal", "waiting")]),
    ("child", [OPENED, attached(), started("child")], [("on_step", "waiting"), ("on_child", "waiting")]),
    ("item", [OPENED, attached(), started("item")], [("on_step", "running"), ("on_item", "running")]),
    (
        "compensation",
        [OPENED, attached(), started("compensation")],
        [("on_step", "running"), ("on_compensation", "running")],
    ),
    (
        "completed",
        [OPENED, attached(), started("state"), COMPLETED],
        [("on_step", "completed"), ("on_state", "completed"), ("on_checkpoint", "completed")],
    ),
    (
        "nothing to keep",
        [OPENED, attached(), started(), StepCompleted(execution=-1, step="load#0")],
        [("on_step", "completed")],
    ),
    (
        "failed",
        [
            OPENED,
            attached(),
            started("item"),
            StepEnded(execution=3, step="load#0", state="failed", error=ERROR),
        ],
        [("on_step", "failed"), ("on_item", "failed")],
    ),
    (
        "retried",
        [
            OPENED,
            attached(),
            started(),
            StepRetried(execution=3, step="load#0", attempt=1, due_at=9.0, error=ERROR),
        ],
        [("on_retry", "running")],
    ),
    (
        "cursor",
        [
            OPENED,
            attached(),
            started("state"),
            StepCursor(execution=3, step="load#0", number=4, checkpoint=Checkpoint(codec="json")),
        ],
        [("on_cursor", "running")],
    ),
    ("forgotten", [OPENED, attached(), started(), StepForgotten(step="load#0")], [("on_step", "forgotten")]),
    (
        "cancel asked",
        [OPENED, MessageTaken(message="m", topic="cancel", sent_at=1.0, payload={"reason": "user"})],
        [("on_cancel", "asked")],
    ),
    (
        "signal came",
        [OPENED, MessageTaken(message="m", topic="signal", sent_at=1.0, payload={"name": "go", "value": 1})],
        [("on_signal", "received")],
    ),
    (
        "decision",
        [OPENED, MessageTaken(message="m", topic="decision", sent_at=1.0, payload={"step": "gate:ok#0"})],
        [("on_gate", "decided")],
    ),
    ("a word of another layer", [OPENED, MessageTaken(message="m", topic="poke", sent_at=1.0)], []),
]


@pytest.mark.parametrize(
    ("records", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_record_tells_these_callbacks(records: list[AnyRecord], expected: list[tuple[str, str]]) -> None:
    """Which callbacks hear of a record, in which order, and where the run or step then is."""
    assert expected == [(event.callback, event.state) for event in told(*records)]


def test_every_callback_and_every_kind_of_record_is_among_the_cases() -> None:
    """A callback that nothing calls, or a record that nobody hears of, would be a promise without a test."""
    assert {callback for _, _, expected in CASES for callback, _ in expected} == set(CALLBACKS)
    assert {type(records[-1]) for _, records, _ in CASES} == set(AnyRecord.__args__)


def test_an_event_of_a_step_says_which_when_and_for_how_long() -> None:
    """Key, name, kind, parent, execution, its beginning, attempt and seconds are the journal's."""
    (step, checkpoint) = told(OPENED, attached(), started(parent="outer#0"), COMPLETED)
    assert ("r", "etl", "p", "child:x#0") == (step.run, step.workflow, step.parent_run, step.parent_step)
    assert ("load#0", "load", "call", "outer#0") == (step.step, step.name, step.kind, step.parent)
    assert (3, 3.0, 4, 4.0) == (step.execution, step.began, step.seq, step.at)
    assert (1, 0.5) == (step.attempt, step.seconds)
    assert {"outputs": {"return": "int"}, "bytes": 8} == checkpoint.detail


def test_a_failure_carries_its_error() -> None:
    """Failed runs, failed steps and failed attempts say why."""
    failed = RunChanged(state="failed", error=ERROR)
    ended = StepEnded(execution=3, step="load#0", state="timed_out", error=ERROR)
    retried = StepRetried(execution=3, step="load#0", attempt=2, due_at=9.0, error=ERROR)
    for records in ([OPENED, attached(), failed], [OPENED, attached(), started(), ended]):
        assert [ERROR] == [event.error for event in told(*records)]
    (retry,) = told(OPENED, attached(), started(), retried)
    assert (ERROR, 2, {"due_at": 9.0}) == (retry.error, retry.attempt, retry.detail)


def test_a_charge_outside_any_step_is_told() -> None:
    """The step may be the run itself, which has no execution."""
    (charge,) = told(OPENED, RunCharged(step="", source="llm", amounts={"tokens": 3.0}))
    assert ("", {"source": "llm", "amounts": {"tokens": 3.0}}) == (charge.kind, charge.detail)


def test_events_are_frozen() -> None:
    """No observer can change what the next one is told."""
    (event,) = told(OPENED)
    with pytest.raises(AttributeError):
        event.state = "other"  # type: ignore[misc]
    assert msgspec.json.encode(event)


@given(st.permutations(range(len(CASES))), st.sets(st.sampled_from(sorted(CALLBACKS))))
def test_what_nobody_wants_may_be_left_out_and_nothing_else(order: list[int], wanted: set[str]) -> None:
    """Asking for some callbacks gives their events as asking for all does; a later history changes nothing of a step's."""
    for number in order[:5]:
        records = CASES[number][1]
        history = History()
        entries = [Entry(seq, float(seq), record) for seq, record in enumerate(records, 1)]
        for entry in entries:
            history.add(entry)
        all_events = events_of(entries[-1], history)
        some = events_of(entries[-1], history, wanted)
        assert [event for event in all_events if event.callback in wanted] == [
            event for event in some if event.callback in wanted
        ]
