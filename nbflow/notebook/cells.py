"""The code cells of a notebook file, as far as nbflow cares: read tolerantly, nothing is run or changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbflow.notebook.auto import takes

_DURABLE = re.compile(r"\A\s*%%(durable|gate)(?=\s|$)(.*)")
_AUTO = re.compile(r"^\s*%nbflow\s+auto\b[ \t]*(\w*)", re.MULTILINE)


@dataclass(frozen=True)
class PlannedCell:
    """One code cell: `source` is its body without the magic's line, `line` the rest of that line.

    `durable` cells are recorded, of which a `gate` is one; the others run every time.
    `index` counts all cells of the file from 0.
    """

    source: str
    index: int = 0
    durable: bool = False
    name: str | None = None
    line: str = ""
    version: str = ""
    once: bool = False
    refresh: bool = False
    inputs: tuple[str, ...] | None = None
    out: tuple[str, ...] | None = None
    cell_id: str = ""
    auto: bool = False
    problem: str = ""
    gate: bool = False


def read_notebook(path: Path | str, *, auto: bool = False) -> list[PlannedCell]:
    """Return the code cells of an .ipynb file in order.

    With `auto` every cell counts as durable, as after `%nbflow auto`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no notebook.
    """
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no notebook: it holds a {type(found).__name__}.")  # noqa: TRY004 - the file's fault
    return planned_cells(found, auto=auto)


def planned_cells(notebook: Mapping[str, Any], *, auto: bool = False) -> list[PlannedCell]:
    r"""Return the code cells of a notebook's JSON; what is malformed is left out.

    >>> [cell.name for cell in planned_cells({"cells": [
    ...     {"cell_type": "code", "source": ["%%durable flights --retries 3\n", "flights = load()"]}]})]
    ['flights']
    """
    raw = notebook.get("cells")
    if not isinstance(raw, list):  # nbformat 3 kept them one level deeper
        raw = []
        for sheet in notebook.get("worksheets", ()):
            raw.extend(sheet.get("cells", ()) if isinstance(sheet, dict) else ())
    cells: list[PlannedCell] = []
    for index, cell in enumerate(raw):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", cell.get("input", ""))
        text = (
            "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
        )
        if not isinstance(text, str) or not text.strip():
            continue
        identity = cell.get("id") if isinstance(cell.get("id"), str) else ""
        planned = _planned(text, index, identity or "", auto)
        cells.append(planned)
        for switch in _AUTO.findall(text):
            auto = switch != "off"
    return cells


def _planned(text: str, index: int, cell_id: str, auto: bool) -> PlannedCell:
    magic = _DURABLE.match(text)
    if magic is None:
        mine = auto and takes(text)
        return PlannedCell(text, index, durable=mine, cell_id=cell_id, auto=mine)
    line = magic[2].strip()
    body = text[magic.end() :].removeprefix("\n")
    from nbflow.core.errors import UsageError
    from nbflow.notebook.options import durable_parser, gate_parser, parse_durable, parse_gate

    gate = magic[1] == "gate"
    try:
        options = parse_gate(gate_parser(), line) if gate else parse_durable(durable_parser(), line)
    except UsageError as error:
        return PlannedCell(body, index, durable=True, line=line, cell_id=cell_id, problem=str(error))
    return PlannedCell(
        body,
        index,
        durable=True,
        name=options.name,
        line=line,
        version=options.version,
        once=options.once,
        refresh=options.refresh,
        inputs=options.inputs,
        out=options.out,
        cell_id=cell_id,
        gate=gate,
    )
