"""Classes and functions of `__main__` keep their identity; what cannot be stored is named by its path; peak memory."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import functools
import io
import mmap
import queue
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbflow.core.errors import CannotRestore, CannotStore, NbflowError, RecordedFailure, StepTimeout
from nbflow.values import failures
from nbflow.values.codec import encode
from nbflow.values.failures import decode_error, encode_error
from tests.values.codec_box import run, there_and_back

DEFINE = """
import sys, enum, dataclasses, collections

CELL = '''
class Model:
    class Part:
        pass
    def __init__(self, value):
        self.value = value
        self.part = Model.Part()
    def double(self):
        return 2 * self.value

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int

Pair = collections.namedtuple("Pair", "a b")

def helper(x):
    return x + 1
'''
exec(CELL, globals())
"""

STORE = (
    DEFINE
    + """
values = {"model": Model(3), "colours": [Colour.RED], "point": Point(1), "pair": Pair(1, 2), "call": {"f": helper}, "cls": (Model,)}
save(encode(values), Path(sys.argv[1]))
"""
)


def test_classes_of_main_are_those_of_the_new_process(tmp_path: Path) -> None:
    """Where the definition cell ran again, restored objects are instances of the classes that are there."""
    run(STORE, tmp_path)
    script = (
        DEFINE
        + """
found = load(sys.argv[1])
print(
    type(found["model"]) is Model, type(found["model"].part) is Model.Part, found["colours"][0] is Colour.RED,
    found["point"] == Point(1), type(found["pair"]) is Pair, found["call"]["f"] is helper, found["cls"][0] is Model,
)
"""
    )
    assert run(script, tmp_path) == " ".join(["True"] * 7)


def test_a_class_with_a_cached_property_comes_along(tmp_path: Path) -> None:
    """Such a property holds a lock before Python 3.12; it is made anew, under its name."""
    run(
        """
import functools
import sys
class Circle:
    def __init__(self, r):
        self.r = r
    @functools.cached_property
    def area(self):
        return 3 * self.r * self.r
save(encode({"circle": Circle(2)}), Path(sys.argv[1]))
""",
        tmp_path,
    )
    script = """
import sys
circle = load(sys.argv[1])["circle"]
print(circle.area, circle.area, "area" in vars(circle))
"""
    assert run(script, tmp_path) == "12 12 True"


def test_an_edited_class_counts_as_it_is_now(tmp_path: Path) -> None:
    """After an edit of the definition cell restored objects have the new methods and the recorded values."""
    run(STORE, tmp_path)
    script = (
        DEFINE
        + """
exec(CELL.replace("2 * self.value", "20 * self.value").replace("x + 1", "x + 100"), globals())
found = load(sys.argv[1])
print(isinstance(found["model"], Model), found["model"].double(), found["call"]["f"](1))
"""
    )
    assert run(script, tmp_path) == "True 60 2"


def test_classes_come_along_where_main_has_none(tmp_path: Path) -> None:
    """Without the definition cell the recorded classes are used, and they agree with one another."""
    run(STORE, tmp_path)
    script = """
import sys
found = load(sys.argv[1])
model = found["model"]
print(model.double(), type(model) is found["cls"][0], type(model.part).__qualname__, found["colours"][0].name, found["call"]["f"](1))
"""
    assert run(script, tmp_path) == "6 True Model.Part RED 2"


def test_isinstance_holds_after_a_cell_is_run_again_in_one_process(tmp_path: Path) -> None:
    """Objects of the old class that are restored after their cell ran again are objects of the new class."""
    script = (
        DEFINE
        + """
import tempfile
folder = Path(tempfile.mkdtemp())
old = Model(3)
save(encode({"model": old, "many": [old, Model(4)]}), folder)
exec(CELL, globals())
print(isinstance(old, Model), end=" ")
found = load(folder)
print(isinstance(found["model"], Model), isinstance(Model(1), type(found["model"])), all(isinstance(m, Model) for m in found["many"]))
"""
    )
    assert run(script) == "False True True True"


def test_a_recorded_class_is_restored_in_the_version_recorded(tmp_path: Path) -> None:
    """A class that is itself a variable comes back as it was when another version stands in `__main__`."""
    script = (
        DEFINE
        + """
