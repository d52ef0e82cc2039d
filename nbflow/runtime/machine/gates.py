"""A state that asks: what `machine.gate` takes, and what entering such a state does.

The state's step encloses an ordinary gate (`nbflow.runtime.gates`), named as the
state, whose decision says which state comes next.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from nbflow.core.errors import GateTimedOut, UsageError
from nbflow.core.gates import OnTimeout
from nbflow.core.outcomes import plain_label
from nbflow.core.state_spec import Ask
from nbflow.runtime.gates.asking import Asking, Question
from nbflow.runtime.machine.context import RESERVED, Context
from nbflow.runtime.scope import entered

if TYPE_CHECKING:
    from nbflow.runtime.machine.kinds import Visit


def ask_of(
    label: str,
    find: Callable[[Any], str | None],
    *,
    approved: Any,
    rejected: Any,
    timed_out: Any,
    show: str | Iterable[str],
    into: str,
    wait: bool,
    **question: Any,
) -> Ask:
    """Return what a gate among the states asks, checked where it is written.

    Raises:
        UsageError: an option makes no sense.
    """
    checked = Question(label, **question)
    names = (show,) if isinstance(show, str) else tuple(show)
    for name in (*names, into):
        given: object = name
        if not isinstance(given, str) or not given.isidentifier() or keyword.iskeyword(given):
            raise UsageError(f"Gate {label!r}: show= and into= are names of data, not {name!r}.")
    if into in RESERVED or hasattr(Context, into):
        raise UsageError(f"Gate {label!r}: {into!r} cannot be the name of a machine's data.")
    if timed_out is not None and (checked.timeout is None or checked.on_timeout != "fail"):
        raise UsageError(
            f"Gate {label!r}: timed_out= is for a gate with a timeout, and instead of on_timeout=."
        )

    def target(state: Any) -> str | None:
        return None if state is None else find(state) or plain_label(state)

    way = target(approved)
    if way is None:
        raise UsageError(f"Gate {label!r} does not say where an approval leads.", hint="Give approved=STATE.")
    limit = checked.timeout
    assert limit is None or isinstance(limit, float)
    return Ask(
        checked.text,
        way,
        target(rejected),
        target(timed_out),
        tuple(checked.options),
        checked.single,
        names,
        limit,
        checked.on_timeout,
        bool(wait),
        into,
    )


async def pass_gate(visit: Visit, ctx: Context) -> Any:
    """Ask what the state asks, keep the decision as data, and return the state that it leads to."""
    ask: Ask = visit.state.options["ask"]
    question = Question(
        visit.state.label,
        ask.text,
        ask.options,
        ask.single,
        ask.timeout,
        cast("OnTimeout", ask.on_timeout),
    )
    shown = [ctx[name] for name in ask.show]
    if visit.state.handler is not None:
        # On a resume, too: what it sets is data of this state, whenever the decision comes.
        more = await visit.call(visit.state.handler, ctx)
        shown += more if isinstance(more, (list, tuple)) else [] if more is None else [more]
    with entered(visit.scope):
        asking = Asking(question, shown, wait=ask.wait)
        try:
            looping = visit.runner.face.looping
            decision = await asking.ask_async() if looping else asking.ask()
        except GateTimedOut:
            if ask.timed_out is None:
                raise
            return ask.timed_out
    ctx[ask.into] = decision
    if not decision.approved and ask.rejected is None:
        raise asking.rejected(decision)
    return ask.approved if decision.approved else ask.rejected
