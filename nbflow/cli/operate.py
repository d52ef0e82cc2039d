"""Commands that carry runs on in another way, and look at what they say: `fork`, `retry` and `published`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Place, desk
from nbflow.cli.runs import RunId

Step = Annotated[str, typer.Argument(metavar="STEP", help="The step's key, or a name that only it has.")]


def fork(
    run: RunId,
    step: Step,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start a new run that shares everything a run had completed before a step.

    The step and all that comes later run again, in the new run; the old one is
    not touched. The next start of the notebook, script or machine takes the new run up.
    """
    with desk(store, as_json, debug) as at:
        from nbflow.runtime.forks import fork as start

        source = at.store.run(run)
        made = at.store.run(start(source.run, step, store=at.store))
        steps = f"{made.steps} step{'' if made.steps == 1 else 's'}"
        at.say(f"Run {made.run} of {made.workflow} shares {steps} of run {source.run}.")
        if at.as_json:
            at.answer({"run": made.run, "forked": source.run, "step": step, "shared": made.steps})


def retry(
    run: RunId,
    step: Step,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for those who read the history later.")
    ] = "",
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Have a step of an unfinished run run again, whatever became of it, and record who asked and why.

    Completed steps around it run again as well. What was recorded stays in history.
    """
    with desk(store, as_json, debug) as at:
        from nbflow.runtime.forks import retry_step

        info = at.store.run(run)
        key = retry_step(info.run, step, reason, store=at.store)
        at.say(f"Step {key} of run {info.run} runs again when the run is resumed.")
        if at.as_json:
            at.answer({"run": info.run, "step": key, "reason": reason, "forgotten": True})


def published(
    run: RunId,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a run has published so far (`nbflow.publish`), also while it is at work."""
    with desk(store, as_json, debug) as at:
        from nbflow.queries import published as ask

        info = at.store.run(run)
        values = ask(info.run, store=at.store)
        if at.as_json:
            at.answer({"run": info.run, "published": json.loads(_json(values))})
        elif values:
            at.say(show.table(["name", "value"], [(name, _json(value)) for name, value in values.items()]))
        else:
            at.say(f"Run {info.run} has published nothing.")


def _json(value: object) -> str:
    """Return a value as JSON, NaN as null."""
    import msgspec

    return msgspec.json.encode(value).decode()
