"""What a run is at now, and how long that took before: read from its history, for lines that people look at.

`doing(history)` says which steps are open, `Earlier` what they took the last
time, `said` puts both into words.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbflow.core.errors import NbflowError
from nbflow.core.history import Execution, History
from nbflow.core.states import FINAL_STEP_STATES, WAITING_KINDS

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Seconds of running from which on a step is worth a line.
PATIENCE = 1.0

#: How many runs of the workflow are looked at for what a step took earlier.
_RUNS = 5


@dataclass(frozen=True)
class Doing:
    """The steps that are open now: `names` from the outermost to the innermost, since `began` (UTC seconds).

    `step` and `kind` are those of the outermost. `attempt` and `cursor` (how many
    points to continue from it has recorded) are those of the innermost; `beside`
    counts others that run at its side.
    """

    step: str
    kind: str
    names: tuple[str, ...]
    began: float
    attempt: int = 1
    innermost: str = ""
    cursor: int | None = None
    beside: int = 0


def doing(history: History, *, hidden: Collection[str] = ()) -> Doing | None:
    """Return what has been open for longest, with what is open inside of it; None where nothing is.

    Steps of the kinds that are `hidden` are left out, and so is what runs inside of them.
    """
    found = [one for one in history.open() if one.started.step_kind not in hidden]
    keys = {one.started.step for one in found}
    tops = [one for one in found if one.started.parent not in keys and not _inside(one, history, hidden)]
    if not tops:
        return None
    top = min(tops, key=lambda one: one.number)
    names, last = [_label(top)], top
    while True:
        inner = [one for one in found if one.started.parent == last.started.step and one is not last]
        if not inner:
            break
        last = inner[-1]
        names.append(_label(last))
    return Doing(
        step=top.started.step,
        kind=top.started.step_kind,
        names=tuple(names),
        began=top.started_at,
        attempt=last.attempt,
        innermost=last.started.step,
        cursor=last.cursor.number + 1 if last.cursor is not None else None,
        beside=len(tops) - 1,
    )


def _label(execution: Execution) -> str:
    """Return what a step is called while it is open: of one that waits, what for."""
    started = execution.started
    if started.step_kind == "sleep":
        return "sleeping"
    if started.step_kind in WAITING_KINDS:
        return f"waiting for {started.step_kind} {started.name}"
    return started.name


def _inside(execution: Execution, history: History, hidden: Collection[str]) -> bool:
    """Tell whether a step around it, as far as the run knows of it, is of a kind that is hidden."""
    parent = execution.started.parent
    around = history.latest(parent) if parent else None
    return around is not None and (
        around.started.step_kind in hidden
        or (around.started.parent != parent and _inside(around, history, hidden))
    )


@dataclass(frozen=True)
class Before:
    """What a step took when it was last completed: seconds, and how many cursors it recorded on the way."""

    seconds: float
    cursors: int = 0


class Earlier:
    """What the steps of a run took the last time: in this run, else in an earlier run of the workflow.

    The store is asked once, when somebody first wants to know, and by a thread of its
    own: nobody waits for the answer.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: dict[str, Before] = {}
        #: Reads the earlier run; None before somebody wanted to know.
        self.reading: threading.Thread | None = None

    def of(self, step: str) -> Before | None:
        """Return what a step of this key took; None where none was ever completed, or nobody knows yet."""
        for execution in reversed(self._session.history.by_step.get(step, ())):
            if execution.completed is not None:
                return _before(execution)
        if self.reading is None:
            self.reading = threading.Thread(target=self._read, name="nbflow-earlier", daemon=True)
            self.reading.start()
        return self._found.get(step)

    def _read(self) -> None:
        from nbflow.store.protocol import RunQuery

        session = self._session
        try:
            runs = session.store.runs(RunQuery(workflow=session.workflow, limit=_RUNS, wait=0.0))
            earlier = [run.run for run in runs if run.run != session.run and run.steps]
            history = History.of(session.store.entries(earlier[0])) if earlier else History()
        except NbflowError:  # busy, or damaged: then nobody knows, and nobody asked for it
            return
        self._found = {
            step: _before(execution)
            for step, executions in history.by_step.items()
            for execution in executions
            if execution.completed is not None
        }


def _before(execution: Execution) -> Before:
    assert execution.completed is not None
    cursors = execution.cursor.number + 1 if execution.cursor is not None else 0
    return Before(execution.completed.seconds, cursors)


def said(doing: Doing, now: float, *, tries: int = 0, before: Before | None = None) -> str:
    """Return what is going on in one line; `tries` is how many attempts there may be, 0 where nobody knows.

    >>> what = Doing("train", "cell", ("train", "fit"), began=100.0, attempt=2)
    >>> said(what, 180.0, tries=4, before=Before(130.0))
    'train › fit: 1 min 20 s, attempt 2 of 4, about 50 s left (last time 2 min 10 s)'
    """
    gone = max(0.0, now - doing.began)
    parts = [lapse(gone)]
    if doing.cursor is not None:
        parts.append(f"cursor {doing.cursor:,}")
    if doing.attempt > 1:
        parts.append(f"attempt {doing.attempt}{f' of {tries}' if tries >= doing.attempt else ''}")
    if doing.beside:
        parts.append(f"{doing.beside} more at its side")
    left = remaining(gone, doing.cursor, before)
    if left is not None:
        parts.append(f"about {lapse(left)} left")
    text = f"{' › '.join(doing.names)}: {', '.join(parts)}"
    return text if before is None else f"{text} (last time {lapse(before.seconds)})"


def remaining(gone: float, cursor: int | None, before: Before | None) -> float | None:
    """Return the seconds that are left, going by the last time; None where that says nothing, or is over.

    What goes step by step is reckoned by its own pace, everything else by its length then.

    >>> remaining(30.0, None, Before(40.0)), remaining(50.0, None, Before(40.0)), remaining(30.0, 3, Before(40.0, 9))
    (10.0, None, 60.0)
    """
    if before is None:
        return None
    if cursor and before.cursors > cursor:
        return gone / cursor * (before.cursors - cursor)
    left = before.seconds - gone
    return left if left > 0 else None


def lapse(seconds: float) -> str:
    """Return a time that passes, in steps that can be seen to pass.

    >>> lapse(3.21), lapse(80.9), lapse(7384), lapse(266_400)
    ('3.2 s', '1 min 20 s', '2 h 3 min', '3 d 2 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, length, small, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600)):
        if whole < length * (60 if unit == "min" else 24) or unit == "d":
            return f"{whole // length} {unit} {whole % length // part} {small}"
    raise AssertionError("days are the last unit")


def ended(history: History, step: str) -> str:
    """Return how a step that was shown ended, for the line that stays; "" where it is still open."""
    last = history.latest(step)
    if last is None or last.state not in FINAL_STEP_STATES:
        return ""
    seconds = (last.ended_at or last.started_at) - last.started_at
    tries = f" in {last.attempt} attempts" if last.attempt > 1 else ""
    words = {"completed": "took", "cancelled": "stopped after"}
    word = words.get(last.state, f"{last.state.replace('_', ' ')} after")
    return f"{last.started.name} {word} {lapse(seconds)}{tries}"
