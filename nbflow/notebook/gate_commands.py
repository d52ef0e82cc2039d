"""`%nbflow gates`, `%nbflow approve` and `%nbflow reject`: what they do once their line is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import UnknownRun, UsageError
from nbflow.core.history import History
from nbflow.notebook import messages
from nbflow.notebook.commands import unquoted
from nbflow.notebook.tables import gates_table

if TYPE_CHECKING:
    from nbflow.notebook.host import Host

#: What `approve` and `reject` are told.
ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gate", {"nargs": "+", "metavar": "[RUN] GATE"}),
    ("--feedback", {"default": "", "metavar": "TEXT"}),
    ("--select", {"action": "append", "default": [], "metavar": "OPTION"}),
)


def listed(host: Host, *, every: bool) -> messages.Table:
    """Return the gates that wait, or with `every` all there are."""
    from nbflow.runtime.gates.deciding import gates

    found = gates(state=None if every else "waiting", store=host.store())
    rows = [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]
    current = host.session.run if host.session is not None else None
    return gates_table(rows, current, every=every)


def decided(host: Host, found: Any, current: Callable[[], History | None], *, approved: bool) -> None:
    """Decide about a gate and say so; `current` returns the history of the notebook's own run.

    Raises:
        GateDecided, UnknownRun, UnknownStep, UsageError: nothing was decided.
    """
    from nbflow.runtime.gates.deciding import decide

    *named, gate = map(unquoted, found.gate)
    if len(named) > 1:
        word = "approve" if approved else "reject"
        raise UsageError(
            f"%nbflow {word} wants a gate, or a run and a gate, not {len(named) + 1} words.",
            hint='Write a text in quotation marks: --feedback "a text".',
        )
    store = host.store()
    if named:
        info = store.run(named[0])
    else:
        history = current()
        if history is None or history.opened is None:
            raise UnknownRun(
                f"There is no unfinished run of {host.workflow()}.",
                hint="%nbflow gates lists the gates of every run; name the run as well: RUN GATE.",
            )
        info = store.run(history.opened.run)
    decision = decide(
        store,
        info.run,
        gate,
        approved,
        feedback=unquoted(found.feedback),
        selections=tuple(map(unquoted, found.select)),
        via="notebook",
    )
    own = host.session is not None and host.session.run == info.run
    then = "Run its cell again: it goes on from there." if own else "It goes on when the run is resumed."
    messages.say(host.shell, f"Gate {gate} of run {info.run} of {info.workflow} is {decision.word}. {then}")
