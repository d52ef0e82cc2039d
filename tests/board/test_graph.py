"""The graph of a run: what it says of machines, notebooks, scripts and batches, from their records alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.board.graph import graph_of
from nbflow.core.errors import GatePending, UsageError
from nbflow.core.gates import FORM
from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Entry,
    ErrorInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.testing import MemoryStore


def history_of(store: MemoryStore, run: str | None = None) -> History:
    """The run as another process reads it: from its records."""
    return History.of(store.entries(run or store.runs()[0].run))


def folded(*records: AnyRecord) -> History:
    return History.of(Entry(seq, float(seq), record) for seq, record in enumerate(records, 1))


def nodes(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["label"]: node for node in graph["nodes"]}


def taken(graph: dict[str, Any]) -> dict[tuple[str, str | None], int]:
    return {(edge["source"], edge["target"]): edge["taken"] for edge in graph["edges"]}


def cell(name: str, **detail: Any) -> StepStarted:
    return StepStarted(step=name, name=name, step_kind="cell", signature=name.encode(), detail=detail)


def notebook(*records: AnyRecord) -> History:
    return folded(
        RunOpened(run="r", workflow="nb.ipynb", workflow_kind="notebook"),
        RunAttached(generation=1, attempt=1, owner=Owner("here", 1, 0.0)),
        *records,
    )


# --- machines -----------------------------------------------------------------------------------------------------


def looping() -> nbflow.Machine:
    machine = nbflow.Machine(
        "loop", ["begin", "route", "work", "check", "spare", "end"], initial="begin", final={"end"}
    )
    machine.state("begin", to="route")(lambda ctx: "route")

    @machine.state("route", kind="router", to=["work", "check"])
    def route(ctx: Any) -> str:
        return "work" if ctx.get("rounds", 0) < 3 else "check"

    @machine.state("work", to="route")
    def work(ctx: Any) -> str:
        ctx.rounds = ctx.get("rounds", 0) + 1
        return "route"

    @machine.state("check", retries=2, delay=0.001, to=["end", "spare"])
    def check(ctx: Any) -> str:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return "end"

    machine.state("spare", to="end")(lambda ctx: "end")
    return machine


def test_a_run_of_a_machine_is_drawn_whole_from_its_records_alone() -> None:
    """States that were not visited and their arrows are there too, in whichever process the run is looked at."""
    store, machine = MemoryStore(), looping()
    machine.run(store=store)
    graph = graph_of(history_of(store))
    planned = graph_of(None, looping())
    assert [node["id"] for node in planned["nodes"]] == [node["id"] for node in graph["nodes"]]
    assert [(e["source"], e["target"], e["kind"], e["points"]) for e in planned["edges"]] == [
        (e["source"], e["target"], e["kind"], e["points"]) for e in graph["edges"]
    ]
    assert {node["state"] for node in planned["nodes"]} == {"pending"}
    assert (nodes(graph)["begin"]["initial"], nodes(graph)["end"]["final"]) == (True, True)
    assert nodes(graph)["spare"]["state"] == "pending"


def test_visits_retries_and_ways_are_counted_routers_too() -> None:
    """A loop says how often it went round, though a router between its states records nothing."""
    store, machine = MemoryStore(), looping()
    machine.run(store=store)
    graph = graph_of(history_of(store))
    assert {label: node["visits"] for label, node in nodes(graph).items()} == {
        "begin": 1,
        "route": 4,
        "work": 3,
        "check": 1,
        "spare": 0,
        "end": 1,
    }
    assert (nodes(graph)["check"]["attempts"], nodes(graph)["check"]["retries"]) == (3, 2)
    assert taken(graph) == {
        ("begin", "route"): 1,
        ("route", "work"): 3,
        ("route", "check"): 1,
        ("work", "route"): 3,
        ("check", "end"): 1,
        ("check", "spare"): 0,
        ("spare", "end"): 0,
    }
    assert [node["id"] for node in graph["nodes"] if node["current"]] == ["end"]


def test_branches_lead_from_the_split_to_what_follows_the_join() -> None:
    """A join is no state: each branch that was taken counts where it began and where it came back."""
    machine = nbflow.Machine("vote", ["ask", "left", "right", "count", "end"], initial="ask", final={"end"})
    machine.state("ask")(
        lambda ctx: nbflow.Split(
            ["left", nbflow.Branch("right"), nbflow.Branch("right", name="more")], to="count"
        )
    )
    machine.state("left", to="count")(lambda ctx: "count")
    machine.state("right", to="count")(lambda ctx: None)
    machine.state("count", to="end")(lambda ctx: "end")
    store = MemoryStore()
    machine.run(store=store)
    graph = graph_of(history_of(store))
    assert sorted(nodes(graph)) == ["ask", "count", "end", "left", "right"]
    assert nodes(graph)["right"]["items"] == {"completed": 2}
    ways = taken(graph)
    assert (ways["ask", "left"], ways["ask", "right"]) == (1, 2)
    assert (ways["left", "count"], ways["right", "count"], ways["count", "end"]) == (1, 2, 1)


def test_a_failed_state_says_its_last_error_and_where_the_run_is() -> None:
    """The node of a failed state carries the error, and is where the run stands."""
    machine = nbflow.Machine("bad", ["a", "b", "end"], initial="a", final={"end"})
    machine.state("a", to="b")(lambda ctx: "b")

    @machine.state("b", to="end")
    def broken(ctx: Any) -> str:
        raise ValueError("no <b>bold</b> text\nsecond line")

    store = MemoryStore()
    with pytest.raises(ValueError, match="bold"):
        machine.run(store=store)
    graph = graph_of(history_of(store))
    node = nodes(graph)["b"]
    assert (node["state"], node["current"]) == ("failed", True)
    assert node["error"].startswith("ValueError: no <b>bold</b> text")
    assert "second line" not in node["error"]
    assert taken(graph)["b", "end"] == 0


def test_what_runs_in_a_process_that_is_gone_is_stopped() -> None:
    """A state that was entered and not left is running, stopped where nobody is at work, cancelled where the run is."""
    started = StepStarted(
        step="a#0", name="a", step_kind="state", signature=b"", detail={"line": "", "kind": "plain"}
    )
    records: list[AnyRecord] = [
        RunOpened(run="r", workflow="m", workflow_kind="machine"),
        RunAttached(generation=1, attempt=1, owner=Owner("here", 1, 0.0)),
        started,
    ]
    history = folded(*records)
    found = [nodes(graph_of(history, alive=alive))["a"]["state"] for alive in (True, None, False)]
    assert found == ["running", "running", "stopped"]
    ended = folded(*records, RunChanged(state="cancelled"))
    assert nodes(graph_of(ended))["a"]["state"] == "cancelled"
    assert nodes(graph_of(history, alive=True))["a"]["current"] is True


def test_a_state_around_an_open_gate_waits() -> None:
    """Where a person is asked the state itself is waiting, although its task has begun."""
    history = folded(
        RunOpened(run="r", workflow="m", workflow_kind="machine"),
        StepStarted(
            step="a#0", name="a", step_kind="state", signature=b"", detail={"line": "", "kind": "plain"}
        ),
        StepStarted(
            step="a#0/ok",
            name="ok",
            step_kind="gate",
            signature=b"",
            parent="a#0",
            detail={FORM: {"name": "ok", "text": "?", "opening": "o"}},
        ),
    )
    assert nodes(graph_of(history))["a"]["state"] == "waiting"


def test_a_state_that_stopped_at_a_gate_waits_and_goes_on() -> None:
    """Stopping to ask a person is neither an error nor a try: afterwards the state counts as visited once."""
    machine = nbflow.Machine(
        "pub", ["draft", "review", "out", "back"], initial="draft", final={"out", "back"}
    )
    machine.state("draft", to="review")(lambda ctx: "review")
    machine.gate("review", "Publish?", approved="out", rejected="back")
    store = MemoryStore()
    with pytest.raises(GatePending):
        machine.run(store=store)
    node = nodes(graph_of(history_of(store)))["review"]
    assert (node["state"], node["error"], node["current"]) == ("waiting", None, True)
    nbflow.approve(store.runs()[0].run, "review", store=store)
    machine.run(store=store)
    graph = graph_of(history_of(store))
    node = nodes(graph)["review"]
    assert (node["state"], node["visits"], node["attempts"], node["retries"]) == ("completed", 1, 1, 0)
    assert (taken(graph)["review", "out"], taken(graph)["review", "back"]) == (1, 0)


def test_forgotten_states_are_to_run_again() -> None:
    """A state that somebody had forgotten is pending, and the ways behind it were not taken."""
    store, machine = MemoryStore(), looping()
    machine.run(store=store)
    entries = store.entries(store.runs()[0].run)
    open_again = [each for each in entries if not isinstance(each.record, RunChanged)]
    history = History.of(open_again)
    history.add(Entry(history.seq + 1, 99.0, StepForgotten(step="check#0")))
    graph = graph_of(history)
    assert nodes(graph)["check"]["state"] == "pending"
    assert nodes(graph)["begin"]["state"] == "completed"
    assert taken(graph)["check", "end"] == 0


def test_states_of_another_version_are_drawn_where_they_were_visited() -> None:
    """A run that went through states which the machine no longer has shows them, with the way it took."""
    store = MemoryStore()
    looping().run(store=store)
    other = nbflow.Machine("loop", ["begin", "end"], initial="begin", final={"end"})
    other.state("begin", to="end")(lambda ctx: "end")
    graph = graph_of(history_of(store), other)
    assert nodes(graph)["work"]["visits"] == 3
    assert {"begin", "end", "work", "check"} <= set(nodes(graph))
    assert taken(graph)["begin", "end"] == 0


def test_a_batch_state_counts_its_items() -> None:
    """The items of a batch are a summary of its state, and no nodes."""
    machine = nbflow.Machine("squares", ["square", "end"], initial="square", final={"end"})

    @machine.state("square", kind="batch", to="end")
    def numbers(ctx: Any) -> Iterable[int]:
        return range(50)

    numbers.process(lambda ctx, number: number**2)
    numbers.finish(lambda ctx, results: "end")
    store = MemoryStore()
    machine.run(store=store)
    graph = graph_of(history_of(store))
    assert len(graph["nodes"]) == 2
    assert nodes(graph)["square"]["items"] == {"completed": 50}


def test_nothing_to_draw_is_said() -> None:
    """Neither a run nor a machine is a mistake, and no empty picture."""
    with pytest.raises(UsageError, match="nothing to draw"):
        graph_of(None)


def test_the_outline_survives_nonsense() -> None:
    """A definition recorded by another version of nbflow that cannot be read costs the unvisited states, no more."""
    for launch in (
        {"machine": 7},
        {"machine": {"states": ["a"], "initial": 9}},
        {"machine": {"states": None}},
    ):
        history = folded(
            RunOpened(run="r", workflow="m", workflow_kind="machine", launch=launch),
            StepStarted(step="a#0", name="a", step_kind="state", signature=b"", detail={"line": ""}),
        )
        assert [node["id"] for node in graph_of(history)["nodes"]] == ["a"]


# --- notebooks, scripts, batches ----------------------------------------------------------------------------------


def test_cells_stand_in_the_order_in_which_they_first_ran() -> None:
    """Each cell is a node; a cell that was edited and run again keeps its place, and its newest version speaks."""
    graph = graph_of(
        notebook(
            cell("load"),
            StepCompleted(execution=-1, step="load", seconds=2.0),
            cell("fit"),
            StepRetried(
                execution=-1, step="fit", attempt=1, due_at=0.0, error=ErrorInfo("ValueError", "once")
            ),
            StepCompleted(execution=-2, step="fit", attempt=2, seconds=3.0),
            cell("load"),
            StepEnded(execution=-1, step="load", state="failed", error=ErrorInfo("KeyError", "city")),
        )
    )
    assert [(node["label"], node["state"]) for node in graph["nodes"]] == [
        ("load", "failed"),
        ("fit", "completed"),
    ]
    assert nodes(graph)["load"]["error"] == "KeyError: city"
    assert (nodes(graph)["fit"]["attempts"], nodes(graph)["fit"]["retries"]) == (2, 1)
    assert nodes(graph)["load"]["execution"] == 8


def test_data_that_passes_over_a_cell_is_an_edge() -> None:
    """A cell that reads what an earlier one wrote is joined to it, unless it follows it anyhow."""

    def done(name: str, *writes: str) -> StepCompleted:
        return StepCompleted(execution=-1, step=name, detail={"writes": list(writes)})

    graph = graph_of(
        notebook(
            cell("a"),
            done("a", "df"),
            cell("b", reads={"df": "1"}),
            done("b", "model"),
            cell("c", reads={"df": "1", "model": "2"}),
            done("c"),
        )
    )
    assert [(e["source"], e["target"], e["kind"]) for e in graph["edges"]] == [
        ("cell/a", "cell/b", "next"),
        ("cell/b", "cell/c", "next"),
        ("cell/a", "cell/c", "data"),
    ]


def test_gates_and_machines_of_a_notebook_are_nodes() -> None:
    """What a person acts on or opens is drawn, in a durable cell too; calls inside a durable cell are its own affair."""
    graph = graph_of(
        notebook(
            cell("load"),
            StepStarted(step="load/f:1#0", name="f", step_kind="call", signature=b"", parent="load"),
            StepStarted(
                step="load/child:m#0",
                name="m",
                step_kind="child",
                signature=b"",
                parent="load",
                detail={"run": "child-run"},
            ),
            StepStarted(step="cell:ab/g:1#0", name="g", step_kind="call", signature=b"", parent="cell:ab"),
            StepStarted(step="cell:ab/g:2#0", name="g", step_kind="call", signature=b"", parent="cell:ab"),
            StepStarted(step="publish", name="publish", step_kind="gate", signature=b""),
        )
    )
    assert [(node["label"], node["kind"]) for node in graph["nodes"]] == [
        ("load", "cell"),
        ("m", "child"),
        ("g() × 2", "call"),
        ("publish", "gate"),
    ]
    assert nodes(graph)["m"]["run"] == "child-run"
    assert nodes(graph)["publish"]["state"] == "waiting"


@nbflow.durable(version="1")
def double(x: int) -> int:
    return 2 * x


def test_a_script_shows_its_functions_and_a_map_as_one_node_each() -> None:
    """A thousand items are one node that says how they fared."""
    store = MemoryStore()
    with nbflow.run("script", store=store):
        double(1)
        double(2)
        nbflow.map(double, range(30))
    graph = graph_of(history_of(store))
    assert [(node["label"], node["kind"], node["items"]) for node in graph["nodes"]] == [
        ("double() × 2", "call", {"completed": 2}),
        ("double() × 30", "item", {"completed": 30}),
    ]


def test_a_batch_is_summed_up_by_state() -> None:
    """A batch of many notebooks is as many nodes as there are states, those that did not begin included."""
    records: list[AnyRecord] = []
    for number in range(40):
        step = f"item#{number}"
        records.append(
            StepStarted(step=step, name=step, step_kind="child", signature=b"", detail={"run": step})
        )
        if number % 10:
            records.append(StepCompleted(execution=-1, step=step))
        else:
            records.append(StepEnded(execution=-1, step=step, state="failed", error=ErrorInfo("E", "x")))
    history = folded(
        RunOpened(run="b", workflow="etl", workflow_kind="batch", launch={"items": [{}] * 1000}), *records
    )
    graph = graph_of(history)
    assert {node["id"]: node["visits"] for node in graph["nodes"]} == {
        "batch": 1000,
        "batch/completed": 36,
        "batch/failed": 4,
        "batch/pending": 960,
    }


# --- any machine --------------------------------------------------------------------------------------------------


@st.composite
def wanderings(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A number of states, and the way of a run through them."""
    count = draw(st.integers(2, 12))
    return count, draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=25))


