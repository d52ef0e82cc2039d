"""The canonical walk: turn any value into one byte stream that depends on its content alone.

The work is done by the C pickler in `fast` mode (no memo, so two equal strings
count alike whether they are one object or two): 200,000 small dictionaries take
30 ms. Protocol 3, because there sets are written through `reducer_override`,
which lets us notice them; protocol 4 writes them in hash order, unseen.

Three picklers, tried in this order; which one ends up writing the stream follows
from the content alone, so equal values take the same way:

- `_Plain`     exact built-ins at C speed, every other object becomes the digest of its parts;
- `_Sets`      the same for values with built-in sets, which are written in sorted order;
- `_Numbered`  values that contain themselves, and those nested beyond `DEEPEST` objects: each
               object with parts gets a number when it is first met, later visits name the number.
               Only here it counts whether two equal parts are one object.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterable
from itertools import islice
from types import SimpleNamespace
from typing import Any

from blake3 import blake3

from nbflow.values.canonical_objects import ATOMS, Parts, Unfit, identity_parts, is_whole, take_apart
from nbflow.values.code_digest import code_fingerprint
from nbflow.values.leaf import LEAF_MINIMUM, Digests, hasher

#: Goes into every digest: raise it when the stream changes its meaning.
FORMAT = b"nbflow fingerprint 1"

_CONTAINERS = frozenset({list, tuple, dict})
_SETS = frozenset({set, frozenset})

#: Objects within objects before numbers take over: Python frames are dearer than the C stack.
DEEPEST = 40

_LONG = 1 << 30

#: A nest of shared lists that would unfold to more nodes than this is numbered instead of unfolded.
LARGEST_UNFOLDED = 20_000_000


class _HasSets(Unfit):
    """A built-in set is somewhere in the value."""


class _HasCycle(Unfit):
    """The value contains itself, or is nested too deeply to unfold."""


def _object(*_parts: Any) -> None:
    """Stand in the stream in front of every object that is not a plain built-in."""


class Walk:
    """One walk over one value: remembers what was hashed, and whether all of it is stable.

    `digests` is the caller's, or None. Handlers may call `digest`, `buffer` and
    `unstable`; they return parts: tuples of anything, walked in turn.
    """

    __slots__ = ("_active", "_memo", "_tokens", "digests", "stable")

    def __init__(self, digests: Digests | None) -> None:
        self.digests = digests
        self.stable = True
        self._memo: dict[int, tuple[Any, bytes]] = {}
        self._active: dict[int, Any] = {}
        self._tokens: dict[type, bytes | str] = {}

    def digest(self, value: Any) -> bytes:
        """Return 32 bytes for the value; objects met before in this walk are not walked again."""
        stream = blake3(FORMAT)
        try:
            _Plain(stream.update, self).dump(value)
        except _HasSets:
            stream = blake3(FORMAT)
            try:
                _Sets(stream.update, self).dump(value)
            except ValueError as error:
                raise _HasCycle from error
        except OverflowError:
            stream = blake3(FORMAT)
            _Sets(stream.update, self).dump(value)  # a string of 4 GiB or more
        except ValueError as error:
            # "fast mode: can't pickle cyclic objects". Other code's errors never get here: see `take_apart`.
            raise _HasCycle from error
        return stream.digest()

    def buffer(self, buffer: memoryview, address: int) -> bytes:
        """Return what stands for a contiguous buffer of bytes: itself when it is short, else its digest."""
        if buffer.nbytes < LEAF_MINIMUM:
            return bytes(buffer)
        if self.digests is not None:
            return self.digests.of(buffer, address)
        return self.content(buffer)

    def content(self, buffer: memoryview) -> bytes:
        """Return what stands for bytes that no checkpoint writes as a leaf of their own."""
        if buffer.nbytes < LEAF_MINIMUM:
            return bytes(buffer)
        found = hasher(buffer.nbytes)
        found.update(buffer)
        return found.digest()

    def unstable(self) -> None:
        """Note that another process would find another digest."""
        self.stable = False

    def token(self, kind: type) -> bytes | str:
        """Return what stands for a class: its name where it is imported, a digest where the notebook defines it."""
        found = self._tokens.get(kind)
        if found is None:
            found, stable = code_fingerprint(kind)
            self.stable &= stable
            self._tokens[kind] = found
        return found

    def stand_in(self, value: Any) -> Parts:
        """Return what is written in place of an object that is no plain built-in."""
        key = id(value)
        known = self._memo.get(key)
        if known is not None:
            return (known[1],)
        if key in self._active or len(self._active) > DEEPEST:
            raise _HasCycle
        parts, whole = take_apart(self, value)
        if whole:
            return parts
        self._active[key] = value
        try:
            found = self.digest(parts)
        finally:
            del self._active[key]
        self._memo[key] = (value, found)
        return (found,)

    def sorted_set(self, value: Iterable[Any]) -> list[Any]:
        """Return the elements in an order that does not depend on their hashes."""
        kinds = set(map(type, value))
        if len(kinds) <= 1 and kinds <= {str, int, bytes}:
            return sorted(value)
        return sorted([self.digest(element) for element in value])


class _Plain(pickle.Pickler):
    """Write exact built-ins as they are, everything else as a digest or a few plain parts."""

    def __init__(self, write: Callable[[bytes], object], walk: Walk) -> None:
        super().__init__(SimpleNamespace(write=write), 3, fix_imports=False)
        self.fast = True
        self.walk = walk

    def reducer_override(self, value: Any) -> Any:
        if value is _object:
            return NotImplemented
        if value is set or value is frozenset:
            raise _HasSets  # the class is met in front of the elements of a set (or is itself a value)
        return _object, self.walk.stand_in(value)


class _Sets(_Plain):
    """The same, with a look at every object for sets: 80 ns each."""

    def persistent_id(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SETS:
            # A set cannot contain itself, so its elements are walked on their own.
            return kind.__name__, self.walk.digest(self.walk.sorted_set(value))
        if (kind is str or kind is bytes) and len(value) >= _LONG:
            # Protocol 3 has no opcode for more than 4 GiB.
            return kind.__name__, blake3(
                value.encode("utf-8", "surrogatepass") if kind is str else value
            ).digest()
        return None

    def reducer_override(self, value: Any) -> Any:
        if value is _object:
            return NotImplemented
        return _object, self.walk.stand_in(value)


class _NumberedWalk(Walk):
    """A walk in which every inner digest is one of its own: numbers mean nothing outside their stream."""

    __slots__ = ("kept", "numbers")

    def __init__(self, digests: Digests | None) -> None:
        super().__init__(digests)
        self.kept: list[Any] = []
        self.numbers: dict[int, tuple[int, Any]] = {}

    def digest(self, value: Any) -> bytes:
        found, stable = digest_of(value, self.digests)
        self.stable &= stable
        return found

    def all(self, value: Any) -> bytes:
        stream = blake3(FORMAT + b", numbered")
        _Numbered(stream.update, self).dump(value)
        return stream.digest()


class _Numbered(_Plain):
    """Write each mutable object once and then by number, everything in one stream."""

    walk: _NumberedWalk

    def persistent_id(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS or value is _object:
            return None
        numbers = self.walk.numbers
        known = numbers.get(id(value))
        if known is not None:
            return ("met", known[0])
        if kind not in _SETS:
            if not is_whole(kind):
                numbers[id(value)] = (len(numbers), value)
            return None
        return (kind.__name__, *self._elements(value))  # the pickler goes on into the elements

    def _elements(self, value: Iterable[Any]) -> list[Any]:
        """Sort by what can be seen of each element without following references back into the value."""
        keyed = sorted(((self._shallow(element), element) for element in value), key=lambda pair: pair[0])
        if any(keyed[at][0] == keyed[at + 1][0] for at in range(len(keyed) - 1)):
            self.walk.unstable()  # which of two look-alikes comes first, their addresses decide
        return [element for _, element in keyed]

    def _shallow(self, element: Any) -> bytes:
        walk = Walk(self.walk.digests)
        try:
            found = walk.digest(element)
            self.walk.stable &= walk.stable
        except (_HasCycle, RecursionError):
            state = getattr(element, "__dict__", {})
            seen = {name: part for name, part in sorted(state.items()) if type(part) in ATOMS}
            found = Walk(None).digest((type(element).__module__, type(element).__qualname__, seen))
        return found

    def reducer_override(self, value: Any) -> Any:
        if value is _object:
            return NotImplemented
        parts, _ = take_apart(self.walk, value)
        self.walk.kept.append(parts)  # to the end: a number is known by the id of an object
        return _object, parts


def digest_of(value: Any, digests: Digests | None) -> tuple[bytes, bool]:
    """Return the digest of any value and whether it is stable; never raises for what the value does."""
    kind = type(value)
    walk = Walk(digests)
    try:
        if kind not in _CONTAINERS or not _unfolds_beyond(value, LARGEST_UNFOLDED):
            return walk.digest(value), walk.stable
    except (_HasCycle, RuntimeError):
        pass  # RuntimeError: nested too deeply, or changed by another thread meanwhile
    numbered = _NumberedWalk(digests)
    try:
        return numbered.all(value), numbered.stable
    except RuntimeError:
        return Walk(None).digest(identity_parts(value)), False


def _unfolds_beyond(value: Any, limit: int) -> bool:
    """Tell whether lists within lists share so much that writing each in full would never end.

    Estimates the unfolded size from a sample of each level; only if that is
    beyond the limit, and some container was met twice, are the nodes counted.
    """
    level = [value]
    seen: set[int] = set()
    shared = False
    unfolded = width = 1.0
    for _ in range(100):
        sampled: list[Any] = []
        lengths = 0
        for node in level:
            size = len(node)
            lengths += size
            if type(node) is dict:
                sampled += node.values() if size <= 64 else islice(node.values(), 64)
            else:
                sampled += node if size <= 64 else node[:: size // 64]
        below = [part for part in sampled if type(part) in _CONTAINERS]
        unfolded += width * lengths / len(level)
        if shared and unfolded > limit:
            return _nodes(value) > limit
        if not below:
            return False
        width *= lengths / len(level) * len(below) / len(sampled)
        shared = shared or len(set(map(id, below))) < len(below) or not seen.isdisjoint(map(id, below))
        seen.update(map(id, below))
        level = below if len(below) <= 64 else below[:: len(below) // 64]
    return False


def _nodes(value: Any) -> float:
    """Count the nodes of lists, tuples and dictionaries as if nothing were shared; a cycle counts as endless."""
    counted: dict[int, float] = {}
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        node, done = stack.pop()
        parts = [part for part in gc.get_referents(node) if type(part) in _CONTAINERS]
        if done:
            counted[id(node)] = len(node) + sum(counted.get(id(part), float("inf")) for part in parts)
        elif id(node) not in counted:
            counted[id(node)] = float("inf")
            stack.append((node, True))
            stack.extend((part, False) for part in parts if id(part) not in counted)
    return counted[id(value)]
