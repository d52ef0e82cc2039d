"""Ingest promises: everything acknowledged gets into DuckDB, once, whatever is killed, locked or damaged meanwhile."""

from __future__ import annotations

import os
import random
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import msgspec
import pytest

from nbflow.core import errors
from nbflow.core.history import History
from nbflow.core.model import (
    ErrorInfo,
    RunChanged,
    RunTagged,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.store import listing
from nbflow.store.local import LocalStore, open_store
from nbflow.store.protocol import RunQuery
from tests.store.conformance import attached, do_step, finish
from tests.store.store_kit import child


def rows(root: Path) -> dict[str, list[int]]:
    """Return the seqs of each run as a plain DuckDB client sees them."""
    with duckdb.connect(str(root / "store.duckdb"), read_only=True) as connection:
        found = connection.execute("SELECT run, list(seq ORDER BY seq) FROM events GROUP BY run").fetchall()
    return dict(found)


def wait_for(check: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_an_idle_process_has_its_steps_in_the_database_soon(tmp_path: Path) -> None:
    """The background thread copies without being asked, and the file can be opened by others."""
    store = open_store(tmp_path)
    log = attached(store)
    do_step(log, "a")

    def copied() -> bool:
        try:
            return rows(store.root) == {log.run: [1, 2, 3, 4]}
        except duckdb.Error:  # not there yet, or being written just now
            return False

    wait_for(copied)
    store.close()


def test_copying_twice_changes_nothing(tmp_path: Path) -> None:
    """Ingest is idempotent, in one process and from another."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a")
    assert store.ingest() == 4
    assert store.ingest() == 0
    assert LocalStore(tmp_path, background=False).ingest() == 0
    do_step(log, "b")
    assert LocalStore(tmp_path, background=False).ingest() == 2
    assert store.ingest() == 0
    assert rows(tmp_path) == {log.run: [1, 2, 3, 4, 5, 6]}


def test_whoever_opens_first_copies_the_runs_of_all(tmp_path: Path) -> None:
    """The records of a process that died are in the next query of another one."""
    process = child(tmp_path, "do_step(attached(store, 'dead'), 'a'); os._exit(9)")
    assert process.wait() == 9
    frame = LocalStore(tmp_path, background=False).sql("SELECT workflow, state, steps FROM runs")
    assert frame.to_dict("records") == [{"workflow": "dead", "state": "running", "steps": 1}]


@pytest.mark.parametrize("point", ["ingest.before-commit", "ingest.after-commit"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_kill_during_ingest_loses_and_doubles_nothing(tmp_path: Path, point: str, turn: int) -> None:
    """SIGKILL around the commit; the next ingest makes it whole."""
    code = """
    log = attached(store)
    do_step(log, "a"); store.ingest()
    do_step(log, "b"); store.ingest()
    """
    process = child(tmp_path, code, NBFLOW_CRASH=f"{point}:{turn}")
    assert process.wait() == -signal.SIGKILL
    store = LocalStore(tmp_path, background=False)
    store.ingest()
    [info] = store.runs()
    assert rows(tmp_path) == {info.run: [entry.seq for entry in store.entries(info.run)]}
    assert info.steps == turn


@pytest.mark.parametrize("point", ["finished.before-remove", "remove.rename.before", "remove.rename.after"])
def test_a_kill_while_a_finished_folder_goes_away_leaves_the_run_whole(tmp_path: Path, point: str) -> None:
    """The run is in the database before its folder goes, so it is readable at every moment."""
    process = child(
        tmp_path,
        "log = attached(store); do_step(log, 'a'); finish(log); store.ingest()",
        NBFLOW_CRASH=f"{point}:1",
    )
    assert process.wait() == -signal.SIGKILL
    store = LocalStore(tmp_path, background=False)
    [info] = store.runs()
    assert (info.state, info.steps, len(store.entries(info.run))) == ("completed", 1, 5)
    store.ingest()
    assert [path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == []
    assert rows(tmp_path) == {info.run: [1, 2, 3, 4, 5]}


def test_a_locked_database_delays_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes record 200 steps each while a fifth has the file open; afterwards all is there, once."""
    monkeypatch.setattr("nbflow.store.local.USER_WAIT", 0.3)
    LocalStore(tmp_path, background=False).ingest()
    holder = child(
        tmp_path,
        """
        import duckdb
        connection = duckdb.connect(sys.argv[1] + "/store.duckdb")
        print("open", flush=True)
        sys.stdin.readline()
        """,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "open\n"
    code = """
    store = LocalStore(sys.argv[1], idle=0.05)
    log = attached(store, "busy")
    for number in range(200):
        do_step(log, f"step-{number}")
    print("recorded", flush=True)
    sys.stdin.readline()
    """
    workers = [child(tmp_path, code) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "recorded\n"
    store = LocalStore(tmp_path, background=False)
    # Unfinished runs are listed without the database, even now.
    assert sorted(info.steps for info in store.runs(RunQuery(states=("running",)))) == [200] * 4
    with pytest.raises(errors.StoreBusy) as caught:
        store.sql("FROM runs")
    assert caught.value.pid == holder.pid and str(holder.pid) in str(caught.value)
    holder.communicate("go\n")
    for worker in workers:
        worker.communicate("go\n")
    store.ingest()
    assert sorted(map(len, rows(tmp_path).values())) == [402] * 4
    counts = store.sql(
        "SELECT count(*) AS n, count(DISTINCT step) AS m FROM steps WHERE state = 'completed' GROUP BY run"
    )
    assert counts.to_dict("records") == [{"n": 200, "m": 200}] * 4


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path: Path) -> None:
    """Its sound records are copied, its state is corrupt, and the error names run and seq."""
    store = LocalStore(tmp_path, background=False)
    good, bad = attached(store, "good"), attached(store, "bad")
    for log in (good, bad):
        do_step(log, "a")
        do_step(log, "b")
        log.release()
    journal = max((tmp_path / "runs" / bad.run).glob("journal.*"))
    raw = bytearray(journal.read_bytes())
    place = raw.index(b"step.completed") - 3
    raw[place] ^= 0xFF
    journal.write_bytes(raw)
    fresh = LocalStore(tmp_path, background=False)
    with pytest.raises(errors.CorruptRecord) as caught:
        fresh.entries(bad.run)
    assert (caught.value.run, caught.value.seq) == (bad.run, 4)
    states = {info.workflow: (info.state, info.error) for info in fresh.runs()}
    assert states["good"] == ("running", "")
    assert states["bad"][0] == listing.CORRUPT and "Record 4" in states["bad"][1]
    fresh.ingest()
    assert rows(tmp_path) == {good.run: [1, 2, 3, 4, 5, 6], bad.run: [1, 2, 3]}
    frame = fresh.sql("SELECT workflow, state FROM runs ORDER BY workflow")
    assert frame["state"].tolist() == ["corrupt", "running"]
    with pytest.raises(errors.CorruptRecord):
        fresh.newest_open("bad")
    assert fresh.newest_open("good") is not None


def test_damage_after_copying_leaves_what_was_copied(tmp_path: Path) -> None:
    """Rows that are in the database stay when the journal is damaged later."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a")
    do_step(log, "b")
    store.ingest()
    log.release()
    journal = max((tmp_path / "runs" / log.run).glob("journal.*"))
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"step.completed") - 3] ^= 0xFF
    journal.write_bytes(raw)
    LocalStore(tmp_path, background=False).ingest()
    assert rows(tmp_path) == {log.run: [1, 2, 3, 4, 5, 6]}


def test_an_altered_row_is_a_typed_error(tmp_path: Path) -> None:
    """A row of the database is verified like a journal frame."""
    store = LocalStore(tmp_path, background=False)
    logs = [attached(store) for _ in range(3)]
    for log in logs:
        do_step(log, "a")
        finish(log)
    store.ingest()
    with duckdb.connect(str(tmp_path / "store.duckdb")) as connection:
        connection.execute(
            "UPDATE nbflow.event SET record = record || 'x'::BLOB WHERE run = ? AND seq = 4", [logs[0].run]
        )
        connection.execute("DELETE FROM nbflow.event WHERE run = ? AND seq = 2", [logs[1].run])
    for log, seq in ((logs[0], 4), (logs[1], 2)):
        with pytest.raises(errors.CorruptRecord) as caught:
            store.entries(log.run)
        assert (caught.value.run, caught.value.seq) == (log.run, seq)
    assert len(store.entries(logs[2].run)) == 5
    assert len(store.runs()) == 3


def test_a_pair_of_run_and_seq_is_stored_once(tmp_path: Path) -> None:
    """The database itself refuses a duplicate; nothing is overwritten."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    store.ingest()
    with duckdb.connect(str(tmp_path / "store.duckdb")) as connection:
        with pytest.raises(duckdb.ConstraintException):
            connection.execute("INSERT INTO nbflow.event SELECT * FROM nbflow.event")
    assert rows(tmp_path) == {log.run: [1, 2]}


def test_the_views_say_what_the_journal_says(tmp_path: Path) -> None:
    """A run's row and its steps are the same folded by SQL and by `History`."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store, "flow", params={"x": [1, {"y": None}]}, tags={"a": "1"})
    do_step(log, "a", signature=b"1" * 32)
    do_step(log, "a", signature=b"2" * 32)
    problem = ErrorInfo("ValueError", "no luck", "Traceback")
    other = log.append(StepStarted("b", "B", "cell", b"3" * 32, parent="a", version="7"))
    log.append(StepRetried(other, "b", 1, 5.0, problem))
    log.append(StepEnded(other, "b", "failed", attempt=2, seconds=1.5, error=problem))
    log.append(StepForgotten("a"), RunTagged({"a": "2", "b": "3"}), RunChanged("waiting", "a gate"))
    log.append(StepStarted("c", "c", "call", b"4" * 32))
    log.append(RunChanged("failed", error=problem))
    log.release()
    history = History.of(store.entries(log.run))
    store.ingest()
    with store.database.read() as connection:
        [row] = listing.from_database(connection, RunQuery())
    assert row == msgspec.structs.replace(history.info(), alive=False)
    frame = store.sql("FROM steps ORDER BY execution").to_dict("records")
    for got, step in zip(frame, history.steps(), strict=True):
        expected = (
            step.execution,
            step.step,
            step.name,
            step.state,
            step.attempt,
            step.current,
            step.signature.hex(),
        )
        assert (
            tuple(got[k] for k in ("execution", "step", "name", "state", "attempt", "current", "signature"))
            == expected
        )
    assert frame[2]["error"] == "no luck"


def test_recording_never_imports_the_database(tmp_path: Path) -> None:
    """Create, attach, record, list and replay work without importing DuckDB, Arrow or pandas."""
    code = """
    log = attached(store)
    do_step(log, "a", leaves=[b"x" * 20000])
    log.release()
    log = store.attach(log.run, me())
    store.newest_open("w"); store.runs(RunQuery(states=("running",)))
    log.leaf(log.history[3].record.checkpoint.leaves[0])
    print(sorted({"duckdb", "pyarrow", "pandas", "numpy"} & sys.modules.keys()), flush=True)
    """
    process = child(tmp_path, "from nbflow.store.protocol import RunQuery\n" + textwrap.dedent(code))
    out, _ = process.communicate()
    assert out == "[]\n"


def test_a_forked_child_may_query(tmp_path: Path) -> None:
    """A fork inherits no lock that only its parent could release."""
    store = open_store(tmp_path)
    do_step(attached(store), "a")
    store.ingest()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LocalStore(store.root, background=False).sql("FROM runs").shape[0] == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    store.close()


def test_a_run_is_created_in_an_untouched_place(tmp_path: Path) -> None:
    """`open_store` makes `.nbflow` with a `.gitignore` of its own, and finds it from below."""
    store = open_store(tmp_path)
    assert store.root == tmp_path / ".nbflow"
    assert (store.root / ".gitignore").read_text().endswith("*\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "note.ipynb").write_text("{}")
    assert open_store(tmp_path / "deep" / "er").root == store.root
    assert open_store(tmp_path / "deep" / "note.ipynb").root == store.root
    assert open_store(store.root).root == store.root
    store.ingest()
    assert open_store(store.root / "store.duckdb").root == store.root
    store.close()


def test_a_finished_run_is_compacted_and_its_folder_goes_by_itself(tmp_path: Path) -> None:
    """Nobody asks: the end of a run is enough, in a process that lives on and in one that exits."""
    store = LocalStore(tmp_path, idle=0.05, compact_after=60.0)
    log = attached(store)
    do_step(log, "a", leaves=[b"x" * 30_000])
    finish(log)
    wait_for(lambda: not list((tmp_path / "runs").iterdir()))
    assert bytes(store.leaf(log.run, store.entries(log.run)[3].record.checkpoint.leaves[0])) == b"x" * 30_000
    store.close()
    process = child(
        tmp_path,
        "store = LocalStore(sys.argv[1]); log = attached(store); do_step(log, 'a', leaves=[b'y' * 30_000]); finish(log)",
    )
    assert process.wait() == 0
    assert not list((tmp_path / "runs").iterdir())
    assert len(LocalStore(tmp_path, background=False).runs()) == 2


@pytest.mark.soak
def test_random_kills_lose_no_acknowledged_step_and_double_none(tmp_path: Path) -> None:
    """A hundred processes are killed at random moments of recording, ingest and compaction."""
    code = """
    import random
    store = LocalStore(sys.argv[1], idle=0.01, compact_after=0.02)
    found = store.newest_open("soak")
    if found is None:
        store.create(first := opened("soak")); run = first.run
    else:
        run = found.run
    log = store.attach(run, me())
    notes = os.open(sys.argv[1] + ".notes", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in range(10_000):
        execution = do_step(log, f"{os.getpid()}-{number}", leaves=[os.urandom(random.choice([0, 20_000, 300_000]))])
        os.write(notes, f"{execution}\\n".encode()); os.fsync(notes)
        time.sleep(random.random() * 0.02)
    """
    chance = random.Random(7)
    for _ in range(100):
        process = child(tmp_path / "store", code)
        time.sleep(0.25 + chance.random() * 0.6)
        process.kill()
        process.wait()
    acknowledged = [int(line) for line in (tmp_path / "store.notes").read_text().split()]
    store = LocalStore(tmp_path / "store", background=False)
    store.compact()
    [info] = store.runs()
    entries = store.entries(info.run)
    assert rows(tmp_path / "store") == {info.run: [entry.seq for entry in entries]}
    done = store.sql("SELECT execution FROM steps WHERE state = 'completed'")["execution"].tolist()
    assert len(done) == len(set(done)) and set(acknowledged) <= set(done) and len(acknowledged) > 100
    assert all(finding.level == "ok" for finding in store.check())
