"""The pure part of gates: what a history says of them, which decisions may come, how one reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core import gates
from nbflow.core.errors import GateDecided, GatePending, UnknownStep, UsageError
from nbflow.core.gates import (
    Decision,
    Form,
    admit,
    decided_text,
    find_gate,
    gates_of,
    payload_of,
    pending_at,
    pending_of,
    plain_of,
    selected,
)
from nbflow.core.history import History
from nbflow.core.model import (
    Entry,
    Message,
    MessageTaken,
    RunAttached,
    RunChanged,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepStarted,
)

FORM = Form("publish", "Publish?", "o1", options=("web", "mail"))


def opened(*records: Any, form: Form = FORM, due: float | None = None) -> History:
    """Return the history of a run that came to a gate, and of what happened then."""
    detail = {"gate": plain_of(form), **({"due_at": due, "seconds": 60.0} if due is not None else {})}
    begin = [
        RunOpened(run="r1", workflow="w"),
        StepStarted(step="g#0", name="publish", step_kind="gate", signature=b"s", detail=detail),
    ]
    return History.of(Entry(seq, float(seq), record) for seq, record in enumerate([*begin, *records], 1))


def message(history: History, decision: Decision, number: int = 1, at: float = 1.0) -> Message:
    """Return the message that decides the gate."""
    return Message(f"m{number}", "decision", at, payload=payload_of(find_gate(history, "publish"), decision))


def taken(history: History, decision: Decision) -> MessageTaken:
    """Return the record of such a message."""
    sent = message(history, decision)
    return MessageTaken(sent.id, sent.topic, sent.sent_at, payload=sent.payload)


YES = Decision(True, "ana", 5.0, "nice", ("web",))
NO = Decision(False, "bob", 5.0)
OVER = Decision(False, "timeout", 5.0, via="timeout")


@pytest.mark.parametrize(
    ("records", "state"),
    [
        ([], "waiting"),
        ([taken(opened(), YES)], "approved"),
        ([taken(opened(), NO)], "rejected"),
        ([taken(opened(), OVER)], "timed_out"),
        ([StepCompleted(execution=2, step="g#0", detail={"decision": plain_of(YES)})], "approved"),
        ([StepEnded(execution=2, step="g#0", state="timed_out")], "timed_out"),
        ([StepEnded(execution=2, step="g#0", state="cancelled")], "cancelled"),
        ([StepForgotten(step="g#0")], "cancelled"),
        ([RunChanged(state="cancelled")], "cancelled"),
        ([RunChanged(state="running"), RunChanged(state="failed")], "waiting"),
    ],
)
def test_the_state_of_a_gate_follows_from_its_history(records: list[Any], state: str) -> None:
    """What a person decided counts from the moment it is taken; what a dead process left still waits."""
    (gate,) = gates_of(
        opened(RunChanged(state="running"), *records) if state != "waiting" else opened(*records)
    )
    assert state == gate.state
    assert (state in ("approved", "rejected")) == (gate.decision is not None)


def test_a_gate_whose_process_died_still_waits() -> None:
    """The next owner goes on with the same opening, and the first one says since when it is open."""
    again = StepStarted(
        step="g#0", name="publish", step_kind="gate", signature=b"s", detail={"gate": plain_of(FORM)}
    )
    owner: Any = {"host": "h", "pid": 1, "since": 0.0}
    from nbflow.core.model import Owner

    attached = RunAttached(generation=2, attempt=2, owner=Owner(**owner))
    assert "waiting" == gates_of(opened(attached))[0].state
    (gate,) = gates_of(opened(attached, again))
    assert ("waiting", 2.0, 4) == (gate.state, gate.opened_at, gate.execution)


def test_the_first_decision_is_the_one_that_counts() -> None:
    """A second one is refused and shown the first, whether that was taken or waits in the inbox."""
    history = opened()
    admit(history, [], message(history, YES))
    with pytest.raises(GateDecided, match="approved by ana") as refused:
        admit(history, [message(history, YES)], message(history, NO, 2))
    assert YES == refused.value.decision
    with pytest.raises(GateDecided, match="approved by ana"):
        admit(opened(taken(history, YES)), [], message(history, NO, 2))


def test_after_the_deadline_only_the_owner_decides() -> None:
    """By the clock of whoever sends: a decision at the very deadline is late. A timeout before anybody wins."""
    history = opened(due=100.0)
    admit(history, [], message(history, YES, at=99.9))
    with pytest.raises(GateDecided, match="timed out"):
        admit(history, [], message(history, YES, at=100.0))
    admit(history, [], message(history, OVER, at=100.0))
    for late in (YES, OVER):
        with pytest.raises(GateDecided, match="timed out"):
            admit(history, [message(history, OVER)], message(history, late, 2, at=99.0))
    continues = opened(form=Form("publish", "", "o1", on_timeout="continue"))
    on = Decision(True, "timeout", 5.0, via="timeout")
    with pytest.raises(GateDecided, match="approved by timeout"):
        admit(continues, [message(continues, on)], message(continues, NO, 2))


def test_a_timeout_selects_nothing_where_one_option_is_wanted() -> None:
    """It is no person, and the rules for persons do not hold."""
    history = opened(form=Form("publish", "", "o1", options=("web",), single=True, on_timeout="continue"))
    admit(history, [], message(history, Decision(True, "timeout", 5.0, via="timeout")))
    with pytest.raises(UsageError, match="exactly one"):
        admit(history, [], message(history, Decision(True, "ana", 5.0)))


@given(
    options=st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=5),
    chosen=st.lists(st.text(min_size=1, max_size=3), max_size=5),
    single=st.booleans(),
)
def test_selections_are_options_in_their_order_or_refused(
    options: list[str],
    chosen: list[str],
    single: bool,  # noqa: FBT001
) -> None:
    """Each once; exactly one where one is wanted."""
    form = Form("g", "?", "o", options=tuple(options), single=single)
    fine = set(chosen) <= set(options) and not (single and options and len(set(chosen)) != 1)
    if not fine:
        with pytest.raises(UsageError):
            selected(form, chosen)
    else:
        assert tuple(option for option in options if option in chosen) == selected(form, chosen)


def test_an_unknown_gate_is_named_with_those_there_are() -> None:
    """So that a typing mistake is seen at once."""
    with pytest.raises(UnknownStep, match=r"'launch'.*Its gates: publish"):
        find_gate(opened(), "launch")
    with pytest.raises(UnknownStep, match="Its gates: none"):
        find_gate(History.of([Entry(1, 0.0, RunOpened(run="r", workflow="w"))]), "launch")


def test_a_decision_reads_as_a_sentence() -> None:
    """Who, when, what and why."""
    assert (
        "Gate 'publish' of run r1 was approved by ana at 1970-01-01 00:00:05 UTC (web): nice That is final."
        == decided_text("publish", "r1", YES)
    )


def test_what_stops_at_a_gate_says_how_to_decide_in_a_terminal() -> None:
    """With the name quoted where a shell would take it apart."""
    history = opened(form=Form("go; rm -rf", "Now?", "o1"), due=60.0)
    pending = pending_at("r1", "w", gates_of(history)[0])
    assert "`nbflow approve r1 'go; rm -rf'`" in str(pending)
    assert "until 1970-01-01 00:01:00 UTC: Now?" in str(pending)


def test_a_pending_gate_is_found_in_groups() -> None:
    """In groups of groups as well; other exceptions are none."""
    pending = GatePending("waits", run="r", step="s", name="n")
    inner = BaseExceptionGroup("inner", [KeyboardInterrupt(), pending])
    assert pending_of(BaseExceptionGroup("outer", [ValueError(), inner])) is pending
    assert pending_of(ExceptionGroup("outer", [ValueError()])) is None
    assert pending_of(KeyboardInterrupt()) is None


def test_gates_are_found_while_other_threads_record_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that maps in threads begins steps while one of them looks for its gate: the look is of one moment."""
    history = opened()
    real = gates._gate
    began = iter(range(3, 100))

    def meanwhile(*args: Any) -> gates.Gate:
        seq = next(began)
        start = StepStarted(step=f"s#{seq}", name="s", step_kind="call", signature=b"s")
        history.add(Entry(seq, float(seq), start))
        return real(*args)

    monkeypatch.setattr(gates, "_gate", meanwhile)
    assert [gate.step for gate in gates_of(history)] == ["g#0"]
    assert find_gate(history, "publish").step == find_gate(history, "g#0").step == "g#0"
