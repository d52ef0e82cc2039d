"""The codec gives back exactly what it was given: plain values, shared and cyclic ones, big ones."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import math
import pathlib
import struct
import types
import uuid
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbflow.core.errors import CannotRestore, CannotStore, CorruptLeaf
from nbflow.core.model import Checkpoint, LeafRef, OutputInfo
from nbflow.values.codec import BODY_MAXIMUM, decode, encode
from nbflow.values.roundtrip import check_roundtrip
from tests.values.codec_box import Box, run, there_and_back

plain_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(codec=None))
)
scalars = plain_scalars | st.binary() | st.complex_numbers() | st.decimals() | st.datetimes() | st.uuids()
hashable = st.recursive(
    plain_scalars | st.binary() | st.datetimes(),
    lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(hashable, inner, max_size=5)
            | st.dictionaries(st.text(), inner, max_size=5)
            | st.tuples(inner, inner)
            | st.sets(hashable, max_size=4)
        ),
        max_leaves=20,
    )


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same to the last bit: types, NaN payloads, signs of zero, order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, decimal.Decimal):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(item, twin) for twin in other) for item in one)
    return bool(one == other)


fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fast
@given(st.dictionaries(st.text(min_size=1), nested(scalars), max_size=4))
def test_nested_values_come_back_to_the_last_bit(variables: dict[str, Any]) -> None:
    """Whatever is nested in whatever comes back equal, of the same type and in the same order."""
    try:
        encoded = encode(variables)
    except UnicodeEncodeError:
        pytest.skip("a name that is no text")
    assert same(variables, decode(encoded.checkpoint(), lambda digest: memoryview(b"")))


@fast
@given(st.recursive(plain_scalars, lambda i: st.lists(i) | st.dictionaries(st.text(), i), max_leaves=20))
def test_json_is_used_only_where_it_is_exact(value: Any) -> None:
    """A value that went through JSON is the same to the last bit."""
    encoded = encode({"value": value})
    if encoded.codec == "json":
        assert same(value, msgspec.json.decode(encoded.body)["value"])
    assert same(value, decode(encoded.checkpoint(), lambda digest: memoryview(b""))["value"])


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(2**63),
        2**64 - 1,
        1.5,
        -0.0,
        "text",
        [],
        {},
        [1, [2, {"a": None}]],
        {"a": {"b": [1.0]}},
    ],
    ids=repr,
)
def test_json_able_values_need_no_pickle(value: Any) -> None:
    """A value that JSON holds exactly is stored as JSON."""
    assert encode({"value": value}).codec == "json"


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        2**64,
        -(2**63) - 1,
        (1,),
        {1: 2},
        b"x",
        "\ud800",
        {"a"},
        [enum.IntEnum("E", "A").A],
    ],
    ids=repr,
)
def test_what_json_would_change_is_pickled(value: Any) -> None:
    """A value that JSON would change goes through pickle and comes back exactly."""
    encoded = encode({"value": value})
    assert encoded.codec == "pickle"
    assert same(value, decode(encoded.checkpoint(), lambda digest: memoryview(b""))["value"])


def test_many_numbers_are_looked_at_one_by_one() -> None:
    """One NaN among a thousand floats, one huge integer among a thousand: not JSON."""
    assert encode({"value": [1.0] * 1000}).codec == "json"
    assert encode({"value": [1.0] * 999 + [math.nan]}).codec == "pickle"
    assert encode({"value": [1] * 999 + [2**70]}).codec == "pickle"


def test_a_list_met_twice_is_one_list_afterwards() -> None:
    """Two variables, or two parts of one, that are one object stay one object."""
    shared: list[Any] = [1]
    found = there_and_back(a=shared, b={"inner": shared}, c=[shared, shared])
    found["a"].append(2)
    assert found["b"]["inner"] is found["a"]
    assert found["c"][0] is found["c"][1] is found["a"]


def test_a_value_may_contain_itself() -> None:
    """Cycles through lists, dicts and objects come back as the same cycles."""
    knot: list[Any] = [1]
    knot.append(knot)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    thing = types.SimpleNamespace()
    thing.me = thing
    found = there_and_back(knot=knot, loop=loop, thing=thing)
    assert found["knot"][1] is found["knot"]
    assert found["loop"]["self"] is found["loop"]
    assert found["thing"].me is found["thing"]


@st.composite
def graphs(draw: st.DrawFn) -> list[list[Any]]:
    """Lists that hold numbers and one another in any way."""
    nodes: list[list[Any]] = [[] for _ in range(draw(st.integers(1, 6)))]
    for node in nodes:
        for choice in draw(st.lists(st.integers(-3, len(nodes) - 1), max_size=5)):
            node.append(nodes[choice] if choice >= 0 else choice)
    return nodes


def shape(nodes: list[list[Any]]) -> list[Any]:
    """Return the graph with numbers in place of objects."""
    numbers = {id(node): f"n{i}" for i, node in enumerate(nodes)}
    return [[numbers.get(id(item), item) for item in node] for node in nodes]


@fast
@given(graphs())
def test_shared_and_cyclic_references_keep_their_shape(nodes: list[list[Any]]) -> None:
    """Any graph of lists, spread over variables, comes back as the same graph."""
    found = there_and_back(**{f"v{i}": node for i, node in enumerate(nodes)})
    assert shape(list(found.values())) == shape(nodes)


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Record:
    name: str
    parts: list[int]


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a = 1


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("hello"),
        collections.deque([1, 2], maxlen=3),
        Colour.RED,
        Point(1, 2),
        Record("r", [1]),
        dt.datetime(2024, 1, 1, fold=1, tzinfo=dt.timezone.utc),
        dt.timedelta(days=-1, microseconds=1),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        pathlib.Path("/tmp/x"),
        uuid.UUID(int=5),
        range(1, 10, 2),
        slice(1, None, 2),
        Ellipsis,
        NotImplemented,
        int,
        len,
        math,
        bytearray(b"abc"),
        np.float32(1.5),
        np.datetime64("2020-01-01", "D"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_standard_classes_come_back_equal(value: Any) -> None:
    """Classes of the standard library and one's own in modules keep type and value."""
    found = there_and_back(value=value)["value"]
    assert found == value
    assert type(found) is type(value)


