"""The dashboard on a plain page, over a real board: found by eye and ear, by mouse and keys, in any width and theme."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

import nbflow
from nbflow.board.board import Board
from nbflow.store.local import open_store
from tests.browser import audit
from tests.browser.board_page import BoardServer, serve
from tests.browser.lab_kit import until

ASKS: dict[str, tuple[str, dict[str, Any]]] = {"runs": ("runs", {"limit": 100}), "gates": ("gates", {})}

HOSTILE = "<script>window.hacked = 1</script>"
PICTURE = "<img src=x onerror='window.hacked = 1'>"

PROGRAM = """
import sys
import pandas as pd
import nbflow
from nbflow.core.errors import GatePending

place, hostile, picture = sys.argv[1:]
tries = []

@nbflow.durable
def load(rows):
    return pd.DataFrame({"city": [f"city {n}" for n in range(rows)], "visitors": range(rows)})

@nbflow.durable(retries=2, delay=0.05)
def send(to):
    tries.append(to)
    if len(tries) % 3:
        raise ConnectionError(picture)
    return to

@nbflow.durable
def check(table):
    raise ValueError(hostile)

for number in range(12):
    with nbflow.run(f"report-{number % 2}", store=place, tags={"team": "red" if number % 3 else "blue"}, day=number):
        load(4)
try:
    with nbflow.run("train", store=place, rate=0.5, note=picture):
        load(120), send("ana"), check(1)
except ValueError:
    pass
with nbflow.run(hostile, store=place, tags={"note": picture}):
    load(2)
try:
    with nbflow.run("publish", store=place):
        nbflow.gate("site", f"Publish {hostile}?", options=["web", "mail"], show=[load(3)])
except GatePending:
    pass
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, _own_data_dir: Path) -> Path:
    """A store of fifteen runs: twelve reports, a failed one, one with a hostile name, one that waits at a gate."""
    place = tmp_path_factory.mktemp("recorded") / ".nbflow"
    arguments = [sys.executable, "-c", PROGRAM, str(place), HOSTILE, PICTURE]
    subprocess.run(arguments, check=True, capture_output=True, timeout=120)
    return place


