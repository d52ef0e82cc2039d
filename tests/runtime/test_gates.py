"""Gates: asked once, decided once, by whoever is first, from anywhere; and the run goes on with the decision."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import (
    GateDecided,
    GatePending,
    GateRejected,
    GateTimedOut,
    NoActiveRun,
    RunCancelled,
    RunFinished,
    StoreFull,
    UnknownRun,
    UnknownStep,
    UsageError,
)
from nbflow.core.gates import SHOWN, Decision, find_gate, payload_of
from nbflow.core.history import History
from nbflow.core.model import Message, RunChanged, StepCompleted, StepCursor, StepStarted
from nbflow.core.states import DECISION
from nbflow.runtime.gates import deciding
from nbflow.store.local import open_store
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock
from nbflow.values.codec import decode
from tests.runtime.timed import InThread, attached, steps, until


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files, under a clock of its own."""
    memory = MemoryStore(VirtualClock())
    yield memory
    memory.close()


def history(store: Any) -> History:
    """Return what the only run of the store says."""
    (info,) = store.runs()
    return History.of(store.entries(info.run))


def the_gate(store: Any, name: str = "publish") -> Any:
    """Return the gate of this name of the only run."""
    return find_gate(history(store), name)


def asked(store: Any, **options: Any) -> str:
    """Open the gate "publish" in a run that stops there; return the run's id."""
    with attached(store) as session, pytest.raises(GatePending):
        nbflow.gate("publish", **options)
    return session.run


# Opening and stopping ----------------------------------------------------------------------------------------------


def test_a_gate_that_nobody_decided_stops_the_run_and_is_no_exception(store: MemoryStore) -> None:
    """What it raises passes `except Exception`, says which gate of which run waits, and how to decide."""
    with attached(store) as session:
        with pytest.raises(GatePending) as stopped:
            try:
                nbflow.gate("publish", "Publish to the site?")
            except Exception:  # noqa: BLE001
                pytest.fail("a gate that waits is no failure")
        assert ("publish", "gate:publish#0", session.run) == (
            stopped.value.name,
            stopped.value.step,
            stopped.value.run,
        )
        assert f"`nbflow approve {session.run} publish`" in str(stopped.value)
        assert "Publish to the site?" in str(stopped.value)
        assert "waiting" == session.history.state
    assert [("gate:publish#0", "waiting")] == [(step.step, step.state) for step in steps(store, "gate")]


def test_form_and_exhibits_are_recorded_in_one_append(store: MemoryStore) -> None:
    """The start with form and deadline, and behind it the cursor with what is shown, as JSON without pickle."""
    with attached(store) as session:
        appended = []
        append = session.recorder.append

        def watched(*records: Any, **options: Any) -> int:
            appended.append([type(record) for record in records])
            return append(*records, **options)

        session.recorder.append = watched  # type: ignore[method-assign]
        with pytest.raises(GatePending):
            nbflow.gate("publish", "Now?", options=["web", "mail"], show=["a text", {"auc": 0.9}], timeout=60)
    assert [[StepStarted, StepCursor], [RunChanged]] == appended
    started, cursor = (
        entry.record
        for entry in store.entries(session.run)
        if isinstance(entry.record, StepStarted | StepCursor)
    )
    assert isinstance(started, StepStarted)
    assert isinstance(cursor, StepCursor)
    assert ("publish", "Now?", ["web", "mail"]) == tuple(
        started.detail["gate"][key] for key in ("name", "text", "options")
    )
    assert store.clock.now() + 60 == started.detail["due_at"]
    assert "json" == cursor.checkpoint.codec
    shown = decode(cursor.checkpoint, lambda _: memoryview(b""))[SHOWN]
    assert ["text", "json"] == [each["kind"] for each in shown]


def test_a_resume_asks_the_same_again(store: MemoryStore) -> None:
    """Text, options, exhibits and opening are those of the first time, whatever the code says by now."""
    asked(store, text="First?", options=["web"], show="first")
    first = the_gate(store).form
    with attached(store), pytest.raises(GatePending, match=r"First\?"):
        nbflow.gate("publish", "Second?", options=["mail"], show="second")
    assert first == the_gate(store).form
    shown = history(store).cursors["gate:publish#0"].checkpoint
    assert [{"kind": "text", "text": "first"}] == decode(shown, lambda _: memoryview(b""))[SHOWN]


