"""Random machines under random trouble: they end as if nobody had disturbed them, and repeat nothing that is recorded."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings

import nbflow
from nbflow import Branch, Join, Split
from nbflow.core.errors import LeaseError, NbflowError, RunCancelled, RunFinished
from nbflow.core.history import History
from nbflow.core.model import RunChanged
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.local import open_store
from nbflow.store.protocol import RunQuery
from nbflow.testing import FaultyStore, MemoryStore, VirtualClock, crash, crash_points
from tests.runtime.machine_kit import Power, machine_of
from tests.runtime.machine_model import (
    FACES,
    Builder,
    Plan,
    Trouble,
    World,
    check_journal,
    go,
    plans,
    troubles,
)

#: No machine here needs more attempts than it has troubles and a few.
ATTEMPTS = 16

RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def conduct(plan: Plan, world: World, face: str, restart: Callable[[], None]) -> Any:
    """Run the machine of the plan to its end, through as many processes as its trouble takes."""
    for _attempt in range(ATTEMPTS):
        machine = Builder(plan, world).machine  # each process has its own
        try:
            with world.alive():
                return go(machine, world.store, face, rows=["start"])
        except AssertionError:
            raise
        except (Power, Exception) as error:  # noqa: BLE001 - the trouble of this attempt; the next one carries on
            assert world.happened, error
            note(f"{world.happened[-1]}: {type(error).__name__}: {error}")
            restart()
    raise AssertionError(f"the machine does not end; trouble so far: {world.happened}")


def undisturbed(plan: Plan, face: str) -> tuple[Any, dict[str, Any], World]:
    """Return the end, the data and the world of a run without trouble."""
    world = World(FaultyStore(MemoryStore(VirtualClock()), at=0))
    machine = Builder(plan, world).machine
    end = go(machine, world.store, face, rows=["start"])
    return end, machine.results(store=world.store), world


def check(plan: Plan, world: World, face: str, restart: Callable[[], None]) -> None:
    """Run the machine under trouble and without, and compare."""
    end, data, calm = undisturbed(plan, face)
    assert set(calm.real().values()) <= {1}
    assert end == conduct(plan, world, face, restart)
    assert [] == world.repeated
    assert calm.real().keys() == world.real().keys()
    assert data == Builder(plan, world).machine.results(store=world.store)
    assert 1 == len(world.store.runs())
    check_journal(world.store.entries(world.store.runs()[0].run))


def in_memory(face: str, plan: Plan, trouble: list[Trouble]) -> None:
    """Check a machine over a store in memory and a clock that needs no time."""
    store = MemoryStore(VirtualClock())
    check(plan, World(FaultyStore(store, at=0), trouble), face, store.restart)


@pytest.mark.parametrize("face", FACES)
@settings(max_examples=35, deadline=None, suppress_health_check=RELAXED)
@given(plan=plans(), trouble=troubles())
def test_a_machine_in_trouble_ends_like_an_undisturbed_one(
    face: str, plan: Plan, trouble: list[Trouble]
) -> None:
    """Same end, same data; every effect at least once and never after its step was recorded; cursors are dense."""
    in_memory(face, plan, trouble)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("face", FACES)
@settings(max_examples=1500, deadline=None, suppress_health_check=RELAXED)
@given(plan=plans(depth=2, most=5), trouble=troubles(most=10))
def test_larger_machines_in_more_trouble_end_alike(face: str, plan: Plan, trouble: list[Trouble]) -> None:
    """The same with splits in splits and up to ten troubles a run."""
    in_memory(face, plan, trouble)


def over_files(tmp: Path, face: str, plan: Plan, trouble: list[Trouble]) -> None:
    """Check a machine over a real store, which each process opens for itself."""
    place = tmp / "store"
    inner = open_store(place)
    inner.clock = VirtualClock()
    world = World(FaultyStore(inner, at=0), trouble)

    def restart() -> None:
        world.store.store.close()
        again = open_store(place)
        again.clock = inner.clock
        world.store.store = again

    try:
        check(plan, world, face, restart)
    finally:
        world.store.store.close()


#: Without the end of the process inside of the store: `tests/e2e/test_machine_kills.py` has that, with real processes.
FILE_TROUBLES = troubles(kinds=("error", "power", "before", "after"))


@pytest.mark.parametrize("face", FACES)
@settings(max_examples=6, deadline=None, suppress_health_check=RELAXED)
@given(plan=plans(), trouble=FILE_TROUBLES)
def test_so_does_one_over_a_real_store(
    tmp_path_factory: pytest.TempPathFactory, face: str, plan: Plan, trouble: list[Trouble]
) -> None:
    """The same over journal files."""
    over_files(tmp_path_factory.mktemp("random"), face, plan, trouble)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("face", FACES)
@settings(max_examples=150, deadline=None, suppress_health_check=RELAXED)
@given(plan=plans(depth=2), trouble=FILE_TROUBLES)
def test_so_do_many_over_a_real_store(
    tmp_path_factory: pytest.TempPathFactory, face: str, plan: Plan, trouble: list[Trouble]
) -> None:
    """The same over journal files, with larger machines."""
    over_files(tmp_path_factory.mktemp("random"), face, plan, trouble)


# --- undoing ------------------------------------------------------------------------------------------------------

LENGTH = 5


class Saga:
    """A machine whose state k fails: each state before it is undone, and the call in it; one cannot be undone."""

    def __init__(self, k: int, log: list[str]) -> None:
        def undo_call(result: str, label: str) -> None:
            assert result == f"made {label}"
            log.append(f"undo call {label}")

        @nbflow.durable(version="1", name="make", compensate=undo_call)
        def make(label: str) -> str:
            log.append(f"call {label}")
            return f"made {label}"

        def task(ctx: Any) -> Any:
            number = int(ctx.state[1:])
            make(ctx.state)
            if number == k:
                raise LookupError("the original")
            ctx.last = ctx.state
            log.append(ctx.state)
            return f"s{number + 1}" if number + 1 < LENGTH else "end"

        def undo(ctx: Any) -> None:
            assert ctx.last == ctx.state, "an undo sees the data as its state had left it"
            log.append(f"undo {ctx.state}")

        tasks: dict[str, Any] = {}
        for number in range(LENGTH):
            after = f"s{number + 1}" if number + 1 < LENGTH else "end"
            tasks[f"s{number}"] = (task, {"to": after, **({} if number == 1 else {"compensate": undo})})
        self.machine = machine_of(tasks, name="saga")


def expected_undos(k: int) -> list[str]:
    """Return what is undone when state k fails, in order."""
    undos = [f"undo call s{k}"]
    for number in reversed(range(k)):
        undos += ([] if number == 1 else [f"undo s{number}"]) + [f"undo call s{number}"]
    return undos


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("k", range(LENGTH))
def test_a_failure_at_k_undoes_exactly_the_completed_prefix(face: str, k: int) -> None:
    """States and the calls inside of them, last first, each once, and the error that is raised is the original."""
    log: list[str] = []
    store = MemoryStore()
    with pytest.raises(LookupError, match="the original"):
        go(Saga(k, log).machine, store, face)
    assert expected_undos(k) == [entry for entry in log if entry.startswith("undo")]
    assert "failed" == store.runs()[0].state
    del log[:]
    assert "end" == go(Saga(-1, log).machine, store, face)
    assert [f"s{number}" for number in range(LENGTH)] == [entry for entry in log if entry.startswith("s")]


@pytest.mark.parametrize("k", [0, 2, LENGTH - 1])
def test_killed_at_every_record_a_rollback_undoes_the_same_prefix(k: int) -> None:
    """Before and after each append: an undo that was recorded is not repeated, and none is left out or out of order."""
    with crash_points() as passed, pytest.raises(LookupError):
        Saga(k, []).machine.run(store=MemoryStore())
    for n in range(1, len(passed) + 1):
        store, log = MemoryStore(), []
        with crash(f"*:{n}") as crashed:
            Saga(k, log).machine.run(store=store)
        assert crashed
        store.restart()
        seen = len([entry for entry in log if entry.startswith("undo")])
        if store.run(store.runs()[0].run).state != "failed":
            with pytest.raises(LookupError, match="the original"):
                go(Saga(k, log).machine, store, "sync")
        undos = [entry for entry in log if entry.startswith("undo")]
        # Killed between an undo and its record it is undone again: at least once until it is recorded.
        again = (
            undos[:seen] + undos[seen + 1 :]
            if undos[seen - 1 : seen] == undos[seen : seen + 1] and seen
            else undos
        )
        assert expected_undos(k) == again, (n, passed[n - 1])
        history = History.of(store.entries(store.runs()[0].run))
        assert "failed" == history.state
        of = [
            e.started.detail["of"]
            for e in history.executions.values()
            if e.completed and "of" in e.started.detail
        ]
        assert len(expected_undos(k)) == len(set(of)) == len(of)


@pytest.mark.parametrize("face", FACES)
def test_branches_are_undone_with_their_own_data(face: str) -> None:
    """States in splits of splits see what their branch was given and what lay around it."""
    undone: list[Any] = []

    def undo(ctx: Any) -> None:
        undone.append((ctx.state, ctx.given, ctx.outer, ctx.get("top")))

    def inner(ctx: Any) -> Any:
        ctx.outer = "changed"
        return Split([Branch("leaf", name="x", given=2)], to="joined")

    tasks = {
        "a": (
            lambda ctx: (setattr(ctx, "top", [0]), Split([Branch("b", given=1, outer="o")], to="j"))[1],
            {"to": None},
        ),
        "b": (inner, {"compensate": undo}),
        "leaf": (lambda ctx: ctx.top.append(1) or "joined", {"compensate": undo}),
        "joined": lambda ctx: "j",
        "j": (lambda ctx: 1 / 0, {"to": "end"}),
    }
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError):
        go(machine_of(tasks), store, face)
    assert [("leaf", 2, "changed", [0, 1]), ("b", 1, "changed", [0])] == undone


# --- races --------------------------------------------------------------------------------------------------------


def race(seed: int, face: str) -> None:
    """Let a run, its resumes and cancels of it run into each other; what it ends in first, it stays in."""
    draw = random.Random(seed)
    store = MemoryStore()
    store.restart = lambda: None  # type: ignore[method-assign] - nobody dies here
    opened = threading.Event()

    def state(ctx: Any) -> Any:
        opened.set()
        ctx.n = ctx.get("n", 0) + 1
        if draw.random() < 0.1:
            raise OSError("now and then")
        return ctx.state if ctx.n < 6 else "end"

    machine = machine_of({"a": (state, {"to": ["a", "end"]})})
    outcomes: list[Any] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            outcomes.append(action())
        except (NbflowError, OSError) as error:
            outcomes.append(error)

    def resume() -> None:
        opened.wait(5)
        for _ in range(draw.randint(1, 3)):
            attempt(lambda: go(machine, store, face))

    def cancel() -> None:
        opened.wait(5)
        threading.Event().wait(draw.random() * 0.004)
        attempt(lambda: nbflow.cancel(store.runs()[0].run, "enough", store=store))

    threads = [
        threading.Thread(target=lambda: attempt(lambda: go(machine, store, face))),
        *(threading.Thread(target=target) for target in (resume, resume, cancel, cancel)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    run = store.runs()[0].run
    for outcome in outcomes:
        if isinstance(outcome, NbflowError):
            assert isinstance(outcome, (RunCancelled, RunFinished, LeaseError)), outcome
    while store.run(run).state not in FINAL_RUN_STATES:  # everybody was refused, or it failed last
        attempt(lambda: go(machine, store, face))
    entries, state_then = store.entries(run), store.run(run).state
    ends = [e for e in entries if isinstance(e.record, RunChanged) and e.record.state in FINAL_RUN_STATES]
    assert 1 == len(ends)
    assert entries[-1] == ends[0], "nothing is recorded after the end"
    assert ("end" in outcomes) <= (state_then == "completed")
    assert any(isinstance(outcome, RunCancelled) for outcome in outcomes) <= (state_then == "cancelled")
    attempt(lambda: nbflow.cancel(run, store=store))
    attempt(lambda: go(machine, store, face))
    assert entries == store.entries(run)
    assert state_then == store.run(run).state


@pytest.mark.parametrize("face", FACES)
def test_a_final_state_stays_whatever_runs_into_it(face: str) -> None:
    """Run, resume and cancel race in five threads: one end, the last record, and nothing changes it."""
    for seed in range(15):
        race(seed, face)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("face", FACES)
def test_a_final_state_stays_in_many_races(face: str) -> None:
    """The same 400 times."""
    for seed in range(400):
        race(seed, face)


# --- twelve parents on four threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("force", ["", "one-worker"])
@pytest.mark.parametrize("face", FACES)
def test_twelve_parents_wait_for_children_on_four_threads(
    face: str, force: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each branch of a split runs a child with a split of its own; nobody waits for a slot that a waiting one holds."""
    if force:
        monkeypatch.setenv("NBFLOW_FORCE", force)

    def leaf(ctx: Any) -> str:
        threading.Event().wait(0.002)
        ctx[f"from_{ctx.side}"] = ctx.n * 10
        return "joined"

    def joined(ctx: Any) -> str:
        ctx.sum = ctx.from_left + ctx.from_right
        return "end"

    inner = machine_of(
        {
            "split": lambda ctx: Split(
                [Branch("leaf", name=s, side=s) for s in ("left", "right")], to="joined"
            ),
            "leaf": leaf,
            "joined": joined,
        },
        name="inner",
        max_parallel=4,
    )

    def parent(ctx: Any) -> str:
        ctx[f"p{ctx.n}"] = nbflow.child(inner, n=ctx.n)
        return "j"

    async def parent_async(ctx: Any) -> str:
        ctx[f"p{ctx.n}"] = await nbflow.child.aio(inner, n=ctx.n)
        return "j"

    outer = machine_of(
        {
            "a": lambda ctx: Split(
                [Branch("p", name=f"p{n}", n=n) for n in range(12)], join=Join.all(), to="j"
            ),
            "p": (parent if face == "sync" else parent_async, {"to": "j"}),
            "j": lambda ctx: "end",
        },
        name="outer",
        max_parallel=4,
    )
    store = MemoryStore()
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(go(outer, store, face)), daemon=True)
    thread.start()
    thread.join(60)
    assert ["end"] == ended, "a deadlock"
    assert {f"p{n}": "end" for n in range(12)} == outer.results(store=store)
    children = store.runs(RunQuery(workflow="inner", limit=None))
    assert ["completed"] * 12 == [str(info.state) for info in children]
    sums = {info.params["n"]: inner.results(info.run, store=store)["sum"] for info in children}
    assert {n: 20 * n for n in range(12)} == sums
