"""What a durable cell was given and what it left behind, seen from the kernel's namespace.

    tracker = Tracker(namespace)
    inputs = tracker.before(analyse(source, namespace))     # fingerprints: the signature is made of them
    … look the signature up; restore, or run the cell …
    outputs = tracker.after(inputs)                         # what to record

The outputs are the names that the cell bound, plus the inputs it changed in
place, plus whatever shares objects or memory with those (`aliases`).

Memory: the variables that a cell certainly rebinds are not kept alive while it
runs, so `frame = frame.dropna()` needs no more memory than without nbflow.
"""

from __future__ import annotations

import functools
import re
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from nbflow.core.model import Struct
from nbflow.core.signature import digest
from nbflow.notebook.aliases import sharing
from nbflow.notebook.analysis import CellAnalysis
from nbflow.notebook.purity import is_atom
from nbflow.values.fingerprint import Fingerprint, fingerprint
from nbflow.values.in_place import changed_in_place
from nbflow.values.leaf import Digests

#: The fingerprint of a name that is not bound.
MISSING: Final = b""

#: The seam: `values.fingerprint.fingerprint`, or a fake in tests.
Fingerprinter = Callable[..., Fingerprint]

_IPYTHON_NAMES = frozenset(
    {
        "In", "Out", "exit", "quit", "get_ipython", "_", "__", "___", "_i", "_ii", "_iii", "_ih", "_oh",
        "_dh", "_exit_code", "_sh",
    }
)  # fmt: skip
_IPYTHON_PATTERN = re.compile(r"_i?\d+")
#: IPython's logs of what was typed and shown: they differ in every session.
_LOGS = frozenset({"In", "Out", "_ih", "_oh", "_dh"})


def is_private(name: str) -> bool:
    """Tell whether IPython or Python manages the name: it is neither restored nor recorded.

    Dunder names are Python's: a warning alone leaves `__warningregistry__` behind.

    >>> is_private("_12"), is_private("Out"), is_private("_mine")
    (True, True, False)
    """
    if name in _IPYTHON_NAMES:
        return True
    if not name.startswith("_"):
        return False
    return (name.startswith("__") and name.endswith("__")) or _IPYTHON_PATTERN.fullmatch(name) is not None


def is_result(name: str) -> bool:
    """Tell whether IPython keeps a cell's result under this name.

    >>> is_result("_12"), is_result("_i12"), is_result("_")
    (True, False, False)
    """
    return name[:1] == "_" and name[1:].isdecimal()


@dataclass(frozen=True)
class Inputs:
    """What the cell is about to read: `fingerprints` by name, `MISSING` for names that are not bound.

    `opaque` are inputs without content to look at (a connection, a lock),
    which count by their type; `unstable` those whose fingerprint holds for this
    process only, and that no recorded version stands for.
    """

    analysis: CellAnalysis
    fingerprints: Mapping[str, bytes]
    opaque: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    #: Fingerprints before the cell of variables that share objects with what it may change.
    aliases: Mapping[str, bytes] = field(default_factory=dict)
    #: For `Tracker.after` alone: what the cell may change, how it hashes here, and all objects.
    watched: tuple[str, ...] = field(default=(), repr=False)
    raw: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    snapshot: Snapshot | None = field(default=None, repr=False)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that the cell looks up and nobody has bound."""
        return tuple(name for name, found in self.fingerprints.items() if found == MISSING)

    def detail(self) -> dict[str, str]:
        """Return the fingerprints as `detail.READS` has them."""
        return {name: found.hex() for name, found in self.fingerprints.items()}

    def signature(self, code: bytes, *, version: str = "", options: str = "") -> bytes:
        """Return what makes two executions the same work: code, inputs, version and options.

        A declared `version` stands for the code.
        """
        parts: list[bytes | str] = ["cell", version, options, b"" if version else code]
        for name in sorted(self.fingerprints):
            parts += (name, self.fingerprints[name])
        return digest(*parts)


@dataclass(frozen=True)
class Outputs:
    """What the cell left behind.

    `shared` are inputs that it left as they were but that hang together with
    an output (`b = a` makes `a` one). `aliases` maps variables that hang
    together with an output and are no inputs to their fingerprints before the
    cell ran. Restoring such a variable is right only where it still has that
    fingerprint or the recorded one: see `Tracker.conflicts`.
    """

    bound: tuple[str, ...]
    mutated: tuple[str, ...]
    shared: tuple[str, ...]
    aliases: Mapping[str, bytes]
    deleted: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All variables to record, in a stable order."""
        return (*self.bound, *self.mutated, *self.shared, *self.aliases)


