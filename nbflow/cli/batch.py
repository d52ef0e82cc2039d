"""Commands for many notebooks at once: `batch` and `batches`."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import INTERRUPTED, AsJson, Debug, Desk, Place, desk
from nbflow.cli.notebooks import (
    WAITS,
    Approve,
    ExecutionTimeout,
    KernelName,
    NotebookPlace,
    approvals_of,
    names_of,
)
from nbflow.cli.runs import tags_of
from nbflow.cli.upkeep import byte_count
from nbflow.core.errors import UsageError
from nbflow.core.states import FINAL_RUN_STATES
from nbflow.notebook.amounts import duration

if TYPE_CHECKING:
    from nbflow.cli.batch_view import Counting
    from nbflow.core.model import RunInfo
    from nbflow.headless.batches.api import Batch
    from nbflow.headless.batches.foresight import Foresight
    from nbflow.headless.batches.jobs import Item, Outcome
    from nbflow.runtime.gates.ahead import Approvals

#: Exit code of a batch of which some notebooks failed.
SOME_FAILED = 9

#: What of a batch can be resumed.
_TO_RESUME = frozenset({"failed", "waiting", "interrupted"})

#: Rows of a plan and failures that are shown; `--json` has all.
_ROWS = 10

_AXIS = re.compile(r"[^\W\d]\w*=")


def batch(
    notebook: Annotated[
        str | None, typer.Argument(metavar="[NOTEBOOK]", help="A path, or whatever papermill reads.")
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AXIS...]", help="More of --grid, as name=value,value: every combination runs."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="SOURCE",
            help="Parameters: a file (.csv .jsonl .json .yaml .parquet), or name=value,value; repeatable.",
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="TEMPLATE",
            help="The executed notebooks: {run_id}, {batch_id}, {index} and every parameter are filled in.",
        ),
    ] = "runs/{run_id}.ipynb",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-w", metavar="N", min=1, help="How many at a time. Default: one a processor."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Carry on the newest batch of this notebook with these parameters, or the one whose id follows.",
        ),
    ] = False,
    which: Annotated[
        str | None,
        typer.Option("--batch", metavar="ID", help="The batch to carry on: --resume ID says the same."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    collect: Annotated[
        str | None,
        typer.Option("--collect", metavar="NAMES", help="Variables to record for the results: metric,auc."),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(
            "--max-failures", metavar="N", min=1, help="Begin nothing new once so many have failed."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try what failed once more when all others are through."),
    ] = False,
    approve: Approve = None,
    kernel: KernelName = None,
    cwd: Annotated[
        Path | None,
        typer.Option(
            "--cwd", metavar="FOLDER", help="The folder that the notebooks run in. Default: this one."
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads", metavar="N", min=0, help="Threads of BLAS and OpenMP in each; 0 leaves it to them."
        ),
    ] = 1,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help='Memory that each kernel may allocate: "2GB" (Linux).'),
    ] = None,
    start_timeout: Annotated[
        int, typer.Option("--start-timeout", metavar="SECONDS", min=1, help="For each kernel to start.")
    ] = 60,
    execution_timeout: ExecutionTimeout = None,
    executor: Annotated[
        str, typer.Option("--executor", metavar="NAME", help="processes of this machine, or dask.")
    ] = "processes",
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", metavar="URL", help="Dask's scheduler: tcp://…. Default: a cluster here."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace output files that are not of this batch.")
    ] = False,
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", help="Leave out rows with equal parameters.")
    ] = False,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="KEY=VALUE", help="A word to find the batch by; repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show the summary only.")] = False,
    store: NotebookPlace = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a notebook once for each row of parameters, several at a time, every one of them resumable.

    Ctrl-C lets the notebooks at work finish and begins no new ones; a second one ends
    them. Whatever was killed, --resume carries on: what is completed never runs again,
    and the rest goes on from its last recorded cell. A notebook that stops at a gate
    leaves its place to others, and --resume carries it on when somebody has decided.
    """
    with desk(store, as_json, debug) as at:
        source, grids = sorted_out(notebook, axes or (), grid or ())
        if source is None and which is None:
            raise UsageError(
                "Which notebook?",
                hint="Write `nbflow batch NOTEBOOK --grid …`, or --resume with the id of a batch.",
            )
        if not grids and not resume and which is None:
            raise UsageError(
                f"There are no parameters to run {source} with.",
                hint="Name a file or values with --grid; `nbflow run` runs a notebook once.",
            )
        if cwd is not None and not cwd.is_dir():
            raise UsageError(f"There is no folder {cwd} to run the notebooks in.")
        from nbflow.headless.batches.foresight import foresee, warnings_of
        from nbflow.headless.batches.jobs import Options
        from nbflow.headless.batches.request import Asked

        options: dict[str, Any] = {
            "kernel": kernel,
            "cwd": str((cwd or Path()).absolute()),
            "collect": tuple(names_of(collect)),
            "threads": threads or None,
            "memory": None if memory is None else byte_count(memory),
            "start_timeout": start_timeout,
            "execution_timeout": execution_timeout,
        }
        asked = Asked(source, grids or None, out, Options(**options), overwrite, skip_duplicates, None)
        carried = which or resume
        warnings = [] if carried or source is None else warnings_of(asked, store=store)
        if not as_json:
            for warning in warnings:
                typer.echo(f"Warning: {warning}", err=True)
        if dry_run:
            _show_plan(at, foresee(asked, resume=carried, store=store), warnings)
            return
        again = [
            f"--{name} {shlex.quote(str(value))}"
            for name, value in (("workers", workers), ("scheduler", scheduler))
            if value
        ]
        again += [f"--executor {executor}"] if executor != "processes" else []
        conduct(
            at,
            again,
            quiet=quiet,
            notebook=source,
            # Read once: a file may be long.
            parameters=asked.rows() if grids else None,
            output=out,
            resume=carried,
            overwrite=overwrite,
            skip_duplicates=skip_duplicates,
            workers=workers,
            executor=executor,
            scheduler=scheduler,
            max_failures=max_failures,
            retry_failed=int(retry_failed),
            tags=tags_of(tags or []),
            approve=approvals_of(approve),
            store=store,
            **options,
        )


