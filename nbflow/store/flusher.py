"""The thread that writes and syncs for those who do not wait: buffered records, asyncio tasks."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

#: How long buffered records gather (seconds); with the sync itself it stays below 10 ms.
GATHER = 0.004


class Flusher:
    """A daemon thread, started when it is first needed, that calls `work` soon after each `rouse`.

    `work` deals with its own errors. `at_exit` is called when the interpreter
    ends: an exit is no crash, so what was buffered is written before daemon
    threads are stopped. `mutex` is the owner's, who holds it when he calls `rouse`.
    """

    def __init__(
        self, name: str, mutex: threading.Lock, work: Callable[[], None], at_exit: Callable[[], None]
    ) -> None:
        self._name, self._mutex, self._work, self._at_exit = name, mutex, work, at_exit
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._stopped = False
        self.due = False

    def rouse(self, *, urgent: bool = False) -> None:
        """Have `work` called in 4 ms, or at once where somebody waits; the mutex is held."""
        if self.due and not urgent:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
            atexit.register(self._at_exit)
        self.due = True
        if urgent:
            self._urgent.set()
        self._wake.set()

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            if not self._stopped:
                self._urgent.wait(GATHER)
            with self._mutex:
                self._wake.clear()
                self._urgent.clear()
                self.due = False
                if self._stopped:
                    return
            self._work()

    def stop(self) -> None:
        """Tell the thread to end; the mutex is held. `join` waits for that."""
        self._stopped = True
        self._wake.set()
        self._urgent.set()

    def join(self) -> None:
        """Return when the thread has ended, which had been told to."""
        if self._thread is not None:
            atexit.unregister(self._at_exit)
            if self._thread is not threading.current_thread():
                self._thread.join()
