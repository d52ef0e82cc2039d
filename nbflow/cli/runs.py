"""Commands about runs: `runs`, `show` and `forget`."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Desk, Place, Yes, desk
from nbflow.cli.plan import Planned, plan
from nbflow.core.errors import UnknownStep, UsageError
from nbflow.core.states import RunState
from nbflow.notebook.calls import Calls, calls_of

if TYPE_CHECKING:
    from nbflow.core.history import History
    from nbflow.core.model import RunInfo, StepInfo

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id or an unambiguous prefix of it.")]


def list_runs(
    workflow: Annotated[
        str | None,
        typer.Option("--workflow", "-w", metavar="NAME", help="Only this workflow; * stands for anything."),
    ] = None,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", metavar="STATE", help="Only runs in this state; repeatable."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="KEY=VALUE", help="Only runs with this tag; repeatable."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help='Only runs created since then: "2h", "3d" or "2026-11-20 18:00".'
        ),
    ] = None,
    children: Annotated[
        bool,
        typer.Option(
            "--children", help="Also runs that another run started, as the notebooks of a batch are."
        ),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List runs, newest first."""
    from nbflow.store.protocol import RunQuery

    with desk(store, as_json, debug) as at:
        query = RunQuery(
            workflow=workflow,
            states=_states(states or []),
            tags=tags_of(tags or []),
            since=None if since is None else moment(since),
            limit=limit,
            children=children,
        )
        runs = at.store.runs(query)
        if at.as_json:
            at.answer({"runs": [show.run_facts(run) for run in runs]})
        elif runs:
            at.say(show.runs_table(runs))
            if len(runs) == limit:
                at.say(Text(f"The newest {limit}; --limit shows more.", style="dim"))
        else:
            hidden = not children and bool(at.store.runs(replace(query, children=True, limit=1)))
            at.say("No runs." if query == RunQuery(limit=limit, children=children) else "No such runs.")
            if hidden:
                at.say(Text("Other runs started some: --children lists them.", style="dim"))


def show_run(
    run: RunId,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Earlier executions of each step and every call as well.")
    ] = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show one run: its steps, outputs, errors, and what a resume would do."""
    from nbflow.core.history import History

    with desk(store, as_json, debug) as at:
        info = at.store.run(run)
        history = History.of(at.store.entries(info.run))
        steps = [step for step in history.steps() if every or step.current]
        planned = plan(history)
        if at.as_json:
            at.answer(
                {
                    "run": show.run_facts(info),
                    "steps": [show.step_facts(step) for step in steps],
                    "plan": {
                        "restored": [step.step for step in planned if step.restored],
                        "to_run": [
                            {"step": step.step, "why": step.why} for step in planned if not step.restored
                        ],
                    },
                }
            )
            return
        _print_header(at, info)
        if info.workflow_kind == "batch" and not every:
            from nbflow.cli.batch import how_to_carry_on, print_items

            print_items(at, info.run)
            how_to_carry_on(at, info)
            return
        _print_steps(at, steps, [] if every else calls_of(history))
        _print_errors(at, steps, history)
        _print_plan(at, info, planned)


def forget(
    run: RunId,
    step: Annotated[
        str | None,
        typer.Argument(metavar="[STEP]", help="Only this step: it runs again when the run is resumed."),
    ] = None,
    yes: Yes = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Delete a run with all its outputs, or have one of its steps run again.

    Forgetting a step keeps what it recorded in history. What depends on it runs
    again as well when its result has changed.
    """
    with desk(store, as_json, debug) as at:
        info = at.store.run(run)
        if step is None:
            at.ask(
                f"Delete run {info.run} of {info.workflow} ({info.steps} recorded steps) for good?", yes=yes
            )
            at.store.delete(info.run)
            at.say(f"Deleted run {info.run} of {info.workflow}.")
        else:
            step = _forget_step(at, info.run, step)
            at.say(f"Step {step} of run {info.run} runs again when the run is resumed.")
        if at.as_json:
            at.answer({"run": info.run, "step": step, "forgotten": True})


def _forget_step(at: Desk, run: str, name: str) -> str:
    """Record that a step is to run again; taking the lease makes sure that no kernel replays it meanwhile."""
    from nbflow.core.model import StepForgotten
    from nbflow.runtime.session import this_process

    key = find_step(at.store.steps(run), name, run)
    log = at.store.attach(run, this_process())
    try:
        log.append(StepForgotten(step=key, reason="nbflow forget"))
    finally:
        log.release()
    return key


def find_step(steps: list[StepInfo], name: str, run: str) -> str:
    """Return the key of the step that has this key, this name, or a name that ends with it behind a dot.

    Raises:
        UnknownStep: none has.
        UsageError: several have; the message lists their keys.
    """
    keys = list(dict.fromkeys(step.step for step in steps))
    if name in keys:
        return name
    named = list(dict.fromkeys(step.step for step in steps if step.name == name)) or list(
        dict.fromkeys(step.step for step in steps if step.name.endswith(f".{name}"))
    )
    if len(named) == 1:
        return named[0]
    if named:
        raise UsageError(
            f"Several steps of run {run} are named {name}: {', '.join(named)}.", run=run, step=name
        )
    some = ", ".join(keys[:10]) + (" …" if len(keys) > 10 else "")
    raise UnknownStep(
        f"Run {run} has no step {name}.",
        run=run,
        step=name,
        hint=f"It has: {some}." if keys else "It has none.",
    )


