"""Appending: many at once share a sync, a refusing disk costs nothing acknowledged, an interrupt leaves no gap."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import threading
import time

import pytest

from nbflow.core import crashpoints
from nbflow.core.errors import StoreError, StoreFull, StoreReadOnly
from nbflow.core.model import RunTagged
from nbflow.store import disk, flusher
from nbflow.store.folder import RunFolder
from tests.store.journal_kit import KEY, attached, child, new_run, numbers, owner, started, wait_for


class Faults:
    """A disk that refuses at a point while it is switched on, and counts how often points are passed."""

    def __init__(self, name: str, number: int = errno.ENOSPC) -> None:
        self.name, self.number, self.on = name, number, True
        self.passed: dict[str, int] = {}

    def __call__(self, name: str) -> None:
        self.passed[name] = self.passed.get(name, 0) + 1
        if self.on and name == self.name:
            raise OSError(self.number, os.strerror(self.number))


def test_concurrent_threads_share_syncs_and_lose_nothing(tmp_path):
    """Sixteen threads append 25 records each: all there once, dense, in fewer syncs than appends."""
    folder, log = attached(tmp_path)
    firsts: list[int] = []

    def work(number: int) -> None:
        firsts.extend(log.append(started(number * 100 + turn)) for turn in range(25))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    with crashpoints.hooked(counter := Faults("")):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(firsts) == list(range(3, 403))
    entries = folder.entries()
    assert sorted(numbers(entries)) == sorted(n * 100 + t for n in range(16) for t in range(25))
    for number in range(16):
        assert [n % 100 for n in numbers(entries) if n // 100 == number] == list(range(25))
    assert counter.passed["journal.sync.after"] < 300
    log.release()


async def test_many_tasks_share_one_sync_and_the_loop_stays_free(tmp_path):
    """A thousand asyncio tasks are acknowledged by a handful of syncs while another task keeps ticking."""
    folder, log = attached(tmp_path)
    ticks = 0
    slow = disk._sync_data

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    with crashpoints.hooked(counter := Faults("")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_sync_data", lambda fd: (time.sleep(0.05), slow(fd)))
        firsts = await asyncio.gather(*[log.append_async(started(n)) for n in range(1000)])
        cancelled = asyncio.ensure_future(log.append_async(started(1000)))
        await asyncio.sleep(0)
        cancelled.cancel()
        await log.append_async(started(1001))
    ticking.cancel()
    assert firsts == list(range(3, 1003))
    assert counter.passed["journal.sync.after"] <= 6
    assert ticks >= 20
    assert numbers(folder.entries()) == list(range(1002))
    log.release()


def test_threads_and_tasks_and_buffers_mix(tmp_path):
    """All ways to append at once, from threads and event loops, keep one dense order."""
    folder, log = attached(tmp_path)

    def thread(base: int) -> None:
        for turn in range(40):
            log.append(started(base + turn), durability=("synced", "written", "buffered")[turn % 3])

    def loop(base: int) -> None:
        async def run() -> None:
            await asyncio.gather(*[log.append_async(started(base + turn)) for turn in range(40)])

        asyncio.run(run())

    threads = [threading.Thread(target=(thread, loop)[n % 2], args=(n * 100,)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    log.flush()
    entries = folder.entries()
    assert [entry.seq for entry in entries] == list(range(1, 323))
    assert sorted(numbers(entries)) == sorted(n * 100 + t for n in range(8) for t in range(40))
    log.release()


def test_buffered_records_reach_the_disk_by_themselves(tmp_path):
    """Nobody needs to flush: the flusher does within milliseconds."""
    folder, log = attached(tmp_path)
    for number in range(100):
        log.append(started(number), durability="buffered")
    wait_for(lambda: len(folder.entries()) == 102)
    log.append(started(100), durability="buffered")
    assert log.append(started(101)) == 104
    assert numbers(folder.entries()) == list(range(102)), (
        "a synced append takes what is buffered before it along"
    )
    log.release()


def test_an_exit_without_release_loses_no_buffered_record(tmp_path):
    """The end of the process is no crash: what was buffered is written on the way out."""
    folder = new_run(tmp_path)
    code = """
    log = folder.attach(owner())
    for number in range(50):
        log.append(started(number), durability="buffered")
    """
    assert child(folder.path, code).wait() == 0
    assert numbers(folder.entries()) == list(range(50))


def test_a_written_record_survives_sigkill(tmp_path):
    """Handed to the operating system is enough for the death of the process."""
    folder = new_run(tmp_path)
    code = """
    log = folder.attach(owner())
    log.append(started(1), durability="written")
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert child(folder.path, code).wait() == -signal.SIGKILL
    assert numbers(folder.entries()) == [1]


