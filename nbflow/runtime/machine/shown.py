"""How a machine shows itself in a notebook: a room above draws it, and this one knows only where to ask.

`nbflow.board.machine_picture` is loaded when a machine is first shown, and calls
`draw_with`: who only runs machines never loads what draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbflow.runtime.machine.design import Design

_HOME = "nbflow.board.machine_picture"
_DRAWERS: list[Callable[[Design], dict[str, Any]]] = []


def draw_with(draw: Callable[[Design], dict[str, Any]]) -> None:
    """Have machines drawn by this function, which returns a MIME bundle."""
    _DRAWERS[:] = [draw]


def drawn(machine: Design) -> dict[str, Any]:
    """Return the machine's picture as a MIME bundle."""
    if not _DRAWERS:
        import_module(_HOME)
    return _DRAWERS[0](machine)
