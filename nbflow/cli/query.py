"""The command `sql`: questions to the history and to recorded frames."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Desk, Place, desk
from nbflow.core.errors import NbflowError, UsageError

#: A terminal is no place for a million rows; --csv and --json print all of them.
ROWS_SHOWN = 50


def sql(
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="One SELECT in DuckDB's SQL; - reads it from standard input."),
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            "-r",
            metavar="RUN",
            help="The run whose frames step.variable means; default: the newest.",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask the store in SQL: views runs, steps, events, outputs, and every recorded frame as step.variable."""
    with desk(store, as_json, debug) as at:
        if csv and as_json:
            raise UsageError("--csv and --json exclude each other.")
        text = sys.stdin.read() if query == "-" else query
        frame = _ask(at, text, run)
        if csv:
            frame.to_csv(sys.stdout, index=False)
        elif as_json:
            # pandas knows how to write timestamps, missing values and nested columns; the index says nothing.
            split = json.loads(
                frame.to_json(orient="split", index=False, date_format="iso", default_handler=str)
            )
            at.answer({"columns": split["columns"], "rows": split["data"]})
        else:
            shown = frame.head(ROWS_SHOWN)
            right = [frame.dtypes.iloc[number].kind in "iuf" for number in range(frame.shape[1])]
            names = [str(name) for name in frame.columns]
            rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False, name=None)]
            columns = [(name, "right") if number else name for name, number in zip(names, right, strict=True)]
            wide = sum(max(map(cell_len, column)) + 2 for column in zip(names, *rows, strict=True))
            if wide - 2 <= at.out.width or not rows:
                at.say(show.table(columns, rows))
            else:
                _print_records(at, names, rows)
            if len(frame) > len(shown):
                at.say(
                    Text(f"… {len(frame) - len(shown):,} more rows; --csv or --json prints all.", style="dim")
                )


def _print_records(at: Desk, names: list[str], rows: list[list[str]]) -> None:
    """Print a table that is too wide for the terminal as one line a value, a block a row."""
    wide = max(map(len, names))
    for number, row in enumerate(rows):
        if number:
            at.say("")
        for name, value in zip(names, row, strict=True):
            at.say(Text.assemble((f"{name:{wide}}  ", "dim"), value))


def _ask(at: Desk, text: str, run: str | None):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a pandas frame, imported by the store only
    from nbflow.queries import sql as ask

    try:
        return ask(text, run=run, store=at.store)
    except NbflowError:
        raise
    except Exception as error:
        # DuckDB's own complaint about the query is the best there is; its classes live in a private module.
        if type(error).__module__.lstrip("_").startswith("duckdb"):
            raise UsageError(str(error).strip()) from error
        raise


def _cell(value: object) -> str:
    import pandas as pd

    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):  # type: ignore[call-overload]
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
