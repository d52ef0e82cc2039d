"""The nodes of runs that have no definition: cells of a notebook, calls of a script, items of a batch. Pure.

Nodes stand in the order in which their steps first began, each after the one
before; "data" edges say which cell read what which other cell wrote. Many calls
of one function in one place are one node, and so are the items of a map.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nbflow.board.tally import Shown, Tally
from nbflow.core.history import Execution, History
from nbflow.notebook.calls import first_line, scope_of
from nbflow.notebook.detail import READS, SOURCE, WRITES
from nbflow.notebook.identity import is_nameless

#: (nodes, edges) without coordinates.
Pieces = tuple[list[dict[str, Any]], list[dict[str, Any]]]

#: Kinds that are a node of their own inside a durable cell, too: what a person wants to see and act on.
_ALWAYS = frozenset({"gate", "child", "signal"})
#: Steps that make nothing visible: a function's result, points of a stepped task.
_NEVER = frozenset({"cursor", "state"})
#: What the result of a child or a whole function is recorded as.
_RESULT = "return"

_SAYS = {"call": "{}()", "item": "{}()", "sleep": "sleep", "signal": "wait for {}", "compensation": "undo {}"}


@dataclass
class _Node:
    """Steps that are drawn as one node."""

    id: str
    label: str
    kind: str
    tally: Tally = field(default_factory=Tally)
    items: Tally = field(default_factory=Tally)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def steps(history: History, seen: Shown) -> Pieces:
    """Return the nodes and edges of a notebook's run or a script's."""
    nodes: dict[str, _Node] = {}
    cells: dict[str, _Node] = {}
    for execution in history.executions.values():
        started = execution.started
        if started.step_kind == "item" and started.parent in cells:
            cells[started.parent].items.add(execution, seen.state(execution))
        key = _key(execution, cells)
        if key is None:
            continue
        node = nodes.get(key)
        if node is None:
            node = nodes[key] = _Node(key, _label(execution), started.step_kind)
        if started.step_kind == "cell":
            cells[started.step] = node
            _note_data(node, execution)
        node.tally.add(execution, seen.state(execution))
    found = list(nodes.values())
    for node in found:
        node.tally.settle(newest=node.kind == "cell")
        node.items.settle()
    current = {node.id for node in found if node.tally.open}
    return [_plain(node, place, current) for place, node in enumerate(found)], _edges(found)


def _key(execution: Execution, cells: dict[str, _Node]) -> str | None:
    """Return which node a step belongs to; None where it is not drawn."""
    started = execution.started
    kind, parent = started.step_kind, started.parent
    if kind == "cell":
        return f"cell/{started.step}"
    if kind in _NEVER or (kind == "call" and started.name == _RESULT):
        return None
    inside = parent is not None and parent in cells
    outermost = parent is None or parent.startswith(("cell:", "code:"))
    if not (outermost or (inside and kind in _ALWAYS)):
        return None
    return f"{kind}/{parent if inside else scope_of(started.step)}/{started.name}"


def _label(execution: Execution) -> str:
    started = execution.started
    if started.step_kind == "cell":
        source = str(started.detail.get(SOURCE, ""))
        return first_line(source) or started.name if is_nameless(started.step) else started.name
    return _SAYS.get(started.step_kind, "{}").replace("{}", started.name)


def _note_data(node: _Node, execution: Execution) -> None:
    node.reads = tuple(execution.started.detail.get(READS, ()))
    if execution.completed is not None:
        node.writes = tuple(execution.completed.detail.get(WRITES, ()))


def _plain(node: _Node, place: int, current: set[str]) -> dict[str, Any]:
    count = len(node.tally.steps)
    items = node.items.counts() or (node.tally.counts() if count > 1 else None)
    return {
        "id": node.id,
        "label": f"{node.label} × {count:,}" if count > 1 else node.label,
        "kind": node.kind,
        **node.tally.facts(),
        "items": items,
        "current": node.id in current,
        "initial": place == 0,
        "final": False,
    }


def _edges(nodes: list[_Node]) -> list[dict[str, Any]]:
    edges = [
        {"source": one.id, "target": other.id, "kind": "next", "taken": 1} for one, other in pairwise(nodes)
    ]
    neighbours = {(edge["source"], edge["target"]) for edge in edges}
    wrote: dict[str, str] = {}
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in nodes:
        for name in node.reads:
            if name in wrote and wrote[name] != node.id:
                names[wrote[name], node.id].append(name)
        for name in node.writes:
            wrote[name] = node.id
    edges += [
        {"source": source, "target": target, "kind": "data", "taken": 1, "names": sorted(found)}
        for (source, target), found in names.items()
        if (source, target) not in neighbours
    ]
    return edges


def batch(history: History, seen: Shown) -> Pieces:
    """Return a batch as one node and one more for each state that any of its items is in."""
    assert history.opened is not None
    tallies: dict[str, Tally] = defaultdict(Tally)
    newest: dict[str, Execution] = {}
    for execution in history.executions.values():
        if execution.started.step_kind in ("child", "item"):
            newest[execution.started.step] = execution
    for execution in newest.values():
        state = seen.state(execution)
        tallies[state].add(execution, state)
    planned = history.opened.launch.get("items", ())
    total = max(len(planned) if isinstance(planned, (list, tuple)) else 0, len(newest))
    root = {
        **Tally().facts(),
        "id": "batch",
        "label": f"{history.opened.workflow} × {total:,}",
        "kind": "batch",
        "state": "stopped" if seen.gone else str(history.state),
        "visits": total,
        "items": {state: len(tally.steps) for state, tally in sorted(tallies.items())},
        "current": False,
        "initial": True,
        "final": False,
    }
    begun = len(newest)
    nodes = [root]
    counted = {state: (tally, len(tally.steps)) for state, tally in tallies.items()}
    if total > begun:
        tally, count = counted.get("pending", (Tally(), 0))
        counted["pending"] = (tally, count + total - begun)
    for state in _BATCH_ORDER:
        if state in counted:
            tally, count = counted[state]
            nodes.append(
                {
                    **tally.settle().facts(),
                    "id": f"batch/{state}",
                    "label": f"{count:,} item{'' if count == 1 else 's'}",
                    "kind": "item",
                    "state": state,
                    "visits": count,
                    "items": None,
                    "current": tally.open,
                    "initial": False,
                    "final": False,
                }
            )
    edges = [
        {"source": "batch", "target": node["id"], "kind": "branch", "taken": node["visits"]}
        for node in nodes[1:]
    ]
    return nodes, edges


_BATCH_ORDER = (
    "completed",
    "running",
    "waiting",
    "stopped",
    "failed",
    "timed_out",
    "cancelled",
    "skipped",
    "pending",
)
