"""The floor: write + fdatasync of the same bytes, and nothing that could be resumed by itself."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import SyncedFile
from benchmarks.peers.workloads import Body, Peer, Steps, big, serve, work


class Nothing(Peer):
    """A file of JSON lines, a file with the frame's pickle."""

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Append to the file, or read all of it first and give back what it holds."""
        lines = (folder / name).read_text().splitlines() if resume else []
        known = {value["id"]: value for value in map(json.loads, lines)}
        file = SyncedFile(folder / name)

        def step(number: int) -> Any:
            if number in known:
                return known[number]
            value = work(number)
            file.append(json.dumps(value).encode() + b"\n")
            return value

        def frame() -> Any:
            if resume:
                with (folder / "frame.pickle").open("rb") as stored:
                    return pickle.load(stored)
            with (folder / "frame.pickle").open("wb") as stored:
                pickle.dump(big(), stored, protocol=5)
                stored.flush()
                os.fsync(stored.fileno())
            return None

        body(Steps(step, frame))

    def at_once(self, folder: Path, count: int) -> float:
        """Write one after the other: there is nobody who could share a sync."""
        file = SyncedFile(folder / "many")
        began = time.perf_counter()
        for number in range(count):
            file.append(json.dumps(work(number)).encode())
        return time.perf_counter() - began


if __name__ == "__main__":
    serve(Nothing())
