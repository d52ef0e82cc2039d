"""papermill's engine where something is in the way: others at work, stores that cannot be used, kernels that die."""

from __future__ import annotations

import os
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import papermill as papermill_library
import pytest
from nbclient.exceptions import DeadKernelError

from nbflow.core.errors import CorruptRecord, LeaseHeld, NotAStore
from nbflow.headless.execution import conduct
from nbflow.headless.execution.client import DeadKernel, DurableClient
from nbflow.runtime.session import Session
from nbflow.store.local import LocalStore
from tests.headless.kit import (
    EFFECT,
    HOLD,
    begun,
    code,
    effects,
    execute,
    failing,
    kill,
    notebook,
    papermill,
    papermills,
    read,
    statuses,
    wait_for,
)

# --- others at work, and stores that cannot be used ------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path: Path, done: Path) -> tuple[Path, str]:
    """Return a notebook whose run failed in its fourth cell, and the run."""
    source = failing(tmp_path, done)
    with pytest.raises(papermill_library.PapermillExecutionError):
        execute(source, tmp_path / "out.ipynb")
    (tmp_path / "mended").touch()
    return source, read(tmp_path / "out.ipynb").metadata.nbflow["run"]


def test_a_run_that_another_process_has_is_left_to_it(
    tmp_path: Path, unfinished: tuple[Path, str], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a short wait the error names run and process; the owner is not disturbed, and behind it all goes on."""
    source, run = unfinished
    monkeypatch.setattr(conduct, "ORPHAN", 0.3)
    with closing(LocalStore(tmp_path / ".nbflow")) as store:
        owner = Session.open(store, "", run=run)
        with pytest.raises(LeaseHeld, match=f"{run}.*process {os.getpid()}"):
            execute(source, tmp_path / "out.ipynb")
        owner.check()
        owner.close()
    assert papermills(read(tmp_path / "out.ipynb")) == ["pending"] * 4
    execute(source, tmp_path / "out.ipynb")
    assert effects(done) == ["a", "b", "c", "c"]


@pytest.mark.soak
def test_two_papermills_at_once(tmp_path: Path, hold: Path, done: Path) -> None:
    """The second one gives up with a sentence, the first one completes undisturbed."""
    cells = EFFECT.format(path=str(done)), "effect('a'); x = 1", HOLD.format(path=str(hold)), "effect('b')"
    source = notebook(tmp_path / "in.ipynb", *cells)
    with begun(source, tmp_path / "out.ipynb") as first:
        wait_for(hold)
        second = papermill(source, tmp_path / "other.ipynb")
        assert second.returncode == 1
        assert "LeaseHeld" in second.stderr and "NBFLOW_RUN=new" in second.stderr
        hold.unlink()
        assert first.wait(60) == 0
    assert effects(done) == ["a", "b"]


def test_a_damaged_run_is_not_computed_again_unasked(
    tmp_path: Path, unfinished: tuple[Path, str], done: Path
) -> None:
    """A flipped byte in the journal is an error that names the run; `new` starts a fresh one."""
    source, run = unfinished
    journal = min((tmp_path / ".nbflow" / "runs" / run).glob("journal.*"))
    content = bytearray(journal.read_bytes())
    content[len(content) // 2 - 200] ^= 0xFF
    journal.write_bytes(content)
    with pytest.raises(CorruptRecord, match=run):
        execute(source, tmp_path / "out.ipynb")
    assert effects(done) == ["a", "b", "c"]
    execute(source, tmp_path / "out.ipynb", nbflow_run="new")
    assert effects(done)[3:] == ["a", "b", "c"]


def test_a_store_that_cannot_be_made_is_an_error_before_anything_runs(tmp_path: Path, done: Path) -> None:
    """A file where the store's folder should be."""
    source = notebook(tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a')")
    (tmp_path / "taken").write_text("x")
    with pytest.raises(NotAStore, match="taken"):
        execute(source, tmp_path / "out.ipynb", nbflow_store=tmp_path / "taken")
    assert effects(done) == []
    assert papermills(read(tmp_path / "out.ipynb")) == ["pending", "pending"]


def test_a_disk_that_fills_up_fails_the_cell_and_the_notebook_is_carried_on(
    tmp_path: Path, done: Path
) -> None:
    """papermill reports the cell whose recording failed; with room again the same command goes on behind the last one."""
    full = tmp_path / "full"
    full.touch()
    arm = (
        "import errno, os\nfrom nbflow.core import crashpoints\n"
        "def disk(point):\n"
        f"    if point == 'journal.write.before' and os.path.exists({str(full)!r}) and 'x' in globals():\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "crashpoints._hooks.append(disk) or None"
    )
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        code(arm, "nbflow-skip"),
        "effect('a'); w = 1",
        "effect('b'); x = 2",
        "effect('c'); w + x",
    )
    with pytest.raises(papermill_library.PapermillExecutionError, match="StoreFull"):
        execute(source, tmp_path / "out.ipynb")
    assert statuses(read(tmp_path / "out.ipynb")) == ["ran", "ran", "ran", "failed", None]
    full.unlink()
    document = execute(source, tmp_path / "out.ipynb")
    assert statuses(document) == ["ran", "ran", "restored", "ran", "ran"]
    assert effects(done) == ["a", "b", "b", "c"]


@pytest.mark.parametrize("when", [pytest.param("begin", marks=pytest.mark.soak), "end"])
def test_a_kernel_that_dies_between_the_cells_leaves_the_run_to_be_carried_on(
    tmp_path: Path, done: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it opens the run or while it ends it, the error says where and nothing runs twice."""
    source = notebook(tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a'); x = 1")
    ask = DurableClient.ask

    def asked(client: DurableClient, function: str, terms: dict[str, Any]) -> Any:
        if function == when:
            kill(client.km.provisioner.pid)
        return ask(client, function, terms)

    with monkeypatch.context() as patch:
        patch.setattr(DurableClient, "ask", asked)
        with pytest.raises(DeadKernelError, match="SIGKILL") as dead:
            execute(source, tmp_path / "out.ipynb")
    assert isinstance(dead.value, DeadKernel)
    place = {"begin": "before the first cell", "end": "behind the last cell"}[when]
    assert place in str(dead.value)
    first = read(tmp_path / "out.ipynb")
    assert papermills(first) == [{"begin": "pending", "end": "completed"}[when]] * 2
    document = execute(source, tmp_path / "out.ipynb")
    assert effects(done) == ["a"]
    assert document.metadata.nbflow["run"] == first.metadata.nbflow["run"]


def test_papermill_killed_behind_the_last_cell_has_nothing_to_run_again(
    tmp_path: Path, hold: Path, done: Path
) -> None:
    """A run is completed when its notebook is written and its kernel gone: before that the same command ends it."""
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 41",
        "import atexit\ndef late():\n"
        + textwrap.indent(HOLD.format(path=str(hold)), "    ")
        + "\natexit.register(late); print(x + 1)",
    )
    with begun(source, tmp_path / "out.ipynb") as process:
        wait_for(hold)
        kill(process.pid)
    hold.unlink(missing_ok=True)
    again = papermill(source, tmp_path / "out.ipynb")
    assert again.returncode == 0, again.stderr
    assert effects(done) == ["a"]
    written = read(tmp_path / "out.ipynb")
    assert statuses(written) == ["ran", "restored", "restored"]
    assert (written.metadata.nbflow["state"], written.metadata.nbflow["attempt"]) == ("completed", 2)
    with closing(LocalStore(tmp_path / ".nbflow")) as store:
        assert [(info.state, info.attempts) for info in store.runs()] == [("completed", 2)]
