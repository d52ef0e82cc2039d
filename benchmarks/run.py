"""Measure nbflow beside its floors and print one table: `make bench`, or `python benchmarks/run.py -h`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# So that `python benchmarks/run.py` works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    calls,
    cells,
    dashboard,
    dashboard_page,
    fanout,
    frames,
    machine,
    papermill,
    report,
    startup,
    store,
)
from benchmarks.harness import Bench, Group, measure

GROUPS: tuple[Group, ...] = (
    *calls.GROUPS,
    *cells.GROUPS,
    *frames.GROUPS,
    *store.GROUPS,
    *startup.GROUPS,
    *machine.GROUPS,
    *fanout.GROUPS,
    *papermill.GROUPS,
    *dashboard.GROUPS,
    *dashboard_page.GROUPS,
)


def chosen(only: Sequence[str]) -> list[Group]:
    """Return the groups whose name, or one of whose rows' names, begins with one of the words."""
    if not only:
        return list(GROUPS)
    return [
        group
        for group in GROUPS
        if any(
            name.startswith(word) for word in only for name in (group.name, *(row.name for row in group.rows))
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 0, or 1 when a row is missing or `--quick` found a gross regression."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a short version that fails only for gross regressions"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="groups or rows whose name begins so"
    )
    parser.add_argument(
        "--repetitions", type=int, metavar="N", help="how often to measure each row (7; with --quick 3)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--update", action="store_true", help="put the table into README.md")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="measure on the disk of DIR")
    parser.add_argument("--list", action="store_true", help="list the rows and measure nothing")
    options = parser.parse_args(arguments)

    console = report.console()
    groups = chosen(options.only)
    if options.list or not groups:
        for group in groups or GROUPS:
            console.print(f"[bold]{group.name}[/]: " + ", ".join(row.name for row in group.rows))
        return 0 if options.list else 2

    folder = report.folder_on_disk(options.dir)
    # Its own key and configuration: the user's are not touched, and not measured.
    os.environ["NBFLOW_DATA_DIR"] = str(folder / "user")
    try:
        bench = Bench(folder, options.repetitions or (3 if options.quick else 7), options.quick)
        facts = report.environment(folder)
        results = measure(groups, bench, lambda name: console.print(f"measuring {name} …", style="dim"))
        if options.json:
            report.save(options.json, results, facts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    console.print(report.table(results))
    for result in results:
        if result.problem:
            console.print(f"{result.row.name}: {result.problem}", style="red", markup=False)
    console.print(report.surroundings(facts), style="dim")
    if options.update:
        report.update_readme("floors", f"{report.markdown(results)}\n\n{report.surroundings(facts)}")
    broken = [result.row.name for result in results if not result.samples]
    gross = [result.row.name for result in results if options.quick and result.gross]
    if gross:
        console.print(f"More than three times the target: {', '.join(gross)}", style="bold red")
    return 1 if broken or gross else 0


if __name__ == "__main__":
    sys.exit(main())
