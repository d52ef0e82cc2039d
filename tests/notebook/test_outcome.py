"""What a cell leaves besides variables: notes of warnings, results that others look at, functions that count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nbflow.notebook.analysis import analyse
from nbflow.notebook.outcome import speaks_of_results
from nbflow.notebook.tracking import Tracker

PRELUDE = """
import sys, warnings
warnings.simplefilter("default")
from nbflow.notebook.warned import WARNED
WARNED.install()
import quirk
"""


def python(code: str, folder: Path) -> list[str]:
    """Run code in a fresh interpreter; return what it printed and, in between, the warnings it showed."""
    (folder / "quirk.py").write_text("import warnings\ndef old():\n    warnings.warn('old')\n")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{folder}", "PATH": "", "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    return [*done.stdout.split(), *["warned"] * len(shown)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("quirk.old(); print(len(WARNED.look())); quirk.old()", ["1", "warned"]),
        ("print(len(WARNED.look()))", ["0"]),
        ("WARNED.restore({'quirk': [['old', 'builtins:UserWarning', 3]]}); quirk.old()", []),
        ("quirk.old(); WARNED.restore({}); quirk.old()", ["warned", "warned"]),
        ("quirk.old()\nwith warnings.catch_warnings(): pass\nprint(len(WARNED.look()))\nquirk.old()", ["0", "warned", "warned"]),
        ("quirk.old()\nwith WARNED.undisturbed():\n  with warnings.catch_warnings(): pass\nquirk.old()", ["warned"]),
        ("warnings.simplefilter('error'); print(len(WARNED.look()))", ["0"]),
        ("WARNED.remove(); quirk.old(); print(len(WARNED.look()))", ["0", "warned"]),
        (
            """del sys.modules['quirk']
WARNED.restore({'quirk': [['old', 'builtins:UserWarning', 3]]})
import quirk
with WARNED.undisturbed(): pass
quirk.old()""",
            [],
        ),
    ],
)  # fmt: skip
def test_a_warning_is_shown_again_exactly_where_python_would(
    code: str, expected: list[str], tmp_path: Path
) -> None:
    """Notes of warnings are read, put back and kept over nbflow's own work."""
    assert python(code, tmp_path) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("_.head()", True),
        ("Out[3]", True),
        ("_12 + 1", True),
        ("print(__)", True),
        ("!echo {_}", True),
        ("for _ in range(3): f()", False),
        ("_, b = pair", False),
        ("x._ = 1; _i3; my_1 = 2", False),
        ("def f():\n    return _", True),
    ],
)
def test_results_are_recorded_only_where_a_cell_looks_at_them(source: str, expected: bool) -> None:
    """A name that a cell binds itself is no result."""
    assert speaks_of_results(["f(_)" if source.startswith("def") else "x = 1", source]) is expected


def test_what_a_closure_counts_is_something_that_a_cell_leaves_behind() -> None:
    """A function that changes what it captured is recorded again, and with it all that share its state."""

    def counter() -> tuple[object, object]:
        count = 0

        def up() -> int:
            nonlocal count
            count += 1
            return count

        return up, lambda: count

    up, count = counter()
    namespace = {"up": up, "count": count, "other": [1]}
    tracker = Tracker(namespace)
    inputs = tracker.before(analyse("x = up()", namespace))
    exec("x = up()", namespace)
    namespace.pop("__builtins__")
    outputs = tracker.after(inputs)
    assert outputs.mutated == ("up",)
    assert set(outputs.names) == {"x", "up", "count"}
