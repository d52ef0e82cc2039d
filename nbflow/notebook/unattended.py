"""The kernel's side of a notebook that nobody watches: papermill's engine runs it.

The engine speaks to the kernel in silent requests, so that the notebook's
numbers, history and names stay what they are without it: `begin` before the
first cell, `end` behind the last one. In between, every code cell is a durable
step, as under `%nbflow auto`, and each says in a message of its own what became
of it. Arguments and answers are JSON texts, for they travel in source code and
in reprs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import GatePending, LeaseLost, NbflowError, RunCancelled, UsageError
from nbflow.core.gates import pending_of
from nbflow.core.model import ErrorInfo
from nbflow.core.states import RunState
from nbflow.notebook import messages
from nbflow.notebook.extension import extension_of, load_ipython_extension
from nbflow.notebook.host import CellReport, Host
from nbflow.notebook.outcome import speaks_of_results
from nbflow.runtime.gates.ahead import Approvals, expect

#: Bytes of a cell's output that are recorded: all. What is not would be missing in a resumed notebook.
DISPLAY_LIMIT = 2**62


def begin(shell: Any, terms: str) -> str:
    """Load nbflow, attach the run and make every later cell durable; return what the engine wants to know.

    `terms` is a JSON object: `protocol` is the version that the engine speaks, `run` and
    `store` name the run, `notebook` its file (or ""), `cells` the ids of its cells,
    `sources` the text of those that may look at results (`_`, `Out[3]`), `memory` the
    bytes of memory that this process may allocate (or null), `approve` the gates that
    are approved beforehand (`Approvals`).

    The answer is a JSON object with `attempt`, or with `error`.
    """
    told = json.loads(terms)
    try:
        _require_protocol(told["protocol"])
        if told.get("memory"):
            _limit_memory(int(told["memory"]))
        load_ipython_extension(shell)
        extension = extension_of(shell)
        host = extension.host
        extension.config.auto, extension.config.plan = True, False
        extension.config.display_limit = DISPLAY_LIMIT
        extension.config.store = told["store"]
        host.path = Path(told["notebook"]) if told.get("notebook") else None
        host.upkeep = False
        if told.get("approve"):
            expect(msgspec.convert(told["approve"], Approvals))
        host.present = frozenset(told.get("cells", ()))
        host.results = speaks_of_results(told.get("sources", ()))
        host.told = lambda report: _tell(shell, report)
        shell.events.register("post_run_cell", partial(_say_if_it_waits, shell))
        session = host.attach(run=told["run"])
        host.engaged = True
    except NbflowError as error:
        return _answer(error=_error(error))
    return _answer(attempt=session.attempt)


def end(shell: Any, terms: str) -> str:
    """Record how the run ended and give it up; return its state.

    `terms` is a JSON object: `state` is completed, failed, waiting (a cell stopped at
    a gate), or null to leave the run as it is; `error` (type, message, traceback) says why it failed; `collect`
    lists the variables that are the run's result. That a run is completed is
    recorded by the engine, when the executed notebook is written.

    The answer is a JSON object with `state`, `missing` (variables to collect that
    were not there or cannot be stored, with the reason), or with `error`.
    """
    told = json.loads(terms)
    host = extension_of(shell).host
    missing: dict[str, str] = {}
    try:
        session = host.session
        if session is None:
            return _answer(state="lost" if host.lost is not None else "cancelled", missing=missing)
        if told["state"] == RunState.COMPLETED:
            session.check()  # a cancel that came behind the last step
            missing = _collect(host, told.get("collect", ()))
        elif told["state"] == RunState.WAITING:
            session.check()  # a cancel that came meanwhile: a run that nobody has would not hear of it
            session.waits()  # where the gate is not one of this run
        elif told["state"] is not None:
            error = ErrorInfo(**told["error"]) if told.get("error") else None
            session.finish(RunState(told["state"]), error=error)
        host.close()
    except RunCancelled as error:
        host.stop(error)
        return _answer(state="cancelled", missing=missing)
    except LeaseLost as error:
        host.lose(error)
        return _answer(state="lost", missing=missing)
    except NbflowError as error:
        return _answer(error=_error(error))
    return _answer(state=told["state"], missing=missing)


def _collect(host: Host, names: list[str]) -> dict[str, str]:
    """Record variables as the run's result, each by itself; return why some are not there."""
    from nbflow.core.errors import CannotStore
    from nbflow.runtime.children.results import record_result
    from nbflow.values.codec import encode

    found, missing = {}, {}
    for name in names:
        if name not in host.shell.user_ns:
            missing[name] = "the notebook has no such variable at its end"
            continue
        try:
            encode({name: host.shell.user_ns[name]})
        except CannotStore as error:
            missing[name] = error.message
        else:
            found[name] = host.shell.user_ns[name]
    if names:
        assert host.session is not None
        record_result(host.session, found)
    return missing


def _tell(shell: Any, report: CellReport) -> None:
    shell.display_pub.publish(data={messages.REPORT: asdict(report)}, metadata=messages.MARK)


def _say_if_it_waits(shell: Any, result: Any = None) -> None:
    """Tell the engine at which gate a cell stopped: what a class is called says nothing for sure."""
    error = getattr(result, "error_in_exec", None)
    pending = pending_of(error) if error is not None else None
    if pending is not None:
        text = _asked(shell, pending)
        facts = {"run": pending.run, "step": pending.step, "name": pending.name, "text": text}
        shell.display_pub.publish(data={messages.WAITS: facts}, metadata=messages.MARK)


def _asked(shell: Any, error: GatePending) -> str:
    """Return what a gate asks; "" where that cannot be read now."""
    from nbflow.core.gates import gates_of
    from nbflow.core.history import History

    try:
        gates = gates_of(History.of(extension_of(shell).host.store().entries(error.run)))
    except NbflowError:
        return ""
    return next((gate.form.text for gate in gates if gate.step == error.step), "")


def _require_protocol(spoken: int) -> None:
    """Refuse an engine that means something else by what it says.

    Raises:
        UsageError: it is of another version of nbflow.
    """
    if spoken != messages.PROTOCOL:
        raise UsageError(
            f"papermill's nbflow speaks version {spoken} with its kernels, this kernel's {messages.PROTOCOL}.",
            hint="Install the same version of nbflow in both environments.",
        )


def _limit_memory(size: int) -> None:
    """Have allocations beyond `size` bytes fail with a MemoryError.

    Raises:
        UsageError: the system refuses; without the limit that was asked for nothing runs.
    """
    try:
        import resource

        # The data segment and private mappings: RLIMIT_AS would count what libraries only reserve.
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(
            f"The memory of the kernel cannot be limited to {size:,} bytes: {error}.",
            hint="Ask for less than `ulimit -d` allows, or leave the limit out.",
        ) from error


def _error(error: NbflowError) -> dict[str, Any]:
    facts = {name: value for name, value in error.facts.items() if isinstance(value, (str, int, float))}
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint, "facts": facts}


def _answer(**facts: Any) -> str:
    return json.dumps(facts)
