"""What a cell changes around its variables is found, and can be put back in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nbflow.notebook import ambient

PRELUDE = """
import os, sys, random, warnings, decimal, locale, json, pathlib
import numpy as np, pandas as pd, matplotlib as mpl, msgspec
from nbflow.notebook import ambient
"""

#: What a cell does, and an expression over the state it leaves.
CHANGES = {
    "random": (
        "random.seed(7); random.gauss(0, 1)",
        "[random.random() for _ in range(3)] + [random.gauss(0, 1)]",
    ),
    "numpy": ("np.random.seed(7); np.random.normal()", "np.random.normal(size=3).tolist()"),
    "numpy drawn": ("np.random.random(100)", "np.random.random(3).tolist()"),
    "numpy other generator": (
        "np.random.set_bit_generator(np.random.PCG64(5)); np.random.random()",
        "np.random.random(3).tolist()",
    ),
    "folder": ("os.makedirs('inner', exist_ok=True); os.chdir('inner')", "os.path.basename(os.getcwd())"),
    "environ set": ("os.environ['NB_TEST_A'] = 'x'", "os.environ.get('NB_TEST_A')"),
    "environ removed": ("os.environ.pop('NB_GIVEN')", "os.environ.get('NB_GIVEN')"),
    "time zone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", "time.tzname"),
    "path front": ("sys.path.insert(0, '/somewhere')", "sys.path[0]"),
    "path end": ("sys.path.append('/elsewhere')", "sys.path[-1]"),
    "pandas": ("pd.set_option('display.max_rows', 7)", "pd.get_option('display.max_rows')"),
    "matplotlib": ("mpl.rcParams['figure.figsize'] = (3, 2)", "list(mpl.rcParams['figure.figsize'])"),
    "matplotlib style": (
        "import matplotlib.style; mpl.style.use('ggplot')",
        "str(mpl.rcParams['axes.prop_cycle'])",
    ),
    "warnings": ("warnings.simplefilter('ignore')", "warnings.filters[0][0]"),
    "warnings end": (
        "warnings.filterwarnings('error', 'some.*', DeprecationWarning, append=True)",
        "str(warnings.filters[-1])",
    ),
    "warnings reset": ("warnings.resetwarnings()", "len(warnings.filters)"),
    "decimal": ("decimal.getcontext().prec = 5", "str(decimal.Decimal(1) / 3)"),
    "decimal traps": (
        "decimal.getcontext().traps[decimal.Inexact] = True",
        "decimal.getcontext().traps[decimal.Inexact]",
    ),
    "numpy printing": ("np.set_printoptions(precision=2)", "str(np.array([1 / 3]))"),
    "numpy errors": ("np.seterr(divide='raise')", "np.geterr()['divide']"),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", "locale.setlocale(locale.LC_ALL)"),
}


def python(code: str, folder: Path, **env: str) -> str:
    """Run code in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + "import time\n" + code],
        cwd=folder,
        env={**os.environ, "NB_GIVEN": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, Any, list[str]]]]:
    """Make every change in a process of its own fork, put it back in another; (lived, restored, problems) by name."""
    folder = tmp_path_factory.mktemp("ambient")
    runner = """
results = {}
for name, (change, look) in CHANGES.items():
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        if MODE == "live":
            before = ambient.snapshot(); exec(change); after = ambient.snapshot()
            out = (ambient.changes(before, after), eval(look))
        else:
            out = (ambient.restore(states[name]), eval(look))
        with os.fdopen(write, "wb") as pipe:
            pipe.write(msgspec.msgpack.encode(out))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        results[name] = msgspec.msgpack.decode(pipe.read())
    os.wait()
pathlib.Path(OUT).write_bytes(msgspec.msgpack.encode(results))
"""
    (folder / "live").mkdir()
    head = f"CHANGES = {CHANGES!r}\nMODE, OUT = 'live', {str(folder / 'live.bin')!r}\n"
    python(head + runner, folder)
    live = msgspec.msgpack.decode((folder / "live.bin").read_bytes())
    (folder / "states.bin").write_bytes(
        msgspec.msgpack.encode({name: state for name, (state, _) in live.items()})
    )
    head = (
        f"CHANGES = {CHANGES!r}\nMODE, OUT = 'again', {str(folder / 'again.bin')!r}\n"
        f"states = msgspec.msgpack.decode(pathlib.Path({str(folder / 'states.bin')!r}).read_bytes())\n"
    )
    python(head + runner, folder)
    again = msgspec.msgpack.decode((folder / "again.bin").read_bytes())
    yield {name: (live[name], again[name][1], again[name][0]) for name in CHANGES}


