"""One run and one step for a page: rows, attempts, log, display, values; bounded whatever the run is like."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest

from nbflow.board import Board, run_page
from nbflow.board.folds import Folds
from nbflow.core import errors
from nbflow.core.model import (
    Checkpoint,
    ErrorInfo,
    RunChanged,
    RunPublished,
    StepCompleted,
    StepCursor,
    StepEnded,
    StepForgotten,
    StepRetried,
    StepStarted,
)
from nbflow.notebook.capture import Display, Output, encode
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunLog
from nbflow.values.codec import encode as encode_values
from tests.board.board_kit import asked, ended
from tests.store.conformance import attached, do_step, me


def recorded(
    log: RunLog, step: str, values: dict[str, Any], *, outputs: list[Output] = [], **detail: Any
) -> int:  # noqa: B006
    """Record a cell with these values and this display; return its execution."""
    encoded = encode_values(values)
    execution = log.append(StepStarted(step, step, "cell", step.encode(), detail=detail))
    refs = log.put_leaves(encoded.leaves)
    log.append(
        StepCompleted(
            execution,
            step,
            seconds=1.5,
            checkpoint=encoded.checkpoint(refs),
            display=encode(Display(1, outputs)),
        )
    )
    return execution


def test_the_page_of_a_run_has_all_that_happened(store: LocalStore, board: Board) -> None:
    """Steps in order with their errors and retries, what was published, and up to which record it is."""
    log = attached(store, "w")
    first = do_step(log, "a")
    other = log.append(StepStarted("b", "b", "call", b"t"))
    log.append(StepRetried(other, "b", 1, 123.5, ErrorInfo("OSError", "busy")))
    log.append(
        StepEnded(other, "b", "failed", attempt=2, seconds=0.1, error=ErrorInfo("ValueError", "no", "trace"))
    )
    log.append(RunPublished("loss", 0.25))
    page = asked(board, "run", run=log.run)
    assert [(s["execution"], s["state"], s["outputs"]) for s in page["steps"]] == [
        (first, "completed", 1),
        (other, "failed", 0),
    ]
    [retry] = page["steps"][1]["retries"]
    assert (retry["attempt"], retry["due_at"], retry["error"]) == (
        1,
        123.5,
        {"type": "OSError", "message": "busy"},
    )
    assert (page["published"], page["seq"], page["more"]) == ({"loss": 0.25}, 8, None)
    assert (page["row"]["run"], page["row"]["state"], page["problem"]) == (log.run, "running", None)
    assert page["graph"]["nodes"]


def test_a_finished_run_has_the_same_page_as_while_it_was_live(store: LocalStore, board: Board) -> None:
    """What the database tells is what the journal told."""
    log = attached(store, "w")
    do_step(log, "a")
    recorded(log, "b", {"x": 1}, outputs=[Output("stream", "stdout", "hello\n")])
    run = ended(log)
    before = asked(board, "run", run=run), asked(board, "step", run=run, execution=5)
    store.compact()
    fresh = Board(store)
    assert before == (asked(fresh, "run", run=run), asked(fresh, "step", run=run, execution=5))
    fresh.close()


def test_a_step_tells_its_code_inputs_outputs_and_attempts(store: LocalStore, board: Board) -> None:
    """A cell's source, what it read with the value that it was, what it recorded, and each try."""
    log = attached(store, "nb.ipynb", workflow_kind="notebook")
    number = recorded(log, "load", {"year": 2013}, source="year = 2013")
    print_ = board.folds.of(log.run).history.executions[number].completed.checkpoint.outputs[0].fingerprint  # type: ignore[union-attr]
    reads = {"year": print_.hex(), "gone": ""}
    other = log.append(
        StepStarted("fit", "fit", "cell", b"f", detail={"source": "fit(year)", "reads": reads})
    )
    log.append(StepRetried(other, "fit", 1, 5e9, ErrorInfo("OSError", "busy", "\x1b[31mTraceback\x1b[0m …")))
    answer = asked(board, "step", run=log.run, execution=other)
    assert (answer["source"], answer["inputs"]) == (
        "fit(year)",
        [{"name": "year", "preview": "2013"}, {"name": "gone", "preview": "was not defined"}],
    )
    assert [(a["attempt"], a["state"]) for a in answer["attempts"]] == [(1, "failed"), (2, "running")]
    assert answer["error"] == {"type": "OSError", "message": "busy", "traceback": "Traceback …"}
    log.append(StepCompleted(other, "fit", attempt=2, seconds=2.0))
    answer = asked(board, "step", run=log.run, execution=other)
    assert ([a["state"] for a in answer["attempts"]], answer["error"]) == (["failed", "completed"], None)
    [output] = asked(board, "step", run=log.run, execution=number)["outputs"]
    assert (output["name"], output["type"], output["preview"]) == ("year", "int", "2013")