def _states(words: list[str]) -> tuple[str, ...]:
    allowed = [*RunState, "corrupt"]
    for word in words:
        if word not in allowed:
            raise UsageError(f"{word!r} is no state of a run.", hint=f"The states are {', '.join(allowed)}.")
    return tuple(words)


def tags_of(pairs: list[str]) -> dict[str, str] | None:
    """Return tags given as KEY=VALUE.

    Raises:
        UsageError: one is not.
    """
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"{pair!r} is no tag.", hint="Write --tag name=value.")
    return dict(pair.split("=", 1) for pair in pairs) or None


def moment(text: str) -> float:
    """Return "2h" (so long ago) or an ISO date and time (local unless it says otherwise) as UTC seconds.

    Raises:
        UsageError: it is neither.

    >>> moment("1970-01-01T00:01:00+00:00")
    60.0
    """
    from nbflow.core.retry import seconds

    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass  # not a date: it should be a duration
    try:
        gone = seconds(text)
    except UsageError:
        raise UsageError(
            f"{text!r} is neither a duration nor a date.", hint='Write "2h", "3d" or "2026-11-20 18:00".'
        ) from None
    assert gone is not None
    return time.time() - gone


def _print_header(at: Desk, info: RunInfo) -> None:
    facts: list[tuple[str, Any]] = [
        ("run", info.run),
        ("workflow", f"{info.workflow}{f' {info.version}' if info.version else ''} ({info.workflow_kind})"),
        ("state", show.state(info.state)),
    ]
    if show.stopped(info):
        facts[-1] = (
            "state",
            Text("■ stopped: its process is gone, and the run can be resumed", style="yellow"),
        )
    if info.owner is not None and info.alive:
        owner = info.owner
        facts.append(
            ("owner", f"{owner.program or 'process'} {owner.pid} on {owner.host}, {show.ago(owner.since)}")
        )
    facts.append(("created", f"{show.iso(info.created_at)} ({show.ago(info.created_at)})"))
    if info.finished_at is not None:
        facts.append(("finished", f"{show.iso(info.finished_at)} ({show.ago(info.finished_at)})"))
    facts.append(("attempts", info.attempts))
    if info.params:
        facts.append(("parameters", ", ".join(f"{name}={value!r}" for name, value in info.params.items())))
    if info.tags:
        facts.append(("tags", ", ".join(f"{name}={value}" for name, value in sorted(info.tags.items()))))
    if info.parent:
        facts.append(("parent", info.parent))
    if info.error:
        facts.append(("error", Text(info.error, style="red")))
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    at.say(grid)
    at.say("")


def _print_steps(at: Desk, steps: list[StepInfo], calls: list[Calls]) -> None:
    """Print one line a step; `calls` that are alike (one function in one cell, same state) share a line."""
    if not steps:
        at.say("No step has started.")
        return
    groups = {call.steps[0].execution: call for call in calls if len({s.state for s in call.steps}) == 1}
    grouped = {step.execution for call in groups.values() for step in call.steps[1:]}
    rows: list[tuple[Any, ...]] = []
    for step in steps:
        group = groups.get(step.execution)
        if step.execution in grouped:
            continue
        name = step.step if step.current else f"{step.step} (earlier)"
        seconds = step.seconds
        if group is not None and len(group.steps) > 1:
            name, seconds = group.label, group.seconds if group.done else None
        outputs = ", ".join(output.name for output in step.outputs)
        rows.append(
            (name, step.step_kind, show.state(step.state), step.attempt, show.seconds(seconds), outputs)
        )
    columns: list[str | tuple[str, str]] = [
        "step",
        "kind",
        "state",
        ("attempt", "right"),
        ("took", "right"),
        "outputs",
    ]
    at.say(show.table(columns, rows))
    if any(len(group.steps) > 1 for group in groups.values()):
        at.say(Text("--all shows each call by its key.", style="dim"))


def _print_errors(at: Desk, steps: list[StepInfo], history: History) -> None:
    for step in steps:
        error = step.error
        last = history.executions[step.execution].retried
        if error is None and last is not None and step.state not in {"completed", "skipped"}:
            error = last.error
        if error is not None:
            at.say("")
            at.say(
                Text(
                    f"{step.step} {step.state.replace('_', ' ')} in attempt {step.attempt}", style="bold red"
                )
            )
            # A recorded traceback may hold terminal colours (IPython's own); they are kept.
            at.say(Text.from_ansi(error.traceback.rstrip() or f"{error.type}: {error.message}"))


def _print_plan(at: Desk, info: RunInfo, planned: list[Planned]) -> None:
    if not planned or info.alive:
        return
    again = [step for step in planned if not step.restored]
    restored = len(planned) - len(again)
    at.say("")
    at.say(
        Text.assemble(
            ("A resume ", "bold"),
            f"restores {restored} step{'' if restored == 1 else 's'} whose code and inputs have not changed",
            " and runs everything else." if not again else f", and runs {len(again)} of those that began:",
        )
    )
    if again:
        at.say(show.table(["step", "why"], [(step.step, step.why) for step in again]))
