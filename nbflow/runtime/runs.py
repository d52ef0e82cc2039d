"""`nbflow.run`: a run as a with statement, for plain scripts; the run one is in, and undoing it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nbflow.core.errors import LeaseLost, RunCancelled, UsageError
from nbflow.core.gates import pending_of
from nbflow.core.states import RunState
from nbflow.runtime import active
from nbflow.runtime.session import Session
from nbflow.runtime.watch import hooks
from nbflow.store.protocol import Store

if TYPE_CHECKING:
    from nbflow.runtime.saga import Find


class Run:
    """The run that this code is part of: what it is called and what is known of it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def id(self) -> str:
        """The run's id; ids sort by time."""
        return self._session.run

    @property
    def workflow(self) -> str:
        """What is run."""
        return self._session.workflow

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that the run was opened with."""
        assert self._session.history.opened is not None
        return dict(self._session.history.opened.params)

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; every resume is one."""
        return self._session.attempt

    @property
    def resumed(self) -> bool:
        """Whether completed steps were found when the run was attached."""
        return self._session.resumed

    @property
    def state(self) -> str:
        """The run's state: running, waiting, completed, failed or cancelled."""
        return str(self._session.history.state)

    @property
    def tags(self) -> dict[str, str]:
        """The run's tags."""
        return dict(self._session.history.tags)

    def flush(self) -> None:
        """Return when everything recorded so far is on disk."""
        self._session.log.flush()

    def __repr__(self) -> str:
        return f"<nbflow run {self.id} of {self.workflow}, {self.state}, attempt {self.attempt}>"


@contextmanager
def run(
    name: str,
    /,
    *,
    store: Store | str | Path | None = None,
    version: int | str | None = "",
    tags: dict[str, str] | None = None,
    new: bool = False,
    resume: str | None = None,
    steal: bool = False,
    **params: Any,
) -> Iterator[Run]:
    """Open a durable run for the body of a with statement.

    The newest unfinished run of this name with equal parameters is carried on;
    otherwise a new one starts. Leaving the body completes the run; an exception
    undoes what can be undone (`@durable(compensate=)`) and fails the run (it may
    be carried on), an interrupt leaves it as it is.

    Args:
        name: the workflow's name.
        store: a store or its place; the nearest `.nbflow` folder by default.
        version: the workflow's version, recorded with the run.
        tags: words to find the run by.
        new: start a new run even though an unfinished one is there.
        resume: carry on this run, by id or unambiguous prefix.
        steal: take the run over from a living owner.
        **params: the run's parameters, JSON-able.

    Raises:
        LeaseHeld: another process has the run.
        UsageError: a parameter that JSON cannot hold.
        CompensationFailed: the body failed and not everything could be undone.

    Example:
        >>> import nbflow
        >>> with nbflow.run("etl", day="2026-01-01") as current:
        ...     current.params
        {'day': '2026-01-01'}
    """
    if not name or not isinstance(name, str):
        raise UsageError(f"A run's name is a text that is not empty, not {name!r}.")
    if new and resume:
        raise UsageError("`new` and `resume` contradict each other.")
    number: object = version
    if number is not None and (isinstance(number, bool) or not isinstance(number, (int, str))):
        raise UsageError(f"The version of run {name} is a text or a number, not {version!r}.")
    place = store if store is not None and not isinstance(store, (str, Path)) else _store(store)
    session = Session.open(
        place,
        name,
        kind="script",
        params=plain_params(params),
        version="" if version is None else str(version),
        tags=_tag_texts(tags) if tags else None,
        new=new,
        run=resume,
        steal=steal,
    )
    with conducted(session):
        yield Run(session)


