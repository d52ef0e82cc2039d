"""SQL promises: every recorded frame is a table, across runs, before and after compaction, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from nbflow.core import errors
from nbflow.store import schema
from nbflow.store.local import LocalStore
from tests.store.conformance import attached, finish
from tests.store.store_kit import record

ROWS = 4000


def frame(start: int = 0) -> pd.DataFrame:
    """Make a frame whose columns are leaves."""
    numbers = np.arange(start, start + ROWS)
    return pd.DataFrame({"n": numbers, "half": numbers / 2, "word": np.where(numbers % 2, "odd", "even")})


@pytest.mark.parametrize("compacted", [False, True])
def test_a_recorded_frame_is_a_table(tmp_path: Path, compacted: bool) -> None:
    """`step.variable` answers the same from raw leaves and from native columns."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "load", df=frame())
    if compacted:
        store.compact()
    got = store.sql("SELECT word, count(*) AS c, sum(n)::BIGINT AS s FROM load.df GROUP BY ALL ORDER BY word")
    assert got.to_dict("records") == [
        {"word": "even", "c": 2000, "s": 3998000},
        {"word": "odd", "c": 2000, "s": 4000000},
    ]
    assert store.sql("DESCRIBE load.df")["column_name"].tolist() == ["n", "half", "word"]
    assert len(store.sql("EXPLAIN SELECT * FROM load.df")) > 0


def test_sql_joins_checkpoints_across_runs(tmp_path: Path) -> None:
    """`"run".step.variable` names any run by id or prefix; `run=` names the default one."""
    store = LocalStore(tmp_path, background=False)
    old, new = attached(store), attached(store)
    record(old, "load", df=frame())
    finish(old)
    store.compact()
    record(new, "load", df=frame(10))
    query = f'SELECT count(*) AS c FROM "{old.run}".load.df AS a JOIN load.df AS b USING (n)'
    assert store.sql(query)["c"][0] == ROWS - 10
    assert store.sql("SELECT min(n) AS m FROM load.df", run=old.run)["m"][0] == 0
    assert store.sql("SELECT min(n) AS m FROM load.df", run=new.run)["m"][0] == 10
    with pytest.raises(errors.UnknownRun):
        store.sql('FROM "zzzz".load.df')


def test_small_and_object_frames_are_tables_too(tmp_path: Path) -> None:
    """What has no native column is decoded; what Arrow cannot type becomes text."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(
        log,
        "cell one",
        small=pd.DataFrame({"k": [1, 2], "v": ["a", None]}),
        odd=pd.DataFrame({"o": [{"x": 1}, 3]}),
    )
    for _ in range(2):
        assert store.sql('SELECT k, v FROM "cell one".small').shape == (2, 2)
        assert store.sql('SELECT o FROM "cell one".odd')["o"].tolist() == ["{'x': 1}", "3"]
        store.compact()


def test_a_plain_client_sees_compacted_frames(tmp_path: Path) -> None:
    """`duckdb store.duckdb` has a view of each frame's newest version, named run/step.variable."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "load", b"1" * 32, df=frame()[["n", "half"]])
    store.compact()
    record(log, "load", b"2" * 32, df=frame(5)[["n", "half"]].assign(extra=1.5))
    store.compact()
    with duckdb.connect(str(tmp_path / "store.duckdb"), read_only=True) as client:
        name = f'frames."{log.run}/load.df"'
        assert client.execute(f"SELECT min(n), max(extra), count(*) FROM {name}").fetchall() == [
            (5, 1.5, ROWS)
        ]
    assert store.sql(f"SELECT count(*) AS c FROM {name}")["c"][0] == ROWS


def test_columns_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    """A frame may have two columns `a`; SQL has `a` and `a_1`."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    df = pd.DataFrame(np.arange(ROWS * 2.0).reshape(ROWS, 2), columns=["a", "a"])
    record(log, "load", df=df)
    for _ in range(2):
        assert store.sql("FROM load.df").columns.tolist() == ["a", "a_1"]
        store.compact()


def test_an_unknown_table_lists_what_there_is(tmp_path: Path) -> None:
    """The error suggests the nearest recorded frame."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "load", flights=frame(), count=3)
    for query in ("FROM laod.flights", "FROM load.flight"):
        with pytest.raises(errors.UnknownStep) as caught:
            store.sql(query, run=log.run)
        assert "Did you mean load.flights?" in str(caught.value) and caught.value.run == log.run
    with pytest.raises(errors.UnknownStep, match="is a int, not a table"):
        store.sql("FROM load.count")
    with pytest.raises(errors.UnknownStep):
        store.sql("FROM nothing")
    with pytest.raises(errors.UsageError):
        store.sql("SELEC 1")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE store.main.t (i INTEGER)",
        "DELETE FROM nbflow.event",
        "DELETE FROM store.nbflow.event",
        "DROP VIEW store.main.runs",
        "UPDATE store.nbflow.event SET seq = 1",
        "INSERT INTO store.nbflow.tag VALUES ('r', 1, 'a', 'b')",
    ],
)
def test_sql_cannot_write_into_the_store(tmp_path: Path, statement: str) -> None:
    """The store is attached read-only."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    store.ingest()
    with pytest.raises(errors.NbflowError):
        store.sql(statement)
    assert store.sql("SELECT count(*) AS c FROM events")["c"][0] == 2
    assert len(store.entries(log.run)) == 2


def test_every_column_of_the_views_is_documented(tmp_path: Path) -> None:
    """The table of views and columns that the docs print is what the store has."""
    store = LocalStore(tmp_path, background=False)
    store.ingest()
    for view, columns in schema.DOCUMENTED.items():
        assert store.sql(f"DESCRIBE {view}")["column_name"].tolist() == list(columns)
    views = store.sql(
        "SELECT view_name FROM duckdb_views() WHERE database_name = 'store' AND schema_name = 'main'"
    )
    assert set(schema.DOCUMENTED) <= set(views["view_name"])


def test_an_empty_store_answers(tmp_path: Path) -> None:
    """SQL works before anything is recorded."""
    assert LocalStore(tmp_path, background=False).sql("FROM runs").empty
