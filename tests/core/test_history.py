"""The fold from journal entries to what a run is now."""

from __future__ import annotations

from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    ErrorInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.core.states import RunState, StepState

OWNER = Owner(host="h", pid=1, since=0.0)
SIG = bytes(32)
OTHER = bytes([1]) * 32


def fold(*records: AnyRecord) -> History:
    """Fold records as a run's journal would hold them."""
    opened = RunOpened(run="r", workflow="w")
    return History.of(Entry(n, float(n), record) for n, record in enumerate((opened, *records), 1))


def attached(generation: int = 1) -> RunAttached:
    """An attach record."""
    return RunAttached(generation=generation, attempt=generation, owner=OWNER)


def started(step: str = "load", signature: bytes = SIG) -> StepStarted:
    """A start record."""
    return StepStarted(step=step, name=step, step_kind="cell", signature=signature)


def test_a_completed_step_is_found_by_key_and_signature() -> None:
    """Another signature of the same step is other work."""
    history = fold(
        attached(), started(), StepCompleted(execution=3, step="load", checkpoint=Checkpoint(codec="json"))
    )

    assert history.completed("load", SIG) is history.executions[3]
    assert history.completed("load", OTHER) is None


def test_every_old_version_stays_replayable() -> None:
    """Going back to an earlier version of a cell finds that version's checkpoint."""
    history = fold(
        attached(),
        started(),
        StepCompleted(execution=3, step="load"),
        started(signature=OTHER),
        StepCompleted(execution=5, step="load"),
    )

    assert history.completed("load", SIG) is history.executions[3]
    assert history.completed("load", OTHER) is history.executions[5]
    assert [False, True] == [info.current for info in history.steps()]


def test_a_terminal_step_never_changes() -> None:
    """A second end of one execution is ignored, whichever comes first."""
    error = ErrorInfo(type="ValueError", message="no")
    first_done = fold(
        attached(),
        started(),
        StepCompleted(execution=3, step="load"),
        StepEnded(execution=3, step="load", state="failed", error=error),
    )
    first_failed = fold(
        attached(),
        started(),
        StepEnded(execution=3, step="load", state="failed", error=error),
        StepCompleted(execution=3, step="load"),
    )

    assert StepState.COMPLETED == first_done.executions[3].state
    assert StepState.FAILED == first_failed.executions[3].state
    assert first_failed.completed("load", SIG) is None


def test_a_step_whose_process_died_is_cancelled_by_the_next_attach() -> None:
    """Nobody can end it any more; its retries are still known."""
    error = ErrorInfo(type="OSError", message="x")
    history = fold(
        attached(),
        started(),
        StepRetried(execution=3, step="load", attempt=1, due_at=9.0, error=error),
        attached(2),
    )

    execution = history.executions[3]
    assert (StepState.CANCELLED, True) == (execution.state, execution.interrupted)
    assert execution.retried is not None and 9.0 == execution.retried.due_at


def test_a_forgotten_step_runs_again_and_counts_once_recorded_again() -> None:
    """Forgetting hides all versions; a later execution counts."""
    forgotten = fold(
        attached(), started(), StepCompleted(execution=3, step="load"), StepForgotten(step="load")
    )
    again = fold(
        attached(),
        started(),
        StepCompleted(execution=3, step="load"),
        StepForgotten(step="load"),
        started(),
        StepCompleted(execution=6, step="load"),
    )

    assert forgotten.completed("load", SIG) is None
    assert again.completed("load", SIG) is again.executions[6]


def test_a_final_run_ignores_what_comes_later() -> None:
    """Completed stays completed, though the entries go on."""
    history = fold(
        attached(), RunChanged(state=RunState.COMPLETED), RunChanged(state=RunState.CANCELLED, reason="user")
    )

    assert RunState.COMPLETED == history.state
    assert 3.0 == history.finished_at


def test_a_failed_run_runs_again_when_attached() -> None:
    """A resume is a new attempt and clears the error."""
    error = ErrorInfo(type="ValueError", message="no")
    history = fold(attached(), RunChanged(state=RunState.FAILED, error=error), attached(2))

    assert (RunState.RUNNING, None, 2) == (history.state, history.error, history.info().attempts)
