"""OpenTelemetry: a span for each run, with its steps below, children's runs below the step that started them.

Nothing of OpenTelemetry is imported unless the program did so itself. Where it
has set a tracer provider, runs are traced without further ado; `TracingObserver`
can also be given to `nbflow.observe` by hand, with a tracer of one's own.

A span that is open when the process dies was never exported. The run's next
attempt is a span of its own, with its number in `nbflow.attempt`.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbflow.core.events import Event
from nbflow.core.states import FINAL_RUN_STATES, FINAL_STEP_STATES, RunState

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_RUN_OVER = frozenset({*FINAL_RUN_STATES, RunState.FAILED})
_BAD = frozenset({"failed", "timed_out"})


def wanted() -> bool:
    """Tell whether this program has set a tracer provider of OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return False
    provider = trace.get_tracer_provider()
    return not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)


@dataclass
class _Open:
    """The open spans of one run, as this process has it: the run's own, and its steps' by execution."""

    run: Span
    steps: dict[int, Span] = field(default_factory=dict)
    #: The newest open execution of each step's key: what is nested names its parent so.
    by_key: dict[str, Span] = field(default_factory=dict)


class TracingObserver:
    """Turns events into spans; made for `nbflow.observe`.

    Args:
        tracer: where spans come from; the global provider's by default.

    Raises:
        ImportError: `opentelemetry-api` is not installed (`pip install nbflow[otel]`).
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._tracer = tracer
        self._lock = threading.RLock()
        self._runs: dict[str, _Open] = {}

    def on_run(self, event: Event) -> None:
        """Begin the run's span when it is attached, end it when the run is over."""
        with self._lock:
            if event.state == RunState.PENDING:
                return
            opened = self._run(event)
            opened.run.set_attribute("nbflow.state", str(event.state))
            if event.attempt:
                opened.run.set_attribute("nbflow.attempt", event.attempt)
            if event.state in _RUN_OVER:
                del self._runs[event.run]
                for span in reversed(opened.steps.values()):  # the run was over before they could end
                    span.end(_nanoseconds(event.at))
                self._end(opened.run, event)

    def on_resume(self, event: Event) -> None:
        """Mark the run's span as a later attempt."""
        with self._lock:
            self._run(event).run.add_event(
                "nbflow.resume", {"nbflow.attempt": event.attempt}, _nanoseconds(event.at)
            )

    def on_step(self, event: Event) -> None:
        """Begin a step's span when it starts, end it when it ends."""
        with self._lock:
            opened = self._run(event)
            if event.state in FINAL_STEP_STATES:
                span = opened.steps.pop(event.execution, None) or self._begin(opened, event, event.began)
                if opened.by_key.get(event.step) is span:
                    del opened.by_key[event.step]
                span.set_attribute("nbflow.state", str(event.state))
                span.set_attribute("nbflow.attempt", event.attempt)
                self._end(span, event)
            elif event.execution:
                span = self._begin(opened, event, event.at)
                opened.steps[event.execution] = opened.by_key[event.step] = span

    def on_retry(self, event: Event) -> None:
        """Note a failed attempt in the step's span."""
        facts: dict[str, Any] = {"nbflow.attempt": event.attempt, "nbflow.due_at": event.detail["due_at"]}
        self._note("nbflow.retry", event, facts | _exception(event))

    def on_checkpoint(self, event: Event) -> None:
        """Note what was recorded, on the run: the step's own span has ended by then."""
        facts = {
            "nbflow.step": event.step,
            "nbflow.outputs": list(event.detail["outputs"]),
            "nbflow.bytes": event.detail["bytes"],
        }
        with self._lock:
            self._run(event).run.add_event("nbflow.checkpoint", facts, _nanoseconds(event.at))

    def on_cursor(self, event: Event) -> None:
        """Note a cursor in the step's span."""
        self._note("nbflow.cursor", event, {"nbflow.number": event.detail["number"]})

    def on_cancel(self, event: Event) -> None:
        """Note that the run was asked to stop."""
        if event.state == "asked":
            facts = {"nbflow.reason": str(event.detail.get("reason", ""))}
            self._note("nbflow.cancel", event, facts)

    def let_go(self, run: str) -> None:
        """End what is open of a run that this process leaves as it is, to be carried on later."""
        with self._lock:
            opened = self._runs.pop(run, None)
            if opened is not None:
                for span in (*reversed(opened.steps.values()), opened.run):
                    span.end()

    def _run(self, event: Event) -> _Open:
        opened = self._runs.get(event.run)
        if opened is None:
            above = self._runs.get(event.parent_run) if event.parent_run else None
            parent = None
            if above is not None:
                parent = above.by_key.get(event.parent_step or "", above.run)
            span = self._span(f"run {event.workflow}", parent, event.at)
            span.set_attribute("nbflow.run", event.run)
            span.set_attribute("nbflow.workflow", event.workflow)
            if event.parent_run:
                span.set_attribute("nbflow.parent_run", event.parent_run)
            opened = self._runs[event.run] = _Open(span)
        return opened

    def _begin(self, opened: _Open, event: Event, at: float) -> Span:
        parent = opened.by_key.get(event.parent or "", opened.run)
        span = self._span(f"{event.kind} {event.name}", parent, at)
        span.set_attributes(
            {
                "nbflow.run": event.run,
                "nbflow.workflow": event.workflow,
                "nbflow.step": event.step,
                "nbflow.kind": event.kind,
                "nbflow.attempt": event.attempt,
                "nbflow.state": event.state,
            }
        )
        return span

    def _span(self, name: str, parent: Span | None, at: float) -> Span:
        # Without a parent of ours it belongs to whatever span the program is in, say a web request's.
        context = self._trace.set_span_in_context(parent) if parent is not None else None
        tracer = self._tracer or self._trace.get_tracer("nbflow")
        return tracer.start_span(name, context=context, start_time=_nanoseconds(at))

    def _note(self, name: str, event: Event, facts: dict[str, Any]) -> None:
        with self._lock:
            opened = self._run(event)
            opened.steps.get(event.execution, opened.run).add_event(name, facts, _nanoseconds(event.at))

    def _end(self, span: Span, event: Event) -> None:
        if event.error is not None:
            span.add_event("exception", _exception(event), _nanoseconds(event.at))
        if event.state in _BAD:
            error = f"{event.error.type}: {event.error.message}" if event.error else str(event.state)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))
        elif event.state == "completed":
            span.set_status(self._trace.Status(self._trace.StatusCode.OK))
        span.end(_nanoseconds(event.at))


def _exception(event: Event) -> dict[str, Any]:
    """Return the recorded exception in OpenTelemetry's words."""
    if event.error is None:
        return {}
    return {
        "exception.type": event.error.type,
        "exception.message": event.error.message,
        "exception.stacktrace": event.error.traceback,
    }


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
