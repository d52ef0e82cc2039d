"""Fingerprints of Python's own values: the same everywhere for the same content, another for any change."""

from __future__ import annotations

import base64
import collections
import datetime as dt
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbflow.values.fingerprint import Fingerprint, fingerprint
from nbflow.values.leaf import Digests
from tests.values.codec_box import there_and_back

ROOT = Path(__file__).resolve().parents[2]

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.just(dt.UTC) | st.none())
    | st.timedeltas()
)
keys = st.integers() | st.text() | st.booleans() | st.tuples(st.text(), st.integers())
hashable = st.recursive(
    keys | st.binary() | st.none(), lambda x: st.frozensets(x) | st.tuples(x, x), max_leaves=8
)
values = st.recursive(
    atoms | st.sets(hashable) | st.frozensets(hashable),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner)
        | inner.map(lambda value: collections.deque([value]))
        | st.dictionaries(keys, inner).map(lambda value: collections.OrderedDict(value))
    ),
    max_leaves=20,
)


def in_another_process(pickled: list[bytes], seed: str) -> list[str]:
    """Return the fingerprints of pickled values as a process with this hash seed finds them."""
    script = (
        "import base64, pickle, sys\n"
        "from nbflow.values.fingerprint import fingerprint\n"
        "for line in sys.stdin:\n"
        "    print(fingerprint(pickle.loads(base64.b64decode(line))).digest.hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="".join(base64.b64encode(each).decode() + "\n" for each in pickled),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_any_value_has_one_fingerprint_under_every_hash_seed():
    """Nested values of every built-in kind, drawn at random, hash the same in processes with other hash seeds."""
    pickled, here = [], []

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(values)
    def collect(value):
        pickled.append(pickle.dumps(value, 5))
        here.append(fingerprint(value).digest.hex())
        assert fingerprint(value).stable

    collect()
    assert len(here) >= 200
    for seed in ("1", "2"):
        assert in_another_process(pickled, seed) == here


@settings(max_examples=80, deadline=None)
@given(values)
def test_a_copy_has_the_fingerprint_of_its_original(value):
    """It does not matter whether equal parts are one object or two."""
    assert fingerprint(pickle.loads(pickle.dumps(value))) == fingerprint(value)
    shared = [value, value]
    apart = [value, pickle.loads(pickle.dumps(value))]
    assert fingerprint(shared) == fingerprint(apart)


@settings(max_examples=60, deadline=None)
@given(values)
def test_a_round_trip_through_a_checkpoint_keeps_the_fingerprint(value):
    """What decode gives back has the fingerprint of what encode was given."""
    assert fingerprint(there_and_back(value=value)["value"]) == fingerprint(value)


@settings(max_examples=80, deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_one_changed_part_changes_the_fingerprint(value, data):
    """Replacing any one element by something with another repr is seen."""
    at = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(atoms)
    changed = [*value[:at], other, *value[at + 1 :]]
    if (type(other), repr(other)) != (type(value[at]), repr(value[at])):
        assert fingerprint(changed) != fingerprint(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(hashable, unique=True), st.randoms())
def test_sets_have_no_order_and_dictionaries_have(elements, chance):
    """A set hashes the same however it was filled; two dictionaries in another order differ."""
    mixed = list(elements)
    chance.shuffle(mixed)
    assert fingerprint(set(mixed)) == fingerprint(set(elements))
    assert fingerprint(frozenset(mixed)) == fingerprint(frozenset(elements))
    one, other = dict.fromkeys(elements), dict.fromkeys(mixed)
    assert (fingerprint(one) == fingerprint(other)) == (list(map(repr, one)) == list(map(repr, other)))


ALIKE = [
    0, 0.0, -0.0, False, 0j, "", b"", bytearray(), [], (), {}, set(), frozenset(), None, "0", b"0", 1, 1.0, True, [1], (1,),
    {1}, frozenset({1}), {1: None}, {1}.__class__, frozenset, list, "list", [[]], [()], [None], (None,), range(0), range(0, 0, 2),
    slice(0), slice(0, None), ..., NotImplemented, {}.keys(), {}.values(), {}.items(), {1: 2}.keys(), {2: 1}.values(),
    collections.OrderedDict(), collections.defaultdict(list), collections.defaultdict(set), collections.Counter(), collections.deque(), collections.deque(maxlen=3),
    2**64, -(2**64), float("nan"), float("inf"), "é", "e\u0301", ["ab", "c"], ["a", "bc"], [["a"], "b"], ["a", ["b"]],
    dt.date(2026, 1, 1), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, fold=1), dt.time(0), dt.timedelta(0),
    uuid.UUID(int=0), Path("a"), Path("a/b"), int, len, max, os, sys, ValueError("a"), KeyError("a"), ValueError("a", "b"), memoryview(b""),
]  # fmt: skip


def test_values_that_look_alike_have_fingerprints_of_their_own():
    """No two of seventy-odd easily confused values share a fingerprint, alone or in a list, a tuple or a dictionary."""
    for wrap in (lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"k": x}):
        found: dict[bytes, object] = {}
        for value in ALIKE:
            digest = fingerprint(wrap(value)).digest
            assert digest not in found, (value, found.get(digest))
            found[digest] = value


