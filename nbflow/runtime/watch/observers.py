"""`nbflow.observe`: callbacks that are told what happened in a run, after it is committed and in the journal's order.

A session has a listener only while somebody observes: an unobserved run pays
nothing. Sessions and observers may come in any order; `refresh`, which sessions
call now and then, finds logging and tracing that were set up later.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nbflow.core.errors import UsageError
from nbflow.core.events import CALLBACKS, Event, events_of
from nbflow.core.model import Entry, RunAttached, RunOpened
from nbflow.runtime.watch import hooks, logs, tracing
from nbflow.runtime.watch.hooks import telling

if TYPE_CHECKING:
    from nbflow.runtime.recorder import Recorder
    from nbflow.runtime.session import Session

__all__ = ["Event", "Observation", "Observer", "attach", "observe"]

log = logging.getLogger("nbflow")

#: Told of every event, before the callback of its own.
EVERY = "on_event"


class Observer:
    """Base for observers: every callback, documented and empty. Override those you want.

    Deriving from it is a convenience for editors; any object with some of these
    methods will do. Each gets one frozen `Event`. They are called by whichever
    thread recorded, after the commit, in the order of `seq` within a run, and the
    run waits for them: be quick. One that raises is logged and harms nothing.

    >>> import nbflow
    >>> class Shout(nbflow.Observer):
    ...     def on_step(self, event):
    ...         print(event.name, event.state)
    >>> with nbflow.observe(Shout()), nbflow.run("example"):
    ...     nbflow.durable(version="1")(lambda: 1)()
    <lambda> running
    <lambda> completed
    1
    """

    def on_event(self, event: Event) -> None:
        """Be told of every event; `event.callback` names the callback that is told next."""

    def on_run(self, event: Event) -> None:
        """Be told that a run was opened, attached, or went to another state."""

    def on_state(self, event: Event) -> None:
        """Be told that a state of a machine was entered, or ended: `event.name`, `event.state`."""

    def on_step(self, event: Event) -> None:
        """Be told that a step of any kind started, ended, or was forgotten so that it runs again."""

    def on_retry(self, event: Event) -> None:
        """Be told that an attempt failed (`event.error`) and another is due at `event.detail["due_at"]`."""

    def on_checkpoint(self, event: Event) -> None:
        """Be told that a step completed with outputs: `event.detail["outputs"]` maps names to types."""

    def on_cursor(self, event: Event) -> None:
        """Be told that a stepped body recorded a point to continue from: `event.detail["number"]`, from 0."""

    def on_resume(self, event: Event) -> None:
        """Be told that a run that had been attached before was attached again: `event.attempt` is 2 or more."""

    def on_gate(self, event: Event) -> None:
        """Be told that a gate opened, ended, or got a decision."""

    def on_signal(self, event: Event) -> None:
        """Be told that a signal came (`event.state` is "received"), or that a wait for one started or ended."""

    def on_publish(self, event: Event) -> None:
        """Be told of a published value: `event.name`, `event.detail["value"]`."""

    def on_tag(self, event: Event) -> None:
        """Be told that tags were set: `event.detail`."""

    def on_charge(self, event: Event) -> None:
        """Be told that something was spent: `event.detail["source"]`, `event.detail["amounts"]`."""

    def on_compensation(self, event: Event) -> None:
        """Be told that a compensation started or ended."""

    def on_cancel(self, event: Event) -> None:
        """Be told that the run was asked to stop (`event.state` is "asked") or was cancelled."""

    def on_item(self, event: Event) -> None:
        """Be told that an item of a fan-out started or ended."""

    def on_child(self, event: Event) -> None:
        """Be told that a child run was started, or ended."""


class _Told:
    """An observer with its callbacks, looked up once."""

    def __init__(self, observer: object) -> None:
        self.observer = observer
        self.name = type(observer).__qualname__
        self.calls = _callbacks(observer)
        self.wanted = frozenset(CALLBACKS if EVERY in self.calls else self.calls)
        #: Tells of an entry, before anything is made of it, that this observer has no use for it.
        self.skips = observer.skips if isinstance(observer, logs.LogObserver) else None

    def tell(self, event: Event) -> None:
        for callback in (EVERY, event.callback):
            call = self.calls.get(callback)
            if call is None:
                continue
            try:
                call(event)
            except Exception:
                log.exception(
                    "Observer %s failed in %s at record %d of run %s; the run goes on.",
                    self.name,
                    callback,
                    event.seq,
                    event.run,
                )


class _Feed:
    """The listener of one session: turns each entry into events once, for all who observe.

    It knows the recorder and not the session, which must be free to go away unclosed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.told: tuple[_Told, ...] = ()
        self.wanted: frozenset[str] = frozenset()

    def __call__(self, entry: Entry) -> None:
        told = self.told
        if all(observer.skips is not None and observer.skips(entry) for observer in told):
            return
        token = telling.set(True)
        try:
            for event in events_of(entry, self.recorder.history, self.wanted):
                for observer in told:
                    observer.tell(event)
        finally:
            telling.reset(token)

    def tell(self, *told: _Told) -> None:
        """Tell these from now on, and no others."""
        self.wanted = frozenset().union(*(observer.wanted for observer in told))
        self.told = told


