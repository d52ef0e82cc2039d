"""The journal file: what is acknowledged stays, what is torn is cut, what is damaged is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbflow.core.errors import (
    CannotStore,
    CorruptRecord,
    DuplicateRecord,
    NbflowError,
    NotAStore,
    RunFinished,
    StoreTooNew,
    UnknownRun,
    Untrusted,
)
from nbflow.core.history import History
from nbflow.core.model import Message, MessageTaken, RunChanged, RunOpened, RunTagged
from nbflow.store import disk
from nbflow.store.folder import START, RunFolder, list_folders, sweep_folders
from nbflow.store.framing import HEADER
from nbflow.values.trust import mac
from tests.store.journal_kit import KEY, RUN, attached, new_run, numbers, owner, quick_root, started


@pytest.fixture
def quick() -> Iterator[Path]:
    """Give a folder whose syncs cost nothing."""
    root = quick_root()
    yield root
    shutil.rmtree(root)


def copied(folder: RunFolder, target: Path) -> RunFolder:
    """Return a copy of the run's folder, as a crash would leave it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder.path, target / folder.run)
    return RunFolder(target / folder.run, KEY)


def test_a_run_reads_back_what_was_appended(tmp_path):
    """Entries come back in order, dense, with the records that were appended."""
    folder, log = attached(tmp_path)
    first = log.append(started(1), started(2))
    second = log.append(started(3), durability="written")
    third = log.append(started(4), durability="buffered")
    log.flush()
    assert (first, second, third) == (3, 5, 6)
    entries = folder.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert numbers(entries) == [1, 2, 3, 4]
    assert entries[:2] == list(log.history)
    log.release()


def test_an_attach_continues_the_seq_over_generations(tmp_path):
    """Each attach is a generation of its own, whose history holds everything before it."""
    folder = new_run(tmp_path)
    for generation in range(1, 5):
        log = folder.attach(owner(), versions={"nbflow": "1"})
        assert (log.generation, log.attempt) == (generation, generation)
        log.append(started(generation))
        log.release()
    assert numbers(folder.entries()) == [1, 2, 3, 4]
    assert [entry.seq for entry in folder.entries()] == list(range(1, 10))
    history = History.of(folder.entries())
    assert (history.attached.attempt, history.attached.generation) == (4, 4)


def test_tailing_in_steps_gives_the_same_as_reading_at_once(tmp_path):
    """An incremental reader meets every entry once, over generations, and nothing when nothing is new."""
    folder = new_run(tmp_path)
    position, seen = START, []
    for generation in range(3):
        log = folder.attach(owner())
        for number in range(3):
            log.append(started(10 * generation + number))
            frames, position = folder.tail(position)
            seen += [frame.entry for frame in frames]
        log.release()
    assert folder.tail(position) == ([], position)
    assert seen == folder.entries()


def test_a_frame_keeps_the_very_bytes_that_were_signed(tmp_path):
    """Body and MAC of a tailed frame verify by the run's id, so the database can check its rows."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    for frame in folder.tail()[0]:
        assert mac(KEY, RUN.encode(), frame.body) == frame.mac
    log.release()


def test_a_journal_cut_at_every_byte_of_its_last_append_gives_the_prefix(quick):
    """A torn append is left out whole, though it has several records; the run attaches and goes on."""
    folder, log = attached(quick / "a")
    log.append(started(1))
    journal = folder.path / "journal.1"
    keep = journal.stat().st_size
    log.append(started(2, size=3), started(3, size=3))
    whole = journal.read_bytes()
    log.release()
    for size in range(keep, len(whole)):
        crashed = copied(folder, quick / "b")
        (crashed.path / "journal.1").write_bytes(whole[:size])
        assert numbers(crashed.entries()) == [1]
        if size % 40 == 0:
            again = crashed.attach(owner())
            assert again.append(started(9)) == 5
            again.release()
            assert numbers(crashed.entries()) == [1, 9]


@pytest.mark.parametrize("zeros", [1, 31, 32, 33, 4096, 100_000])
def test_a_zero_filled_tail_is_cut(tmp_path, zeros):
    """What a power cut leaves behind the last record (a size without bytes) is no record and no error."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    log.release()
    with (folder.path / "journal.1").open("ab") as file:
        file.write(bytes(zeros))
    assert numbers(folder.entries()) == [1]
    log = folder.attach(owner())
    log.append(started(2))
    log.release()
    assert numbers(folder.entries()) == [1, 2]


