"""The notebook's kernel that a board lives in, where it lives in one: its run, and how it takes up another."""

from __future__ import annotations

import threading
from typing import Protocol

from nbflow.core.errors import UsageError
from nbflow.notebook.host import Host


class Here(Protocol):
    """What a board may ask of the kernel that it lives in."""

    def run(self) -> str | None:
        """Return the run that is attached; None where none is."""
        ...

    def workflow(self) -> str:
        """Return what the runs of this notebook are called."""
        ...

    def attach(self, run: str) -> None:
        """Take up another unfinished run of this notebook.

        Raises:
            NbflowError: it cannot be taken up, or not now.
        """
        ...

    def new(self) -> str:
        """Start a fresh run and return its id.

        Raises:
            NbflowError: not now.
        """
        ...


class Kernel:
    """A notebook's kernel, as `%nbflow` commands it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def run(self) -> str | None:
        """See `Here`."""
        session = self._host.session
        return session.run if session is not None else None

    def workflow(self) -> str:
        """See `Here`."""
        return self._host.workflow()

    def attach(self, run: str) -> None:
        """See `Here`."""
        with self._host.changing:
            self._idle()
            self._host.attach(run=run)

    def new(self) -> str:
        """See `Here`."""
        with self._host.changing:
            self._idle()
            return self._host.attach(new=True).run

    def _idle(self) -> None:
        """Refuse to change runs under a cell that is being executed, as a click over a subshell would."""
        if self._host.engaged:
            raise UsageError("This notebook is executed as one run, which another program leads.")
        place = self._host.place
        if place is not None and (place.durable or threading.current_thread() is not threading.main_thread()):
            raise UsageError(
                "A cell is running, and its run cannot be changed under it. Nothing was changed.",
                hint="Interrupt it, or wait until it ends.",
            )
