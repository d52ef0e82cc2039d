"""How a notebook that runs without a person is started again from what its run recorded of its start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import RunFinished, UsageError
from nbflow.core.model import RunInfo, RunOpened
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.headless.execute import Prepared, prepare
from nbflow.headless.identity import verbatim

if TYPE_CHECKING:
    from nbflow.runtime.gates.ahead import Approvals
    from nbflow.store.protocol import Store

#: What `RunOpened.variant` begins with for a run of the engine, before the kernel's name.
_ENGINE = "papermill:"


def opening_of(store: Store, info: RunInfo) -> RunOpened:
    """Return the record that an unfinished run begins with.

    Raises:
        RunFinished: it is completed or cancelled, and final.
    """
    if info.state in FINAL_RUN_STATES:
        raise RunFinished(
            f"Run {info.run} of {info.workflow} is {info.state}: there is nothing left to resume.",
            run=info.run,
            hint="`nbflow run` or `nbflow batch` starts a new one.",
        )
    opened = store.entries(info.run)[0].record
    assert isinstance(opened, RunOpened)
    return opened


def prepare_again(
    opened: RunOpened,
    store: Path,
    *,
    output: str | None = None,
    approve: Approvals | None = None,
    progress: bool = False,
) -> Prepared:
    """Prepare the next execution of a notebook's run; `output` takes the place of the recorded one.

    Raises:
        UsageError: it cannot be started from here; the sentence says how it can.
    """
    run, launch = opened.run, opened.launch
    if not opened.variant.startswith(_ENGINE) or not launch:
        raise UsageError(f"Run {run} of {opened.workflow} was not started by papermill.", hint=_way(opened))
    source = launch["input"]
    if not source or source == "-":
        how = "from standard input" if source else "as an object, with nbflow.execute or papermill"
        raise UsageError(
            f"The notebook of run {run} was given {how}, and is not recorded.",
            run=run,
            hint="The same call carries the run on.",
        )
    if "://" not in source and not Path(source).is_file():
        raise UsageError(
            f"The notebook of run {run} is gone: {source}",
            run=run,
            hint="Put it back there; what is recorded waits for it.",
        )
    if not Path(launch["cwd"]).is_dir():
        raise UsageError(
            f"The folder that run {run} works in is gone: {launch['cwd']}",
            run=run,
            hint="Make it again, with what the notebook needs of it.",
        )
    if not launch.get("exact", True):
        raise UsageError(
            f"The parameters of run {run} are recorded as texts, for JSON cannot hold them as they were given.",
            run=run,
            hint="The call or command that started the run carries it on.",
        )
    return prepare(
        verbatim(source),
        verbatim(output or launch["output"].removeprefix("-") or None),
        opened.params,
        kernel=launch["kernel"],
        run=run,
        cwd=launch["cwd"],
        collect=launch.get("collect", ()),
        store=store,
        approve=approve or (),
        progress=progress,
        **_options(launch),
    )


def _options(launch: dict[str, Any]) -> dict[str, Any]:
    return dict(launch.get("options", {}))


def _way(opened: RunOpened) -> str:
    """Say how a run is carried on that is none of ours."""
    if opened.parent:
        return f"It is a child of run {opened.parent}, which carries it on: resume that one."
    if opened.workflow_kind == "notebook":
        return (
            "Open the notebook in Jupyter and run its cells: it takes this run up again. Where it has a newer "
            f"one, `%nbflow resume {opened.run}` comes first."
        )
    if opened.workflow_kind == "machine":
        return "Run the program or notebook that has the machine: it takes the run up again."
    return "Run the program again: it takes the run up again."
