"""The guide to state machines: its examples run, and it leaves out nothing that a machine offers."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import nbflow
from nbflow.core.state_spec import KINDS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "machines.md").read_text(encoding="utf-8")


def test_the_page_on_machines_runs(tmp_path: Path) -> None:
    """Its Python, one block after the other in one script, raises nothing and its assertions hold."""
    script = tmp_path / "machines.py"
    script.write_text(
        "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), "utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert PAGE.count("assert ") >= 20


def test_the_page_names_every_option_kind_and_join() -> None:
    """What `Machine`, `Machine.state` and `Join` take is on the page."""
    of_machine = set(inspect.signature(nbflow.Machine).parameters) - {"name", "states"}
    of_state = set(inspect.signature(nbflow.Machine.state).parameters) - {"self", "state"}
    assert {option for option in of_machine | of_state if not re.search(rf"\b{option}=", PAGE)} == set()
    assert [kind for kind in KINDS if f"| `{kind}` |" not in PAGE] == []
    joins = {name for name, _ in inspect.getmembers(nbflow.Join, inspect.ismethod)} - {"parse"}
    assert {name for name in joins if f"`Join.{name}(" not in PAGE} == set()
