"""Charges and budgets: paid once, summed over the tree, refused before the step starts."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import BudgetExceeded, NoActiveRun, UsageError
from nbflow.core.history import History
from nbflow.core.ids import child_run_id
from nbflow.core.model import RunCharged, RunOpened, StepCompleted, StepStarted
from nbflow.core.states import RunState
from nbflow.runtime import active, budgets
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.testing import MemoryStore
from tests.e2e.kit import history as stored_history


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files."""
    memory = MemoryStore()
    yield memory
    memory.close()


def only(store: MemoryStore) -> History:
    """Return the history of the store's only run."""
    (info,) = store.runs()
    return History.of(store.entries(info.run))


def asker() -> Any:
    """Define a durable function that spends what it is told; `bodies` lists the calls that really ran."""
    bodies: list[int] = []

    @nbflow.durable(version="1")
    def ask(tokens: int) -> int:
        bodies.append(tokens)
        nbflow.charge(tokens=tokens)
        return tokens

    ask.bodies = bodies
    return ask


# --- charges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_step_and_source_is_charged_once_over_its_retries(store: MemoryStore, asynchronous: bool) -> None:
    """Charges of one try add up; of several tries the largest sum counts, for each source on its own."""
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        nbflow.charge(tokens=5, source="a")
        nbflow.charge(tokens=5, dollars=0.5, source="a")
        nbflow.charge(tokens=1, source="b")
        if len(tries) < 3:
            raise ConnectionError

    if asynchronous:

        @nbflow.durable(retries=2, delay=0)
        async def ask() -> None:
            await asyncio.sleep(0)
            work()

        with nbflow.run("w", store=store):
            asyncio.run(ask())
            spent = nbflow.spent()
    else:
        with nbflow.run("w", store=store):
            nbflow.durable(retries=2, delay=0)(work)()
            spent = nbflow.spent()

    assert {"tokens": 11.0, "dollars": 0.5} == spent
    charges = [e.record for e in store.entries(store.runs()[0].run) if isinstance(e.record, RunCharged)]
    assert [1, 1, 1, 2, 2, 2, 3, 3, 3] == [charge.attempt for charge in charges]


def test_a_replayed_step_charges_nothing_and_an_interrupted_one_not_twice(store: MemoryStore) -> None:
    """Its entry is in the journal; and a body that begins again after a crash is another try."""
    ask = asker()
    fail = [True]

    @nbflow.durable(version="1")
    def interrupted() -> None:
        nbflow.charge(tokens=7)
        if fail.pop() if fail else False:
            raise Killed

    with pytest.raises(Killed), nbflow.run("w", store=store):
        ask(5)
        interrupted()
    with nbflow.run("w", store=store):
        ask(5)
        interrupted()
        assert {"tokens": 12.0} == nbflow.spent()

    assert [5] == ask.bodies


def test_two_calls_of_one_function_are_two_entries(store: MemoryStore) -> None:
    """Equal or not: each call is a step."""
    ask = asker()
    with nbflow.run("w", store=store):
        ask(5)
        ask(5)
        assert {"tokens": 10.0} == nbflow.spent()


def test_charges_outside_any_step_are_those_of_the_run(store: MemoryStore) -> None:
    """They add up within an attempt of the run; a resume that makes them again does not pay again."""
    for _ in range(2):
        with pytest.raises(Killed), nbflow.run("w", store=store):
            nbflow.charge(tokens=3)
            nbflow.charge(tokens=4)
            assert {"tokens": 7.0} == nbflow.spent()
            raise Killed

    assert {("", ""): {"tokens": 7.0}} == only(store).ledger.entries()


def test_concurrent_steps_charge_their_own_entries(store: MemoryStore) -> None:
    """Threads that inherit their context never charge each other's step."""
    import contextvars

    ask = asker()
    with nbflow.run("w", store=store):
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(ask, n)) for n in range(1, 21)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {"tokens": 210.0} == nbflow.spent()

    assert [float(n) for n in range(1, 21)] == sorted(
        amounts["tokens"] for amounts in only(store).ledger.entries().values()
    )


