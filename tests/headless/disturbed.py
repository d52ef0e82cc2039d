"""Execute the notebooks of `tests/notebooks`, undisturbed and killed, to compare what they show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nbformat import NotebookNode

from tests.headless import kit, watching

#: The notebooks that know nothing of nbflow.
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

Victim = Literal["kernel", "papermill", "both"]
_PROCESS = re.compile(r"ipykernel_\d+")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_FOLDER = re.compile(r"/[^ \"]*/work/")

VICTIMS: tuple[Victim, ...] = ("kernel", "papermill", "both")


@dataclass
class Site:
    """One folder in which one notebook is executed, by as many papermill processes as it takes."""

    folder: Path
    source: Path
    arguments: tuple[str, ...] = ()
    engine: str | None = "nbflow"
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NBFLOW_")},
            **watching.startup(self.folder),
            **self.env,
        }
        (self.folder / "work").mkdir(exist_ok=True)
        self.input = self.folder / "in.ipynb"
        if not self.input.exists():
            shutil.copy(self.source, self.input)
        self.output = self.folder / "out.ipynb"

    @property
    def _command(self) -> list[str | Path]:
        return [self.input, self.output, "--cwd", self.folder / "work", "--no-progress-bar", *self.arguments]

    def execute(self) -> subprocess.CompletedProcess[str]:
        """Run papermill to its end."""
        return kit.papermill(*self._command, engine=self.engine, env=self.env)

    def kill_in(self, number: int, victim: Victim) -> bool:
        """Run papermill and kill while code cell `number` runs; False when the notebook ended before."""
        halted = self.folder / "halted"
        env = {**self.env, "HALT_IN": str(number)}
        with kit.begun(*self._command, engine=self.engine, env=env) as process:
            while not halted.exists():
                if process.poll() is not None:
                    return False
                time.sleep(0.02)
            kernel = kit.kernel_of(process)
            if victim in ("papermill", "both"):
                kit.kill(process.pid)
            if victim in ("kernel", "both"):
                kit.kill(kernel)
            process.communicate(timeout=60)
            kit.gone(kernel)
        halted.unlink(missing_ok=True)
        return True

    def document(self) -> NotebookNode:
        """Return the output notebook."""
        return kit.read(self.output)

    def ran(self) -> list[int]:
        """Return the cells whose bodies ran since the last call."""
        return watching.ran(self.folder)


def durable_cells(document: NotebookNode) -> set[int]:
    """Return the numbers of the code cells that are steps of the run; the others run every time."""
    cells = [cell for cell in document.cells if cell.cell_type == "code"]
    return {number for number, cell in enumerate(cells, 1) if "key" in cell.metadata.get("nbflow", {})}


def shown(document: NotebookNode) -> list[Any]:
    """Return what the code cells show, without what differs in any two processes.

    Those are the process id in the file names that warnings tell, addresses, the
    folder, and at which of its pieces a stream was cut: what is not flushed is sent when a timer
    says so, stdout and stderr each by itself.
    """
    return [(source, number, _joined(outputs)) for source, number, outputs in kit.shown(document)]


def _joined(outputs: list[Any]) -> list[Any]:
    found: list[Any] = []
    streams: dict[str, Any] = {}
    for output in outputs:
        text = _FOLDER.sub("/work/", _PROCESS.sub("ipykernel_1", _ADDRESS.sub("0x1", json.dumps(output))))
        plain = json.loads(text)
        if plain["output_type"] != "stream":
            found += [streams[name] for name in sorted(streams)]
            found.append(plain)
            streams = {}
        elif plain["name"] in streams:
            streams[plain["name"]]["text"] += plain["text"]
        else:
            streams[plain["name"]] = plain
    return [*found, *(streams[name] for name in sorted(streams))]
