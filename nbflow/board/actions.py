"""What may be done about a run, why not where it may not, and doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbflow.board import launching
from nbflow.board.folds import Fold
from nbflow.board.here import Here
from nbflow.core.errors import NbflowError, UsageError
from nbflow.core.history import History
from nbflow.core.model import RunInfo, RunOpened
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.runtime import forks
from nbflow.runtime.waits import cancelling
from nbflow.store.listing import CORRUPT
from nbflow.store.protocol import Store

#: What can be asked for, in the order in which it is offered.
ACTIONS = ("resume", "new", "cancel", "retry", "fork", "forget", "delete")

Allowed = dict[str, dict[str, Any]]


def allowed(info: RunInfo, fold: Fold | None, here: Here | None) -> Allowed:
    """Return for each action whether it may be asked for now, and if not why: `{"cancel": {"allowed", "why"}}`."""
    opened = fold.history.opened if fold is not None else None
    history = fold.history if fold is not None else History()
    refusals = {
        "resume": _why_no_resume(info, opened, here),
        "new": _why_no_new(opened, here),
        "cancel": _why_no_cancel(info),
        "retry": _why_no_retry(info, history, here),
        "fork": "" if history.executions else "The run has recorded no step that a new run could share.",
        "forget": _why_no_retry(info, history, here),
        "delete": "Its process is at work. Cancel the run first." if info.alive else "",
    }
    return {name: {"allowed": not refusals[name], "why": refusals[name]} for name in ACTIONS}


def _why_no_cancel(info: RunInfo) -> str:
    if info.state == CORRUPT:
        return "The run cannot be read."
    return f"The run is {info.state}, and final." if info.state in FINAL_RUN_STATES else ""


def _why_no_retry(info: RunInfo, history: History, here: Here | None) -> str:
    if info.state in FINAL_RUN_STATES:
        return f"The run is {info.state}, and final. Fork it: the new run shares what came before a step."
    if info.state == CORRUPT:
        return "The run cannot be read."
    if not history.executions:
        return "No step has started."
    if info.alive and not _is_here(info, here):
        return "Its process is at work: ask there, or stop it first."
    return ""


def _why_no_resume(info: RunInfo, opened: RunOpened | None, here: Here | None) -> str:
    if info.state in FINAL_RUN_STATES:
        return f"The run is {info.state}: there is nothing left to resume."
    if info.state == CORRUPT or opened is None:
        return "The run cannot be read. `nbflow doctor` offers what can be saved."
    if _is_here(info, here):
        return "This kernel has the run: press Run All."
    if info.alive:
        return "The run is at work already."
    if opened.parent is not None:
        return f"It is a part of run {opened.parent}: resume that one."
    if launching.is_launched(opened) or _is_of_here(opened, here):
        return ""
    return _way(opened, info.run)


def _why_no_new(opened: RunOpened | None, here: Here | None) -> str:
    if opened is None:
        return "The run cannot be read."
    if opened.parent is not None:
        return f"It is a part of run {opened.parent}."
    if _is_of_here(opened, here):
        return ""
    return launching.why_no_new(opened) if launching.is_launched(opened) else _way(opened, "new")


def _way(opened: RunOpened, run: str) -> str:
    """Say how a run is carried on, or begun anew, that nobody can start from here."""
    what = "%nbflow new" if run == "new" else f"%nbflow resume {run}"
    if opened.workflow_kind == "notebook":
        return f"Open {opened.workflow}, call `{what}` there, and run its cells."
    program = "program or notebook that has the machine" if opened.workflow_kind == "machine" else "program"
    return f"Run the {program} again: it {'begins a new run' if run == 'new' else 'takes the run up'}."


def _is_here(info: RunInfo, here: Here | None) -> bool:
    return here is not None and here.run() == info.run


def _is_of_here(opened: RunOpened, here: Here | None) -> bool:
    return here is not None and opened.workflow_kind == "notebook" and here.workflow() == opened.workflow


class Actions:
    """Does what pages ask for. Safe to use from several threads."""

    def __init__(self, store: Store, here: Here | None) -> None:
        self._store = store
        self._here = here
        self._doing: Mapping[str, Callable[[RunInfo, Fold | None, dict[str, Any]], dict[str, Any]]] = {
            "resume": self._resume,
            "new": self._new,
            "cancel": self._cancel,
            "retry": self._retry,
            "fork": self._fork,
            "forget": self._forget,
            "delete": self._delete,
        }

    def act(self, action: str, info: RunInfo, fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        """Do it, and return what to say: `{"said": sentence, "run": id of a new run}`.

        Raises:
            UsageError: there is no such action, or it is not allowed now; the sentence says why.
            NbflowError: it could not be done.
        """
        if action not in self._doing:
            raise UsageError(f"There is no action {action!r}.", hint=f"There are {', '.join(ACTIONS)}.")
        verdict = allowed(info, fold, self._here)[action]
        if not verdict["allowed"]:
            raise UsageError(f"Nothing was done to run {_short(info)}.", run=info.run, hint=verdict["why"])
        return self._doing[action](info, fold, params)

    def _cancel(self, info: RunInfo, _fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        answer = cancelling.cancel(info.run, _text(params, "reason"), store=self._store)
        if answer == "cancelled":
            return {"said": f"Run {_short(info)} is cancelled."}
        if info.alive:
            return {"said": f"Run {_short(info)} is asked to stop: it ends at its next step."}
        return {"said": f"Run {_short(info)} has something to undo: it is cancelled when it is resumed."}

    def _retry(self, info: RunInfo, _fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        key = forks.retry_step(info.run, _step(params), _text(params, "reason"), store=self._store)
        return {"said": f"Step {key} runs again {self._when(info)}."}

    def _forget(self, info: RunInfo, _fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        key = forks.retry_step(info.run, _step(params), _text(params, "reason"), store=self._store)
        return {
            "said": f"Step {key} is forgotten: it runs again {self._when(info)}. Its record stays in history."
        }

    def _when(self, info: RunInfo) -> str:
        return "with the next Run All" if _is_here(info, self._here) else "when the run is resumed"

    def _fork(self, info: RunInfo, _fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        step = _step(params)
        run = forks.fork(info.run, step, store=self._store)
        return {
            "said": f"Run {run[:13]} shares what came before step {step}; resume it to go on.",
            "run": run,
        }

    def _delete(self, info: RunInfo, _fold: Fold | None, _params: dict[str, Any]) -> dict[str, Any]:
        self._store.delete(info.run)
        return {"said": f"Run {_short(info)} of {info.workflow} is deleted."}

    def _resume(self, info: RunInfo, fold: Fold | None, _params: dict[str, Any]) -> dict[str, Any]:
        assert fold is not None
        assert fold.history.opened is not None, "what has no first record is not allowed to be resumed"
        opened = fold.history.opened
        if launching.is_launched(opened):
            return {"said": launching.resume(self._store, info), "run": info.run}
        assert self._here is not None
        self._here.attach(info.run)
        return {"said": f"Run {_short(info)} is this kernel's now: press Run All.", "run": info.run}

    def _new(self, info: RunInfo, fold: Fold | None, params: dict[str, Any]) -> dict[str, Any]:
        assert fold is not None
        assert fold.history.opened is not None
        opened = fold.history.opened
        if _is_of_here(opened, self._here):
            assert self._here is not None
            run = self._here.new()
            return {"said": f"Run {run[:13]} is new: press Run All, and every durable cell runs.", "run": run}
        given = params.get("params")
        if given is not None and not isinstance(given, dict):
            raise UsageError(f"Parameters are an object of names and values, not {given!r}.", run=info.run)
        return {"said": launching.new(self._store, opened, given or {})}


def _short(info: RunInfo) -> str:
    return info.run[:13]


def _step(params: dict[str, Any]) -> str:
    step = params.get("step")
    if not isinstance(step, str) or not step:
        raise UsageError("This is about a step, and none was named.", run=params.get("run"))
    return step


def _text(params: dict[str, Any], name: str) -> str:
    text = params.get(name) or ""
    if not isinstance(text, str):
        raise UsageError(f"The {name} is a text, not {text!r}.", run=params.get("run"))
    return text


def named(error: NbflowError, params: dict[str, Any]) -> NbflowError:
    """Return the error with the run and step that were asked about, where it names none itself."""
    for name in ("run", "step"):
        value = params.get(name)
        if getattr(error, name) is None and isinstance(value, str):
            setattr(error, name, value)
    return error