def carry_on(at: Desk, run: str, store: Path, approve: Approvals) -> None:
    """Resume a batch by its id, for `nbflow resume`."""
    conduct(at, [], quiet=False, notebook=None, resume=run, approve=approve, store=str(store))


def batches(
    notebook: Annotated[
        str | None, typer.Argument(metavar="[NOTEBOOK]", help="Only of this one; * stands for anything.")
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", "-s", metavar="STATE", help="Only batches in this state.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List batches, newest first: how many of their notebooks are completed, failed, waiting at gates, left."""
    with desk(store, as_json, debug) as at:
        from nbflow.headless.batches.results import batches as listed

        found = listed(notebook, state=state, limit=limit, store=at.store)  # type: ignore[arg-type]
        rows: list[dict[str, Any]] = found.to_dict("records")  # type: ignore[assignment]
        if at.as_json:
            at.answer({"batches": [row | {"created": show.iso(row["created"].timestamp())} for row in rows]})
        elif not rows:
            at.say("No batches." if notebook is None and state is None else "No such batches.")
        else:
            ids = show.shortened([row["batch"] for row in rows])
            columns: list[str | tuple[str, str]] = ["run", "workflow", "state"]
            columns += [(name, "right") for name in ("all", "done", "failed", "waiting", "left")]
            at.say(
                show.table(
                    [*columns, "started"],
                    [
                        (
                            ids[row["batch"]],
                            row["notebook"],
                            show.state(row["state"]),
                            row["total"],
                            row["completed"],
                            row["failed"] or "",
                            row["waiting"] or "",
                            row["left"] or "",
                            show.ago(row["created"].timestamp()),
                        )
                        for row in rows
                    ],
                )
            )


def print_items(at: Desk, run: str) -> None:
    """Print how far a batch is, and what is not completed of it, for `nbflow show`."""
    from nbflow.headless.batches.results import batch_results

    items = batch_results(run, collect=(), store=at.store)  # type: ignore[arg-type]
    counts = items.state.value_counts().to_dict()
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    at.say(Text(f"{len(items):,} notebooks: {said}."))
    left = items[items.state != "completed"].sort_values("state", kind="stable")
    if left.empty:
        return
    parameters = [str(name) for name in items.columns[: list(items.columns).index("state")]]
    rows = [
        (
            f"#{index}",
            " ".join(f"{name}={row[name]}" for name in parameters),
            show.state(row["state"]),
            row["attempts"],
            row["error"] or _gate_of(at, row["state"], row["run"]),
            row["run"],
        )
        for index, row in left.head(_ROWS).iterrows()
    ]
    at.say(show.table(["item", "what", "state", ("attempts", "right"), "why", "run"], rows))
    if len(left) > _ROWS:
        at.say(Text(f"and {len(left) - _ROWS:,} more; --all shows all items as steps", style="dim"))


def _gate_of(at: Desk, state: str, run: str) -> str:
    """Return what a notebook waits for; "" where it does not wait."""
    if state != "waiting":
        return ""
    from nbflow.headless.waiting import undecided

    gate = undecided(at.store, run, time.time())  # type: ignore[arg-type]  # a store in a folder: it has batches
    return "Its gate is decided, or its time is over." if gate is None else str(gate)


def how_to_carry_on(at: Desk, info: RunInfo) -> None:
    """Say how a batch is resumed that nobody works on."""
    if info.alive or info.state in FINAL_RUN_STATES:
        return
    at.say("")
    at.say(Text.assemble(("Carry on: ", "bold"), f"nbflow batch --resume {info.run}"))


# --- before --------------------------------------------------------------------------------------------------


def sorted_out(
    notebook: str | None, axes: Sequence[str], grid: Sequence[str]
) -> tuple[str | None, list[str]]:
    """Return the notebook and all sources of parameters, whichever order they were typed in.

    Raises:
        UsageError: something is neither.

    >>> sorted_out("b=x,y", ["in.ipynb"], ["a=1,2"])
    ('in.ipynb', ['a=1,2', 'b=x,y'])
    """
    words = [*([] if notebook is None else [notebook]), *axes]
    named = [word for word in words if _AXIS.match(word)]
    others = [word for word in words if not _AXIS.match(word)]
    if len(others) > 1:
        raise UsageError(
            f"{others[1]!r} is neither a notebook nor an axis.",
            hint="There is one notebook; an axis is written name=value,value, a file behind --grid.",
        )
    return (others[0] if others else None), [*grid, *named]


def _show_plan(at: Desk, expected: Foresight, warnings: list[str]) -> None:
    """Print what would run: counts, and the first rows with what becomes of each."""
    from nbflow.cli.batch_view import rows_table

    standing, plan = expected.standing, expected.plan
    fates: dict[int, str] = {}
    for fate, indices in (
        ("to resume", standing.to_resume),
        ("done", standing.done),
        ("failed: again", standing.failed),
        ("waiting", standing.waiting),
        ("cancelled", standing.cancelled),
    ):
        fates |= dict.fromkeys(indices, fate)
    if at.as_json:
        at.answer(
            {
                "dry_run": True,
                "batch": expected.run,
                "notebook": plan.notebook,
                "new": len(standing.new),
                "to_resume": len(standing.to_resume),
                "done": len(standing.done),
                "failed": len(standing.failed),
                "waiting": len(standing.waiting),
                "cancelled": len(standing.cancelled),
                "items": [
                    {"item": item.index, "params": item.params, "output": item.output}
                    | {"fate": fates.get(item.index, "new"), "origin": item.origin}
                    for item in plan.items
                ],
                "warnings": warnings,
            }
        )
        return
    which = f"Batch {expected.run} of" if expected.run else "A new batch of"
    at.say(Text(f"{which} {plan.notebook}: {standing}."))
    left = set(standing.left)
    first = [item for item in plan.items if item.index in left][:_ROWS]
    if first:
        at.say(rows_table(first, fates, begun=expected.run is not None))
    if len(left) > len(first):
        at.say(Text(f"and {len(left) - len(first):,} more", style="dim"))
    at.say(Text("Nothing was run.", style="dim"))


# --- the batch -----------------------------------------------------------------------------------------------


def conduct(at: Desk, again: list[str], *, quiet: bool, **arguments: Any) -> None:
    """Run or resume a batch, show it, say how it went, and leave with its exit code.

    `again` are options that the command which resumes it should have as well.
    """
    from nbflow.cli.batch_view import Counting, Lines, LiveTable
    from nbflow.headless.batches.api import batch as run_batch

    watcher: Counting
    if quiet or at.as_json:
        watcher = Counting()
    elif sys.stdout.isatty():
        watcher = LiveTable(at.out)
    else:
        watcher = Lines(at.say)
    began = time.monotonic()
    with watcher if isinstance(watcher, LiveTable) else nullcontext():
        done = run_batch(watcher=watcher, **arguments)
    _say_end(at, done, watcher, again, time.monotonic() - began)
    if done.state == "completed":
        return
    codes = {"failed": SOME_FAILED, "waiting": WAITS, "interrupted": INTERRUPTED}
    raise typer.Exit(codes.get(done.state, 1))


def _say_end(at: Desk, done: Batch, watcher: Counting, again: list[str], seconds: float) -> None:
    from nbflow.cli.batch_view import label, why

    failures = [watcher.counts.failed[index] for index in sorted(watcher.counts.failed)]
    held = [watcher.counts.held[index] for index in sorted(watcher.counts.held)]
    command = _resume_command(done, again)
    if at.as_json:
        at.answer(
            {
                "batch": done.id,
                "notebook": done.notebook,
                "state": done.state,
                "completed": done.completed,
                "failed": done.failed,
                "waiting": done.waiting,
                "left": done.left,
                "seconds": seconds,
                "failures": [_failure_facts(item, outcome) for item, outcome in failures],
                "gates": [_gate_facts(item, outcome) for item, outcome in held],
                "resume": command if done.state in _TO_RESUME else None,
            }
        )
        return
    counts = f"{done.completed:,} notebook{'' if done.completed == 1 else 's'} completed"
    counts += "".join(
        f", {count:,} {word}"
        for count, word in ((done.failed, "failed"), (done.waiting, "waiting"), (done.left, "left"))
        if count
    )
    took = f", {duration(seconds)}" if watcher.run else ". There was nothing left to run."
    at.say(Text.assemble(show.state(done.state), f": {counts}{took}"))
    for item, outcome in failures[:_ROWS]:
        at.say(Text.assemble(f"  {label(item)}: ", (why(outcome), "red")))
        at.say(Text(f"    run {item.run}", style="dim"))
    if len(failures) > _ROWS:
        at.say(Text(f"  and {len(failures) - _ROWS:,} more: nbflow.batch_results lists all", style="dim"))
    for item, outcome in held[:_ROWS]:
        at.say(Text.assemble(f"  {label(item)}: ", (why(outcome), "yellow")))
        if outcome.waiting is not None:
            at.say(Text(f"    {outcome.waiting.command(done.store)}", style="dim"))
    if len(held) > _ROWS:
        at.say(Text(f"  and {len(held) - _ROWS:,} more: `nbflow gates` lists all", style="dim"))
    if done.state in _TO_RESUME:
        at.say(Text.assemble(("Carry on: ", "bold"), command))
    place = "" if _found_from_here(done) else f", store={str(done.store)!r}"
    at.say(Text.assemble(("Results:  ", "bold"), f'nbflow.batch_results("{done.id}"{place})'))


def _resume_command(done: Batch, again: list[str]) -> str:
    place = [] if _found_from_here(done) else [f"--store {shlex.quote(str(done.store))}"]
    return " ".join(["nbflow batch --resume", done.id, *again, *place])


def _found_from_here(done: Batch) -> bool:
    """Tell whether whoever names no store finds this batch's from this folder."""
    from nbflow.store.place import locate

    return locate(None) == done.store


def _failure_facts(item: Item, outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "item": item.index,
        "params": item.params,
        "run": item.run,
        "output": item.output,
        "cell": outcome.cell,
        "error": None if error is None else {"type": error.type, "message": error.message},
    }


def _gate_facts(item: Item, outcome: Outcome) -> dict[str, Any]:
    return {
        "item": item.index,
        "params": item.params,
        "run": item.run,
        "output": item.output,
        "waiting": None if outcome.waiting is None else outcome.waiting.facts,
    }
