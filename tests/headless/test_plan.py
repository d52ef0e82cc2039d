"""The plan of a batch: where each notebook is written, what is refused before anything runs, and how far a batch is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nbflow.core.errors import UnknownRun, UsageError
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import ErrorInfo, RunOpened
from nbflow.core.states import RunState
from nbflow.headless.batches import plan as plan_module
from nbflow.headless.batches.jobs import Options, Plan
from nbflow.headless.batches.plan import Standing, make_plan, standing, unknown_parameters
from nbflow.headless.parameters.sources import Row, grid_rows, rows_of
from nbflow.runtime.session import Session, StepResult, StepSpec
from nbflow.store.local import LocalStore
from tests.headless.kit import code, notebook

#: A fixed one: the names of parametrised tests hold it, and must be the same in every worker.
BATCH = "01a1ffa0-3a31-769c-bf01-2ced96259826"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return notebook(tmp_path / "in.ipynb", code("year = 2013\ncity = ''", "parameters"), "year")


def outputs(plan: Plan) -> list[str]:
    return [item.output for item in plan.items]


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make_plan(*arguments, **{"batch": BATCH, **options})
    return str(caught.value)


def executed(path: Path, run: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {"nbflow": {"run": run}}, "cells": []}))


def test_a_plan_says_of_each_notebook_which_run_it_is_and_where_it_is_written(
    source: Path, tmp_path: Path
) -> None:
    """Runs follow from the batch's id, outputs are absolute, and the record of a plan reads back as the plan."""
    rows = grid_rows(["year=2013,2014"])
    options = Options(collect=("auc",))
    plan = make_plan("in.ipynb", rows, batch=BATCH, options=options)
    assert plan.notebook == str(source)
    assert [item.params for item in plan.items] == [{"year": 2013}, {"year": 2014}]
    assert [item.origin for item in plan.items] == ["year=2013", "year=2014"]
    assert [item.run for item in plan.items] == [child_run_id(BATCH, f"item#{n}") for n in range(2)]
    assert outputs(plan) == [str(tmp_path / f"runs/{item.run}.ipynb") for item in plan.items]
    assert Plan.read(json.loads(json.dumps(plan.recorded()))) == plan
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{index:04d}.ipynb", {}, "0000.ipynb"),
        ("{batch_id}/{run_id}.ipynb", {}, f"{BATCH}/{child_run_id(BATCH, 'item#0')}.ipynb"),
        ("{rate:.2f}-{n:>3}.ipynb", {"rate": 0.125, "n": 7}, "0.12-  7.ipynb"),
        ("{rate}.ipynb", {"rate": 1e-05}, "1e-05.ipynb"),
        ("{city}.ipynb", {"city": "a/b\\c:d{e}*?\n"}, "a_b_c_d_e____.ipynb"),
        ("{city}/x.ipynb", {"city": ".."}, "__/x.ipynb"),
        ("{city}/x.ipynb", {"city": ""}, "_/x.ipynb"),
        ("{city!r}.ipynb", {"city": "x"}, "'x'.ipynb"),
        ("{flag}-{none}-{many}.ipynb", {"flag": True, "none": None, "many": [1]}, "True-None-[1].ipynb"),
        ("é/{{x}}.ipynb", {}, "é/{x}.ipynb"),
    ],
)
def test_the_name_of_an_output_is_made_of_its_parameters(
    source: Path, tmp_path: Path, template: str, row: dict[str, Any], expected: str
) -> None:
    """Values keep their format specs and lose what no file name should have."""
    plan = make_plan(source, [Row(row, "row 1")], batch=BATCH, output=template)
    assert outputs(plan) == [str(tmp_path / expected)]


def test_a_remote_output_is_left_as_it_is(source: Path) -> None:
    """A URL stays one, and nothing is created for it here."""
    plan = make_plan(source, grid_rows(["year=2013"]), batch=BATCH, output="s3://bucket/{year}//x.ipynb")
    assert outputs(plan) == ["s3://bucket/2013//x.ipynb"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=4, unique=True))
