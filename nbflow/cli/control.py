"""Commands that speak to a run from outside: `signal` and `cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from nbflow.cli.desk import AsJson, Debug, Place, Yes, desk
from nbflow.cli.runs import RunId
from nbflow.core.errors import RunFinished
from nbflow.core.states import FINAL_RUN_STATES


def signal(
    run: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal that the run waits for, or will.")],
    value: Annotated[
        str | None, typer.Option("--value", metavar="JSON", help="Its payload as JSON. Default: null.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Its payload as it stands.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Sent twice with one id, it is one signal: safe to repeat."),
    ] = None,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send a signal to a run; it is kept until the run waits for it."""
    from nbflow.runtime.waits.signals import payload_of
    from nbflow.runtime.waits.signals import signal as send

    with desk(store, as_json, debug) as at:
        payload = payload_of(value, text)
        info = at.store.run(run)
        send(info.run, name, payload, store=at.store, id=identity)
        end = "." if info.alive else "; nobody runs it now, and it is there when the run is resumed."
        at.say(f"Signal {name} is sent to run {info.run} of {info.workflow}{end}")
        if at.as_json:
            at.answer({"run": info.run, "signal": name, "value": payload, "id": identity, "sent": True})


def cancel(
    run: RunId,
    reason: Annotated[
        str, typer.Option("--reason", "-r", metavar="TEXT", help="Why; recorded with the run.")
    ] = "",
    yes: Yes = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Cancel a run for good: at its next step, or at once where nobody runs it.

    A run that has done something to be undone, and that nobody runs, is undone
    and ended when it is resumed.
    """
    from nbflow.runtime.waits.cancelling import cancel as ask_to_stop

    with desk(store, as_json, debug) as at:
        info = at.store.run(run)
        if info.state in FINAL_RUN_STATES:
            raise RunFinished(
                f"Run {info.run} of {info.workflow} is {info.state} already and cannot be cancelled.",
                run=info.run,
                hint="Nothing was changed.",
            )
        at.ask(f"Cancel run {info.run} of {info.workflow} for good?", yes=yes)
        answer = ask_to_stop(info.run, reason, store=at.store)
        if answer == "cancelled":
            at.say(f"Run {info.run} of {info.workflow} is cancelled.")
        elif info.alive:
            at.say(f"Run {info.run} of {info.workflow} stops at its next step.")
        else:
            at.say(
                f"Run {info.run} of {info.workflow} has something to undo: resume it, and it is undone and ended."
            )
        if at.as_json:
            at.answer({"run": info.run, "answer": answer, "reason": reason})
