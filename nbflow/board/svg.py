"""A graph as an SVG picture, for pages without scripts and for files: colours, icons and words, all escaped.

Standing alone it brings light and dark colours of its own; inside a page
(`standalone=False`) it takes those of JupyterLab's theme. The icons are those of
`widgets/static/states.js`; a test compares them.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from nbflow.board.words import fit, text_width, visible
from nbflow.notebook.amounts import duration

#: How a state is shown: tone, word, path of the icon in a box of 16 × 16, whether the path is filled.
STATES: Final[Mapping[str, tuple[str, str, str, bool]]] = {
    "pending": ("quiet", "Pending", "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11Z", False),
    "running": ("brand", "Running", "M5 3.2v9.6l8-4.8Z", True),
    "waiting": (
        "warn",
        "Waiting",
        "M4 2.5h8M4 13.5h8M5 2.5c0 4 6 4 6 11M11 2.5c0 4-6 4-6 11",
        False,
    ),
    "completed": ("good", "Completed", "M3 8.5l3.2 3.2L13 4.8", False),
    "failed": ("bad", "Failed", "M4 4l8 8M12 4l-8 8", False),
    "cancelled": (
        "quiet",
        "Cancelled",
        "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11ZM4.2 11.8l7.6-7.6",
        False,
    ),
    "stopped": ("warn", "Stopped", "M4.2 4.2h7.6v7.6h-7.6Z", True),
    "corrupt": ("bad", "Corrupt", "M8 2l6.2 11.5H1.8ZM8 6v4M8 11.6v.6", False),
    "skipped": ("quiet", "Skipped", "M3.5 3.5l5 4.5l-5 4.5M11.5 3.5v9", False),
    "timed_out": (
        "bad",
        "Timed out",
        "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11ZM8 5v3.2l2.3 1.6",
        False,
    ),
    "approved": ("good", "Approved", "M3 8.5l3.2 3.2L13 4.8", False),
    "rejected": ("bad", "Rejected", "M4 4l8 8M12 4l-8 8", False),
    "sent": ("brand", "Sent", "M2 8h10M8.5 4.5L12 8l-3.5 3.5", False),
}

#: Colours: in a notebook's page, alone in the light, alone in the dark.
_COLOURS: Final = {
    "bg": ("var(--jp-layout-color1,var(--vscode-editor-background,#fff))", "#ffffff", "#161b22"),
    "text": ("var(--jp-ui-font-color1,var(--vscode-editor-foreground,#1f2328))", "#1f2328", "#e6edf3"),
    "quiet": ("color-mix(in srgb,var(--text) 76%,var(--bg))", "#57606a", "#9ea7b3"),
    "line": ("color-mix(in srgb,var(--text) 50%,var(--bg))", "#8c959f", "#6e7681"),
    "good": ("color-mix(in srgb,#1a8a3c 72%,var(--text))", "#1a7034", "#56d364"),
    "bad": ("color-mix(in srgb,#e0362c 72%,var(--text))", "#b3261e", "#ff8f88"),
    "warn": ("color-mix(in srgb,#c77700 66%,var(--text))", "#8a5300", "#e3b341"),
    "brand": ("color-mix(in srgb,#1976d2 70%,var(--text))", "#155fa8", "#79b8ff"),
}

_RULES: Final = (
    ".nbp{background:BG;color:TEXT;font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    ".nbp text{fill:TEXT;font-size:13px;stroke:none}"
    ".nbp .paper{fill:BG;stroke:none}"
    ".nbp .box{fill:BG;stroke:TONE;stroke-width:1.5}"
    ".nbp .pending .box{stroke-dasharray:4 3}"
    ".nbp .current .box{stroke-width:3}"
    ".nbp .inner{fill:none;stroke:TONE;stroke-width:1}"
    ".nbp .word{fill:TONE;font-size:12px}"
    ".nbp .word .more,.nbp .badge,.nbp .legend{fill:QUIET;font-size:12px}"
    ".nbp .icon{fill:none;stroke:TONE;stroke-width:1.8;stroke-linecap:round;stroke-linejoin:round}"
    ".nbp .icon.filled{fill:TONE;stroke:none}"
    ".nbp .edge{fill:none;stroke:LINE;stroke-width:1.3;stroke-dasharray:5 4}"
    ".nbp .head{fill:LINE;stroke:none}"
    ".nbp .taken .edge{stroke:TEXT;stroke-dasharray:none;stroke-width:1.6}"
    ".nbp .taken .head,.nbp .start{fill:TEXT}"
    ".nbp .data .edge{stroke:LINE;stroke-dasharray:1.5 4;stroke-width:1.3}"
    ".nbp .data .head{fill:LINE}"
    ".nbp .count{font-size:11px;fill:QUIET;stroke:BG;stroke-width:4;paint-order:stroke}"
)

_WORDS_IN_DESC = 60
_LEGEND_ROW = 24.0


def picture(graph: Mapping[str, Any], *, standalone: bool = False) -> str:
    """Return a graph (see `graph_of`) as SVG text.

    With `standalone` it is a picture for a file or an `<img>`, in the colours that the viewer's
    system prefers; else it belongs into an HTML page.

    >>> node = {"id": "a", "label": "<a>", "text": "<a>", "x": 92.0, "y": 65.0, "w": 152.0, "h": 52.0,
    ...         "state": "completed", "seconds": 2.0}
    >>> text = picture({"name": "m", "width": 184.0, "height": 130.0, "nodes": [node], "edges": []})
    >>> "&lt;a&gt;" in text, "<a>" in text, "Completed" in text
    (True, False, True)
    """
    nodes, edges = list(graph.get("nodes", ())), list(graph.get("edges", ()))
    planned = graph.get("run", "") is None  # a definition: nothing is pending where nothing was begun
    legend, extra = _legend(nodes, edges, float(graph["width"]))
    width, height = float(graph["width"]), float(graph["height"]) + extra
    name = _said(graph.get("name", ""))
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    size = "" if standalone else f' style="max-width:100%;height:auto;min-width:{min(width, 280):g}px"'
    return "".join(
        [
            f'<svg{space} class="nbp" role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}"',
            f' height="{height:g}"{size}><title>{name}</title><desc>{_description(nodes, planned=planned)}</desc>',
            f"<style>{_style(standalone=standalone)}</style>",
            f'<rect class="paper" width="{width:g}" height="{height:g}"/>',
            *(_edge(edge, planned=planned) for edge in edges),
            *(_node(node, planned=planned) for node in nodes),
            f'<g transform="translate(0 {float(graph["height"]):g})">{legend}</g>' if legend else "",
            "</svg>",
        ]
    )


def look(state: object) -> tuple[str, str, str, bool]:
    """Return tone, word, icon and whether it is filled; a state that is not known is shown by its name.

    >>> look("timed_out")[:2], look("odd_one")[:2]
    (('bad', 'Timed out'), ('quiet', 'odd one'))
    """
    known = STATES.get(str(state))
    return known or ("quiet", _cut(str(state), 24).replace("_", " "), STATES["pending"][2], False)


def path(points: Sequence[Sequence[float]]) -> str:
    """Return the way of an edge as a path: straight along gaps and gutters with round corners, else a soft curve.

    >>> path([(0, 0), (0, 40)]), path([(0, 0), (20, 40)])
    ('M0 0L0 40', 'M0 0C0 20 20 20 20 40')
    """
    if not points:
        return ""
    parts = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for place in range(1, len(points)):
        (x0, y0), (x1, y1) = points[place - 1], points[place]
        if x0 != x1 and y0 != y1:
            middle = (y0 + y1) / 2
            parts.append(f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}")
            continue
        after = points[place + 1] if place + 1 < len(points) else None
        turns = after is not None and (after[0] == x1) != (x0 == x1) and (after[0] == x1 or after[1] == y1)
        if after is None or not turns:
            parts.append(f"L{x1:g} {y1:g}")
            continue
        radius = min(8.0, _length(points[place - 1], points[place]) / 2, _length(points[place], after) / 2)
        bx, by = _towards(points[place], points[place - 1], radius)
        ax, ay = _towards(points[place], after, radius)
        parts.append(f"L{bx:g} {by:g}Q{x1:g} {y1:g} {ax:g} {ay:g}")
    return "".join(parts)


def head(points: Sequence[Sequence[float]]) -> str:
    """Return the corners of the arrow's head at the end of an edge.

    >>> head([(0, 0), (0, 40)])
    '0,40 -4,32 4,32'
    """
    if len(points) < 2:
        return ""
    (x0, y0), (x, y) = points[-2], points[-1]
    if y0 == y and x0 != x:
        back = -8 if x > x0 else 8
        corners = [(x, y), (x + back, y - 4), (x + back, y + 4)]
    else:
        back = -8 if y >= y0 else 8
        corners = [(x, y), (x - 4, y + back), (x + 4, y + back)]
    return " ".join(f"{a:g},{b:g}" for a, b in corners)


def _length(one: Sequence[float], other: Sequence[float]) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])  # they differ in one of both only


def _towards(start: Sequence[float], end: Sequence[float], distance: float) -> tuple[float, float]:
    length = _length(start, end) or 1.0
    share = distance / length
    return round(start[0] + (end[0] - start[0]) * share, 1), round(start[1] + (end[1] - start[1]) * share, 1)


def _said(text: object, most: int = 200) -> str:
    return html.escape(_cut(str(text), most))


def _cut(text: str, most: int) -> str:
    return visible(text if len(text) <= most else f"{text[: most - 1]}…")


def _description(nodes: Iterable[Mapping[str, Any]], *, planned: bool) -> str:
    """Return the states in words, for whoever does not see the picture."""
    listed = list(nodes)
    words = []
    for node in listed[:_WORDS_IN_DESC]:
        took = f", {duration(node['seconds'])}" if node.get("seconds") else ""
        words.append(
            f"{_cut(str(node['label']), 60)}: {role_of(node) if planned else look(node['state'])[1]}{took}"
        )
    if len(listed) > _WORDS_IN_DESC:
        words.append(f"and {len(listed) - _WORDS_IN_DESC} more")
    return html.escape("; ".join(words))


def _style(*, standalone: bool) -> str:
    rules = _RULES
    if not standalone:
        variables = "".join(f"--nbp-{name}:{values[0]};" for name, values in _COLOURS.items())
        for name in _COLOURS:
            variables = variables.replace(f"var(--{name})", f"var(--nbp-{name})")
        tones = "".join(f".nbp .{name}{{--nbp-tone:var(--nbp-{name})}}" for name in _TONES)
        for name in (*_COLOURS, "tone"):
            rules = rules.replace(name.upper(), f"var(--nbp-{name})")
        return f".nbp{{{variables}}}{tones}{rules}"
    return f"{_plain(rules, 1)}@media (prefers-color-scheme:dark){{{_plain(rules, 2)}}}"


_TONES: Final = ("good", "bad", "warn", "brand", "quiet")


def _plain(rules: str, scheme: int) -> str:
    """Return the rules in colours that every viewer of SVG understands."""
    found = []
    for rule in rules.split("}")[:-1]:
        selector, _, body = rule.partition("{")
        for name, values in _COLOURS.items():
            body = body.replace(name.upper(), values[scheme])
        if "TONE" not in body:
            found.append(f"{selector}{{{body}}}")
            continue
        found += [
            f"{selector.replace('.nbp ', f'.nbp .{tone} ')}{{{body.replace('TONE', _COLOURS[tone][scheme])}}}"
            for tone in _TONES
        ]
    return "".join(found)


def _edge(edge: Mapping[str, Any], *, planned: bool = False) -> str:
    points = edge["points"]
    if not points:
        return ""
    kind = (
        "data"
        if edge["kind"] == "data"
        else "taken"
        if edge.get("taken") or (planned and edge["target"] is not None)
        else "open"
    )
    drawn = f'<g class="{kind}"><path class="edge" d="{path(points)}"/><polygon class="head" points="{head(points)}"/>'
    if kind == "taken" and edge["taken"] > 1:
        x, y = count_at(points)
        drawn += (
            f'<text class="count" x="{x:g}" y="{y:g}" text-anchor="middle">×{int(edge["taken"]):,}</text>'
        )
    return f"{drawn}</g>"


def count_at(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return where the count of an edge stands: nearer to its beginning, so that two opposite ones keep apart."""
    (x0, y0), (x1, y1) = points[0], points[1]
    if len(points) == 4 and points[0][0] == points[3][0] and y0 == y1:  # a loop
        return x1 + 6, (y0 + points[3][1]) / 2 + 4
    share = 0.34 if len(points) == 2 else 0.5
    bend = share**2 * (3 - 2 * share) if x0 != x1 and y0 != y1 else share  # about where the curve is
    return round(x0 + (x1 - x0) * bend, 1), round(y0 + (y1 - y0) * share + 4, 1)


