"""Find the variables that share objects or memory with the outputs of a cell.

After `b = a`, a view of an array, or `parts = [frame]`, two variables are one
thing. Outputs of one step go into one envelope, where `b is a` survives, so all
variables that hang together must be outputs of the same step. The answer is
closed: what shares with a found variable is found too.

How it stays cheap. Reference counts are asked first: where every reference to
every part of the outputs comes from the outputs themselves, nobody else can
share them and no other variable is looked at. Otherwise the others are walked
for just those suspects, each object once, within a budget. For a variable that
is too large the garbage collector is asked who holds the suspects. Taking what
is not known for sharing would tie a whole kernel to one list of records.

Not sharing: atoms, modules, classes, what an immutable object (an Arrow table,
an index) holds, and memory that two pandas frames, or a frame and a read-only
array taken from it, have in common under copy-on-write.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from nbflow.notebook.purity import ATOMS

#: Objects that one walk may visit; 50,000 take about 40 ms.
BUDGET = 50_000
#: How far upwards holders of a suspect are looked for, and among how many at once.
_LEVELS = 8
_WIDTH = 2_000

_SKIPPED = ATOMS | {type, types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType}
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
#: Containers of more elements are first looked at as a whole.
_LONG = 32
#: (first byte, byte behind the last, held by pandas under copy-on-write)
_Range = tuple[int, int, bool]


def sharing(
    names: Iterable[str],
    namespace: Mapping[str, Any],
    *,
    among: Collection[str] | None = None,
    extra: Iterable[Any] = (),
    budget: int = BUDGET,
) -> set[str]:
    """Return the other variables that share memory or mutable objects with `names`.

    `among` limits the variables that are looked at (default: all of the
    namespace but private ones); `extra` are objects that count as outputs
    though no name is bound to them any more.

    >>> a = [1]
    >>> sharing(["a"], {"a": a, "b": {"inner": a}, "c": [1]})
    {'b'}
    """
    group = [name for name in dict.fromkeys(names) if name in namespace]
    others = _candidates(group, namespace, among)
    found: set[str] = set()
    if not others:
        return found
    roots = [namespace[name] for name in group]
    held = [1] * len(roots)
    for value in extra:
        roots.append(value)
        held.append(0)
    value = None
    walk = _Walk(budget)
    while True:
        suspects = walk.suspects(roots, held)
        if suspects is None:
            return found
        left = [name for name in others if name not in found]
        # Another name for the very object comes first: mostly it explains all references.
        new = [name for name in left if id(namespace[name]) in suspects.ids]
        if not new:
            new = walk.met(left, namespace, suspects)
        if not new:
            return found
        del suspects  # it refers to parts, and references are counted again
        # What hangs together with a new one belongs to the group as well.
        found.update(new)
        roots.extend(namespace[name] for name in new)
        held.extend(1 for _ in new)


def _candidates(group: list[str], namespace: Mapping[str, Any], among: Collection[str] | None) -> list[str]:
    if among is None:
        among = [name for name in namespace if not name.startswith("_")]
    return [
        name
        for name in among
        if name not in group and name in namespace and type(namespace[name]) not in _SKIPPED
    ]


class _Suspects:
    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.ranges: list[_Range] = []
        #: The objects themselves, so that no id is reused while it is looked for.
        self.kept: list[Any] = []

    def add_all(self, parts: Iterable[Any]) -> None:
        """Take in those parts that can change."""
        for part in parts:
            if is_mutable(part):
                self.ids.add(id(part))
                self.kept.append(part)

    def hit(self, low: int, high: int, lazy: bool) -> bool:
        return any(low < end and start < high and not (lazy and other) for start, end, other in self.ranges)


class _Walk:
    """Walks over the object graph; each may visit `budget` objects."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def suspects(self, roots: list[Any], held: list[int]) -> _Suspects | None:
        """Return the parts of the roots that something outside of them refers to; None if there are none.

        `held` counts the references to each root that are known: its name.
        """
        parts: list[Any] = []
        index: dict[int, int] = {}
        inside: list[int] = []
        for at in range(len(roots)):
            if type(roots[at]) in _SKIPPED:
                continue
            known = index.setdefault(id(roots[at]), len(parts))
            if known == len(parts):
                parts.append(roots[at])
                inside.append(0)
            inside[known] += held[at] + 1  # one more from the list `roots`
        found = _Suspects()
        position = 0
        while position < len(parts) and len(parts) <= self.budget:
            part = parts[position]
            position += 1
            flat = _flat_elements(part)
            if flat is not None:
                found.add_all(
                    element for element, count in zip(flat, references(flat), strict=True) if count > 1
                )
                continue
            for child in referents(part):
                known = index.setdefault(id(child), len(parts))
                if known == len(parts):
                    parts.append(child)
                    inside.append(0)
                inside[known] += 1
        # No loop variable may refer to a part while references are counted.
        part = child = flat = None
        counts = references(parts)
        for at, part in enumerate(parts):
            held_outside = counts[at] > inside[at]
            if held_outside:
                found.add_all((part,))
            for low, high, lazy, viewed in memory(part):
                if viewed or held_outside:
                    found.ranges.append((low, high, lazy))
        return found if found.ids or found.ranges else None

    def met(self, names: list[str], namespace: Mapping[str, Any], suspects: _Suspects) -> list[str]:
        """Return those of the names that reach a suspect."""
        left = self.budget
        clean: dict[int, Any] = {}
        found: list[str] = []
        unknown: list[str] = []
        for name in names:
            hit, left = self._meets(namespace[name], suspects, clean, left)
            if hit:
                found.append(name)
            elif hit is None:
                unknown.append(name)
                left = max(left, self.budget // 10)  # one huge variable does not hide the others
        if unknown:
            found.extend(_holders(unknown, namespace, suspects))
        return found

    def _meets(
        self, value: Any, suspects: _Suspects, clean: dict[int, Any], left: int
    ) -> tuple[bool | None, int]:
        """Tell whether the value reaches a suspect (None: the budget is too small), and what is left."""
        seen: dict[int, Any] = {}
        stack = [value]
        while stack:
            part = stack.pop()
            key = id(part)
            if key in suspects.ids:
                return True, left
            if key in seen or key in clean:
                continue
            seen[key] = part  # kept alive: a temporary's id would come again
            left -= 1
            if left < 0:
                return None, 0
            if type(part) in _CONTAINERS:
                flat = _flat_elements(part)
                if flat is not None:
                    left -= len(flat) // 16
                    if not suspects.ids.isdisjoint(map(id, flat)):
                        return True, left
                    continue
            elif suspects.ranges:
                for low, high, lazy, _ in memory(part):
                    if suspects.hit(low, high, lazy):
                        return True, left
            stack.extend(referents(part))
        clean.update(seen)
        return False, left


def _flat_elements(part: Any) -> list[Any] | None:
    """Return the elements of a long container of flat ones (records, rows); None if it is none.

    Told at C speed: no element is looked at by itself.
    """
    kind = type(part)
    if kind not in _CONTAINERS or len(part) <= _LONG:
        return None
    elements = list(part.values()) if kind is dict else list(part)
    kinds = set(map(type, elements)) - _SKIPPED
    if not kinds or not kinds <= _CONTAINERS or (kind is dict and set(map(type, part)) - _SKIPPED):
        return None
    if len(kinds) > 1 or set(map(type, elements)) - kinds:
        elements = [element for element in elements if type(element) in _CONTAINERS]
    within = map(dict.values, elements) if kinds == {dict} else elements
    if len(kinds) > 1 and dict in kinds:
        return None
    return None if set(map(type, chain.from_iterable(within))) - _SKIPPED else elements


def _holders(names: list[str], namespace: Mapping[str, Any], suspects: _Suspects) -> list[str]:
    """Find from the suspects upwards which of some huge variables hold them.

    The garbage collector knows who refers to whom, at the price of a look at
    every object there is: some 20 ms a step for a million objects. It does not
    see into NumPy arrays of objects; memory shared deep inside a variable that
    is too large to walk is not found either.
    """
    wanted = {id(namespace[name]): name for name in names}
    found: dict[str, None] = {}
    seen = {id(suspects.kept), id(wanted), id(namespace)}
    level: list[Any] = list(suspects.kept)
    for _ in range(_LEVELS):
        if not level or len(level) > _WIDTH:
            break
        seen.add(id(level))
        above: list[Any] = []
        for holder in gc.get_referrers(*level):
            if id(holder) in seen or isinstance(holder, (types.FrameType, types.ModuleType)):
                continue
            seen.add(id(holder))
            if id(holder) in wanted:
                found.setdefault(wanted[id(holder)])
            above.append(holder)
        level = above
    return list(found)


def references(parts: list[Any]) -> list[int]:
    """Return how many references each part has beside the one from this list."""
    return [count - _OVERHEAD for count in map(sys.getrefcount, parts)]


# What the list, `map` and the call themselves add differs between Pythons: measured, not assumed.
_OVERHEAD = 0
_OVERHEAD = references([object()])[0]


def is_mutable(part: Any) -> bool:
    """Tell whether a change of this object itself can be seen by others that hold it."""
    kind = type(part)
    if kind in (tuple, frozenset):
        return False
    if kind is types.FunctionType or kind is types.MethodType:
        return False  # their closures are walked; the functions themselves are definitions
    module = kind.__module__
    if module.startswith("pandas."):
        return "Index" not in kind.__name__
    return not (module.startswith("pyarrow") or kind.__name__ == "mappingproxy")


def referents(part: Any) -> Iterator[Any]:
    """Yield what the object holds that could be shared: no atoms, no classes, no modules."""
    kind = type(part)
    if kind in _SKIPPED or isinstance(part, type):
        return
    children: Iterable[Any]
    if kind is dict:
        children = part.values()
        if len(part) > _LONG and not (set(map(type, children)) - _SKIPPED):
            children = ()
        if set(map(type, part)) - _SKIPPED:
            children = [*children, *part]
    elif kind in _CONTAINERS:
        if len(part) > _LONG and not (set(map(type, part)) - _SKIPPED):
            return  # a long list of numbers, told at C speed
        children = part
    elif kind is types.FunctionType:
        children = [
            *(part.__closure__ or ()),
            *(part.__defaults__ or ()),
            *(part.__kwdefaults__ or {}).values(),
        ]
        wrapped = part.__dict__.get("__wrapped__")
        if wrapped is not None:
            children = [*children, wrapped]
    else:
        module = kind.__module__
        top = module.partition(".")[0]
        if top == "numpy" and hasattr(part, "dtype"):
            children = _array_parts(part)
        elif top == "pandas" and _is_frame(part):
            children = [child for array in frame_arrays(part) for child in _array_parts(array, base=False)]
            children += [value for value in part.attrs.values() if type(value) not in _SKIPPED]
        elif top in ("pyarrow", "polars", "duckdb") or (top == "pandas" and "Index" in kind.__name__):
            return
        else:
            children = gc.get_referents(part)
    for child in children:
        kind = type(child)
        if kind not in _SKIPPED and not isinstance(child, type):
            yield child


def memory(part: Any) -> list[tuple[int, int, bool, bool]]:
    """Return the memory ranges of arrays and frames: first byte, end, copy-on-write, held by others too."""
    kind = type(part)
    if kind in _SKIPPED or kind in _CONTAINERS:
        return []
    top = kind.__module__.partition(".")[0]
    if top == "numpy" and hasattr(part, "__array_interface__") and hasattr(part, "base"):
        if not part.nbytes:
            return []
        owners = [part.base]
        return [
            (*_bounds(part), not part.flags.writeable, owners[0] is not None and references(owners)[0] > 1)
        ]
    if top == "pandas" and _is_frame(part):
        arrays = [array for array in frame_arrays(part) if array.nbytes]
        lazy = _lazy_copies()
        return [
            (*_bounds(array), lazy, viewed) for array, viewed in zip(arrays, _viewed(arrays), strict=True)
        ]
    if top == "torch" and hasattr(part, "untyped_storage"):
        if part.device.type != "cpu":
            return []
        storage = part.untyped_storage()
        return [(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), False, True)]
    return []


