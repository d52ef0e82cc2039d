"""Variables to an envelope with leaves, and back. The way into `nbflow.values` for everything above it.

    encoded = encode({"flights": frame, "n": 3})
    refs = log.put_leaves(encoded.leaves)
    checkpoint = encoded.checkpoint(refs)
    ...
    decode(checkpoint, fetch)      # {"flights": frame, "n": 3}

Two codecs: "json" for values that JSON holds exactly (no pickle is ever loaded
for them), "pickle" for all else (see `nbflow.values.pickling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nbflow.core.errors import CannotRestore, CannotStore
from nbflow.core.model import Checkpoint, LeafRef, OutputInfo
from nbflow.values.fingerprint import fingerprint
from nbflow.values.leaf import Digests, Fetch, Leaf
from nbflow.values.plain import decode_plain, encode_plain

#: A longer body is itself the last leaf.
BODY_MAXIMUM = 64 * 1024


class Encoded(msgspec.Struct, frozen=True):
    """Variables ready to be recorded: write `leaves`, then keep `checkpoint(refs)`."""

    codec: str
    body: bytes
    leaves: tuple[Leaf, ...] = ()
    outputs: tuple[OutputInfo, ...] = ()

    def checkpoint(self, refs: tuple[LeafRef, ...] = ()) -> Checkpoint:
        """Return the record of these variables; `refs` tell where each of `leaves` was written, in order."""
        if len(refs) != len(self.leaves):
            raise ValueError(f"{len(self.leaves)} leaves need as many references, not {len(refs)}")
        return Checkpoint(self.codec, self.body, refs, self.outputs)


def encode(variables: dict[str, Any], *, digests: Digests | None = None) -> Encoded:
    """Encode variables into one envelope; what they share stays shared.

    Large buffers are not copied: the leaves point into the variables' memory, so
    write them before anything changes the variables.

    Raises:
        CannotStore: a part of a variable cannot be pickled; `variable` and `path` name it.

    >>> encode({"n": 3}).body
    b'{"n":3}'
    """
    plain = encode_plain(variables)
    if plain is None:
        return _encode_pickle(variables, digests or Digests())
    body, parts = plain
    outputs = []
    for (name, value), part in zip(variables.items(), parts, strict=True):
        print_ = fingerprint(value, digests=digests)
        text = part.decode() if len(part) <= 200 else part[:199].decode("utf-8", "ignore") + "…"
        outputs.append(OutputInfo(name, type(value).__name__, print_.digest, len(part), print_.stable, text))
    if len(body) <= BODY_MAXIMUM:
        return Encoded("json", body, (), tuple(outputs))
    return Encoded("json", b"", (_leaf_of([memoryview(body)]),), tuple(outputs))


def _encode_pickle(variables: dict[str, Any], digests: Digests) -> Encoded:
    from nbflow.values.describe import preview, table_facts, type_name
    from nbflow.values.pickling import EnvelopePickler

    pickler = EnvelopePickler(digests=digests, defines=list(variables.values()))
    sizes: dict[str, int] = {}
    by_identity: dict[int, int] = {}
    for name, value in variables.items():
        before = pickler.size()
        try:
            pickler.dump(value)
        except MemoryError:
            raise
        except Exception as error:
            raise _cannot_store(name, value, error) from error
        size = pickler.size() - before
        sizes[name] = by_identity.setdefault(id(value), size)
    parts = pickler.finish(tuple(variables))
    outputs = []
    for name, value in variables.items():
        print_ = fingerprint(value, digests=digests)
        rows, columns = table_facts(value, pickler)
        outputs.append(
            OutputInfo(
                name=name,
                type=type_name(value),
                fingerprint=print_.digest,
                size=sizes[name],
                stable=print_.stable,
                preview=preview(value),
                rows=rows,
                columns=columns,
            )
        )
    if sum(part.nbytes for part in parts) <= BODY_MAXIMUM:
        return Encoded("pickle", b"".join(parts), tuple(pickler.leaves), tuple(outputs))
    return Encoded("pickle", b"", (*pickler.leaves, _leaf_of(parts)), tuple(outputs))


def _leaf_of(parts: Sequence[memoryview]) -> Leaf:
    from nbflow.values.memory import hash_parts

    digest, size = hash_parts(parts)
    return Leaf(digest, size, parts)


def _cannot_store(name: str, value: Any, error: BaseException) -> CannotStore:
    from nbflow.values import refusals
    from nbflow.values.locate import locate

    path, part, reason = locate(name, value, error)
    return CannotStore(
        f"The value of {name!r} cannot be stored: {path} is of type {type(part).__qualname__}"
        f" and {refusals.why(reason)}.",
        variable=name,
        path=path,
        hint="Keep it out of the step's results, or make it anew where it is needed.",
    )


def decode(checkpoint: Checkpoint, fetch: Fetch) -> dict[str, Any]:
    """Build the variables of a checkpoint again, in their order.

    `fetch` is called once for each leaf that is used; its memory is used in place, so each
    call must return memory of its own (a private copy-on-write mapping).
    Check the record's signature first: a pickle runs code.

    Raises:
        CannotRestore: the bytes are damaged or a class is gone; `variable` names the variable if it is known.
        StoreError: what `fetch` raised.

    >>> decode(encode({"n": 3}).checkpoint(), lambda digest: memoryview(b""))
    {'n': 3}
    """
    body: bytes | memoryview = checkpoint.body
    if not body:
        if not checkpoint.leaves:
            raise CannotRestore("The checkpoint is empty: it has neither a body nor leaves.")
        last = checkpoint.leaves[-1]
        body = memoryview(fetch(last.digest)).cast("B")
        if body.nbytes != last.size:
            raise CannotRestore(
                f"The envelope has {body.nbytes:,} bytes where the checkpoint tells {last.size:,}.",
                digest=last.digest,
            )
    if checkpoint.codec == "json":
        try:
            found = decode_plain(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CannotRestore(f"The recorded JSON is damaged: {error}.") from error
        if type(found) is not dict:
            raise CannotRestore(f"The recorded JSON is a {type(found).__name__}, not an object of variables.")
        return found
    if checkpoint.codec != "pickle":
        raise CannotRestore(
            f"The checkpoint uses the codec {checkpoint.codec!r}, which this nbflow does not know.",
            hint="Upgrade nbflow, or run the step again.",
        )
    from nbflow.values.pickling import Decoder

    return Decoder(memoryview(body), checkpoint.leaves, fetch).load()
