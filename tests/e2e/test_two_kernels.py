"""Two kernels on one notebook: one writer, a refusal that helps, and nothing of a stale owner anywhere."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbflow.core.history import History
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery
from tests.e2e.kit import Notebook, completed, database_is_whole, history, infos
from tests.notebook.kernel import Cell, Kernel

READY = "import time, pathlib, asyncio, nbflow, numpy as np"


@pytest.fixture
def pair(tmp_path: Path, kernel_env: dict[str, str]) -> Iterator[tuple[Kernel, Kernel]]:
    """Two kernels of one notebook. Each has an IPython folder: a stopped one must not keep IPython's own history locked."""
    first_env = {**kernel_env, "IPYTHONDIR": str(tmp_path / "ipython1")}
    second_env = {**kernel_env, "IPYTHONDIR": str(tmp_path / "ipython2")}
    with Kernel(tmp_path, first_env) as first, Kernel(tmp_path, second_env) as second:
        yield first, second


def entries(place: Path) -> list[object]:
    """Everything that counts, of all runs, as a reader sees it."""
    store = LocalStore(place, background=False)
    try:
        # Unfinished runs only: the stopped kernel may have the database open.
        return [(info.run, store.entries(info.run)) for info in store.runs(RunQuery(states=("running",)))]
    finally:
        store.close()


def stopped(pid: int) -> bool:
    return b") T" in Path(f"/proc/{pid}/stat").read_bytes()


