"""The demonstration: run a notebook, kill its kernel in the middle of a cell, run it again, compare.

`nbflow demo` and `make demo` call `run_demo`. Whether a cell was restored or
ran is read from the journal of the run, never guessed from how long it took.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nbflow.core.errors import NbflowError, UsageError
from nbflow.core.history import History
from nbflow.core.model import Entry, RunAttached, RunOpened, StepCompleted, StepStarted

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

#: Seconds after a cell was sent until its kernel is killed: long enough for its body to have begun.
KILL_AFTER = 0.4

#: What a cell of the notebook may take, in seconds, before the demo gives up.
CELL_TIMEOUT = 900

_MAGIC = re.compile(r"^\s*%%durable(?:\s+(?P<name>[^\s-]\S*))?", re.MULTILINE)

Fate = Literal["restored", "ran", "ran (always does)"]
_ALWAYS: Fate = "ran (always does)"


@dataclass
class CellReport:
    """One code cell through both runs. Times are seconds; None where it was not reached.

    `span_then` is from when to when it ran first, in UTC seconds. A plain cell
    always runs; `calls_restored` counts the durable calls in it that did not, and
    `states_restored` the states of machines.
    """

    number: int
    index: int
    name: str
    durable: bool
    then: float | None = None
    now: float | None = None
    killed: bool = False
    state: str = "waiting"
    fate: Fate | None = None
    span_then: tuple[float, float] | None = None
    calls_restored: int = 0
    states_restored: int = 0


@dataclass
class _Show:
    """What the person sees while it runs: a live table in a terminal, one line per event elsewhere."""

    console: Console | None
    cells: list[CellReport]
    title: str = ""
    notes: list[str] = field(default_factory=list)
    live: Live | None = None

    @contextmanager
    def running(self, title: str) -> Iterator[None]:
        self.title = title
        for cell in self.cells:
            cell.state = "waiting"
        if self.console is None:
            yield
        elif self.console.is_terminal:
            with Live(self, console=self.console, refresh_per_second=8) as self.live:
                yield
            self.live = None
        else:
            self.console.print(Text(title, style="bold"))
            yield

    def change(self, cell: CellReport, state: str, seconds: float | None = None) -> None:
        cell.state = state
        if self.console is not None and not self.console.is_terminal and state != "running":
            took = "" if seconds is None else f" after {seconds:.2f} s"
            self.console.print(f"  cell {cell.number:>2} {cell.name}: {state}{took}")

    def __rich__(self) -> Group:
        styles = {"waiting": "dim", "running": "cyan", "done": "green", "killed": "bold red"}
        marks = {"waiting": "○", "running": "▶", "done": "✔", "killed": "☠"}
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("cell", "name", "state"):
            table.add_column(name)
        for cell in self.cells:
            state = Text(f"{marks[cell.state]} {cell.state}", style=styles[cell.state])
            table.add_row(str(cell.number), cell.name, state)
        return Group(Text(self.title, style="bold"), table)


def run_demo(
    notebook: Path | None = None,
    *,
    kill_at: str | None = None,
    keep: bool = False,
    out: Path = Path("demo-result"),
    console: Console | None = None,
    kill_after: float = KILL_AFTER,
) -> dict[str, Any]:
    """Run the demo and return what was seen, in the shape that docs/cli.md gives for `nbflow demo --json`.

    `kill_at` is a cell's name or its number among the code cells, from 1; by
    default the durable cell four fifths down. A cell that ends before
    `kill_after` seconds is spared and the next durable one is killed.

    Raises:
        UsageError: no such notebook or cell, or none that is durable.
        NbflowError: a cell failed by itself.
    """
    import nbformat

    source = _find(notebook)
    document = nbformat.read(source, as_version=4)
    cells = _cells(document)
    target = _target(cells, kill_at)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="nbflow-demo-"))
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        copy = folder / source.name
        shutil.copy(source, copy)
        store = folder / ".nbflow"
        view = _Show(console, cells)

        with view.running(
            f"First run of {source.name}; the kernel is killed in cell {target + 1} or soon after"
        ):
            _run(document, copy, store, view, target, kill_after)
        if not any(cell.killed for cell in cells):
            raise UsageError(
                f"No durable cell from cell {target + 1} on ran for {kill_after:g} s, so none was killed.",
                hint="Name an earlier or slower one with --kill-at.",
            )
        document = nbformat.read(source, as_version=4)
        with view.running("Second run, in a new kernel: Run All"):
            _run(document, copy, store, view, None, kill_after)

        run = _judge(store, cells)
        files = _save(document, source, out)
        result = _result(run, cells, files, folder if keep else None)
    if console is not None:
        _print(console, result)
    return result


def _find(notebook: Path | None) -> Path:
    if notebook is None:
        notebook = Path(__file__).resolve().parent.parent / "notebooks" / "01-flights.ipynb"
        hint = "It comes with the repository; name another notebook."
    else:
        hint = "Name one that exists."
    if not notebook.is_file():
        raise UsageError(f"There is no notebook {notebook}.", hint=hint)
    return notebook.resolve()


def _cells(document: Any) -> list[CellReport]:
    reports: list[CellReport] = []
    for index, cell in enumerate(document.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        magic = _MAGIC.match(cell.source)
        first = next(line.strip() for line in cell.source.splitlines() if line.strip())
        # A front end makes ids of eight hex digits; any other was given by a person.
        given = "" if re.fullmatch(r"[0-9a-f-]{8,}", cell.get("id", "")) else cell.get("id", "")
        name = (magic and magic["name"]) or given or first[:40]
        reports.append(CellReport(len(reports) + 1, index, name, durable=magic is not None))
    return reports


def _target(cells: list[CellReport], kill_at: str | None) -> int:
    """Return the position among the code cells from which on a durable cell is killed."""
    durable = [position for position, cell in enumerate(cells) if cell.durable]
    if not durable:
        raise UsageError(
            "The notebook has no cell that begins with %%durable.", hint="Name another notebook."
        )
    if kill_at is None:
        return durable[len(durable) * 4 // 5]
    for position, cell in enumerate(cells):
        if kill_at in (cell.name, str(cell.number)):
            return position
    raise UsageError(
        f"The notebook has no code cell {kill_at!r}.",
        hint=f"Its durable cells are {', '.join(cells[position].name for position in durable)}.",
    )


def _run(document: Any, copy: Path, store: Path, view: _Show, target: int | None, kill_after: float) -> None:
    """Execute the cells in a new kernel; with `target` kill it in that cell and return."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    # The first run's times stand under "then", the second's under "now".
    first = target is not None
    with _kernel(document, copy, store) as (client, manager):
        for position, report in enumerate(view.cells):
            cell = document.cells[report.index]
            view.change(report, "running")
            doomed = target is not None and (position == target or (position > target and report.durable))
            killer = threading.Timer(kill_after, _kill, [manager]) if doomed else None
            began, began_at = time.perf_counter(), time.time()
            if killer is not None:
                killer.start()
            try:
                client.execute_cell(cell, report.index)
            except DeadKernelError:
                # A kill just after the cell ended strikes the next; what was recorded is read afterwards.
                if target is None or position < target:
                    raise NbflowError(
                        f"The kernel died by itself in cell {report.number} ({report.name})."
                    ) from None
                report.killed = True
                # The death is noticed about a second late; the kill came `kill_after` seconds into the cell.
                view.change(report, "killed", kill_after)
                return
            except CellExecutionError as error:
                if view.console is not None:
                    view.console.print(Text.from_ansi(error.traceback))
                raise NbflowError(
                    f"Cell {report.number} ({report.name}) failed with {error.ename}: {error.evalue}"
                ) from error
            finally:
                if killer is not None:
                    killer.cancel()
            took = time.perf_counter() - began
            if first:
                report.then, report.span_then = took, (began_at, time.time())
            else:
                report.now = took
            view.change(report, "done", took)


