"""Gates among the states of a machine: a person decides which state comes next, and the machine goes on with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import StrEnum, auto
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import (
    GateDecided,
    GatePending,
    GateRejected,
    GateTimedOut,
    InvalidMachine,
    JoinFailed,
    RunCancelled,
    UnknownState,
    UsageError,
)
from nbflow.core.gates import SHOWN, gates_of
from nbflow.core.history import History
from nbflow.runtime.gates import deciding
from nbflow.testing import MemoryStore, VirtualClock
from nbflow.values.codec import decode
from tests.runtime.timed import until


class S(StrEnum):
    """The life of a paper."""

    WRITE = auto()
    REVIEW = auto()
    REVISE = auto()
    PRINT = auto()
    DRAWER = auto()
    FORGOTTEN = auto()


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files, under a clock of its own."""
    memory = MemoryStore(VirtualClock())
    yield memory
    memory.close()


def paper(**options: Any) -> nbflow.Machine:
    """Return a machine that writes, asks, and revises until somebody approves."""
    machine = nbflow.Machine("paper", S, initial=S.WRITE, final={S.PRINT, S.DRAWER, S.FORGOTTEN}, version=1)

    @machine.state(S.WRITE)
    def write(ctx: Any) -> S:
        ctx.drafts = ["first"]
        return S.REVIEW

    machine.gate(
        S.REVIEW,
        "Print it?",
        **{
            "approved": S.PRINT,
            "rejected": S.REVISE,
            "show": "drafts",
            "timed_out": S.FORGOTTEN,
            "timeout": "2d",
        }
        | options,
    )

    @machine.state(S.REVISE, to=[S.REVIEW, S.DRAWER])
    def revise(ctx: Any) -> S:
        ctx.drafts.append(ctx.decision.feedback)
        return S.REVIEW if len(ctx.drafts) < 4 else S.DRAWER

    return machine


def the_only(store: Any) -> History:
    """Return the history of the only run."""
    (info,) = store.runs()
    return History.of(store.entries(info.run))


def until_done(machine: nbflow.Machine, store: Any, answers: list[tuple[bool, str]]) -> Any:
    """Run a machine and give one answer after the other to what it asks."""
    for approved, feedback in answers:
        with pytest.raises(GatePending) as stopped:
            machine.run(store=store)
        assert ["waiting"] == [info.state for info in store.runs()]
        deciding.decide(store, stopped.value.run, stopped.value.step, approved, feedback=feedback, by="ana")
    return machine.run(store=store)


def test_the_decision_says_which_state_comes_next(store: MemoryStore) -> None:
    """Approved goes one way, rejected the other; feedback is there in later states, and each round asks anew."""
    machine = paper()
    assert until_done(machine, store, [(False, "longer"), (False, "shorter"), (True, "good")]) is S.PRINT
    results = machine.results(store=store)
    assert ["first", "longer", "shorter"] == results["drafts"]
    assert "good" == results["decision"].feedback
    assert ["REVIEW#0/gate:REVIEW#0", "REVIEW#1/gate:REVIEW#0", "REVIEW#2/gate:REVIEW#0"] == [
        gate.step for gate in gates_of(the_only(store))
    ]


def test_a_machine_may_wait_in_place(store: MemoryStore) -> None:
    """It goes on in the same call."""
    machine = paper(wait=True)

    class Decider:
        def on_gate(self, event: Any) -> None:
            if event.state == "waiting" and event.step.endswith("gate:REVIEW#0"):
                deciding.decide(store, event.run, event.step, approved=True)

    with nbflow.observe(Decider()):
        assert machine.run(store=store) is S.PRINT


def test_an_async_machine_stops_and_goes_on_as_well(store: MemoryStore) -> None:
    """`arun` raises the pending gate, and comes back to it."""
    machine = paper()
    with pytest.raises(GatePending) as stopped:
        asyncio.run(machine.arun(store=store))
    nbflow.approve(stopped.value.run, "REVIEW", store=store)
    assert asyncio.run(machine.arun(store=store)) is S.PRINT


@pytest.mark.parametrize("resumed", [False, True])
def test_time_that_is_over_leads_to_a_state(store: MemoryStore, resumed: bool) -> None:  # noqa: FBT001
    """The clock started when the gate first opened, whatever happened since."""
    machine = paper(wait=not resumed)
    if resumed:
        for days in (0, 1):
            store.clock.advance(days * 86400)
            with pytest.raises(GatePending):
                machine.run(store=store)
        store.clock.advance(86400)
    assert machine.run(store=store) is S.FORGOTTEN