@pytest.mark.parametrize("name", CHANGES)
def test_another_process_goes_on_from_the_state_a_cell_left(outcomes: Any, name: str) -> None:
    """A change is found, its record is plain data, and a fresh process that restores it behaves as the first."""
    (state, lived), restored, problems = outcomes[name]
    assert len(state) == (2 if name == "time zone" and len(state) == 2 else 1)
    assert problems == []
    assert restored == lived


def test_nothing_changed_is_nothing_recorded() -> None:
    """A cell that leaves the surroundings alone records none, so its replay cannot undo another cell's change."""
    import matplotlib  # noqa: F401
    import numpy as np  # noqa: F401
    import pandas as pd  # noqa: F401

    assert ambient.changes(ambient.snapshot(), ambient.snapshot()) == {}


def test_the_first_cell_records_the_generators_anyway() -> None:
    """The state of a generator nobody recorded yet is part of the record although nothing was drawn."""
    now = ambient.snapshot()
    assert set(ambient.changes(now, now, known=())) <= set(ambient.GENERATORS)
    assert "random" in ambient.changes(now, now, known=("numpy", "torch"))
    assert ambient.changes(now, now, known=ambient.GENERATORS) == {}


def test_a_library_imported_by_the_cell_is_compared_with_its_defaults(tmp_path: Path) -> None:
    """Importing matplotlib or pandas is no change of options; setting one right after the import is."""
    code = """
import subprocess
for name in [m for m in sys.modules if m.split(".")[0] in ("pandas", "matplotlib")]:
    del sys.modules[name]
before = ambient.snapshot()
import matplotlib, pandas
print({k for k in ambient.changes(before, ambient.snapshot()) if k in ("pandas", "matplotlib")})
matplotlib.rcParams["lines.linewidth"] = 9.0
pandas.set_option("display.precision", 2)
print({k: v for k, v in ambient.changes(before, ambient.snapshot()).items() if k in ("pandas", "matplotlib")})
"""
    first, second = python(code, tmp_path).splitlines()
    assert first == "set()"
    assert eval(second) == {"pandas": {"display.precision": 2}, "matplotlib": {"lines.linewidth": 9.0}}


def test_the_environment_is_left_alone_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `environ=False` no environment variable gets into the record."""
    before = ambient.snapshot(environ=False)
    monkeypatch.setenv("NB_SECRET", "hunter2")
    assert ambient.changes(before, ambient.snapshot(environ=False)) == {}


def test_what_cannot_be_put_back_is_said_and_the_rest_is_put_back(tmp_path: Path) -> None:
    """A folder that is gone is a sentence, not an exception, and hides no other section."""
    here = os.getcwd()
    problems = ambient.restore(
        {"cwd": str(tmp_path / "gone"), "environ": {"set": {"NB_X": "1"}, "removed": []}}
    )
    try:
        assert len(problems) == 1 and "working directory" in problems[0]
        assert os.environ["NB_X"] == "1"
        assert os.getcwd() == here
    finally:
        del os.environ["NB_X"]


def test_a_seed_set_on_purpose_is_told_from_numbers_drawn() -> None:
    """A cell that speaks of a seed and moves a generator gives a token that depends on the seed; drawing gives none."""
    import random

    kept = random.getstate()
    try:
        tokens = []
        for seed in (1, 2, 1):
            before = ambient.snapshot()
            random.seed(seed)
            tokens.append(ambient.seeds("random.seed(n)", before, ambient.snapshot()))
        before = ambient.snapshot()
        random.random()
        assert ambient.seeds("random.random()", before, ambient.snapshot()) == {}
        assert ambient.drawn(before, ambient.snapshot()) == ["random"]
        assert tokens[0] == tokens[2] != tokens[1]
        assert set(tokens[0]) == {"random"}
    finally:
        random.setstate(kept)
