"""A leaf that goes through a DuckDB column comes back byte for byte, or its digest says that it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

duckdb = pytest.importorskip("duckdb")

from nbflow.values.codec import encode  # noqa: E402
from nbflow.values.memory import hash_parts  # noqa: E402
from nbflow.values.native import arrow_form, column_type, from_arrow, numpy_form, to_arrow  # noqa: E402

N = 5000


def through_duckdb(leaf_bytes: bytes, form: str, place: Path | None = None) -> bytes:
    """Write a leaf's values into a native column, read them back and make the leaf again."""
    table = pa.table({"v": to_arrow(form, memoryview(leaf_bytes))})
    connection = duckdb.connect(str(place) if place else ":memory:")
    connection.register("given", table)
    connection.execute(f"create table kept (v {column_type(form)})")
    connection.execute("insert into kept select v from given")
    if place:
        connection.close()
        connection = duckdb.connect(str(place))
    relation = connection.sql("select v from kept order by rowid")
    back = (relation.to_arrow_table() if hasattr(relation, "to_arrow_table") else relation.arrow()).column(
        "v"
    )
    connection.close()
    return b"".join(from_arrow(form, back))


def leaves(value: Any) -> list[tuple[str, bytes]]:
    return [(leaf.form, b"".join(leaf.parts)) for leaf in encode({"v": value}).leaves]


RNG = np.random.default_rng(0)
NUMBERS = {
    "float64": RNG.standard_normal(N),
    "prices": np.round(RNG.random(N) * 100, 2),
    "float32": RNG.standard_normal(2 * N).astype("f4"),
    "float16": RNG.standard_normal(4 * N).astype("f2"),
    "infinite": np.resize([np.inf, -np.inf, 0.0, 5e-324, 1.7e308], N),
    "int64": RNG.integers(-(2**63), 2**63 - 1, N),
    "int32": RNG.integers(-5, 5, 2 * N).astype("i4"),
    "int16": RNG.integers(-5, 5, 4 * N).astype("i2"),
    "int8": RNG.integers(-128, 127, 8 * N).astype("i1"),
    "uint64": RNG.integers(0, 2**64 - 1, N, np.uint64),
    "uint32": RNG.integers(0, 2**32 - 1, 2 * N, np.uint32),
    "uint16": RNG.integers(0, 2**16, 4 * N).astype("u2"),
    "uint8": RNG.integers(0, 256, 8 * N).astype("u1"),
    "bool": RNG.integers(0, 2, 20 * N).astype(bool),
    "date_s": np.resize(np.array(["1990-01-01", "NaT", "2262-01-01"], "M8[s]"), N),
    "date_ms": np.resize(np.array(["1990-01-01", "NaT", "2200-01-01T01:02:03.123"], "M8[ms]"), N),
    "date_us": np.resize(np.array(["1990-01-01", "NaT", "2200-01-01T01:02:03.123456"], "M8[us]"), N),
    "date_ns": np.resize(np.array(["1990-01-01", "NaT", "2200-01-01T01:02:03.123456789"], "M8[ns]"), N),
    "delta_ns": np.resize(np.array([1, "NaT", -5], "m8[ns]"), N),
    "delta_s": np.resize(np.array([1, "NaT", -5], "m8[s]"), N),
}


@pytest.mark.parametrize("kind", list(NUMBERS))
def test_numbers_and_dates_come_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    """Every dtype with a native column survives a DuckDB file, compressed and reopened."""
    ((form, raw),) = leaves(NUMBERS[kind])
    assert column_type(form)
    assert through_duckdb(raw, form, tmp_path / "file.duckdb") == raw


TEXTS = {
    "text": pa.array(["alpha", "", None, "ü€😀", "a\0b"] * N),
    "large_text": pa.array(["alpha", "", None, "ü€😀"] * N, pa.large_string()),
    "no_nulls": pa.array(["alpha", "beta"] * N),
    "all_null": pa.array([None] * (N * 8), pa.string()),
    "binary": pa.array([b"\0\xff", None, b""] * N),
    "large_binary": pa.array([b"\0\xff", None, b""] * N, pa.large_binary()),
    "bool": pa.array([True, None, False] * N * 20),
    "int": pa.array([1, None, 3] * N),
    "uint8": pa.array([1, None, 3] * N * 5, pa.uint8()),
    "float": pa.array([1.5, None, -3] * N),
    "date": pa.array([1, None, -3] * N, pa.date32()),
    "stamp_s": pa.array([1, None, -3] * N, pa.timestamp("s")),
    "stamp_us": pa.array([1, None, -3] * N, pa.timestamp("us")),
    "stamp_ns": pa.array([1, None, -3] * N, pa.timestamp("ns")),
}


