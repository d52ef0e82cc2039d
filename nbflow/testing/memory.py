"""A store without files: the whole protocol in memory, gone with the process."""

from __future__ import annotations

import asyncio
import fnmatch
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from nbflow.core.clock import Clock
from nbflow.core.crashpoints import point
from nbflow.core.errors import (
    CorruptLeaf,
    DuplicateRecord,
    LeaseHeld,
    LeaseLost,
    NbflowError,
    RunFinished,
    UnknownRun,
)
from nbflow.core.history import History
from nbflow.core.model import (
    AnyRecord,
    Entry,
    LeafRef,
    Message,
    Owner,
    RunAttached,
    RunInfo,
    RunOpened,
    StepInfo,
)
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.store.admission import refusal
from nbflow.store.listing import same_params
from nbflow.store.protocol import Durability, Finding, Retention, RunLog, RunQuery
from nbflow.store.system_clock import SystemClock
from nbflow.values.leaf import Leaf

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass
class _MemoryRun:
    entries: list[Entry] = field(default_factory=list)
    leaves: dict[bytes, bytearray] = field(default_factory=dict)
    inbox: list[Message] = field(default_factory=list)
    generation: int = 0
    holder: _MemoryLog | None = None

    def history(self) -> History:
        return History.of(self.entries)


