"""What a run results in, recorded in the run itself: its last step, "return".

A child's parent may die between the child's end and its own record of it. The
result is found here then, and nothing runs again.
"""

from __future__ import annotations

from typing import Any

from nbflow.core.history import History
from nbflow.core.model import Checkpoint, StepCompleted, StepStarted
from nbflow.core.signature import digest
from nbflow.runtime import trying
from nbflow.runtime.session import Session
from nbflow.runtime.steps import RESULT
from nbflow.store.protocol import Store
from nbflow.values.codec import decode

#: What makes the step that holds a run's result the same work: it is always the same.
SIGNATURE = digest("result of a run")


def record_result(session: Session, value: Any) -> None:
    """Record a run's result as its last step, "return"; a result that is recorded already stays.

    Raises:
        CannotStore: the value cannot be stored.
    """
    if has_result(session):
        return
    checkpoint = trying.checkpoint(session, {RESULT: value})
    session.recorder.append(
        StepStarted(step=RESULT, name=RESULT, step_kind="call", signature=SIGNATURE),
        StepCompleted(execution=-1, step=RESULT, checkpoint=checkpoint),
    )


def has_result(session: Session) -> bool:
    """Tell whether the result is recorded, acknowledged or not: then the run is done but for its last record."""
    session.recorder.settle()
    return session.find(RESULT, SIGNATURE) is not None


def result_of(store: Store, run: str, history: History | None = None) -> Any:
    """Return the result that a run recorded; what a notebook published; None where there is neither.

    Raises:
        UnknownRun: no such run.
        CannotRestore, CorruptLeaf: the value cannot be rebuilt.
    """
    history = history or History.of(store.entries(run))
    execution = history.completed(RESULT, SIGNATURE)
    if execution is not None and execution.completed is not None:
        checkpoint = execution.completed.checkpoint
        assert checkpoint is not None
        return values_of(store, run, checkpoint)[RESULT]
    if history.opened is not None and history.opened.workflow_kind == "notebook":
        return dict(history.published)
    return None


def values_of(store: Store, run: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the values of a checkpoint by name, without holding the run.

    Raises:
        CannotRestore, CorruptLeaf: a value cannot be rebuilt.
    """
    refs = {ref.digest: ref for ref in checkpoint.leaves}
    return decode(checkpoint, lambda digest: store.leaf(run, refs[digest]))
