"""The graph in a real browser over a real board: what it shows, how it is moved and read, and that it lives."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import nbflow
from nbflow.board.board import Board
from nbflow.store.local import LocalStore
from nbflow.widgets.fsm import asked
from tests.browser import audit
from tests.browser.board_page import BoardServer, serve

SCRIPT = "<script>window.hacked = 1</script>"
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 320, "height": 800}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store of its own."""
    return LocalStore(tmp_path / "graphs")


@pytest.fixture
def board(store: LocalStore) -> Iterator[Board]:
    """What the page talks to."""
    made = Board(store)
    yield made
    made.close()


@pytest.fixture
def show(board: Board, browser: Browser) -> Iterator[Callable[..., tuple[Page, BoardServer]]]:
    """Open a page with the graph of a run or machine."""
    with ExitStack() as stack:

        def open_one(
            target: Any, *, theme: str = "light", size: dict[str, int] | None = None
        ) -> tuple[Page, BoardServer]:
            view, about, asks = asked(board, target)
            served = stack.enter_context(serve(view, "fsm", about, asks))
            page = browser.new_page(viewport=size or WIDE)  # type: ignore[arg-type]
            stack.callback(page.close)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            stack.callback(lambda: problems and pytest.fail(f"The page had errors: {problems}"))
            page.goto(f"{served.url}/?{theme}")
            expect(page.locator("body[data-ready=yes]")).to_have_count(1)
            return page, served

        yield open_one


def training(go: threading.Event | None = None) -> nbflow.Machine:
    """A machine that goes round, retries, and may wait in its last round until it is told to go."""
    machine = nbflow.Machine(
        "training",
        ["LOAD", "TRAIN", "JUDGE", SCRIPT, "GIVE UP", "DONE"],
        initial="LOAD",
        final={"DONE", "GIVE UP"},
    )
    machine.state("LOAD", to="TRAIN")(lambda ctx: "TRAIN")

    @machine.state("TRAIN", to="JUDGE", retries=2, delay=0.001)
    def train(ctx: Any) -> str:
        ctx.rounds = ctx.get("rounds", 0) + 1
        if ctx.rounds == 1 and ctx.attempt == 1:
            raise ConnectionError("no <b>connection</b>")
        return "JUDGE"

    @machine.state("JUDGE", to=["TRAIN", SCRIPT, "GIVE UP"])
    def judge(ctx: Any) -> str:
        return "TRAIN" if ctx.rounds < 3 else SCRIPT

    @machine.state(SCRIPT, to="DONE")
    def last(ctx: Any) -> str:
        if go is not None:
            go.wait(60)
        if ctx.get("broken"):
            raise ValueError(SCRIPT)
        return "DONE"

    return machine


def failed_run(store: LocalStore) -> str:
    """A run whose last state failed."""
    with pytest.raises(ValueError, match="script"):
        training().run(store=store, broken=True)
    return store.runs()[0].run


def node(page: Page, label: str) -> Any:
    """The node of this state."""
    return page.get_by_role("option", name=f"{label}: ", exact=False)


def test_states_are_shown_with_word_time_and_counts_and_nothing_is_injected(store, show):
    """All states are there, visited or not, with what became of them; a state called <script> is a text."""
    page, _ = show(failed_run(store))
    assert page.get_by_role("option").count() == 6
    names = [one.get_attribute("aria-label") for one in page.get_by_role("option").all()]
    assert [name.split(",")[0] for name in names] == [
        "LOAD: Completed",
        "TRAIN: Completed",
        "JUDGE: Completed",
        f"{SCRIPT}: Failed",
        "GIVE UP: Pending",
        "DONE: Pending",
    ]
    assert "3 visits, 1 retry" in names[1]
    assert "current" in names[3]
    assert page.locator(".nbflow-graph ol li").all_inner_texts() == names
    assert page.evaluate("window.hacked") is None
    assert page.locator(".nbflow script").count() == 0
    expect(page.locator(".nbflow-occurs")).to_contain_text("Completed")


