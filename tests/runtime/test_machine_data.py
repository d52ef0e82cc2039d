"""A machine's data, calls and migrations are what they would be without the crash: what random machines had found."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import nbflow
from nbflow import Branch, Continue, Split
from nbflow.testing import MemoryStore
from tests.runtime.machine_kit import Power, machine_of
from tests.runtime.machine_model import FACES, go


def twice(tasks: dict[str, Any], face: str, **params: Any) -> list[dict[str, Any]]:
    """Return the data of an undisturbed run and of one that was cut wherever `cut` is called for the first time."""
    found = []
    for cuts in (0, 1):
        store, left = MemoryStore(), [cuts]

        def cut(left: list[int] = left) -> None:
            if left[0]:
                left[0] -= 1
                raise Power

        machine = machine_of(
            {
                label: (lambda *args, task=task, cut=cut: task(*args, cut), options)
                for label, (task, options) in tasks.items()
            }
        )
        if cuts:
            with pytest.raises(Power):
                go(machine, store, face, **params)
            store.restart()
        assert "end" == go(machine, store, face, **params)
        found.append(machine.results(store=store))
    return found


@pytest.mark.parametrize("face", FACES)
def test_calls_of_a_step_belong_to_that_step(face: str) -> None:
    """A stepped task that calls the same function in each step gets each step's own result, cut or not."""

    def train(ctx: Any, cursor: Any, cut: Any) -> Any:
        done = cursor or 0
        pages = itertools.count(done)
        page = nbflow.durable(version="1", name="page")(lambda: next(pages))()
        ctx.seen = [*ctx.get("seen", []), page]
        if done == 2:
            cut()
        return Continue(done + 1) if done < 3 else "end"

    calm, disturbed = twice({"train": (train, {"kind": "stepped", "to": "end"})}, face)
    assert {"seen": [0, 1, 2, 3]} == calm == disturbed


@pytest.mark.parametrize("face", FACES)
def test_what_a_branch_changes_in_place_is_its_own_and_is_kept(face: str) -> None:
    """Neither its siblings nor its own failed tries show in it, and a resume finds the same."""
    tries = []

    def left(ctx: Any, cut: Any) -> str:
        tries.append(list(ctx.rows))
        ctx.rows.append("left")
        ctx.given.append("left")
        if len(tries) % 2:
            raise OSError("once")
        return "j"

    tasks = {
        "a": (
            lambda ctx, cut: (
                setattr(ctx, "rows", ["a"]),
                Split([Branch("left", given=["g"]), "right"], to="j"),
            )[1],
            {},
        ),
        "left": (left, {"retries": 1, "delay": 0}),
        "right": (lambda ctx, cut: setattr(ctx, "other", list(ctx.rows)) or "j", {}),
        "j": (lambda ctx, cut: (cut(), setattr(ctx, "all", [*ctx.rows, *ctx.given]), "end")[2], {}),
    }
    calm, disturbed = twice(tasks, face)
    assert calm == disturbed
    assert (["a", "left"], ["a"], ["a", "left", "g", "left"]) == (calm["rows"], calm["other"], calm["all"])
    assert [["a"]] * 4 == tries


@pytest.mark.parametrize("face", FACES)
def test_names_that_share_an_object_part_alike_with_and_without_a_crash(face: str) -> None:
    """A change through one name is recorded for that name; whether the other shows it must not depend on a crash."""
    tasks = {
        "a": (lambda ctx, cut: (setattr(ctx, "x", [1]), setattr(ctx, "y", [ctx.x]), "b")[2], {}),
        "b": (lambda ctx, cut: ctx.x.append(2) or "c", {}),
        "c": (lambda ctx, cut: (cut(), setattr(ctx, "z", [ctx.x, ctx.y]), "end")[2], {}),
    }
    calm, disturbed = twice(tasks, face)
    assert calm == disturbed
    assert [[1, 2], [[1]]] == calm["z"]


@pytest.mark.parametrize("face", FACES)
def test_a_name_that_was_deleted_before_a_cursor_stays_deleted(face: str) -> None:
    """The cursor records deletions like changes."""

    def b(ctx: Any, cursor: Any, cut: Any) -> Any:
        if cursor is None:
            del ctx.x
            return Continue(1)
        cut()
        ctx.there = "x" in ctx
        return "end"

    tasks = {
        "a": (lambda ctx, cut: setattr(ctx, "x", 1) or "b", {}),
        "b": (b, {"kind": "stepped", "to": "end"}),
    }
    calm, disturbed = twice(tasks, face)
    assert {"there": False} == calm == disturbed


@pytest.mark.parametrize("face", FACES)
def test_a_parameter_that_is_changed_in_place_becomes_data(face: str) -> None:
    """The run's parameters stay as they were, and a resume finds the change."""
    tasks = {
        "a": (lambda ctx, cut: ctx.rows.append(2) or "b", {}),
        "b": (lambda ctx, cut: (cut(), setattr(ctx, "params_then", ctx.params["rows"]), "end")[2], {}),
    }
    calm, disturbed = twice(tasks, face, rows=[1])
    assert {"rows": [1, 2], "params_then": [1]} == calm == disturbed


@pytest.mark.parametrize("face", FACES)
def test_a_look_of_a_poll_that_failed_leaves_no_data(face: str) -> None:
    """As with every failed try."""
    looks = []

    def look(ctx: Any, cut: Any) -> str:
        looks.append("junk" in ctx)
        if len(looks) % 2:
            ctx.junk = 1
            raise OSError("once")
        cut()
        return "end"

    calm, disturbed = twice({"look": (look, {"kind": "poll", "every": "1ms", "to": "end"})}, face)
    assert {} == calm == disturbed
    assert not any(looks)


@pytest.mark.parametrize("face", FACES)
def test_a_migration_that_failed_is_tried_again_from_the_same_state(face: str) -> None:
    """It is given the state that the run is in, and not its own name."""
    broken, labels, store = [True, True], [], MemoryStore()

    def a(ctx: Any) -> str:
        if broken:
            broken.pop()
            raise Power
        return "end"

    with pytest.raises(Power):
        go(machine_of({"a": a}, version=1), store, face)
    store.restart()
    machine = machine_of({"a": a}, version=2)

    @machine.migration(1)
    def from_one(state: str, data: Any) -> None:
        labels.append(state)
        if broken:
            broken.pop()
            raise ValueError("not ready")

    with pytest.raises(ValueError, match="not ready"):
        go(machine, store, face)
    assert "end" == go(machine, store, face)
    assert ["a", "a"] == labels


@pytest.mark.parametrize("face", FACES)
def test_they_part_too_where_the_changed_object_is_set_again(face: str) -> None:
    """Setting a name to the object that was read and changed in place makes no difference to the others."""

    def first(ctx: Any, _cut: Any) -> str:
        ctx.rows = [1]
        ctx.both = [ctx.rows]
        return "second"

    def second(ctx: Any, _cut: Any) -> str:
        rows = ctx.rows
        rows.append(2)
        ctx.rows = rows
        return "third"

    def third(ctx: Any, cut: Any) -> str:
        cut()
        ctx.seen = [list(each) for each in ctx.both]
        return "end"

    calm, disturbed = twice(
        {
            "first": (first, {"to": "second"}),
            "second": (second, {"to": "third"}),
            "third": (third, {"to": "end"}),
        },
        face,
    )
    assert calm == disturbed
    assert ([1, 2], [[1]]) == (calm["rows"], calm["seen"])
