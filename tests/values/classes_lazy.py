"""What the catalogues of examples have in common: libraries that are imported only when an example is made."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


class Library:
    """A module that is imported when an attribute is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            return getattr(import_module(self._name), attribute)
        except AttributeError:
            return import_module(f"{self._name}.{attribute}")


def put(*place: Any, value: Any) -> Callable[[Any], None]:
    """Make a change that sets one item."""

    def change(target: Any) -> None:
        target[place if len(place) != 1 else place[0]] = value

    return change
