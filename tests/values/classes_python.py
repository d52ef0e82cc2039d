"""Examples of Python's own classes, of classes defined in the notebook, and of things without content."""

from __future__ import annotations

import argparse
import array
import asyncio
import collections
import contextvars
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import itertools
import json
import logging
import math
import operator
import pathlib
import queue
import random
import re
import socket
import statistics
import string
import sys
import tempfile
import threading
import types
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

from tests.values.classes import Example


def itself(value: Any) -> Any:
    return value


def row(
    name: str, make: Callable[[], Any], change: Callable[[Any], Any], view: Callable[[Any], Any] = itself
) -> Example:
    return Example("Python", name, make, change, view)


def _cycle() -> list[Any]:
    value: list[Any] = [1, {"k": 2}]
    value[1]["back"] = value
    return value


def _shared() -> list[Any]:
    inner = [1, 2]
    return [inner, inner]


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: str = "a"


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class Cached:
    def __init__(self) -> None:
        self.n = 3

    @functools.cached_property
    def squares(self) -> list[int]:
        return [n * n for n in range(self.n)]


class Tree:
    """Knows its parent and its children: full of cycles."""

    def __init__(self, name: str, parent: Tree | None = None) -> None:
        self.name, self.parent, self.children = name, parent, []
        if parent is not None:
            parent.children.append(self)


class Peer:
    def __init__(self, name: str) -> None:
        self.name, self.peers = name, set()


class Wallet(dict):
    owner = "nobody"


def _tree() -> Tree:
    root = Tree("root")
    Tree("leaf", Tree("branch", root))
    return root


def _peers() -> Peer:
    one, two, three = Peer("one"), Peer("two"), Peer("three")
    one.peers = {two, three}
    two.peers = {one}
    return one


def _walked(node: Tree) -> list[Any]:
    return [
        node.name,
        [_walked(child) for child in node.children],
        [child.parent is node for child in node.children],
    ]


Pair = collections.namedtuple("Pair", ["left", "right"])


def scale(values: list[float], factor: float = 2.0) -> list[float]:
    return [value * factor for value in values]


def _random() -> random.Random:
    return random.Random(5)


def _bytes_io() -> io.BytesIO:
    value = io.BytesIO(b"abcdef")
    value.seek(3)
    return value


def _exception() -> Exception:
    error = ValueError("no", 3)
    error.code = 7
    return error


def _counted(value: Any) -> list[Any]:
    return list(itertools.islice(value, 4))


PARIS = zoneinfo.ZoneInfo("Europe/Paris")
NAN = float("nan")

