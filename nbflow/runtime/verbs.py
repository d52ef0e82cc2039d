"""Verbs that work in sync and in async code: `nbflow.sleep(5)` and `await nbflow.sleep.aio(5)`.

A function cannot tell which of the two is wanted: in a notebook an event loop
always runs, and sync cells run inside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Verb(Generic[P, R]):
    """A function that blocks, and beside it as `aio` the one to be awaited; made by `verb`.

    Name, docstring and signature are those of the blocking one.
    """

    def __init__(self, sync: Callable[P, R], aio: Callable[P, Coroutine[Any, Any, R]]) -> None:
        functools.update_wrapper(self, sync)
        self._sync = sync
        self.aio = aio
        for name in ("__name__", "__qualname__", "__doc__"):
            setattr(aio, name, getattr(sync, name))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it, blocking this thread."""
        return self._sync(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<nbflow.{self._sync.__name__}: call it, or await .aio(…) in async code>"

    def __reduce__(self) -> str:
        return self._sync.__qualname__


def verb(aio: Callable[P, Coroutine[Any, Any, R]]) -> Callable[[Callable[P, R]], Verb[P, R]]:
    """Make a blocking function a verb whose `aio` is the given coroutine function.

    >>> async def later(x): return x + 1
    >>> @verb(later)
    ... def now(x):
    ...     '''Add one.'''
    ...     return x + 1
    >>> import asyncio
    >>> now(1), asyncio.run(now.aio(1)), now.__doc__
    (2, 2, 'Add one.')
    """
    return lambda sync: Verb(sync, aio)
