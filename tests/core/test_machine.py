"""The check of a machine before it runs: every problem by name, all at once, and none that is not there."""

from __future__ import annotations

import copy
import enum
import math
import pickle
from datetime import timedelta
from enum import Enum, Flag, IntEnum, StrEnum, auto

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import InvalidMachine, UnknownState, UsageError
from nbflow.core.joins import Join
from nbflow.core.machine import (
    KINDS,
    Again,
    Branch,
    Continue,
    Definition,
    Edge,
    Split,
    SplitTargets,
    StateSpec,
)
from nbflow.core.retry import RetryPolicy


class S(StrEnum):
    LOAD = auto()
    TRAIN = auto()
    DONE = auto()
    FIRST = LOAD


def task(ctx):
    return None


def other(ctx):
    return None


def machine(edges: dict[str, str | None], *, initial="a", final=("z",), states=None, splits=None, **specs):
    """A machine of strings: `edges` maps each state to the letters that it leads to, None for unknown."""
    labels = states if states is not None else [*edges, *(label for label in final if label not in edges)]
    made = Definition("m", labels, initial, final)
    for label, targets in edges.items():
        options = specs.get(label, {})
        known = None if targets is None else frozenset(targets)
        made.add(
            StateSpec(
                label,
                **{"handler": task, "targets": known, "splits": (splits or {}).get(label, ()), **options},
            )
        )
    return made


def only_problem(made: Definition) -> str:
    problems = made.problems()
    assert 1 == len(problems), problems
    return problems[0]


def test_a_sound_machine_has_no_problems() -> None:
    """A chain with a loop that has a way out is fine."""
    made = machine({"a": "b", "b": "ac", "c": "z"})

    assert [] == made.problems()
    made.validate()


BATCH = {"kind": "batch", "options": {"process": task, "finish": task}}
STREAM = {"kind": "stream", "options": {"window": task, "finish": task, "count": 3}}


def without(facts: dict, name: str) -> dict:
    options = {key: value for key, value in facts["options"].items() if key != name}
    return {**facts, "options": options}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Definition("m", [], None, ()), ["no states"]),
        (machine({"a": "z"}, initial=None), ["no initial state", "initial="]),
        (machine({"a": "z"}, initial="aa"), ["initial state 'aa'", "unknown", "Did you mean 'a'?"]),
        (machine({"a": "a"}, final=()), ["no final state", "final="]),
        (machine({"a": "z"}, final=("z", "q"), states=["a", "z"]), ["final state 'q'", "unknown"]),
        (machine({"a": "z", "z": ""}), ["'z'", "final state with a handler"]),
        (machine({"a": "bz"}, states=["a", "b", "z"]), ["'b'", "no handler"]),
        (machine({"a": "z"}, a={"handler": None}), ["'a'", "no handler"]),
        (machine({"a": "z", "q": "z"}, states=["a", "z"]), ["'q'", "unknown state"]),
        (machine({"a": "z", "b": "z"}), ["'b'", "unreachable", "'a'"]),
        (machine({"a": None, "b": "z"}, a={"targets": frozenset({"zz"})}), ["'a'", "unknown target 'zz'"]),
        (machine({"a": "bz", "b": ""}), ["'b'", "dead end", "nowhere"]),
        (machine({"a": "bz", "b": "b"}), ["'b'", "dead end", "nowhere but to itself"]),
        (machine({"a": "z"}, states=["a", "z", "a"]), ["'a'", "twice"]),
        (machine({"a": "z"}, a={"kind": "router", "compensate": task}), ["'a'", "router", "compensate="]),
        (
            machine({"a": "z"}, a={"kind": "timer", "options": {"after": 1}, "compensate": task}),
            ["'a'", "timer", "compensate="],
        ),
        (machine({"a": "z"}, a={"kind": "timer"}), ["'a'", "without after= or at="]),
        (machine({"a": "z"}, a={"kind": "timer", "options": {"after": 1, "at": 2.0}}), ["'a'", "both"]),
        (machine({"a": "z"}, a=without(BATCH, "process")), ["'a'", "batch without process"]),
        (machine({"a": "z"}, a=without(BATCH, "finish")), ["'a'", "batch without finish"]),
        (machine({"a": "z"}, a=without(STREAM, "window")), ["'a'", "stream without window"]),
        (machine({"a": "z"}, a=without(STREAM, "finish")), ["'a'", "stream without finish"]),
        (machine({"a": "z"}, a=without(STREAM, "count")), ["'a'", "without count= or within="]),
        (machine({"a": "z"}, a={"options": {"every": 3}}), ["'a'", "plain", "every=", "poll"]),
        (
            machine({"a": "", "b": ""}, splits={"a": [SplitTargets(frozenset("b"), None, joined=False)]}),
            ["'a'", "join without target", "to="],
        ),
        (
            machine({"a": "", "b": ""}, splits={"a": [SplitTargets(frozenset({"b", "bb"}), "z")]}),
            ["'a'", "splits into the unknown target 'bb'"],
        ),
        (
            machine({"a": "", "b": ""}, splits={"a": [SplitTargets(frozenset("b"), "zz")]}),
            ["'a'", "joins", "unknown target 'zz'"],
        ),
    ],
)
def test_each_problem_is_named_once_with_its_state_and_what_to_do(made: Definition, words: list[str]) -> None:
    """One mistake is one problem, without others that only follow from it."""
    problem = only_problem(made)

    assert [] == [word for word in words if word not in problem], problem
    with pytest.raises(InvalidMachine):
        made.validate()


