"""News: what changed and nothing else, at once and not too often, and whatever happens to the store."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nbflow.board import Board, catalogue, following, watching
from nbflow.core.ids import new_run_id
from nbflow.core.model import (
    ErrorInfo,
    Message,
    MessageTaken,
    RunChanged,
    RunOpened,
    RunPublished,
    RunTagged,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.core.states import RUN_TRANSITIONS
from nbflow.store.local import LocalStore
from nbflow.testing import MemoryStore
from tests.board.board_kit import News, asked, ended, process, said, until
from tests.store.conformance import attached, do_step, me

RECORDING = """
import nbflow, sys, time
@nbflow.durable
def step(i):
    return i
with nbflow.run("recording") as run:
    step(0)
    print(run.id, flush=True)
    for line in sys.stdin:
        step(line.strip())
        print("done", flush=True)
"""


def _applied(page: dict[str, Any], push: dict[str, Any]) -> None:
    """Do what a page does with a push about its run."""
    steps = {step["execution"]: step for step in page["steps"]}
    steps.update({step["execution"]: step for step in push["steps"]})
    page["steps"] = [steps[number] for number in sorted(steps)]
    if "graph" in push:
        page["graph"] = push["graph"]
    elif page["graph"] is not None:
        nodes = {node["id"]: node for node in push["nodes"]}
        page["graph"]["nodes"] = [nodes.get(node["id"], node) for node in page["graph"]["nodes"]]
        edges = {(edge["source"], edge["target"], edge["kind"]): edge for edge in push["edges"]}
        page["graph"]["edges"] = [
            edges.get((edge["source"], edge["target"], edge["kind"]), edge) for edge in page["graph"]["edges"]
        ]
    for name in ("row", "seq", "at", "gates", "actions", "attempts", "published", "problem"):
        page[name] = push[name]


def _random_records(chance: random.Random, store: MemoryStore, log: Any) -> None:
    history = store._find(log.run).history()
    going = [e for e in history.executions.values() if e.ended_at is None and not e.interrupted]
    step = chance.choice("abc")
    kind = chance.randrange(8)
    if kind <= 2:
        log.append(StepStarted(step, step, chance.choice(["cell", "call"]), chance.randbytes(1)))
    elif kind == 3 and going:
        chosen = chance.choice(going)
        log.append(StepCompleted(chosen.number, chosen.started.step, seconds=1.0))
    elif kind == 4 and going:
        chosen = chance.choice(going)
        log.append(
            StepEnded(
                chosen.number,
                chosen.started.step,
                chance.choice(["failed", "cancelled"]),
                error=ErrorInfo(chance.choice(["ValueError", "nbflow.core.errors.GatePending"]), "no"),
            )
        )
    elif kind == 5 and going:
        chosen = chance.choice(going)
        log.append(StepRetried(chosen.number, chosen.started.step, 1, 9.0, ErrorInfo("OSError", "busy")))
    elif kind == 6 and history.by_step:
        log.append(StepForgotten(chance.choice(list(history.by_step))))
    else:
        log.append(RunPublished(step, chance.random()), RunTagged({step: str(chance.random())}))
    if chance.random() < 0.1 and RUN_TRANSITIONS[history.state]:
        log.append(RunChanged("failed"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9))
@example(seed=16702)
@example(seed=119)
def test_what_was_shown_first_and_the_news_together_are_the_whole(seed: int) -> None:
    """However a run moves, a page that applies each push has what a page has that asks anew."""
    chance = random.Random(seed)
    store = MemoryStore()
    run = new_run_id()
    store.create(RunOpened(run=run, workflow="w", workflow_kind=chance.choice(["notebook", "script"])))
    log = store.attach(run, me())
    board = Board(store)
    view = watching.View("v", watching.Watched(run=run), None)
    page = view.first(board)["run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "_STEPS", 2)
        patch.setattr(watching, "_DRAWING", 1e9)
        for left in range(chance.randrange(1, 12), -1, -1):
            if chance.random() < 0.15:
                log.release()
                log = store.attach(run, me())
            for _ in range(chance.randrange(1, 5)):
                _random_records(chance, store, log)
            if not left and chance.random() < 0.5:
                log.append(RunChanged("cancelled"))
            board.catalogue.refresh()
            view._next_at = 0.0
            for push in view.news(board):
                _applied(page, push)
            while view.pending:
                view._next_at = 0.0
                for push in view.news(board):
                    _applied(page, push)
            assert page == Board(store).ask("run", {"run": run})
    board.close()


def test_news_of_another_process_comes_by_itself(store: LocalStore, board: Board) -> None:
    """What a process records is pushed with the commit's own time, only what changed, and to each view its own."""
    child = process(RECORDING, store)
    run = said(child)
    news, table = News(), News()
    first = asked(board, "watch", view="run", run=run)["run"]
    asked(board, "watch", view="table", runs={}, gates=True)
    board.listen("run", news)
    board.listen("table", table)
    assert child.stdin is not None
    child.stdin.write("x\n")
    child.stdin.flush()
    assert said(child) == "done"
    push = until(lambda: news.of("run"), what="news of the run")[0]
    assert (push["run"], push["seq"] > first["seq"], push["at"] > first["at"]) == (run, True, True)
    assert all(step["execution"] > first["steps"][-1]["execution"] for step in push["steps"])
    until(
        lambda: table.of("runs") and table.of("runs")[-1]["rows"][0]["steps"] == 2, what="news of the table"
    )
    assert table.of("run") == []
    child.communicate()
    until(lambda: news.of("run")[-1]["row"]["state"] == "completed", what="the end")


