"""What is to be undone, in which order, and how far a rollback got: read off the history alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nbflow.core import saga
from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Entry,
    ErrorInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepStarted,
)
from nbflow.core.saga import Progress

SIG = bytes(32)


class Journal:
    """A run's journal, written record by record."""

    def __init__(self) -> None:
        self.history = History()
        self.add(RunOpened(run="r", workflow="w"))
        self.attach()

    def add(self, *records: AnyRecord) -> int:
        """Append records; return the seq of the first."""
        first = self.history.seq + 1
        for place, record in enumerate(records):
            self.history.add(Entry(first + place, 0.0, record))
        return first

    def attach(self) -> None:
        """Have a new process take the run over."""
        generation = (self.history.attached.generation if self.history.attached else 0) + 1
        self.add(
            RunAttached(generation=generation, attempt=generation, owner=Owner(host="h", pid=1, since=0.0))
        )

    def start(self, step: str, parent: str | None = None, compensate: bool = True, kind: str = "call") -> int:
        """Start a step; return its execution."""
        detail = {saga.COMPENSATE: "m:f"} if compensate else {}
        return self.add(
            StepStarted(step=step, name=step, step_kind=kind, signature=SIG, parent=parent, detail=detail)
        )

    def complete(self, number: int, *along: AnyRecord) -> None:
        """Complete an execution."""
        self.add(StepCompleted(execution=number, step=self.history.executions[number].started.step), *along)

    def rollback(self, error: str | None = "no", key: str = "rollback#0") -> int:
        """Start a rollback; return its execution."""
        info = ErrorInfo("ValueError", error) if error is not None else None
        return self.add(
            StepStarted(
                step=key,
                name=saga.ROLLBACK,
                step_kind=saga.COMPENSATION,
                signature=SIG,
                detail=saga.rollback_detail(info, ""),
            )
        )

    def undo(self, number: int, left: dict[str, int] | None = None) -> None:
        """Undo an execution, as the runtime records it."""
        execution = self.history.executions[number]
        key = saga.undo_key(number)
        undo = self.add(
            StepStarted(
                step=key,
                name="undo",
                step_kind=saga.COMPENSATION,
                signature=SIG,
                parent="rollback#0",
                detail={saga.OF: number},
            )
        )
        self.complete(undo, *saga.forgotten_with(self.history, execution, left or {}))

    def todo(self) -> list[int]:
        """Return the executions that are to be undone, in order."""
        return [execution.number for execution in saga.compensatable(self.history)]


@given(st.permutations(range(6)), st.integers(0, 6))
def test_completed_steps_are_undone_in_reverse_order_of_completion(order: list[int], k: int) -> None:
    """It is the end that counts, not the start; what did not complete is left alone, at every k of n."""
    journal = Journal()
    numbers = [journal.start(f"s{n}") for n in range(6)]
    for place in order[:k]:
        journal.complete(numbers[place])

    assert [numbers[place] for place in reversed(order[:k])] == journal.todo()


@given(st.integers(0, 5), st.data())
def test_what_was_undone_is_never_undone_again(n: int, data: st.DataObject) -> None:
    """Wherever the process dies, the rest is exactly what has no recorded undo."""
    journal = Journal()
    numbers = [journal.start(f"s{place}") for place in range(n)]
    for number in numbers:
        journal.complete(number)
    journal.rollback()
    expected = list(reversed(numbers))
    while expected and data.draw(st.booleans()):
        if data.draw(st.booleans()):
            journal.attach()
        journal.undo(expected.pop(0))

        assert expected == journal.todo()
    for number in set(numbers) - set(expected):
        assert journal.history.completed(journal.history.executions[number].started.step, SIG) is None


def test_steps_without_compensator_or_forgotten_by_hand_are_left_alone() -> None:
    """Forgetting a step is how a person says that nothing is to be undone there."""
    journal = Journal()
    plain, forgotten, failed = (
        journal.start(name, compensate=name != "plain") for name in ("plain", "x", "y")
    )
    journal.complete(plain)
    journal.complete(forgotten)
    journal.add(StepForgotten(step="x"), StepEnded(execution=failed, step="y", state="failed"))

    assert [] == journal.todo()


