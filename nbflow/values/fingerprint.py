"""Fingerprints: 32 bytes that say whether a value is still the same value, in this process or another.

    value ──► canonical.Walk ──► one canonical byte stream ──► BLAKE3
                 │
                 ├── canonical_objects   dates, paths, enums, dataclasses, anything that pickles
                 ├── canonical_numpy, canonical_pandas, canonical_arrow, canonical_libraries
                 └── code_digest         functions and classes

What counts: types (`1`, `1.0` and `True` differ, so do `0.0` and `-0.0`, NaN by
its payload), the order of lists and dictionaries, dtypes, names, time zones.
What does not: the hash seed, the order of sets, whether two equal parts are one
object or two (except in a value that contains itself), the order in which
attributes were set, caches of `functools.cached_property`, and the layout of
memory behind equal arrays other than C against Fortran order.

What has no content to look at (a lock, a file, a generator) is known by its
identity in this process, and what hides part of its state (a matplotlib figure)
by what is seen; both are marked `stable=False`. A fingerprint never raises: a
value whose own code raises while it is looked at is known by identity as well.
"""

from __future__ import annotations

from typing import Any

import msgspec
from blake3 import blake3

from nbflow.values.canonical import FORMAT, digest_of
from nbflow.values.leaf import Digests
from nbflow.values.plain import small_text

_SMALL = FORMAT + b" small "


class Fingerprint(msgspec.Struct, frozen=True):
    """32 bytes of BLAKE3, and whether another process would find the same for the same value."""

    digest: bytes
    stable: bool = True


def fingerprint(value: Any, *, digests: Digests | None = None) -> Fingerprint:
    """Return the value's fingerprint.

    `digests` shares the hashes of large buffers with a checkpoint of the same
    values; it must not outlive the operation, nor the buffers change meanwhile.

    >>> fingerprint({"a", "b"}) == fingerprint({"b", "a"})
    True
    >>> fingerprint([1]) == fingerprint([True])
    False
    >>> fingerprint(iter(())).stable, fingerprint(open).stable
    (True, True)
    """
    text = small_text(value)  # the arguments of most calls: a microsecond or two instead of ten
    if text is not None:
        return Fingerprint(blake3(_SMALL + text).digest())
    digest, stable = digest_of(value, digests)
    return Fingerprint(digest, stable)
