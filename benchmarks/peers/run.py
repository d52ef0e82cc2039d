"""Measure nbflow side by side with its peers, each in a virtual environment of its own.

    python benchmarks/peers/run.py                      # all of them
    python benchmarks/peers/run.py --only joblib dbos   # some, beside nbflow and the floor

The environments (about 400 MB each) are made on first use and kept in
`--environments`. A peer that cannot be installed says so in its column.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # so that it works as a script

from rich.table import Table  # noqa: E402

from benchmarks import harness, report  # noqa: E402


@dataclass(frozen=True)
class Contender:
    """A column: `packages` are looked up in its environment, `synced` is what a step's return promises."""

    name: str
    title: str
    synced: str
    packages: tuple[str, ...] = ()
    own: bool = False

    @property
    def script(self) -> str:
        """The file that knows how to drive it."""
        return str(HERE / f"with_{self.name}.py")


CONTENDERS = (
    Contender("nothing", "bare fdatasync", "on disk", own=True),
    Contender("nbflow", "nbflow", "on disk", own=True),
    Contender("diskcache", "diskcache", "not synced", ("diskcache",)),
    Contender("joblib", "joblib", "not synced", ("joblib",)),
    Contender("marimo", "marimo", "not synced", ("marimo",)),
    Contender("langgraph", "LangGraph", "1 ms later", ("langgraph", "langgraph-checkpoint-sqlite")),
    Contender("dbos", "DBOS SQLite", "on disk", ("dbos",)),
)

ROWS = {
    "step": "one step",
    "hit": "one hit",
    "restart": "process start to resumed after 1,000 steps",
    "at_once": "2,000 steps at once",
    "processes": "4 processes × 200 steps",
    "save": "frame of 85 MB: save",
    "restore": "frame of 85 MB: restore",
    "touched": "frame of 85 MB: restore and sum every column",
}


@dataclass
class Column:
    """What a contender reached: figures in seconds by row, or the problem that stopped it."""

    contender: Contender
    python: str = sys.executable
    versions: str = ""
    figures: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ROWS})
    problem: str = ""

    def cell(self, row: str, *, spread: bool) -> str:
        """Write the median, with the least and the greatest if wanted."""
        found = self.figures[row]
        if not found:
            return "–"
        middle = report.figure(statistics.median(found), "s")
        return (
            middle if len(found) == 1 or not spread else f"{middle} ({_bare(min(found))}–{_bare(max(found))})"
        )


def _bare(seconds: float) -> str:
    return report.figure(seconds, "s").replace(" ", "")


def prepare(column: Column, environments: Path) -> None:
    """Make the contender's virtual environment unless it is there, and note its versions."""
    contender = column.contender
    if not contender.own:
        home = environments / contender.name
        column.python = str(home / "bin" / "python")
        wanted = HERE / "requirements" / f"{contender.name}.txt"
        stamp = home / "installed.txt"
        if not stamp.exists() or stamp.read_text() != wanted.read_text():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            install = [column.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, "-r", str(wanted)], check=True, capture_output=True, text=True)
            stamp.write_text(wanted.read_text())
    if contender.packages:
        code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        answer = subprocess.run(
            [column.python, "-c", code, *contender.packages], capture_output=True, text=True, check=False
        )
        column.versions = answer.stdout.strip()


