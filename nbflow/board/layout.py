"""Where the nodes of a graph stand and how its edges run: layers from top to bottom. Pure but for igraph.

The order within layers and the x coordinates are igraph's (Sugiyama's method,
with Brandes and Köpf's placement); it knows no widths, so its columns are
spread afterwards by what stands in them. Layers follow the order of the
definition: what leads back to a state that comes before goes up. A long graph is
folded into columns of layers, like text. The same structure gives the same
picture, from a cache: while a run goes on nothing is laid out again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from nbflow.board.routes import (
    GAP,
    GUTTER,
    HEIGHT,
    LOOP,
    MARGIN,
    PITCH,
    Box,
    Lanes,
    Point,
    Ports,
    around,
    loop,
    stub,
)

#: An edge as the layers see it: from the higher node to the lower one, and whether it is drawn upwards.
_Way = tuple[int, int, bool]

#: Kinds of edges that say what comes after what; the others are drawn into the picture that these make.
_FLOW = frozenset({"next", "branch", "join"})

#: Layers from which on a graph is folded, and how much wider than high it may become.
_LONG, _ASPECT = 9, 1.3
#: Nodes of a layer, on average, up to which a long graph is folded; a wide one is looked at piece by piece anyhow.
_SLIM = 2.5
#: Width of an edge that passes through a layer, and of a row of unconnected parts.
_PASSING, _SHELF = 20.0, 1200.0
_MAX_COLUMNS = 8


@dataclass(frozen=True)
class Placed:
    """A laid out graph in px: size, the centre of each node, the points of each edge, in the order given."""

    width: float
    height: float
    nodes: tuple[Point, ...]
    edges: tuple[tuple[Point, ...], ...]


@lru_cache(maxsize=256)
def place(
    widths: tuple[float, ...], edges: tuple[tuple[int, int | None, str], ...], first: int | None = None
) -> Placed:
    """Lay a graph out: node widths in px, edges (source, target, kind) between their numbers, the first node.

    A target of None is drawn as a stub that leads nowhere. Edges of kind "data" do not move nodes.

    >>> place((100.0, 100.0), ((0, 1, "next"),)).nodes
    ((66.0, 65.0), (66.0, 163.0))
    """
    boxes: list[Box] = [Box(0, 0, width) for width in widths]
    paths: list[list[Point]] = [[] for _ in edges]
    looped = {source for source, target, _ in edges if source == target}
    right = below = left = 0.0
    shelf = 0.0
    parts = _parts(len(widths), edges)
    for part in parts:
        width, height = _lay_out(part, widths, edges, first, looped, boxes, paths)
        if left and left + width > _SHELF:
            left, below, shelf = 0.0, below + shelf + GAP, 0.0
        _move(part, edges, boxes, paths, left + MARGIN, below + MARGIN)
        left, shelf = left + width + GAP, max(shelf, height)
        right = max(right, left - GAP)
    return Placed(
        round(right + 2 * MARGIN, 1),
        round(below + shelf + 2 * MARGIN, 1),
        tuple((round(box.x, 1), round(box.y, 1)) for box in boxes),
        tuple(tuple((round(x, 1), round(y, 1)) for x, y in path) for path in paths),
    )


def _parts(count: int, edges: Iterable[tuple[int, int | None, str]]) -> list[list[int]]:
    """Return the connected parts, in the order of their first nodes."""
    root = list(range(count))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for source, target, _ in edges:
        if target is not None:
            one, other = sorted((find(source), find(target)))
            root[other] = one
    found: dict[int, list[int]] = {}
    for node in range(count):
        found.setdefault(find(node), []).append(node)
    return list(found.values())


def _move(
    part: Sequence[int],
    edges: Sequence[tuple[int, int | None, str]],
    boxes: list[Box],
    paths: list[list[Point]],
    right: float,
    down: float,
) -> None:
    inside = set(part)
    for node in part:
        box = boxes[node]
        boxes[node] = Box(box.x + right, box.y + down, box.width, box.column, box.row)
    for number, (source, _, _) in enumerate(edges):
        if source in inside:
            paths[number] = [(x + right, y + down) for x, y in paths[number]]


# --- layers -------------------------------------------------------------------------------------------------------


def layers_of(
    nodes: Sequence[int], edges: Iterable[tuple[int, int]], first: int | None
) -> tuple[dict[int, int], set[tuple[int, int]]]:
    """Return the layer of each node, from 0, and the edges that lead back.

    >>> layers_of([0, 1, 2], [(0, 1), (1, 2), (2, 0)], 0)
    ({0: 0, 1: 1, 2: 2}, {(2, 0)})
    """
    after: dict[int, list[int]] = defaultdict(list)
    before: dict[int, list[int]] = defaultdict(list)
    for source, target in dict.fromkeys(edges):
        if source != target:
            after[source].append(target)
            before[target].append(source)
    starts = [first] if first is not None and first in set(nodes) else []
    starts += [node for node in nodes if not before[node]]
    back, order = _depth_first([*starts, *nodes], after)
    layer = dict.fromkeys(nodes, 0)
    for node in reversed(order):
        for target in after[node]:
            if (node, target) not in back:
                layer[target] = max(layer[target], layer[node] + 1)
    for node in order:  # what nothing leads to stands directly above what it leads to
        forward = [layer[target] for target in after[node] if (node, target) not in back]
        if not any((source, node) not in back for source in before[node]) and forward and node != first:
            layer[node] = min(forward) - 1
    return layer, back


def _depth_first(
    starts: Iterable[int], after: dict[int, list[int]]
) -> tuple[set[tuple[int, int]], list[int]]:
    """Walk from the starts; return the edges back to where the walk came from, and the nodes as they were left."""
    back: set[tuple[int, int]] = set()
    left: list[int] = []
    state: dict[int, int] = {}  # 1: on the way, 2: left
    for start in starts:
        if start in state:
            continue
        state[start] = 1
        walk = [(start, iter(after[start]))]
        while walk:
            node, targets = walk[-1]
            for target in targets:
                if target not in state:
                    state[target] = 1
                    walk.append((target, iter(after[target])))
                    break
                if state[target] == 1:
                    back.add((node, target))
            else:
                state[node] = 2
                left.append(node)
                walk.pop()
    return back, left


# --- one connected part -------------------------------------------------------------------------------------------


def _lay_out(
    part: list[int],
    widths: Sequence[float],
    edges: Sequence[tuple[int, int | None, str]],
    first: int | None,
    looped: set[int],
    boxes: list[Box],
    paths: list[list[Point]],
) -> tuple[float, float]:
    """Place the nodes and edges of one part at the origin; return its width and height."""
    inside = set(part)
    flow = [
        (source, target)
        for source, target, kind in edges
        if source in inside and target is not None and target != source and kind in _FLOW
    ]
    layer, back = layers_of(part, flow, first)
    rows = max(layer.values()) + 1
    per_column = _rows_per_column(part, widths, layer, rows)
    columns = math.ceil(rows / per_column)
    down = dict.fromkeys((t, s, True) if (s, t) in back else (s, t, False) for s, t in flow)
    passing: dict[_Way, list[float]] = {}
    lefts: dict[int, float] = {}
    rights: dict[int, float] = {}
    cursor = 0.0
    for column in range(columns):
        mine = [node for node in part if layer[node] // per_column == column]
        here = set(mine)
        placed, through = _column(
            mine, widths, layer, [way for way in down if way[0] in here and way[1] in here], looped
        )
        low = min((placed[node] - widths[node] / 2 for node in mine), default=0.0)
        low = min([low, *(x - _PASSING / 2 for xs in through.values() for x in xs)])
        high = max(
            (placed[node] + widths[node] / 2 + (LOOP if node in looped else 0) for node in mine), default=0.0
        )
        high = max([high, *(x + _PASSING / 2 for xs in through.values() for x in xs)])
        for node in mine:
            row = layer[node] % per_column
            y = row * PITCH + PITCH / 2
            boxes[node] = Box(placed[node] - low + cursor, y, widths[node], column, row)
        for way, xs in through.items():
            passing[way] = [x - low + cursor for x in xs]
        lefts[column], rights[column] = cursor, cursor + high - low
        cursor += high - low + GUTTER
    crowded = _route(part, edges, boxes, paths, passing, lefts, rights)
    return cursor - GUTTER + (GUTTER if crowded else 0.0), min(rows, per_column) * PITCH


def _rows_per_column(part: Sequence[int], widths: Sequence[float], layer: dict[int, int], rows: int) -> int:
    """Return how many layers stand below each other: all, unless that is a long way to scroll."""
    if rows < _LONG or len(part) > _SLIM * rows:
        return rows
    row_widths: dict[int, float] = defaultdict(float)
    for node in part:
        row_widths[layer[node]] += widths[node] + GAP
    width = max(row_widths.values()) + GUTTER
    columns = min(_MAX_COLUMNS, max(1, round(math.sqrt(_ASPECT * rows * PITCH / width))))
    return math.ceil(rows / columns)


def _column(
    nodes: Sequence[int],
    widths: Sequence[float],
    layer: dict[int, int],
    down: Sequence[_Way],
    looped: set[int],
) -> tuple[dict[int, float], dict[_Way, list[float]]]:
    """Return the x of each node, and those of each edge in the layers that it passes through."""
    if len(nodes) == 1:
        return {nodes[0]: 0.0}, {}
    index = {node: number for number, node in enumerate(nodes)}
    levels = [layer[node] for node in nodes]
    reach = [(widths[node] / 2, widths[node] / 2 + (LOOP if node in looped else 0)) for node in nodes]
    links: list[tuple[int, int]] = []
    dummies: dict[_Way, range] = {}
    for source, target, up in down:
        last = index[source]
        begin = len(levels)
        for level in range(layer[source] + 1, layer[target]):
            levels.append(level)
            reach.append((_PASSING / 2, _PASSING / 2))
            links.append((last, len(levels) - 1))
            last = len(levels) - 1
        links.append((last, index[target]))
        dummies[source, target, up] = range(begin, len(levels))
    import igraph

    graph = igraph.Graph(n=len(levels), edges=links, directed=True)
    lowest = min(levels)
    found = graph.layout_sugiyama(layers=[level - lowest for level in levels], hgap=1, vgap=1, maxiter=40)
    xs = _spread([round(x * 8) for x, _ in found.coords[: len(levels)]], levels, reach)
    return (
        {node: xs[number] for node, number in index.items()},
        {way: [xs[number] for number in numbers] for way, numbers in dummies.items()},
    )


def _spread(slots: Sequence[int], levels: Sequence[int], reach: Sequence[tuple[float, float]]) -> list[float]:
    """Give each of igraph's columns its place in px, so that nothing in one layer overlaps and columns stay straight.

    Pushed together once to the left and once to the right; the middle between both is as free of overlaps.
    """
    known = sorted(set(slots))
    rank = {slot: number for number, slot in enumerate(known)}
    by_level: dict[int, list[int]] = defaultdict(list)
    for number, level in enumerate(levels):
        by_level[level].append(number)
    apart: dict[tuple[int, int], float] = {}
    for members in by_level.values():
        members.sort(key=lambda number: slots[number])
        for one, other in pairwise(members):
            pair = (rank[slots[one]], rank[slots[other]])
            apart[pair] = max(apart.get(pair, 0.0), reach[one][1] + reach[other][0] + GAP)
    into: dict[int, list[tuple[int, float]]] = defaultdict(list)
    out: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (low, high), distance in apart.items():
        into[high].append((low, distance))
        out[low].append((high, distance))
    left = [0.0] * len(known)
    for number in range(1, len(known)):
        left[number] = max([left[number - 1], *(left[low] + distance for low, distance in into[number])])
    right = [left[-1]] * len(known)
    for number in range(len(known) - 2, -1, -1):
        right[number] = min([right[number + 1], *(right[high] - distance for high, distance in out[number])])
    middle = [(one + other) / 2 for one, other in zip(left, right, strict=True)]
    return [middle[rank[slot]] for slot in slots]


def _route(
    part: Sequence[int],
    edges: Sequence[tuple[int, int | None, str]],
    boxes: Sequence[Box],
    paths: list[list[Point]],
    passing: dict[_Way, list[float]],
    lefts: dict[int, float],
    rights: dict[int, float],
) -> bool:
    """Find the way of each edge; tell whether one runs to the right of the last column."""
    inside = set(part)
    mine = [(number, *edge) for number, edge in enumerate(edges) if edge[0] in inside]
    ports, lanes = Ports(), Lanes()
    crowded = False
    for number, source, target, kind in mine:
        if target is None or target == source:
            continue
        up = kind in _FLOW and (target, source, True) in passing
        xs = passing.get((target, source, True) if up else (source, target, False), [])
        ordered = xs[::-1] if up else xs
        ports.want(source, number, ordered[0] if ordered else boxes[target].x, bottom=not up)
        ports.want(target, number, ordered[-1] if ordered else boxes[source].x, bottom=up)
    ports.settle(box.width for box in boxes)
    for number, source, target, kind in mine:
        if target is None:
            paths[number] = stub(boxes[source])
        elif target == source:
            paths[number] = loop(boxes[source])
        elif kind in _FLOW and ((source, target, False) in passing or (target, source, True) in passing):
            up = (target, source, True) in passing
            high, low = (target, source) if up else (source, target)
            start = boxes[high].x + ports.at(high, number, bottom=True)
            end = boxes[low].x + ports.at(low, number, bottom=False)
            way: list[Point] = [(start, boxes[high].bottom)]
            for step, x in enumerate(passing[high, low, up], start=1):
                y = boxes[high].y + step * PITCH
                way += [(x, y - HEIGHT / 2), (x, y + HEIGHT / 2)]
            way.append((end, boxes[low].top))
            paths[number] = way[::-1] if up else way
        else:
            one, other = boxes[source], boxes[target]
            crowded = crowded or (other.column >= one.column and other.column == max(lefts))
            out, into = ports.at(source, number, bottom=True), ports.at(target, number, bottom=False)
            paths[number] = around(one, other, out, into, lefts, rights, lanes)
    return crowded
