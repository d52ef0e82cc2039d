"""A gate against a model of ten lines: opened, decided, resumed, forgotten, timed out in any order."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nbflow
from nbflow.core.errors import GateDecided, GatePending, GateTimedOut, UnknownStep, UsageError
from nbflow.core.gates import find_gate
from nbflow.core.history import History
from nbflow.core.model import StepCompleted, StepStarted
from nbflow.testing import MemoryStore, VirtualClock
from tests.runtime.timed import attached

OPTIONS = ("web", "mail")
LIMIT = 100.0


class GateModel(RuleBasedStateMachine):
    """`phase` is new, open, sent (decided, not taken), done, timed_out or forgotten; `answer` what was decided."""

    @initialize(on_timeout=st.sampled_from(["fail", "continue", "reject"]), timed=st.booleans())
    def begin(self, on_timeout: Any, timed: bool) -> None:  # noqa: FBT001
        """Open a run."""
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.on_timeout = on_timeout
        self.timed = timed
        self.phase = "new"
        self.answer: tuple[Any, ...] = ()
        self.due = 0.0
        self.openings: set[str] = set()
        self.decided = 0
        with attached(self.store) as session:
            self.run = session.run

    def gate(self) -> Any:
        """Return the gate as the journal has it."""
        return find_gate(History.of(self.store.entries(self.run)), "publish")

    @property
    def late(self) -> bool:
        """Whether the time of an open gate is over."""
        return self.timed and self.clock.now() >= self.due

    @rule(times=st.integers(1, 2))
    def resume(self, times: int) -> None:
        """Attach the run and come to the gate, once or twice in one process."""
        with attached(self.store):
            self.visit()
            if times == 2 and self.phase == "open":  # else it would be another gate of that name
                self.visit()

    def visit(self) -> None:
        """Come to the gate, and compare what happens."""
        if self.phase in ("new", "forgotten"):
            self.phase, self.due = "open", self.clock.now() + LIMIT
        elif self.phase == "sent":
            self.phase = "done"
            self.decided += 1
        elif self.phase == "open" and self.late:
            self.phase = "timed_out" if self.on_timeout == "fail" else "done"
            self.answer = (self.on_timeout == "continue", "timeout", (), "")
            self.decided += self.phase == "done"
        try:
            decided = nbflow.gate(
                "publish",
                options=OPTIONS,
                timeout=LIMIT if self.timed else None,
                on_timeout=self.on_timeout,
                on_reject="return",
                show="something",
            )
        except GatePending:
            assert "open" == self.phase
            self.openings.add(self.gate().form.opening)
        except GateTimedOut:
            assert "timed_out" == self.phase
        else:
            assert "done" == self.phase
            assert self.answer == (decided.approved, decided.by, decided.selections, decided.feedback)

    @rule(
        approved=st.booleans(),
        select=st.lists(st.sampled_from([*OPTIONS, "fax"]), max_size=3),
        by=st.sampled_from(["ana", "bob"]),
        feedback=st.sampled_from(["", "why", "\N{SNOWMAN} <b>"]),
    )
    def decide(self, approved: bool, select: list[str], by: str, feedback: str) -> None:  # noqa: FBT001
        """Decide from outside, and compare whether it is accepted."""
        verb = nbflow.approve if approved else nbflow.reject
        accepted = self.phase == "open" and not self.late
        try:
            verb(self.run, "publish", feedback, select=select, by=by, store=self.store)
        except UnknownStep:
            assert "new" == self.phase
        except GateDecided as refused:
            assert not accepted
            if self.phase in ("sent", "done"):
                shown = refused.decision
                assert self.answer == (shown.approved, shown.by, shown.selections, shown.feedback)
        except UsageError:
            assert accepted
            assert "fax" in select
        else:
            assert accepted
            assert "fax" not in select
            self.phase = "sent"
            self.answer = (approved, by, tuple(each for each in OPTIONS if each in select), feedback)

    @precondition(lambda self: self.phase != "new")
    @rule()
    def forget(self) -> None:
        """Have it asked anew; a decision that nobody took goes with the question."""
        nbflow.retry_step(self.run, "publish", store=self.store)
        self.phase = "forgotten"

    @rule(seconds=st.sampled_from([1.0, 60.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass while nobody runs it."""
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-5000.0, 5000.0]))
    @precondition(lambda self: not self.timed)
    def set_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.clock.shift_wall(seconds)

    @invariant()
    def the_journal_agrees(self) -> None:
        """The state that anybody reads is that of the model, and each opening was decided at most once."""
        if getattr(self, "phase", "new") == "new":
            return
        entries = self.store.entries(self.run)
        done = [e for e in entries if isinstance(e.record, StepCompleted) and "decision" in e.record.detail]
        assert self.decided == len(done)
        gate = self.gate()
        if self.phase in ("open", "sent"):
            assert "waiting" == gate.state
            assert (self.due if self.timed else None) == gate.due_at
        elif self.phase == "done":
            assert ("approved" if self.answer[0] else "rejected") == gate.state
        elif self.phase == "timed_out":
            assert "timed_out" == gate.state
        asked = {e.record.detail["gate"]["opening"] for e in entries if isinstance(e.record, StepStarted)}
        assert self.openings <= asked

    def teardown(self) -> None:
        """Close the store."""
        with contextlib.suppress(AttributeError):
            self.store.close()


TestGateModel = GateModel.TestCase
TestGateModel.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


@pytest.mark.soak
class TestGateModelAtLength(GateModel.TestCase):
    """The same, for longer."""

    settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
