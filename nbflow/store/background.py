"""The thread that keeps the database up with the journals while nobody waits for it.

One daemon thread a store: it ingests when the process has recorded nothing for
half a second (or every few seconds under load) and compacts when it has been
idle for longer. A database that somebody else has open delays it, nothing more.
"""

from __future__ import annotations

# Loaded now: while the interpreter ends it cannot be, and pandas (for the last ingest) wants it.
import concurrent.futures.thread  # noqa: F401
import logging
import os
import threading
import time
from collections.abc import Callable

from nbflow.core.errors import NbflowError, StoreBusy

log = logging.getLogger("nbflow.store")

#: Ingest this long after the last append (seconds), so that a burst becomes one batch …
IDLE = 0.5
#: … but at least this often under load (seconds).
LONGEST = 3.0
#: Wait this long after an error that will not go away by itself (seconds).
PAUSE = 30.0


def _import_libraries() -> None:
    """Import what the work needs, each library after those it builds on.

    A user's own `import numpy` in the main thread then waits for at most one library that
    is whole when it goes on. Were pyarrow first, it would hold its own lock while it
    waits for NumPy's, and Python breaks such a knot by handing out half a module.
    """
    import numpy  # noqa: F401, ICN001
    import pyarrow  # noqa: F401, ICN001
    import duckdb  # noqa: F401  # isort: skip


class Background:
    """Runs `ingest` and `compact` when it is a good time. Threads call `touch` after each append.

    Both callables get a function that tells when to give up: ingest when the
    store is closed, compaction also when something was appended. `problem` is
    the last error, for `doctor`.
    """

    def __init__(
        self,
        ingest: Callable[[Callable[[], bool]], object],
        compact: Callable[[Callable[[], bool]], object],
        *,
        idle: float = IDLE,
        compact_after: float = 5.0,
        enabled: bool = True,
    ) -> None:
        self._ingest = ingest
        self._compact = compact
        self._idle = idle
        self._compact_after = compact_after
        self._enabled = enabled
        self._last = 0.0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._at_once = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._pid = os.getpid()
        self._hurried = False
        self.problem: NbflowError | None = None

    def touch(self) -> None:
        """Say that something was appended. Costs well under a microsecond once the thread is awake."""
        self._last = time.monotonic()
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._start()

    def hurry(self) -> None:
        """Say that a run ended: compact as soon as it is copied, without waiting for idleness."""
        self._hurried = True
        self.touch()

    def at_once(self) -> None:
        """Say that this is the moment: copy and compact without waiting for quiet; the process is about to end."""
        self._hurried = True
        self._at_once.set()
        self.touch()

    def _start(self) -> None:
        with self._starting:
            if (
                self._enabled
                and self._thread is None
                and not self._stopped.is_set()
                and os.getpid() == self._pid
            ):
                self._thread = threading.Thread(target=self._loop, name="nbflow-ingest", daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None = 5.0) -> None:
        """Stop the thread and wait for it; stopping twice is fine."""
        self._stopped.set()
        self._at_once.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._pid:
            thread.join(timeout)

    def _quiet(self, seconds: float, longest: float) -> bool:
        """Wait until nothing was appended for `seconds`, `longest` at most or `at_once`; False when stopped."""
        end = time.monotonic() + longest
        while not self._stopped.is_set():
            now = time.monotonic()
            due = min(self._last + seconds, end)
            if now >= due or self._at_once.is_set():
                self._at_once.clear()
                return not self._stopped.is_set()
            self._at_once.wait(due - now)
        return False

    def _loop(self) -> None:
        compact_due = False
        while True:
            # Compaction waits for real idleness; an append meanwhile is ingested first.
            idle_at = self._last + (0.0 if self._hurried else self._compact_after)
            if not self._wake.wait(max(0.0, idle_at - time.monotonic()) if compact_due else None):
                self._hurried = False
                compact_due = not self._attempt(
                    self._compact, lambda: self._stopped.is_set() or self._wake.is_set()
                )
                continue
            if not self._quiet(self._idle, LONGEST):
                return
            # Cleared before reading: what is appended from here on wakes the thread again.
            self._wake.clear()
            if self._attempt(self._ingest, self._stopped.is_set):
                compact_due = True
            elif not self._stopped.is_set():
                self._wake.set()

    def _attempt(self, work: Callable[[Callable[[], bool]], object], cancelled: Callable[[], bool]) -> bool:
        """Do it; False when it was given up or failed."""
        try:
            _import_libraries()
            work(cancelled)
        except StoreBusy:
            return False
        except NbflowError as error:
            if self.problem is None or str(self.problem) != str(error):
                log.warning("%s", error)
            self.problem = error
            self._stopped.wait(PAUSE)
            return False
        except Exception as error:
            # A bug here must cost neither the notebook nor the next attempt; doctor shows it.
            log.exception("Copying the journals into the database failed; it will be tried again.")
            self.problem = NbflowError(f"Background work failed: {type(error).__name__}: {error}")
            self._stopped.wait(PAUSE)
            return False
        self.problem = None
        return not cancelled()
