"""`nbflow.Machine`: a durable state machine. Define its states with a decorator, run it, resume it anywhere.

Here is what a person touches; `core/machine.py` knows what a valid machine is,
`runner.py` executes one.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from nbflow.core.clock import Clock
from nbflow.core.diagram import mermaid
from nbflow.core.errors import (
    RunFinished,
    UnknownState,
    UsageError,
    VersionMismatch,
)
from nbflow.core.history import History
from nbflow.core.line import read_lines
from nbflow.core.machine import Definition
from nbflow.core.model import RunInfo
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.core.signature import digest, short
from nbflow.core.state_spec import Kind, StateSpec
from nbflow.core.states import FINAL_RUN_STATES, RunState
from nbflow.core.timers import instant
from nbflow.runtime import active
from nbflow.runtime.attributes import tag_texts
from nbflow.runtime.faces import Blocking, Face, Looping, drive
from nbflow.runtime.machine import progress as machine_progress
from nbflow.runtime.machine.context import RESERVED
from nbflow.runtime.machine.runner import Runner
from nbflow.runtime.machine.tasks import Handler, Task
from nbflow.runtime.policies.limits import policies_of
from nbflow.runtime.runs import conducted, plain_params
from nbflow.runtime.scope import Scope, enclosing
from nbflow.runtime.session import Session, clock_of
from nbflow.runtime.watch import observers
from nbflow.runtime.workers import limit_of
from nbflow.store.protocol import Store

if TYPE_CHECKING:
    from nbflow.core.machine import Edge


class Machine:
    """A durable state machine: states, tasks that choose the next one, and a run that survives its process.

    Args:
        name: the workflow's name; runs are found by it.
        states: an Enum class, or texts.
        initial: the state in which a run begins.
        final: the states in which it is over; they have no task.
        version: of the machine. A run that was begun by another version is refused
            (`VersionMismatch`) unless a migration accepts it.
        timeout: seconds (or "2h") that a whole run may take, counted from its first start.
        compensation_share: part of the timeout that is kept for undoing.
        max_parallel: how many branches of a split run at a time.
        observers: told of every event of this machine's runs; see `nbflow.observe`.

    Example:
        >>> import nbflow
        >>> light = nbflow.Machine("light", ["red", "green", "off"], initial="red", final={"off"})
        >>> @light.state("red")
        ... def red(ctx):
        ...     ctx.seen = ["red"]
        ...     return "green"
        >>> @light.state("green")
        ... def green(ctx):
        ...     ctx.seen.append("green")
        ...     return "off"
        >>> light.run()
        'off'
    """

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
        #: The run that this object was last asked for in this process, and its store.
        self._latest: tuple[Store, str] | None = None
        #: … and in which step: items of a map may run one machine side by side.
        self._latest_in: WeakKeyDictionary[Scope, tuple[Store, str]] = WeakKeyDictionary()
        self._blank = Definition(name, states, initial, final, self.version)

    def __getstate__(self) -> dict[str, Any]:
        # What is derived, and where it ran, is no part of what it is.
        derived = ("_definition", "_latest", "_latest_in")
        return {name: value for name, value in vars(self).items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _definition=None, _latest=None, _latest_in=WeakKeyDictionary())

    # --- defining ---------------------------------------------------------------------------------------------

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
                retry_on=(retry_on,) if isinstance(retry_on, type) else retry_on,
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
            self._definition = definition
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

    def diagram(self) -> str:
        """Return the machine as a Mermaid state diagram, which JupyterLab, GitHub and nbviewer draw."""
        return mermaid(self.definition)

    def _repr_markdown_(self) -> str:
        return f"```mermaid\n{self.diagram()}\n```"

    def __repr__(self) -> str:
        version = f", version {self.version}" if self.version else ""
        return f"<machine {self.name}{version}: {', '.join(self.definition.labels)}>"

    def code(self) -> str:
        """Return a digest of the code of all tasks, as text: another one is another machine, version aside."""
        definition = self.definition
        ends = (str(definition.initial), *sorted(definition.final))
        return short(digest(self.name, *ends, *sorted(task.code() for task in self._tasks)))

    # --- running ----------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        store: Store | str | Path | None = None,
        tags: dict[str, str] | None = None,
        new: bool = False,
        steal: bool = False,
        **params: Any,
    ) -> Any:
        """Run the machine until a final state, and return that state.

        The newest unfinished run of equal parameters is carried on; otherwise a new
        one starts. Inside another run (a notebook's, say) it is a child of that run:
        a replay gives its recorded end back.

        Args:
            store: a store or its place; the nearest `.nbflow` folder by default.
            tags: words to find the run by.
            new: start a new run even though an unfinished one is there.
            steal: take the run over from a living owner.
            **params: the run's parameters, JSON-able; tasks find them in `ctx`.

        Raises:
            InvalidMachine: the definition has problems; nothing was run.
            VersionMismatch: the unfinished run is of another version.
            CompensationFailed: a task failed and not everything could be undone.
            RunCancelled: somebody cancelled the run, or its time was over.
        """
        self.validate()
        if self._inside(store=store, new=new, steal=steal):
            return self.definition.member(self._as_child(tags, params))
        session = self._open(store, tags, new=new, steal=steal, params=plain_params(params))
        return self._blocking(session)

    async def arun(
        self,
        *,
        store: Store | str | Path | None = None,
        tags: dict[str, str] | None = None,
        new: bool = False,
        steal: bool = False,
        **params: Any,
    ) -> Any:
        """Do as `run` in the running event loop: async tasks run in it, sync ones in threads."""
        self.validate()
        if self._inside(store=store, new=new, steal=steal):
            from nbflow.runtime.children.child import _child

            return self.definition.member(await _child(Looping(), self, None, tags, params))
        session = self._open(store, tags, new=new, steal=steal, params=plain_params(params))
        return self.definition.member(await self._conduct(session, Looping()))

    def resume(self, run: str, *, store: Store | str | Path | None = None, steal: bool = False) -> Any:
        """Carry a run on from the state that it entered last, and return its final state.

        A run that is completed is not run again: its final state is returned.

        Args:
            run: the run's id or an unambiguous prefix of it.
            store: a store or its place; the nearest `.nbflow` folder by default.
            steal: take the run over from a living owner.

        Raises:
            UnknownRun: the store holds no such run.
            UsageError: the run is not one of this machine.
            UnknownState: it is in a state that the machine does not have.
            RunFinished: the run was cancelled.
            VersionMismatch, InvalidMachine: as `run`.
        """
        self.validate()
        found = self._find(_store(store), run)
        if isinstance(found, str):
            return self.definition.member(found)
        return self._blocking(self._attach(_store(store), found, steal=steal))

    async def aresume(self, run: str, *, store: Store | str | Path | None = None, steal: bool = False) -> Any:
        """Do as `resume` in the running event loop."""
        self.validate()
        found = self._find(_store(store), run)
        if isinstance(found, str):
            return self.definition.member(found)
        session = self._attach(_store(store), found, steal=steal)
        return self.definition.member(await self._conduct(session, Looping()))

    def results(self, run: str | None = None, *, store: Store | str | Path | None = None) -> dict[str, Any]:
        """Return the data of a run by name, finished or not.

        It is the run given, else the one that this object ran, resumed or replayed
        last in the step that asks (an item of a map, say), else in this process,
        else the newest of this machine.
        """
        from nbflow.values.codec import decode

        session = active.current() if store is None else None
        place = _store(store) if session is None else session.store
        run = self._newest(place) if run is None else place.run(run).run
        if run is None:
            return {}
        main = read_lines(History.of(place.entries(run)))[""]
        restored: dict[int, dict[str, Any]] = {}
        for source in main.data.values():
            assert source.completed is not None
            assert source.completed.checkpoint is not None
            if source.number not in restored:
                refs = {ref.digest: ref for ref in source.completed.checkpoint.leaves}
                restored[source.number] = decode(
                    source.completed.checkpoint,
                    lambda digest, refs=refs: place.leaf(run, refs[digest]),  # type: ignore[misc]
                )
        return {
            name: restored[source.number][name] for name, source in main.data.items() if name not in RESERVED
        }

    def _newest(self, store: Store) -> str | None:
        from nbflow.store.protocol import RunQuery

        scope = enclosing()
        here = self._latest_in.get(scope) if scope is not None else None
        for latest in (here, self._latest):
            if latest is not None and latest[0] is store:
                return latest[1]
        # Not by id: those of children sort with their parent's.
        found = store.runs(RunQuery(workflow=self.name, limit=None))
        return max(found, key=lambda info: (info.created_at, info.run)).run if found else None

    def note_run(self, store: Store, run: str) -> None:
        """Note which run `results` is to speak of; for whoever starts, resumes or replays one."""
        self._latest = (store, run)
        scope = enclosing()
        if scope is not None:
            self._latest_in[scope] = (store, run)

    def _as_child(self, tags: dict[str, str] | None, params: dict[str, Any]) -> Any:
        """Run as a child of the run around it. Not by `nbflow.child`: a parameter may be called `name`, too."""
        from nbflow.runtime.children.child import _child

        face = Blocking()
        try:
            return drive(_child(face, self, None, tags, params))
        finally:
            face.close()

    def _inside(self, *, store: object, new: bool, steal: bool) -> bool:
        """Tell whether this is called inside another run, or in a notebook that has one."""
        if not active.expected():
            return False
        if store is not None or new or steal:
            raise UsageError(
                f"Machine {self.name} runs as a child of the run around it, so store, new and steal cannot be given.",
                hint="In a notebook, `%nbflow new` starts afresh; `%nbflow forget STEP` runs a step again.",
            )
        return True

    def _open(
        self,
        place: Store | str | Path | None,
        tags: dict[str, str] | None,
        *,
        new: bool,
        steal: bool,
        params: dict[str, Any],
    ) -> Session:
        store = _store(place)
        found = None if new else store.newest_open(self.name, params)
        if found is not None:
            return self._attach(store, found, steal=steal)
        return Session.open(
            store,
            self.name,
            kind="machine",
            params=params,
            version=self.version,
            tags=tag_texts(tags or {}),
            new=True,
            opened=self.opened(clock_of(store)),
        )

    def opened(self, clock: Clock) -> dict[str, Any]:
        """Return what `RunOpened` says of a new run of this machine beyond its name: its deadline."""
        if self.timeout is None:
            return {}
        undoing = any(spec.compensate for spec in self.definition.specs.values())
        share = self.compensation_share if undoing else 0.0
        return {"deadline": clock.now() + self.timeout * (1 - share)}

    def _attach(self, store: Store, found: RunInfo, *, steal: bool) -> Session:
        if found.version != self.version:
            main = read_lines(History.of(store.entries(found.run)))[""]
            self.path(main.version or found.version, self.version, found.run)
        return Session.open(store, self.name, run=found.run, steal=steal)

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

    def _find(self, store: Store, run: str) -> RunInfo | str:
        """Return the run to carry on, or the label of the final state of one that is completed."""
        info = store.run(run)
        if info.workflow != self.name:
            raise UsageError(f"Run {info.run} is one of {info.workflow}, not of machine {self.name}.")
        self.note_run(store, info.run)
        if info.state == RunState.COMPLETED:
            final = read_lines(History.of(store.entries(info.run)))[""].final
            if final is not None:
                return self.definition.label(final)
        if info.state in FINAL_RUN_STATES:
            raise RunFinished(
                f"Run {info.run} of machine {self.name} is {info.state}.",
                run=info.run,
                hint="Start a new run to compute again.",
            )
        return info

    def _blocking(self, session: Session) -> Any:
        face = Blocking()
        try:
            return self.definition.member(drive(self._conduct(session, face)))
        finally:
            face.close()

    async def _conduct(self, session: Session, face: Face) -> str:
        """Run the machine in its own run, record the run's end, and return the label of the final state."""
        self.note_run(session.store, session.run)
        runner = self._runner(session, face)
        try:
            runner.check()
        except UnknownState as error:
            told = self._not_here(error, session.run)
            session.finish(RunState.FAILED, error=told)  # taken over it counts as running, and nobody runs it
            session.close()
            raise told from None
        except BaseException:
            session.close()  # the run stays as it is
            raise
        with conducted(session, find=runner.undo_of):
            return await runner.run()

    def _not_here(self, error: UnknownState, run: str) -> UnknownState:
        """Return what to say of a run that is in a state which this machine does not have."""
        return UnknownState(
            f"Run {run} is in state {error.state!r}, which machine {self.name!r} does not have. "
            f"{error.hint or ''}".rstrip(),
            hint="Define that state again, or raise the version and register a @machine.migration that says "
            "where to go on; run(new=True) starts anew.",
            machine=self.name,
            state=error.state,
            run=run,
        )

    def _runner(self, session: Session, face: Face) -> Runner:
        for observer in (*self.observers, *machine_progress.watchers(self.name)):
            observers.attach(session, observer)
        return Runner(self, self.definition, session, face)

    def _run_as_child(self, session: Session, params: dict[str, Any]) -> str:
        """Run in a child run that `nbflow.child` opened and will end; the parameters are in its first record."""
        del params
        self.validate()
        face = Blocking()
        try:
            return drive(self._runner(session, face).run())
        finally:
            face.close()

    async def _arun_as_child(self, session: Session, params: dict[str, Any]) -> str:
        """Do as `_run_as_child` in the running event loop."""
        del params
        self.validate()
        return await self._runner(session, Looping()).run()


def _store(place: Store | str | Path | None) -> Store:
    if place is not None and not isinstance(place, (str, Path)):
        return place
    from nbflow.store.local import process_store

    return process_store(place)


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