@pytest.mark.parametrize("kind", list(TEXTS))
def test_arrow_columns_come_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    """Text, binary, bool, numbers and dates with nulls have one layout, made again from the plain column."""
    ((form, raw),) = leaves(TEXTS[kind])
    assert column_type(form)
    assert to_arrow(form, raw).equals(TEXTS[kind])
    assert through_duckdb(raw, form, tmp_path / "file.duckdb") == raw


def test_a_pandas_text_column_is_a_text_column() -> None:
    """Strings of a frame, str or object, are a leaf that DuckDB holds as VARCHAR."""
    for dtype in ("str", object, "string[python]"):
        frame = pd.DataFrame({"s": pd.Series(["a", None, "ccc"] * N, dtype=dtype)})
        ((form, raw),) = leaves(frame)
        assert column_type(form) == "VARCHAR"
        assert through_duckdb(raw, form) == raw


@pytest.mark.parametrize(
    "value",
    [
        np.arange(N) * 1j,
        np.zeros(N, [("a", "<i4"), ("b", "<f8")]),
        np.arange(N, dtype=">f8"),
        np.array(["abcd"] * N),
        np.arange(N).astype("M8[D]"),
        np.arange(N).astype(np.longdouble),
        bytes(100_000),
        pa.array([1, None] * N, pa.decimal128(12, 2)),
        pa.array([1] * N, pa.timestamp("us", "UTC")),
    ],
    ids=lambda value: str(getattr(value, "dtype", getattr(value, "type", type(value)))),
)
def test_what_duckdb_has_no_exact_column_for_stays_a_blob(value: Any) -> None:
    """Other leaves have no native column, and asking for one is an error."""
    for form, raw in leaves(value):
        assert column_type(form) is None
        with pytest.raises(ValueError, match="native"):
            to_arrow(form, raw)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.dtype("u8"), st.integers(2100, 2200), elements=st.integers(0, 2**64 - 1)),
    st.sampled_from(["<f8", "<M8[ns]", "<M8[s]", "<i8", "<m8[us]"]),
)
def test_any_bits_come_back_or_are_told_apart(bits: np.ndarray, dtype: str) -> None:
    """Any bit pattern either survives or has another digest: NaN payloads, dates out of range, -0.0."""
    ((form, raw),) = leaves(bits.view(dtype))
    try:
        back = through_duckdb(raw, form)
    except (duckdb.Error, pa.ArrowException, OverflowError, ValueError):
        return
    assert (hash_parts([memoryview(back)])[0] == hash_parts([memoryview(raw)])[0]) == (back == raw)


def test_forms_are_readable() -> None:
    """A form says family, type and, for Arrow, length and nulls."""
    assert numpy_form(np.dtype("<f8")) == "numpy/<f8"
    assert arrow_form(pa.string(), 3, 1) == "arrow/string/3/1"
    assert column_type("") is None
    assert column_type("numpy/unheard") is None
    assert column_type("else/thing") is None


def test_a_leaf_too_short_for_its_form_is_an_error() -> None:
    """Fewer bytes than the form tells are refused."""
    ((form, raw),) = leaves(TEXTS["text"])
    with pytest.raises(ValueError, match="short"):
        to_arrow(form, raw[:1000])


@pytest.mark.parametrize(
    "value", [-0.0, np.frombuffer(bytes.fromhex("010000000000f87f"), "<f8")[0]], ids=["-0.0", "payload"]
)
def test_what_duckdb_does_to_odd_floats(value: float, tmp_path: Path) -> None:
    """Negative zero and NaN with a payload come back the same, or the digest differs: never equal bytes by luck."""
    array = np.full(N, value)
    array[::2] = RNG.random(N // 2)
    ((form, raw),) = leaves(array)
    back = through_duckdb(raw, form, tmp_path / "file.duckdb")
    assert len(back) == len(raw)
