"""The user's key, and the MAC that tells one's own records from others'.

Loading a pickle runs code, so what is loaded must be one's own. The key is 32
random bytes in a file only the user can read, beside Jupyter's data and never in
a store: `$NBFLOW_DATA_DIR/key`, else `nbflow/key` in the user's data folder.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from blake3 import blake3

from nbflow.core.errors import Untrusted

KEY_SIZE = 32
MAC_SIZE = 16

_cache: dict[str, bytes] = {}
_lock = threading.Lock()


def data_dir() -> Path:
    """Return the folder of the user's key: `$NBFLOW_DATA_DIR`, else `nbflow` in the user's data folder."""
    return _data_dir(*(os.environ.get(name) for name in _PLACES))


#: What the folder depends on: asked for with every look at a run, it is found out once.
_PLACES = ("NBFLOW_DATA_DIR", "XDG_DATA_HOME", "HOME", "APPDATA")


@cache
def _data_dir(place: str | None, *_elsewhere: str | None) -> Path:
    if place:
        return Path(place).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("nbflow", appauthor=False, roaming=True))


def user_key() -> bytes:
    """Return the user's key of 32 bytes; it is made on first use.

    Raises:
        Untrusted: the key file is another user's, readable by others and not to be mended, or damaged.

    >>> len(user_key())
    32
    """
    folder = data_dir()
    known = _cache.get(str(folder))
    if known is None:
        with _lock:
            known = _cache[str(folder)] = _read_or_create(folder / "key")
    return known


def _read_or_create(path: Path) -> bytes:
    try:
        found = _read(path)
        if found is None:
            _create(path)
            found = _read(path)
    except OSError as error:
        raise Untrusted(
            f"The key file {path} cannot be used: {error.strerror or error}.",
            hint="Set NBFLOW_DATA_DIR to a folder you can write to.",
        ) from error
    assert found is not None, "the file was linked into place a moment ago"
    return found


def _read(path: Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        if os.name == "posix":
            _guard(path, file.fileno())
        key = file.read(KEY_SIZE + 1)
    if len(key) != KEY_SIZE:
        raise Untrusted(
            f"The key file {path} is damaged: it has {len(key)} bytes, not {KEY_SIZE}.",
            hint="Put it back from a backup, or delete it and sign earlier runs anew with `nbflow trust`.",
        )
    return key


def _guard(path: Path, handle: int) -> None:
    facts = os.fstat(handle)
    if facts.st_uid != os.geteuid():
        raise Untrusted(
            f"The key file {path} belongs to user {facts.st_uid}, not to you ({os.geteuid()}).",
            hint="Set NBFLOW_DATA_DIR to a folder of your own.",
        )
    if stat.S_IMODE(facts.st_mode) & 0o022:
        # Others could have put their key there: then they could sign what you load.
        raise Untrusted(
            f"The key file {path} can be written by others (mode {stat.S_IMODE(facts.st_mode):o}).",
            hint=f"Delete it, or check it and run: chmod 600 {path}",
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        os.fchmod(handle, 0o600)


def _create(path: Path) -> None:
    """Put a new key in place unless another process was first; a reader never sees half a key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".key.{os.getpid()}.{os.urandom(6).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(KEY_SIZE))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:
            # A file system without hard links: an exclusive rename does not exist everywhere either.
            if not path.exists():
                draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def key_id(key: bytes) -> bytes:
    """Return 8 bytes that name a key without telling it.

    >>> len(key_id(bytes(32)))
    8
    """
    return blake3(b"nbflow key id", key=key).digest(8)


def mac(key: bytes, context: bytes, body: bytes | memoryview) -> bytes:
    """Return the 16-byte keyed BLAKE3 of `body` in a context (a run's id), so no record moves to another run.

    >>> mac(bytes(32), b"run 1", b"x") == mac(bytes(32), b"run 2", b"x")
    False
    """
    return maker(key, context)(body)


def maker(key: bytes, context: bytes) -> Callable[[bytes | memoryview], bytes]:
    """Return `mac` for many bodies of one context: what they share is hashed once, so each takes half the time."""
    begun = blake3(len(context).to_bytes(4, "little") + context, key=key)

    def sign(body: bytes | memoryview) -> bytes:
        hasher = begun.copy()
        hasher.update(body)
        return hasher.digest(MAC_SIZE)

    return sign
