"""What a durable cell was given and what it left: the tracker, the judgement of purity, recorded versions."""

from __future__ import annotations

import gc
import sqlite3
import threading
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.notebook.analysis import analyse, code_digest
from nbflow.notebook.tracking import MISSING, Inputs, Outputs, RecordedVersions, Tracker, is_private
from nbflow.values.fingerprint import Fingerprint, fingerprint

COPY_ON_WRITE = int(pd.__version__.partition(".")[0]) >= 3


def kernel(*cells: str, **values: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__", "np": np, "pd": pd, **values}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def run(source: str, namespace: dict[str, Any], tracker: Tracker | None = None) -> tuple[Inputs, Outputs]:
    tracker = tracker or Tracker(namespace)
    inputs = tracker.before(analyse(source, namespace))
    exec(source, namespace)
    return inputs, tracker.after(inputs)


CASES = [
    # earlier, cell, bound, mutated, shared, aliases, deleted
    ("", "x = 1", "x", "", "", "", ""),
    ("a = [1]", "x = a[0] + 1", "x", "", "", "", ""),
    ("a = [1]", "a.append(2)", "", "a", "", "", ""),
    ("a = [1]", "a.sort()", "", "", "", "", ""),
    ("a = [1]; b = a", "a.append(2)", "", "a", "", "b", ""),
    ("a = [1]; b = [a]; c = {'b': b}", "a.append(2)", "", "a", "", "b c", ""),
    ("a = [1]", "b = a", "b", "", "a", "", ""),
    ("a = [1]; l = [a]", "b = a", "b", "", "a", "l", ""),
    ("a = [[1], [2]]", "b = [x for x in a]", "b", "", "a", "", ""),
    ("a = [1]", "del a", "", "", "", "", "a"),
    ("a = [1]; b = a", "a.append(2); a = 5", "a", "", "", "b", ""),
    ("a = [1]; b = a", "a.append(2); del a", "", "", "", "b", "a"),
    ("a = [1]", "a = a + [2]", "a", "", "", "", ""),
    ("x = 1", "x += 1", "x", "", "", "", ""),
    ("x = [1]", "x += [2]", "x", "", "", "", ""),
    ("x = [1]; y = x", "x += [2]", "x", "", "", "y", ""),
    ("x = 3", "if False: x = 4", "", "", "", "", ""),
    ("x = 3", "x = 3", "x", "", "", "", ""),
    ("d = {}", "d['k'] = 1", "", "d", "", "", ""),
    ("a = [1]", "import math as m\ndef f(): return a\nclass K: pass", "m f K", "", "", "", ""),
    ("a = [1]\ndef f(): a.append(1)", "f()", "", "a", "", "", ""),
    ("class Box:\n  n = 0\n  def up(self): self.n += 1\nbox = Box()", "box.up()", "", "box", "", "", ""),
    ("import itertools\ni = itertools.count()", "n = next(i)", "n", "i", "", "", ""),
    ("def f():\n  global made\n  made = [1]", "f()", "made", "", "", "", ""),
    ("", "exec('secret = 1')", "secret", "", "", "", ""),
    ("x = [1]", "exec('x = 5')", "x", "", "", "", ""),
    ("", "for i in range(3): last = i", "i last", "", "", "", ""),
    ("", "_ = 1; _hidden = 2", "_hidden", "", "", "", ""),
    # frames and arrays
    ("df = pd.DataFrame({'a': [1., 2.]})", "m = df.a.mean()", "m", "", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]})", "df['b'] = 1", "", "df", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]})", "df.loc[0, 'a'] = 5", "", "df", "", "", ""),
    (
        "df = pd.DataFrame({'a': [1., 2.]})",
        "df.rename(columns={'a': 'c'}, inplace=True)",
        "",
        "df",
        "",
        "",
        "",
    ),
    ("df = pd.DataFrame({'a': [1., 2.]})", "df.attrs['k'] = 1", "", "df", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]})", "df.columns = ['z']", "", "df", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]})", "e = df; e['b'] = 1", "e", "df", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]})\ndef f(x): x['b'] = 1", "f(df)", "", "df", "", "", ""),
    ("df = pd.DataFrame({'a': [1., 2.]}); l = [df]", "df['b'] = 1", "", "df", "", "l", ""),
    ("df = pd.DataFrame({'a': [[1], [2]]})", "df.a.iloc[0].append(3)", "", "df", "", "", ""),
    ("v = np.zeros(4)", "v[1] = 1", "", "v", "", "", ""),
    ("v = np.zeros(4); w = v[:2]", "v[1] = 1", "", "v", "", "w", ""),
    ("v = np.zeros(4); w = v[:2]", "w[1] = 1", "", "w", "", "v", ""),
    ("v = np.zeros(4)", "np.add(v, 1, out=v)", "", "v", "", "", ""),
    ("v = np.zeros(4)", "v.fill(3)", "", "v", "", "", ""),
    ("v = np.zeros(4)", "v[1:].sort(); v[:2].fill(7)", "", "v", "", "", ""),
    ("v = np.zeros((2, 2))", "for row in v: row[0] = 1", "row", "v", "", "", ""),
    ("v = np.zeros(4)", "w = v * 2 + v.sum()", "w", "", "", "", ""),
    ("v = np.zeros(4)", "w = v[1:]", "w", "", "v", "", ""),
    ("v = np.zeros(4)", "w = v.reshape(2, 2); w[0, 0] = 1", "w", "v", "", "", ""),
]


