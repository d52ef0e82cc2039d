"""Compaction promises: native columns, each leaf once, and the very bytes back, whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from nbflow.core import errors
from nbflow.store.local import LocalStore
from tests.store.conformance import attached, finish
from tests.store.store_kit import child, record, restored

ROWS = 5000


def frame(seed: int = 0) -> pd.DataFrame:
    """Make a frame of many types whose columns are leaves."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.standard_normal(ROWS),
            "n": rng.integers(-9, 9, ROWS),
            "at": pd.date_range("2020", periods=ROWS, freq="s"),
            "word": rng.choice(["alpha", "beta", "Ünï"], ROWS),
            "flag": np.repeat(rng.random(ROWS // 5) > 0.5, 5),
        }
    )


def tables(root: Path) -> list[str]:
    """List the segment tables."""
    with duckdb.connect(str(root / "store.duckdb"), read_only=True) as connection:
        return [
            row[0]
            for row in connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'columns' ORDER BY ALL"
            ).fetchall()
        ]


def test_a_finished_run_gives_its_values_back_from_the_database(tmp_path: Path) -> None:
    """Folder gone, every value equal: frames, arrays, opaque bytes of any length."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    values = {
        "df": frame(),
        "array": np.arange(20_000.0).reshape(100, 200)[::2],
        "odd": np.array([0.0, -0.0, np.inf, -np.inf, np.nan] * 1000),
        "large": os.urandom(300_001),
        "short": os.urandom(20_000),
        "tiny": pd.DataFrame({"a": [1, None]}),
    }
    record(log, "make", **values)
    finish(log)
    assert store.compact() > 0
    assert list((tmp_path / "runs").iterdir()) == []
    back = restored(store, log.run, "make")
    assert_frame_equal(back["df"], values["df"])
    assert_frame_equal(back["tiny"], values["tiny"])
    for name in ("array", "odd"):
        assert back[name].tobytes() == values[name].tobytes()
    assert (back["large"], back["short"]) == (values["large"], values["short"])
    back["df"]["x"] += 1  # writable


def test_what_a_native_column_would_change_is_kept_as_it_is(tmp_path: Path) -> None:
    """NaN payloads, odd bools, dates beyond DuckDB's range: proven by digest, kept as bytes where they differ."""
    payload = np.array([0x7FF8_0000_0000_0001, 0xFFF0_0000_0000_0002], dtype="<u8").view("<f8")
    odd_bools = np.frombuffer(bytes([0, 1, 2, 255]) * 8000, dtype=bool)
    values = {
        "nan": np.tile(payload, 4000),
        "bools": odd_bools,
        "dates": np.array([np.iinfo("i8").min + 1, np.iinfo("i8").max] * 4000).view("M8[s]"),
        "clean": np.arange(8000.0),
    }
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "make", **values)
    finish(log)
    store.compact()
    back = restored(store, log.run, "make")
    for name, value in values.items():
        assert back[name].tobytes() == value.tobytes(), name


def test_what_is_stored_already_is_not_stored_again(tmp_path: Path) -> None:
    """The same frame in another run adds nothing; one more column adds one column."""
    store = LocalStore(tmp_path, background=False)
    one = attached(store)
    df = frame()[["x", "n", "at"]]
    record(one, "make", df=df)
    first = store.compact()
    before = tables(tmp_path)
    other = attached(store)
    record(other, "make", df=df)
    assert store.compact() == 0
    assert tables(tmp_path) == before
    record(other, "more", df=df.assign(extra=df["x"] * 2))
    assert store.compact() == 1
    assert first == 3 and len(tables(tmp_path)) == len(before) + 1
    assert_frame_equal(restored(store, other.run, "more")["df"], df.assign(extra=df["x"] * 2))


def test_columns_of_one_frame_share_a_table(tmp_path: Path) -> None:
    """New columns of the same length go into one segment table."""
    store = LocalStore(tmp_path, background=False)
    record(attached(store), "make", df=frame()[["x", "n", "at"]])
    store.compact()
    assert tables(tmp_path) == ["s1"]


