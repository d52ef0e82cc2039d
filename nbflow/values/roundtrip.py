"""Finds values whose pickle is silently wrong: it loads, and what it loads is something else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from nbflow.core.errors import CannotStore, ValueProblem
from nbflow.core.model import LeafRef
from nbflow.values.codec import decode, encode
from nbflow.values.fingerprint import fingerprint
from nbflow.values.locate import parts

#: Classes known to come back different, and how. By module and name; nothing is imported.
KNOWN: dict[str, str] = {
    "tensorflow.python.data.ops.dataset_ops.DatasetV2": "a dataset's position is lost",
    "itertools.tee": "the other half of the tee is detached",
    "weakref.WeakSet": "members that nothing else holds are gone",
    "weakref.WeakValueDictionary": "values that nothing else holds are gone",
    "logging.Logger": "a logger comes back by name, with the handlers of the new process",
    "matplotlib.figure.Figure": "callbacks and the window are gone",
    "numpy.memmap": "the numbers come back in memory, not bound to their file",
    "requests.sessions.Session": "open connections are gone",
    "random.SystemRandom": "it has no state to keep",
}


#: A comparison looks at so many parts at most.
PARTS = 100_000
_SIMPLE = (int, float, complex, bool, str, bytes, type(None))


@dataclass(frozen=True)
class Difference:
    """A variable that a round trip changes: `reason` says how it was found out."""

    variable: str
    type: str
    reason: str


def check_roundtrip(variables: dict[str, Any]) -> list[Difference]:
    """Encode and decode the variables and list those that came back different; [] when all are true.

    Costs an encoding, a decoding and two fingerprints of everything.

    Raises:
        CannotStore: a variable cannot be pickled at all.

    >>> check_roundtrip({"n": 3})
    []
    """
    encoded = encode(variables)
    memory = {leaf.digest: b"".join(leaf.parts) for leaf in encoded.leaves}
    refs = tuple(LeafRef(leaf.digest, leaf.size, form=leaf.form) for leaf in encoded.leaves)
    checkpoint = encoded.checkpoint(refs)
    try:
        back = decode(checkpoint, lambda digest: memoryview(bytearray(memory[digest])))
    except ValueProblem as error:
        return [_difference(getattr(error, "variable", None) or "?", None, str(error))]
    found = []
    for output in encoded.outputs:
        value = variables[output.name]
        known = known_offender(value)
        again = back[output.name]
        if known is not None:
            found.append(_difference(output.name, value, known))
        elif type(again) is not type(value):
            found.append(_difference(output.name, value, f"it comes back as {type(again).__qualname__}"))
        elif fingerprint(again).digest != output.fingerprint and output.stable:
            found.append(_difference(output.name, value, "its contents differ after a round trip"))
        elif (path := first_difference(output.name, value, again)) is not None:
            found.append(_difference(output.name, value, f"{path} differs after a round trip"))
    return found


def require_roundtrip(variables: dict[str, Any]) -> None:
    """Check as `check_roundtrip` does, and refuse what comes back different.

    Raises:
        CannotStore: `variable` names the first that does.
    """
    found = check_roundtrip(variables)
    if found:
        first = found[0]
        raise CannotStore(
            f"The value of {first.variable!r} ({first.type}) would not come back as it is: {first.reason}.",
            variable=first.variable,
            path=first.variable,
            hint="Keep it out of the step's results, or mend its __reduce__ or __getstate__.",
        )


def first_difference(path: str, one: Any, other: Any) -> str | None:
    """Return the path of the first part whose attributes differ, whatever its pickle says; None when none."""
    todo = [(path, one, other)]
    seen: set[int] = set()
    while todo and len(seen) < PARTS:
        path, one, other = todo.pop()
        if one is other or id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) is not type(other):
            return path
        if type(one) in _SIMPLE:
            if one != other and one == one:  # noqa: PLR0124 (NaN)
                return path
            continue
        if isinstance(
            one, (type, FunctionType, ModuleType, MethodType, set, frozenset, partial)
        ) or _of_library(one):
            continue  # the fingerprint has looked at these as they are
        before, after = dict(parts(one)), dict(parts(other))
        for step, part in reversed(before.items()):
            if step in after:
                todo.append((path + step, part, after[step]))
            elif not step.startswith("._"):
                return path + step
    return None


def _of_library(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in (
        "numpy",
        "pandas",
        "pyarrow",
        "polars",
        "scipy",
        "torch",
    )


def known_offender(value: Any) -> str | None:
    """Return how a class known for it changes in a round trip; None for others."""
    for base in type(value).__mro__:
        reason = KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if reason is not None:
            return reason
    return None


def _difference(name: str, value: Any, reason: str) -> Difference:
    return Difference(name, type(value).__qualname__ if value is not None else "", reason)
