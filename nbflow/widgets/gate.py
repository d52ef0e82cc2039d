"""A gate in the cell that asks: a card with buttons, and the record of what was asked and decided.

The notebook shows a gate where a cell stops at it, where a cell waits at it in
place, and where a decided one is met again (`notebook/gate_cell.py`); it calls
`show_gate`. A decision is put into the run's inbox by whichever thread of the
kernel hears the click; the run takes it in where it waits, or when it goes on.
Nothing here draws: what a gate shows was recorded when it opened.

While a cell waits in place, a click is heard where the kernel has subshells
(ipykernel 7) and the page uses them (JupyterLab 4.4, Notebook 7.4). An older kernel
hears nothing until the cell ends: the card says so, and how to decide in a terminal.
"""

from __future__ import annotations

from typing import Any, ClassVar

from IPython.core.getipython import get_ipython

from nbflow.board.record import record
from nbflow.core.gates import Gate
from nbflow.notebook.gate_cell import Asked, Occasion, published_with
from nbflow.notebook.messages import MARK
from nbflow.widgets.boards import board_of
from nbflow.widgets.snapshots import Answers, Ask, answers
from nbflow.widgets.view import View, execution_of


class GateView(View):
    """The card of one gate of a run, live.

    `waits` says that the cell that shows it waits for the decision in place. A run of
    this notebook is gone on with by running it again, and the card says the keys.
    """

    #: nbflow's own words: a durable cell does not record them as its output.
    published_with: ClassVar[dict[str, Any]] = MARK

    def __init__(self, board: Answers, run: str, step: str, *, waits: bool = False) -> None:
        about = {
            "run": run,
            "step": step,
            "here": True,
            "waits": waits,
            "deaf": waits and deaf(get_ipython()),
            "store": str(getattr(getattr(board, "store", None), "root", "")),
        }
        super().__init__(board, "gate", about, _asks(run, step))


#: What the executing cell shows already: which execution it is, and its views by run, gate and asking.
_execution = ""
_views: dict[tuple[str, str, str], View | None] = {}


def show_gate(*, shell: Any, asked: Asked, gate: Gate, occasion: Occasion = "asked") -> bool:
    """Show a gate of a run in the executing cell: the live card once, later what became of it. Returns True.

    A gate that is decided already is shown as its record alone: there is nothing to press.
    """
    global _execution  # noqa: PLW0603 - of this process, as the cell that executes is
    now = execution_of(shell)
    if now != _execution:
        _execution = now
        _views.clear()
    asking = (asked.run, gate.step, gate.form.opening)
    there = _views.get(asking)
    board = board_of(asked.store)
    if there is not None:
        there.refresh_record()
    elif gate.state == "waiting":
        view = _views[asking] = GateView(board, asked.run, gate.step, waits=occasion == "waits")
        view._ipython_display_()
    elif asking not in _views:
        _views[asking] = None
        snapshot = answers(board, _asks(asked.run, gate.step))
        made = record("gate", snapshot, at=snapshot["at"])
        shell.display_pub.publish(data=made, metadata=published_with(occasion))
    return True


def _asks(run: str, step: str) -> dict[str, Ask]:
    return {"gate": ("gate", {"run": run, "step": step})}


def deaf(shell: Any) -> bool:
    """Tell whether this kernel hears no click while a cell runs: it has no subshells."""
    kernel = getattr(shell, "kernel", None)
    return not getattr(kernel, "_supports_kernel_subshells", False)
