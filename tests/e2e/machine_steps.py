"""A machine with a task of every kind, to be killed anywhere and started again.

`python machine_steps.py STORE EFFECTS` appends one fsynced line to EFFECTS for
each body that really ran, and prints the final state and data as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import nbflow
from nbflow import Again, Branch, Continue, Join, Machine, Split
from nbflow.runtime.scope import enclosing
from nbflow.store.local import process_store
from nbflow.store.protocol import RunQuery

effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(number: int = -1) -> None:
    scope = enclosing()
    assert scope is not None
    os.write(effects, json.dumps([scope.step, number]).encode() + b"\n")
    os.fsync(effects)


@nbflow.durable(version="1")
def fetch(n: int) -> int:
    effect()
    return n * 3


inner = Machine("inner", ["one", "end"], initial="one", final={"end"})


@inner.state("one", to="end")
def one(ctx):
    ctx.n = fetch(ctx.n)
    return "end"


LABELS = [
    "load",
    "train",
    "batch",
    "split",
    "left",
    "right",
    "more",
    "loser",
    "join",
    "poll",
    "wait",
    "loop",
    "end",
]
machine = Machine("steps", LABELS, initial="load", final={"end"})


@machine.state("load", to="train")
def load(ctx):
    effect()
    ctx.rows = [fetch(1), fetch(2)]
    return "train"


@machine.state("train", kind="stepped", to="batch")
def train(ctx, cursor):
    fold = cursor or 0
    effect(fold)
    ctx.rows.append(fold)
    return Continue(fold + 1) if fold < 4 else "batch"


batch = machine.state("batch", kind="batch", max_parallel=3, to="split")(lambda ctx: list(range(6)))


@batch.process
def process(ctx, item):
    effect()
    return item * item


@batch.finish
def finish(ctx, results):
    ctx.squares = results
    return "split"


@machine.state("split")
def split(ctx):
    branches = ["left", Branch("right", given=[7]), "loser"]
    return Split(branches, join=Join.quorum(2), to="join")


@machine.state("left", to="join")
def left(ctx):
    effect()
    ctx.left = fetch(10)
    return "join"


@machine.state("right", to="more")
def right(ctx):
    effect()
    ctx.given.append(8)
    return "more"


@machine.state("more", to="join")
def more(ctx):
    effect()
    ctx.right = sum(ctx.given)
    return "join"


@machine.state("loser", to="join")
def loser(ctx):
    raise LookupError("always")


@machine.state("join", to="poll")
def join(ctx):
    effect()
    ctx.child = nbflow.child(inner, n=5)
    return "poll"


@machine.state("poll", kind="poll", every="1ms", to="wait")
def poll(ctx):
    ctx.asked = ctx.get("asked", 0) + 1
    return Again() if ctx.asked < 3 else "wait"


@machine.state("wait", kind="timer", after="5ms", to="loop")
def wait(ctx):
    effect()
    return "loop"


@machine.state("loop", to=["loop", "end"], compensate=lambda ctx: effect())
def loop(ctx):
    effect()
    ctx.round = ctx.get("round", 0) + 1
    return "loop" if ctx.round < 3 else "end"


if __name__ == "__main__":
    place = process_store(sys.argv[1])
    # A process that was killed behind the end of the run must not begin another one.
    begun = place.newest_open("steps") or next(iter(place.runs(RunQuery(workflow="steps", limit=1))), None)
    end = machine.resume(begun.run, store=place) if begun is not None else machine.run(store=place)
    print(
        json.dumps(
            {"end": end, "data": machine.results(begun.run if begun is not None else None, store=place)}
        )
    )
