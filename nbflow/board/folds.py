"""Runs as they are looked at: one fold each, read on from where it was, a bounded number of them kept."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

from nbflow.board.tally import at_gate
from nbflow.core.errors import NbflowError, StoreBusy, UnknownRun
from nbflow.core.history import Execution, History
from nbflow.core.model import (
    Entry,
    ErrorInfo,
    Message,
    RunAttached,
    RunChanged,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
    execution_of,
)
from nbflow.core.states import FINAL_RUN_STATES, FINAL_STEP_STATES
from nbflow.store.protocol import Store

#: Folds that are kept, and entries that they hold together.
KEPT, ENTRIES = 24, 200_000

#: Newest points of a stepped body that are remembered with their times.
_POINTS = 20


class Fold:
    """One run as far as it was read: its history, and what a page wants to know beyond it.

    Take `mutex` while looking at it: another thread may read on.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.mutex = threading.RLock()
        #: How often it was read anew, because what it had read does not count: nothing that was told of it holds.
        self.anew = 0
        self._begin()

    def _begin(self) -> None:
        self.history = History()
        #: Failed attempts of each execution: when they failed, and what is recorded of it.
        self.retries: dict[int, list[tuple[float, StepRetried]]] = {}
        #: Points that stepped bodies passed: (when, number), the newest few.
        self.points: dict[int, deque[tuple[float, int]]] = {}
        #: The attempts of the run: number, when it began, and its newest entry.
        self.attempts: list[tuple[int, float, float]] = []
        #: When steps were asked to run again: (when, reason) by key.
        self.forgotten: dict[str, list[tuple[float, str]]] = {}
        #: When it was found out that the process of an execution was gone.
        self.found_dead: dict[int, float] = {}
        #: Messages that nobody has taken into the run yet.
        self.waiting: list[Message] = []
        #: The picture of the run as it was last drawn, and when (see `run_page.graph`).
        self.picture: tuple[tuple[int, bool | None], dict[str, Any] | None] | None = None
        self._position: object = None
        self._moved_at: list[int] = []
        self._moved: list[int] = []
        self._open: set[int] = set()
        self._current: dict[str, int] = {}
        #: By step those that stopped at a gate: they are shown as others once it begins anew, or the run is over.
        self._asking: dict[str, list[int]] = {}

    @property
    def seq(self) -> int:
        """The seq of the newest entry that was read."""
        return self.history.seq

    def advance(self, store: Store) -> bool:
        """Read what came since; tell whether anything did.

        Raises:
            UnknownRun, StoreBusy, CorruptRecord, Untrusted: what was read before stays.
        """
        with self.mutex:
            if self.history.state in FINAL_RUN_STATES:
                return False  # nothing that comes behind it counts
            try:
                entries, waiting, position = store.tail(self.run, self._position)
            except (UnknownRun, StoreBusy):
                raise
            except NbflowError:
                if self._position is None:
                    raise
                # Somebody stole the run, and what its old owner wrote last does not count: from the start.
                entries, waiting, position = store.tail(self.run)
                self._begin()
                self.anew += 1
            for entry in entries:
                self._add(entry)
            known = {message.id for message in self.waiting}
            news = bool(entries) or known != {message.id for message in waiting}
            self.waiting, self._position = waiting, position
            return news

    def _add(self, entry: Entry) -> None:
        record = entry.record
        history = self.history
        if isinstance(record, RunAttached):
            self._note(entry.seq, self._open)  # their process is gone
            self.found_dead.update(dict.fromkeys(self._open, entry.at))
            self._open.clear()
            self.attempts.append((record.attempt, entry.at, entry.at))
        elif self.attempts:
            self.attempts[-1] = (*self.attempts[-1][:2], entry.at)
        history.add(entry)
        if isinstance(record, RunChanged) and history.state in FINAL_RUN_STATES:
            self._note(entry.seq, {*chain(*self._asking.values()), *self._open, *self.found_dead})
        elif isinstance(record, StepStarted):
            self._note(entry.seq, self._asking.get(record.step, ()))
            self._open.add(entry.seq)
            self._note(entry.seq, (entry.seq,))
            self._note_current(entry.seq, record.step)
        elif isinstance(record, StepForgotten):
            self.forgotten.setdefault(record.step, []).append((entry.at, record.reason))
            self._note(entry.seq, (each.number for each in history.by_step.get(record.step, ())))
            self._note_current(entry.seq, record.step)
        elif isinstance(record, StepCompleted | StepEnded | StepRetried | StepCursor):
            number = execution_of(entry)
            if isinstance(record, StepRetried):
                self.retries.setdefault(number, []).append((entry.at, record))
            elif isinstance(record, StepCursor):
                self.points.setdefault(number, deque(maxlen=_POINTS)).append((entry.at, record.number))
            elif history.executions[number].state in FINAL_STEP_STATES:
                self._open.discard(number)
                if at_gate(history.executions[number]):
                    self._asking.setdefault(record.step, []).append(number)
            self._note(entry.seq, (number,))
            self._note_current(entry.seq, record.step)

    def _note_current(self, seq: int, step: str) -> None:
        """Note the version of a step that counts no more, and the one that counts now."""
        executions = self.history.by_step.get(step)
        if not executions:
            return
        before, now = self._current.get(step), _current(executions).number
        if before != now:
            self._current[step] = now
            self._note(seq, (now,) if before is None else (before, now))

    def _note(self, seq: int, executions: Iterable[int]) -> None:
        for number in executions:
            self._moved_at.append(seq)
            self._moved.append(number)

    def moved(self, since: int, most: int) -> tuple[list[Execution], int]:
        """Return the executions that changed behind entry `since`, about `most` of them, and up to which entry."""
        found: dict[int, None] = {}
        upto = self.seq
        for place in range(bisect_right(self._moved_at, since), len(self._moved)):
            seq = self._moved_at[place]
            if len(found) >= most and seq != self._moved_at[place - 1]:
                upto = self._moved_at[place - 1]
                break
            found[self._moved[place]] = None
        return [self.history.executions[number] for number in sorted(found)], upto

    def current(self, execution: Execution) -> bool:
        """Tell whether it is the version of its step that counts now, as `History.steps` marks it."""
        return _current(self.history.by_step[execution.started.step]) is execution

    def size(self) -> int:
        """Return how many entries it holds."""
        return self.seq


