"""A look runs nobody's code: values are only rebuilt when somebody opens one, and only where this user signed them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nbflow.board import Board
from nbflow.core.errors import NbflowError
from nbflow.core.gates import FORM
from nbflow.core.model import RunChanged, StepCompleted, StepStarted
from nbflow.store.local import LocalStore
from nbflow.values.codec import encode
from tests.board.board_kit import asked
from tests.store.conformance import attached


class Tells:
    """Writes a file when it is rebuilt from a pickle."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that is there once a value was rebuilt."""
    return tmp_path / "rebuilt"


@pytest.fixture
def run(store: LocalStore, mark: Path) -> str:
    """A run with such a value among its outputs, which waits at a gate."""
    log = attached(store, "w")
    encoded = encode({"model": Tells(mark)})
    mark.unlink(missing_ok=True)  # describing it may have tried
    point = encoded.checkpoint(tuple(log.put_leaves(encoded.leaves)))
    number = log.append(StepStarted("a", "a", "cell", b"s"))
    log.append(StepCompleted(number, "a", checkpoint=point))
    form = {"name": "publish", "text": "?", "opening": "o1"}
    log.append(
        StepStarted("gate:publish#0", "publish", "gate", b"g", detail={FORM: form}), RunChanged("waiting")
    )
    log.release()
    return log.run


def test_a_look_rebuilds_no_value(store: LocalStore, board: Board, run: str, mark: Path) -> None:
    """Lists, a run, its steps, graph and gates are shown from what was recorded beside the values."""
    whole = asked(board, "watch", view="v", run=run, runs={}, gates=True)["run"]
    for step in whole["steps"]:
        asked(board, "step", run=run, execution=step["execution"])
    asked(board, "graph", run=run)
    asked(board, "gate", run=run, step="publish")
    asked(board, "disk")
    assert not mark.exists()
    asked(board, "output", run=run, execution=whole["steps"][0]["execution"], name="model")
    assert mark.exists(), "opened, it is rebuilt: the test can fail"


def test_a_value_that_somebody_else_signed_is_never_rebuilt(
    store: LocalStore, run: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that came by mail is listed as what it is, and opening what it holds is refused before unpickling."""
    store.ingest()
    copy = tmp_path / "mailed" / ".nbflow"
    shutil.copytree(store.root, copy)
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(tmp_path / "another user"))
    other = LocalStore(copy, background=False)
    board = Board(other)
    assert [row["state"] for row in asked(board, "runs")["rows"]] == ["corrupt"]
    assert "key" in asked(board, "run", run=run)["problem"]
    with pytest.raises(NbflowError):
        board.ask("output", {"run": run, "execution": 3, "name": "model"})
    assert not mark.exists()
    board.close()
    other.close()
