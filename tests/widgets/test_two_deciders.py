"""Several who decide about one gate at once, and at bad moments: one decision counts, everybody learns which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

import nbflow
from nbflow.board.board import Board
from nbflow.core.errors import GateDecided, GatePending, GateTimedOut, NbflowError, UsageError
from nbflow.core.gates import find_gate
from nbflow.runtime.gates import waiting
from nbflow.runtime.gates.deciding import decide
from nbflow.store.local import LocalStore, open_store
from nbflow.store.protocol import Store
from nbflow.testing import MemoryStore, VirtualClock

Ask = Callable[[], Any]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store of the test's own, under a name that needs quoting everywhere."""
    return tmp_path / "a store's «ünïcode» folder $HOME" / ".nbflow"


@pytest.fixture
def store(place: Path) -> Iterator[LocalStore]:
    opened = open_store(place)
    yield opened
    opened.close()


@pytest.fixture
def clocked() -> MemoryStore:
    """A store without files, under a clock of its own."""
    return MemoryStore(VirtualClock())


def asks(store: Store, name: str = "publish", workflow: str = "report", **question: Any) -> str:
    """Open a gate in a run that stops at it; return the run."""
    try:
        with nbflow.run(workflow, store=store) as run:
            nbflow.gate(name, "Publish?", **question)
    except GatePending as pending:
        assert pending.run == run.id
        return pending.run
    raise AssertionError("a gate that nobody decided has a decision")


def taken(store: Store, workflow: str = "report", name: str = "publish", **question: Any) -> nbflow.Decision:
    """Run it again: the decision as the run takes it in."""
    with nbflow.run(workflow, store=store):
        decision: nbflow.Decision = nbflow.gate(name, "Publish?", on_reject="return", **question)
    return decision


def at_once(*asked: Ask) -> list[Any]:
    """Call all at the same moment in threads; return results and nbflow's errors, in order."""
    barrier = threading.Barrier(len(asked))

    def go(ask: Ask) -> Any:
        barrier.wait(30)
        try:
            return ask()
        except NbflowError as error:
            return error

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(go, asked))


# --- who is first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_pages_one_decides(store: LocalStore, place: Path, attempt: int) -> None:
    """Eight pages, each with a store and a board of its own, decide at once: one decision counts, and all others
    are told which one it was.
    """
    run = asks(store)
    boards = [Board(open_store(place)) for _ in range(8)]
    step = boards[0].ask("gates", {})["rows"][0]["step"]

    def page(number: int) -> Ask:
        params = {"run": run, "step": step, "approved": number % 2 == 0, "feedback": f"page {number}"}
        return lambda: boards[number].ask("decide", params)

    try:
        results = at_once(*(page(number) for number in range(8)))
        rows = [result for result in results if isinstance(result, dict)]
        refused = [result for result in results if isinstance(result, GateDecided)]
        assert (len(rows), len(refused)) == (1, 7)
        (first,) = rows
        assert {error.decision.feedback for error in refused} == {first["decision"]["feedback"]}
        assert all(first["decision"]["feedback"] in str(error) for error in refused)
        shown = [board.ask("gate", {"run": run, "step": step})["decision"]["feedback"] for board in boards]
        assert set(shown) == {first["decision"]["feedback"]}
        assert taken(store).feedback == first["decision"]["feedback"]
    finally:
        for board in boards:
            board.close()
            board.store.close()


RACE = """
import sys, time
from pathlib import Path
from nbflow.board.board import Board
from nbflow.cli import main
from nbflow.core.errors import GateDecided
from nbflow.store.local import open_store
run, step, place, who, go = sys.argv[1:]
board = Board(open_store(Path(place)))
board.ask("gate", {"run": run, "step": step})
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.0005)
if who == "terminal":
    sys.argv = ["nbflow", "approve", run, "publish", "--feedback", who]
    main()
try:
    board.ask("decide", {"run": run, "step": step, "approved": True, "feedback": who})
except GateDecided as error:
    sys.exit(str(error))
"""


def test_pages_of_several_processes_and_a_terminal(
    store: LocalStore, place: Path, tmp_path: Path, kernel_env: dict[str, str]
) -> None:
    """Two kernels and `nbflow approve` decide at once: one is first, the others fail with what it decided."""
    run = asks(store)
    go = tmp_path / "go"
    who = ["page 0", "page 1", "terminal"]
    deciders = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, run, "gate:publish#0", str(place), each, str(go)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**kernel_env, "NBFLOW_STORE": str(place)},
        )
        for each in who
    ]
    for decider in deciders:
        assert decider.stdout is not None
        assert decider.stdout.readline() == "ready\n"
    go.touch()
    said = [decider.communicate(timeout=60)[0] for decider in deciders]
    decided = [each for each, decider in zip(who, deciders, strict=True) if decider.returncode == 0]
    assert len(decided) == 1, said
    assert [decided[0] in " ".join(words.split()) for words in said].count(True) >= 2
    assert taken(store).feedback == decided[0]