@pytest.mark.parametrize("durability", ["synced", "written"])
@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StoreFull), (errno.EROFS, StoreReadOnly), (errno.EIO, StoreError)]
)
def test_a_refused_write_keeps_nothing_and_gives_the_seq_back(tmp_path, durability, number, error):
    """The error is typed and names the run; with room again the next append takes the same seq."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    with crashpoints.hooked(Faults("journal.write.before", number)):
        for _ in range(3):
            with pytest.raises(error) as caught:
                log.append(started(2), started(3), durability=durability)
            assert caught.value.run == folder.run
    assert log.append(started(4), durability=durability) == 4
    assert numbers(folder.entries()) == [1, 4]
    log.release()


def test_a_torn_write_is_cut_off_and_no_part_of_it_ever_counts(tmp_path):
    """The bytes that reached the file before the disk was full go away again, under everybody's eyes."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    journal = folder.path / "journal.1"
    end = folder.tail()[1].offset
    real = disk._pwrite

    def torn(fd, data, offset):
        if len(data) > 150:
            return real(fd, data[:150], offset)
        assert numbers(RunFolder(folder.path, KEY).entries()) == [1], "a reader saw half an append"
        raise OSError(errno.ENOSPC, "full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_pwrite", torn)
        with pytest.raises(StoreFull):
            log.append(started(2, size=3), started(3, size=3), durability="written")
    assert journal.stat().st_size == end
    assert log.append(started(4)) == 4
    assert numbers(folder.entries()) == [1, 4]
    log.release()


def test_buffered_records_wait_for_room_in_order(tmp_path):
    """They were accepted, so they keep their seqs; later callers learn of the full disk until there is room."""
    folder, log = attached(tmp_path)
    faults = Faults("journal.write.before")
    with crashpoints.hooked(faults):
        assert log.append(started(1), durability="buffered") == 3
        wait_for(lambda: faults.passed.get("journal.write.before", 0) > 0)
        for durability in ("buffered", "written", "synced"):
            with pytest.raises(StoreFull):
                log.append(started(2), durability=durability)
        with pytest.raises(StoreFull):
            log.flush()
        faults.on = False
        assert log.append(started(3)) == 4
    assert numbers(folder.entries()) == [1, 3]
    log.release()


def test_a_refused_append_among_acknowledged_ones_is_taken_back_alone(tmp_path, monkeypatch):
    """While another thread syncs, a waiting append is refused; one buffered behind it keeps its seq; nothing is lost."""
    monkeypatch.setattr(flusher, "GATHER", 30.0)  # the flusher stays out of it
    folder, log = attached(tmp_path)
    syncing, go_on = threading.Event(), threading.Event()
    faults = Faults("journal.write.before")
    faults.on = False
    outcomes: dict[int, object] = {}

    def hold(name: str) -> None:
        if name == "journal.sync.before" and not syncing.is_set():
            syncing.set()
            assert go_on.wait(10)

    def append(number: int) -> None:
        try:
            outcomes[number] = log.append(started(number))
        except StoreFull as error:
            outcomes[number] = error

    with crashpoints.hooked(hold), crashpoints.hooked(faults):
        first = threading.Thread(target=append, args=(1,))
        first.start()
        assert syncing.wait(10)
        faults.on = True
        second = threading.Thread(target=append, args=(2,))
        second.start()
        wait_for(lambda: log.seq == 4)
        assert log.append(started(3), durability="buffered") == 5
        last = threading.Thread(target=append, args=(4,))
        last.start()
        wait_for(lambda: log.seq == 6)
        go_on.set()
        for thread in (first, second, last):
            thread.join(10)
            assert not thread.is_alive()
        assert outcomes[1] == 3
        assert isinstance(outcomes[2], StoreFull)
        assert isinstance(outcomes[4], StoreFull)
        faults.on = False
        assert log.append(started(5)) == 6
    entries = folder.entries()
    assert numbers(entries) == [1, 3, 5]
    assert [(entry.seq, entry.record) for entry in entries if entry.seq == 4] == [(4, RunTagged(tags={}))]
    log.release()