@pytest.mark.parametrize(("earlier", "source", "bound", "mutated", "shared", "aliases", "deleted"), CASES)
def test_outputs(
    earlier: str, source: str, bound: str, mutated: str, shared: str, aliases: str, deleted: str
) -> None:
    """The outputs are what the cell bound, changed in place, and what hangs together with those."""
    namespace = kernel(earlier)
    _, outputs = run(source, namespace)
    got = (
        set(outputs.bound),
        set(outputs.mutated),
        set(outputs.shared),
        set(outputs.aliases),
        set(outputs.deleted),
    )
    assert got == tuple(set(text.split()) for text in (bound, mutated, shared, aliases, deleted))


def test_the_outputs_are_listed_once_and_in_a_stable_order() -> None:
    """`names` holds each variable once: what was bound first, then what changed, then what hangs on."""
    namespace = kernel("a = [1]; b = a")
    _, outputs = run("z = 1; y = 2; a.append(2)", namespace)
    assert outputs.names == ("z", "y", "a", "b")


def test_inputs_have_fingerprints_and_missing_names_are_noted() -> None:
    """Every read is in the inputs, a name that nobody bound as missing."""
    namespace = kernel(a=1)
    inputs = Tracker(namespace).before(analyse("a + nowhere", namespace))
    assert inputs.fingerprints == {"a": fingerprint(1).digest, "nowhere": MISSING}
    assert inputs.missing == ("nowhere",)
    assert inputs.detail() == {"a": fingerprint(1).digest.hex(), "nowhere": ""}


def test_the_signature_sees_code_inputs_version_and_options() -> None:
    """Any of them makes other work; a declared version stands for the code."""

    def signature(source: str, a: Any, **more: str) -> bytes:
        namespace = kernel(a=a)
        return Tracker(namespace).before(analyse(source, namespace)).signature(code_digest(source), **more)

    first = signature("x = a", 1)
    assert first == signature("x = (a)  # same", 1)
    others = [
        signature("y = a", 1), signature("x = a", 2), signature("x = a", 1, version="2"),
        signature("x = a", 1, options="out=x"), signature("x = b", 1),
    ]  # fmt: skip
    assert len({first, *others}) == 6
    assert signature("x = a", 1, version="2") == signature("y = a + 0", 1, version="2")


def test_the_logs_of_ipython_are_no_inputs() -> None:
    """`In` and `Out` differ in every session: reading them does not make a cell run for ever."""
    namespace = kernel(Out={1: 2}, In=["a"], _ih=["a"])
    assert dict(Tracker(namespace).before(analyse("Out, In, _ih", namespace)).fingerprints) == {}


@pytest.mark.parametrize(
    ("name", "private"),
    [("_", True), ("_12", True), ("_i3", True), ("In", True), ("exit", True), ("__name__", True), ("_dh", True),
     ("_x", False), ("x", False), ("_1x", False), ("__mine", False), ("__warningregistry__", True), ("_ix", False)],
)  # fmt: skip
def test_private_names_are_ipythons_not_the_users(name: str, private: bool) -> None:
    """What IPython manages is neither recorded nor restored; a user's underscore is."""
    assert is_private(name) is private


def test_given_inputs_and_outputs_override_the_analysis() -> None:
    """`--in` names what is fingerprinted, `--out` what is recorded."""
    namespace = kernel(a=1, b=2)
    tracker = Tracker(namespace)
    inputs = tracker.before(analyse("x = a; y = b", namespace), reads=["b"], writes=["y"])
    assert set(inputs.fingerprints) == {"b"}
    exec("x = a; y = b", namespace)
    assert tracker.after(inputs, writes=["y", "never"]).names == ("y",)


