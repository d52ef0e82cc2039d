"""Every run of the store as it was last seen: the unfinished ones looked at often, the history now and then.

The history is kept in memory because pages filter, sort and search it, and
because the database may be somebody else's for a while: then the last known
history is shown, and `busy` says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from nbflow.core.errors import NbflowError
from nbflow.core.model import RunInfo
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.protocol import RunQuery, Store

#: Seconds that the first look waits for a database somebody else has open; later ones do not wait.
PATIENCE = 1.0

#: The history is read again when the database changed, this many seconds after the last time at the
#: earliest, and so seldom that reading takes no more than this share of one core; at least that often.
PAUSE, SHARE, RARELY = 1.0, 0.005, 30.0

#: Seconds between two looks whether the owners of runs are alive.
LIVENESS = 2.0


class Catalogue:
    """All runs by id. Safe to use from several threads.

    `version` moves when any row does, `final_version` when one of a run does that is over.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mutex = threading.RLock()
        self._final: dict[str, RunInfo] = {}
        self._live: dict[str, RunInfo] = {}
        self._mark: Any = None
        self._late: set[str] = set()
        self._ended: set[str] = set()
        self._next_reading = 0.0
        self._signature: Any = None
        self._next_liveness = 0.0
        self._moves: dict[str, int] = {}
        self._looks = 0
        self.version = 0
        self.final_version = 0
        #: Why the history cannot be read now; None when it can.
        self.busy: str | None = None

    def live(self) -> list[RunInfo]:
        """Return the runs that are not over, as they were last seen, in no order."""
        with self._mutex:
            return list(self._live.values())

    def final(self) -> tuple[int, list[RunInfo]]:
        """Return the runs that are over, in no order, and which version of them it is."""
        with self._mutex:
            return self.final_version, list(self._final.values())

    def get(self, run: str) -> RunInfo | None:
        """Return a run as it was last seen."""
        with self._mutex:
            return self._live.get(run) or self._final.get(run)

    def is_late(self, run: str) -> bool:
        """Tell whether a run is known to have ended and cannot be read: the database is somebody else's for now."""
        with self._mutex:
            return run in self._ended

    def moved_at(self, run: str) -> int:
        """Return a number that is another one when the run's journal or inbox was seen to have moved."""
        with self._mutex:
            return self._moves.get(run, 0)

    def refresh(self) -> None:
        """Look at all that changed.

        Raises:
            NbflowError, OSError: the store cannot be looked at.
        """
        with self._mutex:
            self.notice()
            self.settle()

    def settle(self) -> None:
        """Look at what was noticed to have moved."""
        with self._mutex:
            self.look(self._late)

    def notice(self) -> frozenset[str]:
        """Look whether something changed, which is cheap; return the runs that moved since the last time.

        Raises:
            NbflowError, OSError: the store cannot be looked at.
        """
        with self._mutex:
            first = self._mark is None
            moved, self._mark = self._store.changes(
                self._mark
            )  # before the reading: it has what came until then
            self._looks += 1
            self._moves.update(dict.fromkeys(moved, self._looks))
            self.version += bool(moved)
            if first or self._is_due():
                self._read_history(PATIENCE if first else 0.0)
            if not first or self.busy is not None:
                self._late.update(moved)
            return moved

    def look(self, runs: Iterable[str]) -> None:
        """Look at these runs now."""
        wanted = tuple(sorted(runs))
        if not wanted:
            return
        with self._mutex:
            try:
                found = self._store.runs(RunQuery(runs=wanted, limit=None, wait=0.0))
            except NbflowError as error:
                if len(wanted) > 1:  # those that are not in the database can be looked at all the same
                    for run in wanted:
                        self.look((run,))
                    return
                self._late.difference_update(wanted)
                self._ended.update(wanted)  # it is known again as soon as the history can be read
                self._set_busy(str(error))
                return
            self._late.difference_update(wanted)
            self._ended.difference_update(wanted)
            for info in found:
                self._put(info)
            for run in set(wanted) - {info.run for info in found}:
                self.remove(run)

    def remove(self, run: str) -> None:
        """Forget a run that was deleted."""
        with self._mutex:
            self._late.discard(run)
            self._moves.pop(run, None)
            if self._live.pop(run, None) is not None:
                self.version += 1
            if self._final.pop(run, None) is not None:
                self.version += 1
                self.final_version += 1

    def _put(self, info: RunInfo) -> None:
        before, known = (
            (self._final, self._live) if info.state in FINAL_RUN_STATES else (self._live, self._final)
        )
        known.pop(info.run, None)
        if before.get(info.run) != info:
            before[info.run] = info
            self.version += 1
            self.final_version += before is self._final

    def look_alive(self, runs: Iterable[str] | None = None) -> None:
        """Look whether the owners of unfinished runs are alive, of `runs` or of all; every 2 seconds at most."""
        with self._mutex:
            now = time.monotonic()
            if now < self._next_liveness:
                return
            known = [info for run in (self._live if runs is None else runs) if (info := self._live.get(run))]
            self.look([info.run for info in known if info.alive])
            self._next_liveness = time.monotonic() + LIVENESS

    def _is_due(self) -> bool:
        if time.monotonic() < self._next_reading:
            return False
        return self.busy is not None or _signature(self._store) != self._signature

    def _read_history(self, wait: float) -> None:
        signature = _signature(self._store)  # before: what changes meanwhile is read the next time
        began = time.thread_time()
        try:
            found = self._store.runs(RunQuery(limit=None, wait=wait))
        except NbflowError as error:
            self._set_busy(str(error))
        else:
            self._set_busy(None)
            self._late.clear()
            self._ended.clear()
            self._signature = signature
            self._replace(found)
        cost = time.thread_time() - began if self.busy is None else 0.0
        self._next_reading = time.monotonic() + min(max(PAUSE, cost / SHARE), RARELY)

    def _replace(self, infos: list[RunInfo]) -> None:
        final = {info.run: info for info in infos if info.state in FINAL_RUN_STATES}
        live = {info.run: info for info in infos if info.run not in final}
        self.version += final != self._final or live != self._live
        self.final_version += final != self._final
        self._final, self._live = final, live

    def _set_busy(self, sentence: str | None) -> None:
        if sentence != self.busy:
            self.busy = sentence
            self.version += 1


def _signature(store: Store) -> Any:
    """Return what is another one when the database was written to; a time where the store has no file."""
    path = getattr(getattr(store, "database", None), "path", None)
    if path is None:
        return time.monotonic()
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