import tempfile
folder = Path(tempfile.mkdtemp())
save(encode({"Model": Model, "model": Model(3)}), folder)
same = load(folder)
print(same["Model"] is Model, end=" ")
exec(CELL.replace("2 *", "20 *"), globals())
found = load(folder)
print(found["Model"](3).double(), type(found["model"]) is found["Model"], Model(3).double())
"""
    )
    assert run(script) == "True 6 True 60"


def test_frames_and_arrays_come_back_in_another_process(tmp_path: Path) -> None:
    """What one process writes, another reads: values, sharing and writability."""
    run(
        """
import sys, numpy as np, pandas as pd
base = np.arange(50_000)
frame = pd.DataFrame({"a": base * 1.5, "s": ["x", "y"] * 25_000, "c": pd.Categorical(["u", "v"] * 25_000)})
save(encode({"base": base, "view": base[10:20], "frame": frame, "list": [frame]}), Path(sys.argv[1]))
""",
        tmp_path,
    )
    script = """
import sys
found = load(sys.argv[1])
found["view"][0] = -1
frame = found["frame"]
print(found["base"][10], frame.a.sum(), frame.s[1], list(frame.c[:2]), found["list"][0] is frame)
"""
    assert run(script, tmp_path) == "-1 1874962500.0 y ['u', 'v'] True"


# -- what cannot be stored ---------------------------------------------------------------------


def generator() -> Any:
    yield 1


async def coroutine() -> None:
    """Never awaited."""


class Holder:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Slots:
    __slots__ = ("other", "part")

    def __init__(self, part: Any) -> None:
        self.part = part


@dataclasses.dataclass
class Data:
    parts: Any


LIVE = {
    "file": tempfile.TemporaryFile,
    "text_file": lambda: open(__file__),
    "temporary": tempfile.NamedTemporaryFile,
    "socket": socket.socket,
    "lock": threading.Lock,
    "rlock": threading.RLock,
    "event": threading.Event,
    "thread": lambda: threading.Thread(target=print),
    "local": threading.local,
    "queue": queue.Queue,
    "pool": ThreadPoolExecutor,
    "generator": generator,
    "coroutine": lambda: _closed(coroutine()),
    "database": lambda: sqlite3.connect(":memory:"),
    "map": lambda: mmap.mmap(-1, 10),
    "view": lambda: memoryview(b"abc"),
    "frame": sys._getframe,
    "loop": asyncio.new_event_loop,
    "process": lambda: subprocess.Popen([sys.executable, "-c", ""]),
    "context": contextvars.copy_context,
    "variable": lambda: contextvars.ContextVar("v"),
}


def _closed(waiting: Any) -> Any:
    waiting.close()
    return waiting


@pytest.mark.parametrize("kind", list(LIVE))
def test_live_things_are_refused(kind: str) -> None:
    """A hold on the outside world is refused with its path, however deep it is and whatever pickle says."""
    thing = LIVE[kind]()
    try:
        with pytest.raises(CannotStore) as caught:
            encode({"fine": [1, (2,)], "model": Holder(callbacks=[1, 2, Holder(fn=thing)])})
        assert caught.value.variable == "model"
        assert caught.value.path.startswith("model.callbacks[2].fn")
        assert "model.callbacks[2].fn" in str(caught.value)
    finally:
        if isinstance(thing, subprocess.Popen):
            thing.wait()
        elif hasattr(thing, "close") and kind not in ("coroutine", "view"):
            thing.close()


def test_an_open_duckdb_is_refused() -> None:
    """A DuckDB connection and its relations are refused."""
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    for thing in (connection, connection.sql("select 1")):
        with pytest.raises(CannotStore):
            encode({"db": thing})


LOCK = threading.Lock()


def nested_function() -> Any:
    lock = threading.Lock()

    def inner() -> Any:
        return lock

    return inner


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": (2, LOCK)}]}, "v['a'][1]['b'][1]"),
        ({5: LOCK}, "v[5]"),
        (Slots(LOCK), "v.part"),
        (Data(parts=[Data(LOCK)]), "v.parts[0].parts"),
        (functools.partial(print, 1, key=LOCK), "v.keywords['key']"),
        (nested_function(), "v.<closure lock>"),
        (Holder(method=Holder(x=LOCK).__init__), "v.method.__self__.x"),
        (collections.deque([LOCK]), "v[0]"),
        (collections.OrderedDict(a=LOCK), "v['a']"),
        (np.array([None, LOCK], dtype=object), "v[1]"),
        (pd.DataFrame({"n": [1, 2], "o": [None, LOCK]}), "v['o'].iloc[1]"),
        (pd.Series([1, LOCK], dtype=object), "v.iloc[1]"),
        (types.SimpleNamespace(a=types.SimpleNamespace(b=LOCK)), "v.a.b"),
        (ValueError("x", LOCK), "v.args[1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_path_leads_to_the_part(value: Any, path: str) -> None:
    """The error names the offending part as code would reach it."""
    with pytest.raises(CannotStore) as caught:
        encode({"v": value})
    assert caught.value.path == path


def test_the_part_is_found_in_large_values() -> None:
    """One lock among 100,000 fine parts is found, within the bound of the search."""
    parts: list[Any] = [{"n": i} for i in range(100_000)]
    parts[99_000]["lock"] = LOCK
    with pytest.raises(CannotStore) as caught:
        encode({"parts": parts, "frame": pd.DataFrame({"a": range(10)})})
    assert caught.value.path == "parts[99000]['lock']"


def test_a_cyclic_value_is_searched_too() -> None:
    """Cycles do not confuse the search."""
    a, b = Holder(), Holder()
    a.b, b.a = b, a
    b.lock = LOCK
    with pytest.raises(CannotStore) as caught:
        encode({"a": a})
    assert caught.value.path == "a.b.lock"


class Raises:
    def __reduce__(self) -> Any:
        raise ValueError("I do not want to")


def test_a_pickle_that_raises_is_named() -> None:
    """An object whose own pickling raises is an error with its path and its words."""
    with pytest.raises(CannotStore, match="I do not want to") as caught:
        encode({"x": {"deep": [Raises()]}})
    assert caught.value.path == "x['deep'][0]"


def test_too_deep_a_value_is_an_error_and_no_crash() -> None:
    """A list nested 100,000 deep is refused in words."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CannotStore, match="too deep"):
        encode({"value": value})


