"""Fingerprints of arrays and frames: content, dtype and labels count; memory layout does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbflow.values.codec import encode
from nbflow.values.fingerprint import fingerprint
from nbflow.values.leaf import Digests
from tests.values.codec_box import there_and_back

PANDAS = int(pd.__version__.partition(".")[0])

dtypes = (
    hnp.scalar_dtypes()
    | hnp.unicode_string_dtypes()
    | hnp.byte_string_dtypes()
    | hnp.array_dtypes(allow_subarrays=False)
)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_an_array_of_any_dtype_keeps_its_fingerprint(array):
    """A copy and a round trip hash the same; another shape or dtype does not."""
    found = fingerprint(array)
    assert found == fingerprint(array.copy())
    assert found == fingerprint(there_and_back(array=array)["array"])
    assert found != fingerprint(array[np.newaxis])
    assert found.stable


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(st.sampled_from(["i4", "f8", "u1"]), hnp.array_shapes(min_dims=2, max_dims=3, min_side=2)),
    st.data(),
)
def test_one_changed_item_changes_an_arrays_fingerprint(array, data):
    """Each single item counts, in C order, Fortran order and views with steps."""
    at = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    for arranged in (np.ascontiguousarray(array), np.asfortranarray(array), array[::-1]):
        changed = arranged.copy(order="K")
        assert fingerprint(changed) == fingerprint(arranged)
        changed[at] = 1 if changed[at] != 1 else 2
        assert fingerprint(changed) != fingerprint(arranged)


def test_a_view_hashes_as_its_content():
    """A view with steps equals a copy of it; strides and what lies between do not count."""
    base = np.arange(60_000.0)
    view = base[1::3]
    assert fingerprint(view) == fingerprint(view.copy())
    before = fingerprint(view)
    base[0] = 9
    assert fingerprint(view) == before
    base[1] = 9
    assert fingerprint(view) != before


def test_padding_between_fields_does_not_count():
    """Aligned records hash by their fields, not by what memory holds between them."""
    kind = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    one = np.frombuffer(bytearray(b"\x00") * kind.itemsize * 4, kind)
    other = np.frombuffer(bytearray(b"\xff") * kind.itemsize * 4, kind)
    for array in (one, other):
        array["a"], array["b"] = 1, 2.0
    assert one.tobytes() != other.tobytes()
    assert fingerprint(one) == fingerprint(other)


def test_object_arrays_hash_by_their_elements():
    """Equal elements are equal whichever objects they are, and a change inside one is seen."""
    one = np.array(["ab" * len([1]), [1], None, {2}], dtype=object)
    other = np.array(["ab", [1], None, {2}], dtype=object)
    assert fingerprint(one) == fingerprint(other)
    other[1].append(2)
    assert fingerprint(one) != fingerprint(other)


def make_frame() -> pd.DataFrame:
    count = 4000
    frame = pd.DataFrame(
        {
            "n": np.arange(count),
            "m": np.arange(count) * 2,
            "x": np.linspace(0, 1, count),
            "s": pd.Series([f"t{n % 9}" for n in range(count)]),
            "o": pd.Series([{"n": n % 3} for n in range(count)], dtype=object),
            "c": pd.Categorical([["lo", "hi"][n % 2] for n in range(count)]),
            "d": pd.date_range("2026-01-01", periods=count, freq="min", tz="Europe/Paris"),
            "i": pd.array([None if n % 5 == 0 else n for n in range(count)], dtype="Int64"),
        }
    )
    frame.attrs["source"] = {"file": "a.csv"}
    return frame


CHANGES = {
    "a number": lambda f: f.__setitem__("n", f["n"].where(f["n"] != 3, 4)),
    "an integer's width": lambda f: f.__setitem__("n", f["n"].astype("int32")),
    "a string": lambda f: f.loc.__setitem__((3, "s"), "other"),
    "inside an object": lambda f: f["o"].iloc[3].update(n=7),
    "a category's order": lambda f: f.__setitem__("c", f["c"].cat.as_ordered()),
    "an unused category": lambda f: f.__setitem__("c", f["c"].cat.add_categories(["mid"])),
    "a time zone": lambda f: f.__setitem__("d", f["d"].dt.tz_convert("UTC")),
    "a missing value": lambda f: f.loc.__setitem__((1, "i"), pd.NA),
    "a column's name": lambda f: setattr(f, "columns", ["k", *f.columns[1:]]),
    "the columns' order": lambda f: f.insert(0, "d", f.pop("d")),
    "the index": lambda f: setattr(f, "index", f.index + 1),
    "the index's name": lambda f: setattr(f.index, "name", "row"),
    "attrs": lambda f: f.attrs["source"].update(file="b.csv"),
    "flags": lambda f: setattr(f.flags, "allows_duplicate_labels", False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_visible_change_of_a_frame_is_seen(what):
    """A frame and its change differ; both hash the same when made again and after a round trip."""
    frame = make_frame()
    before = fingerprint(frame)
    assert before == fingerprint(make_frame())
    CHANGES[what](frame)
    assert fingerprint(frame) != before
    assert fingerprint(frame) == fingerprint(there_and_back(frame=frame)["frame"])


def test_how_columns_lie_in_blocks_does_not_count():
    """A frame made from rows, from columns and column after column is one frame."""
    table = np.arange(40_000.0).reshape(-1, 4)
    rows = pd.DataFrame(table, columns=list("abcd"))
    columns = pd.DataFrame({name: table[:, at].copy() for at, name in enumerate("abcd")})
    grown = pd.DataFrame({"a": table[:, 0]})
    for at, name in enumerate("bcd", 1):
        grown[name] = table[:, at]
    assert fingerprint(rows) == fingerprint(columns) == fingerprint(grown)


def test_a_checkpoint_and_a_fingerprint_hash_a_frames_buffers_once():
    """After a checkpoint with the same digests the fingerprint finds every large numeric column hashed."""

    class Counting(Digests):
        def __init__(self):
            super().__init__()
            self.found = self.new = 0

        def of(self, buffer, address):
            before = len(self._known)
            digest = super().of(buffer, address)
            grew = len(self._known) > before
            self.new, self.found = self.new + grew, self.found + (not grew)
            return digest

    frame = pd.DataFrame({f"c{n}": np.random.default_rng(n).random(50_000) for n in range(5)})
    digests = Counting()
    encode({"frame": frame}, digests=digests)
    assert digests.new == 5
    assert digests.found >= 5


def test_equal_strings_are_equal_whoever_holds_them():
    """A string column hashes the same in Python's objects and in Arrow's buffers, missing values included."""
    strings = ["a", "ünï", None, "", "x" * 500] * 2000
    missing = {"na_value": np.nan} if PANDAS >= 3 else {}
    kinds = [pd.StringDtype(storage, **missing) for storage in ("python", "pyarrow")]
    one, other = (pd.Series(strings, dtype=kind) for kind in kinds)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one.iloc[5:5000]) == fingerprint(other.iloc[5:5000])
    assert fingerprint(one.str.upper()) == fingerprint(other.str.upper()) != fingerprint(one)
    assert fingerprint(one.astype(object)) != fingerprint(one)


def test_what_lies_under_a_missing_value_does_not_count():
    """Masked pandas arrays and Arrow arrays hash by what can be read."""
    one = pd.arrays.IntegerArray(np.array([1, 2, 3]), np.array([False, True, False]))
    other = pd.arrays.IntegerArray(np.array([1, 9, 3]), np.array([False, True, False]))
    assert fingerprint(pd.Series(one)) == fingerprint(pd.Series(other))
    bits = pa.py_buffer(bytes([0b101]))
    hidden = [
        pa.Array.from_buffers(pa.int64(), 3, [bits, pa.py_buffer(np.array(each))])
        for each in ([1, 2, 3], [1, 9, 3])
    ]
    assert fingerprint(hidden[0]) == fingerprint(hidden[1])


ARROW = {
    "int": pa.array([1, None, 3] * 3000),
    "bool": pa.array([True, None, False] * 3000),
    "string": pa.array(["a", None, "ünï"] * 3000),
    "large string": pa.array(["a", None, "b"] * 3000, pa.large_string()),
    "dictionary": pa.array(["a", None, "b"] * 3000).dictionary_encode(),
    "list": pa.array([[1], None, [2, 3]] * 3000),
    "struct": pa.array([{"a": 1}, None, {"a": None}] * 3000),
    "time": pa.array([1, None, 3] * 3000, pa.timestamp("us", "UTC")),
    "decimal": pa.array([1, None, 3] * 3000, pa.decimal128(20, 2)),
}


@pytest.mark.parametrize("kind", ARROW)
def test_chunks_and_offsets_of_arrow_data_do_not_count(kind):
    """A column cut into chunks, sliced out of a longer one or copied is the same column; one item less is another."""
    array = ARROW[kind]
    whole = fingerprint(pa.chunked_array([array]))
    assert fingerprint(pa.chunked_array([array[:17], array[17:5000], array[5000:]])) == whole
    longer = pa.concat_arrays([array[:5], array])
    assert fingerprint(pa.chunked_array([longer[5:]])) == whole
    assert fingerprint(pa.chunked_array([array[1:]])) != whole
    changed = pa.concat_arrays([array[:8000], array[8001:], array[8000:8001]])
    assert fingerprint(pa.chunked_array([changed])) != whole


def test_index_kinds_are_told_apart():
    """A range and the same numbers, a frequency and none, two names: all differ."""
    days = pd.date_range("2026-01-01", periods=3)
    kinds = [
        pd.RangeIndex(3), pd.Index([0, 1, 2]), pd.Index([0, 1, 2], dtype="int32"), pd.Index([0, 1, 2], name="a"), days,
        pd.DatetimeIndex(list(days)), days.tz_localize("UTC"), days.to_period("D"), pd.Index(days.astype(str)), pd.CategoricalIndex(["0", "1", "2"]),
    ]  # fmt: skip
    assert len({fingerprint(index).digest for index in kinds}) == len(kinds)
    for index in kinds:
        assert fingerprint(there_and_back(index=index)["index"]) == fingerprint(index)
