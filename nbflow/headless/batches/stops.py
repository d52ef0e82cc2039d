"""How the step of an item ends that is not completed: the notebook's own error, or the gate at which it waits."""

from __future__ import annotations

from nbflow.core.errors import ChildFailed, GatePending
from nbflow.headless.batches.jobs import AGAIN, Item, Outcome
from nbflow.headless.waiting import Waiting


def failure(item: Item, outcome: Outcome) -> ChildFailed:
    """Return the error that an item's step ends with: the notebook's own, and where it was."""
    what = "was cancelled" if outcome.state == "cancelled" else "failed"
    where = "" if outcome.cell is None else f" in cell {outcome.cell + 1}"
    said = ""
    if outcome.error is not None and outcome.state != "cancelled":
        said = f": {outcome.error.type}: {outcome.error.message}"
    origin = f" ({item.origin})" if item.origin else ""
    return ChildFailed(
        f"Item {item.index}{origin}, run {item.run}, {what}{where}{said}".rstrip(".") + ".",
        hint="Cancelled is final." if outcome.state == "cancelled" else AGAIN,
        child=item.run,
        state=str(outcome.state),
    )


def stop_at(item: Item, waiting: Waiting) -> GatePending:
    """Return what an item's step stops with that waits at a gate."""
    origin = f" ({item.origin})" if item.origin else ""
    return GatePending(
        f"Item {item.index}{origin}, run {item.run}: {waiting}",
        run=waiting.run,
        step=waiting.step,
        name=waiting.name,
    )
