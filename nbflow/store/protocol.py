"""What a store must do. Two seams: `Store` (all runs) and `RunLog` (one run, held under its lease).

Each method has a contract: units, what comes back when there is nothing, what
is atomic. One conformance suite (`tests/store/conformance.py`) tests every
implementation. `runtime` and everything above it know only this page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from nbflow.core.model import AnyRecord, Entry, LeafRef, Message, Owner, RunInfo, RunOpened, StepInfo
from nbflow.values.leaf import Leaf

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

#: "synced": on disk when `append` returns. "written": handed to the operating
#: system, so a kill of the process does not lose it: at once, or right behind the
#: sync of another thread that is under way. "buffered": on disk within 10 ms, in
#: order, flushed before any later synced append returns.
Durability = Literal["synced", "written", "buffered"]


@dataclass(frozen=True)
class RunQuery:
    """Which runs to list: newest first, `limit` from `offset`. None or empty filters nothing.

    `workflow` may hold `*` (glob). `tags` must all match. Times are UTC seconds,
    compared with the creation of the run. Without `children` only runs are listed
    that no other run started. `runs` names the only ones that are wanted, by their
    whole ids. `wait` is how many seconds a database that somebody else has open is
    waited for.
    """

    workflow: str | None = None
    states: Sequence[str] = ()
    tags: dict[str, str] | None = None
    since: float | None = None
    until: float | None = None
    limit: int | None = 100
    offset: int = 0
    children: bool = True
    runs: Sequence[str] = ()
    wait: float = 5.0


@dataclass(frozen=True)
class Retention:
    """What may be deleted: finished runs older than `age` seconds, beyond `keep` per workflow, or over `size` bytes."""

    age: float | None = None
    keep: int | None = None
    size: int | None = None
    workflow: str | None = None


@dataclass(frozen=True)
class Finding:
    """One line of a health report. `level` is ok, warning or error; `repair` says what repair would do."""

    level: Literal["ok", "warning", "error"]
    subject: str
    message: str
    repair: str = ""


class RunLog(Protocol):
    """The lease of one run: only its holder appends.

    Every method raises `LeaseLost` once another owner took the run over, and
    `NotTheOwner` in a forked child. Safe to use from several threads.
    """

    @property
    def run(self) -> str:
        """The run's id."""
        ...

    @property
    def generation(self) -> int:
        """The lease's number; every takeover raises it."""
        ...

    @property
    def attempt(self) -> int:
        """How often the run was attached, this time included."""
        ...

    @property
    def history(self) -> Sequence[Entry]:
        """All entries up to and including this attach."""
        ...

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        """Append records in order, all or none, and return the seq of the first.

        Concurrent synced appends share one write and one fdatasync.

        Raises:
            StoreFull, StoreError: nothing of the records is kept, earlier ones stay.
        """
        ...

    def append_async(self, *records: AnyRecord) -> Awaitable[int]:
        """Append as "synced" without blocking the running event loop; await it for the first seq."""
        ...

    def put_leaves(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        """Write buffers and fsync them once; those the run already holds are not written again.

        References come back in the order given. Call before appending the record that names them.
        """
        ...

    def leaf(self, ref: LeafRef) -> memoryview:
        """Return the leaf's bytes, mapped copy-on-write: writable, private, lazy.

        Raises:
            CorruptLeaf: missing, cut, or of another digest (checked once per leaf and process,
                by size at once and by digest on request of `verify` or on load from the database).
        """
        ...

    def messages(self) -> list[Message]:
        """Return messages in the inbox that no `MessageTaken` record names yet, oldest first; [] when none."""
        ...

    def flush(self) -> None:
        """Return when everything appended so far is on disk."""
        ...

    def release(self) -> None:
        """Flush and give the lease up; later calls raise `LeaseLost`. Releasing twice is fine."""
        ...


class Store(Protocol):
    """All runs of one place. Safe to use from several threads and processes at once."""

    def create(self, opened: RunOpened) -> None:
        """Create a run; its first record is on disk when this returns.

        Raises:
            DuplicateRecord: the run exists.
        """
        ...

    def attach(
        self,
        run: str,
        owner: Owner,
        *,
        steal: bool = False,
        continued: bool = False,
        versions: dict[str, str] | None = None,
    ) -> RunLog:
        """Take the run's lease, raise its generation and append `RunAttached`.

        It is a new attempt of the run, or with `continued` the last one, which goes
        on in another process.

        Raises:
            LeaseHeld: a living owner has it and `steal` is False.
            UnknownRun, RunFinished, CorruptRecord.
        """
        ...

    def newest_open(
        self, workflow: str, params: dict[str, Any] | None = None, variant: str = ""
    ) -> RunInfo | None:
        """Return the newest run of the workflow that is not completed or cancelled; None when there is none.

        With `params` only a run of equal parameters counts, and only one of the
        `variant`; a child never does, for its parent carries it on. Looks at the folders of unfinished runs,
        never at the database.
        """
        ...

    def entries(self, run: str) -> list[Entry]:
        """Return all counted entries of the run in order, from its journal or the database.

        Raises:
            UnknownRun, CorruptRecord.
        """
        ...

    def tail(self, run: str, position: Any = None) -> tuple[list[Entry], list[Message], Any]:
        """Return the run's entries behind an earlier look, its waiting messages, and the new position.

        Without `position` all entries. A position is opaque, of one run, and stays valid when
        the run is finished and its folder goes away. Messages are those that no entry names yet.

        Raises:
            UnknownRun, CorruptRecord.
        """
        ...

    def changes(self, seen: Any = None) -> tuple[frozenset[str], Any]:
        """Return the unfinished runs that changed since an earlier look, and what to give to the next look.

        Without `seen` all runs that are not finished. One that was finished or deleted meanwhile is told
        once. Costs a few system calls a run, never the database: for who looks several times a second.
        """
        ...

    def leaf(self, run: str, ref: LeafRef) -> memoryview:
        """Return a leaf's bytes without holding the lease, from the run's folder or the database.

        Raises:
            CorruptLeaf: it is nowhere, or its bytes are not those of the digest.
        """
        ...

    def send(self, run: str, message: Message) -> None:
        """Put a message into the run's inbox, durably; the owner records it.

        A decision about a gate is admitted (`core.gates.admit`) under the lock that
        orders all senders and the owner, so that of two decisions the first one wins.

        Raises:
            UnknownRun, RunFinished.
            GateDecided, UnknownStep, UsageError: the decision was refused, nothing was sent.
        """
        ...

    def runs(self, query: RunQuery = RunQuery()) -> list[RunInfo]:
        """List runs, newest first; a damaged run is listed with state "corrupt" and its error, and hides no other.

        Raises:
            StoreBusy: another process has the database open and did not let go within `query.wait`.
        """
        ...

    def run(self, run: str) -> RunInfo:
        """Return one run by id or unambiguous prefix of 4 characters or more.

        The id of a child begins as its parent's does: where both match, the parent is meant.

        Raises:
            UnknownRun: none, or several (the message lists them).
        """
        ...

    def steps(self, run: str) -> list[StepInfo]:
        """List all executions of the run in order; [] when nothing ran."""
        ...

    def sql(self, query: str, *, run: str | None = None) -> pd.DataFrame:
        """Run read-only SQL over the views and over recorded frames (`step.variable` of `run`).

        Raises:
            StoreBusy: another process has the database open and did not let go within 5 s.
            UnknownStep: a table names no recorded frame.
        """
        ...

    def ingest(self) -> int:
        """Copy what the journals hold and the database lacks; return how many records. Safe to kill."""
        ...

    def compact(self, run: str | None = None) -> int:
        """Copy raw leaves into native columns, then reclaim stale ones; return how many leaves. Safe to kill."""
        ...

    def delete(self, run: str) -> None:
        """Delete a run, its outputs and its folder.

        Raises:
            UnknownRun; LeaseHeld: it has a living owner.
        """
        ...

    def collect(self, retention: Retention, *, dry_run: bool = False) -> list[RunInfo]:
        """Delete what the retention lets go and return it; never a run that is alive or may be resumed."""
        ...

    def check(self, *, repair: bool = False) -> list[Finding]:
        """Look at the store's health (locks, versions, damage) and mend what can be mended."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the store's place, size in bytes, schema and library versions, for `doctor`."""
        ...

    def shared(self, name: str, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Change a small named value that all processes share, and return what `change` returns beside it.

        `change` gets the value (None where there is none) and returns the new one
        (None deletes it): atomic among all threads and processes. It must be quick
        and must not use the store. A `change` that raises leaves the value alone. A
        kill at any moment leaves the old value or the new one and blocks nobody;
        nothing is synced, so a power failure may lose it.

        Raises:
            StoreBusy: others did not let go within 10 s.
            StoreFull, StoreReadOnly: the old value stays.
        """
        ...

    def close(self) -> None:
        """Stop background work after one last ingest. Closing twice is fine."""
        ...