class RecordedVersions:
    """Remembers which recorded version the objects of the kernel are.

    Some classes hash differently after a round trip (a matplotlib axis, a model
    that holds a lock). An object of such a class that was restored or recorded,
    and has not been touched since, counts as its recorded version; else every
    resume would rerun whatever reads it.
    """

    def __init__(self, fingerprinter: Fingerprinter = fingerprint) -> None:
        self._fingerprint = fingerprinter
        self._known: dict[str, tuple[Callable[[], Any], bytes, bytes]] = {}

    def remember(self, name: str, value: Any, recorded: bytes, *, stable: bool) -> None:
        """Note that `value`, now bound to `name`, is the version recorded under this fingerprint.

        Call after recording and after restoring. With `stable` (as
        `OutputInfo.stable` says) there is nothing to remember.
        """
        if stable:
            self._known.pop(name, None)
        else:
            self._known[name] = (_reference(value), recorded, self._fingerprint(value).digest)

    def version(self, name: str, value: Any, found: bytes) -> bytes | None:
        """Return the recorded fingerprint if `value` is that very object and looks as it did then."""
        known = self._known.get(name)
        if known is None:
            return None
        if known[0]() is not value:
            del self._known[name]
            return None
        return known[1] if known[2] == found else None

    def __contains__(self, name: str) -> bool:
        """Tell whether a variable of this name is known as a recorded version."""
        return name in self._known

    def forget(self, names: Iterable[str] | None = None) -> None:
        """Forget some names, or everything."""
        for name in list(self._known) if names is None else names:
            self._known.pop(name, None)