@settings(deadline=None, max_examples=60)
@given(wanderings())
def test_any_way_through_any_machine_is_drawn(given_: tuple[int, list[int]]) -> None:
    """Whatever way a run went, every step of it is an arrow that is there, and each node lies in the picture."""
    count, way = given_
    labels = [f"s{number}" for number in range(count)]
    outline = {"states": labels, "initial": way[0], "final": [], "arrows": [[way[0], None, "any"]]}
    records: list[AnyRecord] = [
        RunOpened(run="r", workflow="m", workflow_kind="machine", launch={"machine": outline})
    ]
    for place, number in enumerate(way):
        step = f"{labels[number]}#{place}"
        records.append(
            StepStarted(
                step=step,
                name=labels[number],
                step_kind="state",
                signature=b"",
                detail={"line": "", "kind": "plain"},
            )
        )
        if place + 1 < len(way):
            following = {"next": labels[way[place + 1]]}
            records.append(StepCompleted(execution=-1, step=step, detail=following))
    graph = graph_of(folded(*records))
    assert json.loads(json.dumps(graph)) == graph
    assert sum(edge["taken"] for edge in graph["edges"]) == len(way) - 1
    assert sum(node["visits"] for node in graph["nodes"]) == len(way)
    assert [node["id"] for node in graph["nodes"] if node["current"]] == [labels[way[-1]]]
    for node in graph["nodes"]:
        assert 0 <= node["x"] - node["w"] / 2
        assert node["x"] + node["w"] / 2 <= graph["width"]
        assert node["y"] + node["h"] / 2 <= graph["height"]
