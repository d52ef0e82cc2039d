"""Journals of tiny runs for how-it-works.md: the runs are really made, and what is shown is what they recorded."""

from __future__ import annotations

import re
from typing import Any

import nbflow
from nbflow.core.model import (
    MessageTaken,
    Record,
    RunAttached,
    RunChanged,
    StepCompleted,
    StepForgotten,
    StepStarted,
    record_kind,
)
from nbflow.testing import MemoryStore, VirtualClock, crash


def of_a_machine() -> str:
    """Return the journal of a machine whose process died in its second state."""
    trip = nbflow.Machine("trip", ["pack", "fly", "home"], initial="pack", final={"home"})

    @trip.state("pack")
    def pack(ctx: Any) -> str:
        ctx.bags = 2
        return "fly"

    @trip.state("fly")
    def fly(ctx: Any) -> str:  # noqa: ARG001 - every task is given it
        return "home"

    store = MemoryStore(VirtualClock())
    with crash("memory.append.after:3"):
        trip.run(store=store)
    store.restart()
    trip.run(store=store)
    return _journal(store)


def of_a_signal() -> str:
    """Return the journal of a run that is sent a signal as soon as it waits for it."""
    store = MemoryStore(VirtualClock())

    class Sender(nbflow.Observer):
        def on_signal(self, event: Any) -> None:
            if event.state == "waiting":
                nbflow.signal(event.run, "approve", {"by": "ann"}, store=store)

    with nbflow.observe(Sender()), nbflow.run("deploy", store=store):
        nbflow.wait_for("approve", timeout="2h")
    return _journal(store)


def of_a_rollback() -> str:
    """Return the journal of a run that failed and took back what it had done."""

    def cancel(_number: int, _name: str) -> None: ...

    @nbflow.durable(name="hotel", version="1", compensate=cancel)
    def book_hotel(_name: str) -> int:
        return 17

    @nbflow.durable(name="car", version="1", compensate=cancel)
    def book_car(_name: str) -> int:
        return 4

    store = MemoryStore(VirtualClock())
    try:
        with nbflow.run("trip", store=store):
            book_hotel("Astoria")
            book_car("van")
            raise ConnectionError("no flight")
    except ConnectionError:
        return _journal(store)
    raise AssertionError("the run fails")


def _journal(store: MemoryStore) -> str:
    """Return the records of the store's only run, one a line, without what differs from one run to the next."""
    (run,) = store.runs()
    rows = [
        f"{entry.seq:>2}  {record_kind(entry.record):<15} {_step(entry.record):<18} {_said(entry.record)}".rstrip()
        for entry in store.entries(run.run)
    ]
    return "```\n" + "\n".join(rows) + "\n```\n"


def _step(record: Record) -> str:
    """Return a record's step without the digest in the key of a call."""
    return re.sub(r":[0-9a-f]{12}#", "#", getattr(record, "step", ""))


def _said(record: Record) -> str:
    """Return in a few words what a record says besides its kind and step."""
    match record:
        case RunAttached(attempt=attempt):
            return f"attempt {attempt}"
        case RunChanged(state=state, error=error):
            return f"{state}: {error.type}" if error is not None else str(state)
        case MessageTaken(topic=topic, payload={"name": name, "value": value}):
            return f"{topic} {name} {value}"
        case StepStarted(detail={"due_at": _}):
            return "with its deadline"
        case StepStarted(detail={"error": {"type": error}}):
            return f"because of {error}"
        case StepStarted(detail={"of": number}):
            return f"undoes {number}"
        case StepCompleted(detail={"next": state}, checkpoint=checkpoint):
            data = ", ".join(output.name for output in checkpoint.outputs) if checkpoint is not None else ""
            return f"next is {state}" + (f", data {data}" if data else "")
        case StepCompleted(detail={"message": _}):
            return "consumed the signal"
        case StepForgotten(reason=reason):
            return reason
    return ""