_lock = threading.RLock()
_feeds: weakref.WeakKeyDictionary[Session, _Feed] = weakref.WeakKeyDictionary()
_everywhere: tuple[_Told, ...] = ()
#: Logging and tracing, as far as they are set up in this process.
_built_in: dict[str, _Told] = {}


class Observation:
    """What `observe` and `attach` return: ends with `stop()`, or with the block of a with statement."""

    def __init__(self, told: _Told, stop: Callable[[_Told], None]) -> None:
        self._told = told
        self._stop = stop
        #: The object that is told.
        self.observer = told.observer

    def stop(self) -> None:
        """Tell the observer nothing any more. Stopping twice is fine."""
        self._stop(self._told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def observe(observer: object) -> Observation:
    """Tell an observer what happens in all runs of this process, from now on.

    Args:
        observer: any object with some of the methods of `Observer`.

    Returns:
        A handle; `stop()` it, or use it in a with statement.

    Raises:
        UsageError: no callback, one that is misspelt, or one that is async.

    Example:
        >>> import nbflow
        >>> from nbflow.testing import RecordingObserver
        >>> with nbflow.observe(RecordingObserver()) as observation, nbflow.run("example"):
        ...     pass
        >>> [event.state for event in observation.observer.of("on_run")]
        ['pending', 'running', 'completed']
    """
    global _everywhere  # noqa: PLW0603 - one a process, like the list of open sessions
    told = _Told(observer)
    with _lock:
        _everywhere += (told,)
        for session in tuple(hooks.sessions):
            _add(session, told)
    return Observation(told, _forget)


def attach(session: Session, observer: object) -> Observation:
    """Tell an observer what happens in one run from now on.

    Raises:
        UsageError: as `observe`.
    """
    told = _Told(observer)
    with _lock:
        _add(session, told)

    def stop(told: _Told) -> None:
        with _lock:
            _drop(session, told)

    return Observation(told, stop)


# --- what sessions call -------------------------------------------------------------------------------------------


def opened(session: Session) -> None:
    """Count a session in, and tell those who observe how it came by its run."""
    with _lock:
        _look()
        all_told = (*_built_in.values(), *_everywhere)
        for told in all_told:
            _add(session, told)
    # Outside the lock: an observer may do as it likes. Nobody else has the session yet, so this comes first.
    for entry in _beginning(session.log.history) if all_told else ():
        for event in events_of(entry, session.history):
            for told in all_told:
                told.tell(event)


def refresh(session: Session) -> None:
    """Find logging and tracing that were set up after the session was opened; call it now and then."""
    if _look():
        with _lock:
            for told in _built_in.values():
                _add(session, told)


def closed(session: Session) -> None:
    """Count a session out; what keeps something open for its run lets go of it."""
    with _lock:
        feed = _feeds.pop(session, None)
    if feed is not None:
        session.recorder.unlisten(feed)
        for told in feed.told:
            if isinstance(told.observer, tracing.TracingObserver):
                told.observer.let_go(session.run)


def _look() -> bool:
    """Find out whether logs and traces are wanted now; tell whether any are."""
    if "logs" not in _built_in and logs.wanted():
        _built_in["logs"] = _Told(logs.LogObserver())
    if "tracing" not in _built_in and tracing.wanted():
        _built_in["tracing"] = _Told(tracing.TracingObserver())
    return bool(_built_in)


def _add(session: Session, told: _Told) -> None:
    feed = _feeds.get(session)
    if feed is None:
        feed = _feeds[session] = _Feed(session.recorder)
        session.recorder.listen(feed)
    if told not in feed.told:
        feed.tell(*feed.told, told)


def _drop(session: Session, told: _Told) -> None:
    feed = _feeds.get(session)
    if feed is None:
        return
    feed.tell(*(other for other in feed.told if other is not told))
    if not feed.told:
        del _feeds[session]
        session.recorder.unlisten(feed)


def _forget(told: _Told) -> None:
    global _everywhere  # noqa: PLW0603 - one a process
    with _lock:
        _everywhere = tuple(other for other in _everywhere if other is not told)
        for session in tuple(hooks.sessions):
            _drop(session, told)


def _beginning(entries: Iterable[Entry]) -> list[Entry]:
    """Return the records that say how this process got the run: the opening, if it is new, and the attach."""
    entries = list(entries)
    attached = [entry for entry in entries if isinstance(entry.record, RunAttached)]
    if not attached:
        return []
    first = (
        [entry for entry in entries[:1] if isinstance(entry.record, RunOpened)] if len(attached) == 1 else []
    )
    return [*first, attached[-1]]


# --- what an observer is ------------------------------------------------------------------------------------------


def check(observer: object) -> None:
    """Check that something can observe.

    Raises:
        UsageError: it cannot.
    """
    _callbacks(observer)


def _callbacks(observer: object) -> dict[str, Callable[[Event], None]]:
    """Return an observer's callbacks by name, without those that it left empty.

    Raises:
        UsageError: none, one that is misspelt, or one that is async.
    """
    who = type(observer).__qualname__
    if inspect.isclass(observer):
        raise UsageError(
            f"observe wants an observer, not the class {observer.__qualname__}.",
            hint=f"Make one: {observer.__qualname__}().",
        )
    known = (*CALLBACKS, EVERY)
    for name in _own_names(observer):
        if name in known:
            continue
        close = _close(name.lower(), known, n=1, cutoff=0.75)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
        raise UsageError(f"{who} has a method {name}, which nothing calls.", hint=hint)
    calls: dict[str, Callable[[Event], None]] = {}
    for name in known:
        call = getattr(observer, name, None)
        if call is None or getattr(call, "__func__", call) is getattr(Observer, name):
            continue
        if not callable(call):
            raise UsageError(f"{who}.{name} is no method but {call!r}.")
        if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None)):  # noqa: B004
            raise UsageError(
                f"{who}.{name} is async; observers are called by the thread that records, and not awaited.",
                hint="Put the event into a queue there, and await the queue elsewhere.",
            )
        calls[name] = call
    if not calls:
        raise UsageError(
            f"{who} has no callback, so it would never be told anything.",
            hint=f"Give it some of {', '.join(known)}.",
        )
    return calls


def _own_names(observer: object) -> list[str]:
    """List the names that look like callbacks.

    A class that defines callbacks of ours means every `on_…` for us; one that
    defines none (a widget's base class with its `on_click`) means others, unless
    it is so close to one of ours that it must be a slip.
    """
    places: list[dict[str, Any]] = [dict(vars(kind)) for kind in type(observer).__mro__]
    places.append(dict(getattr(observer, "__dict__", {})))
    known = {*CALLBACKS, EVERY}
    found: list[str] = []
    for place in places:
        ours = bool(known & place.keys())
        for name, value in place.items():
            looks = name.startswith("on_") and (ours or _slip(name, known))
            if looks and (callable(value) or isinstance(value, staticmethod | classmethod)):
                found.append(name)
    return found


def _slip(name: str, known: set[str]) -> bool:
    return bool(_close(name.lower(), known, n=1, cutoff=0.8))


def _close(word: str, known: Iterable[str], n: int, cutoff: float) -> list[str]:
    import difflib  # 3 ms, for a slip of the pen

    return difflib.get_close_matches(word, list(known), n=n, cutoff=cutoff)