def test_a_disk_that_is_full_now_and_then_loses_and_doubles_nothing(tmp_path):
    """Eight threads, a disk that refuses every seventh write: exactly what was acknowledged is in the journal."""
    folder, log = attached(tmp_path)
    passed = itertools.count(1)
    acknowledged: list[int] = []
    refused: list[int] = []

    def sometimes(name: str) -> None:
        if name == "journal.write.before" and next(passed) % 7 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(base: int) -> None:
        for turn in range(60):
            try:
                log.append(
                    started(base + turn), durability=("synced", "synced", "written", "buffered")[turn % 4]
                )
                acknowledged.append(base + turn)
            except StoreFull:
                refused.append(base + turn)

    threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(8)]
    with crashpoints.hooked(sometimes):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    log.flush()
    assert refused
    assert sorted(numbers(folder.entries())) == sorted(acknowledged)
    log.release()


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """A real refusal by the operating system, in the middle of a real write."""
    folder = new_run(tmp_path)
    code = """
    import resource
    log = folder.attach(owner())
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    done = 0
    try:
        while True:
            log.append(started(done), started(done, size=77))
            done += 1
    except StoreFull as error:
        assert error.run == RUN
    try:
        log.put_leaves([leaf(b"x" * 100_000)])
    except StoreFull:
        say(done)
    assert not list(folder.path.glob("leaves.*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(started(1000))
    log.release()
    """
    process = child(folder.path, code)
    done = int(process.communicate()[0])
    assert process.returncode == 0
    assert numbers(folder.entries()) == [n for turn in range(done) for n in (turn, turn)] + [1000]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root"
)
def test_a_really_full_disk(tmp_path):
    """A tmpfs of 256 KiB: append until it is full, free some, go on; nothing acknowledged is lost."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("mount is not allowed here")
    try:
        folder, log = attached(place)
        ballast = place / "ballast"
        ballast.write_bytes(bytes(100_000))
        acknowledged = []
        with pytest.raises(StoreFull):
            while True:
                log.append(started(len(acknowledged), size=997))
                acknowledged.append(len(acknowledged))
        assert numbers(folder.entries()) == acknowledged
        ballast.unlink()
        log.append(started(5000))
        log.release()
        assert numbers(folder.entries()) == [*acknowledged, 5000]
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_failed_sync_stops_the_writer_until_the_next_attach(tmp_path):
    """After fdatasync failed nobody knows what is on disk: every later append is refused with the way out."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    faults = Faults("journal.sync.before", errno.EIO)
    with crashpoints.hooked(faults), pytest.raises(StoreError, match="restart the kernel"):
        log.append(started(2))
    for durability in ("synced", "written", "buffered"):
        with pytest.raises(StoreError, match="restart the kernel"):
            log.append(started(3), durability=durability)
    with pytest.raises(StoreError):
        log.flush()
    log.release()
    again = folder.attach(owner())
    assert numbers(list(again.history)) in ([1], [1, 2])
    again.append(started(4))
    again.release()
    assert numbers(folder.entries())[-1] == 4


def test_a_failed_sync_reaches_everybody_who_waits_for_it(tmp_path):
    """Threads and tasks that share the failing sync all learn of it, and nobody hangs."""
    _folder, log = attached(tmp_path)
    outcomes: list[str] = []

    def thread() -> None:
        try:
            log.append(started(1))
            outcomes.append("ok")
        except StoreError:
            outcomes.append("refused")

    def loop() -> None:
        async def run() -> None:
            done = await asyncio.gather(
                *[log.append_async(started(n)) for n in range(3)], return_exceptions=True
            )
            outcomes.extend("refused" if isinstance(each, StoreError) else "ok" for each in done)

        try:
            asyncio.run(run())
        except StoreError:
            outcomes.extend(["refused"] * 3)

    threads = [threading.Thread(target=target) for target in (thread, loop, thread, loop, thread)]
    with crashpoints.hooked(Faults("journal.sync.before", errno.EIO)):
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
            assert not each.is_alive()
    assert outcomes == ["refused"] * 9
    log.release()


@pytest.mark.parametrize(
    "point", ["journal.write.before", "journal.write.after", "journal.sync.before", "journal.sync.after"]
)
def test_an_interrupt_at_any_point_leaves_the_writer_whole(tmp_path, point):
    """Ctrl-C while appending: the record is there whole or not at all, and the next append goes on, dense."""
    folder, log = attached(tmp_path)
    log.append(started(1), durability="buffered")

    def interrupt(name: str) -> None:
        if name == point and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    with crashpoints.hooked(interrupt), pytest.raises(KeyboardInterrupt):
        log.append(started(2), started(3))
    done = threading.Event()

    def others() -> None:
        log.append(started(4))
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    assert done.wait(10), "the others wait for a leader who is gone"
    thread.join()
    assert numbers(folder.entries()) in ([1, 4], [1, 2, 3, 4])
    assert [entry.seq for entry in folder.entries()] == list(range(1, len(folder.entries()) + 1))
    log.release()


def test_real_interrupts_in_a_storm_lose_nothing_acknowledged(tmp_path):
    """SIGINT every few milliseconds while main and worker threads append: dense, acknowledged ones all there."""
    folder = new_run(tmp_path)
    code = """
    import threading
    log = folder.attach(owner())
    acknowledged = []
    def work(base):
        for turn in range(150):
            log.append(started(base + turn))
            acknowledged.append(base + turn)
    threads = [threading.Thread(target=work, args=(base,)) for base in (1_000_000, 2_000_000)]
    for thread in threads:
        thread.start()
    inside = False
    def interrupt(number, frame):
        global inside
        if inside:
            inside = False
            raise KeyboardInterrupt
    signal.signal(signal.SIGINT, interrupt)
    def storm():
        while interrupts < 60:
            time.sleep(0.0013)
            os.kill(os.getpid(), signal.SIGINT)
    turn = interrupts = 0
    threading.Thread(target=storm).start()
    while interrupts < 60:
        try:
            inside = True
            turn += 1
            log.append(started(turn), durability=("synced", "written", "buffered")[turn % 3])
            acknowledged.append(turn)
            inside = False
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    log.release()
    say(" ".join(map(str, acknowledged)))
    """
    process = child(folder.path, code)
    acknowledged = [int(word) for word in process.communicate()[0].split()]
    assert process.returncode == 0
    found = numbers(folder.entries())
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
