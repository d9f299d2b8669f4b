"""A tiny model and a bank for the whole run of this room."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import run, write_spec
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


@pytest.fixture(scope="session")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with spec.yaml, out and lineage."""
    folder = tmp_path_factory.mktemp("built")
    given = {"model": str(tiny / "model"), "embeddings": {"bank": str(tiny / "bank.parquet")}}
    assert run("build", write_spec(folder / "spec.yaml", classes={"alpha": 5}, **given), "--local").code == 0
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to damage, with a spec that builds into the copy."""
    shutil.copytree(built / "out", tmp_path / "out")
    shutil.copytree(built / "lineage", tmp_path / "lineage")
    text = (built / "spec.yaml").read_text().replace(str(built), str(tmp_path))
    (tmp_path / "spec.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path