def test_slots_and_functions_come_back() -> None:
    """Objects with slots, lambdas, closures and partials work afterwards as before."""
    factor = 3
    found = there_and_back(
        slotted=Slotted(),
        double=lambda x: 2 * x,
        closure=lambda x: factor * x,
        part=functools.partial(pow, 2),
    )
    assert found["slotted"].a == 1
    assert not hasattr(found["slotted"], "b")
    assert found["double"](4) == 8
    assert found["closure"](4) == 12
    assert found["part"](5) == 32


@pytest.mark.parametrize(
    "make", [bytes, bytearray, lambda raw: raw.decode("latin-1")], ids=["bytes", "bytearray", "str"]
)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000])
def test_big_strings_are_leaves(make: Any, size: int, tmp_path: pathlib.Path) -> None:
    """Byte strings and text beyond 64 KiB are leaves of their own, and exact around the limit."""
    value = make(np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes())
    box = Box(tmp_path)
    checkpoint = box.store({"before": [1, (2,)], "value": value, "after": value})
    found = decode(checkpoint, box.fetch)
    assert same(value, found["value"])
    assert found["after"] is found["value"]
    if size == 300_000 and not isinstance(value, str):
        assert size in [ref.size for ref in checkpoint.leaves]


def test_equal_big_strings_are_stored_once(tmp_path: pathlib.Path) -> None:
    """Two equal byte strings are two objects and one leaf."""
    box = Box(tmp_path)
    one, other = bytes(100_000), b"\0" * 100_000
    found = decode(box.store({"pair": (one, bytearray(other))}), box.fetch)
    assert found["pair"] == (one, bytearray(other))
    assert box.written < 110_000


