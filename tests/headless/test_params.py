"""Parameters of a batch: what each format means, what Python objects mean, and what is said of bad ones."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import keyword
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.headless.parameters.files import READERS, resolve
from nbflow.headless.parameters.sources import grid_rows, read_rows, rows_from, rows_of

FILES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=30,
)

names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
whole = st.integers(-(2**63), 2**64 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
#: What YAML can hold unescaped or escaped: all of it, but PyYAML refuses to read some control characters.
yaml_texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=12)
floats = st.floats(allow_nan=False)


def nested(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | whole | floats | text
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=5)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(rows: list[Any]) -> list[dict[str, Any]]:
    return [row.values for row in rows]


def refusal(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_rows(path)
    return caught.value


# --- what was written comes back ----------------------------------------------------------------------------------


@FILES
@given(
    st.lists(names, min_size=1, max_size=4, unique=True).flatmap(
        lambda header: st.tuples(
            st.just(header),
            st.lists(
                st.lists(
                    st.none() | st.booleans() | whole | floats | texts,
                    min_size=len(header),
                    max_size=len(header),
                ),
                min_size=1,
                max_size=5,
            ),
        )
    ),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
)
def test_csv_written_by_python_means_what_papermill_understands(
    tmp_path: Path, table: tuple[list[str], list[list[Any]]], delimiter: str, mark: bool
) -> None:
    """Every cell is what `papermill -p` makes of its text, whatever it holds; an empty one leaves its parameter out."""
    header, rows = table
    if len(header) == 1 and delimiter != ",":
        return  # nothing in such a header tells the delimiter
    path = tmp_path / "params.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)
    expected = []
    for row in rows:
        cells = ["" if value is None else str(value) for value in row]
        expected.append({name: resolve(cell) for name, cell in zip(header, cells, strict=True) if cell})
    if any(
        isinstance(value, int) and not -(2**63) <= value < 2**64 for row in expected for value in row.values()
    ):
        assert "64 bits" in str(refusal(path))
        return
    assert list(map(repr, expected)) == list(map(repr, values(read_rows(path))))


def test_papermill_itself_reads_a_value_as_csv_does() -> None:
    """The types of CSV and of axes are those of papermill's `-p`, its odd ones included."""
    from papermill.cli import _resolve_type

    for text in (
        "True",
        "False",
        "None",
        "true",
        "1",
        "007",
        "1_000",
        " 5",
        "1e3",
        "nan",
        "-inf",
        "0x1f",
        "é",
        "1.0",
    ):
        assert repr(_resolve_type(text)) == repr(resolve(text))


