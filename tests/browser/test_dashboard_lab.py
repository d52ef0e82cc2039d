"""The dashboard in JupyterLab: finding runs, opening steps, and doing something about them, as a user does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab_kit import Desk, NotebookPage, nbflow_cli, until, write_notebook

Show = Callable[..., NotebookPage]
DASHBOARD = ["import nbflow", "nbflow.dashboard()"]
CELL = 1
SEEDS = str(Path(__file__).with_name("seeds.py"))

#: A run that goes on until somebody stops it.
LONG = """
import itertools, time, nbflow

@nbflow.durable
def beat(number):
    time.sleep(0.2)
    return number

with nbflow.run("long", store={store!r}):
    for number in itertools.count():
        beat(number)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, _own_data_dir: Path) -> Path:
    """A store of five runs: three reports now, of which one failed, and two imports forty days ago."""
    store = tmp_path_factory.mktemp("seeds") / ".nbflow"
    for arguments in (("40",), ()):
        command = [sys.executable, SEEDS, str(store), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return store


@pytest.fixture
def board(show: Show, folder: Path, recorded: Path) -> Locator:
    """A dashboard over the five runs."""
    shutil.copytree(recorded, folder / ".nbflow", dirs_exist_ok=True)
    notebook = show("board", *DASHBOARD)
    notebook.run_all()
    view = notebook.view(CELL)
    expect(view.get_by_text("5 runs", exact=True)).to_be_visible()
    return view


def column(board: Locator, name: str) -> list[str]:
    """Return what a column of the table of runs says, from top to bottom."""
    return [text.strip() for text in board.locator(f"tbody td.nbflow-cell-{name}").all_inner_texts()]


def open_run(board: Locator, workflow: str) -> None:
    """Click on the first run of a workflow."""
    board.get_by_role("table", name="Runs").get_by_role("button", name=workflow, exact=True).first.click()
    expect(board.get_by_role("heading", name=workflow)).to_be_visible()


def confirm(board: Locator, word: str) -> None:
    """Press the button of the dialog that asks."""
    dialog = board.get_by_role("dialog")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name=word).click()
    # A process that is started for it imports everything first.
    expect(dialog).to_have_count(0, timeout=30_000)


def test_filter_and_sort(board: Locator) -> None:
    """Workflow, state, tag, time and text each narrow the list, and a head of a column sorts it, both ways."""
    table = board.get_by_role("table", name="Runs")
    said = board.get_by_role("status").filter(has_text="found")

    board.get_by_label("Workflow", exact=True).select_option("import")
    expect(said).to_have_text("2 runs found")
    assert set(column(board, "workflow")) == {"import"}
    board.get_by_role("button", name="Show all").click()
    expect(board.get_by_text("5 runs", exact=True)).to_be_visible()

    failed = board.get_by_role("group", name="States").get_by_role("button", name=re.compile("^Failed"))
    failed.click()
    expect(said).to_have_text("1 run found")
    expect(failed).to_have_attribute("aria-pressed", "true")
    assert column(board, "state") == ["Failed"]
    failed.click()

    board.get_by_label("Tag", exact=True).select_option("team=red")
    expect(said).to_have_text("2 runs found")
    board.get_by_role("button", name="Show all").click()

    board.get_by_label("Started", exact=True).select_option(label="Last week")
    expect(said).to_have_text("3 runs found")
    assert set(column(board, "workflow")) == {"report"}
    board.get_by_role("button", name="Show all").click()

    board.get_by_role("searchbox").first.fill("nowhere")
    expect(said).to_have_text("1 run found")
    board.get_by_role("searchbox").first.fill("no run has this")
    expect(board.get_by_text("No run matches these filters.")).to_be_visible()
    board.get_by_role("button", name="Show all").click()
    expect(board.get_by_text("5 runs", exact=True)).to_be_visible()

    head = table.get_by_role("columnheader", name="Workflow")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    until(lambda: column(board, "workflow") == ["import"] * 2 + ["report"] * 3, what="the order")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    until(lambda: column(board, "workflow") == ["report"] * 3 + ["import"] * 2, what="the order")


