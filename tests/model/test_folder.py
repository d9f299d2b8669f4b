"""Model folders on disk and behind URLs: what is loaded is what config.json names, or nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tinymodel import make_tiny_model

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "config.json").read_text())
    changed = change(values)
    (folder / "config.json").write_text(json.dumps(values if changed is None else changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("licence"), "'licence' is missing or no dict"),
        (lambda c: c.update(format="other/9"), "is not of format synthfactory-model/1"),
        (lambda c: c.update(tile_size_px="big"), "'tile_size_px' is missing or no int"),
        (lambda c: c["files"].update({"../../etc/passwd": "0"}), "'files' must name exactly"),
        (lambda c: c["files"].pop("vae.safetensors"), "'files' must name exactly"),
        (lambda c: [1, 2], "is not of format"),
        (lambda c: c["vae"].update(latent_channels=6), "'vae.latent_channels' 6: they must be the same"),
        (lambda c: c["encoder"].update(width="abc"), "'encoder.width' must be a whole number above 0"),
        (lambda c: c["encoder"].update(mean=5), "'encoder.mean' must be a list of three numbers"),
    ],
)
def test_a_wrong_config_is_one_clear_error(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    def apply(values: dict[str, Any]) -> Any:
        found = change(values)
        return found if isinstance(found, list) else None

    edited(folder, apply)
    with pytest.raises(InputError, match=message) as caught:
        open_model(str(folder))
    assert "config.json" in str(caught.value)


def test_weights_that_differ_from_their_hash_are_never_loaded(folder: Path) -> None:
    weights = folder / "sit.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"sit\.safetensors: differs from the sha256"):
        load_model(open_model(str(folder)))
    weights.unlink()
    with pytest.raises(InputError, match=r"sit\.safetensors: is missing"):
        load_model(open_model(str(folder)))


def test_weights_of_another_size_are_named(folder: Path) -> None:
    edited(folder, lambda c: c["sit"].update(depth=3))
    with pytest.raises(InputError, match=r"sit\.safetensors: does not fit the sit of config\.json"):
        load_model(open_model(str(folder)))
    edited(folder, lambda c: c["sit"].update(depth=500, width=32768, heads=16))  # terabytes, were it made first
    with pytest.raises(InputError, match=r"sit\.safetensors: does not fit the sit of config\.json"):
        load_model(open_model(str(folder)))
    edited(folder, lambda c: c["sit"].update(depth="deep"))
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(open_model(str(folder)))


def test_a_model_behind_a_url_is_the_same_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHFACTORY_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/models/tiny/{path.name}", path.read_bytes())
    try:
        there, here = open_model("memory://models/tiny/"), open_model(str(folder))
        assert (there.sha256, there.seconds_per_call) == (here.sha256, here.seconds_per_call)
        assert not list(there.path.glob("*.safetensors"))  # known by hash before anything is fetched
        tiles = np.zeros((1, 32, 32, 3), np.uint8)
        assert (load_model(there).embed(tiles) == load_model(here).embed(tiles)).all()
        for name in there.config["files"]:
            memory.rm(f"/models/tiny/{name}")
        load_model(open_model("memory://models/tiny"))  # from the cache
        (there.path / "vae.safetensors").unlink()
        with pytest.raises(InputError, match=r"memory://models/tiny/vae\.safetensors: is missing"):
            load_model(there)
        memory.pipe_file("/models/tiny/vae.safetensors", b"swapped")
        with pytest.raises(InputError, match=r"vae\.safetensors: differs from the sha256"):
            load_model(there)
        assert sorted(path.name for path in there.path.iterdir()) == ["encoder.safetensors", "sit.safetensors"]
    finally:
        memory.rm("/models", recursive=True)


@pytest.mark.parametrize("name", ["nowhere", "memory://nowhere/at-all", "phantoms"])
def test_a_model_that_is_not_there_says_what_could_be(name: str) -> None:
    with pytest.raises(InputError, match="neither a built-in model"):
        open_model(name)
