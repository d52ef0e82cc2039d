"""A database row counts only with the MAC of its journal frame; what is decoded comes through here."""

from __future__ import annotations

from nbflow.core.errors import CorruptRecord, Untrusted
from nbflow.core.model import Entry, decode_entry
from nbflow.values.trust import key_id, mac, user_key


def proven(run: str, seq: int, record: bytes, signature: bytes, signer: bytes) -> Entry:
    """Decode the record of a row after checking that this user's key signed it.

    Raises:
        Untrusted: another key signed it. CorruptRecord: it was altered.
    """
    key = user_key()
    if signer != key_id(key):
        raise Untrusted(
            f"Run {run} is signed by another key ({signer.hex()}); nothing of it was loaded.",
            run=run,
            hint="If you trust its author, `nbflow trust STORE` signs it with yours.",
        )
    if mac(key, run.encode(), record) == signature:
        entry = decode_entry(record)
        if entry.seq == seq:
            return entry
    raise CorruptRecord(
        f"Record {seq} of run {run} fails its check in the database.",
        run=run,
        seq=seq,
        hint="`nbflow doctor` lists all damage; other runs are not affected.",
    )
