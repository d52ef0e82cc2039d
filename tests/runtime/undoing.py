"""A script that fails after three steps and undoes them, to be killed anywhere in between and started again.

`python undoing.py STORE EFFECTS [N]` appends one fsynced line to EFFECTS for
each body that really ran. With N the process is killed at the N-th crash point
after the failure. It prints the error it ended with as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import nbflow
from nbflow.core import crashpoints

effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(name: str) -> None:
    os.write(effects, f"{name}\n".encode())
    os.fsync(effects)


def delete(made: str, name: str) -> None:
    assert made == f"made {name}"
    effect(f"undo-{name}")


@nbflow.durable(version="1", compensate=delete)
def make(name: str) -> str:
    effect(f"do-{name}")
    return f"made {name}"


@nbflow.durable(version="1")
def both(first: str, second: str) -> str:
    return make(first) + make(second)


try:
    with nbflow.run("undoing", store=sys.argv[1], resume=sys.argv[4] if len(sys.argv) > 4 else None):
        make("a")
        both("b", "c")
        if len(sys.argv) > 3 and sys.argv[3] != "0":
            crashpoints.arm(f"*:{sys.argv[3]}")
        raise LookupError("the original")
except LookupError as error:
    print(json.dumps([type(error).__name__, str(error)]))
