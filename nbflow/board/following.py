"""The board's own thread: looks at the store while somebody watches, and tells each view what changed of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.board.watching import View, Watched
from nbflow.core.errors import NbflowError, UsageError

if TYPE_CHECKING:
    from nbflow.board.board import Board, Params, Push

log = logging.getLogger("nbflow.board")

#: Seconds between two looks at the store: while something moves, and when nothing did for a while.
BUSY, IDLE, CALM = 0.1, 0.25, 2.0

#: The share of one core that looking is to take: what costs more is done more seldom. Waking up comes on top.
SHARE = 0.008

#: Seconds of the processor that one look counts for at most.
DEAREST = 0.02

#: Seconds between two looks at most, however much one costs.
SLOWEST = 2.0

#: Views that are remembered at most.
_VIEWS = 200

#: Seconds between two looks while the store cannot be looked at.
_TROUBLE = 1.0


class Follower:
    """Who watches what, and the thread that tells them; it lives while somebody does."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._views: dict[str, View] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._problem: str | None = None
        self._turns = 0
        self._moved_at = 0.0

    # --- asked from any thread ---------------------------------------------------------------------------

    def watch(self, params: Params) -> dict[str, Any]:
        """Answer what a view wants to see, and tell it from then on what changes of that."""
        name = _name(params)
        with self._changed:
            old = self._views.get(name)
        view = View(name, Watched.of(params, self._board), old.push if old is not None else None)
        answer = view.first(self._board)
        with self._changed:
            if old is not None and view.push is None:
                view.push = old.push
            self._turns += 1
            view.turn, view.problem = self._turns, self._problem
            self._views[name] = view
            if len(self._views) > _VIEWS:  # of pages that were closed without a word
                del self._views[min(self._views, key=lambda each: self._views[each].beat_at)]
            self._start()
            self._changed.notify_all()
            return {**answer, "problem": view.problem, "turn": view.turn}

    def unwatch(self, params: Params) -> dict[str, Any]:
        """Forget a view."""
        with self._changed:
            self._views.pop(_name(params), None)
        return {}

    def beat(self, params: Params) -> dict[str, Any]:
        """Note that a page is there; tells whether it is known, so that a page of an earlier kernel watches anew."""
        with self._changed:
            view = self._views.get(_name(params))
            if view is None:
                return {"known": False}
            slept = view.sleeps(time.monotonic())
            view.beat_at = time.monotonic()
            if slept:
                self._start()
                self._changed.notify_all()
        return {"known": True}

    def listen(self, name: str, push: Push) -> None:
        """Have a view's news sent to `push`; it may be called before or after `watch`."""
        with self._changed:
            view = self._views.get(name)
            if view is None:
                view = self._views[name] = View(name, Watched(), push)
            view.push = push
            self._start()
            self._changed.notify_all()

    def wake(self) -> None:
        """Look at once: something was done here."""
        with self._changed:
            self._moved_at = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop; the thread is gone when this returns, unless it is the one that closes."""
        with self._changed:
            self._closed = True
            self._views.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)

    # --- the thread ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._closed or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._follow, name="nbflow-board", daemon=True)
        self._thread.start()

    def _awake(self) -> list[View]:
        """Return the views that somebody looks at."""
        now = time.monotonic()
        return [view for view in self._views.values() if view.push is not None and not view.sleeps(now)]

    def _follow(self) -> None:
        costs: deque[float] = deque(maxlen=9)
        while True:
            with self._changed:
                while not self._closed and not self._awake():
                    self._board.rest()
                    self._changed.wait()
                if self._closed:
                    return
                views = self._awake()
            began = time.thread_time()
            pause = self._look(views)
            costs.append(time.thread_time() - began)
            # A single look that reads the history, or loads a library, must not hold up the next.
            usual = sum(min(cost, DEAREST) for cost in costs)
            pause = max(pause, min(SLOWEST, usual / len(costs) / SHARE))
            with self._changed:
                if not self._closed:
                    self._changed.wait(pause)

    def _look(self, views: list[View]) -> float:
        """Look once and tell the views; return how many seconds to wait for the next look."""
        try:
            self._require_store()
            catalogue = self._board.catalogue
            if catalogue.notice():
                self._moved_at = time.monotonic()
            if any(view.is_due(time.monotonic()) for view in views):
                catalogue.settle()
                catalogue.look_alive({run for view in views for run in view.runs_shown()})
            self._tell_news(views)
        except (NbflowError, OSError) as error:
            self._tell_problem(str(error))
            return _TROUBLE
        except Exception as error:  # a defect of ours must end neither the thread nor the kernel's peace
            log.exception("The board could not look at its store.")
            self._tell_problem(f"The store could not be looked at: {type(error).__name__}: {error}")
            return 5 * _TROUBLE
        self._tell_problem(None)
        if any(view.pending for view in views) or time.monotonic() - self._moved_at < CALM:
            return BUSY
        return IDLE

    def _tell_news(self, views: list[View]) -> None:
        """Send each push as soon as it is made, since its view counts it as told; one that fails holds up no other."""
        failed: Exception | None = None
        for view in views:
            try:
                for push in view.news(self._board):
                    self._send(view, push)
            except Exception as error:  # noqa: BLE001 - raised below, when all were told
                failed = failed or error
        if failed is not None:
            raise failed

    def _require_store(self) -> None:
        root = getattr(self._board.store, "root", None)
        if isinstance(root, Path) and not root.is_dir():
            raise UsageError(
                f"The store {root} is gone.", hint="What was shown is what was last known of it."
            )

    def _tell_problem(self, problem: str | None) -> None:
        with self._changed:
            self._problem = problem
            # A view that slept when it came, or when it went, is told when it wakes.
            views = [view for view in self._awake() if view.problem != problem]
        for view in views:
            view.problem = problem
            self._send(view, {"push": "store", "problem": problem})

    def _send(self, view: View, push: dict[str, Any]) -> None:
        receive = view.push
        if receive is None:
            return
        try:
            receive({**push, "turn": view.turn})
        except Exception:
            # Its page is gone (a closed comm, say): it comes back by watching anew.
            log.info("View %s takes no news any more.", view.name, exc_info=True)
            with self._changed:
                if self._views.get(view.name) is view:
                    del self._views[view.name]


def _name(params: Params) -> str:
    name = params.get("view")
    if not isinstance(name, str) or not name:
        raise UsageError(f"A view has a name, not {name!r}.")
    return name