def test_buffers_in_memory_and_standard_streams_are_no_files() -> None:
    """BytesIO and StringIO are stored with position; sys.stdout is stored as "standard output"."""
    buffer = io.BytesIO(b"abcdef")
    buffer.seek(3)
    found = there_and_back(buffer=buffer, out=sys.stdout)
    assert found["buffer"].read() == b"def"
    assert found["out"] is sys.stdout


def test_the_errors_of_one_variable_do_not_hide_others() -> None:
    """After a refusal the same variables without the offender are stored."""
    with pytest.raises(CannotStore):
        encode({"a": np.arange(10), "b": LOCK})
    assert (there_and_back(a=np.arange(10))["a"] == np.arange(10)).all()


# -- exceptions --------------------------------------------------------------------------------


class Picky(Exception):
    """Its pickle loads only with an argument that is lost."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class RudeAndLocked(Rude, Unpicklable):
    """Has neither text nor pickle."""

    def __init__(self) -> None:
        Unpicklable.__init__(self)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        KeyError("day"),
        ValueError("x", 1),
        OSError(2, "gone", "f"),
        KeyboardInterrupt(),
        StepTimeout("late", timeout=3.0),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ExceptionGroup("g", [ValueError(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_come_back(error: BaseException) -> None:
    """An exception that pickles comes back as its class with its arguments."""
    found = decode_error(encode_error(raised(error)))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert isinstance(found, NbflowError) == isinstance(error, NbflowError)


@pytest.mark.parametrize(
    "error", [Picky(5, reason="why"), Unpicklable(), RudeAndLocked()], ids=lambda error: type(error).__name__
)
def test_exceptions_that_cannot_come_back_have_a_stand_in(error: BaseException) -> None:
    """One that does not pickle, does not load, or has no text is a RecordedFailure that tells what it was."""
    info = encode_error(raised(error))
    found = decode_error(info)
    assert type(found) is RecordedFailure
    assert type(error).__name__ in str(found)
    assert "raised(" in info.traceback or "in raised" in info.traceback


def test_damaged_error_records_have_a_stand_in() -> None:
    """Wrong bytes in place of the pickle give the stand-in."""
    info = encode_error(ValueError("x"))
    for pickled in (b"", b"rubbish", (info.pickled or b"")[:-3]):
        damaged = type(info)(info.type, info.message, info.traceback, pickled)
        assert isinstance(decode_error(damaged), RecordedFailure)


def test_tracebacks_leave_nbflows_own_frames_out() -> None:
    """The recorded traceback shows the user's lines and none of nbflow's, along the chain of causes."""

    def user(value: Any) -> Any:
        try:
            return encode({"v": value})
        except CannotStore as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        user(LOCK)
    text = encode_error(caught.value).traceback
    assert "in user" in text
    assert "CannotStore" in text
    assert str(Path(failures.__file__).parent) not in text


def test_huge_messages_are_cut() -> None:
    """A message of a megabyte is kept in part."""
    assert len(encode_error(ValueError("x" * 1_000_000)).message) < 20_000


def test_what_is_no_exception_is_not_raised() -> None:
    """A record whose pickle gives another class than recorded is not believed."""
    info = encode_error(ValueError("x"))
    wrong = type(info)("KeyError", info.message, "", info.pickled)
    assert isinstance(decode_error(wrong), RecordedFailure)
    assert issubclass(CannotRestore, NbflowError)


# -- memory ------------------------------------------------------------------------------------

PEAK = """
import sys, threading, time, os
import numpy as np, pandas as pd, pyarrow as pa
from nbflow.core.model import LeafRef
kind, n = sys.argv[1], int(sys.argv[2])
if kind == "array":
    value = np.arange(n, dtype=float)
