"""Mode vae: what learns of a base model, what perceptual and adversarial losses move, and what an export of it is."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from tinymodel import make_tiny_model
from training import cut_off, install_lpips, plain, same_averages, write_tar, write_yaml

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.sample.engine import Engine
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler
from train.config import load_config
from train.export import export
from train.loader import Loader
from train.loop import train
from train.losses import patches_apart, unlike
from train.sampler import Order
from train.split import split
from train.streams import stream
from train.team import Team
from train.vae_step import VAEStep

SIDE = 32
SMALL = {"crop": 16, "discriminator_width": 8, "discriminator_layers": 1}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: SIDE)
    return make_tiny_model(tmp_path / "base")


def config(tmp_path: Path, model: Path | None, vae: dict[str, Any] | None = None, **changes: Any) -> Any:
    values = {
        "mode": "vae", "base": None if model is None else str(model), "data": {"shards": str(tmp_path / "tars")}, "threads": 1,
        "checkpoint_every": 2, "vae": {**SMALL, **(vae or {})},
        "optimiser": {"steps": 4, "batch": 4, "rate": 1e-2, "warmup": 1, "ema": 0.0}, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(tmp_path / "vae.yaml", values)))


def last_line(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]))


def test_a_decoder_learns_alone_and_the_export_draws_on_the_same_latents(tmp_path: Path, base: Path) -> None:
    parts = {"parts": ["kl.decoder.*", "kl.post_quant_conv.*"]}
    train(config(tmp_path, base, {"gan": 0.5}, finetune=parts), tmp_path / "run", tmp_path / "cache")
    assert {"vae_perceptual", "vae_adversarial", "vae_pull", "discriminator_loss"} <= last_line(tmp_path / "run").keys()
    out = export(tmp_path / "run", tmp_path / "sharper", model_id="sharper", revision="1")
    before, after = load_model(open_model(str(base))), load_model(open_model(str(out)))
    one, other = before.vae.state_dict(), after.vae.state_dict()
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed
    assert all(name.startswith(("kl.decoder.", "kl.post_quant_conv.")) for name in changed)
    for part in ("sit", "encoder"):
        assert (base / f"{part}.safetensors").read_bytes() == (out / f"{part}.safetensors").read_bytes()
    condition = np.zeros((1, 16), np.float32)
    drawn = [Engine(model).draw(condition, [(1, 2)], Sampler(steps=2)) for model in (before, after)]
    assert not np.array_equal(*drawn)
    training = open_model(str(out)).config["training"]
    assert training["runs"].keys() == {"vae"}
    assert training["base"]["sha256"] == open_model(str(base)).sha256
    assert "tensors of the autoencoder" in (out / "README.md").read_text()


def test_a_cut_off_run_with_a_discriminator_ends_with_the_same_weights(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = {"shards": str(tmp_path / "tars"), "validation": {"share": 0.3, "every": 2, "tiles": 4}}
    checked = config(tmp_path, base, {"gan": 0.5}, data=validation)
    train(checked, tmp_path / "whole", tmp_path / "cache")
    cut_off(monkeypatch, checked, tmp_path / "cut", tmp_path / "cache")
    assert train(checked, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    assert last_line(tmp_path / "cut")["validation_loss"] == last_line(tmp_path / "whole")["validation_loss"]


def test_until_gan_from_the_autoencoder_does_not_hear_the_discriminator(tmp_path: Path, base: Path) -> None:
    for name, vae in (("without", {}), ("later", {"gan": 0.5, "gan_from": 4}), ("heard", {"gan": 0.5})):
        train(config(tmp_path, base, vae), tmp_path / name, tmp_path / "cache")
        export(tmp_path / name, tmp_path / f"{name}-model", model_id="m", revision="1")
    without, later, heard = (
        (tmp_path / f"{name}-model" / "vae.safetensors").read_bytes() for name in ("without", "later", "heard")
    )
    assert without == later
    assert without != heard
    assert last_line(tmp_path / "later")["vae_pull"] == 0.0


def test_the_discriminators_entry_is_no_jump_of_the_loss(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.watch.AFTER_STEPS", 20)
    vae = {"gan": 50.0, "gan_from": 60, "equivariance": 0.0}
    optimiser = {"steps": 70, "batch": 4, "rate": 1e-4, "warmup": 10, "schedule": "constant"}
    checked = config(tmp_path, base, vae, optimiser=optimiser, log_every=1, checkpoint_every=70)
    train(checked, tmp_path / "run", tmp_path / "cache")
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    heard = [50.0 * abs(line["vae_pull"] * line["vae_adversarial"]) for line in found]
    spread = float(np.std([line["loss"] for line in found[30:60]]))
    assert max(heard) > 20 * spread  # as part of the loss it would have ended the run
    assert abs(found[60]["loss"] - found[59]["loss"]) < 10 * spread
    assert all(line["loss"] != line["discriminator_loss"] for line in found)  # the log shows the autoencoder's


def test_perceptual_loss_is_on_by_default_where_there_is_an_encoder(tmp_path: Path, base: Path) -> None:
    train(config(tmp_path, base), tmp_path / "with", tmp_path / "cache")
    train(config(tmp_path, base, {"perceptual": 0}), tmp_path / "without", tmp_path / "cache")
    assert "perceptual" in last_line(tmp_path / "with")
    assert "perceptual" not in last_line(tmp_path / "without")
    sizes = {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
    train(config(tmp_path, None, network=sizes), tmp_path / "new", tmp_path / "cache")
    assert "perceptual" not in last_line(tmp_path / "new")
    with pytest.raises(InputError, match="export names one of mode diffusion, finetune or repa-e, or of mode vae with"):
        export(tmp_path / "new", tmp_path / "x", model_id="m", revision="1")


def test_features_of_like_tiles_are_alike_and_their_gradient_reaches_only_the_found_tile(
    tmp_path: Path, base: Path
) -> None:
    checked = config(tmp_path, base)
    divided = split(checked.data, tmp_path / "cache")
    rows = divided.train
    order = Order(0, rows, divided.index.labels[rows], np.ones(len(rows)))
    with Loader(divided.index, order, seed=0, batch=4) as loader:
        features = VAEStep(checked, loader, Team()).features
    assert features is not None
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 16, 16, generator=generator) for _ in range(2))
    assert features(one, one).item() == pytest.approx(0.0, abs=1e-6)
    assert features(one, other).item() > 1e-4
    found, wanted = one.clone().requires_grad_(True), other.clone().requires_grad_(True)
    features(found, wanted).backward()
    assert found.grad is not None
    assert found.grad.abs().max() > 0
    assert wanted.grad is None
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert unlike([x, x], [x, -x]).item() == pytest.approx(1.0)  # one layer alike (0), one opposite (2)


def test_a_crop_is_seen_with_the_positions_of_the_corner(base: Path) -> None:
    encoder = load_model(open_model(str(base))).encoder
    assert encoder is not None
    whole = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = encoder.layers(whole)
    assert len(layers) == encoder.config.depth
    assert torch.allclose(encoder.norm(layers[-1]), encoder.patch_tokens(encoder(whole)), atol=1e-6)
    assert encoder.layers(whole[..., :16, :24][..., :16])[0].shape == (1, 4, 16)


def test_lpips_is_used_where_it_is_installed(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install_lpips(monkeypatch)
    train(config(tmp_path, base, {"features": "lpips"}), tmp_path / "run", tmp_path / "cache")
    assert asked == [{"net": "vgg", "verbose": False}]
    assert last_line(tmp_path / "run")["perceptual"] > 0

    def offline(**_: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=offline))
    with pytest.raises(InputError, match=r"vae\.features: lpips cannot fetch its weights .*no route to host"):
        train(config(tmp_path, base, {"features": "lpips"}), tmp_path / "offline", tmp_path / "cache")
    train(config(tmp_path, base, {"features": "lpips", "perceptual": 0}), tmp_path / "none", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"vae\.features: lpips cannot be imported .*synthfactory\[lpips\]"):
        train(config(tmp_path, base, {"features": "lpips"}), tmp_path / "other", tmp_path / "cache")


@pytest.mark.parametrize(
    ("vae", "changes", "message"),
    [
        ({"crop": 20}, {}, r"vae\.crop: 20 px cannot be compared .* choose a multiple of 8 up to 32"),
        ({"crop": 12, "perceptual": 0}, {}, r"vae\.crop: 12 px is no multiple of 8, the autoencoder's factor"),
        ({"crop": 0}, {}, r"vae\.yaml:\d+:\d+: vae\.crop: 0 is too small; at least 8"),
        ({"gan": 1.0, "discriminator_layers": 3}, {}, r"vae\.discriminator_layers: 3 need a vae\.crop of 24 px or more; it is 16 px"),
        ({}, {"finetune": {"statistics": "measure"}}, r"finetune\.statistics: are of modes finetune and repa-e"),
        ({"crop": 40}, {}, r"vae\.crop: 40 px of tiles of 32 px"),
        ({}, {"finetune": {"lora": {"rank": 2}}}, r"finetune\.lora: is for networks that draw"),
        ({}, {"finetune": {"parts": ["blocks.*"]}}, r"finetune\.parts: no weight's name fits blocks\.\*; for example 'kl\."),
        ({}, {"network": {"unshuffle": 4}}, r"network: is the base model's own"),
        ({"perceptual": 1.0}, {"base": None, "network": {"unshuffle": 4}}, r"vae\.perceptual: compares features of an encoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(
    tmp_path: Path, base: Path, vae: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(config(tmp_path, base, vae, **changes), tmp_path / "run", tmp_path / "cache")


def test_patches_are_compared_wherever_they_stand_and_a_blurred_tile_lacks_some() -> None:
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(2, 3, 64, 64, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(tile, 3, 1, 1, count_include_pad=False)

    def apart(found: torch.Tensor, wanted: torch.Tensor = tile) -> float:
        return float(np.mean([patches_apart(found, wanted, stream(0, "patches", n)).item() for n in range(4)]))

    moved, brighter = torch.roll(tile, (20, 12), (2, 3)), tile + 1.0
    assert apart(tile) == 0.0
    assert apart(brighter) < 1e-5  # brightness is for the other losses
    assert apart(moved) < 0.3 * apart(blurred)  # sampling of patches alone
    found, wanted = blurred.clone().requires_grad_(True), tile.clone().requires_grad_(True)
    patches_apart(found, wanted, stream(0, "patches", 0)).backward()
    assert found.grad is not None
    with torch.no_grad():
        nearer = blurred - 0.2 * found.grad / found.grad.abs().max()
    assert apart(nearer) < apart(blurred)
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(16)  # means of two are 0, where they begin with the tile
    assert max(patches_apart(tile + stripes, tile, stream(0, "patches", n), (2,)).item() for n in range(4)) > 0.1
    small = torch.rand(1, 3, 28, 28, generator=generator)
    assert np.isfinite(apart(small, small.flip(2)))


def test_the_distance_of_patches_moves_the_autoencoder_and_is_in_the_log(tmp_path: Path, base: Path) -> None:
    for name, weight in (("without", 0.0), ("with", 0.5)):
        train(
            config(tmp_path, base, {"patches": weight, "patch_scales": [1, 2], "perceptual": 0}),
            tmp_path / name,
            tmp_path / "cache",
        )
    assert "patches" not in last_line(tmp_path / "without")
    assert last_line(tmp_path / "with")["patches"] > 0
    assert not same_averages(tmp_path / "with", tmp_path / "without")
