"""The state around a cell that is no variable: random generators, options, paths, environment.

What a cell changes of it is recorded *after* the cell and put back when the
cell is replayed, so that everything behind it (plain cells as well) goes on
from the same state: a resumed notebook draws the same random numbers as one
that never crashed. Three rules follow:

* A cell that changed nothing records nothing, so replaying it cannot undo what
  a cell before it did.
* The first recorded cell that meets a generator records it even when it drew
  nothing: in the next kernel its replay replaces the generator's accidental
  start, and plain cells that draw behind it get the numbers they got before.
* The state *before* a cell is no input of it (an unseeded generator is another
  in each kernel, and a recorded cell must not run twice for that). The one
  exception is a seed set on purpose, see `seeds`.

All values are plain (text, numbers, bytes, lists, dicts); of the environment
only what the cell changed is stored, **with its values**; switch that off with
`%config NbFlow.ambient_environ = False`. Only libraries that are already
imported are looked at: a snapshot costs about 0.1 ms.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from nbflow.core.signature import digest
from nbflow.notebook.ambient_sections import ABSENT, SECTIONS, same

#: What one section saw; opaque outside this module.
Snapshot = dict[str, Any]

#: Sections whose state is what later random numbers are made from.
GENERATORS = ("random", "numpy", "torch")


def snapshot(*, environ: bool = True) -> Snapshot:
    """Look at the ambient state now. Cheap: call it before and after a cell."""
    return _look(name for name in SECTIONS if environ or name != "environ")


def _look(names: Iterable[str]) -> Snapshot:
    return {name: SECTIONS[name].look() for name in names if SECTIONS[name].present()}


class Generators:
    """The global random generators as the surroundings of durable calls (`nbflow.runtime.surroundings`)."""

    def look(self) -> Snapshot:
        """Return where the generators are now; 50 µs."""
        return _look(GENERATORS)

    def moved(self, before: Snapshot) -> dict[str, Any]:
        """Return where the generators that moved are now."""
        return changes(before, self.look())

    def put_back(self, state: dict[str, Any]) -> None:
        """Move the generators to where a recorded call had left them."""
        restore(state)


def changes(before: Snapshot, after: Snapshot, *, known: Collection[str] = GENERATORS) -> dict[str, Any]:
    """Return what is needed to go from `before` to `after`; {} when nothing changed.

    A random generator that is not among the `known` ones is included, changed or not.
    """
    found: dict[str, Any] = {}
    for name, now in after.items():
        section = SECTIONS[name]
        then = before.get(name, ABSENT)
        if (name in GENERATORS and name not in known) or not same(then, now):
            value = section.change(then, now)
            if value:
                found[name] = value
    return found


def restore(state: dict[str, Any]) -> list[str]:
    """Put recorded changes back; return a sentence for each that cannot be put back here."""
    problems = []
    for name, value in state.items():
        section = SECTIONS.get(name)
        if section is None:  # recorded by a later version, or a fact of another layer
            continue
        try:
            section.restore(value)
        except Exception as error:  # noqa: BLE001 - a folder that is gone, an option that a library no longer has
            problems.append(f"{section.title} could not be restored: {type(error).__name__}: {error}")
    return problems


def drawn(before: Snapshot, after: Snapshot) -> list[str]:
    """Name the random generators that moved between two snapshots."""
    return [
        name
        for name in GENERATORS
        if name in after and name in before and not same(before[name], after[name])
    ]


_SEEDING = re.compile(r"seed|setstate|set_state|set_rng_state")
_SEEDS_ALL = re.compile(r"(?:(?<![\w.])seed|\w*seed_(?:everything|all)|\w*set_(?:random_)?seeds?)\s*\(")
_SEEDS_ONE = {
    "random": re.compile(r"(?<!np\.)(?<!numpy\.)\brandom\.(?:seed|setstate)\s*\("),
    "numpy": re.compile(r"\b(?:np|numpy)\.random\.(?:seed|set_state)\s*\("),
    "torch": re.compile(r"\bmanual_seed\s*\(|\bset_rng_state\s*\("),
}


def speaks_of_seeds(source: str) -> bool:
    """Tell whether a cell may seed a generator: only then is it worth looking before and after it."""
    return _SEEDING.search(source) is not None


def seeds(source: str, before: Snapshot, after: Snapshot) -> dict[str, str]:
    """Return a token for each generator that this cell seeded on purpose; {} for most cells.

    A cell seeds a generator when its source says so and the generator moved.
    Cells behind it that draw depend on the token: with another seed they run
    again, while an unseeded notebook never does. A generator whose library the
    cell imported moved from nowhere, so for it the source must be explicit.
    """
    found = {}
    for name in GENERATORS:
        if name not in after or same(before.get(name), after[name]):
            continue
        if _SEEDS_ONE[name].search(source) or (name in before and _SEEDS_ALL.search(source)):
            found[name] = digest(repr(after[name])).hex()[:16]
    return found
