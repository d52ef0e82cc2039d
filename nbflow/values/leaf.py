"""A leaf: one large buffer of a value, known by the BLAKE3 of its bytes. The word between `values` and `store`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

#: Buffers below this many bytes stay inside the envelope: a reference costs more than it saves.
LEAF_MINIMUM = 16 * 1024

#: From so many bytes on BLAKE3 uses every core: 100 MB in 10 ms on two, where one takes 20.
_THREADED = 1024 * 1024

#: What a store hands back for a digest: the leaf's bytes, writable copy-on-write where it can.
Fetch = Callable[[bytes], memoryview]


_threads = blake3.AUTO


def _stay_alone() -> None:
    global _threads  # noqa: PLW0603 - a fact of the process
    _threads = 1


if hasattr(os, "register_at_fork"):
    # BLAKE3's threads stay with the parent: a forked child would wait for them forever.
    os.register_at_fork(after_in_child=_stay_alone)


def hasher(size: int) -> blake3:
    """Return a new BLAKE3 for about `size` bytes, which uses all cores where that pays."""
    return blake3(max_threads=_threads) if size >= _THREADED else blake3()


@dataclass(frozen=True)
class Leaf:
    """A buffer to be written: `parts` one after the other are its bytes, never joined in memory.

    `digest` is BLAKE3-256 of those bytes and `size` counts them. `form` says
    what they are, so that compaction can make a native DuckDB column of them
    (`nbflow.values.native`); "" is opaque.
    """

    digest: bytes
    size: int
    parts: Sequence[memoryview]
    form: str = ""


class Digests:
    """Hash each buffer once: within one operation the fingerprint and the checkpoint ask for the same bytes.

    Keyed by address and length, so it must not outlive the operation: the
    buffers it saw are kept alive, and must not be changed meanwhile.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[bytes, memoryview]] = {}

    def of(self, buffer: memoryview, address: int) -> bytes:
        """Return BLAKE3-256 of a contiguous buffer that starts at `address`."""
        key = (address, buffer.nbytes)
        known = self._known.get(key)
        if known is None:
            digest = hasher(buffer.nbytes)
            digest.update(buffer)
            known = self._known[key] = (digest.digest(), buffer)
        return known[0]
