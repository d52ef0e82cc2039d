"""A notebook stops at a gate, and goes on when somebody has decided: clicked through in JupyterLab as a user does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab_kit import ROOT, Desk, NotebookPage, nbflow_cli, until

NOTEBOOK = ROOT / "notebooks" / "03-review-and-publish.ipynb"
SECOND = 1000

Show = Callable[..., NotebookPage]

ASKS = 'decision = nbflow.gate("publish", "Publish to the site?", options=["web", "mail"]{more})'


def cells(more: str = "", *, text: str = "Publish to the site?") -> list[str]:
    """A notebook with a cell before its gate and one behind it."""
    return [
        "%load_ext nbflow\nimport nbflow",
        "%%durable load\nimport os\nprint('loaded by', os.getpid())\nrows = 3",
        ASKS.format(more=more).replace("Publish to the site?", text),
        "%%durable send\nprint(f'{decision.feedback} -> {decision.selections} by {decision.by}', rows)",
    ]


GATE, BEHIND = 2, 3


def waiting(folder: Path) -> str:
    """Return the run whose gate a terminal lists as waiting."""
    (gate,) = json.loads(nbflow_cli(folder, "gates", "--json").stdout)["gates"]
    return str(gate["run"])


def decide(view: Locator, word: str, feedback: str = "", *options: str) -> None:
    """Fill in a gate's form and press one of its buttons."""
    for option in options:
        view.get_by_label(option, exact=True).check()
    if feedback:
        view.get_by_role("textbox", name=re.compile("Feedback")).fill(feedback)
    view.get_by_role("button", name=word, exact=True).click()


def test_the_main_job_with_the_kernel_killed_between_gate_and_approval(show: Show, folder: Path) -> None:
    """The notebook stops at the gate, which shows plot, table and options; killed, run again and approved it
    publishes what was selected, with the feedback; nothing before the gate is computed twice; the dashboard shows it.
    """
    shutil.copy(NOTEBOOK, folder / "review.ipynb")
    notebook = show("review")
    ask, load, publish, below = map(notebook.number, ("ask", "load", "publish", "dashboard"))
    notebook.run_all()

    view = notebook.view(ask)
    expect(view.get_by_text("May this go out to our readers", exact=False).first).to_be_visible()
    expect(view.locator("img").first).to_be_visible()
    expect(view.get_by_role("cell", name="Delta Air Lines Inc.").first).to_be_visible()
    expect(view.get_by_label("table", exact=True)).to_be_visible()
    assert "Traceback" not in notebook.text(ask)
    assert [notebook.ran(number) for number in (ask, publish, below)] == [True, False, False]

    notebook.kill_kernel()
    notebook.run_all()
    assert "restored load" in notebook.text(load)
    decide(notebook.view(ask), "Approve", "Three airlines are tiny.", "table", "picture")
    expect(notebook.view(ask)).to_contain_text("Three airlines are tiny.")
    expect(notebook.view(ask).get_by_text("Approved").first).to_be_visible()

    notebook.run_all()
    assert "approved: Three airlines are tiny." in notebook.text(publish)
    place = folder / "published" / "punctuality"
    assert sorted(path.name for path in place.iterdir()) == [
        "about.json",
        "punctuality.csv",
        "punctuality.png",
    ]
    assert "Three airlines are tiny." in json.loads((place / "about.json").read_text())["note"]

    dashboard = notebook.view(below)
    expect(dashboard.get_by_role("heading", name="review.ipynb")).to_be_visible()
    graph = dashboard.get_by_role("listbox", name=re.compile("review.ipynb"))
    for step in ("load", "compare", "draw", "publish", "release"):
        expect(graph.get_by_text(step, exact=True).first).to_be_visible()
    dashboard.get_by_role("tab", name="Steps").click()
    gate = dashboard.get_by_role("table", name="Steps").get_by_role("row").filter(has_text="gate")
    gate.filter(has_text="Completed").get_by_role("button", name="publish").click()
    expect(dashboard.locator(".nbflow-beside")).to_contain_text("Three airlines are tiny.")
    dashboard.get_by_role("button", name="All runs").click()
    dashboard.get_by_label("Child runs").check()
    expect(
        dashboard.get_by_role("table", name="Runs").get_by_role("button", name="publishing")
    ).to_be_visible()


def test_decided_in_a_terminal_while_the_notebook_is_closed(show: Show, folder: Path, desk: Desk) -> None:
    """`nbflow approve` decides while notebook and kernel are gone; opened again, Run All goes on with its feedback."""
    notebook = show("one", *cells())
    notebook.run_all()
    expect(notebook.view(GATE).get_by_role("button", name="Approve", exact=True)).to_be_visible()
    run = waiting(folder)
    notebook.close()

    said = nbflow_cli(folder, "approve", run, "publish", "--feedback", "from afar", "--select", "mail")
    assert (said.returncode, said.stderr) == (0, "")

    again = show("one")
    again.run_all()
    assert "from afar -> ('mail',)" in again.text(BEHIND)
    expect(again.output(GATE)).not_to_contain_text("Traceback")


def test_decided_in_a_terminal_while_the_page_is_open(show: Show, folder: Path) -> None:
    """A page that shows the gate shows a terminal's decision within two seconds, with who, why and what."""
    notebook = show("one", *cells())
    notebook.run_all()
    view = notebook.view(GATE)
    expect(view.get_by_role("button", name="Approve", exact=True)).to_be_visible()
    run = waiting(folder)
    said = nbflow_cli(folder, "approve", run, "publish", "--feedback", "looks fine", "--select", "web")
    assert (said.returncode, said.stderr) == (0, "")
    expect(view.get_by_text("looks fine").first).to_be_visible(timeout=2 * SECOND)
    expect(view.get_by_text("in a terminal").first).to_be_visible()
    expect(view.get_by_role("button", name="Approve", exact=True)).to_have_count(0)