def test_without_a_state_for_them_rejection_and_timeout_fail_the_run(store: MemoryStore) -> None:
    """The errors are those of a gate, and a resume raises them again."""
    machine = paper(rejected=None, timed_out=None, timeout=60)
    with pytest.raises(InvalidMachine, match="'REVISE' is unreachable"):
        machine.run(store=store)
    straight = nbflow.Machine("straight", ["ask", "end"], initial="ask", final={"end"})
    straight.gate("ask", approved="end", timeout=60)
    with pytest.raises(GatePending) as stopped:
        straight.run(store=store)
    nbflow.reject(stopped.value.run, "ask", "no", store=store)
    for _ in range(2):
        with pytest.raises(GateRejected, match="no"):
            straight.run(store=store)
    with pytest.raises(GatePending):
        straight.run(store=store, new=True)
    store.clock.advance(60)
    for _ in range(2):
        with pytest.raises(GateTimedOut):
            straight.run(store=store)


def test_a_task_says_what_to_show(store: MemoryStore) -> None:
    """What it returns is shown beside the data that is named, and what it sets is data of the state."""
    machine = nbflow.Machine("m", ["ask", "end"], initial="ask", final={"end"})

    @machine.gate("ask", approved="end", show="day", options=["web"])
    def ask(ctx: Any) -> Any:
        ctx.summary = f"about {ctx.day}"
        return [ctx.summary, {"rows": 3}]

    with pytest.raises(GatePending) as stopped:
        machine.run(store=store, day="monday")
    cursor = the_only(store).cursors[stopped.value.step]
    shown = decode(cursor.checkpoint, lambda _: memoryview(b""))[SHOWN]
    assert ["monday", "about monday"] == [each["text"] for each in shown[:2]]
    nbflow.approve(stopped.value.run, "ask", select="web", store=store)
    assert "end" == machine.run(store=store, day="monday")
    results = machine.results(store=store)
    assert ("about monday", ("web",)) == (results["summary"], results["decision"].selections)


def test_branches_beside_a_gate_come_to_their_ends(store: MemoryStore) -> None:
    """All gates of a split are open at once; the join waits for the decisions and not for a failure."""
    done: list[str] = []
    machine = nbflow.Machine(
        "m", ["begin", "legal", "work", "more", "press", "join"], initial="begin", final={"join"}
    )
    machine.state("begin")(_split)
    machine.gate("legal", approved="join", into="legal_says")
    machine.gate("press", approved="join", into="press_says")

    @machine.state("work")
    def work(ctx: Any) -> str:
        done.append("work")
        return "more"

    @machine.state("more")
    def more(ctx: Any) -> str:
        done.append("more")
        return "join"

    with pytest.raises(GatePending):
        machine.run(store=store)
    assert ["waiting"] == [info.state for info in store.runs()]
    assert ["legal", "press"] == sorted(gate.form.name for _, gate in deciding.pending(store))
    for info, gate in deciding.pending(store):
        deciding.decide(store, info.run, gate.step, approved=True, feedback=gate.form.name)
    assert "join" == machine.run(store=store)
    assert ["work", "more"] == done
    results = machine.results(store=store)
    assert ("legal", "press") == (results["legal_says"].feedback, results["press_says"].feedback)


def _split(ctx: Any) -> nbflow.Split:
    return nbflow.Split(["legal", "work", "press"], to="join")


def test_a_join_that_needs_no_more_gives_a_waiting_gate_up(store: MemoryStore) -> None:
    """Nobody has to decide any more, and nobody can."""
    machine = nbflow.Machine("m", ["begin", "ask", "work", "end"], initial="begin", final={"end"})

    @machine.state("begin")
    def begin(ctx: Any) -> nbflow.Split:
        return nbflow.Split(["ask", "work"], to="end", join=nbflow.Join.any())

    machine.gate("ask", approved="end", wait=True)

    @machine.state("work")
    def work(ctx: Any) -> str:
        until(lambda: deciding.pending(store))
        return "end"

    assert "end" == machine.run(store=store)
    gates = gates_of(the_only(store))
    assert ["cancelled"] == [gate.state for gate in gates]
    with pytest.raises(GateDecided, match="given up"):
        deciding.decide(store, store.runs()[0].run, gates[0].step, approved=True)