@pytest.mark.parametrize(
    "facts",
    [BATCH, STREAM]
    + [{"kind": kind} for kind in ("plain", "router", "poll", "stepped")]
    + [
        {"kind": "timer", "options": {"after": "5s"}},
        {"kind": "timer", "options": {"at": 1e9}, "handler": None},
    ]
    + [{"kind": "poll", "options": {"every": "1s", "max_errors": 3}, "compensate": task}],
)
def test_each_kind_has_a_sound_form(facts: dict) -> None:
    """What a kind needs is enough for it."""
    assert [] == machine({"a": "z"}, a=facts).problems()


def test_a_loop_without_exit_is_a_dead_end_for_every_state_in_it() -> None:
    """Each state of the loop is named, with the ones it leads to."""
    problems = machine({"a": "bz", "b": "c", "c": "d", "d": "b"}).problems()

    assert 3 == len(problems)
    assert all("dead end" in problem and "no final state can be reached" in problem for problem in problems)
    assert [True] * 3 == [problem.startswith(f"State '{label}'") for label, problem in zip("bcd", problems)]


def test_all_problems_come_in_one_error_and_in_a_stable_order() -> None:
    """The error has them as a tuple and one a line, the machine's own first, then state by state."""
    made = machine({"a": "bx", "b": "b", "c": "z", "e": ""}, final=("y",), states=["a", "b", "c", "d", "z"])

    with pytest.raises(InvalidMachine) as raised:
        made.validate()

    assert "m" == raised.value.machine
    assert tuple(made.problems()) == raised.value.problems
    expected = ["final state 'y'", "'e'", "'a'", "'d'", "'z'"]
    assert len(expected) == len(raised.value.problems), raised.value.problems
    assert all(word in problem for word, problem in zip(expected, raised.value.problems))
    lines = str(raised.value).splitlines()
    assert 1 + len(expected) == len(lines) and "5 problems" in lines[0]


def test_a_second_handler_is_a_problem_and_the_same_one_again_is_not() -> None:
    """Running a cell again defines its states again; two functions of one file do not share a state."""
    made = machine({"a": "z"}, a={"line": "cell-1:3"})
    made.add(StateSpec("a", handler=copy.copy(task), targets=frozenset("z"), line="cell-1:3"))
    edited = StateSpec("a", handler=task, targets=frozenset("z"), line="cell-2:3")
    made.add(edited)
    assert [] == made.problems()
    assert edited is made.specs["a"]

    made.add(StateSpec("a", handler=other, targets=frozenset("z"), line="cell-3:1"))
    assert "two handlers (cell-2:3, cell-3:1)" in only_problem(made)
    assert edited is made.specs["a"]


