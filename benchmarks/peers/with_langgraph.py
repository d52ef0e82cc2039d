"""LangGraph: tasks of a functional workflow with its SQLite checkpointer, durability="sync"."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint, task

from benchmarks.peers import workloads
from benchmarks.peers.workloads import Body, Peer, Steps, serve


class Crash(Exception):
    """Ends the workflow's first attempt: what tasks returned is kept, the workflow is not done."""


@task
def step(number: int) -> dict[str, Any]:
    """Be a small task."""
    return workloads.work(number)


@task
def frame() -> Any:
    """Be a task with a large result."""
    return workloads.big()


class Langgraph(Peer):
    """A thread of the checkpointer is a workflow. Results are committed a little after `result()` returns."""

    saved_with_the_run = True

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Invoke the entry point; invoking it with None on the same thread resumes."""
        with self._saver(folder) as saver:

            @entrypoint(checkpointer=saver)
            def workflow(_: Any) -> None:
                body(Steps(lambda number: step(number).result(), lambda: frame().result()))

            with contextlib.suppress(Crash):
                workflow.invoke(
                    None if resume else 1, {"configurable": {"thread_id": name}}, durability="sync"
                )

    def at_once(self, folder: Path, count: int) -> float:
        """Start all tasks, eight at a time, then wait for them."""
        took = [0.0]
        with self._saver(folder) as saver:

            @entrypoint(checkpointer=saver)
            def workflow(_: Any) -> None:
                for future in [step(number) for number in range(count)]:
                    future.result()

            began = time.perf_counter()
            workflow.invoke(
                1, {"configurable": {"thread_id": "many"}, "max_concurrency": 8}, durability="sync"
            )
            took[0] = time.perf_counter() - began
        return took[0]

    def crash(self) -> None:
        """Fail: results that `result()` gave are committed when the failing workflow returns."""
        raise Crash

    def _saver(self, folder: Path) -> contextlib.AbstractContextManager[SqliteSaver]:
        @contextlib.contextmanager
        def opened():
            with SqliteSaver.from_conn_string(str(folder / "langgraph.sqlite")) as saver:
                saver.serde = JsonPlusSerializer(pickle_fallback=True)
                yield saver

        return opened()


if __name__ == "__main__":
    serve(Langgraph())
