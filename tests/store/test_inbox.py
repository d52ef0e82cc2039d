"""The inbox: durable words from outside, in order, the first decision wins, none lost and none taken twice."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from nbflow.core import crashpoints
from nbflow.core.errors import InvalidTransition, RunFinished, StoreFull
from nbflow.core.model import Message, MessageTaken, RunChanged
from nbflow.store.inbox import Inbox
from nbflow.store.live import LiveRuns
from tests.store.journal_kit import KEY, RUN, attached, child, new_run, owner


def message(number: int, **payload: object) -> Message:
    """Make a message."""
    return Message(
        id=f"m/{number}", topic="signal", sent_at=float(number), sender="me", payload=dict(payload)
    )


def taken(each: Message) -> MessageTaken:
    """Make the record of a message."""
    return MessageTaken(message=each.id, topic=each.topic, sent_at=each.sent_at, payload=each.payload)


def test_messages_wait_for_the_next_owner_in_the_order_they_came(tmp_path):
    """Without an owner they wait; with one they are all there, with their payload."""
    folder = new_run(tmp_path)
    for number in (3, 1, 2):
        folder.send(message(number, n=number))
    log = folder.attach(owner())
    assert log.messages() == [message(3, n=3), message(1, n=1), message(2, n=2)]
    assert log.messages() == log.messages()
    log.release()


def test_a_recorded_message_is_dropped_and_never_given_again(tmp_path):
    """Once `MessageTaken` names it the file goes; a kill between the two does not bring it back."""
    folder, log = attached(tmp_path)
    folder.send(message(1))
    folder.send(message(2))
    log.append(taken(message(1)), durability="buffered")
    assert log.messages() == [message(2)]
    assert folder.entries()[-1].record == taken(message(1)), "dropped before its record was on disk"
    assert len(list((folder.path / "inbox").iterdir())) == 1
    log.append(taken(message(2)))
    log.release()
    assert len(list((folder.path / "inbox").iterdir())) == 1, "the owner died before it dropped the file"
    log = folder.attach(owner())
    assert log.messages() == []
    assert list((folder.path / "inbox").iterdir()) == []
    log.release()


def test_sending_twice_by_one_id_arrives_once(tmp_path):
    """A sender that retries does no harm."""
    folder = new_run(tmp_path)
    folder.send(message(1))
    folder.send(message(1))
    log = folder.attach(owner())
    assert log.messages() == [message(1)]
    log.release()


def test_the_first_of_many_decisions_wins(tmp_path):
    """Eight senders at once: the check sees every earlier message, so exactly one gets through."""
    folder = new_run(tmp_path)
    refused = []

    def undecided(entries, waiting):
        assert len(entries) == 1
        if waiting:
            raise InvalidTransition("decided already", run=RUN)

    def send(number: int) -> None:
        try:
            folder.send(message(number), undecided)
        except InvalidTransition:
            refused.append(number)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    log = folder.attach(owner())
    assert len(log.messages()) == 1
    log.release()


def test_nothing_is_sent_to_a_finished_run(tmp_path):
    """The sender learns it; the inbox stays empty."""
    folder, log = attached(tmp_path)
    log.append(RunChanged(state="cancelled"))
    log.release()
    with pytest.raises(RunFinished):
        folder.send(message(1))
    assert Inbox(folder.path, RUN, KEY).messages() == []


def test_a_foreign_or_damaged_message_is_put_aside_and_hides_no_other(tmp_path, caplog):
    """A file with another user's signature is never decoded as a message; the rest arrives."""
    folder = new_run(tmp_path)
    folder.send(message(1))
    Inbox(folder.path, RUN, b"another key of 32 bytes, indeed!").put(message(2))
    Inbox(folder.path, "another-run", KEY).put(message(4))
    folder.send(message(3))
    log = folder.attach(owner())
    assert [each.id for each in log.messages()] == ["m/1", "m/3"]
    assert len(list((folder.path / "inbox").glob("*.refused"))) == 2
    assert "not signed by this user" in caplog.text
    log.release()


def test_a_full_disk_refuses_the_sender_and_leaves_nothing(tmp_path):
    """`StoreFull` tells the sender; the owner sees no half of it."""
    folder = new_run(tmp_path)

    def hook(name: str) -> None:
        if name == "inbox.sync.before":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with crashpoints.hooked(hook), pytest.raises(StoreFull):
        folder.send(message(1))
    assert list((folder.path / "inbox").iterdir()) == []
    folder.send(message(1))
    log = folder.attach(owner())
    assert log.messages() == [message(1)]
    log.release()


def test_a_sender_killed_at_any_point_leaves_the_whole_message_or_none(tmp_path):
    """Kill the sender at each of its points: the owner meets none or all of it, and the leftovers are swept."""
    outcomes = []
    for count in range(1, 9):
        folder = new_run(tmp_path / str(count))
        code = """folder.send(Message(id="m", topic="signal", sent_at=1.0, payload={"n": 1}))\nsay("sent")"""
        process = child(folder.path, code, env={"NBFLOW_CRASH": f"*:{count}"})
        said = process.communicate()[0].strip()
        log = folder.attach(owner())
        arrived = [each.payload for each in log.messages()]
        assert arrived in ([], [{"n": 1}])
        assert arrived or said != "sent"
        assert not list((folder.path / "inbox").glob(".new-*"))
        outcomes.append(bool(arrived))
        log.release()
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_two_messages_within_one_tick_of_the_clock_are_two_changes(tmp_path):
    """A file system tells times in ticks of milliseconds: what comes within one is seen all the same."""
    folder = new_run(tmp_path)
    live = LiveRuns(folder.path.parent, lambda: KEY)
    folder.send(message(1))
    tick = (folder.path / "inbox").stat()
    _, seen = live.changes(None)
    folder.send(message(2))
    os.utime(folder.path / "inbox", ns=(tick.st_atime_ns, tick.st_mtime_ns))
    changed, seen = live.changes(seen)
    assert {RUN} == changed
    assert frozenset() == live.changes(seen)[0]