def test_nan_counts_by_its_bits():
    """A NaN equals itself; another payload is another value."""
    import struct

    payload = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert fingerprint(float("nan")) == fingerprint(float("nan"))
    assert fingerprint(payload) != fingerprint(float("nan"))


def test_a_value_that_contains_itself_has_a_fingerprint_that_sees_changes():
    """Cycles through lists, dictionaries, objects and sets end, and a change deep inside is seen."""

    class Node:
        def __init__(self, name):
            self.name, self.links = name, set()

    def make(name):
        ring = [1, {"deep": [2]}]
        ring[1]["back"] = ring
        first, second = Node("first"), Node(name)
        first.links, second.links = {second}, {first}
        ring.append(first)
        return ring

    assert fingerprint(make("second")) == fingerprint(make("second"))
    assert fingerprint(make("second")) != fingerprint(make("third"))
    changed = make("second")
    changed[1]["deep"].append(3)
    assert fingerprint(changed) != fingerprint(make("second"))


def test_lists_that_unfold_without_end_are_hashed_in_no_time():
    """Sixty lists, each twice in the next, would be 2 ** 60 nodes; so would objects in objects."""

    class Pair:
        def __init__(self, left, right):
            self.left, self.right = left, right

    def nest(make, bottom):
        value = make(bottom)
        for _ in range(60):
            value = make(value)
        return value

    assert fingerprint(nest(lambda x: [x, x], 1)) == fingerprint(nest(lambda x: [x, x], 1))
    assert fingerprint(nest(lambda x: [x, x], 1)) != fingerprint(nest(lambda x: [x, x], 2))
    assert fingerprint(nest(lambda x: (x, x), 1)) != fingerprint(nest(lambda x: (x, x), 2))
    assert fingerprint(nest(lambda x: {"a": x, "b": x}, 1)) != fingerprint(
        nest(lambda x: {"a": x, "b": x}, 2)
    )
    assert fingerprint(nest(lambda x: Pair(x, x), 1)) != fingerprint(nest(lambda x: Pair(x, x), 2))
    row = [0.0] * 1000
    grid = [[row] * 1000] * 1000
    assert fingerprint(grid).stable


def test_a_chain_of_thousands_has_a_fingerprint():
    """Nesting deeper than Python's stack is known by identity, without an exception."""
    value: list = []
    for _ in range(100_000):
        value = [value]
    found = fingerprint(value)
    assert found == fingerprint(value)
    assert not found.stable
    while value:  # or its destruction would run deep as well
        value = value[0]


