"""What a board answers, and what went wrong, as the plain data that pages and records are made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nbflow.core.errors import NbflowError

#: A question whose answer a page needs for its first paint: method and parameters.
Ask = tuple[str, dict[str, Any]]


class Answers(Protocol):
    """What a view needs of a board."""

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer one question with plain data."""
        ...

    def listen(self, view: str, push: Callable[[dict[str, Any]], None]) -> None:
        """Have what changes for a page's view pushed."""
        ...


def answers(board: Answers, asks: Mapping[str, Ask]) -> dict[str, Any]:
    """Ask a board; return the answers by name with `at`, and in `problem` what it could not answer."""
    found: dict[str, Any] = {"at": time.time()}
    for name, (method, params) in asks.items():
        try:
            found[name] = board.ask(method, params)
        except (NbflowError, OSError) as error:
            found.setdefault("problem", str(error))
    return found


def error_data(error: BaseException) -> dict[str, Any]:
    """Return an error as the data that a page shows.

    >>> error_data(ValueError("no"))["message"]
    'no'
    """
    message = getattr(error, "message", None) or str(error) or "It gave no reason."
    return {
        "type": type(error).__name__,
        "message": str(message),
        "hint": getattr(error, "hint", None) or "",
        "run": getattr(error, "run", None),
        "step": getattr(error, "step", None),
    }
