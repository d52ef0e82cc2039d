"""What the notebooks of a batch recorded: the values of a few variables from a thousand runs at once.

Run by run this would open the database a thousand times. Here one question finds
the records, and the large buffers that are only in the database by now are
rebuilt many together, as far as memory allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import CorruptLeaf, NbflowError
from nbflow.core.model import Checkpoint, StepCompleted
from nbflow.runtime.children.results import values_of
from nbflow.runtime.steps import RESULT
from nbflow.store import compact, rebuild
from nbflow.store.local import LocalStore
from nbflow.store.proof import proven
from nbflow.values.codec import decode
from nbflow.values.leaf import Fetch

if TYPE_CHECKING:
    import duckdb

#: The runs that a batch began.
ITEMS = "SELECT run FROM nbflow.event WHERE kind = 'run.opened' AND parent = $batch"

#: What of large buffers is rebuilt at a time (bytes).
_TOGETHER = 256 << 20

#: The record that holds each run's result.
_RETURNED = f"""
SELECT run, '{RESULT}', max(seq) FROM nbflow.event
WHERE kind = 'step.completed' AND step = '{RESULT}' AND run IN ({ITEMS}) GROUP BY run
"""

#: The newest record of a cell or call that holds a variable, by run.
_RECORDED = f"""
SELECT run, variable, max(seq) FROM nbflow.output
WHERE list_contains($names, variable) AND step <> '{RESULT}' AND run IN ({ITEMS}) GROUP BY run, variable
"""

_ROWS = """
SELECT run, seq, record, mac, signer FROM nbflow.event
SEMI JOIN (SELECT unnest($runs) AS run, unnest($seqs) AS seq) USING (run, seq)
"""


@dataclass(frozen=True)
class _Wanted:
    """A record of a run, and what is wanted of it: variables, or those that its result holds."""

    run: str
    checkpoint: Checkpoint
    names: tuple[str, ...]


def recorded_values(store: LocalStore, batch: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the newest value of each variable by run; what a run did not record is not there.

    A run's own result counts before what its steps recorded. A value that cannot be
    rebuilt is left out with a warning that names its run. The database must be there
    and have all that is to be found.

    Raises:
        StoreBusy: another program keeps the database open.
    """
    found = _Found(names)
    late: list[_Wanted] = []
    with store.database.read() as connection:
        # What a result holds need not be looked for among frames and models.
        for query, values in ((_RETURNED, {}), (_RECORDED, {"names": list(names)})):
            rows = connection.execute(query, {"batch": batch, **values}).fetchall()
            missing = [(run, name, seq) for run, name, seq in rows if not found.has(run, name)]
            for wanted, fetch in _fetched(store, connection, _wanted(connection, missing)):
                try:
                    found.keep(wanted, decode(wanted.checkpoint, fetch))
                except CorruptLeaf:
                    late.append(wanted)  # it moved from its folder into the database meanwhile, or is damaged
                except NbflowError as error:
                    _warn(wanted.run, error)
    for wanted in late:
        try:
            found.keep(wanted, values_of(store, wanted.run, wanted.checkpoint))
        except NbflowError as error:
            _warn(wanted.run, error)
    return found.values_by_run()


class _Found:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._recorded: dict[str, dict[str, Any]] = {}
        self._returned: dict[str, dict[str, Any]] = {}

    def has(self, run: str, name: str) -> bool:
        """Tell whether a run's result holds a variable."""
        return name in self._returned.get(run, ())

    def keep(self, wanted: _Wanted, values: dict[str, Any]) -> None:
        """Take what is wanted of a record's values."""
        if wanted.names == (RESULT,):
            result = values.get(RESULT)
            own = self._returned.setdefault(wanted.run, {})
            if isinstance(result, dict):
                own.update((name, result[name]) for name in self._names if name in result)
        else:
            own = self._recorded.setdefault(wanted.run, {})
            own.update((name, values[name]) for name in wanted.names if name in values)

    def values_by_run(self) -> dict[str, dict[str, Any]]:
        """Return the values; a run's result counts."""
        runs = [*self._recorded, *self._returned]
        return {run: self._recorded.get(run, {}) | self._returned.get(run, {}) for run in runs}


def _warn(run: str, error: NbflowError) -> None:
    warnings.warn(
        f"What run {run} recorded cannot be loaded, so its results are missing: {error}",
        RuntimeWarning,
        stacklevel=4,
    )


def _wanted(connection: duckdb.DuckDBPyConnection, rows: Sequence[tuple[str, str, int]]) -> list[_Wanted]:
    """Return the records of (run, variable, seq)."""
    by_record: dict[tuple[str, int], list[str]] = {}
    for run, name, seq in rows:
        by_record.setdefault((run, seq), []).append(name)
    keys = {"runs": [run for run, _ in by_record], "seqs": [seq for _, seq in by_record]}
    found = []
    for run, seq, *row in connection.execute(_ROWS, keys).fetchall():
        try:
            record = proven(run, seq, *row).record
        except NbflowError as error:
            _warn(run, error)
            continue
        if isinstance(record, StepCompleted) and record.checkpoint is not None:
            found.append(_Wanted(run, record.checkpoint, tuple(by_record[run, seq])))
    return found


def _fetched(
    store: LocalStore, connection: duckdb.DuckDBPyConnection, every: list[_Wanted]
) -> Iterator[tuple[_Wanted, Fetch]]:
    """Yield each record with what gives its large buffers, those from the database rebuilt many together."""
    live = set(store.live.names())
    group: list[_Wanted] = []
    size = 0
    for wanted in every:
        if wanted.run in live or not wanted.checkpoint.leaves:
            yield wanted, _from_folder(store, wanted)
            continue
        group.append(wanted)
        size += sum(ref.size for ref in wanted.checkpoint.leaves)
        if size >= _TOGETHER:
            yield from _rebuilt(connection, group)
            group, size = [], 0
    yield from _rebuilt(connection, group)


def _rebuilt(connection: duckdb.DuckDBPyConnection, group: list[_Wanted]) -> Iterator[tuple[_Wanted, Fetch]]:
    digests = {ref.digest for wanted in group for ref in wanted.checkpoint.leaves}
    kept = compact.find(connection, digests) if digests else {}
    views = rebuild.restore_all(connection, kept.values())
    given: set[bytes] = set()

    def fetch(digest: bytes) -> memoryview:
        view = views.get(digest)
        if view is None:
            raise CorruptLeaf("A recorded buffer is not in the database, or altered there.", digest=digest)
        if digest in given:  # each value has memory of its own
            return memoryview(bytearray(view))
        given.add(digest)
        return view

    for wanted in group:
        yield wanted, fetch


def _from_folder(store: LocalStore, wanted: _Wanted) -> Fetch:
    refs = {ref.digest: ref for ref in wanted.checkpoint.leaves}
    folder = store.live.folder(wanted.run)
    return lambda digest: folder.leaf(refs[digest])
