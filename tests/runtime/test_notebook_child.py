"""Notebooks as children, in real kernels: results, parameters, a kill, a cancel, and notebooks that know nothing of us."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest

import nbflow
from nbflow.core.errors import ChildFailed, RunCancelled
from nbflow.core.history import History
from nbflow.core.model import RunInfo
from nbflow.store.local import LocalStore
from nbflow.store.protocol import RunQuery

pytestmark = pytest.mark.timeout(180)

EFFECT = """\
def effect(name):
    import os
    line = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(line, (name + "\\n").encode())
    os.fsync(line)
    os.close(line)"""


class Place:
    """A folder with a store and notebooks whose cells leave effects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.effects = folder / "effects"
        self.store = LocalStore(folder / ".nbflow", background=False)

    def notebook(self, *cells: str, name: str = "child.ipynb") -> Path:
        setup = ["%load_ext nbflow", EFFECT.format(path=str(self.effects))]
        document = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in (*setup, *cells)],
        )
        nbformat.write(document, self.folder / name)
        return self.folder / name

    def ran(self) -> Counter[str]:
        return Counter(self.effects.read_text().split()) if self.effects.exists() else Counter()

    def children(self, run: str) -> list[RunInfo]:
        return [info for info in self.store.runs(RunQuery(limit=None)) if info.parent == run]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_notebook_is_a_child_in_a_kernel_of_its_own(place: Place) -> None:
    """It gets its parameters, its cells are steps of its own run, and what it published is the result."""
    notebook = place.notebook(
        "%%durable load\neffect('load')\nrows = list(range(count))",
        "import os, nbflow\nnbflow.publish('rows', len(rows))\nnbflow.publish('env', os.environ.get('NBFLOW_RUN'))",
    )
    with (
        pytest.raises(ValueError, match="stop"),
        nbflow.run("parent", store=place.store, tags={"team": "blue"}),
    ):
        first = nbflow.child(notebook, count=3)
        raise ValueError("stop")
    with nbflow.run("parent", store=place.store) as run:
        assert {"rows": 3, "env": None} == first == nbflow.child(str(notebook), count=3)

    (info,) = place.children(run.id)
    assert ("child.ipynb", "notebook", "completed", {"team": "blue"}) == (
        info.workflow,
        info.workflow_kind,
        info.state,
        info.tags,
    )
    assert ["load", "return"] == [step.step for step in place.store.steps(info.run)]
    assert {"load": 1} == place.ran()
    (execution,) = History.of(place.store.entries(run.id)).executions.values()
    assert execution.completed is not None
    copy = Path(execution.completed.detail["notebook"])
    assert place.folder / ".nbflow" / "children" / f"{info.run}.ipynb" == copy
    assert any("count = 3" in cell.source for cell in nbformat.read(copy, as_version=4).cells)
    place.store.delete(info.run)
    assert not copy.exists()


def test_a_notebook_that_never_heard_of_nbflow_is_a_child_too(place: Place) -> None:
    """There is nothing to replay and nothing published; it runs once all the same."""
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(EFFECT.format(path=str(place.effects)) + "\neffect('plain')")]
    )
    path = place.folder / "plain.ipynb"
    nbformat.write(document, path)
    with nbflow.run("parent", store=place.store) as run:
        assert {} == nbflow.child(path)

    assert ["completed"] == [info.state for info in place.children(run.id)]
    assert {"plain": 1} == place.ran()


def test_a_killed_kernel_fails_the_child_and_a_resume_carries_the_notebook_on(place: Place) -> None:
    """SIGKILL in the second cell: the first is replayed by the next kernel, in the same run."""
    flag = place.folder / "killed"
    notebook = place.notebook(
        "%%durable first\neffect('first')\nx = 20",
        f"""%%durable second
import os, pathlib, signal
effect('second')
if not pathlib.Path({str(flag)!r}).exists():
    pathlib.Path({str(flag)!r}).touch()
    os.kill(os.getpid(), signal.SIGKILL)
y = x + 1""",
        "import nbflow\nnbflow.publish('y', y)",
    )
    with pytest.raises(ChildFailed) as caught, nbflow.run("parent", store=place.store) as run:
        nbflow.child(notebook)
    (info,) = place.children(run.id)
    assert ("failed", "DeadKernelError") == (info.state, type(caught.value.__cause__).__name__)

    with nbflow.run("parent", store=place.store):
        assert {"y": 21} == nbflow.child(notebook)
    assert [info.run] == [each.run for each in place.children(run.id)]
    assert {"first": 1, "second": 2} == place.ran()


