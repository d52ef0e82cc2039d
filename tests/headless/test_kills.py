"""Notebooks that know nothing of nbflow, killed in each of their cells, end as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.headless.disturbed import NOTEBOOKS, VICTIMS, Site, Victim, durable_cells, shown

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))

#: What papermill's command line is given beside the notebook; it ends with 1 where a cell raises, tagged or not.
ARGUMENTS = {"report": ("-p", "region", "west", "-p", "months", "5")}
EXIT = {"scratch": 1}

Undisturbed = tuple[list[Any], set[int]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """Return what a notebook shows when nothing happens, with and without the engine, and which cells are steps."""
    known: dict[str, Undisturbed] = {}

    def of(name: str) -> Undisturbed:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            plain = site(folder / "plain", name, engine=None)
            durable = site(folder / "engine", name)
            for one in (plain, durable):
                done = one.execute()
                assert done.returncode == EXIT.get(name, 0), done.stderr
            assert shown(durable.document()) == shown(plain.document())
            known[name] = shown(durable.document()), durable_cells(durable.document())
        return known[name]

    return of


def site(folder: Path, name: str, engine: str | None = "nbflow") -> Site:
    return Site(folder, NOTEBOOKS / f"{name}.ipynb", ARGUMENTS.get(name, ()), engine)


def killed_in(
    numbers: list[int], victims: list[Victim], name: str, folder: Path, expected: Undisturbed
) -> None:
    """Kill the same command in one cell after the other; then let it end, and compare."""
    outputs, durable = expected
    plain = set(range(1, len(outputs) + 1)) - durable
    place = site(folder, name)
    begun = 1  # the first cell that no execution has finished
    for number, victim in zip(numbers, victims, strict=True):
        assert place.kill_in(number, victim), f"cell {number} of {name} was not reached"
        again = {cell for cell in plain if cell < begun}
        assert place.ran() == [*sorted(again), *range(begun, number + 1)], f"{victim} killed in cell {number}"
        begun = number
    done = place.execute()
    assert done.returncode == EXIT.get(name, 0), done.stderr
    again = {cell for cell in plain if cell < begun}
    assert place.ran() == [*sorted(again), *range(begun, len(outputs) + 1)]
    assert shown(place.document()) == outputs


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("name", NAMES)
def test_killed_in_every_cell_in_turn_a_notebook_shows_what_it_shows_undisturbed(
    name: str, victim: Victim, tmp_path: Path, undisturbed: Callable[[str], Undisturbed]
) -> None:
    """Each cell runs where everything before it is restored, no finished cell runs again, all outputs are equal."""
    expected = undisturbed(name)
    numbers = list(range(1, len(expected[0]) + 1))
    killed_in(numbers, [victim] * len(numbers), name, tmp_path, expected)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_killed_once_in_the_middle_a_notebook_shows_what_it_shows_undisturbed(
    name: str, tmp_path: Path, undisturbed: Callable[[str], Undisturbed]
) -> None:
    """What runs in one kernel behind the restored cells goes on as in the kernel that was killed."""
    expected = undisturbed(name)
    killed_in([len(expected[0]) // 2], ["both"], name, tmp_path, expected)


def test_killed_twice_a_notebook_without_cell_ids_shows_what_it_shows_undisturbed(
    tmp_path: Path, undisturbed: Callable[[str], Undisturbed]
) -> None:
    """Equal cells that change one list keep apart, and papermill's ids, new in each execution, mislead nobody."""
    killed_in([5, 10], ["kernel", "papermill"], "old_format", tmp_path, undisturbed("old_format"))
