"""Database promises: opened per operation, upgraded on open, and never touched when it is not ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import duckdb
import pytest

from nbflow.core import errors
from nbflow.store import place, schema
from nbflow.store.database import Database
from nbflow.store.local import LocalStore, open_store
from tests.store.conformance import attached, do_step, finish
from tests.store.store_kit import child


def digest(path: Path) -> str:
    """Return what tells whether a file was touched."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_nothing_keeps_the_file_open(tmp_path: Path) -> None:
    """After every operation another process can open the file read-write."""
    store = LocalStore(tmp_path, background=False)
    do_step(attached(store), "a")
    for operation in (store.ingest, store.compact, store.runs, lambda: store.sql("FROM runs"), store.check):
        operation()
        code = "import duckdb, sys; duckdb.connect(sys.argv[1]).close()"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "store.duckdb")], check=True)


class _Full:
    """A connection whose commits find no room: DuckDB undoes the transaction itself then."""

    def __init__(self) -> None:
        self._real = duckdb.connect()

    def execute(self, sql: str, *given: object) -> object:
        if sql != "COMMIT":
            return self._real.execute(sql, *given)
        self._real.execute("ROLLBACK")
        raise duckdb.IOException("No space left on device")


def test_a_commit_without_room_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to roll back then, and the complaint about it must not stand in for the full disk."""
    monkeypatch.setattr(schema, "MIGRATIONS", {})
    monkeypatch.setattr(schema, "VIEWS", "SELECT 1")
    with pytest.raises(duckdb.IOException, match="No space left"):
        schema.migrate(_Full(), 0, "test", 0.0)  # type: ignore[arg-type]


def test_an_older_store_is_upgraded_on_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations run in order, in one transaction, and keep what is there."""
    store = LocalStore(tmp_path, background=False)
    do_step(attached(store), "a")
    store.ingest()
    now = schema.SCHEMA_VERSION
    monkeypatch.setitem(
        schema.MIGRATIONS, now + 1, "ALTER TABLE nbflow.event ADD COLUMN extra INTEGER DEFAULT 7"
    )
    monkeypatch.setitem(
        schema.MIGRATIONS,
        now + 2,
        "CREATE TABLE nbflow.later AS SELECT max(extra) AS extra FROM nbflow.event",
    )
    monkeypatch.setattr(schema, "SCHEMA_VERSION", now + 2)
    assert store.sql("SELECT extra FROM nbflow.later")["extra"].tolist() == [7]
    assert store.sql("SELECT number FROM nbflow.migration ORDER BY ALL")["number"].tolist() == list(
        range(1, now + 3)
    )
    assert store.runs()[0].steps == 1


def test_a_failed_upgrade_leaves_the_old_store_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that breaks takes all of itself back."""
    store = LocalStore(tmp_path, background=False)
    do_step(attached(store), "a")
    store.ingest()
    with monkeypatch.context() as broken:
        broken.setitem(
            schema.MIGRATIONS,
            schema.SCHEMA_VERSION + 1,
            "CREATE TABLE nbflow.half (i INTEGER); SELECT * FROM no_such_table",
        )
        broken.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        with pytest.raises(errors.StoreError):
            store.sql("FROM runs")
    names = store.sql("SELECT table_name AS n FROM duckdb_tables() WHERE schema_name = 'nbflow'")[
        "n"
    ].tolist()
    assert "half" not in names
    assert store.sql("FROM steps").shape[0] == 1


def test_a_newer_store_is_left_untouched(tmp_path: Path) -> None:
    """A later schema is refused by name, and not one byte changes; recording goes on."""
    store = LocalStore(tmp_path, background=False)
    store.ingest()
    path = tmp_path / "store.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO nbflow.migration VALUES ('nbflow', 99, 'later', 0)")
    before = digest(path)
    log = attached(store)
    do_step(log, "a")
    for operation in (store.ingest, lambda: store.sql("FROM runs"), store.compact):
        with pytest.raises(errors.StoreTooNew, match="99"):
            operation()
    assert digest(path) == before
    assert len(store.entries(log.run)) == 4


@pytest.mark.parametrize("content", ["text", "duckdb", "zeros", "empty database"])
def test_a_foreign_file_is_left_untouched(tmp_path: Path, content: str) -> None:
    """What is no store is refused as such; an empty database is taken."""
    path = tmp_path / "store.duckdb"
    if content == "text":
        path.write_bytes(b"not a database " * 5000)
    elif content == "zeros":
        path.write_bytes(bytes(50_000))
    else:
        with duckdb.connect(str(path)) as connection:
            if content == "duckdb":
                connection.execute("CREATE TABLE customers (id INTEGER)")
    before = digest(path)
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a")
    if content == "empty database":
        assert store.ingest() == 4
        return
    with pytest.raises(errors.NotAStore):
        store.ingest()
    assert digest(path) == before
    assert store.newest_open("w") is not None
    assert any(finding.level == "error" and finding.subject == "database" for finding in store.check())


def test_a_file_where_the_store_should_be_is_refused(tmp_path: Path) -> None:
    """`.nbflow` or the named place may not be a file."""
    (tmp_path / ".nbflow").write_text("mine")
    with pytest.raises(errors.NotAStore):
        open_store(tmp_path)
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(errors.NotAStore):
        open_store(tmp_path / "data.csv")
    with pytest.raises(errors.UsageError):
        open_store("postgresql://host/db")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX users")
def test_a_folder_that_cannot_be_written_is_said_so() -> None:
    """Making or writing a store there is `StoreReadOnly`; what is in it can still be read."""
    root = Path(tempfile.mkdtemp(prefix="nbflow-readonly-"))
    code = """
