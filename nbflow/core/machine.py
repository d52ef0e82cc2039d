"""The definition of a state machine and its check before anything runs. Pure: the runner acts on what stands here.

What tasks return (`Split`, `Continue`, …) and the record of a state have files of
their own; this one gathers the names that the runner needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal

from nbflow.core.errors import InvalidMachine, UsageError
from nbflow.core.graph import Exits, finishing, inner, reachable
from nbflow.core.labels import Labels, foreign
from nbflow.core.outcomes import Again, Branch, Continue, Split
from nbflow.core.state_spec import KINDS, Kind, SplitTargets, StateSpec, at

__all__ = [
    "KINDS",
    "Again",
    "Branch",
    "Continue",
    "Definition",
    "Edge",
    "Kind",
    "Split",
    "SplitTargets",
    "StateSpec",
]


@dataclass(frozen=True)
class Edge:
    """An arrow of the drawn machine; `target` None (kind "any") means that the state may lead to any other."""

    source: str
    target: str | None
    kind: Literal["next", "branch", "join", "any"]


class Definition:
    """A state machine: its states, where it begins and ends, and how each state was defined.

    `states` is an Enum class or a list of strings, `initial` and `final` are
    given as the user writes states and kept as labels. Only `add` changes a
    definition; what is wrong with it is collected, and `validate` raises all of
    it in one error.

    Raises:
        UsageError: the states are no Enum class (or a Flag) and no strings, or the name or version makes no sense.

    >>> machine = Definition("night", ["sleep", "wake"], initial="sleep", final={"wake"})
    >>> machine.add(StateSpec("sleep", handler=print, targets=frozenset({"wake"})))
    >>> machine.problems(), machine.edges()
    ([], [Edge(source='sleep', target='wake', kind='next')])
    """

    def __init__(
        self,
        name: str,
        states: type[Enum] | Iterable[str],
        initial: object = None,
        final: object = (),
        version: int | str | None = None,
    ) -> None:
        text: object = name  # callers are not all type-checked
        if not isinstance(text, str) or not text or not text.isprintable():
            raise UsageError(f"The name of a machine must be a printable text, not {text!r}.")
        number: object = version
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, str))):
            raise UsageError(f"The version of machine {name!r} must be a number or a text, not {number!r}.")
        self.name = name
        self.version = version
        self._labels = Labels(name, states)
        self.states = states if isinstance(states, type) else tuple(map(self._labels.member, self._labels))
        self._initial = initial
        #: The label of the state in which a run begins; None where there is no such state, which is a problem.
        self.initial = None if initial is None else self._labels.find(initial)
        # A single state is meant as itself, and never letter by letter.
        if isinstance(final, (str, Enum)) or not isinstance(final, Iterable):
            final = () if final is None else (final,)
        self._final = tuple(final)
        self.final = frozenset(label for label in map(self._labels.find, self._final) if label is not None)
        self._specs: dict[str, StateSpec] = {}
        self._twice: dict[str, list[StateSpec]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all states, in the order in which they were defined."""
        return tuple(self._labels)

    @property
    def specs(self) -> Mapping[str, StateSpec]:
        """How states were defined, by label; of two handlers for one state the first."""
        return MappingProxyType(self._specs)

    def add(self, spec: StateSpec) -> None:
        """Define a state; a second handler for it is a problem, the same one again (its cell was rerun) is not."""
        first = self._specs.get(spec.label)
        if first is None or _is_again(first, spec):
            self._specs[spec.label] = spec
            return
        others = self._twice.setdefault(spec.label, [])
        others[:] = [other for other in others if not _is_again(other, spec)]
        others.append(spec)

    def find(self, value: object) -> str | None:
        """Return the label of a state, or None: what `targets.infer` takes as `label_of`."""
        return self._labels.find(value)

    def label(self, value: object) -> str:
        """Return the label of a state given as a member, a label or (where that is unambiguous) a member's value.

        Raises:
            UnknownState: the machine has no such state.
        """
        found = self._labels.find(value)
        if found is None:
            raise self._labels.unknown(value)
        return found

    def member(self, label: str) -> Any:
        """Return the state of this label as the user defined it: the Enum member or the string.

        Raises:
            UnknownState: the machine has no such state.
        """
        return self._labels.member(label)

    def validate(self) -> None:
        """Check the whole definition.

        Raises:
            InvalidMachine: with all problems, one a line in its message.
        """
        problems = self.problems()
        if not problems:
            return
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise InvalidMachine(
            f"Machine {self.name!r} has {count}, and nothing was run:{lines}",
            machine=self.name,
            problems=tuple(problems),
        )

    def problems(self) -> list[str]:
        """Return all that is wrong, each with what to do: the machine first, then its states in their order."""
        if not self._labels:
            return ["The machine has no states. Give an Enum class with members, or a list of strings."]
        found = [
            f"State {label!r} is listed twice among the states. Remove one of them."
            for label in self._labels.repeated
        ]
        found += self._problems_of_ends()
        found += [
            f"State {label!r}{at(spec)} is defined, but is an unknown state: it is not among the machine's states. "
            f"{self._labels.guess(label) or 'Add it to the states, or remove its handler.'}"
            for label, spec in self._specs.items()
            if label not in self._labels
        ]
        graph = self._graph()
        reached = reachable(graph, self.initial) if self.initial else set(graph)
        ending = finishing(graph, self.final) if self.final else set(graph)
        for label in self._labels:
            found += self._problems_of(label)
            if label not in reached:
                found.append(
                    f"State {label!r} is unreachable: no way leads there from {self.initial!r}. "
                    "Return it from another state, or remove it."
                )
            if label not in ending:
                found.append(self._dead_end(label))
        return found

    def edges(self) -> list[Edge]:
        """Return the arrows to draw, in the order of the states; each once, a way into a join as "join" only."""
        joins = self._joins()
        edges: dict[Edge, None] = {}
        for label in self._labels:
            exits = self._exits(label)
            into = joins.get(label, set())
            for target in self._sorted(exits.targets or ()):
                edges[Edge(label, target, "join" if target in into else "next")] = None
            for split in exits.splits:
                for target in self._sorted(split.branches or ()):
                    edges[Edge(label, target, "branch")] = None
                if split.branches is None and split.to in self._labels:
                    edges[Edge(label, split.to, "join")] = None
            if not exits.targets and not exits.splits:
                for target in self._sorted(into):
                    edges[Edge(label, target, "join")] = None
            if exits.open and label in self._specs:
                edges[Edge(label, None, "any")] = None
        return list(edges)

    def _joins(self) -> dict[str, set[str]]:
        """Return for each state inside of a branch where the branch joins."""
        graph = self._graph()
        joins: dict[str, set[str]] = {}
        for exits in graph.values():
            for split in exits.splits:
                if split.to not in graph or split.branches is None:
                    continue
                # Where a branch may go anywhere, only its beginning is known to be inside.
                inside = inner(graph, split.branches, split.to)
                for label in split.branches if inside is None else inside:
                    joins.setdefault(label, set()).add(split.to)
        return joins

    def _sorted(self, targets: Iterable[str]) -> Iterator[str]:
        return iter(sorted((label for label in targets if label in self._labels), key=self._labels.place))

    def _definitions(self, label: str) -> list[StateSpec]:
        return [self._specs[label], *self._twice.get(label, ())] if label in self._specs else []

    def _exits(self, label: str) -> Exits:
        """Return where a state leads; what is a problem by itself (no handler, unknown states) leads anywhere."""
        specs = self._definitions(label)
        if label in self.final and not specs:
            return Exits(frozenset())
        if not specs or any(spec.targets is None for spec in specs):
            targets = None
        else:
            targets = frozenset().union(*(spec.targets or () for spec in specs))
            if any(target not in self._labels for target in targets):
                targets = None
        splits = []
        for split in (split for spec in specs for split in spec.splits):
            known = split.branches is not None and all(branch in self._labels for branch in split.branches)
            to = split.to if split.joined and split.to in self._labels else None
            splits.append(SplitTargets(split.branches if known else None, to, split.joined))
        return Exits(targets, tuple(splits))

    def _graph(self) -> dict[str, Exits]:
        return {label: self._exits(label) for label in self._labels}

    def _problems_of_ends(self) -> list[str]:
        """Check where the machine begins and ends."""
        found = []
        if self._initial is None:
            found.append("The machine has no initial state. Give initial=.")
        elif self.initial is None:
            text = foreign(self._initial)
            hint = self._labels.guess(text) or "Give one of the machine's states."
            found.append(f"The initial state {text!r} is an unknown state. {hint}")
        if not self._final:
            found.append("The machine has no final state, so it would never end. Give final={...}.")
        for value in self._final_in_order():
            text = foreign(value)
            hint = self._labels.guess(text) or "Give one of the machine's states."
            found.append(f"The final state {text!r} is an unknown state. {hint}")
        return found

    def _final_in_order(self) -> list[object]:
        """Return the unknown final states in an order that does not change with the hash seed."""
        return sorted((value for value in self._final if self._labels.find(value) is None), key=foreign)

    def _problems_of(self, label: str) -> list[str]:
        """Check one state by itself."""
        specs = self._definitions(label)
        if label in self.final:
            return [
                f"State {label!r}{at(spec)} is a final state with a handler, which would never run. "
                "Remove the handler, or take the state out of final=."
                for spec in specs[:1]
            ]
        if not specs:
            return [
                f"State {label!r} has no handler. Define one with @machine.state(...), or remove the state."
            ]
        found = []
        if len(specs) > 1:
            lines = ", ".join(spec.line or "somewhere" for spec in specs)
            found.append(f"State {label!r} has {_number(len(specs))} handlers ({lines}). Keep one of them.")
        for spec in specs:
            found += spec.problems()
            found += self._unknown_targets(spec)
        return found

    def _unknown_targets(self, spec: StateSpec) -> list[str]:
        where = f"State {spec.label!r}{at(spec)}"
        found = [
            f"{where} leads to the unknown target {target!r}. {self._labels.guess(target) or _ADD}"
            for target in sorted(spec.targets or ())
            if target not in self._labels
        ]
        for split in spec.splits:
            found += [
                f"{where} splits into the unknown target {branch!r}. {self._labels.guess(branch) or _ADD}"
                for branch in sorted(split.branches or ())
                if branch not in self._labels
            ]
            if not split.joined:
                found.append(f"{where} splits into a join without target. Give Split(..., to=STATE).")
            elif split.to is not None and split.to not in self._labels:
                guess = self._labels.guess(split.to) or _ADD
                found.append(f"{where} joins its branches in the unknown target {split.to!r}. {guess}")
        return list(dict.fromkeys(found))

    def _dead_end(self, label: str) -> str:
        exits = self._exits(label)
        where = f"State {label!r}{at(self._specs[label])}"
        onward = exits.forward() - {label}
        if not onward:
            loop = " but to itself" if exits.forward() else ""
            return f"{where} is a dead end: it leads nowhere{loop}. Return the next state, or make this one final."
        return (
            f"{where} is a dead end: no final state can be reached from it, only "
            f"{', '.join(map(repr, self._sorted(onward)))}. Add a way out of there."
        )


_ADD = "Add it to the states, or return another."


def _number(count: int) -> str:
    return {2: "two", 3: "three"}.get(count, str(count))


def _is_again(old: StateSpec, new: StateSpec) -> bool:
    """Tell whether a definition is an old one made again: its cell was rerun, with or without an edit.

    It has the same name then, and stands in the same line or, as each edit of a
    cell makes a new file of it, in another file. Two functions of one name at
    two places of one file are a mistake.
    """
    if old.handler is new.handler:
        return True
    if not old.line or not new.line or _identity(old.handler) != _identity(new.handler):
        return False
    if old.line == new.line:
        return True
    return old.line.rpartition(":")[0] != new.line.rpartition(":")[0]


def _identity(handler: object) -> tuple[object, ...]:
    name = getattr(handler, "__qualname__", None)
    return (id(handler),) if name is None else (getattr(handler, "__module__", None), name)
