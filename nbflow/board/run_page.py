"""All of one run for a page, and what changed of it since: steps, gates, graph, what may be done."""

from __future__ import annotations

from typing import Any

from nbflow.board.folds import Fold
from nbflow.board.plain import plain
from nbflow.board.rows import gate_row, step_row
from nbflow.core.gates import gates_of
from nbflow.core.history import Execution
from nbflow.core.states import StepState

#: Steps that a page gets at first: the first and the last so many, and between them those that
#: are not just completed. The rest it asks for by `offset` and `limit`.
EDGE, MIDDLE = 300, 400

#: Steps that one answer or push has at most.
STEPS = 1_000

_UNREMARKABLE = frozenset({StepState.COMPLETED, StepState.SKIPPED})


def whole(fold: Fold, *, alive: bool | None = None) -> dict[str, Any]:
    """Return `steps`, `more`, `gates`, `graph`, `published`, `seq` and `at` of a run; hold its mutex."""
    executions = list(fold.history.executions.values())
    shown, more = _shown(executions)
    return {
        "steps": [step_row(fold, each) for each in shown],
        "more": more,
        "gates": gate_rows(fold),
        "attempts": attempts(fold),
        "graph": graph(fold, alive),
        "published": published(fold),
        "seq": fold.seq,
        "at": fold.history.updated_at,
    }


def _shown(executions: list[Execution]) -> tuple[list[Execution], dict[str, int] | None]:
    """Return the steps that are shown, and of those left out: how many, and the place of the first (from 0)."""
    if len(executions) <= 2 * EDGE + MIDDLE:
        return executions, None
    middle = executions[EDGE:-EDGE]
    remarkable = [each for each in middle if each.state not in _UNREMARKABLE][-MIDDLE:]
    shown = [*executions[:EDGE], *remarkable, *executions[-EDGE:]]
    return shown, {"count": len(executions) - len(shown), "total": len(executions), "offset": EDGE}


def some_steps(fold: Fold, offset: int, limit: int) -> dict[str, Any]:
    """Return the steps from place `offset` (from 0) on, `limit` of them at most; hold the fold's mutex."""
    executions = list(fold.history.executions.values())
    end = offset + min(limit, STEPS)
    return {
        "steps": [step_row(fold, each) for each in executions[offset:end]],
        "total": len(executions),
        "offset": offset,
        "seq": fold.seq,
    }


def gate_rows(fold: Fold) -> list[dict[str, Any]]:
    """Return the gates of a run; hold its mutex."""
    return [gate_row(fold, gate) for gate in gates_of(fold.history)]


def attempts(fold: Fold) -> list[dict[str, Any]]:
    """Return the attempts of a run, each from its begin to its newest record; hold the fold's mutex."""
    return [
        {"attempt": number, "started": began, "finished": ended} for number, began, ended in fold.attempts
    ]


def published(fold: Fold) -> dict[str, Any]:
    """Return what a run has published so far; hold its mutex."""
    found: dict[str, Any] = plain(fold.history.published)
    return found


def graph(fold: Fold, alive: bool | None = None) -> dict[str, Any] | None:
    """Return the picture of a run's states or cells; None where there is nothing to draw. Hold its mutex.

    It is drawn anew when the run has moved, or its process came or went.
    """
    from nbflow.board.graph import graph_of

    if fold.history.opened is None:
        return None
    mark = fold.seq, alive
    if fold.picture is None or fold.picture[0] != mark:
        drawn = graph_of(fold.history, alive=alive)
        fold.picture = mark, drawn if drawn["nodes"] else None
    return fold.picture[1]


def graph_news(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the nodes and edges that are not as they were."""
    if after is None or after is before:
        return [], []
    found = []
    for part in ("nodes", "edges"):
        known = {_key(each): each for each in (before or {}).get(part, ())}
        found.append([each for each in after[part] if known.get(_key(each)) != each])
    return found[0], found[1]


def same_shape(before: dict[str, Any] | None, after: dict[str, Any]) -> bool:
    """Tell whether a picture has the parts and the size that it had, so that the changed parts say it all."""
    if before is None:
        return False
    return all(
        [_key(each) for each in before[part]] == [_key(each) for each in after[part]]
        for part in ("nodes", "edges")
    ) and (before["width"], before["height"]) == (after["width"], after["height"])


def _key(part: dict[str, Any]) -> tuple[Any, ...]:
    return (part["id"],) if "id" in part else (part["source"], part["target"], part["kind"])
