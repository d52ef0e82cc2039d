"""What may start in a fan-out: order, circles, transitive skips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.fanout import Frontier, cycle, resolve


@st.composite
def graphs(draw):
    """Dependencies without a circle: an item depends on some that a shuffled order has before it."""
    count = draw(st.integers(0, 12))
    order = draw(st.permutations(range(count)))
    after = [()] * count
    for position, place in enumerate(order):
        after[place] = tuple(sorted(draw(st.sets(st.sampled_from(order[:position]))) if position else ()))
    return after


def below(after, place):
    """Everything that depends on an item, directly or not."""
    found = {place}
    while True:
        more = {other for other, each in enumerate(after) if found & set(each)} | found
        if more == found:
            return found - {place}
        found = more


@given(graphs(), st.data())
def test_an_item_is_taken_once_and_after_all_it_depends_on(after, data) -> None:
    """Whatever order the running ones end in, and whatever was done before."""
    done = data.draw(st.sets(st.sampled_from(range(len(after))))) if after else set()
    frontier = Frontier(len(after), after, done)
    completed, taken, running = set(done), [], []
    while True:
        while (place := frontier.take()) is not None:
            assert set(after[place]) <= completed
            taken.append(place)
            running.append(place)
        if not running:
            break
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        completed.add(ended)
        frontier.complete(ended)
    assert sorted(set(range(len(after))) - done) == sorted(taken)
    assert (0, 0) == (frontier.ready, frontier.blocked)


@given(graphs(), st.data())
def test_what_depends_on_a_failed_item_never_starts_and_all_else_does(after, data) -> None:
    """Skips are transitive and exact, in whatever order items end."""
    fails = data.draw(st.sets(st.sampled_from(range(len(after))))) if after else set()
    frontier = Frontier(len(after), after)
    skipped, running, ran = set(), [], set()
    while True:
        while (place := frontier.take()) is not None:
            running.append(place)
        if not running:
            break
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        ran.add(ended)
        if ended in fails:
            lost = frontier.fail(ended)
            assert sorted(lost) == lost
            skipped.update(lost)
        else:
            frontier.complete(ended)
    failed = fails & ran
    expected = set().union(*(below(after, place) for place in failed)) if failed else set()
    assert expected == skipped
    assert set(range(len(after))) == skipped | ran
    for place in skipped:
        assert frontier.causes(place, skipped | failed)


def test_without_dependencies_items_are_ready_in_input_order() -> None:
    """The first places come first, those that are done are left out."""
    frontier = Frontier(4, done=[1])
    assert [0, 2, 3, None] == [frontier.take() for _ in range(4)]
    assert [] == frontier.fail(0)
    assert () == frontier.causes(0, {1})


@given(graphs(), st.data())
def test_a_circle_is_found_and_is_one(after, data) -> None:
    """A graph without circles has none; one closed on purpose is walked from item to item."""
    assert [] == cycle(after)
    edges = [(place, other) for place in range(len(after)) for other in below(after, place) | {place}]
    if not edges:
        return
    place, other = data.draw(st.sampled_from(edges))
    closed = [tuple({*each, other}) if number == place else each for number, each in enumerate(after)]
    found = cycle(closed)
    assert len(found) >= 2
    assert found[0] == found[-1]
    assert all(following in closed[first] for first, following in zip(found, found[1:]))


def test_dependencies_are_a_mapping_or_a_callable() -> None:
    """Both say the same; a single key needs no list, and a key may be a tuple."""
    items = ["a", "b", "c"]
    assert [(), (0,), (0, 1)] == resolve(items, items, {"b": "a", "c": ["b", "a"]})
    assert [(), (0,), (0,)] == resolve(items, items, lambda item: [] if item == "a" else ["a", "a"])
    assert [(), (0,)] == resolve(items[:2], [0, 1], lambda item: 0 if item == "b" else None)
    assert [(), (0,)] == resolve(items[:2], [("x", 1), ("x", 2)], {("x", 2): ("x", 1)})


@pytest.mark.parametrize(
    ("keys", "depends_on", "named"),
    [
        (["a", "b"], {"b": ["z"]}, "'z'"),
        (["a", "b"], {"z": ["a"]}, "'z'"),
        (["a", "a"], {}, "'a'"),
        (["a", []], {}, "[]"),
        (["a", "b"], {"a": ["b"], "b": ["a"]}, "'a' → 'b' → 'a'"),
        (["a", "b"], {"a": ["a"]}, "'a' → 'a'"),
        (["a", "b"], lambda item: [9], "9"),
    ],
)
def test_what_cannot_be_ordered_is_refused_by_name(keys, depends_on, named) -> None:
    """Unknown, double and unhashable keys and circles are usage errors that say which."""
    with pytest.raises(UsageError) as caught:
        resolve(list(range(len(keys))), keys, depends_on)
    assert named in str(caught.value)
