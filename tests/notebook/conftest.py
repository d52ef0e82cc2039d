"""Kernels for the tests of the notebook side: one that a module shares, and as many of one's own as a test wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.kernel import Kernel


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the tests that need no other: starting one takes a second."""
    folder = tmp_path_factory.mktemp("shared")
    with Kernel(folder, {**os.environ, "NBFLOW_STORE": str(folder / ".nbflow")}) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """A kernel with the extension freshly loaded, in a run of its own, with no variables."""
    for source in ("%reset -f", "%unload_ext nbflow", "%load_ext nbflow", "%nbflow new"):
        assert shared.run(source).ok
    return shared


@pytest.fixture
def new_kernel(tmp_path: Path, kernel_env: dict[str, str]) -> Iterator[Callable[..., Kernel]]:
    """A function that starts kernels, each with a store of its own if it is given a name."""
    kernels: list[Kernel] = []

    def start(store: str = "one", **settings: Any) -> Kernel:
        env = {**kernel_env, "NBFLOW_STORE": str(tmp_path / store / ".nbflow")}
        kernels.append(Kernel(tmp_path, env, **settings))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.__exit__()
