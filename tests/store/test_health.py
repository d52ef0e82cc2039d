"""Health promises: doctor names every kind of damage, mends what can be mended, and loses nothing more."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from nbflow.core import errors
from nbflow.core.model import StepStarted
from nbflow.store.local import LocalStore
from nbflow.store.protocol import Finding
from nbflow.store.resign import sign_store
from tests.store.conformance import attached, do_step, finish, me
from tests.store.store_kit import child


def bad(findings: list[Finding]) -> list[Finding]:
    """Return what is not in order."""
    return [finding for finding in findings if finding.level != "ok"]


def damage(root: Path, run: str) -> None:
    """Flip a byte in the middle of the run's newest journal."""
    journal = max((root / "runs" / run).glob("journal.*"))
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"step.completed") - 3] ^= 0xFF
    journal.write_bytes(raw)


def test_a_store_in_order_has_nothing_to_tell(tmp_path: Path) -> None:
    """All findings are ok, and repairing changes nothing."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a", leaves=[os.urandom(20_000)])
    store.compact()
    assert bad(store.check()) == []
    assert bad(store.check(repair=True)) == []
    assert len(store.entries(log.run)) == 4


@pytest.mark.parametrize("copied", [False, True])
def test_a_damaged_journal_is_mended_up_to_the_damage(tmp_path: Path, copied: bool) -> None:
    """Repair keeps every sound record, of the journal or the database, and the run can be resumed."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a")
    do_step(log, "b")
    before = store.entries(log.run)
    if copied:
        store.ingest()
    log.release()
    damage(tmp_path, log.run)
    store = LocalStore(tmp_path, background=False)
    [finding] = [finding for finding in bad(store.check()) if finding.level == "error"]
    assert finding.level == "error" and log.run in finding.subject and finding.repair
    assert bad(store.check(repair=True)) == []
    kept = 6 if copied else 3
    assert store.entries(log.run) == before[:kept]
    again = store.attach(log.run, me())
    execution = again.append(StepStarted("c", "c", "call", b"c" * 32))
    assert execution == kept + 2
    store.ingest()
    assert store.run(log.run).state == "running"
    assert store.sql("SELECT count(*) AS c FROM events")["c"][0] == kept + 2
    assert bad(store.check()) == []
    assert list((tmp_path / "runs" / log.run).glob("damaged-*/journal.*"))


def test_a_lost_generation_file_is_mended(tmp_path: Path) -> None:
    """The number is written again from the journals."""
    store = LocalStore(tmp_path, background=False)
    log = attached(store)
    do_step(log, "a")
    log.release()
    (tmp_path / "runs" / log.run / "generation").unlink()
    assert any(finding.level == "error" for finding in store.check())
    store.check(repair=True)
    assert len(store.entries(log.run)) == 4
    assert store.attach(log.run, me()).generation == 2


def test_an_altered_row_and_a_missing_one_are_found(tmp_path: Path) -> None:
    """Every row is checked; each damaged run is named once."""
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
    found = {finding.subject: finding.message for finding in bad(store.check())}
    assert set(found) == {f"run {logs[0].run}", f"run {logs[1].run}"}
    assert "Record 4" in found[f"run {logs[0].run}"] and "Record 2" in found[f"run {logs[1].run}"]


def test_leftovers_of_kills_are_found_and_swept(tmp_path: Path) -> None:
    """Half-made folders and unfinished tables go with repair."""
    process = child(
        tmp_path,
        """
        log = attached(store)
        do_step(log, "a", leaves=[b"x" * 300_000])
        log.release()
        store.compact()
        """,
        NBFLOW_CRASH="compact.after-segment:1",
    )
    assert process.wait() != 0
    (tmp_path / "runs" / ".trash-old").mkdir()
    store = LocalStore(tmp_path, background=False)
    assert {finding.subject for finding in bad(store.check())} == {"leftovers", "database"}
    assert bad(store.check(repair=True)) == []
    assert bad(store.check()) == []


def test_another_users_store_is_not_loaded_until_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journals and rows of another key are `Untrusted`; signing makes them this user's."""
    with monkeypatch.context() as other:
        other.setenv("NBFLOW_DATA_DIR", str(tmp_path / "other"))
        store = LocalStore(tmp_path / "store", background=False)
        done, open_ = attached(store, "done"), attached(store, "open")
        for log in (done, open_):
            do_step(log, "a", leaves=[b"y" * 30_000])
        finish(done)
        open_.release()
        store.compact()
        before = {log.run: store.entries(log.run) for log in (done, open_)}
    mine = LocalStore(tmp_path / "store", background=False)
    for log in (done, open_):
        with pytest.raises(errors.Untrusted):
            mine.entries(log.run)
    assert len(mine.runs()) == 2
    assert {finding.level for finding in bad(mine.check())} == {"warning"}
    assert sign_store(tmp_path / "store") == 13
    assert sign_store(tmp_path / "store") == 0
    mine = LocalStore(tmp_path / "store", background=False)
    assert {run: mine.entries(run) for run in before} == before
    assert mine.ingest() >= 0 and bad(mine.check()) == []
    assert {info.workflow: info.state for info in mine.runs()} == {"done": "completed", "open": "running"}
    assert mine.attach(open_.run, me()).attempt == 2


def test_describe_tells_place_size_and_versions(tmp_path: Path) -> None:
    """The facts that a bug report needs."""
    store = LocalStore(tmp_path, background=False)
    do_step(attached(store), "a")
    store.ingest()
    facts = store.describe()
    assert facts["place"] == str(tmp_path) and facts["duckdb"] == duckdb.__version__
    assert facts["size"] >= facts["database"] > 0 and facts["unfinished"] == 1
