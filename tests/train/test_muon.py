"""Muon: what it does to a matrix, whose weights it takes, and that a run with it resumes to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tinymodel import make_tiny_model
from torch import nn
from training import cut_off, plain, same_averages, write_tar, write_yaml

from train.config import load_config
from train.loop import train
from train.muon import Muon, is_hidden, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (40, 8), (8, 40)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))
    values = torch.linspace(0.3, 5.0, min(shape))
    matrix = left @ torch.diag(values) @ right.T
    found, *others = orthogonalised(torch.stack([matrix, 100 * matrix, torch.zeros(shape)]))
    halved = orthogonalised(matrix[None], bfloat16=True)[0]
    assert halved.dtype == torch.float32 and not torch.equal(halved, found)
    assert (halved - found).norm() < 0.05 * found.norm()
    seen = left.T @ found @ right
    assert torch.linalg.svdvals(found).min() > 0.6
    assert torch.linalg.svdvals(found).max() < 1.3
    assert (seen - torch.diag(seen.diag())).abs().max() < 1e-4
    assert torch.allclose(others[0], found, atol=1e-5)
    assert torch.equal(others[1], torch.zeros(shape))


def test_each_matrix_moves_by_its_own_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.muon.TOGETHER", {"cpu": 2})
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 4), (6, 4), (6, 4), (4, 6)]
    weights = [(f"blocks.{n}.weight", nn.Parameter(torch.randn(shape))) for n, shape in enumerate(shapes)]
    alone = [(name, nn.Parameter(weight.detach().clone())) for name, weight in weights]
    optimisers = [Muon(weights, 1e-2, (0.9, 0.99), 0.1), *(Muon([one], 1e-2, (0.9, 0.99), 0.1) for one in alone)]
    for _ in range(3):
        for (_, weight), (_, same) in zip(weights, alone, strict=True):
            weight.grad = torch.randn(weight.shape)
            same.grad = weight.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for (_, weight), (_, same) in zip(weights, alone, strict=True):
        assert torch.allclose(weight, same, atol=1e-6)


def test_matrices_of_blocks_are_muons_and_all_else_is_adamws() -> None:
    assert is_hidden("blocks.0.attn.qkv.weight", torch.zeros(6, 2))
    assert is_hidden("sit.blocks.3.mlp.fc1.weight", torch.zeros(6, 2))
    assert not is_hidden("blocks.0.attn.qkv.bias", torch.zeros(6))
    assert not is_hidden("final_layer.linear.weight", torch.zeros(6, 2))
    assert not is_hidden("vae.kl.decoder.conv_in.weight", torch.zeros(6, 2, 3, 3))


def test_what_is_adamws_moves_as_torchs_adamw_moves_it() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()
    mine = Muon(ours.named_parameters(), 1e-2, (0.9, 0.99), 0.1)
    other = torch.optim.AdamW(theirs.parameters(), 1e-2, (0.9, 0.99), weight_decay=0.1)
    for _ in range(20):
        for layer, optimiser in ((ours, mine), (theirs, other)):
            optimiser.zero_grad()
            (layer(x) - y).square().mean().backward()
            optimiser.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-9)


def test_a_cut_off_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    values = {
        "mode": "finetune", "base": str(make_tiny_model(tmp_path / "base")), "data": {"shards": str(tmp_path / "tars")},
        "threads": 1, "checkpoint_every": 2, "samples": None,
        "optimiser": {"kind": "muon", "steps": 4, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": 0.5},
    }  # fmt: skip
    config = load_config(str(write_yaml(tmp_path / "config.yaml", values)))
    train(config, tmp_path / "whole", tmp_path / "cache")
    cut_off(monkeypatch, config, tmp_path / "cut", tmp_path / "cache")
    assert train(config, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    values["optimiser"] = {**values["optimiser"], "kind": "adamw"}  # type: ignore[dict-item]
    train(load_config(str(write_yaml(tmp_path / "config.yaml", values))), tmp_path / "adamw", tmp_path / "cache")
    assert not same_averages(tmp_path / "whole", tmp_path / "adamw")
