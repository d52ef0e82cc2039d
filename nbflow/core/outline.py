"""The outline of a machine: its states and arrows as plain data, kept with each run to draw it anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbflow.core.machine import Definition

#: Key in `RunOpened.launch` of a machine's run.
MACHINE = "machine"

#: An arrow: source, target (None: to any state) and its kind, as in `core.machine.Edge`.
Arrow = tuple[str, str | None, str]


@dataclass(frozen=True)
class Outline:
    """What is drawn of a machine: its states in order, where it begins and ends, kinds but "plain", arrows."""

    states: tuple[str, ...] = ()
    initial: str | None = None
    final: frozenset[str] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=dict)
    arrows: tuple[Arrow, ...] = ()


def outline_of(definition: Definition) -> Outline:
    """Return the outline of a definition as it is now, valid or not."""
    return Outline(
        definition.labels,
        definition.initial,
        definition.final,
        {label: spec.kind for label, spec in definition.specs.items() if spec.kind != "plain"},
        tuple((edge.source, edge.target, edge.kind) for edge in definition.edges()),
    )


def plain(outline: Outline) -> dict[str, Any]:
    """Return an outline as it is recorded: states by their numbers, what is usual left out.

    >>> plain(Outline(("a", "b"), "a", frozenset({"b"}), {}, (("a", "b", "next"),)))
    {'states': ['a', 'b'], 'initial': 0, 'final': [1], 'arrows': [[0, 1]]}
    """
    number = {label: place for place, label in enumerate(outline.states)}
    found: dict[str, Any] = {
        "states": list(outline.states),
        "initial": None if outline.initial is None else number[outline.initial],
        "final": sorted(number[label] for label in outline.final),
        "arrows": [
            [number[source], None if target is None else number[target], *([] if kind == "next" else [kind])]
            for source, target, kind in outline.arrows
        ],
    }
    if outline.kinds:
        found["kinds"] = {label: kind for label, kind in outline.kinds.items() if label in number}
    return found


def read_outline(recorded: object) -> Outline | None:
    """Return the outline that a run was opened with; None where none was recorded, or one that cannot be read.

    >>> read_outline({"states": ["a", "b"], "initial": 0, "final": [1], "arrows": [[0, 1]]}).arrows
    (('a', 'b', 'next'),)
    """
    if not isinstance(recorded, Mapping):
        return None
    try:
        states = tuple(map(str, recorded["states"]))
        initial = recorded.get("initial")
        return Outline(
            states,
            None if initial is None else states[initial],
            frozenset(states[number] for number in recorded.get("final", ())),
            {str(label): str(kind) for label, kind in recorded.get("kinds", {}).items()},
            tuple(
                (states[source], None if target is None else states[target], str(kind[0]) if kind else "next")
                for source, target, *kind in recorded.get("arrows", ())
            ),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None  # of another version of nbflow: what was visited is drawn
