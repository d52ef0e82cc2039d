"""How entries lie in a journal file: framed, signed, and read back up to the last one that can be trusted.

    file  = header, frame*
    header = "nbflow" version:u16 key_id:8 generation:u64 run:64 mac:16      little-endian, 104 bytes
    frame  = magic:4 length:u32 synced:u64 mac:16 body                      body is MessagePack of Entry

`mac` is keyed BLAKE3 over the run's id and the body, so a frame cannot be moved
to another run; the seq is in the body, so it cannot be moved within one. The
last frame of an append carries another magic than those before it: an append
of several records counts whole or not at all.

`synced` tells how many bytes of the file were known to be on disk when the
frame was written. That is how a bad frame is judged: a torn tail was never
acknowledged and is cut silently, unless a later valid frame proves that its
bytes had been on disk; then it is `CorruptRecord`. Room that the writer has
allocated ahead is zeros, a torn tail as well. The field is advisory and
not signed: altered, it can only turn one into the other, never bad into good.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from nbflow.core.errors import CorruptRecord, NotAStore, StoreError, StoreTooNew, Untrusted, UsageError
from nbflow.core.model import Entry, decode_entry
from nbflow.values.trust import key_id, mac, maker

FORMAT = 1
HEADER = struct.Struct("<6sH8sQ64s16s")
FRAME = struct.Struct("<4sIQ16s")

_NAME = b"nbflow"
_MARK = b"\xf5nf"
#: The frame ends its append, or another frame of the same append follows.
LAST = _MARK + b"."
MORE = _MARK + b"+"
_MAGICS = (LAST, MORE)

#: A record larger than this belongs into a leaf.
BODY_LIMIT = 1 << 30

Seal = Callable[[bytes], bytes]


def sealer(key: bytes, run: str) -> Seal:
    """Return the function that signs bodies of one run: 16 bytes of keyed BLAKE3 over run id and body."""
    return maker(key, run.encode())


class Frame(NamedTuple):
    """An entry with the very bytes and signature it was read with; the database keeps both."""

    entry: Entry
    body: bytes
    mac: bytes


class Reading(NamedTuple):
    """What could be read: whole appends only, and the offset behind the last of them."""

    frames: list[Frame]
    end: int


def pack_header(run: str, generation: int, key: bytes) -> bytes:
    """Return the header of a journal file.

    Raises:
        UsageError: the run id is longer than 64 bytes.
    """
    name = run.encode()
    if not 0 < len(name) <= 64:
        raise UsageError(f"A run id has 1 to 64 bytes, not {len(name)}: {run!r}.", run=run)
    unsigned = HEADER.pack(_NAME, FORMAT, key_id(key), generation, name, b"")[:-16]
    return unsigned + mac(key, b"journal header", unsigned)


def check_header(raw: bytes, run: str, generation: int, key: bytes, *, place: str) -> None:
    """Check a journal file's header; `place` names the file in messages.

    Raises:
        NotAStore: the file is no journal.
        StoreTooNew: written by a later nbflow.
        Untrusted: signed by another user's key.
        CorruptRecord: cut, altered, or the header of another run or generation.
    """
    hint = f"`nbflow doctor` offers what can be saved of run {run}."
    if len(raw) < HEADER.size:
        raise CorruptRecord(f"{place} of run {run} is cut inside its header.", run=run, hint=hint)
    name, version, signer, number, owner, signature = HEADER.unpack_from(raw)
    if name != _NAME:
        raise NotAStore(f"{place} of run {run} is no journal of nbflow.", run=run, hint=hint)
    if version > FORMAT:
        raise StoreTooNew(
            f"{place} of run {run} has format {version}; this nbflow reads up to {FORMAT}.",
            run=run,
            hint="Upgrade nbflow; the file was left untouched.",
        )
    if signer != key_id(key):
        raise Untrusted(
            f"{place} of run {run} is signed by another key ({signer.hex()}); nothing of it was loaded.",
            run=run,
            hint="If you trust its author, `nbflow trust STORE` signs it with yours.",
        )
    if signature != mac(key, b"journal header", raw[: HEADER.size - 16]):
        raise CorruptRecord(f"The header of {place} of run {run} fails its check.", run=run, hint=hint)
    if number != generation or owner.rstrip(b"\0") != run.encode():
        other = owner.rstrip(b"\0").decode(errors="replace")
        raise CorruptRecord(
            f"{place} of run {run} belongs to run {other}, generation {number}.",
            run=run,
            hint=hint,
        )


def pack_frames(bodies: list[bytes], synced: int, seal: Seal) -> bytes:
    """Return the frames of one append; it counts whole or not at all.

    Raises:
        StoreError: a body is larger than 1 GiB.
    """
    if len(bodies) == 1:
        body = bodies[0]
        if len(body) <= BODY_LIMIT:
            return FRAME.pack(LAST, len(body), synced, seal(body)) + body
    parts: list[bytes] = []
    left = len(bodies)
    for body in bodies:
        if len(body) > BODY_LIMIT:
            raise StoreError(
                f"A record of {len(body)} bytes is larger than the 1 GiB a journal takes.",
                hint="Print less, or record large outputs as values.",
            )
        left -= 1
        parts += (FRAME.pack(MORE if left else LAST, len(body), synced, seal(body)), body)
    return b"".join(parts)


def read_frames(
    buffer: bytes, run: str, key: bytes, first_seq: int, *, start: int = 0, base: int = 0
) -> Reading:
    """Read whole appends from `buffer[start:]`, whose entries must be dense from `first_seq`.

    `base` is the offset in the file of the buffer's first byte. What follows
    the last whole append is either a torn tail, which is left out, or damage.

    Raises:
        CorruptRecord: a record that had been on disk fails its check, or seqs are not dense.
        StoreTooNew: a signed record of a kind this nbflow does not know.
    """
    # Thousands of small objects that all stay would send the collector through them again and again:
    # it took a fifth of the time.
    collecting = len(buffer) > 65536 and gc.isenabled()
    if collecting:
        gc.disable()
    try:
        return _read(buffer, run, key, first_seq, start, base)
    finally:
        if collecting:
            gc.enable()


def _read(buffer: bytes, run: str, key: bytes, first_seq: int, start: int, base: int) -> Reading:
    frames: list[Frame] = []
    append, unpack, head, last, seal = frames.append, FRAME.unpack_from, FRAME.size, LAST, sealer(key, run)
    size = len(buffer)
    position = end = start
    seq = first_seq
    whole = 0
    while position + head <= size:
        magic, length, _, signature = unpack(buffer, position)
        stop = position + head + length
        if stop > size or (magic not in _MAGICS):
            break
        body = buffer[position + head : stop]
        if seal(body) != signature:
            break
        entry = _decode(body, run, seq)
        if entry.seq != seq:
            raise CorruptRecord(
                f"Run {run} has record {entry.seq} where {seq} belongs.",
                run=run,
                seq=seq,
                hint=f"`nbflow doctor` offers what can be saved of run {run}.",
            )
        append(Frame(entry, body, signature))
        seq += 1
        position = stop
        if magic == last:
            end = stop
            whole = len(frames)
    if position < size:
        _judge(buffer, position, run, key, base, seq)
    del frames[whole:]
    return Reading(frames, base + end)


def first_entry(buffer: bytes, run: str, key: bytes, *, place: str) -> Entry:
    """Return the first entry behind a journal's header, whatever its seq.

    Raises:
        CorruptRecord: there is none that passes its check; a journal is never created without it.
    """
    start = HEADER.size
    if start + FRAME.size <= len(buffer):
        magic, length, _, signature = FRAME.unpack_from(buffer, start)
        body = buffer[start + FRAME.size : start + FRAME.size + length]
        if magic == LAST and len(body) == length and mac(key, run.encode(), body) == signature:
            return _decode(body, run, 0)
    raise CorruptRecord(
        f"The first record of {place} of run {run} fails its check.",
        run=run,
        hint=f"`nbflow doctor` offers what can be saved of run {run}; earlier records stay readable.",
    )


def _decode(body: bytes, run: str, seq: int) -> Entry:
    try:
        return decode_entry(body)
    except msgspec.DecodeError as error:
        # The signature is right, so these are the bytes somebody wrote: a later nbflow.
        raise StoreTooNew(
            f"Record {seq} of run {run} is of a kind this nbflow does not know ({error}).",
            run=run,
            seq=seq,
            hint="Upgrade nbflow; the record was left untouched.",
        ) from error


def _judge(buffer: bytes, position: int, run: str, key: bytes, base: int, seq: int) -> None:
    """Raise if a valid frame behind `position` proves that the bytes there had been on disk."""
    context = run.encode()
    found = buffer.find(_MARK, position + 1)
    while found >= 0 and found + FRAME.size <= len(buffer):
        magic, length, synced, signature = FRAME.unpack_from(buffer, found)
        stop = found + FRAME.size + length
        proof = synced > base + position and stop <= len(buffer) and magic in _MAGICS
        if proof and mac(key, context, buffer[found + FRAME.size : stop]) == signature:
            raise CorruptRecord(
                f"Record {seq} of run {run} fails its check, at byte {base + position} of its journal;"
                " later records are intact, so it is damage and no crash.",
                run=run,
                seq=seq,
                hint=f"`nbflow doctor` offers what can be saved of run {run}; earlier records stay readable.",
            )
        found = buffer.find(_MARK, found + 1)
