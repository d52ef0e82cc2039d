"""A notebook that people edit: exactly what depends on a change runs again, and no result is lost or mixed up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import Notebook, Source, notices
from tests.notebook.kernel import Kernel

IMPORTS = Source("import numpy as np\nimport pandas as pd", "imports")
HELPERS = Source(
    "def inner(n):\n    return n + 1\n\ndef scale(n):\n    return inner(n) * 10\n\ndef unused(m):\n    return m",
    "helpers",
)
START = Source("start = 3", "start")
LOAD = Source("%%durable load\neffect('load')\nframe = pd.DataFrame({'a': np.arange(start)})", "load")
CLEAN = Source("%%durable clean\neffect('clean')\nclean = frame.assign(b=frame.a * 2)", "clean")
OTHER = Source("%%durable other\neffect('other')\nother = scale(start)", "other")
CHANGE = Source("%%durable change\neffect('change')\nframe['late'] = scale(1)", "change")
TOTAL = Source("%%durable total\neffect('total')\ntotal = int(clean.b.sum()) + other", "total")
LAST = Source("%%durable last\neffect('last')\nlast = frame.shape[1] + len(clean)", "last")
CELLS = [IMPORTS, HELPERS, START, LOAD, CLEAN, OTHER, CHANGE, TOTAL, LAST]
SHOW = "int(frame.sum().sum()), list(frame.columns), int(clean.b.sum()), other, total, last"


def edited(cell: Source, old: str, new: str) -> list[Source]:
    """The notebook with an edit in one cell."""
    return [one.edited(old, new) if one is cell else one for one in CELLS]


@pytest.fixture
def kernel(tmp_path: Path, kernel_env: dict[str, str]) -> Iterator[Kernel]:
    """A kernel of this test's own."""
    with Kernel(tmp_path, kernel_env) as kernel:
        yield kernel


def again(kernel: Kernel) -> None:
    """Kill the kernel and start another one."""
    kernel.kill()
    kernel.restart()


EDITS: list[tuple[str, list[Source], list[str]]] = [
    ("nothing at all", CELLS, []),
    ("layout and comments", edited(TOTAL, "total = int", "# a comment\n\ntotal  =  int"), []),
    ("the last cell", edited(LAST, "frame.shape[1]", "frame.shape[1] * 1"), ["last"]),
    ("a cell whose result others read", edited(CLEAN, "* 2", "* 3"), ["clean", "total", "last"]),
    ("a cell whose result stays the same", edited(CLEAN, "* 2", "* 2 * 1"), ["clean"]),
    ("a cell that changes in place", edited(CHANGE, "'late'", "'later'"), ["change", "last"]),
    ("a helper", edited(HELPERS, "* 10", "* 11"), ["other", "change", "total", "last"]),
    ("the helper of a helper", edited(HELPERS, "n + 1", "n + 2"), ["other", "change", "total", "last"]),
    ("a helper that nobody calls", edited(HELPERS, "return m", "return -m"), []),
    ("a value further up", edited(START, "3", "4"), ["load", "clean", "other", "change", "total", "last"]),
]


def test_an_edit_runs_exactly_what_depends_on_it_in_the_next_kernel(kernel: Kernel, tmp_path: Path) -> None:
    """Cell, result, in-place change, helper, helper's helper, value: after each the kernel is killed and the notebook runs."""
    notebook = Notebook(tmp_path / "effects")
    notebook.run_all(kernel, CELLS)
    first = kernel.run(SHOW).result
    assert notebook.ran() == ["load", "clean", "other", "change", "total", "last"]
    for number, (what, cells, expected) in enumerate(EDITS):
        if number % 3 == 0:
            again(kernel)
        else:
            assert kernel.run("%reset -f").ok
        notebook.run_all(kernel, cells)
        assert sorted(notebook.ran()) == sorted(expected), what
    notebook.run_all(kernel, CELLS)
    assert notebook.ran() == [], "the old versions are still there"
    assert kernel.run(SHOW).result == first


def test_reordered_cells_keep_their_results(kernel: Kernel, tmp_path: Path) -> None:
    """Cells that do not depend on each other change places: nothing runs, and every value is the one it was."""
    notebook = Notebook(tmp_path / "effects")
    notebook.run_all(kernel, CELLS)
    first = kernel.run(SHOW).result
    notebook.ran()
    again(kernel)
    notebook.run_all(kernel, [HELPERS, IMPORTS, START, OTHER, LOAD, CLEAN, CHANGE, LAST, TOTAL])
    assert notebook.ran() == []
    assert kernel.run(SHOW).result == first


