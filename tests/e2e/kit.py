"""What the end-to-end tests share: a notebook in a real kernel, effects that survive a kill, and looks at the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.history import History
from nbflow.core.model import RunInfo
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery

if TYPE_CHECKING:  # tests of scripts need no kernel, nor the libraries that start one
    from tests.notebook.kernel import Cell, Kernel

#: A plain cell that every notebook of these tests begins with: `effect(name)` is on disk when it returns.
EFFECT = """\
def effect(name):
    import os
    line = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(line, (name + "\\n").encode())
    os.fsync(line)
    os.close(line)"""


@dataclass(frozen=True)
class Source:
    """One cell of a notebook: what it says, and the id that the front end gives it for life."""

    text: str
    id: str = ""

    def edited(self, old: str, new: str) -> Source:
        """Return the cell after an edit; it keeps its id."""
        assert old in self.text, f"{old!r} is not in {self.text!r}"
        return replace(self, text=self.text.replace(old, new))


@dataclass
class Notebook:
    """Cells to run in a kernel, with a file that counts which bodies really ran."""

    effects: Path
    seen: int = 0
    _setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._setup = ["%load_ext nbflow", EFFECT.format(path=str(self.effects))]

    def run_all(self, kernel: Kernel, cells: Sequence[Source | str]) -> list[Cell]:
        """Press Run All; a cell that fails is a failure of the test."""
        done = []
        for cell in [*self._setup, *cells]:
            source = cell if isinstance(cell, Source) else Source(cell)
            done.append(kernel.run(source.text, cell_id=source.id or None))
            assert done[-1].ok, (source.text, done[-1].errors)
        return done[len(self._setup) :]

    def ran(self) -> list[str]:
        """Return the effects since the last time somebody asked."""
        everything = self.effects.read_text().split() if self.effects.exists() else []
        new, self.seen = everything[self.seen :], len(everything)
        return new

    def counts(self) -> Counter[str]:
        """Count all effects so far."""
        return Counter(self.effects.read_text().split()) if self.effects.exists() else Counter()


def notices(cell: Cell) -> list[str]:
    """The texts of nbflow's own notices."""
    return [
        output["data"]["text/plain"]
        for output in cell.outputs
        if output["output_type"] == "display_data" and "nbflow" in output["metadata"]
    ]


def theirs(cell: Cell) -> list[Any]:
    """What the cell showed, without nbflow's own notices."""
    return [
        shown
        for shown in cell.shown
        if "nbflow" not in (shown[2] if len(shown) > 2 and isinstance(shown[2], dict) else {})
    ]


def infos(place: Path) -> list[RunInfo]:
    """The runs of a store, without any background work; [] where there is none yet."""
    if not place.exists():
        return []
    store = LocalStore(place, background=False)
    try:
        return store.runs(RunQuery(limit=None))
    finally:
        store.close()


def history(place: Path, run: str | None = None) -> History:
    """The history of a run, the newest by default, as the store gives it."""
    store = LocalStore(place, background=False)
    try:
        name = run or store.runs(RunQuery(limit=1))[0].run
        return History.of(store.entries(name))
    finally:
        store.close()


def completed(place: Path) -> Counter[str]:
    """Count the completed executions by step, over all runs of the store."""
    return Counter(
        execution.started.step
        for info in infos(place)
        for execution in history(place, info.run).executions.values()
        if execution.completed is not None
    )


def database_is_whole(place: Path) -> None:
    """Assert that the database holds every record of every run once, and no other."""
    store = LocalStore(place, background=False)
    try:
        found = store.sql(
            "select run, count(*) n, count(distinct seq) d, max(seq) m from events group by run"
        )
        expected = {info.run: len(store.entries(info.run)) for info in store.runs(RunQuery(limit=None))}
    finally:
        store.close()
    assert list(found["n"]) == list(found["d"]) == list(found["m"])
    assert dict(zip(found["run"], found["n"], strict=True)) == expected
