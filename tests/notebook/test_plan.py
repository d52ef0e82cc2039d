"""What a plan predicts for the cells of a notebook, and how it reads."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nbflow.core.history import History
from nbflow.core.model import (
    Checkpoint,
    Entry,
    ErrorInfo,
    OutputInfo,
    Owner,
    RunAttached,
    RunOpened,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepStarted,
)
from nbflow.notebook.analysis import analyse, code_digest, helper_digests
from nbflow.notebook.cells import planned_cells, read_notebook
from nbflow.notebook.detail import CODE, DELETES, HELPERS, READS, WRITES
from nbflow.notebook.identity import CellNames
from nbflow.notebook.plan import Plan, make_plan, plan_of_history
from nbflow.notebook.tracking import Tracker
from nbflow.values.fingerprint import fingerprint

FLIGHTS = [
    "THRESHOLD = 60",
    "def clean(frame):\n    return [x for x in frame if x < THRESHOLD]",
    "%%durable flights\nflights = list(range(100))",
    "%%durable cleaned\ncleaned = clean(flights)",
    "%%durable total\ntotal = sum(cleaned)",
]


class Recorder:
    """Executes a notebook's cells as a kernel would and writes down what the runner would record."""

    def __init__(self) -> None:
        self.records: list[Any] = [RunOpened("r", "w")]
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.names = CellNames()

    @property
    def history(self) -> History:
        return History.of(
            Entry(number, 1000.0 + number, record) for number, record in enumerate(self.records, 1)
        )

    def start(self, name: str, source: str, version: str = "") -> Any:
        found = analyse(source, self.namespace)
        inputs = Tracker(self.namespace).before(found)
        code = code_digest(source)
        helpers = {one: digest.hex() for one, digest in helper_digests(found, self.namespace).items()}
        detail = {CODE: code.hex(), READS: inputs.detail(), HELPERS: helpers}
        signature = inputs.signature(code, version=version)
        self.records.append(StepStarted(name, name, "cell", signature, version=version, detail=detail))
        return inputs

    def complete(self, inputs: Any, seconds: float = 41.0) -> None:
        started_at = len(self.records)
        started = self.records[-1]
        outputs = Tracker(self.namespace).after(inputs)
        infos = tuple(
            OutputInfo(name, "x", fingerprint(self.namespace[name]).digest, 1) for name in outputs.names
        )
        detail = {WRITES: list(outputs.names), DELETES: list(outputs.deleted)}
        self.records.append(
            StepCompleted(
                started_at,
                started.step,
                seconds=seconds,
                checkpoint=Checkpoint("json", outputs=infos),
                detail=detail,
            )
        )

    def run(self, cells: list[str]) -> Recorder:
        for number, cell in enumerate(planned_cells(book(cells))):
            if not cell.durable:
                self.define(cell.source, number)
                continue
            found = analyse(cell.source, self.namespace)
            name = self.names.of(found, name=cell.name)
            inputs = self.start(name, cell.source, cell.version)
            exec(cell.source, self.namespace)
            self.complete(inputs)
        return self

    def define(self, source: str, number: int) -> None:
        import linecache

        file = f"<cell {id(self)} {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), self.namespace)


def book(cells: list[str]) -> dict[str, Any]:
    return {"nbformat": 4, "cells": [{"cell_type": "code", "source": cell} for cell in cells]}


def plan_of(cells: list[str], history: History, **more: Any) -> Plan:
    return make_plan(planned_cells(book(cells)), history, now=1500.0, **more)


def told(plan: Plan) -> dict[str, tuple[str, str]]:
    return {step.name: (step.action, step.reason) for step in plan.steps}


@pytest.fixture
def recorded() -> Recorder:
    return Recorder().run(FLIGHTS)


def test_an_unchanged_notebook_is_restored(recorded: Recorder) -> None:
    """Every recorded cell comes back, with the time of the recording and what it took."""
    plan = plan_of(FLIGHTS, recorded.history)
    assert plan.summary == "3 to restore, 0 to run"
    assert plan.saved == 123
    for action, reason in told(plan).values():
        assert action == "restore"
        assert reason.startswith("recorded ")
        assert reason.endswith("took 41 s")


