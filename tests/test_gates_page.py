"""The guide to gates: its examples print what they say, and it leaves out no option of a gate."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nbflow

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "gates.md").read_text(encoding="utf-8")


def test_the_page_on_gates_prints_what_it_says(tmp_path: Path) -> None:
    """Its Python, one block after the other in one script, prints what stands behind each `print`."""
    script = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    said = re.findall(r"^ *print\(.*\)  # (.+)$", script, re.MULTILINE)
    file = tmp_path / "gates.py"
    file.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    # The refusal of a second decision is printed for an approval and for a rejection.
    assert said == list(dict.fromkeys(done.stdout.splitlines()))
    assert len(said) >= 12


@pytest.mark.parametrize(
    "verb",
    [nbflow.gate, nbflow.approve, nbflow.gates, nbflow.quality_gate, nbflow.Machine.gate],
    ids=lambda each: each.__qualname__,
)
def test_the_page_names_every_option(verb: Callable[..., object]) -> None:
    """So that nobody has to read the source."""
    options = {
        name for name, one in inspect.signature(verb).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    assert {option for option in options if not re.search(rf"\b{option}=", PAGE)} == set()
