"""Every view in JupyterLab's light and dark theme, wide and 320 px narrow: nothing overlaps, all can be read and reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser import audit
from tests.browser.lab_kit import Desk, NotebookPage, set_theme, write_notebook

MACHINE = """
%load_ext nbflow
import nbflow
import pandas as pd
from enum import StrEnum, auto


class S(StrEnum):
    LOAD = auto()
    SCORE = auto()
    PUBLISH = auto()
    REJECT = auto()


review = nbflow.Machine("review", S, initial=S.LOAD, final={S.PUBLISH, S.REJECT}, version=1)
tries = []


@review.state(S.LOAD, retries=2)
def load(ctx):
    tries.append(1)
    if len(tries) < 2:
        raise ConnectionError("no route to the warehouse at 10.0.0.7")
    ctx.sales = pd.DataFrame({"city": ["Lyon", "Oslo"], "sold": [120, 80]})
    return S.SCORE


@review.state(S.SCORE, to={S.PUBLISH, S.REJECT})
def score(ctx):
    ctx.mean = float(ctx.sales["sold"].mean())
    return S.PUBLISH


review.run(goal=90)
"""
CELLS = [
    MACHINE,
    "%%durable sales\nsales = pd.DataFrame({'city': ['Lyon', 'Oslo', 'Turku'], 'sold': [120, 80, 44]})\nsales",
    "nbflow.fsm(review)",
    "nbflow.dashboard()",
    """nbflow.gate(
    "publish",
    "Publish the figures of this week?",
    options=["the web page", "the letter"],
    show=[sales, "All cities are in."],
    timeout="2d",
)""",
]
FSM, BOARD, GATE = 2, 3, 4

SIZES = {"wide": (1280, 900), "narrow": (452, 900)}


@pytest.fixture(scope="module")
def room(desk: Desk, lab_page: Page) -> Iterator[NotebookPage]:
    """A notebook with a machine, a graph, a dashboard and a gate that waits."""
    folder = desk.server.root / "themes"
    (folder / ".nbflow").mkdir(parents=True)
    write_notebook(folder / "room.ipynb", *CELLS)
    notebook = desk.open("themes/room.ipynb", page=lab_page)
    notebook.run_all()
    expect(notebook.view(GATE).get_by_role("button", name="Approve", exact=True)).to_be_visible()
    yield notebook
    notebook.close()


def runs(board: Locator) -> None:
    board.get_by_role("navigation", name="nbflow").get_by_role("button", name="Runs").click()
    board.get_by_label("Child runs").check()
    expect(
        board.get_by_role("table", name="Runs").get_by_role("button", name="review", exact=True)
    ).to_be_visible()


def overview(board: Locator) -> None:
    runs(board)
    board.get_by_role("table", name="Runs").get_by_role("button", name="review", exact=True).click()
    board.get_by_role("tab", name="Overview").click()
    expect(board.get_by_role("listbox", name=re.compile("review"))).to_be_visible()


def timeline(board: Locator) -> None:
    overview(board)
    board.get_by_role("tab", name="Timeline").click()
    expect(board.get_by_role("tabpanel")).to_contain_text("score", ignore_case=True)


def step(board: Locator) -> None:
    overview(board)
    board.get_by_role("tab", name="Steps").click()
    board.get_by_role("table", name="Steps").get_by_role(
        "button", name=re.compile("load", re.IGNORECASE)
    ).first.click()
    beside = board.locator(".nbflow-beside")
    expect(beside.get_by_role("heading", name="Attempts")).to_be_visible()
    for fold in beside.locator("details > summary").all():
        fold.click()


def gates(board: Locator) -> None:
    board.get_by_role("navigation", name="nbflow").get_by_role("button", name=re.compile("^Gates")).click()
    expect(board.get_by_text("Publish the figures of this week?").first).to_be_visible()


def disk(board: Locator) -> None:
    board.get_by_role("navigation", name="nbflow").get_by_role("button", name="Disk").click()
    expect(board.get_by_text("room.ipynb").first).to_be_visible()


def nothing(_: Locator) -> None:
    pass


#: Name, cell, and how to get there.
VIEWS: list[tuple[str, int, Callable[[Locator], None]]] = [
    ("gate", GATE, nothing),
    ("fsm", FSM, nothing),
    ("runs", BOARD, runs),
    ("overview", BOARD, overview),
    ("timeline", BOARD, timeline),
    ("step", BOARD, step),
    ("gates", BOARD, gates),
    ("disk", BOARD, disk),
]


def put(page: Page, size: str) -> None:
    """Make the window so wide; narrow, the side bar is closed and the view has 320 px."""
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate(f"() => window.jupyterapp.shell.{'collapseLeft' if size == 'narrow' else 'expandLeft'}()")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view(room: NotebookPage, shots: Path, theme: str, size: str) -> None:
    """No control or text lies over another or sticks out, every text has the contrast of WCAG AA, axe-core finds nothing."""
    set_theme(room.page, theme)  # type: ignore[arg-type]
    put(room.page, size)
    wrong: dict[str, list[str]] = {}
    for name, cell, go in VIEWS:
        view = room.view(cell)
        go(view)
        view.scroll_into_view_if_needed()
        view.screenshot(path=shots / f"{name}-{theme}-{size}.png")
        found = [
            *(f"overlap: {each}" for each in audit.overlaps(view)),
            *(f"too wide: {each}" for each in audit.too_wide(view)),
            *(f"too faint: {each}" for each in audit.too_faint(view)),
        ]
        if size == "wide":
            found += audit.violations(room.page)
        if found:
            wrong[name] = found
    assert wrong == {}
    if size == "narrow":
        assert room.view(GATE).bounding_box()["width"] <= 360  # type: ignore[index]


@pytest.mark.parametrize(("name", "cell", "go"), VIEWS, ids=[name for name, _, _ in VIEWS])
def test_every_control_by_keyboard(
    room: NotebookPage, name: str, cell: int, go: Callable[[Locator], None]
) -> None:
    """Tab reaches every control of the view, arrow keys those within a group, and one sees where the focus is."""
    set_theme(room.page, "light")
    put(room.page, "wide")
    view = room.view(cell)
    go(view)
    assert audit.out_of_reach(room.page, view) == []
    assert audit.invisible_focus(room.page, view) == []


FAULTS = """
<div class="nbflow" style="width: 200px; position: relative; background: white">
  <button style="position: absolute; left: 0">one</button>
  <button style="position: absolute; left: 9px">two</button>
  <p style="margin-top: 3em; color: #999">faint</p>
  <span role="button" tabindex="-1" style="margin-left: 190px">far</span>
  <button style="outline: none" aria-label=""><img src="data:," width="9" height="9"></button>
</div>
"""


def test_the_judges_see_faults(desk: Desk) -> None:
    """A page with one fault of each kind is found wanting in each: the judges above can fail."""
    page = desk.page()
    page.set_content(FAULTS)
    view = page.locator(".nbflow")
    judged = [
        audit.overlaps(view),
        audit.too_faint(view),
        audit.too_wide(view),
        audit.out_of_reach(page, view),
        audit.invisible_focus(page, view),
        audit.violations(page),
    ]
    assert [bool(found) for found in judged] == [True] * 6, judged
    desk.close(page)


def test_motion_is_reduced_where_a_person_wants_it(room: NotebookPage) -> None:
    """With prefers-reduced-motion nothing in a view moves by itself."""
    room.page.emulate_media(reduced_motion="reduce")
    moving = room.page.evaluate(
        "() => document.getAnimations().filter((one) => one.effect?.target?.closest?.('.nbflow')"
        " && one.playState === 'running' && one.effect.getComputedTiming().duration > 10).length"
    )
    assert moving == 0