def test_a_long_body_is_the_last_leaf(tmp_path: pathlib.Path) -> None:
    """An envelope beyond 64 KiB is a leaf itself, JSON or pickle."""
    box = Box(tmp_path)
    for value in (list(range(100_000)), {i: str(i) for i in range(100_000)}):
        checkpoint = box.store({"value": value})
        assert checkpoint.body == b""
        assert checkpoint.leaves[-1].size > BODY_MAXIMUM
        assert decode(checkpoint, box.fetch) == {"value": value}


def test_no_variables_are_fine() -> None:
    """Nothing comes back as nothing."""
    assert there_and_back() == {}


def test_outputs_tell_type_size_and_preview() -> None:
    """Every variable is described without being loaded."""
    plain = encode({"n": 1, "items": ["a"] * 500}).outputs
    assert [(o.name, o.type, o.preview) for o in plain][0] == ("n", "int", "1")
    assert len(plain[1].preview) <= 200
    other = {o.name: o for o in encode({"point": Point(1, 2), "zeros": np.zeros((1000, 1000))}).outputs}
    assert other["point"].preview == "Point(x=1, y=2)"
    assert other["zeros"].type == "numpy.ndarray"
    assert other["zeros"].preview == "ndarray 1,000 × 1,000 float64"
    assert 8_000_000 <= other["zeros"].size < 8_001_000
    assert all(isinstance(o, OutputInfo) and len(o.fingerprint) == 32 for o in other.values())


class Rude:
    """Its every text raises, and so does looking at it."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def test_a_preview_never_runs_foreign_code() -> None:
    """A class whose repr raises is stored and described all the same."""
    outputs = {o.name: o for o in encode({"rude": Rude(), "inside": [Rude()] * 2}).outputs}
    assert "Rude" in outputs["rude"].preview
    assert "Rude" in outputs["inside"].preview


# -- damaged and foreign bytes ---------------------------------------------------------------


def checkpoint_of(value: Any) -> Checkpoint:
    encoded = encode({"value": value})
    assert not encoded.leaves
    return encoded.checkpoint()


@pytest.mark.parametrize(
    "value", [{"a": [1, 2, 3]}, (1, "two", 3.0, b"four", np.arange(10))], ids=["json", "pickle"]
)
def test_a_cut_envelope_is_refused(value: Any) -> None:
    """However many bytes are missing at the end, the answer is CannotRestore."""
    whole = checkpoint_of(value)
    for size in range(1, len(whole.body)):
        with pytest.raises(CannotRestore):
            decode(msgspec.structs.replace(whole, body=whole.body[:size]), lambda digest: memoryview(b""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_altered_envelope_never_crashes(data: st.DataObject) -> None:
    """With any byte of the header changed the answer is a value or CannotRestore, never another error."""
    whole = checkpoint_of((1, "two", 3.0, np.arange(10)))
    body = bytearray(whole.body)
    # Only the header: what pickle itself does with altered opcodes is why the record carries a MAC.
    body[data.draw(st.integers(0, 40))] = data.draw(st.integers(0, 255))
    try:
        decode(msgspec.structs.replace(whole, body=bytes(body)), lambda digest: memoryview(b""))
    except CannotRestore:
        pass


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1), st.sampled_from(["json", "pickle", "other"]))
def test_foreign_bytes_are_refused(body: bytes, codec: str) -> None:
    """Bytes that are no envelope are refused with CannotRestore."""
    try:
        found = decode(Checkpoint(codec, body), lambda digest: memoryview(b""))
    except CannotRestore:
        return
    assert codec == "json"
    assert isinstance(found, dict)


def test_an_empty_checkpoint_is_refused() -> None:
    """Neither body nor leaves: refused."""
    with pytest.raises(CannotRestore):
        decode(Checkpoint("pickle"), lambda digest: memoryview(b""))


def test_a_missing_leaf_is_the_stores_error(tmp_path: pathlib.Path) -> None:
    """What the store says about a leaf is not covered up."""
    checkpoint = Box(tmp_path).store({"a": np.arange(10_000)})

    def fetch(digest: bytes) -> memoryview:
        raise CorruptLeaf("The leaf is gone.", digest=digest)

    with pytest.raises(CorruptLeaf):
        decode(checkpoint, fetch)


def test_a_short_leaf_is_refused(tmp_path: pathlib.Path) -> None:
    """A leaf of another size than recorded is refused, naming the variable."""
    box = Box(tmp_path)
    checkpoint = box.store({"a": np.arange(10_000)})
    with pytest.raises(CannotRestore) as caught:
        decode(checkpoint, lambda digest: box.fetch(digest)[:-8])
    assert caught.value.variable == "a"


def test_a_missing_class_names_the_variable() -> None:
    """A class that is gone is CannotRestore with the variable's name and what to do."""
    module = types.ModuleType("passing_module")
    exec("class Gone: pass", module.__dict__)
    import sys

    sys.modules["passing_module"] = module
    try:
        encoded = encode({"fine": (1,), "gone": module.Gone()})
    finally:
        del sys.modules["passing_module"]
    with pytest.raises(CannotRestore, match="passing_module") as caught:
        decode(encoded.checkpoint(), lambda digest: memoryview(b""))
    assert caught.value.variable == "gone"


