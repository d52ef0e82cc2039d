"""What a user sees of papermill is the same with the engine as without it: each test executes both ways and compares.

`metadata.nbflow` is the one addition. Where a cell runs out of time or its
kernel dies, papermill's statuses are wrong and the engine's are not: those
tests say which is which.
"""

from __future__ import annotations

import datetime
import decimal
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import papermill as papermill_library
import pytest
from nbformat.v4 import new_notebook, new_raw_cell

from tests.headless.kit import HOLD, begun, code, kernel_of, markdown, notebook, papermill, read, wait_for
from tests.headless.same import Seen, assert_same, both, plain, without_ids

PARAMETERS = "a = 1\nb = 'x'\nc: int = 3"

#: A notebook of many kinds of cells, all of which end well; one for each line of what could differ.
WELL = (
    "import math, sys, time\nfrom pathlib import Path",
    code(PARAMETERS, "parameters"),
    markdown("# A title"),
    new_raw_cell("raw text"),
    "",
    "# only a comment",
    "def area(r):\n    return round(math.pi * r**2, 3)",
    "class Point:\n    x = 1",
    "print('out'); print('err', file=sys.stderr); area(2)",
    "area(3);",
    "display('shown'); display({'text/html': '<b>x</b>', 'text/plain': 'x'}, raw=True)",
    "'ünï ☃ \\n'  # papermill_description=Described",
    "_, __, ___, Out, In[-3:]",
    "shown = display('first', display_id='one')",
    "shown.update('second'); print('\\rline', end='')",
    "from IPython.display import clear_output\nprint('gone'); clear_output(); print('stays')",
    "!echo shell",
    "listing = !echo captured\nlisting",
    "%%capture kept\nprint('kept')",
    "kept.stdout",
    "%%time\nquick = 1",
    "%timeit -n1 -r1 7",
    "%%bash\necho bash",
    "math.tau?",
    "%config InlineBackend.figure_format = 'svg'",
    "async def three():\n    return 3",
    "await three()",
    "[await three() for _ in range(2)]",
    code("skipped = 1", "skip-execution"),
    "'skipped' in globals()",
    "try:\n    input('name?')\nexcept Exception as error:\n    print(type(error).__name__, error)",
    "if True:\n    import json\njson.dumps([a, b, c])",
    "__name__, [name for name in sorted(globals()) if 'nbflow' in name.lower()]",
    "import os\n[name for name in sorted(os.environ) if name.startswith('NBFLOW_RUN')]",
)

#: Cells that end badly, each in its own way.
BADLY = {
    "name": "print('before')\nundefined_name",
    "syntax": "y = = 2",
    "indent": "def f():\n  return 1\n   x",
    "string": "'open",
    "import": "import nothing_of_that_name",
    "deep": "def g(x):\n    return 1 / x\n\ndef f(x):\n    return g(x)\nf(0)",
    "chained": "try:\n    1 / 0\nexcept Exception as error:\n    raise ValueError('b') from error",
    "noted": "error = ValueError('with')\nerror.add_note('a note')\nraise error",
    "own": "class Mine(Exception):\n    pass\nraise Mine('own', 1)",
    "input": "input('name?')",
    "interrupt": "raise KeyboardInterrupt",
    "await": "import asyncio\nawait asyncio.sleep(0)\n1 / 0",
    "magic": "%nosuchmagic",
    "shell": "%%bash\nexit 3",
    "assert": "assert 1 == 2, 'not so'",
}

#: What ends the notebook, and not only the cell.
EXITS = {"plain": "sys.exit()", "zero": "sys.exit(0)", "one": "sys.exit(1)", "text": "sys.exit('text')"}


def _times_aside(seen: Seen) -> Seen:
    """Leave out what `%time` and `%timeit` measure."""
    timed = ("CPU times", "Wall time", " per loop ")
    text = json.dumps([seen.written, seen.returned], default=str)
    lines = [part for part in text.split('"') if not any(word in part for word in timed)]
    keep = [line for line in seen.stdout.splitlines() if not any(word in line for word in timed)]
    seen.written, seen.returned, seen.stdout = lines, None, "\n".join(keep)
    seen.log = [each for each in seen.log if not any(word in each[1] for word in timed)]
    return seen


