"""End-to-end training: what each of the three updates moves, and what it must not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import write_config, write_shard
from training import cut_off, install_lpips, same_averages

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.sample.engine import Engine
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler
from train import checkpoint
from train.config import load_config
from train.export import export
from train.loader import Loader
from train.loop import _Run, train
from train.sampler import Order
from train.split import split
from train.team import Team

VAE = {"unshuffle": 4, "channels": [8, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
SIT = {"width": 16, "depth": 2, "heads": 2, "projection_depth": 1, "projection_hidden": 8, "latent_size": 28}
SMALL = {"discriminator_width": 8, "discriminator_layers": 2}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, an encoder and a VAE."""
    folder = tmp_path_factory.mktemp("begun")
    write_shard(folder / "shards")
    train(load_config(write_config(folder)), folder / "encoder", folder / "cache")
    train(
        load_config(write_config(folder, mode="vae", network=VAE, vae={"crop": 64})), folder / "vae", folder / "cache"
    )
    return folder


def config(begun: Path, **changes: Any) -> str:
    values = {
        "mode": "repa-e", "network": SIT, "encoder_run": str(begun / "encoder"), "vae_run": str(begun / "vae"), "repa_e": SMALL,
        "optimiser": {"steps": 4, "batch": 4, "rate": 1e-3, "warmup": 1},
        "samples": {"every": 3, "tiles": 1, "steps": 1}, **changes,
    }  # fmt: skip
    return write_config(begun, **values)


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Any:
    """The loop's own state before the first step, with gates that are open: the SiT's output depends on all its weights."""
    checked = load_config(config(begun))
    divided = split(checked.data, begun / "cache")
    rows = divided.train
    order = Order(0, rows, divided.index.labels[rows], np.ones(len(rows)))
    with Loader(divided.index, order, seed=0, batch=4) as loader:
        (tmp_path / "run").mkdir()
        made = _Run(checked, tmp_path / "run", begun / "cache", divided, loader, Team())
        generator = torch.Generator().manual_seed(1)
        for name, weight in made.work.sit.named_parameters():
            if "adaLN" in name or "final_layer" in name:
                weight.data.normal_(0.0, 0.1, generator=generator)
        made.work.module.train()
        yield made


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def test_each_update_moves_its_own_weights_and_nothing_else(run: Any) -> None:
    module, batch = run.work.module, run.loader.batch(0)
    for phase, loss in zip(run.phases, run.losses, strict=True):
        before = {name: value.clone() for name, value in module.state_dict().items()}
        run._update(0, phase, loss, [batch])
        assert moved(before, module) == {phase.name}
        if phase.name == "vae":  # the alignment went through the SiT: its weights, and the statistics of latents, stay
            assert all(torch.equal(before[name], value) for name, value in module.state_dict().items() if "bn." in name)
        if phase.name == "sit":
            assert not torch.equal(before["sit.bn.running_mean"], module.state_dict()["sit.bn.running_mean"])


def test_denoising_never_reaches_the_autoencoder(run: Any) -> None:
    """Not even where its weights ask for gradients: latents are detached. Breaks where that is left out."""
    module, batch = run.work.module, run.loader.batch(0)
    module.requires_grad_(True)
    run.work.sit.pos_embed.requires_grad_(False)
    autoencoder, discriminator, diffusion = (phase.loss for phase in run.phases)
    autoencoder(batch)
    module.zero_grad()
    discriminator(batch)[0].backward()
    assert all(weight.grad is None for weight in run.work.vae.parameters())
    assert any(weight.grad is not None for weight in run.work.discriminator.parameters())
    module.zero_grad()
    diffusion(batch)[0].backward()
    assert all(weight.grad is None for weight in run.work.vae.parameters())
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in run.work.sit.parameters())


