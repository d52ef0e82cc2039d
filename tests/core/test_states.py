"""The state machines: final means final, and the tables say everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import InvalidTransition
from nbflow.core.states import (
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    RunState,
    StepState,
    advance_run,
    advance_step,
)


def test_tables_name_every_state() -> None:
    """No state is missing from the tables, and every state can be reached from pending."""
    for table, states, first in (
        (RUN_TRANSITIONS, set(RunState), RunState.PENDING),
        (STEP_TRANSITIONS, set(StepState), StepState.PENDING),
    ):
        reached, todo = set(), [first]
        while todo:
            state = todo.pop()
            if state not in reached:
                reached.add(state)
                todo.extend(table[state])  # type: ignore[index]

        assert states == set(table) == reached


def test_completed_and_cancelled_runs_are_final() -> None:
    """A failed run may be resumed; completed and cancelled ones may not."""
    assert {RunState.COMPLETED, RunState.CANCELLED} == FINAL_RUN_STATES
    assert RunState.RUNNING in RUN_TRANSITIONS[RunState.FAILED]


@given(st.lists(st.sampled_from(list(RunState)), max_size=20))
def test_a_run_never_leaves_a_final_state(targets: list[RunState]) -> None:
    """Whatever is asked for, once final a run stays as it is."""
    state, final = RunState.PENDING, None
    for target in targets:
        try:
            state = advance_run(state, target, run="r")
        except InvalidTransition:
            assert target not in RUN_TRANSITIONS[state]
        if final is not None:
            assert final == state
        if state in FINAL_RUN_STATES:
            final = state


@given(st.sampled_from(list(StepState)), st.sampled_from(list(StepState)))
def test_a_step_moves_exactly_as_the_table_says(current: StepState, target: StepState) -> None:
    """The function and the table agree for every pair; the error names run and step."""
    if target in STEP_TRANSITIONS[current]:
        assert target == advance_step(current, target)
    else:
        with pytest.raises(InvalidTransition) as caught:
            advance_step(current, target, run="r1", step="load")
        assert ("r1", "load") == (caught.value.run, caught.value.step)
    assert not STEP_TRANSITIONS[current] or current not in FINAL_STEP_STATES