class Tracker:
    """Looks at one namespace before and after its durable cells."""

    def __init__(
        self,
        namespace: MutableMapping[str, Any],
        *,
        versions: RecordedVersions | None = None,
        fingerprinter: Fingerprinter = fingerprint,
    ) -> None:
        self.namespace = namespace
        self.versions = versions if versions is not None else RecordedVersions(fingerprinter)
        self._fingerprint = fingerprinter
        #: Whether results (`_5`) are told apart from other names of IPython's: cells may look at them.
        self.results = False

    def before(
        self,
        analysis: CellAnalysis,
        *,
        reads: Iterable[str] | None = None,
        writes: Iterable[str] = (),
        digests: Digests | None = None,
    ) -> Inputs:
        """Fingerprint what the cell reads, and remember what else is there.

        `reads` overrides the analysis (`--in`); `writes` (`--out`) are treated
        as names that the cell may bind.
        """
        names = sorted(set(analysis.reads if reads is None else reads) - _LOGS)
        present = [name for name in names if name in self.namespace]
        watched = tuple(name for name in present if self._is_watched(analysis, name, given=reads is not None))
        shared = self._shared(watched)
        digests = digests if digests is not None else Digests()
        found: dict[str, bytes] = {}
        raw: dict[str, bytes] = {}
        opaque: list[str] = []
        unstable: list[str] = []
        for name in names:
            if name not in self.namespace:
                found[name] = MISSING
                continue
            value = self.namespace[name]
            if _is_own(value):
                raw[name] = found[name] = digest(
                    "opaque", f"{type(value).__module__}.{type(value).__qualname__}"
                )
                continue
            seen = self._fingerprint(value, digests=digests)
            raw[name] = found[name] = seen.digest
            if not seen.stable:
                version = self.versions.version(name, value, seen.digest)
                if version is not None:
                    found[name] = version
                elif _is_opaque(value):
                    found[name] = digest("opaque", f"{type(value).__module__}.{type(value).__qualname__}")
                    opaque.append(name)
                else:
                    unstable.append(name)
        value = None
        aliases = {name: self._version(name, digests) for name in sorted(shared)}
        certain = set(analysis.always_writes) - set(writes)
        snapshot = Snapshot(self.namespace, certain, kept=self._still_held(watched, certain))
        return Inputs(analysis, found, tuple(opaque), tuple(unstable), aliases, watched, raw, snapshot)

    def after(
        self,
        inputs: Inputs,
        *,
        writes: Iterable[str] | None = None,
        digests: Digests | None = None,
        also: Iterable[Any] = (),
    ) -> Outputs:
        """Return what the cell bound, changed and deleted; `writes` overrides what it bound (`--out`).

        `also` are objects that are recorded without being variables: what hangs
        together with them is recorded too. `digests` holds the hashes of unchanged
        buffers for the checkpoint that follows.
        """
        before = inputs.snapshot
        if before is None:
            raise ValueError("these inputs come from no tracker, or were used already")
        namespace = self.namespace
        bound = [
            name
            for name, value in namespace.items()
            if not is_private(name) and before.rebound(name, value) and not _is_own(value)
        ]
        if writes is not None:
            bound = [name for name in dict.fromkeys(writes) if name in namespace]
        deleted = tuple(
            sorted(name for name in before.names if name not in namespace and not is_private(name))
        )
        digests = digests if digests is not None else Digests()
        taken = set(bound)
        mutated: list[str] = []
        lost: list[Any] = [*also]
        for name in inputs.watched:
            # IPython binds `_` and its like; what they were bound to lives on in `Out` and elsewhere.
            rebound = name in taken or name not in namespace or is_private(name)
            value = before.held(name) if rebound else namespace[name]
            if value is None:
                continue
            if self._fingerprint(value, digests=digests).digest != inputs.raw[name]:
                if rebound:
                    lost.append(value)  # changed, then unbound: others that hold it have changed with it
                else:
                    mutated.append(name)
        value = None
        before.release()
        # The newest `_5` is the result itself, which is recorded as that.
        taken_as_result = {id(value) for value in also}
        among = [
            name
            for name in self._variables()
            if not (is_private(name) and id(namespace[name]) in taken_as_result)
        ]
        found = sorted(sharing((*bound, *mutated), namespace, among=among, extra=lost))
        shared = tuple(name for name in found if name in inputs.fingerprints)
        # What shared nothing with an input that may have changed is as it was before.
        aliases = {
            name: inputs.aliases.get(name) or self._version(name, digests)
            for name in found
            if name not in inputs.fingerprints
        }
        self.versions.forget((*bound, *mutated))
        return Outputs(tuple(bound), tuple(mutated), shared, aliases, deleted)

    def conflicts(self, aliases: Mapping[str, bytes], recorded: Mapping[str, bytes]) -> set[str]:
        """Return the aliases that have become something else since they were recorded.

        `aliases` are their fingerprints before the recorded cell, `recorded`
        those of its outputs. A cell with conflicts must run again: the variable
        is no input of it, so nothing else guards its newer value. One that is
        missing now is no conflict. Nor is one without a stable fingerprint that
        nobody touched since it was restored or recorded, where what it was
        before the cell could not be told (b"").
        """
        changed: set[str] = set()
        for name, was in aliases.items():
            if name not in self.namespace:
                continue
            now = self._version(name, Digests())
            unknown = was == MISSING and name in self.versions
            if now == MISSING or (now not in (was, recorded.get(name)) and not unknown):
                changed.add(name)
        return changed

    def _version(self, name: str, digests: Digests) -> bytes:
        """Return the fingerprint of a variable that holds in every process; b"" when there is none.

        Where the class hashes differently in each, an object untouched since it was
        recorded or restored has its recorded one.
        """
        value = self.namespace[name]
        found = self._fingerprint(value, digests=digests)
        return found.digest if found.stable else self.versions.version(name, value, found.digest) or MISSING

    def _variables(self) -> list[str]:
        return [
            name
            for name, value in self.namespace.items()
            if (not is_private(name) or (self.results and is_result(name))) and not _is_own(value)
        ]

    def _is_watched(self, analysis: CellAnalysis, name: str, *, given: bool) -> bool:
        value = self.namespace[name]
        if _has_state(value):
            return True
        if is_atom(value) or _is_own(value):
            return False
        if analysis.dynamic or (given and name not in analysis.reads):
            return True
        return analysis.may_change(name, self.namespace)

    def _shared(self, watched: tuple[str, ...]) -> set[str]:
        return sharing(watched, self.namespace, among=self._variables()) if watched else set()

    def _still_held(self, watched: tuple[str, ...], certain: set[str]) -> dict[str, Any]:
        """Return inputs that the cell rebinds and that others hold as well: keeping them costs no memory."""
        names = [name for name in watched if name in certain]
        others = self._variables() if names else []
        return {name: self.namespace[name] for name in names if sharing([name], self.namespace, among=others)}


