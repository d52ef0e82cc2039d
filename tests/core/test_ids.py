"""Run ids: they sort by time, and a child's follows from its parent and the step that starts it."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.ids import child_run_id, new_run_id

steps = st.text(min_size=1, max_size=30)


@given(step=steps)
def test_a_childs_id_is_the_same_at_every_replay(step: str) -> None:
    """Parent and step decide the id, nothing else does."""
    parent = new_run_id()

    assert child_run_id(parent, step) == child_run_id(parent, step)


@given(first=steps, second=steps)
def test_every_step_of_every_run_has_a_child_of_its_own(first: str, second: str) -> None:
    """Another step or another parent is another id, and never the parent's."""
    parent, other = new_run_id(), new_run_id()
    ids = {
        parent,
        other,
        child_run_id(parent, first),
        child_run_id(parent, second),
        child_run_id(other, first),
    }

    assert (5 if first != second else 4) == len(ids)


@given(step=steps)
def test_a_childs_id_is_a_uuid_of_version_7_with_its_parents_time(step: str) -> None:
    """It sorts beside its parent: behind all runs that were there before, and before all later ones."""
    earlier, parent = "0197a3b1-ffff-7fff-bfff-ffffffffffff", "0197a3b2-0000-7000-8000-000000000000"
    child = uuid.UUID(child_run_id(parent, step))

    assert 7 == child.version
    assert uuid.RFC_4122 == child.variant
    assert uuid.UUID(parent).bytes[:6] == child.bytes[:6]
    assert earlier < str(child) < "0197a3b2-0001-7000-8000-000000000000"


@given(step=steps)
def test_a_child_of_a_child_is_found_again_as_well(step: str) -> None:
    """Ids nest to any depth."""
    parent = new_run_id()
    chain = [parent]
    for _ in range(5):
        chain.append(child_run_id(chain[-1], step))

    assert 6 == len(set(chain))
    assert chain[5] == child_run_id(chain[4], step)
