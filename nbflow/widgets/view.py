"""A live view in a notebook: a widget whose page asks the board, and a static record beside it.

The page sends `{id, method, params}` over the widget's comm and gets `{id,
result}` or `{id, error}`; what changes is pushed from the board's own thread,
also while a cell runs. A comm speaks to every page that shows the notebook:
each page names itself (its "view"), and takes only what is addressed to it.

A widget is gone with its kernel. What stays in the notebook is the record: an
output of its own before the widget, updated while the run moves and when a cell
ends, and hidden by the page for as long as there is a live view.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from threading import Lock, Timer
from typing import Any, ClassVar

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from nbflow.board.record import record
from nbflow.core.errors import NbflowError
from nbflow.notebook.messages import ASIDE
from nbflow.widgets import assets
from nbflow.widgets.snapshots import Answers, Ask, answers, error_data

#: Seconds between two updates of a static record while a run moves.
RECORD_EVERY = 5.0

_WIDGET = "application/vnd.jupyter.widget-view+json"

#: Stands between the record and the place of the live view, where a notebook without its kernel shows an error.
_AGAIN = (
    '<p style="margin:6px 0;font-family:var(--jp-ui-font-family,system-ui,sans-serif);'
    'font-size:var(--jp-ui-font-size1,13px)">The live view needs its kernel: run the cell again to have it.</p>'
)

#: What a page may ask its view besides the board: a page that goes.
_BYE = "bye"


class View(anywidget.AnyWidget):
    """A page over a board: of `kind` "dashboard", "fsm" or "gate", about what `about` says.

    `asks` are the questions whose answers are the page's first paint and the static
    record: `{"runs": ("runs", {})}` makes `snapshot["runs"]`. What cannot be answered
    is said in `snapshot["problem"]`; there is always something to show.
    """

    _esm = assets.module()
    _css = assets.style()
    kind = traitlets.Unicode("dashboard").tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    snapshot = traitlets.Dict().tag(sync=True)

    #: The metadata of what is published in the cell.
    published_with: ClassVar[dict[str, Any]] = {}

    def __init__(self, board: Answers, kind: str, about: Mapping[str, Any], asks: Mapping[str, Ask]) -> None:
        self.board = board
        self.asks = dict(asks)
        self.record_id = uuid.uuid4().hex[:12]
        self._record = _Record(self)
        super().__init__(
            kind=kind, about={**about, "record": self.record_id}, snapshot=answers(board, self.asks)
        )
        answer_at_once(self.comm)
        self.on_msg(self._asked)

    # --- questions of the page ----------------------------------------------------------------------

    def _asked(self, _: Any, content: Any, __: Any = None) -> None:
        """Answer one message of a page; whatever goes wrong is an answer too."""
        if not isinstance(content, dict) or "method" not in content:
            return
        params = content.get("params") or {}
        self.send({"id": content.get("id"), **self._answer(str(content["method"]), params)})

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            if method == _BYE:
                return {"result": self.board.ask("unwatch", params)}
            if method == "watch":
                self.board.listen(str(params["view"]), self._push_to(str(params["view"])))
            return {"result": self.board.ask(method, params)}
        except Exception as error:  # noqa: BLE001 - it is shown where the click was
            return {"error": error_data(error)}

    def _push_to(self, view: str) -> Callable[[dict[str, Any]], None]:
        def push(message: dict[str, Any]) -> None:
            self.send({**message, "view": view})
            self._record.moved()

        return push

    # --- showing ------------------------------------------------------------------------------------

    def _ipython_display_(self, **_: Any) -> None:
        """Show the record and behind it the live view, as two outputs of the cell."""
        shell = get_ipython()
        if shell is None:
            print(self.said())  # noqa: T201 - there is nothing else to show it with
            return
        self._record.publish()
        data: dict[str, Any] = {"text/plain": "", "text/html": ""}
        if self._view_name is not None:
            data[_WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        shell.display_pub.publish(data=data, metadata=self.published_with)

    def said(self) -> str:
        """Return the view as text, for where there is no page."""
        return str(self._record.bundle()["text/plain"])

    def refresh_record(self) -> None:
        """Bring the static record up to date now."""
        self._record.refresh()

    def close(self) -> None:
        """End the view; the record stays as it is."""
        self._record.end()
        super().close()


class _Record:
    """The static record of one view: published once, updated while the run moves and when a cell ends."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.display_id = ""
        self._last: dict[str, Any] = {}
        self._at = 0.0
        self._seen: Any = None
        self._timer: Timer | None = None
        self._cell = ""
        self._lock = Lock()
        self._turn = Lock()

    def bundle(self, snapshot: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what is shown, with the class by which a live view hides it."""
        snapshot = self.view.snapshot if snapshot is None else snapshot
        made = record(self.view.kind, dict(snapshot), at=float(snapshot["at"]))
        html = f'<div class="nbflow-record-{self.view.record_id}">{made["text/html"]}{_AGAIN}</div>'
        return {**made, "text/html": html}

    def publish(self) -> None:
        """Publish the record in the cell that runs."""
        shell: Any = get_ipython()
        self.end()
        self.display_id = f"nbflow-record-{uuid.uuid4().hex}"
        self._last, self._at = self.bundle(), time.monotonic()
        self._has_moved()
        shell.display_pub.publish(
            data=self._last,
            metadata=self.view.published_with,
            transient={"display_id": self.display_id},
        )
        self._keep(shell)

    def _keep(self, shell: Any) -> None:
        """Update the record at the end of each cell; a cell that is run again gives up what it showed before."""
        self._cell, now = _cell(shell), execution_of(shell)
        execution, records = _kept.get(self._cell, (now, []))
        if execution != now:
            for before in list(records):
                before.end()
            records = []
        _kept[self._cell] = now, [*records, self]
        shell.events.register("post_run_cell", self.after_cell)

    def after_cell(self, _: Any = None) -> None:
        """Take up what the cell changed, if it did."""
        if self._timer is not None or self._has_moved():
            self.refresh()

    def _has_moved(self) -> bool:
        """Tell whether anything moved in the store since the last look."""
        store = getattr(self.view.board, "store", None)
        if store is None:
            return True
        try:
            moved, self._seen = store.changes(self._seen)
        except (NbflowError, OSError):
            return True  # the record says what is wrong
        return bool(moved)

    def moved(self) -> None:
        """Take up a change, at once or when `RECORD_EVERY` is over."""
        with self._lock:
            if not self.display_id or self._timer is not None:
                return
            wait = max(0.0, self._at + RECORD_EVERY - time.monotonic())
            self._timer = Timer(wait, self.refresh)
            self._timer.daemon = True
            self._timer.start()

    def refresh(self) -> None:
        """Publish the record anew where it says something else than before."""
        with self._lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if not self.display_id:
                return
            self._at = time.monotonic()
        with self._turn:  # else what another thread saw before could be published behind this
            snapshot = answers(self.view.board, self.view.asks)
            made = self.bundle({**snapshot, "at": self.view.snapshot["at"]})
            shell = get_ipython()
            if made == self._last or not self.display_id or shell is None:
                return
            self._last = made
            shell.display_pub.publish(
                data=self.bundle(snapshot),
                metadata=self.view.published_with or ASIDE,
                transient={"display_id": self.display_id},
                update=True,
            )

    def end(self) -> None:
        """Leave the record as it is."""
        with self._lock:
            timer, self._timer, displayed, self.display_id = self._timer, None, self.display_id, ""
            _, records = _kept.get(self._cell, ("", []))
            if self in records:
                records.remove(self)
        if timer is not None:
            timer.cancel()
        shell = get_ipython()
        if displayed and shell is not None:
            shell.events.unregister("post_run_cell", self.after_cell)


#: The records that are kept up to date, by the cell that showed them, with its execution.
_kept: dict[str, tuple[str, list[_Record]]] = {}


def answer_at_once(comm: Any) -> None:
    """Have messages to this comm handled while a cell runs, where the kernel has subshells.

    ipykernel 7.4 hands a message to the (sub)shell from which the comm was last
    written to: the busy one that made the widget. The message names a better one.
    """
    if getattr(comm, "_reply_subshell_for", None) is not None:
        comm._reply_subshell_for = lambda _, default: default  # noqa: SLF001 - there is no public way


def _cell(shell: Any) -> str:
    """Return the id of the cell that runs, or an id of its own where the front end does not tell."""
    return str(_parent(shell).get("metadata", {}).get("cellId") or uuid.uuid4().hex)


def execution_of(shell: Any) -> str:
    """Return what tells this execution of a cell from any other."""
    return str(_parent(shell).get("header", {}).get("msg_id", ""))


def _parent(shell: Any) -> dict[str, Any]:
    kernel = getattr(shell, "kernel", None)
    return kernel.get_parent() if kernel is not None else {}