class Snapshot:
    """Which object each name was bound to. Weak where that can be, absent where the cell surely rebinds."""

    def __init__(self, namespace: Mapping[str, Any], certain: set[str], kept: dict[str, Any]) -> None:
        self.names = frozenset(namespace)
        self._kept = kept
        self._objects = {name: value for name, value in namespace.items() if name not in certain}

    def rebound(self, name: str, value: Any) -> bool:
        """Tell whether the name is new or bound to another object than before."""
        return name not in self._objects or self._objects[name] is not value

    def held(self, name: str) -> Any:
        """Return the object the name was bound to, if it was kept."""
        return self._kept.get(name, self._objects.get(name))

    def release(self) -> None:
        """Let go of all objects, so that reference counts tell who shares what."""
        self._objects = {}
        self._kept = {}


def _reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # lists, dictionaries: they have no weak references
        return lambda: value


def _has_state(value: Any) -> bool:
    """Tell whether the value is a function that changes what it has captured."""
    return type(value) is types.FunctionType and bool(value.__closure__) and _changes_captured(value.__code__)


@functools.lru_cache(maxsize=512)
def _changes_captured(code: types.CodeType) -> bool:
    return not changed_in_place(code).isdisjoint(code.co_freevars)


def _is_opaque(value: Any) -> bool:
    """Tell whether there is nothing to look at: it cannot be taken apart.

    Iterators have a position, so they count by it.
    """
    if hasattr(type(value), "__next__"):
        return False
    try:
        value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001 - its own code, which may raise anything; the answer is the handling
        return True
    return False


def _is_own(value: Any) -> bool:
    """Tell whether the value is a part of nbflow or the IPython shell itself.

    Durable functions and machines are the user's, and so are records (a gate's decision).

    The shell (`ip = get_ipython()` is common) holds every variable there is and
    so shares objects with each; it is neither recorded nor looked into.
    """
    kind = type(value)
    if kind is types.ModuleType or isinstance(value, type):
        return False
    if any(
        base.__name__ == "InteractiveShell" and base.__module__.startswith("IPython.")
        for base in kind.__mro__
    ):
        return True
    if kind.__module__.partition(".")[0] != "nbflow" or isinstance(value, Struct):
        return False
    return "__wrapped__" not in getattr(value, "__dict__", {}) and not hasattr(kind, "run_as_child")
