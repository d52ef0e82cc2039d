"""When and in which turns leaves are compacted.

`compact.py` writes; here is the loop around it, which lets other processes have
the database between turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nbflow.store import compact
from nbflow.store.database import Database
from nbflow.store.frame_views import show_frames

if TYPE_CHECKING:
    import duckdb


def compact_runs(
    database: Database,
    runs: Sequence[str],
    fetch: compact.FetchRaw,
    *,
    at_end: Callable[[duckdb.DuckDBPyConnection], object],
    turn: float,
    wait: float | None,
    cancelled: Callable[[], bool],
    at_most: int | None = None,
    decode: bool = True,
) -> int:
    """Keep every leaf of these runs that the database lacks; return how many. Safe to kill.

    A turn is how many seconds the database is held before others may have it;
    `at_end` is called in the last one. `at_most` bounds the bytes of leaves that are
    written; with `decode=False` no value is unpickled for the sake of a view.
    A damaged leaf stays where it is and is found by `doctor`.
    """
    if not database.exists():
        return 0
    kept, room = 0, at_most
    damaged: set[bytes] = set()
    while not cancelled():
        with database.open(wait=wait, cancelled=cancelled) as connection:
            compact.drop_orphans(connection)
            end = time.monotonic() + turn
            for group in compact.waiting(connection, runs, without=damaged):
                if room is not None:
                    room -= sum(ref.size for ref in group.leaves)
                    if room < 0:
                        at_end(connection)
                        return kept
                errors = compact.write(connection, group, fetch)
                kept += len(group.leaves) - len(errors)
                damaged.update(error.digest for error in errors if error.digest is not None)
                if time.monotonic() > end or cancelled():
                    break
            else:
                show_frames(connection, fetch, decode=decode)
                at_end(connection)
                return kept
    return kept
