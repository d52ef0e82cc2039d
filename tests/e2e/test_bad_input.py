"""Bad input in a real kernel: a typed error in one short message, and everything else goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.e2e.kit import Notebook, completed, infos, notices
from tests.notebook.kernel import Cell, Kernel


@pytest.fixture
def new_kernel(tmp_path: Path, kernel_env: dict[str, str]) -> Iterator[Callable[..., Kernel]]:
    """A function that starts kernels with settings of their environment."""
    kernels: list[Kernel] = []

    def start(**env: str) -> Kernel:
        kernels.append(Kernel(tmp_path, {**kernel_env, **env}))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.__exit__()


@pytest.fixture
def kernel(new_kernel: Callable[..., Kernel]) -> Kernel:
    kernel = new_kernel()
    assert kernel.run("%load_ext nbflow").ok
    return kernel


def refusal(cell: Cell) -> tuple[str, str]:
    """The one short error of a cell: its name and its sentence."""
    assert not cell.ok and len(cell.errors) == 1, cell.outputs
    assert len(cell.errors[0]["traceback"]) <= 3, "\n".join(cell.errors[0]["traceback"])
    return cell.errors[0]["ename"], cell.errors[0]["evalue"]


def again(kernel: Kernel) -> None:
    kernel.kill()
    kernel.restart()


# --- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"just a text", bytes(4096), b""], ids=["text", "zeros", "empty"])
def test_a_foreign_file_where_the_store_should_be(
    content: bytes, new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """NotAStore, the file is left as it is, plain cells go on, and another store can be named at once."""
    foreign = tmp_path / "foreign"
    foreign.write_bytes(content)
    kernel = new_kernel(NBFLOW_STORE=str(foreign))
    assert kernel.run("%load_ext nbflow").ok
    name, said = refusal(kernel.run("%%durable one\nprint('ran')\nx = sum([1, 2])"))
    assert name == "NotAStore" and str(foreign) in said
    assert foreign.read_bytes() == content
    assert kernel.run("'x' in globals()").result == "False"
    assert kernel.run("%nbflow store elsewhere").ok
    assert kernel.run("%%durable one\nprint('ran')\nx = sum([1, 2])").stdout == "ran\n"


@pytest.mark.parametrize(("kind", "error"), [("foreign", "NotAStore"), ("newer", "StoreTooNew")])
def test_a_database_that_is_not_ours_stops_no_cell(
    kind: str, error: str, kernel: Kernel, _own_store: Path
) -> None:
    """A foreign file or a later schema as store.duckdb: SQL is refused by name, cells are recorded and restored as ever."""
    database = _own_store / "store.duckdb"
    _own_store.mkdir(exist_ok=True)
    (_own_store / "runs").mkdir(exist_ok=True)
    if kind == "foreign":
        database.write_bytes(b"not a database " * 1000)
    else:
        assert kernel.run("import nbflow\nnbflow.runs()\nnbflow.sql('select 1')").ok
        with duckdb.connect(str(database)) as connection:
            connection.execute("INSERT INTO nbflow.migration VALUES ('nbflow', 99, 'later', 0)")
    before = database.read_bytes()
    cell = "%%durable one\nprint('ran')\nx = sum([1, 2])"
    assert kernel.run(cell).stdout == "ran\n"
    name, _ = refusal(kernel.run("%nbflow sql select * from runs"))
    assert name == error
    again(kernel)
    assert kernel.run("%load_ext nbflow").ok
    assert any("restored one" in text for text in notices(kernel.run(cell)))
    assert database.read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_file_system(small_disk: Path, new_kernel: Callable[..., Kernel]) -> None:
    """StoreReadOnly names the folder and the way out; what was recorded there can still be looked at."""
    place = small_disk / ".nbflow"
    kernel = new_kernel(NBFLOW_STORE=str(place))
    assert kernel.run("%load_ext nbflow").ok
    assert kernel.run("%%durable one\nx = sum([1, 2])").ok
    kernel.run("import nbflow\nnbflow.sql('select * from runs')")
    again(kernel)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert kernel.run("%load_ext nbflow").ok
    name, said = refusal(kernel.run("%%durable two\ny = sum([1, 2])"))
    assert name == "StoreReadOnly" and "NBFLOW_STORE" in said
    assert kernel.run("import nbflow\nnbflow.output(None, 'one', 'x')").result == "3"
    assert "one" in str(kernel.run("%nbflow status").outputs)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert kernel.run("%%durable two\ny = sum([1, 2])").ok


def test_a_disk_that_is_full_during_a_cell(
    small_disk: Path, new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """StoreFull; the value stays in memory, what was recorded is restored, and after making room the cell is recorded."""
    place = small_disk / ".nbflow"
    kernel = new_kernel(NBFLOW_STORE=str(place))
    notebook = Notebook(tmp_path / "effects")
    small = "%%durable small\neffect('small')\nsmall = sum([1, 2])"
    large = "%%durable large\neffect('large')\nimport numpy as np\nlarge = np.random.rand(500_000)"
    notebook.run_all(kernel, [small])
    name, said = refusal(kernel.run(large))
    assert name == "StoreFull" and "Free some space" in said
    assert kernel.run("len(large)").result == "500000"
    assert kernel.run("%%durable other\neffect('other')\nother = sum([2, 3])").ok, "small things still fit"
    again(kernel)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    notebook.run_all(kernel, [small, large, "%%durable other\neffect('other')\nother = sum([2, 3])"])
    assert notebook.ran() == ["small", "large", "other", "large"]
    assert completed(place) == {"small": 1, "large": 1, "other": 1}


def test_a_file_size_limit_is_a_full_disk_for_the_cell_that_hits_it(kernel: Kernel, tmp_path: Path) -> None:
    """The same with RLIMIT_FSIZE, which no test has to be root for."""
    notebook = Notebook(tmp_path / "effects")
    large = "%%durable large\neffect('large')\nimport numpy as np\nlarge = np.random.rand(500_000)"
    notebook.run_all(
        kernel,
        [
            "%%durable small\neffect('small')\nsmall = sum([1, 2])",
            "import resource as r\nhard = r.getrlimit(r.RLIMIT_FSIZE)[1]",
        ],
    )
    assert kernel.run("r.setrlimit(r.RLIMIT_FSIZE, (2_000_000, hard))").ok
    name, _ = refusal(kernel.run(large))
    assert name == "StoreFull"
    assert kernel.run("r.setrlimit(r.RLIMIT_FSIZE, (hard, hard))").ok
    again(kernel)
    notebook.run_all(kernel, ["%%durable small\neffect('small')\nsmall = sum([1, 2])", large])
    assert notebook.ran() == ["small", "large", "large"]


def test_a_damaged_run_stops_no_other_and_doctor_saves_what_can_be_saved(
    new_kernel: Callable[..., Kernel], tmp_path: Path, _own_store: Path
) -> None:
    """A flipped byte: the notebook's next attach names run, seq and doctor; a fresh run works; after repair the rest replays."""
    kernel = new_kernel()
    notebook = Notebook(tmp_path / "effects")
    cells = [f"%%durable c{n}\neffect('c{n}')\nv{n} = sum([{n}])" for n in range(4)]
    notebook.run_all(kernel, cells)
    kernel.kill()
    run = next((_own_store / "runs").iterdir()).name
    journal = max((_own_store / "runs" / run).glob("journal.*"))
    raw = bytearray(journal.read_bytes())
    third = [found.start() for found in re.finditer(b"step.completed", raw)][2]
    raw[third + 40] ^= 0x10
    journal.write_bytes(raw)
    kernel.restart()
    assert kernel.run("%load_ext nbflow").ok
    name, said = refusal(kernel.run(cells[0]))
    assert name == "CorruptRecord" and run in said and "doctor" in said
    assert kernel.run("%nbflow new").ok
    assert kernel.run("%%durable fresh\nfresh = sum([1])").ok
    kernel.close()

    def nbflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from nbflow.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    listed = nbflow("runs", "--json")
    assert listed.returncode in (0, 6) and run in listed.stdout and listed.stdout.count('"run"') == 2, listed
    assert nbflow("doctor").returncode == 6
    repaired = nbflow("doctor", "--repair")
    assert repaired.returncode in (0, 6), repaired.stdout + repaired.stderr
    assert nbflow("doctor").returncode == 0
    notebook.ran()
    kernel.restart()
    assert kernel.run("%load_ext nbflow").ok
    assert kernel.run(f"%nbflow resume {run}").ok
    notebook.run_all(kernel, cells)
    assert notebook.ran() == ["c2", "c3"], "what lay before the damage is kept"