def test_a_deleted_cell_is_listed_and_comes_back_when_it_is_put_back(kernel: Kernel, tmp_path: Path) -> None:
    """Deleting a cell runs nothing else; its result is kept, and putting it back restores it."""
    notebook = Notebook(tmp_path / "effects")
    notebook.run_all(kernel, CELLS)
    first = kernel.run(SHOW).result
    notebook.ran()
    again(kernel)
    notebook.run_all(kernel, [cell for cell in CELLS if cell not in (TOTAL, LAST)])
    assert notebook.ran() == []
    assert kernel.run("'total' in globals(), 'last' in globals()").result == "(False, False)"
    assert "total" in str(kernel.run("%nbflow steps").outputs)
    again(kernel)
    notebook.run_all(kernel, CELLS)
    assert notebook.ran() == []
    assert kernel.run(SHOW).result == first


def test_a_renamed_cell_says_so_and_nothing_else_runs(kernel: Kernel, tmp_path: Path) -> None:
    """After the kernel was killed: the renamed cell tells its old name, runs once, and its dependents do not."""
    notebook = Notebook(tmp_path / "effects")
    notebook.run_all(kernel, CELLS)
    notebook.ran()
    again(kernel)
    renamed = edited(CLEAN, "%%durable clean", "%%durable tidy")
    done = notebook.run_all(kernel, renamed)
    assert notebook.ran() == ["clean"]
    said = notices(done[renamed.index(next(c for c in renamed if "tidy" in c.text))])
    assert any("tidy has the code of clean" in text and "renamed" in text for text in said)
    again(kernel)
    notebook.run_all(kernel, renamed)
    assert notebook.ran() == []


def test_two_cells_that_swap_their_names_do_not_swap_their_results(kernel: Kernel, tmp_path: Path) -> None:
    """A name that another cell had before never brings that cell's result."""
    notebook = Notebook(tmp_path / "effects")
    one = Source("%%durable one\neffect('first')\nvalue = ['first']", "id1")
    two = Source("%%durable two\neffect('second')\nother = ['second']", "id2")
    notebook.run_all(kernel, [one, two])
    again(kernel)
    notebook.ran()
    swapped = [one.edited("durable one", "durable two"), two.edited("durable two", "durable one")]
    notebook.run_all(kernel, swapped)
    assert kernel.run("value, other").result == "(['first'], ['second'])"
    assert notebook.ran() == ["first", "second"]
    again(kernel)
    notebook.run_all(kernel, [two, one])
    assert kernel.run("value, other").result == "(['first'], ['second'])"
    assert notebook.ran() == []


@pytest.mark.parametrize("cell_ids", [True, False], ids=["lab", "papermill"])
def test_cells_without_a_name_survive_reordering_and_deleting(
    tmp_path: Path, kernel_env: dict[str, str], cell_ids: bool
) -> None:
    """Two unnamed cells bind one variable: in the other order, or one alone, each has its own result and none runs."""
    notebook = Notebook(tmp_path / "effects")
    one = Source("%%durable\neffect('one')\nx = [1]", "id1")
    two = Source("%%durable\neffect('two')\nx = [2]", "id2")
    with Kernel(tmp_path, kernel_env, cell_ids=cell_ids) as kernel:
        notebook.run_all(kernel, [one, "print(x)", two])
        assert notebook.ran() == ["one", "two"]
        for cells, expected in (([two, one], "[1]"), ([two], "[2]")):
            again(kernel)
            notebook.run_all(kernel, cells)
            assert kernel.run("x").result == expected
            assert notebook.ran() == [], "a recorded result was lost"
        again(kernel)
        notebook.run_all(kernel, [Source("%%durable\neffect('three')\nx = [3]", "id3"), one, two])
        assert notebook.ran() == ["three"], "a new cell before them takes no name away"


# --- a reference model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modelled:
    """A durable cell of the model: which variable it binds or changes, from which it reads, and how."""

    id: str
    name: str
    writes: str
    reads: tuple[str, ...]
    number: int
    kind: str

    def source(self) -> Source:
        terms = " + ".join([f"sum({name})" for name in self.reads] + [str(self.number)])
        if self.kind == "bind":
            line = f"{self.writes} = [{terms}]"
        elif self.kind == "helper":
            line = f"{self.writes} = [help_{self.number % 2}({terms})]"
        else:
            line = f"{self.writes}.append({terms})"
        return Source(f"%%durable {self.name}\neffect('{self.id}')\n{line}\nprint({self.writes})", self.id)


NAMES = ["v0", "v1", "v2", "v3"]