def _node(node: Mapping[str, Any], *, planned: bool = False) -> str:
    """Draw one node: its label, and below it icon, state and time; a badge for retries or visits."""
    tone, word, icon, filled = look(node["state"])
    if planned:
        word, icon = role_of(node), ""
    x, y, w, h = (float(node[name]) for name in ("x", "y", "w", "h"))
    left, top = x - w / 2, y - h / 2
    classes = [
        tone,
        *(["pending"] if node["state"] == "pending" and not planned else []),
        *(["current"] if node.get("current") else []),
    ]
    badge = badge_of(node)
    took = f" · {duration(node['seconds'])}" if node.get("seconds") else ""
    parts = [
        f'<g class="{" ".join(classes)}"><title>{_said(node["label"])}: {_said(word)}{html.escape(took)}</title>',
        f'<rect class="box" x="{left:g}" y="{top:g}" width="{w:g}" height="{h:g}" rx="8"/>',
    ]
    if node.get("final"):
        parts.append(
            f'<rect class="inner" x="{left + 3:g}" y="{top + 3:g}" width="{w - 6:g}" height="{h - 6:g}" rx="6"/>'
        )
    if node.get("initial"):
        parts.append(f'<circle class="start" cx="{left:g}" cy="{top:g}" r="4.5"/>')
    label = fit(str(node["label"]), w - 26 - (text_width(badge) if badge else 0))
    parts.append(f'<text x="{left + 12:g}" y="{top + 21:g}">{html.escape(label)}</text>')
    if icon:
        parts.append(_icon(icon, left + 11, top + 29.5, filled=filled))
    parts.append(
        f'<text class="word" x="{left + (29 if icon else 12):g}" y="{top + 40:g}">{_said(word)}'
        f'<tspan class="more">{html.escape(took)}</tspan></text>'
    )
    if badge:
        parts.append(
            f'<text class="badge" x="{left + w - 10:g}" y="{top + 21:g}" text-anchor="end">{html.escape(badge)}</text>'
        )
    return f"{''.join(parts)}</g>"


