"""Questions to the store in Python: runs, steps, outputs, and SQL over checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import UnknownRun, UnknownStep
from nbflow.core.history import History
from nbflow.core.model import RunPublished
from nbflow.core.signature import short
from nbflow.runtime import active
from nbflow.runtime.attributes import tag_texts
from nbflow.runtime.children.results import values_of
from nbflow.runtime.runs import Run
from nbflow.store.local import process_store
from nbflow.store.protocol import RunQuery, Store

if TYPE_CHECKING:
    import pandas as pd


#: The length of a run id that is no prefix: looking it up once more would cost a query.
_WHOLE = 36


def _store(place: Store | str | Path | None) -> Store:
    if place is None:
        session = active.current()
        return session.store if session is not None else process_store()
    return process_store(place) if isinstance(place, (str, Path)) else place


def _run(store: Store, run: Run | str | None) -> str:
    if isinstance(run, Run):
        return run.id
    if run is not None:
        return run if len(run) == _WHOLE else store.run(run).run
    session = active.current()
    if session is not None:
        session.log.flush()
        return session.run
    newest = store.runs(RunQuery(limit=1))
    if not newest:
        raise UnknownRun("The store holds no run yet.")
    info = newest[0]
    while info.parent is not None:  # a child's id has the time of its parent's: nobody means the child
        try:
            info = store.run(info.parent)
        except UnknownRun:
            break
    return info.run


def runs(
    workflow: str | None = None,
    *,
    state: str | None = None,
    tags: dict[str, Any] | None = None,
    limit: int | None = 100,
    store: Store | str | Path | None = None,
) -> pd.DataFrame:
    """List runs, newest first, as a table.

    Columns: run, workflow, state, created, seconds, attempts, steps, params,
    tags, error, parent (the run that it is a child of). `workflow` may hold `*`.
    `tags` must all match, those that were set later (`nbflow.tag`) and those that a
    child has from its parent included. Times are UTC.

    >>> import nbflow
    >>> nbflow.runs(state="failed").empty
    True
    """
    import pandas as pd

    query = RunQuery(
        workflow=workflow, states=(state,) if state else (), tags=tag_texts(tags or {}), limit=limit
    )
    rows = [
        {
            "run": info.run,
            "workflow": info.workflow,
            "state": info.state,
            "created": pd.Timestamp(info.created_at, unit="s", tz="UTC"),
            "seconds": (info.finished_at or info.updated_at) - info.created_at,
            "attempts": info.attempts,
            "steps": info.steps,
            "params": info.params,
            "tags": info.tags,
            "error": info.error,
            "parent": info.parent,
        }
        for info in _store(store).runs(query)
    ]
    columns = [
        "run",
        "workflow",
        "state",
        "created",
        "seconds",
        "attempts",
        "steps",
        "params",
        "tags",
        "error",
        "parent",
    ]
    return pd.DataFrame(rows, columns=columns)


def steps(run: Run | str | None = None, *, store: Store | str | Path | None = None) -> pd.DataFrame:
    """List the executions of a run (the current one by default, else the newest) in order, as a table.

    `current` marks the execution that a replay uses. `outputs` holds the names
    of the recorded variables.

    Raises:
        UnknownRun: no such run, or an ambiguous prefix.
    """
    import pandas as pd

    place = _store(store)
    rows = [
        {
            "execution": info.execution,
            "step": info.step,
            "kind": info.step_kind,
            "state": info.state,
            "attempt": info.attempt,
            "started": pd.Timestamp(info.started_at, unit="s", tz="UTC"),
            "seconds": info.seconds,
            "outputs": [output.name for output in info.outputs],
            "version": short(info.signature),
            "current": info.current,
            "error": f"{info.error.type}: {info.error.message}" if info.error else "",
        }
        for info in place.steps(_run(place, run))
    ]
    columns = [
        "execution",
        "step",
        "kind",
        "state",
        "attempt",
        "started",
        "seconds",
        "outputs",
        "version",
        "current",
        "error",
    ]
    return pd.DataFrame(rows, columns=columns)


def output(
    run: Run | str | None, step: str, name: str | None = None, *, store: Store | str | Path | None = None
) -> Any:
    """Load one recorded value of a run, or all values of a step as a dict when `name` is None.

    `step` is a step's key or name; of several executions the newest completed
    one counts. A call's result has the name "return".

    Raises:
        UnknownStep: names what there is instead.
        CannotRestore, CorruptLeaf: the value cannot be rebuilt.
    """
    place = _store(store)
    run_id = _run(place, run)
    history = History.of(place.entries(run_id))
    done = [e for e in history.executions.values() if e.completed is not None]
    matching = [e for e in done if step in (e.started.step, e.started.name)]
    if not matching:
        known = ", ".join(sorted({e.started.name for e in done})) or "none"
        raise UnknownStep(
            f"Run {run_id} has no completed step {step!r}.",
            run=run_id,
            step=step,
            hint=f"Completed steps: {known}.",
        )
    completed = matching[-1].completed
    assert completed is not None
    checkpoint = completed.checkpoint
    if checkpoint is None:
        values: dict[str, Any] = {}
    else:
        values = values_of(place, run_id, checkpoint)
    if name is None:
        return values
    if name not in values:
        raise UnknownStep(
            f"Step {step!r} of run {run_id} recorded no {name!r}.",
            run=run_id,
            step=step,
            hint=f"It recorded: {', '.join(values) or 'nothing'}.",
        )
    return values[name]


def published(
    run: Run | str | None = None, name: str | None = None, *, store: Store | str | Path | None = None
) -> Any:
    """Return what a run has published so far, as a dict by name, or the one value of `name`.

    Read from the journal as it is now, so a run that another process works on
    shows its latest values. `run` is the current one by default, else the newest.

    Raises:
        UnknownRun: no such run, or an ambiguous prefix.
        UnknownStep: nothing of this name was published; says what was.

    Example:
        >>> import nbflow
        >>> with nbflow.run("training") as current:
        ...     nbflow.publish("loss", 0.25)
        >>> nbflow.published(current, "loss")
        0.25
    """
    place = _store(store)
    run_id = _run(place, run)
    values = {
        entry.record.name: entry.record.value
        for entry in place.entries(run_id)
        if isinstance(entry.record, RunPublished)
    }
    if name is None:
        return values
    if name not in values:
        raise UnknownStep(
            f"Run {run_id} has published no {name!r}.",
            run=run_id,
            hint=f"It published: {', '.join(values) or 'nothing'}.",
        )
    return values[name]


def sql(query: str, *, run: Run | str | None = None, store: Store | str | Path | None = None) -> pd.DataFrame:
    """Run SQL over the history and over recorded frames, and return a table.

    A recorded frame is a table `step.variable` of the run given (the current
    one by default, else the newest), and `"RUN".step.variable` of any run, so
    one query can join checkpoints across runs. The views `runs`, `steps`,
    `outputs`, `published`, `charges` and `events` hold the history.

    Raises:
        UnknownStep: a table names no recorded frame.
        StoreBusy: another program keeps the database open.

    Example:
        nbflow.sql("select carrier, avg(arr_delay) from load.flights group by 1")
    """
    place = _store(store)
    try:
        run_id = _run(place, run)
    except UnknownRun:
        if run is not None:
            raise
        return place.sql(query)
    return place.sql(query, run=run_id)
