"""What became of batches, as tables: every notebook of one, and the list of all.

Both read what is recorded, so they work while a batch runs, after its runner
was killed, and years later. What they need of a thousand notebooks they ask
the database for at once; a journal is opened only for runs that may be at work.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import NbflowError, StoreReadOnly, UnknownRun, UsageError
from nbflow.core.history import Execution, History
from nbflow.core.model import RunInfo, RunOpened, decode_entry
from nbflow.core.states import FINAL_RUN_STATES, RunState, StepState
from nbflow.headless.batches.jobs import AGAIN, BATCH, Item, Plan
from nbflow.headless.batches.recorded import ITEMS, recorded_values
from nbflow.runtime import active
from nbflow.store.listing import matches_name
from nbflow.store.local import LocalStore, process_store

if TYPE_CHECKING:
    import pandas as pd

#: The length of a run id that is no prefix.
_WHOLE = 36

#: What a batch can be; "stopped" is running with nobody at work.
_STATES = ("running", "waiting", "stopped", "completed", "failed", "cancelled", "corrupt")

#: What is told of every notebook, between its parameters and its results.
_FACTS = ("state", "attempts", "restored", "ran", "seconds", "error", "run", "output")

#: State, attempts and error of a batch's runs, and the seconds that they were at work: pauses between
#: attempts do not count.
_RUNS = f"""
WITH item AS ({ITEMS}),
attempt AS (
    SELECT run, stamp,
           count(*) FILTER (kind = 'run.attached') OVER (PARTITION BY run ORDER BY seq) AS number
    FROM nbflow.event WHERE run IN (FROM item)
),
spent AS (
    SELECT run, sum(seconds) AS seconds FROM (
        SELECT run, max(stamp) - min(stamp) AS seconds FROM attempt WHERE number > 0 GROUP BY run, number
    ) GROUP BY run
)
SELECT n.run, n.state, n.attempts, n.error, s.seconds
FROM nbflow.run_now n LEFT JOIN spent s ON s.run = n.run WHERE n.run IN (FROM item)
"""


def batch_results(
    batch: str | None = None,
    *,
    collect: str | Sequence[str] | None = None,
    store: LocalStore | str | Path | None = None,
) -> pd.DataFrame:
    """Return one row for each notebook of a batch (the newest by default): parameters, state, results.

    The index is the notebook's number in the batch, from 0. The columns are the
    parameters; `state` (pending, running, waiting at a gate, completed, failed, cancelled,
    or stopped: begun, and nobody works on it); `attempts`; how many cells the last one `restored`
    and `ran` (known once it is completed); `seconds` that it was at work; `error`;
    `run`; `output`; and each collected variable. `collect` names variables;
    None: those that the batch was told to collect. One that the run's result does
    not hold is looked for among all that its cells recorded, and the newest counts;
    where there is none, the value is missing (None, NaN). A parameter that has the
    name of another column is called `param_…`, a variable `result_…`.

    Raises:
        UnknownRun: no such batch.
        StoreBusy: another program keeps the database open.

    Example:
        nbflow.batch_results(collect=["auc"]).groupby("model").auc.max()
    """
    import pandas as pd

    place = _store(store)
    run = find_batch(place, batch)
    history = History.of(place.entries(run))
    assert history.opened is not None
    plan = Plan.of(history.opened)
    asked = plan.options.collect if collect is None else collect
    names = list(dict.fromkeys([asked] if isinstance(asked, str) else asked))
    facts = _facts(place, run)
    found = recorded_values(place, run, names) if names and facts else {}
    at_work = _alive(place, run)
    columns: dict[str, list[Any]] = {}
    parameters = list(dict.fromkeys(name for item in plan.items for name in item.params))
    for name in parameters:
        heading = _heading(name, "param_", [*_FACTS, *columns])
        columns[heading] = [item.params.get(name) for item in plan.items]
    rows = [_row(place, item, history, facts.get(item.run), at_work=at_work) for item in plan.items]
    for number, name in enumerate(_FACTS):
        columns[name] = [row[number] for row in rows]
    for name in names:
        values = [found.get(item.run, {}).get(name) for item in plan.items]
        columns[_heading(name, "result_", columns)] = values
    index = pd.Index([item.index for item in plan.items], name="item", dtype="int64")
    table = pd.DataFrame({name: _series(values, index) for name, values in columns.items()}, index=index)
    return table.astype({"restored": "Int64", "ran": "Int64"})


def batches(
    notebook: str | Path | None = None,
    *,
    state: str | None = None,
    limit: int | None = 20,
    store: LocalStore | str | Path | None = None,
) -> pd.DataFrame:
    """List batches, newest first, as a table.

    Columns: batch (its id), notebook, state (running, waiting, completed, failed, cancelled,
    or stopped: it can be resumed and nobody does), created (UTC), total, completed,
    failed, waiting (at gates), left (none of these), seconds from its begin to its last record.
    `notebook` is a path, or a name in which `*` stands for anything.

    Raises:
        UsageError: there is no such state.
        StoreBusy: another program keeps the database open.

    >>> import nbflow
    >>> nbflow.batches(state="running").empty
    True
    """
    import pandas as pd

    if state is not None and state not in _STATES:
        raise UsageError(f"No batch is ever {state!r}.", hint=f"It is {', '.join(_STATES)}.")
    place = _store(store)
    columns = ["batch", "notebook", "state", "created", "total", "completed", "failed", "waiting", "left"]
    found = []
    with _reading(place) as connection:
        rows = connection.execute(_BATCHES).fetchall() if connection is not None else []
    for run, workflow, own_state, created, updated, record, completed, failed, waiting in rows:
        now = _batch_state(place, run, own_state)
        if state is not None and now != state:
            continue
        opened = decode_entry(record).record
        assert isinstance(opened, RunOpened)
        if notebook is not None and not _is_of(notebook, workflow, opened.launch.get("notebook", "")):
            continue
        total = len(opened.launch.get("items", ()))
        left = total - completed - failed - waiting
        when = pd.Timestamp(created, unit="s", tz="UTC")
        counts = total, completed, failed, waiting, left
        found.append((run, workflow, now, when, *counts, updated - created))
        if limit is not None and len(found) >= limit:
            break
    return pd.DataFrame(found, columns=[*columns, "seconds"])


def find_batch(store: LocalStore, batch: str | None = None) -> str:
    """Return the id of a batch: of the newest one, or of the one whose id begins with `batch`.

    `Store.run` does not do: the runs of a batch have the beginning of its id.

    Raises:
        UnknownRun: there is none, or several begin so. UsageError: that run is no batch.
    """
    if batch is not None and len(batch) == _WHOLE:
        return _a_batch(store.run(batch))
    with _reading(store) as connection:
        rows = [] if connection is None else connection.execute(_OPENED, {"batch": batch or ""}).fetchall()
    known: list[str] = [run for run, _ in rows]
    if known and (batch is None or len(known) == 1):
        return known[0]
    if batch is not None and batch in known:
        return batch
    if batch is None:
        raise UnknownRun(f"The store {store.root} has no batch yet.", hint="`nbflow batch` runs one.")
    if known:
        raise UnknownRun(
            f"{len(known)} batches begin with {batch!r}: {', '.join(known[:6])}.",
            run=batch,
            hint="Give more of the id.",
        )
    return _a_batch(store.run(batch))  # which says so if there is no such run


def _a_batch(info: RunInfo) -> str:
    if info.workflow_kind != BATCH:
        raise UsageError(
            f"Run {info.run} of {info.workflow} is no batch.",
            run=info.run,
            hint="`nbflow batches` lists them.",
        )
    return info.run


_OPENED = f"""
SELECT run, stamp FROM nbflow.event WHERE kind = 'run.opened' AND step_kind = '{BATCH}' AND starts_with(run, $batch)
ORDER BY stamp DESC, run DESC
"""

#: Of each batch how many items are completed, failed and waiting: its own journal knows, and of items that it had no
#: time to record their runs.
_BATCHES = f"""
WITH batch AS (SELECT run FROM nbflow.event WHERE kind = 'run.opened' AND step_kind = '{BATCH}'),
step AS (
    SELECT run AS batch, step, bool_or(kind = 'step.completed') AS completed,
           arg_max(kind || ' ' || coalesce(state, ''), seq) = 'step.ended failed' AS failed
    FROM nbflow.event WHERE run IN (FROM batch) AND starts_with(step, 'item#') GROUP BY run, step
),
child AS (
    SELECT o.parent AS batch, o.body ->> 'parent_step' AS step, n.state
    FROM nbflow.event o JOIN nbflow.run_now n ON n.run = o.run
    WHERE o.kind = 'run.opened' AND o.parent IN (FROM batch)
),
item AS (
    SELECT batch, coalesce(s.completed, false) OR coalesce(c.state = 'completed', false) AS completed,
           coalesce(s.failed, false) OR coalesce(c.state = 'failed', false) AS failed,
           coalesce(c.state = 'waiting', false) AS waiting
    FROM step s FULL JOIN child c USING (batch, step)
),
counted AS (
    SELECT batch, count(*) FILTER (completed) AS completed, count(*) FILTER (failed AND NOT completed) AS failed,
           count(*) FILTER (waiting AND NOT completed AND NOT failed) AS waiting
    FROM item GROUP BY batch
)
SELECT b.run, b.workflow, b.state, b.created, b.updated, b.opened_record,
       coalesce(c.completed, 0), coalesce(c.failed, 0), coalesce(c.waiting, 0)