def test_what_a_compensator_called_is_not_undone() -> None:
    """Undoing does not undo itself, at any depth."""
    journal = Journal()
    first = journal.start("first")
    journal.complete(first)
    journal.rollback()
    journal.add(
        StepStarted(
            step="undo/3", name="undo", step_kind=saga.COMPENSATION, signature=SIG, detail={saga.OF: first}
        )
    )
    inside = journal.start("undo/3/inside", parent="undo/3")
    journal.complete(journal.start("undo/3/inside/deeper", parent="undo/3/inside"))
    journal.complete(inside)

    assert [first] == journal.todo()


def test_a_completed_step_around_an_undone_one_is_forgotten_too() -> None:
    """It would replay and never call what has to be done again; one that runs still, or is to be undone itself, is not."""
    journal = Journal()
    outer = journal.start("outer", compensate=False, kind="cell")
    middle = journal.start("middle", parent="outer")
    inner = journal.start("inner", parent="middle")
    journal.complete(inner)
    journal.complete(middle)
    journal.complete(outer)
    history = journal.history

    def forgotten(left: dict[str, int]) -> list[str]:
        return [record.step for record in saga.forgotten_with(history, history.executions[inner], left)]

    assert ["inner", "middle", "outer"] == forgotten({})
    assert ["inner", "outer"] == forgotten({"middle": 1})
    journal.start("outer", compensate=False, kind="cell")
    assert ["inner", "middle"] == forgotten({})


def test_a_step_with_two_results_is_forgotten_with_the_last_of_them() -> None:
    """Else the other one would no longer count as something to undo."""
    journal = Journal()
    first, second = (
        journal.add(
            StepStarted(step="s", name="s", step_kind="call", signature=sig, detail={"compensate": "f"})
        )
        for sig in (SIG, bytes([1]) * 32)
    )
    journal.complete(first)
    journal.complete(second)
    journal.rollback()

    assert [second, first] == journal.todo()
    journal.undo(second, Counter({"s": 1}))
    assert [first] == journal.todo()
    journal.undo(first)
    assert [] == journal.todo()
    assert journal.history.completed("s", SIG) is None


def test_progress_follows_a_rollback_through_crashes() -> None:
    """None, interrupted until the run is said to have failed, then ended; the error is kept."""
    journal = Journal()
    assert Progress.NONE == saga.rollback_of(journal.history).progress
    number = journal.rollback("first")
    assert Progress.INTERRUPTED == saga.rollback_of(journal.history).progress
    journal.attach()
    assert Progress.INTERRUPTED == saga.rollback_of(journal.history).progress
    number = journal.rollback("first")
    journal.complete(number)
    found = saga.rollback_of(journal.history)
    assert (Progress.INTERRUPTED, ErrorInfo("ValueError", "first")) == (found.progress, found.error)
    journal.add(RunChanged(state="failed"))
    journal.attach()
    assert Progress.ENDED == saga.rollback_of(journal.history).progress
    assert "rollback#1" == saga.next_rollback(journal.history)
    assert journal.history.executions[number].ended_seq == saga.rolled_back_at(journal.history)


def test_a_rollback_that_failed_is_incomplete_and_carried_on_under_its_key() -> None:
    """So the next resume finds it, and its error."""
    journal = Journal()
    number = journal.rollback("first")
    journal.add(StepEnded(execution=number, step="rollback#0", state="failed"), RunChanged(state="failed"))
    journal.attach()

    found = saga.rollback_of(journal.history)
    assert (Progress.INCOMPLETE, True) == (found.progress, found.unfinished)
    assert "rollback#0" == saga.next_rollback(journal.history)
    assert 0 == saga.rolled_back_at(journal.history)


def test_a_rollback_by_hand_needs_no_failed_run_to_be_ended() -> None:
    """The run goes on after it, and a machine's states before it still count."""
    journal = Journal()
    journal.complete(journal.rollback(None))

    assert Progress.ENDED == saga.rollback_of(journal.history).progress
    assert 0 == saga.rolled_back_at(journal.history)
