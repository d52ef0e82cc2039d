"""How results are shown: the table, the machine they were measured on, and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Result

_PACKAGES = (
    "nbflow",
    "duckdb",
    "pandas",
    "numpy",
    "pyarrow",
    "msgspec",
    "blake3",
    "cloudpickle",
    "ipykernel",
    "IPython",
)


def environment(folder: Path) -> dict[str, Any]:
    """Describe what a figure depends on: versions, processor, cores, memory, file system, how busy all is."""
    return {
        "day": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "filesystem": filesystem(folder),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def filesystem(folder: Path) -> str:
    """Name the file system under a folder, such as "ext4"; "unknown" where the system does not tell."""
    try:
        answer = subprocess.run(["df", "-T", str(folder)], capture_output=True, text=True, check=True).stdout
        return answer.splitlines()[1].split()[1]
    except (OSError, subprocess.CalledProcessError, IndexError):  # macOS's df has no -T
        return "unknown"


def folder_on_disk(wanted: Path | None) -> Path:
    """Make a fresh folder on a real disk: in memory an fsync costs nothing and the ratios say nothing."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="nbflow-bench-", dir=wanted))
    temporary = Path(tempfile.gettempdir())
    return Path(
        tempfile.mkdtemp(
            prefix="nbflow-bench-", dir=Path.cwd() if filesystem(temporary) == "tmpfs" else temporary
        )
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def figure(value: float | None, unit: str) -> str:
    """Write a figure for people: "214 µs", "1.30 s", "85.0 MB", "41,200 /s".

    >>> figure(0.000214, "s"), figure(85e6, "bytes"), figure(None, "s")
    ('214 µs', '85.0 MB', '')
    """
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    if unit == "/s":
        return f"{value:,.0f} /s"
    size = abs(value)
    if size < 0.001:
        return f"{value * 1e6:.0f} µs" if size >= 1e-5 else f"{value * 1e6:.1f} µs"
    if size < 1:
        return f"{value * 1e3:.1f} ms" if size < 0.1 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s"


def score(value: float, result: Result) -> str:
    """Write a score: a ratio, or a figure in the row's unit."""
    if result.row.target.kind == "ratio":
        return f"{value:.2f} ×"
    return ("+" if result.row.target.kind == "extra" and value >= 0 else "") + figure(value, result.row.unit)


def spread(result: Result) -> str:
    """Write the median score with the least and the greatest."""
    scores = result.scores
    middle = score(statistics.median(scores), result)
    return (
        f"{middle} ({score(min(scores), result)} – {score(max(scores), result)})"
        if len(scores) > 1
        else middle
    )


def target(result: Result) -> str:
    """Write what the row should reach."""
    sign = "≥" if result.row.target.kind == "at_least" else "≤"
    return f"{sign} {score(result.row.target.value, result)}"


def table(results: Sequence[Result]) -> Table:
    """Build the table: what, floor, nbflow, the score with its spread, target, whether it is met."""
    shown = Table(title="nbflow beside its floors (medians)", title_justify="left", pad_edge=False)
    shown.add_column("what", overflow="fold", ratio=3)
    shown.add_column("floor beside it", overflow="fold", ratio=2, style="dim")
    for heading in ("floor", "nbflow"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("ratio or extra (min – max)", justify="right")
    shown.add_column("target", justify="right", no_wrap=True)
    shown.add_column("met", no_wrap=True)
    for result in results:
        row = result.row
        if not result.samples:
            shown.add_row(
                row.what,
                row.floor,
                "",
                "",
                "[red]see below",
                target(result),
                "[red]not measured",
            )
            continue
        met = "[green]yes" if result.met else "[red]no"
        shown.add_row(
            row.what,
            row.floor,
            figure(result.floor, row.unit),
            figure(result.nbflow, row.unit),
            spread(result),
            target(result),
            met,
        )
    return shown


def markdown(results: Sequence[Result]) -> str:
    """Write the same table for `README.md`."""
    lines = [
        "| what | floor beside it | floor | nbflow | ratio or extra (min – max) | target | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        row = result.row
        if result.samples:
            cells = [
                figure(result.floor, row.unit),
                figure(result.nbflow, row.unit),
                spread(result),
                target(result),
            ]
            cells.append("yes" if result.met else "**no**")
        else:
            cells = ["", "", "not measured", target(result), ""]
        lines.append("| " + " | ".join([row.what, row.floor, *cells]) + " |")
    return "\n".join(lines)


def surroundings(facts: dict[str, Any]) -> str:
    """Write what the figures depend on as one sentence."""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    return (
        f"{facts['day']}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"{facts['filesystem']}, "
        f"{facts['system']}; load at the start {facts['load'][0]}; Python {facts['python']}, {packages}."
    )


def update_readme(section: str, text: str) -> None:
    """Put a table into its place in `README.md`: between the comments that name the section."""
    path = Path(__file__).with_name("README.md")
    before, opening, rest = path.read_text().partition(f"<!-- {section} -->\n")
    _, closing, after = rest.partition(f"<!-- end of {section} -->\n")
    if not opening or not closing:
        raise LookupError(f"README.md has no section {section!r}")
    path.write_text(f"{before}{opening}\n{text}\n\n{closing}{after}")


def save(path: Path, results: Sequence[Result], facts: dict[str, Any]) -> None:
    """Write every sample as JSON."""
    rows = [
        {
            "name": result.row.name,
            "what": result.row.what,
            "unit": result.row.unit,
            "target": {"kind": result.row.target.kind, "value": result.row.target.value},
            "samples": [{"floor": sample.floor, "nbflow": sample.nbflow} for sample in result.samples],
            "score": statistics.median(result.scores) if result.samples else None,
            "met": result.met,
            "problem": result.problem,
        }
        for result in results
    ]
    path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")


def console() -> Console:
    """Return a console that is wide enough for the table where the output is no terminal."""
    shown = Console()
    return shown if shown.is_terminal else Console(width=150)