# --- the instant of the timeout ---------------------------------------------------------------------------


@pytest.mark.parametrize("early", [0.02, 0.005, 0.0, -0.005])
@pytest.mark.parametrize("on_timeout", ["fail", "continue"])
def test_a_decision_at_the_instant_of_the_timeout(
    store: LocalStore, place: Path, early: float, on_timeout: Any
) -> None:
    """A decision that comes as the time runs out counts or is refused: what the decider was told is what the run gets."""
    found: list[Any] = []
    opened: Queue[tuple[str, str, float]] = Queue()
    other = open_store(place)

    def seen(session: Any, step: str, _: bool) -> None:
        due = find_gate(session.history, step).due_at
        assert due is not None
        opened.put((session.run, step, due))

    def run() -> None:
        with nbflow.run("report", store=store):
            try:
                found.append(nbflow.gate("publish", "?", timeout=0.5, on_timeout=on_timeout, wait=True))
            except GateTimedOut as error:
                found.append(error)

    waiting.show_with(seen)
    waits = threading.Thread(target=run)
    waits.start()
    try:
        key, step, due = opened.get(timeout=30)
    finally:
        waiting.show_with(None)
    time.sleep(max(0.0, due - early - time.time()))
    (told,) = at_once(lambda: decide(other, key, step, True, feedback="in time"))
    waits.join(30)
    (got,) = found
    if isinstance(told, NbflowError):
        assert isinstance(told, GateDecided)
        assert isinstance(got, GateTimedOut) if on_timeout == "fail" else got.via == "timeout"
    else:
        assert (got.feedback, got.via) == ("in time", "python")
    other.close()


def test_a_wall_clock_that_was_set_back(clocked: MemoryStore) -> None:
    """With the clock set back a decision still counts until the time is over; a gate that timed out stays so."""
    run = asks(clocked, timeout=100, on_timeout="reject")
    clocked.clock.shift_wall(-86_400)
    decide(clocked, run, "publish", True, feedback="yesterday")
    assert taken(clocked, timeout=100, on_timeout="reject").feedback == "yesterday"

    late = asks(clocked, workflow="late", timeout=100, on_timeout="reject")
    clocked.clock.advance(101)
    assert taken(clocked, workflow="late", timeout=100, on_timeout="reject").via == "timeout"
    clocked.clock.shift_wall(-86_400)
    with pytest.raises(GateDecided):
        decide(clocked, late, "publish", True)


@pytest.mark.parametrize("via", ["timeout", "quality", {"x": 1}, 5])
def test_no_page_decides_in_the_name_of_the_run(store: LocalStore, via: Any) -> None:
    """A page cannot say that the time is over or that a condition holds: nothing is decided."""
    run = asks(store)
    board = Board(store)
    (row,) = board.ask("gates", {})["rows"]
    with pytest.raises(UsageError, match="nothing was decided"):
        board.ask("decide", {"run": run, "step": row["step"], "approved": True, "via": via})
    assert board.ask("gate", {"run": run, "step": row["step"]})["state"] == "waiting"
    board.close()


# --- what is asked, and how it is called ----------------------------------------------------------------------


def test_names_and_options_that_need_quoting(store: LocalStore) -> None:
    """Options with quotes, dollars, emoji and markup come back as they were offered; what is not offered is refused."""
    options = ['it\'s "quoted"', "$(rm -rf /)", "<b>bold</b>", "🎉 ünï", "a, b; c", "-x", "--select"]
    run = asks(store, name="it's «ready»? $HOME", options=options)
    board = Board(store)
    (row,) = board.ask("gates", {})["rows"]
    assert row["options"] == options
    params = {"run": run, "step": row["step"], "opening": row["opening"], "approved": True}
    with pytest.raises(NbflowError, match="no option"):
        board.ask("decide", {**params, "selections": ["<b>bold</b> "]})
    answer = board.ask("decide", {**params, "selections": options[::-1]})
    assert answer["decision"]["selections"] == options
    assert taken(store, name="it's «ready»? $HOME", options=options).selections == tuple(options)
    board.close()


