"""The boards of this process: one for each store that a view is about."""

from __future__ import annotations

import atexit
from pathlib import Path
from threading import Lock
from typing import Any

from IPython.core.getipython import get_ipython

from nbflow.board.board import Board
from nbflow.board.here import Kernel
from nbflow.notebook.extension import loaded_in
from nbflow.runtime import active
from nbflow.store.local import process_store
from nbflow.store.protocol import Store

_BOARDS: dict[int, Board] = {}
_LOCK = Lock()


def board_of(store: Store | str | Path | None = None) -> Board:
    """Return the board of a store: by default of the notebook's, else of the attached run's, else of this folder's.

    Raises:
        NbflowError: there is no such store, or it cannot be opened.
    """
    extension = loaded_in(get_ipython())
    if store is None:
        session = active.current()
        if extension is not None:
            store = extension.host.store()
        else:
            store = session.store if session is not None else process_store()
    elif isinstance(store, (str, Path)):
        store = process_store(store)
    with _LOCK:
        board = _BOARDS.get(id(store))  # a board keeps its store, so that the id stays taken
        if board is None:
            here = Kernel(extension.host) if extension is not None else None
            board = _BOARDS[id(store)] = Board(store, here=here)
            atexit.register(board.close)
        return board


def in_notebook(shell: Any) -> bool:
    """Tell whether widgets can be shown: there is a kernel."""
    return getattr(shell, "kernel", None) is not None