def test_any_flipped_byte_gives_a_prefix_or_a_refusal_never_wrong_data(quick):
    """Every byte of every file that counts is flipped in turn: entries are a prefix of the true ones, or it raises."""
    folder, log = attached(quick / "a")
    for number in range(3):
        log.append(started(number, size=2))
    log.append(started(3, size=2), started(4, size=2))
    log.release()
    log = folder.attach(owner())
    log.append(started(5, size=2))
    log.release()
    truth = folder.entries()
    outcomes = {"prefix": 0, "refused": 0, "untouched": 0}
    for name in ("journal.0", "journal.1", "journal.2", "generation"):
        path = folder.path / name
        good = path.read_bytes()
        for place in range(len(good)):
            bad = bytearray(good)
            bad[place] ^= 0x5A
            path.write_bytes(bad)
            try:
                entries = RunFolder(folder.path, KEY).entries()
            except NbflowError as error:
                assert error.run == RUN
                outcomes["refused"] += 1
            else:
                assert entries == truth[: len(entries)]
                outcomes["untouched" if entries == truth else "prefix"] += 1
        path.write_bytes(good)
    # A refusal is the rule; a silent prefix is left only where the damage looks like a torn tail.
    assert outcomes["refused"] > 3 * outcomes["prefix"]
    assert folder.entries() == truth


def test_damage_in_the_middle_names_run_and_seq_and_the_way_out(tmp_path):
    """A record that had been on disk and fails its check is `CorruptRecord`, not a torn tail."""
    folder, log = attached(tmp_path)
    for number in range(3):
        log.append(started(number))
    log.release()
    journal = folder.path / "journal.1"
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"step-1")] ^= 1
    journal.write_bytes(raw)
    with pytest.raises(CorruptRecord, match="nbflow doctor") as caught:
        folder.entries()
    assert (caught.value.run, caught.value.seq) == (RUN, 4)
    with pytest.raises(CorruptRecord):
        folder.attach(owner())
    assert folder.owner()[1] is False


@pytest.mark.parametrize("ask", ["entries", "tail", "attach", "send"])
def test_a_page_that_was_read_before_it_was_written_is_no_damage(tmp_path, monkeypatch, ask):
    """A look at a journal while it is written may miss a record and see a later one: it is looked at again."""
    folder, log = attached(tmp_path)
    position = folder.tail()[1]
    for number in range(3):
        log.append(started(number))
    if ask in ("attach", "send"):
        log.release()
    real, looks = disk.pread, []

    def torn(fd, size, offset):
        data = real(fd, size, offset)
        if b"step-1" not in data:
            return data
        looks.append(data)
        if len(looks) > 1:
            return data
        start = data.rindex(b"\xf5nf", 0, data.index(b"step-1"))
        return data[:start] + bytes(150) + data[start + 150 :]

    monkeypatch.setattr(disk, "pread", torn)
    if ask == "entries":
        assert numbers(folder.entries()) == [0, 1, 2]
    elif ask == "tail":
        assert numbers([frame.entry for frame in folder.tail(position)[0]]) == [0, 1, 2]
    elif ask == "attach":
        assert numbers(list(folder.attach(owner()).history)) == [0, 1, 2]
    else:
        folder.send(Message(id="m", topic="signal", sent_at=1.0))
    assert len(looks) > 1


def test_a_lost_tail_of_an_earlier_generation_is_damage(tmp_path):
    """What a later generation continued from cannot vanish silently: seqs are dense."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    log.release()
    folder.attach(owner()).release()
    journal = folder.path / "journal.1"
    journal.write_bytes(journal.read_bytes()[:-5])
    with pytest.raises(CorruptRecord) as caught:
        folder.entries()
    assert caught.value.seq == 3


@pytest.mark.parametrize("name", ["journal.0", "journal.1"])
def test_a_missing_journal_is_damage(tmp_path, name):
    """A generation that is gone is noticed by its seqs."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    log.release()
    folder.attach(owner()).release()
    (folder.path / name).unlink()
    with pytest.raises(CorruptRecord):
        folder.entries()