def wait_for(condition, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_the_second_kernel_is_told_who_since_when_and_how(
    pair: tuple[Kernel, Kernel], tmp_path: Path
) -> None:
    """The refusal names host, pid and since, and the two ways out; nothing ran, and looking is allowed."""
    first, second = pair
    notebook = Notebook(tmp_path / "effects")
    begun = time.time()
    notebook.run_all(first, ["%%durable one\neffect('one')\nx = [1]"])
    for source in ("%load_ext nbflow", "def effect(name):\n    raise AssertionError(name)"):
        assert second.run(source).ok
    for source in (
        "%%durable one\neffect('one')\nx = [1]",
        "%%durable two\neffect('two')\ny = [2]",
        "%%durable three\nimport asyncio\nawait asyncio.sleep(0)\neffect('three')",
        "import nbflow\n@nbflow.durable\ndef call():\n    effect('call')\ncall()",
        "%nbflow finish",
        "%nbflow forget one",
    ):
        refused = second.run(source)
        assert [error["ename"] for error in refused.errors] == ["LeaseHeld"], source
        said = refused.errors[0]["evalue"]
        assert socket.gethostname() in said and f"process {first.pid}" in said, source
        since = re.search(r"since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", said)
        assert since, said
        assert abs(time.mktime(time.strptime(since[1], "%Y-%m-%d %H:%M:%S")) - time.timezone - begun) < 60
        assert "%nbflow steal" in said and "%nbflow new" in said
        assert len(refused.errors[0]["traceback"]) <= 3, "one short message, no wall of frames"
    assert "one" in str(second.run("%nbflow status").outputs)
    assert first.run("%%durable two\neffect('two')\ny = [2]").ok
    assert notebook.ran() == ["one", "two"]


#: What a stale owner may be about to write. Each begins, waits until the run was stolen, and then writes.
STALE = {
    "the end of a cell": "%%durable late\npathlib.Path('ready').touch(); {wait}\nlate = ['sta' + 'le']",
    "the end of an await cell": "%%durable late\npathlib.Path('ready').touch(); {wait}\nawait asyncio.sleep(0)\nlate = ['sta' + 'le']",
    "a large output": "%%durable late\npathlib.Path('ready').touch(); {wait}\nlate = np.full(2_000_000, 7.5)",
    "a failure": "%%durable late\npathlib.Path('ready').touch(); {wait}\nraise RuntimeError('sta' + 'le')",
    "a retry": "%%durable late --retries 2 --delay 0.01\npathlib.Path('ready').touch(); {wait}\nraise RuntimeError('sta' + 'le')",
    "a call in a plain cell": "pathlib.Path('ready').touch(); {wait}\nnbflow.durable(version='1')(lambda: 'sta' + 'le')()",
    "an async call": (
        "pathlib.Path('ready').touch(); {wait}\n@nbflow.durable(version='1')\nasync def gone():\n    return 'sta' + 'le'\nawait gone()"
    ),
    "a buffered call": (
        "pathlib.Path('ready').touch(); {wait}\nnbflow.durable(version='1', durability='async')(lambda: 'sta' + 'le')()\n"
        "nbflow.current_run().flush()"
    ),
    "a new cell": None,
    "%nbflow forget": None,
    "%nbflow finish": None,
}
WAIT = "[time.sleep(0.01) for _ in iter(lambda: pathlib.Path('go').exists(), True)]"
AFTER = {
    "a new cell": "%%durable late\nlate = ''.join(['sta', 'le'])",
    "%nbflow forget": "%nbflow forget one",
    "%nbflow finish": "%nbflow finish",
}


def test_every_stale_write_of_a_stopped_kernel_is_lease_lost_and_shows_nowhere(
    pair: tuple[Kernel, Kernel], tmp_path: Path, _own_store: Path
) -> None:
    """SIGSTOP, `%nbflow steal` in another kernel, SIGCONT: whatever the old owner was about to write, nothing of it shows."""
    first, second = pair
    for kernel in pair:
        for source in ("%load_ext nbflow", READY):
            assert kernel.run(source).ok
    assert first.run("%%durable one\nx = sum([1])").ok
    for number, (what, code) in enumerate(STALE.items()):
        ready, go = tmp_path / "ready", tmp_path / "go"
        ready.unlink(missing_ok=True), go.unlink(missing_ok=True)
        message = ""
        if code is not None:
            message = first.send(code.format(wait=WAIT))
            wait_for(ready.exists, what)
        os.kill(first.pid, signal.SIGSTOP)
        wait_for(lambda: stopped(first.pid), what)
        assert second.run("%%durable by_thief\ny = sum([1])").errors[0]["ename"] in (
            "LeaseHeld",
            "LeaseLost",
        ), what
        assert second.run("%nbflow steal").ok, what
        assert second.run(f"%%durable thief{number}\ny = sum([{number}])").ok, what
        before = entries(_own_store)
        go.touch()
        os.kill(first.pid, signal.SIGCONT)
        late: Cell = first.collect(message) if message else first.run(AFTER[what])
        assert not late.ok, what
        if what == "a failure":  # the user's own exception comes first, and has the refusal as a note
            assert late.errors[0]["ename"] == "RuntimeError"
            said = "\n".join(late.errors[0]["traceback"])
            assert "could not record this failure" in said and "taken over" in said
        else:
            assert late.errors[0]["ename"] == "LeaseLost", (what, late.errors[0]["evalue"])
            assert re.search("took this run over|taken over", late.errors[0]["evalue"]), what
        refused = first.run("%%durable more\nz = ''.join(['sta', 'le'])")
        assert refused.errors[0]["ename"] == "LeaseLost", what
        assert entries(_own_store) == before, what
        assert first.run("%nbflow steal").ok, what  # the way out that the message names
        assert "late" not in completed(_own_store) and "more" not in completed(_own_store), what
        shown = str(first.run("%nbflow steps").outputs)
        assert "stale" not in shown and f"thief{number}" in shown, what
    assert len(infos(_own_store)) == 1
    done = completed(_own_store)
    assert done == {"one": 1, **{f"thief{number}": 1 for number in range(len(STALE))}}
    text = repr(first.run("import nbflow\nnbflow.sql('select * from events').to_csv()").result)
    assert "thief0" in text
    assert "stale" not in text
    first.close()
    database_is_whole(_own_store)


SCRIPT = """
import os, sys, time, pathlib
import nbflow
from nbflow.core.errors import LeaseLost
folder = pathlib.Path(sys.argv[1])

@nbflow.durable(version="1")
def step(n, wait=False):
    if wait:
        (folder / "ready").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return n

try:
    with nbflow.run("etl", store=folder / ".nbflow", steal="--steal" in sys.argv):
        step(1)
        if "--steal" in sys.argv:
            step(2)
            print("took")
        else:
            step(3, wait=True)
except LeaseLost as error:
    print("LeaseLost", error.run)
"""


def test_a_script_that_was_stopped_and_robbed_leaves_nothing(tmp_path: Path, _own_store: Path) -> None:
    """`nbflow.run(..., steal=True)` completes the run of a stopped script; that one ends with LeaseLost and changes nothing."""

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), *options], stdout=subprocess.PIPE, text=True
        )

    owner = start()
    try:
        wait_for((tmp_path / "ready").exists, "the first script starts")
        os.kill(owner.pid, signal.SIGSTOP)
        wait_for(lambda: stopped(owner.pid), "stop")
        assert start("--steal").communicate(timeout=60)[0] == "took\n"
        before: History = history(_own_store)
        (tmp_path / "go").touch()
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.communicate(timeout=60)[0].startswith("LeaseLost")
    finally:
        owner.kill()
    after = history(_own_store)
    assert [step.step.partition(":")[0] for step in after.steps() if step.state == "completed"] == [
        "step",
        "step",
    ]
    assert len(before.executions) == len(after.executions)
    assert [info.state for info in infos(_own_store)] == ["completed"]
    database_is_whole(_own_store)
