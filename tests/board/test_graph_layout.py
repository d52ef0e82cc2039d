"""The layout of graphs: nothing overlaps, edges meet their nodes, and the same structure gives the same picture."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.board.layout import layers_of, place
from nbflow.board.routes import HEIGHT, PITCH

KINDS = ["next", "branch", "join", "data"]


@st.composite
def graphs(
    draw: st.DrawFn,
) -> tuple[tuple[float, ...], tuple[tuple[int, int | None, str], ...], int | None]:
    """Any graph: loops, cycles, edges to nowhere, parts without connection, long chains."""
    count = draw(st.integers(1, 30))
    widths = tuple(draw(st.sampled_from([152.0, 184.0, 264.0])) for _ in range(count))
    node = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(node, st.one_of(node, st.none()), st.sampled_from(KINDS)), max_size=50))
    if draw(st.booleans()):
        edges += [(number, number + 1, "next") for number in range(count - 1)]
    return widths, tuple(edges), draw(st.one_of(st.none(), node))


@settings(deadline=None, max_examples=80)
@given(graphs())
def test_no_two_nodes_overlap_and_edges_meet_their_nodes(graph) -> None:
    """Whatever the graph is, its nodes lie apart in the picture and each edge begins and ends at its own."""
    widths, edges, first = graph
    placed = place(widths, edges, first)
    boxes = [
        (x - w / 2, y - HEIGHT / 2, x + w / 2, y + HEIGHT / 2)
        for (x, y), w in zip(placed.nodes, widths, strict=True)
    ]
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left
        assert right <= placed.width
        assert 0 <= top
        assert bottom <= placed.height
        for other in boxes[:number]:
            apart = left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom
            assert apart
    for (source, target, _), points in zip(edges, placed.edges, strict=True):
        for node, (x, y) in ((source, points[0]), (target, points[-1])):
            if node is not None:
                left, top, right, bottom = boxes[node]
                assert left - 0.2 <= x <= right + 0.2
                assert top - 0.2 <= y <= bottom + 0.2
        assert all(-1 <= x <= placed.width + 1 and -1 <= y <= placed.height + 1 for x, y in points)


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_layers_descend_along_all_edges_but_those_that_lead_back(graph) -> None:
    """What comes after stands below; only what leads back to an earlier state goes up."""
    widths, edges, first = graph
    known = [(source, target) for source, target, _ in edges if target is not None]
    layer, back = layers_of(range(len(widths)), known, first)
    assert all(
        layer[source] < layer[target]
        for source, target in known
        if source != target and (source, target) not in back
    )


def test_the_same_structure_is_not_laid_out_again() -> None:
    """While a run goes on its picture stays where it is, and costs a look into a cache."""
    edges = tuple((number, number + 1, "next") for number in range(39))
    assert place((152.0,) * 40, edges, 0) is place((152.0,) * 40, edges, 0)


def test_a_long_chain_is_folded_into_columns() -> None:
    """Forty cells are neither a tower nor a ribbon."""
    placed = place((152.0,) * 40, tuple((number, number + 1, "next") for number in range(39)), 0)
    assert len({x for x, _ in placed.nodes}) > 2
    assert 0.4 < placed.height / placed.width < 2.5
    short = place((152.0,) * 5, tuple((number, number + 1, "next") for number in range(4)), 0)
    assert len({x for x, _ in short.nodes}) == 1
    assert short.nodes[1][1] - short.nodes[0][1] == PITCH


def test_the_picture_does_not_depend_on_the_hash_seed() -> None:
    """Two processes draw one graph alike, so that a record and its live view agree."""
    code = (
        "from nbflow.board.layout import place;"
        "edges = tuple((n, (n * 7 + 3) % 40, 'next') for n in range(40)) + tuple((n, n // 2, 'branch') for n in range(40));"
        "print(place((152.0,) * 40, edges, 0))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_small_graphs_are_drawn(count: int) -> None:
    """Nothing, or one node without any edge, is a picture too."""
    assert len(place((152.0,) * count, (), None).nodes) == count
