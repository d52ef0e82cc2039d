"""What a page shows when answers and pushes cross on their way, and whichever part of it was in sight meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from nbflow.board.board import Board
from nbflow.store.local import open_store
from tests.browser.board_page import serve

#: An adapter over a transport that does nothing by itself: `told` is what views are told, `posted` what was asked.
ADAPTER = """async () => {
    const {Adapter} = await import("/static/adapter.js");
    const posted = window.posted = [];
    const adapter = window.adapter2 = new Adapter({
        post: (message) => posted.push(message),
        start: (receive) => { window.receive2 = receive; return () => {}; },
    });
    window.told = [];
    adapter.listen((push) => push.push !== "connection" && window.told.push([push.push, push.seq ?? push.rows?.[0] ?? push.problem]));
    window.follow = adapter.follow({run: "r", runs: {workflow: "a"}});
    await null; await null;
}"""

ANSWER = """async ([turn, seq, rows]) => {
    const {id} = window.posted.filter(({method}) => method === "watch").at(-1);
    window.receive2({id, result: {turn, problem: null, run: {seq}, runs: {rows: [rows]}}});
    await new Promise((done) => setTimeout(done));
}"""

PUSH = "(push) => window.receive2({view: window.adapter2.view, run: 'r', ...push})"


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of a dashboard over an empty store, and an adapter beside it that the test answers."""
    with closing(open_store(tmp_path / ".nbflow")) as store, closing(Board(store)) as board:
        with serve(board, "dashboard", {"record": "r1"}, {"runs": ("runs", {})}) as server:
            page = browser.new_page()
            page.goto(server.url)
            expect(page.locator("body[data-ready]")).to_be_attached()
            page.evaluate(ADAPTER)
            yield page
            page.close()


def told(page: Page) -> list[Any]:
    """What the views of the page were told."""
    return list(page.evaluate("window.told"))


def test_a_push_that_overtakes_its_answer_is_put_on_it(page: Page) -> None:
    """The answer is older than the push, and must not take it away again: the push comes behind it."""
    page.evaluate(PUSH, {"push": "run", "seq": 8, "turn": 1})
    assert told(page) == []
    page.evaluate(ANSWER, [1, 7, "x"])
    assert told(page) == [["runs", "x"], ["whole", 7], ["run", 8]]


def test_a_push_of_an_earlier_watch_is_old_news(page: Page) -> None:
    """Rows of the query before never stand under the filters of now, whether they come before the answer or after."""
    page.evaluate(ANSWER, [1, 7, "x"])
    page.evaluate("async () => { window.follow.update({runs: {workflow: 'b'}}); await null; await null; }")
    page.evaluate(PUSH, {"push": "runs", "rows": ["old"], "turn": 1})
    page.evaluate(PUSH, {"push": "run", "seq": 8, "turn": 1})
    page.evaluate(ANSWER, [2, 8, "y"])
    page.evaluate(PUSH, {"push": "runs", "rows": ["late"], "turn": 1})
    page.evaluate(PUSH, {"push": "runs", "rows": ["new"], "turn": 2})
    assert told(page) == [
        ["runs", "x"], ["whole", 7], ["run", 8], ["runs", "y"], ["whole", 8], ["runs", "new"],
    ]  # fmt: skip


LIVE = """
import sys
import nbflow

@nbflow.durable
def first():
    return 1

@nbflow.durable
def second():
    return 2

with nbflow.run("live", store=sys.argv[1]) as run:
    first()
    print(run.id, flush=True)
    sys.stdin.readline()
    second()
    nbflow.publish("score", 0.93)
"""


def test_the_tab_that_nobody_looked_at_is_true_all_the_same(browser: Browser, tmp_path: Path) -> None:
    """A run goes on while its timeline is in sight: the overview behind it shows the new state, and what was published."""
    place = tmp_path / ".nbflow"
    child = subprocess.Popen(
        [sys.executable, "-c", LIVE, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    run = child.stdout.readline().strip()
    asks: dict[str, tuple[str, dict[str, Any]]] = {"run": ("run", {"run": run})}
    with closing(open_store(place)) as store, closing(Board(store)) as board:
        with serve(board, "dashboard", {"record": "r1", "run": run}, asks) as server:
            page = browser.new_page()
            page.goto(server.url)
            page.get_by_role("tab", name="Overview").click()
            expect(page.get_by_role("option", name="second")).to_have_count(0)
            page.get_by_role("tab", name="Timeline").click()
            child.communicate("\n")
            expect(page.locator(".nbflow-head .nbflow-state").first).to_have_attribute(
                "data-state", "completed"
            )
            page.get_by_role("tab", name="Overview").click()
            expect(page.get_by_role("option", name="second")).to_be_visible()
            expect(page.get_by_text("Published: score")).to_be_visible()
            expect(page.get_by_text("0.93")).to_be_visible()
            store.delete(run)
            expect(page.get_by_text("The run was deleted.")).to_be_visible()
            page.close()