def test_a_join_whose_time_is_over_does_not_wait_for_gates(store: MemoryStore) -> None:
    """Also where nobody ran it when the time was over."""
    machine = nbflow.Machine("m", ["begin", "ask", "end"], initial="begin", final={"end"})

    @machine.state("begin")
    def begin(ctx: Any) -> nbflow.Split:
        return nbflow.Split([nbflow.Branch("ask", "a"), nbflow.Branch("ask", "b")], to="end", within="1h")

    machine.gate("ask", approved="end")
    with pytest.raises(GatePending):
        machine.run(store=store)
    store.clock.advance(3600)
    with pytest.raises(JoinFailed):
        machine.run(store=store)


def test_the_time_of_a_whole_machine_ends_at_a_gate_too(store: MemoryStore) -> None:
    """The run is cancelled when it is resumed; the gate's own time is longer."""
    machine = nbflow.Machine("m", ["ask", "end"], initial="ask", final={"end"}, timeout="1h")
    machine.gate("ask", approved="end", timeout="2h")
    with pytest.raises(GatePending):
        machine.run(store=store)
    store.clock.advance(3601)
    with pytest.raises(RunCancelled, match="timeout"):
        machine.run(store=store)


def test_a_machine_that_waits_as_a_child_makes_its_parent_wait(store: MemoryStore) -> None:
    """And the parent carries it on."""
    machine = nbflow.Machine("inner", ["ask", "end"], initial="ask", final={"end"})
    machine.gate("ask", approved="end")

    def outer() -> str:
        with nbflow.run("outer", store=store):
            return str(machine.run())

    with pytest.raises(GatePending) as stopped:
        outer()
    assert {"waiting"} == {info.state for info in store.runs()}
    nbflow.approve(stopped.value.run, "ask", store=store)
    assert "end" == outer()
    assert {"completed"} == {info.state for info in store.runs()}


def test_a_gate_is_drawn_as_a_hexagon_with_its_answers() -> None:
    """In a Mermaid flowchart, for its state diagrams know no hexagon; other machines stay state diagrams."""
    text = paper().diagram()
    assert text.startswith("flowchart TD")
    assert '    s1{{"REVIEW"}}' in text.splitlines()
    assert '    s1 -- "approved" --> s3' in text.splitlines()
    assert '    s1 -- "rejected" --> s2' in text.splitlines()
    assert '    s1 -- "timed out" --> s5' in text.splitlines()
    assert text.count("{{") == 1
    odd = nbflow.Machine("odd", ['say "<b>`hi`"', "end"], initial='say "<b>`hi`"', final={"end"})
    odd.gate('say "<b>`hi`"', approved="end")
    assert '    s0{{"say #34;#60;b#62;#96;hi#96;#34;"}}' in odd.diagram().splitlines()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"options": "web"}, "list of texts"),
        ({"timeout": "soon"}, "timeout"),
        ({"on_timeout": "explode"}, "on_timeout"),
        ({"timeout": None}, "timed_out= is for"),
        ({"on_timeout": "continue"}, "timed_out= is for"),
        ({"into": "params"}, "cannot be the name"),
        ({"into": "not a name"}, "names of data"),
        ({"show": [3]}, "names of data"),
        ({"approved": None}, "approved=STATE"),
        ({"approved": 3}, "3"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    """The error names the gate."""
    with pytest.raises(UsageError, match=said):
        paper(**options)


def test_gates_are_validated_like_other_states() -> None:
    """Unknown states, unknown targets, two definitions, a gate that asks nothing."""
    machine = nbflow.Machine("m", ["ask", "ask2", "end"], initial="ask", final={"end"})
    with pytest.raises(UnknownState, match="asc"):
        machine.gate("asc", approved="end")
    machine.gate("ask", approved="ende", rejected="ask2")
    machine.state("ask2", kind="gate", to="end")
    with pytest.raises(InvalidMachine) as refused:
        machine.validate()
    problems = "\n".join(refused.value.problems)
    assert "unknown target 'ende'" in problems
    assert "'ask2' is a gate that asks nothing" in problems


def test_another_question_is_another_machine() -> None:
    """The digest of its code, by which a child is told from an older one, holds what is asked."""
    assert paper().code() == paper().code()
    assert paper().code() != paper(options=["web"]).code()