import os, sys
from pathlib import Path
import duckdb, pyarrow, pandas
from nbflow.core import errors
from nbflow.store.local import LocalStore
from tests.store.conformance import attached, do_step, finish
root = Path(sys.argv[1])
store = LocalStore(root / "old", background=False)
do_step(attached(store), "a")
store.ingest()
store.sql("FROM runs")  # loads every module while they can still be read
for folder, _, files in os.walk(root, topdown=False):
    for name in files:
        os.chmod(Path(folder) / name, 0o444)
    os.chmod(folder, 0o555)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    LocalStore(root / "new", background=False)
except errors.StoreReadOnly:
    print("refused")
old = LocalStore(root / "old", background=False)
try:
    old.ingest()
    with old.database.open():
        pass
except errors.StoreReadOnly:
    print("refused")
print(old.sql("SELECT steps FROM runs")["steps"].tolist())
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False
        )
        assert done.stdout == "refused\nrefused\n[1]\n", done.stderr
    finally:
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o755)
        shutil.rmtree(root)


def test_a_connection_of_this_process_is_named(tmp_path: Path) -> None:
    """A user's own open connection is the one to close; the error says it is in this process."""
    store = LocalStore(tmp_path, background=False)
    store.ingest()
    mine = duckdb.connect(str(tmp_path / "store.duckdb"))
    with pytest.raises(errors.StoreBusy) as caught, Database(tmp_path / "store.duckdb").open(wait=0.05):
        pass
    assert caught.value.pid == os.getpid()
    mine.close()
    store.ingest()


def test_waiting_ends_when_the_other_process_lets_go(tmp_path: Path) -> None:
    """A query that meets a short holder waits for it instead of failing."""
    LocalStore(tmp_path, background=False).ingest()
    code = """
    with store.database.open():
        print("open", flush=True)
        time.sleep(0.7)
    """
    holder = child(tmp_path, code)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert LocalStore(tmp_path, background=False).sql("FROM runs").empty
    holder.wait()


def test_threads_of_one_process_queue_up(tmp_path: Path) -> None:
    """Concurrent queries, copies and recording in one process all succeed."""
    store = LocalStore(tmp_path, idle=0.02, compact_after=0.05)
    log = attached(store)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                do_step(log, f"{number}-{turn}", leaves=[os.urandom(20_000)])
                assert store.sql("SELECT count(*) AS c FROM events")["c"][0] >= 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.sql("SELECT count(*) AS c FROM steps WHERE state = 'completed'")["c"][0] == 16
    store.close()


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`NBFLOW_STORE` wins over the working directory; without it the nearest `.nbflow` upwards does."""
    (tmp_path / "project" / "deep").mkdir(parents=True)
    (tmp_path / "project" / ".nbflow").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "deep")
    monkeypatch.setenv("NBFLOW_STORE", str(tmp_path / "elsewhere"))
    assert place.locate() == tmp_path / "elsewhere"
    monkeypatch.delenv("NBFLOW_STORE")
    assert place.locate() == tmp_path / "project" / ".nbflow"
    assert place.locate(tmp_path / "other.ipynb") == tmp_path / ".nbflow"


def test_a_store_without_a_list_of_finished_runs_gets_one(tmp_path: Path) -> None:
    """An upgrade from schema 2 lists the runs that were over, so that a long history opens as fast as a new one."""
    store = LocalStore(tmp_path, background=False)
    runs = []
    for _ in range(3):
        log = attached(store, tags={"team": "blue"})
        do_step(log, "a")
        runs.append(log.run)
        if len(runs) < 3:
            finish(log)
    store.ingest()
    before = store.runs()
    with duckdb.connect(str(tmp_path / "store.duckdb")) as connection:
        connection.execute("DROP TABLE nbflow.finished")
        connection.execute("DELETE FROM nbflow.migration WHERE number > 2")
    with store.database.read() as connection:
        listed = connection.execute("SELECT run FROM nbflow.finished ORDER BY run").fetchall()
    assert [(run,) for run in runs[:2]] == listed
    assert before == store.runs()
    store.close()


def test_a_deleted_run_is_not_listed_among_the_finished(tmp_path: Path) -> None:
    """What is deleted is gone from every table that lists runs."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    finish(log)
    store.ingest()
    assert [log.run] == [info.run for info in store.runs()]
    store.delete(log.run)
    assert store.runs() == []
    store.close()
