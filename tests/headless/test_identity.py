"""Which run an execution belongs to: by notebook, parameters and kernel."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import RunFinished, UnknownRun, UsageError
from nbflow.core.ids import child_run_id, new_run_id
from nbflow.core.model import RunOpened
from nbflow.core.states import RunState
from nbflow.headless.identity import Source, Wanted, identity_params, open_run, store_of, workflow_of
from nbflow.runtime.session import Session
from nbflow.store.listing import same_params
from nbflow.store.local import LocalStore
from tests.headless.kit import code, notebook, read

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(),
    st.sampled_from(["1", "true", "None", "nan", "‹float› nan", "‹int› 1", "‹"]),
    st.binary(max_size=4),
    st.dates(),
    st.tuples(st.integers()),
    st.frozensets(st.text(max_size=2), max_size=3),
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, min_size=1, max_size=2)
    ),
    max_leaves=6,
)


def _exactly(value: Any) -> Any:
    """Return a value so that equal means: the same, kind by kind."""
    if isinstance(value, dict):
        return ("dict", sorted(((_exactly(key), _exactly(part)) for key, part in value.items()), key=repr))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [_exactly(part) for part in value])
    if isinstance(value, frozenset):
        return ("frozenset", sorted(value))
    if isinstance(value, float) and value == 0:
        return ("float", 0.0)
    return (type(value).__name__, repr(value))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


# --- parameters ------------------------------------------------------------------------------------------


@given(VALUES)
def test_parameters_survive_the_record(value: Any) -> None:
    """Whatever papermill takes, what is recorded comes back from JSON and MessagePack as the same parameters."""
    recorded = identity_params({"p": value})
    for encode, decode in (
        (msgspec.json.encode, msgspec.json.decode),
        (msgspec.msgpack.encode, msgspec.msgpack.decode),
    ):
        assert same_params(decode(encode(recorded)), recorded)


@given(VALUES, VALUES)
def test_parameters_are_the_same_exactly_if_their_identity_is(one: Any, other: Any) -> None:
    """Equal values of equal kinds mean the same run, all others another one."""
    same = same_params(identity_params({"p": one}), identity_params({"p": other}))
    assert same == (_exactly(one) == _exactly(other))


@given(VALUES)
def test_an_equal_value_has_an_equal_identity(value: Any) -> None:
    """A value that was made a second time, with its keys in another order, is the same parameter."""

    def again(part: Any) -> Any:
        if isinstance(part, dict) and all(isinstance(key, str) for key in part):
            return {key: again(inner) for key, inner in reversed(part.items())}
        return [again(inner) for inner in part] if isinstance(part, list) else part

    assert same_params(identity_params({"p": value}), identity_params({"p": again(value)}))


@pytest.mark.parametrize(
    "alike",
    [
        [1, 1.0, True, "1", "‹int› 1"],
        [0, 0.0, False, "", None, [], {}],
        [float("nan"), "nan", "‹float› nan", float("inf"), float("-inf")],
        [[1, 2], (1, 2), "[1, 2]", "(1, 2)", {1: 2}, {"1": 2}, {"1": 2.0}],
        [2**63, 2**64, str(2**64), float(2**64)],
        [b"a", "a", "b'a'"],
    ],
    ids=lambda alike: str(alike[0]),
)
def test_what_looks_alike_is_told_apart(alike: list[Any]) -> None:
    """No two of these are the same parameter."""
    for place, one in enumerate(alike):
        for other in alike[place + 1 :]:
            assert not same_params(identity_params({"p": one}), identity_params({"p": other})), (one, other)


def test_a_set_is_the_same_in_every_process() -> None:
    """The order of its strings is not: a resume in a new process must find the run."""
    program = (
        "from nbflow.headless.identity import identity_params\n"
        "print(identity_params({'p': {'a', 'b', 'c', 'd', 'e'}}))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(said) == 1


# --- places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "path"),
    [
        ("s3://bucket/in.ipynb", None),
        ("https://example.org/in.ipynb?raw=1", None),
        ("-", None),
        (None, None),
        ("/there/in.ipynb", Path("/there/in.ipynb")),
        ("sub/in.ipynb", Path("/here/sub/in.ipynb")),
        (Path("in.ipynb"), Path("/here/in.ipynb")),
    ],
)
def test_what_papermill_reads_is_a_file_of_this_machine_or_not(told: Any, path: Path | None) -> None:
    """Relative paths start in the folder that papermill was started in."""
    assert Source.of(told, "/here").path == path


def test_a_workflow_is_named_after_its_place(tmp_path: Path) -> None:
    """A file by its path from the store's folder, a URL by itself, what has neither by its code."""
    document = read(notebook(tmp_path / "in.ipynb", "x = 1"))
    store = LocalStore(tmp_path / ".nbflow", background=False)
    named = [
        workflow_of(Source.of(told, tmp_path), document, store)
        for told in ("sub/in.ipynb", "s3://b/in.ipynb")
    ]
    assert named == ["sub/in.ipynb", "s3://b/in.ipynb"]
    piped = workflow_of(Source.of("-"), document, store)
    given_again = read(notebook(tmp_path / "again.ipynb", code("y = 2", "injected-parameters"), "x = 1"))
    assert workflow_of(Source.of(None), given_again, store) == piped
    edited = read(notebook(tmp_path / "edited.ipynb", "x = 2"))
    assert workflow_of(Source.of("-"), edited, store) != piped
    store.close()


