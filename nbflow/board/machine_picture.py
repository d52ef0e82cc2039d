"""The picture of a machine's definition, as the last line of a cell shows it: states, arrows and what is wrong."""

from __future__ import annotations

from typing import Any

from nbflow.board.blocks import Block, Sentence, to_html
from nbflow.board.graph import graph_of
from nbflow.board.record import STYLE, definition
from nbflow.runtime.machine.design import Design
from nbflow.runtime.machine.shown import draw_with


def bundle(machine: Design) -> dict[str, Any]:
    """Return a machine as HTML with its picture, and as text.

    >>> import nbflow
    >>> light = nbflow.Machine("light", ["red", "off"], initial="red", final={"off"})
    >>> sorted(bundle(light))
    ['text/html', 'text/plain']
    """
    blocks: list[Block] = [*definition(graph_of(None, machine))]
    blocks += [Sentence((f"⚠ {problem}",)) for problem in machine.definition.problems()]
    return {"text/html": f'<div style="{STYLE}">{to_html(blocks)}</div>', "text/plain": repr(machine)}


draw_with(bundle)
