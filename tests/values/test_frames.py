"""Frames, series and indexes come back exactly: every dtype, every odd index, columns in memory of their own."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbflow.core.model import Checkpoint
from nbflow.values.codec import decode, encode
from nbflow.values.leaf import LEAF_MINIMUM
from tests.values.codec_box import Box, there_and_back

PANDAS = int(pd.__version__.split(".")[0])
MANY = 3000  # rows that make a column a leaf


def same_array(one: Any, other: Any) -> None:
    """Assert that two arrays are the same to the last bit."""
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        assert one.shape == other.shape
        if one.dtype == object:
            for left, right in zip(one.ravel(), other.ravel(), strict=True):
                assert type(left) is type(right)
                assert left is right or left == right or (left != left and right != right)
        else:
            assert one.tobytes() == other.tobytes()
    elif len(one):
        pd.testing.assert_extension_array_equal(one, other, check_exact=True)


def same_index(one: pd.Index, other: pd.Index) -> None:
    assert type(one) is type(other)
    pd.testing.assert_index_equal(one, other, exact=True)
    assert list(one.names) == list(other.names)
    assert getattr(one, "freq", None) == getattr(other, "freq", None)


def same_frame(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Assert that two frames are the same in all that can be seen."""
    assert type(one) is type(other)
    same_index(one.columns, other.columns)
    same_index(one.index, other.index)
    assert list(one.dtypes) == list(other.dtypes)
    for place in range(one.shape[1]):
        left, right = one.iloc[:, place], other.iloc[:, place]
        same_array(
            left.array if not isinstance(left.dtype, np.dtype) else left.to_numpy(),
            right.array if not isinstance(right.dtype, np.dtype) else right.to_numpy(),
        )
    assert one.attrs == other.attrs
    assert one.flags == other.flags


