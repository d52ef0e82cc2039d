"""Memory that arrays point into: what overlaps before is one piece of memory after. Used by `pickling` only.

While an envelope is pickled every large array is noted here as a `Region`: an
address, a shape and strides. Only at the end is it known which regions overlap;
those become one piece of memory, so a view still points into its base when it
comes back, and a small view of a base that nobody keeps does not drag the base
along. A piece that is large enough is a leaf, the others stay in the envelope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nbflow.core.loaded import loaded
from nbflow.values.leaf import LEAF_MINIMUM, Digests, Leaf, hasher

#: Strided memory is copied and hashed in pieces of this many bytes, so that a column of a
#: row-major table needs no second copy of the table.
PIECE = 1 << 20

View = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(eq=False)
class Region:
    """An array as it lies in memory: bytes `low` to `high`, kept alive through `array`.

    `owner` is 0 for a bare array and otherwise numbers the pandas object that
    holds it; `lane` tells that it is one column of a table.
    """

    array: Any
    low: int
    high: int
    owner: int
    lane: bool

    @property
    def dense(self) -> bool:
        """Whether the array's items fill `low` to `high`, or cover it more than once."""
        return int(self.array.nbytes) >= self.high - self.low

    @property
    def place(self) -> tuple[int, tuple[int, ...], tuple[int, ...], int]:
        """Return what makes two regions the same items of the same memory."""
        return (_address(self.array), self.array.shape, self.array.strides, self.array.itemsize)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _extent(array: Any) -> tuple[int, int]:
    low = high = _address(array)
    for count, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (count - 1) * stride
        else:
            high += (count - 1) * stride
    return low, high + array.itemsize


class _Span:
    """Lets NumPy see raw memory as bytes; keeps the array that owns it alive."""

    def __init__(self, keep: Any, low: int, size: int) -> None:
        self.keep = keep
        self.__array_interface__ = {"data": (low, True), "shape": (size,), "typestr": "|u1", "version": 3}


def span(array: Any, low: int, high: int) -> memoryview:
    """Return the bytes from address `low` to `high`, which `array` keeps alive, without a copy."""
    import numpy as np

    raw: Any = np.asarray(_Span(array, low, high - low))
    return memoryview(raw)


