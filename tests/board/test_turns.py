"""News and answers are made by different threads: none is lost, and a page can tell which watch a push is of."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from nbflow.board import Board, watching
from nbflow.core.errors import CorruptRecord
from nbflow.core.model import ErrorInfo, RunChanged, StepEnded, StepStarted
from nbflow.store.local import LocalStore
from nbflow.testing import MemoryStore
from tests.board.board_kit import News, asked, until
from tests.store.conformance import attached, do_step, me


def test_news_that_were_made_are_sent_though_what_comes_next_fails(
    store: LocalStore, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a view, or another view, that cannot be looked at once costs nobody a push."""
    log = attached(store, "w")
    news, other = News(), News()
    failed = threading.Event()
    asked(board, "watch", view="v", run=log.run, gates=True)
    asked(board, "watch", view="w", runs={})
    board.listen("v", news)
    board.listen("w", other)
    real = board.gates_page

    def fails_once(state: str | None) -> dict[str, Any]:
        if threading.current_thread().name == "nbflow-board" and not failed.is_set():
            failed.set()
            raise OSError(24, "Too many open files")
        return real(state)

    monkeypatch.setattr(board, "gates_page", fails_once)
    do_step(log, "a")
    until(failed.is_set, what="the failure")
    assert [step["step"] for step in until(lambda: news.of("run"), what="the run's news")[0]["steps"]] == [
        "a"
    ]
    until(
        lambda: other.of("runs") and other.of("runs")[-1]["rows"][0]["steps"] == 1,
        what="the other view's news",
    )
    until(
        lambda: [push["problem"] is None for push in news.of("store")] == [False, True], what="the end of it"
    )


def test_a_page_that_slept_is_told_what_became_of_the_store(
    store: LocalStore, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem that ended while nobody saw the page does not stay on it."""
    news, other = News(), News()
    for view, push in (("v", news), ("w", other)):
        asked(board, "watch", view=view, runs={})
        board.listen(view, push)
    aside = store.root.with_name("aside")
    store.root.rename(aside)
    until(lambda: news.of("store") and other.of("store"), what="the problem")
    view = board._follower._views["v"]
    view.beat_at = time.monotonic() - 2 * watching.SILENCE
    aside.rename(store.root)
    until(lambda: other.of("store")[-1]["problem"] is None, what="the end of the problem")
    assert [push["problem"] is None for push in news.of("store")] == [False]
    assert board.ask("beat", {"view": "v"}) == {"known": True}
    until(lambda: news.of("store")[-1]["problem"] is None, what="the end of the problem for who slept")


def test_a_push_says_which_watch_it_is_of(store: LocalStore, board: Board) -> None:
    """A page that watches something else can tell what is on its way from what it asked for now."""
    log = attached(store, "w")
    news = News()
    first = asked(board, "watch", view="v", runs={"workflow": "none"})
    board.listen("v", news)
    second = asked(board, "watch", view="v", runs={"workflow": "w"})
    assert first["turn"] < second["turn"]
    do_step(log, "a")
    push = until(lambda: [push for push in news.of("runs") if push["rows"]], what="news")[0]
    assert push["turn"] == second["turn"]
    assert push["offset"] == 0


class Rewritten:
    """A store of one run that was stolen: what its old owner wrote last does not count, and the new one wrote more."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.stolen = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def tail(self, run: str, position: Any = None) -> Any:
        if self.stolen and position is not None:
            self.stolen = False
            raise CorruptRecord("Journal 1 counts to 100; 200 were read.", run=run)
        return self._store.tail(run, position)


def test_what_never_happened_goes_from_the_page() -> None:
    """A run that is read anew is told as a whole: steps of an owner that was fenced off do not stay on a page."""
    memory = MemoryStore()
    log = attached(memory, "w")
    do_step(log, "old")
    store = Rewritten(memory)
    board = Board(store)  # type: ignore[arg-type]
    view = watching.View("v", watching.Watched(run=log.run), None)
    assert [step["step"] for step in view.first(board)["run"]["steps"]] == ["old"]
    entries = memory._find(log.run).entries
    del entries[-2:]
    for name in ("new", "newer"):
        do_step(log, name)
    store.stolen = True
    board.catalogue.refresh()
    [push] = view.news(board)
    assert (push["push"], push["run"]) == ("whole", log.run)
    assert [step["step"] for step in push["steps"]] == ["new", "newer"]
    board.close()


@pytest.mark.parametrize("what", ["cancelled", "asked again"])
def test_a_step_that_stood_at_a_gate_is_told_when_it_does_no_more(what: str) -> None:
    """Nothing is written about the step itself when its run is cancelled or it begins anew; its line changes all the same."""
    store = MemoryStore()
    log = attached(store, "w")
    do_step(log, "cell")  # a version that counts, whatever comes
    number = log.append(StepStarted("cell", "cell", "cell", b"other"))
    log.append(StepEnded(number, "cell", "cancelled", error=ErrorInfo("nbflow.core.errors.GatePending", "?")))
    log.append(RunChanged("waiting"))
    board = Board(store)
    view = watching.View("v", watching.Watched(run=log.run), None)
    page = {step["execution"]: step for step in view.first(board)["run"]["steps"]}
    assert page[number]["state"] == "waiting"
    log.append(
        RunChanged("cancelled") if what == "cancelled" else StepStarted("cell", "cell", "cell", b"other")
    )
    board.catalogue.refresh()
    [push] = view.news(board)
    page.update({step["execution"]: step for step in push["steps"]})
    assert list(page.values()) == Board(store).ask("run", {"run": log.run})["steps"]
    assert page[number]["state"] != "waiting"
    board.close()


@pytest.mark.parametrize("kind", ["cell", "gate"])
@pytest.mark.parametrize("died", [False, True])
def test_a_run_that_is_cancelled_has_no_step_that_goes_on(kind: str, died: bool) -> None:  # noqa: FBT001
    """What had not ended is cancelled with its run: in the table as in the graph, told as news as when asked anew."""
    store = MemoryStore()
    log = attached(store, "w")
    detail = {"gate": {"name": "a", "text": "", "opening": "o"}} if kind == "gate" else {}
    number = log.append(StepStarted("a", "a", kind, b"s", detail=detail))
    if died:
        log.release()
        log = store.attach(log.run, me())
    board = Board(store)
    view = watching.View("v", watching.Watched(run=log.run), None)
    [step] = view.first(board)["run"]["steps"]
    assert step["state"] in ("running", "waiting", "stopped")
    log.append(RunChanged("cancelled"))
    board.catalogue.refresh()
    [push] = view.news(board)
    [step] = Board(store).ask("run", {"run": log.run})["steps"]
    assert push["steps"] == [step]
    assert (step["execution"], step["state"]) == (number, "cancelled")
    assert [node["state"] for node in push["nodes"]] in ([], ["cancelled"])
    board.close()