def test_a_card_tells_more_on_hover_and_on_focus(store, show):
    """Times, tries and the last error are shown where the pointer or the keyboard is, and Escape takes them away."""
    page, _ = show(failed_run(store))
    card = page.locator(".nbflow-card")
    node(page, SCRIPT).hover()
    expect(card).to_be_visible()
    expect(card).to_contain_text(f"ValueError: {SCRIPT}")
    page.get_by_role("heading", name="training").hover()
    expect(card).to_be_hidden()
    page.get_by_role("listbox").focus()
    expect(card).to_contain_text("Attempts")
    page.keyboard.press("Home")
    expect(card).to_contain_text("LOAD")
    page.keyboard.press("ArrowDown")
    expect(card).to_contain_text("Retries")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_a_click_or_enter_shows_the_step(store, show):
    """The step of a state opens beside the graph, is told to the page around, and closes with the focus back."""
    run = failed_run(store)
    page, _ = show(run)
    page.evaluate("addEventListener('nbflow:step', (event) => { window.chosen = event.detail; })")
    node(page, "LOAD").click()
    expect(page.locator(".nbflow-step")).to_contain_text("LOAD")
    assert page.evaluate("window.chosen.run") == run
    assert isinstance(page.evaluate("window.chosen.execution"), int)
    page.keyboard.press("Escape")
    expect(page.locator(".nbflow-step")).to_have_count(0)
    expect(page.get_by_role("listbox")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.press("Enter")  # DONE was not entered: there is nothing to show
    expect(page.locator(".nbflow-step")).to_have_count(0)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".nbflow-step")).to_contain_text("TRAIN")


def test_the_picture_is_sized_by_keys_buttons_and_wheel(store, show):
    """Plus, minus and 0, the buttons and the wheel with Ctrl do the same; it fits its place at first."""
    page, _ = show(failed_run(store), size=NARROW)
    view, drawing = page.get_by_role("listbox"), page.locator(".nbflow-drawing")

    def wide() -> float:
        return float(drawing.evaluate("(it) => it.getBoundingClientRect().width"))

    first = wide()
    view.focus()
    page.keyboard.press("+")
    assert wide() > first
    page.keyboard.press("-")
    assert abs(wide() - first) < 1
    page.get_by_role("button", name="Larger").click()
    page.get_by_role("button", name="Larger").click()
    larger = wide()
    assert larger > first * 1.5
    view.hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, 60)
    page.keyboard.up("Control")
    page.wait_for_function(
        "(before) => document.querySelector('.nbflow-drawing').getBoundingClientRect().width < before",
        arg=larger,
    )
    view.focus()
    page.keyboard.press("0")
    room = view.evaluate("(it) => [it.clientWidth, it.clientHeight]")
    size = drawing.evaluate(
        "(it) => { const box = it.getBoundingClientRect(); return [box.width, box.height]; }"
    )
    assert size[0] <= room[0] + 1
    assert size[1] <= room[1] + 1


def test_the_graph_lives_while_the_run_goes_on(store, show):
    """What changes is painted into the nodes that are there; nothing moves and nothing else is touched."""
    go = threading.Event()
    page, _ = show(training(go))
    expect(page.get_by_role("status").filter(has_text="has not run yet")).to_have_count(1)
    assert page.get_by_role("option").count() == 6
    running = threading.Thread(target=lambda: training(go).run(store=store))
    running.start()
    try:
        expect(node(page, SCRIPT)).to_have_attribute("aria-label", re.compile("Running, current"))
        page.evaluate(
            """() => {
                window.places = [...document.querySelectorAll('[role=option]')].map((it) => [it, it.getAttribute('transform')]);
                window.touched = new Set();
                new MutationObserver((all) => all.forEach(({target}) => {
                    const at = (target.nodeType === 1 ? target : target.parentElement)?.closest('[role=option]');
                    if (at) window.touched.add(at.getAttribute('aria-label').split(':')[0]);
                })).observe(document.querySelector('.nbflow-drawing'), {subtree: true, childList: true, attributes: true, characterData: true});
            }"""
        )
    finally:
        go.set()
        running.join(60)
    expect(node(page, "DONE")).to_have_attribute("aria-label", re.compile("Completed, current"))
    assert page.evaluate(
        "window.places.every(([it, place]) => it.isConnected && it.getAttribute('transform') === place)"
    )
    assert set(page.evaluate("[...window.touched]")) <= {SCRIPT, "DONE"}
    expect(page.locator(".nbflow-graph-head .nbflow-state")).to_have_text("Completed")


