"""What a gate shows: small, plain and bounded, whatever it is given; never an error, never a whole frame."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from typing import Any

import duckdb
import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from nbflow.core.errors import UsageError
from nbflow.runtime.gates.exhibits import PICTURE, TOTAL, encode, exhibit, table_exhibit

mpl.use("agg")

COLUMNS = {"n": list(range(50)), "word": [None if n % 2 else f"w{n}" for n in range(50)]}


def figure(**options: Any) -> Figure:
    """Return a figure with a curve."""
    made = Figure(**options)
    made.subplots().plot([1, 4, 2])
    return made


TABLES = {
    "pandas": pd.DataFrame(COLUMNS),
    "polars": pl.DataFrame(COLUMNS),
    "lazy": pl.DataFrame(COLUMNS).lazy(),
    "arrow": pa.table(COLUMNS),
    "batch": pa.record_batch(COLUMNS),
}


@pytest.mark.parametrize("kind", [*TABLES, "duckdb"])
def test_tables_of_all_kinds_show_their_first_rows_and_count_all(kind: str) -> None:
    """Names and types of the columns, twenty rows as texts, nulls as such; a window where one is asked for."""
    arrow = TABLES["arrow"]
    connection = duckdb.connect()  # DuckDB 1 closes it with the last name, whatever relations are left
    table = connection.from_arrow(arrow) if kind == "duckdb" else TABLES[kind]
    shown = exhibit(table)
    assert ("table", 50, 0, 20) == (shown["kind"], shown["total"], shown["offset"], len(shown["rows"]))
    assert ["n", "word"] == [column["name"] for column in shown["columns"]]
    assert all(column["type"] for column in shown["columns"])
    assert [["0", "w0"], ["1", None]] == shown["rows"][:2]
    window = table_exhibit(table, 48, 5, title="the end")
    assert [["48", "w48"], ["49", None]] == window["rows"]
    assert ("the end", 50, 48) == (window["title"], window["total"], window["offset"])


def test_the_index_of_a_frame_is_shown_where_it_says_something() -> None:
    """By its names, before the columns."""
    index = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["letter", None])
    shown = exhibit(pd.DataFrame({"x": [0.1 + 0.2, np.nan, 1e9, 1.0]}, index=index))
    assert ["letter", "", "x"] == [column["name"] for column in shown["columns"]]
    assert [["a", "1", "0.3"], ["a", "2", None], ["b", "1", "1000000000"], ["b", "2", "1"]] == shown["rows"]
    assert [{"name": "value", "type": "int64"}] == exhibit(pd.Series([1, 2]))["columns"]


def test_a_wide_frame_is_cut_and_says_so() -> None:
    """Columns beyond sixty are counted."""
    shown = exhibit(pd.DataFrame(np.zeros((3, 500))))
    assert 60 == len(shown["columns"]) == len(shown["rows"][0])
    assert "60 of 500 columns" in shown["title"]


@pytest.mark.parametrize("shape", [(5,), (5, 2), (0,), (0, 3), (3, 0)])
def test_arrays_are_tables_as_long_as_they_are_flat(shape: tuple[int, ...]) -> None:
    """Others are texts."""
    shown = exhibit(np.zeros(shape))
    assert ("table", shape[0]) == (shown["kind"], shown["total"])
    assert "text" == exhibit(np.zeros((2, 2, 2)))["kind"]


def test_a_figure_is_a_picture_with_its_title() -> None:
    """As PNG; axes show the figure they belong to, and what has no title is described by its axes."""
    titled = figure()
    titled.axes[0].set_title("ROC of model 3")
    shown = exhibit(titled)
    assert ("image", "image/png", "ROC of model 3") == (shown["kind"], shown["mime"], shown["alt"])
    assert base64.b64decode(shown["data"]).startswith(b"\x89PNG")
    assert shown["alt"] == exhibit(titled.axes[0])["alt"]
    plain = figure()
    plain.axes[0].set(xlabel="day", ylabel="sales")
    assert "sales over day" == exhibit(plain)["alt"]
    plain.suptitle("Sales")
    assert "Sales" == exhibit(plain)["alt"]


def test_a_large_figure_is_drawn_smaller() -> None:
    """It stays a picture and below the size that is kept."""
    noisy = Figure(figsize=(12, 12))
    noisy.subplots().imshow(np.random.default_rng(0).random((400, 400, 3)))
    shown = exhibit(noisy)
    assert "image" == shown["kind"]
    assert len(base64.b64decode(shown["data"])) <= PICTURE


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "CMYK", "P", "F"])
def test_images_are_pictures_of_any_mode(mode: str) -> None:
    """Noise of many pixels, too, made smaller until it fits."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8))
    shown = exhibit(noise.convert(mode))
    assert "image" == shown["kind"]
    data = base64.b64decode(shown["data"])
    assert len(data) <= PICTURE
    assert Image.open(io.BytesIO(data)).size[0] > 100


