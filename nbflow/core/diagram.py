"""A machine drawn as text: a Mermaid state diagram. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbflow.core.machine import Definition


def mermaid(definition: Definition) -> str:
    """Return the machine's states and known transitions in Mermaid's language.

    A state diagram; where the machine has gates a flowchart, for only that knows
    their shape, the hexagon.
    """
    if any(spec.kind == "gate" for spec in definition.specs.values()):
        return _flowchart(definition)
    names = _names(definition)
    rows = ["stateDiagram-v2"]
    rows += [f'    state "{_quoted(label)}" as {name}' for label, name in names.items()]
    initial = definition.initial
    if initial in names:
        rows.append(f"    [*] --> {names[initial]}")
    for edge in definition.edges():
        if edge.source in names and edge.target in names:
            said = {"branch": " : branch", "join": " : join"}.get(edge.kind, "")
            rows.append(f"    {names[edge.source]} --> {names[str(edge.target)]}{said}")
    rows += [f"    {names[label]} --> [*]" for label in definition.labels if label in definition.final]
    return "\n".join(rows)


def _flowchart(definition: Definition) -> str:
    names = _names(definition)
    rows = ["flowchart TD"]
    for label, name in names.items():
        spec = definition.specs.get(label)
        begin, end = ("{{", "}}") if spec is not None and spec.kind == "gate" else ("(", ")")
        rows.append(f'    {name}{begin}"{_escaped(label)}"{end}')
    if definition.initial in names:
        rows += ['    begin(("&nbsp;"))', f"    begin --> {names[definition.initial]}"]
    for edge in definition.edges():
        if edge.source in names and edge.target in names:
            words = _answers(definition, edge.source, str(edge.target))
            said = words or {"branch": "branch", "join": "join"}.get(edge.kind, "")
            arrow = f'-- "{said}" -->' if said else "-->"
            rows.append(f"    {names[edge.source]} {arrow} {names[str(edge.target)]}")
    final = [label for label in definition.labels if label in definition.final]
    for number, label in enumerate(final):
        rows += [f'    end{number}((("&nbsp;")))', f"    {names[label]} --> end{number}"]
    return "\n".join(rows)


def _names(definition: Definition) -> dict[str, str]:
    return {label: f"s{number}" for number, label in enumerate(definition.labels)}


def _answers(definition: Definition, source: str, target: str) -> str:
    """Return which answers of a gate lead from one state to another; "" where the first is no gate."""
    spec = definition.specs.get(source)
    ask = spec.options.get("ask") if spec is not None else None
    return ", ".join(word for word, label in ask.ways().items() if label == target) if ask is not None else ""


def _quoted(label: str) -> str:
    return re.sub(r'["\n;]', " ", label)


def _escaped(label: str) -> str:
    """Return a label as a flowchart's text, in which HTML and Markdown would count."""
    return "".join(c if c.isalnum() or c in " _-.,:()/" else f"#{ord(c)};" for c in label)
