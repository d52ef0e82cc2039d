"""diskcache: memoized calls in SQLite with files for large values, not synced at each call."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diskcache import Cache

from benchmarks.peers import workloads
from benchmarks.peers.workloads import Body, Peer, Steps, serve


class Diskcache(Peer):
    """One cache for all; the workflow's name is part of each key."""

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Call through the cache; a resumed workflow is one whose calls are found."""
        del resume
        with Cache(str(folder), size_limit=2**33) as cache:
            step = cache.memoize(name=f"{name}-step")(workloads.work)
            frame = cache.memoize(name=f"{name}-frame")(workloads.big)
            body(Steps(step, frame))

    def at_once(self, folder: Path, count: int) -> float:
        """Call from eight threads."""
        with Cache(str(folder), timeout=60) as cache, ThreadPoolExecutor(8) as pool:
            step = cache.memoize(name="many")(workloads.work)
            began = time.perf_counter()
            list(pool.map(step, range(count)))
            return time.perf_counter() - began


if __name__ == "__main__":
    serve(Diskcache())
