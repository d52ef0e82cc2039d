"""What the task of a state may return besides the next state. Values only: the runner acts on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from nbflow.core.errors import UsageError
from nbflow.core.joins import Join
from nbflow.core.lengths import length

_ALL = Join.all()


@dataclass(frozen=True)
class Continue:
    """Say that a stepped task goes on from `cursor`, which is recorded first; resume starts from there.

    >>> Continue({"fold": 3}).cursor
    {'fold': 3}
    """

    cursor: Any


@dataclass(frozen=True)
class Again:
    """Say that a poll is to look again, after `after` seconds (or "5s"); None is the state's `every`.

    Raises:
        UsageError: `after` is no duration or `note` no text.

    >>> Again("1m", note="queued").after
    60.0
    """

    after: float | str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "after", length(self.after, "after"))
        note: object = self.note  # callers are not all type-checked
        if not isinstance(note, str):
            raise UsageError(f"note= must be a text, not {note!r}.")


@dataclass(frozen=True, init=False)
class Branch:
    """One branch of a split: the state it begins in, its name, and data that only this branch sees.

    >>> Branch("fold", name="fold-3", number=3).data
    {'number': 3}
    """

    state: Any
    name: str | None
    data: Mapping[str, Any] = field(hash=False)

    def __init__(self, state: Any, /, name: str | None = None, **data: Any) -> None:
        plain_label(state)
        given: object = name  # callers are not all type-checked
        if given is not None and (not isinstance(given, str) or not given or not given.isprintable()):
            raise UsageError(f"The name of a branch must be a printable text, not {given!r}.")
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "data", data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _branch, (self.state, self.name, dict(self.data))


def _branch(state: Any, name: str | None, data: dict[str, Any]) -> Branch:
    branch = Branch(state, name)
    object.__setattr__(branch, "data", data)
    return branch


@dataclass(frozen=True, init=False)
class Split:
    """Run branches side by side, join them, and go on in the state `to`.

    `branches` are states or `Branch`; each ends up with a name of its own (the
    state's label, numbered `label[0]`, `label[1]` … where one repeats). `within`
    (seconds) is how long the branches may take, the shorter of this one and the
    join's own.

    Raises:
        UsageError: no branches, no `to`, two branches of one name, or a join that can never be satisfied.

    >>> [branch.name for branch in Split(["a", "b", "b"], to="c").branches]
    ['a', 'b[0]', 'b[1]']
    """

    branches: tuple[Branch, ...]
    join: Join
    to: Any
    within: float | None

    def __init__(
        self,
        branches: Iterable[Any],
        *,
        join: Join | str = _ALL,
        to: Any = None,
        within: float | str | None = None,
    ) -> None:
        named = _named(branches)
        if isinstance(join, str):
            join = Join.parse(join)
        given: object = join
        if not isinstance(given, Join):
            raise UsageError(
                f"join={given!r} is not a join.", hint="Write Join.all(), Join.quorum(2) or the like."
            )
        needed = join.needed(len(named))
        if needed > len(named):
            raise UsageError(
                f"The join {join.text()} needs {needed} branches, but the split has {len(named)}."
            )
        if to is None:
            raise UsageError(
                "A join without target: the split does not say where to go on.", hint="Give to=STATE."
            )
        plain_label(to)
        limits = [limit for limit in (length(within, "within"), join.within) if limit is not None]
        object.__setattr__(self, "branches", named)
        object.__setattr__(self, "join", join)
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "within", min(limits, default=None))

    def __reduce__(self) -> tuple[Any, ...]:
        return _split, (self.branches, self.join, self.to, self.within)


def _split(branches: tuple[Branch, ...], join: Join, to: Any, within: float | None) -> Split:
    return Split(branches, join=join, to=to, within=within)


def _named(branches: object) -> tuple[Branch, ...]:
    if isinstance(branches, (str, Enum, Branch, Mapping)) or not isinstance(branches, Iterable):
        raise UsageError(
            f"A split takes a list of states or branches, not {branches!r}.",
            hint="Write Split([S.A, S.B], to=S.C).",
        )
    made = [branch if isinstance(branch, Branch) else Branch(branch) for branch in branches]
    if not made:
        raise UsageError(
            "A split needs at least one branch.", hint="Return the next state where there is none."
        )
    repeats = Counter(plain_label(branch.state) for branch in made if branch.name is None)
    numbers: Counter[str] = Counter()
    named = []
    for branch in made:
        name = branch.name
        if name is None:
            label = plain_label(branch.state)
            name = f"{label}[{numbers[label]}]" if repeats[label] > 1 else label
            numbers[label] += 1
        named.append(_branch(branch.state, name, dict(branch.data)))
    twice = sorted(
        name for name, count in Counter(branch.name or "" for branch in named).items() if count > 1
    )
    if twice:
        raise UsageError(
            f"Branches need names of their own, but these come twice: {', '.join(map(repr, twice))}.",
            hint="Give Branch(state, name=...) to each.",
        )
    return tuple(named)


def plain_label(state: object) -> str:
    """Return the text that names a state where no machine is at hand: the name of an Enum member, or the string.

    Raises:
        UsageError: neither of the two.

    >>> plain_label("load")
    'load'
    """
    if isinstance(state, Enum):
        return state.name
    if isinstance(state, str) and state and state.isprintable():
        return state
    raise UsageError(f"{state!r} is not a state.", hint="A state is an Enum member or a string.")
