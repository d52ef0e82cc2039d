"""What `%%durable` and `%%gate` can be told: the options, their help, and the checked records of them."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, HelpFormatter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.magic_arguments import MagicArgumentParser

from nbflow.core.errors import UsageError
from nbflow.core.gates import OnTimeout
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

    @property
    def declared(self) -> str:
        """What makes the work another one although code and inputs are the same: what counts as output."""
        return "" if self.out is None else "out=" + ",".join(sorted(self.out))

    @property
    def always(self) -> bool:
        """Whether the cell is a step also where it only defines things or says nothing."""
        return False


@dataclass(frozen=True)
class GateOptions(CellOptions):
    """The options of a cell that is a gate: what it asks, and what becomes of the answer."""

    text: str = ""
    choices: tuple[str, ...] = ()
    single: bool = False
    due: float | None = None
    on_timeout: OnTimeout = "fail"
    wait: bool = False
    on_reject: Literal["raise", "return"] = "raise"

    @property
    def variable(self) -> str:
        """The variable that the decision is bound to."""
        return self.out[0] if self.out else DECISION

    @property
    def declared(self) -> str:
        """A question put in other words, or with other options, is another question."""
        asked = (self.text, self.choices, self.single, self.on_reject)
        return f"{super().declared};gate={asked!r}"

    @property
    def always(self) -> bool:
        """A gate asks, whatever its body shows."""
        return True


#: The variable that a gate binds unless it is told another one.
DECISION = "decision"


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


def gate_parser() -> ArgumentParser:
    """Return the parser of the `%%gate` line; its help is what `%%gate?` shows."""
    parser = new_parser(
        "%%gate",
        description="Stop here until somebody approves. The body shows what is to be judged: all that it "
        "displays is recorded with the question. The decision is bound to a variable, and is recorded as "
        "the result of a durable cell is: once decided, the gate is not asked again until what it shows changes.",
    )
    parser.usage = "%%%%gate NAME [QUESTION ...] [option ...]"
    add = parser.add_argument
    add("words", nargs="*", metavar="NAME QUESTION", help=SUPPRESS)
    add("-o", "--option", action="append", default=[], metavar="A", help="What may be selected; repeatable.")
    add("--single", action="store_true", help="An approval selects exactly one of the options.")
    add("--timeout", metavar="TIME", help='How long it waits: "2d", "12h". By default without end.')
    add(
        "--on-timeout",
        choices=list(get_args(OnTimeout)),
        default="fail",
        help="What happens when nobody decided in time. Default: fail.",
    )
    add("--wait", action="store_true", help="Wait in place instead of stopping the notebook.")
    add(
        "--on-reject",
        choices=["raise", "return"],
        default="raise",
        help="A rejection is an error, or the decision (which is false). Default: raise.",
    )
    add("--as", dest="variable", default=DECISION, metavar="VARIABLE", help="Default: decision.")
    add(
        "--in",
        dest="inputs",
        action="append",
        metavar="A,B",
        help="What it depends on, instead of what is found.",
    )
    return parser


def parse_gate(parser: ArgumentParser, line: str) -> GateOptions:
    """Read a `%%gate` line.

    Raises:
        UsageError: in one sentence; nobody was asked.
    """
    found = _parsed(_Intermixed(parser), line, "%%gate?")
    if not found.words:
        raise UsageError("A gate has a name.", hint='For example: %%gate publish "Publish to the site?"')
    name = found.words[0]
    if "/" in name or "#" in name:
        raise UsageError(
            f"A gate's name must not hold / or #, as {name!r} does.", hint="They part steps from their calls."
        )
    if not found.variable.isidentifier():
        raise UsageError(f"--as wants the name of a variable, and {found.variable!r} is none.")
    return GateOptions(
        name=name,
        inputs=_names("--in", found.inputs),
        out=(found.variable,),
        text=" ".join(found.words[1:]),
        choices=tuple(found.option),
        single=found.single,
        due=seconds(found.timeout),
        on_timeout=found.on_timeout,
        wait=found.wait,
        on_reject=found.on_reject,
    )


class _Intermixed:
    """Reads a line as people write it: a question of several words, options wherever they stand, texts in quotes."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parser = parser
        self._actions = parser._actions  # noqa: SLF001 - what is meant by a slip is looked up there

    def parse_argstring(self, line: str) -> Any:
        import shlex

        return self._parser.parse_intermixed_args(shlex.split(line))


def parse_with(parser: ArgumentParser, line: str, manual: str) -> Any:
    """Read a magic's line with any parser.

    Raises:
        UsageError: in one sentence; `manual` is where to read on.
    """
    return _parsed(parser, line, manual)


def _parsed(parser: ArgumentParser | _Intermixed, line: str, manual: str) -> Any:
    try:
        return parser.parse_argstring(line)  # type: ignore[union-attr]
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
    return _options(durable_parser())


def gate_options() -> list[str]:
    """List the options of `%%gate` as they are completed."""
    return _options(gate_parser())


def _options(parser: ArgumentParser) -> list[str]:
    actions = parser._actions  # noqa: SLF001 - argparse has no other list of them
    return [
        text
        for action in actions
        for text in action.option_strings
        if text.startswith("--") and text != AUTO_OPTION
    ]
