"""How pandas objects are pickled: every column by itself, in memory of its own.

Frames, series and their subclasses keep pandas' own pickle for all that is
small (names, attrs, flags, metadata); only their block managers and indexes are
taken apart here. A row of a block *is* a column, so a column's leaf does not
depend on how pandas happened to consolidate its blocks, and a frame with one
column more shares all other leaves with the one before.
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

from nbflow.values import links
from nbflow.values.memory import copy_on_write

if TYPE_CHECKING:
    from nbflow.values.pickling import EnvelopePickler

#: Wider frames are stored block by block: pandas warns of fragmentation from 100 blocks on.
WIDE = 96
#: Object columns of at least this many rows are looked through for plain text.
TEXT_ROWS = 1000


class Owned:
    """Marks an array (NumPy's or pandas') as a part of pandas object number `owner`; pickled as the array.

    After pickling, `view` or `leaf` tell where the items went, `parts` which
    arrays an extension array consists of.
    """

    __slots__ = ("array", "lane", "leaf", "owner", "parts", "view")

    def __init__(self, array: Any, owner: int, *, lane: bool = False) -> None:
        self.array = array
        self.owner = owner
        self.lane = lane
        self.view: int | None = None
        self.leaf: int | None = None
        self.parts: list[Owned] = []


def own(pickler: EnvelopePickler, array: Any, owner: int, *, lane: bool = False) -> Owned:
    """Mark an array as a part of a pandas object.

    Without copy-on-write two pandas objects may see each other's changes: then the same objects in the
    same place are one array for both. (Numbers are joined by their address, in `Memory`.)
    """
    import numpy as np

    if copy_on_write():
        return Owned(array, owner, lane=lane)
    key: Any = id(array)
    if isinstance(array, np.ndarray):
        if not array.dtype.hasobject or not array.size:
            return Owned(array, owner, lane=lane)
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
    owned: Owned = pickler.owned.setdefault(key, Owned(array, owner, lane=lane))
    return owned


def reduce_manager(pickler: EnvelopePickler, manager: Any) -> Any:
    """Reduce a frame's BlockManager."""
    owner = pickler.new_owner()
    wide = len(manager.axes[0]) > WIDE
    specs: list[tuple[Any, bool, Any]] = []
    columns: dict[int, Owned] = {}
    for block in manager.blocks:
        values = block.values
        if getattr(values, "ndim", 1) == 2 and not wide:
            for row, place in zip(range(len(values)), block.mgr_locs, strict=True):
                columns[int(place)] = column = own(pickler, values[row], owner, lane=True)
                specs.append((int(place), True, column))
        elif getattr(values, "ndim", 1) == 2:
            specs.append((block.mgr_locs.indexer, False, own(pickler, values, owner)))
        else:
            place = int(next(iter(block.mgr_locs)))
            columns[place] = column = own(pickler, values, owner, lane=True)
            specs.append((place, False, column))
    pickler.columns[id(manager)] = columns
    return make_manager, (type(manager), list(manager.axes), specs)


def reduce_single_manager(pickler: EnvelopePickler, manager: Any) -> Any:
    """Reduce a series' SingleBlockManager."""
    column = own(pickler, manager.blocks[0].values, pickler.new_owner(), lane=True)
    pickler.columns[id(manager)] = {0: column}
    return make_single_manager, (type(manager), manager.axes[0], column)


def reduce_index(pickler: EnvelopePickler, index: Any) -> Any:
    """Reduce an Index whose pickle hands over its array as `data`."""
    reduced = index.__reduce__()
    if len(reduced) < 2 or len(reduced[1]) != 2 or not isinstance(reduced[1][1], dict):
        return reduced
    function, (cls, facts), *rest = reduced
    if "data" in facts:
        facts = {**facts, "data": own(pickler, facts["data"], pickler.new_owner(), lane=True)}
    if hasattr(index, "_freq") and "freq" in facts:
        facts = {**facts, "freq": index.freq}
    return (function, (cls, facts), *rest)


