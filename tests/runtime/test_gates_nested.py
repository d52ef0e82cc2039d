"""Gates inside of other steps: those end without a failure, and a resume comes back to the gate."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import GatePending, GateRejected, GateTimedOut, ItemsFailed, StepTimeout
from nbflow.core.gates import gates_of, pending_of
from nbflow.core.history import History
from nbflow.core.model import StepRetried
from nbflow.runtime.gates import deciding
from nbflow.testing import MemoryStore, VirtualClock
from tests.runtime.timed import attached


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store without files, under a clock of its own."""
    memory = MemoryStore(VirtualClock())
    yield memory
    memory.close()


def decide_all(store: Any, approved: bool = True) -> list[str]:  # noqa: FBT001, FBT002
    """Decide about every gate that waits; return their names."""
    found = [(info.run, gate.step, gate.form.name) for info, gate in deciding.pending(store)]
    for run, step, name in found:
        deciding.decide(store, run, step, approved, feedback=f"about {name}", by="ana")
    return sorted(name for _, _, name in found)


def until_done(store: Any, work: Callable[[], Any], approved: bool = True) -> tuple[Any, list[list[str]]]:  # noqa: FBT001, FBT002
    """Run work again and again, deciding about what waits in between; return its result and what was asked."""
    asked: list[list[str]] = []
    for _ in range(20):
        try:
            return work(), asked
        except BaseException as error:
            if pending_of(error) is None:
                raise
            assert {"waiting"} == {info.state for info in store.runs() if info.state != "completed"}
            asked.append(decide_all(store, approved))
    raise AssertionError("it does not come to an end")


def only(store: Any) -> History:
    """Return the history of the run that no other run started."""
    (info,) = [info for info in store.runs() if info.parent is None]
    return History.of(store.entries(info.run))


def test_a_durable_function_that_stops_at_a_gate_has_not_failed(store: MemoryStore) -> None:
    """It is not retried, nothing is undone, what it did before is replayed, and it goes on behind the gate."""
    done: list[str] = []

    @nbflow.durable(version="1", compensate=lambda *_: done.append("undone"))
    def book() -> str:
        done.append("booked")
        return "booked"

    @nbflow.durable(version="1", retries=5, timeout=30)
    def publish() -> str:
        return f"{book()} {nbflow.gate('publish').feedback}"

    def work() -> str:
        with nbflow.run("w", store=store):
            return publish()

    assert ("booked about publish", [["publish"]]) == until_done(store, work)
    assert ["booked"] == done
    history = only(store)
    states = [
        step.state for step in history.steps() if step.name.endswith("publish") and step.step_kind == "call"
    ]
    assert ["cancelled", "completed"] == states
    assert not any(execution.retried for execution in history.executions.values())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rejection_inside_a_function_with_retries_is_not_retried(
    store: MemoryStore,
    asynchronous: bool,  # noqa: FBT001
) -> None:
    """A person's no does not become a yes by asking again."""
    if asynchronous:

        @nbflow.durable(version="1", retries=5)
        async def publish_later() -> str:
            return str((await nbflow.agate("publish")).feedback)

        publish: Callable[[], str] = lambda: asyncio.run(publish_later())  # noqa: E731
    else:

        @nbflow.durable(version="1", retries=5)
        def publish() -> str:
            return str(nbflow.gate("publish").feedback)

    def work() -> str:
        with nbflow.run("w", store=store):
            return publish()

    with pytest.raises(GateRejected, match="about publish"):
        until_done(store, work, approved=False)
    (info,) = store.runs()
    assert "failed" == info.state
    assert not [entry for entry in store.entries(info.run) if isinstance(entry.record, StepRetried)]


def test_all_items_of_a_map_open_their_gates(store: MemoryStore) -> None:
    """One that waits does not keep the others from being done, so a person sees all questions at once."""
    done: list[int] = []

    def review(number: int) -> str:
        if number % 2:
            return str(nbflow.gate(f"review {number}").feedback)
        done.append(number)
        return "even"

    def work() -> list[str]:
        with nbflow.run("w", store=store):
            return nbflow.map(review, range(6))

    result, asked = until_done(store, work)
    assert [["review 1", "review 3", "review 5"]] == asked
    assert ["even", "about review 1", "even", "about review 3", "even", "about review 5"] == result
    assert [0, 2, 4] == sorted(done)


