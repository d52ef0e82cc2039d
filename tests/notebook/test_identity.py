"""Which notebook this is, and what its cells are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbflow.core.errors import UsageError
from nbflow.core.history import History
from nbflow.core.model import Entry, RunOpened, StepCompleted, StepForgotten, StepStarted
from nbflow.notebook.analysis import analyse, code_digest
from nbflow.notebook.detail import CODE
from nbflow.notebook.identity import (
    CellNames,
    cell_scope,
    notebook_path,
    similar,
    suggested_name,
    workflow_name,
)


def test_jupyters_server_names_the_notebook(tmp_path: Path) -> None:
    """`JPY_SESSION_NAME` is the path of the notebook, absolute in today's servers."""
    path = tmp_path / "flights.ipynb"
    assert notebook_path({}, {"JPY_SESSION_NAME": str(path)}) == path


def test_a_relative_name_is_found_above_the_kernels_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older servers give it relative to their root, while the kernel starts beside the notebook."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "a.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path / "reports")
    assert notebook_path({}, {"JPY_SESSION_NAME": "reports/a.ipynb"}) == tmp_path / "reports" / "a.ipynb"
    assert notebook_path({}, {"JPY_SESSION_NAME": "RTC:reports/a.ipynb"}) == tmp_path / "reports" / "a.ipynb"


def test_the_engine_and_vs_code_come_first(tmp_path: Path) -> None:
    """What was said on purpose wins over what the server happens to have set."""
    server = {"JPY_SESSION_NAME": str(tmp_path / "server.ipynb")}
    code = {"__vsc_ipynb_file__": str(tmp_path / "code.ipynb")}
    assert notebook_path(code, server) == tmp_path / "code.ipynb"
    assert (
        notebook_path(code, {**server, "NBFLOW_NOTEBOOK": str(tmp_path / "n.ipynb")}) == tmp_path / "n.ipynb"
    )


@pytest.mark.parametrize(
    "name", ["console-1-2f", "", "/work/notes.txt", "https://host/x.ipynb", "x.ipynb.py"]
)
def test_what_is_no_notebook_is_none(name: str) -> None:
    """A console has a session name as well, and no notebook."""
    assert notebook_path({}, {"JPY_SESSION_NAME": name}) is None


def test_a_terminal_has_no_notebook() -> None:
    """Where nobody says, the answer is None."""
    assert notebook_path({}, {}) is None


def test_workflows_are_named_by_their_place_beside_the_store(tmp_path: Path) -> None:
    """The name is the same on every machine that has the folder, with forward slashes."""
    assert workflow_name(tmp_path / "a" / "b.ipynb", tmp_path) == "a/b.ipynb"
    assert workflow_name(tmp_path / "b.ipynb", tmp_path / "store") == "../b.ipynb"
    (tmp_path / "link").symlink_to(tmp_path)
    assert workflow_name(tmp_path / "link" / "b.ipynb", tmp_path) == "b.ipynb"


def test_scopes_of_plain_cells() -> None:
    """A cell id makes running again find its calls; without ids two equal cells keep two results."""
    seen: dict[str, int] = {}
    assert cell_scope("x1", "f()", seen) == cell_scope("x1", "g()", seen) != cell_scope("x2", "f()", seen)
    first, second = cell_scope(None, "f()", seen), cell_scope(None, "f()  # again", seen)
    assert first != second
    assert first.removesuffix("~1") == second.removesuffix("~2")
    assert cell_scope(None, "g()", seen).endswith("~1")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("flights = load()", "flights"),
        ("_tmp = load(); flights = _tmp.dropna(); planes = 1", "flights"),
        ("import pandas as pd\nflights = pd.read_csv('x')", "flights"),
        ("for day in days: total = day\nmodel = fit(total)", "model"),
        ("for day in days: total = day", "day"),
        ("flights.head()", "cell-" + code_digest("flights.head()").hex()[:8]),
        ("df['x'] = 1", "cell-" + code_digest("df['x'] = 1").hex()[:8]),
    ],
)
def test_unnamed_cells_are_called_after_what_they_bind(source: str, name: str) -> None:
    """The name is readable and survives edits, reordering and front ends without cell ids."""
    assert suggested_name(analyse(source)) == name


def test_names_are_not_given_twice() -> None:
    """A second cell that binds the same variable is numbered; the same cell keeps its name."""
    names = CellNames()
    assert names.of(analyse("df = a()")) == "df"
    assert names.of(analyse("df = b()")) == "df~2"
    assert names.of(analyse("df = a()  # again")) == "df"
    assert names.of(analyse("df = b()")) == "df~2"


def test_an_edited_cell_keeps_its_name_where_there_are_ids() -> None:
    """The cell id tells an edit from another cell."""
    names = CellNames()
    assert names.of(analyse("df = a()"), cell_id="one") == "df"
    assert names.of(analyse("df = a(1)"), cell_id="one") == "df"
    assert names.of(analyse("df = a()"), cell_id="two") == "df~2"
    assert names.of(analyse("frame = a()"), cell_id="one") == "df"


def test_a_given_name_is_taken_as_it_is() -> None:
    """A user's name wins, and an unnamed cell does not take it."""
    names = CellNames()
    assert names.of(analyse("x = 1 + f()"), name="df", cell_id="one") == "df"
    assert names.of(analyse("df = a()"), cell_id="two") == "df~2"


@pytest.mark.parametrize("name", ["a b", "a#1", "--retries", "a/b", "a\nb", "a:b"])
def test_names_that_break_keys_are_refused(name: str) -> None:
    """A key is `name:signature#occurrence`, so its signs may not be in a name."""
    with pytest.raises(UsageError, match="cannot be the name"):
        CellNames().of(analyse("x = f()"), name=name)


def test_two_cells_of_one_name_are_noticed_where_ids_tell() -> None:
    """Copying a cell with its magic line gives two cells one name: that is said."""
    names = CellNames()
    names.of(analyse("x = f()"), name="flights", cell_id="one")
    assert names.clash(analyse("x = g()"), "flights", "one") is None
    assert names.clash(analyse("x = g()"), "flights", None) is None
    assert "flights" in (names.clash(analyse("x = g()"), "flights", "two") or "")


def test_a_renamed_cell_is_recognised_by_its_code() -> None:
    """The same code under another name is told, unless it was forgotten or never completed."""
    code = code_digest("flights = load()")

    def history(*more: Any) -> History:
        started = StepStarted("flights", "flights", "cell", bytes(32), detail={CODE: code.hex()})
        records = (RunOpened("r", "w"), started, *more)
        return History.of(Entry(number, float(number), record) for number, record in enumerate(records, 1))

    done = StepCompleted(2, "flights")
    assert similar("planes", code, history(done)) == "flights"
    assert similar("flights", code, history(done)) is None
    assert similar("planes", code_digest("other()"), history(done)) is None
    assert similar("planes", code, history()) is None
    assert similar("planes", code, history(done, StepForgotten("flights"))) is None
