"""A page of runs: filtered, searched, sorted and counted, from what the catalogue knows."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from nbflow.board.catalogue import Catalogue
from nbflow.board.rows import seconds_of, shown_state
from nbflow.core.errors import UsageError
from nbflow.core.model import RunInfo
from nbflow.store.listing import matches_name

#: Values of one tag, names of tags and of workflows that a filter offers.
_OFFERED = 200

#: Rows of one page at most, and queries of which the answer about finished runs is kept.
ROWS, _QUERIES = 500, 8


class RunsQuery(msgspec.Struct, frozen=True):
    """What a page of runs is asked for; None or empty filters nothing.

    `states` are those that are shown ("stopped" too), `text` words of which each
    must be found in the run's id, workflow, error, tags or parameters.
    """

    workflow: str | None = None
    states: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    text: str | None = None
    since: float | None = None
    until: float | None = None
    sort: str = "created"
    descending: bool = True
    offset: int = 0
    limit: int = 50
    children: bool = False


_SORTS: dict[str, Callable[[RunInfo], Any]] = {
    "created": lambda info: info.created_at,
    "workflow": lambda info: info.workflow.casefold(),
    "state": shown_state,
    "seconds": seconds_of,
    "steps": lambda info: info.steps,
    "attempts": lambda info: info.attempts,
}

#: The order of runs that are equal otherwise: the newest first.
_NEWEST = lambda info: (info.created_at, info.run)  # noqa: E731


@dataclass(frozen=True)
class _Matching:
    """The runs that are over and pass a query's filters: sorted, and counted by state before `states` chose."""

    infos: list[RunInfo]
    counts: Counter[str]


class Listing:
    """Pages of the catalogue. Safe to use from several threads.

    What is over does not change: the last few queries keep what they found
    of it, so that following what goes on costs as little as the unfinished runs are many.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._mutex = threading.Lock()
        self._texts: dict[str, tuple[RunInfo, str]] = {}
        self._known: OrderedDict[RunsQuery, _Matching] = OrderedDict()
        self._version = -1
        self._offers: tuple[Counter[str], dict[str, Counter[str]]] = Counter(), {}

    def page(self, query: RunsQuery) -> tuple[list[RunInfo], dict[str, Any]]:
        """Return the runs of the page, and `total`, `counts`, `workflows`, `tags` and `busy`.

        `counts` has, by state, the runs that pass all other filters, so that it tells what another
        choice of states would show.
        """
        everything = msgspec.structs.replace(query, offset=0, limit=0)
        with self._mutex:
            version, final = self._catalogue.final()
            live = self._catalogue.live()
            if version != self._version:
                self._version = version
                self._known.clear()
                self._offers = _offers(final)
                if len(self._texts) > 2 * len(final) + 1_000:
                    self._texts.clear()  # most of it is of runs that were deleted
            over = self._known.get(everything)
            if over is None:
                over = self._known[everything] = self._matching(final, query)
                while len(self._known) > _QUERIES:
                    self._known.popitem(last=False)
            going = self._matching(live, query)
            offers = _offers(live, *self._offers)
        end = query.offset + query.limit
        # Both are sorted, so nothing of the page lies behind the first `end` of either.
        infos = _sorted([*over.infos[:end], *going.infos[:end]], query)[query.offset : end]
        return infos, {
            "total": len(over.infos) + len(going.infos),
            "counts": dict(over.counts + going.counts),
            "workflows": sorted(name for name, _ in offers[0].most_common(_OFFERED) if name),
            "tags": {
                name: sorted(value for value, _ in offers[1][name].most_common(_OFFERED))
                for name in sorted(offers[1])[:_OFFERED]
            },
            "busy": self._catalogue.busy,
        }

    def _matching(self, infos: list[RunInfo], query: RunsQuery) -> _Matching:
        found = [info for info in infos if _passes(info, query)]
        if query.text:
            words = query.text.casefold().split()
            found = [info for info in found if all(word in self._text(info) for word in words)]
        counts = Counter(map(shown_state, found))
        if query.states:
            found = [info for info in found if shown_state(info) in query.states]
        return _Matching(_sorted(found, query), counts)

    def _text(self, info: RunInfo) -> str:
        known = self._texts.get(info.run)
        if known is not None and known[0] is info:
            return known[1]
        parts = [info.run, info.workflow, info.error]
        parts += (f"{name}={value}" for name, value in info.tags.items())
        parts += (f"{name}={value}" for name, value in info.params.items())
        text = "\n".join(parts).casefold()
        self._texts[info.run] = info, text
        return text


def _sorted(infos: list[RunInfo], query: RunsQuery) -> list[RunInfo]:
    if query.sort == "created":
        return sorted(infos, key=_NEWEST, reverse=query.descending)
    # A stable sort after one by age: equal ones keep the newest first, whichever way it goes.
    found = sorted(infos, key=_NEWEST)
    found.sort(key=_SORTS[query.sort], reverse=query.descending)
    return found


def _offers(
    infos: Iterable[RunInfo],
    workflows: Counter[str] | None = None,
    tags: dict[str, Counter[str]] | None = None,
) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Count workflows and values of tags, on top of what is counted already."""
    names = Counter(workflows or ())
    values = {name: Counter(found) for name, found in (tags or {}).items()}
    for info in infos:
        names[info.workflow] += 1
        for name, value in info.tags.items():
            values.setdefault(name, Counter())[value] += 1
    return names, values


def runs_query(params: Any) -> RunsQuery:
    """Return what a page of runs is asked for.

    Raises:
        UsageError: it makes no sense.

    >>> runs_query({"text": "loss", "limit": 10}).limit
    10
    """
    given = {name: value for name, value in (params or {}).items() if value is not None}
    if isinstance(given.get("tags"), dict):
        given["tags"] = tuple(sorted((str(name), str(value)) for name, value in given["tags"].items()))
    try:
        query = msgspec.convert(given, RunsQuery, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"Runs cannot be listed so: {error}.") from error
    if query.sort not in _SORTS:
        raise UsageError(f"Runs are not sorted by {query.sort!r}.", hint=f"They are by {', '.join(_SORTS)}.")
    offset, limit = max(0, query.offset), max(1, min(query.limit, ROWS))
    return msgspec.structs.replace(query, offset=offset, limit=limit)


def _passes(info: RunInfo, query: RunsQuery) -> bool:
    return (
        (query.children or info.parent is None)
        and (not query.workflow or matches_name(info.workflow, query.workflow))
        and (query.since is None or info.created_at >= query.since)
        and (query.until is None or info.created_at <= query.until)
        and all(info.tags.get(name) == value for name, value in query.tags)
    )
