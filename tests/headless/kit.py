"""What the tests of papermill and batches share: small notebooks, papermill as a process, and equal outputs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill as papermill_library
import psutil
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

#: A cell that others of the notebook use: `effect("a")` is on disk when it returns.
EFFECT = """\
def effect(name):
    import os
    line = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(line, (name + "\\n").encode())
    os.fsync(line)
    os.close(line)"""

#: A cell that waits until the test has seen it begin, and is then killed in: it says so in a file.
HOLD = """\
import pathlib as _p, time as _t
_p.Path({path!r}).touch()
while _p.Path({path!r}).exists(): _t.sleep(0.02)"""


def code(source: str, *tags: str) -> NotebookNode:
    """Return a code cell."""
    cell = new_code_cell(source)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def notebook(path: Path, *cells: str | NotebookNode, kernel: str = "python3", minor: int = 5) -> Path:
    """Write a notebook of these code cells; `minor` 4 has no cell ids."""
    made = new_notebook(cells=[code(cell) if isinstance(cell, str) else cell for cell in cells])
    made.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    made.nbformat_minor = minor
    if minor < 5:
        for cell in made.cells:
            cell.pop("id", None)
    nbformat.write(made, path)
    return path


def markdown(text: str) -> NotebookNode:
    """Return a markdown cell."""
    return new_markdown_cell(text)


def command(*arguments: str | Path, engine: str | None = "nbflow") -> list[str]:
    """Return papermill's command line."""
    chosen = ["--engine", engine] if engine else []
    return [sys.executable, "-m", "papermill", *chosen, *map(str, arguments)]


def papermill(
    *arguments: str | Path, engine: str | None = "nbflow", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run papermill's command line to its end."""
    return subprocess.run(
        command(*arguments, engine=engine),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **options,
    )


@contextmanager
def begun(
    *arguments: str | Path, engine: str | None = "nbflow", **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start papermill's command line; nothing of it is left behind."""
    process = subprocess.Popen(
        command(*arguments, engine=engine),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        try:
            left = family.children(recursive=True)
        except psutil.NoSuchProcess:
            left = []
        process.kill()
        for child in left:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        process.communicate(timeout=30)


def kernel_of(process: subprocess.Popen[str]) -> int:
    """Return the process id of papermill's kernel."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "ipykernel_launcher" in " ".join(child.cmdline()):
            return child.pid
    raise AssertionError("papermill has no kernel")


def wait_for(path: Path, seconds: float = 60) -> None:
    """Return when a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """Kill a process as the out-of-memory killer does."""
    os.kill(pid, signal.SIGKILL)


def read(path: Path) -> NotebookNode:
    """Read an executed notebook."""
    return nbformat.read(path, as_version=4)


def shown(document: NotebookNode) -> list[Any]:
    """Return source, number and outputs of the code cells, to compare executions with each other."""
    return [
        (cell.source, cell.execution_count, [_plain(output) for output in cell.outputs])
        for cell in document.cells
        if cell.cell_type == "code"
    ]


def _plain(output: NotebookNode) -> Any:
    plain = dict(output)
    if plain["output_type"] == "error":
        # Tracebacks name temporary files of the process that raised.
        plain["traceback"] = [
            re.sub(r"ipykernel_\d+/\d+\.py", "cell.py", line) for line in plain["traceback"]
        ]
    return plain


def statuses(document: NotebookNode) -> list[str | None]:
    """Return what became of each code cell, as `metadata.nbflow` tells."""
    return [
        cell.metadata.get("nbflow", {}).get("status") for cell in document.cells if cell.cell_type == "code"
    ]


def effects(path: Path) -> Sequence[str]:
    """Return the effects so far, in order."""
    return path.read_text().split() if path.exists() else []


def gone(pid: int, seconds: float = 30) -> None:
    """Return when a process is not there any more; what nobody waited for counts as gone."""
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def execute(source: Path | str, output: Path | str | None, **options: Any) -> Any:
    """Execute a notebook with the engine in this process."""
    options = {"progress_bar": False, **options}
    return papermill_library.execute_notebook(source, output, engine_name="nbflow", **options)


def failing(folder: Path, done: Path, *behind: str) -> Path:
    """Write a notebook that fails in its fourth cell until the file `mended` is in the folder."""
    return notebook(
        folder / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 40",
        "effect('b'); y = x + 2; y",
        f"effect('c'); import os; assert os.path.exists({str(folder / 'mended')!r}), 'not yet'",
        *behind,
    )


def papermills(document: NotebookNode) -> list[str]:
    """Return papermill's status of each cell."""
    return [cell.metadata.papermill.status for cell in document.cells]