def test_no_value_leads_an_output_out_of_its_folder(source: Path, tmp_path: Path, cities: list[str]) -> None:
    """Whatever text a parameter has, the notebook is written into the folder that the template names."""
    try:
        plan = make_plan(source, rows_of({"city": cities}), batch=BATCH, output="out/{city}/{index}.ipynb")
    except UsageError as error:
        assume("longer than" not in str(error))
        raise
    assert [os.path.dirname(os.path.dirname(path)) for path in outputs(plan)] == [
        str(tmp_path / "out")
    ] * len(cities)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{yaer}.ipynb",
            "names {yaer}, which there is not. There are {run_id}, {batch_id}, {index}, {year}.",
        ),
        ("{}.ipynb", "names {}, which there is not"),
        ("{0}.ipynb", "names {0}, which there is not"),
        ("{year.real}.ipynb", "names {year.real}, which there is not"),
        ("{year:{index}}.ipynb", "which there is not"),
        ("{year.ipynb", "is no template"),
        ("{year:zz}.ipynb", "cannot be 2013 in the format 'zz'"),
        ("{year:999}.ipynb", "is longer than 255 bytes"),
        ("", "written to files"),
        ("-", "written to files"),
        ("x.ipynb", "year=2013 and year=2014 would both be written to"),
        ("in.ipynb", "the output is the notebook itself"),
        ("in.ipynb/{year}.ipynb", "in.ipynb is a file"),
        ("{year}/a\0b.ipynb", "no file can have"),
    ],
)
def test_a_bad_output_is_refused(source: Path, template: str, said: str) -> None:
    """A template that cannot work is an error that says why, naming the rows."""
    assert said in refusal(source, grid_rows(["year=2013,2014"]), output=template)


def test_an_output_that_a_row_has_no_value_for_is_refused(source: Path) -> None:
    """A parameter that is left out has the notebook's default, which a file's name cannot know."""
    rows = [Row({"year": 2013}, "p.csv, line 2"), Row({}, "p.csv, line 3")]
    assert "p.csv, line 3: it leaves year out" in refusal(source, rows, output="{year}.ipynb")


def test_a_parameter_that_is_called_like_a_field_is_refused_where_both_could_be_meant(source: Path) -> None:
    """`{index}` is one thing only."""
    rows = rows_of({"index": [1]})
    assert "{index}, which is a parameter too" in refusal(source, rows, output="{index}.ipynb")
    assert len(make_plan(source, rows, batch=BATCH).items) == 1


def test_values_that_become_one_name_are_refused_naming_both_rows(source: Path) -> None:
    """What made two texts different may be gone from the file's name: nothing is overwritten then."""
    said = refusal(source, rows_of([{"city": "a/b"}, {"city": "a:b"}]), output="{city}.ipynb")
    assert "parameters, row 1 and parameters, row 2 would both be written to" in said


