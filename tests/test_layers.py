"""Arrows go down only: what a layer imports, at the top of a file or inside a function, lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nbflow"

#: From below. A module may import its own layer and those before it.
LAYERS = [
    "core",
    "values",
    "store",
    "runtime",
    "queries",
    "notebook",
    "board",
    "widgets",
    "headless",
    "server",
    "demo",
    "cli",
]
#: Public fakes of every seam up to the store; it may use what it fakes, and nothing of the product may use it.
TESTING = "testing"


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module of nbflow that a file imports anywhere, type-checking imports too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            # `from nbflow import store` names a layer too.
            names = (
                [f"nbflow.{alias.name}" for alias in node.names] if node.module == "nbflow" else [node.module]
            )
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), (
                f"{path}: relative imports hide the layer"
            )
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "nbflow")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    """A file imports its own layer and lower ones, so that each layer can be read and tested without what is above."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == TESTING:
        allowed = {"core", "values", "store", TESTING}
    else:
        assert own in LAYERS, f"{own} has no place among the layers"
        allowed = set(LAYERS[: LAYERS.index(own) + 1])
    up = [
        f"{path}:{line}: {name}"
        for line, name in imports(path)
        if layer_of(name) not in allowed | {"__version__"}
    ]
    assert up == []


def test_core_is_pure() -> None:
    """The core does no input or output and knows neither Jupyter nor DuckDB."""
    forbidden = {
        "IPython",
        "asyncio.subprocess",
        "duckdb",
        "ipykernel",
        "numpy",
        "pandas",
        "pathlib",
        "pyarrow",
        "shutil",
        "socket",
        "subprocess",
    }
    found = []
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [
                f"{path.name}:{node.lineno}: {name}" for name in names if name.split(".")[0] in forbidden
            ]
    assert found == []


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {"IPython", "cloudpickle", "duckdb", "numpy", "pandas", "pyarrow", "rich", "typer"}
#: Other people's libraries that nbflow handles values of, and must never import by itself.
NEVER = {"matplotlib", "networkx", "polars", "scipy", "sklearn", "sympy", "torch"}


def test_importing_nbflow_is_light() -> None:
    """`import nbflow` costs next to nothing: what is heavy is loaded when it is needed."""
    assert loaded("import nbflow") & (HEAVY | NEVER) == set()


def test_using_durable_imports_none_of_the_libraries_it_only_handles() -> None:
    """A script that records plain values never pays for a library that it does not use itself."""
    code = 'import nbflow; exec(\'with nbflow.run("w"):\\n nbflow.durable(lambda: 1, version="1")()\')'
    assert loaded(code) & NEVER == set()
