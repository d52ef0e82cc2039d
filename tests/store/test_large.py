"""Promises of the fast paths for large values: same bytes, no needless import, no thread that was left to a parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nbflow.core.states import RunState
from nbflow.store import early, rebuild
from nbflow.store.columns import arrow_array
from nbflow.store.database import Database
from nbflow.store.leaves import OWN_SEGMENT
from nbflow.store.local import LocalStore
from tests.store.conformance import attached, do_step
from tests.store.journal_kit import attached as attached_folder
from tests.store.journal_kit import leaf
from tests.store.store_kit import child, record


@pytest.mark.parametrize("known", [True, False])
def test_what_is_written_early_is_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Large leaves of any cut come back whole, also where the system cannot start the disk early."""
    if not known:
        monkeypatch.setattr(early, "_starter", lambda: None)
    _, log = attached_folder(tmp_path)
    sizes = (OWN_SEGMENT + 5, 3 * early.CHUNK + 1, 100, early.CHUNK, 70_000)
    data = [os.urandom(size) for size in sizes]
    refs = log.put_leaves([leaf(each) for each in data])
    assert [bytes(log.leaf(ref)) for ref in refs] == data
    log.release()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("string", ["a", "", "Ünï", None, "🦆" * 1000]),
        ("string", ["plain", "text"]),
        ("string", [b'{"utf": "8"}', '"ü"'.encode()]),
        ("binary", [b"", None, b"\0\xff" * 40]),
        ("int64", [1, None, -(1 << 62)]),
        ("int32", [1, 2]),
        ("float64", [1.5, None, float("inf")]),
        ("bool", [True, None, False, True, True, False, False, True, None, True]),
        ("bool", [False] * 17),
        ("string", [None, None]),
        ("string", [RunState.RUNNING, None, "ü"]),
        (
            "columns",
            [None, [], [{"name": "x", "type": "i", "leaf": b"d"}, {"name": "ü", "type": "", "leaf": None}]],
        ),
        ("columns", [[{"name": "x", "type": "i", "leaf": b"d"}]]),
    ],
)
def test_columns_are_what_pyarrow_makes_of_the_values(kind: str, values: list[object]) -> None:
    """A column built from bytes equals the one that PyArrow builds from Python values, and is valid."""
    made = arrow_array(tuple(values), kind)
    made.validate(full=True)
    plain = [value.decode() if kind == "string" and isinstance(value, bytes) else value for value in values]
    assert made.equals(pa.array(plain, made.type))


@pytest.mark.skipif(
    int(duckdb.__version__.split(".")[0]) < 2, reason="DuckDB 1 imports pandas for a parameter"
)
def test_the_background_work_never_imports_pandas(tmp_path: Path) -> None:
    """Ingest and compaction of arrays need none: a user's own import then meets no half of it."""
    code = """
    import numpy as np
    log = attached(store)
    record(log, "make", x=np.arange(50_000.0), flags=np.arange(50_000) % 3 == 0,
           half=np.arange(50_000).astype("f2"), at=np.arange(50_000).astype("M8[s]"))
    store.ingest()
    assert store.compact() == 4
    print("pandas" in sys.modules)
    """
    process = child(tmp_path, code)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, "False")


def test_a_forked_child_hashes_by_itself(tmp_path: Path) -> None:
    """BLAKE3's and DuckDB's threads stay with the parent; a child that forks off waits for none of them."""
    code = """
    import numpy as np
    from nbflow.values.fingerprint import fingerprint
    values = np.arange(1_000_000.0)
    mine = fingerprint(values)
    store.ingest()
    if (pid := os.fork()) == 0:
        same = fingerprint(values) == mine and store.database.path.exists()
        with store.database.read() as connection:
            same &= connection.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]
        os._exit(0 if same else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    process = child(tmp_path, code)
    try:
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out.strip()) == (0, "0")


def test_what_a_query_sets_is_gone_with_it(tmp_path: Path) -> None:
    """An instance of DuckDB is used again for nbflow's own work only, never after somebody else's SQL."""
    store = LocalStore(tmp_path, background=False)
    do_step(attached(store), "a")
    store.ingest()
    with store.database.read(foreign=True) as connection:
        connection.execute("SET threads = 7")
        connection.execute("CREATE TABLE memory.main.mine AS SELECT 1")
    with store.database.read() as connection:
        assert connection.execute("SELECT current_setting('threads')").fetchall() != [(7,)]
        found = connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'memory'")
        assert found.fetchall() == []


def test_an_instance_is_free_of_the_file_after_an_error(tmp_path: Path) -> None:
    """What breaks inside an operation leaves no transaction and no open file to the next."""
    database = Database(tmp_path / "store.duckdb")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), database.open() as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE half (i INTEGER)")
            1 / 0  # noqa: B018
        code = "import duckdb, sys; duckdb.connect(sys.argv[1]).close()"
        subprocess.run([sys.executable, "-c", code, str(database.path)], check=True)
        with database.open() as connection:
            names = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            assert ("half",) not in names


def test_every_column_of_a_wide_frame_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are read a few at a time by several threads; each leaf is the one that was asked for."""
    monkeypatch.setattr(rebuild, "_GROUP", 100_000)
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({f"x{n}": rng.standard_normal(5_000) for n in range(20)})
    frame["word"] = rng.choice(["alpha", "beta", "Ünï"], 5_000)
    record(log, "make", frame=frame)
    store.ingest()
    store.compact()
    with store.database.read() as connection:
        rows = connection.execute(
            "SELECT digest, size, form, kept, segment, place, rows, tail FROM nbflow.leaf"
        ).fetchall()
        leaves = [rebuild.Kept(*row) for row in rows]
        assert rebuild.prove(connection, leaves) == {each.digest for each in leaves}
        back = rebuild.restore_all(connection, leaves)
    raw = {bytes(view) for view in back.values()}
    assert {frame[f"x{n}"].to_numpy().tobytes() for n in range(20)} <= raw


def test_an_error_of_a_reading_thread_is_raised() -> None:
    """Nothing that goes wrong in a thread is lost."""

    def work(item: int) -> None:
        if item == 5:
            raise LookupError(item)

    with pytest.raises(LookupError):
        rebuild._share(work, range(9))
