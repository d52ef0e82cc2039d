"""Ingest: what the journals hold and the database lacks is copied, in batches, each once.

How far a run was copied is committed in the transaction that copies, so a kill
at any moment loses nothing and doubles nothing. A run that cannot be read (on)
is noted with what is wrong and keeps no other from being copied.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbflow.core.crashpoints import point
from nbflow.core.errors import CorruptRecord, LeaseHeld, NbflowError, StoreBusy, UnknownRun
from nbflow.core.model import RunChanged
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.folder import START, Position, RunFolder, list_folders
from nbflow.store.framing import Frame
from nbflow.store.rows import Batch
from nbflow.store.salvage import sound_prefix
from nbflow.store.schema import list_finished, roll_back
from nbflow.values.trust import key_id

if TYPE_CHECKING:
    import duckdb

#: A transaction takes this many records or bytes at most, so that memory stays bounded.
BATCH_RECORDS = 20_000
BATCH_BYTES = 64 * 1024 * 1024

#: The generation noted for a run that is damaged: it is read from the start next time.
_DAMAGED = -1

#: What a folder's journals looked like: names, sizes, times of change.
Signature = tuple[tuple[str, int, int], ...]


@dataclass
class _Copied:
    """How far the database is with a run."""

    position: Position
    mac: bytes


class Ingest:
    """Copies journals of one folder of runs. Remembers in memory which are done, so that idling is free.

    Not to be used by two threads at once: `LocalStore` holds the database's lock around it.
    """

    def __init__(self, runs: Path, key: Callable[[], bytes]) -> None:
        self._runs = runs
        self._key = key
        self._done: dict[str, Signature] = {}
        self._ends: dict[str, Position] = {}
        self._removable: set[str] = set()

    def pending(self) -> list[Path]:
        """List the folders whose journals changed since they were copied; [] when there is nothing to do."""
        found = []
        for path in list_folders(self._runs):
            look = _signature(path)
            if look and not self._is_done(path, look):
                found.append(path)
        return found

    def _is_done(self, path: Path, look: Signature) -> bool:
        if self._done.get(path.name) != look:
            return False
        end = self._ends.get(path.name)
        return end is None or not RunFolder(path, self._key()).grew(end)

    def copy(
        self, connection: duckdb.DuckDBPyConnection, *, cancelled: Callable[[], bool] = lambda: False
    ) -> int:
        """Copy all that is pending; return how many records. Safe to kill."""
        folders = self.pending()
        if not folders:
            return 0
        with _uncollected():
            return self._copy(connection, folders, cancelled)

    def _copy(
        self, connection: duckdb.DuckDBPyConnection, folders: Sequence[Path], cancelled: Callable[[], bool]
    ) -> int:
        key = self._key()
        signer = key_id(key)
        copied = _copied(connection, [path.name for path in folders])
        batch = _Batch(signer)
        total = 0
        for path in folders:
            if cancelled():
                break
            look = _signature(path)
            try:
                total += self._read(path, key, copied.get(path.name), batch)
            except (StoreBusy, UnknownRun):
                continue  # it changes hands just now or was deleted; the next round sees
            batch.looks[path.name] = look
            if len(batch.rows.events) >= BATCH_RECORDS or batch.rows.size >= BATCH_BYTES:
                self._write(connection, batch)
                batch = _Batch(signer)
        self._write(connection, batch)
        return total

    def _read(self, path: Path, key: bytes, copied: _Copied | None, batch: _Batch) -> int:
        run = path.name
        folder = RunFolder(path, key)
        done = copied.position.seq if copied else 0
        start = copied.position if copied else START
        trouble: NbflowError | None = None
        try:
            if start.generation == _DAMAGED:
                raise CorruptRecord("looked at from the start", run=run)
            frames, position = folder.tail(start)
            whole = start == START
        except CorruptRecord as error:
            try:
                frames, position = folder.tail()
            except NbflowError:
                frames, position = sound_prefix(path, key), Position(_DAMAGED, 0, 0)
                trouble = _first_cause(folder, error)
            whole = True
        except (StoreBusy, UnknownRun):
            raise
        except NbflowError as error:  # signed by another user, written by a later nbflow, unreadable
            frames, position, whole, trouble = sound_prefix(path, key), Position(_DAMAGED, 0, 0), True, error
        if whole and copied is not None:
            if done and (len(frames) < done or frames[done - 1].mac != copied.mac) and trouble is None:
                # The journal is the truth: what it does not hold (any more) never happened.
                batch.replaced.append(run)
                done = 0
            frames = frames[done:]
        batch.rows.add(run, frames, batch.signer)
        if trouble is None and any(map(_ends, frames)):
            batch.finished.append(run)
        last = frames[-1].mac if frames else (copied.mac if copied else b"")
        seq = max(done, position.seq) if not frames else frames[-1].entry.seq
        batch.positions.append((run, position.generation, position.offset, seq, last))
        batch.troubles[run] = trouble
        return len(frames)

    def _write(self, connection: duckdb.DuckDBPyConnection, batch: _Batch) -> None:
        if not batch.positions:
            return
        runs = list(batch.troubles)
        connection.execute("BEGIN")
        try:
            for run in batch.replaced:
                for table in ("event", "tag", "output", "leaf_use"):
                    connection.execute(f"DELETE FROM nbflow.{table} WHERE run = ?", [run])
            batch.rows.insert(connection)
            connection.execute("DELETE FROM nbflow.position WHERE list_contains(?, run)", [runs])
            connection.execute("DELETE FROM nbflow.trouble WHERE list_contains(?, run)", [runs])
            batch.note(connection)
            troubled = [run for run, trouble in batch.troubles.items() if trouble is not None]
            list_finished(connection, batch.finished, [*batch.replaced, *troubled])
            point("ingest.before-commit")
            connection.execute("COMMIT")
            point("ingest.after-commit")
        except BaseException:
            roll_back(connection)
            raise
        self._done.update(batch.looks)
        for run, generation, offset, seq, _ in batch.positions:
            self._ends.pop(run, None)
            if generation != _DAMAGED:
                self._ends[run] = Position(generation, offset, seq)

    def forget(self, run: str) -> None:
        """Look at this run again next time, whatever is remembered of it."""
        self._done.pop(run, None)
        self._ends.pop(run, None)
        self._removable.discard(run)

    def note_finished(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Remember the runs that the database holds whole: finished, copied, and every leaf kept."""
        folders = [path.name for path in list_folders(self._runs)]
        if not folders:
            return
        rows = connection.execute(
            """
            SELECT DISTINCT run FROM nbflow.event e
            WHERE kind = 'run.changed' AND state IN ('completed', 'cancelled') AND list_contains(?, run)
            AND NOT EXISTS (SELECT 1 FROM nbflow.trouble t WHERE t.run = e.run)
            AND NOT EXISTS (
                SELECT 1 FROM nbflow.leaf_use u WHERE u.run = e.run
                AND NOT EXISTS (SELECT 1 FROM nbflow.leaf l WHERE l.digest = u.digest)
            )
            """,
            [folders],
        ).fetchall()
        self._removable.update(row[0] for row in rows)

    def remove_finished(self) -> int:
        """Remove the folders that are not needed any more and have no living owner; return how many."""
        removed = 0
        for run in sorted(self._removable):
            path = self._runs / run
            if not self._is_done(path, _signature(path)):
                continue  # grew since, or gone
            point("finished.before-remove")
            try:
                RunFolder(path, self._key()).remove()
            except (LeaseHeld, StoreBusy):
                continue  # its owner is still attached; once more when it lets go
            except UnknownRun:
                pass
            point("finished.after-remove")
            self.forget(run)
            removed += 1
        return removed


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away: it would go through every row again and again, for a fifth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Batch:
    """What one transaction writes."""

    def __init__(self, signer: bytes) -> None:
        self.signer = signer
        self.rows = Batch()
        self.positions: list[tuple[str, int, int, int, bytes]] = []
        self.troubles: dict[str, NbflowError | None] = {}
        self.replaced: list[str] = []
        self.finished: list[str] = []
        self.looks: dict[str, Signature] = {}

    def note(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Insert positions and troubles."""
        from nbflow.store.rows import POSITION, TROUBLE, insert_rows

        insert_rows(connection, "position", POSITION, self.positions)
        now = time.time()
        found = [
            (run, error.seq, type(error).__name__, str(error), now)
            for run, error in self.troubles.items()
            if error is not None
        ]
        insert_rows(connection, "trouble", TROUBLE, found)


def _ends(frame: Frame) -> bool:
    record = frame.entry.record
    return isinstance(record, RunChanged) and record.state in FINAL_RUN_STATES


def _first_cause(folder: RunFolder, error: NbflowError) -> NbflowError:
    """Return what a reading from the start says: it names the record at fault."""
    try:
        folder.tail()
    except NbflowError as found:
        return found
    return error


def _copied(connection: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> dict[str, _Copied]:
    rows = connection.execute(
        "SELECT run, generation, byte, seq, mac FROM nbflow.position WHERE list_contains(?, run)",
        [list(runs)],
    ).fetchall()
    return {run: _Copied(Position(generation, byte, seq), mac) for run, generation, byte, seq, mac in rows}


def _signature(path: Path) -> Signature:
    try:
        with os.scandir(path) as found:
            looks = []
            for entry in found:
                if entry.name.startswith("journal."):
                    stat = entry.stat()
                    looks.append((entry.name, stat.st_size, stat.st_mtime_ns))
            return tuple(sorted(looks))
    except FileNotFoundError:
        return ()
