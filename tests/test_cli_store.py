"""The command line over a real store: SQL, exports, and what happens when the store is in a bad way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import nbflow as nb
from nbflow.cli.app import app


@nb.durable(version="1")
def table() -> pd.DataFrame:
    when = pd.to_datetime(["2013-01-01", "2013-06-30", None])
    return pd.DataFrame({"carrier": ["UA", "AA", "ÖZ"], "late": [1.5, np.nan, -3.0], "when": when})


@nb.durable(version="1")
def array() -> np.ndarray:
    return np.arange(6, dtype="int32").reshape(3, 2)


@nb.durable(version="1")
def plain() -> dict[str, Any]:
    return {"text": "grün", "numbers": [1, 2.5, None]}


@nb.durable(version="1")
def text() -> str:
    return "one line\nand another"


@nb.durable(version="1")
def drawing() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2, 3])
    return figure


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A finished run with one output of each sort."""
    with nb.run("sorts", tags={"team": "blue"}) as done:
        table(), array(), plain(), text(), drawing()
    return done.id


def nbflow(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input)


def as_json(*arguments: str) -> Any:
    result = nbflow(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_outputs_lists_every_recorded_variable(run: str) -> None:
    """Name, type, rows and columns are known without loading anything."""
    found = {output["step"].split(":")[0]: output for output in as_json("outputs", run)["outputs"]}
    frame = next(output for step, output in found.items() if step.endswith("table"))
    assert (frame["name"], frame["rows"]) == ("return", 3)
    assert [column["name"] for column in frame["columns"]] == ["carrier", "late", "when"]
    assert len(found) == 5
    listing = nbflow("outputs", run).stdout
    assert "return" in listing
    assert "3" in listing


def export(run: str, step: str, file: Path) -> Path:
    result = nbflow("outputs", run, step, "--export", str(file))
    assert result.exit_code == 0, result.output
    return file


def test_export_writes_tables_that_others_read(run: str, tmp_path: Path) -> None:
    """Parquet and Arrow keep types; CSV and JSON keep the values."""
    expected = table.__wrapped__()
    parquet = pd.read_parquet(export(run, "table", tmp_path / "t.parquet"))
    arrow = pd.read_feather(export(run, "table", tmp_path / "t.arrow"))
    csv = pd.read_csv(export(run, "table", tmp_path / "t.csv"), parse_dates=["when"])
    for read in (parquet, arrow, csv):
        assert list(read.carrier) == list(expected.carrier)
        assert np.array_equal(read.late, expected.late, equal_nan=True)
        assert list(read.when.dropna()) == list(expected.when.dropna())
    rows = json.loads(export(run, "table", tmp_path / "t.json").read_text())
    assert [row["carrier"] for row in rows] == ["UA", "AA", "ÖZ"]


def test_export_writes_arrays_text_json_pictures_and_pickles(run: str, tmp_path: Path) -> None:
    """Each ending does what its users expect."""
    import pickle

    assert np.array_equal(np.load(export(run, "array", tmp_path / "a.npy")), array.__wrapped__())
    assert export(run, "text", tmp_path / "t.txt").read_text() == "one line\nand another"
    assert json.loads(export(run, "plain", tmp_path / "p.json").read_text()) == plain.__wrapped__()
    assert export(run, "drawing", tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in export(run, "drawing", tmp_path / "d.svg").read_text()
    with export(run, "plain", tmp_path / "p.pkl").open("rb") as file:
        assert pickle.load(file) == plain.__wrapped__()


@pytest.mark.parametrize(
    ("step", "name", "says"),
    [
        ("plain", "p.parquet", "cannot be written as a table"),
        ("text", "t.png", "cannot be written as a picture"),
        ("plain", "p.npy", "cannot be written as .npy"),
        ("table", "t.docx", "Nothing is known about files that end with '.docx'"),
    ],
)
def test_export_that_makes_no_sense_says_what_would(
    run: str, tmp_path: Path, step: str, name: str, says: str
) -> None:
    """Exit code 2, the way out in the message, and no file left behind."""
    result = nbflow("outputs", run, step, "--export", str(tmp_path / name))
    assert result.exit_code == 2
    assert says in result.stderr
    assert list(tmp_path.glob(f"*{Path(name).suffix}")) == []


def test_export_of_several_outputs_asks_to_choose(run: str, tmp_path: Path) -> None:
    """One file takes one output; which ones there are is said."""
    result = nbflow("outputs", run, "--export", str(tmp_path / "x.json"))
    assert result.exit_code == 2
    assert "5 outputs match" in result.stderr


def test_export_overwrites_only_after_a_yes(run: str, tmp_path: Path) -> None:
    """A file that exists is somebody's."""
    file = tmp_path / "t.txt"
    file.write_text("mine")
    assert nbflow("outputs", run, "text", "--export", str(file), input="n\n").exit_code == 1
    assert file.read_text() == "mine"
    assert nbflow("outputs", run, "text", "--export", str(file), "--yes").exit_code == 0
    assert file.read_text() == "one line\nand another"


def test_unknown_outputs_exit_with_3(run: str) -> None:
    """Steps and variables that are not there are not found, whatever the store holds besides."""
    assert nbflow("outputs", run, "tabel").exit_code == 3
    assert nbflow("outputs", run, "--name", "nothing").exit_code == 3


def test_sql_sees_history_and_recorded_frames(run: str) -> None:
    """Views and frames in one query, as table, CSV and JSON."""
    assert as_json("sql", "select workflow, state from runs") == {
        "columns": ["workflow", "state"],
        "rows": [["sorts", "completed"]],
    }
    query = 'select carrier, late from "table"."return" order by carrier'
    assert as_json("sql", query)["rows"] == [["AA", None], ["UA", 1.5], ["ÖZ", -3.0]]
    assert nbflow("sql", query, "--run", run[:13], "--csv").stdout == "carrier,late\nAA,\nUA,1.5\nÖZ,-3.0\n"
    assert "ÖZ" in nbflow("sql", query).stdout
    assert nbflow("sql", "-", input="select 6 * 7 as answer").stdout.split() == ["answer", "42"]


def test_sql_shows_a_screenful_and_says_how_much_more_there_is(run: str) -> None:
    """A terminal gets fifty rows; CSV gets all."""
    query = "select * from range(1234) r(number)"
    assert "1,184 more rows" in nbflow("sql", query).stdout
    assert len(nbflow("sql", query, "--csv").stdout.splitlines()) == 1235


def test_duplicate_and_odd_columns_are_shown_as_they_come(run: str) -> None:
    """Nothing is lost by two columns of one name, nested values or empty results."""
    assert as_json("sql", "select 1 as a, 2 as a")["rows"] == [[1, 2]]
    assert nbflow("sql", "select [1, 2] as list, null as nothing, {'x': 1} as struct").exit_code == 0
    assert as_json("sql", "select run from runs where false") == {"columns": ["run"], "rows": []}


@pytest.mark.parametrize("query", ["selct 1", "select nothing from runs", "select * from no_such"])
def test_sql_that_makes_no_sense_is_duckdbs_own_word_and_exit_2_or_3(run: str, query: str) -> None:
    """DuckDB says it best; no traceback, and never "unexpected"."""
    result = nbflow("sql", query)
    assert result.exit_code in (2, 3)
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "query", ["delete from nbflow.event", "drop view runs", "create table t as select 1", "attach 'x.db'"]
)
def test_sql_cannot_change_the_store(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Whatever a query tries, the history is what it was."""
    monkeypatch.chdir(tmp_path)  # DuckDB may write elsewhere: exports are welcome
    before = as_json("sql", "select count(*) from events")
    nbflow("sql", query)
    assert as_json("sql", "select count(*) from events") == before


@contextmanager
def another_process(code: str) -> Iterator[None]:
    """A process that does something, says so, and stays until it is let go."""
    script = f"import sys, duckdb\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.communicate()


@pytest.mark.soak
def test_a_database_that_another_process_holds_is_exit_4_with_its_pid(run: str, _own_store: Path) -> None:
    """The message names the process, and the store is unharmed."""
    with another_process(f"c = duckdb.connect({str(_own_store / 'store.duckdb')!r})"):
        result = nbflow("sql", "select 1")
        assert result.exit_code == 4
        assert "has" in result.stderr and "open" in result.stderr
    after = nbflow("sql", "select 1")
    assert after.exit_code == 0, after.output


def test_a_living_owner_is_exit_5(_own_store: Path) -> None:
    """A run that some process works on is neither deleted nor changed."""
    code = "import nbflow; context = nbflow.run('busy'); context.__enter__()"
    with another_process(code):
        (busy,) = as_json("runs", "--workflow", "busy")["runs"]
        assert busy["alive"] is True
        result = nbflow("forget", busy["run"], "--yes")
        assert result.exit_code == 5
        assert str(busy["owner"]["pid"]) in result.stderr
    assert len(as_json("runs", "--workflow", "busy")["runs"]) == 1


def test_a_damaged_run_is_exit_6_and_hides_no_other(run: str, _own_store: Path) -> None:
    """The listing shows both; looking into the damaged one names it."""
    with pytest.raises(RuntimeError), nb.run("hurt") as hurt:
        plain()
        raise RuntimeError("stop here")
    journal = _own_store / "runs" / hurt.id / "journal.1"
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"plain") + 1] ^= 0x20
    journal.write_bytes(raw)
    listed = {found["run"] for found in as_json("runs")["runs"]}
    assert listed == {run, hurt.id}
    result = nbflow("show", hurt.id)
    assert result.exit_code == 6
    assert hurt.id in result.stderr
    assert nbflow("show", run).exit_code == 0


def test_a_file_that_is_no_store_is_exit_8(tmp_path: Path) -> None:
    """Somebody else's file is left alone."""
    file = tmp_path / "notes.bin"
    file.write_bytes(b"not a store")
    assert nbflow("runs", "--store", str(file)).exit_code == 8
    assert file.read_bytes() == b"not a store"


def test_a_foreign_database_in_its_place_is_exit_8(tmp_path: Path) -> None:
    """A DuckDB file of something else is told from ours and left untouched."""
    import duckdb

    place = tmp_path / "other"
    place.mkdir()
    with duckdb.connect(str(place / "store.duckdb")) as database:
        database.execute("create table orders (id integer)")
    assert nbflow("runs", "--store", str(place)).exit_code == 8
    with duckdb.connect(str(place / "store.duckdb")) as database:
        assert database.execute("select count(*) from orders").fetchone() == (0,)


def test_forgotten_step_runs_again_on_resume(_own_store: Path) -> None:
    """What `nbflow forget RUN STEP` says comes true."""
    ran = []

    @nb.durable(version="1")
    def counted() -> int:
        ran.append(1)
        return len(ran)

    def attempt() -> None:
        with nb.run("again"):
            counted()
            raise RuntimeError("stop here")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            attempt()
    assert len(ran) == 1
    (found,) = as_json("runs")["runs"]
    assert as_json("forget", found["run"], "counted")["forgotten"] is True
    with pytest.raises(RuntimeError):
        attempt()
    assert len(ran) == 2


def test_show_of_a_real_failure_has_the_users_traceback(_own_store: Path) -> None:
    """The line of the user's own code that failed is there."""

    @nb.durable(version="1")
    def broken() -> None:
        raise ValueError("the third wheel is missing")

    with pytest.raises(ValueError, match="wheel"), nb.run("bad") as bad:
        broken()
    text = nbflow("show", bad.id).stdout
    assert 'raise ValueError("the third wheel is missing")' in text
    assert "ValueError: the third wheel is missing" in text


def test_a_reader_that_goes_away_is_no_error(run: str) -> None:
    """`nbflow sql … | head -1` prints no complaint."""
    program = f"{sys.executable} -c 'from nbflow.cli import main; main()'"
    line = f"{program} sql 'select * from range(200000)' --csv | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout == "range\n0\n"
    assert done.stderr == ""


def test_gc_and_doctor_work_on_a_real_store(run: str) -> None:
    """A finished run goes when asked to, and the store is healthy before and after."""
    assert as_json("doctor")["healthy"] is True
    assert [gone["run"] for gone in as_json("gc", "--keep", "0", "--dry-run")["deleted"]] == [run]
    assert as_json("gc", "--keep", "0", "--yes")["deleted"][0]["run"] == run
    assert as_json("runs")["runs"] == []
    assert as_json("doctor")["healthy"] is True
