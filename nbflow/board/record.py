"""The static record of a view: the same facts as HTML without scripts and as plain text, from the board's answers.

It is what a reopened notebook, nbconvert and other viewers show. JupyterLab's
sanitizer for notebooks that are not trusted keeps tables, text and pictures
and drops SVG, so nothing is said by the drawing alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from nbflow.board.blocks import (
    TEXT,
    Block,
    Cell,
    Drawing,
    Heading,
    Image,
    Sentence,
    State,
    Table,
    Words,
    to_html,
    to_text,
)
from nbflow.board.svg import badge_of, picture
from nbflow.notebook.amounts import duration, size

Facts = Mapping[str, Any]

#: Runs, steps and rows of a table that are shown, and Base64 characters of pictures together.
_RUNS, _STEPS, _ROWS, _PICTURES = 20, 60, 20, 3_000_000

_ID = 13
_TITLES = {"dashboard": "Runs", "fsm": "Graph", "gate": "Gate"}
#: Of the element around a record, in the notebook's own type.
STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:var(--jp-ui-font-size1,13px);"
    "line-height:1.45;max-width:100%"
)


def record(kind: str, snapshot: Facts, *, at: float) -> dict[str, Any]:
    """Return the record of a view of this kind ("dashboard", "fsm", "gate") as a MIME bundle: HTML and text.

    `snapshot` has the board's answers by the names of its questions (`runs`, `run`, `gates`,
    `gate`, `graph`, `disk`); what is missing is not told. `at` is when they were true, in UTC seconds.

    >>> made = record("dashboard", {"runs": {"rows": [], "total": 0, "counts": {}}}, at=0.0)
    >>> print(made["text/plain"])
    nbflow: runs, as of 1970-01-01 00:00:00 UTC
    <BLANKLINE>
    There are no runs.
    """
    blocks: list[Block] = []
    if snapshot.get("problem"):
        blocks.append(Sentence(("The store could not be read: ", str(snapshot["problem"]))))
    if kind == "dashboard":
        blocks += _runs(snapshot.get("runs"))
    if kind == "gate":
        blocks += _gate(snapshot.get("gate"))
    else:
        blocks += _run(snapshot.get("run"), snapshot.get("graph") or snapshot.get("machine"))
        blocks += _gates(snapshot)
        blocks += _disk(snapshot.get("disk"))
    head = Sentence((f"nbflow: {_TITLES.get(kind, kind).lower()}, as of {_moment(at)}",), quiet=True)
    body = to_html([head, *blocks])
    text = f"{to_text([head])}\n\n{to_text(blocks).strip()}"
    return {"text/html": f'<div class="nbflow-record" style="{STYLE}">{body}</div>', "text/plain": text}


# --- runs ---------------------------------------------------------------------------------------------------------


def _runs(runs: Facts | None) -> list[Block]:
    if runs is None:
        return []
    rows = list(runs.get("rows", ()))
    total = int(runs.get("total", len(rows)))
    if not total:
        return [Sentence(("There are no runs.",))]
    counts: list[Cell] = [f"{total:,} run{'' if total == 1 else 's'}"]
    for state, count in runs.get("counts", {}).items():
        if count:
            counts += [" · ", State(str(state)), f" {count:,}"]
    shown = rows[:_RUNS]
    title = f"The first {len(shown)}" if len(shown) < total else "Runs"
    columns = ("run", "workflow", "state", "steps", "attempts", "started", "took", "about")
    table = Table(columns, tuple(map(_run_row, shown)), title, frozenset({3, 4}))
    return [Sentence(tuple(counts)), table]


def _run_row(row: Facts) -> tuple[Cell, ...]:
    about = [str(row["error"])] if row.get("error") else []
    if row.get("gates"):
        about.append(f"{row['gates']} gate{'' if row['gates'] == 1 else 's'} waiting")
    about += [f"{name}={value}" for name, value in sorted(row.get("tags", {}).items())]
    return (
        str(row.get("run", ""))[:_ID],
        str(row.get("workflow", "")),
        State(str(row.get("state", ""))),
        f"{row.get('steps', 0):,}",
        f"{row.get('attempts', 0):,}",
        _moment(row.get("created")),
        _took(row.get("seconds")),
        ", ".join(about),
    )


# --- one run ------------------------------------------------------------------------------------------------------


def _run(run: Facts | None, graph: Facts | None) -> list[Block]:
    if not run:
        return definition(graph) if graph else []
    row = run.get("row") or {}
    blocks: list[Block] = [
        Heading(f"{row.get('workflow', '')}", 3),
        Sentence(
            (
                State(str(row.get("state", ""))),
                f" · run {str(row.get('run', ''))[:_ID]} · attempt {row.get('attempts', 0)}",
                f" · started {_moment(row.get('created'))} · {_took(row.get('seconds'))}",
            )
        ),
    ]
    params = row.get("params") or {}
    if params:
        blocks.append(
            Sentence((", ".join(f"{name}={value!r}" for name, value in params.items()),), quiet=True)
        )
    if row.get("error"):
        blocks.append(Words(str(row["error"])))
    if run.get("problem"):
        blocks.append(Sentence((str(run["problem"]),)))
    blocks += _drawn(run.get("graph") or graph)
    return blocks + _steps(run)


def definition(graph: Facts) -> list[Block]:
    """Return a machine that did not run as its picture, and as a table for whoever does not see that."""
    nodes = graph["nodes"]
    after: dict[str, list[str]] = {node["id"]: [] for node in nodes}
    for edge in graph["edges"]:
        after[edge["source"]].append("any state" if edge["target"] is None else edge["target"])
    rows = tuple(
        (
            str(node["label"]),
            "" if node["kind"] == "plain" else str(node["kind"]),
            "initial" if node["initial"] else "final" if node["final"] else "",
            ", ".join(dict.fromkeys(after[node["id"]])),
        )
        for node in nodes[:_STEPS]
    )
    title = f"Machine {graph['name']}: {len(nodes):,} state{'' if len(nodes) == 1 else 's'}"
    table = _trimmed(Table(("state", "kind", "what", "leads to"), rows, title))
    return [Drawing(picture(graph)), table] if nodes else [table]


def _drawn(graph: Facts | None) -> list[Block]:
    """Return the picture of a graph, and its nodes as a table where there is one without a run's steps."""
    if graph is None or not graph.get("nodes"):
        return []
    nodes = graph["nodes"]
    rows: list[tuple[Cell, ...]] = []
    for node in nodes[:_STEPS]:
        what = "initial" if node.get("initial") else "final" if node.get("final") else ""
        now = "here" if node.get("current") else ""
        rows.append(
            (
                str(node["label"]),
                State(str(node["state"])),
                badge_of(node),
                _took(node.get("seconds") or None),
                ", ".join(filter(None, (what, now))),
                str(node.get("error") or ""),
            )
        )
    title = f"{graph.get('kind', 'graph')} {graph.get('name', '')}: {len(nodes):,} nodes"
    table = _trimmed(Table(("name", "state", "times", "took", "what", "last error"), tuple(rows), title))
    return [Drawing(picture(graph)), table]


