"""The views promise what the fold promises: any history reads the same from SQL as from its journal."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Checkpoint,
    Entry,
    ErrorInfo,
    OutputInfo,
    Owner,
    RunAttached,
    RunChanged,
    RunInfo,
    RunOpened,
    RunTagged,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
    encode_entry,
)
from nbflow.core.states import FINAL_RUN_STATES, FINAL_STEP_STATES, RUN_TRANSITIONS
from nbflow.store import listing, schema
from nbflow.store.database import Database
from nbflow.store.framing import Frame
from nbflow.store.protocol import RunQuery
from nbflow.store.rows import Batch


def some_history(chance: random.Random, run: str) -> list[Entry]:
    """Make any sequence of records that the state machines allow."""
    history = History()
    entries: list[Entry] = []

    def add(record: AnyRecord) -> None:
        entries.append(Entry(len(entries) + 1, 1000.0 + len(entries) + chance.random(), record))
        history.add(entries[-1])

    tags = {name: str(chance.random()) for name in chance.sample("abc", chance.randrange(3))}
    add(
        RunOpened(
            run, chance.choice(["flow", "Ünï"]), version="1", params={"x": [1, {}]}, tags=tags, parent=None
        )
    )
    for _ in range(chance.randrange(60)):
        if history.state in FINAL_RUN_STATES and chance.random() < 0.8:
            break
        going = [e for e in history.executions.values() if e.state not in FINAL_STEP_STATES]
        error = ErrorInfo("ValueError", f"no {chance.random()}", "trace", b"\x80")
        step = chance.choice("stu")
        kind = chance.randrange(9)
        if kind == 0 and history.state not in FINAL_RUN_STATES:
            generation = (history.attached.generation if history.attached else 0) + 1
            add(RunAttached(generation, generation, Owner("host", 7, 5.0, "me", "tests")))
        elif kind in (1, 2, 3):
            add(
                StepStarted(
                    step, step.upper(), "call", chance.randbytes(2), parent=chance.choice([None, "p"])
                )
            )
        elif kind == 4 and going:
            chosen = chance.choice(going)
            output = OutputInfo("return", "int", chance.randbytes(32), 8)
            checkpoint = Checkpoint("json", b"1", outputs=(output,)) if chance.random() < 0.8 else None
            add(
                StepCompleted(chosen.number, chosen.started.step, chosen.attempt, chance.random(), checkpoint)
            )
        elif kind == 5 and going:
            chosen = chance.choice(going)
            state = chance.choice(["failed", "cancelled", "skipped", "timed_out"])
            problem = error if chance.random() < 0.6 else None
            add(StepEnded(chosen.number, chosen.started.step, state, chosen.attempt, 0.5, problem))
        elif kind == 6 and going:
            chosen = chance.choice(going)
            add(StepRetried(chosen.number, chosen.started.step, chosen.attempt, 9.0, error))
        elif kind == 7:
            add(
                StepForgotten(step)
                if chance.random() < 0.5
                else RunTagged({chance.choice("abcd"): str(chance.random())})
            )
        elif kind == 8:
            allowed = sorted(RUN_TRANSITIONS[history.state])
            if allowed:
                state = chance.choice(allowed)
                add(RunChanged(state, chance.choice(["", "because"]), error if state == "failed" else None))
    return entries


def newest_first(info: RunInfo) -> tuple[float, str]:
    return info.created_at, info.run


def test_every_view_reads_as_the_fold(tmp_path: Path) -> None:
    """Two hundred random histories: rows of runs, steps and outputs equal the fold's."""
    chance = random.Random(20)
    batch = Batch()
    histories: dict[str, History] = {}
    for number in range(200):
        run = f"run-{number:03d}"
        entries = some_history(chance, run)
        histories[run] = History.of(entries)
        batch.add(run, (Frame(entry, encode_entry(entry), bytes(16)) for entry in entries), bytes(8))
    database = Database(tmp_path / "store.duckdb")
    with database.open() as connection:
        connection.execute("BEGIN")
        batch.insert(connection)
        rows = listing.from_database(connection, RunQuery(limit=None))
        schema.list_finished(connection, list(histories))
        connection.execute("COMMIT")
        assert listing.from_database(connection, RunQuery(limit=None)) == rows
        steps = connection.execute(
            "SELECT run, execution, step, name, kind, signature, state, attempt, parent, epoch(started_at), seconds, "
            "error_type, error, traceback, current FROM steps ORDER BY run, execution"
        ).fetchall()
        outputs = connection.execute(
            "SELECT run, execution, variable, current FROM outputs ORDER BY run, execution"
        ).fetchall()
    assert [msgspec.structs.replace(row, alive=None) for row in rows] == sorted(
        (history.info() for history in histories.values()), key=newest_first, reverse=True
    )
    infos = [info for history in histories.values() for info in history.steps()]
    assert len(steps) == len(infos) > 500
    for row, info in zip(steps, infos, strict=True):
        error = (
            (info.error.type, info.error.message, info.error.traceback) if info.error else (None, None, None)
        )
        assert row[:9] == (
            info.run,
            info.execution,
            info.step,
            info.name,
            info.step_kind,
            info.signature.hex(),
            info.state,
            info.attempt,
            info.parent,
        )
        assert abs(row[9] - info.started_at) < 1e-5
        assert row[10:] == (info.seconds, *error, info.current)
    assert outputs == [
        (info.run, info.execution, output.name, info.current) for info in infos for output in info.outputs
    ]


def test_the_filters_of_sql_and_of_python_agree(tmp_path: Path) -> None:
    """A query lists the same runs from the database as from their journals."""
    chance = random.Random(5)
    batch = Batch()
    infos = []
    for number in range(60):
        entries = some_history(chance, f"run-{number:03d}")
        infos.append(History.of(entries).info())
        batch.add(
            f"run-{number:03d}", (Frame(entry, encode_entry(entry), bytes(16)) for entry in entries), bytes(8)
        )
    infos.sort(key=newest_first, reverse=True)
    queries = [
        RunQuery(limit=None),
        RunQuery(workflow="fl*", limit=None),
        RunQuery(workflow="*nï", limit=None),
        RunQuery(workflow="f_o%", limit=None),
        RunQuery(states=("failed", "pending"), limit=None),
        RunQuery(since=1000.5, limit=None),
        RunQuery(until=1000.5, states=("running",), limit=None),
        RunQuery(tags={"a": infos[0].tags.get("a", "x")}, limit=None),
        *(RunQuery(tags=dict([item]), limit=None) for info in infos[:20] for item in info.tags.items()),
    ]
    with Database(tmp_path / "store.duckdb").open() as connection:
        connection.execute("BEGIN")
        batch.insert(connection)
        schema.list_finished(connection, [info.run for info in infos[::2]])
        connection.execute("COMMIT")
        for query in queries:
            found = [info.run for info in listing.from_database(connection, query)]
            assert found == [info.run for info in infos if listing.matches(info, query)]