@pytest.mark.parametrize(
    "point",
    [
        "compact.before-segment",
        "compact.after-segment",
        "compact.before-commit",
        "compact.after-commit",
        "frames.before-commit",
    ],
)
def test_a_kill_during_compaction_loses_nothing(tmp_path: Path, point: str) -> None:
    """SIGKILL anywhere in it; the next one makes the same store as an undisturbed one, without leftovers."""
    code = """
    import numpy as np, pandas as pd
    from tests.store.test_compact import frame
    log = attached(store)
    record(log, "make", df=frame(), raw=b"7" * 300_000)
    finish(log)
    store.ingest()
    store.compact()
    """
    process = child(tmp_path, code, NBFLOW_CRASH=f"{point}:1")
    assert process.wait() == -signal.SIGKILL
    store = LocalStore(tmp_path, background=False)
    [info] = store.runs()
    assert_frame_equal(restored(store, info.run, "make")["df"], frame())
    store.compact()
    assert list((tmp_path / "runs").iterdir()) == []
    back = restored(store, info.run, "make")
    assert_frame_equal(back["df"], frame())
    assert back["raw"] == b"7" * 300_000
    with duckdb.connect(str(tmp_path / "store.duckdb"), read_only=True) as connection:
        used = connection.execute(
            "SELECT 's' || segment FROM nbflow.leaf WHERE segment IS NOT NULL "
            "UNION SELECT 's' || segment FROM nbflow.frame WHERE segment IS NOT NULL"
        ).fetchall()
    assert sorted(row[0] for row in used) == tables(tmp_path)


def test_an_altered_column_is_refused(tmp_path: Path) -> None:
    """A restored leaf is proven by its digest; wrong data never comes back."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "make", x=np.arange(10_000.0))
    finish(log)
    store.compact()
    with duckdb.connect(str(tmp_path / "store.duckdb")) as connection:
        connection.execute("UPDATE columns.s1 SET c0 = 7 WHERE c0 = 8")
    with pytest.raises(errors.CorruptLeaf) as caught:
        restored(store, log.run, "make")
    assert caught.value.run == log.run


def test_a_damaged_raw_leaf_keeps_no_other_from_being_compacted(tmp_path: Path) -> None:
    """It stays where it is, is not taken for good, and its run's folder is not removed."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    record(log, "bad", x=os.urandom(5_000_000))
    record(log, "good", y=np.arange(10_000.0))
    finish(log)
    segment = min((tmp_path / "runs" / log.run).glob("leaves.*"), key=lambda path: -path.stat().st_size)
    raw = bytearray(segment.read_bytes())
    raw[1000] ^= 1
    segment.write_bytes(raw)
    assert store.compact() == 1
    assert (tmp_path / "runs" / log.run).exists()
    assert restored(store, log.run, "good")["y"][9] == 9.0
    with pytest.raises(errors.CorruptLeaf):
        restored(store, log.run, "bad")
    assert any(finding.level == "error" and "bad" in finding.subject for finding in store.check())


def test_stale_leaves_of_a_long_run_are_reclaimed_and_still_replay(tmp_path: Path) -> None:
    """Over the budget only current versions stay raw; an older one comes from the database."""
    store = LocalStore(tmp_path, background=False, leaf_budget=6_000_000)
    log = attached(store)
    arrays = [np.random.default_rng(seed).standard_normal(600_000) for seed in range(3)]
    for number, array in enumerate(arrays):
        record(log, "make", bytes([number]) * 32, x=array)
    store.compact()
    folder = tmp_path / "runs" / log.run
    assert sum(path.stat().st_size for path in folder.glob("leaves.*")) < 6_000_000
    checkpoints = [
        entry.record.checkpoint
        for entry in store.entries(log.run)
        if getattr(entry.record, "checkpoint", None)
    ]
    for array, checkpoint in zip(arrays, checkpoints, strict=True):
        assert checkpoint is not None
        assert bytes(log.leaf(checkpoint.leaves[0])) == array.tobytes()
    # What is put again is written again, so that the record never names what is not there.
    record(log, "again", x=arrays[0])
    assert restored(store, log.run, "again")["x"].tobytes() == arrays[0].tobytes()


def test_what_is_put_but_not_recorded_yet_is_never_reclaimed(tmp_path: Path) -> None:
    """Between `put_leaves` and the record nobody but the owner knows that a leaf is needed."""
    from nbflow.core.model import StepCompleted, StepStarted
    from nbflow.values.codec import encode

    store = LocalStore(tmp_path, background=False, leaf_budget=0)
    log = attached(store)
    array = np.arange(700_000.0)
    record(log, "make", x=array)
    record(log, "make", b"2" * 32, x=array + 1)
    store.compact()
    encoded = encode({"x": array})  # the stale one again
    refs = log.put_leaves(encoded.leaves)
    store.compact()
    execution = log.append(StepStarted("make", "make", "cell", b"3" * 32))
    log.append(StepCompleted(execution, "make", checkpoint=encoded.checkpoint(refs)))
    assert bytes(log.leaf(refs[0])) == array.tobytes()
    assert (tmp_path / "runs" / log.run / refs[0].segment).exists()
