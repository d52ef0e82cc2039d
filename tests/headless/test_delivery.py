"""The executed notebook of an item is whole at every moment, and delivered when its run is completed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import papermill_io

from nbflow.headless.batches.jobs import Item
from nbflow.headless.workers.delivery import deliver, whole_files
from tests.headless.kit import notebook, read

#: Dies by SIGKILL when half of the file is written.
_HALF = """
import os, sys
from pathlib import Path
from papermill import iorw
from nbflow.headless.workers.delivery import whole_files

def half(path, mode, encoding):
    file = open(path, mode, encoding=encoding)
    write = file.write
    class Half:
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def write(self, text):
            write(text[: len(text) // 2])
            file.flush()
            os.kill(os.getpid(), 9)
    return Half()

iorw.open = half
with whole_files():
    iorw.papermill_io.write(Path(sys.argv[1]).read_text(), sys.argv[1])
"""


def test_a_worker_killed_while_it_writes_leaves_the_notebook_whole(tmp_path: Path) -> None:
    """The run is completed by then and never runs again: the earlier file stays, and says so when it is delivered."""
    output = notebook(tmp_path / "out.ipynb", "x = 1")
    item = Item(0, {}, "run-1", str(output))
    document = read(output)
    document.metadata["nbflow"] = {"run": item.run, "state": "running"}
    nbformat.write(document, output)
    before = output.read_text()
    killed = subprocess.run([sys.executable, "-c", _HALF, str(output)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert output.read_text() == before
    assert len(list(tmp_path.iterdir())) == 2  # and what it was at
    deliver(str(tmp_path / ".nbflow"), item)
    assert read(output).metadata.nbflow.state == "completed"
    assert list(tmp_path.iterdir()) == [output]


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The file stays as it was, with its mode, and nothing lies beside it."""
    output = tmp_path / "out.ipynb"
    with whole_files():
        papermill_io.write("{}", str(output))
        output.chmod(0o640)
        with pytest.raises(UnicodeEncodeError):
            papermill_io.write('{"a": "\ud800"}', str(output))
        assert output.read_text() == "{}"
        papermill_io.write("[]", str(output))
    assert (output.read_text(), output.stat().st_mode & 0o777) == ("[]", 0o640)
    assert list(tmp_path.iterdir()) == [output]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    """What a link leads to is written; a device is written to and not replaced."""
    output, link = tmp_path / "out.ipynb", tmp_path / "link.ipynb"
    output.write_text("")
    link.symlink_to(output)
    with whole_files():
        papermill_io.write("{}", str(link))
        papermill_io.write("{}", os.devnull)
    assert link.is_symlink()
    assert output.read_text() == "{}"
    assert not Path(os.devnull).is_file()


def test_a_folder_that_is_gone_is_papermills_own_error(tmp_path: Path) -> None:
    """Nobody makes a folder anew behind the back of whoever took it away."""
    with whole_files(), pytest.raises(FileNotFoundError, match="doesn't exist"):
        papermill_io.write("{}", str(tmp_path / "nowhere" / "out.ipynb"))
