"""Examples of the classes that hold tables and columns: pandas, polars, Arrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.values.classes import Example
from tests.values.classes_lazy import Library, put

np, pd, pa, pl = map(Library, ["numpy", "pandas", "pyarrow", "polars"])

EXAMPLES: list[Example] = []


def row(
    library: str,
    name: str,
    make: Callable[[], Any],
    change: Callable[[Any], Any],
    view: Callable[[Any], Any] = lambda value: value,
) -> None:
    EXAMPLES.append(Example(library, name, make, change, view))


# --- pandas ---


def pandas(
    name: str, make: Callable[[], Any], change: Callable[[Any], Any], view: Callable[[Any], Any] = lambda v: v
) -> None:
    row("pandas", name, make, change, view)


def _mixed() -> Any:
    frame = pd.DataFrame(
        {
            "n": np.arange(5000),
            "x": np.linspace(0, 1, 5000),
            "s": [f"text {n % 7}" for n in range(5000)],
            "d": pd.date_range("2026-01-01", periods=5000, freq="h", tz="Europe/Paris"),
            "c": pd.Categorical([["low", "high"][n % 2] for n in range(5000)], ["low", "high"], ordered=True),
            "o": [{"n": n} if n % 2 else None for n in range(5000)],
        }
    )
    frame.attrs["unit"] = "m"
    return frame


def _twice() -> Any:
    return pd.DataFrame([[1, 2.0], [3, 4.0]], columns=["a", "a"], index=pd.Index(["x", "y"], name="key"))


def _multi() -> Any:
    index = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["k", None])
    return pd.DataFrame({("x", 1): [1, 2, 3, 4], ("y", 2): list("abcd")}, index=index)


def _item(column: Any, at: int, value: Any) -> Callable[[Any], None]:
    def change(frame: Any) -> None:
        frame.loc[frame.index[at], column] = value

    return change


pandas("DataFrame", _mixed, _item("x", 3, 9.0))
pandas("DataFrame, attrs", _mixed, lambda v: v.attrs.update(unit="km"))
pandas("DataFrame, object column", _mixed, lambda v: v["o"].iloc[1].update(n=2))
pandas("DataFrame, column order", _mixed, lambda v: v[["x", "n", *v.columns[2:]]])
pandas("DataFrame with equal names", _twice, lambda v: v.index.rename("other").to_frame())
pandas("DataFrame with MultiIndex", _multi, lambda v: v.reset_index())
pandas(
    "DataFrame, empty", lambda: pd.DataFrame({"a": pd.Series([], dtype="int8")}), lambda v: v.astype("int16")
)
pandas(
    "DataFrame from rows",
    lambda: pd.DataFrame(np.arange(40000.0).reshape(-1, 4)),
    lambda v: v.__setitem__(0, 1.0),
)
for dtype, values in {
    "int64": [1, 2], "float32": [1, 2.5], "bool": [True, False], "Int64": [1, None], "Float64": [1.5, None],
    "boolean": [True, None], "string[python]": ["a", None], "string[pyarrow]": ["a", None], "category": ["b", "a"],
    "datetime64[ns]": ["2026-01-01", None], "timedelta64[ns]": ["1s", None], "int64[pyarrow]": [1, None],
    "period[M]": ["2026-01", None], "Sparse[int]": [0, 3], "interval": None, "object": [1, "a"],
}.items():  # fmt: skip
    if dtype == "interval":
        pandas("Series of interval", lambda: pd.Series(pd.interval_range(0, 3)), lambda v: v.iloc[::-1])
        continue
    pandas(
        f"Series of {dtype}",
        lambda dtype=dtype, values=values: pd.Series(values, dtype=dtype, name="s"),
        lambda v: v.iloc[::-1].reset_index(drop=True),
    )
pandas("Series of str", lambda: pd.Series(["a", "ünï", None] * 3000), lambda v: v.__setitem__(0, "b"))
pandas("Series, name", lambda: pd.Series([1], name="a"), lambda v: setattr(v, "name", "b"))
pandas("Index", lambda: pd.Index([3, 1], name="a"), lambda v: v.rename("b"))
pandas("RangeIndex", lambda: pd.RangeIndex(3), lambda _: pd.RangeIndex(0, 3, 2))
pandas(
    "MultiIndex", lambda: pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]), lambda v: v.set_names(["x", None])
)
pandas(
    "DatetimeIndex",
    lambda: pd.date_range("2026", periods=3, freq="D", tz="UTC"),
    lambda v: v.tz_convert("Asia/Tokyo"),
    lambda v: (v, v.freqstr),
)
pandas("PeriodIndex", lambda: pd.period_range("2026", periods=3, freq="M"), lambda v: v + 1)
pandas("TimedeltaIndex", lambda: pd.timedelta_range("1s", periods=3), lambda v: v * 2)
pandas("IntervalIndex", lambda: pd.interval_range(0, 3), lambda v: v.set_closed("left"))
pandas("CategoricalIndex", lambda: pd.CategoricalIndex(["a", "b"]), lambda v: v.as_ordered())
pandas(
    "Timestamp", lambda: pd.Timestamp("2026-01-01 01:00", tz="Europe/Paris"), lambda v: v.tz_convert("UTC")
)
pandas("Timedelta", lambda: pd.Timedelta("1s"), lambda v: -v)
pandas("Period", lambda: pd.Period("2026-01", "M"), lambda v: v + 1)
pandas("Interval", lambda: pd.Interval(0, 1), lambda _: pd.Interval(0, 1, "left"))
pandas("NaT", lambda: pd.NaT, lambda _: pd.NA)
pandas("NA", lambda: pd.NA, lambda _: pd.NaT, lambda v: v is pd.NA)
pandas("DateOffset", lambda: pd.offsets.MonthEnd(2), lambda _: pd.offsets.MonthEnd(3))
pandas("CategoricalDtype", lambda: pd.CategoricalDtype(["a"]), lambda _: pd.CategoricalDtype(["b"]))
pandas("arrays.IntegerArray", lambda: pd.array([1, None], dtype="Int8"), put(1, value=3))
pandas("Categorical", lambda: pd.Categorical(["a", None]), put(1, value="a"))
pandas(
    "DataFrameGroupBy",
    lambda: _twice().T.reset_index(drop=True).groupby("x"),
    lambda v: v.obj.__setitem__("y", 0),
    lambda v: v.sum(),
)


# --- polars, pyarrow ---


def polars(
    name: str, make: Callable[[], Any], change: Callable[[Any], Any], view: Callable[[Any], Any] = lambda v: v
) -> None:
    row("polars", name, make, change, view)


def _polars() -> Any:
    return pl.DataFrame(
        {
            "n": range(5000),
            "s": [f"t{n % 9}" if n % 5 else None for n in range(5000)],
            "l": [[n] for n in range(5000)],
        }
    )


polars("DataFrame", _polars, lambda v: v.with_columns(n=pl.col("n") + 1))
polars("DataFrame, in place", _polars, put(3, "n", value=9))
polars("LazyFrame", lambda: _polars().lazy(), lambda v: v.filter(pl.col("n") > 3), lambda v: v.collect())
polars("Series of float", lambda: pl.Series("a", [1.0, None]), lambda v: v.rename("b"))
polars("Series of str", lambda: pl.Series(["a", None, "ü"]), lambda v: v.reverse())
polars(
    "Series of Categorical", lambda: pl.Series(["b", "a", "c"], dtype=pl.Categorical), lambda v: v.reverse()
)
polars("Series of Enum", lambda: pl.Series(["b", "a"], dtype=pl.Enum(["a", "b"])), lambda v: v.reverse())
polars(
    "Series of Datetime",
    lambda: pl.Series([0, None]).cast(pl.Datetime("us", "Europe/Paris")),
    lambda v: v.cast(pl.Datetime("ms", "UTC")),
)
polars("Series of Struct", lambda: pl.Series([{"a": 1, "b": "x"}, None]), lambda v: v.reverse())
polars("Expr", lambda: pl.col("a") + 1, lambda v: v * 2, str)
polars("Schema", lambda: pl.Schema({"a": pl.Int8()}), lambda v: v.update(b=pl.String()))
polars("DataType", lambda: pl.Datetime("us"), lambda _: pl.Datetime("ms"))


def arrow(
    name: str, make: Callable[[], Any], change: Callable[[Any], Any], view: Callable[[Any], Any] = lambda v: v
) -> None:
    row("pyarrow", name, make, change, view)


def _table() -> Any:
    table = pa.table({"n": list(range(5000)), "s": [f"t{n % 9}" if n % 5 else None for n in range(5000)]})
    return table.replace_schema_metadata({"a": "b"})


arrow("Table", _table, lambda v: v.set_column(0, "n", pa.array([0] * 5000)), lambda v: (v, v.schema.metadata))
arrow("Table, sliced", lambda: _table().slice(7, 4000), lambda v: v.slice(1))
arrow("Table, metadata", _table, lambda v: v.replace_schema_metadata(None), lambda v: v.schema.metadata)
arrow("RecordBatch", lambda: _table().to_batches()[0], lambda v: v.slice(1))
arrow("ChunkedArray", lambda: pa.chunked_array([[1, None], [3]]), lambda v: v.slice(1))
for name, make in {
    "float64": lambda: pa.array([1.0, None]),
    "bool": lambda: pa.array([True, None, False]),
    "string": lambda: pa.array(["a", None, "ü"]),
    "binary": lambda: pa.array([b"a", b"bc"]),
    "decimal": lambda: pa.array([1, 2], pa.decimal128(10, 2)),
    "timestamp": lambda: pa.array([1, None], pa.timestamp("us", "UTC")),
    "dictionary": lambda: pa.array(["a", "b", "a"]).dictionary_encode(),
    "list": lambda: pa.array([[1], None, [2, 3]]),
    "struct": lambda: pa.array([{"a": 1}, {"a": None}]),
    "map": lambda: pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
}.items():
    arrow(f"Array of {name}", make, lambda v: v.slice(1))
arrow("Schema", lambda: pa.schema([("a", pa.int8())]), lambda v: v.append(pa.field("b", pa.int8())))
arrow("Field", lambda: pa.field("a", pa.int8()), lambda v: v.with_nullable(False))
arrow("DataType", lambda: pa.list_(pa.int8()), lambda _: pa.list_(pa.int16()))
arrow("Scalar", lambda: pa.scalar(3), lambda _: pa.scalar(3, pa.int8()))
arrow("Buffer", lambda: pa.py_buffer(b"abc"), lambda _: pa.py_buffer(b"abd"), lambda v: v.to_pybytes())