def role_of(node: Mapping[str, Any]) -> str:
    """Return what a state of a definition is: where it begins or ends, or its kind.

    >>> role_of({"kind": "poll", "initial": True}), role_of({"kind": "plain"})
    ('Initial, poll', 'State')
    """
    ends = [name for name in ("initial", "final") if node.get(name)]
    kinds = [node["kind"]] if node["kind"] != "plain" else []
    return (", ".join([*ends, *kinds]) or "state").capitalize()


def badge_of(node: Mapping[str, Any]) -> str:
    """Return what stands in the corner of a node: how often it was visited and retried, where that is worth a word.

    >>> badge_of({"visits": 3, "retries": 2, "kind": "plain"}), badge_of({"visits": 1})
    ('×3 ↻2', '')
    """
    words = []
    if node.get("visits", 0) > 1 and node.get("kind") not in ("call", "item", "batch"):  # their labels say it
        words.append(f"×{node['visits']:,}")
    if node.get("retries", 0) > 0:
        words.append(f"↻{node['retries']:,}")
    return " ".join(words)


def _icon(icon: str, x: float, y: float, *, filled: bool) -> str:
    kind = "icon filled" if filled else "icon"
    return f'<path class="{kind}" transform="translate({x:g} {y:g}) scale(.8)" d="{icon}"/>'