@contextmanager
def conducted(session: Session, find: Find | None = None) -> Iterator[None]:
    """Make an attached run the current one for the body of a with statement, and record how it ended.

    `find` tells what undoes a step that the registry of compensators does not know.
    """
    active.add(session)
    token = active.enter(session)
    hooks.begun(session)
    try:
        if not _resumed_rollback(session, find):  # to undo, the body's functions have to be there first
            session.check()  # a cancel that came while nobody ran it: replaying steps would not ask
        with session.within(session.root):
            yield
        session.check()  # … or behind the last step
    except LeaseLost:
        raise
    except Exception as error:
        from nbflow.runtime import saga

        failure = saga.fail(session, error, find)
        if isinstance(failure, RunCancelled):
            session.finish(RunState.CANCELLED, reason=failure.reason, error=failure)
        else:  # a cancelled run that is not undone is failed: only that can be resumed, and undone then
            session.finish(RunState.FAILED, error=failure)
        if failure is not error:
            raise failure  # noqa: B904 - it has the error as its cause
        raise
    except BaseException as stop:
        if pending_of(stop) is not None:
            session.waits()  # what went on beside the gate may have said that it is running
        session.log.flush()
        raise
    else:
        session.finish()
    finally:
        hooks.left(session)
        active.leave(token)
        active.remove(session)
        session.close()


def _resumed_rollback(session: Session, find: Find | None) -> bool:
    """Carry on what a rollback left; tell whether something could still be undone."""
    if not session.history.undoable:
        return False
    from nbflow.runtime import saga

    saga.resume_rollback(session, find)
    return bool(saga.compensatable(session.history))


def rollback(reason: str = "") -> list[str]:
    """Undo every completed call of the current run that has a compensator, last first.

    For notebooks, where a failing cell undoes nothing by itself, and for
    scripts that want it at another moment than their end. The run goes on; what
    was undone runs again when it is called again. Async compensators work too.

    Args:
        reason: recorded with the rollback.

    Returns:
        The keys of the steps that were undone, in that order.

    Raises:
        NoActiveRun: outside any run.
        CompensationFailed: something could not be undone; the rest is.

    Example:
        >>> import nbflow
        >>> @nbflow.durable(compensate=lambda number, item: print("cancelled", item, number))
        ... def order(item):
        ...     return 17
        >>> with nbflow.run("example"):
        ...     number = order("chairs")
        ...     undone = nbflow.rollback("the customer changed her mind")
        cancelled chairs 17
        >>> len(undone)
        1
    """
    from nbflow.runtime import saga

    return saga.rollback(active.required(), None, reason=reason)


def current_run() -> Run | None:
    """Return the run that this code is part of, or None outside any.

    >>> import nbflow
    >>> nbflow.current_run() is None
    True
    """
    session = active.current()
    return Run(session) if session is not None else None


def _tag_texts(tags: dict[str, Any]) -> dict[str, str]:
    from nbflow.runtime.attributes import tag_texts

    return tag_texts(tags)


def _store(place: str | Path | None) -> Store:
    from nbflow.store.local import process_store

    return process_store(place)


def plain_params(params: dict[str, Any]) -> dict[str, Any]:
    """Bring parameters into the form that a record holds, so that a resume compares like with like."""
    try:
        for name, value in params.items():
            _check_plain(value, name)
        plain = dict(msgspec.json.decode(msgspec.json.encode(params)))
        msgspec.msgpack.encode(plain)  # integers beyond 64 bits
    except UsageError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"A run's parameters must be JSON-able: {error}.",
            hint="Pass a name or a path, and load the object in a durable step.",
        ) from error
    return plain


def _check_plain(value: Any, path: str) -> None:
    """Refuse what JSON would silently turn into something else."""
    what = ""
    if isinstance(value, float) and not math.isfinite(value):
        what = f"{value!r}, which JSON does not have"
    elif isinstance(value, (set, frozenset)):
        what = "a set, which has no order; give a sorted list"
    elif isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                what = f"a dict with the key {key!r}; JSON has texts only"
                break
            _check_plain(part, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _check_plain(part, f"{path}[{place}]")
    if what:
        raise UsageError(f"The parameter {path} is {what}.")
