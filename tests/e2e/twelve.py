"""A script of twelve durable steps, to be killed anywhere and started again.

`python twelve.py STORE EFFECTS` appends one fsynced line to EFFECTS for each
body that really ran, and prints the final result as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

import nbflow

effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def effect(name: str) -> None:
    os.write(effects, f"{name}\n".encode())
    os.fsync(effects)


@nbflow.durable(version="1")
def number(n: int, before: int) -> int:
    effect(f"number{n}")
    return before * 3 + n


@nbflow.durable(version="1")
def array(n: int, before: int) -> np.ndarray:
    effect(f"array{n}")
    return np.arange(10_000, dtype="float64") + n + before % 7


@nbflow.durable(version="1", durability="async")
def pure(n: int, before: int) -> dict[str, int]:
    effect(f"pure{n}")
    return {"value": before + n}


with nbflow.run("twelve", store=sys.argv[1]) as run:
    total = 1
    for n in range(12):
        if n % 4 == 1:
            total += int(array(n, total).sum()) % 1000
        elif n % 4 == 2:
            total = pure(n, total)["value"]
        else:
            total = number(n, total)
print(json.dumps({"total": total, "attempt": run.attempt}))
