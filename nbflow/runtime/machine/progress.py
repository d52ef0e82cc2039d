"""Who shows how far a machine is, while it runs: set by the notebook layer, asked for each run."""

from __future__ import annotations

from collections.abc import Callable

#: Makes an observer for a run of the machine of this name.
Make = Callable[[str], object]

_makers: list[Make] = []


def show_with(make: Make | None) -> None:
    """Have `make(name)` return an observer for each run of a machine from now on; None unregisters."""
    _makers[:] = [] if make is None else [make]


def watchers(name: str) -> list[object]:
    """Return the observers for a run of this machine; [] where nobody shows anything."""
    return [make(name) for make in _makers]
