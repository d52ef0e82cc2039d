"""The command line at 80 columns: a row is a line, what is cut is not what you need, what does not fit is turned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nbflow
from nbflow.cli import desk
from nbflow.cli.app import app
from nbflow.core.model import Checkpoint, OutputInfo, Owner, RunOpened, StepCompleted, StepStarted
from nbflow.store.protocol import Finding
from nbflow.testing import MemoryStore

RUN = "0198c200-aaaa-7000-8000-000000000001"
WIDTH = 80


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """A store in memory with one run of a cell with long outputs and a plain cell that made many calls."""
    memory = MemoryStore()
    monkeypatch.setattr(desk, "open_existing", lambda place: memory)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    memory.create(RunOpened(run=RUN, workflow="reports/2026/a-notebook-with-a-long-name.ipynb"))
    log = memory.attach(RUN, Owner(host="here", pid=1, since=0.0))
    long = OutputInfo("frame", "pandas.DataFrame", b"\x01" * 32, 85_000_000, preview="x" * 200)
    log.append(
        StepStarted(step="load", name="load", step_kind="cell", signature=b"\x01" * 32),
        StepCompleted(
            execution=3, step="load", seconds=1.5, checkpoint=Checkpoint("json", outputs=(long,) * 9)
        ),
    )
    for month in range(12):
        key = f"cell:5f3c/fit:{month:012x}#0"
        first = log.append(StepStarted(step=key, name="fit", step_kind="call", signature=bytes([month]) * 32))
        log.append(StepCompleted(execution=first, step=key, seconds=2.0))
    log.release()
    return memory


def lines(*arguments: str) -> list[str]:
    """What a command prints, line by line."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("command", [("runs",), ("show", RUN), ("outputs", RUN), ("doctor",)])
def test_nothing_is_wider_than_the_terminal(store: MemoryStore, command: tuple[str, ...]) -> None:
    """The terminal's own wrapping would tear every table."""
    assert max(map(len, lines(*command))) <= WIDTH


def test_a_run_and_an_output_are_one_line_each(store: MemoryStore) -> None:
    """Long names and values end in an ellipsis; id, state, size and type stay whole."""
    header, run = lines("runs")
    assert run.startswith(RUN[:13]) and "…" in run and header.split()[-1] == "word"
    header, *outputs = lines("outputs", RUN)
    assert len(outputs) == 9 and all("85 MB" in line and "DataFrame" in line for line in outputs)


def test_calls_that_are_alike_share_a_line(store: MemoryStore) -> None:
    """Twelve calls of one function in one cell are one line with their time; --all shows each by its key."""
    short, long = lines("show", RUN), lines("show", RUN, "--all")
    (calls,) = (line for line in short if "fit" in line)
    assert calls.startswith("fit() × 12") and "24 s" in calls
    assert any("--all" in line for line in short)
    assert sum("cell:5f3c/fit:" in line for line in long) == 12


def test_doctor_says_what_mends_and_what_does_not(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--repair` cannot mend is not offered as its work; ids are short where the line is."""
    found = [
        Finding("warning", f"run {RUN}", "signed by another key", "none: run `nbflow trust STORE`"),
        Finding("warning", "database", "not copied yet", "copy them"),
    ]
    monkeypatch.setattr(store, "check", lambda *, repair: found)
    text = "\n".join(lines("doctor"))
    assert "--repair: copy them" in text and "--repair: none" not in text
    assert f"run {RUN[:13]} " in text and RUN not in text


def test_a_wide_answer_is_turned_into_one_line_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQL's answer that does not fit is shown record by record, with nothing cut; one that fits is a table."""
    with nbflow.run("etl", store=tmp_path / ".nbflow"):
        pass
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    place = ("--store", str(tmp_path / ".nbflow"))
    turned = lines("sql", "select * from runs", *place)
    assert any(line.split() == ["workflow", "etl"] for line in turned)
    assert not any("…" in line for line in turned)
    assert lines("sql", "select 1 as a, 2 as b", *place)[0].split() == ["a", "b"]
