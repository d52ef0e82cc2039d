"""Which variables hang together: through objects, memory, closures, and not through what never changes."""

from __future__ import annotations

import array
import functools
import itertools
import types
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.notebook.aliases import sharing


@dataclass
class Holder:
    content: Any


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


def closure(content: Any) -> Any:
    return lambda: content


def found(changed: str, **namespace: Any) -> set[str]:
    return sharing(changed.split(), namespace)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: (1, (2, x)),
        lambda x: {"k": x},
        lambda x: {"k": [{"l": x}]},
        lambda x: [1] * 100 + [x],
        lambda x: [{"i": i} for i in range(100)] + [{"i": x}],
        Holder,
        Slotted,
        closure,
        lambda x: functools.partial(print, x),
        lambda x: deque([x]),
        lambda x: types.SimpleNamespace(a=x),
        lambda x: np.array([x, None], dtype=object),
        lambda x: pd.DataFrame({"a": [x, None]}),
        lambda x: Holder([Slotted({"k": closure(x)})]),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda: [1], lambda: {"a": 1}, lambda: Holder(1), lambda: pd.DataFrame({"a": [1]})]
)
def test_a_variable_that_holds_the_object_is_found(wrap: Any, make: Any) -> None:
    """Whatever the container, a variable through which the output can be reached belongs to it, both ways."""
    x = make()
    if isinstance(wrap(0), (np.ndarray, pd.DataFrame)) and not isinstance(x, (dict, Holder)):
        pytest.skip("NumPy would take the list apart")
    namespace = {"x": x, "holder": wrap(x), "other": make(), "number": 5}
    del x
    assert sharing(["x"], namespace) == {"holder"}
    assert sharing(["holder"], namespace) == {"x"}
    assert sharing(["other"], namespace) == set()


def test_views_of_an_array_share_its_memory() -> None:
    """A view and its base are one thing, a copy is another, and so are two views that do not overlap."""
    base = np.arange(100.0)
    assert found("base", base=base, view=base[10:20], turned=base[::-1], copy=base.copy()) == {
        "view",
        "turned",
    }
    assert found("view", base=base, view=base[10:20]) == {"base"}
    assert found("left", left=base[:50], right=base[50:]) == set()
    assert found("square", square=base.reshape(10, 10).T[2:4, ::2], base=base) == {"base"}


def test_arrays_over_foreign_memory_share_it() -> None:
    """Two arrays over one bytearray, or an array and that bytearray, hang together."""
    raw = bytearray(80)
    assert found("a", a=np.frombuffer(raw, dtype="f8"), raw=raw) == {"raw"}
    assert found("a", a=np.frombuffer(raw, dtype="f8"), b=np.frombuffer(raw, dtype="i8")) == {"b"}
    assert found("a", a=np.zeros(3), b=array.array("d", [0, 0])) == set()


def test_frames_derived_under_copy_on_write_are_their_own() -> None:
    """`flights2 = flights.assign(…)` shares blocks with flights, and neither sees the other's changes."""
    frame = pd.DataFrame({"a": np.arange(5.0), "b": list("abcde")})
    lazy = {
        "frame": frame,
        "more": frame.assign(c=1),
        "column": frame["a"],
        "copy": frame.copy(),
        "head": frame.head(),
    }
    if int(pd.__version__.partition(".")[0]) >= 3:
        assert sharing(["more"], lazy) == set()
        assert sharing(["frame"], lazy) == set()
    assert found("copy", copy=frame.copy(), frame=frame) == set()


def test_an_array_that_a_frame_was_built_on_shares_its_memory() -> None:
    """A frame made over an array without a copy sees what is written into the array."""
    values = np.zeros((4, 2))
    frame = pd.DataFrame(values, copy=False)
    assert np.shares_memory(frame.to_numpy(), values)
    assert found("values", values=values, frame=frame) == {"frame"}
    assert found("frame", values=values, frame=frame) == {"values"}


def test_the_answer_is_closed() -> None:
    """What shares with something found is found too: else `pair[1] is other` would break."""
    a, other = [1], [2]
    assert found("a", a=a, pair=[a, other], other=other, third=[other], alone=[3]) == {
        "pair",
        "other",
        "third",
    }


def test_what_never_changes_is_not_shared() -> None:
    """Strings, numbers, modules, classes and functions without closures tie nothing together."""
    text, number, moment = "x" * 1000, 10**30, pd.Timestamp("2020-01-01")
    many: dict[str, Any] = {
        "out": [text, number, np, Holder, len, moment],
        "other": [text, number, np, Holder, len],
    }
    assert sharing(["out"], many) == set()
    index = pd.Index(["a", "b"])
    assert found("x", x=pd.Series([1, 2], index=index), y=pd.Series([3, 4], index=index)) == set()