def test_asking_again_in_the_same_process_goes_on_with_the_same_execution(store: MemoryStore) -> None:
    """A cell that is run again leaves no second waiting step behind."""
    with attached(store):
        for _ in range(3):
            with pytest.raises(GatePending):
                nbflow.gate("publish")
        assert ["waiting"] == [step.state for step in steps(store, "gate")]


def test_two_gates_of_one_name_are_two(store: MemoryStore) -> None:
    """They are decided one after the other; where both wait the key tells them apart."""
    with attached(store) as session:
        nbflow_gate = lambda: nbflow.gate("publish", wait=True)  # noqa: E731
        first, second = InThread(nbflow_gate), InThread(nbflow_gate)
        until(lambda: len(nbflow.gates()) == 2)
        with pytest.raises(UnknownStep, match="2 gates 'publish'"):
            nbflow.approve(session.run, "publish")
        for number in (1, 0):
            nbflow.approve(session.run, f"gate:publish#{number}", str(number))
        assert {"0", "1"} == {first.result().feedback, second.result().feedback}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "name of a gate"),
        ({"name": 3}, "name of a gate"),
        ({"text": 3}, "asks is a text"),
        ({"options": "web"}, "list of texts"),
        ({"options": ["web", "web"]}, "twice"),
        ({"options": [""]}, "printable"),
        ({"options": [1]}, "printable"),
        ({"single": True}, "offers none"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"on_timeout": "explode"}, "on_timeout is one of"),
        ({"on_reject": "shrug"}, "on_reject"),
    ],
)
def test_nonsense_is_refused_before_anything_is_recorded(
    store: MemoryStore, options: dict[str, Any], said: str
) -> None:
    """The error names the option."""
    with attached(store):
        with pytest.raises(UsageError, match=said):
            nbflow.gate(**{"name": "publish", **options})
        assert [] == steps(store, "gate")


def test_a_gate_outside_a_run_is_an_error() -> None:
    """There is nothing that could wait."""
    with pytest.raises(NoActiveRun):
        nbflow.gate("publish")


# Deciding ---------------------------------------------------------------------------------------------------------


def test_a_decision_that_came_while_nobody_ran_it_is_there_at_once(store: MemoryStore) -> None:
    """By whom, when, feedback and selections are the step's result, in this attempt and in every later one."""
    run = asked(store, options=["web", "mail", "fax"])
    decided = nbflow.approve(run[:18], "publish", "nice", select=["mail", "web"], by="ana", store=store)
    assert Decision(True, "ana", store.clock.now(), "nice", ("web", "mail")) == decided
    for _ in range(3):
        with attached(store):
            assert decided == nbflow.gate("publish")
    assert ["completed"] == [step.state for step in steps(store, "gate")][-1:]
    done = [e.record for e in store.entries(run) if isinstance(e.record, StepCompleted)]
    assert 1 == len(done)
    assert done[0].detail["decision"]["by"] == "ana"
    assert done[0].checkpoint is not None
    assert done[0].detail["decision"] == decode(done[0].checkpoint, lambda _: memoryview(b""))["return"]


def test_a_rejection_is_raised_in_every_attempt_and_cannot_be_flipped(store: MemoryStore) -> None:
    """The error has the feedback; whoever decides after that is shown the first decision."""
    run = asked(store)
    nbflow.reject(run, "publish", "the axis has no unit", by="ana", store=store)
    for _ in range(2):
        with pytest.raises(GateDecided, match="rejected by ana .*the axis has no unit") as refused:
            nbflow.approve(run, "publish", store=store)
        assert "ana" == refused.value.decision.by
        with attached(store), pytest.raises(GateRejected, match="the axis has no unit") as rejected:
            nbflow.gate("publish")
        assert ("publish", False) == (rejected.value.name, rejected.value.decision.approved)


def test_a_rejection_can_be_returned_or_routed(store: MemoryStore) -> None:
    """`on_reject` decides what the code gets, now and in a replay."""
    run = asked(store)
    nbflow.reject(run, "publish", "no", store=store)
    with attached(store):
        assert not nbflow.gate("publish", on_reject="return")
    with attached(store):
        assert "revised: no" == nbflow.gate("publish", on_reject=lambda said: f"revised: {said.feedback}")

    async def revise(said: Decision) -> str:
        await asyncio.sleep(0)
        return f"later: {said.feedback}"

    with attached(store):
        assert "later: no" == asyncio.run(nbflow.agate("publish", on_reject=revise))


