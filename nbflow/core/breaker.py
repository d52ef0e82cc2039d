"""The circuit breaker as data and transitions. Pure: the state is a value, time is an argument.

After Nygard, *Release It!* (2007), with one rule that many libraries lack: every
change of phase begins a new period, calls carry the period in which they were
let in, and an outcome from an earlier period changes nothing. A slow call that
fails after the circuit was closed again does not open it, and a slow success
from before the trouble does not close it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbflow.core.model import Struct
from nbflow.core.numbers import count, finite

Phase = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Rules:
    """When a circuit opens (consecutive `failures`), for how long (`reset_after` seconds), and how it is probed."""

    failures: int = 5
    reset_after: float = 30.0
    probes: int = 1

    def __post_init__(self) -> None:
        count("failures", self.failures, least=1)
        finite("reset_after", self.reset_after, above_zero=True)
        count("probes", self.probes, least=1)


class Circuit(Struct, frozen=True):
    """The state of one circuit; encodes to a few bytes.

    `since` is when the phase began (UTC seconds). `probes` are the places of a
    half-open circuit that are taken: (number of the ticket, since when).
    """

    phase: Phase = "closed"
    period: int = 0
    failures: int = 0
    since: float = 0.0
    probes: tuple[tuple[int, float], ...] = ()
    issued: int = 0


class Ticket(Struct, frozen=True):
    """Leave to make one call; its outcome counts while the circuit is in the period in which it was given."""

    period: int
    probe: int = 0


class Refusal(Struct, frozen=True):
    """No call now. `retry_after` (seconds) is 0 while probes decide: that takes as long as it takes."""

    retry_after: float


def allow(rules: Rules, state: Circuit, now: float) -> tuple[Circuit, Ticket | Refusal]:
    """Ask to make a call; the state comes back unchanged (the same object) while the circuit is closed.

    >>> opened = Circuit(phase="open", period=1, since=100.0)
    >>> allow(Rules(reset_after=30), opened, now=110.0)[1]
    Refusal(retry_after=20.0)
    >>> half, ticket = allow(Rules(reset_after=30), opened, now=130.0)
    >>> half.phase, ticket
    ('half-open', Ticket(period=2, probe=1))
    """
    if state.phase == "closed":
        return state, Ticket(state.period)
    state = _not_after(state, now)
    if state.phase == "open":
        left = state.since + rules.reset_after - now
        if left > 0:
            return state, Refusal(left)
        state = Circuit(phase="half-open", period=state.period + 1, since=now, issued=state.issued)
    # A probe whose process died never reports. It gives its place away after as long as a circuit stays
    # open. If it does report after all and nothing was decided yet, its outcome is as good as any.
    alive = tuple(probe for probe in state.probes if now - probe[1] < rules.reset_after)
    if len(alive) >= rules.probes:
        return state, Refusal(0.0)
    number = state.issued + 1
    state = Circuit(
        phase="half-open",
        period=state.period,
        since=state.since,
        probes=(*alive, (number, now)),
        issued=number,
    )
    return state, Ticket(state.period, number)


def record(rules: Rules, state: Circuit, ticket: Ticket, ok: bool | None, now: float) -> Circuit:
    """Take an outcome in; None is a call that says nothing about the service (cancelled, never made).

    >>> state = record(Rules(failures=1), Circuit(), Ticket(0), ok=False, now=5.0)
    >>> state.phase, record(Rules(), state, Ticket(0), ok=True, now=6.0) == state
    ('open', True)
    """
    if ticket.period != state.period:
        return state
    if ok is None:
        left = tuple(probe for probe in state.probes if probe[0] != ticket.probe)
        return state if left == state.probes else _with(state, probes=left)
    if state.phase == "half-open":
        phase: Phase = "closed" if ok else "open"
        return Circuit(phase=phase, period=state.period + 1, since=now, issued=state.issued)
    if ok:
        return _with(state, failures=0) if state.failures else state
    if state.failures + 1 < rules.failures:
        return _with(state, failures=state.failures + 1)
    return Circuit(phase="open", period=state.period + 1, since=now, issued=state.issued)


def phase(rules: Rules, state: Circuit, now: float) -> Phase:
    """Return the phase that a call made now would find; an open circuit whose time is over is half-open."""
    if state.phase == "open" and now - state.since >= rules.reset_after:
        return "half-open"
    return state.phase


def _not_after(state: Circuit, now: float) -> Circuit:
    """Move instants that lie ahead to now: a clock that was set back must not keep a circuit open for longer."""
    if state.since <= now and all(began <= now for _, began in state.probes):
        return state
    probes = tuple((number, min(began, now)) for number, began in state.probes)
    return _with(state, since=min(state.since, now), probes=probes)


def _with(
    state: Circuit,
    *,
    failures: int | None = None,
    since: float | None = None,
    probes: tuple[tuple[int, float], ...] | None = None,
) -> Circuit:
    return Circuit(
        phase=state.phase,
        period=state.period,
        failures=state.failures if failures is None else failures,
        since=state.since if since is None else since,
        probes=state.probes if probes is None else probes,
        issued=state.issued,
    )
