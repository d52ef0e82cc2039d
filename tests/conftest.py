"""What all tests share: every test has a user key and a store place of its own, and real kernels find the same ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the signing key, IPython's history and Jupyter's files of this session away from the user's own."""
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBFLOW_DATA_DIR", str(home / "nbflow"))
        patch.setenv("IPYTHONDIR", str(home / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(home / "jupyter"))
        # Subprocesses and kernels import the checkout, installed or not, and the tests' own modules.
        path = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", str(ROOT) if not path else os.pathsep.join([str(ROOT), path]))
        yield home


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_data_dir: Path) -> Path:
    """Point the default store of this test at its own folder; kernels and subprocesses inherit it."""
    place = tmp_path / ".nbflow"
    monkeypatch.setenv("NBFLOW_STORE", str(place))
    monkeypatch.delenv("NBFLOW_NOTEBOOK", raising=False)
    return place


@pytest.fixture
def kernel_env(tmp_path: Path, _own_store: Path) -> dict[str, str]:
    """Return the environment for a kernel or subprocess: this test's store, this session's key, this checkout."""
    return {**os.environ, "NBFLOW_NOTEBOOK": str(tmp_path / "notebook.ipynb"), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def python() -> str:
    """Return the interpreter that runs the tests."""
    return sys.executable
