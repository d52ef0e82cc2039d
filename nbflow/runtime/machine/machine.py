"""`nbflow.Machine`: a durable state machine. Define its states with a decorator, run it, resume it anywhere.

Here are the verbs that run one. `design.py` is what a person defines,
`core/machine.py` knows what a valid machine is, `runner.py` executes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from nbflow.core.clock import Clock
from nbflow.core.errors import (
    RunFinished,
    UnknownState,
    UsageError,
)
from nbflow.core.history import History
from nbflow.core.line import read_lines
from nbflow.core.model import RunInfo
from nbflow.core.outline import MACHINE
from nbflow.core.states import FINAL_RUN_STATES, RunState
from nbflow.runtime import active
from nbflow.runtime.attributes import tag_texts
from nbflow.runtime.faces import Blocking, Face, Looping, drive
from nbflow.runtime.machine import progress as machine_progress
from nbflow.runtime.machine.context import RESERVED
from nbflow.runtime.machine.design import Design
from nbflow.runtime.machine.runner import Runner
from nbflow.runtime.runs import conducted, plain_params
from nbflow.runtime.scope import Scope, enclosing
from nbflow.runtime.session import Session, clock_of
from nbflow.runtime.watch import observers
from nbflow.store.protocol import Store


class Machine(Design):
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

    #: The run that this object was last asked for in this process, and its store.
    _latest: tuple[Store, str] | None = None
    #: … and in which step: items of a map may run one machine side by side.
    _latest_in: WeakKeyDictionary[Scope, tuple[Store, str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Where it ran is no part of what it is.
        return {
            name: value for name, value in super().__getstate__().items() if not name.startswith("_latest")
        }

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
            from nbflow.runtime.children.child import run_child

            return self.definition.member(await run_child(Looping(), self, None, tags, params))
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
        from nbflow.runtime.children.results import values_of

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
                restored[source.number] = values_of(place, run, source.completed.checkpoint)
        return {
            name: restored[source.number][name] for name, source in main.data.items() if name not in RESERVED
        }

    def _newest(self, store: Store) -> str | None:
        from nbflow.store.protocol import RunQuery

        scope = enclosing()
        here = self._latest_in.get(scope) if scope is not None and self._latest_in is not None else None
        for latest in (here, self._latest):
            if latest is not None and latest[0] is store:
                return latest[1]
        found = store.runs(RunQuery(workflow=self.name, limit=1))
        return found[0].run if found else None

    def note_run(self, store: Store, run: str) -> None:
        """Note which run `results` is to speak of; for whoever starts, resumes or replays one."""
        self._latest = (store, run)
        scope = enclosing()
        if scope is not None:
            if self._latest_in is None:
                self._latest_in = WeakKeyDictionary()
            self._latest_in[scope] = (store, run)

    def _as_child(self, tags: dict[str, str] | None, params: dict[str, Any]) -> Any:
        """Run as a child of the run around it. Not by `nbflow.child`: a parameter may be called `name`, too."""
        from nbflow.runtime.children.child import run_child

        face = Blocking()
        try:
            return drive(run_child(face, self, None, tags, params))
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
        """Return what `RunOpened` says of a new run beyond its name: its deadline, and how the machine is drawn."""
        drawn: dict[str, Any] = {"launch": {MACHINE: self.outline()}}
        if self.timeout is None:
            return drawn
        undoing = any(spec.compensate for spec in self.definition.specs.values())
        share = self.compensation_share if undoing else 0.0
        return {"deadline": clock.now() + self.timeout * (1 - share), **drawn}

    def _attach(self, store: Store, found: RunInfo, *, steal: bool) -> Session:
        if found.version != self.version:
            main = read_lines(History.of(store.entries(found.run)))[""]
            self.path(main.version or found.version, self.version, found.run)
        return Session.open(store, self.name, run=found.run, steal=steal)

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

    def run_as_child(self, session: Session, params: dict[str, Any]) -> str:
        """Run in a child run that `nbflow.child` opened and will end; the parameters are in its first record."""
        del params
        self.validate()
        face = Blocking()
        try:
            return drive(self._runner(session, face).run())
        finally:
            face.close()

    async def arun_as_child(self, session: Session, params: dict[str, Any]) -> str:
        """Do as `run_as_child` in the running event loop."""
        del params
        self.validate()
        return await self._runner(session, Looping()).run()


def _store(place: Store | str | Path | None) -> Store:
    if place is not None and not isinstance(place, (str, Path)):
        return place
    from nbflow.store.local import process_store

    return process_store(place)
