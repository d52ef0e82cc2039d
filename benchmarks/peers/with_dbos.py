"""DBOS on SQLite: steps of a workflow, committed and synced when they return."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.peers import workloads
from benchmarks.peers.workloads import Body, Peer, Steps, serve

bodies: list[Body] = []


@DBOS.step()
def step(number: int) -> dict[str, Any]:
    """Be a small step."""
    return workloads.work(number)


@DBOS.step()
def frame() -> Any:
    """Be a step with a large result."""
    return workloads.big()


@DBOS.step()
async def step_async(number: int) -> dict[str, Any]:
    """Be one of many steps at once."""
    return workloads.work(number)


@DBOS.workflow()
def workflow() -> None:
    """Call the body that this process is to run."""
    bodies[0](Steps(step, frame))


@DBOS.workflow()
async def many(count: int) -> float:
    """Run steps at once and return the seconds."""
    began = time.perf_counter()
    await asyncio.gather(*(step_async(number) for number in range(count)))
    return time.perf_counter() - began


class Dbos(Peer):
    """A workflow id is a run. What did not end is recovered when DBOS is launched."""

    def run(self, folder: Path, name: str, body: Body, *, resume: bool = False) -> None:
        """Start the workflow, or wait for the one that the launch recovers."""
        bodies.append(body)
        self._launch(folder, name)
        if resume:
            DBOS.retrieve_workflow(name).get_result()
        else:
            with SetWorkflowID(name):
                workflow()

    def at_once(self, folder: Path, count: int) -> float:
        """Gather async steps in one workflow."""
        self._launch(folder, "many")
        return asyncio.run(many(count))

    def _launch(self, folder: Path, executor: str) -> None:
        config: DBOSConfig = {
            "name": "peers",
            "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}",
            "executor_id": executor,  # a process recovers what its executor left, not what its neighbours do
            "run_admin_server": False,
            "log_level": "ERROR",
        }
        DBOS(config=config)
        DBOS.launch()


if __name__ == "__main__":
    serve(Dbos())
