"""The points that an edge goes through on its way around the nodes. Pure.

Nodes stand in rows of one height, in columns of rows (a long graph is folded
into several). The gaps between rows are free of nodes from left to right, and
so are the gutters between columns: an edge that the layers do not route goes
out of its node into the gap, along it to a gutter, along that to the gap above
its target, and in. Edges that share a gap or a gutter take lanes beside each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Point = tuple[float, float]

#: Height of a node, and from the top of one row to the top of the next, in px.
HEIGHT, PITCH = 52.0, 98.0
#: Between two nodes of a row, and between two columns.
GAP, GUTTER = 32.0, 56.0
#: How far a loop of a state into itself reaches out of its node.
LOOP = 30.0
#: Around the picture.
MARGIN = 16.0

_LANES, _LANE = 5, 5.0
_PORT = 14.0


@dataclass(frozen=True)
class Box:
    """Where a node stands: its centre and size in px, its column and row."""

    x: float
    y: float
    width: float
    column: int = 0
    row: int = 0

    @property
    def top(self) -> float:
        """Its upper edge."""
        return self.y - HEIGHT / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + HEIGHT / 2


@dataclass
class Ports:
    """Where edges leave and enter nodes: side by side, in the order of where they come from and go to."""

    _wanted: dict[tuple[int, bool], list[tuple[float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _found: dict[tuple[int, bool, int], float] = field(default_factory=dict)

    def want(self, node: int, edge: int, towards: float, *, bottom: bool) -> None:
        """Ask for a place for an edge that comes from or goes to `towards` (px)."""
        self._wanted[node, bottom].append((towards, edge))

    def settle(self, widths: Iterable[float]) -> None:
        """Give all that were wanted a place."""
        width_of = list(widths)
        for (node, bottom), wanted in self._wanted.items():
            room = min(_PORT, (width_of[node] - 24) / len(wanted))
            for place, (_, edge) in enumerate(sorted(wanted)):
                self._found[node, bottom, edge] = (place - (len(wanted) - 1) / 2) * room

    def at(self, node: int, edge: int, *, bottom: bool) -> float:
        """Return how far from the middle of the node the edge touches it."""
        return self._found.get((node, bottom, edge), 0.0)


class Lanes:
    """Gives edges that share a gap or a gutter places beside each other."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, int], int] = defaultdict(int)

    def next(self, what: str, number: int) -> float:
        """Return how far from the middle of gap or gutter `number` the next edge runs."""
        lane = self._taken[what, number]
        self._taken[what, number] = lane + 1
        # From the middle outwards: 0, 1, -1, 2, -2, and again.
        step = (lane % _LANES + 1) // 2
        return step * _LANE * (1 if lane % 2 else -1)


def around(
    source: Box,
    target: Box,
    out: float,
    into: float,
    lefts: Mapping[int, float],
    rights: Mapping[int, float],
    lanes: Lanes,
) -> list[Point]:
    """Return the way through gaps and gutters; `lefts` and `rights` are the edges of the columns in px."""
    if target.column > source.column:
        gutter = lefts[target.column] - GUTTER / 2 + lanes.next("gutter", target.column)
    else:
        gutter = rights[target.column] + GUTTER / 2 + lanes.next("gutter", target.column + 1)
    below = source.bottom + (PITCH - HEIGHT) / 2 + lanes.next("gap", source.row + 1)
    above = target.top - (PITCH - HEIGHT) / 2 + lanes.next("gap", target.row)
    start, end = source.x + out, target.x + into
    if target.row == source.row + 1 and target.column == source.column:
        return [(start, source.bottom), (end, target.top)]
    return [
        (start, source.bottom),
        (start, below),
        (gutter, below),
        (gutter, above),
        (end, above),
        (end, target.top),
    ]


def loop(box: Box) -> list[Point]:
    """Return the way of a state into itself, on its right side."""
    right = box.x + box.width / 2
    return [
        (right, box.y - 11),
        (right + LOOP - 8, box.y - 11),
        (right + LOOP - 8, box.y + 11),
        (right, box.y + 11),
    ]


def stub(box: Box) -> list[Point]:
    """Return the beginning of a way that may lead anywhere."""
    x = box.x + box.width / 2 - 14
    return [(x, box.bottom), (x, box.bottom + 18)]
