"""A machine drawn as text: a Mermaid state diagram. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbflow.core.machine import Definition


def mermaid(definition: Definition) -> str:
    """Return the machine's states and known transitions in Mermaid's language."""
    names = {label: f"s{number}" for number, label in enumerate(definition.labels)}
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


def _quoted(label: str) -> str:
    return re.sub(r'["\n;]', " ", label)
