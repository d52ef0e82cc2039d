"""The board: one place to ask and to listen, whatever page stands in front of it.

    board = Board(store)
    board.ask("runs", {"states": ["failed"]})      # plain JSON data
    board.ask("watch", {"view": "v1", "run": run}) # the same, and news of it from now on
    board.listen("v1", push)                       # push(dict), from the board's own thread

`ask` may be called from several threads at once.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from nbflow.board import detail, disk, run_page
from nbflow.board.actions import Actions, Allowed, allowed, named
from nbflow.board.catalogue import Catalogue
from nbflow.board.folds import Fold, Folds
from nbflow.board.following import Follower
from nbflow.board.here import Here
from nbflow.board.listing import Listing, RunsQuery, runs_query
from nbflow.board.outputs import Outputs
from nbflow.board.plain import cut
from nbflow.board.rows import gate_row, run_row
from nbflow.board.shown import Exhibit
from nbflow.core.errors import CorruptRecord, NbflowError, StoreBusy, UnknownRun, UsageError
from nbflow.core.gates import find_gate
from nbflow.core.model import RunInfo
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.protocol import Store

Params = dict[str, Any]
Push = Callable[[dict[str, Any]], None]

#: Characters of a question in a list, which is sent whole with every change; `gate` has all of it.
_QUESTION = 2000

_RUN = re.compile(r"[0-9A-Za-z_-]{4,64}")


class Board:
    """What pages show of a store, live. `here` is the notebook's kernel that the board lives in, if it does.

    Close it: a thread follows the store while somebody watches.

    >>> import tempfile
    >>> from nbflow.store.local import LocalStore
    >>> board = Board(LocalStore(tempfile.mkdtemp()))
    >>> board.ask("runs", {})["rows"]
    []
    >>> board.close()
    """

    def __init__(self, store: Store, *, here: Here | None = None) -> None:
        self.store = store
        self.here = here
        self.catalogue = Catalogue(store)
        self.folds = Folds(store)
        self._listing = Listing(self.catalogue)
        self._outputs = Outputs(store)
        self._actions = Actions(store, here)
        self._gates = _GatesKnown(self)
        self._follower = Follower(self)
        self._methods: dict[str, Callable[[Params], dict[str, Any]]] = {
            "runs": self._runs,
            "run": self._run,
            "step": self._step,
            "output": self._output,
            "gates": self._gates_of_all,
            "gate": self._gate,
            "decide": self._decide,
            "act": self._act,
            "disk": self._disk,
            "graph": self._graph,
            "watch": self._follower.watch,
            "unwatch": self._follower.unwatch,
            "beat": self._follower.beat,
        }

    def ask(self, method: str, params: Params | None = None) -> dict[str, Any]:
        """Answer a question or do what is asked, as plain JSON data; `nbflow.board` lists the methods.

        Raises:
            NbflowError: its `run` and `step` are those that were asked about.
        """
        params = params or {}
        if method not in self._methods:
            raise UsageError(
                f"There is no {method!r} to ask for.", hint=f"There are {', '.join(self._methods)}."
            )
        try:
            return self._methods[method](params)
        except NbflowError as error:
            raise named(error, params)  # noqa: B904 - the same error

    def listen(self, view: str, push: Push) -> None:
        """Have `push` called with news of what the view watches, from the board's own thread."""
        self._follower.listen(view, push)

    def rest(self) -> None:
        """Let go of recorded values that are kept for the next page: nobody looks."""
        self._outputs.forget()

    def close(self) -> None:
        """Stop following; closing twice is fine."""
        self._follower.close()
        self.rest()

    # --- runs ------------------------------------------------------------------------------------------------

    def _runs(self, params: Params) -> dict[str, Any]:
        self.catalogue.refresh()
        self.catalogue.look_alive()
        return self.runs_page(runs_query(params))

    def runs_page(self, query: RunsQuery) -> dict[str, Any]:
        """Return a page of runs from what is known of them."""
        infos, found = self._listing.page(query)
        current = self.here.run() if self.here is not None else None
        rows = [run_row(info, gates=self._gates.waiting(info), current=info.run == current) for info in infos]
        return {"rows": rows, "offset": query.offset, **found}

    # --- one run ---------------------------------------------------------------------------------------------

    def _run(self, params: Params) -> dict[str, Any]:
        run = self.find(params)
        if "offset" in params or "limit" in params:
            fold = self.folds.of(run)
            with fold.mutex:
                return run_page.some_steps(fold, _number(params, "offset", 0), _number(params, "limit", 200))
        return self.run_page(run)

    def run_page(self, run: str) -> dict[str, Any]:
        """Return all of a run; of one that cannot be read (on), what was read and the reason."""
        problem: NbflowError | None = None
        try:
            fold = self.folds.of(run)
        except (UnknownRun, StoreBusy):
            raise
        except NbflowError as error:
            fold, problem = self.folds.known(run), error
        info = self.info(run, fold)
        with fold.mutex:
            known = fold if problem is None else None
            found = run_page.whole(fold, alive=info.alive)
            return {
                "row": self.row(info, found["gates"]),
                **found,
                "actions": allowed(info, known, self.here),
                "problem": None if problem is None else str(problem),
            }

    def info(self, run: str, fold: Fold) -> RunInfo:
        """Return the run as it is listed, from its fold where it is over: then nothing changes."""
        if fold.history.state in FINAL_RUN_STATES:
            return msgspec.structs.replace(fold.history.info(), alive=False)
        self.catalogue.look((run,))
        info = self.catalogue.get(run)
        if info is None:
            raise UnknownRun(f"The store has no run {run} any more.", run=run, hint="It was deleted.")
        return info

    def row(self, info: RunInfo, gates: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the line of a run of which the gates are known."""
        waiting = sum(gate["state"] == "waiting" for gate in gates)
        return run_row(info, gates=waiting, current=self.here is not None and self.here.run() == info.run)

    def actions(self, info: RunInfo, fold: Fold) -> Allowed:
        """Return what may be done about a run."""
        return allowed(info, fold, self.here)

    def _step(self, params: Params) -> dict[str, Any]:
        fold = self.folds.of(self.find(params))
        return detail.step(self.store, fold, params.get("execution"))

    def _output(self, params: Params) -> Exhibit:
        fold = self.folds.of(self.find(params))
        return self._outputs.exhibit(
            fold,
            params.get("execution"),
            _text(params, "name"),
            _number(params, "offset", 0),
            _number(params, "limit", 50),
        )

    def _graph(self, params: Params) -> dict[str, Any]:
        fold = self.folds.of(self.find(params))
        info = self.info(fold.run, fold)
        with fold.mutex:
            found = run_page.graph(fold, info.alive)
        if found is None:
            raise UsageError(f"Run {fold.run} has nothing to draw.", run=fold.run)
        return found

    # --- gates -----------------------------------------------------------------------------------------------

    def _gates_of_all(self, params: Params) -> dict[str, Any]:
        self.catalogue.refresh()
        return self.gates_page(params.get("state"))

    def gates_page(self, state: str | None) -> dict[str, Any]:
        """Return the gates of unfinished runs in a state, or in any; those that are open longest first."""
        rows = [row for info in self.catalogue.live() for row in self._gates.of(info)]
        rows = [row for row in rows if state is None or row["state"] == state]
        return {"rows": sorted(rows, key=lambda row: (row["opened"], row["run"]))}

    def _gate(self, params: Params) -> dict[str, Any]:
        fold = self.folds.of(self.find(params))
        with fold.mutex:
            gate = find_gate(fold.history, _text(params, "step"))
            row = gate_row(fold, gate)
        return {**row, "exhibits": detail.exhibits(self.store, fold, gate)}

    def _decide(self, params: Params) -> dict[str, Any]:
        from nbflow.runtime.gates.deciding import decide

        run = self.find(params)
        approved = params.get("approved")
        if not isinstance(approved, bool):
            raise UsageError(
                f"A gate is approved or not: true or false, not {approved!r}; nothing was decided."
            )
        selections = params.get("selections") or ()
        if not isinstance(selections, (list, tuple)):
            raise UsageError(f"Selections are a list of texts, not {selections!r}; nothing was decided.")
        step = _text(params, "step")
        decide(
            self.store,
            run,
            step,
            approved,
            feedback=params.get("feedback") or "",
            selections=tuple(map(str, selections)),
            by=params.get("by") or None,
            via=params.get("via") or "dashboard",
            opening=params.get("opening"),
        )
        fold = self.folds.of(run)
        with fold.mutex:
            return gate_row(fold, find_gate(fold.history, step))

    # --- what can be done ------------------------------------------------------------------------------------

    def _act(self, params: Params) -> dict[str, Any]:
        run = self.find(params)
        try:
            fold: Fold | None = self.folds.of(run)
        except CorruptRecord:
            fold = None  # it can be deleted all the same
        self.catalogue.look((run,))
        info = self.catalogue.get(run) or self.store.run(run)
        said = self._actions.act(_text(params, "action"), info, fold, params)
        touched = {run, said.get("run") or run}
        if params["action"] == "delete":
            self.folds.forget(run)
        self.catalogue.look(touched)
        self._follower.wake()
        return said

    def _disk(self, _params: Params) -> dict[str, Any]:
        return disk.usage(self.store, {info.run: info for info in self.catalogue.live()})

    def find(self, params: Params) -> str:
        """Return the whole id of the run that is asked about.

        Raises:
            UsageError, UnknownRun.
        """
        run = _text(params, "run")
        if _RUN.fullmatch(run) is None:
            raise UsageError(
                f"{run[:80]!r} is no run.",
                hint="A run is named by its id, or 4 or more characters of its beginning.",
            )
        return run if self.catalogue.get(run) is not None else self.store.run(run).run


class _GatesKnown:
    """The gates of unfinished runs, each run folded again only when it has moved."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._mutex = threading.Lock()
        self._known: dict[str, tuple[Any, list[dict[str, Any]]]] = {}

    def of(self, info: RunInfo) -> list[dict[str, Any]]:
        """Return the gates of a run; none of one that is over or cannot be read."""
        if info.state in FINAL_RUN_STATES or info.state == "corrupt":
            return []
        mark = self._board.catalogue.moved_at(info.run), info.updated_at
        with self._mutex:
            known = self._known.get(info.run)
        if known is not None and known[0] == mark and not any(map(_is_over, known[1])):
            return known[1]
        if self._board.catalogue.is_late(info.run):
            return []  # it ended, and nobody waits for the database here
        try:
            fold = self._board.folds.of(info.run)
        except NbflowError:
            return []  # it is listed as what it is; its gates must not hide those of others
        with fold.mutex:
            rows = [{**row, "text": cut(row["text"], _QUESTION)} for row in run_page.gate_rows(fold)]
        with self._mutex:
            if len(self._known) > 10_000:
                self._known.clear()  # most of it is of runs that are over
            self._known[info.run] = mark, rows
        return rows

    def waiting(self, info: RunInfo) -> int:
        """Return how many gates of a run wait for a person."""
        return sum(row["state"] == "waiting" for row in self.of(info))


def _is_over(gate: dict[str, Any]) -> bool:
    """Tell whether a gate that waited has run out of time since."""
    return gate["state"] == "waiting" and gate["due"] is not None and time.time() >= gate["due"]


def _text(params: Params, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name!r} is to be a text, not {value!r}.")
    return value


def _number(params: Params, name: str, default: int) -> int:
    value = params.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name!r} is to be a number from 0 on, not {value!r}.")
    return value
