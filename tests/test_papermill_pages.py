"""The guides to papermill and batches: their examples print what they say, their commands and options exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nbflow.cli.app import app
from nbflow.headless.identity import variant_of
from tests.headless.kit import code, notebook

DOCS = Path(__file__).resolve().parent.parent / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_python_on_the_pages_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of both pages, one after the other in one script, beside notebooks report.ipynb and ask.ipynb."""
    notebook(
        tmp_path / "report.ipynb", code("year = 2000", "parameters"), "share = 1 / year", "total = 10 * year"
    )
    notebook(tmp_path / "ask.ipynb", "import nbflow\nnbflow.gate('publish', 'Publish to the site?')")
    blocks = [
        re.findall(r"^```python\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
        for name in ("papermill.md", "batches.md")
    ]
    script = "\n".join(block for found in blocks for block in found)
    said = re.findall(r"^ *print\(.*\)  # (.+)$", script, re.MULTILINE)
    file = tmp_path / "page.py"
    file.write_text(script, encoding="utf-8")
    monkeypatch.delenv("NBFLOW_STORE")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )
    assert 0 == done.returncode, done.stderr
    assert said == done.stdout.splitlines()
    assert script.count("print(") == len(said) >= 8


@pytest.mark.parametrize("name", ["papermill.md", "batches.md"])
def test_the_commands_on_the_pages_exist_with_their_options(name: str) -> None:
    """Each `nbflow …` line names a command and only options that it has."""
    lines = re.findall(r"^\$ nbflow (.*?)(?:\s+#.*)?$", page(name), re.MULTILINE)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in lines:
        command, *words = line.split()
        options = {option for param in commands[command].params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    assert len(lines) >= 2


@pytest.mark.parametrize(
    ("name", "command"), [("papermill.md", "run"), ("papermill.md", "resume"), ("batches.md", "batch")]
)
def test_what_an_option_is_for_stands_in_the_guide_or_in_the_reference(name: str, command: str) -> None:
    """Every option that is not common to all commands is named by its guide, or papermill has it."""
    papermills = {
        "--parameters",
        "--parameters_raw",
        "--parameters_yaml",
        "--parameters_file",
        "--parameters_base64",
    }
    papermills |= {
        "--progress-bar",
        "--log-output",
        "--start-timeout",
        "--execution-timeout",
        "--cwd",
        "--kernel",
    }
    common = {"--store", "--json", "--debug"}
    param = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    options = {max(each.opts, key=len) for each in param if each.param_type_name == "option"}
    unnamed = {option for option in options - common - papermills if option not in page(name)}
    assert unnamed <= {"--batch", "--tag", "--collect"}


def test_the_tags_and_the_variant_are_those_of_the_program() -> None:
    """What the page calls a tag is one."""
    from nbflow.notebook import runner

    source = Path(runner.__file__).read_text(encoding="utf-8")
    for tag in ("nbflow-rerun", "nbflow-once", "nbflow-skip"):
        assert tag in source
        assert f"| `{tag}` |" in page("papermill.md")
    assert "papermill:python3" == variant_of("python3")