@FILES
@given(tables(nested(texts)))
def test_json_lines_come_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """What JSON holds comes back equal and of the same types, row by row."""
    path = write(tmp_path, "params.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(map(repr, rows)) == list(map(repr, values(read_rows(path))))


@FILES
@given(tables(nested(texts)))
def test_a_json_list_comes_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """What JSON holds comes back equal and of the same types."""
    path = write(tmp_path, "params.json", json.dumps(rows, indent=1, ensure_ascii=False))
    assert list(map(repr, rows)) == list(map(repr, values(read_rows(path))))


@FILES
@given(tables(nested(yaml_texts)))
def test_yaml_comes_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """What is written with PyYAML comes back equal and of the same types."""
    path = write(tmp_path, "params.yaml", yaml.safe_dump(rows, sort_keys=False, allow_unicode=True))
    assert list(map(repr, rows)) == list(map(repr, values(read_rows(path))))


@FILES
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                "x": st.none() | floats,
                "t": st.none() | texts,
                "b": st.none() | st.booleans(),
                "l": st.none() | st.lists(st.integers(0, 9), max_size=3),
                "s": st.none() | st.fixed_dictionaries({"p": st.integers(0, 9), "q": texts}),
            }
        ),
        min_size=1,
        max_size=5,
    )
)
def test_parquet_comes_back_equal_without_what_is_missing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Numbers, texts, lists and structs of Parquet come back equal; null leaves its parameter out."""
    types = pa.schema(
        [
            ("n", pa.int64()),
            ("x", pa.float64()),
            ("t", pa.string()),
            ("b", pa.bool_()),
            ("l", pa.list_(pa.int64())),
            ("s", pa.struct([("p", pa.int64()), ("q", pa.string())])),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=types), tmp_path / "params.parquet")
    expected = [{name: value for name, value in row.items() if value is not None} for row in rows]
    found = values(read_rows(tmp_path / "params.parquet"))
    # As text: 1, 1.0 and True are told apart; Arrow puts fields into the schema's order.
    assert json.dumps(expected, sort_keys=True) == json.dumps(found, sort_keys=True)


def test_what_a_table_holds_beside_plain_values_becomes_plain(tmp_path: Path) -> None:
    """Timestamps and dates become ISO texts, decimals exact texts, categories their values; NaN is left out."""
    frame = pd.DataFrame(
        {
            "when": pd.to_datetime(["2013-01-02T03:04:05", None]),
            "zoned": pd.to_datetime(["2013-01-02T03:04:05Z", "2013-01-02"], format="ISO8601", utc=True),
            "day": [datetime.date(2013, 1, 2), None],
            "price": [decimal.Decimal("1.10"), decimal.Decimal("2.25")],
            "city": pd.Categorical(["JFK", "LGA"]),
            "rate": [math.nan, 0.5],
            "count": pd.array([1, None], dtype="Int64"),
        },
        index=[7, 9],  # an index that pandas writes as a column of its own
    )
    frame.to_parquet(tmp_path / "params.parquet")
    expected = [
        {
            "when": "2013-01-02T03:04:05",
            "zoned": "2013-01-02T03:04:05+00:00",
            "day": "2013-01-02",
            "price": "1.10",
            "city": "JFK",
            "count": 1,
        },
        {"zoned": "2013-01-02T00:00:00+00:00", "price": "2.25", "city": "LGA", "rate": 0.5},
    ]
    assert expected == values(read_rows(tmp_path / "params.parquet"))
    assert expected == values(rows_of(frame))
    assert [type(value) for value in expected[0].values()] == [
        type(v) for v in rows_of(frame)[0].values.values()
    ]


def test_dates_in_yaml_stay_texts_as_papermill_leaves_them(tmp_path: Path) -> None:
    """A date in a parameter file is the text that stands there."""
    path = write(tmp_path, "params.yml", "- day: 2013-01-31\n  at: 2013-01-31 10:00:00\n")
    assert values(read_rows(path)) == [{"day": "2013-01-31", "at": "2013-01-31 10:00:00"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [("grid.json", '{"a": [1, 2], "b": ["x", null]}'), ("grid.yaml", "a: [1, 2]\nb: [x, null]\n")],
)
def test_a_mapping_of_lists_in_a_file_is_a_grid(tmp_path: Path, name: str, content: str) -> None:
    """Axes in a file make every combination, the last axis changing fastest."""
    expected = [{"a": 1, "b": "x"}, {"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": 2, "b": None}]
    assert expected == values(read_rows(write(tmp_path, name, content)))


def test_a_row_says_where_it_stands(tmp_path: Path) -> None:
    """Lines are counted as an editor counts them: empty ones, and those within a quoted text, included."""
    path = write(tmp_path, "p.csv", '\nyear,name\n2013,"two\nlines"\n\n2014,x\n')
    assert [row.origin for row in read_rows(path)] == [f"{path}, line 3", f"{path}, line 6"]
    path = write(tmp_path, "p.yaml", "# years\n- year: 2013\n\n- year: 2014\n")
    assert [row.origin for row in read_rows(path)] == [f"{path}, line 2", f"{path}, line 4"]


# --- axes and combinations ----------------------------------------------------------------------------------------


def test_axes_multiply_in_the_order_given() -> None:
    """The first axis changes slowest; values have papermill's types, quotes protect commas."""
    rows = grid_rows(["a=1,2.5,True", 'b="x,y",z'])
    assert [(1, "x,y"), (1, "z"), (2.5, "x,y"), (2.5, "z"), (True, "x,y"), (True, "z")] == [
        (row.values["a"], row.values["b"]) for row in rows
    ]
    assert rows[0].origin == "a=1 b=x,y"