def test_a_notebook_of_many_kinds_of_cells(tmp_path: Path) -> None:
    """Sources, outputs, counts, `In` and `Out`, metadata, logs, bar and files are papermill's, in report mode too."""
    source = notebook(tmp_path / "in.ipynb", *WELL)
    seen = both(
        source,
        tmp_path / "out.ipynb",
        parameters={"a": 5, "b": "tëxt\n'q' \"d\" \\n", "unknown": None},
        report_mode=True,
        log_output=True,
    )
    assert seen[0].raised is None
    assert "stays" in seen[0].stdout
    assert_same((_times_aside(seen[0]), _times_aside(seen[1])))


def test_all_kinds_of_failures_in_one_notebook(tmp_path: Path) -> None:
    """Types, messages and tracebacks of every failure are IPython's own, and what follows runs where errors are allowed."""
    source = notebook(
        tmp_path / "in.ipynb", "import sys", *BADLY.values(), *EXITS.values(), "print('reached')"
    )
    seen = both(source, tmp_path / "out.ipynb", allow_errors=True)
    assert seen[0].raised is not None
    assert "reached" in seen[0].stdout
    assert_same(seen)


def test_a_failure_ends_the_notebook(tmp_path: Path) -> None:
    """papermill's error, its markers in the notebook, and the cells behind it."""
    source = notebook(
        tmp_path / "in.ipynb", code("1 / 0", "raises-exception"), "x = 1", "print(x)\nundefined_name", "x + 1"
    )
    seen = both(source, tmp_path / "out.ipynb")
    assert seen[0].raised is not None and seen[0].raised[0] == "PapermillExecutionError"
    assert_same(seen)
    assert type(seen[0].error) is type(seen[1].error)
    assert {name: str(value) for name, value in vars(seen[0].error).items() if name != "traceback"} == {
        name: str(value) for name, value in vars(seen[1].error).items() if name != "traceback"
    }


@pytest.mark.soak
@pytest.mark.parametrize("ending", [*BADLY, *EXITS])
def test_each_ending(tmp_path: Path, ending: str) -> None:
    """Each by itself, with cells behind it that are not reached."""
    cell = BADLY.get(ending) or EXITS[ending]
    source = notebook(tmp_path / "in.ipynb", "import sys\nx = 1", cell, "print('behind')")
    assert_same(both(source, tmp_path / "out.ipynb"))


@pytest.mark.soak
def test_an_exit_without_a_code_ends_the_notebook_well(tmp_path: Path) -> None:
    """papermill takes `sys.exit()` for success, and so is the run; `exit()` in the last cell as well."""
    stops = notebook(tmp_path / "stops.ipynb", "import sys", "print(1); sys.exit()", "print(2)")
    seen = both(stops, tmp_path / "out.ipynb")
    assert_same(seen)
    assert seen[1].document.metadata.nbflow["state"] == "completed"
    last = notebook(tmp_path / "last.ipynb", "print(1)", "exit()")
    seen = both(last, tmp_path / "out.ipynb")
    # The kernel may be gone before it is asked for its end: then the log has a line more.
    assert_same(seen, but=("log",))
    assert seen[1].document.metadata.nbflow["state"] == "completed"


def test_parameters_of_every_kind(tmp_path: Path) -> None:
    """What JSON can hold arrives and is written; what it cannot arrives as papermill's text where nothing is written."""
    plain_ones: dict[str, Any] = {
        "a": 5,
        "b": "tëxt\n'q' \"d\" \\n",
        "c": None,
        "yes": True,
        "big": 2**80,
        "real": 1.5,
        "lost": float("nan"),
        "most": float("inf"),
        "least": float("-inf"),
        "some": [1, "a", None, [2.5, {}]],
        "deep": {"k": {"n": [1, True]}, "": 4},
        "pair": (1, 2),
        "ünï": "ü",
    }
    shown = code("print({name: value for name, value in sorted(globals().items()) if name in %r})")
    shown.source %= sorted(plain_ones)
    source = notebook(tmp_path / "in.ipynb", code(PARAMETERS, "parameters"), shown)
    seen = both(source, tmp_path / "out.ipynb", parameters=plain_ones)
    assert "tëxt" in seen[0].stdout
    assert _nan_alike(seen[0]) == _nan_alike(seen[1])
    assert seen[0].log == seen[1].log
    odd = {
        "a": {3},
        "b": Path("/tmp"),
        "c": datetime.datetime(2020, 1, 1),
        "d": decimal.Decimal("1.5"),
        "e": b"abc",
        "f": {1: 2},
    }
    source = notebook(tmp_path / "odd.ipynb", "print(a, b, c, d, e, f)")
    assert_same(both(source, None, parameters=odd))