def test_the_log_says_in_words_what_happened_to_a_step(store: LocalStore, board: Board) -> None:
    """Started, retried and why, points passed, completed, asked to run again, interrupted: one line each, in order."""
    log = attached(store, "w")
    number = log.append(StepStarted("b", "b", "call", b"t"))
    log.append(StepRetried(number, "b", 1, 0.0, ErrorInfo("OSError", "busy\nmore")))
    log.append(StepCursor(number, "b", 3, Checkpoint("json", b"{}")))
    log.append(StepCompleted(number, "b", attempt=2, seconds=2.0))
    log.append(StepForgotten("b", "retry by ana"))
    open_ = log.append(StepStarted("c", "c", "call", b"t"))
    log.release()
    store.attach(log.run, me())
    lines = asked(board, "step", run=log.run, execution=number)["log"]
    assert [line.split(" ", 1)[1] for line in lines] == [
        "started",
        "attempt 1 failed, again at once: OSError: busy",
        "point 3 recorded",
        "completed after 2.0 s",
        "asked to run again: retry by ana",
    ]
    lines = asked(board, "step", run=log.run, execution=open_)["log"]
    assert [line.split(" ", 1)[1] for line in lines] == [
        "started",
        "interrupted: its process had ended before the step did",
    ]


def test_what_a_cell_showed_is_shown_again(store: LocalStore, board: Board) -> None:
    """Streams, pictures, tables as HTML, Markdown and JSON in order; a widget and other kinds as a sentence."""
    png = base64.b64encode(b"\x89PNG").decode()
    log = attached(store, "nb.ipynb")
    shown = [
        Output("stream", "stdout", "one\x1b[1m!\x1b[0m\n"),
        Output("stream", "stderr", "warned"),
        Output("display", data={"image/png": png + "\n", "text/plain": "<Figure>"}),
        Output("result", data={"text/html": "<table>", "text/plain": "x"}),
        Output("display", data={"text/markdown": "*a*", "text/plain": "a"}),
        Output("display", data={"application/json": {"a": 1}}),
        Output("display", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Slider"}),
        Output("display", data={"application/x-odd": "?"}),
        Output("display", data={"image/svg+xml": "<svg/>"}),
    ]
    number = recorded(log, "show", {"x": 1}, outputs=shown)
    exhibits = asked(board, "step", run=log.run, execution=number)["display"]
    assert [each["kind"] for each in exhibits] == [
        *["text", "text", "image", "html", "markdown", "json", "notice", "notice", "image"]
    ]
    assert exhibits[0] == {"kind": "text", "text": "one!\n", "stream": "stdout"}
    assert exhibits[2] == {"kind": "image", "mime": "image/png", "data": png, "alt": "<Figure>"}
    assert base64.b64decode(exhibits[8]["data"]) == b"<svg/>"


def test_a_frame_is_read_page_by_page(store: LocalStore, board: Board) -> None:
    """Live or finished, with its library or from its columns alone, a page of a table is the same rows."""
    import pandas as pd

    frame = pd.DataFrame({"n": range(50_000), "x": [i / 4 for i in range(50_000)]})
    log = attached(store, "nb.ipynb")
    number = recorded(log, "load", {"flights": frame})
    wanted = {"run": log.run, "execution": number, "name": "flights", "offset": 49_998, "limit": 10}
    live = asked(board, "output", **wanted)
    assert (live["kind"], live["total"], live["offset"]) == ("table", 50_000, 49_998)
    assert [row[-2:] for row in live["rows"]] == [["49998", "12499.5"], ["49999", "12499.75"]]
    ended(log)
    store.compact()
    fresh = Board(store)
    with pytest.MonkeyPatch.context() as without:
        without.delitem(sys.modules, "pandas")
        columns = asked(fresh, "output", **wanted)
        assert "pandas" not in sys.modules
    assert [row[-2:] for row in columns["rows"]] == [row[-2:] for row in live["rows"]]
    assert (columns["total"], [c["type"] for c in columns["columns"]]) == (50_000, ["int64", "float64"])
    fresh.close()


def test_a_value_that_cannot_be_rebuilt_is_a_sentence(store: LocalStore, board: Board) -> None:
    """A class that is gone, or a leaf that is damaged, ends in a notice and never in an error of the page."""
    import pandas as pd

    log = attached(store, "nb.ipynb")
    number = recorded(log, "load", {"frame": pd.DataFrame({"n": range(50_000)})})
    for leaf in (store.root / "runs" / log.run).glob("leaves.*"):
        leaf.write_bytes(b"\0" * leaf.stat().st_size)
    answer = asked(board, "output", run=log.run, execution=number, name="frame")
    assert answer["kind"] == "notice"
    assert "50,000 rows" in answer["text"]


def test_plain_values_are_shown_as_json(store: LocalStore, board: Board) -> None:
    """What JSON holds is shown without unpickling anything."""
    log = attached(store, "w")
    number = recorded(log, "a", {"found": {"k": [1, None]}})
    answer = asked(board, "output", run=log.run, execution=number, name="found")
    assert (answer["kind"], "".join(answer["text"].split())) == ("json", '{"k":[1,null]}')


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("step", {"execution": 99}, errors.UnknownStep),
        ("step", {"execution": "x"}, errors.UnknownStep),
        ("output", {"execution": 3, "name": "gone"}, errors.UnknownStep),
        ("output", {"execution": 3, "name": 7}, errors.UsageError),
        ("gate", {"step": "none"}, errors.UnknownStep),
        ("act", {"action": "explode"}, errors.UsageError),
        ("what", {}, errors.UsageError),
    ],
)
def test_errors_name_the_run(
    store: LocalStore, board: Board, method: str, params: dict[str, Any], kind: type[Exception]
) -> None:
    """Whatever is asked wrongly, the error says about which run."""
    log = attached(store, "w")
    do_step(log, "a")
    with pytest.raises(kind) as caught:
        board.ask(method, {"run": log.run, **params})
    assert caught.value.run == (log.run if method != "what" else None)  # type: ignore[attr-defined]


