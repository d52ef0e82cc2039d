"""Structured logs: one record of the logger "nbflow.run" for each event, with its facts in `record.nbflow`.

States of runs and of machines are INFO, steps DEBUG, retries WARNING, failures
ERROR. Nothing is printed unless the program has set logging up, and nothing is
formatted for a level that is off.
"""

from __future__ import annotations

import logging
from typing import Any

from nbflow.core.events import Event
from nbflow.core.model import Entry, StepCompleted, StepStarted

logger = logging.getLogger("nbflow.run")
# A library speaks when it is asked: without this Python prints warnings of unconfigured loggers to stderr.
logger.addHandler(logging.NullHandler())

_QUIET = frozenset({"on_step", "on_checkpoint", "on_cursor", "on_item", "on_charge"})
_BAD = frozenset({"failed", "timed_out"})


def wanted() -> bool:
    """Tell whether logging is set up so that anybody would see our records."""
    if not logger.isEnabledFor(logging.ERROR):
        return False
    place: logging.Logger | None = logger
    while place is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in place.handlers):
            return True
        place = place.parent if place.propagate else None
    return False


class LogObserver:
    """Writes each event as a log record; `nbflow.observe` is not needed, sessions bring it along.

    `record.nbflow` is a flat dictionary of JSON-able facts, for formatters that
    take `extra` (python-json-logger, structlog's `ExtraAdder`).
    """

    def skips(self, entry: Entry) -> bool:
        """Tell whether the entry would only be logged at a level that is off."""
        return isinstance(entry.record, StepStarted | StepCompleted) and not logger.isEnabledFor(logging.INFO)

    def on_event(self, event: Event) -> None:
        """Log the event, if its level is on."""
        level = level_of(event)
        if level is not None and logger.isEnabledFor(level):
            logger.log(level, "%s", sentence(event), extra={"nbflow": facts(event)})


def level_of(event: Event) -> int | None:
    """Return the level of an event's record; None for one that says again what another has said."""
    callback = event.callback
    if callback == "on_retry":
        return logging.WARNING
    if callback == "on_step":
        if event.kind in ("state", "gate", "signal", "compensation", "item", "child"):
            return None  # told again by the callback of its kind
        return logging.ERROR if event.state in _BAD else logging.DEBUG
    if event.state in _BAD:
        return logging.ERROR
    return logging.DEBUG if callback in _QUIET else logging.INFO


def sentence(event: Event) -> str:
    """Say in one line what happened.

    >>> sentence(Event("on_step", "r", "etl", 7, 0.0, state="completed", name="load", kind="call", seconds=0.25))
    'Call load of run r completed in 0.25 s.'
    """
    whose = f"run {event.run}"
    because = f": {event.error.type}: {event.error.message}".rstrip(".") if event.error else ""
    callback = event.callback
    if callback == "on_run":
        attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
        reason = event.detail.get("reason")
        return f"Run {event.run} of {event.workflow} is {event.state}{attempt}{because or _after(reason)}."
    if callback == "on_resume":
        return f"Run {event.run} of {event.workflow} is carried on, attempt {event.attempt}."
    if callback == "on_retry":
        return f"Attempt {event.attempt} at {_what(event)} of {whose} failed{because}."
    if callback == "on_checkpoint":
        names = ", ".join(event.detail.get("outputs", ()))
        return f"{_what(event, first=True)} of {whose} has its checkpoint: {names}."
    if callback == "on_cursor":
        return f"{_what(event, first=True)} of {whose} passed cursor {event.detail.get('number')}."
    if callback == "on_cancel":
        stopped = "was asked to stop" if event.state == "asked" else "was cancelled"
        return f"Run {event.run} {stopped}{_after(event.detail.get('reason'))}."
    if callback == "on_publish":
        return f"Value {event.name} of {whose} was published."
    if callback == "on_tag":
        return f"Tags of {whose} were set: {', '.join(sorted(event.detail))}."
    if callback == "on_charge":
        return f"{_what(event, first=True)} of {whose} was charged by {event.detail.get('source')}."
    if not event.kind:  # a signal or a decision that came
        return f"{callback.removeprefix('on_').capitalize()} {event.name or event.step} of {whose} was {event.state}."
    if event.seconds is None:
        done = {"running": "started", "waiting": "waits"}.get(event.state, f"is {event.state}")
        return f"{_what(event, first=True)} of {whose} {done}{because}."
    ended = event.state.replace("_", " ")
    return f"{_what(event, first=True)} of {whose} {ended} in {event.seconds:.3g} s{because}."


def _what(event: Event, *, first: bool = False) -> str:
    kind = event.kind or "step"
    return f"{kind.capitalize() if first else kind} {event.name or event.step}"


def _after(reason: Any) -> str:
    return f": {reason}" if reason else ""


def facts(event: Event) -> dict[str, Any]:
    """Return the event as a flat dictionary of texts, numbers and booleans; what is empty is left out.

    >>> facts(Event("on_tag", "r", "etl", 7, 0.0, detail={"team": "blue"}))["detail.team"]
    'blue'
    """
    flat: dict[str, Any] = {
        "event": event.callback.removeprefix("on_"),
        "run": event.run,
        "workflow": event.workflow,
        "seq": event.seq,
        "at": event.at,
    }
    for name in (
        "state",
        "step",
        "name",
        "kind",
        "attempt",
        "execution",
        "seconds",
        "parent",
        "parent_run",
        "parent_step",
    ):
        value = getattr(event, name)
        if value not in ("", None) and (value != 0 or name == "seconds"):
            flat[name] = str(value) if isinstance(value, str) else value
    if event.error is not None:
        flat["error.type"] = event.error.type
        flat["error.message"] = event.error.message
    for name, value in event.detail.items():
        _flatten(flat, f"detail.{name}", value)
    return flat


def _flatten(flat: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under its dotted name: dictionaries opened up, what JSON lacks as text, big things cut."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(flat, f"{name}.{key}", inner)
    elif isinstance(value, bool | int | float) or value is None:
        flat[name] = value
    else:
        text = str(value)
        flat[name] = text if len(text) <= 1000 else f"{text[:1000]}…"
