"""One line in a terminal that says what the run is at, once a step has taken a second; nothing in pipes and files.

Rich draws it and takes it away again. While a tqdm bar or another display of Rich's
stands there the line is not shown: two of them would write over each other.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from nbflow.core.loaded import loaded
from nbflow.runtime.watch import pulse
from nbflow.runtime.watch.running import PATIENCE, Earlier, doing, said

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Their bar tells of them.
_HIDDEN = frozenset({"item"})


class Status:
    """The line of this process: it tells of the run that was entered last and takes its time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier: dict[Session, Earlier] = {}
        self._line: Any = None

    def begin(self, session: Session) -> None:
        """Tell of this run from now on."""
        with self._lock:
            self._earlier[session] = Earlier(session)
        pulse.add(self.beat)

    def end(self, session: Session) -> None:
        """Tell of this run no more; one that was never told of is fine."""
        with self._lock:
            if self._earlier.pop(session, None) is None:
                return
            if not self._earlier:
                pulse.remove(self.beat)
            self._hide()

    def beat(self) -> None:
        """Bring the line up to date."""
        with self._lock:
            text = "" if _occupied() else self._text()
            if not text:
                self._hide()
            elif self._line is None:
                self._line = _drawn(text)
            else:
                self._line.update(_plain(text))

    def _text(self) -> str:
        for session, earlier in reversed(list(self._earlier.items())):
            now = session.clock.now()
            found = doing(session.history, hidden=_HIDDEN)
            if found is not None and now - found.began >= PATIENCE:
                return said(found, now, before=earlier.of(found.step))
        return ""

    def _hide(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.stop()


def _plain(text: str) -> Any:
    """Return the text as Rich shows it without looking for markup in names."""
    from rich.text import Text

    return Text(text, overflow="ellipsis", no_wrap=True)


def _drawn(text: str) -> Any:
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    console = Console(stderr=True, highlight=False)
    # What is printed meanwhile goes above the line, but only where it goes to the same terminal.
    spinner = Spinner("dots", _plain(text))
    live = Live(
        spinner,
        console=console,
        transient=True,
        refresh_per_second=1 / pulse.EVERY,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    live.start(refresh=True)
    return _Drawn(live, spinner)


class _Drawn:
    """A line of Rich's that stands in the terminal."""

    def __init__(self, live: Any, spinner: Any) -> None:
        self._live, self._spinner = live, spinner

    def update(self, text: Any) -> None:
        self._spinner.update(text=text)

    def stop(self) -> None:
        self._live.stop()


def _occupied() -> bool:
    """Tell whether a bar of tqdm's, or of Rich's own console, stands in the terminal."""
    tqdm = loaded("tqdm.std")
    if tqdm is not None and any(not bar.disable for bar in list(getattr(tqdm.tqdm, "_instances", ()))):
        return True
    rich = loaded("rich")
    console = getattr(rich, "_console", None)
    return bool(getattr(console, "_live_stack", None) or getattr(console, "_live", None))


STATUS = Status()