def _nan_alike(seen: Seen) -> str:
    return json.dumps([seen.written, seen.returned, seen.raised, seen.stdout], default=str)


@pytest.mark.soak
def test_an_executed_notebook_is_executed_again(tmp_path: Path) -> None:
    """The cell with injected parameters is replaced, markers of an earlier failure go, and so does what nbflow said."""
    source = notebook(tmp_path / "in.ipynb", code(PARAMETERS, "parameters"), "a + 1", "1 / a")
    first = tmp_path / "first.ipynb"
    with pytest.raises(papermill_library.PapermillExecutionError):
        papermill_library.execute_notebook(
            source, first, parameters={"a": 0}, engine_name="nbflow", progress_bar=False
        )
    old = read(first).metadata.nbflow["run"]
    seen = both(first, tmp_path / "out.ipynb", parameters={"a": 8})
    assert seen[0].raised is None
    assert_same((seen[0], seen[1]))
    assert seen[1].document.metadata.nbflow["run"] != old


@pytest.mark.soak
def test_notebooks_without_ids_and_of_older_formats(tmp_path: Path) -> None:
    """nbformat 4.4 with injected parameters, and nbformat 3."""
    older = notebook(tmp_path / "in.ipynb", code(PARAMETERS, "parameters"), "a", "x = a + 1", minor=4)
    assert_same(both(without_ids(older), tmp_path / "out.ipynb", parameters={"a": 2}))


