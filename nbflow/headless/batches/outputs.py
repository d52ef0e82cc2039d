"""Where the executed notebooks of a batch are written: the template of their names, and what is there already."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from nbflow.core.errors import UsageError
from nbflow.headless.batches.jobs import Item
from nbflow.headless.parameters.rows import Row

#: What a template can name beside parameters.
FIELDS = ("run_id", "batch_id", "index")

#: What a value must not bring into a path: separators, what shells and Windows refuse, and braces,
#: which papermill would take for a template of its own.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|{}]')

#: The length of a file's name that every system takes (bytes of UTF-8).
_NAME = 255


class Template:
    """A path with `{run_id}`, `{batch_id}`, `{index}` and the names of parameters, format specs included.

    >>> template = Template("s3://bucket/{index:03d}-{city}.ipynb", {"city"})
    >>> template.output(Row({"city": "St. John/NB"}, "row 1"), index=7, run="r", batch="b")
    's3://bucket/007-St. John_NB.ipynb'
    """

    def __init__(self, text: str, parameters: AbstractSet[str]) -> None:
        """Read a template.

        Raises:
            UsageError: it is no template, or names something that there is not.
        """
        self.text = os.fspath(text)
        if not self.text or self.text == "-":
            raise UsageError("The notebooks of a batch are written to files.", hint="Name a path or URL.")
        if "\0" in self.text:
            raise UsageError(f"The output {self.text!r} has a character that no file can have.")
        try:
            parts = list(Formatter().parse(self.text))
        except ValueError as error:
            raise UsageError(
                f"The output {self.text!r} is no template: {error}.", hint="Write {{ for a brace."
            ) from error
        self.parts = [(literal, name, spec or "", conversion) for literal, name, spec, conversion in parts]
        known = [*FIELDS, *sorted(parameters - set(FIELDS))]
        for _, name, spec, _ in self.parts:
            if name is None:
                continue
            if name not in known or "{" in spec:
                listed = ", ".join(f"{{{each}}}" for each in known)
                raise UsageError(
                    f"The output {self.text!r} names {{{name}{':' + spec if spec else ''}}}, which there is not.",
                    hint=f"There are {listed}.",
                )
            if name in FIELDS and name in parameters:
                raise UsageError(
                    f"The output {self.text!r} names {{{name}}}, which is a parameter too.",
                    hint="Call the parameter something else.",
                )
        self.remote = "://" in self.text
        self._folder = "" if self.remote else os.getcwd()  # noqa: PTH109 - as text

    def output(self, row: Row, *, index: int, run: str, batch: str) -> str:
        """Return where the notebook of a row is written: an absolute path, or a URL.

        Raises:
            UsageError: the row lacks a parameter that the template names; its value does not fit
                the format; the name is too long.
        """
        given = {**row.values, "index": index, "run_id": run, "batch_id": batch}
        made = []
        for literal, name, spec, conversion in self.parts:
            made.append(literal)
            if name is None:
                continue
            if name not in given:
                raise UsageError(
                    f"{row.origin}: it leaves {name} out, which the output's name {self.text!r} needs."
                )
            made.append(_safe(given[name], spec, conversion, f"{row.origin}: {{{name}}}"))
        path = "".join(made)
        if not self.remote:
            path = os.path.normpath(os.path.join(self._folder, path))  # noqa: PTH118 - 10,000 of them
        longest = max(path.split("/"), key=len)
        if len(longest) * 4 > _NAME and len(longest.encode()) > _NAME:
            raise UsageError(
                f"{row.origin}: the output's name {longest[:40]!r}… is longer than {_NAME} bytes."
            )
        return path


def _safe(value: Any, spec: str, conversion: str | None, place: str) -> str:
    try:
        text = format(Formatter().convert_field(value, conversion), spec)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(
            f"{place} of the output cannot be {value!r} in the format {spec!r}: {error}."
        ) from error
    text = _UNSAFE.sub("_", text)
    return "_" * max(len(text), 1) if not text.strip(". ") else text


class _Run(msgspec.Struct):
    run: str = ""


class _Metadata(msgspec.Struct):
    nbflow: _Run = msgspec.field(default_factory=_Run)


class _Notebook(msgspec.Struct):
    """The one thing that matters of a notebook that is there already; the rest is skipped unread."""

    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_reader = msgspec.json.Decoder(_Notebook)


def existing_problems(items: Sequence[Item], notebook: str, *, overwrite: bool) -> list[str]:
    """Return a sentence for each output that cannot be written, or would replace what is not of this batch."""
    problems = []
    runs = {item.run for item in items}
    local = [item for item in items if "://" not in item.output]
    for item in local:
        try:
            os.stat(item.output)  # noqa: PTH116 - 10,000 of them
        except (OSError, ValueError):
            continue
        path = Path(item.output)
        if path.is_dir():
            problems.append(f"{item.origin}: the output {path} is a folder.")
        elif _is_file(notebook) and path.samefile(notebook):
            if item.output != notebook:  # else it was said already
                problems.append(f"{item.origin}: the output {path} is the notebook itself.")
        elif not overwrite and _run_of(path) not in runs:
            problems.append(
                f"{item.origin}: the output {path} is there already, and not of this batch "
                "(overwrite, --overwrite replace it)."
            )
    folders = {os.path.dirname(item.output): item for item in local}  # noqa: PTH120
    for folder, item in folders.items():
        problem = _folder_problem(folder)
        if problem:
            problems.append(f"{item.origin}: the output {item.output} cannot be written: {problem}.")
    return problems


def _run_of(path: Path) -> str:
    try:
        return _reader.decode(path.read_bytes()).metadata.nbflow.run
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return ""  # not a notebook of ours, whatever it is


def _folder_problem(folder: str) -> str:
    """Return why a folder cannot be made and written; "" where it can.

    `os.path` answers no where `pathlib` raises: a folder that may not be looked into, a name too long.
    """
    path = folder
    while not os.path.exists(path):  # noqa: PTH110
        if os.path.islink(path):  # noqa: PTH114
            return f"{path} is a link to nothing"
        above = os.path.dirname(path)  # noqa: PTH120
        if above == path:
            return f"{path} does not exist"
        path = above
    if not os.path.isdir(path):  # noqa: PTH112
        return f"{path} is a file"
    return "" if os.access(path, os.W_OK | os.X_OK) else f"{path} is not yours to write"


def _is_file(path: str) -> bool:
    return "://" not in path and os.path.isfile(path)  # noqa: PTH113 - see `_folder_problem`