def test_open_a_step(board: Locator) -> None:
    """A run opens with a click; a step of it shows inputs, outputs with a preview of the table, and what it failed with."""
    board.get_by_role("group", name="States").get_by_role("button", name=re.compile("^Failed")).click()
    expect(board.get_by_text("1 run found")).to_be_visible()
    open_run(board, "report")
    board.get_by_role("tab", name="Steps").click()
    steps = board.get_by_role("table", name="Steps")
    steps.get_by_role("button", name=re.compile("fetch")).click()
    beside = board.locator(".nbflow-beside")
    beside.locator("summary").first.click()
    expect(beside.get_by_role("cell", name="Lyon").first).to_be_visible()
    expect(beside).to_contain_text("visitors")
    steps.get_by_role("button", name=re.compile("send")).click()
    expect(beside).to_contain_text("ConnectionError")
    expect(beside).to_contain_text("mail server 10.0.0.7 refused the connection")
    board.get_by_role("tab", name="Timeline").click()
    expect(board.get_by_role("tabpanel")).to_contain_text("fetch")


def test_cancel_a_running_run(show: Show, folder: Path) -> None:
    """A run that works elsewhere shows as running; cancelled here, after a question, it stops there and shows it."""
    script = folder / "long.py"
    script.write_text(LONG.format(store=str(folder / ".nbflow")))
    worker = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        notebook = show("board", *DASHBOARD)
        notebook.run_all()
        board = notebook.view(CELL)
        open_run(board, "long")
        head = board.locator(".nbflow-head")
        expect(head).to_contain_text("Running")
        board.get_by_role("button", name="Cancel run").click()
        dialog = board.get_by_role("dialog")
        dialog.get_by_label(re.compile("Reason")).fill("a test")
        confirm(board, "Cancel run")
        expect(head).to_contain_text("Cancelled")
        assert worker.wait(30) != 0
    finally:
        worker.kill()
        worker.wait()


def test_retry_a_failed_step_and_resume(show: Show, folder: Path) -> None:
    """The step of a notebook that failed is retried, and the run resumed, with two clicks each; it completes."""
    write_notebook(
        folder / "flaky.ipynb",
        "from pathlib import Path",
        "print('computed'); values = [1, 2, 3]",
        "rate = float(Path('rate.txt').read_text()); print('rate', rate)",
    )
    assert nbflow_cli(folder, "run", "flaky.ipynb").returncode != 0
    notebook = show("board", *DASHBOARD)
    notebook.run_all()
    board = notebook.view(CELL)
    open_run(board, "flaky.ipynb")
    expect(board.locator(".nbflow-head")).to_contain_text("Failed")
    board.get_by_role("tab", name="Steps").click()
    steps = board.get_by_role("table", name="Steps")
    steps.get_by_role("row").filter(has_text="Failed").get_by_role("button").first.click()
    expect(board.locator(".nbflow-beside")).to_contain_text("FileNotFoundError")
    board.get_by_role("button", name="Retry step").click()
    confirm(board, "Retry step")
    expect(board.locator(".nbflow-said")).to_contain_text("runs again when the run is resumed")
    (folder / "rate.txt").write_text("0.25")
    board.get_by_role("button", name="Resume", exact=True).click()
    confirm(board, "Resume")
    expect(board.locator(".nbflow-head")).to_contain_text("Completed", timeout=60_000)


def test_fork(board: Locator) -> None:
    """Forked at a step a new run begins, of which the old one tells; that one names where it came from."""
    board.get_by_role("group", name="States").get_by_role("button", name=re.compile("^Failed")).click()
    expect(board.get_by_text("1 run found")).to_be_visible()
    open_run(board, "report")
    board.get_by_role("tab", name="Steps").click()
    board.get_by_role("table", name="Steps").get_by_role("button", name=re.compile("send")).click()
    board.get_by_role("button", name="Fork from here").click()
    confirm(board, "Fork")
    board.locator(".nbflow-said").get_by_role("button", name=re.compile("Open run")).click()
    expect(board.locator(".nbflow-facts").first).to_contain_text("Forked from")


