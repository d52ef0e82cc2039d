"""Say what a cell is at while it takes its time: lines that are kept up to date and never recorded.

What runs, and for how long, is told by `step_line`; of a machine by `machine_line`,
and of a fan-out here: each appears after a second, and the pulse keeps it alive.

A retry that comes at once is nobody's business. Once a step has kept its cell
waiting for a second, a line says which attempt failed, why, and when the next
one begins; after the cell it says how many there were.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.notebook import messages
from nbflow.notebook.machine_line import MachineLine
from nbflow.notebook.step_line import StepLine
from nbflow.runtime.fanout import progress as fanout_progress
from nbflow.runtime.fanout.progress import Counts, Display
from nbflow.runtime.machine import progress as machine_progress
from nbflow.runtime.watch import pulse
from nbflow.runtime.watch.running import Earlier, lapse

if TYPE_CHECKING:
    from nbflow.runtime.session import Session, StepSpec

#: Seconds of waiting from which on it is worth a line.
_PATIENCE = 1.0

#: Characters of an error's message.
_TEXT = 80


@dataclass
class _Line:
    """What is shown of one step: its display, and the sentence for when the cell is over."""

    since: float
    display_id: str = ""
    closing: str = ""
    #: When the next attempt begins, in monotonic seconds.
    until: float = 0.0


class Progress:
    """Watches one session. Steps may wait in several threads at once."""

    def __init__(self, shell: Any, *, quiet: Callable[[], bool] = lambda: False) -> None:
        self._shell = shell
        self._quiet = quiet
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._session: Session | None = None
        self._earlier: Earlier | None = None
        self._tries: dict[str, int] = {}
        self._machines: list[MachineLine] = []
        self._step: StepLine | None = None
        #: The cell that is executing, as the kernel has it: outputs of the pulse's thread are to go there.
        self._cell: contextvars.Context | None = None
        self._publisher: Any = None

    def watch(self, session: Session) -> None:
        """Listen to the waits of this session instead of another's."""
        self.stop()
        self._session, self._earlier = session, Earlier(session)
        session.on_wait = self._wait
        fanout_progress.show_with(self._fan_out)
        machine_progress.show_with(self._machine)

    def stop(self) -> None:
        """Listen no more, and leave no line that goes on."""
        self.clear()
        if self._session is not None:
            self._session.on_wait = None
            self._session = self._earlier = None
            fanout_progress.show_with(None)
            machine_progress.show_with(None)

    def begin(self) -> None:
        """A cell begins, or the first thing in it attached the run: look now and then what it is at."""
        if self._session is None or self._earlier is None or self._step is not None or not self._is_kernel():
            return
        self._cell, self._publisher = contextvars.copy_context(), self._shell.display_pub
        if not self._quiet():
            self._step = StepLine(self._session, self._earlier, self._tries, self._say)
        pulse.add(self._beat)

    def _is_kernel(self) -> bool:
        """Tell whether lines can be changed here: a terminal has a status line of its own, or none."""
        return hasattr(getattr(self._shell.display_pub, "session", None), "send")

    def _beat(self) -> None:
        """Keep the lines up to date; called by the pulse, in its thread."""
        cell = self._cell
        if cell is not None:
            cell.run(self._look)

    def _look(self) -> None:
        shown, coming = fanout_progress.tick()
        with self._lock:
            machines = list(self._machines)
            now = time.monotonic()
            # An attempt that has just begun is told by the line that announced it.
            shown += sum(
                bool(line.display_id) and now < line.until + _PATIENCE for line in self._lines.values()
            )
        shown += sum(line.beat() for line in machines)
        step = self._step
        if step is not None:
            step.beat(hidden=shown > 0, later=coming + len(machines) > 0)

    def clear(self) -> None:
        """The cell is over: put every line into the past."""
        pulse.remove(self._beat)
        step, self._step, self._cell = self._step, None, None
        if step is not None:
            step.end()
        with self._lock:
            lines, self._lines = self._lines, {}
            self._machines.clear()
            self._tries.clear()
        for line in lines.values():
            if line.display_id:
                self._show(line.closing, line.display_id, update=True)

    def _wait(self, spec: StepSpec, attempt: int, seconds: float, error: BaseException | None) -> None:
        """A step waits `seconds` for its next attempt, the number of which is `attempt`."""
        now = time.monotonic()
        with self._lock:
            self._tries[spec.step] = spec.retry.retries + 1
            line = self._lines.setdefault(spec.step, _Line(now))
            if seconds < _PATIENCE and now - line.since < _PATIENCE:
                return
            begin, line.until = not line.display_id, now + seconds
            line.display_id = line.display_id or f"nbflow-{uuid.uuid4().hex}"
            why = f" ({_told(error)})" if error is not None else ""
            line.closing = f"{spec.name}: {attempt} attempts, the one before the last failed{why}"
        at = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        self._show(
            f"{spec.name}: attempt {attempt - 1} of {spec.retry.retries + 1} failed{why}; "
            f"the next one begins at {at}, in {seconds:.0f} s",
            line.display_id,
            update=not begin,
        )

    def _fan_out(self, _counts: Counts) -> Display | None:
        """A fan-out takes its time: say what shows how far it is. A terminal has its bar."""
        return None if sys.stderr.isatty() else _FanLine(self)

    def _machine(self, name: str) -> MachineLine:
        """A machine begins to run."""
        line = MachineLine(name, self._say)
        with self._lock:
            self._machines = [other for other in self._machines if not other.over]
            self._machines.append(line)
        return line

    def _say(self, text: str, display_id: str, update: bool, last: bool) -> None:
        if self._publisher is not None and self._shell.display_pub is not self._publisher:
            return  # what the cell shows is captured, by %%capture or by a gate
        messages.say(self._shell, text, display_id=display_id, update=update, passing=not last)

    def _show(self, text: str, display_id: str, *, update: bool) -> None:
        messages.say(self._shell, text, display_id=display_id, update=update)


class _FanLine:
    """One line for one fan-out, kept up to date."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._display_id = f"nbflow-{uuid.uuid4().hex}"
        self._shown = False
        self._began = time.monotonic() - _PATIENCE  # it is made when so much time has passed

    def show(self, counts: Counts) -> None:
        """Show the counts as they are now, and how long the rest may take."""
        gone = time.monotonic() - self._began
        self._tell(counts, f", {lapse(gone)}{_left(counts, gone)}", passing=True)

    def close(self, counts: Counts) -> None:
        """Show the last counts."""
        self._tell(counts, "", passing=False)

    def _tell(self, counts: Counts, time_told: str, *, passing: bool) -> None:
        ended = counts.total - counts.left
        more = fanout_progress.said(counts)
        text = f"{counts.name}: {ended:,} of {counts.total:,} items{f' ({more})' if more else ''}{time_told}"
        self._progress._say(text, self._display_id, self._shown, not passing)  # noqa: SLF001 - of the same file
        self._shown = True


def _left(counts: Counts, gone: float) -> str:
    """Say how long the rest may take, going by the items that ended now; "" while none has."""
    ended = counts.done + counts.failed
    return f", about {lapse(gone / ended * counts.left)} left" if ended and counts.left else ""


def _told(error: BaseException) -> str:
    """Return an exception in one short line."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:_TEXT]}" if line else type(error).__name__
