"""Runs as OpenTelemetry spans, read back with the SDK's in-memory exporter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import nbflow
from nbflow.core.states import RunState
from nbflow.runtime.session import Session
from nbflow.runtime.watch.tracing import TracingObserver
from nbflow.testing import MemoryStore


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[Any]:
    """A tracer of the test's own; the global provider can be set once a process."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with nbflow.observe(TracingObserver(tracer)):
        yield tracer
    provider.shutdown()


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def above(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


@nbflow.durable(version="1")
def inner(x: int) -> int:
    return x


@nbflow.durable(version="1")
def outer(x: int) -> int:
    return inner(x) + 1


def test_spans_nest_as_the_steps_do(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """The run holds its calls and a call those that it makes, all in one trace."""
    store = MemoryStore()
    with nbflow.run("etl", store=store) as run:
        outer(1)

    found = spans(exporter)
    assert {"run etl", "call outer", "call inner"} == set(found)
    assert above(found["run etl"]) is None
    assert found["run etl"].context.span_id == above(found["call outer"])
    assert found["call outer"].context.span_id == above(found["call inner"])
    assert 1 == len({span.context.trace_id for span in found.values()})
    facts = found["call outer"].attributes
    assert (run.id, "etl", "outer", "call", 1, "completed") == tuple(
        facts[f"nbflow.{name}"].split(":")[0] if name == "step" else facts[f"nbflow.{name}"]
        for name in ("run", "workflow", "step", "kind", "attempt", "state")
    )


def test_times_are_those_of_the_journal(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """A span begins and ends at the stamps of its records, whenever the observer is told."""
    told: dict[str, list[float]] = {}

    class Stamps:
        def on_step(self, event: nbflow.Observer) -> None:
            told.setdefault(f"{event.kind} {event.name}", []).append(event.at)  # type: ignore[attr-defined]

    with nbflow.observe(Stamps()), nbflow.run("etl", store=MemoryStore()):
        outer(1)
    for name, stamps in told.items():
        span = spans(exporter)[name]
        assert [int(at * 1e9) for at in stamps] == [span.start_time, span.end_time]


def test_failures_have_status_and_exception_and_retries_are_events(
    tracer: Any, exporter: InMemorySpanExporter
) -> None:
    """A span that failed says why; each attempt before is an event in it."""

    @nbflow.durable(name="fail", retries=1, delay=0)
    def fail() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"), nbflow.run("etl", store=MemoryStore()):
        inner(1)
        fail()

    found = spans(exporter)
    span = found["call fail"]
    assert StatusCode.ERROR == span.status.status_code
    assert "bad" in (span.status.description or "")
    assert ["nbflow.retry", "exception"] == [event.name for event in span.events]
    assert {"bad"} == {event.attributes["exception.message"] for event in span.events}
    assert "ValueError: bad" in span.events[1].attributes["exception.stacktrace"]
    assert 2 == span.attributes["nbflow.attempt"]
    assert StatusCode.ERROR == found["run etl"].status.status_code
    assert StatusCode.OK == found["call inner"].status.status_code
    assert "nbflow.checkpoint" in [event.name for event in found["run etl"].events]


def test_a_resumed_run_is_a_span_of_its_own_with_its_attempt(
    tracer: Any, exporter: InMemorySpanExporter
) -> None:
    """What the first process had open is ended where it let go; replayed steps are no spans."""
    store = MemoryStore()
    session = Session.open(store, "etl")
    session.close()
    assert ["run etl"] == [span.name for span in exporter.get_finished_spans()]
    exporter.clear()
    Session.open(store, "etl").finish()

    (span,) = exporter.get_finished_spans()
    assert (2, "completed") == (span.attributes["nbflow.attempt"], span.attributes["nbflow.state"])
    assert ["nbflow.resume"] == [event.name for event in span.events]


def test_a_childs_run_is_below_the_step_that_started_it(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """Parent and child make one trace where one process has both."""
    store = MemoryStore()
    with nbflow.run("parent", store=store) as run:

        @nbflow.durable(name="start", version="1")
        def start() -> None:
            step = store.steps(run.id)[-1].step
            opened = {"parent": run.id, "parent_step": step}
            Session.open(store, "child", opened=opened, new=True).finish(RunState.COMPLETED)

        start()

    found = spans(exporter)
    assert found["call start"].context.span_id == above(found["run child"])
    assert run.id == found["run child"].attributes["nbflow.parent_run"]


def test_one_that_comes_in_the_middle_makes_whole_spans(exporter: InMemorySpanExporter) -> None:
    """A step that began before the observer has its true beginning."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observation: list[Any] = []

    @nbflow.durable(name="late", version="1")
    def late() -> None:
        observation.append(nbflow.observe(TracingObserver(provider.get_tracer("test"))))

    store = MemoryStore()
    with nbflow.run("etl", store=store) as run:
        late()
    observation[0].stop()
    step = store.steps(run.id)[0]
    assert abs(step.started_at * 1e9 - spans(exporter)["call late"].start_time) < 1e9
    assert {"run etl", "call late"} == set(spans(exporter))


def test_nothing_is_left_open(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """An observer that serves many runs keeps none of those that are over."""
    observer = TracingObserver(tracer)
    with nbflow.observe(observer):
        for _ in range(3):
            with nbflow.run("etl", store=MemoryStore()):
                outer(1)
        with pytest.raises(KeyboardInterrupt), nbflow.run("etl", store=MemoryStore()):
            raise KeyboardInterrupt
    assert {} == observer._runs


SCRIPT = """
import sys
{setup}
import nbflow
from nbflow.testing import MemoryStore
with nbflow.run("etl", store=MemoryStore()):
    nbflow.durable(version="1", name="f")(lambda: 1)()
print("opentelemetry" in sys.modules, end=" ")
{end}
"""
SETUP = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
"""


@pytest.mark.parametrize(
    ("setup", "end", "expected"),
    [
        ("", "", "False "),
        ("from opentelemetry import trace", "", "True "),
        (
            SETUP + "trace.set_tracer_provider(provider)",
            "print(*sorted(s.name for s in exporter.get_finished_spans()), sep=',')",
            "True call f,run etl\n",
        ),
    ],
    ids=["not imported", "no provider", "provider"],
)
def test_a_program_that_sets_a_tracer_provider_is_traced_and_no_other_pays(
    setup: str, end: str, expected: str
) -> None:
    """Tracing goes on by itself where it is wanted, and imports nothing where it is not."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(setup=setup, end=end)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected == done.stdout
