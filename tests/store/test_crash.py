"""SIGKILL anywhere: what was acknowledged is there, once, and the run goes on where it stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbflow.core import crashpoints
from nbflow.core.history import History
from nbflow.core.model import MessageTaken, StepCompleted, StepStarted
from nbflow.store.folder import RunFolder, list_folders
from tests.store.journal_kit import KEY, RUN, child, quick_root

#: A run of 12 steps, written to be resumed: each step is a start, leaves, and a completion; every
#: acknowledged completion is noted in an fsynced file beside the store, like an effect in the world.
TWELVE = """
from nbflow.core.history import History
folder.path.parent.mkdir(parents=True, exist_ok=True)
notes = os.open(sys.argv[1] + ".notes", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def note(word):
    os.write(notes, (word + "\\n").encode())
    os.fsync(notes)
if not folder.exists():
    try:
        folder.create(RunOpened(run=RUN, workflow="twelve"))
    except DuplicateRecord:
        pass
    note("created")
if not any(isinstance(e.record, MessageTaken) for e in folder.entries()):
    folder.send(Message(id="hello", topic="signal", sent_at=1.0))
log = folder.attach(owner())
note("attached")
history = History.of(log.history)
for message in log.messages():
    log.append(MessageTaken(message=message.id, topic=message.topic, sent_at=message.sent_at))
    log.messages()
for number in range(12):
    name = f"step-{number}"
    found = history.completed(name, bytes(32))
    if found is not None:
        data = bytes(log.leaf(found.completed.checkpoint.leaves[0]))
        assert data == name.encode() * 5000, "a restored leaf is another one's"
        continue
    durability = ("synced", "written", "buffered")[number % 3]
    execution = log.append(
        StepStarted(step=name, name=name, step_kind="call", signature=bytes(32)), durability=durability
    )
    refs = log.put_leaves([leaf(name.encode() * 5000)])
    checkpoint = Checkpoint("pickle", b"body", refs)
    log.append(StepCompleted(execution=execution, step=name, checkpoint=checkpoint))
    note(name)
log.append(RunChanged(state="completed"))
note("finished")
log.release()
"""


def resume_until_done(path: Path, first_env: dict[str, str]) -> tuple[bool, int]:
    """Run the twelve steps armed, then unarmed until they end; tell whether the first one was killed."""
    killed = child(path, TWELVE, env=first_env).wait() == -signal.SIGKILL
    tries = 0
    notes = Path(f"{path}.notes")
    while not notes.exists() or "finished" not in notes.read_text().split():
        tries += 1
        assert tries <= 2, "the run does not end"
        process = child(path, TWELVE)
        code = process.wait()
        if code and RunFolder(path, KEY).exists():
            # Killed between the last record and its note: the run is complete and says so.
            assert History.of(RunFolder(path, KEY).entries()).state == "completed"
            break
    return killed, tries


def check(path: Path) -> None:
    """Check that every acknowledged step is there, each completed exactly once, and nothing is left lying about."""
    folder = RunFolder(path, KEY)
    entries = folder.entries()
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    completed = Counter(e.record.step for e in entries if isinstance(e.record, StepCompleted))
    assert completed == {f"step-{n}": 1 for n in range(12)}
    noted = Counter(w for w in Path(f"{path}.notes").read_text().split() if w.startswith("step-"))
    assert set(noted) <= set(completed)
    assert max(noted.values()) == 1, "a step that was acknowledged ran again"
    assert sum(isinstance(e.record, MessageTaken) for e in entries) == 1
    for entry in entries:
        if isinstance(entry.record, StepCompleted):
            (ref,) = entry.record.checkpoint.leaves
            assert bytes(folder.leaf(ref)) == entry.record.step.encode() * 5000
    started = Counter(e.record.step for e in entries if isinstance(e.record, StepStarted))
    assert max(started.values()) <= 2
    assert [place.name for place in list_folders(path.parent)] == [RUN]


def count_points(path: Path) -> int:
    """Return how many crash points an undisturbed run passes."""
    code = "from nbflow.core import crashpoints\npassed = []\nwith crashpoints.hooked(passed.append):\n"
    code += textwrap.indent(TWELVE, "    ") + "\nsay(len(passed))\n"
    process = child(path, code)
    return int(process.communicate()[0])


@pytest.fixture
def quick() -> Iterator[Path]:
    """Give a folder whose syncs cost nothing: a kill of the process does not ask whether the disk had it."""
    root = quick_root()
    yield root
    shutil.rmtree(root)


def test_a_kill_at_every_point_of_a_run_loses_and_doubles_nothing(quick):
    """Before and after every write, fsync and rename of a run of 12 steps: kill there, resume, compare."""
    total = count_points(quick / "count" / RUN)
    check(quick / "count" / RUN)
    assert total > 100
    kills = 0
    # Every point of the first steps, which holds each kind, and every third of the rest, which repeats them.
    for number in [*range(1, 64), *range(64, total + 1, 7)]:
        path = quick / str(number) / RUN
        killed, _ = resume_until_done(path, {"NBFLOW_CRASH": f"*:{number}"})
        kills += killed
        check(path)
    assert kills > 60


@pytest.mark.soak
def test_a_kill_at_really_every_point(quick):
    """The same without leaving any point out."""
    total = count_points(quick / "count" / RUN)
    for number in range(1, total + 1):
        path = quick / str(number) / RUN
        resume_until_done(path, {"NBFLOW_CRASH": f"*:{number}"})
        check(path)


def random_kills(tmp_path: Path, kills: int, seed: int) -> None:
    """Kill an owner that records as fast as it can at random moments; follow one run through all of them."""
    code = """
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    notes = os.open(sys.argv[1] + ".notes", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    if not folder.exists():
        folder.create(RunOpened(run=RUN, workflow="random"))
    log = folder.attach(owner())
    done = [e.record for e in log.history if isinstance(e.record, StepCompleted)]
    for record in done[-3:]:
        assert bytes(log.leaf(record.checkpoint.leaves[0])) == str(record.execution).encode() * 3000
    say("attached")
    number = len(done)
    while True:
        execution = log.append(started(number), durability=("written", "buffered")[number % 2])
        refs = log.put_leaves([leaf(str(execution).encode() * 3000)])
        log.append(StepCompleted(execution=execution, step=f"step-{number}", checkpoint=Checkpoint("json", b"", refs)))
        os.write(notes, f"step-{number}\\n".encode())
        number += 1
    """
    draw = random.Random(seed)
    path = tmp_path / RUN
    for _ in range(kills):
        process = child(path, code)
        try:
            assert process.stdout.readline().strip() == "attached"
            try:
                process.wait(draw.random() * 0.08)
            except Exception as error:
                assert type(error).__name__ == "TimeoutExpired"
            assert process.poll() is None, "the owner ended by itself"
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            process.stdin.close()
        entries = RunFolder(path, KEY).entries()
        completed = [e.record.step for e in entries if isinstance(e.record, StepCompleted)]
        noted = Path(f"{path}.notes").read_text().split()
        assert completed == [f"step-{n}" for n in range(len(completed))]
        assert set(noted) <= set(completed)
        assert len(noted) == len(set(noted))


def test_thirty_random_kills_lose_no_acknowledged_record(tmp_path):
    """One run, thirty owners, each killed at a random moment: a dense journal, all acknowledged, none twice."""
    random_kills(tmp_path, 30, seed=1)


@pytest.mark.soak
def test_a_hundred_random_kills(tmp_path):
    """The same with a hundred."""
    random_kills(tmp_path, 100, seed=2)


def test_a_crash_point_is_nothing_until_it_is_armed(tmp_path):
    """Hooks see the names while they are in place and not after; a spec that is none is refused."""
    seen: list[str] = []
    with crashpoints.hooked(seen.append):
        crashpoints.point("a")
    crashpoints.point("b")
    assert seen == ["a"]
    for spec in ("name", "name:0", ":3", "name:x"):
        with pytest.raises(ValueError, match=r"."):
            crashpoints.arm(spec)
    code = "from nbflow.core.crashpoints import point\nfor n in range(9):\n    say(n)\n    point('here')"
    process = child(tmp_path, code, env={"NBFLOW_CRASH": "here:3"})
    assert process.communicate()[0].split() == ["0", "1", "2"]
    assert process.returncode == -signal.SIGKILL
