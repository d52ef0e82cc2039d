"""A notebook without a person that stops at a gate: which gate, what to say of it, and whether it may go on.

What a run waits for stands in its journal. So whoever is about to start a kernel
for it can see beforehand whether that would be in vain (`undecided`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from click import ClickException, echo

from nbflow.core.errors import GatePending, UnknownRun
from nbflow.core.gates import gates_of
from nbflow.core.states import CANCEL, DECISION, RunState

if TYPE_CHECKING:
    from nbflow.core.history import History
    from nbflow.store.local import LocalStore

#: Exit code of a command whose notebook waits for a decision.
WAITS = 10

#: Characters of what a gate asks that are said in one line.
_LINE = 200


class Waiting(msgspec.Struct, frozen=True):
    """The gate at which a notebook stopped: its run, the key of its step there, its name and what it asks.

    The run is the notebook's own, or that of a machine or a child that the notebook runs.
    """

    run: str
    step: str
    name: str
    text: str = ""

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        asks = f": {text[:_LINE]}{'…' if len(text) > _LINE else ''}" if text else "."
        return f"Gate {self.name!r} waits for a decision{asks}"

    @property
    def facts(self) -> dict[str, str]:
        """The gate as it stands in `metadata.nbflow.waiting` of an executed notebook, and in JSON."""
        return {"gate": self.name, "key": self.step, "run": self.run, "text": self.text}

    def command(self, store: Path | None, folder: str | None = None) -> str:
        """Return the command that approves it, as it is typed in a folder (by default this one)."""
        from nbflow.store.place import locate

        found = store is None or locate(os.environ.get("NBFLOW_STORE") or folder) == store
        place = "" if found else f" --store {shlex.quote(str(store))}"
        return f"nbflow approve {self.run} {shlex.quote(self.name)}{place}"


class NotebookWaits(GatePending, ClickException):  # type: ignore[misc]  # click says `message` is final
    """A notebook stopped at a gate, and is written; `notebook` is the executed one.

    Other than in a kernel it is an `Exception`, for it ends a task of whoever called
    papermill; and click's, so that papermill's command line ends with one line and exit code 10.
    """

    exit_code = WAITS
    notebook: Any = None
    waiting: Waiting

    @classmethod
    def of(cls, waiting: Waiting, run: str, command: str) -> NotebookWaits:
        """Return the error of a notebook's run that waits at a gate of its own, or of another run."""
        error = cls(
            f"Run {run}: {waiting}",
            run=waiting.run,
            step=waiting.step,
            name=waiting.name,
            hint=f"Decide: `{command}` (or `reject`), then run the same command again.",
        )
        error.waiting = waiting
        return error

    def show(self, file: Any = None) -> None:
        """Print the line; it is no error."""
        echo(f"Waiting: {self.message}", file=file, err=file is None)


def undecided(store: LocalStore, run: str, now: float, ahead: Container[str] = ()) -> Waiting | None:
    """Return the gate that keeps a run from going on; None where there is something to do for a kernel.

    That is so where the run does not wait, and where a decision or a cancel came
    in, a gate's time is over (`now` is UTC seconds), or one is decided `ahead`, by its name.
    """
    first: Waiting | None = None
    for owner, history in _family(store, run):
        if owner == run and history.state is not RunState.WAITING:
            return None
        said = [each for each in store.live.folder(owner).inbox.messages() if each.id not in history.taken]
        if any(message.topic == CANCEL for message in said) or history.cancelling is not None:
            return None
        answered = {message.payload.get("opening") for message in said if message.topic == DECISION}
        for gate in gates_of(history):
            if gate.state != "waiting":
                if gate.decision is not None and history.executions[gate.execution].completed is None:
                    return None  # taken into the run, which has not gone on yet
                continue
            due = gate.due_at is not None and now >= gate.due_at
            if due or gate.form.opening in answered or gate.form.name in ahead:
                return None
            first = first or Waiting(owner, gate.step, gate.form.name, gate.form.text)
    return first


def family(store: LocalStore, run: str) -> list[str]:
    """Return a run and its unfinished descendants, whose gates are gates of its own for who looks on."""
    return [owner for owner, _ in _family(store, run)]


def _family(store: LocalStore, run: str) -> Iterator[tuple[str, History]]:
    """Yield a run and its unfinished descendants, as far as they have folders: the machines in a notebook are such."""
    left = [run]
    while left:
        one = left.pop()
        try:
            history = store.live.history(one)
        except UnknownRun:
            continue
        yield one, history
        for executions in list(history.by_step.values()):
            last = executions[-1]
            if last.started.step_kind == "child" and last.completed is None:
                left.append(str(last.started.detail["run"]))