@pytest.mark.parametrize(
    "bad", [{}, {"tokens": math.nan}, {"tokens": -1}, {"tokens": math.inf}, {"tokens": "5"}]
)
def test_amounts_that_make_no_sense_are_typed_errors(store: MemoryStore, bad: dict[str, Any]) -> None:
    """Nothing is recorded, neither of a charge nor of a budget."""
    with nbflow.run("w", store=store):
        with pytest.raises(UsageError):
            nbflow.charge(**bad)
        with pytest.raises(UsageError), nbflow.budget(**bad):
            raise AssertionError("never here")
        with pytest.raises(UsageError, match="source"):
            nbflow.charge(tokens=1, source=3)  # type: ignore[arg-type]

    assert {} == only(store).ledger.total
    assert {} == only(store).executions


def test_outside_any_run_nothing_can_be_charged() -> None:
    """The error says so instead of losing the charge."""
    for action in (
        lambda: nbflow.charge(tokens=1),
        nbflow.spent,
        lambda: nbflow.budget(tokens=1).__enter__(),
    ):
        with pytest.raises(NoActiveRun):
            action()


def test_a_charge_is_on_disk_with_its_step(tmp_path: Path) -> None:
    """A kill right after the acknowledged step finds the charge before its completion in the journal."""
    place = tmp_path / ".nbflow"
    script = (
        "import os, signal, sys, nbflow\n"
        "@nbflow.durable(version='1')\n"
        "def ask():\n"
        "    nbflow.charge(tokens=5)\n"
        "with nbflow.run('w', store=sys.argv[1]):\n"
        "    ask()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(place)], check=False, timeout=60)
    history = stored_history(place)

    assert -signal.SIGKILL == done.returncode
    assert {"tokens": 5.0} == history.ledger.total
    assert [True] == [execution.completed is not None for execution in history.executions.values()]


# --- budgets ------------------------------------------------------------------------------------------------------


def test_a_spent_budget_refuses_the_next_step_before_it_starts(store: MemoryStore) -> None:
    """The body is not entered and the journal knows nothing of the step; the step that overran is kept."""
    ask = asker()
    with (
        pytest.raises(BudgetExceeded) as caught,
        nbflow.run("w", store=store) as run,
        nbflow.budget(tokens=10),
    ):
        ask(6)
        ask(7)
        ask(8)

    assert ("tokens", 13.0, 10.0, run.id) == (
        caught.value.unit,
        caught.value.spent,
        caught.value.limit,
        caught.value.run,
    )
    assert [6, 7] == ask.bodies
    assert ["budget", ask.step_name, ask.step_name] == [
        e.started.name for e in only(store).executions.values()
    ]
    assert caught.value.step is not None
    assert caught.value.step not in only(store).by_step


def test_a_budget_counts_from_its_entering_on_and_ends_with_its_block(store: MemoryStore) -> None:
    """What was spent before is not its business, and after it nothing is refused."""
    ask = asker()
    with nbflow.run("w", store=store):
        ask(100)
        with nbflow.budget(tokens=10) as made:
            ask(4)
            assert ({"tokens": 4.0}, {"tokens": 6.0}) == (made.spent(), made.left())
            ask(9)
            assert {"tokens": 0.0} == made.left()
        ask(1)

    assert [100, 4, 9, 1] == ask.bodies


def test_a_budget_that_was_pickled_is_of_the_run_that_restores_it(store: MemoryStore) -> None:
    """A durable cell records the name that it binds with `as`; nothing of the session goes with it."""
    import pickle

    with nbflow.run("w", store=store), nbflow.budget(tokens=10) as made:
        nbflow.charge(tokens=4)
        again = pickle.loads(pickle.dumps(made))
        assert made == again
        assert {"tokens": 6.0} == again.left()


def test_a_resume_keeps_counting_and_a_larger_budget_goes_on(store: MemoryStore) -> None:
    """What earlier processes spent inside the block counts; replays are never refused."""
    ask = asker()

    def attempt(limit: int) -> None:
        with nbflow.run("w", store=store):
            ask(100)
            with nbflow.budget(tokens=limit):
                for tokens in (6, 7, 8):
                    ask(tokens)

    for _ in range(2):
        with pytest.raises(BudgetExceeded) as caught:
            attempt(10)
        assert (13.0, [100, 6, 7]) == (caught.value.spent, ask.bodies)
    attempt(20)

    assert [100, 6, 7, 8] == ask.bodies


def test_of_nested_budgets_all_hold(store: MemoryStore) -> None:
    """The inner one may be the tighter, or the outer."""
    ask = asker()
    with nbflow.run("w", store=store), nbflow.budget(tokens=10):
        with nbflow.budget(tokens=3):
            ask(3)
            with pytest.raises(BudgetExceeded, match="of 3 tokens"):
                ask(1)
        ask(6)
        with nbflow.budget(tokens=100):
            ask(1)
            with pytest.raises(BudgetExceeded, match="of 10 tokens"):
                ask(2)


def test_every_unit_has_its_own_limit(store: MemoryStore) -> None:
    """The one that is spent is named; units without a limit are free."""

    @nbflow.durable
    def ask(**amounts: float) -> None:
        nbflow.charge(**amounts)

    with nbflow.run("w", store=store), nbflow.budget(tokens=1_000, dollars=0.5):
        ask(tokens=10, calls=1_000_000)
        ask(dollars=0.5)
        with pytest.raises(BudgetExceeded) as caught:
            ask(tokens=1)

    assert "dollars" == caught.value.unit


def test_a_budget_holds_for_async_steps_and_is_not_retried(store: MemoryStore) -> None:
    """A refusal inside a step with retries ends it at once: waiting makes nothing cheaper."""
    tries: list[int] = []
    ask = asker()

    @nbflow.durable(retries=5, delay=0)
    async def outer() -> None:
        tries.append(1)
        ask(5)
        ask(6)

    async def main() -> None:
        with nbflow.run("w", store=store), nbflow.budget(tokens=5):
            await outer()

    with pytest.raises(BudgetExceeded):
        asyncio.run(main())
    assert ([1], [5]) == (tries, ask.bodies)


def test_a_spent_budget_does_not_keep_a_rollback_from_running(store: MemoryStore) -> None:
    """Putting things right is always paid."""
    undone: list[int] = []

    @nbflow.durable(version="1", compensate=lambda _result: undone.append(1))
    def order() -> None:
        nbflow.charge(tokens=5)

    with pytest.raises(BudgetExceeded), nbflow.run("w", store=store), nbflow.budget(tokens=5):
        order()
        order()

    assert [1] == undone


# --- the tree -----------------------------------------------------------------------------------------------------


def child_of(parent: Session, step: str) -> Session:
    """Start a child as `nbflow.child` does: a step of the parent that names the run, and a session below."""
    run = child_run_id(parent.run, step)
    parent.recorder.append(
        StepStarted(step=step, name=step, step_kind="child", signature=bytes(32), detail={"run": run})
    )
    return Session.open(
        parent.store,
        step,
        new=True,
        parent=parent,
        opened={"run": run, "parent": parent.run, "parent_step": step},
    )


def completed(parent: Session, child: Session, step: str) -> None:
    """Complete a child and its step in the parent, with what it spent."""
    charged = budgets.tree_spent(child)
    child.finish()
    execution = parent.history.latest(step)
    assert execution is not None
    parent.recorder.append(
        StepCompleted(execution=execution.number, step=step, detail={"run": child.run, "charged": charged})
    )


def pay(session: Session, tokens: float) -> None:
    """Charge a session from its own context."""
    token = active.enter(session)
    try:
        nbflow.charge(tokens=tokens)
    finally:
        active.leave(token)


def test_what_a_tree_spends_is_summed_at_every_moment(store: MemoryStore) -> None:
    """Living, completed, failed and forgotten-by-memory children and their children count, each exactly once."""
    with nbflow.run("w", store=store):
        parent = active.required()
        nbflow.charge(tokens=1)
        first = child_of(parent, "first")
        pay(first, 10)
        grandchild = child_of(first, "grandchild")
        pay(grandchild, 100)
        assert {"tokens": 111.0} == nbflow.spent()
        completed(first, grandchild, "grandchild")
        assert {"tokens": 111.0} == nbflow.spent()
        completed(parent, first, "first")
        assert {"tokens": 111.0} == nbflow.spent()
        second = child_of(parent, "second")
        pay(second, 1_000)
        second.finish(RunState.FAILED)
        assert {"tokens": 1_111.0} == nbflow.spent()
        del first, grandchild, second
        assert {"tokens": 1_111.0} == nbflow.spent()
        assert {"tokens": 1_111.0} == budgets.history_spent(store, parent.history)


def test_a_new_process_finds_what_children_of_the_old_one_had_spent(store: MemoryStore) -> None:
    """Also of a child that was killed with it, before and after that is carried on."""
    with pytest.raises(Killed), nbflow.run("w", store=store):
        parent = active.required()
        done, open_ = child_of(parent, "done"), child_of(parent, "open")
        pay(done, 10)
        completed(parent, done, "done")
        pay(open_, 100)
        open_.close()
        raise Killed
    with nbflow.run("w", store=store):
        assert {"tokens": 110.0} == nbflow.spent()
        again = Session.open(store, "open", run=open_.run, parent=active.required())
        pay(again, 100)  # the run's second attempt at what is outside of its steps
        assert {"tokens": 110.0} == nbflow.spent()
        pay(again, 5)
        assert {"tokens": 115.0} == nbflow.spent()
        again.close()


def test_a_budget_of_the_parent_refuses_the_steps_of_its_children(store: MemoryStore) -> None:
    """Whoever of the tree spent it; a budget of a child is no business of its parent."""
    bodies: list[str] = []

    def step(session: Session, name: str) -> None:
        spec = StepSpec(step=name, name=name, kind="call", signature=bytes(32))
        session.run_step(spec, lambda _attempt: bodies.append(name) or StepResult({}))  # type: ignore[func-returns-value]

    with nbflow.run("w", store=store), nbflow.budget(tokens=10):
        parent = active.required()
        child = child_of(parent, "child")
        token = active.enter(child)
        try:
            with nbflow.budget(tokens=3):
                step(child, "one")
                nbflow.charge(tokens=4)
                with pytest.raises(BudgetExceeded, match="of 3 tokens"):
                    step(child, "two")
                step(parent, "three")
        finally:
            active.leave(token)
        step(child, "four")
        nbflow.charge(tokens=6)
        for session in (child, parent):
            with pytest.raises(BudgetExceeded, match="of 10 tokens"):
                step(session, "five")
        child.close()

    assert ["one", "three", "four"] == bodies


def test_a_child_that_was_never_created_has_spent_nothing(store: MemoryStore) -> None:
    """A kill between the parent's step and the child's first record."""
    with nbflow.run("w", store=store):
        active.required().recorder.append(
            StepStarted(
                step="c", name="c", step_kind="child", signature=bytes(32), detail={"run": "no-such-run"}
            )
        )
        assert {} == nbflow.spent()


def test_a_running_child_of_another_process_is_read_again(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook child records in a kernel of its own; what it spends is seen while it runs."""
    monkeypatch.setattr(budgets, "READ_EVERY", 0.0)
    with nbflow.run("w", store=store):
        parent = active.required()
        run = child_run_id(parent.run, "c")
        store.create(RunOpened(run=run, workflow="c", parent=parent.run, parent_step="c"))
        parent.recorder.append(
            StepStarted(step="c", name="c", step_kind="child", signature=bytes(32), detail={"run": run})
        )
        elsewhere = Session.open(store, "c", run=run)
        pay(elsewhere, 5)
        assert {"tokens": 5.0} == nbflow.spent()
        pay(elsewhere, 6)
        assert {"tokens": 11.0} == nbflow.spent()
        elsewhere.close()
