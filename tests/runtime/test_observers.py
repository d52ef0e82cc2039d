"""Observers hear what is committed, in order, and can do no harm."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import StoreFull, UsageError
from nbflow.core.events import CALLBACKS, Event
from nbflow.core.history import History
from nbflow.core.model import StepCompleted
from nbflow.core.states import RunState
from nbflow.runtime import active
from nbflow.runtime.session import Session
from nbflow.runtime.watch import observers
from nbflow.store.local import open_store
from nbflow.testing import FaultyStore, MemoryStore, RecordingObserver


@pytest.fixture
def seen() -> Iterator[RecordingObserver]:
    """An observer of all runs of the test."""
    observer = RecordingObserver()
    with nbflow.observe(observer):
        yield observer


@nbflow.durable(version="1")
def double(x: int) -> int:
    return 2 * x


def steps(seen: RecordingObserver) -> list[tuple[str, str]]:
    return [(event.name, event.state) for event in seen.of("on_step")]


def test_a_run_is_told_from_its_opening_to_its_end(seen: RecordingObserver) -> None:
    """The opening and the attach are recorded before there is a session, and told all the same."""
    with nbflow.run("w", store=MemoryStore(), tags={"team": "blue"}) as run:
        double(1)

    assert ["on_run", "on_run", "on_step", "on_step", "on_checkpoint", "on_run"] == seen.names()
    assert ["pending", "running", "completed"] == [event.state for event in seen.of("on_run")]
    assert {run.id} == {event.run for event in seen}
    assert {"w"} == {event.workflow for event in seen}
    assert {"team": "blue"} == seen.events[0].detail["tags"]


def test_a_resume_says_which_attempt_it_is(seen: RecordingObserver) -> None:
    """on_resume is for a run that was attached before; a replayed step is no news."""
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError), nbflow.run("w", store=store):
        double(1)
        raise ZeroDivisionError
    seen.clear()
    with nbflow.run("w", store=store):
        double(1)

    assert ["on_run", "on_resume", "on_run"] == seen.names()
    assert [2] == [event.attempt for event in seen.of("on_resume")]


def test_failures_and_retries_carry_their_errors(seen: RecordingObserver) -> None:
    """Each failed attempt is a retry, the last one the end of the step and of the run."""

    @nbflow.durable(retries=2, delay=0)
    def fail() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"), nbflow.run("w", store=MemoryStore()):
        fail()

    assert [(1, "bad"), (2, "bad")] == [(e.attempt, e.error.message) for e in seen.of("on_retry") if e.error]
    ends = [event for event in seen if event.state == "failed"]
    assert [("on_step", 3), ("on_run", 1)] == [(event.callback, event.attempt) for event in ends]
    assert all(event.error is not None and event.error.message == "bad" for event in ends)


def test_what_is_told_is_committed(tmp_path: Any) -> None:
    """When an observer hears of a record, anybody who reads the store finds it there."""
    store = open_store(tmp_path / "store")
    missing: list[Event] = []

    class Reader:
        def on_event(self, event: Event) -> None:
            entries = store.entries(event.run)
            if len(entries) < event.seq:
                missing.append(event)
            elif event.state == "completed" and event.callback == "on_step":
                assert isinstance(entries[event.seq - 1].record, StepCompleted)

    with nbflow.observe(Reader()), nbflow.run("w", store=store):
        double(1)
        double(2)
    store.close()
    assert [] == missing


def test_threads_and_tasks_are_told_in_the_order_of_the_journal(
    tmp_path: Any, seen: RecordingObserver
) -> None:
    """Whoever records first is told first, each record once, and none is left out."""

    @nbflow.durable(version="1")
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def tasks() -> None:
        await asyncio.gather(*(later(n) for n in range(30)))

    store = open_store(tmp_path / "store")
    with nbflow.run("w", store=store) as run:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(double, range(60)))
        asyncio.run(tasks())
    entries = store.entries(run.id)
    store.close()

    told = [event.seq for event in seen.events]
    assert sorted(told) == told
    assert [entry.seq for entry in entries] == sorted(set(told))
    assert 90 == steps(seen).count(("double", "completed")) + sum(
        s[1] == "completed" and "later" in s[0] for s in steps(seen)
    )


def test_a_failing_observer_is_logged_with_its_name_and_harms_nothing(
    seen: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """The run, its results and the other observers go on as if it were not there."""

    class Clumsy:
        def on_step(self, event: Event) -> None:
            raise RuntimeError("I fell")

        def on_checkpoint(self, event: Event) -> None:
            raise RuntimeError("again")

    after = RecordingObserver()
    with nbflow.observe(Clumsy()), nbflow.observe(after), nbflow.run("w", store=MemoryStore()) as run:
        assert 4 == double(2)

    assert "completed" == run.state
    assert seen.names() == after.names()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert 3 == len(said)
    assert "Clumsy failed in on_step at record 3" in said[0]
    assert run.id in said[0]


def test_an_observer_may_record_itself(seen: RecordingObserver) -> None:
    """What a callback does to the run is told after what it was told of, not in the middle."""

    class Tagger:
        def on_checkpoint(self, event: Event) -> None:
            session = active.current()
            assert session is not None
            session.tag(last=event.name)

    with nbflow.observe(Tagger()), nbflow.run("w", store=MemoryStore()) as run:
        double(1)

    assert {"last": "double"} == run.tags
    assert ["on_checkpoint", "on_tag", "on_run"] == seen.names()[-3:]


def test_one_that_comes_later_hears_the_rest_and_one_that_stops_hears_no_more() -> None:
    """Observers and runs come and go in any order."""
    early, late = RecordingObserver(), RecordingObserver()
    observation = nbflow.observe(early)
    with nbflow.run("w", store=MemoryStore()):
        double(1)
        observation.stop()
        observation.stop()
        with nbflow.observe(late):
            double(2)
        double(3)

    assert 1 == steps(early).count(("double", "completed"))
    assert [("double", "running"), ("double", "completed")] == steps(late)


def test_one_run_can_be_observed_alone() -> None:
    """attach is for a session; other runs are none of its business."""
    seen = RecordingObserver()
    store = MemoryStore()
    one, other = Session.open(store, "one"), Session.open(store, "other")
    with observers.attach(one, seen):
        one.tag(a="1")
        other.tag(b="2")
    one.tag(c="3")
    one.finish()
    other.finish()

    assert [("on_tag", {"a": "1"})] == [(event.callback, event.detail) for event in seen]


def test_a_lost_acknowledgement_is_told_once_it_is_cleared_up(seen: RecordingObserver) -> None:
    """A record that was kept although its append failed is told late, in order, and once."""
    store = FaultyStore(MemoryStore(), at=2, when="after")
    with nbflow.run("w", store=store):
        with pytest.raises(StoreFull):
            double(1)
        assert [("double", "running")] == steps(seen)
        assert 2 == double(1)
        double(2)

    assert 2 == steps(seen).count(("double", "completed"))
    told = [event.seq for event in seen]
    assert sorted(told) == told


class Misspelt:
    def on_stat(self, event: Event) -> None: ...


class Unknown:
    def on_state(self, event: Event) -> None: ...
    def on_finish(self, event: Event) -> None: ...


class Nothing:
    def run(self) -> None: ...


class Async:
    async def on_state(self, event: Event) -> None: ...


class AsyncCall:
    class Told:
        async def __call__(self, event: Event) -> None: ...

    on_run = Told()


class Value:
    on_step = 3


class Empty(nbflow.Observer):
    pass


@pytest.mark.parametrize(
    ("observer", "said"),
    [
        (Misspelt(), "on_stat.*Did you mean on_state"),
        (types.SimpleNamespace(on_setp=print), "on_setp.*Did you mean on_step"),
        (Unknown(), "on_finish.*There are on_run"),
        (Nothing(), "no callback"),
        (Empty(), "no callback"),
        (None, "no callback"),
        (Async(), "async"),
        (AsyncCall(), "async"),
        (Value(), "no method"),
        (Empty, r"not the class Empty\. Make one: Empty\(\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_observer_that_would_never_be_told_is_refused(observer: object, said: str) -> None:
    """A slip shows at registration, with what was meant, and not as silence."""
    with pytest.raises(UsageError, match=said):
        nbflow.observe(observer)


def test_foreign_callbacks_of_a_base_class_are_nobodys_slip() -> None:
    """A widget that observes has `on_click` of its own base class."""

    class Widget:
        def on_click(self, handler: Any) -> None: ...
        def on_msg(self, handler: Any) -> None: ...

    class Progress(Widget):
        def on_step(self, event: Event) -> None: ...

    nbflow.observe(Progress()).stop()


def test_the_base_class_has_every_callback_and_documents_it() -> None:
    """Observer, CALLBACKS and the page name the same ones."""
    methods = {name for name in vars(nbflow.Observer) if name.startswith("on_")}
    assert methods == {*CALLBACKS, "on_event"}
    assert all(getattr(nbflow.Observer, name).__doc__ for name in methods)


def test_an_unobserved_run_has_no_listener() -> None:
    """What nobody wants costs nothing: sessions have listeners only while somebody observes."""
    code = """
