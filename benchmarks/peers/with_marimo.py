"""marimo: `persistent_cache` in a notebook run as a script; files renamed into place, not synced."""

from __future__ import annotations

import marimo

app = marimo.App()


@app.cell
def _():
    # `persistent_cache` works only inside a marimo cell: in a plain script it raises IndexError.
    import time
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import marimo as mo

    from benchmarks.peers import workloads
    from benchmarks.peers.workloads import Body, Peer, Steps, serve

    class Marimo(Peer):
        """Each workflow has its own cache folder."""

        def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
            """Call through the cache; a resumed workflow is one whose calls are found."""
            del resume

            @mo.persistent_cache(save_path=str(folder / name))
            def step(number: int) -> dict:
                return workloads.work(number)

            @mo.persistent_cache(save_path=str(folder / name))
            def frame() -> object:
                return workloads.big()

            body(Steps(step, frame))

        def at_once(self, folder: Path, count: int) -> float:
            """Call from eight threads."""

            @mo.persistent_cache(save_path=str(folder / "many"))
            def step(number: int) -> dict:
                return workloads.work(number)

            with ThreadPoolExecutor(8) as pool:
                began = time.perf_counter()
                list(pool.map(step, range(count)))
                return time.perf_counter() - began

    serve(Marimo())


if __name__ == "__main__":
    app.run()