def columns(n: int) -> dict[str, Any]:
    """Return a column of every kind with n rows (n ≥ 3)."""
    rng = np.random.default_rng(n)
    floats = rng.standard_normal(n)
    floats[:3] = np.frombuffer(bytes.fromhex("010000000000f87f0000000000000080000000000000f07f"), "<f8")
    stamps = pd.date_range("2020-01-01", periods=n, freq="min").to_numpy().copy()
    stamps[0] = np.datetime64("NaT")
    text = np.array([f"text {i % 7} ü" for i in range(n)], dtype=object)
    gaps = text.copy()
    gaps[:3] = [None, np.nan, "x"]
    integers = rng.integers(-5, 5, n)
    masked = pd.array(integers, dtype="Int64")
    masked[1] = pd.NA
    return {
        "float64": floats,
        "float32": floats.astype("float32"),
        "float16": floats.astype("float16"),
        "int64": integers,
        "int8": integers.astype("int8"),
        "uint16": (integers + 5).astype("uint16"),
        "bool": integers > 0,
        "complex": floats + 1j,
        "datetime_ns": stamps.astype("M8[ns]"),
        "datetime_s": stamps.astype("M8[s]"),
        "timedelta": (stamps - stamps[1]).astype("m8[ns]"),
        "object_text": pd.Series(text, dtype=object).array,
        "object_gaps": pd.Series(gaps, dtype=object).array,
        "object_none": pd.Series([None, *text[1:]], dtype=object).array,
        "object_mixed": pd.Series([1, "a", 2.5, None, (1, 2)] * (n // 5 + 1), dtype=object).array[:n],
        "object_na": pd.Series([pd.NA, *text[1:]], dtype=object).array,
        "categorical": pd.Categorical(text, ordered=False),
        "ordered": pd.Categorical(text, categories=sorted(set(text), reverse=True), ordered=True),
        "tz": pd.DatetimeIndex(stamps, tz="UTC").tz_convert("Europe/Berlin").array,
        "tz_fixed": pd.DatetimeIndex(stamps, tz=dt.timezone(dt.timedelta(hours=3))).array,
        "Int64": masked,
        "boolean": pd.array([True, None, False] * (n // 3 + 1), dtype="boolean")[:n],
        "Float64": pd.array([1.5, None, -0.0] * (n // 3 + 1), dtype="Float64")[:n],
        "string_python": pd.array(gaps, dtype="string[python]"),
        "string_pyarrow": pd.array(gaps, dtype="string[pyarrow]"),
        "arrow_int": pd.array(integers, dtype=pd.ArrowDtype(pa.int32())),
        "arrow_text": pd.array(pa.array(text), dtype=pd.ArrowDtype(pa.string())),
        "arrow_list": pd.array([[1, 2], None, []] * (n // 3 + 1), dtype=pd.ArrowDtype(pa.list_(pa.int64())))[
            :n
        ],
        "arrow_decimal": pd.array([decimal.Decimal("1.10")] * n, dtype=pd.ArrowDtype(pa.decimal128(10, 2))),
        "interval": pd.arrays.IntervalArray.from_arrays(np.arange(n), np.arange(n) + 1, closed="left"),
        "period": pd.period_range("2000-01", periods=n, freq="D").array,
        "sparse": pd.arrays.SparseArray(np.where(integers == 1, 1, 0), fill_value=0),
    }


KINDS = list(columns(5))


@pytest.mark.parametrize("rows", [3, MANY])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column_comes_back(kind: str, rows: int) -> None:
    """A column alone, in a frame, as a series and as an index has the same dtype and the same bits."""
    values = columns(rows)[kind]
    frame = pd.DataFrame({"x": pd.Series(values, dtype=values.dtype)})
    frame["n"] = np.arange(rows)
    series = frame["x"].rename(("odd", 1))
    index = (
        pd.Index(values, dtype=values.dtype, name="i")
        if kind not in ("float16", "object_mixed")
        else pd.RangeIndex(1)
    )
    found = there_and_back(frame=frame, series=series, array=frame["x"].array, index=index)
    same_frame(frame, found["frame"])
    same_frame(series.to_frame("x"), found["series"].to_frame("x"))
    assert found["series"].name == ("odd", 1)
    same_index(index, found["index"])
    assert type(found["array"]) is type(frame["x"].array)


@pytest.mark.parametrize("rows", [3, MANY])
def test_a_frame_of_all_kinds_comes_back(rows: int) -> None:
    """All dtypes side by side, in one frame."""
    frame = pd.DataFrame({key: pd.Series(value, dtype=value.dtype) for key, value in columns(rows).items()})
    same_frame(frame, there_and_back(frame=frame)["frame"])
    some = frame.iloc[rows // 2 :: 2]
    same_frame(some, there_and_back(some=some)["some"])


INDEXES = {
    "range": pd.RangeIndex(5, 20, 3, name="r"),
    "int": pd.Index([3, 1, 2, 2, 9]),
    "dates": pd.date_range("2020", periods=5, freq="MS", name="d"),
    "dates_tz": pd.date_range("2020", periods=5, freq="h", tz="America/New_York"),
    "deltas": pd.timedelta_range("1h", periods=5, freq="h"),
    "periods": pd.period_range("2020", periods=5, freq="Q"),
    "categories": pd.CategoricalIndex(list("abcab"), ordered=True, name="c"),
    "intervals": pd.interval_range(0, 5),
    "multi": pd.MultiIndex.from_arrays(
        [[1, 1, 2, 2, 3], list("ababa"), pd.date_range("2020", periods=5)], names=["a", None, "t"]
    ),
    "objects": pd.Index([1, "a", None, 2.5, (1,)], dtype=object),
    "nan": pd.Index([np.nan, 1.0, np.nan, 2.0, -0.0]),
    "bool": pd.Index([True, False, True, True, False]),
    "text": pd.Index(list("zyxwv"), name=("tuple", "name")),
    "masked": pd.Index(pd.array([1, None, 3, 4, 5], dtype="Int64")),
}


@pytest.mark.parametrize("kind", list(INDEXES))
def test_every_kind_of_index_comes_back(kind: str) -> None:
    """An index is kept with type, names and frequency, on either axis."""
    index = INDEXES[kind]
    frame = pd.DataFrame(np.arange(10.0).reshape(5, 2), index=index)
    wide = pd.DataFrame(np.arange(10.0).reshape(2, 5), columns=index)
    found = there_and_back(frame=frame, wide=wide, index=index)
    same_frame(frame, found["frame"])
    same_frame(wide, found["wide"])
    same_index(index, found["index"])


def test_odd_frames_come_back() -> None:
    """Empty frames, duplicate and non-string names, attrs, flags and an index that two frames share."""
    index = pd.Index(np.arange(10))
    double = pd.DataFrame(np.arange(30).reshape(10, 3), columns=["a", "a", 3], index=index)
    double.attrs["unit"] = {"km": [1]}
    strict = pd.DataFrame({"x": [1]}).set_flags(allows_duplicate_labels=False)
    frames = {
        "double": double,
        "strict": strict,
        "empty": pd.DataFrame(),
        "no_rows": pd.DataFrame({"a": pd.Series([], dtype="int8"), "b": pd.Series([], dtype="category")}),
        "no_columns": pd.DataFrame(index=pd.date_range("2020", periods=3)),
        "other": pd.DataFrame({"y": np.arange(10)}, index=index),
        "multi": pd.DataFrame(
            [[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["l", None])
        ),
    }
    found = there_and_back(**frames)
    for name, frame in frames.items():
        same_frame(frame, found[name])
    assert found["double"].index is found["other"].index
    with pytest.raises(pd.errors.DuplicateLabelError):
        found["strict"].rename(index={0: 1}).reindex([1, 1]).set_flags(allows_duplicate_labels=False)


class Labelled(pd.DataFrame):
    """A subclass with metadata, as GeoPandas has."""

    _metadata = ["label"]

    @property
    def _constructor(self) -> type:
        return Labelled


def test_a_subclass_keeps_its_metadata() -> None:
    """A subclass of DataFrame comes back as such, with its own attributes, its columns out of line."""
    frame = Labelled({"a": np.arange(MANY)})
    frame.label = "here"
    encoded = encode({"frame": frame})
    assert encoded.leaves
    found = there_and_back(frame=frame)["frame"]
    same_frame(frame, found)
    assert found.label == "here"


LAYOUTS = {
    "by column": lambda n: pd.DataFrame({f"c{i}": np.arange(n) * (i + 1.0) for i in range(4)}),
    "row-major": lambda n: pd.DataFrame(
        np.ascontiguousarray(np.outer(np.arange(n), [1.0, 2, 3, 4])), columns=list("abcd"), copy=False
    ),
    "column-major": lambda n: pd.DataFrame(
        np.asfortranarray(np.outer(np.arange(n), [1.0, 2, 3, 4])), columns=list("abcd"), copy=False
    ),
    "one by one": lambda n: _grown(n),
}


def _grown(n: int) -> pd.DataFrame:
    frame = pd.DataFrame(index=pd.RangeIndex(n))
    for i in range(4):
        frame[f"c{i}"] = np.arange(n) * (i + 1.0)
    return frame


def leaves_of(checkpoint: Checkpoint) -> set[bytes]:
    """Return the digests of the leaves, without that of the envelope itself."""
    return {ref.digest for ref in (checkpoint.leaves if checkpoint.body else checkpoint.leaves[:-1])}


def test_a_columns_leaf_does_not_depend_on_pandas_blocks(tmp_path: Path) -> None:
    """However pandas lays the numbers out in memory, the same columns are the same leaves."""
    box = Box(tmp_path)
    stored = {name: leaves_of(box.store({"frame": make(MANY)})) for name, make in LAYOUTS.items()}
    assert all(len(digests) == 4 for digests in stored.values()), stored
    assert len(set(map(frozenset, stored.values()))) == 1
    for make in LAYOUTS.values():
        frame = make(MANY)
        same_frame(frame, box.back(frame=frame)["frame"])


def test_one_more_column_is_one_more_leaf(tmp_path: Path) -> None:
    """A frame with a column added, one changed, one dropped or rows sorted the same writes only what is new."""
    box = Box(tmp_path)
    frame = pd.DataFrame(
        {
            key: pd.Series(value, dtype=value.dtype)
            for key, value in columns(MANY).items()
            if not key.startswith("object_")
        }
    )
    first = leaves_of(box.store({"frame": frame}))
    more = leaves_of(box.store({"frame": frame.assign(new=np.arange(MANY) * 0.5)}))
    assert first < more
    assert len(more - first) == 1
    changed = frame.copy()
    changed["float64"] = np.arange(MANY) * 2.5
    assert len(leaves_of(box.store({"frame": changed})) - more) == 1
    assert leaves_of(box.store({"frame": frame.drop(columns="tz")})) <= first


def test_columns_tell_their_leaves() -> None:
    """OutputInfo lists rows, columns and the leaf that holds each column's values."""
    frame = pd.DataFrame(
        {
            "number": np.arange(MANY) * 1.0,
            "date": pd.date_range("2020", periods=MANY),
            "zone": pd.date_range("2020", periods=MANY, tz="UTC"),
            "text": pd.Series([f"text {i}" for i in range(MANY)]),
            "mixed": pd.Series([1, "a"] * (MANY // 2), dtype=object),
        }
    )
    frame[5] = pd.Categorical(["a", "b"] * (MANY // 2))
    encoded = encode({"frame": frame, "small": frame.head(3)})
    forms = {leaf.digest: leaf.form for leaf in encoded.leaves}
    output, small = encoded.outputs
    assert (output.rows, output.preview) == (MANY, f"{MANY:,} rows × 6 columns")
    assert output.columns is not None
    told = {column.name: forms.get(column.leaf or b"") for column in output.columns}
    unit = np.datetime_data(frame["date"].dtype)[0]
    assert told["number"] == "numpy/<f8"
    assert told["date"] == told["zone"] == f"numpy/<M8[{unit}]"
    assert str(told["text"]).startswith(f"arrow/large_string/{MANY}/")
    assert told["mixed"] is None
    assert told["5"] is None
    assert small.rows == 3
    assert [column.type for column in output.columns][0] == "float64"


def test_wide_frames_are_stored_by_block(tmp_path: Path) -> None:
    """A frame of 500 columns is a few leaves and comes back without fragmentation."""
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((200, 500)))
    frame["text"] = "a"
    box = Box(tmp_path)
    checkpoint = box.store({"frame": frame})
    assert len(checkpoint.leaves) <= 3
    found = decode(checkpoint, box.fetch)["frame"]
    same_frame(frame, found)
    assert len(found._mgr.blocks) < 10


def test_restored_frames_can_be_written_to(tmp_path: Path) -> None:
    """A restored column is changed in place, and neither the file nor another restore sees it."""
    box = Box(tmp_path)
    frame = pd.DataFrame({"a": np.arange(MANY) * 1.0, "b": np.arange(MANY)})
    checkpoint = box.store({"frame": frame})
    found = decode(checkpoint, box.fetch)["frame"]
    found.loc[5, "a"] = -1.0
    found["b"] *= 2
    found.iloc[0] = [7.0, 7]
    assert found["a"].iloc[5] == -1.0
    same_frame(frame, decode(checkpoint, box.fetch)["frame"])


def test_restored_columns_use_the_mapped_memory(tmp_path: Path) -> None:
    """Restoring copies no numbers: the column lies in the mapping that fetch returned."""
    box = Box(tmp_path)
    checkpoint = box.store({"frame": pd.DataFrame({"a": np.arange(MANY) * 1.0})})
    mapped: list[memoryview] = []

    def fetch(digest: bytes) -> memoryview:
        mapped.append(box.fetch(digest))
        return mapped[-1]

    column = decode(checkpoint, fetch)["frame"]["a"].to_numpy()
    assert len(mapped) == 1
    assert np.shares_memory(column, np.frombuffer(mapped[0], np.uint8))


def test_two_pandas_objects_never_leak_changes_they_did_not_leak_before() -> None:
    """Changing a column that was taken from a frame changes the restored frame exactly if it did before."""
    for kind in (
        "float64",
        "categorical",
        "Int64",
        "tz",
        "object_text",
        "string_pyarrow",
        "sparse",
        "interval",
    ):
        for rows in (10, MANY):
            frame = pd.DataFrame({"x": pd.Series(columns(rows)[kind])})
            frame["y"] = 1.0
            before = {
                "frame": frame,
                "series": frame["x"],
                "subset": frame[["x"]],
                "index": pd.Index(frame["x"]),
            }
            after = there_and_back(**before)
            one, two = frame["x"].iloc[4], frame["x"].iloc[5]
            if one == two:
                continue
            seen = []
            for objects in (before, after):
                objects["subset"].loc[4, "x"] = two
                objects["series"].iloc[5] = one
                seen.append(
                    {
                        name: list(map(str, held["x"] if name in ("frame", "subset") else held))
                        for name, held in objects.items()
                    }
                )
            assert seen[0] == seen[1], (kind, rows)


@pytest.mark.skipif(PANDAS >= 3, reason="pandas 3 has copy-on-write")
def test_pandas_2_keeps_a_column_and_its_frame_in_one_memory() -> None:
    """Without copy-on-write a column taken from a frame still writes through after a restore."""
    for rows in (10, MANY):
        frame = pd.DataFrame({"x": np.arange(rows) * 1.0, "y": np.arange(rows) * 2.0})
        found = there_and_back(frame=frame, series=frame["x"])
        found["series"].to_numpy()[3] = -1
        assert found["frame"]["x"].iloc[3] == -1
        assert found["frame"]["y"].iloc[3] == 6.0


def test_an_array_around_a_frame_keeps_its_values() -> None:
    """Arrays taken from a frame, and frames made of arrays, come back with the right numbers."""
    base = np.arange(MANY * 4.0).reshape(MANY, 4)
    frame = pd.DataFrame(base, copy=False)
    found = there_and_back(
        base=base, frame=frame, column=frame[2].to_numpy(), rows=frame.iloc[10:20], view=base[5:9]
    )
    assert (found["base"] == base).all()
    same_frame(frame, found["frame"])
    same_frame(frame.iloc[10:20], found["rows"])
    assert (found["column"] == base[:, 2]).all()
    assert np.shares_memory(found["view"], found["base"])


names = (
    st.text(max_size=5) | st.integers(-5, 5) | st.none() | st.tuples(st.text(max_size=2), st.integers(0, 3))
)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Frames of some columns of any kind, in any order, some rows, with an odd index."""
    rows = draw(st.sampled_from([0, 1, 7, 2500]))
    made = columns(max(rows, 3))
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=5))
    frame = (
        pd.concat([pd.Series(made[kind], dtype=made[kind].dtype)[:rows] for kind in kinds], axis=1)
        if kinds
        else pd.DataFrame(index=range(rows))
    )
    frame.columns = (
        pd.Index(draw(st.lists(names, min_size=len(kinds), max_size=len(kinds))), dtype=object)
        if kinds
        else frame.columns
    )
    index = draw(st.sampled_from(["same", "dates", "text", "multi", "repeat"]))
    if index == "dates":
        frame.index = pd.date_range("2021", periods=rows, freq="D", name="when")
    elif index == "text":
        frame.index = pd.Index([f"row {i}" for i in range(rows)])
    elif index == "multi" and rows:
        frame.index = pd.MultiIndex.from_arrays([np.arange(rows) % 3, np.arange(rows)], names=["a", "b"])
    elif index == "repeat":
        frame.index = pd.Index(np.arange(rows) % 2)
    return frame.iloc[:: draw(st.sampled_from([1, 1, 2, -1]))]


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(frames())
def test_any_frame_comes_back(frame: pd.DataFrame) -> None:
    """Frames of any columns, names and index, sliced or reversed, come back the same."""
    found = there_and_back(frame=frame, column=frame.iloc[:, 0] if frame.shape[1] else None)
    same_frame(frame, found["frame"])


def test_caches_do_not_change_what_is_stored(tmp_path: Path) -> None:
    """Looking at a frame (which fills pandas' caches) does not make its checkpoint another one."""
    box = Box(tmp_path)
    frame = pd.DataFrame({"a": pd.Series(["x", "y"] * MANY), "b": np.arange(2 * MANY)})
    first = box.store({"frame": frame})
    frame["a"].unique(), frame.index.is_unique, frame.columns.get_loc("b"), frame["a"].array.isna()
    again = box.store({"frame": frame})
    assert first.body == again.body
    assert leaves_of(first) == leaves_of(again)
    assert LEAF_MINIMUM <= min(ref.size for ref in first.leaves)
