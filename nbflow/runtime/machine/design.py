"""What a machine is: states and tasks as a person defines them, checked, drawn and versioned. Nothing runs here."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from nbflow.core.diagram import mermaid
from nbflow.core.errors import UsageError, VersionMismatch
from nbflow.core.gates import OnTimeout
from nbflow.core.machine import Definition
from nbflow.core.outline import outline_of, plain
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.core.signature import digest, short
from nbflow.core.state_spec import Kind, StateSpec
from nbflow.core.timers import instant
from nbflow.runtime.machine.gates import ask_of
from nbflow.runtime.machine.shown import drawn
from nbflow.runtime.machine.tasks import Handler, Task
from nbflow.runtime.policies.guards import policies_of
from nbflow.runtime.watch import observers
from nbflow.runtime.workers import limit_of

if TYPE_CHECKING:
    from nbflow.core.machine import Edge


class Design:
    """The definition of a machine; `nbflow.Machine` adds the verbs that run it, and documents the arguments."""

    def __init__(
        self,
        name: str,
        states: Any,
        *,
        initial: Any,
        final: Iterable[Any],
        version: int | str | None = "",
        timeout: float | str | None = None,
        compensation_share: float = 0.2,
        max_parallel: int | None = None,
        observers: Sequence[object] = (),
    ) -> None:
        text: object = name
        if not isinstance(text, str) or not text:
            raise UsageError(f"A machine's name is a text that is not empty, not {name!r}.")
        limit = seconds(timeout)
        if limit == 0:
            raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
        share: object = compensation_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise UsageError(f"compensation_share is a number from 0 up to 1, not {compensation_share!r}.")
        number: object = version
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, str))):
            raise UsageError(f"The version of machine {name!r} must be a number or a text, not {version!r}.")
        limit_of(max_parallel)  # complain here, and not when a run is open already
        self.name = name
        self.version = "" if version is None else str(version)
        self.timeout = limit
        self.compensation_share = float(share)
        self.max_parallel = max_parallel
        self.observers = _watching(observers)
        self._states, self._initial, self._final = states, initial, final
        self._tasks: list[Task] = []
        self._migrations: dict[str, tuple[str, Handler]] = {}
        self._definition: Definition | None = None
        self._outline: dict[str, Any] | None = None
        self._blank = Definition(name, states, initial, final, self.version)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "_definition": None,
            "_outline": None,
        }  # what is derived is no part of what it is

    def state(  # noqa: PLR0913 - the options of all kinds of tasks; all but one by name
        self,
        state: Any,
        /,
        *,
        kind: Kind | Literal["compensatable"] = "plain",
        to: Any = None,
        retries: int | RetryPolicy = 0,
        delay: float | str = 0.5,
        retry_on: Any = Exception,
        timeout: float | str | None = None,
        compensate: Handler | None = None,
        policies: Sequence[Any] = (),
        every: float | str | None = None,
        max_errors: int | None = None,
        after: float | str | None = None,
        at: dt.datetime | float | None = None,
        max_parallel: int | None = None,
        item_retries: int | RetryPolicy | None = None,
        count: int | None = None,
        within: float | str | None = None,
    ) -> Task:
        """Make the decorated function the task of a state.

        The function gets a `Context` and returns the next state, or a `Split`. What
        else it gets and returns depends on its kind:

        - `plain`: `task(ctx)`.
        - `compensatable`: a plain one that must say how it is undone (`compensate=`, which any kind may have).
        - `router`: `choose(ctx)`, a pure choice that is not recorded.
        - `timer`: called when `after` seconds (or the instant `at`) have passed since the state was entered.
        - `poll`: `look(ctx)` returns `Again()` to be asked again `every` seconds; `max_errors` in a row fail it.
        - `stepped`: `step(ctx, cursor)` returns `Continue(cursor)`, recorded before it is called again.
        - `batch`: `load(ctx)` returns items; `.process` and `.finish` are decorators of the result.
        - `stream`: `source(ctx, cursor)` yields `(cursor, item)`; `.window` gets `count` items, or those of
          `within` seconds, and `.finish` is called at the end.

        Args:
            state: the state, as the machine defines it.
            kind: what kind of task it is.
            to: the states that may come next, where the function's returns do not tell.
            retries: how many more tries after a failure, or a whole `RetryPolicy`.
            delay: seconds before the first retry.
            retry_on: the exceptions that are worth another try, or a predicate.
            timeout: seconds that one try may take.
            compensate: `undo(ctx)`, called when the run fails after this state was completed.
            policies: circuit breakers, rate limits and bulkheads around every try.
            every: seconds between two questions of a poll (1).
            max_errors: how many errors in a row fail a poll (3).
            after: seconds a timer waits from entering the state.
            at: the instant a timer waits for.
            max_parallel: how many items of a batch run at a time.
            item_retries: how often an item of a batch is tried again.
            count: how many items a window of a stream holds at the most.
            within: seconds a window of a stream lasts at the most.

        Raises:
            UnknownState: the machine has no such state.
            UsageError: an option makes no sense.
        """
        if inspect.isroutine(state):
            raise UsageError(
                f"Machine {self.name}: @state was put on {getattr(state, '__qualname__', state)} without a state.",
                hint="Write @machine.state(STATE) above the function.",
            )
        label = self._blank.label(state)
        if kind == "compensatable":
            if compensate is None:
                raise UsageError(
                    f"State {label!r} is compensatable, but does not say how.", hint="Give compensate=."
                )
            kind = "plain"
        policy = (
            retries
            if isinstance(retries, RetryPolicy)
            else RetryPolicy(
                retries=retries,
                delay=seconds(delay) or 0.0,
                retry_on=retry_on,
            )
        )
        limit = seconds(timeout)
        if limit == 0:
            raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
        options = {
            "every": every,
            "max_errors": max_errors,
            "after": after,
            "at": _instant(at),
            "max_parallel": max_parallel,
            "item_retries": item_retries,
            "count": count,
            "within": within,
            "policies": policies_of(policies) or None,
        }
        facts: dict[str, Any] = {"kind": kind, "retry": policy, "timeout": limit, "compensate": compensate}
        task = Task(label, options, facts, to)
        StateSpec(label, options=options, **facts)  # complain where the line is that is wrong
        self._tasks.append(task)
        self._definition = None
        return task

    def gate(  # noqa: PLR0913 - what is asked, and where each answer leads; all but two by name
        self,
        state: Any,
        text: str = "",
        /,
        *,
        approved: Any,
        rejected: Any = None,
        timed_out: Any = None,
        options: Iterable[str] = (),
        single: bool = False,
        show: str | Iterable[str] = (),
        timeout: float | str | dt.timedelta | None = None,
        on_timeout: OnTimeout = "fail",
        wait: bool = False,
        into: str = "decision",
    ) -> Task:
        """Make a state a gate: a person decides there which state comes next.

        Alone it asks. As the decorator of a function it shows what that returns for a
        `Context`: one object, or a list of them. The decision becomes data
        (`ctx.decision`), so feedback and selections are there in later states. Nobody
        has decided: the machine stops with `GatePending`, and a resume comes back here.

        Args:
            state: the state, as the machine defines it.
            text: the question, in a sentence.
            approved: the state that follows an approval.
            rejected: the state that follows a rejection; without it that fails the run (`GateRejected`).
            timed_out: the state that follows when nobody decided in time, instead of `on_timeout`.
            options: what may be selected with the decision.
            single: an approval selects exactly one of them.
            show: names of data to show.
            timeout: how long a person has, from the first opening on.
            on_timeout: "fail", "continue" or "reject"; see `nbflow.gate`.
            wait: wait in place, instead of stopping the machine.
            into: the name of the data that holds the decision.

        Raises:
            UnknownState: the machine has no such state.
            UsageError: an option makes no sense.

        Example:
            >>> import nbflow
            >>> paper = nbflow.Machine("paper", ["ask", "out", "drawer"], initial="ask", final={"out", "drawer"})
            >>> _ = paper.gate("ask", "Publish?", approved="out", rejected="drawer", timeout=0, on_timeout="reject")
            >>> paper.run()
            'drawer'
        """
        label = self._blank.label(state)
        ask = ask_of(
            label,
            self._blank.find,
            approved=approved,
            rejected=rejected,
            timed_out=timed_out,
            show=show,
            into=into,
            wait=wait,
            text=text,
            options=options,
            single=single,
            timeout=timeout,
            on_timeout=on_timeout,
        )
        task = Task(label, {"ask": ask}, {"kind": "gate"}, list(ask.ways().values()))
        self._tasks.append(task)
        self._definition = None
        return task

    def migration(self, found: int | str, *, to: int | str | None = None) -> Callable[[Handler], Handler]:
        """Make the decorated function accept runs of version `found`.

        It gets the label of the state to go on with and the run's data, which it
        may change, and returns the state to go on with (None: the same). Without
        `to` it leads to the machine's own version; several lead there in turn.

        Example:
            >>> import nbflow
            >>> job = nbflow.Machine("job", ["a", "end"], initial="a", final={"end"}, version=2)
            >>> @job.migration(1)
            ... def from_one(state, data):
            ...     data["limit"] = 10
        """

        def decorate(function: Handler) -> Handler:
            self._migrations[str(found)] = (self.version if to is None else str(to), function)
            return function

        return decorate

    @property
    def definition(self) -> Definition:
        """The machine as it is defined now; not validated."""
        if self._definition is None or any(task.changed for task in self._tasks):
            definition = Definition(self.name, self._states, self._initial, self._final, self.version)
            for task in self._tasks:
                definition.add(task.spec(definition))
            self._definition, self._outline = definition, None
        return self._definition

    def validate(self) -> None:
        """Check the whole definition.

        Raises:
            InvalidMachine: with all problems.
        """
        self.definition.validate()

    def edges(self) -> list[Edge]:
        """Return the transitions that are known: (source, target, kind)."""
        return self.definition.edges()

    def outline(self) -> dict[str, Any]:
        """Return the states and arrows as plain data, as each run keeps them so that it can be drawn anywhere."""
        definition = self.definition
        if self._outline is None:
            self._outline = plain(outline_of(definition))
        return self._outline

    def to_mermaid(self) -> str:
        """Return the machine as a Mermaid state diagram, which JupyterLab, GitHub and documentation pages draw."""
        return mermaid(self.definition)

    def diagram(self) -> str:
        """Return what `to_mermaid` does; its older name."""
        return self.to_mermaid()

    def _repr_mimebundle_(self, **_wanted: Any) -> dict[str, Any]:
        return drawn(self)

    def __repr__(self) -> str:
        version = f", version {self.version}" if self.version else ""
        return f"<machine {self.name}{version}: {', '.join(self.definition.labels)}>"

    def code(self) -> str:
        """Return a digest of the code of all tasks, as text: another one is another machine, version aside."""
        definition = self.definition
        ends = (str(definition.initial), *sorted(definition.final))
        return short(digest(self.name, *ends, *sorted(task.code() for task in self._tasks)))

    def path(self, found: str, wanted: str, run: str) -> list[tuple[str, Handler]]:
        """Return the migrations from one version to another: (version reached, function) in order.

        Raises:
            VersionMismatch: none leads there.
        """
        steps: list[tuple[str, Handler]] = []
        at = found
        while at != wanted:
            if at not in self._migrations or len(steps) > len(self._migrations):
                raise VersionMismatch(
                    f"Run {run} was begun by version {found or '(none)'} of machine {self.name}; "
                    f"this is version {wanted or '(none)'}.",
                    hint=f"Register @machine.migration({found!r}), or start anew with run(new=True).",
                    run=run,
                    stored=found,
                    expected=wanted,
                )
            target, function = self._migrations[at]
            steps.append((target, function))
            at = target
        return steps


def _instant(at: dt.datetime | float | None) -> float | None:
    return None if at is None else instant(at)


def _watching(given: object) -> tuple[object, ...]:
    """Return observers as a tuple.

    Raises:
        UsageError: something that cannot observe is among them.
    """
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    for observer in found:
        observers.check(observer)
    return found
