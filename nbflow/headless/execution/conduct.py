"""One execution of a notebook by papermill as a durable run: which run, its kernel, its end.

    conduct
      → which run            identity: found by notebook, parameters and kernel, or begun
      → the kernel starts    and is told in a silent request (unattended.begin): now it has the lease
      → the cells            papermill's own loop, papermill's own messages
      → the end              unattended.end, in the kernel; the database is brought up to date here

A kernel of another language, or one without nbflow, runs its notebook as
papermill does: then there is a record of the run but nothing to resume.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.iorw import papermill_io
from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

from nbflow.core.errors import LeaseHeld, LeaseLost, NbflowError, RunCancelled, RunFinished, UsageError
from nbflow.core.model import ErrorInfo, RunChanged, RunInfo, RunOpened
from nbflow.core.states import FINAL_RUN_STATES, RunState
from nbflow.headless.engine import RUN_VARIABLE
from nbflow.headless.execution.bookkeeping import Bookkeeper, first_failure
from nbflow.headless.execution.client import DurableClient
from nbflow.headless.identity import (
    Source,
    Wanted,
    identity_params,
    launch_of,
    open_run,
    store_of,
    workflow_of,
)
from nbflow.headless.waiting import NotebookWaits
from nbflow.notebook.messages import PROTOCOL
from nbflow.notebook.outcome import mentions_results
from nbflow.runtime.gates.ahead import Approvals
from nbflow.store.lease import this_owner
from nbflow.store.local import LocalStore

if TYPE_CHECKING:
    from nbflow.runtime.session import Session

#: Seconds to wait for the kernel of an earlier, killed papermill: it notices within a second or two.
ORPHAN = 15.0

#: At the end the database is brought up to date for so many seconds, which a kernel takes to shut down
#: anyway, and for this share of the time that the notebook took. Later processes go on with what is left.
_SPARE, _SHARE = 0.3, 0.01

_PREFIX = "nbflow_"

#: Text of a traceback that is kept with a failed run (characters).
_TRACEBACK = 20_000


@dataclass(frozen=True)
class Terms:
    """What the engine can be told beside papermill's own options, there with `nbflow_` in front.

    `run` is an id, "new" or None; `store` a place; `collect` names variables that
    are the run's result; `memory` bounds the kernel (bytes); `item` says which run
    of which batch this is, and then nobody but the batch's runner opens the database;
    `begun` that this run exists, and is not to be begun. `approve` names gates that
    are approved when the notebook comes to them (a list, or a mapping to feedback).
    `told` is called when the run is open and behind every cell.
    """

    run: str | None = None
    store: str | None = None
    collect: tuple[str, ...] = ()
    memory: int | None = None
    item: RunOpened | None = None
    begun: bool = False
    approve: Approvals = field(default_factory=Approvals)
    told: Callable[[Bookkeeper], None] | None = None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Terms:
        """Take what is ours out of the engine's options.

        Raises:
            UsageError: an option that does not exist.
        """
        ours = {name: options.pop(name) for name in list(options) if name.startswith(_PREFIX)}
        given = {name.removeprefix(_PREFIX): value for name, value in ours.items() if value is not None}
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(
                    f"The engine has no option {_PREFIX}{name}.",
                    hint=f"It has {', '.join(_PREFIX + each for each in known)}.",
                )
        given.setdefault("run", os.environ.get(RUN_VARIABLE) or None)
        collect = given.get("collect", ())
        given["collect"] = (collect,) if isinstance(collect, str) else tuple(collect)
        given["approve"] = Approvals.of(given.get("approve", ()))
        return cls(**given)


class Conductor:
    """Knows the run of one execution, from before its kernel starts until after it is gone."""

    def __init__(
        self, books: Bookkeeper, store: LocalStore, info: RunInfo, terms: Terms, notebook: str
    ) -> None:
        self.books, self.store, self.run = books, store, info.run
        self._terms, self._notebook = terms, notebook
        #: Whether the kernel keeps the record; else this process holds the run.
        self.durable = True
        self._session: Session | None = None
        self._completed = False
        self._begun = time.monotonic()

    def wait_until_free(self) -> None:
        """Return when nobody has the run; a kernel outlives a killed papermill for a moment.

        Raises:
            LeaseHeld: somebody still has it after a while.
            RunFinished: whoever had it brought it to its end.
        """
        give_up = time.monotonic() + ORPHAN
        said = False
        while True:
            info = self.store.run(self.run)
            if info.state in FINAL_RUN_STATES:
                raise RunFinished(
                    f"Run {self.run} of {info.workflow} is {info.state}: another process brought it to its end.",
                    run=self.run,
                    hint="The same command starts a new one.",
                )
            if not info.alive:
                return
            owner = info.owner
            who = f"process {owner.pid} on {owner.host}" if owner is not None else "another process"
            if time.monotonic() > give_up:
                raise LeaseHeld(
                    f"Run {self.run} of {info.workflow} is at work in {who}.",
                    run=self.run,
                    pid=owner.pid if owner else None,
                    host=owner.host if owner else None,
                    hint=f"Wait for it, or set {RUN_VARIABLE}=new to start a fresh run beside it.",
                )
            if not said:
                logger.info(f"Run {self.run} is still held by {who}, waiting up to {ORPHAN:g} s")
                said = True
            time.sleep(0.1)

    def opening(self, client: DurableClient) -> None:
        """Have the kernel take the run; where it cannot, hold the run here and say so."""
        nb = self.books.nb
        problem = "" if client.language == "python" else f"its kernel speaks {client.language}"
        attempt: int | None = None
        if not problem:
            try:
                answer = client.ask(
                    "begin",
                    {
                        "protocol": PROTOCOL,
                        "run": self.run,
                        "store": str(self.store.root),
                        "notebook": self._notebook,
                        "cells": [cell.id for cell in nb.cells if cell.get("id")],
                        "sources": [
                            cell.source
                            for cell in nb.cells
                            if cell.cell_type == "code" and mentions_results(cell.source)
                        ],
                        "memory": self._terms.memory,
                        "approve": self._terms.approve.plain(),
                    },
                )
                attempt = answer["attempt"]
            except CellExecutionError as error:
                problem = f"nbflow cannot be loaded in its kernel ({error.ename}: {error.evalue})"
        if problem:
            self.durable = False
            logger.warning(
                f"This notebook runs without being recorded, for {problem}: it cannot be resumed, "
                "and the next time it begins from its first cell."
            )
            self._session = self._hold()
            attempt = self._session.attempt
        facts: dict[str, Any] = {} if self.durable else {"recorded": False}
        self.books.open(self.run, attempt, **facts)
        verb = "resumed, attempt" if attempt and attempt > 1 else "begun, attempt"
        logger.info(f"nbflow run {self.run}: {verb} {attempt}")

    def closing(self, client: DurableClient) -> None:
        """Record how the run ended, or that it waits; the kernel still stands."""
        if self.books.waiting is not None:
            self._pause(client)
            return
        failure = _failure(self.books)
        state = RunState.COMPLETED if failure is None else RunState.FAILED
        self._completed = failure is None
        if not self.durable:
            assert self._session is not None
            if failure is not None:
                self._session.finish(state, error=failure)
            self.books.close(str(state))
            return
        told: dict[str, Any] = {
            "state": str(state),
            "collect": list(self._terms.collect) if failure is None else [],
        }
        if failure is not None:
            told["error"] = {"type": failure.type, "message": failure.message, "traceback": failure.traceback}
        try:
            answer = client.ask("end", told)
        except DeadKernelError:
            if client.exit_code() != 0:
                raise
            # The last cell ended its kernel: `exit()`.
            missing = dict.fromkeys(self._terms.collect, "the notebook ended its kernel")
            answer = {"state": str(state), "missing": missing}
        except NbflowError as error:
            if failure is None:
                raise
            # What the notebook itself failed of is the news; a full disk can be behind it, and behind this.
            logger.warning(f"The end of run {self.run} is not recorded: {error}")
            answer = {"state": "failed", "missing": {}}
        for name, why in answer["missing"].items():
            logger.warning(f"{name} is not collected: {why}")
        self.books.close(answer["state"])
        self.store.wind_up(self.run, _SPARE + _SHARE * (time.monotonic() - self._begun))
        if failure is None:
            self._require_ours(answer["state"])

    def _pause(self, client: DurableClient) -> None:
        """Have the kernel give up a run that waits at a gate, which needs nobody until somebody has decided."""
        answer = client.ask("end", {"state": str(RunState.WAITING)})
        if answer["state"] != RunState.WAITING:
            self.books.waiting = None
            self.books.close(answer["state"])
            self._require_ours(answer["state"])
        assert self.books.waiting is not None
        self.books.close(str(RunState.WAITING), waiting=self.books.waiting.facts)
        self.store.wind_up(self.run, _SPARE + _SHARE * (time.monotonic() - self._begun))

    def _require_ours(self, state: str) -> None:
        if state == "cancelled":
            raise RunCancelled(f"Run {self.run} is cancelled.", run=self.run, reason="user")
        if state == "lost":
            raise LeaseLost(f"Run {self.run} was taken over by another process.", run=self.run)

    def conclude(self) -> None:
        """Record that the run is completed: last of all, so that a kill before leaves something to carry on.

        The same command would begin a completed run anew, and a killed papermill is
        started again by whoever saw it die.

        Raises:
            StoreFull, StoreError: the run is not over; the same command restores all cells and ends it.
            NotebookWaits: it stopped at a gate.
        """
        if self.books.waiting is not None:
            self.books.save_waiting()
            error = NotebookWaits.of(self.books.waiting, self.run, self.books.deciding(self.books.waiting))
            error.notebook = self.books.nb
            raise error
        if not self._completed:
            return
        if self._session is not None:
            self._session.finish()
            return
        try:
            log = self.store.attach(self.run, this_owner(time.time(), "papermill"), continued=True)
        except (LeaseHeld, RunFinished):
            logger.info(f"Run {self.run} is in other hands already, which bring it to its end")
            return
        try:
            log.append(RunChanged(state=str(RunState.COMPLETED)))
        finally:
            log.release()

    def _hold(self) -> Session:
        """Take the run here; loaded now, since a kernel that keeps its own record leaves it to nobody."""
        from nbflow.runtime.session import Session

        return Session.open(self.store, "", run=self.run)

    def stopped(self, error: BaseException) -> None:
        """Note that the execution did not come to an end of its own; the run stays as it is, resumable."""
        self._completed = False
        if self._session is not None:
            self._session.close()
        state = "cancelled" if isinstance(error, RunCancelled) else "stopped"
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self.books.close(state, run=self.run, error=told[:_TRACEBACK])


def conduct(
    books: Bookkeeper,
    kernel_name: str,
    *,
    start_timeout: int,
    execution_timeout: int | None,
    **options: Any,
) -> Any:
    """Execute a notebook; the options are those of papermill's own engine and of `Terms`.

    When the executed notebook is written, `books.conclude()` records that the run is completed, and then
    `books.put_away()` closes the store.

    Raises:
        LeaseHeld: another process works on this run.
        KernelDied: naming cell and signal.
        UnknownRun, RunFinished, UsageError: about the run asked for.
    """
    nb = books.nb
    folder = _started_in()
    source = Source.of(options.pop("input_path", None), folder)
    terms = Terms.taken_from(options)
    store = store_of(source, terms.store, upkeep=terms.item is None)
    books.told = _telling(store, terms.told)
    books.deciding = lambda waiting: waiting.command(store.root, folder)
    books.put_away = partial(_put_away, store)
    parameters = nb.metadata.get("papermill", {}).get("parameters", {})
    wanted = Wanted(
        workflow=workflow_of(source, nb, store),
        params=identity_params(parameters),
        kernel=kernel_name,
        launch=launch_of(
            source,
            kernel_name,
            output=_from(folder, books.output_path),
            cwd=os.getcwd(),  # noqa: PTH109 - as text
            parameters=parameters,
            collect=terms.collect,
            start_timeout=start_timeout,
            execution_timeout=execution_timeout,
        ),
    )
    info = open_run(store, wanted, run=terms.run, parent=terms.item, begun=terms.begun)
    conductor = Conductor(books, store, info, terms, str(source.path or ""))
    books.conclude = conductor.conclude
    conductor.wait_until_free()
    store.background.at_once()  # it has nothing else to do until the kernel is there
    settings = merge_kwargs(
        remove_args(["timeout", "startup_timeout"], **options),
        timeout=execution_timeout or options.get("timeout"),
        startup_timeout=start_timeout,
        kernel_name=kernel_name,
        log=logger,
    )
    client = DurableClient(books, opening=conductor.opening, closing=conductor.closing, **settings)
    try:
        # The run is the kernel's, and none of the processes that it starts.
        environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
        return client.execute(env=environment)
    except BaseException as error:
        conductor.stopped(error)
        raise


def _started_in() -> str:
    """Return the folder that paths start from: papermill changes to `cwd` before it calls its engine."""
    folder = getattr(papermill_io.get_handler("local"), "_cwd", None)
    return str(folder or os.getcwd())  # noqa: PTH109 - as text


def _from(folder: str, path: Any) -> Any:
    return os.path.join(folder, path) if path and "://" not in path and path != "-" else path  # noqa: PTH118


def _telling(store: LocalStore, told: Callable[[Bookkeeper], None] | None) -> Callable[[Bookkeeper], None]:
    """Return who is told of every cell: the store, that there is something to copy, and `told`."""

    def tell(books: Bookkeeper) -> None:
        store.background.touch()
        if told is not None:
            told(books)

    return tell


def _put_away(store: LocalStore) -> None:
    """Close the store; a problem with the database costs nothing, its journals have everything."""
    try:
        store.close()
    except NbflowError as error:
        logger.warning(f"The database is not up to date: {error}")


def _failure(books: Bookkeeper) -> ErrorInfo | None:
    """Return why the notebook failed; None when it did not."""
    failed = first_failure(books.nb)
    if failed is not None:
        _, output = failed
        traceback = "\n".join(output.traceback)[-_TRACEBACK:]
        return ErrorInfo(type=output.ename, message=output.evalue, traceback=traceback)
    problem = books.problem
    if isinstance(problem, CellExecutionError) and problem.ename != "SystemExit":
        return ErrorInfo(type=problem.ename or "Error", message=problem.evalue or "")
    return None
