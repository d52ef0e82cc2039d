"""NumPy arrays come back exactly, in every layout, and share memory afterwards as they did before."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbflow.values.codec import decode, encode
from nbflow.values.leaf import LEAF_MINIMUM
from nbflow.values.memory import PIECE
from tests.values.codec_box import Box, there_and_back

BIG = 5000


def same(one: Any, other: Any) -> None:
    """Assert equality to the last bit, and of type, dtype, shape and flags."""
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    if one.dtype.hasobject:
        assert pickle.dumps(one.tolist()) == pickle.dumps(other.tolist())
    else:
        assert one.tobytes() == other.tobytes()
    assert one.flags.writeable == other.flags.writeable
    assert one.flags.aligned == other.flags.aligned or other.flags.aligned


ARRAYS = {
    "float": np.arange(BIG) * 0.5,
    "fortran": np.asfortranarray(np.arange(BIG * 1.0).reshape(50, 100)),
    "transposed": np.arange(BIG * 6).reshape(10, 20, 150).transpose(2, 0, 1),
    "every third": np.arange(BIG * 3)[::3],
    "backwards": np.arange(BIG)[::-1],
    "inner": np.arange(BIG * 4).reshape(100, 200)[10:90, 20:180:2],
    "broadcast": np.broadcast_to(np.arange(3000.0), (7, 3000)),
    "scalar": np.array(5.5),
    "empty": np.empty((0, 3), "M8[s]"),
    "structured": np.zeros(BIG, [("a", "<i4"), ("b", "<f8"), ("c", "S3")]),
    "field": np.zeros(BIG, [("a", "<i4"), ("b", "<f8")])["b"],
    "unaligned": np.frombuffer(bytes(BIG * 8 + 1), "<f8", offset=1, count=BIG),
    "big endian": np.arange(BIG, dtype=">i4"),
    "dates": np.arange(BIG).astype("M8[D]"),
    "deltas": np.arange(BIG).astype("m8[ns]"),
    "text": np.array(["ü" * (i % 5) for i in range(BIG)]),
    "bytes": np.array([b"x" * (i % 5) for i in range(BIG)]),
    "void": np.zeros(BIG, "V7"),
    "bool": np.arange(BIG * 5) % 3 == 0,
    "half": np.arange(BIG * 3).astype("f2"),
    "complex": np.arange(BIG) * (1 + 2j),
    "long double": np.arange(BIG).astype(np.longdouble),
    "objects": np.array([1, "a", None, (1,)] * 100, dtype=object),
    "object structure": np.array([(1, "x")] * 10, [("a", int), ("o", object)]),
    "read-only": np.frombuffer(bytes(BIG * 8), "<f8"),
    "small read-only": np.frombuffer(bytes(80), "<f8"),
    "matrix": np.matrix(np.arange(BIG * 1.0).reshape(50, -1)),
    "records": np.rec.array([(1, 2.0)] * BIG, dtype=[("a", int), ("b", float)]),
    "chararray": np.char.array(["abc"] * BIG),
}


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_every_layout_comes_back(kind: str) -> None:
    """Values, dtype, shape and flags survive, for contiguous, strided, negative, broadcast and odd arrays."""
    array = ARRAYS[kind]
    found = there_and_back(array=array)["array"]
    same(array, found)
    if array.flags.f_contiguous and array.ndim > 1:
        assert found.flags.f_contiguous


def test_nan_payloads_and_signs_survive() -> None:
    """Every bit pattern of float64 comes back: payloads, quiet and signalling NaN, -0.0, subnormals."""
    bits = np.random.default_rng(0).integers(0, 2**64, BIG, np.uint64)
    bits[:1000] |= np.uint64(0x7FF0000000000000)
    array = bits.view(np.float64)
    same(array, there_and_back(array=array)["array"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(
        st.one_of(
            hnp.scalar_dtypes(), hnp.array_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes()
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    st.data(),
)
def test_any_array_and_any_view_of_it_come_back(array: np.ndarray, data: st.DataObject) -> None:
    """Arrays of any dtype and a basic view of them, which still shares memory if it did."""
    view = data.draw(hnp.basic_indices(array.shape, allow_newaxis=True).map(lambda index: array[index]))
    found = there_and_back(view=view, array=array, turned=array.T)
    same(array, found["array"])
    same(array.T, found["turned"])
    if isinstance(view, np.ndarray):
        same(view, found["view"])
        assert np.shares_memory(found["view"], found["array"]) == np.shares_memory(view, array)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9000), st.integers(1, 9000), st.sampled_from([1, 1, 2, -1, 7])),
        min_size=1,
        max_size=6,
    )
)
def test_slices_of_one_large_array_share_as_before(cuts: list[tuple[int, int, int]]) -> None:
    """Any set of slices of a large array: equal values, and exactly those share memory that did."""
    base = np.arange(20_000) * 1.0
    views = [base[start : start + count][::step] for start, count, step in cuts]
    found = list(there_and_back(**{f"v{i}": view for i, view in enumerate(views)}).values())
    for one, other in zip(views, found, strict=True):
        same(one, other)
    for i in range(len(views)):
        for j in range(i):
            if np.shares_memory(views[i], views[j]):
                assert np.shares_memory(found[i], found[j])
    found[0][...] = -1
    touched = np.zeros(20_000, bool)
    touched[np.ravel(views[0]).astype(int)] = True
    for view, other in zip(views[1:], found[1:], strict=True):
        np.testing.assert_array_equal(other == -1, touched[view.astype(int)])


def test_a_view_points_into_its_base() -> None:
    """Writing to a restored view changes the restored base, small, large, reshaped, recast or of objects."""
    for base in (np.arange(10), np.arange(BIG), np.array([None] * 10, dtype=object)):
        found = there_and_back(view=base[2:8:2], base=base, whole=base.reshape(5, -1), again=base)
        found["view"][1] = 77
        assert found["base"][4] == 77
        assert found["whole"].ravel()[4] == 77
        assert found["again"] is found["base"]
    objects = np.array([[i] for i in range(20 * BIG)] + [None], dtype=object)
    found = there_and_back(view=objects[5:10], objects=objects)
    found["view"][0] = "x"
    assert found["objects"][5] == "x"
    assert len(encode({"view": objects[5:10]}).body) < 1000
    number = np.arange(BIG)
    found = there_and_back(bits=number.view(np.uint8), number=number)
    found["bits"][0] = 9
    assert found["number"][0] == 9


def test_a_view_inside_containers_shares_too() -> None:
    """Memory is shared over variables, lists and attributes."""
    base = np.arange(BIG)
    found = there_and_back(a={"x": [base[:100]]}, b=(base,))
    found["b"][0][3] = -1
    assert found["a"]["x"][0][3] == -1


def test_a_small_view_does_not_drag_its_base_along(tmp_path: Path) -> None:
    """Ten numbers of a base that no variable holds are stored as ten numbers."""
    box = Box(tmp_path)
    big = np.arange(1_000_000)
    checkpoint = box.store(
        {"head": big[:10], "sparse": big[50::100_000], "column": big.reshape(1000, 1000)[:, 500]}
    )
    assert box.written == 0
    assert len(checkpoint.body) < 10_000
    found = decode(checkpoint, box.fetch)
    assert found["column"][1] == 1500


def test_equal_arrays_are_one_leaf_and_two_memories(tmp_path: Path) -> None:
    """A copy costs no second leaf, and writing to one does not change the other."""
    box = Box(tmp_path)
    one = np.arange(BIG)
    checkpoint = box.store({"one": one, "two": one.copy()})
    assert len(checkpoint.leaves) == 1
    shared = box.fetch(checkpoint.leaves[0].digest)
    for fetch in (box.fetch, lambda digest: shared):  # even from a store that hands out one mapping
        found = decode(checkpoint, fetch)
        found["one"][0] = 99
        assert found["two"][0] == 0


def test_restored_arrays_are_writable_and_private(tmp_path: Path) -> None:
    """A restored array lies in the mapped memory, can be written, and the file does not change."""
    box = Box(tmp_path)
    checkpoint = box.store({"a": np.arange(BIG)})
    decode(checkpoint, box.fetch)["a"][:] = -1
    assert decode(checkpoint, box.fetch)["a"][3] == 3


def test_a_read_only_leaf_is_copied(tmp_path: Path) -> None:
    """A store that can only give read-only memory still yields writable arrays."""
    box = Box(tmp_path)
    checkpoint = box.store({"a": np.arange(BIG)})
    found = decode(checkpoint, lambda digest: memoryview(bytes(box.fetch(digest))))["a"]
    found[0] = 5
    assert found[0] == 5


def test_memmap_comes_back_in_memory(tmp_path: Path) -> None:
    """A memmap keeps type and numbers; its file may be gone."""
    path = tmp_path / "numbers"
    mapped = np.memmap(path, "<f8", "w+", shape=(50, 100))
    mapped[:] = np.arange(BIG).reshape(50, 100)
    encoded = Box(tmp_path).store({"mapped": mapped, "part": mapped[3]})
    assert encoded.leaves
    found = there_and_back(mapped=mapped, part=mapped[3])
    assert type(found["mapped"]) is np.memmap
    assert (found["mapped"] == np.arange(BIG).reshape(50, 100)).all()
    found["mapped"][3, 0] = -7
    assert found["part"][0] == -7


@pytest.mark.parametrize("size", [10, BIG])
def test_masked_arrays_come_back(size: int) -> None:
    """Data, mask, fill value and hardness survive, and the data is a leaf."""
    plain = np.ma.masked_array(np.arange(size))
    masked = np.ma.masked_array(
        np.arange(size) * 1.0, mask=np.arange(size) % 3 == 0, fill_value=-9.0, hard_mask=True
    )
    found = there_and_back(plain=plain, masked=masked)
    assert found["plain"].mask is np.ma.nomask
    assert (found["masked"].mask == masked.mask).all()
    assert (found["masked"].data == masked.data).all()
    assert found["masked"].fill_value == -9.0
    assert found["masked"].hardmask
    found["plain"][0] = np.ma.masked
    assert found["plain"].mask[0]


def test_strided_leaves_are_written_in_pieces() -> None:
    """A column of a row-major matrix is hashed and written in pieces of 1 MiB, never copied whole."""
    matrix = np.arange(3_000_000.0).reshape(-1, 3)
    encoded = encode({"column": matrix[:, 1]})
    (leaf,) = encoded.leaves
    sizes = [part.nbytes for part in leaf.parts]
    assert sum(sizes) == leaf.size == 8_000_000
    assert max(sizes) <= PIECE
    assert b"".join(leaf.parts) == matrix[:, 1].tobytes()


def test_small_arrays_stay_in_the_envelope() -> None:
    """Below the minimum no leaf is made."""
    assert not encode({"a": np.zeros(LEAF_MINIMUM // 8 - 1)}).leaves
    assert len(encode({"a": np.zeros(LEAF_MINIMUM // 8)}).leaves) == 1


ARROW = {
    "int": pa.array([1, None, 3] * BIG),
    "float": pa.array([1.5, None, -0.0] * BIG),
    "bool": pa.array([True, None, False] * BIG * 10),
    "text": pa.array(["a", None, "üü"] * BIG),
    "large text": pa.array(["a", None, "üü"] * BIG, pa.large_string()),
    "binary": pa.array([b"a", None, b""] * BIG),
    "view": pa.array(["a", None, "long enough not to be inline"] * BIG, pa.string_view()),
    "dictionary": pa.array(["a", None, "b"] * BIG).dictionary_encode(),
    "list": pa.array([[1, 2], None, []] * BIG),
    "struct": pa.array([{"a": 1, "b": "x"}, None] * BIG),
    "stamps": pa.array([1, None, 3] * BIG, pa.timestamp("us", "Europe/Berlin")),
    "decimal": pa.array([1, None] * BIG, pa.decimal128(12, 2)),
    "fixed": pa.array([b"abc", None] * BIG, pa.binary(3)),
    "null": pa.nulls(BIG),
    "empty": pa.array([], pa.string()),
    "date": pa.array([1, None] * BIG, pa.date32()),
}


@pytest.mark.parametrize("kind", list(ARROW))
def test_arrow_data_comes_back(kind: str, tmp_path: Path) -> None:
    """Arrays, slices, chunked arrays, batches and tables are equal afterwards, and valid."""
    array = ARROW[kind]
    part = array.slice(len(array) // 3, len(array) // 2)
    chunks = pa.chunked_array([part, array.slice(0, 5), array.slice(0, 0)], array.type)
    table = pa.table({"x": chunks, "y": chunks}).replace_schema_metadata({"k": "v"})
    batch = pa.record_batch({"x": part})
    found = Box(tmp_path).back(array=array, part=part, chunks=chunks, table=table, batch=batch)
    for name, value in {
        "array": array,
        "part": part,
        "chunks": chunks,
        "table": table,
        "batch": batch,
    }.items():
        assert found[name].equals(value), name
        found[name].validate(full=True)
        assert type(found[name]) is type(value)
    assert found["chunks"].num_chunks == chunks.num_chunks
    assert found["table"].schema.equals(table.schema, check_metadata=True)


@pytest.mark.parametrize("kind", ["int", "text", "bool", "list", "dictionary"])
def test_slices_of_arrow_data_store_only_their_own_bytes(kind: str, tmp_path: Path) -> None:
    """A tenth of an array is a tenth of the bytes, and the same bytes wherever it was cut from."""
    array = pa.concat_arrays([ARROW[kind].dictionary_decode() if kind == "dictionary" else ARROW[kind]] * 10)
    array = array.dictionary_encode() if kind == "dictionary" else array
    box = Box(tmp_path)
    whole = sum(len(p) for p in [encode({"x": array}).body]) + sum(
        leaf.size for leaf in encode({"x": array}).leaves
    )
    one = box.store({"x": array.slice(3, len(array) // 10)})
    size = sum(ref.size for ref in one.leaves) + len(one.body)
    assert size < whole * 0.15
    other = box.store({"x": pa.concat_arrays([array.slice(3, len(array) // 10)])})
    assert [ref.digest for ref in one.leaves] == [ref.digest for ref in other.leaves]


def test_polars_comes_back(tmp_path: Path) -> None:
    """Polars frames and series of every dtype keep it; plain columns are leaves."""
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "i": range(BIG),
            "f": [1.5, None] * (BIG // 2),
            "s": ["a", None] * (BIG // 2),
            "l": [[1], None] * (BIG // 2),
            "d": pl.Series([1, None] * (BIG // 2)).cast(pl.Datetime("us", "UTC")),
            "t": pl.Series([1, 2] * (BIG // 2)).cast(pl.Time),
            "u": pl.Series([1, None] * (BIG // 2), dtype=pl.Duration("ms")),
            "e": pl.Series(["a", "b"] * (BIG // 2), dtype=pl.Enum(["b", "a"])),
            "c": pl.Series(["a", "b"] * (BIG // 2), dtype=pl.Categorical),
            "b": [True, None] * (BIG // 2),
            "n": [None] * BIG,
        }
    )
    box = Box(tmp_path)
    encoded = encode({"frame": frame})
    (output,) = encoded.outputs
    assert output.rows == BIG
    assert output.columns is not None
    assert sum(column.leaf is not None for column in output.columns) >= 4
    found = box.back(
        frame=frame,
        series=frame["f"],
        part=frame[5:10],
        empty=pl.DataFrame(),
        tall=frame.select("i", "s")[:0],
    )
    assert found["frame"].equals(frame)
    assert found["frame"].schema == frame.schema
    assert found["series"].equals(frame["f"])
    assert found["part"].equals(frame[5:10])
    assert found["empty"].shape == (0, 0)
    assert found["tall"].schema == frame.select("i", "s").schema


def test_sparse_matrices_come_back(tmp_path: Path) -> None:
    """scipy's sparse matrices are leaves through their arrays."""
    sparse = pytest.importorskip("scipy.sparse")
    for matrix in (
        sparse.random(1000, 1000, 0.05, "csr"),
        sparse.random_array((1000, 1000), density=0.05).tocoo(),
    ):
        checkpoint = Box(tmp_path).store({"m": matrix})
        assert len(checkpoint.leaves) >= 2
        found = there_and_back(m=matrix)["m"]
        assert type(found) is type(matrix)
        assert (found != matrix).nnz == 0