import nbflow
from nbflow.runtime import active
from nbflow.testing import MemoryStore, RecordingObserver
with nbflow.run("w", store=MemoryStore()):
    listeners = active.required().recorder._listeners
    nbflow.durable(version="1")(lambda: 1)()
    assert listeners == [], listeners
    observation = nbflow.observe(RecordingObserver())
    assert len(listeners) == 1
    observation.stop()
    assert listeners == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_session_that_is_dropped_unclosed_is_not_kept_alive(seen: RecordingObserver) -> None:
    """Observing must not leak sessions."""
    import gc
    import weakref

    dropped = weakref.ref(Session.open(MemoryStore(), "w"))
    gc.collect()
    assert dropped() is None
    assert ["on_run", "on_run"] == seen.names()


def test_told_events_rebuild_the_history(seen: RecordingObserver) -> None:
    """Nothing is told that the journal does not say: the last state of each step is the history's."""
    store = MemoryStore()
    with nbflow.run("w", store=store) as run:
        for n in range(3):
            double(n)
    history = History.of(store.entries(run.id))
    last = {event.execution: event.state for event in seen.of("on_step")}
    assert {number: str(execution.state) for number, execution in history.executions.items()} == last
    assert RunState.COMPLETED == history.state


LIGHT = """
import sys
import nbflow
with nbflow.run("light", store=sys.argv[1]):
    nbflow.durable(version="1")(abs)(-1)
parts = ("watch.observers", "watch.tracing", "runtime.saga", "policies.limits", "core.events", "runtime.waits")
print([name for name in sys.modules if name.startswith("nbflow.") and name.endswith(parts)])
"""


def test_a_run_loads_nothing_of_what_it_does_not_use(tmp_path: Path) -> None:
    """Observers, sagas, policies and waits cost a start nothing: 45 ms, when they did."""
    told = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "[]" == told.stdout.strip()
