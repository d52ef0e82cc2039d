"""What the tests of the database side share: recorded values, and processes that work on a store."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from nbflow.core.model import StepCompleted, StepStarted
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunLog
from nbflow.values.codec import decode, encode

PRELUDE = """
import os, sys, time
from nbflow.store.local import LocalStore
from tests.store.conformance import *
from tests.store.store_kit import *
store = LocalStore(sys.argv[1], background=False)
"""


def child(store: Path, code: str, **env: str) -> subprocess.Popen[str]:
    """Start a process that works on the store; its stdin and stdout are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def record(log: RunLog, step: str, signature: bytes = b"s" * 32, **values: Any) -> int:
    """Record a step with these values; return its execution."""
    encoded = encode(values)
    execution = log.append(StepStarted(step=step, name=step, step_kind="cell", signature=signature))
    refs = log.put_leaves(encoded.leaves)
    log.append(StepCompleted(execution=execution, step=step, checkpoint=encoded.checkpoint(refs)))
    return execution


def restored(store: LocalStore, run: str, step: str) -> dict[str, Any]:
    """Decode the newest recorded values of a step."""
    for entry in reversed(store.entries(run)):
        found = entry.record
        if isinstance(found, StepCompleted) and found.step == step and found.checkpoint is not None:
            refs = {ref.digest: ref for ref in found.checkpoint.leaves}
            return decode(found.checkpoint, lambda digest: store.leaf(run, refs[digest]))
    raise AssertionError(f"{step} is not recorded")