def _legend(
    nodes: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]], width: float
) -> tuple[str, float]:
    """Return the legend of what occurs, below the picture, and its height; the states say what they are themselves."""
    entries: list[tuple[str, str]] = []
    badges = [badge_of(node) for node in nodes]
    if any("×" in badge for badge in badges) or any(edge.get("taken", 0) > 1 for edge in edges):
        entries.append(("×", "times"))
    if any("↻" in badge for badge in badges):
        entries.append(("↻", "retries"))
    flow = [edge for edge in edges if edge["kind"] != "data"]
    if any(edge.get("taken") for edge in flow) and not all(edge.get("taken") for edge in flow):
        entries.append(("open", "not taken"))
    if len(flow) < len(edges):
        entries.append(("data", "reads what it wrote"))
    if not entries:
        return "", 0.0
    drawn, x, y = [], 16.0, 14.0
    for mark, words in entries:
        wide = 30 + text_width(words)
        if x > 16 and x + wide > width:
            x, y = 16.0, y + _LEGEND_ROW
        if mark in ("open", "data"):
            drawn.append(f'<g class="{mark}"><path class="edge" d="M{x:g} {y - 4:g}h20"/></g>')
        else:
            drawn.append(f'<text class="legend" x="{x + 4:g}" y="{y:g}">{mark}</text>')
        drawn.append(f'<text class="legend" x="{x + 26:g}" y="{y:g}">{words}</text>')
        x += wide + 12
    return "".join(drawn), y + 10
