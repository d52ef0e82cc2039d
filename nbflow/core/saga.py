"""What a rollback has to undo, in which order, and how far one got: answers read off a history. Pure.

A rollback is a step of kind `compensation` named `rollback`; what it undoes are
steps of the same kind below it, one for each execution, which say in their
detail which execution they undo. The completion of such a step and the word
that the undone step is to run again are one append, so nothing is undone twice
and nothing undone is replayed, wherever the process dies.

The idea is the saga of Garcia-Molina and Salem (1987).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from nbflow.core.history import Execution, History
from nbflow.core.model import ErrorInfo, StepForgotten
from nbflow.core.states import COMPENSATE, COMPENSATION, StepState

#: The name of the step around all that one rollback undoes.
ROLLBACK = "rollback"
#: Detail key of an undo: the number of the execution that it undoes.
OF = "of"
#: Detail keys of a rollback: the error that made it necessary, and why somebody asked for it.
ERROR, REASON = "error", "reason"
#: Why an undone step was forgotten, and why one was that had it inside.
UNDONE, UNDONE_INSIDE = "undone", "a step inside was undone"


class Progress(StrEnum):
    """How far the newest rollback of a run got."""

    #: There was none.
    NONE = "none"
    #: Its process died, or died before the run was said to have failed: it goes on, and its error is raised.
    INTERRUPTED = "interrupted"
    #: It ended and could not undo everything: what is left is tried again.
    INCOMPLETE = "incomplete"
    #: It undid everything.
    ENDED = "ended"


@dataclass(frozen=True)
class Rollback:
    """The newest rollback of a run: its step's key ("" for none) and the error that made it necessary."""

    progress: Progress = Progress.NONE
    step: str = ""
    error: ErrorInfo | None = None

    @property
    def unfinished(self) -> bool:
        """Whether something of it may be left to do."""
        return self.progress in (Progress.INTERRUPTED, Progress.INCOMPLETE)


def undo_key(number: int) -> str:
    """Return the key of the step that undoes an execution.

    >>> undo_key(12)
    'undo/12'
    """
    return f"undo/{number}"


def compensatable(history: History) -> list[Execution]:
    """Return the completed executions that can be undone and are not, the one that completed last first.

    What a compensator itself called is part of the undoing and is left alone.
    """
    undone = _undone(history)
    within: dict[str, bool] = {}
    found = [
        execution
        for execution in list(history.executions.values())
        if execution.completed is not None
        and not execution.forgotten
        and COMPENSATE in execution.started.detail
        and execution.number not in undone
        and not _undoes(history, execution.started.parent, within)
    ]
    return sorted(found, key=lambda execution: execution.ended_seq, reverse=True)


def _undone(history: History) -> set[int]:
    return {
        execution.started.detail[OF]
        for execution in list(history.executions.values())
        if execution.completed is not None
        and execution.started.step_kind == COMPENSATION
        and OF in execution.started.detail
    }


def _undoes(history: History, step: str | None, known: dict[str, bool]) -> bool:
    """Say whether this step is a compensation or inside of one."""
    if step is None:
        return False
    if step not in known:
        known[step] = any(
            above.started.step_kind == COMPENSATION
            for above in (history.latest(step), *around(history, step))
            if above
        )
    return known[step]


def around(history: History, step: str) -> Iterator[Execution]:
    """Yield the newest execution of each step that encloses this one, the nearest first."""
    seen = {step}
    inner = history.latest(step)
    while inner is not None and (outer := inner.started.parent) is not None and outer not in seen:
        seen.add(outer)
        inner = history.latest(outer)
        if inner is not None:
            yield inner


def forgotten_with(
    history: History, execution: Execution, left: Mapping[str, int]
) -> tuple[StepForgotten, ...]:
    """Return the records that go with the completion of an undo, so that what was undone runs again.

    A completed step around it would replay and never call it, so it is to run
    again as well. `left` counts by step what is still to be undone besides
    this: such a step is forgotten when its last execution is undone, not before,
    or the others would no longer count as to be undone.
    """
    step = execution.started.step
    records = [] if left.get(step) else [StepForgotten(step=step, reason=UNDONE)]
    records += [
        StepForgotten(step=outer.started.step, reason=UNDONE_INSIDE)
        for outer in around(history, step)
        if outer.completed is not None and not outer.forgotten and not left.get(outer.started.step)
    ]
    return tuple(records)


def rollback_of(history: History) -> Rollback:
    """Return how far the newest rollback of the run got.

    >>> rollback_of(History()).progress
    <Progress.NONE: 'none'>
    """
    last: Execution | None = None
    for execution in list(history.executions.values()):
        started = execution.started
        if (
            started.step_kind == COMPENSATION
            and started.name == ROLLBACK
            and (last is None or execution.number > last.number)
        ):
            last = execution
    if last is None:
        return Rollback()
    detail = last.started.detail
    error = recorded_error(detail)
    return Rollback(_progress(history, last, ERROR in detail), last.started.step, error)


def _progress(history: History, last: Execution, automatic: bool) -> Progress:
    ended = last.completed is not None or last.ended is not None
    told = history.stopped > (last.ended_seq or last.number)  # of the run's own end, and so of the error
    if not told and (automatic or not ended):
        return Progress.INTERRUPTED
    return Progress.ENDED if last.state is StepState.COMPLETED else Progress.INCOMPLETE


def rolled_back_at(history: History) -> int:
    """Return the seq at which the newest rollback of a failure undid the last of it; 0 where there was none.

    What a machine had done before does not count any more.
    """
    return max(
        (
            execution.ended_seq
            for execution in list(history.executions.values())
            if execution.completed is not None
            and execution.started.step_kind == COMPENSATION
            and execution.started.name == ROLLBACK
            and ERROR in execution.started.detail
        ),
        default=0,
    )


def next_rollback(history: History) -> str:
    """Return the key of a rollback that begins now: that of an unfinished one is carried on.

    >>> next_rollback(History())
    'rollback#0'
    """
    newest = rollback_of(history)
    if newest.unfinished:
        return newest.step
    keys = {
        execution.started.step
        for execution in list(history.executions.values())
        if execution.started.step_kind == COMPENSATION and execution.started.name == ROLLBACK
    }
    return f"{ROLLBACK}#{len(keys)}"


def rollback_detail(error: ErrorInfo | None, reason: str) -> dict[str, Any]:
    """Return what a rollback's first record tells: all that another process needs to carry it on."""
    detail: dict[str, Any] = {}
    if error is not None:
        detail[ERROR] = msgspec.to_builtins(error, builtin_types=(bytes,))
    if reason:
        detail[REASON] = reason
    return detail


def recorded_error(detail: Mapping[str, Any]) -> ErrorInfo | None:
    """Return the error that a rollback's detail holds; None where somebody asked for the rollback.

    >>> recorded_error(rollback_detail(ErrorInfo("ValueError", "no"), "")).message
    'no'
    """
    found = detail.get(ERROR)
    return None if found is None else msgspec.convert(found, ErrorInfo)