def test_small_plain_values_load_nothing_heavy() -> None:
    """Encoding and decoding JSON-able values imports neither NumPy, pandas, Arrow nor cloudpickle."""
    script = """
import sys
for name in ("numpy", "pandas", "pyarrow", "cloudpickle", "duckdb"):
    sys.modules.pop(name, None)
assert decode(encode({"a": [1, {"b": None}]}).checkpoint(), None) == {"a": [1, {"b": None}]}
print([name for name in ("numpy", "pandas", "pyarrow", "cloudpickle", "duckdb") if name in sys.modules])
"""
    assert run(script) == "[]"


# -- what lies about itself -------------------------------------------------------------------


class Liar:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Liar, (0,)


def test_a_lying_pickle_is_found_on_request() -> None:
    """A class whose pickle gives something else is named by check_roundtrip; honest ones are not."""
    found = check_roundtrip(
        {
            "honest": Record("r", [1]),
            "liar": Liar(5),
            "deep": {"x": [Record("r", [Liar(1)])]},
            "array": np.arange(5000),
        }
    )
    assert [difference.variable for difference in found] == ["liar", "deep"]
    assert "liar.value" in found[0].reason
    assert "deep['x'][0].parts[0].value" in found[1].reason


def test_equal_values_have_no_difference() -> None:
    """NaN, cycles, frames, sets and functions are not reported."""
    import pandas as pd

    knot: list[Any] = [math.nan]
    knot.append(knot)
    values = {
        "knot": knot,
        "frame": pd.DataFrame({"a": ["x", None]}),
        "set": {1, "a"},
        "f": lambda x: x,
        "slots": Slotted(),
    }
    assert check_roundtrip(values) == []


def test_unknown_codec_is_refused() -> None:
    """A codec of a later version is refused by name."""
    with pytest.raises(CannotRestore, match="brotli"):
        decode(Checkpoint("brotli", b"x"), lambda digest: memoryview(b""))


def test_leaves_and_references_must_match() -> None:
    """A checkpoint cannot be made with a reference missing."""
    with pytest.raises(ValueError, match="leaves"):
        encode({"a": np.arange(10_000)}).checkpoint(())
    assert isinstance(LeafRef(b"", 0), LeafRef)
    assert issubclass(CannotStore, Exception)
