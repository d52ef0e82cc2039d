"""nbflow itself: `@nbflow.durable` calls in `nbflow.run`, on disk when they return."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbflow
from benchmarks.peers import workloads
from benchmarks.peers.workloads import Body, Peer, Steps, serve

step = nbflow.durable(workloads.work)
frame = nbflow.durable(workloads.big)


class Nbflow(Peer):
    """A run carries on by itself: its newest unfinished one is resumed."""

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Open the run; the resumed one is found by its name."""
        del resume
        with nbflow.run(name, store=folder):
            body(Steps(step, frame))

    def at_once(self, folder: Path, count: int) -> float:
        """Call from 16 threads."""
        with nbflow.run("many", store=folder), ThreadPoolExecutor(16) as pool:
            began = time.perf_counter()
            list(pool.map(step, range(count)))
            return time.perf_counter() - began


if __name__ == "__main__":
    serve(Nbflow())
