"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nbflow.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    """The tour's Python, one block after the other in one script, raises nothing and its assertions hold."""
    script = tmp_path / "tour.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(blocks("python")) >= 3


@pytest.mark.parametrize("line", re.findall(r"^\$ nbflow (.*?)(?:\s+#.*)?$", README, re.MULTILINE))
def test_command_lines_use_commands_and_options_that_exist(line: str) -> None:
    """Each `nbflow …` line names a command and only options that the command has."""
    name, *words = line.split()
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    """`make demo` and `make test` are there, word by word."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert named == {"demo", "test"}
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """What is promised to a newcomer is what is tested."""
    assert re.search(r"^make test\b(?!-)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_changelog_has_an_entry_for_this_version() -> None:
    """A release without a word to its users is not one."""
    import nbflow

    assert f"## {nbflow.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