def test_a_record_cannot_be_moved_to_another_run(tmp_path):
    """Frames are signed for their run: one copied into another run's journal is not read."""
    folder, log = attached(tmp_path / "a")
    log.append(started(1))
    log.release()
    other = RunFolder(tmp_path / "a" / "other", KEY)
    other.create(RunOpened(run="other", workflow="w"))
    mine = other.attach(owner())
    mine.release()
    stolen = (folder.path / "journal.1").read_bytes()[
        (folder.path / "journal.1").read_bytes().rindex(b"\xf5nf") :
    ]
    with (other.path / "journal.1").open("ab") as file:
        file.write(stolen)
    assert numbers(other.entries()) == []


def test_another_users_journal_is_untrusted_not_corrupt(tmp_path):
    """The key's name is in the header, so a foreign store says so and names the run."""
    folder = new_run(tmp_path)
    with pytest.raises(Untrusted, match="another key") as caught:
        RunFolder(folder.path, b"another key of 32 bytes, indeed!").entries()
    assert caught.value.run == RUN


def test_foreign_and_later_files_are_refused_by_name(tmp_path):
    """A file that is no journal, and one of a later format, are told apart from damage."""
    folder = new_run(tmp_path)
    journal = folder.path / "journal.0"
    good = journal.read_bytes()
    journal.write_bytes(b"PAR1" + bytes(HEADER.size))
    with pytest.raises(NotAStore):
        folder.entries()
    journal.write_bytes(good[:6] + b"\x63\x00" + good[8:])
    with pytest.raises(StoreTooNew):
        folder.entries()


def test_a_signed_record_of_an_unknown_kind_asks_for_an_upgrade(tmp_path):
    """A later nbflow's record is no damage."""
    import msgspec

    from nbflow.store.framing import pack_frames, sealer

    folder = new_run(tmp_path)
    body = msgspec.msgpack.encode([2, 0.0, {"kind": "step.teleported"}])
    with (folder.path / "journal.0").open("ab") as file:
        file.write(pack_frames([body], 0, sealer(KEY, RUN)))
    with pytest.raises(StoreTooNew) as caught:
        folder.entries()
    assert (caught.value.run, caught.value.seq) == (RUN, 2)


def test_a_run_is_created_once(tmp_path):
    """A second creation is refused with run and seq, and changes nothing."""
    folder = new_run(tmp_path)
    with pytest.raises(DuplicateRecord) as caught:
        folder.create(RunOpened(run=RUN, workflow="another"))
    assert (caught.value.run, caught.value.seq) == (RUN, 1)
    assert folder.entries()[0].record.workflow == "demo"
    assert [path.name for path in tmp_path.iterdir()] == [RUN]


def test_a_finished_run_is_not_attached_and_keeps_its_generation(tmp_path):
    """Completed is final, and refusing it takes nothing from anybody."""
    folder, log = attached(tmp_path)
    log.append(RunChanged(state="completed"))
    log.release()
    with pytest.raises(RunFinished):
        folder.attach(owner())
    assert (folder.path / "generation").read_bytes()[0] == 1


def test_an_unknown_run_is_unknown_and_is_not_created_by_asking(tmp_path):
    """Reading, attaching, sending to and removing a run that is not there leave no trace."""
    folder = RunFolder(tmp_path / "nowhere", KEY)
    for ask in (folder.entries, folder.owner, folder.remove, lambda: folder.attach(owner())):
        with pytest.raises(UnknownRun):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_removing_is_whole_and_leftovers_are_swept(tmp_path):
    """A removed run is gone for every reader; what a killed remover left is swept."""
    folder = new_run(tmp_path)
    other = new_run(tmp_path, "zz")
    assert [path.name for path in list_folders(tmp_path)] == [RUN, "zz"]
    folder.remove()
    assert [path.name for path in list_folders(tmp_path)] == ["zz"]
    other.path.rename(tmp_path / ".trash-zz")
    assert list(list_folders(tmp_path)) == []
    assert sweep_folders(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_encoded_is_refused_and_costs_no_seq(tmp_path):
    """An append is all or none: nothing of it counts, and the next one takes its seq."""
    folder, log = attached(tmp_path)
    with pytest.raises(CannotStore):
        log.append(started(1), RunTagged(tags={"x": object()}))
    with pytest.raises(CannotStore):
        log.append(MessageTaken(message="m", topic="t", sent_at=0.0, payload={"n": 2**70}))
    assert log.append(started(2)) == 3
    assert numbers(folder.entries()) == [2]
    log.release()
