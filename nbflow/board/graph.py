"""`graph_of`: a run, or a machine that did not run yet, as a picture in data: nodes, edges, and where they are drawn.

What the nodes of a machine are stands in its outline, which each run keeps
(`walk.py` says what became of them); of a notebook, a script and a batch see
`pieces.py`. The layout is the same as long as the structure is, so a live view may
ask for the graph again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from nbflow.board import pieces
from nbflow.board.layout import place
from nbflow.board.routes import HEIGHT, Point
from nbflow.board.svg import count_at, head, path
from nbflow.board.tally import Shown, Tally
from nbflow.board.walk import Walk, walk_of
from nbflow.board.words import fit, text_width
from nbflow.core.errors import UsageError
from nbflow.core.history import History
from nbflow.core.outline import MACHINE, Outline, read_outline

#: Width of a node in px: enough for its state in words, and no more than a column should have.
_NARROWEST, _WIDEST, _STEP = 184.0, 272.0, 8
#: Space beside the label, and for the counts of visits and retries.
_BESIDE, _BADGE = 26.0, 34.0


class Drawable(Protocol):
    """What a machine must have to be drawn."""

    name: str

    def outline(self) -> dict[str, Any]:
        """Return its states and arrows."""


def graph_of(
    history: History | None, machine: Drawable | None = None, *, alive: bool | None = None
) -> dict[str, Any]:
    """Return the picture of a run as plain data: nodes and edges with coordinates in px.

    Args:
        history: of the run; None for a machine that has none.
        machine: draw this definition; by default the one that the run was opened with.
        alive: whether a process is at work on the run: without one, what runs is shown as stopped.

    Raises:
        UsageError: neither a run nor a machine is given.

    >>> from nbflow.core.model import Entry, RunOpened, StepStarted, StepCompleted
    >>> started = StepStarted(step="load", name="load", step_kind="cell", signature=b"")
    >>> records = [RunOpened(run="r", workflow="nb.ipynb", workflow_kind="notebook"), started,
    ...            StepCompleted(execution=2, step="load", seconds=0.5)]
    >>> graph = graph_of(History.of(Entry(seq, 0.0, record) for seq, record in enumerate(records, 1)))
    >>> graph["kind"], [(node["label"], node["state"], node["seconds"]) for node in graph["nodes"]]
    ('notebook', [('load', 'completed', 0.5)])
    """
    if history is None or history.opened is None:
        if machine is None:
            raise UsageError("There is nothing to draw: neither a run nor a machine was given.")
        outline = read_outline(machine.outline()) or Outline()
        return _drawn(machine.name, MACHINE, None, *_machine(outline, Walk()))
    opened = history.opened
    run = opened.run
    seen = Shown(history, alive=alive)
    if opened.workflow_kind == MACHINE or machine is not None:
        recorded = machine.outline() if machine is not None else opened.launch.get(MACHINE)
        outline = read_outline(recorded) or Outline()
        return _drawn(opened.workflow, MACHINE, run, *_machine(outline, walk_of(history, outline, seen)))
    if opened.workflow_kind == "batch":
        return _drawn(opened.workflow, "batch", run, *pieces.batch(history, seen))
    kind = "notebook" if opened.workflow_kind == "notebook" else "script"
    return _drawn(opened.workflow, kind, run, *pieces.steps(history, seen))


def _machine(outline: Outline, walk: Walk) -> pieces.Pieces:
    """Return the states of a machine, those that a run visited under another version too, and its arrows."""
    labels = dict.fromkeys([*outline.states, *walk.tallies])
    nodes = [
        {
            "id": label,
            "label": label,
            "kind": outline.kinds.get(label, "plain"),
            **walk.tallies.get(label, Tally()).facts(),
            "items": walk.items.get(label),
            "current": label in walk.current,
            "initial": label == outline.initial,
            "final": label in outline.final,
        }
        for label in labels
    ]
    arrows = dict.fromkeys(outline.arrows)
    known = {(source, target) for source, target, _ in arrows}
    arrows |= {
        (source, target, "next"): None for source, target in walk.taken if (source, target) not in known
    }
    counted: set[tuple[str, str | None]] = set()
    edges = []
    for source, target, kind in arrows:
        # A way that is drawn twice (as a branch and as a way on) was taken once.
        taken = 0 if target is None or (source, target) in counted else walk.taken.get((source, target), 0)
        counted.add((source, target))
        edges.append({"source": source, "target": target, "kind": kind, "taken": taken})
    return nodes, edges


def _drawn(
    name: str, kind: str, run: str | None, nodes: Sequence[dict[str, Any]], edges: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Add to nodes and edges where they are drawn."""
    number = {node["id"]: place_ for place_, node in enumerate(nodes)}
    boxes = [_box(node["label"]) for node in nodes]
    widths = tuple(width for width, _ in boxes)
    between = tuple(
        (number[edge["source"]], None if edge["target"] is None else number[edge["target"]], edge["kind"])
        for edge in edges
    )
    first = next((number[node["id"]] for node in nodes if node["initial"]), None)
    placed = place(widths, between, first)
    return {
        "name": name,
        "kind": kind,
        "run": run,
        "width": placed.width,
        "height": placed.height,
        "nodes": [
            {**node, "text": text, "x": x, "y": y, "w": width, "h": HEIGHT}
            for node, (width, text), (x, y) in zip(nodes, boxes, placed.nodes, strict=True)
        ],
        "edges": [
            {**edge, **_strokes(points, counted=edge["kind"] != "data" and edge["taken"] > 1)}
            for edge, points in zip(edges, placed.edges, strict=True)
        ],
    }


@lru_cache(maxsize=4096)
def _strokes(points: tuple[Point, ...], *, counted: bool) -> dict[str, Any]:
    """Return how an edge is drawn: its points, its path, the corners of its head, and where its count stands."""
    return {
        "points": [list(point) for point in points],
        "d": path(points),
        "head": head(points),
        "at": list(count_at(points)) if counted and points else None,
    }


@lru_cache(maxsize=4096)
def _box(label: str) -> tuple[float, str]:
    """Return the width of a node, in steps, so that a counter does not move the whole picture; and what fits in it."""
    wanted = -(-(text_width(label) + _BESIDE + _BADGE) // _STEP) * _STEP
    width = min(_WIDEST, max(_NARROWEST, wanted))
    return width, fit(label, width - _BESIDE - _BADGE)
