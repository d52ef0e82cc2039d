"""What the source of a handler tells about the states it leads to; where it tells nothing, nothing is claimed."""

from __future__ import annotations

import functools
import linecache
import types
from enum import Enum, IntEnum, StrEnum, auto
from typing import Literal

import pytest

import nbflow
from nbflow.core import outcomes
from nbflow.core.machine import Definition, SplitTargets
from nbflow.core.outcomes import Again, Branch, Continue, Split
from nbflow.core.targets import Inferred, infer


class S(StrEnum):
    A = auto()
    B = auto()
    C = auto()
    D = auto()
    FIRST = A


class Other(Enum):
    X = 1


LABELS = Definition("m", S, S.A, {S.D}).find
AFTERWARDS = S.B
changeable = S.B
states = types.SimpleNamespace(A=S.A)


def targets_of(function, label_of=LABELS) -> set[str] | None:
    found = infer(function, label_of).targets
    return None if found is None else set(found)


def member(ctx):
    return S.A


def several(ctx):
    if ctx:
        return S.A
    for _ in ctx:
        with ctx:
            return S.B
    try:
        return S.C
    except ValueError:
        return None
    finally:
        ctx.close()


def conditional(ctx):
    return S.A if ctx.good else (S.B if ctx.bad else S.C)


def constant_name(ctx):
    return AFTERWARDS


def local_name(ctx):
    following = S.A
    if ctx:
        following = S.B
    return following


def looped(ctx):
    for state in ctx:
        if state:
            return state
    return S.A


def parameter(ctx, following=S.A):
    return following


def matched(ctx):
    match ctx.score:
        case 1:
            return S.A
        case int() if ctx.odd:
            return S.B
        case _:
            return S.C


def matched_name(ctx):
    match ctx:
        case {"next": following}:
            return following
    return S.A


def looked_up(ctx):
    return {"good": S.A, "bad": S.B}[ctx.verdict]


def looked_up_or(ctx):
    return {"good": S.A}.get(ctx.verdict, S.C)


def one_of(ctx):
    return (S.A, S.B)[ctx.flag]


def either(ctx):
    return (ctx and S.A) or S.B


def fallback(ctx):
    return None or S.B


def walrus(ctx):
    return (found := S.B) or found


def by_alias(ctx):
    return S.FIRST


def by_name(ctx):
    return S["B"]


def by_value(ctx):
    return S("b")


def missing_member(ctx):
    return S.E


def foreign_member(ctx):
    return Other.X


def text(ctx):
    return "C"


def typo(ctx):
    return "Cc"


def nested(ctx):
    def inner():
        return S.C

    def lazy():
        return ctx

    return S.A


def computed(ctx):
    return ctx.next()


def partly(ctx):
    if ctx:
        return Split([S.A], to=S.C)
    return ctx.next()


def number(ctx):
    return 3


def rebound_global(ctx):
    return changeable


def attribute_of_instance(ctx):
    return states.A


def generator(ctx):
    yield S.A
    return S.B


def nothing(ctx):
    ctx.log("done")


def stepped(ctx, cursor):
    return Continue(cursor + 1) if cursor < 9 else S.B


def polled(ctx):
    return S.B if ctx.ready() else Again("5s")


def self_referring(ctx):
    x = S.A
    x = x
    return x  # noqa: RET504


def deleted(ctx):
    x = S.A
    del x
    x = S.B
    return x  # noqa: RET504


def nonlocal_change(ctx):
    x = S.A

    def change():
        nonlocal x
        x = ctx.state

    change()
    return x


async def later(ctx):
    await ctx.wait()
    return S.B


async def awaited(ctx):
    return await ctx.next()


CASES = [
    (member, {"A"}),
    (several, {"A", "B", "C"}),
    (conditional, {"A", "B", "C"}),
    (constant_name, {"B"}),
    (local_name, {"A", "B"}),
    (looped, None),
    (parameter, None),
    (matched, {"A", "B", "C"}),
    (matched_name, None),
    (looked_up, {"A", "B"}),
    (looked_up_or, {"A", "C"}),
    (one_of, {"A", "B"}),
    (either, None),
    (fallback, {"B"}),
    (walrus, {"B"}),
    (by_alias, {"A"}),
    (by_name, {"B"}),
    (by_value, {"B"}),
    (missing_member, {"S.E"}),
    (foreign_member, {"Other.X"}),
    (text, {"C"}),
    (typo, {"Cc"}),
    (nested, {"A"}),
    (computed, None),
    (number, None),
    (rebound_global, None),
    (attribute_of_instance, None),
    (generator, None),
    (nothing, set()),
    (stepped, {"B"}),
    (polled, {"B"}),
    (self_referring, None),
    (deleted, None),
    (nonlocal_change, None),
    (later, {"B"}),
    (awaited, None),
    (len, None),
    (lambda ctx: S.A, None),
]


