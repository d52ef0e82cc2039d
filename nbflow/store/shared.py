"""Small named values that several processes change together: the state of limits and circuit breakers.

A value is a file in `.nbflow/shared/`, replaced atomically under a lock of its
own, which the operating system lets go when its holder dies. Nothing is synced:
a kill loses nothing, a power failure may lose the last changes, or the value.
Nothing here is the truth about a run; that is in the journals.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from nbflow.core.crashpoints import point
from nbflow.core.errors import StoreBusy
from nbflow.store import disk
from nbflow.store.lease import FolderLock

T = TypeVar("T")

FOLDER = "shared"
#: Seconds that a change waits for others; each of them takes a fraction of a millisecond.
PATIENCE = 10.0


class SharedValues:
    """The shared values of one store."""

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder = folder
        self.patience = patience
        # Threads of one process queue here; only one of them asks the operating system.
        self._turn = threading.Lock()
        _all.add(self)

    def change(self, name: str, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Do what `Store.shared` promises."""
        path = self.folder / safe(name)
        with self._alone(name, path):
            with _ours(name):
                before = _read(path)
            after, result = change(before)
            with _ours(name):
                if after is None:
                    path.unlink(missing_ok=True)
                elif after != before:
                    _replace(path, after)
            return result

    @contextlib.contextmanager
    def _alone(self, name: str, path: Path) -> Iterator[None]:
        turn = self._turn
        if not turn.acquire(timeout=self.patience):
            raise self._busy(name)
        lock = FolderLock(path.with_name(path.name + ".lock"))
        try:
            with _ours(name):
                try:
                    got = lock.acquire(self.patience)
                except FileNotFoundError:
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    got = lock.acquire(self.patience)
            if not got:
                raise self._busy(name)
            yield
        finally:
            lock.release()
            turn.release()

    def _busy(self, name: str) -> StoreBusy:
        return StoreBusy(
            f"The shared value {name!r} was being changed by others for {self.patience:g} s.",
            hint="Look for a stopped process (state T), or a change that uses the store itself.",
        )

    def renew(self) -> None:
        """Forget who had the turn: in a forked child that thread does not exist."""
        self._turn = threading.Lock()


def safe(name: str) -> str:
    """Return the file's name: readable, short, and different for different names, whatever characters they have.

    >>> safe("limit:my api")
    'limit-my-api.aa84a7fa09bf'
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60].strip("-")
    digest = blake3(name.encode("utf-8", "surrogatepass")).hexdigest(6)
    return f"{readable or 'value'}.{digest}"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes) -> None:
    # One name for all: whoever is here holds the lock, and what a killed process left is overwritten.
    growing = path.with_name(path.name + ".new")
    growing.write_bytes(data)
    point("shared.replace.before")
    growing.replace(path)
    point("shared.replace.after")


@contextlib.contextmanager
def _ours(name: str) -> Iterator[None]:
    """Raise what the operating system answers to the store as the store's own error."""
    try:
        yield
    except OSError as error:
        disk.refused(error, run=None, doing=f"changing the shared value {name!r}")


_all: weakref.WeakSet[SharedValues] = weakref.WeakSet()


def _renew_in_child() -> None:
    for values in list(_all):
        values.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