def test_another_users_pickle_is_not_run(new_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """A store that somebody else signed: Untrusted in one sentence, and not one of its pickles is loaded."""
    bomb = tmp_path / "exploded"
    source = (
        f"class Bomb:\n    def __reduce__(self):\n        return open, ({str(bomb)!r}, 'w')\n",
        "%%durable one\nx = [Bomb()]",
    )
    kernel = new_kernel(NBFLOW_DATA_DIR=str(tmp_path / "theirs"))
    for text in ("%load_ext nbflow", *source):
        assert kernel.run(text).ok
    kernel.kill()
    kernel = new_kernel(NBFLOW_DATA_DIR=str(tmp_path / "mine"))
    for text in ("%load_ext nbflow", source[0]):
        assert kernel.run(text).ok
    theirs = infos(tmp_path / ".nbflow")[0].run
    name, said = refusal(kernel.run(f"import nbflow\nnbflow.output({theirs!r}, 'one', 'x')"))
    assert name == "Untrusted" and theirs in said and "nbflow trust" in said
    assert kernel.run(source[1]).ok, "a run of one's own goes beside it"
    assert not bomb.exists()


def test_resuming_a_run_that_cannot_be_read_says_why(kernel: Kernel, _own_store: Path) -> None:
    """`%nbflow resume` of a damaged run is CorruptRecord with run and way out, not an error about an enumeration."""
    assert kernel.run("%%durable one\nx = sum([1, 2])").ok
    again(kernel)
    run = next((_own_store / "runs").iterdir()).name
    journal = _own_store / "runs" / run / "journal.1"
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"run.attached")] ^= 0x10
    journal.write_bytes(raw)
    assert kernel.run("%load_ext nbflow").ok
    name, said = refusal(kernel.run(f"%nbflow resume {run}"))
    assert name == "CorruptRecord" and run in said and "doctor" in said


