"""Trust: sign a store that another user or machine wrote with this user's key.

Only `nbflow trust` calls this, after asking: what is signed here will be
unpickled without another question.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nbflow.core.errors import CorruptRecord, UnknownRun
from nbflow.core.model import decode_entry
from nbflow.store import disk, place
from nbflow.store.database import Database
from nbflow.store.folder import list_folders
from nbflow.store.framing import FRAME, HEADER, LAST, MORE, pack_header, sealer
from nbflow.store.lease import AttachLock, held, is_alive
from nbflow.store.salvage import journals_of
from nbflow.store.schema import roll_back
from nbflow.values.trust import key_id, mac, user_key

if TYPE_CHECKING:
    import duckdb


def sign_store(start: str | Path) -> int:
    """Sign every journal and database row that another key signed; return how many records.

    A torn tail ends what is taken of a journal. Safe to kill: each journal is
    replaced as a whole, the database in one transaction.

    Raises:
        UnknownRun: there is no store. LeaseHeld: a run has a living owner.
        CorruptRecord: a journal cannot be read in the middle; signing would hide that.
        NotAStore, StoreTooNew, StoreBusy, StoreReadOnly.
    """
    root = place.locate(start)
    if not place.is_store(root):
        raise UnknownRun(f"There is no store at {root}.", hint="Name the folder that holds store.duckdb.")
    key = user_key()
    signed = 0
    for path in list_folders(root / place.RUNS):
        signed += _sign_run(path, key)
    database = Database(root / place.DATABASE)
    if database.exists():
        with database.open() as connection:
            signed += _sign_rows(connection, key)
    return signed


def _sign_run(path: Path, key: bytes) -> int:
    run = path.name
    with AttachLock(path, run):
        foreign = [
            (generation, file) for generation, file in journals_of(path) if _signer(file) != key_id(key)
        ]
        if foreign:
            owner, alive = is_alive(path, run)
            if alive:
                raise held(run, owner)
        return sum(_sign_journal(file, run, generation, key) for generation, file in foreign)


def _signer(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    return bytes(HEADER.unpack(head)[2]) if len(head) == HEADER.size else b""


def _sign_journal(path: Path, run: str, generation: int, key: bytes) -> int:
    """Write the journal anew: the same frames at the same places, so that sizes noted elsewhere stay true."""
    data = path.read_bytes()
    seal = sealer(key, run)
    parts = [pack_header(run, generation, key)]
    position = HEADER.size
    count = 0
    while position + FRAME.size <= len(data):
        magic, length, synced, _ = FRAME.unpack_from(data, position)
        body = data[position + FRAME.size : position + FRAME.size + length]
        if magic not in (LAST, MORE) or len(body) < length:
            break
        try:
            decode_entry(body)
        except msgspec.DecodeError:
            break
        parts += (FRAME.pack(magic, length, synced, seal(body)), body)
        position += FRAME.size + length
        count += 1
    if any(data.find(magic, position + 1) >= 0 for magic in (LAST, MORE)):
        # Signed up to here, the records behind would be gone like the torn tail of a crash, in silence.
        raise CorruptRecord(
            f"{path.name} of run {run} cannot be read at byte {position}, amid its records; not signed.",
            run=run,
            hint="Have its author mend it with `nbflow doctor --repair`.",
        )
    temporary = f"{path.name}.new"
    try:
        disk.place(path.parent, path.name, b"".join(parts), "trust", temporary=temporary)
    except OSError as error:
        disk.refused(error, run=run, doing="signing the journal")
    return count


def _sign_rows(connection: duckdb.DuckDBPyConnection, key: bytes) -> int:
    import pyarrow as pa

    mine = key_id(key)
    rows = connection.execute(
        "SELECT run, seq, record FROM nbflow.event WHERE signer <> ?", [mine]
    ).fetchall()
    connection.execute("DELETE FROM nbflow.trouble WHERE type = 'Untrusted'")
    if not rows:
        return 0
    signed = pa.table(
        {
            "run": pa.array([run for run, _, _ in rows], pa.string()),
            "seq": pa.array([seq for _, seq, _ in rows], pa.int64()),
            "mac": pa.array([mac(key, run.encode(), record) for run, _, record in rows], pa.binary()),
            "signer": pa.array([mine] * len(rows), pa.binary()),
        }
    )
    connection.register("nbflow_signed", signed)
    # No UPDATE in this database: rows are taken out and put back in one transaction.
    connection.execute("BEGIN")
    try:
        connection.execute(
            "CREATE TEMP TABLE nbflow_resigned AS SELECT e.* REPLACE (s.mac AS mac, s.signer AS signer) "
            "FROM nbflow.event e JOIN nbflow_signed s ON s.run = e.run AND s.seq = e.seq"
        )
        connection.execute("DELETE FROM nbflow.event WHERE signer <> ?", [mine])
        connection.execute("INSERT INTO nbflow.event SELECT * FROM nbflow_resigned")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return len(rows)
