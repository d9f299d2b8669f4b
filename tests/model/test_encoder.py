"""Encoders apart from models: H0-mini's published form, what is checked before its weights are read, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hubserver import GRANTED, environment, serve_hub
from miniencoder import DEPTH, MEAN, PATCH, REGISTERS, SIDE, STD, WIDTH, write_published
from safetensors.torch import load_file, save_file
from tinymodel import make_tiny_model

from synthfactory.model.encoder import H0_MINI, open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.spec.errors import InputError


def by_hand(state: dict[str, torch.Tensor], image: np.ndarray) -> torch.Tensor:
    """The tokens of one tile, written down from timm's equations in plain float64 operations."""
    w = {name: value.double() for name, value in state.items()}
    x = (torch.from_numpy(image).double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    side = SIDE // PATCH
    patches = x.reshape(side, PATCH, side, PATCH, 3).permute(0, 2, 4, 1, 3).reshape(side * side, -1)
    tokens = (
        patches @ w["patch_embed.proj.weight"].reshape(WIDTH, -1).T + w["patch_embed.proj.bias"] + w["pos_embed"][0]
    )
    x = torch.cat([w["cls_token"][0], w["reg_token"][0], tokens])

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    for number in range(DEPTH):
        b = f"blocks.{number}"
        qkv = norm(x, f"{b}.norm1") @ w[f"{b}.attn.qkv.weight"].T + w[f"{b}.attn.qkv.bias"]
        q, k, v = qkv.chunk(3, dim=-1)  # one head of 64
        mixed = torch.softmax(q @ k.T / 8, dim=-1) @ v
        x = x + w[f"{b}.ls1.gamma"] * (mixed @ w[f"{b}.attn.proj.weight"].T + w[f"{b}.attn.proj.bias"])
        gate, value = (norm(x, f"{b}.norm2") @ w[f"{b}.mlp.fc1.weight"].T + w[f"{b}.mlp.fc1.bias"]).chunk(2, dim=-1)
        inner = gate * torch.sigmoid(gate) * value
        x = x + w[f"{b}.ls2.gamma"] * (inner @ w[f"{b}.mlp.fc2.weight"].T + w[f"{b}.mlp.fc2.bias"])
    return norm(x, "norm")


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_the_published_form_loads_and_computes_what_timm_defines(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "h0")
    opened = open_encoder(str(folder), H0_MINI)
    assert (opened.id, opened.width, opened.image_size_px, opened.token) == (H0_MINI, WIDTH, SIDE, "class")
    assert opened.licence["name"] == "CC-BY-NC-ND-4.0"
    encoder = load_encoder(opened, torch.device("cpu"))
    images = tiles(5)
    expected = torch.stack([by_hand(load_file(folder / "model.safetensors"), image) for image in images]).float()
    assert np.abs(encoder.embed(images, batch_size=2) - expected[:, 0].numpy()).max() < 1e-4
    patches = encoder.embed_patches(images, batch_size=2)
    assert patches.shape == (5, 4, WIDTH)
    assert np.abs(patches - expected[:, 1 + REGISTERS :].numpy()).max() < 1e-4


def test_a_model_folders_encoder_opens_by_the_models_name(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    opened = open_encoder(str(model))
    assert opened.facts() == {"id": "tiny-encoder", "sha256": opened.sha256, "token": "class"}
    assert load_encoder(opened).embed(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 16)
    assert open_encoder("phantom").width == 128


def test_a_model_folder_that_calls_its_encoder_h0_mini_has_h0_minis_statistics(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["encoder"].update(id="h0-mini", mean=[0.485, 0.456, 0.406])
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"^encoder: tiny: config\.json: encoder\.mean is \[0\.485.* but bioptimus/H0-mini takes"
    ):
        open_encoder(str(model))


def test_a_copy_of_h0_mini_is_known_by_its_form_whatever_its_folder_is_called(tmp_path: Path) -> None:
    assert open_encoder(str(write_published(tmp_path / "weights"))).facts()["id"] == H0_MINI
    imagenet = lambda c: c["pretrained_cfg"].update(mean=[0.485, 0.456, 0.406])  # noqa: E731
    other = lambda c: c.update(architecture="vit_small_patch16_224")  # noqa: E731
    for folder, change in (("a", imagenet), ("H0-mini", lambda c: (other(c), imagenet(c)))):
        with pytest.raises(InputError, match=r"bioptimus/H0-mini takes .*; this is not the published file"):
            open_encoder(str(write_published(tmp_path / folder, change)))
    assert open_encoder(str(tmp_path / "a"), "mine").id == "mine"
    assert open_encoder(str(tmp_path / "weights"), "h0-mini").id == H0_MINI
    assert open_encoder(str(write_published(tmp_path / "small", other))).id == "small"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["pretrained_cfg"].update(mean=[0.485, 0.456, 0.406]), r"pretrained_cfg\.mean is \[0\.485"),
        (lambda c: c["pretrained_cfg"].update(std=[0.2, 0.2]), r"pretrained_cfg\.std is .* three numbers"),
        (lambda c: c.pop("pretrained_cfg"), "no pretrained_cfg"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 224, 196]), r"\[3, 224, 196\].*a square"),
        (lambda c: c.update(num_features="wide"), "num_features is wide"),
    ],
)
def test_a_config_that_disagrees_is_refused_before_any_weight_is_read(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    folder = write_published(tmp_path / "h0", change)
    with pytest.raises(InputError, match=words) as caught:
        open_encoder(str(folder), H0_MINI)
    assert "config.json" in str(caught.value)


def test_weights_of_another_form_are_named(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "h0")
    weights = folder / "model.safetensors"
    state = load_file(weights)

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words):
            load_encoder(open_encoder(str(folder)))

    save_file({**state, "pos_embed": torch.zeros(1, 5, WIDTH)}, weights)
    refused("5 positions")
    save_file({name: value for name, value in state.items() if name != "reg_token"}, weights)
    refused("no tensor 'reg_token'")
    save_file({**state, "blocks.0.mlp.fc1.weight": torch.zeros(48, WIDTH)}, weights)
    refused("packed SwiGLU")
    weights.write_bytes(pickle.dumps({"cls_token": 1}))
    refused("is a pickle")
    save_file(state, weights)
    weights.write_bytes(weights.read_bytes()[:-8])
    refused("cut short")
    weights.unlink()
    with pytest.raises(InputError, match=r"neither a built-in|not of format"):
        open_encoder(str(folder))


