"""The boards of this process: one for each store that a view is about."""

from __future__ import annotations

import atexit
from pathlib import Path
from threading import Lock
from typing import Any

from IPython.core.getipython import get_ipython

from nbflow.board.board import Board
from nbflow.board.here import Kernel
from nbflow.core.errors import NotAStore
from nbflow.notebook.extension import loaded_in
from nbflow.runtime import active
from nbflow.store.local import process_store
from nbflow.store.place import locate
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
        store = process_store(_there(store))
    with _LOCK:
        board = _BOARDS.get(id(store))  # a board keeps its store, so that the id stays taken
        if board is None:
            here = Kernel(extension.host) if extension is not None else None
            board = _BOARDS[id(store)] = Board(store, here=here)
            atexit.register(board.close)
        return board


def _there(place: str | Path) -> str | Path:
    """Return a place that is there: looking at a misspelt path would make an empty store of it."""
    path = Path(place).expanduser().absolute()
    if "://" not in str(place) and not path.exists() and not locate(place).exists():
        raise NotAStore(f"There is no {path}, so no store to show.", hint="Name a folder that is there.")
    return place


def in_notebook(shell: Any) -> bool:
    """Tell whether widgets can be shown: there is a kernel."""
    return getattr(shell, "kernel", None) is not None