def test_a_killed_process_is_shown_as_stopped(
    store: LocalStore, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written when a kernel is killed; the page says so all the same, and what can be done."""
    monkeypatch.setattr(catalogue, "LIVENESS", 0.2)
    child = process(RECORDING, store)
    run = said(child)
    news = News()
    assert asked(board, "watch", view="v", run=run, runs={})["run"]["row"]["state"] == "running"
    board.listen("v", news)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    until(lambda: news.of("run") and news.of("run")[-1]["row"]["state"] == "stopped", what="the run's news")
    until(
        lambda: news.of("runs") and news.of("runs")[-1]["rows"][0]["state"] == "stopped", what="the table's"
    )
    assert news.of("run")[-1]["actions"]["retry"]["allowed"] is True


def test_a_view_is_told_at_once_and_then_four_times_a_second(store: LocalStore, board: Board) -> None:
    """A run that moves all the time costs a page four batches a second, and nothing of it is lost."""
    log = attached(store, "w")
    news = News()
    asked(board, "watch", view="v", run=log.run)
    board.listen("v", news)
    for number in range(60):
        do_step(log, f"s{number}")
        time.sleep(0.01)
    until(lambda: news.pushes and news.pushes[-1]["seq"] == 122, what="the last step")
    assert all(
        later - earlier >= 0.9 * watching.PACE
        for earlier, later in zip(news.times, news.times[1:], strict=False)
    )
    steps = [step["step"] for push in news.pushes for step in push["steps"] if step["state"] == "completed"]
    assert set(steps) == {f"s{number}" for number in range(60)}


def test_nothing_is_done_for_a_page_that_nobody_sees(
    store: LocalStore, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word from the page nothing is pushed and nothing looked at; with the next one it has all."""
    log = attached(store, "w")
    news = News()
    asked(board, "watch", view="v", run=log.run)
    board.listen("v", news)
    monkeypatch.setattr(watching, "SILENCE", -1.0)
    looks = []
    real = store.changes
    until(lambda: not board._follower._awake())
    time.sleep(2 * following.IDLE)  # a look that was under way is over

    def counted(seen: Any = None) -> Any:
        looks.append(1)
        return real(seen)

    monkeypatch.setattr(store, "changes", counted)
    do_step(log, "a")
    time.sleep(4 * following.IDLE)
    assert (looks, news.pushes) == ([], [])
    monkeypatch.setattr(watching, "SILENCE", 60.0)
    assert board.ask("beat", {"view": "v"}) == {"known": True}
    board._follower.wake()
    assert [step["step"] for step in until(lambda: news.of("run"))[0]["steps"]] == ["a"]


def test_a_page_of_an_earlier_kernel_is_told_to_watch_anew(board: Board) -> None:
    """A beat of a view that nobody knows says so; unwatching what is not watched is fine."""
    assert board.ask("beat", {"view": "old"}) == {"known": False}
    assert board.ask("unwatch", {"view": "old"}) == {}


def test_a_store_that_goes_away_is_told_once_and_again_when_it_is_back(
    store: LocalStore, board: Board
) -> None:
    """The page keeps what it showed, says what is wrong, and goes on by itself."""
    log = attached(store, "w")
    do_step(log, "a")
    log.release()
    news = News()
    asked(board, "watch", view="v", run=log.run, runs={})
    board.listen("v", news)
    aside = store.root.with_name("aside")
    shutil.move(store.root, aside)
    [push] = until(lambda: news.of("store"), what="the problem")
    assert "is gone" in push["problem"]
    shutil.move(aside, store.root)
    until(lambda: news.of("store")[-1]["problem"] is None, what="the end of the problem")
    assert len(news.of("store")) == 2


def test_a_run_that_is_damaged_or_deleted_while_it_is_watched_stays_on_the_page(
    store: LocalStore, board: Board
) -> None:
    """Its steps stay as they were known, with a sentence; other views go on."""
    log, other = attached(store, "w"), attached(store, "other")
    do_step(log, "a")
    do_step(other, "a")
    news, others = News(), News()
    asked(board, "watch", view="v", run=log.run)
    asked(board, "watch", view="o", run=other.run)
    board.listen("v", news)
    board.listen("o", others)
    journal = next((store.root / "runs" / log.run).glob("journal.1"))
    with board.catalogue._mutex:  # nobody looks before the damage is done
        end = len(journal.read_bytes().rstrip(b"\0"))
        do_step(log, "b")
        raw = bytearray(journal.read_bytes())
        raw[end + 60] ^= 0xFF
        journal.write_bytes(raw)
    push = until(lambda: [p for p in news.of("run") if p["problem"]], what="the damage")[-1]
    assert push["row"]["state"] == "corrupt"
    do_step(other, "b")
    until(lambda: others.of("run"), what="the other run's news")
    log.release()
    ended(other)
    store.delete(other.run)
    until(lambda: others.of("run")[-1]["problem"], what="the deletion")
    assert others.of("run")[-1]["row"]["run"] == other.run


def test_a_decision_of_somebody_else_is_news(store: LocalStore, board: Board) -> None:
    """A message that nobody has taken yet moves no record, and is seen all the same."""
    from nbflow.core.gates import FORM, Decision, Form, find_gate, payload_of
    from nbflow.core.history import History

    log = attached(store, "w")
    form = {"name": "publish", "text": "?", "opening": "o1", "options": ["web"]}
    log.append(
        StepStarted("gate:publish#0", "publish", "gate", b"g", detail={FORM: form}), RunChanged("waiting")
    )
    news = News()
    first = asked(board, "watch", view="v", run=log.run, gates=True)
    assert [row["state"] for row in first["gates"]["rows"]] == ["waiting"]
    assert Form(**form).name == first["run"]["gates"][0]["name"]  # type: ignore[arg-type]
    board.listen("v", news)
    gate = find_gate(History.of(store.entries(log.run)), "publish")
    payload = payload_of(gate, Decision(True, "ana", 1.0, "fine", ("web",)))
    store.send(log.run, Message("m1", "decision", 1.0, "ana@lab", payload))
    until(lambda: news.of("gates") and news.of("gates")[-1]["rows"] == [], what="the list of gates")
    row = until(lambda: news.of("run"), what="the run's news")[-1]["gates"][0]
    assert (row["state"], row["decision"]["by"], row["decision"]["selections"]) == ("sent", "ana", ["web"])
    log.append(MessageTaken("m1", "decision", 1.0, "ana@lab", payload))
    until(lambda: news.of("run")[-1]["gates"][0]["state"] == "approved", what="the decision taken")


def test_a_page_that_cannot_be_reached_is_dropped_and_holds_up_no_other(
    store: LocalStore, board: Board
) -> None:
    """A closed comm raises; the other views go on."""
    log = attached(store, "w")
    news = News()

    def closed(_push: dict[str, Any]) -> None:
        raise RuntimeError("closed")

    for view, push in (("bad", closed), ("good", news)):
        asked(board, "watch", view=view, run=log.run)
        board.listen(view, push)
    do_step(log, "a")
    until(lambda: news.of("run"), what="news")
    until(lambda: board.ask("beat", {"view": "bad"}) == {"known": False}, what="the drop")


def test_closing_ends_the_thread(store: LocalStore) -> None:
    """After `close` nothing of the board runs; a board that nobody watched never had a thread."""
    before = {thread.ident for thread in threading.enumerate()}
    board = Board(store)
    board.ask("runs", {})
    assert {thread.ident for thread in threading.enumerate()} <= before
    board.ask("watch", {"view": "v", "runs": {}})
    board.listen("v", News())
    board.close()
    board.close()
    assert "nbflow-board" not in {thread.name for thread in threading.enumerate()}


def test_it_may_be_asked_from_many_threads_at_once(store: LocalStore, board: Board) -> None:
    """Subshells ask while the kernel records and the follower looks: every answer is whole."""
    log = attached(store, "w")
    failures: list[BaseException] = []
    news = News()
    asked(board, "watch", view="v", run=log.run, runs={})
    board.listen("v", news)
    over = threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                page = asked(board, "run", run=log.run)
                assert [s["execution"] for s in page["steps"]] == sorted(
                    {s["execution"] for s in page["steps"]}
                )
                assert asked(board, "runs")["total"] == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(40):
        do_step(log, f"s{number}")
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(asked(board, "run", run=log.run)["steps"]) == 40
