"""What `nbflow run` and `nbflow resume` say of a notebook: where it goes on, how it ended, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from nbflow.cli import show
from nbflow.core.errors import KernelDied
from nbflow.notebook.amounts import duration

if TYPE_CHECKING:
    from nbflow.cli.desk import Desk
    from nbflow.headless.execute import Executed, Prepared
    from nbflow.headless.waiting import Waiting

#: Lines of a traceback that are shown; the output notebook has all of them.
_TRACEBACK = 30


def beginning(prepared: Prepared) -> Text:
    """Say which run it is, and where it goes on."""
    run = (prepared.run, "bold")
    plan = prepared.plan
    if prepared.owner:
        waits = f" of {prepared.workflow} is at work in {prepared.owner}; waiting a moment for it to end."
        return Text.assemble("Run ", run, waits)
    if plan is None:
        return Text.assemble("Run ", run, f" of {prepared.workflow} begins.")
    recorded = f"{plan.restored} cell{'' if plan.restored == 1 else 's'} recorded"
    kept = f" ({duration(plan.saved)} of work)" if plan.saved >= 1 else ""
    left = (step for step in plan.steps if step.action in {"run", "wait"} and step.index is not None)
    first = next(left, None)
    where = "nothing is left to run"
    if first is not None and first.index is not None:
        decided = first.action == "wait" and not prepared.undecided
        reason = "somebody has decided about its gate" if decided else first.reason
        where = f"goes on at cell {first.index + 1} of {prepared.cells}: {reason}"
    return Text.assemble(
        "Run ", run, f" of {prepared.workflow}, attempt {prepared.attempts + 1}: {recorded}{kept}, {where}."
    )


def ending(prepared: Prepared, state: str, counts: dict[str, int], seconds: float) -> Text:
    """Say how it ended, what was restored and ran, and where the notebook is."""
    restored = counts["restored"]
    cells = f"{restored} cell{'' if restored == 1 else 's'} restored, {counts['ran']} ran"
    where = f" → {prepared.target}" if prepared.target else ""
    return Text.assemble(show.state(state), f": {cells}, {duration(seconds)}{where}")


def say_failure(
    at: Desk, prepared: Prepared, error: BaseException, counts: dict[str, int], seconds: float
) -> None:
    """Say what stopped the notebook, and how to carry it on."""
    state = "failed" if cell_failed(error) else "stopped"
    if isinstance(error, KeyboardInterrupt):
        state = "interrupted"
    at.say(ending(prepared, state, counts, seconds))
    if cell_failed(error):
        at.say(Text(f"Cell {error.cell_index + 1} of {prepared.cells}:", style="bold"))  # type: ignore[attr-defined]
        at.say(Text.from_ansi(_shortened("\n".join(error.traceback))))  # type: ignore[attr-defined]
    elif not isinstance(error, KeyboardInterrupt):
        at.say(Text(_message(error), style="red"))
    at.say(Text.assemble(("Carry on: ", "bold"), how_to_resume(prepared.run, prepared.store)))


def say_waiting(
    at: Desk, prepared: Prepared, waiting: Waiting, counts: dict[str, int], seconds: float
) -> None:
    """Say at which gate the notebook stopped, how to decide, and how to carry it on."""
    at.say(ending(prepared, "waiting", counts, seconds))
    at.say(Text(f"{waiting}", style="yellow"))
    at.say(Text.assemble(("Decide:   ", "bold"), waiting.command(prepared.store), (" (or reject)", "dim")))
    at.say(Text.assemble(("Carry on: ", "bold"), how_to_resume(prepared.run, prepared.store)))


def cell_failed(error: BaseException) -> bool:
    """Tell whether a cell failed, and not what is around it: the kernel, the patience of a person, the disk."""
    from papermill import PapermillExecutionError

    return isinstance(error, PapermillExecutionError)


def _message(error: BaseException) -> str:
    if isinstance(error, KernelDied):
        return error.message
    return f"{type(error).__name__}: {str(error).strip()}".rstrip(": ")


def how_to_resume(run: str, store: Path) -> str:
    """Return the command that carries a run on, from this folder."""
    from nbflow.store.place import locate

    place = "" if locate(None) == store else f" --store {shlex.quote(str(store))}"
    return f"nbflow resume {run}{place}"


def _shortened(traceback: str) -> str:
    lines = traceback.rstrip().splitlines()
    if len(lines) <= _TRACEBACK:
        return "\n".join(lines)
    return "\n".join(["…", *lines[-_TRACEBACK:]])


def short(value: Any) -> str:
    """Return a value in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def facts(prepared: Prepared, done: Executed | None, error: BaseException | None) -> dict[str, Any]:
    """Return the execution as JSON-able facts, as documented in docs/cli.md."""
    told: dict[str, Any] | None = None
    if error is not None and cell_failed(error):
        told = {"type": error.ename, "message": error.evalue, "cell": error.cell_index}  # type: ignore[attr-defined]
    elif isinstance(error, KernelDied):
        told = {"type": "KernelDied", "message": error.message, "cell": error.cell}
    elif error is not None:
        told = {"type": type(error).__name__, "message": str(error).strip(), "cell": None}
    return {
        "run": prepared.run,
        "workflow": prepared.workflow,
        "state": done.state if done is not None else "failed" if error and cell_failed(error) else "stopped",
        "attempt": prepared.attempts + 1,
        "output": prepared.target,
        "result": {} if done is None else done.result,
        "error": told,
        "waiting": None if done is None or done.waiting is None else done.waiting.facts,
    }
