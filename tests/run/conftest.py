"""A tiny model and a bank for the whole run of this room; a stand-in of the Hub, and builds of what it serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluate_making import make_evaluated
from hub_making import CYTOSYN, SMALL, TERMS, Build
from hubserver import GRANTED, Hub, Repo, environment, serve_hub
from minirepo import make_repo
from privacy_making import Dp, dp_sections
from reader_making import make_read
from running import Ended, run, write_spec
from tinymodel import make_bank_file, make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and bank.parquet."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder / "model")
    make_bank_file(folder / "bank.parquet", folder / "model")
    return folder


@pytest.fixture(scope="session")
def read_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set and real tiles for reader studies."""
    return make_read(tmp_path_factory.mktemp("read"))


@pytest.fixture(scope="session")
def evaluated_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, its lineage, and real tiles to evaluate it by."""
    return make_evaluated(tmp_path_factory.mktemp("evaluated"))


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


@pytest.fixture(scope="session")
def miniature() -> dict[str, bytes]:
    return make_repo()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, and caches of this test alone; a token that has access is in the environment."""
    with serve_hub() as server:
        for name in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment(server, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def cytosyn(hub: Hub, miniature: dict[str, bytes]) -> Repo:
    repo = hub.add(CYTOSYN, gated=True, licence="cc-by-nc-nd-4.0")
    repo.commit(miniature)
    return repo


@pytest.fixture
def build(tiny: Path, tmp_path: Path) -> Build:
    """build(model, **changes): `build --local` of a spec for that model, into tmp_path/set."""

    def make(model: Any, command: str = "build", **changes: Any) -> Ended:
        given = {"embeddings": {"bank": str(tiny / "bank.parquet")}, "terms": TERMS, **SMALL, **changes}
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        spec = write_spec(folder / "spec.yaml", model=model, **given)
        return run(command, spec, *(["--local"] if command == "build" else []))

    return make


@pytest.fixture
def many(tiny: Path, tmp_path: Path) -> Path:
    """A bank of 300 patients in each class."""
    return make_bank_file(tmp_path / "many.parquet", tiny / "model", {"alpha": 300, "beta": 300})


@pytest.fixture
def dp(tiny: Path, many: Path, tmp_path: Path) -> Dp:
    """dp(**changes): sections of a spec that a release can be made for."""
    return dp_sections(tiny / "model", many, tmp_path)


@pytest.fixture
def bank(tiny: Path, tmp_path: Path) -> Path:
    """Six tiles of each class, of two patients or three, to take some out of."""
    return make_bank_file(tmp_path / "bank.parquet", tiny / "model", {"alpha": 6, "beta": 6})


@pytest.fixture
def make(spec_file: Callable[..., Path], bank: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec of that bank, four tiles a shard."""

    def made(**changes: Any) -> Path:
        output = {"path": str(tmp_path / "out"), "shard_size": 4}
        values = {"embeddings": {"bank": str(bank)}, "classes": {"alpha": 4, "beta": 8}, "output": output, **changes}
        return spec_file(**values)

    return made
