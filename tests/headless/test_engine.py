"""papermill's engine: what died is carried on, and the output notebook says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.headless.kit import (
    EFFECT,
    HOLD,
    begun,
    effects,
    kernel_of,
    kill,
    notebook,
    papermill,
    read,
    statuses,
    wait_for,
)


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    return tmp_path / "hold"


def test_what_a_dead_kernel_had_recorded_is_restored_by_the_same_command(tmp_path: Path, hold: Path) -> None:
    """Killed in the last cell, the notebook ends on the second try and runs no finished cell again."""
    done = tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(done)),
        "effect('a'); x = 40",
        "effect('b'); y = x + 2; y",
        HOLD.format(path=str(hold)),
        "effect('c'); print(x + y)",
    )
    with begun(source, tmp_path / "out.ipynb", "-p", "year", "2013") as process:
        wait_for(hold)
        kill(kernel_of(process))
        assert process.wait(60) == 138
    hold.unlink()
    first = read(tmp_path / "out.ipynb")
    assert [cell.metadata.papermill.status for cell in first.cells][-2:] == ["failed", "pending"]
    assert "SIGKILL in cell 5 of 6" in first.metadata.nbflow["error"]
    with begun(source, tmp_path / "out.ipynb", "-p", "year", "2013") as process:
        wait_for(hold)
        hold.unlink()
        assert process.wait(60) == 0, process.communicate()[0]
    assert effects(done) == ["a", "b", "c"]
    second = read(tmp_path / "out.ipynb")
    assert statuses(second)[2:] == ["restored", "restored", "ran", "ran"]
    assert second.cells[3].outputs[0].data["text/plain"] == "42"
    assert second.metadata.nbflow["attempt"] == 2
    assert second.metadata.nbflow["run"] == first.metadata.nbflow["run"]
    assert second.metadata.nbflow["state"] == "completed"


def test_a_completed_run_is_over_and_the_same_command_starts_a_new_one(tmp_path: Path) -> None:
    """papermill executes a notebook when it is told to, so what is completed is not replayed."""
    done = tmp_path / "done"
    source = notebook(tmp_path / "in.ipynb", EFFECT.format(path=str(done)), "effect('a'); x = 1")
    for _ in range(2):
        assert papermill(source, tmp_path / "out.ipynb").returncode == 0
    assert effects(done) == ["a", "a"]
