"""The table of contents of the command line: which command is which function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nbflow.cli import batch, control, gates, notebooks, operate, outputs, query, runs, upkeep
from nbflow.cli.arguments import ParameterCommand, ResumeCommand
from nbflow.cli.desk import AsJson, Debug, desk

app = typer.Typer(
    name="nbflow",
    help="Durable Jupyter notebooks: run them, look at what was recorded, query it, export it, look after it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Errors are told in a sentence (nbflow.cli.desk); --debug shows Python's own traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("run", cls=ParameterCommand)(notebooks.run)
app.command("resume")(notebooks.resume)
app.command("batch", cls=ResumeCommand)(batch.batch)
app.command("batches")(batch.batches)
app.command("runs")(runs.list_runs)
app.command("show")(runs.show_run)
app.command("outputs")(outputs.outputs)
app.command("sql")(query.sql)
app.command("signal")(control.signal)
app.command("cancel")(control.cancel)
app.command("gates")(gates.gates)
app.command("approve")(gates.approve)
app.command("reject")(gates.reject)
app.command("forget")(runs.forget)
app.command("fork")(operate.fork)
app.command("retry")(operate.retry)
app.command("published")(operate.published)
app.command("gc")(upkeep.gc)
app.command("trust")(upkeep.trust)
app.command("doctor")(upkeep.doctor)


@app.command()
def demo(
    notebook: Annotated[
        Path | None,
        typer.Argument(metavar="[NOTEBOOK]", help="Default: the flights notebook of the repository."),
    ] = None,
    kill_at: Annotated[
        str | None,
        typer.Option("--kill-at", metavar="CELL", help="Kill in this cell: its name, or its number from 1."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the demo's folder with its store, to look into it.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Where the executed notebook and its HTML page go."),
    ] = Path("demo-result"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Kill a real notebook in the middle with SIGKILL, run it again, and compare."""
    with desk(None, as_json, debug) as at:
        from nbflow.demo import run_demo

        result = run_demo(notebook, kill_at=kill_at, keep=keep, out=out, console=None if as_json else at.out)
        if as_json:
            at.answer(result)


@app.command()
def version(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show the versions of nbflow and of what it stands on."""
    with desk(None, as_json, debug) as at:
        import platform
        from importlib import metadata

        from nbflow import __version__
        from nbflow.cli import show

        facts = {"nbflow": __version__, "python": platform.python_version()}
        for name in ("duckdb", "pandas", "pyarrow", "numpy", "ipython", "ipykernel"):
            facts[name] = metadata.version(name)
        at.say(show.table(["", "version"], facts.items()))
        if at.as_json:
            at.answer(facts)
