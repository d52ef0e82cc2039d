"""papermill with the engine `nbflow` beside plain papermill: large and small notebooks, a resume, a batch.

Everything is a process of its own, started as a user starts it: Python, papermill,
the kernel and all their imports are in both figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bench, ChildFailed, Group, Row, Sample, Target

#: The notebook that computes: so many cells, each of which makes its share of the frames.
CELLS = 20
FRAME_BYTES = 10_000_000
COLUMNS = 10

#: The notebook that is resumed: so many frames, so many small cells.
FRAMES, SMALL = 20, 40

#: Notebooks that run at a time.
WORKERS = 4

#: Engines in the order in which they take turns: `Sample(nbflow, floor)`.
ENGINES = ("nbflow", "")

#: How often a measurement is begun anew in which a plain kernel found its port taken by another one.
TRIES = 3
#: What papermill says then.
NO_KERNEL = ("Kernel didn't respond", "Kernel died before replying")


def pace() -> float:
    """Return how often in a second this machine does what the cells of the computing notebook do."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < 1:
        sum(range(10_000))
        count += 1
    return count / spent


def computing(rounds: float) -> list[str]:
    """Return cells that do so many rounds of work in all and make 200 MB of frames."""
    rows = FRAME_BYTES // COLUMNS // 8
    # A fixed amount of work and not of time: what slows the notebook down, as work behind its back would, shows.
    work = f"for _ in range({int(rounds / CELLS)}): sum(range(10_000))"
    cells = []
    for number in range(CELLS):
        imports = ["import numpy as np", "import pandas as pd"] if not number else []
        made = f"f{number} = pd.DataFrame({{f'c{{c}}': np.random.rand({rows}) for c in range({COLUMNS})}})"
        cells.append("\n".join([*imports, made, work, f"print(f{number}.shape)"]))
    return cells


def trivial(count: int) -> list[str]:
    """Return small cells; each calls something, for cells of constants alone are not recorded."""
    return [f"x{number} = dict(n=abs({number}))\nprint(x{number})" for number in range(count)]


def resumable() -> list[str]:
    """Return frames and small cells, and a last one that notes the time and kills its kernel, again and again."""
    rows = FRAME_BYTES // COLUMNS // 8
    last = [
        "import os, pathlib, time",
        "pathlib.Path('began').write_text(str(time.time()))",
        "os.kill(os.getpid(), 9)",
    ]
    return [
        "import numpy as np, pandas as pd",
        *(
            f"f{number} = pd.DataFrame({{f'c{{c}}': np.random.rand({rows}) for c in range({COLUMNS})}})"
            for number in range(FRAMES)
        ),
        *trivial(SMALL),
        "\n".join(last),
    ]


def write(path: Path, cells: Sequence[str], *, parameters: str = "") -> Path:
    """Write a notebook."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    made = [new_code_cell(cell) for cell in cells]
    if parameters:
        made.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook = new_notebook(cells=made)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def environment() -> dict[str, str]:
    """Return what the processes get: this nbflow, and bytecode that may be kept, as installed packages have it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(harness.ROOT)}


def command(engine: str, *arguments: str) -> list[str]:
    """Return papermill's command line."""
    chosen = ["--engine", engine] if engine else []
    quiet = ["--no-progress-bar", "--log-level", "ERROR"]
    return [sys.executable, "-m", "papermill", *chosen, *quiet, *arguments]