def test_a_rebound_variable_is_not_kept_alive_while_the_cell_runs() -> None:
    """`frame = frame.dropna()` frees the old frame as it does without nbflow."""
    namespace = kernel("class Big: pass\nbig = Big()")
    old = weakref.ref(namespace["big"])
    tracker = Tracker(namespace)
    inputs = tracker.before(analyse("big = Big()", namespace))
    namespace["big"] = None
    gc.collect()
    assert old() is None
    assert tracker.after(inputs).bound == ("big",)


def test_inputs_are_used_once() -> None:
    """Asking for the outputs of inputs that no tracker made is refused, not guessed."""
    with pytest.raises(ValueError, match="no tracker"):
        Tracker({}).after(Inputs(analyse(""), {}))


# -- purity ------------------------------------------------------------------


class Counting:
    """A fingerprinter that counts how often it looks at large values."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, value: Any, **more: Any) -> Fingerprint:
        self.looks += isinstance(value, (pd.DataFrame, np.ndarray))
        return fingerprint(value, **more)


PURE_ON_FRAMES = [
    "m = df.a.mean()", "df", "df.head()", "x = df[df.a > 1]", "x = df.groupby('b').a.sum()", "x = len(df)",
    "x = df.assign(c=lambda d: d.a * 2)", "print(df)", "x = pd.concat([df, df])", "x = df.merge(df, on='b')",
    "x = pd.merge(df, df)", "x = df.a + df.a", "x = df * 2", "x = np.sqrt(df.a)", "df.loc[0, 'a']", "y = df.copy()",
    "x = df.query('a > 1')", "for c in df: pass", "x = df['a'].fillna(0).sum()", "x = df.to_numpy()", "f'{df}'",
]  # fmt: skip


@pytest.mark.skipif(not COPY_ON_WRITE, reason="without copy-on-write nothing can be excluded")
@pytest.mark.parametrize("source", PURE_ON_FRAMES)
def test_a_frame_that_is_only_read_is_hashed_once(source: str) -> None:
    """The common ways of reading a frame cost one hash pass, not two."""
    namespace = kernel("df = pd.DataFrame({'a': [1., 2.], 'b': ['x', 'y']})")
    count = Counting()
    _, outputs = run(source, namespace, Tracker(namespace, fingerprinter=count))
    assert count.looks == 1
    assert outputs.mutated == ()


@pytest.mark.parametrize(
    "source",
    [
        "m = v.mean()",
        "w = v * 2",
        "x = v[0] + 1",
        "x = len(v)",
        "x = np.sqrt(v)",
        "print(v)",
        "v > 1",
        "x = v.copy()",
    ],
)
def test_an_array_that_is_only_read_is_hashed_once(source: str) -> None:
    """The same for arrays, where no view gets away."""
    namespace = kernel("v = np.zeros(1000)")
    count = Counting()
    run(source, namespace, Tracker(namespace, fingerprinter=count))
    assert count.looks == 1


CHANGES = [
    "df['a'] = 0", "df.a = 0", "df.loc[0, 'a'] = 9", "df.iloc[0, 0] = 9", "df.at[0, 'a'] = 9", "df.insert(0, 'z', 1)",
    "df.pop('a')", "df.drop(columns='a', inplace=True)", "df.update(pd.DataFrame({'a': [7., 8.]}))", "del df['a']",
    "df *= 2", "df.eval('z = a * 2', inplace=True)", "df.index = ['p', 'q']", "df.columns = ['p', 'q']",
    "df.attrs['x'] = 1", "df.attrs.update(x=1)", "e = df\ne['z'] = 1", "e = [df]\ne[0]['z'] = 1", "(lambda d: d.pop('a'))(df)",
    "def f(): df['z'] = 1\nf()", "def f(d): d['z'] = 1\nf(df)", "setattr(df, 'a', 0)", "df.pipe(lambda d: d.pop('a'))",
    "df.isetitem(0, [5., 6.])", "df.__setitem__('a', 0)", "df.sort_values('a', ascending=False, inplace=True)",
    "df.index.name = 'n'", "df.__dict__", "df.a.array[0] = 9", "df[['a']].where(df.a > 1, 0, inplace=True)",
    "k = dict(inplace=True)\ndf.drop(columns='a', **k)", "for d in [df]: d['z'] = 1", "[d.pop('a') for d in (df,)]",
    "x = df if True else None\nx['z'] = 1", "x = (y := df)\ny['z'] = 1", "getattr(df, 'pop')('a')",
    "pd.DataFrame.insert(df, 0, 'z', 1)", "pop = df.pop\npop('a')", "df.style.data['z'] = 1",
]  # fmt: skip


@pytest.mark.parametrize("source", CHANGES)
def test_no_change_of_a_frame_escapes(source: str) -> None:
    """Whatever way a cell changes a frame in place, the frame is an output."""
    namespace = kernel("df = pd.DataFrame({'a': [1., 2.], 'b': ['x', 'y']})")
    was = fingerprint(namespace["df"])
    _, outputs = run(source, namespace)
    changed = fingerprint(namespace["df"]) != was
    assert ("df" in outputs.names) or not changed


ARRAY_CHANGES = [
    "v[0] = 1", "v += 1", "v.fill(2)", "v[1:][0] = 5", "v.T[0] = 5", "v.sort()", "np.copyto(v, 3)", "w = v[1:]\nw[0] = 5",
    "w = np.asarray(v)\nw[0] = 5", "np.add(v, 1, out=v)", "np.negative(v, v)", "v.put(0, 9)", "v.flat[0] = 5",
    "v.reshape(2, 2)[0, 0] = 5", "w = v.view()\nw[0] = 5", "np.random.shuffle(v)", "v.resize(5, refcheck=False)",
    "np.fill_diagonal(v.reshape(2, 2), 8)", "a, *b = [v]\na[0] = 5", "v.partition(2)", "v.real[0] = 5", "v.itemset",
    "np.nan_to_num(v, copy=False)", "np.clip(v, 1, 2, v)", "v.clip(1, 2, v)", "v.cumsum(0, None, v)", "v.round(0, v)",
    "np.multiply.at(v, [0], 5)", "v.shape = (2, 2)", "np.sort(v).sort()", "memoryview(v)[0] = 5.0", "v.data[0] = 5.0",
    "v.byteswap(True)", "v.setfield(1, 'f8')", "v.__iadd__(1)", "w = v.astype('f8', copy=False)\nw[0] = 9",
    "w = v.squeeze()\nw[0] = 5", "w = v.take([0], out=v[:1])", "np.ma.array(v, copy=False)[0] = 5",
]  # fmt: skip


@pytest.mark.parametrize("source", ARRAY_CHANGES)
def test_no_change_of_an_array_escapes(source: str) -> None:
    """The same for arrays, where views and `out` arguments are many."""
    namespace = kernel("v = np.array([3., 1., 2., 0.])")
    was = fingerprint(namespace["v"])
    tracker = Tracker(namespace)
    inputs = tracker.before(analyse(source, namespace))
    try:
        exec(source, namespace)
    except AttributeError:
        pytest.skip("this NumPy has it no more")
    outputs = tracker.after(inputs)
    assert ("v" in outputs.names) or fingerprint(namespace["v"]) == was


# -- versions that do not survive a round trip -------------------------------


class Restless:
    """Hashes differently in every process; `salt` stands for the process."""

    salt = 0

    def __init__(self, value: int) -> None:
        self.value = value


def restless(value: Any, **more: Any) -> Fingerprint:
    if isinstance(value, Restless):
        return Fingerprint(fingerprint([value.value, Restless.salt]).digest, stable=False)
    return fingerprint(value, **more)


def test_an_untouched_restored_object_counts_as_its_recorded_version() -> None:
    """A class that hashes differently after a round trip does not make its readers run again."""
    Restless.salt = 1
    namespace = kernel(r=Restless(5))
    tracker = Tracker(namespace, fingerprinter=restless)
    recorded = restless(namespace["r"]).digest
    tracker.versions.remember("r", namespace["r"], recorded, stable=False)
    first = tracker.before(analyse("x = r.value", namespace)).fingerprints["r"]

    Restless.salt = 2  # another process, where it was restored
    namespace = kernel(r=Restless(5))
    tracker = Tracker(namespace, fingerprinter=restless)
    tracker.versions.remember("r", namespace["r"], recorded, stable=False)
    assert tracker.before(analyse("x = r.value", namespace)).fingerprints["r"] == first
    namespace["r"].value = 6
    touched = tracker.before(analyse("x = r.value", namespace))
    assert touched.fingerprints["r"] != first
    assert touched.unstable == ("r",)
    namespace["r"] = Restless(5)
    assert tracker.before(analyse("x = r.value", namespace)).fingerprints["r"] != first


def test_a_recorded_version_is_forgotten_when_a_cell_rebinds_the_name() -> None:
    """What a later cell left under the name is not the old version, even if the object is the same."""
    namespace = kernel(r=Restless(5))
    tracker = Tracker(namespace, fingerprinter=restless)
    tracker.versions.remember("r", namespace["r"], b"recorded", stable=False)
    run("r = r", namespace, tracker)
    assert tracker.before(analyse("r", namespace)).fingerprints["r"] != b"recorded"


def test_recorded_versions_do_not_keep_large_objects_alive() -> None:
    """Where the class allows it the object is remembered weakly."""
    versions = RecordedVersions(restless)
    value = Restless(1)
    gone = weakref.ref(value)
    versions.remember("r", value, b"v", stable=False)
    del value
    gc.collect()
    assert gone() is None


def test_a_connection_counts_by_its_type() -> None:
    """A new connection after a restart does not make every cell that uses it run again."""
    signatures = []
    for _ in range(2):
        namespace = kernel(con=sqlite3.connect(":memory:"), lock=threading.Lock())
        inputs = Tracker(namespace).before(
            analyse("rows = con.execute('select 1').fetchall()\nlock", namespace)
        )
        signatures.append(dict(inputs.fingerprints))
        assert inputs.opaque == ("con", "lock")
    assert signatures[0] == signatures[1]


def test_an_iterator_counts_by_its_position() -> None:
    """A generator that another cell has advanced is another input."""
    namespace = kernel(g=(i for i in range(5)))
    inputs = Tracker(namespace).before(analyse("next(g)", namespace))
    assert inputs.opaque == ()


def test_a_conflicting_alias_is_found() -> None:
    """A list that holds a changed frame is restored only where it is still what it was, or what was recorded."""
    namespace = kernel("a = [1]; holder = [a]")
    tracker = Tracker(namespace)
    inputs = tracker.before(analyse("a.append(2)", namespace))
    exec("a.append(2)", namespace)
    outputs = tracker.after(inputs)
    recorded = {name: fingerprint(namespace[name]).digest for name in outputs.names}
    assert set(outputs.aliases) == {"holder"}
    assert tracker.conflicts(outputs.aliases, recorded) == set()  # as the cell left it
    fresh = kernel("a = [1]; holder = [a]")
    assert Tracker(fresh).conflicts(outputs.aliases, recorded) == set()  # as it was before
    other = kernel("a = [1]; holder = [a, 'newer']")
    assert Tracker(other).conflicts(outputs.aliases, recorded) == {"holder"}
    assert Tracker(kernel("a = [1]")).conflicts(outputs.aliases, recorded) == set()  # missing


def test_modules_and_durable_functions_are_outputs_and_parts_of_nbflow_are_not() -> None:
    """An import inside a durable cell must come back; the session must not be recorded."""
    from nbflow.core.history import History

    namespace = kernel()
    namespace["make"] = History
    _, outputs = run("import json\nfrom math import pi\nsession = make()", namespace)
    assert set(outputs.bound) == {"json", "pi"}


# -- random cells ------------------------------------------------------------

LINES = st.sampled_from(
    [
        "a = [1]", "b = a", "a.append(len(b))", "c = [a, b]", "c[0].append(7)", "b = list(a)", "d = {'a': a}", "d['n'] = c",
        "del d", "d['a'].clear()", "a = a + [1]", "c = c[1:]", "v[0] += 1", "w = v[1:]", "w[0] = 5", "v = v.copy()", "d = dict(d)",
        "b += [3]", "if len(a) > 2: b = a", "for e in c: e.append(0)",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(LINES, min_size=1, max_size=3), min_size=1, max_size=6))
def test_recording_the_outputs_is_enough_to_rebuild_the_kernel(cells: list[list[str]]) -> None:
    """Restoring the recorded outputs cell by cell gives the same values and the same sharing as running them."""
    import pickle

    start = "a = [0]; b = a; c = [a]; d = {'a': a}; e = 0; v = np.zeros(3); w = v[1:]"
    live, restored = kernel(start), kernel(start)
    for cell in cells:
        source = "\n".join(cell)
        tracker = Tracker(live)
        inputs = tracker.before(analyse(source, live))
        try:
            exec(source, live)
        except Exception:  # noqa: BLE001 - a failed cell records nothing, so the trial ends
            return
        outputs = tracker.after(inputs)
        # Arrays lose their sharing in a plain pickle; that part is the codec's. One envelope for all.
        restored.update(pickle.loads(pickle.dumps({name: live[name] for name in outputs.names})))
        for name in outputs.deleted:
            restored.pop(name, None)
    names = set("abcdevw")
    assert names & live.keys() == names & restored.keys()
    for name in sorted(names & live.keys()):
        assert fingerprint(live[name]) == fingerprint(restored[name]), name
    lists = [name for name in "abc" if isinstance(live.get(name), list)]
    for one in lists:
        for two in lists:
            assert (live[one] is live[two]) == (restored[one] is restored[two]), (one, two)