def test_after_a_rejection_the_next_gate_of_that_name_asks_anew(store: MemoryStore) -> None:
    """A loop that revises and asks again gets one decision a round."""

    def rounds() -> int:
        for number in range(5):
            if nbflow.gate("publish", on_reject="return"):
                return number
        return -1

    for answer in (deciding_no, deciding_no, deciding_yes):
        with attached(store) as session, pytest.raises(GatePending):
            rounds()
        answer(session.run, store)
    with attached(store):
        assert 2 == rounds()


def deciding_no(run: str, store: Any) -> None:
    """Reject the gate that waits."""
    nbflow.reject(run, "publish", store=store)


def deciding_yes(run: str, store: Any) -> None:
    """Approve the gate that waits."""
    nbflow.approve(run, "publish", store=store)


@pytest.mark.parametrize(
    ("select", "said"),
    [
        (["fax"], "no option 'fax'"),
        ("fax", "no option 'fax'"),
        ((), "exactly one"),
        (("web", "mail"), "exactly one"),
        (3, "list of texts"),
        ([3], "is a text"),
    ],
)
def test_selections_that_are_not_offered_are_refused(store: MemoryStore, select: Any, said: str) -> None:
    """Nothing is decided by it: the gate goes on waiting, and the next decision counts."""
    run = asked(store, options=["web", "mail"], single=True)
    with pytest.raises(UsageError, match=said):
        nbflow.approve(run, "publish", select=select, store=store)
    assert [] == store.tail(run)[1]
    nbflow.approve(run, "publish", select="web", store=store)
    with attached(store):
        assert ("web",) == nbflow.gate("publish").selections


def test_deciding_about_what_is_not_there_says_so(store: MemoryStore) -> None:
    """An unknown run, an unknown gate (the message names those there are), a run that is over."""
    run = asked(store)
    with pytest.raises(UnknownRun):
        nbflow.approve("01234567", "publish", store=store)
    with pytest.raises(UnknownStep, match="publish"):
        nbflow.approve(run, "launch", store=store)
    for feedback in (3, "\ud800"):
        with pytest.raises(UsageError, match="feedback"):
            nbflow.approve(run, "publish", feedback, store=store)  # type: ignore[arg-type]
    nbflow.cancel(run, store=store)
    with pytest.raises((GateDecided, RunFinished), match="given up"):
        nbflow.approve(run, "publish", store=store)


def test_by_is_user_and_host_unless_somebody_says(store: MemoryStore) -> None:
    """So that a record names a person also where nobody thought of it."""
    run = asked(store)
    decided = nbflow.approve(run, "publish", store=store)
    assert decided.by.count("@") == 1
    assert "python" == decided.via


def test_a_decision_about_an_earlier_asking_is_refused(store: MemoryStore) -> None:
    """What a person saw is not what is asked now."""
    run = asked(store)
    seen = the_gate(store).form.opening
    with attached(store):
        nbflow.retry_step(run, "gate:publish#0")
        with pytest.raises(GatePending):
            nbflow.gate("publish", "And now?")
    assert seen != the_gate(store).form.opening
    with pytest.raises(GateDecided, match="asked anew"):
        deciding.decide(store, run, "publish", True, opening=seen)
    deciding.decide(store, run, "publish", True, opening=the_gate(store).form.opening)


def test_forgetting_a_gate_asks_anew_whatever_was_decided(store: MemoryStore) -> None:
    """With a new opening, new text and a new clock; the old decision stays in history."""
    run = asked(store, timeout=100)
    nbflow.reject(run, "publish", "no", store=store)
    with attached(store), pytest.raises(GateRejected):
        nbflow.gate("publish")
    store.clock.advance(1000)
    nbflow.retry_step(run, "gate:publish#0", store=store)
    with attached(store), pytest.raises(GatePending, match="Better"):
        nbflow.gate("publish", "Better?", timeout=100)
    assert store.clock.now() + 100 == the_gate(store).due_at
    nbflow.approve(run, "publish", "yes", store=store)
    with attached(store):
        assert "yes" == nbflow.gate("publish").feedback


def test_a_gate_that_is_forgotten_while_it_waits_asks_anew(store: MemoryStore) -> None:
    """The one who waits in place gets the decision about the new question."""
    with attached(store) as session:
        waiter = InThread(nbflow.gate, "publish", wait=True)
        until(lambda: not nbflow.gates().empty)
        seen = the_gate(store).form.opening
        nbflow.retry_step(session.run, "publish")
        until(lambda: the_gate(store).form.opening != seen)
        nbflow.approve(session.run, "publish", "new")
        assert "new" == waiter.result().feedback