def test_two_pages_show_one_gate(show: Show, desk: Desk) -> None:
    """Decided in one page, the other one turns into the record by itself; there is nothing left to press."""
    notebook = show("one", *cells())
    notebook.run_all()
    notebook.save()
    other = desk.open(notebook.path)
    expect(other.view(GATE).get_by_role("button", name="Approve", exact=True)).to_be_visible()
    decide(notebook.view(GATE), "Approve", "from the first page", "web")
    for page in (notebook, other):
        expect(page.view(GATE)).to_contain_text("from the first page")
        expect(page.view(GATE).get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    desk.close(other.page)


def test_two_pages_decide_at_once(show: Show, desk: Desk) -> None:
    """Pressed in both pages at the same moment one decision counts, and both pages show that one."""
    notebook = show("one", *cells())
    notebook.run_all()
    notebook.save()
    other = desk.open(notebook.path)
    for page, word in ((notebook, "first"), (other, "second")):
        view = page.view(GATE)
        view.get_by_role("textbox", name=re.compile("Feedback")).fill(f"the {word} page")
    # No round trip between the two clicks.
    for page in (notebook, other):
        page.view(GATE).get_by_role("button", name="Approve", exact=True).evaluate(
            "(button) => { setTimeout(() => button.click(), 50); }"
        )
    for page in (notebook, other):
        expect(page.view(GATE).get_by_text("Approved").first).to_be_visible()
    decided = [
        re.findall(r"the (first|second) page", page.view(GATE).locator(".nbflow-gate-feedback").inner_text())
        for page in (notebook, other)
    ]
    assert decided[0] == decided[1]
    notebook.run_all()
    assert f"the {decided[0][0]} page" in notebook.text(BEHIND)
    desk.close(other.page)


def test_rejected(show: Show) -> None:
    """A rejection ends the notebook at the gate with the feedback, and stays one however often it is run."""
    notebook = show("one", *cells())
    notebook.run_all()
    decide(notebook.view(GATE), "Reject", "the figures of May are missing")
    expect(notebook.view(GATE).get_by_text("Rejected").first).to_be_visible()
    for _ in range(2):
        notebook.run_all()
        assert "GateRejected" in notebook.text(GATE)
        assert "the figures of May are missing" in notebook.text(GATE)
        assert not notebook.ran(BEHIND)
    assert notebook.view(GATE).get_by_role("button", name="Approve", exact=True).count() == 0


def test_nobody_decides_in_time(show: Show) -> None:
    """When the time is over the page says so by itself, and the cell that is run again fails with it."""
    notebook = show("one", *cells(", timeout=3"))
    notebook.run_all()
    view = notebook.view(GATE)
    expect(view.get_by_text(re.compile("left")).first).to_be_visible()
    expect(view.get_by_text(re.compile("time is up|Nobody decided|Timed out")).first).to_be_visible()
    notebook.run_all()
    assert "GateTimedOut" in notebook.text(GATE)
    assert not notebook.ran(BEHIND)


def test_a_cell_that_waits_goes_on_with_a_click(show: Show) -> None:
    """With wait=True the click arrives while the cell is running, and the cell goes on by itself."""
    notebook = show("one", *cells(", wait=True"))
    notebook.run_all(wait=False)
    view = notebook.view(GATE)
    expect(view.get_by_role("button", name="Approve", exact=True)).to_be_visible()
    assert notebook.running()[:1] == [GATE]
    decide(view, "Approve", "go on", "web")
    notebook.wait_idle()
    assert "go on -> ('web',)" in notebook.text(BEHIND)


@pytest.mark.parametrize(
    "options", [["--select", "nowhere"], ["--single-nonsense"]], ids=["unlisted", "usage"]
)
def test_a_wrong_decision_decides_nothing(show: Show, folder: Path, options: list[str]) -> None:
    """A terminal's decision that makes no sense is refused, and the page still asks."""
    notebook = show("one", *cells())
    notebook.run_all()
    run = waiting(folder)
    assert nbflow_cli(folder, "approve", run, "publish", *options).returncode != 0
    expect(notebook.view(GATE).get_by_role("button", name="Approve", exact=True)).to_be_enabled()


@pytest.mark.soak
def test_the_notebook_without_a_person(tmp_path: Path) -> None:
    """`nbflow run` stops at the gate with exit code 10, and after `nbflow approve` publishes what was selected."""
    shutil.copy(NOTEBOOK, tmp_path / "review.ipynb")
    first = nbflow_cli(tmp_path, "run", "review.ipynb")
    assert first.returncode == 10, first.stdout + first.stderr
    run = waiting(tmp_path)
    said = nbflow_cli(tmp_path, "approve", run, "publish", "--select", "page", "--feedback", "<b>fine</b>")
    assert said.returncode == 0, said.stderr
    second = nbflow_cli(tmp_path, "run", "review.ipynb")
    assert second.returncode == 0, second.stdout + second.stderr
    page = (tmp_path / "published" / "punctuality" / "index.html").read_text()
    assert "&lt;b&gt;fine&lt;/b&gt;" in page
    assert until(lambda: "Delta" in page)