def test_a_fresh_notebook_runs() -> None:
    """Nothing recorded, nothing restored; definitions are no steps."""
    plan = plan_of(FLIGHTS, Recorder().history)
    assert plan.summary == "0 to restore, 3 to run"
    assert {reason for _, reason in told(plan).values()} == {"not recorded yet"}


def edited(number: int, text: str) -> list[str]:
    return [text if at == number else cell for at, cell in enumerate(FLIGHTS)]


def test_an_edited_cell_reruns_what_depends_on_it(recorded: Recorder) -> None:
    """Code that changed runs, and so does whoever reads what it makes."""
    plan = told(plan_of(edited(3, "%%durable cleaned\ncleaned = clean(flights)[1:]"), recorded.history))
    assert plan["flights"][0] == "restore"
    assert plan["cleaned"] == ("run", "code changed")
    assert plan["total"] == ("run", "reads cleaned, which will run")


def test_a_comment_is_no_edit(recorded: Recorder) -> None:
    """Layout and comments do not count."""
    plan = plan_of(edited(4, "%%durable total\n# the sum\ntotal = (sum(cleaned))"), recorded.history)
    assert plan.to_run == 0


def test_an_edited_helper_is_named(recorded: Recorder) -> None:
    """A helper function defined in an earlier cell of the file counts as code."""
    cells = edited(1, "def clean(frame):\n    return [x for x in frame if x <= THRESHOLD]")
    plan = told(plan_of(cells, recorded.history))
    assert plan["flights"][0] == "restore"
    assert plan["cleaned"] == ("run", "helper clean() changed")
    assert plan["total"] == ("run", "reads cleaned, which will run")


def test_an_edited_constant_is_named(recorded: Recorder) -> None:
    """A literal that a cell reads, even through a helper, is compared with what was recorded."""
    plan = told(plan_of(edited(0, "THRESHOLD = 61"), recorded.history))
    assert plan["flights"][0] == "restore"
    assert plan["cleaned"] == ("run", "reads THRESHOLD, which changed")


def test_a_simple_value_in_the_kernel_is_compared() -> None:
    """A parameter that papermill or a plain cell computed counts as it is now."""
    cells = ["year = int('2013')", "%%durable a\na = [year]"]
    recorder = Recorder().run(cells)
    assert plan_of(cells, recorder.history, namespace={"year": 2013}).to_run == 0
    assert told(plan_of(cells, recorder.history, namespace={"year": 2014}))["a"] == (
        "run",
        "reads year, which changed",
    )


def test_a_renamed_cell_says_so(recorded: Recorder) -> None:
    """The same code under another name is told apart from a new cell."""
    cells = edited(2, "%%durable departures\nflights = list(range(100))")
    plan = told(plan_of(cells, recorded.history))
    assert plan["departures"][0] == "run"
    assert "flights (renamed)" in plan["departures"][1]
    assert plan["flights"][0] == "gone"


def test_a_deleted_cell_is_listed(recorded: Recorder) -> None:
    """A recorded step that no cell matches is named, and is neither restored nor run."""
    plan = plan_of(FLIGHTS[:4], recorded.history)
    assert told(plan)["total"][0] == "gone"
    assert told(plan)["total"][1].startswith("not in the notebook any more")
    assert plan.summary == "2 to restore, 0 to run"


def test_reordering_loses_nothing(recorded: Recorder) -> None:
    """Independent cells may change places."""
    cells = [FLIGHTS[1], FLIGHTS[0], *FLIGHTS[2:]]
    assert plan_of(cells, recorded.history).summary == "3 to restore, 0 to run"


def test_a_reader_before_its_writer_is_not_promised(recorded: Recorder) -> None:
    """The value at the place of the cell counts, not the one that a later cell makes."""
    moved = ["%%durable flights2\nflights = [1]", *FLIGHTS]
    recorder = Recorder().run(moved)
    cells = [*FLIGHTS[:2], FLIGHTS[2], moved[0], *FLIGHTS[3:]]
    plan = told(plan_of(cells, recorder.history))
    assert plan["cleaned"] == ("run", "reads flights, which changed")


