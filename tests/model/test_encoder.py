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
from safetensors.torch import load_file, save_file
from tinymodel import make_tiny_model

from synthfactory.model.encoder import H0_MINI, open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.spec.errors import InputError

MEAN, STD = [0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]
WIDTH, DEPTH, SIDE, PATCH, REGISTERS = 64, 2, 28, 14, 4


def published_state(random: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors under the names that timm gives a ViT with registers and packed SwiGLU, written out by hand."""

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.2

    state = {
        "cls_token": some(1, 1, WIDTH),
        "reg_token": some(1, REGISTERS, WIDTH),
        "pos_embed": some(1, (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": some(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": some(WIDTH),
        "norm.weight": 1 + some(WIDTH),
        "norm.bias": some(WIDTH),
    }
    for number in range(DEPTH):
        for name, shape in {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "ls1.gamma": (WIDTH,), "ls2.gamma": (WIDTH,),
            "mlp.fc1.weight": (96, WIDTH), "mlp.fc1.bias": (96,), "mlp.fc2.weight": (WIDTH, 48), "mlp.fc2.bias": (WIDTH,),
        }.items():  # fmt: skip
            state[f"blocks.{number}.{name}"] = some(*shape)
    return state


def write_published(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda config: None) -> Path:
    """A repository of H0-mini's published form: config.json as timm writes it, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(published_state(torch.Generator().manual_seed(3)), folder / "model.safetensors")
    config = {
        "architecture": "vit_base_patch14_reg4_dinov2",
        "num_classes": 0,
        "num_features": WIDTH,
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "interpolation": "bicubic"},
    }
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


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
