"""`nbflow.dashboard()`: the runs of a store, their steps and gates, live in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from nbflow.widgets.boards import board_of, in_notebook

if TYPE_CHECKING:
    from nbflow.runtime.runs import Run
    from nbflow.store.protocol import Store
    from nbflow.widgets.view import View

#: Runs that a page is given with its first paint; it asks for the others when they come in sight.
FIRST = 100


def dashboard(run: Run | str | None = None, *, store: Store | str | Path | None = None) -> View | None:
    """Show the runs of a store, or one of them first: live in a notebook, as a short table elsewhere.

    In a notebook the view is returned, which as a cell's last line shows itself. It
    follows every run of the store, also while a cell runs, and leaves a static record.
    Elsewhere the table is printed and None returned.

    Args:
        run: begin with this run, an id or its beginning.
        store: whose runs; by default the notebook's, or the one of this folder.

    Raises:
        NbflowError: there is no such run, or the store cannot be opened.

    >>> import nbflow, tempfile
    >>> nbflow.dashboard(store=tempfile.mkdtemp())  # doctest: +ELLIPSIS
    nbflow...
    """
    board = board_of(store)
    asks: dict[str, tuple[str, dict[str, Any]]] = {"runs": ("runs", {"limit": FIRST}), "gates": ("gates", {})}
    about: dict[str, Any] = {"store": str(getattr(board.store, "root", ""))}
    if run is not None:
        found = board.ask("run", {"run": run if isinstance(run, str) else run.id})
        about["run"] = found["row"]["run"]
        asks["run"] = ("run", {"run": about["run"]})
    if not in_notebook(get_ipython()):
        print(_as_text(board, asks))  # noqa: T201 - this is what is asked for
        return None
    from nbflow.widgets.view import View

    return View(board, "dashboard", about, asks)


def _as_text(board: Any, asks: dict[str, tuple[str, dict[str, Any]]]) -> str:
    from nbflow.board.record import record
    from nbflow.widgets.snapshots import answers

    snapshot = answers(board, asks)
    text = str(record("dashboard", snapshot, at=snapshot["at"])["text/plain"]).rstrip()
    return f"{text}\nIn a notebook (JupyterLab, Notebook 7) nbflow.dashboard() is live: filters, timelines, decisions."