class Opened:
    """A page over a board, and what is behind it."""

    def __init__(self, page: Page, server: BoardServer, board: Any) -> None:
        self.page, self.server, self.board = page, server, board
        self.said: list[str] = []
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("console", lambda line: self.said.append(line.text) if line.type == "error" else None)

    @property
    def view(self) -> Locator:
        """The view itself."""
        return self.page.locator(".nbflow").first

    def load(self, theme: str = "light") -> Opened:
        """Open the page, or open it anew."""
        self.page.goto(f"{self.server.url}/?{theme}")
        expect(self.page.locator("body[data-ready]")).to_be_attached()
        return self

    def names(self) -> list[str]:
        """The workflows in sight, from top to bottom."""
        return self.view.locator(".nbflow-open").all_inner_texts()

    def run(self, name: str) -> Opened:
        """Click on the first run of a workflow and wait for its page."""
        self.view.get_by_role("table", name="Runs").get_by_role("button", name=name, exact=True).first.click()
        expect(self.view.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(self.view.get_by_text("Reading the run…")).to_have_count(0)
        return self

    def tab(self, name: str) -> Opened:
        """Choose a tab of a run."""
        self.view.get_by_role("tab", name=name).click()
        return self

    def button(self, name: str) -> Locator:
        """A button by its exact name."""
        return self.view.get_by_role("button", name=name, exact=True)


Open = Callable[..., Opened]


@pytest.fixture
def place(recorded: Path, tmp_path: Path) -> Path:
    """A copy of the recorded store."""
    return Path(shutil.copytree(recorded, tmp_path / "copy" / ".nbflow"))


@pytest.fixture
def show(browser: Browser, place: Path) -> Iterator[Open]:
    """Open a dashboard: over a board that is given, or over one of this test's store."""
    with ExitStack() as stack:

        def start(
            board: Any = None,
            *,
            width: int = 1000,
            height: int = 800,
            about: Any = None,
            asks: Any = None,
            **options: Any,
        ) -> Opened:
            if board is None:
                board = Board(stack.enter_context(closing(open_store(place))))
                stack.callback(board.close)
            server = stack.enter_context(
                serve(board, "dashboard", {"record": "r1", **(about or {})}, asks or ASKS)
            )
            page = browser.new_page(viewport={"width": width, "height": height}, **options)
            page.set_default_timeout(15_000)
            stack.callback(page.close)
            return Opened(page, server, board).load()

        yield start


# --- what anybody can see ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 1600])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_of_it_can_be_read_and_reached(show: Open, theme: str, width: int, shots: Path) -> None:
    """In both themes, from 320 px to wide: axe finds nothing serious, texts have contrast, nothing overlaps or sticks out."""
    seen = show(width=width).load(theme)
    page, view = seen.page, seen.view

    def judge(name: str) -> dict[str, list[str]]:
        page.screenshot(path=shots / f"dashboard-{name}-{theme}-{width}.png")
        found = {
            "axe": audit.violations(page),
            "faint": audit.too_faint(view),
            "over": audit.overlaps(view),
            "wide": audit.too_wide(view),
        }
        return {f"{name} {kind}": what for kind, what in found.items() if what}

    expect(view.get_by_text("15 runs", exact=True)).to_be_visible()
    found = judge("runs")
    seen.run("train")
    for tab in ("Overview", "Timeline", "Steps", "Outputs", "Log"):
        seen.tab(tab)
        found |= judge(tab.lower())
    seen.tab("Steps").button("check").click()
    expect(view.get_by_text("Traceback (most recent call last)")).to_be_visible()
    found |= judge("step")
    seen.button("Disk").click()
    expect(view.get_by_text("Largest unfinished runs").first).to_be_visible()
    found |= judge("disk")
    assert found == {}
    assert seen.said == []


def test_every_control_is_reached_with_tab_and_shows_it(show: Open) -> None:
    """Tab comes to every control of the list and of a run's page, and each that has the focus looks so."""
    seen = show(height=500)
    expect(seen.view.get_by_text("15 runs", exact=True)).to_be_visible()
    assert audit.out_of_reach(seen.page, seen.view) == []
    assert audit.invisible_focus(seen.page, seen.view) == []
    seen.run("train").tab("Steps").button("check").click()
    expect(seen.view.get_by_text("Traceback (most recent call last)")).to_be_visible()
    assert audit.out_of_reach(seen.page, seen.view) == []


def test_hostile_names_are_text(show: Open) -> None:
    """Names, tags, parameters, errors and questions that look like HTML are shown as they are and do nothing."""
    seen = show(width=1600)
    expect(seen.button(HOSTILE)).to_be_visible()
    expect(seen.view.get_by_text(f"note: {PICTURE}")).to_be_visible()
    seen.run("train")
    expect(seen.view.get_by_text(f"ValueError: {HOSTILE}").first).to_be_visible()
    for tab in ("Timeline", "Steps", "Outputs", "Log"):
        seen.tab(tab)
    seen.tab("Steps").button("check").click()
    expect(seen.view.get_by_text("Traceback (most recent call last)")).to_be_visible()
    seen.view.locator("[data-part=gates]").click()
    expect(seen.view.get_by_text(f"Publish {HOSTILE}?").first).to_be_visible()
    assert seen.page.evaluate("window.hacked") is None
    assert seen.view.locator("img, script").count() == 0


# --- finding runs -----------------------------------------------------------------------------------------


def test_runs_are_filtered(show: Open) -> None:
    """Words, workflow, tag and states narrow the list down, the chips count what they would show, and all come back."""
    seen = show()
    view = seen.view
    view.get_by_role("searchbox").fill("traIN")
    expect(view.get_by_text("1 run found")).to_be_visible()
    assert seen.names() == ["train"]
    view.get_by_role("searchbox").fill("nothing like this")
    expect(view.get_by_text("No run matches these filters.")).to_be_visible()
    seen.button("Show all").click()
    expect(view.get_by_text("15 runs", exact=True)).to_be_visible()
    view.get_by_role("combobox", name="Workflow").select_option("report-1")
    expect(view.get_by_text("6 runs found")).to_be_visible()
    view.get_by_role("combobox", name="Tag").select_option("team=blue")
    expect(view.get_by_text("2 runs found")).to_be_visible()
    seen.button("Show all").click()
    chip = view.get_by_role("button", name="Failed: 1 run", exact=True)
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    expect(view.get_by_text("1 run found")).to_be_visible()
    view.get_by_role("combobox", name="Started").select_option("3600")
    expect(view.get_by_text("1 run found")).to_be_visible()


def test_runs_are_sorted_by_keyboard(show: Open) -> None:
    """A column's head sorts by Enter, once more the other way, and says how it is sorted."""
    seen = show()
    head = seen.view.get_by_role("columnheader", name="Workflow")
    expect(seen.view.get_by_role("columnheader", name="Started")).to_have_attribute("aria-sort", "descending")
    head.get_by_role("button").focus()
    seen.page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    until(lambda: seen.names() == sorted(seen.names(), key=str.casefold), what="sorted")
    seen.page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    until(lambda: seen.names()[0] == "train", what="the other way")
    expect(head.get_by_role("button")).to_be_focused()


class Many:
    """Ten thousand runs that nobody has recorded."""

    def __init__(self, total: int = 10_000) -> None:
        self.total = total

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer pages of runs, and what else a dashboard asks."""
        params = params or {}
        if method == "watch":
            return {"runs": self.page(params["runs"])} if params.get("runs") else {}
        return self.page(params) if method == "runs" else {"rows": []} if method == "gates" else {}

    def page(self, params: dict[str, Any]) -> dict[str, Any]:
        """Some rows."""
        first, limit = params.get("offset", 0), params.get("limit", 50)
        rows = [self.row(number) for number in range(first, min(first + limit, self.total))]
        return {
            "rows": rows,
            "total": self.total,
            "counts": {"completed": self.total},
            "workflows": [],
            "tags": {},
            "busy": None,
        }

    def row(self, number: int) -> dict[str, Any]:
        """One run."""
        return {
            "run": f"{number:08}-0000", "workflow": f"flow-{number}", "kind": "script", "state": "completed",
            "created": time.time() - number, "updated": 0, "finished": 0, "seconds": 1.0, "attempts": 1, "steps": 3,
            "tags": {}, "params": {}, "error": "", "parent": None, "forked": None, "gates": 0, "owner": None,
            "current": False,
        }  # fmt: skip

    def listen(self, view: str, push: Any) -> None:
        """Nothing ever happens."""


def test_ten_thousand_runs_scroll(show: Open) -> None:
    """Of 10,000 runs only those in sight are in the page; any place is reached by scrolling, and no frame takes long."""
    seen = show(Many())
    expect(seen.view.get_by_text("10,000 runs", exact=True)).to_be_visible()
    table = seen.view.get_by_role("table", name="Runs")
    expect(table).to_have_attribute("aria-rowcount", "10001")
    box = seen.view.locator(".nbflow-scroll").first
    jank = box.evaluate("""async (box) => {
        const frames = [];
        let before = performance.now();
        for (let step = 0; step < 60; step += 1) {
            box.scrollTop += 700;
            await new Promise(requestAnimationFrame);
            const now = performance.now();
            frames.push(now - before);
            before = now;
        }
        return {median: frames.sort((a, b) => a - b)[30], rows: box.querySelectorAll("tbody tr").length};
    }""")
    assert jank["rows"] < 60
    idle = seen.page.evaluate("""async () => {
        const frames = [];
        let before = performance.now();
        for (let step = 0; step < 30; step += 1) {
            await new Promise(requestAnimationFrame);
            frames.push(performance.now() - before);
            before = performance.now();
        }
        return frames.sort((a, b) => a - b)[15];
    }""")
    assert jank["median"] < 4 * idle + 20, f"scrolling paints as often as doing nothing does: {jank}, {idle}"
    box.evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    expect(seen.button("flow-9999")).to_be_visible()
    last = seen.view.get_by_role("row").filter(has_text="flow-9999")
    expect(last).to_have_attribute("aria-rowindex", "10001")
    seen.button("flow-9999").focus()
    seen.page.keyboard.press("ArrowUp")
    expect(seen.button("flow-9998")).to_be_focused()


def test_arrow_keys_go_through_the_rows(show: Open) -> None:
    """The arrow keys go from row to row and bring them into sight; Enter opens the run, and the way back is kept."""
    seen = show()
    expect(seen.view.get_by_text("15 runs", exact=True)).to_be_visible()
    names = seen.names()
    seen.view.locator(".nbflow-open").first.focus()
    for _ in range(2):
        seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    expect(seen.view.get_by_role("heading", name=names[2])).to_be_focused()
    seen.button("← All runs").click()
    expect(seen.view.locator(".nbflow-open").nth(2)).to_be_focused()


# --- live -------------------------------------------------------------------------------------------------


def test_rows_change_where_they_stand(show: Open) -> None:
    """A run that begins and ends elsewhere comes into the list by itself; the focus stays on the row that had it."""
    seen = show()
    expect(seen.view.get_by_text("15 runs", exact=True)).to_be_visible()
    focused = seen.button("train")
    focused.focus()
    with nbflow.run("from elsewhere", store=seen.board.store.root):
        row = seen.view.get_by_role("row").filter(has_text="from elsewhere")
        expect(row.get_by_text("Running")).to_be_visible()
        expect(focused).to_be_focused()
    expect(row.get_by_text("Completed")).to_be_visible()
    expect(focused).to_be_focused()
    expect(seen.view.get_by_text("16 runs", exact=True)).to_be_visible()


def test_an_open_run_is_followed(show: Open) -> None:
    """The page of a run shows each step as it starts and ends, with what was open left as it is."""
    seen = show()

    @nbflow.durable(name="first")
    def first() -> int:
        return 1

    @nbflow.durable(name="second")
    def second() -> int:
        return 2

    with nbflow.run("follow me", store=seen.board.store.root):
        first()
        seen.run("follow me").tab("Steps")
        seen.button("first").click()
        step = seen.view.get_by_role("region", name="first")
        expect(step.get_by_text("Recorded (1)")).to_be_visible()
        second()
        expect(seen.button("second")).to_be_visible()
        expect(step).to_be_visible()
    expect(seen.view.locator(".nbflow-head").get_by_text("Completed")).to_be_visible()
    expect(step).to_be_visible()


def test_a_busy_kernel_is_said(show: Open) -> None:
    """A question that is not answered within a second has a sentence, which goes when the answer comes."""
    seen = show()
    seen.server.hold()
    seen.button("Disk").click()
    busy = seen.view.get_by_text("The kernel is busy: if a cell runs, this is done when it ends.")
    expect(busy).to_be_visible()
    seen.server.free.set()
    expect(seen.view.get_by_text("Largest unfinished runs").first).to_be_visible()
    expect(busy).to_be_hidden()


def test_a_kernel_that_is_gone_is_said(show: Open) -> None:
    """When the kernel is gone the page says how things stood and when, and offers nothing that cannot be done."""
    seen = show().run("train")
    expect(seen.button("Cancel run")).to_be_visible()
    seen.page.evaluate("window.kill()")
    expect(seen.view.get_by_text("The kernel is gone: this is how things stood at")).to_be_visible()
    expect(seen.button("Cancel run")).to_have_count(0)
    expect(seen.view.get_by_role("heading", name="train", exact=True)).to_be_visible()


def test_a_store_that_vanishes_is_said(show: Open) -> None:
    """A store that is removed under an open page has a sentence above what was last known; nothing goes blank."""
    seen = show()
    expect(seen.view.get_by_text("15 runs", exact=True)).to_be_visible()
    root = seen.board.store.root
    root.rename(root.with_name("away"))
    expect(seen.view.get_by_role("alert").filter(has_text="is gone")).to_be_visible()
    expect(seen.button("train")).to_be_visible()
    root.with_name("away").rename(root)
    expect(seen.view.get_by_role("alert").filter(has_text="is gone")).to_be_hidden()


def test_a_corrupt_run_is_listed_and_said(show: Open, place: Path) -> None:
    """A run whose journal was altered is in the list as corrupt, and its page says what is wrong with it."""
    journal = next((place / "runs").glob("*/journal.*"))
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 0xFF
    journal.write_bytes(data)
    seen = show()
    expect(seen.view.get_by_text("Corrupt").first).to_be_visible()
    row = seen.view.get_by_role("row").filter(has_text="Corrupt").first
    row.locator(".nbflow-open").click()
    expect(seen.view.get_by_role("alert").filter(has_text=journal.parent.name[:8]).first).to_be_visible()


def test_a_reload_comes_back_to_the_same_place(show: Open) -> None:
    """A page that is loaded anew shows the run and the tab that it showed, and the filters that were chosen."""
    seen = show()
    seen.view.get_by_role("searchbox").fill("train")
    expect(seen.view.get_by_text("1 run found")).to_be_visible()
    seen.run("train").tab("Log")
    seen.load()
    expect(seen.view.get_by_role("tab", name="Log")).to_have_attribute("aria-selected", "true")
    seen.button("← All runs").click()
    expect(seen.view.get_by_text("1 run found")).to_be_visible()


def test_the_record_is_hidden_while_the_view_lives(show: Open) -> None:
    """The static record is out of sight as long as there is a live view of the same thing, and comes back after it."""
    seen = show()
    seen.page.evaluate("""() => {
        const record = document.createElement("div");
        record.className = "nbflow-record-r1";
        record.textContent = "how it stood";
        document.body.append(record);
    }""")
    expect(seen.page.get_by_text("how it stood")).to_be_hidden()
    seen.page.evaluate("window.down()")
    expect(seen.page.get_by_text("how it stood")).to_be_visible()


# --- one run ----------------------------------------------------------------------------------------------


def test_a_step_is_opened_by_keyboard(show: Open) -> None:
    """Tabs turn with the arrow keys; a step opens with Enter, shows error and attempts, and Escape goes back to its row."""
    seen = show().run("train")
    seen.view.get_by_role("tab", name="Overview").focus()
    for _ in range(2):
        seen.page.keyboard.press("ArrowRight")
    expect(seen.view.get_by_role("tab", name="Steps")).to_be_focused()
    opener = seen.button("send")
    opener.focus()
    seen.page.keyboard.press("Enter")
    step = seen.view.get_by_role("region", name="send")
    expect(step.get_by_role("table").get_by_role("row")).to_have_count(4)
    expect(step.get_by_text("ConnectionError").first).to_be_visible()
    seen.page.keyboard.press("Escape")
    expect(step).to_have_count(0)
    expect(opener).to_be_focused()


def test_outputs_are_paged(show: Open) -> None:
    """A recorded frame is shown as a table of fifty rows, and the next ones come when asked for."""
    seen = show().run("train").tab("Outputs")
    seen.view.locator("summary", has_text="load").click()
    seen.view.locator("summary", has_text="DataFrame").click()
    expect(seen.view.get_by_text("Rows 1–50 of 120, 2 columns")).to_be_visible()
    seen.button("Next rows").click()
    expect(seen.view.get_by_role("cell", name="city 50", exact=True)).to_be_visible()
    seen.button("Next rows").click()
    expect(seen.view.get_by_text("Rows 101–120 of 120")).to_be_visible()
    expect(seen.button("Next rows")).to_be_disabled()


def test_the_timeline_zooms_by_keyboard(show: Open) -> None:
    """The timeline has a bar for each step and a mark for each failed try; keys zoom, move and fit it."""
    seen = show().run("train").tab("Timeline")
    line = seen.view.get_by_role("img", name="send: Completed")
    expect(line).to_be_visible()
    assert line.locator(".nbflow-tick").count() == 2
    assert line.locator(".nbflow-hatched").count() == 2
    said = seen.view.locator(".nbflow-timeline [role=status]")
    expect(said).to_contain_text("All:")
    seen.button("load").focus()
    seen.page.keyboard.press("+")
    expect(said).to_contain_text(" to ")
    before = said.inner_text()
    seen.page.keyboard.press("+")
    until(lambda: said.inner_text() != before, what="zoomed further")
    seen.page.keyboard.press("0")
    expect(said).to_contain_text("All:")


def test_deleting_asks_with_the_name_of_the_run(show: Open) -> None:
    """Deleting names the run and what is lost, keeps the focus inside the question, and does nothing on Escape."""
    seen = show().run("train")
    button = seen.button("Delete")
    button.click()
    dialog = seen.view.get_by_role("dialog")
    expect(dialog).to_contain_text("of train?")
    expect(dialog).to_contain_text("cannot be undone")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    for _ in range(5):
        seen.page.keyboard.press("Tab")
        assert dialog.evaluate("(dialog) => dialog.contains(document.activeElement)")
    assert audit.violations(seen.page) == []
    seen.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    assert [method for method, _ in seen.server.asked if method == "act"] == []
    button.click()
    dialog.get_by_role("button", name="Delete run").click()
    expect(seen.view.get_by_text("14 runs", exact=True)).to_be_visible()
    expect(seen.button("train")).to_have_count(0)


def test_an_error_is_shown_where_the_click_was(show: Open) -> None:
    """An action that is refused leaves its question open, with the reason beside the button, and can be tried again."""
    seen = show().run("train")
    run = next(row["run"] for row in seen.board.ask("runs", {"text": "train"})["rows"])
    seen.button("Cancel run").click()
    dialog = seen.view.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("wrong data")
    shutil.move(seen.board.store.root / "runs" / run, seen.board.store.root / "away")
    dialog.get_by_role("button", name="Cancel run").click()
    expect(dialog.get_by_role("alert")).to_contain_text(run[:8])
    expect(dialog.get_by_role("button", name="Cancel run")).to_be_enabled()
    shutil.move(seen.board.store.root / "away", seen.board.store.root / "runs" / run)
    dialog.get_by_role("button", name="Cancel run").click()
    expect(dialog).to_have_count(0)
    expect(seen.view.locator(".nbflow-said")).to_contain_text("is cancelled")
    expect(seen.view.locator(".nbflow-head").get_by_text("Cancelled")).to_be_visible()


def test_what_cannot_be_done_says_why(show: Open) -> None:
    """A button that would be refused says why instead of asking."""
    seen = show().run("report-1")
    button = seen.button("Cancel run")
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)  # it is no dead control: it has the focus, and an answer
    expect(seen.view.get_by_text("The run is completed, and final.")).to_be_visible()
    expect(seen.view.get_by_role("dialog")).to_have_count(0)


def test_a_fork_leads_to_the_new_run(show: Open) -> None:
    """Forking at a step says what came of it, and a link leads to the new run."""
    seen = show().run("train").tab("Steps")
    seen.button("check").click()
    seen.button("Fork from here").click()
    seen.view.get_by_role("dialog").get_by_role("button", name="Fork").click()
    seen.view.get_by_role("button", name="Open run").click()
    expect(seen.view.get_by_text("Forked from")).to_be_visible()


def test_a_gate_is_decided(show: Open) -> None:
    """A gate that waits is counted, shown with what it shows, and decided; the decision is in the run's inbox."""
    seen = show()
    seen.view.locator("[data-part=gates]").click()
    card = seen.view.get_by_role("listitem").filter(has_text="Publish")
    card.get_by_label("web").check()
    card.get_by_role("button", name="Approve").click()
    until(lambda: seen.board.ask("gates", {})["rows"][0]["state"] == "sent", what="decided")
    decision = seen.board.ask("gates", {})["rows"][0]["decision"]
    assert (decision["approved"], decision["selections"], decision["via"]) == (True, ["web"], "dashboard")


def test_recorded_html_can_do_nothing(show: Open) -> None:
    """Recorded HTML is shown in a frame without scripts, without network and without the page."""
    seen = show()
    seen.page.evaluate("""async () => {
        const {exhibit} = await import("/static/exhibit.js");
        document.querySelector(".nbflow").append(exhibit({kind: "html",
            html: "<p>recorded</p><script>parent.hacked = 1</script><img src=x onerror='parent.hacked = 1'>"}));
    }""")
    frame = seen.page.frame_locator("iframe")
    expect(frame.get_by_text("recorded")).to_be_visible()
    assert seen.page.locator("iframe").get_attribute("sandbox") == ""
    assert seen.page.evaluate("window.hacked") is None


def test_nothing_moves_for_those_who_want_it_still(show: Open) -> None:
    """With reduced motion wanted nothing is animated."""
    seen = show(reduced_motion="reduce").run("train")
    moving = seen.view.evaluate("""(view) => [...view.querySelectorAll("*")].filter((one) => {
        const style = getComputedStyle(one);
        return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
    }).length""")
    assert moving == 0


def test_an_empty_store_says_how_to_begin(show: Open, tmp_path: Path) -> None:
    """Where nothing is recorded the page says how a run comes to be."""
    with closing(open_store(tmp_path / "new" / ".nbflow")) as store:
        board = Board(store)
        seen = show(board)
        expect(seen.view.get_by_text("No run is recorded here yet.")).to_be_visible()
        seen.view.locator("[data-part=gates]").click()
        expect(seen.view.get_by_text("No gate waits for a decision.")).to_be_visible()
        board.close()
