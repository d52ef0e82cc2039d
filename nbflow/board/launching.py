"""Runs that papermill or a batch began, started again from here: as a process of their own that outlives the page."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nbflow.board.plain import uncoloured
from nbflow.core.errors import NbflowError, StoreError, UsageError
from nbflow.core.model import RunInfo, RunOpened
from nbflow.store.protocol import Store

#: Seconds after which a start that has said nothing bad counts as one: importing all of it takes two.
PATIENCE = 6.0

#: The folder of the store in which the started processes' words are kept, and for how many of them.
FOLDER, _KEPT = "started", 50

#: `RunOpened.workflow_kind` of a batch.
_BATCH = "batch"

#: Processes that were started here and not yet seen to end: nobody else would reap them.
_started: list[subprocess.Popen[bytes]] = []


def is_launched(opened: RunOpened) -> bool:
    """Tell whether a run recorded how it was started, so that it can be started again without a person."""
    return "input" in opened.launch or (opened.workflow_kind == _BATCH and "notebook" in opened.launch)


def why_no_new(opened: RunOpened) -> str:
    """Say why a run like this one cannot be begun from here; "" where it can."""
    if opened.workflow_kind == _BATCH:
        return "A batch is begun anew with `nbflow batch` and its table of parameters."
    source = opened.launch.get("input", "")
    if not source or source == "-":
        return "The notebook was not given as a file, so it cannot be found again."
    if "job" in opened.launch:
        return "It is a job of Jupyter's scheduler: start a new one there."
    return ""


def resume(store: Store, info: RunInfo) -> str:
    """Start an unfinished run again; return what to say.

    Raises:
        NbflowError: it failed at once; the message has its words.
    """
    before = info.attempts
    return _start(
        store,
        ["resume", info.run, "--no-progress-bar"],
        info.run,
        lambda: store.run(info.run).attempts > before,
    )


def new(store: Store, opened: RunOpened, changed: dict[str, Any]) -> str:
    """Start a new run of the same notebook, with the same parameters but for those that are `changed`.

    Raises:
        UsageError: it has no parameter of that name.
        NbflowError: it failed at once; the message has its words.
    """
    launch = opened.launch
    unknown = sorted(changed.keys() - opened.params.keys()) if opened.params else []
    if unknown:
        raise UsageError(
            f"Run {opened.run} has no parameter {', '.join(unknown)}.",
            run=opened.run,
            hint=f"It has {', '.join(opened.params)}.",
        )
    command = [
        "run",
        launch["input"],
        *([launch["output"]] if launch.get("output", "-") not in ("", "-") else []),
    ]
    params = {**opened.params, **changed}
    if params:  # JSON is YAML too
        command += ["--parameters_base64", base64.b64encode(json.dumps(params).encode()).decode()]
    command += ["--run", "new", "--no-progress-bar"]
    for option, name in (("--kernel", "kernel"), ("--cwd", "cwd")):
        if launch.get(name):
            command += [option, launch[name]]
    if launch.get("collect"):
        command += ["--collect", ",".join(launch["collect"])]
    options = launch.get("options", {})
    for option, name in (("--start-timeout", "start_timeout"), ("--execution-timeout", "execution_timeout")):
        if options.get(name):
            command += [option, str(int(options[name]))]
    known = store.newest_open(opened.workflow, params, opened.variant)
    return _start(store, command, opened.run, lambda: _is_another(store, opened, params, known))


def _is_another(store: Store, opened: RunOpened, params: dict[str, Any], known: RunInfo | None) -> bool:
    found = store.newest_open(opened.workflow, params, opened.variant)
    return found is not None and (known is None or found.run != known.run)


def _start(store: Store, command: list[str], run: str, began: Any) -> str:
    """Start `nbflow COMMAND` detached, wait until it is at work, and say so."""
    root = getattr(store, "root", None)
    if root is None:
        raise UsageError("Runs are started where their store's folder is.", run=run)
    _reap()
    words = _file(Path(root), run)
    argv = [sys.executable, "-m", "nbflow.cli", *command, "--store", str(root)]
    try:
        with words.open("wb") as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt of this kernel is none of its
                env={name: value for name, value in os.environ.items() if name != "NBFLOW_RUN"},
            )
    except OSError as error:
        raise StoreError(f"The run could not be started: {error}.", run=run) from error
    _started.append(process)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        code = process.poll()
        if code is not None:
            _reap()
            said = _said(words)
            if code:
                raise NbflowError(f"Run {run} could not be started: {said or f'exit code {code}'}", run=run)
            return f"It ran to its end. {said}".strip()
        if began():
            break
        time.sleep(0.05)
    return f"Started as process {process.pid}; what it says is in {words}."


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def _file(root: Path, run: str) -> Path:
    folder = root / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        old = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_KEPT]
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}.", run=run) from error
    return folder / f"{run}-{time.strftime('%Y%m%dT%H%M%S')}.log"


def _said(words: Path) -> str:
    """Return the end of what a process said, in one line."""
    lines = uncoloured(words.read_text(encoding="utf-8", errors="replace")).split("\n")
    return " ".join(line.strip() for line in lines if line.strip())[-600:]
