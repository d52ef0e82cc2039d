"""Shared values of the local store: counted by many processes, and not blocked by dead ones."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from nbflow.core import crashpoints
from nbflow.core.errors import StoreBusy, StoreFull
from nbflow.store.local import LocalStore
from nbflow.store.shared import SharedValues
from tests.store.store_kit import child

INCREMENT = """
def increment(raw):
    number = int(raw or b"0") + 1
    return str(number).encode(), number
"""


def value(store: Path) -> bytes | None:
    """Read the value `n` as it is."""
    return SharedValues(store / "shared").change("n", lambda raw: (raw, raw))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty store's folder."""
    LocalStore(tmp_path / "store", background=False).close()
    return tmp_path / "store"


def test_four_processes_count_to_a_thousand(place: Path) -> None:
    """4 × 250 increments are 1,000: no update is lost."""
    code = (
        INCREMENT
        + 'print("ready", flush=True)\nsys.stdin.readline()\n[store.shared("n", increment) for _ in range(250)]'
    )
    processes = [child(place, code) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")

    assert [0, 0, 0, 0] == [process.returncode for process in processes]
    assert b"1000" == value(place)


def test_a_killed_holder_blocks_nobody(place: Path) -> None:
    """A process that dies inside its change leaves the old value, and the lock is free at once."""
    SharedValues(place / "shared").change("n", lambda _: (b"7", None))
    code = 'def hang(raw):\n    print("in", flush=True)\n    time.sleep(100)\n    return b"no", 1\nstore.shared("n", hang)'
    process = child(place, code)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    with pytest.raises(StoreBusy):
        SharedValues(place / "shared", patience=0.05).change("n", lambda raw: (raw, raw))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert b"7" == value(place)


@pytest.mark.parametrize(("point", "expected"), [("before", b"1"), ("after", b"2")])
def test_a_kill_in_the_write_leaves_the_old_value_or_the_new_one(
    place: Path, point: str, expected: bytes
) -> None:
    """The file is replaced all at once, and what a dead process left over does not disturb."""
    code = INCREMENT + '[store.shared("n", increment) for _ in range(5)]'
    process = child(place, code, NBFLOW_CRASH=f"shared.replace.{point}:2")
    process.communicate()

    assert -signal.SIGKILL == process.returncode
    assert expected == value(place)
    SharedValues(place / "shared").change("n", lambda _: (b"9", None))
    assert b"9" == value(place)


def test_a_full_disk_leaves_the_value(place: Path) -> None:
    """The refusal is the store's own error."""
    values = SharedValues(place / "shared")
    values.change("n", lambda _: (b"1", None))

    def full(name: str) -> None:
        if name == "shared.replace.before":
            raise OSError(28, "No space left on device")

    with crashpoints.hooked(full), pytest.raises(StoreFull):
        values.change("n", lambda _: (b"2", None))
    assert b"1" == value(place)


def test_a_change_that_asks_for_the_same_value_is_told_so(place: Path) -> None:
    """It would wait for itself: after the patience it is an error, and everything is free again."""
    values = SharedValues(place / "shared", patience=0.05)
    with pytest.raises(StoreBusy):
        values.change("n", lambda _: (b"x", values.change("n", lambda raw: (raw, raw))))

    assert value(place) is None


def test_a_fork_while_another_thread_changes_a_value_can_change_it_later(place: Path) -> None:
    """The child's copy of the turn is its own: the thread that holds it does not exist there."""
    values = SharedValues(place / "shared", patience=5)
    status: list[int] = []

    def fork(_raw: bytes | None) -> tuple[bytes, None]:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if not values._turn.locked() else 1)
            finally:
                os._exit(2)
        status.append(os.waitpid(pid, 0)[1])
        return b"1", None

    values.change("n", fork)
    assert [0] == status


def test_the_folder_is_private_and_made_when_it_is_needed(place: Path) -> None:
    """A store that shares nothing has no such folder; names of files say what they are."""
    assert not (place / "shared").exists()
    SharedValues(place / "shared").change("limit:my api", lambda _: (b"1", None))

    assert 0o700 == stat.S_IMODE((place / "shared").stat().st_mode)
    assert [True, True] == [path.name.startswith("limit-my-api.") for path in (place / "shared").iterdir()]