def test_an_error_in_a_cell_fails_the_child(place: Place) -> None:
    """The cell's own error is told, and the executed notebook shows it."""
    notebook = place.notebook("%%durable load\neffect('load')\n1 / 0")
    with (
        pytest.raises(ChildFailed, match="ZeroDivisionError"),
        nbflow.run("parent", store=place.store) as run,
    ):
        nbflow.child(notebook)

    (info,) = place.children(run.id)
    assert "failed" == info.state
    copy = nbformat.read(place.folder / ".nbflow" / "children" / f"{info.run}.ipynb", as_version=4)
    assert "ZeroDivisionError" in [
        output.ename for cell in copy.cells for output in cell.outputs if "ename" in output
    ]


def test_cancelling_the_parent_interrupts_the_kernel(place: Place) -> None:
    """The notebook stops in the middle of a cell; child and parent are cancelled, and the kernel is gone."""
    notebook = place.notebook(
        "%%durable long\nimport os, time\neffect(str(os.getpid()))\ntime.sleep(600)", "effect('after')"
    )

    def cancel() -> None:
        while not place.ran():
            time.sleep(0.05)
        (info,) = place.store.runs(RunQuery(workflow="parent"))
        nbflow.cancel(info.run, store=place.store)

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(RunCancelled), nbflow.run("parent", store=place.store) as run:
        nbflow.child(notebook)
    other.join()

    (info,) = place.children(run.id)
    assert ("cancelled", "cancelled") == (place.store.run(run.id).state, info.state)
    (pid,) = place.ran()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_notebooks_run_beside_each_other_in_async_code(place: Place) -> None:
    """Two kernels at once; the event loop goes on meanwhile."""
    first = place.notebook("%%durable a\nx = 1", "import nbflow\nnbflow.publish('x', x)", name="a.ipynb")
    second = place.notebook("%%durable b\nx = 2", "import nbflow\nnbflow.publish('x', x)", name="b.ipynb")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    with nbflow.run("parent", store=place.store):
        found = await asyncio.gather(nbflow.child.aio(first), nbflow.child.aio(second))
    ticking.cancel()

    assert [{"x": 1}, {"x": 2}] == found
    assert ticks > 20


def test_a_killed_parent_finds_its_notebook_again(place: Place) -> None:
    """SIGKILL of the parent while the kernel works: the resume waits for the orphan to end, then carries on."""
    flag = place.folder / "slow"
    flag.touch()
    notebook = place.notebook(
        "%%durable first\neffect('first')\nx = 1",
        f"""%%durable second
import pathlib, time
effect('second')
while pathlib.Path({str(flag)!r}).exists():
    time.sleep(0.1)""",
        "import nbflow\nnbflow.publish('x', x)",
    )
    code = f"""
import nbflow
with nbflow.run("parent", store={str(place.store.root)!r}):
    print(nbflow.child({str(notebook)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while "second" not in place.ran():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    flag.unlink()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "{'x': 1}\n" == done.stdout, done.stderr
    assert 1 == place.ran()["first"]
    assert place.ran()["second"] <= 2
    assert ["completed", "completed"] == [info.state for info in place.store.runs()]


def test_a_notebook_that_stops_at_a_gate_makes_its_parent_wait(place: Place) -> None:
    """Its kernel ends, neither run has failed, and the parent carries it on behind the gate."""
    path = place.notebook(
        "%%durable\neffect('before')",
        "decision = nbflow.gate('publish', 'Publish?')",
        "%%durable\neffect('behind')\nnbflow.publish('said', decision.feedback)",
    )
    document = nbformat.read(path, as_version=4)
    document.cells[0].source += "\nimport nbflow"
    nbformat.write(document, path)

    def parent() -> object:
        with nbflow.run("parent", store=place.store):
            return nbflow.child(path)["said"]

    with pytest.raises(nbflow.errors.GatePending) as stopped:
        parent()
    assert {"waiting"} == {info.state for info in place.store.runs(RunQuery(limit=None))}
    nbflow.approve(stopped.value.run, "publish", "go", store=place.store)
    assert "go" == parent()
    assert Counter(before=1, behind=1) == place.ran()
    assert {"completed"} == {info.state for info in place.store.runs(RunQuery(limit=None))}