def _steps(run: Facts) -> list[Block]:
    steps = list(run.get("steps", ()))
    if not steps:
        return [Sentence(("Nothing is recorded yet.",))]
    shown = steps if len(steps) <= _STEPS else [*steps[: _STEPS // 3], *steps[-(_STEPS - _STEPS // 3) :]]
    more = run.get("more") or {}
    total = int(more.get("total", len(steps)))
    title = f"History: {len(shown)} of {total:,} steps" if len(shown) < total else "History"
    rows = tuple(_step_row(step) for step in shown)
    columns = ("step", "kind", "state", "attempt", "started", "took", "outputs", "error")
    return [_trimmed(Table(columns, rows, title, frozenset({3, 6})))]


def _step_row(step: Facts) -> tuple[Cell, ...]:
    error = step.get("error")
    return (
        str(step.get("step", "")),
        str(step.get("kind", "")),
        State(str(step.get("state", ""))),
        str(step.get("attempt", 1)),
        _moment(step.get("started")),
        _took(step.get("seconds")),
        str(step.get("outputs") or ""),
        f"{error.get('type', '')}: {error.get('message', '')}" if error else "",
    )


def _trimmed(table: Table) -> Table:
    """Leave out columns that are empty everywhere."""
    kept = [place for place in range(len(table.columns)) if any(row[place] != "" for row in table.rows)]
    return Table(
        tuple(table.columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in table.rows),
        table.title,
        frozenset(kept.index(place) for place in table.numbers if place in kept),
    )


# --- gates --------------------------------------------------------------------------------------------------------


def _gates(snapshot: Facts) -> list[Block]:
    """Return the gates of the run, and those of other runs that wait."""
    of_run = list((snapshot.get("run") or {}).get("gates", ()))
    seen = {(gate.get("run"), gate.get("step")) for gate in of_run}
    others = [
        gate
        for gate in (snapshot.get("gates") or {}).get("rows", ())
        if (gate.get("run"), gate.get("step")) not in seen
    ]
    blocks: list[Block] = []
    for gate in of_run:
        blocks += _gate(gate)
    if others:
        rows = tuple(
            (
                str(gate.get("run", ""))[:_ID],
                str(gate.get("workflow", "")),
                str(gate.get("name", "")),
                State(str(gate.get("state", ""))),
                _moment(gate.get("opened")),
                _decided(gate.get("decision")) or str(gate.get("text", "")),
            )
            for gate in others[:_RUNS]
        )
        columns = ("run", "workflow", "gate", "state", "opened", "what")
        title = f"Gates: {len(rows)} of {len(others)}" if len(rows) < len(others) else "Gates"
        blocks.append(Table(columns, rows, title))
    return blocks


def _gate(gate: Facts | None) -> list[Block]:
    if gate is None:
        return []
    decision = gate.get("decision")
    blocks: list[Block] = [
        Heading(f"Gate {gate.get('name', '')}", 4),
        Words(str(gate["text"])) if gate.get("text") else Sentence(("It asks for a decision.",)),
        Sentence(
            (
                State(str(gate.get("state", ""))),
                f" · run {str(gate.get('run', ''))[:_ID]} of {gate.get('workflow', '')}"
                f" · opened {_moment(gate.get('opened'))}"
                + (f" · due {_moment(gate['due'])}" if gate.get("due") else ""),
            )
        ),
    ]
    if gate.get("options"):
        chosen = set((decision or {}).get("selections", ()))
        rows = tuple((str(option), "selected" if option in chosen else "") for option in gate["options"])
        blocks.append(_trimmed(Table(("option", "answer"), rows)))
    if decision:
        blocks.append(Sentence((_decided(decision),)))
        if decision.get("feedback"):
            blocks.append(Words(str(decision["feedback"]), quoted=True))
    blocks += _exhibits(gate.get("exhibits") or ())
    return blocks


def _decided(decision: Facts | None) -> str:
    """Return who decided what, and when."""
    if not decision:
        return ""
    word = "Approved" if decision.get("approved") else "Rejected"
    selected = ", ".join(map(str, decision.get("selections") or ()))
    via = f" ({decision['via']})" if decision.get("via") else ""
    said = f"{word} by {decision.get('by', 'somebody')} at {_moment(decision.get('at'))}{via}"
    return f"{said}, selected: {selected}" if selected else said


def _exhibits(exhibits: Iterable[Facts]) -> list[Block]:
    blocks: list[Block] = []
    left = _PICTURES
    for exhibit in exhibits:
        kind = exhibit.get("kind")
        if kind == "table":
            blocks.append(_table(exhibit))
        elif kind == "image":
            data = str(exhibit.get("data", ""))
            left -= len(data)
            if left < 0:
                blocks.append(
                    _notice(f"A picture of {size(len(data) * 3 // 4)} is shown in the live view only.")
                )
            else:
                blocks.append(Image(str(exhibit.get("mime", "")), data, str(exhibit.get("alt") or "")))
        elif kind == "html":
            blocks.append(_notice("A page of HTML is shown in the live view only."))
        elif kind == "notice":
            blocks.append(_notice(str(exhibit.get("text", ""))))
        else:
            text = str(exhibit.get("text", ""))
            blocks.append(Words(text))
            if len(text) > TEXT:
                blocks.append(_notice(f"… {len(text) - TEXT:,} more characters."))
    return blocks


def _table(exhibit: Facts) -> Table:
    columns = tuple(str(column.get("name", "")) for column in exhibit.get("columns", ()))
    rows = [
        tuple("–" if cell is None else str(cell) for cell in row)
        for row in list(exhibit.get("rows", ()))[:_ROWS]
    ]
    total = int(exhibit.get("total") or len(rows))
    title = str(exhibit.get("title") or "")
    if len(rows) < total:
        title = f"{title} ({len(rows)} of {total:,} rows)".strip()
    return Table(columns, tuple(row for row in rows if len(row) == len(columns)), title)


def _notice(text: str) -> Sentence:
    return Sentence((text,), quiet=True)


# --- words --------------------------------------------------------------------------------------------------------


def _disk(disk: Facts | None) -> list[Block]:
    if not disk or disk.get("total") is None:
        return []
    return [_notice(f"The store holds {size(int(disk['total']))}.")]


def _moment(at: float | None) -> str:
    """Return UTC seconds as a date; "–" for none."""
    if not at and at != 0.0:
        return "–"
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OSError, OverflowError, ValueError):
        return "–"


def _took(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