def test_a_run_of_thousands_of_steps_has_a_page_of_bounded_size(store: LocalStore, board: Board) -> None:
    """The first and last steps, those that need attention between them, and the rest on request."""
    log = attached(store, "w")
    records: list[Any] = []
    for number in range(3_000):
        state = StepCompleted(-1, f"s{number}") if number != 1_500 else StepEnded(-1, f"s{number}", "failed")
        records += [StepStarted(f"s{number}", "s", "call", b"s"), state]
    log.append(*records)
    page = asked(board, "run", run=log.run)
    steps = [step["step"] for step in page["steps"]]
    assert (steps[0], steps[-1], "s1500" in steps, len(steps)) == ("s0", "s2999", True, 2 * run_page.EDGE + 1)
    assert page["more"] == {"count": 3_000 - len(steps), "total": 3_000, "offset": run_page.EDGE}
    rest = asked(board, "run", run=log.run, offset=run_page.EDGE, limit=50)
    assert [step["step"] for step in rest["steps"]] == [
        f"s{n}" for n in range(run_page.EDGE, run_page.EDGE + 50)
    ]


def test_few_folds_are_kept(store: LocalStore) -> None:
    """Looking at many runs one after the other does not fill the memory of the kernel."""
    folds = Folds(store, kept=3, entries=1_000)
    logs = [attached(store, "w") for _ in range(6)]
    for log in logs:
        folds.of(log.run)
    assert [log.run for log in logs[-3:]] == list(folds._folds)
    logs[0].append(*[RunPublished("n", n) for n in range(1_500)])
    folds.of(logs[0].run)
    assert [logs[0].run] == list(folds._folds)


