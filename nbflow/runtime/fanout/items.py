"""The items of one fan-out: their keys, what is recorded of them, what may start, how they ended.

`Fan` decides and remembers; who calls the bodies is another matter (threads and
tasks in `pool`, other processes in `executor`). Nothing is kept
for an item but its key, its signature and its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nbflow.core.errors import GatePending, ItemsFailed, LeaseError, NbflowError, RunCancelled
from nbflow.core.fanout import Frontier
from nbflow.core.gates import pending_of
from nbflow.core.history import Execution
from nbflow.core.model import AnyRecord, ErrorInfo, StepEnded, StepStarted
from nbflow.core.retry import RetryPolicy
from nbflow.core.signature import digest, short
from nbflow.core.states import COMPENSATE, StepState
from nbflow.runtime import modes
from nbflow.runtime.fanout.progress import Progress
from nbflow.runtime.policies.guards import Policy
from nbflow.runtime.scope import Scope
from nbflow.runtime.session import Session
from nbflow.runtime.steps import ARGS, KWARGS, RESULT
from nbflow.runtime.trying import StepSpec
from nbflow.values.fingerprint import fingerprint

#: What is done when an item fails.
OnFailure = Literal["halt", "continue", "skip_dependents"]

#: Seconds after which an item counts as slow: it is on record as started, and others work beside it.
SLOW = 0.002
#: Seconds of work, and how many items, that share one append.
SLICE = 0.005
GATHERED = 64

#: How many failures an error's sentence tells of, and how many characters of each.
_NAMED = 3
_TEXT = 120

#: Records that are appended at once where there may be very many.
_AT_ONCE = 1000


@dataclass(frozen=True)
class Failed:
    """Stands in the results of `nbflow.map` for an item that failed. It is falsy; `error` is what was raised.

    >>> bool(Failed(ValueError("no")))
    False
    """

    error: BaseException

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Skipped:
    """Stands in the results of `nbflow.map` for an item that could not run, and is falsy.

    `because` holds the keys of those it depends on that failed or were skipped
    themselves.

    >>> Skipped(("load",)).because
    ('load',)
    """

    because: tuple[Hashable, ...]

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Settings:
    """What all items of a fan-out have in common.

    `code` is the digest of the function's code. Where items can be undone,
    `compensate` is the name under which the compensator is found again, and
    `arguments` and `keywords` are what the function is given besides the item.
    """

    name: str
    code: bytes
    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    version: str = ""
    durability: Literal["synced", "buffered"] = "synced"
    check: bool = False
    on_error: OnFailure = "halt"
    compensate: str = ""
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    hint: str = 'What is done is recorded: run it again to try the rest, or use on_error="continue".'


class Fan:
    """One fan-out over `items`. Safe to use from several threads.

    Made, it has found what is recorded already. Whoever runs it calls `take`
    until `over`, and `completed` or `failed` for what was taken.
    """

    def __init__(
        self,
        session: Session,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        settings: Settings,
        scope: Scope,
        keys: Sequence[Hashable] | None = None,
        after: Sequence[Collection[int]] | None = None,
        show: bool | None = None,
    ) -> None:
        self.session, self.function, self.items, self.settings = session, function, items, settings
        self.results: list[Any] = [None] * len(items)
        self.errors: dict[int, BaseException] = {}
        self.changed = threading.Condition()
        #: Called after each change, by whoever made it: for those who cannot wait for `changed`.
        self.told: Callable[[], None] | None = None
        #: Items that stopped at a gate, by place: they go on when the fan-out is run again, the others go on now.
        self.pending: dict[int, GatePending] = {}
        #: What ends the whole fan-out, whatever `on_error` says.
        self.fatal: BaseException | None = None
        self.stopped = False
        #: Places that were taken and have not ended.
        self.running: set[int] = set()
        self._outer = scope
        self._parent = scope.step or None
        self._names = keys
        session.recorder.settle()
        self._numbers: list[int] = []
        self.keys: list[str] = []
        self._inner: list[str] = []
        self._signatures: list[bytes] = []
        self._identify()
        try:
            done = self._restore()
        except BaseException:
            self._give_back(range(len(items)))
            raise
        self._lost: set[int] = set()
        self.frontier = Frontier(len(items), after, done)
        #: How many items had to be run when it was made.
        self.todo = len(items) - len(done)
        self.progress = Progress(session, settings.name, len(items), restored=len(done), show=show)

    # --- who the items are ----------------------------------------------------------------------------------------

    def _identify(self) -> None:
        """Give each item its key: by code, content and occurrence, so that an edited list keeps what stays."""
        name, code, outer = self.settings.name, self.settings.code, self._outer
        for place, item in enumerate(self.items):
            given = fingerprint(item).digest
            self._signatures.append(digest(b"item", code, given))
            call = self._call(place)
            number = outer.occurrence(call)
            self._numbers.append(number)
            self.keys.append(outer.within(f"{call}#{number}"))
            self._inner.append(outer.within(f"{name}@{short(given)}#{number}"))

    def _call(self, place: int) -> str:
        """Return what the enclosing scope counts the occurrences of."""
        return f"{self.settings.name}:{short(self._signatures[place])}"

    def _restore(self) -> list[int]:
        """Take over what is recorded; return the places."""
        session, done = self.session, []
        for place, (key, signature) in enumerate(zip(self.keys, self._signatures, strict=True)):
            execution = session.find(key, signature)
            if execution is not None:
                self.results[place] = session.restore(execution)[RESULT]
                done.append(place)
        return done

    def spec(self, place: int) -> StepSpec:
        """Return what is to be run for an item."""
        settings = self.settings
        return StepSpec(
            step=self.keys[place],
            name=settings.name,
            kind="item",
            signature=self._signatures[place],
            retry=settings.retry,
            timeout=settings.timeout,
            parent=self._parent,
            version=settings.version,
            detail={COMPENSATE: settings.compensate} if settings.compensate else {},
            durability=settings.durability,
            check=settings.check,
            policies=settings.policies,
        )

    def values(self, place: int, result: Any) -> dict[str, Any]:
        """Return what is recorded of an item: its result, and its arguments where they are needed to undo it."""
        settings = self.settings
        if not settings.compensate:
            return {RESULT: result}
        given = (*settings.arguments, self.items[place])
        return {RESULT: result, ARGS: given, KWARGS: dict(settings.keywords)}

    def inside(self, place: int, begin: Callable[[], None] | None = None) -> Scope:
        """Return the scope of what an item calls itself; `begin` is called as soon as somebody asks for its step."""
        if begin is None:
            return Scope(self._inner[place], self.keys[place])
        return _ItemScope(self._inner[place], self.keys[place], begin)

    def latest(self, place: int) -> Execution | None:
        """Return the newest recorded execution of an item."""
        return self.session.history.latest(self.keys[place])

    def key(self, place: int) -> Hashable:
        """Return what people call the item."""
        return place if self._names is None else self._names[place]

    # --- what may start -------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """Take the next item that may start; None when there is none now."""
        with self.changed:
            if self.stopped:
                return None
            place = self.frontier.take()
            if place is not None:
                self.running.add(place)
            return place

    @property
    def ready(self) -> int:
        """How many items could start now."""
        return 0 if self.stopped else self.frontier.ready

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing will."""
        return not self.running and (self.stopped or self.frontier.ready == 0)

    # --- how they ended -------------------------------------------------------------------------------------------

    def completed(self, places: Sequence[int], values: Sequence[Any]) -> None:
        """Take in results that are recorded."""
        with self.changed:
            for place, value in zip(places, values, strict=True):
                self.results[place] = value
                self.frontier.complete(place)
            self._settled(places)
        self.progress.add(done=len(places))

    def failed(self, place: int, error: BaseException) -> None:
        """Take in a failure that is recorded; decide what becomes of the others."""
        gate = pending_of(error)
        if gate is not None:
            with self.changed:
                self.pending[place] = gate
                self._settled((place,))
            return
        lost: list[int] = []
        with self.changed:
            self.errors[place] = error
            self.results[place] = Failed(error)
            if is_fatal(error):
                self.fatal = self.fatal or error
                self.stopped = True
            elif self.settings.on_error == "halt":
                self.stopped = True
            elif self.settings.on_error == "skip_dependents":
                lost = self.frontier.fail(place)
                self._lost.update(lost)
            else:
                self.frontier.complete(place)
            self._settled((place,))
        self.progress.add(failed=1, skipped=len(lost))

    def stop(self, error: BaseException, place: int | None = None) -> None:
        """Start nothing more and raise `error` at the end; `place` was taken and did not start, or is not recorded."""
        with self.changed:
            self.fatal = self.fatal or error
            self.stopped = True
            self._settled(() if place is None else (place,))

    def _settled(self, places: Collection[int]) -> None:
        self.running.difference_update(places)
        self.changed.notify_all()
        if self.told is not None:
            self.told()

    # --- the end --------------------------------------------------------------------------------------------------

    def outcome(self) -> list[Any]:
        """Return the results in input order, once it is over.

        Raises:
            ItemsFailed: items failed, with `on_error="halt"`.
            GatePending: items wait at gates; all others that could be done are.
            BaseException: what ended the fan-out, such as `RunCancelled`.
        """
        self.progress.close()
        error = self.fatal or self._halted() or self._first_pending()
        if error is not None:
            self._give_back(range(len(self.items)))
            raise error
        self._record_skipped()
        self._give_back([*self.errors, *self._lost])
        if modes.current() == "evict":
            self._read_back()
        return self.results

    def _halted(self) -> ItemsFailed | None:
        if not self.errors or self.settings.on_error != "halt":
            return None
        failed = sorted(self.errors.items())
        told = "; ".join(f"item {self.key(place)!r}: {_told(error)}" for place, error in failed[:_NAMED])
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        problem = ItemsFailed(
            f"{len(failed)} of {len(self.items)} items of {self.settings.name} failed ({told}{more}).",
            run=self.session.run,
            step=self._parent,
            failures=dict(failed),
            hint=self.settings.hint,
        )
        if len(failed) == 1:
            problem.__cause__ = failed[0][1]
        return problem

    def _first_pending(self) -> GatePending | None:
        if not self.pending:
            return None
        first = self.pending[min(self.pending)]
        if len(self.pending) > 1:
            first.add_note(f"nbflow: {len(self.pending)} of {len(self.items)} items wait at gates.")
        self.session.waits()  # items that began after it had stopped said that the run goes on
        return first

    def _give_back(self, places: Collection[int]) -> None:
        """Uncount items that have no result: mapping over them again is another try at the same steps."""
        for place in sorted(places, reverse=True):
            self._outer.give_back(self._call(place), self._numbers[place])

    def _record_skipped(self) -> None:
        """Record what never started. At the end, so that the reasons do not depend on what failed first."""
        records: list[AnyRecord] = []
        lost = self._lost | set(self.errors)
        for place in sorted(self._lost):
            because = tuple(self.key(cause) for cause in self.frontier.causes(place, lost))
            self.results[place] = Skipped(because)
            why = f"It depends on {', '.join(map(repr, because))}, of which nothing came."
            records += [started(self.spec(place)), _skipped(self.keys[place], why)]
            if len(records) >= _AT_ONCE:
                self.session.recorder.append(*records)
                records = []
        if records:
            self.session.recorder.append(*records)

    def _read_back(self) -> None:
        """Give back what the journal holds instead of what is in memory: for the forced modes of the tests."""
        self.session.recorder.reread()
        without = self._lost | set(self.errors)
        for place, (key, signature) in enumerate(zip(self.keys, self._signatures, strict=True)):
            if place not in without:
                execution = self.session.find(key, signature)
                assert execution is not None, "a completed item is in the journal"
                self.results[place] = self.session.restore(execution)[RESULT]