def test_alignment_does_reach_the_autoencoder(run: Any) -> None:
    """With every other term at zero, what moves the encoder of the VAE is the alignment."""
    batch = run.loader.batch(0)
    zero = {"l1": 0.0, "perceptual": 0.0, "kl": 0.0, "gan": 0.0}
    run.work.config = run.work.config.model_copy(update={"repa_e": run.work.config.repa_e.model_copy(update=zero)})
    run._turn_on(run.phases[0])
    run.phases[0].loss(batch)[0].backward()
    grads = {name: weight.grad for name, weight in run.work.vae.named_parameters()}
    assert grads["kl.encoder.conv_in.weight"].abs().max() > 0
    assert all(weight.grad is None for weight in run.work.sit.parameters())
    assert grads["kl.decoder.conv_in.weight"] is None or grads["kl.decoder.conv_in.weight"].abs().max() == 0


def test_both_updates_see_the_same_times_and_noise(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = type(run.work.sit).forward

    def spy(self: Any, x: torch.Tensor, t: torch.Tensor, *rest: Any, **named: Any) -> Any:
        asked.append(t.clone())
        return real(self, x, t, *rest, **named)

    monkeypatch.setattr(type(run.work.sit), "forward", spy)
    run._step(0)
    assert len(asked) == 2
    assert torch.equal(asked[0], asked[1])


def test_statistics_are_those_of_the_batch(run: Any) -> None:
    latents = torch.randn(6, 4, 5, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1) + 1.5
    own = torch.nn.BatchNorm2d(4, eps=run.work.sit.bn.eps, affine=False)
    own.load_state_dict(run.work.sit.bn.state_dict())
    assert torch.allclose(run.work._normalised(latents), own(latents), atol=1e-5)
    assert torch.allclose(run.work.sit.bn.running_mean, own.running_mean, atol=1e-6)
    assert torch.allclose(run.work.sit.bn.running_var, own.running_var, atol=1e-5)


def test_lpips_takes_the_place_of_the_encoders_tokens(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = install_lpips(monkeypatch)
    losses = []
    for features in ("encoder", "lpips"):
        chosen = load_config(config(begun, repa_e={**SMALL, "features": features}, samples=None))
        train(chosen, tmp_path / features, begun / "cache")
        lines = (tmp_path / features / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[-1])["vae_perceptual"])
    assert len(asked) == 1
    assert losses[0] != losses[1] > 0
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"repa_e\.features: lpips cannot be imported .*synthfactory\[lpips\]"):
        train(chosen, tmp_path / "without", begun / "cache")


def test_a_cut_off_run_ends_with_the_same_weights_and_draws(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = load_config(
        config(begun, data={"shards": str(begun / "shards"), "validation": {"share": 0.25, "every": 2, "tiles": 3}})
    )
    train(checked, tmp_path / "whole", begun / "cache")
    cut_off(monkeypatch, checked, tmp_path / "cut", begun / "cache")
    assert train(checked, tmp_path / "cut", begun / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert {"vae_l1", "vae_perceptual", "vae_alignment", "discriminator_loss", "sit_flow", "validation_loss"} <= lines[
        -1
    ].keys()
    assert [path.name for path in (tmp_path / "cut" / "samples").iterdir()] == ["000003.png"]
    out = export(tmp_path / "cut", tmp_path / "model", model_id="m", revision="1")
    model = load_model(open_model(str(out)))
    before = load_file(checkpoint.average_file(begun / "vae")[1])
    assert not torch.allclose(
        model.vae.state_dict()["kl.decoder.conv_out.weight"], before["kl.decoder.conv_out.weight"], atol=1e-3
    )
    condition = model.embed(np.zeros((1, 224, 224, 3), np.uint8))
    assert Engine(model, threads=1).draw(condition, [(1, 2)], Sampler(steps=1)).shape == (1, 224, 224, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae_run": None}, "vae_run: is missing; mode repa-e builds on a run of that mode"),
        ({"network": {}}, "network: is missing"),
        ({"base": "phantom"}, "network: is the base model's own"),
        ({"repa_e": {"gan": -1.0}}, r"repa_e\.gan: -1\.0 is too small"),
    ],
)
def test_what_cannot_be_trained_end_to_end(begun: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(config(begun, **change))
