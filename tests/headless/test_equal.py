"""What a later cell sees of restored ones is what it sees of cells that ran: results, warnings, plots and more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.headless.disturbed import Site, durable_cells, shown
from tests.headless.kit import code, notebook

MODULE = """\
import warnings


def old():
    warnings.warn("old is old")


def older():
    warnings.warn("older is older", DeprecationWarning)
"""

SETUP = """\
import os, random, sys, warnings
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display, update_display
sys.path.insert(0, os.getcwd())
import quirk

%matplotlib inline
plt.rcParams["figure.figsize"] = (2, 1)"""

RAISES = ("raises-exception",)

#: By what is promised: the cells before the kill and those behind it. `{n}` is the number of the first one.
GAPS: dict[str, tuple[list[str | tuple[str, tuple[str, ...]]], list[str | tuple[str, tuple[str, ...]]]]] = {
    "a result that is no variable": (
        ["pd.DataFrame({{'a': [1, 2]}}).T"],
        ["Out[{n}].sum(axis=1).tolist(), _{n}.shape"],
    ),
    "a result that shares an object with a variable": (
        ["inner = [1]\n[inner, 'x', {{2}}]", "inner.append(2)"],
        ["Out[{n}][0].append(3)\ninner, _{n}[0] is inner"],
    ),
    "a result that is a variable": (
        ["frame = pd.DataFrame({{'a': [1]}})\nframe", "frame['b'] = 2"],
        ["_{n} is frame, Out[{n}]"],
    ),
    "the inputs": (["typed = abs(-1)"], ["In[{n}], _i{n}, len(In), _ih[{n}] == In[{n}]"]),
    "a warning whose note is void": (
        ["quirk.older()", "with warnings.catch_warnings():\n    print(abs(-2))"],
        ["quirk.older()"],
    ),
    "filters that a cell set": (
        ["warnings.filterwarnings('error', 'never seen')\nprint(abs(-3))"],
        ["try:\n    warnings.warn('never seen')\nexcept UserWarning as error:\n    print('raised', error)"],
    ),
    "generators": (
        [
            "random.seed(3); np.random.seed(4)\nrng = np.random.default_rng(5)",
            "rng.random(), random.random(), np.random.random()",
        ],
        ["rng.random(), random.gauss(0, 1), np.random.normal(), rng.spawn(1)[0].random()"],
    ),
    "a closure that counts": (
        [
            "def counter():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n        return n\n    return up",
            "up = counter()\nprint(up())",
            "for step in range(3):\n    up()",
        ],
        ["up(), step"],
    ),
    "a function that fails later": (
        ["print(abs(-4))\ndef failing(x):\n    y = x - 1\n    return 1 / y"],
        [("failing(1)", RAISES), "def warns():\n    warnings.warn('mine')\nwarns()"],
    ),
    "an error that was expected": (
        [("kept = [1]\nprint('before')\nkept.append({{}}['absent'])", RAISES)],
        ["kept, sys.last_value.args"],
    ),
    "plots": (
        [
            "figure, axes = plt.subplots()\naxes.plot([1, 2])\nplt.rcParams['lines.linewidth'] = 4",
            "other = plt.figure(num='named')",
        ],
        ["axes.set_title('later')\nfigure", "plt.plot([2, 1])\nplt.gcf().number, plt.get_fignums()"],
    ),
    "captured output": (["%%capture caught\nprint('inside')\ndisplay(3)"], ["caught.show()"]),
    "what a shell command said": (["said = !echo hello\nsaid", "!echo aloud"], ["said.s, _exit_code"]),
    "a display that is updated": (
        [
            "handle = display('first', display_id='shown-{n}')",
            "update_display('second', display_id='shown-{n}')",
        ],
        ["handle.update('third')"],
    ),
    "streams in order": (
        ["print('one', flush=True)\nprint('two', file=sys.stderr, flush=True)\nprint('three', flush=True)"],
        ["print(abs(-5))"],
    ),
    "a cell that awaits": (["import asyncio\nawait asyncio.sleep(0, 'slept')"], ["Out[{n}]"]),
    "the surroundings": (
        [
            "os.makedirs('deep', exist_ok=True)\nos.chdir('deep')\nos.environ['EQUAL'] = 'yes'",
            "pd.set_option('display.precision', 2)",
        ],
        ["os.path.basename(os.getcwd()), os.environ['EQUAL'], pd.Series([1 / 3])"],
    ),
    "a warning that was shown": (["quirk.old()"], ["quirk.old(); print('quiet')"]),
    "the last results": (
        ["'third last'", "['second last']", "{{'last': [1]}}"],
        ["_['last'].append(2)\n_, __, ___"],
    ),
}


@dataclass
class Compared:
    """What the cells of each gap showed: without nbflow, with it, and killed in between."""

    plain: list[Any]
    undisturbed: list[Any]
    killed: list[Any]
    again: list[int]
    expected_again: list[int]
    places: dict[str, list[int]]


def _cell(entry: str | tuple[str, tuple[str, ...]], number: int) -> Any:
    text, tags = (entry, ()) if isinstance(entry, str) else entry
    return code(text.format(n=number), *tags)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Execute one notebook that has all gaps: first what comes before the kill, then what comes behind it."""
    folder = tmp_path_factory.mktemp("equal")
    cells: list[Any] = [code(SETUP)]
    places: dict[str, list[int]] = {}
    starts: dict[str, int] = {}
    for name, (before, _) in GAPS.items():
        starts[name] = len(cells) + 1
        for entry in before:
            cells.append(_cell(entry, starts[name]))
            places.setdefault(name, []).append(len(cells))
    halt = len(cells) + 1
    for name in reversed(GAPS):
        for entry in GAPS[name][1]:
            cells.append(_cell(entry, starts[name]))
            places[name].append(len(cells))
    source = notebook(folder / "gaps.ipynb", *cells)
    sites = [
        Site(folder / "plain", source, engine=None),
        Site(folder / "whole", source),
        Site(folder / "killed", source),
    ]
    for site in sites:
        (site.folder / "work" / "quirk.py").write_text(MODULE)
    plain, whole, killed = sites
    assert plain.execute().returncode == whole.execute().returncode == 1  # cells raise, as they may
    assert killed.kill_in(halt, "kernel")
    killed.ran()
    assert killed.execute().returncode == 1
    for site in (whole, killed):
        assert site.document().metadata.nbflow["state"] == "completed"  # no cell failed that must not
    durable = durable_cells(whole.document())
    return Compared(
        *(shown(site.document()) for site in sites),
        again=killed.ran(),
        expected_again=[n for n in range(1, len(cells) + 1) if n >= halt or n not in durable],
        places=places,
    )


