"""What others wrote is shown as text and never runs, and a store that is broken or gone is said and not a blank box."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab_kit import NotebookPage

Show = Callable[..., NotebookPage]
BOARD = ["import nbflow", "nbflow.dashboard()"]

#: Runs where markup is taken for markup, in whichever way.
EVIL = "<script>window.hacked=1</script><img src=x onerror=\"window.top.hacked=2\"><b id='hacked'>bold</b>"

RUNS = """
import nbflow, pandas as pd
from IPython.display import HTML
EVIL = {evil!r}


@nbflow.durable
def work(text):
    print(text)
    return pd.DataFrame({{text: [text]}})


@nbflow.durable
def text_of(text):
    return text


@nbflow.durable
def fail(text):
    raise ValueError(text)


try:
    with nbflow.run(EVIL, store={store!r}, tags={{"tag": EVIL}}, parameter=EVIL):
        work(EVIL)
        text_of(EVIL)
        nbflow.publish("published", EVIL)
        fail(EVIL)
except ValueError:
    pass

try:
    with nbflow.run("asks", store={store!r}):
        nbflow.gate("gate", EVIL, options=[EVIL], show=[pd.DataFrame({{EVIL: [EVIL]}}), EVIL, {{EVIL: EVIL}}, HTML(EVIL)])
except nbflow.errors.GatePending:
    pass
"""

#: A run that is not finished: its journal is a file of its own.
UNFINISHED = """
import nbflow

@nbflow.durable
def work(n):
    return n

try:
    with nbflow.run("unfinished", store={store!r}):
        for n in range(20):
            work(n)
        nbflow.gate("wait", "Go on?")
except nbflow.errors.GatePending:
    pass
"""


def run_script(folder: Path, source: str) -> None:
    """Run a program over the store of a folder."""
    script = folder / "program.py"
    script.write_text(source.format(evil=EVIL, store=str(folder / ".nbflow")))
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=120)


@pytest.fixture(autouse=True)
def _nothing_ran(lab_page: Page) -> Iterator[None]:
    yield
    assert lab_page.evaluate("() => window.hacked") is None
    assert lab_page.locator("#hacked").count() == 0


def as_text(area: Locator) -> None:
    """Expect the markup to be there, to be read."""
    expect(
        area.get_by_text("<script>window.hacked=1</script>", exact=False).filter(visible=True).first
    ).to_be_visible()


def test_markup_in_every_text_of_a_run(show: Show, folder: Path) -> None:
    """Workflow, tag, parameter, output, printed text, published value and error message: read, and never run."""
    run_script(folder, RUNS)
    notebook = show("board", *BOARD)
    notebook.run_all()
    board = notebook.view(1)
    row = board.get_by_role("row").filter(has_text="Failed")
    as_text(row)
    row.get_by_role("button").first.click()
    as_text(board.get_by_role("heading"))
    as_text(board.locator(".nbflow-facts").first)
    for tab in ("Overview", "Timeline", "Outputs", "Log", "Steps"):
        board.get_by_role("tab", name=tab).click()
        expect(board.get_by_role("tabpanel")).to_be_visible()
    steps = board.get_by_role("table", name="Steps")
    beside = board.locator(".nbflow-beside")
    for name in ("work", "text_of", "fail"):
        steps.get_by_role("button", name=name, exact=True).click()
        expect(beside.get_by_role("heading", name=name)).to_be_visible()
        expect(beside.get_by_text("Reading what is recorded")).to_have_count(0)
        for fold in beside.locator("details > summary").all():
            fold.click()
        as_text(beside)


def test_markup_in_every_text_of_a_gate(show: Show, folder: Path) -> None:
    """Question, option, shown table, text, JSON and HTML, and the feedback that is typed in: read, and never run."""
    run_script(folder, RUNS)
    notebook = show("board", *BOARD)
    notebook.run_all()
    board = notebook.view(1)
    board.get_by_role("navigation", name="nbflow").get_by_role("button", name=re.compile("^Gates")).click()
    board.get_by_role("button", name="Show what it is about").click()
    as_text(board.get_by_role("heading"))
    as_text(board.locator("table"))
    as_text(board.get_by_role("group"))
    for frame in board.locator("iframe").all():
        sandbox = frame.get_attribute("sandbox")
        assert sandbox is not None
        assert "allow-scripts" not in sandbox
    board.get_by_role("textbox", name=re.compile("Feedback")).fill(EVIL)
    board.get_by_role("checkbox", name=re.compile("script")).check()
    board.get_by_role("button", name="Approve", exact=True).click()
    expect(board.get_by_text("Approved").first).to_be_visible()
    as_text(board)


def test_markup_in_a_notebooks_own_gate_and_its_record(show: Show) -> None:
    """A gate in the notebook, its live form and the record beside it, with markup in all its texts."""
    notebook = show(
        "own",
        "%load_ext nbflow\nimport nbflow",
        f"EVIL = {EVIL!r}\nnbflow.gate('gate', EVIL, options=[EVIL], show=[EVIL, {{EVIL: EVIL}}])",
    )
    notebook.run_all()
    as_text(notebook.view(1))
    notebook.save()
    notebook.close()
    again = show("own")
    as_text(again.output(1))


def test_a_corrupt_journal(show: Show, folder: Path) -> None:
    """A run whose journal is damaged is listed as corrupt, opened it says what is wrong and what to do; others work."""
    run_script(folder, UNFINISHED)
    journal = max((folder / ".nbflow" / "runs").glob("*/journal.*"), key=lambda path: path.stat().st_size)
    data = bytearray(journal.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    journal.write_bytes(data)
    notebook = show("board", *BOARD)
    notebook.run_all()
    board = notebook.view(1)
    expect(board).to_contain_text(re.compile("corrupt|check|damaged|doctor", re.IGNORECASE))
    expect(board.get_by_role("navigation", name="nbflow")).to_be_visible()


def test_a_database_that_is_none(show: Show, folder: Path) -> None:
    """A store whose database file is something else: a sentence that says so, in the place of the runs."""
    (folder / ".nbflow" / "store.duckdb").write_bytes(b"not a database " * 4096)
    notebook = show("board", *BOARD)
    notebook.run_all()
    shown = notebook.output(1)
    expect(shown).to_contain_text(re.compile(r"store\.duckdb|database", re.IGNORECASE))


def test_a_store_that_vanishes(show: Show, folder: Path) -> None:
    """The folder of the store is deleted under an open dashboard: the page says so, and still does."""
    run_script(folder, UNFINISHED)
    notebook = show("board", *BOARD)
    notebook.run_all()
    board = notebook.view(1)
    expect(board.get_by_role("button", name="unfinished", exact=True)).to_be_visible()
    shutil.rmtree(folder / ".nbflow")
    expect(board.get_by_role("alert").filter(has_text="is gone")).to_be_visible()
    board.get_by_role("navigation", name="nbflow").get_by_role("button", name="Disk").click()
    expect(board.get_by_role("alert").filter(has_text="is gone").first).to_be_visible()
