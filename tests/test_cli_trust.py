"""`nbflow trust`: another user's store is refused until it is signed, and signing never hides damage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nbflow
from nbflow.cli.app import app
from nbflow.core.errors import CorruptRecord, LeaseHeld
from nbflow.store.resign import sign_store


@nbflow.durable(version="1")
def double(number: int) -> dict[str, int]:
    return {"number": number * 2}


@dataclass(frozen=True)
class Foreign:
    """A store that another user recorded, and the ids of its runs."""

    place: Path
    done: str
    open: str

    @property
    def journal(self) -> Path:
        """The journal of the unfinished run's owner."""
        return self.place / "runs" / self.open / "journal.1"


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    """A store with a finished and an unfinished run that another user recorded; now it is in our hands."""
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(tmp_path / "theirs"))
    with nbflow.run("done") as done:
        double(1)
    with pytest.raises(RuntimeError), nbflow.run("open") as stopped:
        double(2)
        raise RuntimeError("stop here")
    nbflow.runs()  # so that the database holds it too
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(tmp_path / "mine"))
    return Foreign(tmp_path / ".nbflow", done.id, stopped.id)


def run(*arguments: str, input: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), input=input)
    return result.exit_code, result.output


def test_a_foreign_store_is_refused_until_it_is_signed(foreign: Foreign) -> None:
    """Reading another's outputs exits with 7; after `nbflow trust` they are there."""
    for name in (foreign.done, foreign.open):
        assert run("show", name)[0] == 7
    code, out = run("trust", str(foreign.place), "--json", "--yes")
    assert code == 0
    assert json.loads(out)["signed"] > 6
    for name, value in ((foreign.done, 2), (foreign.open, 4)):
        assert nbflow.output(name, "double") == {"return": {"number": value}}


def test_a_signed_run_can_be_carried_on(foreign: Foreign) -> None:
    """What the other user had recorded is replayed, and the rest is added."""
    sign_store(foreign.place)
    with nbflow.run("open") as again:
        assert double(2) == {"number": 4}
        assert double(3) == {"number": 6}
    assert again.id == foreign.open
    assert list(nbflow.steps(foreign.open).attempt) == [1, 1]
    assert json.loads(run("doctor", "--json")[1])["healthy"] is True


def test_no_and_nobody_to_ask_both_leave_the_store_as_it_was(foreign: Foreign) -> None:
    """Trust is given on purpose only, and the question says what it means."""
    before = {path: path.read_bytes() for path in foreign.place.glob("runs/*/journal.*")}
    code, out = run("trust", str(foreign.place), input="n\n")
    assert code == 1
    assert "can run code that its writer chose" in out
    assert run("trust", str(foreign.place), input="")[0] == 2
    assert {path: path.read_bytes() for path in foreign.place.glob("runs/*/journal.*")} == before


def test_signing_twice_signs_nothing_more(foreign: Foreign) -> None:
    """One's own records are left alone."""
    assert sign_store(foreign.place) > 0
    assert sign_store(foreign.place) == 0


def test_damage_in_the_middle_is_refused_and_not_signed_away(foreign: Foreign) -> None:
    """Signing up to the damage would make the records behind it vanish like a torn tail."""
    journal = foreign.journal
    raw = bytearray(journal.read_bytes())
    second = raw.index(b"\xf5nf", raw.index(b"\xf5nf") + 1)
    raw[second] ^= 0xFF
    journal.write_bytes(raw)
    with pytest.raises(CorruptRecord):
        sign_store(foreign.place)
    assert journal.read_bytes() == raw


def test_damage_to_ones_own_records_stays_damage(tmp_path: Path) -> None:
    """`nbflow trust` on one's own store cannot be used to bless a forged record."""
    with pytest.raises(RuntimeError), nbflow.run("mine"):
        double(1)
        raise RuntimeError("stop here")
    (journal,) = (tmp_path / ".nbflow").glob("runs/*/journal.1")
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"double") + 1] ^= 0x20
    journal.write_bytes(raw)
    assert sign_store(tmp_path / ".nbflow") == 0
    assert journal.read_bytes() == raw


def test_a_run_that_is_being_written_is_not_touched(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner signs with another key and would be cut off in the middle."""
    mine = str(foreign.place.parent / "mine")
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(foreign.place.parent / "theirs"))
    with nbflow.run("live"):
        double(5)
        monkeypatch.setenv("NBFLOW_DATA_DIR", mine)
        with pytest.raises(LeaseHeld):
            sign_store(foreign.place)
        monkeypatch.setenv("NBFLOW_DATA_DIR", str(foreign.place.parent / "theirs"))