def test_one_name_at_two_places_of_a_file_is_two_handlers() -> None:
    """A function that is defined twice by mistake does not silently replace the first."""

    def make():
        def handler(ctx):
            return None

        return handler

    made = machine({"a": "z"}, a={"line": "file.py:3", "handler": make()})
    made.add(StateSpec("a", handler=make(), targets=frozenset("z"), line="file.py:9"))

    assert "two handlers" in only_problem(made)


def test_unknown_targets_raise_no_alarm() -> None:
    """A state that may lead anywhere makes every state reachable and is no dead end."""
    assert [] == machine({"a": None, "b": "z", "c": "b"}).problems()
    assert (
        []
        == machine(
            {"a": "b", "b": None, "c": "c", "d": ""}, final=("z",), c={"targets": None}, d={"targets": None}
        ).problems()
    )
    assert "'c'" in only_problem(machine({"a": None, "c": "c"}))


AB = frozenset("bc")


@pytest.mark.parametrize(
    ("edges", "split"),
    [
        ({"a": "", "b": "", "c": "", "d": "z"}, SplitTargets(AB, "d")),
        ({"a": "", "b": "d", "c": "e", "d": "z", "e": ""}, SplitTargets(AB, "d")),
        ({"a": "", "b": "", "c": None, "d": "z", "e": ""}, SplitTargets(AB, "d")),
        ({"a": "", "b": "", "c": "", "d": "z"}, SplitTargets(None, "d")),
        ({"a": "", "b": "", "c": "", "d": "z"}, SplitTargets(AB, None)),
    ],
)
def test_states_inside_of_branches_go_on_behind_the_join(edges, split) -> None:
    """A branch may end in any of its states; that is no dead end, as the join leads on."""
    assert [] == machine(edges, splits={"a": [split]}).problems()


def test_states_behind_the_join_are_outside_of_the_branches() -> None:
    """What comes after the join has to find an end of its own."""
    made = machine({"a": "", "b": "d", "d": "ez", "e": ""}, splits={"a": [SplitTargets(frozenset("b"), "d")]})

    assert "'e'" in only_problem(made)


def test_a_split_whose_join_leads_nowhere_is_a_dead_end() -> None:
    """Branches cannot save a machine that is stuck behind their join."""
    made = machine({"a": "xz", "x": "", "b": "", "c": "c"}, splits={"x": [SplitTargets(frozenset("b"), "c")]})

    assert ["'x'", "'b'", "'c'"] == [problem.split()[1] for problem in made.problems()]
    assert all("dead end" in problem for problem in made.problems())


@given(st.integers(1, 9), st.data())
def test_reachability_and_dead_ends_are_those_of_graph_theory(size: int, data: st.DataObject) -> None:
    """On random graphs exactly the states are reported that networkx finds unreachable or without a way to an end."""
    labels = [f"s{n}" for n in range(size)]
    final = data.draw(st.sets(st.sampled_from(labels), min_size=1))
    graph = networkx.DiGraph()
    graph.add_nodes_from(labels)
    unknown = data.draw(st.sets(st.sampled_from(labels), max_size=1)) - final
    made = Definition("m", labels, "s0", final)
    for label in labels:
        if label in final:
            continue
        targets = data.draw(st.frozensets(st.sampled_from(labels), max_size=3))
        graph.add_edges_from((label, target) for target in (labels if label in unknown else targets))
        made.add(StateSpec(label, handler=task, targets=None if label in unknown else targets))

    reached = {"s0"} | networkx.descendants(graph, "s0")
    ending = final.union(*(networkx.ancestors(graph, label) for label in final))
    problems = made.problems()

    assert set(labels) - reached == {p.split("'")[1] for p in problems if "unreachable" in p}
    assert set(labels) - ending == {p.split("'")[1] for p in problems if "dead end" in p}
    assert len(problems) == sum("unreachable" in p or "dead end" in p for p in problems)