def test_names_that_differ_in_case_alone_are_one_file_on_some_systems(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a system takes two names for one, one notebook would overwrite the other."""
    rows = rows_of({"city": ["jfk", "JFK"]})
    monkeypatch.setattr(plan_module, "ONE_CASE", False)
    assert len(make_plan(source, rows, batch=BATCH, output="{city}.ipynb").items) == 2
    monkeypatch.setattr(plan_module, "ONE_CASE", True)
    assert "city=jfk and city=JFK would both be written to" in refusal(source, rows, output="{city}.ipynb")


def test_an_existing_file_is_replaced_only_if_it_is_of_this_batch_or_told_so(
    source: Path, tmp_path: Path
) -> None:
    """Somebody else's notebook stays; the batch's own earlier output does not stand in its way."""
    rows = grid_rows(["year=2013,2014"])
    executed(tmp_path / "2013.ipynb", child_run_id(BATCH, "item#0"))
    assert len(make_plan(source, rows, batch=BATCH, output="{year}.ipynb").items) == 2
    executed(tmp_path / "2014.ipynb", new_run_id())
    said = refusal(source, rows, output="{year}.ipynb")
    assert f"year=2014: the output {tmp_path / '2014.ipynb'} is there already" in said
    assert "2013.ipynb" not in said
    (tmp_path / "2014.ipynb").write_bytes(b"\xff not a notebook")
    assert "2014.ipynb is there already" in refusal(source, rows, output="{year}.ipynb")
    assert len(make_plan(source, rows, batch=BATCH, output="{year}.ipynb", overwrite=True).items) == 2


def test_nothing_overwrites_a_folder_or_the_notebook_itself_even_when_told_so(
    source: Path, tmp_path: Path
) -> None:
    """`overwrite` means notebooks that were executed, not what is to be executed."""
    rows = grid_rows(["year=2013"])
    (tmp_path / "2013").mkdir()
    assert "2013 is a folder" in refusal(source, rows, output="{year}", overwrite=True)
    (tmp_path / "2013.ipynb").symlink_to(source)
    assert "is the notebook itself" in refusal(source, rows, output="{year}.ipynb", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(source: Path, tmp_path: Path) -> None:
    """An output that the system will refuse is refused before anything runs."""
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "is not yours to write" in refusal(source, grid_rows(["year=1"]), output="locked/x.ipynb")


def test_duplicate_rows_are_refused_naming_both_or_skipped(source: Path) -> None:
    """Equal parameters in any order are the same notebook; 1, 1.0 and True are not."""
    rows = [
        Row({"year": 1, "city": "x"}, "p.csv, line 2"),
        Row({"year": 1.0, "city": "x"}, "p.csv, line 3"),
        Row({"year": True, "city": "x"}, "p.csv, line 4"),
        Row({"city": "x", "year": 1}, "p.csv, line 5"),
    ]
    said = refusal(source, rows)
    assert "Rows 1 and 4 have the same parameters (p.csv, line 2; p.csv, line 5)." in said
    assert "skip" in said
    assert "Rows 1 and 2" not in said
    plan = make_plan(source, rows, batch=BATCH, skip_duplicates=True)
    assert [item.origin for item in plan.items] == ["p.csv, line 2", "p.csv, line 3", "p.csv, line 4"]
    assert [item.index for item in plan.items] == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no notebook"),
        ("folder", "is a folder, not a notebook"),
        ("", "cannot be read as a notebook"),
        ("[]", "cannot be read as a notebook"),
        ("{}", "cannot be read as a notebook"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "cannot be read as a notebook"),
        (
            '{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
            "cannot be read as a notebook",
        ),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}', "names no kernel"),
    ],
)
def test_a_missing_or_broken_notebook_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    """What is wrong with the notebook is said before anything runs."""
    assert "There is no notebook" in refusal("x" * 5000 + ".ipynb", grid_rows(["year=1"]))
    path = tmp_path / "broken.ipynb"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    assert said in refusal(path, grid_rows(["year=1"]))


def test_an_unknown_kernel_is_refused_with_those_that_there_are(tmp_path: Path, source: Path) -> None:
    """The notebook's kernel counts, or the one that was asked for; the error lists the installed ones."""
    rows = grid_rows(["year=1"])
    path = notebook(tmp_path / "r.ipynb", "1", kernel="ir-4")
    said = refusal(path, rows)
    assert f"The kernel 'ir-4', which {path} asks for, is not installed. Installed: " in said
    assert "python3" in said
    assert len(make_plan(path, rows, batch=BATCH, options=Options(kernel="python3")).items) == 1
    assert "The kernel 'nope' is not installed" in refusal(source, rows, options=Options(kernel="nope"))


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """One error lists the notebook, the folder, the duplicates and the outputs; long lists are cut and counted."""
    rows = rows_of({"year": range(20)}) + rows_of({"year": range(20)})
    said = refusal(tmp_path / "no.ipynb", rows, output="x.ipynb", options=Options(cwd=str(tmp_path / "no")))
    for part in (
        "There is no notebook",
        "is not a folder",
        "Rows 1 and 21",
        "15 more of this kind",
        "would both be",
    ):
        assert part in said
    assert "Rows 9 and 29" not in said


def test_a_batch_of_nothing_is_refused(source: Path) -> None:
    """No rows are no batch."""
    assert "There are no parameters" in refusal(source, [])


def test_parameters_that_the_notebook_does_not_know_are_named(source: Path, tmp_path: Path) -> None:
    """What papermill warns of for each notebook is said once for all."""
    rows = rows_of([{"year": 1}, {"yaer": 2}])
    assert unknown_parameters(source, rows) == ["The notebook's parameters cell does not know yaer."]
    assert unknown_parameters(source, rows[:1]) == []
    untagged = notebook(tmp_path / "untagged.ipynb", "1")
    assert "tagged `parameters`" in unknown_parameters(untagged, rows)[0]
    assert unknown_parameters(untagged, [Row({}, "")]) == []
    foreign = notebook(tmp_path / "foreign.ipynb", code("x = 1", "parameters"), kernel="cobol")
    document = json.loads(foreign.read_text())
    document["metadata"]["kernelspec"]["language"] = "cobol"
    foreign.write_text(json.dumps(document))
    assert unknown_parameters(foreign, rows) == []


# --- how far a batch is -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / ".nbflow", background=False)


def open_batch(store: LocalStore, plan: Plan, run: str) -> Session:
    opened = {"run": run, "variant": "batch", "launch": plan.recorded()}
    return Session.open(store, "in.ipynb", kind="batch", new=True, opened=opened)


def begin(store: LocalStore, batch: Session, plan: Plan, index: int, state: RunState | None) -> Session:
    """Begin the run of an item, and let it end if there is a state."""
    item = plan.items[index]
    store.create(
        RunOpened(
            run=item.run,
            workflow="in.ipynb",
            workflow_kind="notebook",
            parent=batch.run,
            parent_step=item.step,
        )
    )
    child = Session.open(store, "", run=item.run)
    if state is not None:
        child.finish(state, error=ErrorInfo("ValueError", "no") if state is RunState.FAILED else None)
    child.close()
    return child


def record(batch: Session, plan: Plan, index: int, *, error: BaseException | None = None) -> None:
    """Record what the batch knows of an item: completed, or ended by an error."""
    item = plan.items[index]

    def body(_: int) -> StepResult:
        if error is not None:
            raise error
        return StepResult({"return": None})

    spec = StepSpec(
        step=item.step, name=item.step, kind="child", signature=b"i" * 32, detail={"run": item.run}
    )
    try:
        batch.run_step(spec, body)
    except type(error) if error is not None else ():
        pass


@pytest.mark.parametrize("ingested", [False, True])
def test_standing_tells_new_begun_done_and_failed_apart(
    source: Path, store: LocalStore, ingested: bool
) -> None:
    """What the batch recorded counts, and of what it had no time to record the notebooks' own runs, wherever they are."""
    run = new_run_id()
    plan = make_plan(source, rows_of({"year": range(8)}), batch=run)
    assert standing(store, plan, None) == Standing(new=tuple(range(8)))
    batch = open_batch(store, plan, run)
    begin(store, batch, plan, 0, RunState.COMPLETED)
    record(batch, plan, 0)
    begin(store, batch, plan, 1, RunState.FAILED)
    record(batch, plan, 1, error=ValueError("no"))
    begin(store, batch, plan, 2, RunState.COMPLETED)  # its runner died before it could record this
    record(batch, plan, 2, error=KeyboardInterrupt())
    begin(store, batch, plan, 3, None)  # killed at work
    record(batch, plan, 3, error=KeyboardInterrupt())
    begin(store, batch, plan, 4, RunState.CANCELLED)
    record(batch, plan, 4, error=KeyboardInterrupt())
    record(batch, plan, 5, error=KeyboardInterrupt())  # no run was begun yet
    batch.close()
    if ingested:
        store.ingest()
    found = standing(store, plan, run)
    assert found == Standing(new=(5, 6, 7), to_resume=(3,), done=(0, 2), failed=(1,), cancelled=(4,))
    assert found.left == (1, 3, 5, 6, 7)
    assert str(found) == "3 new, 1 to resume, 2 done, 1 failed, 1 cancelled"


def test_standing_of_a_batch_that_is_not_there_is_an_error(source: Path, store: LocalStore) -> None:
    """An unknown id is not taken for a new batch."""
    plan = make_plan(source, rows_of({"year": [1]}), batch=BATCH)
    with pytest.raises(UnknownRun):
        standing(store, plan, BATCH)