def test_async_items_of_a_map_open_their_gates(store: MemoryStore) -> None:
    """In tasks of the loop as in threads."""

    async def review(number: int) -> str:
        return str((await nbflow.agate(f"review {number}")).feedback)

    async def main() -> list[str]:
        with nbflow.run("w", store=store):
            return await nbflow.map(review, range(4))

    result, asked = until_done(store, lambda: asyncio.run(main()))
    assert [[f"review {number}" for number in range(4)]] == asked
    assert [f"about review {number}" for number in range(4)] == result


@pytest.mark.parametrize("on_error", ["halt", "continue", "skip_dependents"])
def test_what_depends_on_an_item_at_a_gate_waits_with_it(store: MemoryStore, on_error: Any) -> None:
    """It is neither skipped nor run before the decision."""
    order: list[int] = []

    def item(number: int) -> int:
        if number == 0:
            nbflow.gate("first")
        order.append(number)
        return number

    def work() -> list[int]:
        with nbflow.run("w", store=store):
            return nbflow.map(item, range(3), depends_on={1: [0]}, on_error=on_error)

    result, asked = until_done(store, work)
    assert ([0, 1, 2], [["first"]]) == (result, asked)
    assert [2, 0, 1] == order


def test_an_item_that_fails_counts_more_than_one_that_waits(store: MemoryStore) -> None:
    """A failure is told at once; the gate stays open for the next attempt."""
    mended: list[bool] = []

    def item(number: int) -> str:
        if number == 0:
            return str(nbflow.gate("first").feedback)
        if not mended:
            raise ValueError("broken")
        return "fine"

    def work() -> list[str]:
        with nbflow.run("w", store=store):
            return nbflow.map(item, range(2), max_parallel=1)

    with pytest.raises(ItemsFailed, match="broken"):
        work()
    mended.append(True)
    assert ["first"] == decide_all(store)
    assert ["about first", "fine"] == work()


def test_a_child_that_waits_makes_its_parent_wait(store: MemoryStore) -> None:
    """Neither has failed; both go on when the parent is run again."""

    def child(day: str) -> str:
        return f"{day} {nbflow.gate('publish').feedback}"

    def work() -> list[str]:
        with nbflow.run("w", store=store):
            return [nbflow.child(child, day=day) for day in ("monday", "tuesday")]

    result, asked = until_done(store, work)
    assert ["monday about publish", "tuesday about publish"] == result
    assert [["publish"], ["publish"]] == asked
    assert {"completed"} == {info.state for info in store.runs()}


def test_a_gate_in_a_pool_thread_reaches_the_caller(store: MemoryStore) -> None:
    """What the pool's future raises is the pending gate; the other futures come to their ends."""

    def branch(number: int) -> str:
        return str(nbflow.gate("one").feedback) if number == 1 else "free"

    def work() -> list[str]:
        with nbflow.run("w", store=store), concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(contextvars.copy_context().run, branch, number) for number in range(3)]
            return [future.result() for future in futures]

    assert (["free", "about one", "free"], [["one"]]) == until_done(store, work)


def test_gates_in_gathered_tasks_reach_the_caller(store: MemoryStore) -> None:
    """`gather` raises the first and leaves the others to their own gates."""

    async def work() -> list[str]:
        with nbflow.run("w", store=store):
            answers = await asyncio.gather(*(nbflow.agate(f"g{number}") for number in range(3)))
            return [answer.feedback for answer in answers]

    result, asked = until_done(store, lambda: asyncio.run(work()))
    assert ["about g0", "about g1", "about g2"] == result
    assert {"g0", "g1", "g2"} == {name for names in asked for name in names}


def test_gates_in_a_task_group_reach_the_caller(store: MemoryStore) -> None:
    """A task group wraps what its tasks raise; the run is waiting all the same, and no step has failed."""

    @nbflow.durable(version="1")
    async def ask(name: str) -> str:
        return str((await nbflow.agate(name)).feedback)

    async def work() -> list[str]:
        with nbflow.run("w", store=store):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(f"g{number}")) for number in range(2)]
            return [task.result() for task in tasks]

    result, _ = until_done(store, lambda: asyncio.run(work()))
    assert ["about g0", "about g1"] == result
    assert "failed" not in {str(step.state) for step in only(store).steps()}