@pytest.mark.parametrize("why", ["another key", "a damaged first record"])
def test_a_run_that_cannot_be_read_is_not_passed_over_in_silence(
    why: str, new_kernel: Callable[..., Kernel], tmp_path: Path, _own_store: Path
) -> None:
    """Run All beside an unreadable unfinished run would compute everything again: the notebook says so, or refuses."""
    kernel = new_kernel()
    cell = "%%durable one\nx = sum([1, 2])"
    for text in ("%load_ext nbflow", cell):
        assert kernel.run(text).ok
    kernel.kill()
    run = next((_own_store / "runs").iterdir()).name
    if why == "another key":
        kernel = new_kernel(NBFLOW_DATA_DIR=str(tmp_path / "mine"))
    else:
        journal = min((_own_store / "runs" / run).glob("journal.*"))
        raw = bytearray(journal.read_bytes())
        raw[raw.index(b"run.opened")] ^= 0x10
        journal.write_bytes(raw)
        kernel = new_kernel()
    assert kernel.run("%load_ext nbflow").ok
    said = str(kernel.run(cell).outputs)
    assert run[:8] in said and ("trust" in said or "doctor" in said)


# --- the line and the values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "%%durable one --nonsense",
        "%%durable one --retries many",
        "%%durable one --timeout soon",
        "%%durable a b",
    ],
)
def test_an_unknown_option_runs_nothing(line: str, shared: Kernel) -> None:
    """UsageError in one sentence; the body did not run."""
    name, said = refusal(shared.run(f"{line}\nran = 1\nprint('ran')"))
    assert name == "UsageError" and "%%durable?" in said or "Write" in said
    assert shared.run("'ran' in globals()").result == "False"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for tests that need no other."""
    folder = tmp_path_factory.mktemp("shared")
    with Kernel(folder, {**os.environ, "NBFLOW_STORE": str(folder / ".nbflow")}) as kernel:
        for source in ("%load_ext nbflow", "import threading, nbflow", CLASSES):
            assert kernel.run(source).ok
        yield kernel


CLASSES = """\
class Fails:
    def __reduce__(self):
        raise RuntimeError("no pickle of me")
class Nonsense:
    def __reduce__(self):
        return "no such global"
