"""How a command shows a view of the rooms above: they say how, and this room knows only where to ask.

`nbflow.widgets.commands` is loaded when a view is first asked for, and calls
`show_with` for each view that it has: a notebook without one never loads widgets.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_SHOWS: dict[str, Callable[..., Any]] = {}
_HOME = "nbflow.widgets.commands"


def show_with(name: str, show: Callable[..., Any]) -> None:
    """Have a view shown by this function."""
    _SHOWS[name] = show


def show(name: str, **about: Any) -> Any:
    """Return a view, to be displayed by whoever asked."""
    if name not in _SHOWS:
        import_module(_HOME)
    return _SHOWS[name](**about)
