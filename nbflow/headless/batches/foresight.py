"""What a batch would do, without beginning or changing anything: for `--dry-run`, and for words of warning."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nbflow.core.errors import UnknownRun, UsageError
from nbflow.core.ids import new_run_id
from nbflow.headless.batches.jobs import BATCH, Plan
from nbflow.headless.batches.plan import Standing, standing, unknown_parameters
from nbflow.headless.batches.request import Asked, find, recorded_plan
from nbflow.headless.identity import Source, place_of
from nbflow.store.local import LocalStore
from nbflow.store.place import is_store


@dataclass(frozen=True)
class Foresight:
    """The plan of a batch and how far it is; `run` is its id where it exists."""

    run: str | None
    plan: Plan
    standing: Standing


def foresee(asked: Asked, *, resume: bool | str, store: str | None = None) -> Foresight:
    """Return what `nbflow.batch` would do that is asked for this.

    Raises:
        UsageError, UnknownRun: as `nbflow.batch`.
    """
    place = place_of(Source.of(asked.notebook), store)
    if not is_store(place):
        if isinstance(resume, str):
            raise UnknownRun(
                f"There is no store at {place}, hence no batch.", hint="Name another with --store."
            )
        if resume and asked.parameters is None:
            raise UsageError(f"There is no store at {place}, hence no batch to resume.")
        return _new(asked)
    opened = LocalStore(place, background=False, upkeep=False)
    try:
        found = find(opened, asked, resume)
        if found is None:
            return _new(asked)
        plan = recorded_plan(opened, found.run)
        return Foresight(found.run, plan, standing(opened, plan, found.run))
    finally:
        opened.close()


def warnings_of(asked: Asked, *, store: str | None = None) -> list[str]:
    """Return what the caller of a new batch should know: unknown parameters, and an unfinished batch just like it."""
    assert asked.notebook is not None
    try:
        warnings = unknown_parameters(os.fspath(asked.notebook), asked.rows())
    except UsageError:
        return []  # the plan refuses it, with all that is wrong
    place = place_of(Source.of(asked.notebook), store)
    if not is_store(place):
        return warnings
    opened = LocalStore(place, background=False, upkeep=False)
    try:
        twin = opened.newest_open(asked.workflow(opened), asked.params(), BATCH)
    finally:
        opened.close()
    if twin is not None:
        warnings.append(
            f"Batch {twin.run} of the same notebook and parameters is not completed. This is a new one; "
            "--resume carries that one on."
        )
    return warnings


def _new(asked: Asked) -> Foresight:
    if asked.notebook is None:
        raise UsageError("Name the notebook to run, or the batch to resume.")
    plan = asked.plan(new_run_id())
    return Foresight(None, plan, Standing(new=tuple(item.index for item in plan.items)))
