"""The branches of a split: side by side, each recorded on its own, until the join is decided."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import GatePending, JoinFailed, LeaseError, RunCancelled
from nbflow.core.gates import pending_of
from nbflow.core.joins import Verdict
from nbflow.core.line import Line
from nbflow.core.model import StepEnded
from nbflow.core.outcomes import Branch, Split
from nbflow.core.states import CancelReason, StepState
from nbflow.runtime.faces import Face
from nbflow.values.failures import encode_error

if TYPE_CHECKING:
    from nbflow.runtime.machine.context import Data
    from nbflow.runtime.machine.runner import Runner

#: The branches that the code of this thread or task is part of, the innermost last.
_within: ContextVar[tuple[threading.Event, ...]] = ContextVar("nbflow_branches", default=())


class Branches:
    """One split on its way to its join."""

    def __init__(self, runner: Runner, split: Split, key: str, due_at: float | None) -> None:
        self.runner = runner
        self.split = split
        self.key = key
        self.due_at = due_at
        self._stopped = threading.Event()
        self._data: dict[str, Data] = {}
        self._succeeded: list[str] = []
        self._failed: dict[str, BaseException] = {}
        #: Branches that stopped at a gate: the others go on to their ends, or to their own gates.
        self._pending: dict[str, GatePending] = {}
        self._stop: RunCancelled | LeaseError | None = None

    async def run(self, data_of: Callable[[Branch, Line], Data]) -> dict[str, Any]:
        """Run the branches until the join is decided, and return how each ended: {"state": …, "error": …}.

        Raises:
            JoinFailed: too few succeeded.
            GatePending: it takes a person's decision to go on.
        """
        session = self.runner.session
        work = {str(branch.name): self._work(branch, data_of) for branch in self.split.branches}
        if not any(stop is _stop_of_this_branch for stop in session.stops):
            session.stops.append(_stop_of_this_branch)
        try:
            await self.runner.face.together(session, work, self._ended, self.due_at, self.runner.pool)
        finally:
            self._stopped.set()
        if self._stop is not None:
            raise self._stop
        if self._pending and not self._expired() and self._verdict() is Verdict.WAIT:
            session.waits()  # states of other branches said that the run goes on
            raise next(iter(self._pending.values()))
        verdict = self._verdict(expired=True)
        self._end_the_rest()
        if verdict is not Verdict.SATISFIED:
            raise self._too_few()
        return {name: self._end_of(name) for name in work}

    def _work(
        self, branch: Branch, data_of: Callable[[Branch, Line], Data]
    ) -> Callable[[Face], Coroutine[Any, Any, None]]:
        runner = self.runner
        prefix = f"{self.key}/{branch.name}"
        line = runner.lines.get(prefix) or Line(prefix)
        data = self._data[str(branch.name)] = data_of(branch, line)
        start = runner.definition.label(branch.state)
        ends = frozenset({runner.definition.label(self.split.to)})

        async def work(_face: Face) -> None:
            token = _within.set((*_within.get(), self._stopped))
            try:
                _stop_of_this_branch()
                await runner.walk(line, data, start, ends, parent=self.key)
            finally:
                _within.reset(token)

        return work

    def _ended(self, name: str, error: BaseException | None) -> bool:
        """Note how a branch ended; True when the join is decided."""
        if error is None:
            self._succeeded.append(name)
        elif isinstance(error, LeaseError) or (
            isinstance(error, RunCancelled) and error.reason != CancelReason.FAILED_SIBLING
        ):
            self._stop = error  # the run is to stop, not this branch alone
            return True
        elif (gate := pending_of(error)) is not None:
            self._pending[name] = gate
        elif not isinstance(error, Exception) and type(error).__name__ != "CancelledError":
            raise error  # an interrupt leaves the run as it is
        else:
            self._failed[name] = error
        return self._verdict() is not Verdict.WAIT

    def _verdict(self, *, expired: bool = False) -> Verdict:
        total = len(self.split.branches)
        return self.split.join.verdict(total, len(self._succeeded), len(self._failed), expired=expired)

    def _expired(self) -> bool:
        return self.due_at is not None and self.runner.session.clock.now() >= self.due_at

    def _too_few(self) -> JoinFailed:
        join, total = self.split.join, len(self.split.branches)
        ended = "; ".join(f"{name}: {error}" for name, error in self._failed.items()) or "none failed"
        late = total - len(self._succeeded) - len(self._failed)
        error = JoinFailed(
            f"The join of {self.key} needs {join.needed(total)} of {total} branches ({join.text()}); "
            f"{len(self._succeeded)} succeeded, {len(self._failed)} failed, {late} did not end ({ended}).",
            hint="Mend the branches and resume: those that succeeded are not run again.",
            step=self.key,
            failures=dict(self._failed),
        )
        if len(self._failed) == 1:
            error.__cause__ = next(iter(self._failed.values()))
        return error

    def _end_the_rest(self) -> None:
        """Record the steps of branches that are still going on as cancelled: whatever they do now is not wanted."""
        session = self.runner.session
        decided = {*self._succeeded, *self._failed}
        left = tuple(f"{self.key}/{b.name}/" for b in self.split.branches if b.name not in decided)
        if not left:
            return
        error = encode_error(
            session.cancelled(CancelReason.FAILED_SIBLING, "the join was decided without it")
        )
        records = [
            StepEnded(
                execution=execution.number,
                step=execution.started.step,
                state=StepState.CANCELLED,
                attempt=execution.attempt,
                seconds=max(0.0, session.clock.now() - execution.started_at),
                error=error,
            )
            for execution in list(session.history.executions.values())
            if execution.started.step.startswith(left)
            and execution.completed is None
            and execution.ended is None
            and not execution.interrupted
        ]
        if records:
            session.recorder.append(*records)

    def _end_of(self, name: str) -> dict[str, Any]:
        if name in self._failed:
            error = self._failed[name]
            return {"state": str(StepState.FAILED), "error": f"{type(error).__name__}: {error}"}
        return {
            "state": str(StepState.COMPLETED if name in self._succeeded else StepState.CANCELLED),
            "error": "",
        }

    def merged(self) -> dict[str, Any]:
        """Return what the branches that succeeded set, in the order of the split; a later branch wins."""
        values: dict[str, Any] = {}
        for branch in self.split.branches:
            if branch.name in self._succeeded:
                values.update(self._data[str(branch.name)].own())
        return values


def _stop_of_this_branch() -> None:
    """Stop code of a branch whose join was decided.

    Raises:
        RunCancelled: with reason "failed sibling"; it ends the branch and not the run.
    """
    for stopped in _within.get():
        if stopped.is_set():
            raise RunCancelled(
                "The join was decided without this branch.", reason=str(CancelReason.FAILED_SIBLING)
            )