def test_trouble_is_told_in_plain_words(recorded: Recorder) -> None:
    """Forgotten, failed, interrupted and killed executions say so."""
    recorder = Recorder()
    for name in ("killed", "failed", "stopped"):
        recorder.start(name, f"{name} = f()")
        number = len(recorder.records)
        if name == "failed":
            error = ErrorInfo("builtins.ValueError", "bad day\nand more")
            recorder.records.append(StepEnded(number, name, "failed", error=error))
        elif name == "stopped":
            recorder.records.append(StepEnded(number, name, "cancelled"))
    cells = [f"%%durable {name}\n{name} = f()" for name in ("killed", "failed", "stopped")]
    plan = told(plan_of(cells, recorder.history))
    assert plan["killed"] == ("run", "was running when the kernel died")
    assert plan["failed"] == ("run", "failed last time: ValueError: bad day")
    assert plan["stopped"] == ("run", "was interrupted")
    assert told(plan_of(cells, recorder.history, alive=True))["killed"] == ("run", "running now")
    recorder.records.append(RunAttached(generation=2, attempt=2, owner=Owner("here", 1, 0.0)))
    assert told(plan_of(cells, recorder.history))["killed"] == ("run", "was running when the kernel died")

    recorded.records.append(StepForgotten("cleaned"))
    plan = told(plan_of(FLIGHTS, recorded.history))
    assert plan["cleaned"] == ("run", "forgotten")
    assert plan["total"] == ("run", "reads cleaned, which will run")


def test_an_older_version_that_matches_again_is_restored(recorded: Recorder) -> None:
    """After an edit is taken back, the old recording counts again."""
    recorded.run(edited(4, "%%durable total\ntotal = sum(cleaned) * 2"))
    plan = plan_of(FLIGHTS, recorded.history)
    assert plan.to_run == 0


def test_versions_and_options() -> None:
    """A declared version stands for the code; --once and --refresh do what they say."""
    recorder = Recorder().run(["%%durable a --version 1\na = [1] * 2"])
    assert plan_of(["%%durable a --version 1\na = [2] * 3"], recorder.history).restored == 1
    assert told(plan_of(["%%durable a --version 2\na = [1] * 2"], recorder.history))["a"] == (
        "run",
        "version changed",
    )
    assert plan_of(["%%durable a --once\na = [3] * 2"], recorder.history).restored == 1
    assert told(plan_of(["%%durable a --version 1 --refresh\na = [1] * 2"], recorder.history))["a"] == (
        "run",
        "--refresh",
    )


def test_a_changed_mutating_cell_spoils_what_it_changes() -> None:
    """A cell that changes a variable in place and will run makes later readers run."""
    cells = ["%%durable a\na = list((1,))", "%%durable more\na.append(2)", "%%durable b\nb = sum(a)"]
    recorder = Recorder().run(cells)
    assert plan_of(cells, recorder.history).summary == "3 to restore, 0 to run"
    plan = told(plan_of([cells[0], "%%durable more\na.append(3)", cells[2]], recorder.history))
    assert plan["more"] == ("run", "code changed")
    assert plan["b"] == ("run", "reads a, and more will run")


def test_plain_cells_pass_trouble_on() -> None:
    """What a plain cell computes from a variable that will be made anew is new as well."""
    cells = ["%%durable a\na = list((1,))", "b = a + a", "%%durable c\nc = sum(b)"]
    recorder = Recorder().run(cells)
    assert plan_of(cells, recorder.history).to_run == 0
    plan = told(plan_of(["%%durable a\na = list((2,))", *cells[1:]], recorder.history))
    assert plan["c"] == ("run", "reads b, and a will run")


def test_auto_makes_later_cells_durable() -> None:
    """After `%nbflow auto` every cell that is no definition is one line of the plan."""
    cells = [
        "x = f()",
        "%load_ext nbflow\n%nbflow auto on",
        "import os",
        "y = g()",
        "%nbflow auto off",
        "z = h()",
    ]
    assert list(told(plan_of(cells, Recorder().history))) == ["y"]
    assert list(told(make_plan(planned_cells(book(cells[:1]), auto=True), Recorder().history))) == ["x"]