def reduce_owned(pickler: EnvelopePickler, owned: Owned) -> Any:
    """Reduce an array of a pandas object, its memory kept apart from that of other pandas objects."""
    import numpy as np

    from nbflow.values.text import reduce_text

    array = owned.array
    if isinstance(array, np.ndarray):
        if array.dtype == object and array.ndim == 1 and len(array) >= TEXT_ROWS:
            text = reduce_text(pickler, array)
            if text is not None:
                reduced, owned.leaf = text
                return reduced
        reduced, owned.view = reduce_owned_array(pickler, array, owned)
        return reduced
    chunked = getattr(array, "_pa_array", None)
    if chunked is not None and hasattr(chunked, "chunks") and _plain_reduce(array):
        # Arrow memory is never written to (pandas replaces it), so sharing it is safe. pandas' own
        # pickle would first copy many chunks into one.
        state = {key: value for key, value in vars(array).items() if key not in ("_pa_array", "_cache")}
        return make_arrow_array, (type(array), chunked, state)
    reduced = array.__reduce_ex__(5)
    if isinstance(reduced, tuple) and reduced[0] is vars(copyreg)["__newobj__"]:
        # pickle insists that only the object itself is made this way, not its stand-in.
        reduced = (make_object, *reduced[1:])
    if not isinstance(reduced, tuple) or not _plain_reduce(array):
        return links.detached, (array,)
    return tuple(_own(part, owned) if place else part for place, part in enumerate(_without_cache(reduced)))


def _plain_reduce(array: Any) -> bool:
    """Tell whether a class leaves `__reduce_ex__` to `object`, so that what it gives may be taken apart."""
    own: Any = type(array).__reduce_ex__
    return own is object.__reduce_ex__


def reduce_owned_array(pickler: EnvelopePickler, array: Any, owned: Owned) -> tuple[Any, int | None]:
    """Reduce a NumPy array of a pandas object."""
    from nbflow.values.arrays import reduce_owned_array as reduce

    return reduce(pickler, array, owned.owner, lane=owned.lane)


def _own(part: Any, owner: Owned) -> Any:
    """Wrap the arrays in an extension array's pickled parts."""
    import numpy as np
    from pandas.api.extensions import ExtensionArray

    if isinstance(part, (np.ndarray, ExtensionArray)):
        inner = Owned(part, owner.owner, lane=owner.lane)
        owner.parts.append(inner)
        return inner
    if type(part) is tuple:
        return tuple(_own(item, owner) for item in part)
    if type(part) is dict:
        return {key: _own(value, owner) for key, value in part.items()}
    return part


def _without_cache(reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave computed caches out: they would make the bytes depend on what was looked at."""
    if len(reduced) > 2 and type(reduced[2]) is dict and "_cache" in reduced[2]:
        state = {key: ({} if key == "_cache" else value) for key, value in reduced[2].items()}
        return (*reduced[:2], state, *reduced[3:])
    return reduced


def make_arrow_array(cls: Any, chunked: Any, state: dict[str, Any]) -> Any:
    """Build one of pandas' Arrow-backed arrays."""
    import pyarrow as pa

    found = cls.__new__(cls)
    found.__setstate__({**state, "_pa_array": chunked.chunks or pa.array([], chunked.type)})
    return found


def make_object(cls: Any, *arguments: Any) -> Any:
    """Make an object without calling its `__init__`."""
    return cls.__new__(cls, *arguments)


def make_manager(cls: type, axes: list[Any], specs: list[tuple[Any, bool, Any]]) -> Any:
    """Build a BlockManager of one block per column, or of whole blocks where `place` is not a number.

    `stacked` tells that pandas keeps such a column as a row of a two-dimensional block.
    """
    from pandas._libs.internals import _unpickle_block  # type: ignore[import-not-found]

    blocks = []
    for place, stacked, values in specs:
        rows = values.reshape(1, -1) if stacked else values
        blocks.append(_unpickle_block(rows, slice(place, place + 1) if isinstance(place, int) else place, 2))
    return cls(tuple(blocks), axes)


def make_single_manager(cls: Any, index: Any, values: Any) -> Any:
    """Build a SingleBlockManager."""
    from pandas._libs.internals import _unpickle_block

    return cls(_unpickle_block(values, slice(0, len(index), 1), 1), index)
