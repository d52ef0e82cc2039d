"""What a gate asks, as text and as HTML without scripts: the question, what it shows, and how to decide.

Everything in it was written by somebody else, so everything is escaped: HTML
that was shown stands in a frame that may do nothing, pictures are data. The
command line prints the same text.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nbflow.core.gates import Gate
from nbflow.notebook.amounts import duration, moment
from nbflow.notebook.messages import FONT, SCROLL, Table

#: A shown thing as plain data: "kind" says what it is (table, image, text, json, html, markdown, notice).
Exhibit = Mapping[str, Any]

#: State by mark and word; colour only helps, and the words have the theme's own.
_STATES = {
    "waiting": ("⏸", "waits for a decision", "var(--jp-warn-color1, #b26a00)"),
    "approved": ("✔", "approved", "var(--jp-success-color1, #2e7d32)"),
    "rejected": ("✘", "rejected", "var(--jp-error-color1, #c62828)"),
    "timed_out": ("⏱", "timed out", "var(--jp-error-color1, #c62828)"),
    "cancelled": ("⊘", "given up", "inherit"),
}

_IMAGES = frozenset({"image/png", "image/jpeg", "image/svg+xml"})

#: Within a frame without scripts: a picture from outside would tell who looks. The live views say the same.
_NOTHING_FETCHED = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; font-src data:\">"
)

#: Rows and characters of what is shown that the form holds; the run has all that was recorded.
_ROWS, _TEXT = 20, 4000

_DAY = 86400.0


def headline(gate: Gate, now: float | None = None) -> str:
    """Return what became of the gate, in one line without its name: `waits for a decision, asked 12:03, …`."""
    now = time.time() if now is None else now
    _, words, _ = _STATES[gate.state]
    decision = gate.decision
    if decision is None:
        due = until(gate, now) if gate.state == "waiting" else ""
        return f"{words}, asked {moment(gate.opened_at, now)}{f', {due}' if due else ''}"
    said = f"{words} by {decision.by} {moment(decision.at, now)}"
    said += f", selected: {', '.join(decision.selections)}" if decision.selections else ""
    return f"{said}: {decision.feedback}" if decision.feedback else said


def until(gate: Gate, now: float | None = None) -> str:
    """Return until when the gate waits and what happens then; "" where it waits without end."""
    if gate.due_at is None:
        return ""
    now = time.time() if now is None else now
    then = {"fail": "fails", "continue": "is approved", "reject": "is rejected"}[gate.form.on_timeout]
    left = gate.due_at - now
    if left <= 0:
        return f"time ran out {moment(gate.due_at, now)}"
    return f"until {moment(gate.due_at, now)} (in {_left(left)}), then it {then}"


def _left(seconds: float) -> str:
    if seconds < 2 * _DAY:
        return duration(seconds)
    return f"{seconds / _DAY:.0f} d"


def ways(gate: Gate, run: str, *, cell: bool = True) -> list[str]:
    """Return how to decide, a sentence each; with `cell` the notebook's own ways come first."""
    if gate.state != "waiting":
        return []
    name = quoted(gate.form.name)
    options = gate.form.options
    if options and gate.form.single:
        select = f" --select {quoted(options[0])}"
    else:
        select = " --select OPTION …" if options else ""
    found = []
    if cell:
        found.append(f"Here: %nbflow approve {name}{select} --feedback TEXT, or %nbflow reject {name}")
    found.append(f"In a terminal: nbflow approve {run} {name}{select}, or nbflow reject {run} {name}")
    if cell:
        found.append("Then run this cell again: it goes on from here.")
    return found


def quoted(text: str) -> str:
    """Return a name as it is typed on a command line.

    >>> quoted("publish"), quoted("to the site")
    ('publish', "'to the site'")
    """
    import shlex

    return shlex.quote(text)


# --- text ----------------------------------------------------------------------------------------------------


def form_text(
    gate: Gate, run: str, exhibits: Iterable[Exhibit] = (), *, cell: bool = True, now: float | None = None
) -> str:
    """Return the gate with what it shows as plain text."""
    mark = _STATES[gate.state][0]
    lines = [f"{mark} Gate {gate.form.name}: {headline(gate, now)}"]
    if gate.form.text:
        lines += ["", gate.form.text]
    for exhibit in exhibits:
        lines += ["", *exhibit_text(exhibit).splitlines()]
    if gate.form.options:
        kind = "one of" if gate.form.single else "any of"
        lines += ["", f"Options ({kind}): {', '.join(gate.form.options)}"]
    said = ways(gate, run, cell=cell)
    if said:
        lines += ["", *said]
    return "\n".join(lines)