def test_cells_with_errors_are_lines_too() -> None:
    """Bad code and a bad option are told; the rest of the plan stands."""
    cells = ["%%durable a\na = = 1", "%%durable b --nonsense\nb = f()", "%%durable c\nc = f()"]
    plan = plan_of(cells, Recorder().history)
    assert [step.action for step in plan.steps] == ["run"] * 3
    assert "error" in plan.steps[0].reason
    assert "nonsense" in plan.steps[1].reason


def test_what_cannot_be_stored_runs_again() -> None:
    """A cell recorded without a variable has to make it again."""
    recorder = Recorder().run(["%%durable a\na = list((1,))"])
    done = recorder.records[-1]
    recorder.records[-1] = StepCompleted(
        done.execution, done.step, checkpoint=done.checkpoint, detail={**done.detail, "unstored": ["con"]}
    )
    plan = told(plan_of(["%%durable a\na = list((1,))"], recorder.history))
    assert plan["a"] == ("run", "con cannot be stored")


def test_without_a_file_the_plan_tells_what_is_recorded(recorded: Recorder) -> None:
    """Where nobody knows the notebook's file, history alone is summed up, and no cell is promised."""
    recorded.start("open", "x = f()")
    plan = plan_of_history(recorded.history, now=1500.0)
    assert not plan.from_file
    assert plan.summary == "3 recorded, 1 not"
    assert told(plan)["open"] == ("run", "was running when the kernel died")


@pytest.mark.parametrize(
    "notebook",
    [
        {}, {"cells": None}, {"cells": "x"}, {"cells": [None, 3, {}, {"cell_type": "code"}]},
        {"cells": [{"cell_type": "code", "source": 5}]}, {"worksheets": [None]}, {"cells": [{"cell_type": "markdown"}]},
    ],
)  # fmt: skip
def test_malformed_notebooks_have_no_cells(notebook: dict[str, Any]) -> None:
    """What cannot be read is left out, and nothing raises."""
    assert planned_cells(notebook) == []


def test_notebooks_of_format_3_and_lists_of_lines_are_read() -> None:
    """Old files and both ways of writing a source are understood."""
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["%%durable a\n", "a = f()"]}]}]}
    assert [(cell.name, cell.source) for cell in planned_cells(old)] == [("a", "a = f()")]


def test_a_file_is_read_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    """A notebook file is read as it is; something else is a ValueError."""
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(book(FLIGHTS)), encoding="utf-8")
    assert [cell.name for cell in read_notebook(path) if cell.durable] == ["flights", "cleaned", "total"]
    for text in ("[]", "not json", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"."):
            read_notebook(path)


# -- views -------------------------------------------------------------------


class Well(HTMLParser):
    """Checks that tags nest, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_escaped_and_well_formed() -> None:
    """Names and messages are text, never markup."""
    recorder = Recorder()
    recorder.start("x", "x = f()")
    recorder.records.append(
        StepEnded(2, "x", "failed", error=ErrorInfo("E", "<script>alert('a & b')</script>"))
    )
    plan = plan_of(["%%durable x\nx = f()"], recorder.history)
    page = Well()
    page.feed(plan.html())
    page.close()
    assert page.open == []
    assert "<script>alert('a & b')</script>" in page.text
    assert "<script" not in plan.html()


def test_state_is_told_by_word_and_icon_not_by_colour_alone(recorded: Recorder) -> None:
    """The text has the words, and icons are hidden from screen readers."""
    plan = plan_of(edited(4, "%%durable total\ntotal = 1 + sum(cleaned)"), recorded.history)
    text = plan.text()
    assert text.splitlines()[0] == "nbflow: 2 to restore, 1 to run (82 s of work kept)"
    assert "✓ restore  flights" in text
    assert "▶ run      total" in text
    page = plan.html()
    assert 'aria-hidden="true"' in page
    assert 'scope="row"' in page
    assert "var(--jp-" in page
    assert "restore</td>" in page


def test_an_empty_plan_is_one_line() -> None:
    """A notebook without durable cells has a summary and no table."""
    plan = plan_of(["import os"], Recorder().history)
    assert plan.text() == "nbflow: 0 to restore, 0 to run"
    assert "<table" not in plan.html()
