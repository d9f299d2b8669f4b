"""A tiny model and a bank for the whole run of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import write_spec
from tinymodel import make_bank_file, make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and bank.parquet."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder / "model")
    make_bank_file(folder / "bank.parquet", folder / "model")
    return folder


@pytest.fixture
def spec_file(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """spec_file(**changes): writes a spec for the tiny model below tmp_path and returns its path."""

    def make(file_name: str = "spec.yaml", **changes: Any) -> Path:
        given = {"model": str(tiny / "model"), "embeddings": {"bank": str(tiny / "bank.parquet")}, **changes}
        return write_spec(tmp_path / file_name, **given)

    return make
