"""Leaves rebuilt from the database ahead of being asked for.

Whoever restores one column of a frame asks for the next a moment later, and
opening the database for each would cost 20 ms: the leaves of one record are
rebuilt together and handed out once each.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nbflow.core.errors import CorruptLeaf
from nbflow.core.model import LeafRef
from nbflow.store import compact, rebuild
from nbflow.store.database import Database

if TYPE_CHECKING:
    import duckdb

#: What is rebuilt ahead at most (bytes).
AHEAD = 2 << 30


class Restored:
    """A short memory of rebuilt leaves. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        self._ahead: dict[bytes, memoryview] = {}

    def leaf(self, run: str, ref: LeafRef, missing: CorruptLeaf) -> memoryview:
        """Return a leaf's bytes from the database, writable and proven by their digest.

        Raises:
            CorruptLeaf: `missing` where the database has none of it; else it is altered there.
            StoreBusy.
        """
        with self._mutex:
            view = self._ahead.pop(ref.digest, None)
        if view is not None:
            return view
        if not self._database.exists():
            raise missing
        with self._database.read() as connection:
            return self._load(connection, run, ref, missing)

    def _load(
        self, connection: duckdb.DuckDBPyConnection, run: str, ref: LeafRef, missing: CorruptLeaf
    ) -> memoryview:
        kept = compact.find(connection, [ref.digest]).get(ref.digest)
        if kept is None:
            raise missing
        wanted, total = [kept], kept.size
        for other in compact.siblings(connection, run, ref.digest):
            if other.digest != ref.digest and total + other.size <= AHEAD:
                total += other.size
                wanted.append(other)
        ahead = rebuild.restore_all(connection, wanted)
        found = ahead.pop(ref.digest, None)
        with self._mutex:
            self._ahead = ahead
        # What is damaged is told with its own name, when it is asked for.
        return found if found is not None else compact.restore(connection, kept, run=run)

    def clear(self) -> None:
        """Let go of what nobody asked for."""
        with self._mutex:
            self._ahead.clear()