@contextmanager
def _kernel(document: Any, copy: Path, store: Path) -> Iterator[tuple[NotebookClient, AsyncKernelManager]]:
    """Start a kernel of this very interpreter that knows its notebook and store; end it at the end."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class OwnInterpreter(KernelSpecManager):
        """A user may have installed a `python3` kernel of some other environment; the demo wants this one."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002 - one answer to every name
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
            return KernelSpec(argv=argv, display_name="nbflow demo", language="python")

    # Asynchronous: nbclient watches over the kernel's life while it waits for messages, and with a blocking
    # client it would wait for ever for those of a dead one.
    manager = AsyncKernelManager(kernel_spec_manager=OwnInterpreter())
    client = NotebookClient(document, km=manager, timeout=CELL_TIMEOUT)
    environment = {**os.environ, "NBFLOW_NOTEBOOK": str(copy), "NBFLOW_STORE": str(store)}
    with client.setup_kernel(env=environment, cwd=str(copy.parent), cleanup_kc=True):
        yield client, manager


def _kill(manager: AsyncKernelManager) -> None:
    pid = getattr(manager.provisioner, "pid", None)
    if pid:
        os.kill(pid, signal.SIGKILL)


def _judge(place: Path, cells: list[CellReport]) -> str:
    """Read from the journal what became of each cell in the second run; return the run's id.

    Raises:
        NbflowError: the journal contradicts what the demo saw.
    """
    from nbflow.store.local import open_store

    store = open_store(place)
    try:
        everything = store.runs()
        (run,) = (info for info in everything if info.parent is None)
        entries = store.entries(run.run)
        machines = [store.entries(info.run) for info in everything if info.parent == run.run]
    finally:
        store.close()
    attached = [entry.seq for entry in entries if isinstance(entry.record, RunAttached)]
    if len(attached) != 2:
        raise NbflowError(f"Run {run.run} was attached {len(attached)} times instead of twice.", run=run.run)
    before = {e.record.step for e in entries if isinstance(e.record, StepCompleted) and e.seq < attached[1]}
    started = [e.record for e in entries if isinstance(e.record, StepStarted) and e.seq > attached[1]]
    again = {record.step for record in started} | {record.name for record in started}
    names = {
        execution.started.name: step
        for step, found in History.of(entries).by_step.items()
        for execution in found
    }
    calls = [
        (entry.at, entry.record.step)
        for entry in entries
        if isinstance(entry.record, StepStarted)
        and entry.record.step_kind == "call"
        and entry.seq < attached[1]
    ]
    for cell in cells:
        if cell.span_then is not None:
            begin, end = cell.span_then
            inside = {step for at, step in calls if begin <= at <= end}
            cell.calls_restored = len(inside & before - again)
        step = names.get(cell.name, cell.name)
        if not cell.durable:
            cell.fate = _ALWAYS
        elif step in again or cell.name in again:
            cell.fate = "ran"
        elif step in before:
            cell.fate = "restored"
        else:
            raise NbflowError(f"Run {run.run} knows nothing of cell {cell.name}.", run=run.run, step=step)
    resumed = next(entry.at for entry in entries if entry.seq == attached[1])
    for machine in machines:
        _count_states(machine, cells, resumed)
    return run.run


