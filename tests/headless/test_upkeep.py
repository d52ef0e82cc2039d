"""What papermill's process does beside the notebook: it keeps the database up, and the output notebook true."""

from __future__ import annotations

import time
from pathlib import Path

from nbflow.store.database import Database
from tests.headless.kit import HOLD, begun, notebook, papermill, read, statuses, wait_for

#: 1.6 MB in one column: too much for the record itself.
FRAME = "import numpy as np, pandas as pd\nframe = pd.DataFrame({'a': np.arange(200_000.0)})"


def test_a_completed_run_is_in_the_database_whole_and_its_folder_is_gone(tmp_path: Path) -> None:
    """A run that only papermill ever touches leaves no raw buffers behind: they are columns of the database."""
    source = notebook(tmp_path / "in.ipynb", FRAME, "total = frame['a'].sum()\nprint(total)")
    assert papermill(source, tmp_path / "out.ipynb").returncode == 0
    assert [] == list((tmp_path / ".nbflow" / "runs").iterdir())
    with Database(tmp_path / ".nbflow" / "store.duckdb").read() as connection:
        assert [("column", 1_600_000)] == connection.execute("SELECT kept, size FROM nbflow.leaf").fetchall()
        [(name,)] = connection.execute("SELECT name FROM nbflow.frame").fetchall()
        [(total,)] = connection.execute(f'SELECT sum(a) FROM frames."{name}"').fetchall()
    assert sum(range(200_000)) == total


def test_while_a_cell_runs_behind_restored_ones_the_output_notebook_says_so(tmp_path: Path) -> None:
    """Writes that are put off while cells are restored are made up for by the time that a cell really runs."""
    held = tmp_path / "held"
    output = tmp_path / "out.ipynb"
    cells = [f"x{number} = abs({number})\nprint(x{number})" for number in range(6)]
    source = notebook(tmp_path / "in.ipynb", *cells, HOLD.format(path=str(held)), "print(x5)")
    for attempt in (1, 2):
        with begun(source, output) as process:
            wait_for(held)
            _wait_until_running(output, len(cells))
            assert ["ran" if attempt == 1 else "restored"] * len(cells) == statuses(read(output))[
                : len(cells)
            ]
            if attempt == 2:
                held.unlink()
                assert 0 == process.wait(60)
        held.unlink(missing_ok=True)
    assert [["0\n"], ["1\n"], ["2\n"], ["3\n"], ["4\n"], ["5\n"], [], ["5\n"]] == [
        [output.text for output in cell.outputs] for cell in read(output).cells
    ]


def _wait_until_running(output: Path, place: int) -> None:
    """Return when a cell stands as running in the output notebook."""
    end = time.monotonic() + 60
    while True:
        try:
            if read(output).cells[place].metadata["papermill"]["status"] == "running":
                return
        except (ValueError, KeyError):  # just being written
            pass
        assert time.monotonic() < end, "the output notebook does not say that the cell runs"
        time.sleep(0.02)
