"""What every store must do, as a mixin: subclass it, give a `store` fixture, and all promises are tested."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from blake3 import blake3

from nbflow.core import errors
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import (
    Checkpoint,
    ErrorInfo,
    LeafRef,
    Message,
    MessageTaken,
    OutputInfo,
    Owner,
    RunChanged,
    RunOpened,
    RunTagged,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.store.protocol import Retention, RunLog, RunQuery, Store
from nbflow.values.leaf import Leaf


def me(program: str = "tests") -> Owner:
    """Describe this process as an owner."""
    return Owner(host="here", pid=os.getpid(), since=time.time(), program=program)


def opened(workflow: str = "w", **facts: Any) -> RunOpened:
    """Make the first record of a new run."""
    return RunOpened(run=new_run_id(), workflow=workflow, **facts)


def attached(store: Store, workflow: str = "w", **facts: Any) -> RunLog:
    """Create a run and attach to it."""
    first = opened(workflow, **facts)
    store.create(first)
    return store.attach(first.run, me())


def do_step(log: RunLog, step: str, *, leaves: Sequence[bytes] = (), signature: bytes = b"s" * 32) -> int:
    """Record a step with these large buffers; return its execution."""
    execution = log.append(StepStarted(step=step, name=step, step_kind="call", signature=signature))
    refs = log.put_leaves([Leaf(blake3(raw).digest(), len(raw), (memoryview(raw),)) for raw in leaves])
    outputs = (OutputInfo("return", "int", b"f" * 32, 8, preview="1"),)
    log.append(
        StepCompleted(
            execution=execution,
            step=step,
            seconds=0.5,
            checkpoint=Checkpoint("json", b"1", refs, outputs=outputs),
        )
    )
    return execution


def finish(log: RunLog, state: str = "completed") -> None:
    """End the run and give its lease up."""
    log.append(RunChanged(state))
    log.release()


class Conformance:
    """The promises of `Store` and `RunLog`."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store; subclasses say which."""
        raise NotImplementedError

    def test_a_created_run_is_listed_as_pending(self, store: Store) -> None:
        """`create` records the run before anybody attaches."""
        first = opened("flow", params={"n": 1}, tags={"team": "blue"}, version="2", workflow_kind="notebook")
        store.create(first)
        info = store.run(first.run)
        assert (info.state, info.workflow, info.version, info.workflow_kind) == (
            "pending",
            "flow",
            "2",
            "notebook",
        )
        assert (info.params, info.tags, info.steps, info.attempts) == ({"n": 1}, {"team": "blue"}, 0, 0)

    def test_a_run_cannot_be_created_twice(self, store: Store) -> None:
        """The pair (run, 1) is taken, and the error names it."""
        first = opened()
        store.create(first)
        with pytest.raises(errors.DuplicateRecord) as caught:
            store.create(first)
        assert (caught.value.run, caught.value.seq) == (first.run, 1)

    def test_runs_are_listed_by_their_ids(self, store: Store) -> None:
        """A query that names runs finds those, finished or not, and no other."""
        logs = [attached(store) for _ in range(4)]
        finish(logs[0])
        finish(logs[1])
        store.compact()
        wanted = (logs[0].run, logs[2].run, "nothing")
        assert {info.run for info in store.runs(RunQuery(runs=wanted))} == {logs[0].run, logs[2].run}
        assert store.runs(RunQuery(runs=("nothing",))) == []

    def test_appended_records_come_back_dense_and_in_order(self, store: Store) -> None:
        """`entries` gives what was appended, seq by seq."""
        log = attached(store)
        assert log.append(RunTagged({"a": "1"}), RunTagged({"b": "2"})) == 3
        assert log.append(RunTagged({"c": "3"}), durability="written") == 5
        assert log.append(RunTagged({"d": "4"}), durability="buffered") == 6
        log.flush()
        entries = store.entries(log.run)
        assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5, 6]
        assert [entry.record.tags for entry in entries[2:]] == [
            {"a": "1"},
            {"b": "2"},
            {"c": "3"},
            {"d": "4"},
        ]

    def test_all_kinds_of_records_survive_finish(self, store: Store) -> None:
        """Every record kind is the same after the run is finished and copied."""
        log = attached(store)
        execution = do_step(log, "a")
        other = log.append(StepStarted("b", "b", "call", b"t" * 32, detail={"x": [1, None, b"raw"]}))
        error = ErrorInfo("ValueError", "no", "trace", b"\x80")
        log.append(StepRetried(other, "b", 1, 123.5, error))
        log.append(StepCursor(other, "b", 0, Checkpoint("json", b"[]")))
        log.append(StepEnded(other, "b", "failed", attempt=2, error=error, display=b"shown"))
        log.append(StepForgotten("a", "asked"), MessageTaken("m1", "signal", 1.0, payload={"k": {"v": 2}}))
        before = store.entries(log.run)
        finish(log)
        store.ingest()
        after = store.entries(log.run)
        assert after[: len(before)] == before
        assert execution < other

    def test_appends_from_many_threads_are_dense(self, store: Store) -> None:
        """Concurrent appends share the journal and lose nothing."""
        log = attached(store)
        seqs: list[int] = []
        guard = threading.Lock()

        def work(number: int) -> None:
            for turn in range(10):
                seq = log.append(RunTagged({f"{number}.{turn}": "x"}))
                with guard:
                    seqs.append(seq)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seqs) == list(range(3, 83))
        assert len(store.entries(log.run)) == 82

    def test_tasks_append_without_blocking(self, store: Store) -> None:
        """`append_async` acknowledges each task with its own seq."""
        log = attached(store)

        async def work() -> list[int]:
            return await asyncio.gather(*(append(number) for number in range(20)))

        async def append(number: int) -> int:
            return await log.append_async(RunTagged({str(number): "x"}))

        assert sorted(asyncio.run(work())) == list(range(3, 23))

    def test_leaves_come_back_writable_and_private(self, store: Store) -> None:
        """A leaf's bytes are the recorded ones, and changing them changes nobody else's."""
        log = attached(store)
        raw = os.urandom(50_000)
        do_step(log, "a", leaves=[raw])
        ref = _leaf(store, log.run)
        view = log.leaf(ref)
        view[0] ^= 1
        assert bytes(log.leaf(ref)) == raw
        assert bytes(store.leaf(log.run, ref)) == raw

    def test_a_leaf_survives_the_end_of_its_run(self, store: Store) -> None:
        """After finish, ingest and compaction the bytes are the same."""
        log = attached(store)
        raws = [os.urandom(20_000), os.urandom(400_003), b""]
        do_step(log, "a", leaves=raws)
        finish(log)
        store.compact()
        record = store.entries(log.run)[3].record
        assert isinstance(record, StepCompleted) and record.checkpoint is not None
        assert [bytes(store.leaf(log.run, ref)) for ref in record.checkpoint.leaves] == raws

    def test_a_leaf_that_is_nowhere_is_a_typed_error(self, store: Store) -> None:
        """Missing bytes are `CorruptLeaf` and name the digest."""
        log = attached(store)
        with pytest.raises(errors.CorruptLeaf) as caught:
            store.leaf(log.run, LeafRef(b"\x01" * 32, 10, "leaves.1.9", 0))
        assert caught.value.digest == b"\x01" * 32

    def test_a_living_owner_keeps_its_run(self, store: Store) -> None:
        """A second attach is refused; `steal` takes the run over and fences the first."""
        log = attached(store)
        with pytest.raises(errors.LeaseHeld):
            store.attach(log.run, me())
        thief = store.attach(log.run, me("thief"), steal=True)
        assert thief.generation > log.generation and thief.attempt == 2
        with pytest.raises(errors.LeaseLost):
            log.append(RunTagged({"stale": "x"}))
        thief.append(RunTagged({"fresh": "x"}))
        assert store.run(log.run).tags == {"fresh": "x"}

    def test_a_released_run_is_taken_up_with_its_history(self, store: Store) -> None:
        """The next owner sees all entries and counts one attempt more."""
        log = attached(store)
        do_step(log, "a")
        log.release()
        log.release()
        with pytest.raises(errors.LeaseLost):
            log.append(RunTagged({}))
        again = store.attach(log.run, me())
        assert again.attempt == 2
        assert list(again.history) == store.entries(log.run)

    def test_attaching_to_what_is_not_there_or_finished_is_refused(self, store: Store) -> None:
        """Unknown and finished runs have errors of their own."""
        with pytest.raises(errors.UnknownRun):
            store.attach(new_run_id(), me())
        log = attached(store)
        finish(log)
        with pytest.raises(errors.RunFinished):
            store.attach(log.run, me())
        store.ingest()
        with pytest.raises(errors.RunFinished):
            store.attach(log.run, me())

    def test_messages_wait_until_they_are_recorded(self, store: Store) -> None:
        """The inbox gives each message until a record names it, oldest first."""
        log = attached(store)
        store.send(log.run, Message("m1", "cancel", 1.0))
        store.send(log.run, Message("m2", "signal", 2.0, payload={"x": 1}))
        assert [message.id for message in log.messages()] == ["m1", "m2"]
        log.append(MessageTaken("m1", "cancel", 1.0))
        assert [message.id for message in log.messages()] == ["m2"]

    def test_nothing_is_sent_to_a_run_that_is_over_or_unknown(self, store: Store) -> None:
        """`send` refuses instead of losing the message."""
        with pytest.raises(errors.UnknownRun):
            store.send(new_run_id(), Message("m", "cancel", 1.0))
        log = attached(store)
        finish(log)
        with pytest.raises(errors.RunFinished):
            store.send(log.run, Message("m", "cancel", 1.0))
        store.ingest()
        with pytest.raises(errors.RunFinished):
            store.send(log.run, Message("m", "cancel", 1.0))

    def test_a_tail_gives_what_is_new_and_outlives_the_run(self, store: Store) -> None:
        """What was read is not read again, waiting messages come with it, and a position holds behind the run's end."""
        log = attached(store)
        do_step(log, "one")
        entries, waiting, position = store.tail(log.run)
        assert ([entry.seq for entry in entries], waiting) == ([1, 2, 3, 4], [])
        store.send(log.run, Message("m1", "signal", 1.0, payload={"name": "go"}))
        assert [message.id for message in store.tail(log.run, position)[1]] == ["m1"]
        log.append(MessageTaken("m1", "signal", 1.0))
        entries, waiting, position = store.tail(log.run, position)
        assert ([entry.seq for entry in entries], waiting) == ([5], [])
        finish(log)
        store.ingest()
        entries, waiting, position = store.tail(log.run, position)
        assert ([entry.seq for entry in entries], waiting) == ([6], [])
        assert store.tail(log.run, position)[0] == []
        with pytest.raises(errors.UnknownRun):
            store.tail(new_run_id())

    def test_changes_name_the_runs_that_moved(self, store: Store) -> None:
        """A look names what moved since the last one: a new run, a record, a message, an end; else nothing."""
        log, other = attached(store), attached(store)
        changed, seen = store.changes()
        assert changed == {log.run, other.run}
        changed, seen = store.changes(seen)
        assert changed == frozenset()
        log.append(RunTagged(tags={"a": "b"}))
        changed, seen = store.changes(seen)
        assert changed == {log.run}
        store.send(other.run, Message("m1", "signal", 1.0, payload={"name": "go"}))
        changed, seen = store.changes(seen)
        assert changed == {other.run}
        finish(log)
        store.ingest()
        changed, seen = store.changes(seen)
        assert changed == {log.run}
        assert store.changes(seen)[0] == frozenset()

    def test_of_two_decisions_about_a_gate_the_first_one_wins(self, store: Store) -> None:
        """The second is refused with the first, taken or not; so is one about an option that the gate does not have."""
        log = attached(store)
        form = {"name": "publish", "text": "Publish?", "opening": "o1", "options": ["web", "mail"]}
        started = StepStarted(
            step="g", name="publish", step_kind="gate", signature=b"s" * 32, detail={"gate": form}
        )
        log.append(started)

        def decide(number: int, opening: str = "o1", selections: Sequence[str] = ()) -> None:
            decision = {
                "approved": number == 1,
                "by": f"p{number}",
                "at": 1.0,
                "selections": list(selections),
            }
            payload = {"step": "g", "name": "publish", "opening": opening, "decision": decision}
            store.send(log.run, Message(f"m{number}", "decision", 1.0, sender=f"p{number}", payload=payload))

        with pytest.raises(errors.UsageError, match="no option 'fax'"):
            decide(3, selections=["fax"])
        with pytest.raises(errors.GateDecided, match="asked anew"):
            decide(4, opening="o0")
        decide(1, selections=["web"])
        with pytest.raises(errors.GateDecided, match="approved by p1"):
            decide(2)
        (message,) = log.messages()
        log.append(
            MessageTaken(message.id, message.topic, message.sent_at, message.sender, payload=message.payload)
        )
        with pytest.raises(errors.GateDecided, match="approved by p1"):
            decide(2)

    def test_the_newest_open_run_is_found_by_workflow_and_parameters(self, store: Store) -> None:
        """Finished runs and other workflows do not count; equal parameters do, where they are given."""
        assert store.newest_open("flow") is None
        old = attached(store, "flow", params={"n": 1})
        new = attached(store, "flow", params={"n": 2})
        attached(store, "other")
        found = store.newest_open("flow")
        assert found is not None and found.run == new.run
        same = store.newest_open("flow", {"n": 1})
        assert same is not None and same.run == old.run
        finish(new)
        found = store.newest_open("flow")
        assert found is not None and found.run == old.run
        assert store.newest_open("flow", {"n": 3}) is None
        assert store.newest_open("flow", {"n": 1.0}) is None  # to Python it equals 1
        assert store.newest_open("flow", {"n": True}) is None

    def test_an_open_run_is_found_by_its_variant_only(self, store: Store) -> None:
        """A run of papermill's is not carried on by the same notebook in JupyterLab, nor by another kernel."""
        store.create(RunOpened(run=new_run_id(), workflow="flow", variant="papermill:python3"))
        assert store.newest_open("flow") is None
        assert store.newest_open("flow", {}, "papermill:ir") is None
        assert store.newest_open("flow", {}, "papermill:python3") is not None

    def test_runs_are_listed_newest_first_with_filters_and_pages(self, store: Store) -> None:
        """All filters work alike for unfinished and finished runs."""
        logs = [attached(store, f"flow-{n % 2}", tags={"n": str(n)}) for n in range(6)]
        for log in logs[:3]:
            finish(log)
        store.ingest()
        ids = [log.run for log in logs]
        assert [info.run for info in store.runs()] == ids[::-1]
        assert [info.run for info in store.runs(RunQuery(limit=2, offset=2))] == [ids[3], ids[2]]
        assert {info.run for info in store.runs(RunQuery(workflow="flow-0"))} == {ids[0], ids[2], ids[4]}
        assert len(store.runs(RunQuery(workflow="flow-*"))) == 6
        assert {info.run for info in store.runs(RunQuery(states=("completed",)))} == set(ids[:3])
        assert {
            info.run for info in store.runs(RunQuery(states=("running", "completed"), workflow="flow-1"))
        } == {
            ids[1],
            ids[3],
            ids[5],
        }
        assert [info.run for info in store.runs(RunQuery(tags={"n": "1"}))] == [ids[1]]
        created = store.run(ids[3]).created_at
        assert [info.run for info in store.runs(RunQuery(since=created))] == ids[:2:-1]
        assert [info.run for info in store.runs(RunQuery(until=created, limit=1))] == [ids[3]]
        assert store.runs(RunQuery(workflow="nothing")) == []
        for child in (finish, None):
            made = RunOpened(run=child_run_id(ids[5], str(child)), workflow="part", parent=ids[5])
            store.create(made)
            if child is not None:
                child(store.attach(made.run, me()))
        store.ingest()
        assert [info.run for info in store.runs(RunQuery(children=False))] == ids[::-1]
        assert len(store.runs(RunQuery(workflow="part"))) == 2

    def test_a_run_is_found_by_an_unambiguous_prefix(self, store: Store) -> None:
        """Four characters or more that fit one run are enough; otherwise the error says what fits."""
        one, other = opened(), opened()
        store.create(one)
        store.create(other)
        assert store.run(one.run[:-1] if one.run[:-1] != other.run[:-1] else one.run).run == one.run
        with pytest.raises(errors.UnknownRun) as caught:
            store.run(one.run[:4])
        assert one.run in str(caught.value) and other.run in str(caught.value)
        with pytest.raises(errors.UnknownRun):
            store.run(one.run[:3])
        with pytest.raises(errors.UnknownRun):
            store.run("zzzz")

    def test_a_prefix_that_children_share_means_their_parent(self, store: Store) -> None:
        """A child's id begins as its parent's does, also where one of them is in the database already."""
        parent = opened()
        children = [
            RunOpened(run=child_run_id(parent.run, str(n)), workflow="flow", parent=parent.run)
            for n in range(8)
        ]
        for made in (parent, *children):
            store.create(made)
        finish(store.attach(children[0].run, me()))
        store.ingest()
        assert store.run(parent.run[:13]).run == parent.run
        assert store.run(children[1].run).run == children[1].run
        assert store.run(children[0].run).run == children[0].run

    def test_steps_tell_every_execution_and_which_is_current(self, store: Store) -> None:
        """An older version stays listed and is not current."""
        log = attached(store)
        do_step(log, "a", signature=b"1" * 32)
        do_step(log, "a", signature=b"2" * 32)
        log.append(StepStarted("b", "b", "call", b"3" * 32))
        steps = store.steps(log.run)
        assert [(s.step, s.state, s.current) for s in steps] == [
            ("a", "completed", False),
            ("a", "completed", True),
            ("b", "running", True),
        ]
        assert steps[0].outputs[0].name == "return" and steps[0].seconds == 0.5
        finish(log)
        store.ingest()
        assert store.steps(log.run) == steps

    def test_asking_for_an_unknown_run_is_a_typed_error(self, store: Store) -> None:
        """Entries, steps, delete: all say that there is no such run."""
        for ask in (store.entries, store.steps, store.run, store.delete):
            with pytest.raises(errors.UnknownRun):
                ask(new_run_id())

    def test_a_run_with_a_living_owner_is_not_deleted(self, store: Store) -> None:
        """`delete` refuses while somebody holds the run, and works after."""
        log = attached(store)
        do_step(log, "a", leaves=[os.urandom(20_000)])
        with pytest.raises(errors.LeaseHeld):
            store.delete(log.run)
        assert store.run(log.run).steps == 1
        log.release()
        store.delete(log.run)
        assert store.runs() == []
        with pytest.raises(errors.UnknownRun):
            store.entries(log.run)

    def test_collect_lets_only_finished_runs_go(self, store: Store) -> None:
        """Retention never touches a run that is alive or may be resumed."""
        done = [attached(store) for _ in range(3)]
        for log in done:
            finish(log)
        failed = attached(store)
        failed.append(RunChanged("failed", error=ErrorInfo("E", "m")))
        failed.release()
        alive = attached(store)
        store.ingest()
        gone = store.collect(Retention(keep=1), dry_run=True)
        assert {info.run for info in gone} == {done[0].run, done[1].run}
        assert len(store.runs()) == 5
        store.collect(Retention(keep=0))
        assert {info.run for info in store.runs()} == {failed.run, alive.run}

    def test_a_shared_value_is_read_changed_and_deleted(self, store: Store) -> None:
        """`change` gets the value or None, and decides what stands there; names are told apart whatever they hold."""
        names = ["a", "a b", "a/b", "../a", "A", "", "é" * 300]
        for name in names:
            assert store.shared(name, lambda raw, name=name: (name.encode(), raw)) is None
        assert [name.encode() for name in names] == [
            store.shared(name, lambda raw: (raw, raw)) for name in names
        ]
        assert store.shared("a", lambda raw: (None, raw)) == b"a"
        assert store.shared("a", lambda raw: (raw, raw)) is None
        assert store.shared("A", lambda raw: (raw, raw)) == b"A"

    def test_a_change_that_raises_leaves_the_shared_value(self, store: Store) -> None:
        """The error comes out as it is, and the next change finds the value as it was."""
        store.shared("n", lambda _: (b"1", None))

        def fail(_raw: bytes | None) -> tuple[bytes | None, None]:
            raise ConnectionError("mine")

        with pytest.raises(ConnectionError, match="mine"):
            store.shared("n", fail)
        assert store.shared("n", lambda raw: (raw, raw)) == b"1"

    def test_shared_changes_of_threads_are_all_counted(self, store: Store) -> None:
        """Read-modify-write is atomic among threads."""

        def increment(raw: bytes | None) -> tuple[bytes | None, int]:
            number = int(raw or b"0") + 1
            return str(number).encode(), number

        seen: list[int] = []
        threads = [
            threading.Thread(target=lambda: seen.extend(store.shared("n", increment) for _ in range(50)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(range(1, 401)) == sorted(seen)

    def test_a_store_describes_itself_and_is_healthy(self, store: Store) -> None:
        """`check` finds nothing wrong in a store in order; closing twice is fine."""
        do_step(attached(store), "a")
        assert all(finding.level != "error" for finding in store.check())
        assert store.describe()["place"]
        store.close()
        store.close()


def _leaf(store: Store, run: str) -> LeafRef:
    """Return the first leaf that a run's records name."""
    for entry in store.entries(run):
        if isinstance(entry.record, StepCompleted) and entry.record.checkpoint is not None:
            return entry.record.checkpoint.leaves[0]
    raise AssertionError("no leaf was recorded")
