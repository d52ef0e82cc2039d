"""The kernel's side of a run: which cell is executing, which run is attached, who may be told what.

One `Host` per shell, made by the extension. It attaches lazily (the first
durable thing does), names the enclosing cell for durable calls in plain cells,
and gives the lease up when the kernel ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import LeaseHeld, LeaseLost, RunCancelled, StoreReadOnly, UsageError
from nbflow.core.states import FINAL_RUN_STATES, CancelReason, RunState
from nbflow.notebook import ambient, messages
from nbflow.notebook.config import NbFlow
from nbflow.notebook.execute import CellPlace
from nbflow.notebook.progress import Progress

if TYPE_CHECKING:
    from nbflow.core.history import History
    from nbflow.notebook.analysis import CellAnalysis
    from nbflow.notebook.cells import PlannedCell
    from nbflow.notebook.identity import CellNames
    from nbflow.notebook.plan import Plan
    from nbflow.notebook.tracking import Tracker
    from nbflow.runtime.session import Session
    from nbflow.store.protocol import Store


def _counted_before() -> bool:
    """Tell whether this IPython counts a cell before it runs it; those before 9.8 do afterwards."""
    import IPython

    return bool(IPython.version_info >= (9, 8))


@dataclass(frozen=True)
class CellReport:
    """What became of a durable cell: its key, whether it was restored, and how long it took (seconds) when it ran."""

    step: str
    restored: bool
    seconds: float
    execution: int


class Host:
    """What nbflow knows of the shell it lives in."""

    def __init__(self, shell: Any, config: NbFlow) -> None:
        self.shell = shell
        self.config = config
        self.session: Session | None = None
        self.lost: LeaseLost | None = None
        self.deleted: set[str] = set()
        """Cell ids that the front end said were deleted."""
        self.done_here: dict[str, int] = {}
        """The execution whose values this kernel holds, by step."""
        self.generators: set[str] = set()
        """The random generators whose state a cell of this process has recorded or restored (see `ambient`)."""
        self.seeds: dict[str, str] = {}
        """The token of the last seed set on purpose, by generator."""
        self._places: list[CellPlace] = []
        #: Held by who changes the run from another thread, so that no cell begins meanwhile.
        self.changing = threading.RLock()
        #: The run that a parent started this kernel for; taken out of the environment, which processes inherit.
        self._assigned = os.environ.pop("NBFLOW_RUN", None)
        #: The notebook's file where whoever started this kernel said so; else it is found out.
        self.path: Path | None = None
        #: Whether this process copies its journals into the database; False where its parent does.
        self.upkeep = True
        self._store: Store | None = None
        self._store_place: str | Path | None = None
        self._tracker: Tracker | None = None
        self._names: CellNames | None = None
        self._owners: dict[str, str] = {}
        self._scopes_seen: dict[str, int] = {}
        self._named_in_file: tuple[float, dict[str, int]] = (0.0, {})
        self._ambient_before: Any = None
        #: Told of every durable cell that was restored or ran, where somebody keeps books (see `unattended`).
        self.told: Callable[[CellReport], None] | None = None
        #: The ids of the cells of the notebook as it is now, where somebody knows them: an id that is
        #: recorded and not among them was made up anew, as papermill does for notebooks that have none.
        self.present: frozenset[str] | None = None
        #: Whether an engine executes the notebook: which run this is, and when it ends, is for it to say.
        self.engaged = False
        #: Whether a later cell of the notebook looks at results (`_`, `Out[3]`): then each is recorded.
        self.results = False
        self._progress = Progress(shell, quiet=lambda: config.quiet or self.engaged)

    # --- the cell that is executing ----------------------------------------------------------------

    @property
    def place(self) -> CellPlace | None:
        """The cell that is executing; None for code the front end runs in silence."""
        return self._places[-1] if self._places else None

    def pre_run_cell(self, info: Any = None) -> None:
        """IPython's event: a cell begins."""
        if info is None:  # an IPython before 8.3 called it without
            return
        if info.store_history:
            self._places.clear()  # a cell of the user's own is never inside another one
        count = self.shell.execution_count
        place = CellPlace(
            raw=info.raw_cell,
            number=count - 1 if info.store_history and _counted_before() else count,
            cell_id=getattr(info, "cell_id", None),
            metadata=self._sent_metadata(),
            recorded=bool(info.store_history),
        )
        with self.changing:
            self._places.append(place)
        self.deleted.update(self._deleted_cells())
        self._scope_of_plain_cell(place)
        if place.recorded:
            self._progress.begin()
        self._ambient_before = self._look_around() if ambient.speaks_of_seeds(place.raw) else None

    def post_run_cell(self, result: Any = None) -> None:
        """IPython's event: the cell is over, however it ended."""
        error = getattr(result, "error_in_exec", None)
        if isinstance(error, LeaseLost) and self.lost is None:
            self.lose(error)  # a durable call in a plain cell; its error was shown just now
        elif isinstance(error, RunCancelled):
            self.stop(error)
        elif error is not None:
            from nbflow.notebook.gate_cell import stopped  # it knows the runner, which knows this module

            stopped(self, error)
        if not self._places:
            return
        place = self._places.pop()
        if self._ambient_before is not None and not place.durable:
            self.seeds.update(ambient.seeds(place.raw, self._ambient_before, self._look_around()))
        self._ambient_before = None
        self._progress.clear()
        if self.session is not None:
            self.session.enter_cell(None)

    def _look_around(self) -> Any:
        return ambient.snapshot(environ=False)

    def _sent_metadata(self) -> dict[str, Any]:
        """Return what the front end sent with this execution: the cell's own metadata, where it sends them."""
        parent = getattr(self.shell, "parent_header", None)
        metadata = parent.get("metadata") if isinstance(parent, dict) else None
        return metadata if isinstance(metadata, dict) else {}

    def _deleted_cells(self) -> list[str]:
        """Return what JupyterLab tells with each execution: the ids of cells deleted since the last one."""
        found = self._sent_metadata().get("deletedCells", ())
        return [cell for cell in found if isinstance(cell, str)] if isinstance(found, (list, tuple)) else []

    def _scope_of_plain_cell(self, place: CellPlace) -> None:
        """Name the scope of durable calls in a cell that is no step itself; numbers start anew."""
        if self.session is None:
            return
        from nbflow.notebook.identity import cell_scope
        from nbflow.runtime.scope import Scope

        # A plain cell is no step, so calls in it have no parent.
        self.session.enter_cell(Scope(cell_scope(place.cell_id, place.raw, self._scopes_seen), step=""))

    # --- the run ------------------------------------------------------------------------------------

    @property
    def tracker(self) -> Tracker:
        """What is known of the versions of the variables in this kernel."""
        if self._tracker is None:
            from nbflow.notebook.tracking import Tracker

            self._tracker = Tracker(self.shell.user_ns)
            self._tracker.results = self.results
        return self._tracker

    def workflow(self) -> str:
        """Return what the runs of this notebook are called."""
        if self.config.workflow:
            return self.config.workflow
        from nbflow.notebook.identity import workflow_name

        path, root = self.notebook(), getattr(self.store(), "root", None)
        if path is None or root is None:
            return path.name if path is not None else "notebook"
        return workflow_name(path, root.parent)

    def notebook(self) -> Path | None:
        """Return the path of the notebook; None where nobody says."""
        from nbflow.notebook.identity import notebook_path

        return self.path or notebook_path(self.shell.user_ns)

    def store(self) -> Store:
        """Return the opened store; it stays open until the place is changed or the extension unloaded."""
        place: str | Path | None = self.config.store or None
        if place is None and not os.environ.get("NBFLOW_STORE"):
            place = self.notebook()
        if self._store is not None and place == self._store_place:
            return self._store
        from nbflow.store.local import LocalStore, find_store

        try:
            opened: Store = LocalStore(
                find_store(place), compact_after=self.config.compact_after, upkeep=self.upkeep
            )
        except OSError as error:
            raise StoreReadOnly(
                f"The store cannot be made or opened: {error}.",
                hint="Name a folder that you may write to: %nbflow store PLACE, or NBFLOW_STORE.",
            ) from error
        if self._store is not None:
            self._store.close()
        self._store, self._store_place = opened, place
        return opened

    def attach(
        self, *, new: bool = False, run: str | None = None, steal: bool = False, plan: bool = True
    ) -> Session:
        """Return the attached session; attach the notebook's current run if none is.

        With `plan` a resume begins with the plan, unless the settings say no.

        Raises:
            LeaseLost: this kernel's run was taken over, until the user says what to attach instead.
            LeaseHeld: another living process has the run.
        """
        asked = new or run is not None or steal
        if self.session is not None and not asked:
            return self.session
        if self.lost is not None and not asked:
            raise self._lost_again()
        from nbflow.core.saga import compensatable
        from nbflow.runtime import active
        from nbflow.runtime.session import Session

        self.detach()
        if run is None and not new:
            run = self._unfinished_assigned()
        try:
            session = Session.open(
                self.store(), self.workflow(), kind="notebook", new=new, run=run, steal=steal
            )
        except LeaseHeld as error:
            raise LeaseHeld(
                error.message,
                hint="Shut that kernel down, or take the run over with `%nbflow steal`; "
                "`%nbflow new` starts a fresh run beside it.",
                **error.facts,
            ) from None
        self.session, self.lost = session, None
        if not compensatable(session.history):  # to undo, the notebook's functions have to be there first
            try:
                session.check()  # a cancel that came while no kernel had it: replaying cells would not ask
            except RunCancelled as error:
                raise self.stop(error) from None
        self._progress.watch(session)
        session.surroundings = ambient.Generators()
        active.add(session)
        if self.place is not None:
            self._scope_of_plain_cell(self.place)
            self._progress.begin()
        if plan and not asked and session.resumed and self.config.plan:
            self.show_plan()
        return session

    def _unfinished_assigned(self) -> str | None:
        """Return the run that this kernel was started for; None where there is none, or it is over."""
        if self._assigned is not None and self.store().run(self._assigned).state in FINAL_RUN_STATES:
            self._assigned = None
        return self._assigned

    def detach(self) -> None:
        """Give the lease up and forget what belonged to the run; the run itself stays as it is."""
        session, self.session = self.session, None
        self.done_here.clear()
        self.generators.clear()
        self._tracker = None
        if session is None:
            return
        from nbflow.runtime import active

        self._progress.stop()
        active.remove(session)
        with contextlib.suppress(LeaseLost):  # what is not ours any more need not be given up
            session.close()

    def lose(self, error: LeaseLost) -> LeaseLost:
        """Note that the run was taken over, and return what to say: all of it once, then a reminder."""
        if self.lost is not None:
            return self._lost_again()
        self.detach()
        self.lost = LeaseLost(
            "Another kernel took this run over, so nothing done here is recorded any more.",
            hint="`%nbflow steal` takes it back, `%nbflow new` starts a fresh one.",
            **error.facts,
        )
        return self.lost

    def _lost_again(self) -> LeaseLost:
        """Return a short reminder: the whole story was told once."""
        assert self.lost is not None
        return LeaseLost(
            "Another kernel took this run over: not run, not recorded.",
            hint="`%nbflow steal` or `%nbflow new`.",
            **self.lost.facts,
        )

    def stop(self, error: RunCancelled) -> Exception:
        """End the run that is to stop, undoing what can be undone, and return what to say.

        A cancelled run of somebody else's (a child, a branch) ends nothing here.
        """
        session = self.session
        if session is None or error.run != session.run or error.reason == CancelReason.FAILED_SIBLING:
            return error
        from nbflow.runtime import saga

        failure = saga.fail(session, error)
        if failure is error:
            session.finish(RunState.CANCELLED, reason=error.reason, error=error)
        else:  # only a failed run can be resumed, and undone then
            session.finish(RunState.FAILED, error=failure)
        self.detach()
        return failure

    def close(self) -> None:
        """Detach and close the store; the kernel ends or the extension is unloaded."""
        self.detach()
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def show_plan(self) -> None:
        """Show what will be restored, what will run, and why; nothing where there is no durable cell."""
        assert self.session is not None
        plan = self.plan(self.session.history)
        if plan.steps:
            data = {"text/plain": plan.text(), "text/html": plan.html()}
            self.shell.display_pub.publish(data=data, metadata=messages.MARK)

    def plan(self, history: History, title: str = "nbflow", *, alive: bool = False) -> Plan:
        """Return what is recorded of a run, what would run, and why.

        `alive` says that another process is at work on this run.
        """
        from nbflow.notebook.plan import make_plan, plan_of_history

        cells = self.cells()
        if cells is None:
            return plan_of_history(history, title=title, now=time.time(), alive=alive)
        return make_plan(cells, history, self.shell.user_ns, title=title, now=time.time(), alive=alive)

    def cells(self) -> list[PlannedCell] | None:
        """Return the code cells of the notebook's file; None where there is no file that can be read."""
        from nbflow.notebook.cells import read_notebook

        path = self.notebook()
        try:
            return read_notebook(path, auto=self.config.auto) if path is not None else None
        except (OSError, ValueError):  # not saved yet, or being written: then only the history can tell
            return None

    # --- names --------------------------------------------------------------------------------------

    def name_of(self, analysis: CellAnalysis, given: str | None, place: CellPlace | None) -> str:
        """Return the name of the durable cell: the one it was given, or one of its own.

        Raises:
            UsageError: another cell of the notebook has the given name.
            LeaseHeld, LeaseLost: as `attach`.
        """
        from nbflow.notebook.identity import CellNames

        if self._names is None:
            self._names = CellNames(self.present)
        cell_id = place.cell_id if place is not None else None
        if given is not None:
            owner = self._owners.get(given)
            clash = self._names.clash(analysis, given, cell_id) and owner not in self.deleted
            if clash or self._in_file(given) > 1:
                raise UsageError(
                    f"Two cells of this notebook are called {given!r}, and results are found by name. "
                    "Nothing was run.",
                    step=given,
                    hint="Rename one of them. If the other one is gone already, save the notebook.",
                )
        # A cell without a name keeps the one under which the run has it.
        history = self.attach().history if given is None else None
        name = self._names.of(analysis, name=given, cell_id=cell_id, history=history)
        if cell_id is not None:
            self._owners[name] = cell_id
        return name

    def _in_file(self, name: str) -> int:
        """Count the durable cells of this name in the notebook's file; 0 when there is none to look at."""
        path = self.notebook()
        try:
            modified = path.stat().st_mtime if path is not None else 0.0
        except OSError:
            return 0
        if modified != self._named_in_file[0]:
            cells = self.cells()
            if cells is None:
                return 0
            self._named_in_file = (modified, dict(Counter(cell.name for cell in cells if cell.name)))
        return self._named_in_file[1].get(name, 0)
