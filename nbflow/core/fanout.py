"""Which items of a fan-out may start, and which never can. Pure: no threads, no clock, no journal.

Items are known by their place in the input, from 0. `resolve` turns what people
write (keys that depend on keys) into places, and refuses what cannot be
ordered; a `Frontier` then says what is ready next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from nbflow.core.errors import UsageError

#: What people may write for `depends_on`.
DependsOn = Mapping[Any, Any] | Callable[[Any], Any]

#: How many names an error lists.
_NAMED = 5


def resolve(items: Sequence[Any], keys: Sequence[Hashable], depends_on: DependsOn) -> list[tuple[int, ...]]:
    """Return for each item the places of those it depends on, in ascending order.

    `depends_on` is a mapping from a key to the key or keys it depends on, or a
    callable that is given the item and returns them.

    Raises:
        UsageError: a key that no item has or that two have, or a cycle; named.

    >>> resolve(["a", "b"], ["a", "b"], {"b": ["a"]})
    [(), (0,)]
    """
    places = _places(keys)
    if isinstance(depends_on, Mapping):
        _known(depends_on, places, "depends_on speaks of")
        wanted = [depends_on.get(key, ()) for key in keys]
    elif callable(depends_on):
        wanted = [depends_on(item) for item in items]
    else:
        raise UsageError(f"depends_on is a mapping of keys, or a function of an item, not {depends_on!r}.")
    after = []
    for key, found in zip(keys, wanted, strict=True):
        listed = _listed(found, places)
        _known(listed, places, f"Item {key!r} depends on")
        after.append(tuple(sorted({places[each] for each in listed})))
    circle = cycle(after)
    if circle:
        raise UsageError(
            f"Items depend on each other in a circle: {' → '.join(repr(keys[place]) for place in circle)}.",
            hint="Nothing was run; take one of these dependencies out.",
        )
    return after


def _places(keys: Sequence[Hashable]) -> dict[Hashable, int]:
    places: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        try:
            first = places.setdefault(key, place)
        except TypeError:
            raise UsageError(f"The key {key!r} of item {place} cannot be hashed.") from None
        if first != place:
            raise UsageError(
                f"Items {first} and {place} have the same key {key!r}.",
                hint="Give `key=` a function that tells the items apart, or leave it out for their places.",
            )
    return places


def _known(named: Iterable[Any], places: Mapping[Hashable, int], beginning: str) -> None:
    unknown = [each for each in named if each not in places]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise UsageError(
            f"{beginning} {', '.join(map(repr, unknown[:_NAMED]))}{more}: no item has such a key.",
            hint="Nothing was run. Keys are what `key=` returns for an item, by default its place from 0.",
        )


def _listed(found: Any, places: Mapping[Hashable, int]) -> Collection[Any]:
    """Return what one item depends on as a collection; a single key may be given as it is."""
    if found is None:
        return ()
    if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
        return (found,)
    if isinstance(found, tuple) and found in places:
        return (found,)
    return tuple(found)


def cycle(after: Sequence[Collection[int]]) -> list[int]:
    """Return the places of one circle, the first one again at its end; [] when there is none.

    >>> cycle([(1,), (0,)]), cycle([(), (0,)])
    ([0, 1, 0], [])
    """
    frontier = Frontier(len(after), after)
    left = set(range(len(after)))
    while (place := frontier.take()) is not None:
        left.discard(place)
        frontier.complete(place)
    if not left:
        return []
    # Everything that is left waits for something that is left: follow that until a place comes again.
    walked: list[int] = []
    place = min(left)
    while place not in walked:
        walked.append(place)
        place = min(each for each in after[place] if each in left)
    return [*walked[walked.index(place) :], place]


class Frontier:
    """What is ready: items that were not taken yet and depend on nothing that is still open.

    The lowest place comes first.

    >>> frontier = Frontier(2, [(1,), ()])
    >>> frontier.take(), frontier.take()
    (1, None)
    >>> frontier.complete(1)
    >>> frontier.take()
    0
    """

    def __init__(
        self, count: int, after: Sequence[Collection[int]] | None = None, done: Collection[int] = ()
    ) -> None:
        self._after = after
        self._before: dict[int, list[int]] = {}
        self._open: dict[int, int] = {}
        finished = frozenset(done)
        if after is None:
            self._ready = [place for place in range(count) if place not in finished]
            return
        self._ready = []
        for place in range(count):
            if place in finished:
                continue
            missing = [each for each in after[place] if each not in finished]
            if not missing:
                self._ready.append(place)
                continue
            self._open[place] = len(missing)
            for each in missing:
                self._before.setdefault(each, []).append(place)

    @property
    def ready(self) -> int:
        """How many items could be taken now."""
        return len(self._ready)

    @property
    def blocked(self) -> int:
        """How many items wait for others."""
        return len(self._open)

    def take(self) -> int | None:
        """Take the first item that is ready; None when there is none."""
        return heapq.heappop(self._ready) if self._ready else None

    def complete(self, place: int) -> None:
        """An item is done: those that only waited for it become ready."""
        for following in self._before.pop(place, ()):
            if following not in self._open:
                continue  # skipped for another reason
            self._open[following] -= 1
            if not self._open[following]:
                del self._open[following]
                heapq.heappush(self._ready, following)

    def fail(self, place: int) -> list[int]:
        """An item will never be done: return those that can never start, directly or not, in ascending order."""
        lost: set[int] = set()
        spreading = [place]
        while spreading:
            for following in self._before.pop(spreading.pop(), ()):
                if self._open.pop(following, None) is not None:
                    lost.add(following)
                    spreading.append(following)
        return sorted(lost)

    def causes(self, place: int, lost: Collection[int]) -> tuple[int, ...]:
        """Return those of `lost` that an item directly depends on."""
        return () if self._after is None else tuple(each for each in self._after[place] if each in lost)
