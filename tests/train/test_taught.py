"""A run says where the runs that it builds on have learnt from its own validation patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training import plain, write_tar, write_yaml

from train.config import TrainConfig, load_config
from train.loop import train
from train.plan import plan

VIT = {
    "image_size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2, "mlp_hidden": 32, "registers": 0, "layer_scale": None,
}  # fmt: skip
VAE = {"unshuffle": 4, "channels": [8, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
SIT = {"width": 32, "depth": 1, "heads": 2, "projection_depth": 1, "latent_size": 4}
APART = {"validation": {"share": 0.25}}
FLATTERS = "learnt from 3 of the 3 patients that are held out here, so what is measured on them flatters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(24), plain, side=lambda n: 32)
    return tmp_path


def config(folder: Path, mode: str, network: dict[str, Any], data: dict[str, Any], **changes: Any) -> TrainConfig:
    values = {
        "mode": mode, "network": network, "data": {"shards": str(folder / "tars"), **data}, "samples": None, "threads": 1,
        "optimiser": {"steps": 1, "batch": 3, "rate": 1e-3}, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(folder / "config.yaml", values)))


def learnt(folder: Path, name: str, *given: Any, **changes: Any) -> str:
    train(config(folder, *given, **changes), folder / name, folder / "cache")
    return str(folder / name)


def warned(folder: Path, encoder: str, vae: str, data: dict[str, Any] = APART) -> list[str]:
    """Of `plan`; a run says the same as it begins."""
    chosen = config(folder, "diffusion", SIT, data, encoder_run=encoder, vae_run=vae)
    planned = [line for line in plan(chosen, folder / "cache") if line.startswith("warning: ")]
    said: list[str] = []
    train(chosen, folder / "run", folder / "cache", said.append)
    assert said == planned
    return planned


def test_runs_that_held_the_same_patients_out_are_not_warned_of(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32}, encoder_run=encoder)
    assert warned(folder, encoder, vae) == []


def test_a_run_that_learnt_from_them_is_named(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    assert warned(folder, encoder, vae) == [
        f"warning: encoder_run: {encoder} {FLATTERS}; hold the same patients out of every run"
    ]
    text = (folder / "encoder/taught.json").read_text()
    assert len(json.loads(text)["patients"]) == 12
    assert "p-a-" not in text


def test_so_is_one_whose_own_encoder_did(folder: Path) -> None:
    seen = learnt(folder, "seen", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32}, encoder_run=seen)
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    assert [line for line in warned(folder, encoder, vae) if FLATTERS in line] == [
        f"warning: vae_run: {vae} {FLATTERS}; hold the same patients out of every run"
    ]


def test_a_run_that_does_not_say_is_named_where_anything_is_held_out(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    for damaged in ("[]", "{", '{"format": 2, "patients": []}', '{"format": 1, "patients": 3}'):
        Path(vae, "taught.json").write_text(damaged)
        (line,) = [line for line in plan(config(folder, "diffusion", SIT, APART, encoder_run=encoder, vae_run=vae), folder / "cache")
                   if line.startswith("warning")]  # fmt: skip
        assert "does not say whom it learnt from" in line
    assert warned(folder, encoder, vae, {}) == []