def test_weights_swapped_after_opening_are_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "h0")
    opened = open_encoder(str(folder))
    state = load_file(folder / "model.safetensors")
    save_file({**state, "norm.bias": state["norm.bias"] + 1}, folder / "model.safetensors")
    with pytest.raises(InputError, match="differs from the sha256"):
        load_encoder(opened)


def test_embeddings_made_with_other_statistics_are_refused(tmp_path: Path) -> None:
    opened = open_encoder(str(write_published(tmp_path / "h0")), H0_MINI)
    opened.check_preprocessing({"mean": MEAN, "std": STD, "image_size_px": SIDE}, "bank")
    opened.check_preprocessing({}, "bank")
    with pytest.raises(InputError, match=r"bank: was embedded with mean \[0\.485"):
        opened.check_preprocessing({"mean": [0.485, 0.456, 0.406]}, "bank")
    with pytest.raises(InputError, match="at 256 px"):
        opened.check_preprocessing({"image_size_px": 256}, "bank")


def test_an_encoder_of_the_hub_is_known_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in write_published(tmp_path / "h0").iterdir()}
    with serve_hub() as hub:
        for name, value in environment(hub, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        repo = hub.add(H0_MINI, gated=True, licence="cc-by-nc-nd-4.0")
        first = repo.commit(files)
        opened = open_encoder("h0-mini")
        assert (opened.id, opened.revision, opened.gated) == (H0_MINI, first, True)
        assert opened.sha256 == open_encoder(str(tmp_path / "h0")).sha256
        assert not [line for line in hub.downloads() if line.endswith(".safetensors")]
        assert (
            load_encoder(opened).embed(tiles(2)) == load_encoder(open_encoder(str(tmp_path / "h0"))).embed(tiles(2))
        ).all()
        hub.down = True
        assert open_encoder(f"hf://{H0_MINI}@{first}").sha256 == opened.sha256
        with pytest.raises(InputError, match=r"cannot be reached \(status 503\).*connect once"):
            open_encoder("h0-mini")
        hub.down = False
        config = files["config.json"].replace(b"0.707223", b"0.485")
        repo.commit({**files, "config.json": config})
        with pytest.raises(InputError, match="this is not the published file"):
            open_encoder("h0-mini")
        repo.commit({"config.json": files["config.json"], "pytorch_model.bin": b"x"})
        with pytest.raises(InputError, match=r"has no model\.safetensors"):
            open_encoder("h0-mini")
