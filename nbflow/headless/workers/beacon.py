"""What tells whether another machine sees the store's folder, and whether the batch's runner is still alive.

A beacon is a folder in the store with a random word in a file and a lock that
the runner holds as long as it lives. A worker that reads the word sees the same
folder; one that fails to take the lock sees the same locks, on which leases
rest. One that can take the lock later on knows that the runner is gone: the
operating system, or the file server, let it go.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from nbflow.core.errors import Untrusted
from nbflow.store.lease import FolderLock
from nbflow.values.trust import data_dir, user_key

_NAME = "beacon-"
_DRAFT = ".new-"
#: Older drafts are those of runners that were killed just then (seconds).
_MAKING = 60.0
_WORD = "word"
_LOCK = "lock"


class Beacon(msgspec.Struct, frozen=True):
    """The beacon of a runner, as others look for it.

    `folder` is its place, `word` what its file must say, `seal` the word signed with
    the user's key: who has another key could not read what others recorded.
    """

    folder: str
    word: str
    seal: str = ""

    def problem(self) -> str:
        """Return what is wrong with the folder as it is seen from here; "" when all is well.

        >>> "does not see" in Beacon("/nowhere/.nbflow/beacon-1", "word").problem()
        True
        """
        folder = Path(self.folder)
        store = folder.parent
        try:
            word = (folder / _WORD).read_text(encoding="ascii")
        except FileNotFoundError:
            if not store.is_dir():
                return f"does not see the store's folder {store}"
            return f"sees another folder under the name of the store's, {store}"
        except (OSError, UnicodeDecodeError) as error:
            return f"cannot read the store's folder {store}: {error}"
        if word != self.word:
            return f"sees another folder under the name of the store's, {store}"
        try:
            taken = self._take()
        except OSError as error:
            return f"cannot lock files in the store's folder {store}: {error}"
        if taken:
            return f"can take a lock in {store} that the batch holds, so its file system keeps no locks"
        try:
            sealed = seal_of(word)
        except Untrusted as error:
            return f"has no signing key: {error.message}"
        if sealed != self.seal:
            return f"signs with another key ({data_dir() / 'key'}), so it cannot read what others recorded"
        return ""

    def marked(self, name: str) -> bool:
        """Leave a mark, and tell whether somebody had left it before: of all who ask, one is the first.

        Raises:
            OSError: the runner is gone, or the folder cannot be written.
        """
        try:
            (Path(self.folder) / name).touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return True
        return False

    def burns(self) -> bool:
        """Tell whether the runner that lit the beacon is alive."""
        try:
            return not self._take()
        except FileNotFoundError:
            return False
        except OSError:  # the file server does not answer for a moment: that is no proof of anything
            return True

    def _take(self) -> bool:
        lock = FolderLock(Path(self.folder) / _LOCK)
        taken = lock.acquire()
        lock.release()
        return taken


def seal_of(word: str) -> str:
    """Return a word's MAC with the user's key.

    Raises:
        Untrusted: the key cannot be used.
    """
    return blake3(word.encode(), key=user_key()).hexdigest()


@contextmanager
def lit(store: Path) -> Iterator[Beacon]:
    """Light a beacon in a store's folder until the end of the block; those of killed runners are cleared away.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    for folder in store.glob(f"*{_NAME}*"):
        _clear_if_out(folder)
    folder = store / f"{_NAME}{secrets.token_hex(4)}"
    # Made under another name: who clears away must not meet it before its lock is held.
    draft = store / f"{_DRAFT}{folder.name}"
    draft.mkdir(mode=0o700)
    lock = FolderLock(draft / _LOCK)
    try:
        lock.acquire()
        word = secrets.token_hex(32)
        beacon = Beacon(str(folder), word, seal_of(word))
        (draft / _WORD).write_text(beacon.word, encoding="ascii")
        draft.rename(folder)
        yield beacon
    finally:
        _clear_away(draft)
        _clear_away(folder)
        lock.release()


def _clear_if_out(folder: Path) -> None:
    """Remove the beacon of a runner that is gone."""
    lock = FolderLock(folder / _LOCK)
    try:
        fresh = folder.name.startswith(_DRAFT) and time.time() - folder.stat().st_mtime < _MAKING
        if not fresh and lock.acquire():
            _clear_away(folder)
    except FileNotFoundError:
        return  # somebody else cleared it away
    finally:
        lock.release()


def _clear_away(folder: Path) -> None:
    """Remove a beacon; under its own name, somebody who looks at the lock would make that file anew meanwhile."""
    away = folder.with_name(f".{folder.name.lstrip('.')}")
    try:
        folder.rename(away)
    except FileNotFoundError:
        return
    shutil.rmtree(away, ignore_errors=True)
