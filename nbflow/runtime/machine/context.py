"""What a task of a machine is given: parameters, shared data that survives, and questions about the run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from nbflow.core import line as lines
from nbflow.core.errors import UsageError
from nbflow.values.fingerprint import fingerprint

if TYPE_CHECKING:
    from nbflow.core.history import Execution
    from nbflow.core.line import Line
    from nbflow.runtime.session import Session

#: Names that the records of a state use themselves.
RESERVED = frozenset({"branches", "cursor", "return"})

#: Values of these types cannot change in place.
_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes)


class Data(MutableMapping[str, Any]):
    """The named values of one line: restored when first read, recorded when set or changed in place.

    `outer` is the data of the line that split this one off, `split` the
    execution that did, with the data that it gave to `branch` alone. What is
    read from there is a copy of this line's own: branches run side by side, and
    what one of them changes in place is its own change.
    """

    def __init__(
        self,
        session: Session,
        line: Line,
        outer: Data | None = None,
        *,
        split: Execution | None = None,
        branch: str = "",
    ) -> None:
        self._session = session
        self._loaded: dict[int, dict[str, Any]] = {}
        self._sources = {name: source for name, source in line.data.items() if name not in RESERVED}
        #: Where to find what this line did not set itself: the execution, and the branch that it gave the value to.
        self._inherited: dict[str, tuple[Execution, str | None]] = {}
        if outer is not None:
            self._inherited.update(outer.recorded_at())
        if split is not None and _gave_data(split):
            presets = self._restored(split)[lines.BRANCHES].get(branch, {})
            self._inherited.update(dict.fromkeys(presets, (split, branch)))
        for name in line.deleted:
            self._inherited.pop(name, None)
        self._values: dict[str, Any] = {}
        #: Parameters that may be changed in place, as this state sees them, with their fingerprints before.
        self._borrowed: dict[str, tuple[Any, bytes]] = {}
        self._known: dict[str, bytes] = {}
        self._set: set[str] = set()
        #: The objects that were read since the last `recorded`, as `_known` fingerprints them; set again or not.
        self._read: dict[str, Any] = {}
        self._changed_in_place = False
        self._deleted: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            value = self._values[name]
        elif name in self._sources and name not in self._deleted:
            value = self._values[name] = self._restored(self._sources[name])[name]
        elif name in self._inherited and name not in self._deleted:
            source, branch = self._inherited[name]
            found = self._restored(source)
            value = self._values[name] = (found if branch is None else found[lines.BRANCHES][branch])[name]
        else:
            raise KeyError(name)
        if name not in self._set and not isinstance(value, _IMMUTABLE) and name not in self._read:
            self._known[name] = fingerprint(value).digest
            self._read[name] = value
        return value

    def _restored(self, execution: Execution) -> dict[str, Any]:
        """Decode a checkpoint once: what its values share stays shared."""
        if execution.number not in self._loaded:
            self._loaded[execution.number] = self._session.restore(execution)
        return self._loaded[execution.number]

    def __setitem__(self, name: str, value: Any) -> None:
        text: object = name  # callers are not all type-checked
        if not isinstance(text, str) or not text.isidentifier() or text in RESERVED:
            raise UsageError(
                f"{name!r} cannot be the name of a machine's data.",
                hint=f"Use a Python name other than {' and '.join(sorted(RESERVED))}.",
            )
        self._values[name] = value
        self._set.add(name)
        self._deleted.discard(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._values.pop(name, None)
        self._set.discard(name)
        self._deleted.add(name)

    def __iter__(self) -> Iterator[str]:
        names = dict.fromkeys((*self._inherited, *self._sources, *self._values))
        return (name for name in names if name not in self._deleted)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        if name in self._deleted:
            return False
        return name in self._values or name in self._sources or name in self._inherited

    def own(self) -> dict[str, Any]:
        """Return the values that this line recorded itself, by name."""
        return {name: self[name] for name in self._sources if name not in self._deleted}

    def recorded_at(self) -> dict[str, tuple[Execution, str | None]]:
        """Return where each name's value is recorded: in which execution, and for which branch alone if for one."""
        return {**self._inherited, **{name: (source, None) for name, source in self._sources.items()}}

    def param(self, name: str, value: Any) -> Any:
        """Return a parameter of the run: a copy, which becomes data of this line when it is changed in place."""
        if isinstance(value, _IMMUTABLE):
            return value
        if name not in self._borrowed:
            own = copy.deepcopy(value)  # parameters are JSON-able and few
            self._borrowed[name] = (own, fingerprint(own).digest)
        return self._borrowed[name][0]

    def deleted(self) -> list[str]:
        """Return the names that were deleted since the last `recorded`."""
        return sorted(self._deleted & (self._sources.keys() | self._inherited.keys()))

    def changed(self) -> dict[str, Any]:
        """Return what was set or changed in place since the last `recorded`, by name."""
        touched = {name: self._values[name] for name in sorted(self._set)}
        self._changed_in_place = False
        for name, value in sorted(self._read.items(), key=lambda item: item[0]):
            if fingerprint(value).digest != self._known[name]:
                self._changed_in_place = True
                if name not in self._set and name not in self._deleted:
                    touched[name] = value
        for name, (value, known) in self._borrowed.items():
            if name not in self and name not in self._deleted and fingerprint(value).digest != known:
                touched[name] = value
        return touched

    def kept(self, names: Collection[str]) -> None:
        """Note that these changes are on disk.

        A value that was changed in place may share objects with others that were
        not read and so are not recorded again. Those are restored when they are
        read next: what a task finds must not depend on whether the process died.
        """
        if self._changed_in_place:
            self._drop(
                {name for name, value in self._values.items() if not isinstance(value, _IMMUTABLE)}
                - set(names)
            )

    def _drop(self, names: Collection[str]) -> None:
        for name in names:
            self._values.pop(name, None)
            self._read.pop(name, None)
            self._known.pop(name, None)
        self._loaded.clear()

    def recorded(self, execution: Execution | None, names: Mapping[str, Any]) -> None:
        """Note that the changes are on disk, in this execution's checkpoint."""
        self.kept(names)
        self._changed_in_place = False
        for name in self._deleted:
            self._sources.pop(name, None)
            self._inherited.pop(name, None)
        for name, (value, _) in self._borrowed.items():
            if name in names and name not in self._values:
                self._values[name] = value
        self._borrowed.clear()
        if execution is not None:
            self._sources.update((name, execution) for name in names if name not in RESERVED)
        self._deleted.clear()
        self._set.clear()
        self._read.clear()
        self._known.clear()
        self._loaded.clear()

    def forget(self) -> None:
        """Drop every value from memory; each is restored when it is read again."""
        self._values.clear()
        self._loaded.clear()

    def undo(self, values: Mapping[str, Any] | None = None, deleted: Collection[str] = ()) -> None:
        """Drop the changes of a try that failed; what its newest cursor recorded as set and deleted counts."""
        if self._set or self._read:
            # Of what was not read, too: it may share objects with what the try changed in place.
            self._drop(
                {name for name, value in self._values.items() if not isinstance(value, _IMMUTABLE)}
                | self._set
            )
        self._set.clear()
        self._read.clear()
        self._known.clear()
        self._borrowed.clear()
        self._loaded.clear()
        self._deleted = set(deleted)
        for name in deleted:
            self._values.pop(name, None)
        for name, value in (values or {}).items():
            self._values[name] = value
            self._set.add(name)