def test_files_and_axes_multiply(tmp_path: Path) -> None:
    """Each row of each file goes with each value of each axis."""
    first = write(tmp_path, "a.csv", "year\n2013\n2014\n")
    second = write(tmp_path, "b.json", '[{"city": "JFK"}, {}]')
    rows = rows_from([str(first), "seed=1,2", str(second)])
    assert len(rows) == 8
    assert rows[3].values == {"year": 2013, "seed": 2}
    assert rows[3].origin == f"{first}, line 2 seed=2 {second}, row 2"


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "There are no parameters"),
        (["year="], "has no values"),
        (["year=1,,2"], "value 2 is empty"),
        (["year=1", "year=2"], "year is given twice: by year=1 and by year=2"),
        (["2year=1"], "'2year' cannot be a variable"),
        (["class=1"], "'class' is a word of Python's own"),
        (["=1"], "has no name"),
        (['name="x'], "no CSV"),
        (["nothing.csv"], "There is no file nothing.csv"),
        (["nothing.txt"], "not read from .txt"),
        (["year"], "not read from files without a suffix"),
        (["x" * 5000 + ".csv"], "cannot be read"),
        (["x" * 5000 + "-=1"], "cannot be a variable"),
        (["a\0.csv"], "cannot be read"),
        ([f"{axis}={','.join('1' * 200)}" for axis in "abc"], "8,000,000 notebooks"),
        (["n=99999999999999999999"], "more than 64 bits"),
    ],
)
def test_bad_axes_are_refused_with_what_is_wrong(sources: list[str], said: str) -> None:
    """An axis without name or values, one given twice, and a file that is not there are errors that say so."""
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        rows_from(sources)


