"""What stays when the kernel is gone: every view leaves a record in the notebook's file that needs no kernel and no script."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Locator, expect

from tests.browser.lab_kit import Desk, NotebookPage, until
from tests.browser.test_themes import MACHINE

Show = Callable[..., NotebookPage]
CELLS = [
    MACHINE,
    "nbflow.fsm(review)",
    "nbflow.dashboard()",
    """nbflow.gate(
    "publish",
    "Publish the figures of this week?",
    options=["the web page"],
    show=[pd.DataFrame({"city": ["Lyon"]})],
)""",
]
#: What the record of each view says, by cell.
SAYS = {
    1: ["review", "LOAD", "SCORE", "Completed"],
    2: ["kept.ipynb", "Waiting"],
    3: ["Publish the figures of this week?", "Lyon", "the web page"],
}


@pytest.fixture
def saved(show: Show) -> NotebookPage:
    """A notebook that showed a machine, a dashboard and a gate, saved."""
    notebook = show("kept", *CELLS)
    notebook.run_all()
    expect(notebook.view(3).get_by_role("button", name="Approve", exact=True)).to_be_visible()
    says(notebook.view(2), SAYS[2])  # the dashboard was told, too
    notebook.save()
    return notebook


def says(area: Locator, words: list[str]) -> None:
    """Expect every word to be visible."""
    for word in words:
        expect(
            area.get_by_text(re.compile(re.escape(word), re.IGNORECASE)).filter(visible=True).first
        ).to_be_visible()


def test_live_and_record_are_not_shown_both(saved: NotebookPage) -> None:
    """As long as a view is alive its record is hidden; there is one record for each view."""
    for cell in SAYS:
        records = saved.output(cell).locator("[class*=nbflow-record-]")
        assert records.count() >= 1
        expect(records.first).to_be_hidden()


def test_reopened_without_its_kernel(saved: NotebookPage, desk: Desk) -> None:
    """Closed, and opened again with a kernel that knows of nothing and then with none, each view shows its record."""
    saved.close()
    again = desk.open(saved.path, page=saved.page)
    for cell, words in SAYS.items():
        says(again.output(cell), words)
    again.page.evaluate("() => window.jupyterapp.commands.execute('kernelmenu:shutdown').then(() => null)")
    for cell, words in SAYS.items():
        says(again.output(cell), words)
        expect(again.output(cell).get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    again.close()


def test_the_kernel_dies_under_an_open_page(saved: NotebookPage) -> None:
    """Killed, the views stay readable, say that the kernel is gone, and offer nothing that could not be done."""
    saved.kill_kernel()
    view = saved.view(3)
    expect(view).to_contain_text("The kernel is gone")
    expect(view.get_by_role("button", name="Approve", exact=True)).to_be_disabled()
    says(view, SAYS[3])
    says(saved.output(2), SAYS[2])


def test_nbconvert(saved: NotebookPage, desk: Desk, tmp_path: Path) -> None:
    """A page made by nbconvert shows the records, with no script running."""
    notebook = nbformat.read(desk.server.root / saved.path, as_version=4)
    made, _ = HTMLExporter().from_notebook_node(notebook)
    place = tmp_path / "kept.html"
    place.write_text(made)
    page = desk.page(java_script_enabled=False)
    page.goto(place.as_uri(), wait_until="domcontentloaded")
    areas = page.locator(".jp-CodeCell .jp-Cell-outputWrapper")
    for cell, words in SAYS.items():
        says(areas.nth(cell), words)
    assert areas.nth(1).locator("svg").count() >= 1
    desk.close(page)


def test_a_decided_gate_is_recorded_as_decided(show: Show, desk: Desk) -> None:
    """Approved, run on and closed, the notebook's file says who approved and why."""
    notebook = show(
        "decided",
        "%load_ext nbflow\nimport nbflow",
        'decision = nbflow.gate("publish", "Publish?")',
        "%%durable send\nprint(decision.feedback)",
    )
    notebook.run_all()
    view = notebook.view(1)
    view.get_by_role("textbox", name=re.compile("Feedback")).fill("as it is")
    view.get_by_role("button", name="Approve", exact=True).click()
    expect(view).to_contain_text("as it is")
    # While a run moves its record follows some seconds behind.
    until(lambda: "as it is" in str(notebook.outputs(1)), what="the record to say it")
    notebook.save()
    notebook.close()
    again = desk.open(notebook.path, page=notebook.page)
    says(again.output(1), ["approved", "as it is"])
    again.close()
