"""The stores that ship with nbflow keep the promises of the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nbflow.core.errors import UnknownRun
from nbflow.store.local import LocalStore
from nbflow.store.protocol import Store
from nbflow.testing import MemoryStore
from tests.store.conformance import Conformance, opened


class TestLocalStore(Conformance):
    """Journals and DuckDB, with the background thread at work."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty store in a folder."""
        with_background = LocalStore(tmp_path / "store", idle=0.05, compact_after=0.2)
        yield with_background
        with_background.close()


class TestLocalStoreOnRequest(Conformance):
    """The same, copying only when asked."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty store in a folder."""
        quiet = LocalStore(tmp_path / "store", background=False)
        yield quiet
        quiet.close()


class TestMemoryStore(Conformance):
    """The fake that tests of other layers use."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store in memory."""
        return MemoryStore()


def test_a_prefix_that_is_too_short_is_said_to_be(tmp_path: Path) -> None:
    """Two characters name no run, although one begins with them: the error says that, and not that none does."""
    with closing(LocalStore(tmp_path / "store", background=False)) as store:
        first = opened()
        store.create(first)
        with pytest.raises(UnknownRun, match="too short to name a run"):
            store.run(first.run[:2])
