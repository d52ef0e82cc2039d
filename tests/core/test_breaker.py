"""The circuit breaker's transitions, against a reference that remembers everything."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from nbflow.core.breaker import Circuit, Refusal, Rules, Ticket, allow, phase, record
from nbflow.core.errors import UsageError

RULES = Rules(failures=3, reset_after=30.0, probes=1)


def failed(state: Circuit, times: int, now: float = 0.0, rules: Rules = RULES) -> Circuit:
    """Let so many calls in one after the other and fail them."""
    for _ in range(times):
        state, ticket = allow(rules, state, now)
        assert isinstance(ticket, Ticket)
        state = record(rules, state, ticket, False, now)
    return state


def probing(now: float = 30.0) -> tuple[Circuit, Ticket]:
    """Return a half-open circuit and its probe."""
    state, ticket = allow(RULES, failed(Circuit(), 3), now)
    assert isinstance(ticket, Ticket)
    return state, ticket


def test_consecutive_failures_open_the_circuit() -> None:
    """A success in between starts the count again."""
    state = failed(Circuit(), 2)
    state, ticket = allow(RULES, state, 0.0)
    assert isinstance(ticket, Ticket)
    state = record(RULES, state, ticket, True, 0.0)

    assert "closed" == failed(state, 2).phase
    assert "open" == failed(state, 3).phase


def test_an_open_circuit_says_when_to_come_again() -> None:
    """`retry_after` is what is left of `reset_after`."""
    assert Refusal(20.0) == allow(RULES, failed(Circuit(), 3, now=5.0), 15.0)[1]


def test_a_successful_probe_closes_and_a_failed_one_opens_again() -> None:
    """Half-open is decided by the first outcome, and the wait begins anew."""
    state, ticket = probing()

    assert "closed" == record(RULES, state, ticket, True, 31.0).phase
    again = record(RULES, state, ticket, False, 31.0)
    assert ("open", Refusal(30.0)) == (again.phase, allow(RULES, again, 31.0)[1])


@pytest.mark.parametrize("places", [1, 2, 5])
def test_only_so_many_probes_are_under_way(places: int) -> None:
    """The next one is refused; a call that was not made gives its place back."""
    rules = Rules(failures=1, reset_after=30.0, probes=places)
    state = failed(Circuit(), 1, rules=rules)
    tickets = []
    for _ in range(places):
        state, ticket = allow(rules, state, 30.0)
        tickets.append(ticket)

    assert all(isinstance(ticket, Ticket) for ticket in tickets)
    assert Refusal(0.0) == allow(rules, state, 30.0)[1]
    assert isinstance(tickets[0], Ticket)
    assert isinstance(allow(rules, record(rules, state, tickets[0], None, 30.0), 30.0)[1], Ticket)


def test_a_probe_that_never_reports_makes_room() -> None:
    """A killed process does not keep the circuit half-open for ever."""
    state, _ = probing(now=30.0)

    assert Refusal(0.0) == allow(RULES, state, 59.9)[1]
    assert isinstance(allow(RULES, state, 60.0)[1], Ticket)


def test_a_slow_probe_still_decides() -> None:
    """Calls that take longer than `reset_after` can close the circuit; else it would never recover."""
    state, slow = probing(now=30.0)
    state, _ = allow(RULES, state, 60.0)

    assert "closed" == record(RULES, state, slow, True, 75.0).phase


@pytest.mark.parametrize("ok", [True, False])
def test_an_outcome_from_an_earlier_period_changes_nothing(ok: bool) -> None:
    """Neither opens it a circuit that has recovered, nor closes it one that has opened meanwhile."""
    _, old = allow(RULES, Circuit(), 0.0)
    assert isinstance(old, Ticket)
    opened = failed(Circuit(), 3)
    half, probe = probing()
    closed = record(RULES, half, probe, True, 31.0)

    for state in (opened, half, closed):
        assert state == record(RULES, state, old, ok, 40.0)


def test_a_clock_set_back_keeps_no_circuit_open() -> None:
    """From the first look after it, the wait is `reset_after` at most."""
    state = failed(Circuit(), 3, now=10_000.0)
    state, refusal = allow(RULES, state, 100.0)

    assert Refusal(30.0) == refusal
    assert isinstance(allow(RULES, state, 130.0)[1], Ticket)


def test_the_state_is_a_small_value() -> None:
    """It comes back from MessagePack equal, in a few bytes."""
    state, _ = probing(now=1_750_000_000.5)
    raw = msgspec.msgpack.encode(state)

    assert state == msgspec.msgpack.decode(raw, type=Circuit)
    assert len(raw) < 120


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("failures", bad) for bad in (0, -1, True, 1.5, math.nan)),
        *(("probes", bad) for bad in (0, -1, True, math.inf)),
        *(("reset_after", bad) for bad in (0, -1, True, math.nan, math.inf, "30")),
    ],
)
def test_bad_rules_are_refused_by_name(field: str, bad: object) -> None:
    """A rule that makes no sense is a UsageError that names the field."""
    with pytest.raises(UsageError, match=field):
        Rules(**{field: bad})  # type: ignore[arg-type]


class Reference:
    """The same rules told by memory: every call, when it was let in, and what changed since."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.phase = "closed"
        self.changed_at = 0.0
        self.in_a_row = 0
        self.valid: set[int] = set()
        self.probing: dict[int, float] = {}
        self.calls = 0

    def turn(self, phase: str, now: float) -> None:
        """Enter a phase: whatever is under way no longer counts."""
        self.phase, self.changed_at, self.in_a_row = phase, now, 0
        self.valid.clear()
        self.probing.clear()

    def call(self, now: float) -> int | None:
        """Let a call in and return its number; None refuses it."""
        self.changed_at = min(self.changed_at, now)
        self.probing = {call: min(began, now) for call, began in self.probing.items()}
        if self.phase == "open":
            if self.changed_at + self.rules.reset_after - now > 0:
                return None
            self.turn("half-open", now)
        if self.phase == "half-open":
            fresh = {call: at for call, at in self.probing.items() if now - at < self.rules.reset_after}
            if len(fresh) >= self.rules.probes:
                return None
            self.probing = fresh
        self.calls += 1
        self.valid.add(self.calls)
        if self.phase == "half-open":
            self.probing[self.calls] = now
        return self.calls

    def outcome(self, call: int, ok: bool | None, now: float) -> None:
        """Take an outcome in."""
        if call not in self.valid:
            return
        self.valid.discard(call)
        self.probing.pop(call, None)
        if ok is None:
            return
        if self.phase == "half-open":
            self.turn("closed" if ok else "open", now)
        elif ok:
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            if self.in_a_row >= self.rules.failures:
                self.turn("open", now)


