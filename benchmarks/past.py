"""A store with a long past: thousands of finished runs, put into the database as ingest would do it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from nbflow.core.ids import new_run_id
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    ErrorInfo,
    OutputInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepStarted,
    encode_entry,
)
from nbflow.store import schema
from nbflow.store.framing import Frame
from nbflow.store.local import LocalStore
from nbflow.store.rows import POSITION, Batch, insert_rows
from nbflow.values.trust import key_id, mac, user_key

_WORKFLOWS = ("train.ipynb", "load.ipynb", "report.ipynb", "nightly", "features.ipynb")


def make_past(root: Path, count: int, *, steps: int = 3) -> None:
    """Fill a new store with finished runs of `steps` steps each, ten minutes apart, the newest just now."""
    store = LocalStore(root, background=False)
    key = user_key()
    batch, positions = Batch(), []
    now = time.time()
    for number in range(count):
        run = new_run_id()
        seal = run.encode()
        frames = []
        for seq, record in enumerate(_records(run, number, steps), start=1):
            body = encode_entry(Entry(seq, now - 600 * (count - number) + seq, record))
            frames.append(
                Frame(Entry(seq, now - 600 * (count - number) + seq, record), body, mac(key, seal, body))
            )
        batch.add(run, frames, key_id(key))
        positions.append((run, 1, 0, len(frames), frames[-1].mac))
    with store.database.open() as connection:
        connection.execute("BEGIN")
        batch.insert(connection)
        insert_rows(connection, "position", POSITION, positions)
        schema.list_finished(connection, [run for run, *_ in positions])
        connection.execute("COMMIT")
    store.close()


def _records(run: str, number: int, steps: int) -> Iterator[AnyRecord]:
    yield RunOpened(
        run=run,
        workflow=_WORKFLOWS[number % len(_WORKFLOWS)],
        workflow_kind="notebook",
        params={"year": 2000 + number % 25, "rate": 0.01 * (number % 7), "city": f"city {number % 200}"},
        tags={"team": ("blue", "red", "green")[number % 3], "host": f"h{number % 12}"},
    )
    yield RunAttached(1, 1, Owner("lab", 1_000 + number % 500, 0.0, user="ana", program="python"))
    for step in range(steps):
        yield StepStarted(f"step{step}", f"step{step}", "cell", b"s" * 32, detail={"source": "x = 1\n" * 5})
        if number % 50 == 0 and step == steps - 1:
            yield StepEnded(
                -1, f"step{step}", "failed", error=ErrorInfo("ValueError", f"no data for {number}")
            )
        else:
            outputs = (OutputInfo("x", "int", b"f" * 32, 8, preview="1"),)
            yield StepCompleted(
                -1, f"step{step}", seconds=0.5, checkpoint=Checkpoint("json", b'{"x":1}', outputs=outputs)
            )
    failed = number % 50 == 0
    yield RunChanged(
        "cancelled" if failed else "completed", reason=f"user: no data for {number}" if failed else ""
    )
