"""The pictures of the documentation, taken where they are true: gate, dashboard, graph and timeline in JupyterLab.

`make screenshots` writes them to docs/images; the suite takes them too, to a
folder of its own, and compares nothing but their size.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from PIL import Image
from playwright.sync_api import Locator, expect

from tests.browser.lab_kit import ROOT, Desk, NotebookPage, set_theme
from tests.browser.test_main_job import decide

Show = Callable[..., NotebookPage]

#: Bytes of one picture: they are in the repository.
LARGEST = 200_000


def keep(view: Locator, place: Path) -> None:
    """Save a picture of a view in a palette of 128 colours."""
    view.scroll_into_view_if_needed()
    taken = Image.open(io.BytesIO(view.screenshot()))
    taken.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(place, optimize=True)
    assert 2_000 < place.stat().st_size <= LARGEST
    assert len(taken.getcolors(1 << 24) or ()) > 50, f"{place.name} is empty"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Where the pictures go."""
    place = Path(os.environ.get("NBFLOW_IMAGES") or tmp_path)
    return place if place.is_absolute() else ROOT / place


@pytest.mark.soak
def test_pictures(desk: Desk, folder: Path, images: Path) -> None:
    """The main job, at a fixed size: the gate as it waits, and then the dashboard, its graph and its timeline."""
    notebooks = folder / "reports"
    notebooks.mkdir()
    shutil.copy(ROOT / "notebooks" / "03-review-and-publish.ipynb", notebooks / "review.ipynb")
    path = str((notebooks / "review.ipynb").relative_to(desk.server.root))
    notebook = desk.open(path, width=1240, height=1500, device_scale_factor=1.5)
    notebook.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    ask, below = notebook.number("ask"), notebook.number("dashboard")
    notebook.run_all()
    view = notebook.view(ask)
    expect(view.get_by_role("button", name="Approve", exact=True)).to_be_visible()
    expect(view.locator("img").first).to_be_visible()
    view.get_by_label("page", exact=True).check()
    view.get_by_label("table", exact=True).check()
    view.get_by_role("textbox", name=re.compile("Feedback")).fill("Fine. Say that three airlines are tiny.")
    for theme in ("light", "dark"):
        set_theme(notebook.page, theme)  # type: ignore[arg-type]
        keep(view, images / f"gate-{theme}.png")
    decide(view, "Approve")
    expect(view.get_by_text("Approved").first).to_be_visible()
    notebook.run_all()

    # The folder of a test is of no interest to readers.
    notebook.page.add_style_tag(content=".nbflow-where { visibility: hidden }")
    board = notebook.view(below)
    expect(board.get_by_role("listbox", name=re.compile("review.ipynb"))).to_be_visible()
    for theme in ("dark", "light"):
        set_theme(notebook.page, theme)  # type: ignore[arg-type]
        keep(board, images / f"dashboard-{theme}.png")
    board.get_by_role("tab", name="Timeline").click()
    expect(board.get_by_role("tabpanel")).to_contain_text("compare")
    keep(board, images / "timeline.png")
    notebook.close()


@pytest.mark.soak
def test_picture_of_a_machine(desk: Desk, folder: Path, images: Path) -> None:
    """The machine of the second example after its run: branches, a loop, and states that were never entered."""
    notebook = nbformat.read(ROOT / "notebooks" / "02-training-machine.ipynb", as_version=4)
    last = next(number for number, cell in enumerate(notebook.cells) if cell.id == "train")
    notebook.cells[last + 1 :] = [new_code_cell("nbflow.fsm(training)", id="fsm")]
    nbformat.write(notebook, folder / "training.ipynb")
    path = str((folder / "training.ipynb").relative_to(desk.server.root))
    opened = desk.open(path, width=1240, height=1500, device_scale_factor=1.5)
    opened.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    opened.run_all()
    view = opened.view(opened.number("fsm"))
    expect(view.get_by_role("listbox", name=re.compile("training"))).to_be_visible()
    view.get_by_role("button", name="Fit all into view").click()
    keep(view, images / "fsm.png")
    opened.close()
