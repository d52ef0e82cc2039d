"""The graph in JupyterLab: alive while a cell runs, and its record where the notebook is not trusted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output
from playwright.sync_api import expect

import nbflow
from nbflow.board.board import Board
from nbflow.board.record import record
from nbflow.store.local import LocalStore
from nbflow.widgets.fsm import asked
from nbflow.widgets.snapshots import answers
from tests.browser.lab_kit import NotebookPage, write_notebook

Show = Callable[..., NotebookPage]

pytestmark = pytest.mark.soak

MACHINE = """
import pathlib, time, nbflow

machine = nbflow.Machine("trip", ["PACK", "FLY", "HOME"], initial="PACK", final={"HOME"})

@machine.state("PACK", to="FLY")
def pack(ctx):
    return "FLY"

@machine.state("FLY", to="HOME")
def fly(ctx):
    while not pathlib.Path("landed").exists():
        time.sleep(0.05)
    return "HOME"
"""
CELLS = ["%load_ext nbflow", MACHINE, "machine", "nbflow.fsm(machine)", "machine.run()"]


def test_a_machine_is_followed_while_its_cell_runs(show: Show, folder: Path) -> None:
    """The picture says where the machine is while the kernel is busy with it, and a click shows the step."""
    notebook = show("trip", *CELLS)
    notebook.run_all(wait=False)
    view = notebook.view(3)
    expect(view.get_by_role("option", name=re.compile("^FLY: Running, current"))).to_have_count(
        1, timeout=60_000
    )
    view.get_by_role("option", name=re.compile("^PACK")).click()
    expect(view.locator(".nbflow-step")).to_contain_text("PACK")
    expect(view.locator(".nbflow-step")).to_contain_text("Completed", timeout=20_000)
    (folder / "landed").touch()
    expect(view.get_by_role("option", name=re.compile("^HOME: Completed, current"))).to_have_count(1)
    notebook.wait_idle()
    expect(notebook.output(2).locator("svg.nbp")).to_have_count(1)
    expect(notebook.output(3).locator(".nbflow-record svg")).not_to_be_visible()
    kept = [output for output in notebook.outputs(3) if "nbflow-record" in str(output.get("data", {}))]
    assert "HOME" in str(kept)


def test_the_record_of_an_untrusted_notebook_says_it_all_in_words(show: Show, folder: Path) -> None:
    """JupyterLab drops the picture of whoever it does not know, and nothing of it is left as loose words."""
    store = LocalStore(folder / ".nbflow")
    machine = nbflow.Machine("light", ["red", "green", "off"], initial="red", final={"off"})
    machine.state("red", to="green")(lambda ctx: "green")
    machine.state("green", to="off")(lambda ctx: "off")
    machine.run(store=store)
    board = Board(store)
    view, _, asks = asked(board, machine)
    snapshot = answers(view, asks)
    board.close()
    path = write_notebook(folder / "foreign.ipynb", "nbflow.fsm(machine)")
    found = nbformat.read(path, as_version=4)
    found.cells[0].outputs = [new_output("display_data", record("fsm", snapshot, at=snapshot["at"]))]
    nbformat.write(found, path)
    notebook = show("foreign")
    output = notebook.output(0)
    expect(output.get_by_role("table").first).to_be_visible()
    expect(output.get_by_text("✔ Completed").first).to_be_visible()
    assert output.locator("svg.nbp").count() == 0
    shown = output.locator(".nbflow-record > div").first
    assert shown.evaluate("(it) => it.getBoundingClientRect().height") < 12
