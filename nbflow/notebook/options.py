"""What `%%durable` can be told: the options, their help, and the checked record of them."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, HelpFormatter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.magic_arguments import MagicArgumentParser

from nbflow.core.errors import UsageError
from nbflow.core.retry import RetryPolicy, seconds
from nbflow.notebook.auto import AUTO_OPTION


@dataclass(frozen=True)
class CellOptions:
    """The options of one durable cell. Durations are in seconds; None leaves it to analysis or config."""

    name: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    version: str = ""
    inputs: tuple[str, ...] | None = None
    out: tuple[str, ...] | None = None
    refresh: bool = False
    once: bool = False
    ttl: float | None = None
    on_cannot_store: str | None = None
    check: bool = False
    display: bool = True
    auto: bool = False


class _Help(HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


def new_parser(prog: str, description: str = "") -> ArgumentParser:
    """Return an empty parser for a magic's line."""
    parser: ArgumentParser = MagicArgumentParser(prog=prog, description=description, add_help=False)  # type: ignore[no-untyped-call]
    # IPython's own formatter writes reStructuredText, and one per cent sign too many.
    parser.formatter_class = _Help
    return parser


def durable_parser() -> ArgumentParser:
    """Return the parser of the `%%durable` line; its help is what `%%durable?` shows."""
    parser = new_parser(
        "%%durable",
        description="Record this cell: what it binds, changes and shows. Once recorded it is restored "
        "instead of run, in this kernel and in the next one, until its code or something it reads changes.",
    )
    parser.usage = "%%%%durable [NAME] [option ...]"
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        metavar="NAME",
        help="What the cell is called; unique in the notebook. Results are found by it.",
    )
    add("--name", dest="given_name", metavar="NAME", help="The same, as an option.")
    add("-r", "--retries", type=_whole, default=0, metavar="N", help="How many more tries after a failure.")
    add(
        "--delay",
        default="0.5",
        metavar="TIME",
        help="Wait at most so long before the first retry, twice as long before the next. Default 0.5 s.",
    )
    add("--timeout", metavar="TIME", help='How long one try may take: "30s", "5m", "1h 30m" or seconds.')
    add(
        "--version",
        default="",
        metavar="V",
        help="Stands for the code: edits do not make the cell run again, a new V does.",
    )
    add(
        "--in",
        dest="inputs",
        action="append",
        metavar="A,B",
        help="What the cell depends on, instead of what is found.",
    )
    add("--out", dest="out", action="append", metavar="A,B", help="What to record, instead of what is found.")
    add("--refresh", action="store_true", help="Run now, whatever is recorded, and record anew.")
    add("--once", action="store_true", help="Never run again in this run, even if code or inputs change.")
    add("--ttl", metavar="TIME", help="Run again when the recording is older than this.")
    add(
        "--on-cannot-store",
        choices=["error", "rerun"],
        help="A variable cannot be stored: fail, or record without "
        "it and run again on resume. Default: %%config NbFlow.on_cannot_store.",
    )
    add(
        "--check",
        action="store_true",
        help="Restore the variables once before they are recorded: fail if one comes back different.",
    )
    add("--no-display", action="store_true", help="Do not record what the cell shows.")
    add(AUTO_OPTION, action="store_true", dest="auto", help=SUPPRESS)
    return parser


def parse_durable(parser: ArgumentParser, line: str) -> CellOptions:
    """Read a `%%durable` line.

    Raises:
        UsageError: in one sentence; nothing was run.
    """
    found = _parsed(parser, line, "%%durable?")
    if found.name and found.given_name and found.name != found.given_name:
        raise UsageError(f"The cell has two names, {found.name!r} and {found.given_name!r}.")
    if found.refresh and found.once:
        raise UsageError("--refresh and --once contradict each other.")
    name = found.name or found.given_name
    if name is not None and ("/" in name or "#" in name):
        raise UsageError(
            f"A cell's name must not hold / or #, as {name!r} does.", hint="They part steps from their calls."
        )
    timeout = seconds(found.timeout)
    if timeout == 0:
        raise UsageError("A timeout of 0 leaves no time to run; leave it out for no limit.")
    return CellOptions(
        name=name,
        retry=RetryPolicy(retries=found.retries, delay=seconds(found.delay) or 0.0),
        timeout=timeout,
        version=found.version,
        inputs=_names("--in", found.inputs),
        out=_names("--out", found.out),
        refresh=found.refresh,
        once=found.once,
        ttl=seconds(found.ttl),
        on_cannot_store=found.on_cannot_store,
        check=found.check,
        display=not found.no_display,
        auto=found.auto,
    )


def parse_with(parser: ArgumentParser, line: str, manual: str) -> Any:
    """Read a magic's line with any parser.

    Raises:
        UsageError: in one sentence; `manual` is where to read on.
    """
    return _parsed(parser, line, manual)


def _parsed(parser: ArgumentParser, line: str, manual: str) -> Any:
    try:
        return parser.parse_argstring(line)  # type: ignore[attr-defined]
    except IPythonUsageError as error:
        text = str(error).strip()
        known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001
        _, colon, strange = text.partition("unrecognized arguments: ")
        meant = did_you_mean(strange.split()[0], known) if colon else ""
        raise UsageError(
            f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}",
            hint=f"{meant} See {manual}".strip(),
        ) from None
    except ValueError as error:  # a quotation mark that is not closed
        raise UsageError(f"{error}.", hint=f"See {manual}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `Did you mean --retries?` for a word that is nearly a known one, else "".

    >>> did_you_mean("--retires", ["--retries", "--timeout"])
    'Did you mean --retries?'
    """
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"wants a whole number, not {text!r}") from None


def _names(option: str, given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier():
            raise UsageError(f"{option} wants names of variables, and {name!r} is none.")
    return tuple(dict.fromkeys(names))


def durable_options() -> list[str]:
    """List the options of `%%durable` as they are completed."""
    actions = durable_parser()._actions  # noqa: SLF001 - argparse has no other list of them
    return [
        text
        for action in actions
        for text in action.option_strings
        if text.startswith("--") and text != AUTO_OPTION
    ]