EXAMPLES = [
    row("None", lambda: None, lambda _: False),
    row("bool", lambda: True, lambda _: 1),
    row("int", lambda: 10**30, lambda v: v + 1),
    row("float", lambda: 0.0, lambda _: -0.0),
    row("float NaN", lambda: NAN, lambda _: 1.0),
    row("complex", lambda: 1 + 2j, lambda v: v.conjugate()),
    row("str", lambda: "naïve ✓ \ud800", lambda v: v + " "),
    row("bytes", lambda: bytes(range(256)) * 300, lambda v: v[:-1] + b"x"),
    row("bytearray", lambda: bytearray(b"abc"), lambda v: v.append(1)),
    row("list", lambda: [1, [2.5, None], "x"], lambda v: v[1].append(1)),
    row(
        "list that contains itself",
        _cycle,
        lambda v: v[1].update(k=3),
        lambda v: (v[0], v[1]["k"], v[1]["back"] is v),
    ),
    row("list of shared lists", _shared, lambda v: v[0].append(3), lambda v: (v, v[0] is v[1])),
    row("tuple", lambda: (1, (2, "a")), lambda v: list(v)),
    row("dict", lambda: {"b": 1, 2: [3], (4, "x"): {}}, lambda v: v.__setitem__("b", v.pop("b"))),
    row("set", lambda: {"a", "b", 3, 4.5, (1, "c"), None}, lambda v: v.add("d")),
    row("frozenset", lambda: frozenset({"a", frozenset({"b"})}), lambda v: v | {"c"}),
    row("dict_keys", lambda: {"a": 1, "b": 2}.keys(), lambda _: {"a": 1}.keys(), list),
    row("dict_values", lambda: {"a": 1, "b": 2}.values(), lambda _: {"a": 1}.values(), list),
    row("dict_items", lambda: {"a": 1, "b": 2}.items(), lambda _: {"a": 1}.items(), list),
    row("range", lambda: range(1, 10, 3), lambda _: range(1, 11, 3)),
    row("slice", lambda: slice(1, None), lambda _: slice(1, 2)),
    row("Ellipsis", lambda: ..., lambda _: NotImplemented),
    row("module", lambda: math, lambda _: json, lambda v: v.__name__),
    row("builtin function", lambda: len, lambda _: max),
    row("builtin method", lambda: "a-b".split, lambda _: "a b".split, lambda v: v("-")),
    row("class, imported", lambda: collections.Counter, lambda _: collections.OrderedDict),
    row("function, imported", lambda: statistics.mean, lambda _: statistics.median),
    row("function of the user's own module", lambda: scale, lambda _: itself),
    row("bound method", lambda: Point(3).__eq__, lambda _: Point(4).__eq__, lambda v: v.__self__),
    row(
        "functools.partial",
        lambda: functools.partial(scale, factor=3.0),
        lambda _: functools.partial(scale, factor=4.0),
        lambda v: v([1.0]),
    ),
    row(
        "operator.itemgetter",
        lambda: operator.itemgetter(1, 2),
        lambda _: operator.itemgetter(1),
        lambda v: v("abc"),
    ),
    row("operator.attrgetter", lambda: operator.attrgetter("x.y"), lambda _: operator.attrgetter("x"), repr),
    row("dataclass", lambda: Point(1, 2.0, ["a"]), lambda v: v.tags.append("b")),
    row("dataclass, frozen with slots", lambda: Frozen(1), lambda v: dataclasses.replace(v, x=2)),
    row(
        "dataclass field",
        lambda: dataclasses.fields(Frozen)[0],
        lambda _: dataclasses.fields(Frozen)[1],
        lambda v: v.name,
    ),
    row("class with __slots__", Slotted, lambda v: v.b.append(1), lambda v: (v.a, v.b)),
    row("class with cached_property", Cached, lambda v: setattr(v, "n", 4), lambda v: v.squares),
    row(
        "dict subclass",
        lambda: Wallet(a=1),
        lambda v: setattr(v, "owner", "me"),
        lambda v: (dict(v), v.owner),
    ),
    row("tree with parents", _tree, lambda v: setattr(v.children[0].children[0], "name", "x"), _walked),
    row(
        "objects in each other's sets",
        _peers,
        lambda v: setattr(v, "name", "x"),
        lambda v: sorted(p.name for p in v.peers),
    ),
    row("enum.Enum", lambda: Colour.RED, lambda _: Colour.BLUE),
    row("enum.Flag", lambda: Access.READ | Access.WRITE, lambda _: Access.READ),
    row("collections.namedtuple", lambda: Pair(1, [2]), lambda v: v.right.append(1)),
    row(
        "collections.deque",
        lambda: collections.deque([1, 2], maxlen=5),
        lambda v: v.rotate(),
        lambda v: (list(v), v.maxlen),
    ),
    row("collections.OrderedDict", lambda: collections.OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    row(
        "collections.defaultdict",
        lambda: collections.defaultdict(set, a={1}),
        lambda v: v["b"],
        lambda v: (dict(v), v.default_factory),
    ),
    row("collections.Counter", lambda: collections.Counter("abca"), lambda v: v.update("a")),
    row(
        "collections.ChainMap",
        lambda: collections.ChainMap({"a": 1}, {"b": 2}),
        lambda v: v.update(b=3),
        lambda v: v.maps,
    ),
    row("collections.UserDict", lambda: collections.UserDict(a=1), lambda v: v.update(a=2), dict),
    row("types.SimpleNamespace", lambda: types.SimpleNamespace(a=1, b=[2]), lambda v: v.b.append(1)),
    row(
        "types.MappingProxyType",
        lambda: types.MappingProxyType({"a": 1}),
        lambda _: types.MappingProxyType({"a": 2}),
        dict,
    ),
    row("types.GenericAlias", lambda: list[int], lambda _: list[str]),
    row("array.array", lambda: array.array("d", [1.0, 2.0]), lambda v: v.append(3.0)),
    row("pathlib.Path", lambda: pathlib.PurePosixPath("/a/b.txt"), lambda v: v.parent),
    row("decimal.Decimal", lambda: decimal.Decimal("1.10"), lambda _: decimal.Decimal("1.1"), str),
    row("fractions.Fraction", lambda: fractions.Fraction(1, 3), lambda v: v + 1),
    row("uuid.UUID", lambda: uuid.UUID(int=7), lambda _: uuid.UUID(int=8)),
    row("datetime.date", lambda: dt.date(2026, 1, 2), lambda v: v.replace(day=3)),
    row("datetime.time", lambda: dt.time(1, 2, 3, 4, tzinfo=dt.UTC), lambda v: v.replace(fold=1)),
    row("datetime.datetime", lambda: dt.datetime(2026, 1, 2, 3), lambda v: v.replace(tzinfo=dt.UTC)),
    row(
        "datetime.datetime in a zone",
        lambda: dt.datetime(2026, 10, 25, 2, 30, tzinfo=PARIS),
        lambda v: v.replace(fold=1),
        lambda v: (v, v.fold, str(v.tzinfo)),
    ),
    row("datetime.timedelta", lambda: dt.timedelta(days=1, microseconds=5), lambda v: -v),
    row("datetime.timezone", lambda: dt.timezone(dt.timedelta(hours=2), "X"), lambda _: dt.UTC),
    row("zoneinfo.ZoneInfo", lambda: zoneinfo.ZoneInfo("Asia/Tokyo"), lambda _: PARIS),
    row("re.Pattern", lambda: re.compile("a+", re.IGNORECASE), lambda _: re.compile("a+")),
    row(
        "ipaddress.IPv4Network",
        lambda: ipaddress.ip_network("10.0.0.0/8"),
        lambda _: ipaddress.ip_network("10.0.0.0/9"),
    ),
    row(
        "string.Template",
        lambda: string.Template("$a"),
        lambda v: setattr(v, "template", "$b"),
        lambda v: v.template,
    ),
    row("argparse.Namespace", lambda: argparse.Namespace(a=1), lambda v: setattr(v, "a", 2)),
    row("random.Random", _random, lambda v: v.random(), lambda v: v.random()),
    row("io.BytesIO", _bytes_io, lambda v: v.read(1), lambda v: (v.tell(), v.getvalue())),
    row("io.StringIO", lambda: io.StringIO("abc"), lambda v: v.read(1), lambda v: (v.tell(), v.getvalue())),
    row("itertools.count", lambda: itertools.count(3), lambda v: next(v), _counted),
    row("itertools.cycle", lambda: itertools.cycle("ab"), lambda v: next(v), _counted),
    row("list iterator", lambda: iter([1, 2, 3]), lambda v: next(v), list),
    row("enumerate", lambda: enumerate("abc"), lambda v: next(v), list),
    row("exception", _exception, lambda v: setattr(v, "code", 8), lambda v: (type(v), v.args, v.code)),
    row(
        "exception group",
        lambda: ExceptionGroup("g", [ValueError(1)]),
        lambda _: ExceptionGroup("g", [ValueError(2)]),
        lambda v: (v.message, repr(v.exceptions)),
    ),
    row(
        "logging.Logger",
        lambda: logging.getLogger("nbflow.example"),
        lambda _: logging.getLogger("other"),
        lambda v: v.name,
    ),
    row("statistics.NormalDist", lambda: statistics.NormalDist(1, 2), lambda _: statistics.NormalDist(1, 3)),
]


# --- defined in the notebook: by value, found again by code ---

_MAIN = """
import dataclasses, enum, functools
@dataclasses.dataclass
class NbflowPoint:
    "doc"
    x: int
    tags: list = dataclasses.field(default_factory=list)
    def double(self):
        return self.x * NBFLOW_RATE
class NbflowBase:
    rate = 3
    def __init__(self): self.a = 1
    @property
    def value(self): return self.a * self.rate
    @classmethod
    def make(cls): return cls()
class NbflowDerived(NbflowBase):
    __slots__ = ("b",)
    def __init__(self):
        super().__init__()
        self.b = {"x"}
class NbflowColour(enum.Enum):
    RED = "r"
    BLUE = "b"
    def loud(self): return self.value.upper()
NBFLOW_RATE = 2
def nbflow_helper(x): return x * NBFLOW_RATE
def nbflow_function(x, k=3, *rest, flag=frozenset({"a", "b"})):
    '''doc'''
    def inner(y): return y + k
    return [inner(nbflow_helper(v)) for v in range(x) if v not in {1, 7}]
def nbflow_factorial(n): return 1 if n < 2 else n * nbflow_factorial(n - 1)
def nbflow_counter():
    n = [0]
    def count():
        n[0] += 1
        return n[0]
    return count
nbflow_lambda = lambda x: x + NBFLOW_RATE
@functools.lru_cache(maxsize=None)
def nbflow_cached(x): return x + 1
async def nbflow_async(x): return x
def nbflow_generator(x): yield from range(x)
"""


def _main(name: str) -> Callable[[], Any]:
    def make() -> Any:
        space = vars(sys.modules["__main__"])
        exec(_MAIN, space)
        return eval(name, space)

    return make


def _redefine(text: str, name: str) -> Callable[[Any], Any]:
    def change(_value: Any) -> Any:
        space = vars(sys.modules["__main__"])
        exec(text, space)
        return eval(name, space)

    return change


def notebook(name: str, make: str, change: Callable[[Any], Any], view: Callable[[Any], Any]) -> Example:
    return Example("notebook", name, _main(make), change, view)


EXAMPLES += [
    notebook(
        "dataclass instance",
        "NbflowPoint(3, ['a'])",
        lambda v: v.tags.append("b"),
        lambda v: (v.x, v.tags, v.double()),
    ),
    notebook(
        "dataclass object",
        "NbflowPoint",
        lambda v: setattr(v, "double", lambda self: 0),
        lambda v: repr(v(1)),
    ),
    notebook("instance", "NbflowDerived()", lambda v: v.b.add("y"), lambda v: (v.a, v.b, v.value)),
    notebook(
        "class object", "NbflowDerived", lambda v: setattr(v.__mro__[1], "rate", 4), lambda v: v.make().value
    ),
    notebook(
        "enum member", "NbflowColour.RED", lambda v: type(v).BLUE, lambda v: (v.name, v.value, v.loud())
    ),
    notebook(
        "enum",
        "NbflowColour",
        _redefine(_MAIN.replace('"b"', '"c"'), "NbflowColour"),
        lambda v: [m.value for m in v],
    ),
    notebook("function", "nbflow_function", _redefine("NBFLOW_RATE = 5", "nbflow_function"), lambda v: v(4)),
    notebook(
        "recursive function",
        "nbflow_factorial",
        _redefine(_MAIN.replace("n < 2", "n < 1"), "nbflow_factorial"),
        lambda v: v(5),
    ),
    notebook("closure that counts", "nbflow_counter()", lambda v: v() and None, lambda v: v()),
    notebook(
        "lambda",
        "nbflow_lambda",
        _redefine(_MAIN.replace("x + NB", "x - NB"), "nbflow_lambda"),
        lambda v: v(1),
    ),
    notebook(
        "partial of a function",
        "functools.partial(nbflow_function, k=1)",
        lambda v: functools.partial(v, flag=None),
        lambda v: v(2),
    ),
    notebook(
        "bound method of an instance",
        "NbflowPoint(3).double",
        lambda v: setattr(v.__self__, "x", 4),
        lambda v: v(),
    ),
    notebook(
        "functools.lru_cache",
        "nbflow_cached",
        _redefine(_MAIN.replace("x + 1", "x + 2"), "nbflow_cached"),
        lambda v: v(1),
    ),
    notebook(
        "coroutine function",
        "nbflow_async",
        _redefine("async def nbflow_async(x): return -x", "nbflow_async"),
        lambda v: asyncio.run(v(3)),
    ),
    notebook(
        "generator function",
        "nbflow_generator",
        _redefine("def nbflow_generator(x): yield x", "nbflow_generator"),
        lambda v: list(v(3)),
    ),
]


# --- nothing to store, or nothing to look at ---


def without(name: str, make: Callable[[], Any]) -> Example:
    """A change of such a thing is another thing."""
    return Example("refused", name, make, lambda _: make(), itself)


_held: list[Any] = []


def _held_back(value: Any) -> Any:
    _held.append(value)  # the next one must not get the same address
    return value


def _closed(value: Any) -> Any:
    value.close()
    return _held_back(value)


async def _coroutine() -> None:
    return None


EXAMPLES += [
    without("threading.Lock", lambda: _held_back(threading.Lock())),
    without("threading.Event", lambda: _held_back(threading.Event())),
    without("queue.Queue", lambda: _held_back(queue.Queue())),
    without("generator", lambda: _held_back(n for n in range(3))),
    without("coroutine", lambda: _closed(_coroutine())),
    without("open file", lambda: _closed(tempfile.TemporaryFile())),
    without("socket.socket", lambda: _closed(socket.socket())),
    without("contextvars.ContextVar", lambda: _held_back(contextvars.ContextVar("v"))),
    without("memoryview", lambda: memoryview(b"abc" + uuid.uuid4().bytes)),
]
