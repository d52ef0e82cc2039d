"""The inbox of a run: words from other processes to its owner, one durable file each.

Anybody with the user's key may put one; the owner records it (`MessageTaken`)
and drops the file. A message is in the record or in the inbox at every moment,
so whoever looks at both, the inbox first, misses none.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import msgspec

from nbflow.core.model import Message
from nbflow.core.signature import digest
from nbflow.store import disk
from nbflow.values.trust import mac

_MAGIC = b"nbm1"
_SUFFIX = ".message"
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)

log = logging.getLogger("nbflow")


class Inbox:
    """The folder `inbox/` of one run."""

    def __init__(self, folder: Path, run: str, key: bytes) -> None:
        self.folder = folder / "inbox"
        self._key = key
        self._context = b"inbox of " + run.encode()
        self._run = run
        self._names: dict[str, str] = {}

    def put(self, message: Message) -> None:
        """Make the message durable; one whose id is waiting already is not put again.

        The caller holds the attach lock, so that arrivals have one order.

        Raises:
            OSError: nothing was put.
        """
        names = self._waiting()
        tail = "-" + digest(message.id)[:16].hex() + _SUFFIX
        if any(name.endswith(tail) for name in names):
            return
        number = time.time_ns()
        if names:  # the wall clock may have been set back; the order of arrival stays
            number = max(number, int(names[-1].partition("-")[0]) + 1)
        body = _encoder.encode(message)
        data = _MAGIC + mac(self._key, self._context, body) + body
        self.folder.mkdir(exist_ok=True)
        disk.place(self.folder, f"{number:020d}{tail}", data, "inbox", temporary=f".new-{os.getpid()}")

    def messages(self) -> list[Message]:
        """Return the waiting messages in the order they came; [] when there are none.

        A file that is no message signed with this user's key is put aside as
        `….refused`, with a warning: it must not keep the others from arriving.
        """
        found = []
        for name in self._waiting():
            path = self.folder / name
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                continue  # taken meanwhile
            message = self._decode(raw)
            if message is None:
                log.warning(
                    "Message %s of run %s is damaged or not signed by this user; put aside.", name, self._run
                )
                path.replace(path.with_suffix(".refused"))
                continue
            self._names[message.id] = name
            found.append(message)
        return found

    def _decode(self, raw: bytes) -> Message | None:
        body = raw[20:]
        if raw[:4] != _MAGIC or mac(self._key, self._context, body) != raw[4:20]:
            return None
        try:
            return _decoder.decode(body)
        except msgspec.DecodeError:
            return None

    def drop(self, message: str) -> None:
        """Delete a message that was recorded, by its id; dropping twice is fine."""
        name = self._names.pop(message, None)
        if name is not None:
            (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what senders that were killed left half-written; the caller holds the attach lock."""
        if self.folder.is_dir():
            for path in self.folder.glob(".new-*"):
                path.unlink(missing_ok=True)

    def names(self) -> tuple[str, ...]:
        """Return what is another one when a message came or was taken; cheap."""
        try:
            return tuple(self._waiting())
        except OSError:
            return ()  # a reader finds out what is wrong, and says so

    def _waiting(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.folder) if name.endswith(_SUFFIX))  # noqa: PTH208 - asked for all runs, often
        except FileNotFoundError:
            return []
