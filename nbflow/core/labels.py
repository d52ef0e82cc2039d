"""The labels of a machine's states: what the journal calls them, whatever Enum or strings the user chose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import Enum, Flag
from typing import Any

from nbflow.core.errors import UnknownState, UsageError

_FORMS = "A machine's states are an Enum class or a list of strings."


class Labels:
    """The states of one machine and their labels, in the order in which they were defined.

    The label of an Enum member is its name (an alias has the name of its
    member), that of a string the string itself. States that are listed twice
    are kept in `repeated`.
    """

    def __init__(self, machine: str, states: object) -> None:
        self.machine = machine
        self.repeated: tuple[str, ...] = ()
        self._states: type[Enum] | None = None
        self._by_label: dict[str, Any] = {}
        #: By type as well: True is no state 1 and 1.0 neither.
        self._by_value: dict[tuple[type, Any], str] = {}
        if isinstance(states, type) and issubclass(states, Enum):
            self._take_enum(states)
        else:
            self._take_strings(states)
        self._places = {label: place for place, label in enumerate(self._by_label)}
        for text in self._by_label:
            if not text or not text.isprintable():
                raise UsageError(f"{text!r} cannot be the label of a state: it must be a printable text.")

    def _take_enum(self, states: type[Enum]) -> None:
        if issubclass(states, Flag):
            raise UsageError(
                f"{states.__name__} is a Flag: its members can be combined, but a machine is in one state at a time.",
                hint="Make it an Enum, StrEnum or IntEnum.",
            )
        self._states = states
        for member in states:
            self._by_label[member.name] = member
            try:
                # Two members of one value are one member and its alias, so that none is ambiguous.
                self._by_value[type(member.value), member.value] = member.name
            except TypeError:
                continue  # a value that cannot be hashed finds no state; its name does

    def _take_strings(self, states: object) -> None:
        if isinstance(states, (str, bytes)) or not isinstance(states, Iterable):
            raise UsageError(f"{states!r} cannot be the states of machine {self.machine!r}.", hint=_FORMS)
        repeated: dict[str, None] = {}
        for state in states:
            if isinstance(state, Enum):
                raise UsageError(f"{state!r} is one state of an Enum.", hint="Give the Enum class itself.")
            if not isinstance(state, str):
                raise UsageError(f"{state!r} cannot be a state of machine {self.machine!r}.", hint=_FORMS)
            if state in self._by_label:
                repeated[state] = None
            self._by_label[str(state)] = state
        self.repeated = tuple(repeated)

    def __iter__(self) -> Any:
        return iter(self._by_label)

    def __len__(self) -> int:
        return len(self._by_label)

    def __contains__(self, label: object) -> bool:
        return label in self._by_label

    def place(self, label: str) -> int:
        """Return the place of a label among the others, from 0."""
        return self._places[label]

    def find(self, value: object) -> str | None:
        """Return the label of a state, or None; a text is taken as a label first and as a member's value second."""
        if isinstance(value, Enum):
            if self._states is None:
                # A StrEnum's member is a string like any other.
                return str.__str__(value) if isinstance(value, str) and value in self._by_label else None
            return value.name if self._is_own(type(value)) and value.name in self._by_label else None
        if isinstance(value, str) and value in self._by_label:
            return str(value)
        try:
            return self._by_value.get((type(value), value))
        except TypeError:
            return None

    def _is_own(self, states: type[Enum]) -> bool:
        """Tell whether it is the machine's Enum, or the same one defined again (its cell was run once more)."""
        own = self._states
        return states is own or (
            own is not None and (states.__module__, states.__qualname__) == (own.__module__, own.__qualname__)
        )

    def member(self, label: str) -> Any:
        """Return the state as the user defined it.

        Raises:
            UnknownState: no state has this label.
        """
        if label not in self._by_label:
            raise self.unknown(label)
        return self._by_label[label]

    def unknown(self, value: object) -> UnknownState:
        """Return the error about a state that the machine does not have."""
        text = foreign(value)
        return UnknownState(
            f"Machine {self.machine!r} has no state {text!r}.",
            hint=self.guess(text) or self._known(),
            machine=self.machine,
            state=text,
        )

    def guess(self, text: str) -> str | None:
        """Return "Did you mean …?" where a label or value looks like the text."""
        spoken = {}
        for (kind, value), label in self._by_value.items():
            if issubclass(kind, str):
                spoken[str(value).casefold()] = label
        spoken |= {label.casefold(): label for label in self._by_label}
        close = difflib.get_close_matches(text.rpartition(".")[2].casefold(), spoken, n=1)
        return f"Did you mean {spoken[close[0]]!r}?" if close else None

    def _known(self) -> str:
        shown = list(self._by_label)[:10]
        more = len(self._by_label) - len(shown)
        return f"It has {', '.join(map(repr, shown)) or 'none'}{f' and {more} more' if more else ''}."


def foreign(value: object) -> str:
    """Return the text by which to name something that is no state of the machine.

    >>> foreign("laod"), foreign(3)
    ('laod', '3')
    """
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return str(value) if isinstance(value, str) else repr(value)