class BreakerMachine(RuleBasedStateMachine):
    """Concurrent calls that report in any order, or never, under a clock that jumps."""

    calls = Bundle("calls")

    @initialize(
        failures=st.integers(1, 3), probes=st.integers(1, 3), reset_after=st.sampled_from([1.0, 10.0, 30.0])
    )
    def begin(self, failures: int, probes: int, reset_after: float) -> None:
        self.rules = Rules(failures, reset_after, probes)
        self.state = Circuit()
        self.reference = Reference(self.rules)
        self.now = 1000.0

    @rule(target=calls)
    def call(self):
        self.state, answer = allow(self.rules, self.state, self.now)
        expected = self.reference.call(self.now)
        assert isinstance(answer, Ticket) == (expected is not None)
        if isinstance(answer, Refusal):
            assert 0 <= answer.retry_after <= self.rules.reset_after
        return answer, expected

    @rule(call=consumes(calls), ok=st.sampled_from([True, False, False, None]))
    def end(self, call, ok: bool | None) -> None:
        ticket, number = call
        if number is not None:
            self.state = record(self.rules, self.state, ticket, ok, self.now)
            self.reference.outcome(number, ok, self.now)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 5.0, 10.0, 30.0, 100.0, -0.5, -20.0, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.state.phase == "open")
    @rule()
    def wait_for_it(self) -> None:
        """After `retry_after` a call is let in."""
        self.state, answer = allow(self.rules, self.state, self.now)
        expected = self.reference.call(self.now)
        assert isinstance(answer, Ticket) == (expected is not None)
        if isinstance(answer, Refusal):
            self.now += answer.retry_after
            assert phase(self.rules, self.state, self.now) == "half-open"

    @invariant()
    def agree(self) -> None:
        assert (self.reference.phase, self.reference.in_a_row) == (self.state.phase, self.state.failures)
        assert len(self.state.probes) <= self.rules.probes
        assert self.state == msgspec.msgpack.decode(msgspec.msgpack.encode(self.state), type=Circuit)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