def test_of_many_deciders_exactly_one_wins(store: MemoryStore) -> None:
    """Threads that decide at the same moment: one is told that it was first, the others see its decision."""
    run = asked(store)
    ready = threading.Barrier(8)
    won: list[str] = []
    lost: list[Any] = []

    def decide(number: int) -> None:
        ready.wait()
        try:
            won.append(deciding.decide(store, run, "publish", number % 2 == 0, by=f"p{number}").by)
        except GateDecided as refused:
            lost.append(refused.decision.by)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == len(won)
    assert won * 7 == lost
    with attached(store):
        assert won[0] == nbflow.gate("publish", on_reject="return").by


# Waiting in place -------------------------------------------------------------------------------------------------


def test_waiting_in_place_takes_a_decision_from_anywhere(tmp_path: Path) -> None:
    """The run is waiting meanwhile and running afterwards; another opener of the store decides."""
    place, other = open_store(tmp_path / ".nbflow"), open_store(tmp_path / ".nbflow")
    try:
        with attached(place) as session:
            waiter = InThread(nbflow.gate, "publish", wait=True)
            until(lambda: other.run(session.run).state == "waiting")
            assert waiter.running
            nbflow.approve(session.run, "publish", "from afar", store=other)
            assert "from afar" == waiter.result().feedback
            assert "running" == session.history.state
            assert "running" == other.run(session.run).state
    finally:
        place.close()
        other.close()


def test_an_async_gate_does_not_block_its_loop(store: MemoryStore) -> None:
    """Other tasks go on, and one of them decides."""

    async def main(run: str) -> list[str]:
        async def decide() -> None:
            while len(nbflow.gates()) < 2:
                await asyncio.sleep(0.001)
            for name in ("a", "b"):
                nbflow.approve(run, name, f"about {name}")

        async def both() -> list[str]:
            first, second = await asyncio.gather(*(nbflow.agate(name, wait=True) for name in ("a", "b")))
            return [first.feedback, second.feedback]

        asking = asyncio.create_task(both())
        await asyncio.sleep(0)
        await decide()
        return await asking

    with attached(store) as session:
        assert ["about a", "about b"] == asyncio.run(main(session.run))


def test_cancelling_ends_the_wait(store: MemoryStore) -> None:
    """The run stops, and nobody can decide about the gate any more."""
    with pytest.raises(RunCancelled), nbflow.run("w", store=store) as run:
        waiter = InThread(nbflow.gate, "publish", wait=True)
        until(lambda: not nbflow.gates().empty)
        nbflow.cancel(run)
        with pytest.raises(RunCancelled):
            waiter.result()
        nbflow.gate("other")
    assert "cancelled" == store.run(run.id).state
    assert "cancelled" == the_gate(store).state
    with pytest.raises(GateDecided, match="given up"):
        nbflow.approve(run, "publish", store=store)


def test_a_run_that_stops_at_a_gate_is_waiting_and_goes_on_by_itself(store: MemoryStore) -> None:
    """`with nbflow.run` leaves it so; what is run again is the same run, and its end is completed."""

    def report() -> str:
        with nbflow.run("report", store=store):
            return str(nbflow.gate("publish").feedback)

    with pytest.raises(GatePending) as stopped:
        report()
    assert ["waiting"] == [info.state for info in store.runs()]
    nbflow.approve(stopped.value.run, "publish", "go", store=store)
    assert "go" == report()
    assert ["completed"] == [info.state for info in store.runs()]


def test_a_waiting_run_is_running_again_with_the_next_thing_that_starts(store: MemoryStore) -> None:
    """So a notebook whose other cells go on does not look as if it waited."""

    @nbflow.durable(version="1")
    def work() -> int:
        return 1

    with attached(store) as session:
        with pytest.raises(GatePending):
            nbflow.gate("publish")
        assert "waiting" == session.history.state
        work()
        assert "running" == session.history.state
        work()
    changes = [e.record.state for e in store.entries(session.run) if isinstance(e.record, RunChanged)]
    assert ["waiting", "running"] == changes


# Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True])
def test_a_timeout_fails_once_and_for_all(store: MemoryStore, wait: bool) -> None:  # noqa: FBT001
    """The error is the same in every attempt, and a decision comes too late."""
    with attached(store) as session:
        if not wait:
            with pytest.raises(GatePending):
                nbflow.gate("publish", timeout="1h")
            store.clock.advance(3600)
        with pytest.raises(GateTimedOut, match="3600 s"):
            nbflow.gate("publish", timeout="1h", wait=wait)
    assert "timed_out" == the_gate(store).state
    with pytest.raises(GateDecided, match="timed out"):
        nbflow.approve(session.run, "publish", store=store)
    with attached(store), pytest.raises(GateTimedOut):
        nbflow.gate("publish", timeout="5h")
    nbflow.retry_step(session.run, "gate:publish#0", store=store)
    with attached(store), pytest.raises(GatePending):
        nbflow.gate("publish")


@pytest.mark.parametrize(("on_timeout", "approved"), [("continue", True), ("reject", False)])
def test_a_timeout_may_decide(store: MemoryStore, on_timeout: Any, approved: bool) -> None:  # noqa: FBT001
    """By "timeout", like a person's decision: final and recorded."""
    with attached(store) as session:
        decided = nbflow.gate("publish", timeout=60, on_timeout=on_timeout, on_reject="return", wait=True)
        assert (approved, "timeout", "timeout") == (decided.approved, decided.by, decided.via)
    with pytest.raises(GateDecided, match="by timeout"):
        nbflow.approve(session.run, "publish", store=store)
    with attached(store):
        assert decided == nbflow.gate("publish", on_reject="return")


def test_the_clock_starts_once(store: MemoryStore) -> None:
    """However often the run is resumed, the first deadline stays; what passed while nobody ran it counts."""
    asked(store, timeout=100)
    due = the_gate(store).due_at
    for _ in range(3):
        store.clock.advance(30)
        with attached(store), pytest.raises(GatePending):
            nbflow.gate("publish", timeout=100)
        assert due == the_gate(store).due_at
    store.clock.advance(10)
    with attached(store), pytest.raises(GateTimedOut):
        nbflow.gate("publish", timeout=100)


def test_setting_the_wall_clock_neither_ends_nor_prolongs_it(store: MemoryStore) -> None:
    """What counts is time that passes."""
    asked(store, timeout=100)
    for shift in (5000, -9000):
        store.clock.shift_wall(shift)
        with attached(store), pytest.raises(GatePending):
            nbflow.gate("publish")
    store.clock.advance(100)
    with attached(store), pytest.raises(GateTimedOut):
        nbflow.gate("publish")


def test_a_wall_clock_that_was_set_forward_refuses_nobody(store: MemoryStore) -> None:
    """Whoever decides in time is heard, whatever the wall clock shows: it goes by the clock of the wait."""
    run = asked(store, timeout=100)
    store.clock.shift_wall(5000)
    assert nbflow.approve(run, "publish", by="ana", store=store).approved
    with attached(store):
        assert nbflow.gate("publish").by == "ana"


def test_a_decision_before_the_deadline_counts_however_late_the_run_is_resumed(store: MemoryStore) -> None:
    """It was taken in time, and the person was told so."""
    run = asked(store, timeout=100)
    store.clock.advance(99)
    nbflow.approve(run, "publish", "just in time", store=store)
    store.clock.advance(1000)
    with attached(store):
        assert "just in time" == nbflow.gate("publish").feedback


def test_a_decision_after_the_deadline_is_refused_before_anybody_resumed(store: MemoryStore) -> None:
    """The gate is listed as timed out already."""
    run = asked(store, timeout=100)
    store.clock.advance(100)
    with pytest.raises(GateDecided, match="timed out"):
        nbflow.approve(run, "publish", store=store)
    assert nbflow.gates(store=store).empty
    assert ["timed_out"] == nbflow.gates(state=None, store=store)["state"].tolist()


def test_whoever_decides_at_the_very_deadline_is_either_first_or_refused(store: MemoryStore) -> None:
    """The owner's own message meets theirs under the lock of the inbox: what counts is what is told."""
    run = asked(store, timeout=100)
    gate = the_gate(store)
    in_time = Decision(True, "ana", store.clock.now() + 99.9, "last moment")
    message = Message("m1", DECISION, in_time.at, sender="ana", payload=payload_of(gate, in_time))
    store.clock.advance(100.1)
    with attached(store):
        send = store.send

        def theirs_first(run: str, ours: Message) -> None:
            store.send = send  # type: ignore[method-assign]
            send(run, message)
            send(run, ours)

        store.send = theirs_first  # type: ignore[method-assign]
        assert "last moment" == nbflow.gate("publish").feedback
    assert "approved" == the_gate(store).state
    with pytest.raises(GateDecided, match="approved by ana"):
        nbflow.reject(run, "publish", store=store)