elif kind == "fortran":
    value = np.asfortranarray(np.arange(n, dtype=float).reshape(1000, -1))
else:
    rows = n // 10
    columns = {f"f{i}": np.arange(rows) * (i + 1.0) for i in range(6)} | {f"i{i}": np.arange(rows) for i in range(2)}
    columns |= {"s": pd.Series(pa.array(["alpha", "beta"] * (rows // 2)), dtype=pd.ArrowDtype(pa.large_string())), "t": pd.date_range("2020", periods=rows, freq="s")}
    value = pd.DataFrame(columns)
    if kind == "row-major":
        value = pd.DataFrame(np.arange(n, dtype=float).reshape(-1, 10), copy=False)
encode({"warm": value[:10], "x": (1,)})

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

start = resident()
peak = start
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
encoded = encode({"value": value})
with open(sys.argv[3], "wb") as file:
    for leaf in encoded.leaves:
        for part in leaf.parts:
            file.write(part)
done = True
watcher.join()
size = sum(leaf.size for leaf in encoded.leaves)
assert size >= n * 7.5, size
print((peak - start) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["array", "fortran", "frame", "row-major"])
def test_encoding_needs_little_memory_of_its_own(kind: str, tmp_path: Path) -> None:
    """Encoding and writing 80 MB takes at most a fifth of it in addition, whatever the layout."""
    assert float(run(PEAK, kind, 10_000_000, tmp_path / "out")) <= 0.2


@pytest.mark.soak
def test_two_gigabytes_come_back(tmp_path: Path) -> None:
    """A value beyond 2 GiB (and a byte string beyond 4 GiB of opcode range) is stored and restored exactly."""
    script = """
import sys, numpy as np
array = np.arange(280_000_000, dtype=np.int64)
big = bytes(2**31 + 5)
save(encode({"array": array, "big": big, "text": "x" * 70_000}), Path(sys.argv[1]))
del array
found = load(sys.argv[1])
print(found["array"].nbytes > 2**31, int(found["array"][-1]), len(found["big"]), found["big"] == big)
"""
    assert run(script, tmp_path) == f"True 279999999 {2**31 + 5} True"


def test_exceptions_come_back_where_tblib_wants_their_tracebacks() -> None:
    """Importing Dask has every exception pickled with its frames; what is recorded is the exception alone."""
    code = (
        "import tblib.pickling_support as t; t.install()\n"
        "from nbflow.values.failures import decode_error, encode_error\n"
        "from nbflow.values.codec import decode, encode\n"
        "def raised():\n"
        "    try:\n"
        "        raise KeyError('day')\n"
        "    except KeyError as error:\n"
        "        return error\n"
        "print(repr(decode_error(encode_error(raised()))))\n"
        "kept = encode({'e': raised()})\n"
        "print(repr(decode(kept.checkpoint(()), None)['e']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["KeyError('day')"] * 2, done.stderr
