"""What `nbflow batch` shows while it works: a live table for people, a line for each notebook elsewhere.

Both are a `Watcher`. They are told by one thread; the live table is drawn by
another one, four times a second.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nbflow.headless.batches.jobs import Unwatched
from nbflow.notebook.amounts import duration

if TYPE_CHECKING:
    from nbflow.headless.batches.jobs import Item, Outcome, Plan, Progress

#: Lines of the live table: for notebooks at work, and for the last ones that failed or wait.
_AT_WORK, _FAILURES = 16, 4

#: Notebooks that the rate looks back at; the first minutes must not count for ever.
_LOOK_BACK = 50


@dataclass
class _Work:
    """A notebook at work, since when (monotonic seconds), and how far it is."""

    item: Item
    since: float
    attempt: int
    progress: Progress | None = None


@dataclass
class Counts:
    """How far a batch is, as both views and the line in a notebook tell it; times are monotonic seconds."""

    total: int = 0
    done: int = 0
    failed: dict[int, tuple[Item, Outcome]] = field(default_factory=dict)
    #: Those that wait at gates.
    held: dict[int, tuple[Item, Outcome]] = field(default_factory=dict)
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=_LOOK_BACK))
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        """How many notebooks have not come to an end."""
        return self.total - self.done - len(self.failed) - len(self.held)

    def started(self, item: Item) -> None:
        """Count a notebook that is tried again among those that are left."""
        self.failed.pop(item.index, None)
        self.held.pop(item.index, None)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """Count a notebook; one that failed before and was tried again is not counted twice."""
        self.started(item)
        if outcome.state == "completed":
            self.done += 1
        elif outcome.state == "waiting":
            self.held[item.index] = (item, outcome)
        else:
            self.failed[item.index] = (item, outcome)
        self.ends.append(time.monotonic())

    def rate(self) -> float | None:
        """Return how many notebooks end in a second, of those that ended lately; None as long as none has."""
        if not self.ends:
            return None
        full = len(self.ends) == self.ends.maxlen
        since, count = (self.ends[0], len(self.ends) - 1) if full else (self.begun, len(self.ends))
        return count / max(time.monotonic() - since, 0.001)


class Counting(Unwatched):
    """Counts and shows nothing: what `--quiet` and `--json` need at the end."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.run = ""

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """See `Watcher`."""
        self.run = run
        self.counts = Counts(total=len(plan.items), done=len(done))

    def started(self, item: Item, attempt: int) -> None:  # noqa: ARG002 - the protocol
        """See `Watcher`."""
        self.counts.started(item)

    def held(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        self.counts.held[item.index] = (item, outcome)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        self.counts.ended(item, outcome)


class LiveTable(Counting):
    """The table of a batch in a terminal. Use it as a context manager around the batch."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._lock = Lock()
        self._console = console
        self._work: dict[int, _Work] = {}
        self._notice = ""
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_how: object) -> None:
        self._live.stop()

    # --- what is told --------------------------------------------------------------------------------------------

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """See `Watcher`."""
        with self._lock:
            super().begin(run, plan, done)

    def started(self, item: Item, attempt: int) -> None:
        """See `Watcher`."""
        with self._lock:
            super().started(item, attempt)
            self._work[item.index] = _Work(item, time.monotonic(), attempt)

    def progress(self, item: Item, progress: Progress) -> None:
        """See `Watcher`."""
        with self._lock:
            if item.index in self._work:
                self._work[item.index].progress = progress

    def held(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        with self._lock:
            super().held(item, outcome)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        with self._lock:
            self._work.pop(item.index, None)
            super().ended(item, outcome)

    def lost(self, item: Item, error: Exception, again: bool) -> None:
        """See `Watcher`."""
        with self._lock:
            self._notice = f"{label(item)}: {error}{' It goes on in another one.' if again else ''}"

    def stopping(self, why: str) -> None:
        """See `Watcher`."""
        with self._lock:
            self._notice = drained(why, len(self._work))

    # --- the picture ---------------------------------------------------------------------------------------------

    def _picture(self) -> RenderableType:
        with self._lock:
            title = Text(f"batch {self.run}" if self.run else "The batch begins", style="bold")
            parts: list[RenderableType] = [title, self._bar(), self._at_work()]
            if self.counts.failed:
                parts += [Text("failed", style="red"), self._last(self.counts.failed, "red")]
            if self.counts.held:
                parts += [Text("waiting", style="yellow"), self._last(self.counts.held, "yellow")]
            if self._notice:
                parts.append(Text(self._notice, style="yellow"))
        return Group(*parts)

    def _bar(self) -> RenderableType:
        counts = self.counts
        words = f"{counts.done:,} done, {len(counts.failed):,} failed"
        words += f", {len(counts.held):,} waiting" if counts.held else ""
        words += f", {counts.left:,} left"
        rate = counts.rate()
        if rate:
            words += f"   {pace(rate)}"
            if counts.left:
                words += f"   {duration(counts.left / rate)} to go"
        line = Table.grid(padding=(0, 2))
        ended = counts.total - counts.left
        # The words are not broken in a narrow terminal: the bar gives way.
        width = max(4, min(24, self._console.width - len(words) - 4))
        line.add_row(ProgressBar(total=max(counts.total, 1), completed=ended, width=width), Text(words))
        return line

    def _at_work(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for _ in range(3):
            table.add_column(no_wrap=True)
        now = time.monotonic()
        for work in list(self._work.values())[:_AT_WORK]:
            progress = work.progress
            cells = (
                f"cell {min(progress.cells + 1, progress.total)}/{progress.total}" if progress else "starts"
            )
            restored = f"{progress.restored} restored" if progress and progress.restored else ""
            again = f" (try {work.attempt})" if work.attempt > 1 else ""
            took = f"{duration(max(1.0, round(now - work.since)))}"
            table.add_row(f"  ▶ {label(work.item)}{again}", cells, restored, took)
        if len(self._work) > _AT_WORK:
            table.add_row(f"    and {len(self._work) - _AT_WORK} more", "", "", "")
        return table

    def _last(self, stopped: dict[int, tuple[Item, Outcome]], style: str) -> RenderableType:
        lines = [
            Text.assemble(f"  {label(item)}: ", (why(outcome), style), no_wrap=True, overflow="ellipsis")
            for item, outcome in list(stopped.values())[-_FAILURES:]
        ]
        return Group(*lines)


class Lines(Counting):
    """A line for each notebook that ends: for pipes, logs and CI."""

    def __init__(self, say: Callable[[Text], None]) -> None:
        super().__init__()
        self._say = say
        self._running = 0

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """See `Watcher`."""
        super().begin(run, plan, done)
        already = f", {len(done)} of them completed already" if done else ""
        notebooks = f"{len(plan.items):,} notebook{'' if len(plan.items) == 1 else 's'}"
        self._say(Text(f"Batch {run}: {notebooks}{already}."))

    def started(self, item: Item, attempt: int) -> None:
        """See `Watcher`."""
        super().started(item, attempt)
        self._running += 1

    def held(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        super().held(item, outcome)
        self._say(Text(f"⏸ {label(item)}: {why(outcome)} (run {item.run})"))

    def ended(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""
        super().ended(item, outcome)
        self._running -= 1
        counts = self.counts
        place = f"{counts.total - counts.left:>{len(str(counts.total))}}/{counts.total}"
        if outcome.state == "completed":
            cells = f"{outcome.restored} cell{'' if outcome.restored == 1 else 's'}"
            restored = f", {cells} restored" if outcome.restored else ""
            self._say(Text(f"{place} ✔ {label(item)}: {duration(outcome.seconds)}{restored}"))
        else:
            mark = "⏸" if outcome.state == "waiting" else "✘"
            self._say(Text(f"{place} {mark} {label(item)}: {why(outcome)} (run {item.run})"))

    def lost(self, item: Item, error: Exception, again: bool) -> None:
        """See `Watcher`."""
        self._running -= again  # it is started once more, and counted then
        self._say(Text(f"{label(item)}: {error}{' It goes on in another one.' if again else ''}"))

    def stopping(self, why: str) -> None:
        """See `Watcher`."""
        self._say(Text(drained(why, self._running)))


def label(item: Item) -> str:
    """Return an item as people tell it from the others.

    >>> from nbflow.headless.batches.jobs import Item
    >>> label(Item(7, {"year": 2013, "origin": "JFK"}, "0198c200", "out.ipynb"))
    '#7 year=2013 origin=JFK'
    """
    return " ".join([f"#{item.index}", *(f"{name}={_short(value)}" for name, value in item.params.items())])


def why(outcome: Outcome) -> str:
    """Return in one line why a notebook did not complete: the gate, or the cell, counted from 1, and the error."""
    if outcome.waiting is not None:
        return str(outcome.waiting).partition("\n")[0]
    if outcome.state == "cancelled":
        return "cancelled"
    where = f"cell {outcome.cell + 1}: " if outcome.cell is not None else ""
    if outcome.error is None:
        return f"{where}failed"
    kind = outcome.error.type.rpartition(".")[2]
    message = outcome.error.message.strip().partition("\n")[0]
    return f"{where}{kind}: {message}" if message else f"{where}{kind}"


def pace(rate: float) -> str:
    """Return notebooks per second as a rate that can be imagined.

    >>> pace(4.0), pace(0.5), pace(0.001)
    ('4.0 notebooks/s', '30 notebooks/min', '3.6 notebooks/h')
    """
    for unit, length in (("s", 1), ("min", 60)):
        if rate * length >= 1 and (unit != "s" or rate >= 2):
            return f"{rate * length:.{0 if rate * length >= 10 else 1}f} notebooks/{unit}"
    return f"{rate * 3600:.1f} notebooks/h"


def drained(why: str, running: int) -> str:
    """Return the sentence that is shown when nothing new starts any more."""
    if not running or "ended" in why:
        return why
    notebooks = f"{running} notebook{'' if running == 1 else 's'}"
    if "finished" in why:  # somebody pressed Ctrl-C
        return f"Finishing {notebooks}; Ctrl-C again stops them."
    return f"{why} Finishing {notebooks}; Ctrl-C stops them."


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def rows_table(items: Sequence[Item], fates: dict[int, str], *, begun: bool) -> Table:
    """Return the first items of a plan as a table, with what will become of each.

    The runs of a batch that is not `begun` have no ids yet.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = list(dict.fromkeys(name for item in items for name in item.params))
    for heading in ["#", *names, ""]:
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    table.add_column("output", overflow="fold")
    for item in items:
        values = [_short(item.params[name]) if name in item.params else "" for name in names]
        output = _from_here(item.output if begun else item.output.replace(item.run, "{run_id}"))
        table.add_row(str(item.index), *values, fates.get(item.index, "new"), output)
    return table


def _from_here(path: str) -> str:
    """Return a path as short as it can be said from this folder."""
    return path.removeprefix(f"{Path.cwd()}{os.sep}")