class Shows:
    """An object that shows itself as it is told."""

    def __init__(self, **methods: Any) -> None:
        for name, value in methods.items():
            setattr(self, name, lambda value=value, **_: value)


@pytest.mark.parametrize(
    ("methods", "wanted"),
    [
        ({"_repr_png_": b"\x89PNG", "_repr_html_": "<b>"}, {"kind": "image", "mime": "image/png"}),
        ({"_repr_png_": ("iVBO", {"width": 3})}, {"kind": "image", "data": "iVBO"}),
        ({"_repr_svg_": "<svg/>"}, {"kind": "image", "mime": "image/svg+xml"}),
        ({"_repr_html_": "<b>x</b>"}, {"kind": "html", "html": "<b>x</b>"}),
        ({"_repr_html_": "<script>alert(1)</script>"}, {"kind": "notice"}),
        ({"_repr_html_": "x" * 200_000}, {"kind": "notice"}),
        ({"_repr_markdown_": "# x"}, {"kind": "markdown", "text": "# x"}),
        ({"_repr_html_": None, "_repr_markdown_": "x"}, {"kind": "markdown"}),
        ({"_repr_mimebundle_": {"text/html": "<i>"}}, {"kind": "html", "html": "<i>"}),
        ({"_repr_mimebundle_": ({"text/plain": "x"}, {})}, {"kind": "text"}),
    ],
)
def test_objects_that_show_themselves_are_asked(methods: dict[str, Any], wanted: dict[str, str]) -> None:
    """The picture first; HTML that needs a script, and what is too long, becomes a notice."""
    shown = exhibit(Shows(**methods))
    assert wanted == {key: shown[key] for key in wanted}


def test_whatever_fails_to_be_drawn_is_a_notice() -> None:
    """It names the type and the error."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no picture today")

    circle: dict[str, Any] = {}
    circle["self"] = circle
    assert "A Broken could not be shown: RuntimeError: no picture today" in exhibit(Broken())["text"]
    for bad in (circle, Shows(_repr_png_="not base64!"), Shows(_repr_mimebundle_=3)):
        assert "notice" == exhibit(bad)["kind"]


def test_all_together_stay_bounded_and_say_what_was_cut() -> None:
    """A list of pictures and long texts ends with a notice."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8))
    shown = encode([picture] * 30)
    assert len(json.dumps(shown)) <= TOTAL + 1000
    assert "more of 30 are not shown" in shown[-1]["text"]
    many = encode(["x"] * 500)
    assert (41, "460 more of 500 are not shown") == (len(many), many[-1]["text"][:29])
    assert "more characters" in exhibit("x" * 100_000)["text"][-40:]
    assert [] == encode(None) == encode([]) == encode(())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_anything_is_an_exhibit_that_json_holds(value: Any) -> None:
    """With half characters, NaN and keys of all kinds."""
    shown = encode(value)
    assert shown == json.loads(json.dumps(shown))
    json.dumps(shown, ensure_ascii=False).encode()
    assert {each["kind"] for each in shown} <= {"text", "json", "table", "notice"}


def test_what_is_no_table_is_refused_as_one() -> None:
    """By the function that a page asks for a window."""
    with pytest.raises(UsageError, match="no table"):
        table_exhibit({"a": 1})


def test_showing_plain_things_imports_no_libraries(python: str) -> None:
    """A gate in a script that knows neither pandas nor matplotlib stays light."""
    code = (
        "import sys; from nbflow.runtime.gates.exhibits import encode; encode(['x', {'a': 1}]);"
        "print([m for m in ('matplotlib', 'pandas', 'numpy', 'PIL', 'IPython', 'polars') if m in sys.modules])"
    )
    assert "[]\n" == subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