def test_torch_tensors_share_memory_as_before(tmp_path: Path) -> None:
    """Tensors and parameters go through NumPy; a view and an array on the same memory still share it."""
    torch = pytest.importorskip("torch")
    base = torch.arange(BIG * 1.0)
    found = there_and_back(base=base, view=base[10:20], array=base.numpy(), half=base.bfloat16())
    found["view"][0] = -5
    assert found["base"][10] == found["array"][10] == -5
    assert found["half"].dtype is torch.bfloat16
    model = torch.nn.Linear(100, 100)
    again = there_and_back(model=model)["model"]
    assert all(
        torch.equal(a, b) and a.requires_grad == b.requires_grad
        for a, b in zip(model.parameters(), again.parameters())
    )


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_a_restored_generator_spawns_the_children_it_would_have(kind: str) -> None:
    """A generator comes back with its state and with the seed that `spawn` goes by."""
    generator = np.random.Generator(getattr(np.random, kind)(5))
    generator.random()
    generator.spawn(1)
    restored = there_and_back(it=generator)["it"]
    assert restored.random() == generator.random()
    assert restored.spawn(1)[0].random() == generator.spawn(1)[0].random()


def test_a_legacy_generator_comes_back_with_its_state() -> None:
    """A `RandomState` goes on where it was."""
    state = np.random.RandomState(4)
    state.random_sample()
    assert there_and_back(it=state)["it"].random_sample() == state.random_sample()
