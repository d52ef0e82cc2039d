"""joblib.Memory: a cache of pickles in files, renamed into place, not synced."""

from __future__ import annotations

import time
from pathlib import Path

from joblib import Memory, Parallel, delayed

from benchmarks.peers import workloads
from benchmarks.peers.workloads import Body, Peer, Steps, serve


class Joblib(Peer):
    """Each process of a workflow has its own folder below the store, as each run has with the others."""

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Call through the cache; a resumed workflow is one whose calls are found."""
        del resume
        memory = Memory(folder / name, verbose=0)
        body(Steps(memory.cache(workloads.work), memory.cache(workloads.big)))

    def at_once(self, folder: Path, count: int) -> float:
        """Let eight threads of joblib.Parallel call."""
        step = Memory(folder / "many", verbose=0).cache(workloads.work)
        began = time.perf_counter()
        Parallel(n_jobs=8, prefer="threads")(delayed(step)(number) for number in range(count))
        return time.perf_counter() - began


if __name__ == "__main__":
    serve(Joblib())
