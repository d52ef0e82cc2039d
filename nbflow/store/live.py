"""Unfinished runs as their journals tell, without the database: listings, the newest open run.

A run that was looked at before is read on from there, so that asking again is cheap.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import NbflowError, StoreBusy, UnknownRun
from nbflow.core.history import History
from nbflow.core.model import Entry, Message, RunInfo, RunOpened
from nbflow.store.folder import START, Position, RunFolder, list_folders
from nbflow.store.framing import first_entry
from nbflow.store.listing import CORRUPT, FINISHED, same_params
from nbflow.store.salvage import journals_of, sound_prefix

#: The first record is looked for in this many bytes before the whole file is read.
_HEAD = 256 * 1024


@dataclass
class _Known:
    """A run as far as it was read."""

    history: History
    position: Position


class LiveRuns:
    """The folders of unfinished runs. Safe to use from several threads."""

    def __init__(self, root: Path, key: Callable[[], bytes]) -> None:
        self.root = root
        self._key = key
        self._known: dict[str, _Known] = {}
        self._opened: dict[str, RunOpened] = {}
        self._mutex = threading.Lock()

    def names(self) -> list[str]:
        """List the ids of the runs that have a folder, oldest first."""
        return [path.name for path in list_folders(self.root)]

    def folder(self, run: str) -> RunFolder:
        """Return the run's folder, which need not exist."""
        return RunFolder(self.root / run, self._key())

    def unchecked(self, run: str) -> RunFolder:
        """Return the run's folder for a reader that proves every leaf's digest by itself."""
        return RunFolder(self.root / run, self._key(), verify=False)

    def infos(self, runs: Sequence[str] = ()) -> list[RunInfo]:
        """List the runs that have a folder, newest first: all, or those named; what cannot be read is corrupt."""
        found = []
        for run in reversed(
            sorted(run for run in runs if self.folder(run).exists()) if runs else self.names()
        ):
            try:
                found.append(self.info(run))
            except UnknownRun:
                continue  # deleted meanwhile
        return found

    def info(self, run: str) -> RunInfo:
        """Return one run's row; state "corrupt" and the error where it cannot be read.

        Raises:
            UnknownRun: it has no folder.
        """
        folder = self.folder(run)
        try:
            info = self.history(run).info()
        except (UnknownRun, StoreBusy):
            raise
        except NbflowError as error:
            return self._damaged(folder, error)
        owner, alive = folder.owner()
        return msgspec.structs.replace(info, alive=alive, owner=owner or info.owner)

    def history(self, run: str) -> History:
        """Return the fold over the run's journal as it is now. Not to be changed by the caller.

        Raises:
            UnknownRun, CorruptRecord, Untrusted, StoreTooNew, StoreBusy.
        """
        with self._mutex:
            known = self._known.get(run)
            folder = self.folder(run)
            try:
                frames, position = folder.tail(known.position if known else START)
            except NbflowError:
                self._known.pop(run, None)
                if known is None:
                    raise
                known = None
                frames, position = folder.tail()
            if known is None:
                known = self._known[run] = _Known(History(), START)
            for frame in frames:
                known.history.add(frame.entry)
            known.position = position
            return known.history

    def tail(self, run: str, position: Position) -> tuple[list[Entry], list[Message], Position]:
        """Return what is behind `position`, the messages that no entry names yet, and the new position.

        Raises:
            UnknownRun, CorruptRecord, Untrusted, StoreTooNew, StoreBusy.
        """
        folder = self.folder(run)
        waiting = folder.inbox.messages()  # the inbox first: what is taken out of it is in the journal before
        frames, after = folder.tail(position)
        if waiting:
            taken = self.history(run).taken
            waiting = [message for message in waiting if message.id not in taken]
        return [frame.entry for frame in frames], waiting, after

    def changes(self, seen: dict[str, Any] | None) -> tuple[frozenset[str], dict[str, Any]]:
        """Return the runs that changed since an earlier look, and a mark of each as it is now."""
        before = seen or {}
        now = {run: self._mark(run, before.get(run)) for run in self.names()}
        changed = {run for run, mark in now.items() if before.get(run) != mark}
        return frozenset(changed | (before.keys() - now.keys())), now

    def _mark(self, run: str, before: Any) -> Any:
        """Return what is another one when the run's journal or inbox was written to."""
        # By name: two messages may come within one tick of the file system's clock.
        word = self.folder(run).inbox.names()
        if before == (CORRUPT, word):  # what is damaged does not heal by itself
            return before
        known = self._known.get(run)
        if known is None or self.folder(run).grew(known.position):
            try:
                self.history(run)
            except UnknownRun:
                return None  # removed meanwhile; the next look tells
            except StoreBusy:
                return before
            except NbflowError:
                return (CORRUPT, word)
            known = self._known.get(run)
        return (known.position if known is not None else None, word)

    def _damaged(self, folder: RunFolder, error: NbflowError) -> RunInfo:
        history = History.of(frame.entry for frame in sound_prefix(folder.path, folder.key))
        text = f"{type(error).__name__}: {error}"
        if history.opened is None:
            return RunInfo(run=folder.run, workflow="", state=CORRUPT, error=text, alive=False)
        return msgspec.structs.replace(
            history.info(), state=CORRUPT, error=text, finished_at=None, alive=False
        )

    def newest_open(self, workflow: str, params: dict[str, Any] | None, variant: str = "") -> RunInfo | None:
        """Return the newest unfinished run of the workflow (and parameters); None when there is none.

        Raises:
            CorruptRecord: it is damaged, and going on without it would compute everything again unasked.
        """
        for run in reversed(self.names()):
            opened = self._first(run)
            if (
                opened is None
                or opened.parent is not None
                or opened.workflow != workflow
                or opened.variant != variant
                or (params is not None and not same_params(opened.params, params))
            ):
                continue
            try:
                history = self.history(run)
            except UnknownRun:
                continue
            if history.state not in FINISHED:
                return self.info(run)
        return None

    def parent(self, run: str) -> str | None:
        """Return the run that started this one; None where none did, or it cannot be read."""
        opened = self._first(run)
        return opened.parent if opened is not None else None

    def _first(self, run: str) -> RunOpened | None:
        """Return the run's first record; None when it cannot be read, so that nobody knows what it is of."""
        opened = self._opened.get(run)
        if opened is None:
            try:
                opened = self._opened[run] = self._read_first(run)
            except UnknownRun:
                return None  # deleted meanwhile, or its creation was never finished
            except (OSError, NbflowError) as error:
                warnings.warn(
                    f"Run {run} cannot be read and was passed over, so what it holds is computed again: {error} "
                    "`nbflow doctor` shows what can be saved, `nbflow trust` takes over another user's store.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
        return opened

    def _read_first(self, run: str) -> RunOpened:
        for _, path in journals_of(self.root / run):
            with path.open("rb") as file:
                head = file.read(_HEAD)
                try:
                    record = first_entry(head, run, self._key(), place=path.name).record
                except NbflowError:
                    record = first_entry(head + file.read(), run, self._key(), place=path.name).record
            if isinstance(record, RunOpened):
                return record
            break
        raise UnknownRun(f"Run {run} has no first record.", run=run)

    def forget(self, run: str) -> None:
        """Drop what is remembered of a run."""
        with self._mutex:
            self._known.pop(run, None)
            self._opened.pop(run, None)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield each folder's run and size in bytes."""
        for path in list_folders(self.root):
            total = 0
            for file in path.rglob("*"):
                try:
                    total += file.stat().st_size if file.is_file() else 0
                except FileNotFoundError:
                    continue  # deleted meanwhile
            yield path.name, total
