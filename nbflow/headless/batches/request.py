"""What a batch is asked for, and which batch that is: a new one, or one to carry on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nbflow.core.errors import LeaseHeld, UsageError
from nbflow.core.model import RunInfo, RunOpened
from nbflow.core.signature import digest, short
from nbflow.headless.batches.jobs import BATCH, Options, Plan
from nbflow.headless.batches.plan import make_plan
from nbflow.headless.identity import Source, identity_params, place_of, workflow_of
from nbflow.headless.parameters.sources import Row, rows_of
from nbflow.runtime.attributes import tag_texts
from nbflow.runtime.session import Session
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery


@dataclass(frozen=True)
class Asked:
    """What was asked for; parameters are read once, and only where they are needed."""

    notebook: str | os.PathLike[str] | None
    parameters: Any
    output: str
    options: Options
    overwrite: bool
    skip_duplicates: bool
    tags: dict[str, str] | None
    _rows: list[Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Return the rows of parameters; one without any where none were given."""
        if not self._rows:
            self._rows.extend([Row({}, "")] if self.parameters is None else rows_of(self.parameters))
        return self._rows

    def workflow(self, store: LocalStore) -> str:
        """Return what the batch's run, and the notebook's, are called."""
        assert self.notebook is not None
        return workflow_of(Source.of(os.fspath(self.notebook)), None, store)

    def plan(self, run: str) -> Plan:
        """Return the plan of a new batch with that id.

        Raises:
            UsageError: lists everything that is wrong.
        """
        assert self.notebook is not None
        return make_plan(
            os.fspath(self.notebook),
            self.rows(),
            batch=run,
            output=self.output,
            options=self.options,
            overwrite=self.overwrite,
            skip_duplicates=self.skip_duplicates,
        )

    def params(self) -> dict[str, Any]:
        """Return what tells batches of one notebook apart: the number of rows, and a digest of them all."""
        rows = [identity_params(row.values) for row in self.rows()]
        return {"notebooks": len(rows), "parameters": short(digest(*(_text(row) for row in rows)))}


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


@contextlib.contextmanager
def store_for(
    store: LocalStore | str | os.PathLike[str] | None, notebook: str | os.PathLike[str] | None
) -> Iterator[LocalStore]:
    """Give the store that keeps the batch; one that was opened here is closed behind it."""
    if store is not None and not isinstance(store, (str, os.PathLike)):
        if not hasattr(store, "root"):
            raise UsageError(
                "The workers of a batch cannot open this store.", hint="Use a store in a folder."
            )
        yield store
        return
    opened = LocalStore(place_of(Source.of(notebook), store))
    try:
        yield opened
    finally:
        opened.close()


def find(store: LocalStore, asked: Asked, resume: bool | str) -> RunInfo | None:
    """Return the batch to carry on; None where a new one begins.

    Raises:
        UnknownRun, UsageError: there is no such batch.
    """
    if isinstance(resume, str):
        from nbflow.headless.batches.results import find_batch

        info = store.run(find_batch(store, resume))  # of a prefix: the batch, not one of its notebooks
        if asked.notebook is not None and info.workflow != asked.workflow(store):
            raise UsageError(
                f"Batch {info.run} is one of {info.workflow}, not of {asked.workflow(store)}.",
                hint="Leave the notebook out.",
            )
        return info
    if asked.notebook is None:
        raise UsageError("Name the notebook to run, or the batch to resume.")
    if not resume:
        return None
    workflow = asked.workflow(store)
    params = None if asked.parameters is None else asked.params()
    found = store.newest_open(workflow, params, BATCH)
    if found is None:
        for info in store.runs(RunQuery(workflow=workflow, states=("completed",), limit=None)):
            if info.workflow_kind == BATCH and info.workflow == workflow and params in (None, info.params):
                return info
    if found is None and asked.parameters is None:
        raise UsageError(
            f"There is no batch of {workflow} to resume.", hint="`nbflow batches` lists those that there are."
        )
    return found


def recorded_plan(store: LocalStore, run: str) -> Plan:
    """Return the plan that a batch was begun with.

    Raises:
        CorruptRecord: it cannot be read.
    """
    opened = store.entries(run)[0].record
    assert isinstance(opened, RunOpened), "a run's first record says what it is of"
    return Plan.of(opened)


def attached(store: LocalStore, asked: Asked, plan: Plan, run: str, found: RunInfo | None) -> Session:
    """Take the batch's run, which begins with its plan.

    Raises:
        LeaseHeld: another process runs this batch.
    """
    if found is not None:
        try:
            return Session.open(store, found.workflow, run=run)
        except LeaseHeld as error:
            raise LeaseHeld(
                f"Batch {run} of {found.workflow} is at work in process {error.pid} on {error.host}.",
                run=run,
                host=error.host,
                pid=error.pid,
                since=error.since,
                hint="Wait for it, or end it there with Ctrl-C; `nbflow cancel` ends it for good.",
            ) from error
    return Session.open(
        store,
        asked.workflow(store),
        kind=BATCH,
        params=asked.params(),
        tags=tag_texts(dict(asked.tags or {})),
        new=True,
        opened={"run": run, "variant": BATCH, "launch": plan.recorded()},
    )