def test_the_command_on_the_card_decides(store: LocalStore, place: Path, kernel_env: dict[str, str]) -> None:
    """The command that a card says for a terminal decides that gate, whatever its name needs of quoting."""
    name = "it's «ready»? $HOME `id`"
    run = asks(store, name=name)
    (row,) = Board(store).ask("gates", {})["rows"]
    quoted = "'" + row["step"].replace("'", "'\"'\"'") + "'"  # as gate-record.js does
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m nbflow.cli approve {run} {quoted}'],
        env={**kernel_env, "NBFLOW_STORE": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert taken(store, name=name).via == "cli"


def test_a_very_long_question_and_answer(store: LocalStore) -> None:
    """A question and an answer of 100 KB each arrive whole; a list of gates has the beginning of each question."""
    text, feedback = "Really? " * 12_500, "Because. " * 11_000
    try:
        with nbflow.run("report", store=store):
            nbflow.gate("publish", text)
    except GatePending as pending:
        run = pending.run
    board = Board(store)
    (listed,) = board.ask("gates", {})["rows"]
    step = listed["step"]
    assert len(listed["text"]) <= 2000
    assert text.startswith(listed["text"].rstrip("…"))
    row = board.ask("gate", {"run": run, "step": step})
    assert row["text"] == text
    board.ask(
        "decide",
        {"run": run, "step": step, "opening": row["opening"], "approved": True, "feedback": feedback},
    )
    with nbflow.run("report", store=store):
        assert nbflow.gate("publish", text).feedback == feedback
    board.close()


# --- a store that may not be written, and a process that dies ---------------------------------------------------

LOCKED_OUT = """
import sys
from pathlib import Path
from nbflow.board.board import Board
from nbflow.core.errors import NbflowError
from nbflow.store.local import open_store
run, step, place = sys.argv[1:]
try:
    board = Board(open_store(Path(place)))
    print(board.ask("gate", {"run": run, "step": step})["state"])
    board.ask("decide", {"run": run, "step": step, "approved": True})
except NbflowError as error:
    print(type(error).__name__, error, error.hint)
"""

#: A folder that really cannot be written to, for one process and those that it starts: root may write anywhere else.
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a mount of one's own takes root",
)
def test_a_store_that_may_only_be_read(store: LocalStore, place: Path, kernel_env: dict[str, str]) -> None:
    """Who may read a store and not write to it sees its gates, is told so when he decides, and decides nothing."""
    run = asks(store)
    store.close()
    step = "gate:publish#0"
    child = [sys.executable, "-c", LOCKED_OUT, run, step, str(place)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY, str(place), *child],
        env=kernel_env,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr:
        pytest.skip(f"no mount of one's own here: {done.stderr}")
    assert done.stdout.startswith("waiting\nStoreReadOnly"), done.stderr
    assert taken_state(place, run) == "waiting"


def taken_state(place: Path, run: str) -> str:
    opened = open_store(place)
    board = Board(opened)
    state = board.ask("gate", {"run": run, "step": "gate:publish#0"})["state"]
    board.close()
    opened.close()
    return str(state)


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from nbflow.board.board import Board
from nbflow.store.local import open_store
run, step, place, after = sys.argv[1:]
board = Board(open_store(Path(place)))
board.ask("gate", {"run": run, "step": step})
print("ready", flush=True)
sys.stdin.readline()
def kill():
    time.sleep(float(after))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill).start()
board.ask("decide", {"run": run, "step": step, "approved": True, "feedback": "from the dead"})
print("decided", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("after", [0.0, 0.001, 0.02])
def test_killed_while_a_decision_is_sent(
    store: LocalStore, place: Path, kernel_env: dict[str, str], after: float
) -> None:
    """A kernel that is killed while it sends a decision has sent it whole or not at all, and blocks nobody; one that
    it acknowledged stands.
    """
    run = asks(store)
    board = Board(store)
    (row,) = board.ask("gates", {})["rows"]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, run, row["step"], str(place), str(after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=kernel_env,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    acknowledged = process.stdout.read() == "decided\n"
    assert process.wait(60) == -9
    now = board.ask("gate", {"run": run, "step": row["step"]})
    assert now["state"] in (("sent",) if acknowledged else ("waiting", "sent"))
    (second,) = at_once(lambda: decide(store, run, row["step"], True, feedback="from the living"))
    first = "from the dead" if now["state"] == "sent" else "from the living"
    assert isinstance(second, GateDecided) == (now["state"] == "sent")
    assert taken(store).feedback == first
    board.close()
