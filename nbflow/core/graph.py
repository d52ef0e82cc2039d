"""The state graph of a machine: which states can be reached, and from which a final state can. Pure; labels only.

A handler whose next states are unknown may return any state, so it makes every
state reachable and is never a dead end: what is reported is certain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nbflow.core.state_spec import SplitTargets


@dataclass(frozen=True)
class Exits:
    """Where one state may lead: to `targets` (None: to any state) and into `splits`."""

    targets: frozenset[str] | None = None
    splits: tuple[SplitTargets, ...] = ()

    @property
    def open(self) -> bool:
        """Whether it may lead to any state."""
        return self.targets is None or any(
            split.branches is None or split.to is None for split in self.splits
        )

    def forward(self) -> set[str]:
        """Return every state that this one is known to lead to: next ones, branches and what follows joins."""
        found = set(self.targets or ())
        for split in self.splits:
            found |= split.branches or frozenset()
            if split.to is not None:
                found.add(split.to)
        return found


def reachable(graph: Mapping[str, Exits], initial: str) -> set[str]:
    """Return the states that a run may come to, `initial` among them.

    >>> sorted(reachable({"a": Exits(frozenset("b")), "b": Exits(frozenset()), "c": Exits()}, "a"))
    ['a', 'b']
    """
    seen = {initial}
    pending = [initial]
    while pending:
        exits = graph[pending.pop()]
        if exits.open:
            return set(graph)
        new = {label for label in exits.forward() if label in graph} - seen
        seen |= new
        pending.extend(new)
    return seen


def finishing(graph: Mapping[str, Exits], final: Iterable[str]) -> set[str]:
    """Return the states from which a final state may be reached, the final ones among them.

    A state inside a branch may end its branch: from there the machine goes on
    behind the join. A split is as good as what follows its join, or as a branch that finishes by itself.

    >>> sorted(finishing({"a": Exits(frozenset("b")), "b": Exits(frozenset()), "c": Exits(frozenset("c"))}, "b"))
    ['a', 'b']
    """
    back: dict[str, list[str]] = defaultdict(list)
    seen = {label for label in final if label in graph}
    for label, exits in graph.items():
        if exits.open:
            seen.add(label)
        for target in exits.forward():
            back[target].append(label)
    anywhere = _add_joins(graph, back)
    for exits in graph.values():
        for split in exits.splits:
            if split.to is None:  # whoever ends a branch of it may go on anywhere
                inside = None if split.branches is None else inner(graph, split.branches, None)
                if inside is None:
                    return set(graph)
                seen |= inside
    pending = list(seen)
    while pending:
        label = pending.pop()
        if label in anywhere:
            return set(graph)
        new = {source for source in back[label] if source not in seen}
        seen |= new
        pending.extend(new)
    return seen


def _add_joins(graph: Mapping[str, Exits], back: dict[str, list[str]]) -> set[str]:
    """Add the ways from the states inside of branches to what follows the join; return what any state may join."""
    starts: dict[str, set[str]] = defaultdict(set)
    anywhere: set[str] = set()
    for exits in graph.values():
        for split in exits.splits:
            if split.to is None:
                continue
            if split.branches is None:
                anywhere.add(split.to)
            else:
                starts[split.to] |= split.branches
    for to, begin in starts.items():
        inside = inner(graph, begin, to)
        if inside is None:
            anywhere.add(to)
        else:
            back[to].extend(inside)
    return anywhere


def inner(graph: Mapping[str, Exits], begin: Iterable[str], to: str | None) -> set[str] | None:
    """Return the states inside of branches that begin in `begin` and join in `to`; None: any state may be inside."""
    seen = {label for label in begin if label in graph}
    pending = list(seen)
    while pending:
        exits = graph[pending.pop()]
        if exits.open:
            return None
        new = {label for label in exits.forward() if label in graph and label != to} - seen
        seen |= new
        pending.extend(new)
    return seen
