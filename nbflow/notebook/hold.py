"""Keep cells from running that a front end had sent before anybody could see that a gate stopped the notebook.

Behind an error a kernel drops the requests that wait in its queue. With *Run
All* JupyterLab sends all cells at once, but cells that are restored take
milliseconds: the gate has stopped the notebook before the rest has arrived, and
what comes then would run. Behind a gate it must not: it may publish.

Every request says when it was sent, by the front end's clock. The quickest
request so far tells how far that clock is behind the kernel's at most, so
whoever sent a request after the error was there is never held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from nbflow.core.errors import GatePending, GateRejected, GateTimedOut, HeldBack
from nbflow.core.gates import pending_of

#: The attribute of the shell that a held cell calls.
ENTRY = "nbflow_hold_back"


class Hold:
    """One shell's memory of the last gate that stopped it.

    `waits` tells whether a gate still waits for a decision, `now` is the kernel's clock (UTC seconds).
    """

    def __init__(
        self, shell: Any, waits: Callable[[GatePending], bool], now: Callable[[], float] = time.time
    ) -> None:
        self._shell = shell
        self._waits = waits
        self._now = now
        self._pending: GatePending | None = None
        self._behind = float("inf")  # the least that any request arrived after it was sent
        self._gate = ""
        self._until = 0.0
        self._seen = ""

    def install(self) -> None:
        """Stand in front of all that transforms a cell."""
        setattr(self._shell, ENTRY, self._refuse)
        self._shell.input_transformer_manager.cleanup_transforms.insert(0, self.rewrite)
        self._shell.events.register("post_run_cell", self.post_run_cell)

    def remove(self) -> None:
        """Undo `install`."""
        self._shell.events.unregister("post_run_cell", self.post_run_cell)
        self._shell.input_transformer_manager.cleanup_transforms.remove(self.rewrite)
        delattr(self._shell, ENTRY)

    def post_run_cell(self, result: Any = None) -> None:
        """IPython's event: a cell is over; note the gate that stopped it."""
        error = getattr(result, "error_in_exec", None)
        pending = pending_of(error) if error is not None else None
        if pending is not None:
            self._gate, self._until, self._pending = pending.name, self._now(), pending
        elif isinstance(error, GateRejected | GateTimedOut):
            self._gate, self._until, self._pending = error.name, self._now(), None

    def rewrite(self, lines: list[str]) -> list[str]:
        """Return the lines of a cell, or a call that says why it does not run."""
        request = getattr(self._shell, "parent_header", None)
        if not isinstance(request, dict) or not lines:
            return lines
        return [f"get_ipython().{ENTRY}()\n"] if self.holds(request) else lines

    def holds(self, request: dict[str, Any]) -> bool:
        """Tell whether a request was sent before its author could know of the gate."""
        header = request.get("header", {})
        sent = header.get("date")
        if header.get("msg_type") != "execute_request" or not isinstance(sent, datetime):
            return False
        if header.get("msg_id") != self._seen:  # a cell is transformed more than once
            self._seen = str(header.get("msg_id"))
            self._behind = min(self._behind, self._now() - sent.timestamp())
        if not self._gate or request.get("content", {}).get("silent"):
            return False
        early = sent.timestamp() + self._behind < self._until
        return early and (self._pending is None or self._waits(self._pending))

    def _refuse(self) -> None:
        raise HeldBack(
            f"Not run: gate {self._gate!r} stopped the notebook above this cell.",
            name=self._gate,
            hint="It was sent together with the cells above, so nobody had seen that yet.",
        )
