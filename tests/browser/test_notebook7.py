"""Notebook 7 shows and does what JupyterLab does."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser import audit
from tests.browser.lab_kit import Frame, NotebookPage, set_theme
from tests.browser.test_main_job import BEHIND, GATE, cells, decide

Show = Callable[..., NotebookPage]


@pytest.fixture(scope="module")
def frame() -> Frame:
    """Notebook 7."""
    return "notebook"


def test_gate_and_dashboard(show: Show) -> None:
    """It stops at the gate, survives the kernel's death, is approved with a click, goes on, and the dashboard tells."""
    notebook = show("one", *cells(), "nbflow.dashboard()")
    notebook.run_all()
    expect(notebook.view(GATE).get_by_role("button", name="Approve", exact=True)).to_be_visible()
    assert not notebook.ran(BEHIND)
    notebook.kill_kernel()
    notebook.run_all()
    assert "restored load" in notebook.text(1)
    decide(notebook.view(GATE), "Approve", "fine by me", "mail")
    expect(notebook.view(GATE)).to_contain_text("fine by me")
    notebook.run_all()
    assert "fine by me -> ('mail',)" in notebook.text(BEHIND)

    board = notebook.view(4)
    board.get_by_role("table", name="Runs").get_by_role("button", name="one.ipynb", exact=True).click()
    expect(board.get_by_role("listbox", name=re.compile("one.ipynb"))).to_be_visible()
    for theme in ("light", "dark"):
        set_theme(notebook.page, theme)  # type: ignore[arg-type]
        assert audit.overlaps(board) == []
        assert audit.too_faint(board) == []
    assert audit.violations(notebook.page) == []
    assert audit.out_of_reach(notebook.page, board) == []

    notebook.reload()
    expect(notebook.output(4).get_by_text("one.ipynb").filter(visible=True).first).to_be_visible()