class _MemoryLog:
    """The lease of a run in a `MemoryStore`."""

    def __init__(self, store: MemoryStore, run: str, generation: int, attempt: int) -> None:
        self.run = run
        self.generation = generation
        self.attempt = attempt
        self._store = store
        self._run = store.memory[run]
        self.history: Sequence[Entry] = ()

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        point("memory.append.before")
        with self._store.lock:
            self._check()
            first = self._store.add(self._run, *records)
        point("memory.append.after")
        return first

    async def append_async(self, *records: AnyRecord) -> int:
        await asyncio.sleep(0)
        return self.append(*records)

    def put_leaves(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        self._check()
        for leaf in leaves:
            self._run.leaves.setdefault(leaf.digest, bytearray(b"".join(leaf.parts)))
        return tuple(
            LeafRef(digest=leaf.digest, size=leaf.size, segment="memory", form=leaf.form) for leaf in leaves
        )

    def leaf(self, ref: LeafRef) -> memoryview:
        return self._store.leaf(self.run, ref)

    def messages(self) -> list[Message]:
        self._check()
        taken = self._run.history().taken
        return [message for message in self._run.inbox if message.id not in taken]

    def flush(self) -> None:
        self._check()

    def release(self) -> None:
        if self._run.holder is self:
            self._run.holder = None

    def _check(self) -> None:
        if self._run.holder is not self:
            raise LeaseLost(f"The lease of run {self.run} is gone.", run=self.run)


class MemoryStore:
    """A store in memory: the whole protocol, no files, gone with the process.

    >>> from nbflow.core.model import RunOpened
    >>> store = MemoryStore()
    >>> store.create(RunOpened(run="r", workflow="w"))
    >>> store.run("r").state.value
    'pending'
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.memory: dict[str, _MemoryRun] = {}
        self.values: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self.clock: Clock = clock or SystemClock()

    def add(self, run: _MemoryRun, *records: AnyRecord) -> int:
        first = len(run.entries) + 1
        now = self.clock.now()
        run.entries.extend(Entry(first + index, now, record) for index, record in enumerate(records))
        return first

    def _find(self, run: str) -> _MemoryRun:
        if run not in self.memory:
            raise UnknownRun(f"There is no run {run}.", run=run)
        return self.memory[run]

    def create(self, opened: RunOpened) -> None:
        with self.lock:
            if opened.run in self.memory:
                raise DuplicateRecord(f"Run {opened.run} has its record 1 already.", run=opened.run, seq=1)
            self.memory[opened.run] = _MemoryRun()
            self.add(self.memory[opened.run], opened)

    def attach(
        self,
        run: str,
        owner: Owner,
        *,
        steal: bool = False,
        continued: bool = False,
        versions: dict[str, str] | None = None,
    ) -> RunLog:
        with self.lock:
            memory = self._find(run)
            history = memory.history()
            if history.state in FINAL_RUN_STATES:
                raise RunFinished(f"Run {run} is {history.state}.", run=run)
            if memory.holder is not None and not steal:
                held = history.attached.owner if history.attached else owner
                raise LeaseHeld(f"Run {run} is held by pid {held.pid} on {held.host}.", run=run, pid=held.pid)
            memory.generation += 1
            attempt = (history.attached.attempt if history.attached else 0) + (not continued)
            attempt = max(1, attempt)
            log = memory.holder = _MemoryLog(self, run, memory.generation, attempt)
            self.add(
                memory,
                RunAttached(
                    generation=memory.generation,
                    attempt=attempt,
                    owner=owner,
                    stolen=steal,
                    versions=versions or {},
                ),
            )
            log.history = list(memory.entries)
            return log

    def newest_open(
        self, workflow: str, params: dict[str, Any] | None = None, variant: str = ""
    ) -> RunInfo | None:
        for info in self.runs(RunQuery(states=("pending", "running", "waiting", "failed"), limit=None)):
            opened = self._find(info.run).history().opened
            if (
                info.parent is None
                and info.workflow == workflow
                and opened is not None
                and opened.variant == variant
                and (params is None or same_params(info.params, params))
            ):
                return info
        return None

    def entries(self, run: str) -> list[Entry]:
        return list(self._find(run).entries)

    def leaf(self, run: str, ref: LeafRef) -> memoryview:
        held = self._find(run).leaves.get(ref.digest)
        if held is None:
            raise CorruptLeaf(f"Run {run} lacks a leaf.", run=run, digest=ref.digest)
        return memoryview(bytearray(held))

    def send(self, run: str, message: Message) -> None:
        memory = self._find(run)
        if memory.history().state in FINAL_RUN_STATES:
            raise RunFinished(f"Run {run} is over.", run=run)
        check = refusal(message)
        with self.lock:
            if any(waiting.id == message.id for waiting in memory.inbox):
                return  # sent again to be sure
            if check is not None:
                check(list(memory.entries), self._waiting(memory))
            memory.inbox.append(message)

    def _waiting(self, memory: _MemoryRun) -> list[Message]:
        taken = memory.history().taken
        return [message for message in memory.inbox if message.id not in taken]

    def tail(self, run: str, position: Any = None) -> tuple[list[Entry], list[Message], Any]:
        memory = self._find(run)
        with self.lock:
            entries = list(memory.entries[position or 0 :])
            return entries, self._waiting(memory), len(memory.entries)

    def changes(self, seen: Any = None) -> tuple[frozenset[str], Any]:
        with self.lock:
            now = {
                name: (len(memory.entries), len(memory.inbox))
                for name, memory in self.memory.items()
                if memory.history().state not in FINAL_RUN_STATES
            }
        before = seen or {}
        changed = {run for run, mark in now.items() if before.get(run) != mark}
        return frozenset(changed | (before.keys() - now.keys())), now

    def runs(self, query: RunQuery = RunQuery()) -> list[RunInfo]:
        infos = [self._info(run) for run in self.memory]
        infos.sort(key=lambda info: (info.created_at, info.run), reverse=True)
        found = [info for info in infos if _matches(info, query)]
        end = None if query.limit is None else query.offset + query.limit
        return found[query.offset : end]

    def _info(self, run: str) -> RunInfo:
        import msgspec

        memory = self.memory[run]
        return msgspec.structs.replace(memory.history().info(), alive=memory.holder is not None)

    def run(self, run: str) -> RunInfo:
        names = [name for name in self.memory if name == run] or [
            name
            for name in self.memory
            if len(run) >= 4 and name.startswith(run) and not (self._info(name).parent or "").startswith(run)
        ]
        if len(names) != 1:
            raise UnknownRun(f"{len(names)} runs begin with {run!r}: {', '.join(names) or 'none'}.", run=run)
        return self._info(names[0])

    def steps(self, run: str) -> list[StepInfo]:
        return self._find(run).history().steps()

    def sql(self, query: str, *, run: str | None = None) -> pd.DataFrame:
        raise NbflowError(
            "A MemoryStore has no database.", hint="Use nbflow.store.local.open_store(tmp_path)."
        )

    def ingest(self) -> int:
        return 0

    def compact(self, run: str | None = None) -> int:
        return 0

    def delete(self, run: str) -> None:
        if self._find(run).holder is not None:
            raise LeaseHeld(f"Run {run} has a living owner.", run=run)
        del self.memory[run]

    def collect(self, retention: Retention, *, dry_run: bool = False) -> list[RunInfo]:
        done = [
            info for info in self.runs(RunQuery(workflow=retention.workflow, limit=None)) if info.finished_at
        ]
        gone = [
            info
            for place, info in enumerate(done)
            if (retention.keep is not None and place >= retention.keep)
            or (retention.age is not None and self.clock.now() - (info.finished_at or 0) > retention.age)
        ]
        if not dry_run:
            for info in gone:
                self.delete(info.run)
        return gone

    def shared(self, name: str, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        with self.lock:
            after, result = change(self.values.get(name))
            if after is None:
                self.values.pop(name, None)
            else:
                self.values[name] = after
            return result

    def check(self, *, repair: bool = False) -> list[Finding]:
        return [Finding("ok", "memory", f"{len(self.memory)} runs")]

    def describe(self) -> dict[str, Any]:
        return {"place": "memory", "runs": len(self.memory)}

    def restart(self) -> None:
        """Play the death of the process that owns the runs: its leases are free, what was appended stays.

        Whoever still holds a log gets `LeaseLost`.
        """
        with self.lock:
            for memory in self.memory.values():
                memory.holder = None

    def close(self) -> None:
        for memory in self.memory.values():
            memory.holder = None


def _matches(info: RunInfo, query: RunQuery) -> bool:
    return (
        (not query.runs or info.run in query.runs)
        and (query.workflow is None or fnmatch.fnmatchcase(info.workflow, query.workflow))
        and (query.children or info.parent is None)
        and (not query.states or info.state in query.states)
        and all(info.tags.get(name) == value for name, value in (query.tags or {}).items())
        and (query.since is None or info.created_at >= query.since)
        and (query.until is None or info.created_at <= query.until)
    )