class StridedParts(Sequence[memoryview]):
    """The items of a strided array in pieces, copied one piece at a time while they are iterated."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __iter__(self) -> Iterator[memoryview]:
        for piece in _pieces(self._array):
            yield memoryview(piece.reshape(-1).view("u1"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _pieces(array: Any) -> Iterator[Any]:
    import numpy as np

    if array.nbytes <= PIECE or array.ndim == 0:
        yield np.ascontiguousarray(array)
        return
    row = array.nbytes // len(array)
    if row > PIECE:
        for item in array:
            yield from _pieces(item)
        return
    step = max(1, PIECE // row)
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def hash_parts(parts: Sequence[memoryview], size: int | None = None) -> tuple[bytes, int]:
    """Return BLAKE3-256 of the parts one after the other, and their bytes in total.

    `size` is that total where it is known; the parts of an array with strides are copied for a look at them.
    """
    if size is None:
        size = sum(part.nbytes for part in parts)
    digest = hasher(size)
    for part in parts:
        digest.update(part)
    return digest.digest(), size


class Memory:
    """The regions met while one envelope is pickled."""

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._known: dict[Any, int] = {}
        self.size = 0

    def add(self, array: Any, *, owner: int = 0, lane: bool = False) -> int:
        """Note an array (not empty, no objects in it) and return the number of its view."""
        low, high = _extent(array)
        key = (owner, _address(array), array.shape, array.strides, array.dtype.str)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = len(self._regions)
            self._regions.append(Region(array, low, high, owner, lane))
            self.size += array.nbytes
        return known

    def bytes_of(self, view: int) -> int:
        """Return the size of a view in bytes."""
        return int(self._regions[view].array.nbytes)

    def finish(self, digests: Digests) -> tuple[list[View], list[Leaf | memoryview]]:
        """Return the views (memory, offset, shape, strides) and the memories they point into.

        A memory is a leaf, or its bytes where they are few.
        """
        views: list[View] = [(0, 0, (), ())] * len(self._regions)
        memories: list[Leaf | memoryview] = []
        for group in self._groups():
            regions = [self._regions[index] for index in group]
            first = regions[0]
            # One region that leaves gaps (every tenth item, a column of a row-major table): only its items.
            # Whatever is fully alone may be packed; items shared with others must stay where they are.
            if not first.dense and all(region.place == first.place for region in regions):
                packed, strides = _packed(first.array)
                for index in group:
                    views[index] = (len(memories), 0, first.array.shape, strides)
                memories.append(_memory(StridedParts(packed), int(packed.nbytes), _form(regions)))
                continue
            low = min(region.low for region in regions)
            high = max(region.high for region in regions)
            for index, region in zip(group, regions, strict=True):
                offset = _address(region.array) - low
                views[index] = (len(memories), offset, region.array.shape, region.array.strides)
            raw = span([region.array for region in regions], low, high)
            if high - low < LEAF_MINIMUM:
                memories.append(raw)
            else:
                memories.append(Leaf(digests.of(raw, low), high - low, (raw,), _form(regions)))
        return views, memories

    def _groups(self) -> list[list[int]]:
        """Return the numbers of the regions that must lie in one memory, in order of first sight."""
        alone: list[int] = []
        shared: list[int] = []
        cow = copy_on_write()
        for index, region in enumerate(self._regions):
            # Under copy-on-write pandas objects never see each other's changes although they may
            # share memory: pandas counts references, which do not survive, so each gets its own.
            (alone if region.owner and cow else shared).append(index)
        groups: list[list[int]] = []
        shared.sort(key=lambda index: (self._regions[index].low, index))
        high = -1
        current: list[int] = []
        for index in shared:
            region = self._regions[index]
            if region.low >= high:
                current = []
                groups.append(current)
                high = region.high
            current.append(index)
            high = max(high, region.high)
        groups = [part for group in groups for part in self._split(group)]
        groups.extend([index] for index in alone)
        groups = [sorted(group) for group in groups]
        return sorted(groups)

    def _split(self, group: list[int]) -> list[list[int]]:
        """Take apart what only interleaves: columns of a table, sparse slices that have no item in common."""
        if len(group) == 1:
            return [group]
        places: dict[Any, list[int]] = {}
        for index in group:
            places.setdefault(self._regions[index].place, []).append(index)
        if len(places) == 1:
            return [group]
        firsts = [self._regions[indexes[0]] for indexes in places.values()]
        if all(region.lane for region in firsts) and _are_lanes(firsts):
            return list(places.values())
        if len(firsts) > _PAIRWISE or all(region.dense for region in firsts):
            return [group]
        return _connected(list(places.values()), firsts)


#: Up to so many sparse regions are compared each with each.
_PAIRWISE = 24


def _are_lanes(regions: list[Region]) -> bool:
    """Tell whether one-dimensional regions of one step never meet, as the columns of a row-major table."""
    if len({(region.array.strides, region.array.shape) for region in regions}) > 1:
        return False
    step, starts = abs(regions[0].array.strides[0]), [_address(region.array) for region in regions]
    return bool(max(starts) - min(starts) < step)


def _connected(places: list[list[int]], regions: list[Region]) -> list[list[int]]:
    """Join the places that share an item, directly or over others."""
    import numpy as np

    groups: list[tuple[list[int], list[Region]]] = []
    for indexes, region in zip(places, regions, strict=True):
        joined, members, rest = list(indexes), [region], []
        for numbers, others in groups:
            if any(_share(np, region.array, other.array) for other in others):
                joined, members = numbers + joined, others + members
            else:
                rest.append((numbers, others))
        groups = [*rest, (joined, members)]
    return [numbers for numbers, _ in groups]


def _share(np: Any, one: Any, other: Any) -> bool:
    try:
        return bool(np.shares_memory(one, other, max_work=10_000))
    except (RuntimeError, OverflowError):
        return True  # TooHardError, which has no public name in every NumPy: they may share


def _packed(array: Any) -> tuple[Any, tuple[int, ...]]:
    """Return the array with its slowest axis first, and the strides its items have once packed."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    strides, step = [0] * array.ndim, array.itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= array.shape[axis]
    return array.transpose(order), tuple(strides)


def _memory(parts: Sequence[memoryview], size: int, form: str) -> Leaf | memoryview:
    digest, _ = hash_parts(parts, size)
    if size < LEAF_MINIMUM:
        return memoryview(b"".join(parts))
    return Leaf(digest, size, parts, form)


def _form(regions: list[Region]) -> str:
    from nbflow.values.native import numpy_form

    dtypes = {region.array.dtype for region in regions}
    return numpy_form(dtypes.pop()) if len(dtypes) == 1 else ""


def copy_on_write() -> bool:
    """Tell whether pandas objects are copy-on-write here: always since pandas 3, an option before."""
    pandas = loaded("pandas")
    if pandas is None:
        return False
    if int(pandas.__version__.split(".", 1)[0]) >= 3:
        return True
    return bool(pandas.options.mode.copy_on_write is True)
