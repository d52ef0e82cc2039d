"""The store on this machine: journals in front, DuckDB behind. `open_store` finds or makes it.

Recording, attaching and replaying touch only the run's folder. Everything that
asks about history opens the database, ingests first what the journals hold, and
closes it again.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nbflow.core.clock import Clock
from nbflow.core.errors import CorruptLeaf, CorruptRecord, NbflowError, StoreBusy, StoreReadOnly, UnknownRun
from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Entry,
    LeafRef,
    Message,
    Owner,
    RunChanged,
    RunInfo,
    RunOpened,
    StepInfo,
)
from nbflow.store import listing, place
from nbflow.store.admission import refusal
from nbflow.store.background import Background
from nbflow.store.database import USER_WAIT, Database
from nbflow.store.folder import START
from nbflow.store.ingest import Ingest
from nbflow.store.live import LiveRuns
from nbflow.store.log import FileRunLog
from nbflow.store.proof import proven
from nbflow.store.protocol import Durability, Finding, Retention, RunQuery
from nbflow.store.restored import Restored
from nbflow.store.shared import FOLDER as SHARED
from nbflow.store.shared import SharedValues
from nbflow.store.system_clock import SystemClock
from nbflow.values.leaf import Leaf
from nbflow.values.trust import user_key

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

T = TypeVar("T")

#: Seconds that closing a store waits for a database somebody else has open; the journal keeps what is pending.
CLOSE_WAIT = 1.0
EVERY_RUN = RunQuery()
#: Seconds after which closing begins no further compaction of runs that ended here; a later process goes on.
CLOSE_COMPACT = 3.0
#: The length of a run's id, which is no prefix.
_WHOLE = 36
#: Characters that name a run at least.
_PREFIX = 4
#: Seconds that a compaction keeps the database before it lets others have a go.
_TURN = 1.0
#: Bytes of leaves that are compacted in a second; 300 MB here, on two cores.
_COMPACT_RATE = 200_000_000
#: Bytes that are compacted at the end of a run even where there is no time left: on a busy machine there never is.
_COMPACT_LEAST = 16_000_000


def find_store(start: str | Path | None = None) -> Path:
    """Return the folder of the store that belongs to `start`, see `open_store`; it may not exist yet."""
    return place.locate(start)


def open_store(start: str | Path | None = None) -> LocalStore:
    """Open the store that belongs to a place, and make it if there is none.

    None: `NBFLOW_STORE`, else the nearest `.nbflow` upwards from the working
    directory, else a new one in it. A notebook or folder is where the search
    begins; the path of a store is that store.

    Raises:
        NotAStore, StoreReadOnly, UsageError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_store(folder).runs()
    []
    """
    return LocalStore(place.locate(start))


def process_store(start: str | Path | None = None) -> LocalStore:
    """Return this process's own store for a place: opened once, closed when the interpreter ends.

    For callers that nobody tells when they are done: runs, queries, the notebook.

    Raises:
        As `open_store`.
    """
    root = place.locate(start)
    with _mutex:
        store = _by_place.get(root)
        if store is None or store.closed or store.pid != os.getpid():
            store = _by_place[root] = LocalStore(root)
    return store


class LocalLog:
    """A run's lease as its folder gives it, which tells the store of appends and asks it for old leaves."""

    def __init__(self, log: FileRunLog, store: LocalStore) -> None:
        self._log = log
        self._store = store
        self._touch = store.background.touch
        self.run = log.run
        self.generation = log.generation
        self.attempt = log.attempt
        # Leaves put here, with the seq the run had then: until a later record that names them
        # is in the database, nobody but this process knows that they are needed.
        self._put: dict[bytes, int] = {}
        self._put_mutex = threading.Lock()

    @property
    def history(self) -> Sequence[Entry]:
        """All entries up to and including this attach."""
        return self._log.history

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        """See `RunLog`."""
        seq = self._log.append(*records, durability=durability)
        last = records[-1]
        if type(last) is RunChanged and last.state in listing.FINISHED:
            self._store.note_finished(self.run)
        else:
            self._touch()
        return seq

    def append_async(self, *records: AnyRecord) -> Awaitable[int]:
        """See `RunLog`."""
        self._touch()
        return self._log.append_async(*records)

    def put_leaves(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        """See `RunLog`."""
        with self._put_mutex:
            refs = self._log.put_leaves(leaves)
            seq = self._log.seq
            self._put.update((ref.digest, seq) for ref in refs)
        return refs

    def leaf_bytes(self) -> int:
        """Return the size of the run's raw leaves (bytes)."""
        return sum(path.stat().st_size for path in self._log.folder.glob("leaves.*.*"))

    def reclaim(self, keep: set[bytes], used: dict[bytes, int]) -> int:
        """Delete leaf files that hold nothing of `keep`; return how many bytes went.

        `used` tells the last seq at which the database knows a leaf to be named.
        """
        with self._put_mutex:
            self._put = {digest: seq for digest, seq in self._put.items() if used.get(digest, 0) <= seq}
            return self._log.reclaim(keep | self._put.keys())

    def leaf(self, ref: LeafRef) -> memoryview:
        """See `RunLog`."""
        try:
            return self._log.leaf(ref)
        except CorruptLeaf as error:
            return self._store.leaf_from_database(self.run, ref, error)

    def messages(self) -> list[Message]:
        """See `RunLog`."""
        return self._log.messages()

    def flush(self) -> None:
        """See `RunLog`."""
        self._log.flush()

    def release(self) -> None:
        """See `RunLog`."""
        self._log.release()
        self._touch()


class LocalStore:
    """A `Store` in a folder. See the contracts in `protocol.py`.

    `idle` and `compact_after` are seconds without an append after which the
    background thread ingests and compacts; `background=False` leaves both to
    explicit calls and to `close`. Without `upkeep` this object never opens the
    database unless it is asked something: another process keeps it up.
    `leaf_budget` bounds the bytes of raw leaves that a long-lived run keeps
    beside the compacted ones. `aside` says that the runs are those of another
    process, whose work comes first: DuckDB gets one thread, and no value is
    unpickled here, for the environment may be another one.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        clock: Clock | None = None,
        background: bool = True,
        upkeep: bool = True,
        idle: float = 0.5,
        compact_after: float = 5.0,
        leaf_budget: int = 4 << 30,
        aside: bool = False,
    ) -> None:
        self.root = Path(root).absolute()
        self.clock: Clock = clock or SystemClock()
        self.leaf_budget = leaf_budget
        place.prepare(self.root)
        self.database = Database(self.root / place.DATABASE, threads=1 if aside else None)
        self.live = LiveRuns(self.root / place.RUNS, user_key)
        self._ingest = Ingest(self.root / place.RUNS, user_key)
        self._restored = Restored(self.database)
        self._shared = SharedValues(self.root / SHARED)
        self._logs: weakref.WeakValueDictionary[str, LocalLog] = weakref.WeakValueDictionary()
        self.background = Background(
            self._ingest_quietly,
            self._compact_quietly,
            idle=idle,
            compact_after=compact_after,
            enabled=background and upkeep,
        )
        self._upkeep = upkeep
        self._aside = aside
        self._deadline: float | None = None
        self._finished: set[str] = set()
        self.closed = False
        self.pid = os.getpid()
        _open_stores.add(self)

    # Recording

    def create(self, opened: RunOpened) -> None:
        """See `Store`."""
        self.live.folder(opened.run).create(opened)
        self.background.touch()

    def attach(
        self,
        run: str,
        owner: Owner,
        *,
        steal: bool = False,
        continued: bool = False,
        versions: dict[str, str] | None = None,
    ) -> LocalLog:
        """See `Store`."""
        folder = self.live.folder(run)
        if not folder.exists():
            self._refuse_finished(run)
        log = LocalLog(folder.attach(owner, steal=steal, continued=continued, versions=versions), self)
        self._logs[run] = log
        self.background.touch()
        return log

    def _refuse_finished(self, run: str) -> None:
        """Raise `RunFinished` for a run that is only in the database; nothing for one that is nowhere."""
        from nbflow.core.errors import RunFinished

        for info in self._from_database(lambda connection: listing.by_prefix(connection, run)) or ():
            if info.run == run:
                raise RunFinished(
                    f"Run {run} is {info.state}, and final.", run=run, hint="Start a new run instead."
                )

    def send(self, run: str, message: Message) -> None:
        """See `Store`."""
        folder = self.live.folder(run)
        if not folder.exists():
            self._refuse_finished(run)
        folder.send(message, refusal(message))

    def note_finished(self, run: str) -> None:
        """Take note that a run held here ended, so that its outputs are compacted soon."""
        self._finished.add(run)
        self.background.hurry()

    def wind_up(self, run: str, seconds: float) -> None:
        """Copy and compact in the background what is left of a run that ended, for `close` comes soon.

        For a process that has a moment left while others end. No large value is
        begun that would take longer than `seconds`: the next process goes on with it.
        """
        self._deadline = time.monotonic() + seconds
        self._finished.add(run)
        self.background.at_once()

    # Looking

    def newest_open(
        self, workflow: str, params: dict[str, Any] | None = None, variant: str = ""
    ) -> RunInfo | None:
        """See `Store`."""
        return self.live.newest_open(workflow, params, variant)

    def entries(self, run: str) -> list[Entry]:
        """See `Store`."""
        try:
            return self.live.folder(run).entries()
        except UnknownRun as error:
            found: list[Entry] | None = self._from_database(lambda connection: _entries(connection, run))
            if not found:
                raise UnknownRun(
                    f"The store {self.root} has no run {run}.", run=run, hint="`nbflow runs` lists them."
                ) from error
            return found

    def tail(self, run: str, position: Any = None) -> tuple[list[Entry], list[Message], Any]:
        """See `Store`."""
        before = position or START
        try:
            return self.live.tail(run, before)
        except UnknownRun:
            entries = self.entries(run)[before.seq :]
            return entries, [], before._replace(seq=before.seq + len(entries))

    def changes(self, seen: Any = None) -> tuple[frozenset[str], Any]:
        """See `Store`."""
        return self.live.changes(seen)

    def leaf(self, run: str, ref: LeafRef) -> memoryview:
        """See `Store`."""
        try:
            return self.live.folder(run).leaf(ref)
        except CorruptLeaf as error:
            return self.leaf_from_database(run, ref, error)

    def leaf_from_database(self, run: str, ref: LeafRef, missing: CorruptLeaf) -> memoryview:
        """Rebuild a leaf that its run's folder lacks.

        Raises:
            CorruptLeaf: `missing` where the database lacks it too; altered there.
            StoreBusy.
        """
        return self._restored.leaf(run, ref, missing)

    def runs(self, query: RunQuery = EVERY_RUN) -> list[RunInfo]:
        """See `Store`. The database is opened only when finished runs may match."""
        live = self.live.infos(query.runs)
        found = [info for info in live if listing.matches(info, query)]
        names = frozenset(info.run for info in live)
        in_folders = query.states and listing.FOLDER_STATES.issuperset(query.states)
        if not in_folders and not (query.runs and names.issuperset(query.runs)):
            found += (
                self._from_database(lambda c: listing.from_database(c, query, without=names), wait=query.wait)
                or []
            )
        found.sort(
            key=lambda info: (info.created_at, info.run), reverse=True
        )  # children have their parents' ids
        end = None if query.limit is None else query.offset + query.limit
        return found[query.offset : end]

    def run(self, run: str) -> RunInfo:
        """See `Store`."""
        with contextlib.suppress(UnknownRun):  # a whole id is no prefix: no need to look at the other folders
            if len(run) == _WHOLE and self.live.folder(run).exists():
                return self.live.info(run)
        names = self.live.names()
        if run in names:
            return self.live.info(run)
        found = {name: None for name in names if len(run) >= _PREFIX and name.startswith(run)}
        infos: dict[str, RunInfo | None] = dict(found)
        try:
            for info in self._from_database(lambda c: listing.by_prefix(c, run)) or ():
                if info.run == run or len(run) >= _PREFIX:
                    infos.setdefault(info.run, info)
        except StoreBusy:
            if len(infos) != 1:
                raise
        if run in infos:
            infos = {run: infos[run]}
        elif len(infos) > 1:  # a child's id begins as its parent's, and nobody means the child
            infos = {
                name: info
                for name, info in infos.items()
                if not ((info.parent if info is not None else self.live.parent(name)) or "").startswith(run)
            }
        if not infos and len(run) < _PREFIX:
            raise UnknownRun(
                f"{run!r} is too short to name a run.",
                run=run,
                hint=f"Give {_PREFIX} characters of its id or more; `nbflow runs` lists them.",
            )
        if len(infos) != 1:
            raise UnknownRun(
                f"{len(infos) or 'No'} run{'s begin' if len(infos) > 1 else ' begins'} with {run!r}"
                f"{': ' + ', '.join(sorted(infos)) if infos else ''}.",
                run=run,
                hint="Give more of the id." if infos else "`nbflow runs` lists them.",
            )
        [(name, info)] = infos.items()
        return info if info is not None else self.live.info(name)

    def steps(self, run: str) -> list[StepInfo]:
        """See `Store`."""
        return History.of(self.entries(run)).steps()

    def sql(self, query: str, *, run: str | None = None) -> pd.DataFrame:
        """See `Store`."""
        from nbflow.store.frames_sql import answer

        whole = self.run(run).run if run is not None else None
        with contextlib.suppress(StoreReadOnly):  # a store of somebody else is read as it stands
            self._copy(wait=USER_WAIT)
        with self.database.read(foreign=True) as connection:
            return answer(
                connection, query, run=whole, fetch=lambda name, ref: self.live.folder(name).leaf(ref)
            )

    def _from_database(
        self, ask: Callable[[duckdb.DuckDBPyConnection], Any], *, wait: float = USER_WAIT
    ) -> Any:
        """Ask the database as it stands; None when there is none yet."""
        if not self.database.exists():
            return None
        with self.database.read(wait=wait) as connection:
            return ask(connection)

    # Keeping the database up

    def pending(self) -> list[Path]:
        """List the folders of runs whose journals the database lacks something of."""
        return self._ingest.pending()

    def ingest(self) -> int:
        """See `Store`."""
        return self._copy(wait=USER_WAIT)

    def _copy(self, *, wait: float | None, cancelled: Callable[[], bool] = lambda: False) -> int:
        copied = 0
        if self._ingest.pending() or not self.database.exists():
            with self.database.open(wait=wait, cancelled=cancelled) as connection:
                copied = self._ingest.copy(connection, cancelled=cancelled)
                self._ingest.note_finished(connection)
        self._ingest.remove_finished()
        return copied

    def _ingest_quietly(self, cancelled: Callable[[], bool]) -> None:
        self._copy(wait=None, cancelled=cancelled)

    def compact(self, run: str | None = None) -> int:
        """See `Store`."""
        return self._compact(None if run is None else [run], wait=USER_WAIT)

    def _compact_quietly(self, cancelled: Callable[[], bool]) -> None:
        self._restored.clear()
        if not self._aside or any((self.root / place.RUNS).glob("*/leaves.*")):
            runs = None if self._deadline is None else sorted(self._finished.intersection(self.live.names()))
            self._compact(runs, wait=None, cancelled=cancelled)

    def _compact(
        self, runs: Sequence[str] | None, *, wait: float | None, cancelled: Callable[[], bool] = lambda: False
    ) -> int:
        from nbflow.store.compaction import compact_runs

        self._copy(wait=wait, cancelled=cancelled)
        names = self.live.names() if runs is None else runs
        kept = compact_runs(
            self.database,
            names,
            lambda name, ref: self.live.unchecked(name).leaf(ref),
            at_end=self._ingest.note_finished,
            turn=_TURN,
            wait=wait,
            cancelled=cancelled,
            at_most=self._room(),
            decode=not self._aside,
        )
        self._ingest.remove_finished()
        self._reclaim(cancelled)
        return kept

    def _room(self) -> int | None:
        """Return how many bytes can be compacted until this process has to end; None where nothing hurries."""
        if self._deadline is None:
            return None
        return max(_COMPACT_LEAST, int((self._deadline - time.monotonic()) * _COMPACT_RATE))

    def _reclaim(self, cancelled: Callable[[], bool]) -> None:
        """Delete raw leaves of the runs held here that the database has and nobody needs soon."""
        from nbflow.store.retention import reclaim

        for log in list(self._logs.values()):
            if not cancelled():
                reclaim(self.database, log, self.leaf_budget)

    def shared(self, name: str, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """See `Store`."""
        return self._shared.change(name, change)

    # Upkeep

    def delete(self, run: str) -> None:
        """See `Store`."""
        from nbflow.store import retention

        info = self.run(run)
        retention.delete(self.database, self.live.folder(info.run))
        (self.root / place.CHILDREN / f"{info.run}.ipynb").unlink(missing_ok=True)
        self._ingest.forget(info.run)
        self.live.forget(info.run)

    def collect(self, retention: Retention, *, dry_run: bool = False) -> list[RunInfo]:
        """See `Store`."""
        from nbflow.store.retention import chosen

        self._copy(wait=USER_WAIT)
        finished = self.runs(RunQuery(states=tuple(listing.FINISHED), limit=None))
        gone = chosen(self.database, finished, retention, self.clock.now())
        if not dry_run:
            for info in gone:
                self.delete(info.run)
        return gone

    def check(self, *, repair: bool = False) -> list[Finding]:
        """See `Store`."""
        from nbflow.store.health import examine

        return examine(self, repair=repair)

    def describe(self) -> dict[str, Any]:
        """See `Store`."""
        from nbflow.store.health import facts

        return facts(self)

    def close(self) -> None:
        """See `Store`."""
        if (
            self.closed or self.pid != os.getpid()
        ):  # a forked child has no part in its parent's background work
            return
        self.closed = True
        _open_stores.discard(self)
        self.background.stop()
        if not self._upkeep:
            return
        try:
            now = time.monotonic()
            left = CLOSE_COMPACT if self._deadline is None else max(CLOSE_WAIT, self._deadline - now)
            wait = CLOSE_WAIT if self._deadline is None else min(CLOSE_WAIT, max(0.0, self._deadline - now))
            self._copy(wait=wait)
            if runs := self._finished.intersection(self.live.names()):
                self._compact(sorted(runs), wait=wait, cancelled=lambda: time.monotonic() > now + left)
        except StoreBusy:
            pass  # nothing is lost: whoever opens the database next copies what is pending
        except NbflowError as error:
            if self.background.problem is None:
                raise
            self.background.problem = error


def _entries(connection: duckdb.DuckDBPyConnection, run: str) -> list[Entry]:
    """Read a run's entries from the database, each proven by its MAC; [] when there are none."""
    rows = connection.execute(
        "SELECT seq, record, mac, signer FROM nbflow.event WHERE run = ? ORDER BY seq", [run]
    ).fetchall()
    entries = []
    for expected, (seq, record, signature, signer) in enumerate(rows, start=1):
        if seq != expected:
            raise CorruptRecord(
                f"Record {expected} of run {run} is missing in the database.",
                run=run,
                seq=expected,
                hint="`nbflow doctor` lists all damage; other runs are not affected.",
            )
        entries.append(proven(run, seq, record, signature, signer))
    return entries


_open_stores: weakref.WeakSet[LocalStore] = weakref.WeakSet()
_by_place: dict[Path, LocalStore] = {}
_mutex = threading.Lock()


@atexit.register
def _close_all() -> None:
    """Leave the database up to date when the interpreter ends; a kill leaves it to the next opener."""
    for store in list(_open_stores):
        try:
            store.close()
        except NbflowError as error:
            store.background.problem = error
