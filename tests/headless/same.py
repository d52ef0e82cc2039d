"""Executes a notebook by papermill with and without the engine, and tells what a user can see of each.

What the engine adds on purpose is left out of the picture: `metadata.nbflow`, the
log lines that speak of restored cells and of the run, and numbers that differ
between any two executions (times, process ids, ids that papermill makes up).
"""

from __future__ import annotations

import difflib
import io
import logging
import pprint
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode

_TIMES = {"start_time", "end_time", "duration"}
_MADE_UP_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
#: How log lines of the engine's own begin.
_OURS = re.compile(r"nbflow run |Cell \d+ restored|Run \S+ is still held")


@dataclass
class Seen:
    """What one execution looked like from outside."""

    raised: tuple[str, str] | None = None
    returned: Any = None
    written: Any = None
    log: list[tuple[str, str]] = field(default_factory=list)
    bar: tuple[int, int] | None = None
    stdout: str = ""
    stderr: str = ""

    whole: NotebookNode | None = None
    error: BaseException | None = None

    @property
    def document(self) -> NotebookNode:
        """The output notebook as it was written, with all that was left out of `written`."""
        assert self.whole is not None
        return self.whole


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def execute(source: Any, output: Path | None, *, engine: str | None, **options: Any) -> Seen:
    """Execute a notebook in this process and return what was to be seen; nothing is raised."""
    seen, kept = Seen(), _Kept()
    logger = logging.getLogger("papermill")
    logger.addHandler(kept)
    level = logger.level
    logger.setLevel(logging.INFO)
    out, err, bar = io.StringIO(), io.StringIO(), io.StringIO()
    options = {"progress_bar": {"file": bar}, "stdout_file": out, "stderr_file": err, **options}
    if isinstance(source, NotebookNode):
        source = nbformat.from_dict(source)
    if output is not None:
        output.unlink(missing_ok=True)
    try:
        returned = papermill.execute_notebook(source, output, engine_name=engine, **options)
        seen.returned = plain(returned)
    except BaseException as error:
        seen.raised = (type(error).__name__, _steady(str(error)))
        seen.error = error
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
    if output is not None and output.exists():
        seen.whole = nbformat.read(output, as_version=nbformat.NO_CONVERT)
        seen.written = plain(seen.whole)
    # Where the kernel cuts a stream is a matter of time: a line may come without its end.
    lines = [(name, _steady(line).rstrip()) for name, line in kept.lines if not _OURS.match(line)]
    seen.log = [(name, line) for name, line in lines if line]
    counts = re.findall(r"(\d+)/(\d+)", bar.getvalue())
    seen.bar = (int(counts[-1][0]), int(counts[-1][1])) if counts else None
    seen.stdout, seen.stderr = out.getvalue(), err.getvalue()
    return seen


#: What of an execution can be compared.
EVERYTHING = ("raised", "returned", "written", "log", "bar", "stdout", "stderr")


def assert_same(seen: tuple[Seen, Seen], *, but: tuple[str, ...] = ()) -> None:
    """Assert that two executions looked alike, naming in which respect they did not."""
    without, with_engine = seen
    for name in EVERYTHING:
        if name not in but:
            texts = [pprint.pformat(getattr(each, name), width=140).splitlines() for each in seen]
            difference = "\n".join(difflib.unified_diff(*texts, "papermill", "nbflow", n=2, lineterm=""))
            assert getattr(without, name) == getattr(with_engine, name), f"{name}:\n{difference}"


def both(source: Any, output: Path | None = None, **options: Any) -> tuple[Seen, Seen]:
    """Execute a notebook without and with the engine, to the same place."""
    return execute(source, output, engine=None, **options), execute(
        source, output, engine="nbflow", **options
    )


def plain(document: NotebookNode) -> Any:
    """Return a notebook as data that two executions can agree on."""
    document = nbformat.from_dict(_data(document))  # a copy
    kept_ids = document.metadata.get("made_up_ids") is None
    cells = []
    for cell in document.cells:
        facts = _data(cell)
        facts["metadata"].pop("nbflow", None)
        if "execution" in facts["metadata"]:
            facts["metadata"]["execution"] = sorted(facts["metadata"]["execution"])  # names of instants
        if not kept_ids or _MADE_UP_TAGS & set(facts["metadata"].get("tags", ())):
            facts.pop("id", None)
        _settle(facts["metadata"].get("papermill", {}))
        for output in facts.get("outputs", ()):
            if output["output_type"] == "error":
                output["traceback"] = [_steady(line) for line in output["traceback"]]
            elif output["output_type"] == "stream":
                output["text"] = _steady(output["text"])
        if "outputs" in facts:
            facts["outputs"] = _whole_streams(facts["outputs"])
        cells.append(facts)
    metadata = _data(document.metadata)
    metadata.pop("nbflow", None)
    _settle(metadata.get("papermill", {}))
    return {"cells": cells, "metadata": metadata, "format": (document.nbformat, document.nbformat_minor)}


def _whole_streams(outputs: list[Any]) -> list[Any]:
    """Join what a stream wrote between two other outputs: how stdout and stderr take turns is a matter of time."""
    whole: list[Any] = []
    open_: dict[str, Any] = {}
    for output in outputs:
        if output["output_type"] != "stream":
            open_.clear()
            whole.append(output)
        elif output["name"] in open_:
            open_[output["name"]]["text"] += output["text"]
        else:
            open_[output["name"]] = output
            whole.append(output)
    return whole


def without_ids(document: Path) -> Path:
    """Have the cells' ids left out of comparisons: papermill makes them up anew each time for an old notebook."""
    made = nbformat.read(document, as_version=nbformat.NO_CONVERT)
    made.metadata["made_up_ids"] = True
    nbformat.write(made, document, version=nbformat.NO_CONVERT)
    return document


def _settle(facts: dict[str, Any]) -> None:
    for name in _TIMES & set(facts):
        facts[name] = type(facts[name]).__name__
    facts.pop("environment_variables", None)


def _data(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _data(part) for name, part in node.items()}
    if isinstance(node, (list, tuple)):
        return [_data(part) for part in node]
    return node


def _steady(text: str) -> str:
    text = re.sub(r"ipykernel_\d+/\d+\.py", "cell.py", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0x", text)
