"""The table of runs: what it shows, finds, sorts and counts, and what it says when the database is away."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbflow.board import Board
from nbflow.board.catalogue import Catalogue
from nbflow.board.listing import Listing, runs_query
from nbflow.board.watching import View, Watched
from nbflow.core import errors
from nbflow.core.model import RunInfo
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunLog, RunQuery
from tests.board.board_kit import asked, ended, process, said, until
from tests.store.conformance import attached, do_step

HELD: list[RunLog] = []


def names(answer: dict[str, Any]) -> list[str]:
    return [row["run"] for row in answer["rows"]]


def some_runs(store: LocalStore) -> dict[str, str]:
    """Record runs in many states; return their ids by a word for each."""
    runs = {}
    log = attached(
        store, "load.ipynb", workflow_kind="notebook", params={"year": 2013}, tags={"team": "blue"}
    )
    do_step(log, "a")
    runs["completed"] = ended(log)
    log = attached(store, "load.ipynb", tags={"team": "red"})
    runs["cancelled"] = ended(log, "cancelled", "user: wrong data")
    log = attached(store, "train.ipynb", tags={"team": "red", "host": "h1"})
    do_step(log, "a")
    do_step(log, "b")
    runs["failed"] = ended(log, "failed", "it broke")
    log = attached(store, "train.ipynb")
    runs["stopped"] = log.run
    log.release()
    log = attached(store, "nightly", params={"city": "Köln"})
    HELD.append(log)  # else its lease went away with it
    runs["running"] = log.run
    store.compact()
    return runs


def test_every_run_has_a_row_with_the_state_that_people_see(store: LocalStore, board: Board) -> None:
    """Finished and unfinished runs are one table, newest first; one whose process is gone is "stopped"."""
    runs = some_runs(store)
    answer = asked(board, "runs")
    assert list(reversed(runs.values())) == names(answer)
    assert {run: word for word, run in runs.items()} == {row["run"]: row["state"] for row in answer["rows"]}
    assert answer["counts"] == dict.fromkeys(runs, 1)
    assert answer["workflows"] == ["load.ipynb", "nightly", "train.ipynb"]
    assert answer["tags"] == {"host": ["h1"], "team": ["blue", "red"]}
    by_state = {row["state"]: row for row in answer["rows"]}
    assert by_state["running"]["owner"].endswith(f", {os.getpid()}")
    assert (by_state["completed"]["owner"], by_state["completed"]["params"]) == (None, {"year": 2013})
    assert (by_state["failed"]["steps"], by_state["failed"]["error"]) == (2, "it broke")


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"workflow": "load.ipynb"}, ["cancelled", "completed"]),
    ({"workflow": "*.ipynb"}, ["stopped", "failed", "cancelled", "completed"]),
    ({"states": ["failed", "stopped"]}, ["stopped", "failed"]),
    ({"tags": {"team": "red"}}, ["failed", "cancelled"]),
    ({"text": "köln"}, ["running"]),
    ({"text": "WRONG data"}, ["cancelled"]),
    ({"text": "team=red h1"}, ["failed"]),
    ({"sort": "steps", "limit": 2}, ["failed", "completed"]),
    ({"sort": "workflow", "descending": False, "limit": 3}, ["completed", "cancelled", "running"]),
    ({"sort": "created", "descending": False, "offset": 3}, ["stopped", "running"]),
]


def test_the_table_is_filtered_searched_sorted_and_paged(store: LocalStore, board: Board) -> None:
    """Each filter of the page finds what it says, whether a run is in the database or not."""
    runs = some_runs(store)
    rows = {row["run"]: row for row in asked(board, "runs")["rows"]}
    for query, expected in FILTERS:
        found = names(asked(board, "runs", **query))
        assert (query, sorted(runs[word] for word in expected)) == (query, sorted(found))
        order = [rows[run][query.get("sort", "created")] for run in found]
        assert order == sorted(order, reverse=query.get("descending", True))


def test_counts_are_of_all_states_that_another_choice_would_show(store: LocalStore, board: Board) -> None:
    """The filter of states counts what it leaves out, too, so that its buttons can say how many there are."""
    some_runs(store)
    answer = asked(board, "runs", states=["failed"], workflow="train.ipynb")
    assert (answer["total"], answer["counts"]) == (1, {"failed": 1, "stopped": 1})


def test_children_are_listed_only_when_asked_for(store: LocalStore, board: Board) -> None:
    """The notebooks of a batch do not drown the batch."""
    parent = attached(store, "batch")
    log = attached(store, "load.ipynb", parent=parent.run)
    assert [parent.run] == names(asked(board, "runs"))
    assert {parent.run, log.run} == set(names(asked(board, "runs", children=True)))


@pytest.mark.parametrize(
    "query", [{"sort": "colour"}, {"limit": "many"}, {"tags": 3}, {"states": "failed", "offset": {}}]
)
def test_a_query_that_makes_no_sense_is_a_sentence(board: Board, query: dict[str, Any]) -> None:
    """Nothing that a page can send ends in a traceback of ours."""
    with pytest.raises(errors.UsageError):
        board.ask("runs", query)


_INFOS = st.builds(
    RunInfo,
    run=st.integers(0, 10**6).map("run-{:07d}".format),
    workflow=st.sampled_from(["a", "b.ipynb", "Ab"]),
    state=st.sampled_from(["running", "waiting", "failed", "completed", "cancelled"]),
    alive=st.booleans(),
    created_at=st.integers(0, 5).map(float),
    updated_at=st.integers(5, 9).map(float),
    steps=st.integers(0, 3),
    attempts=st.integers(0, 2),
    error=st.sampled_from(["", "no Data"]),
    tags=st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2),
)


class _Listed:
    """A store that lists these runs and nothing else."""

    def __init__(self, infos: list[RunInfo]) -> None:
        self.infos = infos

    def changes(self, seen: Any = None) -> tuple[frozenset[str], Any]:
        return frozenset(), {}

    def runs(self, query: RunQuery) -> list[RunInfo]:
        return [info for info in self.infos if not query.runs or info.run in query.runs]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    infos=st.lists(_INFOS, max_size=25, unique_by=lambda info: info.run),
    sort=st.sampled_from(["created", "workflow", "state", "seconds", "steps", "attempts"]),
    descending=st.booleans(),
    states=st.lists(st.sampled_from(["completed", "stopped", "failed"]), max_size=2),
    text=st.sampled_from([None, "data", "b"]),
    limit=st.integers(1, 6),
)
def test_pages_put_together_are_the_whole_list(
    infos: list[RunInfo], sort: str, descending: bool, states: list[str], text: str | None, limit: int
) -> None:
    """Whatever the filter, paging shows each run that passes once, in the order of one large page."""
    catalogue = Catalogue(_Listed(infos))  # type: ignore[arg-type]
    catalogue.refresh()
    listing = Listing(catalogue)
    asking = {"sort": sort, "descending": descending, "states": states, "text": text}
    whole, facts = listing.page(runs_query({**asking, "limit": 500}))
    pages: list[RunInfo] = []
    while len(pages) < len(whole):
        page, same = listing.page(runs_query({**asking, "limit": limit, "offset": len(pages)}))
        assert same == facts
        pages += page
    assert [info.run for info in pages] == [info.run for info in whole]
    assert facts["total"] == len(whole) == len({info.run for info in whole})
    assert sum(facts["counts"].get(state, 0) for state in (set(states) or facts["counts"])) == facts["total"]


def test_a_database_that_somebody_holds_hides_no_live_run(store: LocalStore, board: Board) -> None:
    """Live runs and the last known history are shown with a sentence, and the history when it is free again."""
    runs = some_runs(store)
    holder = process(f"import sys; sys.argv.append({str(store.database.path)!r}){HOLDING}", store)
    try:
        assert said(holder) == "open"
        answer = asked(board, "runs")
        assert {runs["failed"], runs["stopped"], runs["running"]} == set(names(answer))
        assert f"Process {holder.pid}" in answer["busy"]
    finally:
        holder.communicate()
    answer = until(lambda: (found := asked(board, "runs"))["busy"] is None and found, what="the database")
    assert set(runs.values()) == set(names(answer))


HOLDING = """
import duckdb, sys
held = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_the_history_that_was_known_is_shown_while_somebody_holds_the_database(
    store: LocalStore, board: Board
) -> None:
    """What a page saw once stays; a run that ends meanwhile is shown as it was last seen, and then as it ended."""
    runs = some_runs(store)
    asked(board, "runs")
    log = attached(store, "more")
    asked(board, "run", run=log.run)
    view = View("v", Watched(runs=runs_query({}), run=log.run), None)
    view.first(board)
    holder = process(f"import sys; sys.argv.append({str(store.database.path)!r}){HOLDING}", store)
    try:
        assert said(holder) == "open"
        assert {log.run, *runs.values()} == set(names(asked(board, "runs")))
        ended(log)
        shutil.move(store.root / "runs" / log.run, store.root / "gone")  # as when it was copied elsewhere
        answer = asked(board, "runs")
        assert {log.run, *runs.values()} == set(names(answer))
        assert f"Process {holder.pid}" in answer["busy"]
        assert [push["push"] for push in view.news(board)] == ["runs"]
    finally:
        holder.communicate()
    shutil.move(store.root / "gone", store.root / "runs" / log.run)
    rows = until(
        lambda: (found := asked(board, "runs"))["busy"] is None and found["rows"], what="the database"
    )
    assert {row["state"] for row in rows if row["run"] == log.run} == {"completed"}