def test_a_decision_that_was_sent_in_time_and_comes_second_is_told_so(store: MemoryStore) -> None:
    """The owner has said first that the time is over; nobody is told that a decision counts which does not."""
    asked(store, timeout=100)
    gate = the_gate(store)
    store.clock.advance(100)
    with attached(store) as session, pytest.raises(GateTimedOut):
        nbflow.gate("publish")
    in_time = Decision(True, "ana", store.clock.now() - 1)
    message = Message("m1", DECISION, in_time.at, sender="ana", payload=payload_of(gate, in_time))
    with pytest.raises(GateDecided, match="timed out"):
        store.send(session.run, message)


# Trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 8))
def test_a_gate_survives_every_lost_append(at: int, when: Any) -> None:
    """Whichever append fails, kept or not: what is run again comes to the one decision, consumed once."""
    memory = MemoryStore(VirtualClock())
    store = FaultyStore(memory, at=at, when=when)
    with contextlib.ExitStack() as stack:
        stack.callback(memory.close)
        for _ in range(6):
            try:
                with attached(store, memory.clock):
                    decided = nbflow.gate("publish", options=["web"], show="a text")
                break
            except StoreFull:
                continue
            except GatePending as pending:
                with contextlib.suppress(GateDecided):
                    nbflow.approve(pending.run, "publish", "ok", select="web", by="ana", store=memory)
        assert ("ana", "ok", ("web",)) == (decided.by, decided.feedback, decided.selections)
        (info,) = memory.runs()
        done = [e for e in memory.entries(info.run) if isinstance(e.record, StepCompleted)]
        assert 1 == len(done)


# The table --------------------------------------------------------------------------------------------------------


def test_the_table_lists_what_waits_and_what_was_decided(store: MemoryStore) -> None:
    """Waiting ones by default; decided ones that nobody took yet are "sent"."""
    run = asked(store, text="Now?", options=["web"], timeout=60)
    table = nbflow.gates(store=store)
    assert [[run, "w", "publish", "waiting", "Now?", ["web"]]] == table[
        ["run", "workflow", "gate", "state", "text", "options"]
    ].to_numpy().tolist()
    assert 60 == (table["due"] - table["opened"]).dt.total_seconds()[0]
    assert [(run, "publish")] == [(info.run, gate.form.name) for info, gate in deciding.pending(store)]
    nbflow.approve(run, "publish", "ok", by="ana", select="web", store=store)
    assert nbflow.gates(store=store).empty
    assert [] == deciding.pending(store)
    assert ["ana"] == nbflow.gates(state="sent", store=store)["by"].tolist()
    with attached(store) as session:
        nbflow.gate("publish")
        session.finish()
    done = nbflow.gates(state="approved", store=store)
    assert [["approved", "ana", "ok", ["web"]]] == done[
        ["decision", "by", "feedback", "selections"]
    ].to_numpy().tolist()
    assert nbflow.gates(workflow="other", state=None, store=store).empty
    with pytest.raises(UsageError, match="state is one of"):
        nbflow.gates(state="open", store=store)


def test_decided_gates_of_finished_runs_are_found_among_others(tmp_path: Path) -> None:
    """By the database: runs without gates are not looked into; the newest ones first where there are too many."""
    place = open_store(tmp_path / ".nbflow")
    try:
        for number in range(3):
            with nbflow.run("plain", store=place, number=number):
                nbflow.publish("number", number)
            with nbflow.run("asking", store=place, number=number):
                nbflow.quality_gate(f"g{number}", number, "value >= 0")
        place.ingest()
        looked: list[str] = []
        tail = place.tail
        place.tail = lambda run, position=None: looked.append(run) or tail(run, position)  # type: ignore[func-returns-value,method-assign]
        assert ["g0", "g1", "g2"] == nbflow.gates(state=None, store=place)["gate"].tolist()
        assert 3 == len(looked)
        assert ["g2"] == nbflow.gates(state="approved", limit=1, store=place)["gate"].tolist()
    finally:
        place.close()


def test_verbs_have_names_and_async_faces() -> None:
    """`await nbflow.gate.aio(...)` is `await nbflow.agate(...)`."""
    gate: Callable[..., Any] = nbflow.gate
    assert "gate" == gate.__name__
    assert asyncio.iscoroutinefunction(nbflow.gate.aio)
    assert asyncio.iscoroutinefunction(nbflow.agate)
