"""The guide to the durable primitives: its examples print what they say, and it leaves out nothing that they offer."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nbflow

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "primitives.md").read_text(encoding="utf-8")


def test_the_page_on_primitives_prints_what_it_says(tmp_path: Path) -> None:
    """Its Python, one block after the other in one script, prints what stands behind each `print`, in that order."""
    script = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    said = re.findall(r"^ *print\(.*\)  # (.+)$", script, re.MULTILINE)
    file = tmp_path / "primitives.py"
    file.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said == done.stdout.splitlines()
    assert script.count("print(") == len(said) >= 20


def test_the_page_names_every_primitive() -> None:
    """What `nbflow` exports from the runtime is there, but for what has a page of its own."""
    elsewhere = {"Machine", "Observer", "observe", "Run", "DurableFunction", "current_run"}
    elsewhere |= {"agate", "approve", "gate", "gates", "quality_gate", "reject"}
    homes = nbflow._HOMES.items()  # noqa: SLF001 - the only place that says where a name comes from
    offered = {name for name, home in homes if home.startswith("nbflow.runtime.")} - elsewhere
    assert {name for name in offered if not re.search(rf"\b{name}\b", PAGE)} == set()
    assert len(offered) >= 15


@pytest.mark.parametrize(
    "primitive",
    [nbflow.map, nbflow.child, nbflow.wait_for, nbflow.signal, nbflow.fork, nbflow.retry_step, nbflow.charge],
    ids=lambda each: each.__name__,
)
def test_the_page_names_every_option(primitive: Callable[..., object]) -> None:
    """Each option of a primitive is named, but `store`, which is the same for all."""
    options = {
        name for name, one in inspect.signature(primitive).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    assert {option for option in options - {"store"} if not re.search(rf"\b{option}=", PAGE)} == set()


def test_the_page_names_every_option_of_the_policies() -> None:
    """What a breaker, a limit and a bulkhead take is there."""
    for policy in (nbflow.CircuitBreaker, nbflow.RateLimit, nbflow.Bulkhead):
        options = set(inspect.signature(policy).parameters) - {"name", "tiers"}
        assert {option for option in options if not re.search(rf"\b{option}\b", PAGE)} == set()
