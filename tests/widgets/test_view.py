"""A view in a real kernel: what its page asks is answered, and what it leaves behind is true."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import nbflow
from nbflow.core.errors import NotAStore, UnknownRun, UsageError
from nbflow.notebook import shown
from nbflow.widgets import snapshots
from nbflow.widgets.view import View, answer_at_once
from tests.browser.lab_kit import find_old_kernel
from tests.notebook.kernel import Kernel
from tests.widgets.page import KernelPage, opened

WIDGET = "application/vnd.jupyter.widget-view+json"

LONG = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.02)"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _own_data_dir: Path) -> Iterator[Kernel]:
    """One kernel for all: starting one takes seconds."""
    folder = tmp_path_factory.mktemp("shared")
    env = {
        **os.environ,
        "NBFLOW_STORE": str(folder / ".nbflow"),
        "NBFLOW_NOTEBOOK": str(folder / "notebook.ipynb"),
    }
    with Kernel(folder, env) as kernel:
        assert kernel.run("%load_ext nbflow").ok
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """The kernel, in a run of its own."""
    assert shared.run("%nbflow new").ok
    (shared.folder / "go").unlink(missing_ok=True)
    return shared


def test_a_view_shows_a_record_and_then_itself(kernel: Kernel) -> None:
    """A dashboard's first output is a static record of the runs, its second the live view that hides the first."""
    assert kernel.run("%%durable\nx = sum(range(3))").ok
    cell = kernel.run("%nbflow dashboard")
    record, live = cell.outputs
    _, state = opened(cell)
    assert f"nbflow-record-{state['about']['record']}" in record["data"]["text/html"]
    assert "notebook.ipynb" in record["data"]["text/plain"]
    assert "<script" not in record["data"]["text/html"]
    assert WIDGET not in record["data"]
    assert WIDGET in live["data"]
    assert state["snapshot"]["runs"]["rows"][0]["workflow"] == "notebook.ipynb"


def test_a_page_is_answered_and_told_while_a_cell_runs(kernel: Kernel) -> None:
    """While a synchronous cell computes, a question over a subshell is answered and news of other runs arrives."""
    page = KernelPage(kernel, kernel.run("%nbflow dashboard"))
    assert page.subshell is not None
    cell = kernel.send(f"%%durable\n{LONG}\nx = sum(range(3))")
    first = page.ask("watch", view="page", runs={}, run=None, gates=True)
    assert set(first["result"]) >= {"runs", "gates"}
    with nbflow.run("elsewhere", store=kernel.folder):
        pass
    push = page.until(lambda told: told.get("push") == "runs" and "elsewhere" in workflows(told))
    assert push["view"] == "page"
    assert cell not in page.idle, "the cell was still running"
    (kernel.folder / "go").touch()
    page.until_idle(cell)


def test_without_subshells_the_answer_comes_when_the_cell_ends(
    tmp_path: Path, kernel_env: dict[str, str]
) -> None:
    """ipykernel 6.30 handles a question behind the cell that runs; news of a watched run comes meanwhile."""
    old = find_old_kernel()
    if old is None:
        pytest.skip("ipykernel 6.30 is not here; `.ci/browser` makes it")
    env = {**kernel_env, "PYTHONPATH": os.pathsep.join([str(old), os.environ["PYTHONPATH"]])}
    with Kernel(tmp_path, env) as kernel:
        assert kernel.run("%load_ext nbflow\nimport ipykernel; assert ipykernel.version_info[0] == 6").ok
        page = KernelPage(kernel, kernel.run("%nbflow dashboard"))
        assert page.subshell is None
        assert "result" in page.ask("watch", view="page", runs={}, run=None, gates=False)
        cell = kernel.send(LONG)
        asked = page.post("runs")
        with nbflow.run("elsewhere", store=tmp_path):
            pass
        page.until(lambda told: told.get("push") == "runs" and "elsewhere" in workflows(told))
        assert [told for told in page.heard if told.get("id") == asked] == []
        (tmp_path / "go").touch()
        answer = page.until(lambda told: told.get("id") == asked)
        assert "elsewhere" in workflows(answer["result"])
        page.until_idle(cell)


def workflows(told: dict[str, Any]) -> list[str]:
    """The workflows of the runs that a page is told."""
    return [row["workflow"] for row in told["rows"]]


def test_an_error_is_an_answer(kernel: Kernel) -> None:
    """What cannot be done is said to the page as data: type, sentence, what to do next, run and step."""
    page = KernelPage(kernel, kernel.run("%nbflow dashboard"))
    error = page.ask("run", run="0000-none")["error"]
    assert (error["type"], error["run"]) == ("UnknownRun", "0000-none")
    assert page.ask("dance")["error"]["type"] == "UsageError"
    assert page.ask("step", run=3)["error"]["message"]
    assert "result" in page.ask("runs"), "the view goes on"


def test_pages_are_told_apart(kernel: Kernel) -> None:
    """Two pages of one notebook watch different things: each push says for whom it is, and one that left gets none."""
    shown_view = kernel.run("%nbflow dashboard")
    page = KernelPage(kernel, shown_view)
    page.ask("watch", view="one", runs={"workflow": "a"}, run=None, gates=False)
    page.ask("watch", view="two", runs={"workflow": "b"}, run=None, gates=False)
    page.ask("bye", view="two")
    page.heard.clear()
    for name in ("b", "a"):
        with nbflow.run(name, store=kernel.folder):
            pass
    push = page.until(lambda told: told.get("push") == "runs" and told["rows"])
    assert push["view"] == "one"
    assert {row["workflow"] for row in push["rows"]} == {"a"}
    assert [told for told in page.heard if told.get("view") == "two"] == []