def test_problems_do_not_depend_on_the_order_of_sets() -> None:
    """Final states and targets that are sets are told in one order."""
    words = [f"w{n}" for n in range(20)]
    forth = machine({"a": None}, final=tuple(words), states=["a"], a={"targets": frozenset(words)})
    back = machine(
        {"a": None}, final=tuple(reversed(words)), states=["a"], a={"targets": frozenset(reversed(words))}
    )

    assert forth.problems() == back.problems()


# --- labels -----------------------------------------------------------------------------------------------------


class Plain(Enum):
    A = "first"
    B = 2
    C = ("hash", "able")
    D = ["not", "hashable"]
    LAST = 2


class Number(IntEnum):
    A = 1
    B = 2


class Swapped(StrEnum):
    A = "B"
    B = "A"


@pytest.mark.parametrize(
    ("states", "value", "expected"),
    [
        (S, S.LOAD, "LOAD"),
        (S, "LOAD", "LOAD"),
        (S, "load", "LOAD"),
        (S, S.FIRST, "LOAD"),
        (Plain, Plain.A, "A"),
        (Plain, "first", "A"),
        (Plain, 2, "B"),
        (Plain, Plain.LAST, "B"),
        (Plain, ("hash", "able"), "C"),
        (Plain, Plain.D, "D"),
        (Number, Number.B, "B"),
        (Number, 2, "B"),
        (Number, "B", "B"),
        (Swapped, "A", "A"),
        (Swapped, Swapped.A, "A"),
        (["load", "done"], "load", "load"),
        (["load", "done"], S.LOAD, "load"),
        (("x",), "x", "x"),
    ],
)
def test_a_state_is_known_by_member_label_and_value(states, value, expected: str) -> None:
    """A text is a label first, so that what the journal holds never changes its meaning; a value comes second."""
    made = Definition("m", states)

    assert expected == made.label(value) == made.find(value)
    assert expected == made.label(made.member(expected))


@pytest.mark.parametrize(
    ("states", "value"),
    [
        (Number, True),
        (Number, 1.0),
        (Number, "1"),
        (S, Plain.A),
        (S, Number.A),
        (S, None),
        (S, []),
        (S, "LAOD"),
    ]
    + [(["load"], Plain.A), (["load"], Number.A), (["load"], 3), (Plain, ["not", "hashable"])],
)
def test_what_is_no_state_is_a_typed_error(states, value) -> None:
    """True is no state 1, a member of another Enum no member of this; the error names machine and state."""
    made = Definition("m", states)

    assert made.find(value) is None
    with pytest.raises(UnknownState) as raised:
        made.label(value)
    assert "m" == raised.value.machine and raised.value.state
    assert "'m'" in str(raised.value) and raised.value.state in str(raised.value)


@pytest.mark.parametrize("text", ["laod", "LAOD", "Load", "S.LOADD"])
def test_a_near_miss_is_answered_with_a_guess(text: str) -> None:
    """A typo in a label or value gets the label that was meant."""
    with pytest.raises(UnknownState, match="Did you mean 'LOAD'"):
        Definition("m", S).label(text)


def test_a_far_miss_is_answered_with_the_states_there_are() -> None:
    """Where nothing is alike the states are listed, not all thousand of them."""
    with pytest.raises(UnknownState, match="and 990 more"):
        Definition("m", [f"s{n}" for n in range(1000)]).member("@@@@")


def test_members_come_back_as_they_were_defined() -> None:
    """`member` gives the Enum's own member, or the string."""
    assert S.LOAD is Definition("m", S).member("LOAD")
    assert "load" == Definition("m", ["load"]).member("load")
    assert ("LOAD", "TRAIN", "DONE") == Definition("m", S).labels