# --- bad files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("p.csv", "a,b\n1,2\n3\n", "line 3, column b", "1 cell, but the header names 2"),
        ("p.csv", "a,b\n1,2,3\n", "line 2, column 3", "3 cells"),
        ("p.csv", "a,a\n1,2\n", "line 1, column 2", "there twice"),
        ("p.csv", "a,,c\n1,2,3\n", "line 1, column 2", "no name"),
        ("p.csv", "a,b c\n1,2\n", "line 1, column 2", "'b c' cannot be a variable"),
        ("p.csv", "a, b\n1,2\n", "line 1, column 2", "has spaces round it"),
        ("p.csv", "a,for\n1,2\n", "line 1, column 2", "'for' is a word of Python's own"),
        ("p.csv", 'a,b\n1,2\n3,"x\n4,5\n', "line 3", "no CSV"),
        ("p.csv", 'a\n"x"y\n', "line 2", "no CSV"),
        ("p.csv", b"a,b\n1,2\n3,caf\xe9\n", "line 3", "0xe9 is not UTF-8"),
        ("p.csv", "a,b\n1,2\n".encode("utf-16"), "line 1", "UTF-16"),
        ("p.csv", "a\n123456789012345678901\n", "line 2, column a", "64 bits"),
        ("p.csv", "a,b\n", "", "holds no parameters"),
        ("p.csv", "", "", "holds no parameters"),
        ("p.jsonl", '{"a": 1}\n{"a": 2,}\n', "line 2", "no JSON"),
        ("p.jsonl", '{"a": 1}\n[1]\n', "line 2", "not a list"),
        ("p.jsonl", '{"a": 1, "a": 2}\n', "line 1, column a", "there twice"),
        ("p.jsonl", '{"a-b": 1}\n', "line 1, column 1", "cannot be a variable"),
        ("p.jsonl", '{"a": "\\ud800"}\n', "line 1, column a", "not Unicode"),
        ("p.jsonl", '{"a": 99999999999999999999}\n', "line 1, column a", "64 bits"),
        ("p.jsonl", '{"a": ' + "9" * 5000 + "}\n", "line 1", "no JSON"),
        ("p.json", '[{"a": 1},\n {"a": }]', "line 2, column 8", "no JSON"),
        ("p.json", '[{"a": 1}, 2]', "row 2", "not a int"),
        ("p.json", '{"a": 1}', "column a", "axis of a grid"),
        ("p.json", '{"a": []}', "column a", "axis of a grid"),
        ("p.json", '"a"', "", "neither a list of rows nor a grid"),
        ("p.json", "[]", "", "holds no parameters"),
        ("p.json", "[" * 100_000, "", "too deeply"),
        ("p.json", '[{"a": ' + "[" * 90 + "]" * 90 + "}]", "row 1, column a", "too deeply"),
        ("p.yaml", "- a: 1\n- b: [\n", "line 3", "no YAML"),
        ("p.yaml", "- a: 1\n- a: 1\n  a: 2\n", "line 3, column a", "there twice"),
        ("p.yaml", "- a: 1\n- on: 2\n", "line 2, column 1", "True is not the name"),
        ("p.yaml", "- a: 1\n- text\n", "line 2", "not a str"),
        ("p.yaml", "- a: 1\n- b: !!python/object:os.system x\n", "line 2", "no YAML"),
        ("p.yaml", "- a: !!int x\n", "", "no YAML"),
        ("p.yaml", "- a: !!binary aGk=\n", "line 1, column a", "of type bytes"),
        ("p.yaml", "- a: {1: x}\n", "line 1, column a", "the key 1, which is no text"),
        ("p.yaml", "- a: &a [*a]\n", "line 1, column a", "too deeply"),
        ("p.yaml", "- a: 1\n---\n- a: 2\n", "line 2", "no YAML"),
        ("p.yaml", "", "", "holds no parameters"),
        ("p.yaml", b"- a: \x00\n", "", "no YAML"),
        ("p.parquet", b"PAR1", "", "no Parquet"),
        ("p.xlsx", b"", "", "not read from .xlsx. Known are .csv, .tsv"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, place: str, said: str
) -> None:
    """The error names file, line or row and column, and what is wrong there."""
    path = write(tmp_path, name, content)
    error = refusal(path)
    assert str(error).startswith((f"{path}, {place}: ", f"{path}, {place}, column ") if place else f"{path}")
    assert said in str(error)
    assert error.facts["file"] == str(path)


