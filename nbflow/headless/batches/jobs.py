"""What a batch is made of: its plan as it is recorded, one job for a worker, and what becomes of it.

Plan ── Item, Item, …       recorded in the batch's own run (`RunOpened.launch`), so it can be resumed alone
  └── Job of each item      all that a worker process needs; plain data, on any machine
        └── Outcome         what the worker says at the end; Progress while it works
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from nbflow.core.errors import CorruptRecord
from nbflow.core.model import ErrorInfo, RunOpened
from nbflow.headless.waiting import Waiting
from nbflow.runtime.gates.ahead import Approvals

#: `RunOpened.workflow_kind` of a batch's run, and its `variant`: what tells it from the notebook's own runs.
BATCH = "batch"


class Item(msgspec.Struct, frozen=True):
    """One notebook of a batch: `index` counts from 0, `origin` says where the parameters stand ("params.csv, line 3").

    `run` is the id of its run and `output` the path or URL of the executed notebook.
    """

    index: int
    params: dict[str, Any]
    run: str
    output: str
    origin: str = ""

    @property
    def step(self) -> str:
        """The key of the item's step in the batch's run."""
        return f"item#{self.index}"


class Options(msgspec.Struct, frozen=True):
    """How the notebooks of a batch are run. Times in seconds, `memory` in bytes; None leaves it to papermill.

    `threads` is how many threads numeric libraries may use in each kernel; None leaves that to them.
    """

    kernel: str | None = None
    cwd: str | None = None
    collect: tuple[str, ...] = ()
    threads: int | None = 1
    memory: int | None = None
    start_timeout: int = 60
    execution_timeout: int | None = None
    report_mode: bool = False


class Plan(msgspec.Struct, frozen=True):
    """All of a batch: the notebook's path or URL, its items, and how they are run."""

    notebook: str
    items: tuple[Item, ...]
    options: Options = Options()

    def recorded(self) -> dict[str, Any]:
        """Return the plan as plain data for `RunOpened.launch`."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def read(cls, launch: dict[str, Any]) -> Plan:
        """Return the plan that a batch's run was opened with."""
        return msgspec.convert(launch, cls)

    @classmethod
    def of(cls, opened: RunOpened) -> Plan:
        """Return the plan that stands in the first record of a batch's run.

        Raises:
            CorruptRecord: it cannot be read.
        """
        try:
            return cls.read(opened.launch)
        except ValueError as error:
            raise CorruptRecord(
                f"The plan of batch {opened.run} cannot be read: {error}",
                run=opened.run,
                hint="It was recorded by another version of nbflow.",
            ) from error


class Job(msgspec.Struct, frozen=True):
    """One item as a worker gets it. `scratch` is a folder of its own for what must not stay, made by the worker.

    `begun` says that the item's run exists: it is carried on, and where its folder is
    gone it has come to an end elsewhere, and is not begun a second time. `approve`
    names gates that are approved when the notebook comes to them.
    """

    batch: str
    item: Item
    notebook: str
    store: str
    options: Options
    scratch: str
    begun: bool = False
    approve: Approvals = Approvals()


class Progress(msgspec.Struct, frozen=True):
    """How far a job is: so many cells of so many are done, of which some were restored."""

    cells: int
    total: int
    restored: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """How a job ended. `seconds` counts this attempt; `log` holds the last lines of what the worker wrote.

    `cell` is the cell of the executed notebook that failed, counted from 0. A notebook
    that stopped at a gate is `waiting` for a decision about it: it neither failed nor completed.
    """

    state: Literal["completed", "failed", "cancelled", "waiting"]
    seconds: float
    attempt: int | None = None
    restored: int = 0
    ran: int = 0
    error: ErrorInfo | None = None
    log: str = ""
    cell: int | None = None
    waiting: Waiting | None = None

    def is_of(self, kind: type[BaseException]) -> bool:
        """Tell whether this very error of nbflow's ended it, and not one that the notebook raised.

        >>> Outcome("failed", 0.0, error=ErrorInfo(type="KeyError", message="day")).is_of(KeyError)
        False
        """
        return self.error is not None and self.error.type == f"{kind.__module__}.{kind.__qualname__}"


#: Closes the recorded error of a notebook that failed: what to do next.
AGAIN = "Resume the batch, and it carries on from its last recorded cell."

#: What is told of a job while it works.
Told = Callable[[Progress], None]


class Workers(Protocol):
    """Where jobs are done: processes of this machine, a Dask cluster. `run` is called from `width` threads at once."""

    @property
    def width(self) -> int:
        """How many jobs are done at a time."""
        ...

    def run(self, job: Job, told: Told) -> Outcome:
        """Do a job and return how it ended.

        Raises:
            WorkerLost: whoever did it died; the notebook's run can be carried on.
        """
        ...

    def stop(self) -> None:
        """End the jobs at work now, from any thread; their `run` raises `WorkerLost`."""
        ...

    def close(self) -> None:
        """Let the workers go. Closing twice is fine."""
        ...


class Watcher(Protocol):
    """Who looks on while a batch runs: the live table, a line in a notebook. Called from one thread at a time."""

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """The batch begins or goes on; the items `done` are completed already."""
        ...

    def started(self, item: Item, attempt: int) -> None:
        """An item begins; `attempt` counts the tries of this runner, from 1."""
        ...

    def progress(self, item: Item, progress: Progress) -> None:
        """A cell of an item is done."""
        ...

    def ended(self, item: Item, outcome: Outcome) -> None:
        """An item came to an end, good or bad, or waits at a gate and needs no worker until it is decided."""
        ...

    def held(self, item: Item, outcome: Outcome) -> None:
        """An item waits at a gate since an earlier attempt at the batch: it is not begun."""
        ...

    def lost(self, item: Item, error: Exception, again: bool) -> None:
        """The worker of an item is gone; `again` tells whether it is tried once more."""
        ...

    def stopping(self, why: str) -> None:
        """Nothing new starts any more; `why` is a sentence."""
        ...

    def end(self, state: str) -> None:
        """The batch is over for this time: completed, failed, waiting, cancelled, or interrupted."""
        ...


class Unwatched:
    """A `Watcher` that looks away; a base for those who want to see only some of what happens."""

    def begin(self, run: str, plan: Plan, done: frozenset[int]) -> None:
        """See `Watcher`."""

    def started(self, item: Item, attempt: int) -> None:
        """See `Watcher`."""

    def progress(self, item: Item, progress: Progress) -> None:
        """See `Watcher`."""

    def ended(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""

    def held(self, item: Item, outcome: Outcome) -> None:
        """See `Watcher`."""

    def lost(self, item: Item, error: Exception, again: bool) -> None:
        """See `Watcher`."""

    def stopping(self, why: str) -> None:
        """See `Watcher`."""

    def end(self, state: str) -> None:
        """See `Watcher`."""