class _ItemScope(Scope):
    """The scope of a quick item, whose start is not recorded before something else refers to it."""

    def __init__(self, name: str, step: str, begin: Callable[[], None]) -> None:
        self._begin: Callable[[], None] | None = None
        super().__init__(name, step)
        self._begin = begin

    @property
    def step(self) -> str:
        """The item's key; a call or a charge inside the item asks for it and must find the item begun."""
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()
        return self._step

    @step.setter
    def step(self, key: str) -> None:
        self._step = key


def started(spec: StepSpec) -> StepStarted:
    """Return the record of a first attempt."""
    return StepStarted(
        step=spec.step,
        name=spec.name,
        step_kind=spec.kind,
        signature=spec.signature,
        parent=spec.parent,
        version=spec.version,
        detail=spec.detail,
    )


def is_fatal(error: BaseException) -> bool:
    """Tell whether an error ends the whole fan-out, whatever is wanted for items that fail."""
    return not isinstance(error, Exception) or isinstance(error, (LeaseError, RunCancelled))


def _skipped(key: str, why: str) -> StepEnded:
    info = ErrorInfo(type="Skipped", message=why)
    return StepEnded(execution=-1, step=key, state=StepState.SKIPPED, error=info)


def _told(error: BaseException) -> str:
    text = error.message if isinstance(error, NbflowError) else str(error)
    line = text.strip().partition("\n")[0]
    cut = line if len(line) <= _TEXT else f"{line[: _TEXT - 1]}…"
    return f"{type(error).__name__}: {cut}" if cut else type(error).__name__