def frame_arrays(frame: Any) -> list[Any]:
    """Return the NumPy arrays behind a pandas frame or series, where they can be written to."""
    arrays: list[Any] = []
    for block in frame._mgr.blocks:  # noqa: SLF001 - there is no public way to the blocks themselves
        values = block.values
        behind = (values, *(getattr(values, name, None) for name in ("_ndarray", "_data", "_mask")))
        arrays.extend(array for array in behind if type(array).__name__ == "ndarray")
    return arrays


def _array_parts(array: Any, *, base: bool = True) -> list[Any]:
    parts = []
    if array.dtype.hasobject and array.dtype.names is None:
        elements = array.ravel().tolist()
        if set(map(type, elements)) - _SKIPPED:
            parts.extend(elements)
    owner = getattr(array, "base", None)
    if base and owner is not None and type(owner).__module__.partition(".")[0] != "numpy":
        parts.append(owner)  # a bytearray, an mmap, an Arrow buffer …
    return parts


def _is_frame(part: Any) -> bool:
    return type(part).__module__.startswith("pandas") and hasattr(part, "_mgr")


def _viewed(arrays: list[Any]) -> list[bool]:
    """Tell for each array of a frame whether anything but its block refers to its memory.

    A view refers to the array that owns the memory, so the owner's own name and
    other views show as further references to the owner.
    """
    owners = [array.base for array in arrays]
    own, owned = references(arrays), references(owners)
    times = Counter(map(id, owners))
    return [
        # An owner counts once from each view and once from each place in the list `owners`.
        own[at] > 1
        or (owners[at] is not None and owned[at] - (times[id(owners[at])] - 1) > times[id(owners[at])])
        for at in range(len(arrays))
    ]


def _bounds(array: Any) -> tuple[int, int]:
    """Return the first byte of an array and the one behind its last (strides may be negative)."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def _lazy_copies() -> bool:
    """Tell whether pandas copies on write: always from version 3, on request in 2."""
    pandas = sys.modules["pandas"]
    return int(pandas.__version__.partition(".")[0]) >= 3 or pandas.get_option("mode.copy_on_write") is True