def timed(arguments: Sequence[str], folder: Path, *, expected: int = 0) -> float:
    """Run a command to its end and return the seconds it took.

    Raises:
        ChildFailed: it ended in another way than expected.
    """
    began = time.perf_counter()
    done = subprocess.run(
        arguments, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode != expected:
        raise ChildFailed(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return took


def papermill(engine: str, folder: Path, cells: Sequence[str]) -> float:
    """Return the seconds that papermill takes for a new notebook of these cells."""
    write(folder / "in.ipynb", cells)
    return _tried(lambda: timed(command(engine, "in.ipynb", "out.ipynb"), folder))


def _tried(measure: Any) -> Any:
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return measure()
        except ChildFailed as error:
            if last or not any(said in str(error) for said in NO_KERNEL):
                raise
    raise AssertionError("the last try returns or raises")


def warm(bench: Bench) -> None:
    """Have everything compiled and in the page cache, for both."""
    for engine in ENGINES:
        papermill(engine, bench.fresh("warm"), ["import numpy, pandas", *trivial(1)])


def turns(repetition: int) -> tuple[str, ...]:
    """Return who goes first this time."""
    return ENGINES if repetition % 2 == 0 else ENGINES[::-1]


def measure_large(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Whole executions, taking turns. They are long, so there are fewer of them."""
    warm(bench)
    rounds = bench.count(30, 10) * pace()
    for repetition in range(min(bench.repetitions, 5)):
        took = {
            engine: papermill(engine, bench.fresh("large"), computing(rounds)) for engine in turns(repetition)
        }
        yield "papermill.large", Sample(took["nbflow"], took[""])


def measure_small(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Twenty cells and sixty cells: what the notebook costs, and what each further cell does."""
    warm(bench)
    few, many = 20, 60
    for repetition in range(bench.repetitions):
        took = {
            (engine, count): papermill(engine, bench.fresh("small"), trivial(count))
            for engine in turns(repetition)
            for count in (few, many)
        }
        yield "papermill.small", Sample(took["nbflow", few], took["", few])
        each = {engine: (took[engine, many] - took[engine, few]) / (many - few) for engine in ENGINES}
        yield "papermill.cell", Sample(each["nbflow"], each[""])


def resume(folder: str) -> dict[str, float]:
    """Resume a notebook in this process; return when its kernel was ready, and when the first new cell began."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    from nbflow.headless.execution.client import DurableClient

    ready: list[float] = []
    plain = DurableClient.start_new_kernel_client

    def start(self: Any, **options: Any) -> Any:
        client = plain(self, **options)
        ready.append(time.time())
        return client

    DurableClient.start_new_kernel_client = start
    os.chdir(folder)
    try:
        papermill.execute_notebook("in.ipynb", "out.ipynb", engine_name="nbflow", progress_bar=False)
    except DeadKernelError:
        pass
    else:
        raise AssertionError("the last cell was restored, which was never recorded")
    began = float(Path("began").read_text(encoding="utf-8"))
    return {"ready": ready[0], "began": began}


def measure_resume(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """A notebook whose last cell kills the kernel: whoever resumes it restores all others and gets there."""
    folder = bench.fresh("resume")
    write(folder / "in.ipynb", resumable())
    timed(command("nbflow", "in.ipynb", "out.ipynb"), folder, expected=138)
    for _ in range(bench.repetitions):
        answer = harness.child(__file__, "resume", folder=str(folder))
        yield "papermill.resume", Sample(answer["began"] - answer["ready"])


def measure_batch(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """The same notebooks by `nbflow batch`, and each by a papermill of its own, as many at a time."""
    warm(bench)
    count = bench.count(200, 16)
    for repetition in range(1 if not bench.quick else min(bench.repetitions, 2)):
        took = {engine: _BATCHES[engine](bench.fresh("batch"), count) for engine in turns(repetition)}
        yield "papermill.batch", Sample(took["nbflow"] / count, took[""] / count)


def batch(folder: Path, count: int) -> float:
    """Return the seconds that `nbflow batch` takes."""
    write(folder / "in.ipynb", _ITEM, parameters="n = 0")
    table = folder / "params.csv"
    table.write_text("\n".join(["n", *map(str, range(count))]) + "\n", encoding="utf-8")
    program = "import sys; from nbflow.cli import main; sys.exit(main())"
    arguments = ["batch", "in.ipynb", "--grid", str(table), "--workers", str(WORKERS)]
    took = timed([sys.executable, "-c", program, *arguments, "--out", "out/{index}.ipynb"], folder)
    _require(folder, count)
    return took


def processes(folder: Path, count: int) -> float:
    """Return the seconds that as many plain papermill processes take, as `xargs -P4` runs them."""
    write(folder / "in.ipynb", _ITEM, parameters="n = 0")
    (folder / "out").mkdir()

    def one(number: int) -> float:
        # Kernels that start at the same time now and then choose one port, and papermill gives up after a minute.
        arguments = ["in.ipynb", f"out/{number}.ipynb", "-p", "n", str(number), "--start-timeout", "15"]
        begun = time.perf_counter()
        seconds: float = _tried(lambda: timed(command("", *arguments), folder))
        return time.perf_counter() - begun - seconds

    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        lost = sum(pool.map(one, range(count)))
    took = time.perf_counter() - began - lost / WORKERS
    _require(folder, count)
    return took


def _require(folder: Path, count: int) -> None:
    found = len(list((folder / "out").glob("*.ipynb")))
    if found != count:
        raise ChildFailed(f"{found} of {count} notebooks are there")


#: A notebook of a batch: it works on its parameter a little.
_ITEM = ["total = sum(range(n + 1))", "print(total)", "result = dict(n=n, total=total)"]

_BATCHES = {"nbflow": batch, "": processes}

GROUPS = (
    Group(
        "papermill.small",
        (
            Row(
                "papermill.small",
                "a notebook of 20 trivial cells with `papermill --engine nbflow`",
                "plain papermill",
                Target("ratio", 1.5),
            ),
            Row(
                "papermill.cell",
                "each further trivial cell",
                "plain papermill",
                Target("extra", 0.015),
            ),
        ),
        measure_small,
    ),
    Group(
        "papermill.large",
        (
            Row(
                "papermill.large",
                "20 cells that compute for 30 s and make 200 MB of frames",
                "plain papermill",
                Target("ratio", 1.025),
            ),
        ),
        measure_large,
    ),
    Group(
        "papermill.resume",
        (
            Row(
                "papermill.resume",
                "40 small cells and 200 MB of frames restored: from the ready kernel to the first new cell",
                "",
                Target("at_most", 1.0),
            ),
        ),
        measure_resume,
    ),
    Group(
        "papermill.batch",
        (
            Row(
                "papermill.batch",
                "`nbflow batch` of 200 trivial notebooks, 4 workers: time per notebook",
                "as many plain papermill processes, 4 at a time",
                # 0.9 of the throughput.
                Target("ratio", 1 / 0.9),
            ),
        ),
        measure_batch,
    ),
)

if __name__ == "__main__":
    harness.serve(resume)
