"""Room ahead of the records: it makes syncs cheap, is never taken for records, and is given back."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from nbflow.core import crashpoints
from nbflow.core.model import RunOpened
from nbflow.store import disk
from nbflow.store.local import LocalStore
from tests.store.journal_kit import attached, child, new_run, numbers, owner, started
from tests.store.test_journal_writer import Faults


def test_room_is_allocated_ahead_and_given_back(tmp_path):
    """While it is open a journal has room to write into; a release, or the attach after a kill, leaves no zeros behind."""
    folder, log = attached(tmp_path)
    journal = folder.path / "journal.1"
    log.append(started(1))
    end = folder.tail()[1].offset
    assert journal.stat().st_size > end + 1000
    assert not journal.read_bytes()[end:].strip(b"\0")
    size = journal.stat().st_size
    for number in range(10):
        log.append(started(number))
    assert journal.stat().st_size == size, "each append let the file grow"
    log.append(started(2, size=200_000))
    assert journal.stat().st_size > 200_000
    log.release()
    assert journal.stat().st_size == folder.tail()[1].offset
    code = """
    log = folder.attach(owner())
    log.append(started(3))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert child(folder.path, code).wait() == -signal.SIGKILL
    end = folder.tail()[1].offset
    left = folder.path / "journal.2"
    assert left.stat().st_size > end
    folder.attach(owner()).release()
    assert left.stat().st_size == end
    assert numbers(folder.entries()) == [1, *range(10), 2, 3]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EDQUOT, errno.EIO])
def test_without_room_ahead_everything_goes_on(tmp_path, number):
    """A file system that refuses to allocate costs speed and nothing else."""
    folder, log = attached(tmp_path)
    with crashpoints.hooked(faults := Faults("journal.allocate.before", number)):
        for turn in range(5):
            assert log.append(started(turn)) == turn + 3
    assert faults.passed["journal.allocate.before"] == 1, "asked again for every append"
    log.release()
    assert numbers(folder.entries()) == [0, 1, 2, 3, 4]


def test_a_half_finished_allocation_is_no_record(tmp_path):
    """Where the disk fills up while it allocates, what it did allocate is zeros like any other room."""
    folder, log = attached(tmp_path)

    def half(fd, offset, size):
        os.posix_fallocate(fd, offset, size // 3)
        raise OSError(errno.ENOSPC, "full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_fallocate", half)
        log.append(started(1))
        log.append(started(2, size=30_000))
    assert numbers(folder.entries()) == [1, 2]
    log.release()
    assert (folder.path / "journal.1").stat().st_size == folder.tail()[1].offset


def test_a_stale_owner_that_closes_takes_nothing_of_what_counts(tmp_path):
    """Giving room back needs no lock: all that a takeover counted lies before the end the old owner knows."""
    folder, log = attached(tmp_path)
    for number in range(5):
        log.append(started(number), durability=("synced", "written")[number % 2])
    new = folder.attach(owner(), steal=True)
    log._writer._file.close(log._writer._offset)
    new.append(started(5))
    assert numbers(folder.entries()) == [0, 1, 2, 3, 4, 5]
    new.release()


def test_a_reader_tells_growth_within_one_tick_of_the_clock(tmp_path):
    """Neither the size nor the time of change of a journal need change with a record; its end does."""
    store = LocalStore(tmp_path / ".nbflow", background=False)
    store.create(RunOpened(run="0193a0b0-0000-7000-8000-000000000009", workflow="w"))
    log = store.attach("0193a0b0-0000-7000-8000-000000000009", owner())
    log.append(started(1))
    journal = store.live.root / log.run / "journal.1"
    assert store.ingest() == 3
    before = journal.stat()
    assert not store.pending()
    log.append(started(2))
    os.utime(journal, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert journal.stat().st_size == before.st_size
    assert len(store.pending()) == 1
    assert store.ingest() == 1
    log.release()
    store.close()


@pytest.mark.parametrize(
    "where",
    ["journal.allocate.before", "journal.allocate.after", "journal.trim.before", "journal.trim.after"],
)
def test_a_kill_while_room_is_made_or_given_back_costs_nothing(tmp_path, where):
    """Zeros come and go; records stay."""
    folder = new_run(tmp_path)
    code = """
    log = folder.attach(owner())
    log.append(started(1))
    log.append(started(2, size=100_000))
    log.release()
    """
    count = 2 if "allocate" in where else 1
    assert child(folder.path, code, env={"NBFLOW_CRASH": f"{where}:{count}"}).wait() == -signal.SIGKILL
    kept = [1] if "allocate" in where else [1, 2]
    assert numbers(folder.entries()) == kept
    code = "folder.attach(owner())"
    for again in ("attach.trim.before:1", "attach.trim.after:1"):
        assert child(folder.path, code, env={"NBFLOW_CRASH": again}).wait() == -signal.SIGKILL
        assert numbers(folder.entries()) == kept
    log = folder.attach(owner())
    log.append(started(3))
    log.release()
    assert numbers(folder.entries()) == [*kept, 3]