@pytest.mark.parametrize(("function", "expected"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_what_a_handler_returns_is_read_from_its_source(function, expected) -> None:
    """Literal states in any statement are found; whatever must be computed makes the targets unknown."""
    assert expected == targets_of(function)


def split_literally(ctx):
    return Split([S.A, Branch(S.B, name="second", number=2)], to=S.C)


def split_by_module(ctx):
    return outcomes.Split(branches=(S.A,), join="any", to=S.C)


def split_over_items(ctx):
    return Split([Branch(S.A, number=n) for n in range(ctx.count)], to=S.C)


def split_over_states(ctx):
    return Split((state for state in (S.A, S.B)), to=S.C)


def split_hidden(ctx):
    return Split([S for S in ctx.states], to=S.C)  # noqa: C416


def split_from_list(ctx):
    branches = [S.A] * 3 + [S.B]
    return Split(branches, to=S.C)


def split_from_changed_list(ctx):
    branches = [S.A]
    branches.append(ctx.more)
    return Split(branches, to=S.C)


def split_named(ctx):
    both = Split([S.A, *[S.B]], to=S.C)
    return both  # noqa: RET504


def split_without_target(ctx):
    return Split([S.A])


def split_with_options(ctx):
    return Split([S.A], **ctx.options)


def split_to_somewhere(ctx):
    return Split([S.A], to=ctx.target)


def split_enum(ctx):
    return Split(list(S), to=S.C)


def split_mistyped(ctx):
    return Split([S.A, "bb"], to="cc")


AB = frozenset({"A", "B"})
SPLITS = [
    (split_literally, SplitTargets(AB, "C")),
    (split_by_module, SplitTargets(frozenset("A"), "C")),
    (split_over_items, SplitTargets(frozenset("A"), "C")),
    (split_over_states, SplitTargets(AB, "C")),
    (split_hidden, SplitTargets(None, "C")),
    (split_from_list, SplitTargets(AB, "C")),
    (split_from_changed_list, SplitTargets(None, "C")),
    (split_named, SplitTargets(AB, "C")),
    (split_without_target, SplitTargets(frozenset("A"), None, joined=False)),
    (split_with_options, SplitTargets(frozenset("A"), None)),
    (split_to_somewhere, SplitTargets(frozenset("A"), None)),
    (split_enum, SplitTargets(frozenset("ABCD"), "C")),
    (split_mistyped, SplitTargets(frozenset({"A", "bb"}), "cc")),
]


@pytest.mark.parametrize(("function", "expected"), SPLITS, ids=lambda case: getattr(case, "__name__", ""))
def test_splits_are_read_with_their_branches_and_the_state_after_the_join(function, expected) -> None:
    """Branches and join are found in lists, comprehensions and local names; what may have been changed is unknown."""
    assert Inferred(frozenset(), (expected,)) == infer(function, LABELS)


def test_a_split_is_kept_where_another_return_is_unknown() -> None:
    """One return that must be computed does not hide a split beside it."""
    assert Inferred(None, (SplitTargets(frozenset("A"), "C"),)) == infer(partly, LABELS)


def declared(ctx) -> Literal[S.A, S.B]:
    return ctx.next()


def declared_with_split(ctx) -> Literal[S.A] | Split | None:
    return ctx.next()


def declared_optional(ctx) -> Literal["A", "zz"] | None:
    return ctx.next()


def only_the_class(ctx) -> S:
    return S.A


def partly_declared(ctx) -> Literal[S.A] | S:
    return S.B


def test_a_literal_annotation_declares_the_targets() -> None:
    """`-> Literal[...]` counts instead of the body; an annotation that says less does not."""
    assert {"A", "B"} == targets_of(declared)
    assert Inferred(frozenset("A"), (SplitTargets(None, None),)) == infer(declared_with_split, LABELS)
    assert {"A", "zz"} == targets_of(declared_optional)
    assert {"A"} == targets_of(only_the_class)
    assert {"B"} == targets_of(partly_declared)


def test_annotations_that_are_objects_count_as_well() -> None:
    """Without `from __future__ import annotations` the annotation is the object itself."""

    def handler(ctx):
        return ctx.next()

    handler.__annotations__["return"] = Literal[S.A] | None
    assert {"A"} == targets_of(handler)


def executed(source: str, name: str, **namespace):
    """Run source as IPython does: its lines stand in linecache only."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)
    return namespace


def test_handlers_of_notebook_cells_are_read() -> None:
    """Source that exists in linecache only is found, and the names are those of the cell's own globals."""
    cell = "x = 1\n@keep\ndef task(ctx):\n    if ctx:\n        return T.B\n    return T.A\ny = 2\n"
    space = executed(cell, "<cell-1>", T=S, keep=lambda function: function)

    assert {"A", "B"} == targets_of(space["task"])


def test_any_layout_is_read() -> None:
    """Brackets, long strings and comments that stand further left than the function do not end it."""
    source = (
        'def task(\n    ctx,\n):\n    text = """\nno deeper\n"""\n    if text:\n        return (\n  S.A\n)\n'
        "# ends nothing\n    return S.B\n\n# after it\nS.C\n"
    )

    assert {"A", "B"} == targets_of(executed(source, "<cell-7>", S=S)["task"])


def test_one_source_means_what_its_own_globals_say() -> None:
    """Functions of equal code are told apart by what their names stand for."""
    cell = "def task(ctx):\n    return T.A\n"
    first = executed(cell, "<cell-2>", T=S)["task"]
    second = executed(cell, "<cell-2>", T=Enum("T", ["B"]))["task"]

    assert {"A"} == targets_of(first)
    assert {"T.A"} == targets_of(second)


def test_functions_of_one_factory_have_the_targets_that_they_were_given() -> None:
    """The closure counts: one code object, as many targets as functions."""

    def make(following):
        def handler(ctx):
            return following

        return handler

    assert [{"A"}, {"B"}, None] == [targets_of(make(state)) for state in (S.A, S.B, object())]


def test_a_nested_handler_with_text_at_the_margin_is_read() -> None:
    """Neither the indentation of a function nor that of its strings matters."""

    def handler(ctx):
        """First line.
        not indented
        """
        return S.A if ctx else S.B

    assert {"A", "B"} == targets_of(handler)


def test_without_source_nothing_is_claimed() -> None:
    """A function whose source is gone, or was edited since, has unknown targets."""
    bare: dict = {"S": S}
    exec("def gone(ctx):\n    return S.A\n", bare)
    edited = executed("def task(ctx):\n    return S.A\n", "<cell-3>", S=S)["task"]
    linecache.cache["<cell-3>"] = (1, None, ["def other(ctx):\n", "    return S.B\n"], "<cell-3>")
    changed = executed("def third(ctx):\n    return S.A\n", "<cell-8>", S=S)["third"]
    linecache.cache["<cell-8>"] = (1, None, ["def third(data):\n", "    return S.B\n"], "<cell-8>")
    broken = executed("def broken(ctx):\n    return S.A\n", "<cell-4>", S=S)["broken"]
    linecache.cache["<cell-4>"] = (1, None, ["def broken(ctx:\n", "    return S.B\n"], "<cell-4>")

    assert [None] * 4 == [targets_of(function) for function in (bare["gone"], edited, changed, broken)]


def test_what_wraps_a_handler_is_looked_through_only_where_it_changes_nothing() -> None:
    """Partials, methods and durable functions give what their function gives; a foreign decorator may not."""

    class Tasks:
        def task(self, ctx):
            return S.A

    @functools.wraps(member)
    def wrapped(ctx):
        return {"A": S.B}[member(ctx)]

    assert {"A"} == targets_of(functools.partial(member))
    assert {"A"} == targets_of(Tasks().task)
    assert {"A"} == targets_of(nbflow.durable(member))
    assert targets_of(wrapped) is None


def test_values_of_members_count_where_the_machine_knows_them() -> None:
    """An IntEnum's number leads to its state, True to none."""

    class N(IntEnum):
        ONE = 1
        TWO = 2

    def numbered(ctx):
        return 2

    def truth(ctx):
        return True

    find = Definition("m", N, N.ONE, {N.TWO}).find

    assert [{"TWO"}, None] == [targets_of(numbered, find), targets_of(truth, find)]


def test_long_and_deep_expressions_are_read_or_unknown() -> None:
    """Many alternatives are all found; what Python itself cannot nest any deeper is no crash."""
    nested = "S.A if ctx else (S.B if ctx else (" * 20 + "S.C" + "))" * 20
    many = " or ".join(["None"] * 20_000)

    assert {"A", "B", "C"} == targets_of(
        executed(f"def task(ctx):\n    return {nested}\n", "<cell-5>", S=S)["task"]
    )
    assert set() == targets_of(executed(f"def task(ctx):\n    return {many}\n", "<cell-6>", S=S)["task"])