def _current(executions: list[Execution]) -> Execution:
    """Return which of a step's executions counts: the newest that is completed and not forgotten, else the newest."""
    for each in reversed(executions):
        if each.completed is not None and not each.forgotten:
            return each
    return executions[-1]


def error_text(error: ErrorInfo) -> str:
    """Return an error in one line.

    >>> error_text(ErrorInfo("ValueError", "no"))
    'ValueError: no'
    """
    message = error.message.strip().partition("\n")[0]
    return f"{error.type}: {message}" if message else error.type


class Folds:
    """The runs that were looked at last. Safe to use from several threads."""

    def __init__(self, store: Store, *, kept: int = KEPT, entries: int = ENTRIES) -> None:
        self._store = store
        self._kept = kept
        self._entries = entries
        self._mutex = threading.Lock()
        self._folds: OrderedDict[str, Fold] = OrderedDict()

    def of(self, run: str) -> Fold:
        """Return the run's fold as it is now; it takes the whole id.

        Raises:
            UnknownRun, StoreBusy, CorruptRecord, Untrusted.
        """
        fold = self.known(run)
        fold.advance(self._store)
        with self._mutex:
            while len(self._folds) > 1 and (
                len(self._folds) > self._kept or sum(map(Fold.size, self._folds.values())) > self._entries
            ):
                self._folds.popitem(last=False)
        return fold

    def known(self, run: str) -> Fold:
        """Return the run's fold as far as it was read."""
        with self._mutex:
            fold = self._folds.setdefault(run, Fold(run))
            self._folds.move_to_end(run)
            return fold

    def forget(self, run: str) -> None:
        """Drop what is remembered of a run: it was deleted."""
        with self._mutex:
            self._folds.pop(run, None)
