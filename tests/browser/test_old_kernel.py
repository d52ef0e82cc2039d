"""With ipykernel 6.30, which has no subshells, everything works; what has to wait for the end of a cell says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import lab_kit
from tests.browser.conftest import missing
from tests.browser.lab_kit import NotebookPage, nbflow_cli
from tests.browser.test_dashboard_lab import approve_in, busy_dashboard
from tests.browser.test_main_job import BEHIND, GATE, cells, decide, waiting

Show = Callable[..., NotebookPage]


@pytest.fixture(autouse=True, scope="module")
def _old_kernel() -> None:
    if lab_kit.find_old_kernel() is None:
        missing("There is no ipykernel 6.30 here; `.ci/browser` makes one, or set NBFLOW_OLD_KERNEL.")


def test_it_is_old(show: Show) -> None:
    """The kernel of these tests is the one that is meant."""
    notebook = show("version", "import ipykernel; print(ipykernel.__version__)", kernel="old")
    notebook.run_all()
    assert notebook.text(0).strip() == lab_kit.OLD_KERNEL


def test_a_gate_is_approved(show: Show) -> None:
    """Between cells a click decides at once, and Run All goes on with its feedback."""
    notebook = show("one", *cells(), kernel="old")
    notebook.run_all()
    decide(notebook.view(GATE), "Approve", "fine by me", "web")
    expect(notebook.view(GATE)).to_contain_text("fine by me")
    notebook.run_all()
    assert "fine by me -> ('web',)" in notebook.text(BEHIND)


def test_a_click_while_a_cell_runs_waits_and_says_so(show: Show, folder: Path) -> None:
    """In a dashboard whose kernel is busy the page says that it is done when the cell ends, and then it is done."""
    asking = show("asking", *cells())
    asking.run_all()
    busy = busy_dashboard(show, "old")
    try:
        board = busy.view(1)
        approve_in(board, "in its time")
        expect(board.get_by_text(re.compile("busy")).filter(visible=True).first).to_be_visible()
        assert busy.running() == [2]
        assert waiting(folder) != ""
    finally:
        (folder / "enough").touch()
    busy.wait_idle()
    expect(board.get_by_text("in its time").first).to_be_visible()
    expect(asking.view(GATE)).to_contain_text("in its time")


def test_a_cell_that_waits_takes_a_decision_from_a_terminal(show: Show, folder: Path) -> None:
    """With wait=True a cell that cannot hear clicks still goes on when a terminal decides."""
    notebook = show("one", *cells(", wait=True"), kernel="old")
    notebook.run_all(wait=False)
    expect(notebook.output(GATE)).to_contain_text("Publish to the site?")
    run = waiting(folder)
    assert (
        nbflow_cli(folder, "approve", run, "publish", "--feedback", "by hand", "--select", "web").returncode
        == 0
    )
    notebook.wait_idle()
    assert "by hand -> ('web',)" in notebook.text(BEHIND)
