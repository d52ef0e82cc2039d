"""The file `store.duckdb`: opened per operation, by one process at a time, and closed right after.

While a process holds the file open read-write, no other can open it, even to
read. So nothing in nbflow keeps it open: `Database.open` takes the process-wide
lock, attaches the file, brings its schema up to date and closes it again (about
15 ms). Whoever cannot wait for another process gets `StoreBusy` with its pid.

`duckdb` is imported inside functions: a notebook that only replays never needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nbflow.core.errors import (
    NbflowError,
    NotAStore,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreTooNew,
)
from nbflow.store import schema

if TYPE_CHECKING:
    import duckdb

#: Seconds that a user's query waits for another process to let go.
USER_WAIT = 5.0
#: A table takes at least a block: 100 tables of 10 short columns take 7 MB with these, 27 MB with DuckDB's
#: 256 KiB. Smaller ones switch bit-packing off: integers and timestamps then take 100 % instead of 2-17 %.
BLOCK_SIZE = 65536

#: A DuckDB instance that holds no file, for the next `open`: a new one takes 11-20 ms, an attach to this one 2.
_spare: list[duckdb.DuckDBPyConnection] = []
_left_to_parent: list[object] = []
_locks: dict[str, threading.RLock] = {}


def _lock_of(path: Path) -> threading.RLock:
    return _locks.setdefault(os.path.realpath(path), threading.RLock())


def _forked() -> None:
    # A forked child has only the forking thread: a lock held by another would never be released, and
    # an instance of DuckDB would wait for its threads, even to be closed.
    _locks.clear()
    _left_to_parent.extend(_spare)
    _spare.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _instance() -> duckdb.DuckDBPyConnection:
    import duckdb

    try:
        return _spare.pop()
    except IndexError:
        return duckdb.connect(":memory:")


def _let_go(instance: duckdb.DuckDBPyConnection) -> None:
    """Give the file back; keep the instance for the next time if there is nothing of it left."""
    import duckdb

    try:
        instance.execute("DETACH store")
        attached = instance.execute(
            "SELECT count(*) FROM duckdb_databases() WHERE NOT internal AND database_name <> 'memory'"
        ).fetchall()
    except duckdb.Error:
        instance.close()
        return
    if attached[0][0] or _spare:
        instance.close()
    else:
        _spare.append(instance)


class _Older(StoreError):
    """The store was opened read-only and wants an upgrade first."""


class Database:
    """One DuckDB file. Safe to use from several threads and processes; holds nothing between calls.

    `threads` bounds how many threads DuckDB works with; by default as many as there are processors.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self._threads = threads

    def exists(self) -> bool:
        """Tell whether the file is there."""
        return self.path.exists()

    @contextlib.contextmanager
    def open(
        self, *, wait: float | None = USER_WAIT, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection whose default catalog is the store, created or upgraded where needed.

        `wait` is how many seconds to wait for another process (None: as long as
        `cancelled()` is false). Threads of this process queue up.

        Raises:
            StoreBusy, NotAStore, StoreTooNew, StoreReadOnly, StoreFull, StoreError.

        >>> import tempfile
        >>> with Database(Path(tempfile.mkdtemp()) / "store.duckdb").open() as connection:
        ...     connection.execute("SELECT count(*) FROM runs").fetchall()
        [(0,)]
        """
        with self._session(read_only=False, wait=wait, cancelled=cancelled) as connection:
            yield connection

    @contextlib.contextmanager
    def read(
        self,
        *,
        wait: float | None = USER_WAIT,
        cancelled: Callable[[], bool] = lambda: False,
        foreign: bool = False,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection on the store as it stands, attached read-only; an older store is upgraded first.

        `foreign` tells that somebody else's SQL will run on it: nothing of it is used again.

        Raises:
            as `open`; StoreError: there is no file yet.
        """
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(
                    self._session(read_only=True, wait=wait, cancelled=cancelled, foreign=foreign)
                )
            except _Older:
                with self.open(wait=wait, cancelled=cancelled):
                    pass
                connection = stack.enter_context(
                    self._session(read_only=True, wait=wait, cancelled=cancelled, foreign=foreign)
                )
            yield connection

    @contextlib.contextmanager
    def _session(
        self,
        *,
        read_only: bool,
        wait: float | None,
        cancelled: Callable[[], bool],
        foreign: bool = False,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        import duckdb

        deadline = None if wait is None else time.monotonic() + wait
        pause = 0.005
        while True:
            # The lock is held only while trying: a background thread that waits for
            # another process must not keep a user's query of this one from its own try.
            lock = _lock_of(self.path)
            with lock:
                try:
                    attached = self._attach(read_only)
                except StoreBusy:
                    if cancelled() or (deadline is not None and time.monotonic() >= deadline):
                        raise
                else:
                    instance, connection = attached
                    try:
                        yield connection
                    except BaseException as error:
                        connection.close()
                        instance.close()
                        if isinstance(error, duckdb.Error):
                            raise self._typed(error) from error
                        raise
                    connection.close()
                    if foreign:
                        instance.close()
                    else:
                        if self._threads is not None:
                            instance.execute("RESET threads")
                        _let_go(instance)
                    return
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1 if wait is not None else 0.5)

    def _attach(self, read_only: bool) -> tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyConnection]:
        import duckdb

        if not read_only:
            self._require_writable()
        elif not self.path.exists():
            raise StoreError(f"There is no database at {self.path} yet.", hint="Record a step first.")
        instance = _instance()
        # What a connection makes for itself (registered tables, say) is gone with it; the instance stays clean.
        connection = instance.cursor()
        try:
            place = str(self.path).replace("'", "''")
            options = "READ_ONLY" if read_only else f"BLOCK_SIZE {BLOCK_SIZE}"
            try:
                connection.execute(f"ATTACH '{place}' AS store ({options})")
            except duckdb.Error as error:
                if "BLOCK_SIZE" not in options or "block size" not in str(error).lower():
                    raise
                # A file made by a plain client has larger blocks, and keeps them.
                connection.execute(f"ATTACH '{place}' AS store")
            connection.execute("USE store")
            if self._threads is not None:
                connection.execute(f"SET threads = {self._threads}")
            self._require_schema(connection, read_only)
        except BaseException as error:
            connection.close()
            instance.close()
            if isinstance(error, duckdb.Error):
                raise self._typed(error) from error
            raise
        return instance, connection

    def _require_writable(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            raise NotAStore(
                f"{folder} is not a folder.", hint="Create it, or name another place for the store."
            )
        probe = self.path if self.path.exists() else folder
        if not os.access(probe, os.W_OK) or not os.access(folder, os.W_OK):
            raise StoreReadOnly(
                f"{probe} cannot be written by this user.",
                hint="Change its permissions, or set NBFLOW_STORE to a folder of yours.",
            )

    def _require_schema(self, connection: duckdb.DuckDBPyConnection, read_only: bool) -> None:
        found = self._version(connection)
        if found == schema.SCHEMA_VERSION:
            return
        if found > schema.SCHEMA_VERSION:
            raise StoreTooNew(
                f"{self.path} has schema {found}; this nbflow knows up to {schema.SCHEMA_VERSION}."
                " It was left untouched.",
                hint="Upgrade nbflow: pip install --upgrade nbflow.",
                found=found,
            )
        if read_only:
            raise _Older(f"{self.path} has schema {found}.")
        from nbflow import __version__

        schema.migrate(connection, found, __version__, time.time())

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Return the schema's number, 0 for an empty file."""
        import duckdb

        try:
            # Asked straight, because a look into DuckDB's catalog of tables takes 10 ms.
            rows = connection.execute("SELECT min(application), max(number) FROM nbflow.migration").fetchall()
        except (duckdb.CatalogException, duckdb.BinderException):
            found = connection.execute(
                "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'store'"
            ).fetchall()
            if found[0][0] == 0:
                return 0
        else:
            if rows[0][0] == schema.APPLICATION:
                return int(rows[0][1])
        raise NotAStore(
            f"{self.path} is a DuckDB database of something else; it was left untouched.",
            hint="Name another place for the store.",
        )

    def _typed(self, error: duckdb.Error) -> NbflowError:
        """Say in nbflow's words what DuckDB complains about."""
        text = str(error)
        low = text.lower()
        first = text.splitlines()[0]
        if "could not set lock" in low or "being used by another process" in low:
            found = re.search(r"PID (\d+)", text)
            pid = int(found.group(1)) if found else None
            who = f"Process {pid}" if pid else "Another process"
            return StoreBusy(
                f"{who} has {self.path} open.",
                hint="Close its DuckDB connection, or try again later; recording goes on meanwhile.",
                pid=pid,
            )
        if "unique file handle conflict" in low or "already attached" in low:
            return StoreBusy(
                f"This process has {self.path} open in a DuckDB connection of its own.",
                hint="Close that connection; recording goes on meanwhile.",
                pid=os.getpid(),
            )
        if "not a valid duckdb database" in low:
            return NotAStore(
                f"{self.path} is not a DuckDB database.", hint="Move it away, or name another place."
            )
        if "version number" in low and "read" in low:
            return StoreTooNew(
                f"{self.path} was written by a later DuckDB; it was left untouched. {first}",
                hint="Upgrade duckdb: pip install --upgrade duckdb.",
            )
        if "no space left" in low or "out of disk space" in low:
            return StoreFull(
                f"The disk has no room for {self.path}.", hint="Free some space; the journal keeps all."
            )
        if "permission denied" in low or "read-only file system" in low:
            return StoreReadOnly(
                f"{self.path} cannot be written by this user.", hint="Change its permissions."
            )
        return StoreError(
            f"DuckDB could not work on {self.path}: {first}", hint="`nbflow doctor` looks at the store."
        )