FROM nbflow.run_now b LEFT JOIN counted c ON c.batch = b.run
WHERE b.workflow_kind = '{BATCH}' AND b.opened_record IS NOT NULL ORDER BY b.created DESC, b.run DESC
"""


def _store(place: LocalStore | str | Path | None) -> LocalStore:
    if place is None:
        session = active.current()
        if session is not None and isinstance(session.store, LocalStore):
            session.log.flush()
            return session.store
    return process_store(place) if place is None or isinstance(place, (str, Path)) else place


@contextlib.contextmanager
def _reading(store: LocalStore) -> Any:
    """Give the database with all that is acknowledged in it, or None where there is none."""
    with contextlib.suppress(StoreReadOnly):  # a store of somebody else is read as it stands
        store.ingest()
    if not store.database.exists():
        yield None
        return
    with store.database.read() as connection:
        yield connection


def _facts(store: LocalStore, batch: str) -> dict[str, tuple[str, int, str, float | None]]:
    with _reading(store) as connection:
        rows = [] if connection is None else connection.execute(_RUNS, {"batch": batch}).fetchall()
    return {run: (state, attempts, error, seconds) for run, state, attempts, error, seconds in rows}


def _row(
    store: LocalStore,
    item: Item,
    history: History,
    facts: tuple[str, int, str, float | None] | None,
    *,
    at_work: bool,
) -> tuple[Any, ...]:
    executions = history.by_step.get(item.step, [])
    run_state, attempts, error, seconds = facts if facts is not None else (None, 0, "", None)
    batch_over = history.state in FINAL_RUN_STATES
    state = _state(store, item, executions, run_state, at_work=at_work, over=batch_over)
    if state in {RunState.COMPLETED, RunState.WAITING}:
        error = ""
    elif not error and executions and executions[-1].ended is not None:
        # The runner knows more than a run whose kernel was killed.
        problem = executions[-1].ended.error
        error = f"{problem.type}: {problem.message}" if problem is not None else ""
        # Beside the item and its run: neither need be named again, nor how a batch is resumed.
        _, _, said = error.partition(f", run {item.run}, failed ")
        error = (said or error).removesuffix(f" {AGAIN}")
    error = error.removesuffix(": ")  # an exception without a message
    ended: dict[str, Any] = next((e.completed.detail for e in executions if e.completed is not None), {})
    cells = ended.get("restored"), ended.get("ran")
    return state, attempts, *cells, math.nan if seconds is None else seconds, error, item.run, item.output


def _state(
    store: LocalStore,
    item: Item,
    executions: list[Execution],
    run_state: str | None,
    *,
    at_work: bool,
    over: bool,
) -> str:
    if run_state == RunState.COMPLETED or any(each.completed is not None for each in executions):
        return str(RunState.COMPLETED)
    if run_state == RunState.CANCELLED:
        return str(RunState.CANCELLED)
    now = executions[-1].state if executions else None
    if run_state == RunState.WAITING and not over:
        return str(RunState.WAITING)
    if at_work and now in {StepState.RUNNING, StepState.WAITING}:
        return str(RunState.RUNNING)
    if run_state == RunState.RUNNING and _alive(store, item.run):
        return str(run_state)  # somebody carries this one on by itself
    if run_state in {RunState.FAILED, "corrupt"} or now is StepState.FAILED:
        return str(RunState.FAILED)
    if over:
        return str(RunState.CANCELLED)
    return str(RunState.PENDING) if run_state is None else "stopped"


def _batch_state(store: LocalStore, run: str, state: str) -> str:
    if state in {RunState.RUNNING, RunState.WAITING, RunState.PENDING}:
        if _alive(store, run):
            return str(RunState.RUNNING)
        return str(RunState.WAITING) if state == RunState.WAITING else "stopped"
    return state


def _alive(store: LocalStore, run: str) -> bool:
    """Tell whether somebody holds the run now."""
    try:
        _, alive = store.live.folder(run).owner()
    except NbflowError:
        return False  # its folder is gone, so it is over
    return alive


def _is_of(notebook: str | Path, workflow: str, path: str) -> bool:
    told = os.fspath(notebook)
    return matches_name(workflow, told) or path == (told if "://" in told else os.path.abspath(told))  # noqa: PTH100


def _heading(name: str, prefix: str, taken: Iterable[str]) -> str:
    known = set(taken)
    while name in known:
        name = prefix + name
    return name


def _series(values: list[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """Return a column; what is more than a number or a text stays the very object that it is."""
    import numpy as np
    import pandas as pd

    if all(value is None or isinstance(value, (bool, int, float, str, np.generic)) for value in values):
        return pd.Series(values, index=index)
    column = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        column[number] = value
    return pd.Series(column, index=index)
