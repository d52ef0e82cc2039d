"""What the tests of the journal side share: a run on disk, its records, and owners in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from nbflow.core.model import Entry, Owner, RunOpened, StepStarted
from nbflow.store.folder import RunFolder
from nbflow.store.lease import this_owner
from nbflow.store.log import FileRunLog
from nbflow.values.leaf import Leaf

KEY = b"a key of exactly 32 bytes, yes!!"
RUN = "0193a0b0-0000-7000-8000-000000000001"

#: What every child begins with.
PRELUDE = """
import os, signal, sys, time
from collections.abc import Callable
from pathlib import Path
from nbflow.core.errors import *
from nbflow.core.model import *
from nbflow.store.folder import RunFolder
from nbflow.store.lease import this_owner
from tests.store.journal_kit import KEY, RUN, leaf, owner, started, wait_for
folder = RunFolder(Path(sys.argv[1]), KEY)
def say(word):
    print(word, flush=True)
"""


def new_run(root: Path, run: str = RUN) -> RunFolder:
    """Create a run below `root`."""
    folder = RunFolder(root / run, KEY)
    folder.create(RunOpened(run=run, workflow="demo"))
    return folder


def owner() -> Owner:
    """Describe this process."""
    return this_owner(time.time(), program="a test")


def quick_root() -> Path:
    """Make a folder whose syncs cost nothing, where there is one: for tests of what is read, not of what is durable."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="nbflow-test-", dir=memory if os.access(memory, os.W_OK) else None))


def attached(root: Path) -> tuple[RunFolder, FileRunLog]:
    """Create a run and attach to it."""
    folder = new_run(root)
    return folder, folder.attach(owner())


def started(number: int, size: int = 40) -> StepStarted:
    """Make a record that is told from others by its number."""
    return StepStarted(step=f"step-{number}", name="n" * size, step_kind="call", signature=bytes(32))


def numbers(entries: list[Entry]) -> list[int]:
    """Return the numbers of the `started` records among the entries."""
    return [int(e.record.step.split("-")[1]) for e in entries if isinstance(e.record, StepStarted)]


def leaf(data: bytes, form: str = "") -> Leaf:
    """Make a leaf of bytes."""
    return Leaf(blake3(data).digest(), len(data), [memoryview(data)], form)


def child(folder: Path, code: str, *, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a process that runs `code` behind the prelude; its stdin and stdout are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=Path(__file__).parents[2],
    )


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return when the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