@dataclass
class Model:
    """What a notebook should do: executed plainly for the values, and by name, code and inputs for what runs."""

    chance: random.Random
    cells: list[Modelled]
    helpers: list[int]
    base: int
    recorded: set[tuple[Any, ...]]
    made: int = 0

    def helper_cell(self) -> Source:
        return Source(
            "\n".join(f"def help_{n}(x):\n    return x * {factor}" for n, factor in enumerate(self.helpers)),
            "help",
        )

    def sources(self) -> list[Source | str]:
        base = "; ".join(f"{name} = [{self.base + n}]" for n, name in enumerate(NAMES))
        return [base, self.helper_cell(), *(cell.source() for cell in self.cells)]

    def expected(self) -> tuple[dict[str, list[int]], list[str], list[str]]:
        """Return the values at the end, the ids of the cells that have to run, and what each prints."""
        space: dict[str, Any] = {"effect": lambda _name: None, "print": lambda _value: None}
        exec("; ".join(f"{name} = [{self.base + n}]" for n, name in enumerate(NAMES)), space)
        exec(self.helper_cell().text, space)
        runs, shown = [], []
        for cell in self.cells:
            read = {*cell.reads, *([cell.writes] if cell.kind == "change" else [])}
            work = (
                cell.name,
                cell.source().text.partition("\n")[2],
                tuple((name, tuple(space[name])) for name in sorted(read)),
                self.helpers[cell.number % 2] if cell.kind == "helper" else None,
            )
            if work not in self.recorded:
                self.recorded.add(work)
                runs.append(cell.id)
            exec(cell.source().text.partition("\n")[2], space)
            shown.append(f"{space[cell.writes]}\n")
        return {name: space[name] for name in NAMES}, runs, shown

    def new_cell(self) -> Modelled:
        self.made += 1
        return Modelled(
            id=f"c{self.made}",
            name=f"n{self.made}",
            writes=self.chance.choice(NAMES),
            reads=tuple(sorted(self.chance.sample(NAMES, self.chance.randrange(3)))),
            number=self.chance.randrange(10),
            kind=self.chance.choice(["bind", "bind", "change", "helper"]),
        )

    def edit(self) -> str:
        what = self.chance.choice(
            ["number", "move", "rename", "delete", "add", "helper", "base", "swap", "nothing"]
        )
        place = self.chance.randrange(len(self.cells))
        cell = self.cells[place]
        if what == "number":
            self.cells[place] = replace(cell, number=self.chance.randrange(10))
        elif what == "move":
            self.cells.insert(self.chance.randrange(len(self.cells)), self.cells.pop(place))
        elif what == "rename":
            self.made += 1
            self.cells[place] = replace(cell, name=f"n{self.made}")
        elif what == "delete" and len(self.cells) > 2:
            del self.cells[place]
        elif what == "add":
            self.cells.insert(place, self.new_cell())
        elif what == "helper":
            self.helpers[self.chance.randrange(2)] = self.chance.randrange(2, 5)
        elif what == "base":
            self.base = self.chance.randrange(3)
        elif what == "swap" and len(self.cells) > 2:
            other = (place + 1) % len(self.cells)
            mine, its = self.cells[place].name, self.cells[other].name
            self.cells[place] = replace(self.cells[place], name=its)
            self.cells[other] = replace(self.cells[other], name=mine)
        return what


def follow_the_model(kernel: Kernel, tmp_path: Path, rounds: int, fresh: Callable[[int], bool]) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    model = Model(chance, [], [2, 3], 0, set())
    model.cells = [model.new_cell() for _ in range(5)]
    notebook = Notebook(tmp_path / "effects")
    told = [f"seed {seed}"]
    for number in range(rounds):
        values, runs, shown = model.expected()
        if number and fresh(number):
            again(kernel)
        else:
            assert kernel.run("%reset -f\n%unload_ext nbflow" if number else "pass").ok
        done = notebook.run_all(kernel, model.sources())
        assert notebook.ran() == runs, told
        assert [cell.stdout for cell in done[2:]] == shown, told
        assert kernel.run("(" + ", ".join(NAMES) + ")").result == str(
            tuple(values[name] for name in NAMES)
        ), told
        told.append(", ".join(model.edit() for _ in range(chance.randrange(1, 4))))


def test_random_edits_do_what_the_model_says(kernel: Kernel, tmp_path: Path) -> None:
    """Edit, move, rename, swap, delete, add at random: values, texts and what runs are those of a plain reference."""
    follow_the_model(kernel, tmp_path, 12, lambda number: number % 4 == 0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_random_edits_do_what_the_model_says(kernel: Kernel, tmp_path: Path) -> None:
    """The same for two hundred versions of a notebook, with a kill before every third."""
    follow_the_model(kernel, tmp_path, 200, lambda number: number % 3 == 0)
