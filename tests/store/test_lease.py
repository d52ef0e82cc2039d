"""One writer a run: a dead owner is replaced at once, a living one only on request, a stale one writes nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from nbflow.core.errors import LeaseHeld, LeaseLost, NotTheOwner, StoreBusy
from nbflow.core.model import Message, RunAttached
from nbflow.store.framing import pack_frames, sealer
from nbflow.store.lease import AttachLock, owner_of
from tests.store.journal_kit import (
    KEY,
    RUN,
    attached,
    child,
    leaf,
    new_run,
    numbers,
    owner,
    started,
    wait_for,
)

OWNER = """
import asyncio
async def in_task(record):
    return await asyncio.wait_for(log.append_async(record), 20)
log = folder.attach(owner())
log.append(started(1))
say("attached")
for line in sys.stdin:
    try:
        exec(line)
        say("done")
    except Exception as error:
        say(type(error).__name__)
"""


def ask(process, code: str) -> str:
    """Let the child run a line and return its one-word answer."""
    process.stdin.write(code + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def end(process) -> None:
    """Kill the child, if it still runs, and reap it."""
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_living_owner_is_named_in_the_refusal(tmp_path):
    """The second process learns host, pid, since when, and the way out; nothing changes for the first."""
    folder = new_run(tmp_path)
    process = child(folder.path, OWNER)
    try:
        assert process.stdout.readline().strip() == "attached"
        with pytest.raises(LeaseHeld, match="--steal") as caught:
            folder.attach(owner())
        assert caught.value.pid == process.pid
        assert caught.value.host == owner().host
        assert abs(caught.value.since - time.time()) < 60
        known, alive = folder.owner()
        assert (known.pid, alive) == (process.pid, True)
        assert ask(process, "log.append(started(2))") == "done"
    finally:
        end(process)


def test_a_killed_owner_is_replaced_at_once(tmp_path):
    """SIGKILL leaves no lease behind; what it had acknowledged is there."""
    folder = new_run(tmp_path)
    process = child(folder.path, OWNER)
    assert process.stdout.readline().strip() == "attached"
    end(process)
    known, alive = folder.owner()
    assert (known.pid, alive) == (process.pid, False)
    log = folder.attach(owner())
    assert log.attempt == 2
    assert numbers(list(log.history)) == [1]
    assert log.history[-1].record.stolen is False
    log.release()


@pytest.mark.parametrize(
    "stale",
    [
        "log.append(started(7))",
        'log.append(started(7), durability="written")',
        'log.append(started(7), durability="buffered"); log.flush()',
        "asyncio.run(in_task(started(7)))",
        'log.put_leaves([leaf(b"x" * 100)])',
        'log.put_leaves([leaf(b"x" * 5_000_000)])',
        "log.messages()",
        "log.reclaim(set())",
        "log.flush()",
    ],
)
def test_every_stale_write_of_a_stopped_owner_is_lease_lost_and_shows_nowhere(tmp_path, stale):
    """SIGSTOP, takeover with steal, SIGCONT: the old owner is refused whatever it does, for good."""
    folder = new_run(tmp_path)
    process = child(folder.path, OWNER)
    try:
        assert process.stdout.readline().strip() == "attached"
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(LeaseHeld):
            folder.attach(owner())
        log = folder.attach(owner(), steal=True)
        assert log.history[-1].record.stolen is True
        log.append(started(2))
        before = folder.entries()
        os.kill(process.pid, signal.SIGCONT)
        assert ask(process, stale) == "LeaseLost"
        assert ask(process, stale) == "LeaseLost"
        assert folder.entries() == before
        assert log.append(started(3)) == before[-1].seq + 1
        assert numbers(folder.entries()) == [1, 2, 3]
        log.release()
    finally:
        end(process)


def test_a_write_that_was_under_way_while_the_run_was_taken_over_does_not_count(tmp_path):
    """Stopped between its look at the generation and its write, the old owner still acknowledges nothing."""
    folder = new_run(tmp_path)
    code = """
    from nbflow.core import crashpoints
    log = folder.attach(owner())
    log.append(started(1))
    def stop(name):
        if name == "journal.write.before":
            say("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)
    with crashpoints.hooked(stop):
        try:
            log.append(started(2))
            say("acknowledged")
        except LeaseLost:
            say("lost")
    """
    process = child(folder.path, code)
    try:
        assert process.stdout.readline().strip() == "stopping"
        wait_for(lambda: b") T" in open(f"/proc/{process.pid}/stat", "rb").read())
        log = folder.attach(owner(), steal=True)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline().strip() == "lost"
        log.append(started(3))
        assert numbers(folder.entries()) == [1, 3]
        log.release()
        again = folder.attach(owner())
        assert numbers(list(again.history)) == [1, 3]
        again.release()
    finally:
        end(process)


def test_a_reader_never_sees_a_stale_write_while_an_attach_is_half_done(tmp_path):
    """With the generation raised and no journal for it yet, readers wait for the attach before they trust a tail."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    counted = folder.tail()[1].offset
    with AttachLock(folder.path, RUN):
        (folder.path / "generation").write_bytes((2).to_bytes(8, "little"))
        # The stale owner's write lands behind the measure.
        entry_bytes = b"".join([pack_frames([b"\x93\x04\xcb" + bytes(8) + b"\x80"], 0, sealer(KEY, RUN))])
        with (folder.path / "journal.1").open("r+b") as file:
            file.seek(counted)
            file.write(entry_bytes)
        process = child(folder.path, "say('reading')\nsay(len(folder.entries()))")
        assert process.stdout.readline().strip() == "reading"
        time.sleep(0.3)
        assert process.poll() is None, "the reader did not wait"
        with (folder.path / "journal.1").open("r+b") as file:
            file.truncate(counted)
    assert process.stdout.readline().strip() == "3"
    end(process)


def test_the_same_process_is_refused_a_second_lease(tmp_path):
    """Two sessions of one kernel are two owners as well."""
    folder, log = attached(tmp_path)
    with pytest.raises(LeaseHeld) as caught:
        folder.attach(owner())
    assert caught.value.pid == os.getpid()
    log.release()
    folder.attach(owner()).release()


def test_a_released_run_has_no_owner_and_its_log_writes_no_more(tmp_path):
    """Release gives everything back; twice is fine; every later call is `LeaseLost`."""
    folder, log = attached(tmp_path)
    log.append(started(1), durability="buffered")
    log.release()
    log.release()
    assert folder.owner() == (None, False)
    assert numbers(folder.entries()) == [1]
    for call in (
        lambda: log.append(started(2)),
        lambda: log.append(started(2), durability="buffered"),
        log.flush,
        log.messages,
        lambda: log.put_leaves([leaf(b"x")]),
    ):
        with pytest.raises(LeaseLost):
            call()
    assert numbers(folder.entries()) == [1]


def test_a_forked_child_is_not_the_owner_and_is_told_how(tmp_path):
    """A child inherits the descriptors and not the right; the parent goes on undisturbed."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = []
        for call in (
            lambda: log.append(started(2)),
            lambda: log.append(started(2), durability="buffered"),
            lambda: log.put_leaves([leaf(b"x")]),
            log.flush,
            log.release,
        ):
            try:
                call()
                words.append("allowed")
            except NotTheOwner as error:
                words.append("told" if "parent" in str(error) and "nbflow.run" in str(error) else "untold")
        os.write(write, " ".join(words).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"told told told told told"
    with pytest.raises(LeaseHeld):
        folder.attach(owner())
    log.append(started(3))
    assert numbers(folder.entries()) == [1, 3]
    log.release()


def test_a_forked_child_does_not_keep_the_lease_of_a_dead_parent(tmp_path):
    """A worker process that outlives a killed kernel does not stand in the way."""
    folder = new_run(tmp_path)
    code = """
    log = folder.attach(owner())
    if (pid := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    say(pid)
    time.sleep(60)
    """
    process = child(folder.path, code)
    worker = int(process.stdout.readline())
    try:
        end(process)
        os.kill(worker, 0)
        folder.attach(owner()).release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_does_not_keep_a_lease_that_was_released(tmp_path):
    """The child's copy of the descriptor is closed, so the parent's release frees the run."""
    folder, log = attached(tmp_path)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        time.sleep(0.05)
        log.release()
        wait_for(lambda: folder.owner()[1] is False)
        folder.attach(owner()).release()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)


def test_asking_for_the_owner_never_stands_in_the_way_of_an_attach(tmp_path):
    """A dashboard that looks at the lease all the time costs nobody the run."""
    folder = new_run(tmp_path)
    process = child(folder.path, "say('on')\nwhile True: folder.owner()")
    try:
        assert process.stdout.readline().strip() == "on"
        for _ in range(100):
            folder.attach(owner()).release()
    finally:
        end(process)


def test_a_stopped_process_in_the_mutex_is_an_error_not_a_hang(tmp_path, monkeypatch):
    """Attaching waits for a moment, then says what to look for."""
    folder = new_run(tmp_path)
    with AttachLock(folder.path, RUN):
        started_at = time.monotonic()
        with pytest.raises(StoreBusy, match="stopped"):
            AttachLock(folder.path, RUN, patience=0.2).__enter__()
        assert time.monotonic() - started_at >= 0.2
    monkeypatch.undo()


def test_many_processes_attach_one_after_the_other_and_never_together(tmp_path):
    """Six processes fight for one run; each attach is a generation, and no record is lost or doubled."""
    folder = new_run(tmp_path)
    code = """
    mine = int(sys.stdin.readline())
    done = 0
    while done < 10:
        try:
            log = folder.attach(owner())
        except LeaseHeld:
            time.sleep(0.001)
            continue
        log.append(started(mine * 100 + done))
        log.release()
        done += 1
    """
    processes = [child(folder.path, code) for _ in range(6)]
    for number, process in enumerate(processes):
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait(60) == 0
        end(process)
    entries = folder.entries()
    assert sorted(numbers(entries)) == sorted(p * 100 + n for p in range(6) for n in range(10))
    generations = [e.record.generation for e in entries if isinstance(e.record, RunAttached)]
    assert generations == list(range(1, 61))


def test_sending_goes_on_while_an_owner_holds_the_lease(tmp_path):
    """The lease is for recording; words from outside need only the mutex."""
    folder, log = attached(tmp_path)
    folder.send(Message(id="m1", topic="cancel", sent_at=1.0))
    assert [message.id for message in log.messages()] == ["m1"]
    assert owner_of(folder.path)[1] is True
    log.release()


def test_a_run_with_a_living_owner_is_not_removed(tmp_path):
    """Deleting waits for the owner to let go; nothing of the run is touched before."""
    folder, log = attached(tmp_path)
    with pytest.raises(LeaseHeld):
        folder.remove()
    log.append(started(1))
    log.release()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_generation_that_was_raised_and_never_begun_is_skipped(tmp_path):
    """An attach that was killed half-way costs a number and nothing else."""
    folder, log = attached(tmp_path)
    log.append(started(1))
    log.release()
    code = "folder.attach(owner())"
    assert child(folder.path, code, env={"NBFLOW_CRASH": "attach.rename.before:1"}).wait() == -signal.SIGKILL
    assert numbers(folder.entries()) == [1]
    log = folder.attach(owner())
    assert log.generation == 3
    assert numbers(list(log.history)) == [1]
    assert not list(folder.path.glob("*.new"))
    log.release()