def test_the_record_is_brought_up_to_date(kernel: Kernel) -> None:
    """When a cell ends the record tells what the cell recorded, though nobody has a page open."""
    page = KernelPage(kernel, kernel.run("%nbflow dashboard", cell_id="view"))
    cell = kernel.send("%%durable\nx = sum(range(3))")
    told = page.until(lambda told: "record" in told)
    assert "notebook.ipynb" in told["record"]["text/plain"]
    page.until_idle(cell)


def test_a_cell_that_moved_nothing_leaves_the_record_alone(kernel: Kernel) -> None:
    """A cell without durable work costs no look at the store's runs and writes nothing into the notebook."""
    assert kernel.run("%%durable\nx = sum(range(3))").ok
    assert kernel.run("%nbflow dashboard").ok
    kernel.run("pass")
    quiet = kernel.run("y = 2")
    assert [m for m in quiet.messages if m["msg_type"] == "update_display_data"] == []


def test_the_record_tells_the_end_when_the_cell_is_run_again(kernel: Kernel) -> None:
    """A cell that shows its dashboard again leaves one record that is kept up to date, not one for each time."""
    first, second = (kernel.run("%nbflow dashboard", cell_id="view") for _ in range(2))
    ids = [shown_id(cell) for cell in (first, second)]
    done = kernel.run("%%durable\nx = sum(range(3))")
    updated = {
        message["content"]["transient"]["display_id"]
        for message in done.messages
        if message["msg_type"] == "update_display_data"
    }
    assert ids[0] not in updated
    assert ids[1] in updated


def test_two_views_in_one_cell_are_both_kept_up_to_date(kernel: Kernel) -> None:
    """A cell that shows two of a kind leaves two records, and both tell what happened later."""
    cell = kernel.run(
        "import nbflow\nfrom IPython.display import display\ndisplay(nbflow.dashboard(), nbflow.dashboard())",
        cell_id="both",
    )
    ids = {
        message["content"]["transient"]["display_id"]
        for message in cell.messages
        if message["msg_type"] == "display_data" and message["content"]["transient"]
    }
    assert len(ids) == 2
    done = kernel.run("%%durable\nx = sum(range(3))")
    updated = {
        message["content"]["transient"]["display_id"]
        for message in done.messages
        if message["msg_type"] == "update_display_data"
    }
    assert ids <= updated


def shown_id(cell: Any) -> str:
    """The display id of a cell's record."""
    for message in cell.messages:
        if message["msg_type"] == "display_data" and message["content"]["transient"]:
            return str(message["content"]["transient"]["display_id"])
    raise AssertionError("no record was shown")


def test_outside_a_notebook_the_runs_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a program `nbflow.dashboard()` prints a short table and says where there is more."""
    with nbflow.run("nightly", store=tmp_path):
        pass
    assert nbflow.dashboard(store=tmp_path) is None
    said = capsys.readouterr().out
    assert "nightly" in said
    assert "JupyterLab" in said


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A dashboard of an unknown run is refused at once, naming the run."""
    with nbflow.run("nightly", store=tmp_path):
        pass
    with pytest.raises(UnknownRun) as caught:
        nbflow.dashboard("0000-none", store=tmp_path)
    assert caught.value.run == "0000-none"


class Broken:
    """A board whose store has gone."""

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Refuse."""
        raise UsageError(f"The store is gone, and {method} with it.")

    def listen(self, view: str, push: Callable[[dict[str, Any]], None]) -> None:
        """Hear nothing."""


def test_looking_at_a_place_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    """A misspelt path is an error that names it, and no empty store."""
    place = tmp_path / "reprots"
    with pytest.raises(NotAStore, match="reprots"):
        nbflow.dashboard(store=place)
    assert not place.exists()


@pytest.mark.parametrize("given", [3, None])
def test_a_picture_of_something_else_is_refused(tmp_path: Path, given: Any) -> None:
    """`nbflow.fsm` says what it takes where it gets neither a machine nor a run."""
    with pytest.raises(UsageError, match="a machine or a run"):
        nbflow.fsm(given, store=tmp_path)


def test_a_store_that_cannot_be_read_is_said(ip_free: None) -> None:
    """A view of a store that is gone has a sentence to show, and its record too."""
    view = View(Broken(), "dashboard", {}, {"runs": ("runs", {})})
    assert view.snapshot["problem"] == "The store is gone, and runs with it."
    assert "The store is gone" in view.said()


@pytest.fixture
def ip_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell is running."""
    monkeypatch.setattr(InteractiveShell, "_instance", None)


def test_answers_have_the_time_and_the_first_problem() -> None:
    """A first paint says when it was true, and keeps what could be answered beside what could not."""

    class Half(Broken):
        def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
            return {"rows": []} if method == "runs" else super().ask(method, params)

    before = time.time()
    found = snapshots.answers(Half(), {"gates": ("gates", {}), "runs": ("runs", {})})
    assert before <= found["at"] <= time.time()
    assert (found["runs"], found["problem"]) == ({"rows": []}, "The store is gone, and gates with it.")


def test_a_comm_without_subshells_is_left_alone() -> None:
    """Older kernels have no route to choose: their comm is not touched."""

    class Comm:
        pass

    comm = Comm()
    answer_at_once(comm)
    answer_at_once(None)
    assert vars(comm) == {}


def test_a_view_above_registers_itself() -> None:
    """The notebook room shows a view by its name alone; the rooms above say how."""
    shown.show_with("test of showing", lambda **about: about)
    assert shown.show("test of showing", run="r") == {"run": "r"}
