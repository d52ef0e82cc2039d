"""How facts are shown: times, sizes and states as people read them, and the same facts as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from nbflow.core.model import OutputInfo, RunInfo, StepInfo
from nbflow.notebook.amounts import duration

#: State by word, mark and colour: the mark and the word stay where colours are off.
_STATES = {
    "pending": ("○", "dim"),
    "running": ("▶", "cyan"),
    "waiting": ("⏸", "yellow"),
    "completed": ("✔", "green"),
    "failed": ("✘", "red"),
    "cancelled": ("⊘", "dim"),
    "skipped": ("↷", "dim"),
    "timed_out": ("⏱", "red"),
    "stopped": ("■", "yellow"),
    "interrupted": ("■", "yellow"),
    "corrupt": ("☠", "bold red"),
}

#: Columns whose cells may take several lines in a narrow terminal.
_FOLDED = {"step", "why", "what", "finding", "about", "question", "options"}

#: Columns whose cells may be cut in a narrow terminal.
_CUT = {"workflow", "variable", "value", "outputs"}

#: Thirteen characters of a UUIDv7 are its time in milliseconds: enough to tell apart nearly all runs.
_SHORTEST_ID = 13


def state(word: str) -> Text:
    """Return a state as coloured mark and word."""
    mark, style = _STATES.get(word, ("?", ""))
    return Text(f"{mark} {word}", style=style)


def ago(at: float | None, now: float | None = None) -> str:
    """Return a UTC time in seconds as time gone by; "" for an unknown one, which is None or 0.

    >>> ago(1000.0, now=1090.0), ago(None)
    ('1 min ago', '')
    """
    if not at:
        return ""
    gone = max(0.0, (time.time() if now is None else now) - at)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if gone >= length:
            return f"{gone // length:.0f} {unit} ago"
    return f"{gone:.0f} s ago"


def seconds(value: float | None) -> str:
    """Return a duration in seconds as people say it; "" for an unknown one.

    >>> seconds(12.34), seconds(None)
    ('12 s', '')
    """
    return "" if value is None else duration(value)


def short_ids(runs: Iterable[RunInfo]) -> dict[str, str]:
    """Return for each run id the shortest prefix that tells it from the others shown.

    >>> short_ids([RunInfo("0198a", "w", "failed")])
    {'0198a': '0198a'}
    """
    return shortened([run.run for run in runs])


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Return for each run id the shortest prefix that tells it from the others."""
    ids = sorted(names)
    short: dict[str, str] = {}
    for index, run in enumerate(ids):
        length = _SHORTEST_ID
        for other in ids[max(0, index - 1) : index] + ids[index + 1 : index + 2]:
            while length < len(run) and run[:length] == other[:length]:
                length += 1
        short[run] = run[:length]
    return short


def table(
    columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[Any]], title: str | None = None
) -> Table:
    """Return a table; a column given as (name, "right") is aligned so.

    Where the terminal is narrow only the last columns and keys give way: an id or a number that is cut
    names nothing.
    """
    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for column in columns:
        name, justify = (column, "left") if isinstance(column, str) else column
        gives_way = name in _FOLDED or name in _CUT
        made.add_column(name, justify=justify, no_wrap=not gives_way, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        cells = [cell if isinstance(cell, Text) else Text(str(cell)) for cell in row]
        for made_column, cell in zip(made.columns, cells, strict=True):
            if made_column.header in _CUT:  # Rich would break it into lines
                cell.no_wrap, cell.overflow = True, "ellipsis"
            elif made_column.header == "run":
                made_column.min_width = max(made_column.min_width or 0, cell.cell_len)
        made.add_row(*cells)
    return made


def runs_table(runs: Sequence[RunInfo]) -> Table:
    """Return the listing of runs."""
    ids = short_ids(runs)
    columns: list[str | tuple[str, str]] = [
        "run",
        "workflow",
        "state",
        ("steps", "right"),
        ("attempt", "right"),
    ]
    columns += ["started", "last word", "about"]
    rows = [
        (
            ids[run.run],
            run.workflow,
            state(run.state) if not stopped(run) else Text("■ stopped", style="yellow"),
            run.steps,
            run.attempts,
            ago(run.created_at),
            ago(run.updated_at),
            about(run),
        )
        for run in runs
    ]
    if not any(row[-1] for row in rows):  # 80 columns hold the others
        columns, rows = columns[:-1], [row[:-1] for row in rows]  # type: ignore[misc]
    return table(columns, rows)


def stopped(run: RunInfo) -> bool:
    """Tell whether the run says that it is running while its owner is known to be gone."""
    return run.state == "running" and run.alive is False


def about(run: RunInfo) -> str:
    """Return what else there is to say about a run in one line: its error, owner, tags."""
    words = [run.error.splitlines()[0][:60]] if run.error else []
    if run.alive and run.owner is not None:
        words.append(f"pid {run.owner.pid} on {run.owner.host}")
    words += [f"{name}={value}" for name, value in sorted(run.tags.items())]
    return ", ".join(words)


def iso(at: float | None) -> str | None:
    """Return UTC seconds as ISO 8601, to the millisecond; None for an unknown time, which is None or 0.

    >>> iso(60.5)
    '1970-01-01T00:01:00.500Z'
    """
    if not at:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_facts(run: RunInfo) -> dict[str, Any]:
    """Return a run as JSON-able facts, as documented in docs/cli.md."""
    owner = run.owner
    return {
        "run": run.run,
        "workflow": run.workflow,
        "workflow_kind": run.workflow_kind,
        "state": str(run.state),
        "alive": run.alive,
        "version": run.version,
        "params": run.params,
        "tags": run.tags,
        "parent": run.parent,
        "created_at": iso(run.created_at),
        "updated_at": iso(run.updated_at),
        "finished_at": iso(run.finished_at),
        "attempts": run.attempts,
        "generation": run.generation,
        "steps": run.steps,
        "error": run.error,
        "owner": None
        if owner is None
        else {
            "host": owner.host,
            "pid": owner.pid,
            "since": iso(owner.since),
            "user": owner.user,
            "program": owner.program,
        },
    }


def step_facts(step: StepInfo) -> dict[str, Any]:
    """Return one execution of a step as JSON-able facts, as documented in docs/cli.md."""
    error = step.error
    return {
        "execution": step.execution,
        "step": step.step,
        "name": step.name,
        "kind": step.step_kind,
        "state": str(step.state),
        "current": step.current,
        "attempt": step.attempt,
        "parent": step.parent,
        "version": step.version,
        "signature": step.signature.hex(),
        "started_at": iso(step.started_at),
        "finished_at": iso(step.finished_at),
        "seconds": step.seconds,
        "error": None
        if error is None
        else {"type": error.type, "message": error.message, "traceback": error.traceback},
        "outputs": [output_facts(output) for output in step.outputs],
    }


def output_facts(output: OutputInfo) -> dict[str, Any]:
    """Return what is known of a recorded variable as JSON-able facts, as documented in docs/cli.md."""
    columns = output.columns
    return {
        "name": output.name,
        "type": output.type,
        "size": output.size,
        "rows": output.rows,
        "columns": None
        if columns is None
        else [{"name": column.name, "type": column.type} for column in columns],
        "fingerprint": output.fingerprint.hex(),
        "preview": output.preview,
    }