def _gave_data(split: Execution) -> bool:
    """Tell whether a state that split its line gave data to single branches."""
    checkpoint = split.completed.checkpoint if split.completed is not None else None
    return checkpoint is not None and any(output.name == lines.BRANCHES for output in checkpoint.outputs)


class Context:
    """What a task gets as `ctx`.

    `ctx.model = fitted` keeps a value for later states and later processes: it
    is recorded when the state (or its cursor) is. `ctx.model` and
    `ctx["model"]` read it; a name that nobody set is looked up among the run's
    parameters. Changes in place of a value that the task read are recorded, too.
    """

    __slots__ = ("_attempt", "_branches", "_data", "_session", "_state")

    _attempt: int
    _branches: Mapping[str, Any]
    _data: Data
    _session: Session
    _state: str

    def __init__(
        self,
        session: Session,
        data: Data,
        state: str,
        attempt: int = 1,
        branches: Mapping[str, Any] | None = None,
    ) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_data", data)
        object.__setattr__(self, "_state", state)
        object.__setattr__(self, "_attempt", attempt)
        object.__setattr__(self, "_branches", branches or {})

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that the run was opened with."""
        opened = self._session.history.opened
        return (
            {name: self._data.param(name, value) for name, value in opened.params.items()} if opened else {}
        )

    @property
    def state(self) -> str:
        """The label of the state that this task belongs to."""
        return self._state

    @property
    def attempt(self) -> int:
        """Which try this is, from 1; a restart of the process counts as one where it interrupted a retry."""
        return self._attempt

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._session.run

    @property
    def values(self) -> MutableMapping[str, Any]:
        """All data by name."""
        return self._data

    @property
    def branches(self) -> Mapping[str, Any]:
        """How each branch of the join that was passed last ended: name → {"state": …, "error": …}; {} before any."""
        return self._branches

    def check(self) -> None:
        """Raise if the run is to stop; for long computations, once in a while.

        Raises:
            RunCancelled: with the reason.
        """
        self._session.check()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value by name, or `default`."""
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: object) -> bool:
        return name in self._data or name in self.params

    def __getitem__(self, name: str) -> Any:
        if name in self._data:
            return self._data[name]
        opened = self._session.history.opened
        if opened is None or name not in opened.params:
            raise KeyError(name)
        return self._data.param(name, opened.params[name])

    def __setitem__(self, name: str, value: Any) -> None:
        self._data[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted({*self._data, *self.params})) or "nothing"
            raise AttributeError(
                f"State {self._state} of run {self._session.run} finds no {name!r}; there is {known}."
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            raise UsageError(f"ctx.{name} belongs to nbflow; choose another name for your data.")
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self._data[name]

    def __repr__(self) -> str:
        return f"<state {self._state} of run {self._session.run}: {', '.join(self._data) or 'no data'}>"