def test_what_a_run_took_over_by_another_had_not_acknowledged_is_forgotten(
    store: LocalStore, board: Board
) -> None:
    """A fold that read a stale owner's last words reads the run anew when they turn out never to have counted."""
    log = attached(store, "w")
    do_step(log, "a")
    assert asked(board, "run", run=log.run)["row"]["steps"] == 1
    other = store.attach(log.run, me("other"), steal=True)
    do_step(other, "b")
    page = asked(board, "run", run=log.run)
    assert ([step["step"] for step in page["steps"]], page["row"]["attempts"]) == (["a", "b"], 2)
    other.append(RunChanged("completed"))
    assert asked(board, "run", run=log.run)["row"]["state"] == "completed"


def test_a_step_that_stopped_at_a_gate_waits_and_nothing_went_wrong(store: LocalStore, board: Board) -> None:
    """The step around a gate that nobody decided is shown as waiting; when it went on, as what became of it."""
    import nbflow

    @nbflow.durable(version="1")
    def review() -> str:
        return nbflow.gate("ok", "Is it ok?").by

    def run() -> str:
        with nbflow.run("reviewed", store=store) as current:
            review()
            return current.id

    with pytest.raises(errors.GatePending) as pending:
        run()
    page = asked(board, "run", run=pending.value.run)
    assert [(row["kind"], row["state"], row["error"]) for row in page["steps"]] == [
        ("call", "waiting", None),
        ("gate", "waiting", None),
    ]
    step = asked(board, "step", run=pending.value.run, execution=page["steps"][0]["execution"])
    assert (step["error"], step["attempts"][-1]["state"]) == (None, "waiting")
    assert "stopped at a gate" in step["log"][-1]
    nbflow.approve(pending.value.run, "ok", by="ana", store=store)
    assert run() == pending.value.run
    page = asked(board, "run", run=pending.value.run)
    assert [row["state"] for row in page["steps"] if row["current"]] == ["completed", "completed"]


def test_what_a_crash_broke_off_is_stopped_and_ends_with_its_attempt(store: LocalStore, board: Board) -> None:
    """A killed step is no running one and nobody cancelled it: its bar ends with its attempt; a question goes on."""
    log = attached(store, "w")
    do_step(log, "a")
    asks = log.append(StepStarted("ask", "ask", "gate", b"g"))
    works = log.append(StepStarted("b", "b", "cell", b"t"))
    log.release()
    store.attach(log.run, me())
    page = asked(board, "run", run=log.run)
    first, second = page["attempts"]
    rows = {row["execution"]: row for row in page["steps"]}
    assert [rows[each]["state"] for each in (asks, works)] == ["stopped", "stopped"]
    assert rows[works]["finished"] == first["finished"]
    assert rows[asks]["finished"] == second["started"]
    tries = asked(board, "step", run=log.run, execution=works)["attempts"]
    assert [(one["state"], one["finished"]) for one in tries] == [("stopped", first["finished"])]


def test_a_step_that_stopped_at_a_gate_once_keeps_no_error(store: LocalStore, board: Board) -> None:
    """Asked at a gate and run again since, a step's old line says that it stopped, and not how to decide."""
    log = attached(store, "w")
    waited = log.append(StepStarted("b", "b", "cell", b"t"))
    error = ErrorInfo("nbflow.core.errors.GatePending", "Gate 'ok' waits for a decision.")
    log.append(StepEnded(waited, "b", "cancelled", seconds=0.1, error=error))
    [before] = asked(board, "run", run=log.run)["steps"]
    do_step(log, "b")
    after = asked(board, "run", run=log.run)["steps"][0]
    assert [(row["state"], row["error"]) for row in (before, after)] == [("waiting", None), ("stopped", None)]
