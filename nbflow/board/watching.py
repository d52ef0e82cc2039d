"""One view of a page: what it was shown, and what of that is news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.board import run_page
from nbflow.board.listing import RunsQuery, runs_query
from nbflow.board.rows import step_row
from nbflow.core.errors import NbflowError, StoreBusy
from nbflow.core.states import FINAL_RUN_STATES

if TYPE_CHECKING:
    from nbflow.board.board import Board
    from nbflow.board.folds import Fold

#: Seconds between two batches of pushes to one view, and after which a page that says nothing is not there.
PACE, SILENCE = 0.25, 60.0

#: Steps of one push at most, about; more follow in the next.
_STEPS = 400

#: The share of one core that drawing a run's picture may take.
_DRAWING = 0.005

#: Seconds until the next picture at most, behind one that was laid out anew.
_SOON = 0.5


@dataclass(frozen=True)
class Watched:
    """What a view shows: a page of runs, one run, the gates that wait."""

    runs: RunsQuery | None = None
    run: str | None = None
    gates: bool = False

    @classmethod
    def of(cls, params: dict[str, Any], board: Board) -> Watched:
        """Return what is asked for.

        Raises:
            UsageError, UnknownRun: it makes no sense.
        """
        runs = params.get("runs")
        return cls(
            runs=runs_query(runs) if runs is not None else None,
            run=board.find(params) if params.get("run") is not None else None,
            gates=bool(params.get("gates")),
        )


class View:
    """What one page watches and was told. Only the follower calls `news`, and `first` comes before it."""

    def __init__(self, name: str, watched: Watched, push: Callable[[dict[str, Any]], None] | None) -> None:
        self.name = name
        self.watched = watched
        self.push = push
        self.beat_at = time.monotonic()
        #: Which `watch` it is of, by which a page tells pushes from those of the one before; set by the follower.
        self.turn = 0
        #: What is wrong with the store, as the page was told.
        self.problem: str | None = None
        #: Whether there is news that has to wait for its turn.
        self.pending = False
        self._next_at = 0.0
        self._version = -1
        self._runs: dict[str, Any] = {}
        self._gates: dict[str, Any] = {}
        self._run: dict[str, Any] = {}
        self._graph: dict[str, Any] | None = None
        self._draw_at = 0.0
        self._seq = 0
        self._anew = 0

    def sleeps(self, now: float) -> bool:
        """Tell whether the page has not said for a minute that it is visible."""
        return now - self.beat_at > SILENCE

    def runs_shown(self) -> list[str]:
        """Return the runs that are on the page."""
        shown = [row["run"] for row in self._runs.get("rows", ())]
        return [*shown, self.watched.run] if self.watched.run is not None else shown

    def first(self, board: Board) -> dict[str, Any]:
        """Return all that the view shows, from which the news go on."""
        board.catalogue.refresh()
        self._version = board.catalogue.version
        found: dict[str, Any] = {}
        if self.watched.runs is not None:
            board.catalogue.look_alive()
            found["runs"] = self._runs = board.runs_page(self.watched.runs)
        if self.watched.run is not None:
            found["run"] = self._whole(board, self.watched.run)
        if self.watched.gates:
            found["gates"] = self._gates = board.gates_page("waiting")
        return found

    def _whole(self, board: Board, run: str) -> dict[str, Any]:
        # Before it is read: what is read anew meanwhile is told as a whole once more.
        self._anew = board.folds.known(run).anew
        whole = board.run_page(run)
        self._run = {
            name: whole[name] for name in ("row", "gates", "actions", "attempts", "published", "problem")
        }
        self._graph, self._seq = whole["graph"], whole["seq"]
        return whole

    def is_due(self, now: float) -> bool:
        """Tell whether it may be told something now."""
        return now >= self._next_at

    def news(self, board: Board) -> Iterator[dict[str, Any]]:
        """Yield what is to be pushed now: what changed since the last time, a few times a second at most.

        What is yielded counts as told. Where a part cannot be looked at, it is told the next time.
        """
        version = board.catalogue.version
        self.pending = self.pending or version != self._version
        now = time.monotonic()
        if not self.pending or not self.is_due(now):
            return
        self.pending, self._version = False, version
        try:
            for push in self._changed(board):
                self._next_at = now + PACE
                yield push
        except Exception:
            self.pending = True
            raise

    def _changed(self, board: Board) -> Iterator[dict[str, Any]]:
        if self.watched.run is not None and (push := self._news_of_run(board, self.watched.run)) is not None:
            yield push
        if self.watched.runs is not None:
            page = board.runs_page(self.watched.runs)
            if page != self._runs:
                self._runs = page
                yield {"push": "runs", **page}
        if self.watched.gates:
            gates = board.gates_page("waiting")
            if gates != self._gates:
                self._gates = gates
                yield {"push": "gates", **gates}

    def _news_of_run(self, board: Board, run: str) -> dict[str, Any] | None:
        problem: str | None = None
        try:
            # One that ended would be waited for, together with all other views.
            fold = board.folds.known(run) if board.catalogue.is_late(run) else board.folds.of(run)
        except StoreBusy:
            fold = board.folds.known(run)
        except NbflowError as error:
            fold, problem = board.folds.known(run), str(error)
        if fold.anew != self._anew and problem is None:  # steps that a page has may never have happened
            return {**self._whole(board, run), "push": "whole", "run": run}
        if not fold.seq and problem is None:
            return None  # it is over, and cannot be read just now: what is on the page stays
        with fold.mutex:
            executions, upto = fold.moved(self._seq, _STEPS)
            self.pending = self.pending or upto < fold.seq
            self._seq = upto
            info = board.catalogue.get(run)
            if info is None:
                if self._run.get("problem") == _DELETED:
                    return None
                self._run["problem"] = _DELETED
                at = fold.history.updated_at
                return {"push": "run", "run": run, **_NOTHING, **self._run, "seq": upto, "at": at}
            if fold.history.state in FINAL_RUN_STATES:
                info = board.info(run, fold)  # as whoever asks anew has it; nothing is looked at
            gates = run_page.gate_rows(fold)
            now = {
                "row": board.row(info, gates),
                "gates": gates,
                "actions": board.actions(info, fold),
                "attempts": run_page.attempts(fold),
                "published": run_page.published(fold),
                "problem": problem,
            }
            graph = self._drawn(fold, info.alive)
            nodes, edges = run_page.graph_news(self._graph, graph)
            if not executions and not nodes and not edges and now == self._run:
                return None
            push = {
                "push": "run",
                "run": run,
                **now,
                "seq": upto,
                "at": fold.history.updated_at,
                "steps": [step_row(fold, each) for each in executions],
                "nodes": nodes,
                "edges": edges,
            }
        if graph is not None and not run_page.same_shape(self._graph, graph):
            push["graph"] = graph  # it was laid out anew
        self._run, self._graph = now, graph
        return push

    def _drawn(self, fold: Fold, alive: bool | None) -> dict[str, Any] | None:
        """Return the picture of the run, drawn anew so seldom that drawing takes no more than its share of a core."""
        now = time.monotonic()
        if now < self._draw_at and fold.history.state not in FINAL_RUN_STATES:
            self.pending = True
            return self._graph
        began = time.thread_time()
        drawn = run_page.graph(fold, alive)
        pause = (time.thread_time() - began) / _DRAWING
        # A new layout (and the loading of what makes it) costs once what a redraw does not.
        self._draw_at = now + (pause if _is_redrawn(self._graph, drawn) else min(pause, _SOON))
        return drawn


def _is_redrawn(before: dict[str, Any] | None, drawn: dict[str, Any] | None) -> bool:
    return drawn is not None and run_page.same_shape(before, drawn)


_DELETED = "The run was deleted."
_NOTHING: dict[str, Any] = {"steps": [], "nodes": [], "edges": []}