class Cannot(Exception):
    "Its pickle calls it with one argument."
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
class Holds(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()
def rebuild(what):
    raise OSError("what it was is gone")
class Late:
    def __reduce__(self):
        return rebuild, ("late",)
class Liar:
    def __init__(self):
        self.secret = 42
    def __reduce__(self):
        return Liar, ()
    def __setstate__(self, state):
        pass
"""


@pytest.mark.parametrize(
    "value", ["Fails()", "Nonsense()", "threading.Lock()", "(n for n in 'ab')", "open('/dev/null')"]
)
def test_a_value_whose_pickle_fails_is_named_and_the_rest_is_kept(value: str, shared: Kernel) -> None:
    """CannotStore names variable and path; the variables stay in memory; the cells before and after are recorded."""
    tag = abs(hash(value))
    before = f"%%durable before{tag}\nfine = sum([1, 1])"
    assert shared.run(before).ok
    cell = shared.run(f"%%durable bad{tag}\nprint('shown')\nmodel = {{'parts': [1, {value}]}}")
    assert cell.stdout == "shown\n"
    assert cell.errors[0]["ename"] == "CannotStore"
    said = cell.errors[0]["evalue"]
    assert "model" in said and "['parts'][1]" in said, said
    assert shared.run("len(model['parts'])").result == "2"
    assert any("restored" in text for text in notices(shared.run(before)))
    shared.run("del model")
    assert shared.run(f"%%durable after{tag}\nother = sum([2, 2])").ok


@pytest.mark.parametrize("error", ["Cannot(3, 'wrong')", "Holds('wrong')"])
@pytest.mark.parametrize("where", ["cell", "call"])
def test_an_exception_that_no_pickle_can_carry(error: str, where: str, shared: Kernel) -> None:
    """The user sees the exception itself; the failure is recorded with its words and traceback; the next run of it works."""
    tag = f"{where}{error[:3]}"
    if where == "cell":
        failed = shared.run(f"%%durable {tag}\nfail = True\nif fail:\n    raise {error}")
    else:
        failed = shared.run(
            f"@nbflow.durable(name='{tag}')\ndef work(fail):\n    if fail:\n        raise {error}\n    return 7\nwork(True)"
        )
    assert failed.errors[0]["ename"] == error.partition("(")[0] and "wrong" in failed.errors[0]["evalue"]
    row = f"nbflow.steps()[nbflow.steps().step.str.contains({tag!r})].iloc[-1]"
    assert "wrong" in str(shared.run(f"{row}.error").result)
    assert shared.run(f"{row}.state").result == "'failed'"
    if where == "cell":
        assert shared.run(f"%%durable {tag}\nfail = bool(0)\nif fail:\n    raise {error}").ok
    else:
        assert shared.run("work(False)").result == "7"


def test_a_value_that_cannot_be_rebuilt_names_its_step_and_the_way_out(
    kernel: Kernel, tmp_path: Path
) -> None:
    """CannotRestore after a kill, naming step and variable; the other cells are restored, and `%nbflow forget` helps."""
    notebook = Notebook(tmp_path / "effects")
    cells = [
        f"import threading\n{CLASSES}",
        "%%durable one\neffect('one')\nx = sum([1])",
        "%%durable late\neffect('late')\nlate = {'it': Late()}",
        "%%durable two\neffect('two')\ny = sum([2])",
    ]
    notebook.run_all(kernel, cells)
    again(kernel)
    notebook.ran()
    notebook.run_all(kernel, cells[:2])
    failed = kernel.run(cells[2])
    assert failed.errors[0]["ename"] == "CannotRestore" and "late" in failed.errors[0]["evalue"]
    assert "%nbflow forget late" in "\n".join(failed.errors[0]["traceback"])
    assert kernel.run(cells[3]).ok
    assert notebook.ran() == []
    assert kernel.run("%nbflow forget late").ok
    assert kernel.run(cells[2]).ok and notebook.ran() == ["late"]


def test_a_reduce_that_lies_is_found_on_request(shared: Kernel) -> None:
    """`check_roundtrip` names the variable whose pickle drops what it holds, and no other."""
    assert shared.run("liar, honest = Liar(), {'a': [1, 2]}\nliar.secret = 43").ok
    found = shared.run(
        "from nbflow.values.roundtrip import check_roundtrip\n"
        "[(one.variable, one.type) for one in check_roundtrip({'liar': liar, 'honest': honest})]"
    )
    assert found.result == "[('liar', 'Liar')]"


def test_a_reduce_that_lies_fails_a_checked_step(shared: Kernel) -> None:
    """`%%durable --check` and `check=True` are CannotStore with the variable's name; nothing wrong is recorded."""
    shared.run("import nbflow")
    name, said = refusal(shared.run("%%durable checked --check\nfibber = Liar()\nfibber.secret = 44"))
    assert name == "CannotStore" and "fibber" in said
    call = "@nbflow.durable(check=True)\ndef fib():\n    made = Liar()\n    made.secret = 45\n    return made\nfib()"
    name, said = refusal(shared.run(call))
    assert name == "CannotStore" and "return" in said
    assert shared.run("%%durable honest --check\nfine = {'a': sum([1, 2])}").ok


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_value_of_more_than_two_gigabytes_is_restored_in_a_new_kernel(
    kernel: Kernel, tmp_path: Path
) -> None:
    """An array and a text beyond every 32-bit limit, in one cell."""
    notebook = Notebook(tmp_path / "effects")
    cells = [
        "import numpy as np",
        "%%durable big\neffect('big')\nbig = np.arange(290_000_000, dtype='int64')\ntext = 'ab' * 1_100_000_000",
        "%%durable after\neffect('after')\nends = int(big[-1]), len(text), text[-1]\nends",
    ]

    def results() -> Any:
        done = []
        for cell in ["%load_ext nbflow", f"import os\n{_effect(notebook)}", *cells]:
            done.append(kernel.run(cell, timeout=250))
            assert done[-1].ok, done[-1].errors
        return done[-1].result

    assert results() == "(289999999, 2200000000, 'b')"
    again(kernel)
    assert results() == "(289999999, 2200000000, 'b')"
    assert notebook.ran() == ["big", "after"]


def _effect(notebook: Notebook) -> str:
    from tests.e2e.kit import EFFECT

    return EFFECT.format(path=str(notebook.effects))
