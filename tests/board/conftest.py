"""A store and its board for each test, both closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbflow.board import Board
from nbflow.store.local import LocalStore


@pytest.fixture
def store(_own_store: Path) -> Iterator[LocalStore]:
    """Give an empty store whose database is only written when a test says so."""
    opened = LocalStore(_own_store, background=False)
    yield opened
    opened.close()


@pytest.fixture
def board(store: LocalStore) -> Iterator[Board]:
    """Give a board on the store."""
    made = Board(store)
    yield made
    made.close()