def test_an_alias_that_means_more_than_any_memory_is_refused(tmp_path: Path) -> None:
    """A few lines of YAML that stand for billions of values are an error at once."""
    lines = ["- a0: &a0 [x]"] + [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = write(tmp_path, "p.yaml", "\n".join(lines))
    assert "holds too much" in str(refusal(path))


def test_bytes_and_bad_names_in_parquet_are_refused_with_row_and_column(tmp_path: Path) -> None:
    """What cannot be a parameter is named by its row and column."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"a": [None, b"x"]}), path)
    assert f"{path}, row 2, column a: the value b'x' is of type bytes" in str(refusal(path))
    pq.write_table(pa.table({"a b": [1]}), path)
    assert f"{path}, column 1: 'a b' cannot be a variable" in str(refusal(path))


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    """A folder in place of a file is an error that says what the system said."""
    (tmp_path / "p.csv").mkdir()
    assert "cannot be read" in str(refusal(tmp_path / "p.csv"))


@settings(FILES, max_examples=150)
@given(
    st.sampled_from(sorted(READERS)),
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
@example(".csv", b"a\n\x00\n")
@example(".yaml", b"- a: !!timestamp x")
@example(".yaml", b"- ? [1]\n  : 2")
@example(".yaml", b"- ? {a: 1}\n  : 2")
@example(".yaml", b"- a: !!float ''")
@example(".yaml", b"- !!set {a, b}")
@example(".yaml", b"- <<: 1")
@example(".yaml", b"- a: 0b")
@example(".yaml", b"- a: 1:60:99999")
@example(".json", b'{"a": [NaN, Infinity]}')
@example(".json", b"\xef\xbb\xbf[]")
@example(".jsonl", b"\xe2\x80\xa8")
@example(".parquet", b"PAR1PAR1")
def test_garbage_is_refused_and_nothing_else(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    """Whatever a file holds, it means rows or a `UsageError`: no library's own error comes through."""
    path = write(tmp_path, f"garbage{suffix}", garbage)
    try:
        rows = read_rows(path)
    except UsageError:
        return
    for row in rows:
        assert all(name.isidentifier() for name in row.values)


@FILES
@given(st.data())
def test_a_damaged_parquet_file_is_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    """A flipped byte anywhere in a Parquet file means other rows or a `UsageError`."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"a": [1, 2], "when": pa.array([1, 2], pa.timestamp("us", "UTC"))}), path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read_rows(path)
    except UsageError:
        pass


# --- Python objects -----------------------------------------------------------------------------------------------


def test_python_objects_stand_for_rows(tmp_path: Path) -> None:
    """A mapping of lists is a grid; a list of mappings is rows; paths and axes are read; tables are taken row by row."""
    path = write(tmp_path, "p.csv", "a\n1\n")
    assert values(rows_of({"a": (1, 2), "b": range(1)})) == [{"a": 1, "b": 0}, {"a": 2, "b": 0}]
    assert values(rows_of({"a": np.arange(2)})) == [{"a": 0}, {"a": 1}]
    assert values(rows_of([{"a": 1, "b": None}, {}])) == [{"a": 1, "b": None}, {}]
    assert values(rows_of({"a": n} for n in range(2))) == [{"a": 0}, {"a": 1}]
    assert values(rows_of(path)) == values(rows_of(str(path))) == values(rows_of("a=1")) == [{"a": 1}]
    assert values(rows_of([path, "b=2,3"])) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    assert values(rows_of(pa.table({"a": [1, None]}))) == [{"a": 1}, {}]
    assert values(rows_of(polars.DataFrame({"a": [1, None], "b": ["x", "y"]}))) == [
        {"a": 1, "b": "x"},
        {"b": "y"},
    ]
    assert rows_of(rows_of("a=1")) == rows_of("a=1")


def test_python_values_become_what_a_notebook_can_hold() -> None:
    """NumPy's and pandas' scalars become Python's, dates and paths their texts, tuples lists."""
    given_ = {
        "n": np.int64(3),
        "x": np.float32(0.5),
        "b": np.bool_(True),
        "at": np.datetime64("2013-01-02T03:04:05.123456789"),
        "stamp": pd.Timestamp("2013-01-02", tz="UTC"),
        "gone": pd.NaT,
        "many": np.arange(3),
        "pair": (1, Path("a/b")),
        "deep": {"x": [np.float64(1.5)]},
    }
    expected = {
        "n": 3,
        "x": 0.5,
        "b": True,
        "at": "2013-01-02T03:04:05.123456789",
        "stamp": "2013-01-02T00:00:00+00:00",
        "gone": None,
        "many": [0, 1, 2],
        "pair": [1, "a/b"],
        "deep": {"x": [1.5]},
    }
    [row] = rows_of([given_])
    assert repr(expected) == repr(row.values)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "not a NoneType"),
        ([], "There are no parameters"),
        ({}, "There are no parameters"),
        (pd.DataFrame({"a": []}), "There are no parameters"),
        ([1], "row 1: a row is a mapping"),
        ([{"a": 1}, {"a": {1, 2}}], "row 2, column a: the value {1, 2} is a set"),
        ([{1: 2}], "row 1, column 1: 1 is not the name of a parameter but a int"),
        ([{"a": object}], "row 1, column a"),
        ({"a": 1}, "column a: a mapping is a grid"),
        ({"a": "xyz"}, "column a: a mapping is a grid"),
        ({"a": []}, "column a: the list is empty"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column 2: the parameter 'a' is there twice"),
        (pd.DataFrame([[1, 2]]), "column 1: 0 is not the name"),
    ],
)
def test_bad_python_objects_are_refused_with_their_place(bad: Any, said: str) -> None:
    """What cannot be parameters is refused, naming row and column."""
    with pytest.raises(UsageError) as caught:
        rows_of(bad)
    assert said in str(caught.value)