def test_a_damaged_run_is_a_row_and_hides_no_other(store: LocalStore, board: Board) -> None:
    """Its state is "corrupt", its error is shown, and its page says what can be done."""
    runs = some_runs(store)
    journal = next((store.root / "runs" / runs["failed"]).glob("journal.1"))
    raw = bytearray(journal.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    journal.write_bytes(raw)
    rows = {row["run"]: row for row in asked(board, "runs")["rows"]}
    assert rows.keys() == set(runs.values())
    assert rows[runs["failed"]]["state"] == "corrupt"
    assert "CorruptRecord" in rows[runs["failed"]]["error"]
    page = asked(board, "run", run=runs["failed"])
    assert page["row"]["state"] == "corrupt"
    assert page["problem"]
    assert page["actions"]["resume"]["why"].startswith("The run cannot be read.")
    assert page["actions"]["delete"]["allowed"] is True


def test_text_from_outside_stays_text_of_bounded_size(store: LocalStore, board: Board) -> None:
    """Markup, halves of characters, infinities and huge parameters arrive as short plain data."""
    mean = {
        "html": "<script>",
        "x": float("inf"),
        "n": 2**60,
        "long": "y" * 10**6,
        "b": b"raw",
        "deep": [[[[[1]]]]],
    }
    log = attached(store, "<b>bold</b>", params=mean, tags={"<i>": "</i>"})
    log.release()
    [row] = asked(board, "runs")["rows"]
    assert (row["workflow"], row["params"]["html"], row["tags"]) == (
        "<b>bold</b>",
        "<script>",
        {"<i>": "</i>"},
    )
    assert row["params"]["x"] == "inf"
    assert len(str(row)) < 5_000


def test_a_run_that_ended_in_another_process_moves_into_the_history(store: LocalStore, board: Board) -> None:
    """It is listed all the time: while it runs, while it is copied, and when its folder is gone."""
    log = attached(store, "moving")
    do_step(log, "a")
    seen = [asked(board, "runs")["rows"][0]["state"]]
    ended(log)
    seen.append(asked(board, "runs")["rows"][0]["state"])
    store.compact()
    assert not (store.root / "runs" / log.run).exists()
    seen.append(asked(board, "runs")["rows"][0]["state"])
    assert seen == ["running", "completed", "completed"]


def test_a_deleted_run_is_gone_from_the_table(store: LocalStore, board: Board) -> None:
    """Deleting through the board shows at once, whether the run was live or in the database."""
    runs = some_runs(store)
    for word in ("completed", "stopped"):
        said_ = asked(board, "act", action="delete", run=runs[word])["said"]
        assert runs[word][:13] in said_
        assert runs[word] not in names(asked(board, "runs"))
        with pytest.raises(errors.UnknownRun):
            board.ask("run", {"run": runs[word]})


def test_ids_of_runs_are_no_paths(board: Board, tmp_path: Path) -> None:
    """What a page names is looked for among runs only."""
    for run in ("../../etc/passwd", "..", "a/b/c/d", "x" * 36, random.randbytes(18).hex()):
        with pytest.raises((errors.UsageError, errors.UnknownRun)):
            board.ask("run", {"run": run})
    assert not list(tmp_path.glob("etc*"))