def test_a_gate_that_waits_in_place_in_a_cancelled_task_still_waits(store: MemoryStore) -> None:
    """The task is gone, the question is not: who runs it again gets the answer."""

    async def impatient() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(nbflow.agate("publish", wait=True), 0.01)

    with attached(store) as session:
        asyncio.run(impatient())
        assert ["waiting"] == [gate.state for gate in gates_of(session.history)]
        nbflow.approve(session.run, "publish", "late")
        assert "late" == nbflow.gate("publish").feedback


def test_the_timeout_of_the_function_round_a_gate_ends_the_function_alone(store: MemoryStore) -> None:
    """A retry comes back to the same question, and the decision ends it."""

    @nbflow.durable(version="1", timeout=0.2)
    def publish() -> str:
        return str(nbflow.gate("publish", wait=True).feedback)

    real = MemoryStore()
    try:
        with attached(real) as session:
            with pytest.raises(StepTimeout):
                publish()
            nbflow.approve(session.run, "publish", "yes")
            assert "yes" == publish()
    finally:
        real.close()


def test_a_gate_that_times_out_in_a_function_with_retries_is_final(store: MemoryStore) -> None:
    """Trying again cannot help."""

    @nbflow.durable(version="1", retries=5)
    def publish() -> str:
        return str(nbflow.gate("publish", timeout=10, wait=True).feedback)

    with attached(store) as session:
        with pytest.raises(GateTimedOut):
            publish()
        assert not any(execution.retried for execution in session.history.executions.values())


def test_a_mended_function_finds_the_decision_that_its_old_code_had(store: MemoryStore) -> None:
    """The question belongs to the call and not to its code."""
    with attached(store) as session:

        @nbflow.durable(name="publish")
        def old() -> str:
            nbflow.gate("publish")
            raise ValueError("broken")

        with pytest.raises(GatePending):
            old()
        nbflow.approve(session.run, "publish", "yes")
        with pytest.raises(ValueError, match="broken"):
            old()

        @nbflow.durable(name="publish")
        def mended() -> str:
            return str(nbflow.gate("publish").feedback)

        assert "yes" == mended()


def test_a_fork_takes_the_decisions_with_it(store: MemoryStore) -> None:
    """What was decided before the fork stands; what waits is asked in both."""

    def work() -> str:
        with nbflow.run("w", store=store):
            first = nbflow.gate("first").feedback
            return f"{first} {nbflow.gate('second').feedback}"

    with pytest.raises(GatePending) as stopped:
        work()
    nbflow.approve(stopped.value.run, "first", "one", store=store)
    with pytest.raises(GatePending):
        work()
    fork = nbflow.fork(stopped.value.run, "second", store=store)
    with pytest.raises(GatePending) as again:
        work()
    assert (fork, "second") == (again.value.run, again.value.name)
    nbflow.approve(fork, "second", "two", store=store)
    assert "one two" == work()
    assert ["waiting"] == [gate.state for gate in gates_of(History.of(store.entries(stopped.value.run)))][1:]


def test_retrying_a_gate_in_a_completed_function_runs_the_function_again(store: MemoryStore) -> None:
    """Or it would not be asked."""

    @nbflow.durable(version="1")
    def publish() -> str:
        return str(nbflow.gate("publish").feedback)

    def work() -> list[str]:
        with nbflow.run("w", store=store):
            return [publish(), nbflow.gate("end").feedback]

    with pytest.raises(GatePending) as stopped:
        work()
    decide_all(store)
    with pytest.raises(GatePending, match="'end'"):
        work()
    step = next(s.step for s in only(store).steps() if s.step_kind == "gate" and s.name == "publish")
    nbflow.retry_step(stopped.value.run, step, store=store)
    with pytest.raises(GatePending, match="'publish'"):
        work()
    decide_all(store)
    assert ["about publish", "about end"] == work()