def test_an_enum_that_was_defined_again_is_the_same() -> None:
    """When the cell of the Enum is run once more, handlers return members of the new class."""
    again = StrEnum("S", {"LOAD": "load", "NEW": "new"}, module=S.__module__, qualname=S.__qualname__)
    stranger = StrEnum("S", {"LOAD": "load"}, module="elsewhere")
    made = Definition("m", S)

    assert "LOAD" == made.label(again.LOAD)
    assert [None, None] == [made.find(again.NEW), made.find(stranger.LOAD)]


@pytest.mark.parametrize(
    "states",
    [
        "load",
        b"load",
        3,
        None,
        Flag("F", ["A", "B"]),
        enum.IntFlag("F", ["A"]),
        [1, 2],
        [S.LOAD],
        list(Number),
    ]
    + [["ok", ""], ["a\nb"], ["\ud800"], Enum("E", {"a\tb": 1})],
)
def test_what_cannot_be_states_is_refused_at_once(states) -> None:
    """A Flag's members can be combined, a string is no list of letters, a label must be printable."""
    with pytest.raises(UsageError):
        Definition("m", states)


@pytest.mark.parametrize("facts", [{"name": ""}, {"name": 3}, {"version": 1.5}, {"version": True}])
def test_nonsense_names_and_versions_are_refused(facts) -> None:
    """A machine's name is a text, its version a number or a text."""
    with pytest.raises(UsageError):
        Definition(**{"name": "m", "states": S, **facts})


@pytest.mark.parametrize("final", ["DONE", S.DONE, {S.DONE}, [S.DONE], frozenset({"done"})])
def test_one_final_state_is_not_taken_letter_by_letter(final) -> None:
    """A single final state may be given as itself."""
    assert frozenset({"DONE"}) == Definition("m", S, S.LOAD, final).final
    assert "LOAD" == Definition("m", S, S.LOAD, final).initial


# --- edges ------------------------------------------------------------------------------------------------------


def test_edges_are_what_is_drawn() -> None:
    """Next states, branches, joins and "may lead anywhere", in the order of the states, each once."""
    made = machine(
        {"a": "b", "b": "", "c": "e", "d": "", "e": None},
        splits={"b": [SplitTargets(frozenset("dc"), "e")]},
    )

    assert [
        Edge("a", "b", "next"),
        Edge("b", "c", "branch"),
        Edge("b", "d", "branch"),
        Edge("c", "e", "join"),
        Edge("d", "e", "join"),
        Edge("e", None, "any"),
    ] == made.edges()


def test_edges_lead_to_states_of_the_machine_only() -> None:
    """What does not exist is not drawn, and neither is what a state without handler might do."""
    assert [] == machine({"a": "q"}, states=["a", "b", "z"], a={"targets": frozenset()}).edges()
    assert [Edge("a", None, "any")] == machine({"a": "z"}, a={"targets": frozenset("zq")}).edges()


# --- what tasks return ------------------------------------------------------------------------------------------


def test_branches_get_names_of_their_own() -> None:
    """The label names a branch, with a number where it repeats; names that were given stay."""
    split = Split([S.LOAD, S.TRAIN, S.TRAIN, Branch(S.TRAIN, "mine", rows=3)], to=S.DONE)

    assert ["LOAD", "TRAIN[0]", "TRAIN[1]", "mine"] == [branch.name for branch in split.branches]
    assert {"rows": 3} == split.branches[-1].data
    assert ["TRAIN", "mine"] == [
        branch.name for branch in Split([S.TRAIN, Branch(S.TRAIN, "mine")], to=S.DONE).branches
    ]
    assert [S.LOAD, S.TRAIN, S.TRAIN, S.TRAIN] == [branch.state for branch in split.branches]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_names_of_branches_are_unique_and_as_many_as_branches(states: list[str]) -> None:
    """However states repeat, no two branches share a name, and a split made of its own branches is the same."""
    split = Split(states, to="z")

    assert len(states) == len({branch.name for branch in split.branches})
    assert split == Split(iter(split.branches), to="z")