@pytest.mark.soak
def test_a_notebook_of_format_3(tmp_path: Path) -> None:
    """papermill upgrades it."""
    cell = {"cell_type": "code", "collapsed": False, "input": ["x = 1\n", "x"], "language": "python"}
    sheet = {"cells": [{**cell, "metadata": {}, "outputs": []}], "metadata": {}}
    told = {"metadata": {"made_up_ids": True}, "nbformat": 3, "nbformat_minor": 0, "worksheets": [sheet]}
    (tmp_path / "in.ipynb").write_text(json.dumps(told))
    seen = both(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", language="python")
    assert seen[0].raised is None
    for each in seen:
        for cell in [*each.written["cells"], *each.returned["cells"]]:
            cell.pop("id", None)
    assert_same(seen)


def test_what_papermill_refuses_before_anything_runs(tmp_path: Path) -> None:
    """No kernel by that name, a missing notebook, broken JSON, no folder for the output, a missing parameter, a wrong bar."""
    source, out = notebook(tmp_path / "in.ipynb", "1", "2"), tmp_path / "out.ipynb"
    (tmp_path / "broken.ipynb").write_text("{not json")
    refused = [
        both(tmp_path / "missing.ipynb", out),
        both(tmp_path / "broken.ipynb", out),
        both(source, tmp_path / "no folder" / "out.ipynb"),
        both(source, tmp_path / "{nobody}.ipynb"),
        both(source, out, progress_bar="yes"),
        both(new_notebook(cells=[code("1")]), out),
    ]
    for seen in refused:
        assert seen[0].raised is not None
        assert_same(seen)
    seen = both(source, out, kernel_name="no-such-kernel")
    assert seen[0].raised is not None and seen[0].raised[0] == "NoSuchKernel"
    assert_same(seen, but=("written",))
    # papermill's cells are "completed" though none ran.
    assert [cell.metadata.papermill.status for cell in seen[1].document.cells] == ["pending", "pending"]


def test_prepare_only(tmp_path: Path) -> None:
    """Parameters are in, nothing runs, no engine is asked."""
    source = notebook(tmp_path / "in.ipynb", code(PARAMETERS, "parameters"), "1 / 0")
    seen = both(source, tmp_path / "out.ipynb", parameters={"a": 2}, prepare_only=True)
    assert seen[0].raised is None
    assert_same(seen)
    assert not (tmp_path / ".nbflow" / "runs").exists()


def test_a_folder_to_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cwd` is the kernel's; relative paths of the notebooks are those of papermill's own folder."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBFLOW_STORE")
    notebook(tmp_path / "in.ipynb", "import os; os.path.basename(os.getcwd())", "open('made', 'w').close()")
    seen = both("in.ipynb", Path("out.ipynb"), cwd="sub")
    assert seen[0].raised is None
    assert_same(seen)
    assert (tmp_path / "sub" / "made").exists()
    assert (tmp_path / ".nbflow").is_dir() and not (tmp_path / "sub" / ".nbflow").exists()


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        {"request_save_on_cell_execute": False},
        {"progress_bar": False},
        {"progress_bar": True},
        {"log_output": True},
        {"kernel_name": "python3", "language": "python"},
        {"timeout": 100},
        {"iopub_timeout": 30},
        {"unknown_option": 1},
        {"store_widget_state": False},
        {"record_timing": False},
        {"coalesce_streams": True},
        {"skip_cells_with_tag": "leave"},
        {"force_raise_errors": True},
        {"autosave_cell_every": 0},
        {"shutdown_kernel": "immediate"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    """What papermill hands on to nbclient arrives there."""
    cells = [
        "import sys",
        "print(1); print('e', file=sys.stderr); print(2)",
        code("print('left')", "leave"),
        "3",
    ]
    source = notebook(tmp_path / "in.ipynb", *cells)
    seen = both(source, tmp_path / "out.ipynb", **options)
    assert seen[0].raised is None
    assert_same(seen)


@pytest.mark.soak
@pytest.mark.parametrize("cells", [(), (markdown("# a"),), ("",), (new_raw_cell("x"),)], ids=range(4))
def test_nothing_to_run(tmp_path: Path, cells: tuple[Any, ...]) -> None:
    """Empty notebooks are executed as well."""
    seen = both(notebook(tmp_path / "in.ipynb", *cells), tmp_path / "out.ipynb")
    assert seen[0].raised is None
    assert_same(seen)


@pytest.mark.soak
def test_a_notebook_object(tmp_path: Path) -> None:
    """papermill takes a notebook in memory, and writes none where there is no output path."""
    given = nbformat.read(notebook(tmp_path / "in.ipynb", "x = 1", "x"), as_version=4)
    assert_same(both(given, None))


@pytest.mark.soak
def test_autosave_while_a_cell_runs(tmp_path: Path) -> None:
    """A long cell's output is in the notebook before it ends."""
    peek = "import json, time\nfor i in range(8):\n    print(i, flush=True)\n    time.sleep(0.3)"
    look = f"written = json.load(open({str(tmp_path / 'out.ipynb')!r}))"
    within = "print(sum(len(cell['outputs']) for cell in written['cells']) > 2)"
    source = notebook(tmp_path / "in.ipynb", f"{peek}\n{look}\n{within}")
    seen = both(source, tmp_path / "out.ipynb", autosave_cell_every=1)
    assert seen[0].stdout.endswith("True\n")
    assert_same(seen)


@pytest.mark.soak
@pytest.mark.parametrize("tags", [(), ("raises-exception",)])
def test_a_cell_that_runs_out_of_time(tmp_path: Path, tags: tuple[str, ...]) -> None:
    """The same error; papermill says that every cell was completed, the engine which one failed."""
    cells = ("x = 1", code("print(0, flush=True)\nimport time; time.sleep(60)", *tags), "x")
    seen = both(notebook(tmp_path / "in.ipynb", *cells), tmp_path / "out.ipynb", execution_timeout=1)
    assert seen[0].raised is not None and seen[0].raised[0] == "CellTimeoutError"
    assert_same(seen, but=("written",))
    statuses = [[cell.metadata.papermill.status for cell in each.document.cells] for each in seen]
    assert statuses == [["completed"] * 3, ["completed", "failed", "pending"]]
    assert [cell.outputs for cell in seen[0].document.cells] == [
        cell.outputs for cell in seen[1].document.cells
    ]


@pytest.mark.soak
def test_a_cell_that_is_interrupted_for_its_time(tmp_path: Path) -> None:
    """nbclient's `interrupt_on_timeout` ends the cell with a KeyboardInterrupt."""
    source = notebook(tmp_path / "in.ipynb", "x = 1", "import time; time.sleep(60)", "x")
    seen = both(source, tmp_path / "out.ipynb", execution_timeout=1, interrupt_on_timeout=True)
    assert seen[0].raised is not None
    assert_same(seen)


@pytest.mark.soak
@pytest.mark.parametrize("number", [0, 3])
def test_a_kernel_that_ends_itself_in_a_cell(tmp_path: Path, number: int) -> None:
    """nbclient's error; papermill says that every cell was completed, the engine which one failed."""
    source = notebook(tmp_path / "in.ipynb", "x = 1", f"import os; os._exit({number})", "x")
    seen = both(source, tmp_path / "out.ipynb")
    assert seen[0].raised is not None and seen[0].raised[0] == "DeadKernelError"
    assert isinstance(seen[1].error, type(seen[0].error))
    assert f"exit code {number} in cell 2 of 3" in str(seen[1].error)
    assert_same(seen, but=("raised", "written"))
    statuses = [[cell.metadata.papermill.status for cell in each.document.cells] for each in seen]
    assert statuses == [["completed"] * 3, ["completed", "failed", "pending"]]


# --- the command line ------------------------------------------------------------------------------------


def _piped(engine: str | None, source: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return papermill("-", "-", *arguments, engine=engine, input=source.read_text())


def test_every_way_to_give_parameters_and_pipes(tmp_path: Path) -> None:
    """`-p -r -y -f -b`, injected paths, the notebook from standard input to standard output."""
    (tmp_path / "given.yaml").write_text("c: 2020-01-01\nf: [1, {g: 2}]\n")
    arguments = [
        *("-p", "a", "5", "-p", "none", "None", "-p", "yes", "True", "-p", "real", "1e3", "-p", "text", "5a"),
        *("-r", "b", "5", "-y", "y: 1.5", "-f", tmp_path / "given.yaml", "-b", "eDogdHJ1ZQ=="),
        *("--inject-paths", "--stderr-file", "-"),
    ]
    shown = "print(a, b, c, none, yes, real, text, y, f, x, PAPERMILL_INPUT_PATH, PAPERMILL_OUTPUT_PATH)"
    source = notebook(tmp_path / "in.ipynb", code(PARAMETERS, "parameters"), shown)
    without, with_engine = (_piped(engine, source, *arguments) for engine in (None, "nbflow"))
    assert without.returncode == with_engine.returncode == 0, with_engine.stderr
    documents = [nbformat.reads(each.stdout, as_version=4) for each in (without, with_engine)]
    assert "5 5 2020-01-01 None True 1000.0 5a 1.5" in json.dumps(plain(documents[0]))
    assert plain(documents[0]) == plain(documents[1])


@pytest.mark.soak
@pytest.mark.parametrize(
    ("cells", "arguments", "code_"),
    [
        (("1 / 0",), (), 1),
        (("import sys; sys.exit(3)",), (), 1),
        (("import os; os._exit(3)",), (), 138),
        (("import time; time.sleep(60)",), ("--execution-timeout", "1"), 1),
        (("1",), ("-k", "no-such-kernel"), 1),
        (("1",), ("--no-such-option",), 2),
        (("print(1)",), ("--log-output",), 0),
        (("print(1)",), ("--no-progress-bar", "--log-level", "WARNING"), 0),
        (("1",), ("-h",), 0),
        (("1",), ("--version",), 0),
        (("1",), ("--help-notebook",), 1),
    ],
)
def test_exit_codes_of_the_command_line(
    tmp_path: Path, cells: tuple[str, ...], arguments: tuple[str, ...], code_: int
) -> None:
    """Each way to end, by its exit code and what it writes to standard output."""
    source = notebook(tmp_path / "in.ipynb", *cells)
    ended = [papermill(source, tmp_path / "out.ipynb", *arguments, engine=each) for each in (None, "nbflow")]
    assert [each.returncode for each in ended] == [code_, code_], ended[1].stderr
    assert ended[0].stdout == ended[1].stdout


@pytest.mark.soak
def test_an_interrupted_papermill(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a cell ends papermill alike, with its kernel; the engine says which cell it was."""
    hold, out = tmp_path / "hold", tmp_path / "out.ipynb"
    source = notebook(tmp_path / "in.ipynb", "x = 1", HOLD.format(path=str(hold)), "x")
    said, statuses = [], []
    for engine in (None, "nbflow"):
        with begun(source, out, engine=engine) as process:
            wait_for(hold)
            kernel = kernel_of(process)
            process.send_signal(signal.SIGINT)
            said.append((process.wait(60), process.communicate()[0].strip().endswith("Aborted!")))
        assert not Path(f"/proc/{kernel}").exists()
        statuses.append([cell.metadata.papermill.status for cell in read(out).cells])
        hold.unlink()
    assert said == [(1, True), (1, True)]
    assert statuses == [["completed"] * 3, ["completed", "failed", "pending"]]
