"""What every command shares: three options, the opened store, tables or JSON, and errors as one paragraph.

A command works inside `with desk(store, as_json, debug) as desk:`. Whatever
is raised in there leaves as an exit code and a sentence, never as a traceback
unless `--debug` asks for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nbflow.core import errors

if TYPE_CHECKING:
    from nbflow.store.protocol import Store

Place = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="The store's folder. Default: $NBFLOW_STORE, else the nearest .nbflow above this folder.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

#: The most specific class decides; `tests/test_cli.py` checks that docs/cli.md lists the same codes.
EXIT_CODES: dict[type[BaseException], int] = {
    errors.UsageError: 2,
    errors.UnknownRun: 3,
    errors.UnknownStep: 3,
    errors.StoreBusy: 4,
    errors.LeaseError: 5,
    errors.CorruptRecord: 6,
    errors.CorruptLeaf: 6,
    errors.Untrusted: 7,
    errors.NotAStore: 8,
    errors.StoreReadOnly: 8,
    errors.StoreFull: 8,
    errors.StoreTooNew: 8,
    errors.GatePending: 10,
    errors.GateDecided: 11,
    errors.KernelDied: 138,
}
INTERRUPTED = 130

#: Wide enough for a full table where the output goes to a pipe or file and nobody told the width.
_PIPE_WIDTH = 160


class Desk:
    """The store of one command and the two ways to answer: tables for people, JSON for programs."""

    def __init__(self, place: str | None, as_json: bool) -> None:
        self.place = place
        self.as_json = as_json
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
        self.out = Console(width=width, highlight=False)

    @cached_property
    def store(self) -> Store:
        """The store, opened at first use.

        Raises:
            UnknownRun: there is no store here, hence no run; a look must not make one.
        """
        return open_existing(self.place)

    def close(self) -> None:
        """Close the store where it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    def answer(self, facts: dict[str, Any]) -> None:
        """Print facts as JSON; see docs/cli.md for the shape of each command's."""
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n")

    def say(self, *parts: Any) -> None:
        """Print for people; with `--json` nothing but JSON may stand on standard output."""
        if not self.as_json:
            self.out.print(*parts)

    def ask(self, question: str, *, yes: bool) -> None:
        """Go on if `yes` or if the person agrees; nobody there to ask is not an agreement.

        Raises:
            UsageError: nobody could be asked.
            typer.Exit: the answer was no.
        """
        if yes:
            return
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            raise errors.UsageError(
                "Nobody is there to answer, and nothing was done.", hint="Add --yes."
            ) from None
        if not agreed:
            typer.echo("Nothing was done.", err=True)
            raise typer.Exit(1)


def open_existing(place: str | None) -> Store:
    """Open the store at `place`, or the one that belongs to this folder; never make a new one."""
    from nbflow.store.place import is_store, locate

    folder = locate(place)
    if folder.is_file():
        raise errors.NotAStore(f"{folder} is a file, not a store.", hint="Name the folder .nbflow.")
    if not is_store(folder):
        raise errors.UnknownRun(
            f"There is no store at {folder}.",
            hint="A notebook's runs are in the nearest .nbflow above the notebook: go there, or name it with --store.",
        )
    from nbflow.store.local import open_store

    return open_store(folder)


@contextmanager
def desk(place: str | None, as_json: bool, debug: bool) -> Iterator[Desk]:
    """Open the desk for one command and turn whatever goes wrong into a sentence and an exit code."""
    opened = Desk(place, as_json)
    try:
        try:
            yield opened
        finally:
            opened.close()
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # `nbflow runs | head`: the reader has seen enough. Python would complain at exit, flushing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:
        # A run that waits at a gate is no failure, and not an `Exception` either.
        told = to_tell(error)
        if debug or told is None:
            raise
        code = exit_code(told)
        complain(told, code, as_json)
        raise typer.Exit(code) from None


def to_tell(error: BaseException) -> Exception | errors.GatePending | None:
    """Return what is to be told of an error: itself, or the gate that stopped the run; None for an exit."""
    from nbflow.core.gates import pending_of

    pending = pending_of(error)
    if pending is not None:
        return pending
    return error if isinstance(error, Exception) else None


def exit_code(error: BaseException) -> int:
    """Return the documented exit code of an error.

    >>> exit_code(errors.LeaseHeld("taken")), exit_code(ValueError())
    (5, 1)
    """
    for cls in type(error).__mro__:
        if cls in EXIT_CODES:
            return EXIT_CODES[cls]
    return 1


def complain(error: Exception | errors.GatePending, code: int, as_json: bool) -> None:
    """Print an error on standard error: one paragraph and its hint, or one JSON object."""
    if isinstance(error, (errors.NbflowError, errors.GatePending)):
        ours, message, hint = True, error.message, error.hint
    else:
        ours, message = False, f"{type(error).__name__}: {error}"
        hint = "Run it again with --debug to see where."
    if as_json:
        facts = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": code}
        facts |= {
            name: value
            for name in ("run", "step", "seq")
            if (value := getattr(error, name, None)) is not None
        }
        sys.stderr.write(json.dumps({"error": facts}, ensure_ascii=False, default=str) + "\n")
        return
    from rich.text import Text

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
    word = ("Error: ", "bold red") if ours else ("Unexpected error: ", "bold red")
    if isinstance(error, errors.GatePending):
        word = ("Waiting: ", "bold yellow")
    console.print(Text.assemble(word, message))
    if hint:
        console.print(Text(hint, style="dim"))