def test_the_store_is_the_nearest_above_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named > $NBFLOW_STORE > above the notebook > the working directory, for what comes from elsewhere."""
    (tmp_path / "project" / ".nbflow").mkdir(parents=True)
    (tmp_path / "project" / "sub").mkdir()
    (tmp_path / "here" / ".nbflow").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    source, remote = Source.of(tmp_path / "project" / "sub" / "in.ipynb"), Source.of("s3://b/in.ipynb")

    def root(of: Source, place: Path | None = None) -> Path:
        store = store_of(of, place)
        store.close()
        return store.root

    assert root(source, tmp_path / "named") == tmp_path / "named"
    assert root(source) == tmp_path / ".nbflow"  # $NBFLOW_STORE of the tests
    monkeypatch.delenv("NBFLOW_STORE")
    assert root(source) == tmp_path / "project" / ".nbflow"
    assert root(remote) == tmp_path / "here" / ".nbflow"


# --- runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = LocalStore(tmp_path / ".nbflow", background=False)
    yield opened
    opened.close()


def _wanted(workflow: str = "in.ipynb", kernel: str = "python3", **params: Any) -> Wanted:
    return Wanted(workflow, identity_params(params), kernel)


def test_the_same_execution_finds_its_run(store: LocalStore) -> None:
    """Another notebook, other parameters, another kernel, or `new` begin their own."""
    first = open_run(store, _wanted(year=2013))
    assert open_run(store, _wanted(year=2013)).run == first.run
    others = [
        open_run(store, _wanted(year=2014)),
        open_run(store, _wanted(year=2013.0)),
        open_run(store, _wanted()),
        open_run(store, _wanted("other.ipynb", year=2013)),
        open_run(store, _wanted(kernel="ir", year=2013)),
        open_run(store, _wanted(year=2013), run="new"),
    ]
    assert len({first.run, *(other.run for other in others)}) == 7
    assert open_run(store, _wanted(year=2013)).run == others[-1].run  # the newest


def test_a_run_in_jupyterlab_is_not_papermills(store: LocalStore) -> None:
    """Its steps were recorded by hand, in an order of its own."""
    session = Session.open(store, "in.ipynb", kind="notebook")
    session.close()
    assert open_run(store, _wanted()).run != session.run


def test_a_run_that_is_over_is_not_carried_on_and_a_failed_one_is(store: LocalStore) -> None:
    """Completed: the next one begins. Failed: from where it failed."""
    first = open_run(store, _wanted())
    Session.open(store, "", run=first.run).finish(RunState.FAILED)
    assert open_run(store, _wanted()).run == first.run
    Session.open(store, "", run=first.run).finish(RunState.COMPLETED)
    assert open_run(store, _wanted()).run != first.run
    with pytest.raises(RunFinished, match=first.run):
        open_run(store, _wanted(), run=first.run)


def test_a_run_that_is_asked_for_must_be_one_of_this_notebook(store: LocalStore) -> None:
    """Parameters may differ, that is the user's wish; another notebook's steps mean nothing here."""
    first = open_run(store, _wanted(year=2013))
    assert open_run(store, _wanted(year=2014), run=first.run).run == first.run
    with pytest.raises(UsageError, match=r"in\.ipynb"):
        open_run(store, _wanted("other.ipynb"), run=first.run)
    with pytest.raises(UnknownRun):
        open_run(store, _wanted(), run="no-such-run")


def test_the_run_of_an_item_is_begun_once_even_when_its_folder_is_gone(tmp_path: Path) -> None:
    """A completed run leaves its folder: who was told that it exists must not begin it a second time."""
    with contextlib.closing(LocalStore(tmp_path / ".nbflow", background=False)) as store:
        batch = new_run_id()
        parent = RunOpened(run=child_run_id(batch, "item#0"), workflow="", parent=batch, parent_step="item#0")
        wanted = Wanted("in.ipynb", {}, "python3")
        begun = open_run(store, wanted, parent=parent)
        assert (begun.run, begun.state) == (parent.run, "pending")
        assert open_run(store, wanted, parent=parent, begun=True).run == parent.run
        Session.open(store, "", run=parent.run).finish()
        store.ingest()
        assert parent.run not in store.live.names()
        with pytest.raises(RunFinished, match="elsewhere"):
            open_run(store, wanted, parent=parent, begun=True)
        assert parent.run not in store.live.names()
        assert store.run(parent.run).state == "completed"
