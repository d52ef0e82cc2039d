"""What people type that Typer has no form for: `-p NAME VALUE` as papermill has it, and `--resume [BATCH]`.

Both are brought into a form that Typer knows before it reads the arguments, so
nothing here depends on how it works inside.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from nbflow.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: papermill's names of the options that take a name and a value.
_PAIRS = frozenset({"-p", "--parameters", "-r", "--parameters_raw", "--parameters-raw"})

_NAMED = re.compile(r"[^\W\d]\w*=")
_RUN = re.compile(r"[0-9a-f]{4,}(-[0-9a-f]*)*")


class ParameterCommand(TyperCommand):
    """A command with papermill's `-p NAME VALUE` and `-r NAME VALUE`; `-p NAME=VALUE` is understood as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring pairs into one argument each."""
        return super().parse_args(ctx, paired(args))


class ResumeCommand(TyperCommand):
    """A command whose `--resume` may be followed by the id of a batch."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the id into an option of its own."""
        return super().parse_args(ctx, with_batch(args))


def paired(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each pair behind `-p` or `-r` as one.

    >>> paired(["in.ipynb", "-p", "year", "2013", "-p", "month=7", "out.ipynb"])
    ['in.ipynb', '-p', 'year=2013', '-p', 'month=7', 'out.ipynb']
    """
    made: list[str] = []
    rest = list(arguments)
    while rest:
        made.append(rest.pop(0))
        if made[-1] == "--":
            return made + rest
        if made[-1] in _PAIRS and rest and not _NAMED.match(rest[0]) and len(rest) > 1:
            made.append(f"{rest.pop(0)}={rest.pop(0)}")
        elif made[-1] in _PAIRS and rest:
            made.append(rest.pop(0))
    return made


def with_batch(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the id behind `--resume`, if there is one, as that of `--batch`.

    >>> with_batch(["--resume", "0198c200", "--yes"]), with_batch(["in.ipynb", "--resume"])
    (['--resume', '--batch', '0198c200', '--yes'], ['in.ipynb', '--resume'])
    """
    made: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*made, argument, *rest]
        option, equals, value = argument.partition("=")
        if option == "--resume" and equals:
            made += [option, "--batch", value]
            continue
        made.append(argument)
        if argument == "--resume" and rest and _RUN.fullmatch(rest[0]):
            made += ["--batch", rest.pop(0)]
    return made


def parameters_of(
    *,
    encoded: Sequence[str] = (),
    files: Sequence[str] = (),
    yaml: Sequence[str] = (),
    pairs: Sequence[str] = (),
    raw: Sequence[str] = (),
) -> dict[str, Any]:
    """Return parameters given in papermill's ways; the later kinds win, as they do there.

    Raises:
        UsageError: one of them makes no sense.
    """
    from base64 import b64decode

    from papermill.iorw import NoDatesSafeLoader, read_yaml_file
    from yaml import load

    from nbflow.headless.parameters.files import resolve

    found: dict[str, Any] = {}

    def loaded(text: str | bytes) -> Any:
        return load(text, Loader=NoDatesSafeLoader)  # noqa: S506 - it is a safe one, papermill's

    for text in encoded:
        found |= _mapping("-b", lambda text: loaded(b64decode(text, validate=True)), text)
    for path in files:
        found |= _mapping(f"-f {path}", read_yaml_file, path)
    for text in yaml:
        found |= _mapping(f"-y {text!r}", loaded, text)
    for option, given, convert in (("-p", pairs, resolve), ("-r", raw, str)):
        for pair in given:
            name, equals, value = pair.partition("=")
            if not equals or not name.isidentifier():
                raise UsageError(
                    f"{option} {pair} is no parameter.",
                    hint=f"Write {option} NAME VALUE, or {option} NAME=VALUE.",
                )
            found[name] = convert(value)
    return found


def _mapping(what: str, load: Callable[[str], Any], given: str) -> dict[str, Any]:
    try:
        found = load(given)
    except FileNotFoundError as error:
        raise UsageError(f"{what}: there is no such file.") from error
    except Exception as error:  # each kind of file has its own errors
        raise UsageError(f"{what} cannot be read: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"{what} holds no names with values.", hint="Write them as name: value.")
    return found