def test_what_has_no_content_is_known_by_identity():
    """Locks, files, generators and the like never raise; each is itself, in this process only."""
    with (ROOT / "pyproject.toml").open() as one, (ROOT / "pyproject.toml").open() as other:
        pairs = [
            (threading.Lock(), threading.Lock()),
            ((n for n in "ab"), (n for n in "ab")),
            (one, other),
            (threading.local(), threading.local()),
        ]
        for first, second in pairs:
            assert fingerprint(first) == fingerprint(first)
            assert fingerprint(first) != fingerprint(second)
            assert not fingerprint(first).stable
            assert not fingerprint({"deep": [first]}).stable
    assert fingerprint([1]).stable


def test_an_address_that_is_used_again_is_another_thing():
    """Two locks that live one after the other differ even where memory is reused."""
    assert len({fingerprint(threading.Lock()).digest for _ in range(50)}) == 50


class Angry:
    """Raises whatever is asked of it."""

    def __init__(self, error):
        self.error = error

    def __reduce_ex__(self, protocol):
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), ValueError("no"), RecursionError("no"), MemoryError("no")]
)
def test_an_object_whose_code_raises_breaks_nothing(error):
    """An object that refuses to be looked at is known by identity, alone and inside others."""
    angry = Angry(error)
    assert fingerprint(angry) == fingerprint(angry)
    assert not fingerprint(angry).stable
    assert not fingerprint([angry, {1, 2}]).stable


def test_reading_a_cached_property_changes_nothing():
    """What `functools.cached_property` keeps after a read is no change of the object; its other attributes are."""
    import functools

    class Circle:
        def __init__(self, radius):
            self.radius = radius

        @functools.cached_property
        def area(self):
            return 3 * self.radius**2

    circle = Circle(2)
    before = fingerprint(circle)
    assert circle.area == 12
    assert fingerprint(circle) == before
    circle.radius = 3
    assert fingerprint(circle) != before


def test_the_order_in_which_attributes_were_set_does_not_count():
    """Two objects with the same attributes are the same."""

    class Box:
        pass

    one, other = Box(), Box()
    one.a, one.b = 1, 2
    other.b, other.a = 2, 1
    assert fingerprint(one) == fingerprint(other)


def test_records_are_told_apart_by_their_class():
    """Two classes with equal attributes give different fingerprints, in the hundreds of thousands too."""
    from tests.values.classes_python import Frozen, Point

    assert fingerprint([Point(1, 2)]) != fingerprint([Frozen(1, 2)])
    assert fingerprint([Point(n) for n in range(100)]) != fingerprint([Point(n) for n in range(99, -1, -1)])


def test_a_large_buffer_is_hashed_once_for_fingerprint_and_checkpoint():
    """The fingerprint takes the hash of a buffer from the digests it is given, and leaves it there."""
    import numpy as np

    class Counting(Digests):
        asked = 0

        def of(self, buffer, address):
            self.asked += 1
            return super().of(buffer, address)

    array = np.arange(100_000.0)
    digests = Counting()
    first = fingerprint(array, digests=digests)
    assert digests.asked == 1
    known = digests.of(memoryview(array.view(np.uint8)), array.ctypes.data)
    assert known == blake3(array.tobytes()).digest()
    assert fingerprint(array) == first


def test_no_library_is_imported_for_a_fingerprint():
    """Hashing plain values loads neither NumPy nor pandas nor pyarrow."""
    script = (
        "import sys\n"
        "from nbflow.values.fingerprint import fingerprint\n"
        "fingerprint({'a': [1, {2.5}, 'x', len, fingerprint]})\n"
        "print(sorted({'numpy', 'pandas', 'pyarrow', 'duckdb', 'IPython', 'cloudpickle'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"


def test_a_fingerprint_is_a_plain_fact():
    """It is compared by value and cannot be changed."""
    found = fingerprint("a")
    assert isinstance(found, Fingerprint)
    assert len(found.digest) == 32
    with pytest.raises(AttributeError):
        found.stable = False
