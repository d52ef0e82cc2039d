"""The dashboard, its page: the first paint over a long history, an event on its way to the screen, the size of it all.

In a real JupyterLab and a real Chromium, those of the browser tests. Without a
browser the rows say so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import dashboard, harness
from benchmarks.harness import Bench, Group, Row, Sample, Target

#: Seconds for which an event's way to the screen is watched.
_WATCH = 6.0

#: From the moment when the cell is run until its rows were painted: milliseconds.
_PAINT = """async ([path, cell]) => {
    const panel = [...window.jupyterapp.shell.widgets('main')].find((one) => one.context?.path === path);
    const area = panel.content.widgets[cell].outputArea.node;
    panel.content.deselectAll();
    panel.content.activeCellIndex = cell;
    const began = performance.now();
    window.jupyterapp.commands.execute('notebook:run-cell');
    while (!area.querySelector('.nbflow tbody tr[aria-rowindex] td.nbflow-cell-workflow'))
        await new Promise((next) => requestAnimationFrame(next));
    await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
    return performance.now() - began;
}"""

#: For some seconds, how old the newest event is when its drawing is on the screen: seconds.
_EVENTS = """async (seconds) => {
    const run = document.querySelector('.nbflow-run');
    const ages = [];
    const observer = new MutationObserver(() => requestAnimationFrame(() => setTimeout(
        () => ages.push(Date.now() / 1000 - Number(run.dataset.at)))));
    observer.observe(run, {attributes: true, attributeFilter: ['data-at']});
    await new Promise((next) => setTimeout(next, seconds * 1000));
    observer.disconnect();
    return ages;
}"""


def measure_paint(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Run `nbflow.dashboard()` over a long history in a fresh kernel each time."""
    with _lab(bench) as (desk, root):
        harness.child(
            dashboard.__file__, "past", store=str(root / ".nbflow"), runs=bench.count(10_000, 1_000)
        )
        for _ in range(bench.repetitions + 1):
            notebook = desk.open("board.ipynb", page=desk.pages[0] if desk.pages else None)
            notebook.run_cell(0)
            took = notebook.page.evaluate(_PAINT, [notebook.path, 1])
            notebook.close()
            if _:  # the first one loads JupyterLab's own widgets
                yield "dashboard.paint", Sample(took / 1000)


def measure_events(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Open the run that another process records, and see when its events are drawn."""
    with _lab(bench) as (desk, root):
        for number in range(bench.count(bench.repetitions, 1)):
            store = root / f"{number}" / ".nbflow"
            recording = harness.start(dashboard.__file__, "record", store=str(store))
            run = recording.hear()
            _notebook(root / f"{number}" / "board.ipynb", f"nbflow.dashboard({run!r})")
            notebook = desk.open(f"{number}/board.ipynb", page=desk.pages[0] if desk.pages else None)
            notebook.run_all()
            notebook.page.wait_for_selector(".nbflow-run[data-at]")
            ages = notebook.page.evaluate(_EVENTS, _WATCH)
            recording.tell()
            recording.done()
            notebook.close()
            yield "dashboard.event", Sample(statistics.median(ages))


def measure_size(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Add up what a page is given: all modules without their comments, and the style sheets."""
    from nbflow.widgets import assets

    for _ in range(bench.repetitions):
        yield "dashboard.size", Sample(float(len(assets.module().encode()) + len(assets.style().encode())))


def _notebook(path: Path, last: str) -> None:
    from tests.browser import lab_kit

    lab_kit.write_notebook(path, "import nbflow, pandas, duckdb, anywidget", last)


class _lab:
    """A JupyterLab over a fresh folder, and a browser."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __enter__(self) -> tuple[Any, Path]:
        from contextlib import ExitStack

        from tests.browser import lab_kit

        executable = lab_kit.find_chromium()
        if executable is None:
            raise RuntimeError("there is no Chromium here: `.ci/browser` says how to get one")
        home = self.bench.fresh("lab")
        self.stack = ExitStack()
        browser = self.stack.enter_context(lab_kit.chromium(executable))
        server = self.stack.enter_context(lab_kit.jupyter_server("lab", home))
        _notebook(server.root / "board.ipynb", "nbflow.dashboard()")
        desk = lab_kit.Desk(browser, server)
        self.stack.callback(desk.close_all)
        return desk, server.root

    def __exit__(self, *_: object) -> None:
        self.stack.close()


GROUPS = (
    Group(
        "dashboard.paint",
        (
            Row(
                "dashboard.paint",
                "a dashboard over 10,000 runs: from running the cell to its rows on the screen",
                "",
                Target("at_most", 1.0),
            ),
        ),
        measure_paint,
    ),
    Group(
        "dashboard.event",
        (Row("dashboard.event", "an event's age when it is on the screen", "", Target("at_most", 0.3)),),
        measure_events,
    ),
    Group(
        "dashboard.size",
        (
            Row(
                "dashboard.size",
                "all of the front end, as a page gets it",
                "",
                Target("at_most", 150_000),
                "bytes",
            ),
        ),
        measure_size,
    ),
)
