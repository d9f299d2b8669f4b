"""A whole small set, and a place for its lineage."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import make_set

from synthfactory.shards.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = LocalStore(str(tmp_path / "out"))
    make_set(found)
    return found


@pytest.fixture
def lineage(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "lineage"))
