"""Mode vae with `vae.redrawn`: a decoder learns on latents as the base model's SiT draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinymodel import make_tiny_model
from training import cut_off, plain, same_averages, write_tar, write_yaml

from synthfactory.model.folder import open_model
from synthfactory.model.vae import pixels_from_uint8
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train.config import TrainConfig, load_config
from train.export import export
from train.loader import Batch, Loader
from train.loop import train
from train.plan import plan
from train.redrawn import coarse
from train.sampler import Order
from train.split import split
from train.team import Team
from train.vae_step import VAEStep

SIDE = 32
DECODER = {"parts": ["kl.decoder.*", "kl.post_quant_conv.*"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: SIDE)
    return make_tiny_model(tmp_path / "base")


def config(tmp_path: Path, model: Path | None, redrawn: dict[str, Any] | None, **changes: Any) -> TrainConfig:
    small = {"crop": SIDE, "discriminator_width": 8, "discriminator_layers": 1, "equivariance": 0.0, "redrawn": redrawn}
    values = {
        "mode": "vae", "base": None if model is None else str(model), "data": {"shards": str(tmp_path / "tars"), "symmetries": False},
        "threads": 1, "checkpoint_every": 2, "vae": {**small, **changes.pop("vae", {})},
        "optimiser": {"steps": 4, "batch": 4, "rate": 1e-2, "warmup": 1, "ema": 0.0}, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(tmp_path / "vae.yaml", values)))


def step_and_batch(checked: TrainConfig, tmp_path: Path) -> tuple[VAEStep, Batch]:
    divided = split(checked.data, tmp_path / "cache")
    rows = divided.train
    order = Order(0, rows, divided.index.labels[rows], np.ones(len(rows)))
    with Loader(divided.index, order, seed=0, batch=4) as loader:
        return VAEStep(checked, loader, Team()), loader.batch(0)


def own_latents(step: VAEStep, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return step.vae.encode(pixels_from_uint8(torch.from_numpy(batch.images)))[0]


def test_from_no_noise_a_tile_keeps_its_latents_and_from_noise_alone_nothing_of_them_is_left(
    tmp_path: Path, base: Path
) -> None:
    for start in (0.0, 0.5, 1.0):
        checked = config(tmp_path, base, {"share": 1.0, "start": [start, start], "scale": 1.0})
        step, batch = step_and_batch(checked, tmp_path)
        assert step.redraw is not None
        own = own_latents(step, batch)
        found, which = step.redraw(batch, own)
        of_others, _ = step.redraw(batch, own.flip(0))
        assert which.all()
        if start == 0.0:
            assert torch.allclose(found, own, atol=1e-5)
        else:
            assert (found - own).abs().max() > 0.1
        assert torch.allclose(found, of_others, atol=1e-5) == (start == 1.0)


def test_only_what_was_drawn_anew_changes_and_gradients_reach_only_what_stayed(tmp_path: Path, base: Path) -> None:
    step, batch = step_and_batch(config(tmp_path, base, {"share": 0.5, "start": [0.6, 0.6]}), tmp_path)
    assert step.redraw is not None
    own = own_latents(step, batch).requires_grad_(True)
    found, which = step.redraw(batch, own)
    kept = ~which.flatten()
    assert 0 < int(kept.sum()) < 4
    assert torch.equal(found[kept], own[kept])
    assert not torch.equal(found[~kept], own[~kept])
    found.sum().backward()
    assert own.grad is not None
    assert (own.grad[kept] == 1).all()
    assert (own.grad[~kept] == 0).all()


def test_of_redrawn_tiles_the_layout_as_decoded_before_is_asked_for_and_of_the_others_every_pixel(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"l1": 1.0, "l2": 0.0, "gradient": 0.0, "kl": 0.0, "perceptual": 0}
    before = load_model(open_model(str(base))).vae.decode
    stripes = torch.ones(SIDE, SIDE)
    stripes[:, ::2] = -1.0  # detail alone: its mean over any square is 0
    for share, expected in ((0.0, 0.5), (1.0, 0.0)):
        step, batch = step_and_batch(config(tmp_path, base, {"share": share}, vae=losses), tmp_path)
        pixels = pixels_from_uint8(torch.from_numpy(batch.images))

        def striped(latents: torch.Tensor, kept: bool = share == 0.0, own: torch.Tensor = pixels) -> torch.Tensor:
            return (own if kept else before(latents)) + 0.5 * stripes

        monkeypatch.setattr(step.vae, "decode", striped)
        total, figures = step.loss(batch)
        assert total.item() == pytest.approx(expected, abs=1e-6)
        assert "psnr_db" not in figures  # of what is no reconstruction
    with torch.no_grad():
        assert "psnr_db" in step.loss(batch)[1]  # validation looks at reconstructions, as without


def test_what_was_drawn_anew_need_not_resemble_the_tile_in_the_encoders_features(tmp_path: Path, base: Path) -> None:
    for share, resembles in ((0.0, True), (1.0, False)):
        step, batch = step_and_batch(config(tmp_path, base, {"share": share}), tmp_path)
        assert (step.loss(batch)[1]["perceptual"] > 1e-3) == resembles


def test_means_of_squares_keep_the_size() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2)
    assert torch.equal(coarse(image, 2)[0, 0], expected)


def test_a_decoder_learns_on_redrawn_latents_and_a_cut_off_run_ends_with_the_same_weights(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adversary = {"gan": 0.5, "patches": 0.5}
    checked = config(tmp_path, base, {"share": 0.5}, finetune=DECODER, vae=adversary)
    train(checked, tmp_path / "whole", tmp_path / "cache")
    cut_off(monkeypatch, checked, tmp_path / "cut", tmp_path / "cache")
    assert train(checked, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    train(config(tmp_path, base, None, finetune=DECODER, vae=adversary), tmp_path / "own", tmp_path / "cache")
    assert not same_averages(tmp_path / "whole", tmp_path / "own")
    out = export(tmp_path / "whole", tmp_path / "sharper", model_id="sharper", revision="1")
    before, after = (load_model(open_model(str(folder))).vae.state_dict() for folder in (base, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("kl.decoder.", "kl.post_quant_conv.")) for name in changed)
    for part in ("sit", "encoder"):
        assert (base / f"{part}.safetensors").read_bytes() == (out / f"{part}.safetensors").read_bytes()


def test_a_plan_counts_what_redraws_and_refuses_what_a_run_would(tmp_path: Path, base: Path) -> None:
    def lines(redrawn: dict[str, Any] | None, **changes: Any) -> list[str]:
        return list(plan(config(tmp_path, base, redrawn, **changes), tmp_path / "cache"))

    without, beside = lines(None), lines({})
    names = ("base's sit ", "base's vae ", "encoder ")
    assert not any(line.startswith(names) for line in without)
    assert [line.split("  ")[0].strip() + " " for line in beside if line.startswith(names)] == list(names)
    with pytest.raises(InputError, match=r"vae\.redrawn: draws whole tiles; write vae\.crop: 32 \(it is 16\)"):
        lines({}, vae={"crop": 16})


@pytest.mark.parametrize(
    ("redrawn", "changes", "message"),
    [
        ({"start": [0.7, 0.3]}, {}, r"vae\.redrawn\.start: runs from the lower time to the higher; .*\[0\.5, 1\.0\]"),
        ({"start": [0.5, 1.5]}, {}, r"vae\.redrawn\.start.*1\.5 is too large"),
        ({"share": 2.0}, {}, r"vae\.redrawn\.share: 2\.0 is too large"),
        ({}, {"vae": {"crop": 16}}, r"vae\.redrawn: draws whole tiles; write vae\.crop: 32 \(it is 16\)"),
        ({}, {"base": None, "network": {"channels": [16, 16]}}, r"vae\.redrawn: is for mode vae with a base"),
        (None, {"vae": {"patches": 1.0, "crop": 16}}, r"vae\.patch_scales: of 4 leave no patches in a crop of 16 px; .*\[1, 2\]"),
        ({}, {"mode": "finetune"}, r"vae\.redrawn: is for mode vae with a base"),
    ],
)  # fmt: skip
def test_what_cannot_be_redrawn_is_said_before_anything_is_written(
    tmp_path: Path, base: Path, redrawn: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(config(tmp_path, base, redrawn, **changes), tmp_path / "run", tmp_path / "cache")
    assert not (tmp_path / "run" / "checkpoints").exists()
