"""A store that fails at chosen calls, before or after they are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from nbflow.core.errors import StoreFull, UsageError
from nbflow.core.model import AnyRecord, LeafRef, Message, Owner, RunOpened
from nbflow.store.protocol import Durability, RunLog, Store
from nbflow.values.leaf import Leaf

#: Calls that can be made to fail.
FaultyCall = Literal["append", "put_leaves", "messages", "create", "send"]
CALLS: tuple[FaultyCall, ...] = ("append", "put_leaves", "messages", "create", "send")
_APPENDS: tuple[FaultyCall, ...] = ("append",)


class FaultyStore:
    """Wraps a store whose n-th append (from 1, counted over all runs) fails.

    `when="before"` keeps nothing, as a full disk does. `when="after"` keeps the
    records and then fails: the acknowledgement is lost. `at` may be several
    numbers. `error` makes the exception; a StoreFull by default. `of` names the
    calls that are counted: appends, sync and async ones, unless told otherwise;
    "create" and "send" lose a new run or a message, "put_leaves" large values.

    `appends` says how many appends there were, so that a test can walk through
    all of them; `failures` how many calls were made to fail.

    >>> import nbflow
    >>> from nbflow.testing import MemoryStore
    >>> store = FaultyStore(MemoryStore(), at=2, when="after")
    >>> work = nbflow.durable(version="1")(lambda: print("working") or 42)
    >>> with nbflow.run("example", store=store):
    ...     try:
    ...         work()
    ...     except nbflow.errors.StoreFull:
    ...         work()
    working
    42
    """

    def __init__(
        self,
        store: Store,
        *,
        at: int | Collection[int],
        when: Literal["before", "after"] = "before",
        error: Callable[[], BaseException] | None = None,
        of: Collection[FaultyCall] = _APPENDS,
    ) -> None:
        if when not in ("before", "after"):
            raise UsageError(f'when is "before" or "after", not {when!r}.')
        if unknown := set(of) - set(CALLS):
            raise UsageError(
                f"A FaultyStore can fail in {', '.join(CALLS)}, not in {', '.join(sorted(unknown))}."
            )
        self.store = store
        self.at = at
        self.when = when
        self.error = error or (lambda: StoreFull("The disk is full (a faulty store for tests)."))
        self.of = of
        self.appends = 0
        self.calls = 0
        self.failures = 0
        self._counting = threading.Lock()

    def due(self, call: FaultyCall) -> bool:
        """Count a call; tell whether it is to fail, and raise at once if it fails before."""
        with self._counting:
            self.appends += call == "append"
            if call not in self.of:
                return False
            self.calls += 1
            due = self.calls == self.at if isinstance(self.at, int) else self.calls in self.at
            self.failures += due
        if due and self.when == "before":
            raise self.error()
        return due

    def create(self, opened: RunOpened) -> None:
        due = self.due("create")
        self.store.create(opened)
        if due:
            raise self.error()

    def send(self, run: str, message: Message) -> None:
        due = self.due("send")
        self.store.send(run, message)
        if due:
            raise self.error()

    def attach(
        self,
        run: str,
        owner: Owner,
        *,
        steal: bool = False,
        continued: bool = False,
        versions: dict[str, str] | None = None,
    ) -> RunLog:
        log = self.store.attach(run, owner, steal=steal, continued=continued, versions=versions)
        return _FaultyLog(self, log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class _FaultyLog:
    def __init__(self, store: FaultyStore, log: RunLog) -> None:
        self._store = store
        self._log = log

    def append(self, *records: AnyRecord, durability: Durability = "synced") -> int:
        due = self._store.due("append")
        seq = self._log.append(*records, durability=durability)
        if due:
            raise self._store.error()
        return seq

    async def append_async(self, *records: AnyRecord) -> int:
        due = self._store.due("append")
        seq = await self._log.append_async(*records)
        if due:
            raise self._store.error()
        return seq

    def put_leaves(self, leaves: Sequence[Leaf]) -> tuple[LeafRef, ...]:
        due = self._store.due("put_leaves")
        refs = self._log.put_leaves(leaves)
        if due:
            raise self._store.error()
        return refs

    def messages(self) -> list[Message]:
        due = self._store.due("messages")
        found = self._log.messages()
        if due:
            raise self._store.error()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)