def test_only_who_wants_motion_sees_any(store, show):
    """The state that runs pulses, but not for people who asked for less motion."""
    go = threading.Event()
    page, _ = show(training(go))
    running = threading.Thread(target=lambda: training(go).run(store=store))
    running.start()
    try:
        box = page.locator(".nbflow-pulse .nbflow-box")
        expect(box).to_have_count(1)
        seen = {}
        for wish in ("reduce", "no-preference"):
            page.emulate_media(reduced_motion=wish)  # type: ignore[arg-type]
            seen[wish] = box.evaluate("(it) => getComputedStyle(it).animationName")
        assert seen == {"reduce": "none", "no-preference": "nbflow-pulse"}
    finally:
        go.set()
        running.join(60)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_can_be_read_and_reached_by_everybody(store, show, theme, size):
    """Both themes, wide and narrow: no serious violation, enough contrast, nothing over anything, all by keyboard."""
    page, _ = show(failed_run(store), theme=theme, size=size)
    view = page.locator(".nbflow")
    assert audit.violations(page) == []
    assert audit.too_faint(view) == []
    assert audit.overlaps(view) == []
    assert audit.too_wide(view) == []
    assert audit.out_of_reach(page, view) == []
    page.locator("body").click(position={"x": 2, "y": 2})
    assert audit.invisible_focus(page, view) == []


def test_two_hundred_states_stay_fluid(store, show):
    """Of a large machine a change touches the nodes that changed, and moving about touches none."""
    labels = [f"STATE_{number}" for number in range(200)]
    go = threading.Event()

    def large() -> nbflow.Machine:
        machine = nbflow.Machine("large", labels, initial=labels[0], final={labels[-1]})
        for number, label in enumerate(labels[:-1]):
            others = [labels[number + 1], labels[number * 7 % 200]]

            def task(ctx: Any, number: int = number) -> str:
                if number == 40:
                    go.wait(60)
                return labels[number + 1] if number < 50 else labels[-1]

            machine.state(label, to=[*others, labels[-1]])(task)
        return machine

    page, _ = show(large())
    assert page.get_by_role("option").count() == 200
    running = threading.Thread(target=lambda: large().run(store=store))
    running.start()
    try:
        expect(page.locator("[role=option][aria-label^='STATE_40: Running']")).to_have_count(1)
        page.evaluate(
            """() => {
                window.touched = new Set();
                new MutationObserver((all) => all.forEach(({target}) => {
                    const at = (target.nodeType === 1 ? target : target.parentElement)?.closest('[role=option]');
                    if (at) window.touched.add(at);
                })).observe(document.querySelector('.nbflow-drawing'), {subtree: true, childList: true, attributes: true, characterData: true});
            }"""
        )
        page.get_by_role("listbox").focus()
        for key in ("+", "-", "ArrowDown", "ArrowDown", "ArrowUp"):
            page.keyboard.press(key)
        assert page.evaluate("window.touched.size") <= 5  # the one that runs, and where the keyboard was
    finally:
        go.set()
        running.join(60)
    expect(page.locator("[role=option][aria-label^='STATE_199: Completed']")).to_have_count(1)
    assert page.evaluate("window.touched.size") <= 20
