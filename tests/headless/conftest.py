"""Fixtures of the tests that run notebooks without a person."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """The file that a `HOLD` cell makes, and waits for to go away."""
    return tmp_path / "hold"


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """Where the effects of a test's notebook are noted."""
    return tmp_path / "done"