@pytest.mark.parametrize("gap", GAPS)
def test_behind_restored_cells_all_is_as_in_the_undisturbed_run(gap: str, compared: Compared) -> None:
    """Cells that run in a new kernel show what they show in the old one."""
    for number in compared.places[gap]:
        assert compared.killed[number - 1] == compared.undisturbed[number - 1]


@pytest.mark.parametrize("gap", GAPS)
def test_an_undisturbed_run_shows_what_papermill_alone_shows(gap: str, compared: Compared) -> None:
    """Recording changes nothing of what is shown."""
    for number in compared.places[gap]:
        assert compared.undisturbed[number - 1] == compared.plain[number - 1]


def test_a_restored_cell_does_not_run_whether_it_raised_or_not(compared: Compared) -> None:
    """The new kernel runs what comes behind the kill, and of the rest only what is no step."""
    assert compared.expected_again == compared.again


@pytest.mark.soak
def test_output_of_any_size_comes_back_whole(tmp_path: Path) -> None:
    """Nobody watches, so the limit for what is recorded of a cell's output does not hold."""
    source = notebook(tmp_path / "in.ipynb", "print('y' * (12 << 20))\nlarge = abs(-1)", "print(large)")
    whole, killed = Site(tmp_path / "whole", source), Site(tmp_path / "killed", source)
    assert whole.execute().returncode == 0
    assert killed.kill_in(2, "kernel")
    assert killed.execute().returncode == 0
    same = shown(whole.document()) == shown(killed.document())
    assert same  # the texts are too long for a diff
