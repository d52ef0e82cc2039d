"""Where a durable call stands: the enclosing cell or step, and how often it was called there.

Two identical calls keep two results because each has an occurrence number
within its scope. A new thread does not inherit context variables, so a call
in it belongs to the scope that the session says is active.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

#: One for all scopes: it is held for a dictionary's moment, and every call makes a scope.
_counting = threading.Lock()


class Scope:
    """The calls under one enclosing step: `name` begins their keys ("" for the run itself), `step` is its key.

    The two differ for calls: the name leaves the code out, so that the calls
    which a function had finished are found again after the function was mended.
    """

    def __init__(self, name: str = "", step: str | None = None) -> None:
        self.name = name
        self.step = name if step is None else step
        self._counts: dict[str, int] = {}

    def occurrence(self, call: str) -> int:
        """Count one more call of this name and signature here; return how many came before it."""
        with _counting:
            number = self._counts.get(call, 0)
            self._counts[call] = number + 1
        return number

    def give_back(self, call: str, number: int) -> None:
        """Uncount a call that failed, if none came after it: calling it again is another try at the same step."""
        with _counting:
            if self._counts.get(call) == number + 1:
                self._counts[call] = number

    def within(self, call: str) -> str:
        """Return the key of something called `call` in this scope.

        >>> Scope("load").within("fetch:1f2e#0"), Scope().within("fetch:1f2e#0")
        ('load/fetch:1f2e#0', 'fetch:1f2e#0')
        """
        return f"{self.name}/{call}" if self.name else call


_enclosing: ContextVar[Scope | None] = ContextVar("nbflow_scope", default=None)


def enclosing() -> Scope | None:
    """Return the scope of this thread or task; None where it inherited none."""
    return _enclosing.get()


class entered:  # noqa: N801 - used like contextlib's functions, and three times as fast as a generator
    """Make a scope the enclosing one for the body of a with statement.

    >>> with entered(Scope("load")):
    ...     enclosing().name
    'load'
    """

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> Scope:
        self._token = _enclosing.set(self._scope)
        return self._scope

    def __exit__(self, *failure: object) -> None:
        _enclosing.reset(self._token)