def test_the_shorter_limit_of_split_and_join_counts() -> None:
    """`within` of the split and of a partial join are one limit, in seconds."""
    join = Join.partial(within="5m")

    assert [300, 60, 300, None] == [
        Split("a b".split(), to="z", join=join).within,
        Split("a b".split(), to="z", join=join, within=timedelta(minutes=1)).within,
        Split("a b".split(), to="z", join=join, within="1h").within,
        Split("a b".split(), to="z", join="any").within,
    ]


@pytest.mark.parametrize(
    "made",
    [
        lambda: Split([], to="z"),
        lambda: Split("ab", to="z"),
        lambda: Split(S.LOAD, to="z"),
        lambda: Split({"a": 1}, to="z"),
        lambda: Split(3, to="z"),
        lambda: Split([3], to="z"),
        lambda: Split([None], to="z"),
        lambda: Split(["a"]),
        lambda: Split(["a"], to=3),
        lambda: Split(["a", "b"], to="z", join=Join.quorum(3)),
        lambda: Split(["a"], to="z", join=Join.partial(2)),
        lambda: Split(["a"], to="z", join=Join.all),
        lambda: Split(["a"], to="z", join="most"),
        lambda: Split(["a"], to="z", within=-1),
        lambda: Split(["a"], to="z", within=math.nan),
        lambda: Split([Branch("a", "x"), Branch("b", "x")], to="z"),
        lambda: Split([Branch("a", "b"), "b"], to="z"),
        lambda: Branch("a", ""),
        lambda: Branch("a", 3),
        lambda: Again(-1),
        lambda: Again(math.nan),
        lambda: Again(math.inf),
        lambda: Again("soon"),
        lambda: Again(True),
        lambda: Again([]),
        lambda: Again(10**400),
        lambda: Again(1, note=3),
    ],
)
def test_nonsense_outcomes_are_refused_where_they_are_made(made) -> None:
    """Empty splits, joins that cannot be satisfied, durations that are none: a typed error in the task itself."""
    with pytest.raises(UsageError):
        made()


@pytest.mark.parametrize(
    "outcome",
    [
        Continue({"fold": 1}),
        Again("5s", note="queued"),
        Branch("a", "n", state=1, name_of="x"),
        Split([S.LOAD, Branch(S.TRAIN, x=[1])], join=Join.percentage(33.4), to=S.DONE, within=3),
    ],
)
def test_outcomes_are_values(outcome) -> None:
    """They compare by what they hold, can be copied and pickled, and cannot be changed."""
    assert outcome == copy.deepcopy(outcome) == pickle.loads(pickle.dumps(outcome))
    with pytest.raises(AttributeError):
        outcome.cursor = outcome.after = outcome.name = outcome.to = None


# --- one state's definition -------------------------------------------------------------------------------------


def test_durations_of_a_state_are_kept_in_seconds() -> None:
    """Text and timedelta are read once; options that are None are not given."""
    spec = StateSpec(
        "a", "poll", task, timeout="1m", options={"every": timedelta(seconds=2), "max_errors": None}
    )

    assert (60, {"every": 2}) == (spec.timeout, spec.options)


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "magic"},
        {"handler": 3},
        {"compensate": "undo"},
        {"timeout": -1},
        {"timeout": math.nan},
        {"options": {"every": -1}},
        {"options": {"after": "soon"}},
        {"options": {"within": math.inf}},
        {"options": {"max_errors": 0}},
        {"options": {"count": 2.5}},
        {"options": {"max_parallel": True}},
        {"options": {"item_retries": -1}},
        {"options": {"process": 3}},
    ],
)
def test_nonsense_options_of_a_state_are_refused(facts) -> None:
    """The error names the state and the option."""
    with pytest.raises(UsageError, match="'a'"):
        StateSpec("a", **facts)


def test_items_may_have_a_whole_retry_policy() -> None:
    """`item_retries` is a count or a policy."""
    assert (
        StateSpec("a", "batch", options={"item_retries": RetryPolicy(2)}).options["item_retries"].retries == 2
    )
    assert len(KINDS) == 8
