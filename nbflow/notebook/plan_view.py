"""A plan as plain text and as HTML: icon and word tell the state, colour only helps."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from nbflow.notebook.amounts import duration
from nbflow.notebook.messages import FONT, SCROLL

if TYPE_CHECKING:
    from nbflow.notebook.plan import Plan, PlannedStep

_ICONS = {"restore": "✓", "run": "▶", "gone": "–", "wait": "⏸"}
_WORDS = {"restore": "restore", "run": "run", "gone": "no cell", "wait": "waiting"}
_RECORDED_WORDS = {"restore": "recorded", "run": "not recorded", "gone": "no cell", "wait": "waiting"}
#: Of the icons alone: the words have the text's own colour, whose contrast the theme answers for.
_COLOURS = {
    "restore": "var(--jp-success-color1, #2e7d32)",
    "run": "var(--jp-brand-color1, #1976d2)",
    "gone": "inherit",
    "wait": "var(--jp-warn-color1, #b26a00)",
}
_CELL = "text-align:left;padding:0.1em 0.9em 0.1em 0;vertical-align:top;white-space:nowrap"
_WRAPPED = _CELL.replace("nowrap", "normal")


def headline(plan: Plan) -> str:
    """Return the summary with what it saves: `8 to restore, 4 to run (41 s of work kept)`."""
    kept = f" ({duration(plan.saved)} of work kept)" if plan.saved >= 1 else ""
    return f"{plan.title}: {plan.summary}{kept}"


def _name(step: PlannedStep) -> str:
    return f"{step.name}  {step.code}" if step.code else step.name


def plan_text(plan: Plan) -> str:
    """Return the plan as lines of plain text in columns."""
    words = _WORDS if plan.from_file else _RECORDED_WORDS
    width = max((len(_name(step)) for step in plan.steps), default=0)
    wide = max((len(words[step.action]) for step in plan.steps), default=0)
    lines = [headline(plan)]
    lines += [
        f"  {_ICONS[step.action]} {words[step.action]:{wide}}  {_name(step):{width}}  {step.reason}"
        for step in plan.steps
    ]
    return "\n".join(lines)


def plan_html(plan: Plan) -> str:
    """Return the plan as an HTML table; every text is escaped, no script, no style outside its own elements.

    Only the headline is announced to screen readers by itself; the table is there to be read.
    """
    words = _WORDS if plan.from_file else _RECORDED_WORDS
    rows = "".join(
        "<tr>"
        f'<td style="{_CELL}"><span aria-hidden="true" style="color:{_COLOURS[step.action]}">'
        f"{_ICONS[step.action]}</span> {words[step.action]}</td>"
        f'<th scope="row" style="{_CELL};font-weight:600">{html.escape(step.name)}{_code(step)}</th>'
        f'<td style="{_WRAPPED}">{html.escape(step.reason)}</td>'
        "</tr>"
        for step in plan.steps
    )
    heads = "".join(
        f'<th scope="col" style="{_CELL}">{word}</th>' for word in ("What happens", "Cell", "Why")
    )
    table = (
        f'<div style="{SCROLL}"><table style="border-collapse:collapse;margin:0.3em 0">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        if plan.steps
        else ""
    )
    return (
        f'<div class="nbflow-plan" style="color:inherit;{FONT}">'
        f'<div role="status"><strong>{html.escape(headline(plan))}</strong></div>{table}</div>'
    )


def _code(step: PlannedStep) -> str:
    return f' <code style="font-weight:400">{html.escape(step.code)}</code>' if step.code else ""