def test_what_is_refused_says_so_where_the_click_was(board: Locator) -> None:
    """A cancelled run cannot be cancelled again: the button says why, and nothing happens."""
    board.get_by_label("Workflow", exact=True).select_option("import")
    board.get_by_role("group", name="States").get_by_role("button", name=re.compile("^Cancelled")).click()
    expect(board.get_by_text("1 run found")).to_be_visible()
    open_run(board, "import")
    button = board.get_by_role("button", name="Cancel run")
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)
    expect(board.locator(".nbflow-why").filter(has_text="cancelled, and final")).to_be_visible()
    expect(board.get_by_role("dialog")).to_have_count(0)


@pytest.fixture
def waiting(show: Show, folder: Path) -> NotebookPage:
    """A notebook that waits at its gate."""
    notebook = show(
        "asking",
        "%load_ext nbflow\nimport nbflow",
        'decision = nbflow.gate("publish", "Publish?", options=["web"])',
        "%%durable send\nprint('sent:', decision.feedback)",
    )
    notebook.run_all()
    return notebook


def busy_dashboard(show: Show, kernel: str = "python3") -> NotebookPage:
    """A dashboard in a notebook whose kernel then runs a loop that never yields, until a file appears."""
    notebook = show(
        "busy",
        "import nbflow, time\nfrom pathlib import Path",
        "nbflow.dashboard()",
        "while not Path('enough').exists(): time.sleep(0.01)\nprint('over')",
        kernel=kernel,
    )
    notebook.run_all(wait=False)
    notebook.wait_running(2)
    return notebook


def approve_in(board: Locator, feedback: str) -> None:
    """Decide the gate that waits in the part "Gates" of a dashboard."""
    board.get_by_role("navigation").get_by_role("button", name=re.compile("^Gates")).click()
    board.get_by_role("textbox", name=re.compile("Feedback")).fill(feedback)
    board.get_by_role("button", name="Approve", exact=True).click()


def test_approved_in_a_dashboard_while_its_kernel_runs_a_cell(
    show: Show, folder: Path, waiting: NotebookPage
) -> None:
    """A dashboard whose own kernel is in a loop decides the gate of another notebook at once, and follows it."""
    busy = busy_dashboard(show)
    board = busy.view(1)
    approve_in(board, "while busy")
    expect(board.get_by_text("while busy").first).to_be_visible()
    assert busy.running() == [2]
    assert not (folder / "enough").exists()
    expect(waiting.view(1)).to_contain_text("while busy")
    (folder / "enough").touch()
    busy.wait_idle()
    waiting.run_all()
    assert "sent: while busy" in waiting.text(2)


def test_it_follows_what_happens_elsewhere(show: Show, folder: Path) -> None:
    """A run that starts, goes on and ends in another process is on the page without a click, while a cell runs here."""
    busy = busy_dashboard(show)
    board = busy.view(1)
    script = folder / "steps.py"
    script.write_text(
        f"import nbflow, time\nfrom pathlib import Path\n"
        f"@nbflow.durable\ndef step(n):\n    return n\n"
        f"with nbflow.run('elsewhere', store={str(folder / '.nbflow')!r}):\n"
        f"    step(1)\n"
        f"    while not Path({str(folder / 'go')!r}).exists(): time.sleep(0.01)\n"
        f"    step(2)\n"
    )
    worker = subprocess.Popen([sys.executable, str(script)])
    try:
        row = board.get_by_role("row").filter(has_text="elsewhere")
        expect(row).to_contain_text("Running", timeout=20_000)
        (folder / "go").touch()
        expect(row).to_contain_text("Completed", timeout=20_000)
        expect(row.locator(".nbflow-cell-steps")).to_have_text("2")
        assert busy.running() == [2]
    finally:
        worker.kill()
        worker.wait()
        (folder / "enough").touch()
    busy.wait_idle()


def test_an_idle_dashboard_costs_little(board: Locator, desk: Desk) -> None:
    """Nothing happens: the kernel of an open dashboard uses less than a tenth of a core."""
    kernels = [each for each in psutil.Process(desk.server.process.pid).children() if each.is_running()]
    before = [sum(each.cpu_times()[:2]) for each in kernels]
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2)
    used = sum(sum(each.cpu_times()[:2]) for each in kernels) - sum(before)
    assert used / (time.monotonic() - began) < 0.1


@pytest.fixture(autouse=True)
def _at_ease(folder: Path) -> Iterator[None]:
    yield
    (folder / "enough").touch()