def _count_states(machine: list[Entry], cells: list[CellReport], resumed: float) -> None:
    """Count the states of a machine that were recorded before the kill and not entered again, for its cell."""
    opened = machine[0]
    before, again = set(), set()
    for entry in machine:
        if isinstance(entry.record, StepCompleted) and entry.at < resumed:
            before.add(entry.record.step)
        elif isinstance(entry.record, StepStarted) and entry.at >= resumed:
            again.add(entry.record.step)
    states = {
        entry.record.step
        for entry in machine
        if isinstance(entry.record, StepStarted) and entry.record.step_kind == "state"
    }
    step = opened.record.parent_step if isinstance(opened.record, RunOpened) else None
    for cell in cells:
        begin, end = cell.span_then or (0.0, 0.0)
        if begin <= opened.at <= end or (step or "").startswith(f"{cell.name}/"):
            cell.states_restored += len(states & before - again)


def _save(document: Any, source: Path, out: Path) -> list[Path]:
    """Write the executed notebook, and a page of it where nbconvert is installed."""
    import nbformat

    out.mkdir(parents=True, exist_ok=True)
    files = [out / source.name]
    nbformat.write(document, files[0])
    try:
        from nbconvert import HTMLExporter
    except ImportError:
        return files
    body, _ = HTMLExporter().from_notebook_node(document)
    files.append(out / f"{source.stem}.html")
    files[1].write_text(body, encoding="utf-8")
    return files


def _result(run: str, cells: list[CellReport], files: list[Path], folder: Path | None) -> dict[str, Any]:
    restored = [cell for cell in cells if cell.fate == "restored"]
    finished = [cell for cell in cells if cell.then is not None]
    return {
        "run": run,
        "cells": [
            {
                "cell": cell.number,
                "name": cell.name,
                "durable": cell.durable,
                "killed": cell.killed,
                "fate": cell.fate,
                "calls_restored": cell.calls_restored if cell.fate != "restored" else 0,
                "states_restored": cell.states_restored if cell.fate != "restored" else 0,
                "seconds_then": cell.then,
                "seconds_now": cell.now,
            }
            for cell in cells
        ],
        "restored": len(restored),
        "ran": len(cells) - len(restored),
        "seconds_then": sum(cell.then or 0.0 for cell in finished),
        "seconds_now": sum(cell.now or 0.0 for cell in finished),
        "files": [str(file) for file in files],
        "folder": None if folder is None else str(folder),
    }


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(
        title="What became of each cell", title_justify="left", header_style="dim", show_footer=True
    )
    table.add_column("cell", "", justify="right")
    always = sum(cell["fate"] == _ALWAYS for cell in result["cells"])
    table.add_column("name")
    table.add_column("second run", f"{result['restored']} restored, {result['ran'] - always} ran")
    table.add_column("seconds then", f"{result['seconds_then']:.2f}", justify="right")
    table.add_column("seconds now", f"{result['seconds_now']:.2f}", justify="right")
    for cell in result["cells"]:
        then = "killed" if cell["killed"] else _seconds(cell["seconds_then"])
        parts = [
            f"{count} {what}{'' if count == 1 else 's'}"
            for what in ("call", "state")
            if (count := cell[f"{what}s_restored"])
        ]
        fate = f"ran, {' and '.join(parts)} restored" if parts else cell["fate"]
        style = {"restored": "green", "ran": "cyan"}.get(cell["fate"], "dim")
        table.add_row(
            str(cell["cell"]),
            Text(cell["name"]),
            Text(fate, style=style),
            Text(then, style="bold red" if cell["killed"] else ""),
            _seconds(cell["seconds_now"]),
        )
    console.print()
    console.print(table)
    console.print(
        Text(
            "The totals count the cells that the first run finished. What was restored is read from the journal.",
            style="dim",
        )
    )
    console.print(f"The executed notebook: {', '.join(result['files'])}")
    if result["folder"]:
        place = json.dumps(f"{result['folder']}/.nbflow")
        console.print(f"Look into its store: nbflow show {result['run']} --store {place}", soft_wrap=True)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
