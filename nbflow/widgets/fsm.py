"""`nbflow.fsm()`: the states of a machine, or the cells of a notebook, as a live picture in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from nbflow.board.graph import graph_of
from nbflow.core.errors import UsageError
from nbflow.runtime.machine.machine import Machine
from nbflow.widgets.boards import board_of, in_notebook
from nbflow.widgets.snapshots import Answers, Ask, answers

if TYPE_CHECKING:
    from nbflow.runtime.runs import Run
    from nbflow.store.protocol import Store
    from nbflow.widgets.view import View

#: What a view of a machine asks besides the board's questions.
_NEWEST, _MACHINE = "newest", "machine"


def fsm(run_or_machine: Run | Machine | str, *, store: Store | str | Path | None = None) -> View | None:
    """Show a run's states or cells as a picture: live in a notebook, as a table elsewhere.

    A machine is shown with its newest run, and with the next one when that begins. In a
    notebook the view is returned, which as a cell's last line shows itself, follows the
    run also while a cell runs, and leaves a static record. Elsewhere the states are
    printed and None returned.

    Args:
        run_or_machine: a run, its id or the beginning of it, or a machine.
        store: where the run is; by default the notebook's store, or the one of this folder.

    Raises:
        NbflowError: there is no such run, it is neither run nor machine, or the store cannot be opened.

    >>> import nbflow, tempfile
    >>> light = nbflow.Machine("light", ["red", "off"], initial="red", final={"off"})
    >>> nbflow.fsm(light, store=tempfile.mkdtemp())  # doctest: +ELLIPSIS
    nbflow: graph, as of ...
    Machine light: 2 states...
    """
    board, about, asks = asked(board_of(store), run_or_machine)
    if not in_notebook(get_ipython()):
        print(_as_text(board, asks))  # noqa: T201 - this is what is asked for
        return None
    from nbflow.widgets.view import View

    return View(board, "fsm", about, asks)


def asked(
    board: Answers, run_or_machine: Run | Machine | str
) -> tuple[Answers, dict[str, Any], dict[str, Ask]]:
    """Return whom a view of a run or machine asks, what it is about, and its first questions.

    Raises:
        NbflowError: there is no such run, or it is neither run nor machine.
    """
    if isinstance(run_or_machine, Machine):
        board = _OfMachine(board, run_or_machine)
        newest = board.ask(_NEWEST)
        about = {"workflow": run_or_machine.name, "run": newest["row"]["run"] if newest else None}
        return board, about, {"run": (_NEWEST, {}), "graph": (_MACHINE, {})}
    given = run_or_machine if isinstance(run_or_machine, str) else getattr(run_or_machine, "id", None)
    if given is None:
        raise UsageError(
            f"nbflow.fsm() shows a machine or a run, not {type(run_or_machine).__name__}.",
            hint="Give a machine, a run, or the id of a run; before the first durable step there is no current run.",
        )
    run = board.ask("run", {"run": given})["row"]["run"]
    return board, {"run": run}, {"run": ("run", {"run": run})}


class _OfMachine:
    """A board that knows a machine: its newest run, and its picture where there is none yet."""

    def __init__(self, board: Answers, machine: Machine) -> None:
        self._board = board
        self._machine = machine

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer as the board does, and what is asked of the machine."""
        if method == _MACHINE:
            return graph_of(None, self._machine)
        if method == _NEWEST:
            query = {"workflow": self._machine.name, "children": True, "limit": 1}
            rows = self._board.ask("runs", query)["rows"]
            return self._board.ask("run", {"run": rows[0]["run"]}) if rows else {}
        return self._board.ask(method, params)

    def listen(self, view: str, push: Callable[[dict[str, Any]], None]) -> None:
        """Listen as the board does."""
        self._board.listen(view, push)


def _as_text(board: Answers, asks: dict[str, Ask]) -> str:
    from nbflow.board.record import record

    snapshot = answers(board, asks)
    return str(record("fsm", snapshot, at=snapshot["at"])["text/plain"]).rstrip()