def exhibit_text(exhibit: Exhibit) -> str:
    """Return one shown thing as plain text; of a picture only what it is called.

    >>> exhibit_text({"kind": "image", "mime": "image/png", "alt": "delays by month"})
    '[picture: delays by month]'
    """
    kind = exhibit.get("kind")
    if kind == "table":
        return _table(exhibit).text()
    if kind == "image":
        return f"[picture{': ' + str(exhibit['alt']) if exhibit.get('alt') else ''}]"
    if kind == "html":
        return "[HTML: shown in the notebook and in the browser]"
    return _cut(str(exhibit.get("text", "")).rstrip())


def _table(exhibit: Exhibit) -> Table:
    columns = [str(column.get("name", "")) for column in exhibit.get("columns", ())]
    rows: Sequence[Sequence[Any]] = exhibit.get("rows", ())
    total = int(exhibit.get("total", len(rows)))
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows[:_ROWS]]
    more = "" if total <= len(shown) else f"The first {len(shown):,} of {total:,} rows."
    return Table(str(exhibit.get("title") or f"{total:,} rows"), columns, shown, more)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}\n[{len(text) - _TEXT:,} more characters]"


# --- HTML ----------------------------------------------------------------------------------------------------


def form_html(gate: Gate, run: str, exhibits: Iterable[Exhibit] = (), *, now: float | None = None) -> str:
    """Return the gate with what it shows as HTML: no script, no style outside its own elements."""
    mark, _, colour = _STATES[gate.state]
    name = html.escape(gate.form.name)
    border = "border:1px solid var(--jp-border-color2, #bdbdbd);border-radius:3px"
    box = f"color:inherit;{FONT};{border};padding:0.6em 0.9em;margin:0.3em 0;max-width:100%"
    label = html.escape(f"Gate {gate.form.name}", quote=True)
    status = f'<span aria-hidden="true" style="color:{colour}">{mark}</span> <strong>Gate {name}</strong>'
    parts = [
        f'<section class="nbflow-gate" aria-label="{label}" style="{box}">',
        f'<div role="status">{status} {html.escape(headline(gate, now))}</div>',
    ]
    if gate.form.text:
        parts.append(f'<p style="margin:0.5em 0;white-space:pre-wrap">{html.escape(gate.form.text)}</p>')
    parts += [f'<div style="margin:0.5em 0">{exhibit_html(exhibit)}</div>' for exhibit in exhibits]
    if gate.form.options:
        kind = "one of" if gate.form.single else "any of"
        items = "".join(f"<li>{html.escape(option)}</li>" for option in gate.form.options)
        parts.append(f'<div>Options ({kind}):</div><ul style="margin:0.2em 0 0.5em 1.5em">{items}</ul>')
    parts += [f'<div style="opacity:0.85">{_command(line)}</div>' for line in ways(gate, run)]
    parts.append("</section>")
    return "".join(parts)


def _command(line: str) -> str:
    head, colon, rest = line.partition(": ")
    if not rest.startswith(("%nbflow", "nbflow")):
        return html.escape(line)
    first, _, second = rest.partition(", or ")
    return (
        f"{html.escape(head)}{colon}<code>{html.escape(first)}</code>, or <code>{html.escape(second)}</code>"
    )


def exhibit_html(exhibit: Exhibit) -> str:
    """Return one shown thing as HTML that cannot do anything.

    >>> exhibit_html({"kind": "markdown", "text": "<b>"}).count("&lt;b&gt;")
    1
    """
    kind = exhibit.get("kind")
    if kind == "table":
        return _table(exhibit).markup()
    if kind == "image" and exhibit.get("mime") in _IMAGES:
        source = html.escape(f"data:{exhibit['mime']};base64,{exhibit.get('data', '')}", quote=True)
        alt = html.escape(str(exhibit.get("alt") or "picture"), quote=True)
        return f'<img src="{source}" alt="{alt}" style="max-width:100%;height:auto">'
    if kind == "html":
        page = html.escape(_NOTHING_FETCHED + str(exhibit.get("html", "")), quote=True)
        style = "width:100%;height:18em;border:0;background:#fff"
        return f'<iframe sandbox="" srcdoc="{page}" title="what the gate shows" style="{style}"></iframe>'
    text = html.escape(_cut(str(exhibit.get("text", ""))))
    if kind == "notice":
        return f'<div style="opacity:0.75">{text}</div>'
    label = ' aria-label="stderr"' if exhibit.get("stream") == "stderr" else ""
    pre = "margin:0;white-space:pre-wrap;font-family:var(--jp-code-font-family, monospace)"
    return f'<div style="{SCROLL}" tabindex="0"><pre{label} style="{pre}">{text}</pre></div>'