def test_cycles_end() -> None:
    """An object that contains itself is walked once."""
    a: list[Any] = [1]
    a.append(a)
    assert found("a", a=a, b=[a], c=[1]) == {"b"}


def test_two_outputs_that_share_need_nobody_else() -> None:
    """References among the outputs themselves are no reason to look at other variables."""
    a = [1]
    assert found("a b", a=a, b={"a": a}, c=[[1]]) == set()


def test_objects_without_a_name_count_as_outputs() -> None:
    """An input that was changed and then rebound still shares with whoever holds it."""
    old = [1]
    assert sharing([], {"x": 5, "b": [old]}, extra=[old]) == {"b"}


def test_private_names_are_not_looked_at_unless_asked() -> None:
    """IPython's `_` and `_3` refer to what was shown; they are no variables of the user's."""
    x = [1]
    assert found("x", x=x, _=x, _3=x) == set()
    assert sharing(["x"], {"x": x, "_mine": x}, among=["_mine"]) == {"_mine"}


def test_isolated_outputs_look_at_nobody() -> None:
    """The reference counts show that nobody else holds a fresh output: a budget of its own size is enough."""
    fresh = [[i, {"k": [i]}] for i in range(50)]
    namespace = {"fresh": fresh, "huge": [[[i]] for i in range(5000)]}
    del fresh
    assert sharing(["fresh"], namespace, budget=300) == set()


def test_over_the_budget_the_garbage_collector_knows() -> None:
    """In a variable too large to walk the object is found from below, and nobody else is taken for a holder."""
    x = [1]
    namespace = {
        "x": x, "deep": [[[i]] for i in range(5000)], "holding": [[[i]] for i in range(5000)], "small": [5], "direct": (1, [x]),
    }  # fmt: skip
    namespace["holding"][4000][0].append({"k": (x,)})
    assert sharing(["x"], namespace, budget=100) == {"holding", "direct"}
    assert sharing(["x"], namespace) == {"holding", "direct"}


def test_an_output_too_large_to_walk_ties_in_nobody_unrelated() -> None:
    """A huge nested output is recorded alone."""
    namespace = {"huge": [[[i]] for i in range(5000)], "other": [[1]], "frame": pd.DataFrame({"a": [1]})}
    assert sharing(["huge"], namespace, budget=100) <= {"huge"}


def test_many_records_are_walked_fast() -> None:
    """A long list of flat records costs a small part of the budget."""
    x = {"i": 0}
    records = [{"i": i, "name": str(i)} for i in range(100_000)]
    holder = [x]
    assert sharing(["x"], {"x": x, "records": records}, budget=20_000) == set()
    records.append(x)
    assert sharing(["x"], {"x": x, "records": records}, budget=20_000) == {"records"}
    assert holder


def test_hostile_objects_do_not_disturb_the_walk() -> None:
    """Attribute hooks and comparisons of the user's are not called."""

    class Hostile:
        def __init__(self) -> None:
            self.__dict__["content"] = []

        def __getattribute__(self, name: str) -> Any:
            if name in ("__class__", "__dict__"):
                return object.__getattribute__(self, name)
            raise RuntimeError(name)

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    hostile = Hostile()
    assert found("a", a=hostile, b=[hostile], c=Hostile()) == {"b"}


# -- against a plain definition ----------------------------------------------


def reach(value: Any, seen: set[int]) -> set[int]:
    if isinstance(value, (list, dict)) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            reach(part, seen)
    return seen


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_generated_graphs_agree_with_the_definition(data: st.DataObject) -> None:
    """For random object graphs the answer is the closure of "reaches a common mutable object"."""
    nodes: list[Any] = [
        [] if kind else {} for kind in data.draw(st.lists(st.booleans(), min_size=2, max_size=8))
    ]
    for node in nodes:
        for other in data.draw(st.lists(st.integers(0, len(nodes) - 1), max_size=2)):
            if isinstance(node, list):
                node.append(nodes[other])
            else:
                node[len(node)] = nodes[other]
    namespace = {f"v{number}": node for number, node in enumerate(nodes[:5])}
    start = data.draw(st.sampled_from(sorted(namespace)))
    expected = {start}
    while True:
        ids = set(itertools.chain.from_iterable(reach(namespace[name], set()) for name in expected))
        more = {name for name in namespace if reach(namespace[name], set()) & ids}
        if more == expected:
            break
        expected = more
    assert sharing([start], namespace) == expected - {start}
