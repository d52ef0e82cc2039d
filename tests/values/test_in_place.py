"""What a function changes is not what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbflow.values.in_place import changed_in_place

LOG: list[int] = []
CACHE: dict[Any, Any] = {}
RATE = 3
total = 0


class State:
    """Something with attributes."""

    count = 0


STATE = State()


def appends(x: int) -> None:
    LOG.append(x * RATE)


def stores_item(x: int) -> None:
    CACHE[x] = RATE


def stores_deep(x: int) -> None:
    CACHE["a"][x] = RATE


def augments_item(x: int) -> None:
    CACHE[x] += RATE


def stores_attribute(x: int) -> None:
    STATE.count = x


def augments_attribute(x: int) -> None:
    STATE.count += x


def rebinds(x: int) -> None:
    global total
    total = total + x


def deletes(x: int) -> None:
    del CACHE[x]


def nested(x: int) -> None:
    def inner() -> None:
        LOG.append(x)

    inner()


def only_reads(x: int) -> int:
    local: list[int] = []
    local.append(x)
    mine = {}
    mine[x] = CACHE[x]
    return RATE * LOG[x] + STATE.count + len(CACHE) + sum(LOG) + len(local)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (appends, {"LOG"}),
        (stores_item, {"CACHE"}),
        (stores_deep, {"CACHE"}),
        (augments_item, {"CACHE"}),
        (stores_attribute, {"STATE"}),
        (augments_attribute, {"STATE"}),
        (rebinds, {"total"}),
        (deletes, {"CACHE"}),
        (nested, {"LOG"}),
        (only_reads, set()),
    ],
)
def test_changes_in_place_are_seen(function: Callable[[int], Any], expected: set[str]) -> None:
    """Each way to change a captured variable is found; reading one is not a change."""
    assert expected == changed_in_place(function.__code__)


def test_closures_count_like_globals() -> None:
    """A list that a nested function appends to is found by the name of its closure variable."""
    seen: list[int] = []
    factor = 2

    def scale(x: int) -> int:
        seen.append(x)
        return factor * x

    assert {"seen"} == changed_in_place(scale.__code__)