def measure(column: Column, folder: Path) -> None:
    """Do every workload once, each on a fresh store."""
    script, python, figures = column.contender.script, column.python, column.figures
    folder.mkdir(parents=True)

    def fresh(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    long = fresh("long")
    figures["step"].append(harness.child(script, "record", python, folder=long)["median"])
    resumed = harness.child(script, "replay", python, folder=long)
    if resumed["ran"]:
        raise AssertionError(f"{resumed['ran']} recorded steps ran again")
    figures["hit"].append(resumed["median"])
    figures["restart"].append(resumed["ready"] - resumed["spawned"])

    large = fresh("large")
    saved = harness.child(script, "save", python, folder=large)
    restored = harness.child(script, "restore", python, folder=large)
    if not math.isclose(saved["total"], restored["total"], rel_tol=1e-9):
        raise AssertionError("the restored frame is not the saved one")
    figures["save"].append(saved["seconds"])
    figures["restore"].append(restored["seconds"])
    figures["touched"].append(restored["touched"])

    figures["at_once"].append(harness.child(script, "at_once", python, folder=fresh("many"))["seconds"])

    together = fresh("together")
    # The store is there before they start: what is measured is steps, not the making of a database.
    first = harness.start(script, "process", python, folder=together, name="first")
    assert first.hear() == "ready"
    first.tell()
    first.hear()
    first.done()
    children = [
        harness.start(script, "process", python, folder=together, name=f"p{number}") for number in range(4)
    ]
    for running in children:
        assert running.hear() == "ready"
    began = time.monotonic()
    for running in children:
        running.tell()
    ends = [running.hear()["called"] for running in children]
    for running in children:
        running.done()
    figures["processes"].append(max(ends) - began)


def table(columns: Sequence[Column]) -> Table:
    """Build the side-by-side table."""
    shown = Table(title="The same work by nbflow and its peers (medians)", title_justify="left")
    shown.add_column("")
    for column in columns:
        shown.add_column(column.contender.title, justify="right")
    for row, title in ROWS.items():
        shown.add_row(title, *(column.cell(row, spread=False) for column in columns))
    shown.add_row("when a step returns, it is", *(column.contender.synced for column in columns))
    return shown


def markdown(columns: Sequence[Column]) -> str:
    """Write the same table for `README.md`."""
    lines = [
        "| | " + " | ".join(column.contender.title for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row, title in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(column.cell(row, spread=True) for column in columns) + " |")
    lines.append("| when a step returns, it is | " + " | ".join(c.contender.synced for c in columns) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0, or 1 when nbflow itself could not be measured."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names)
    )
    parser.add_argument(
        "--repetitions", type=int, default=3, metavar="N", help="how often to do each workload (3)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(tempfile.gettempdir()) / "nbflow-peers",
        metavar="DIR",
        help="where the virtual environments are made and kept",
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="measure on the disk of DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--update", action="store_true", help="put the table into README.md")
    options = parser.parse_args(arguments)

    console = report.console()
    wanted = {"nothing", "nbflow", *options.only}
    columns = [Column(contender) for contender in CONTENDERS if contender.name in wanted]
    for column in columns:
        console.print(f"preparing {column.contender.title} …", style="dim")
        try:
            prepare(column, options.environments)
        except (subprocess.CalledProcessError, OSError) as error:
            problem = getattr(error, "stderr", "") or str(error)
            column.problem = f"could not be installed: {problem.strip().splitlines()[-1]}"

    folder = report.folder_on_disk(options.dir)
    os.environ["NBFLOW_DATA_DIR"] = str(folder / "user")
    facts = report.environment(folder)
    try:
        # Round by round, so that all meet the same weather on a shared machine.
        for number in range(options.repetitions):
            for column in columns:
                if column.problem:
                    continue
                console.print(f"round {number + 1}: {column.contender.title} …", style="dim")
                try:
                    measure(column, folder / f"{column.contender.name}-{number}")
                except Exception as error:  # shown below the table
                    column.problem = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    console.print(table(columns))
    for column in columns:
        if column.problem:
            console.print(f"{column.contender.title}: {column.problem}", style="red", markup=False)
    versions = ", ".join(column.versions for column in columns if column.versions)
    console.print(f"{versions}\n{report.surroundings(facts)}", style="dim")
    if options.update:
        report.update_readme("peers", f"{markdown(columns)}\n\n{versions}.\n{report.surroundings(facts)}")
    if options.json:
        rows = {
            column.contender.name: {
                "versions": column.versions,
                "problem": column.problem,
                "seconds": column.figures,
            }
            for column in columns
        }
        options.json.write_text(json.dumps({"environment": facts, "contenders": rows}, indent=1) + "\n")
    return 1 if any(column.problem for column in columns if column.contender.own) else 0


if __name__ == "__main__":
    sys.exit(main())
