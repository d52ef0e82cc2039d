"""The journal against a reference model: whatever happens in whatever order, it is the model's list or a prefix."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nbflow.core import crashpoints
from nbflow.core.errors import LeaseLost, StoreFull
from nbflow.store.folder import START, RunFolder
from tests.store.journal_kit import KEY, RUN, new_run, numbers, owner, quick_root, started


class JournalMachine(RuleBasedStateMachine):
    """A run, its owner and an incremental reader; the model is a list of appends and how many are safe.

    A crash keeps every byte that was synced (by the owner, or by a reader that
    trusted it). What lies behind may be cut, or be anything in the room that was
    allocated: zeros, junk, a page missing before one that is there.
    """

    @initialize()
    def begin(self) -> None:
        """Create and attach."""
        self.root = quick_root()
        self.crashes = 0
        self.folder = new_run(self.root / "0")
        self.log = self.folder.attach(owner())
        self.appends: list[tuple[int, ...]] = []
        self.safe = 0
        self.written = 0
        self.next = 0
        self.position, self.seen = START, []

    def teardown(self) -> None:
        """Let the lease go and remove the files."""
        if hasattr(self, "log"):
            self.log.release()
            shutil.rmtree(self.root)

    def _append(self, count: int) -> tuple[int, ...]:
        group = tuple(range(self.next, self.next + count))
        self.next += count
        return group

    @rule(count=st.integers(1, 3), durability=st.sampled_from(["synced", "written", "buffered"]))
    def append(self, count: int, durability: str) -> None:
        """Append some records."""
        group = self._append(count)
        expected = self.log.seq + 1
        assert self.log.append(*[started(n, size=n % 50) for n in group], durability=durability) == expected
        self.appends.append(group)
        if durability != "buffered":
            self.written = len(self.appends)
        if durability == "synced":
            self.safe = len(self.appends)

    @rule()
    def flush(self) -> None:
        """Make everything safe."""
        self.log.flush()
        self.safe = self.written = len(self.appends)

    @rule(count=st.integers(1, 2), durability=st.sampled_from(["synced", "written"]))
    def refused(self, count: int, durability: str) -> None:
        """Append while the disk is full: nothing changes."""

        def full(name: str) -> None:
            if name == "journal.write.before":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        group = self._append(count)
        with crashpoints.hooked(full), pytest.raises(StoreFull):
            self.log.append(*[started(n) for n in group], durability=durability)

    @rule()
    def read_on(self) -> None:
        """Tail: what a reader has seen once, no crash takes back."""
        frames, self.position = self.folder.tail(self.position)
        self.seen += numbers([frame.entry for frame in frames])
        flat = [n for group in self.appends for n in group]
        assert self.seen == flat[: len(self.seen)]
        while sum(map(len, self.appends[: self.safe])) < len(self.seen):
            self.safe += 1
        self.written = max(self.written, self.safe)

    @rule(steal=st.booleans())
    def attach_again(self, steal: bool) -> None:
        """Hand the run over: after a release all is kept, a stolen one keeps what was written and acknowledged."""
        old = self.log
        if not steal:
            old.release()
            self.log = self.folder.attach(owner())
            kept = len(self.appends)
        else:
            self.log = self.folder.attach(owner(), steal=True)
            for durability in ("synced", "written"):
                with pytest.raises(LeaseLost):
                    old.append(started(999_999), durability=durability)
            with pytest.raises(LeaseLost):
                old.release()
            kept = self._kept()
            assert kept >= self.written
        del self.appends[kept:]
        self.safe = self.written = len(self.appends)

    @rule(
        where=st.floats(0, 1),
        junk=st.sampled_from([b"", bytes(100), b"\xf5nf.\xff" * 9]),
        rest=st.sampled_from(["cut", "zeros", "kept"]),
    )
    def crash(self, where: float, junk: bytes, rest: str) -> None:
        """Lose power: the journal is torn somewhere behind what is synced; attach again."""
        self.crashes += 1
        target = self.root / str(self.crashes) / RUN
        shutil.copytree(self.folder.path, target)
        journal = target / f"journal.{self.log.generation}"
        room = journal.stat().st_size
        size = self.log._writer._offset
        floor = self.log._writer.synced
        if self.position.generation == self.log.generation:
            floor = max(floor, self.position.offset)
        cut = floor + round((size - min(size, floor)) * where)
        with journal.open("r+b") as file:
            if rest != "kept":
                file.truncate(cut)
            if rest == "zeros":
                file.truncate(room)
            file.seek(cut)
            file.write(junk)
        try:
            self.log.release()
        finally:
            self.folder = RunFolder(target, KEY)
            self.log = self.folder.attach(owner())
        kept = self._kept()
        assert self.safe <= kept <= len(self.appends)
        del self.appends[kept:]
        self.safe = self.written = len(self.appends)

    def _kept(self) -> int:
        """Return how many appends the new owner found: whole ones, in order, none else."""
        found = numbers(list(self.log.history))
        kept = 0
        while kept < len(self.appends) and sum(map(len, self.appends[: kept + 1])) <= len(found):
            kept += 1
        assert found == [n for group in self.appends[:kept] for n in group]
        return kept

    @invariant()
    def dense(self) -> None:
        """Whoever reads sees a dense prefix of the model, with all that is safe."""
        if hasattr(self, "log"):
            before = self.safe
            entries = self.folder.entries()
            assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
            found = numbers(entries)
            flat = [n for group in self.appends for n in group]
            assert found == flat[: len(found)]
            assert len(found) >= sum(map(len, self.appends[:before]))


JournalMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestJournal = JournalMachine.TestCase


@pytest.mark.soak
def test_the_journal_keeps_to_its_model_for_longer() -> None:
    """The same machine with many more and longer histories."""
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=400,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
