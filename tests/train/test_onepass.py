"""One pass of clipping, optimiser and averages, and bfloat16 copies of the weights, learn what they would apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_making import config, make_base
from safetensors.torch import load_file
from torch import nn
from training import cut_off, off_by, same_averages

from synthfactory.spec.errors import InputError
from train import checkpoint
from train.config import load_config
from train.ema import Ema
from train.lean import Copies, copies_of, leaves
from train.loop import train
from train.onepass import OnePass


def moved(
    steps: int, *, in_one: bool, lean: bool = False
) -> tuple[nn.Module, list[Ema], torch.optim.AdamW, list[float]]:
    """A network after some updates whose gradients are large enough to be clipped now and then."""
    network = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3), nn.LayerNorm(3))
    random = torch.Generator().manual_seed(3)
    for weight in network.parameters():
        weight.data.normal_(generator=random)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    averages = [Ema(network, decay) for decay in (0.9, 0.5)]
    copies = Copies(network) if lean else None
    one_pass = OnePass(optimiser, network, averages, 1.0, copies, compiled=False)
    norms = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 / (1 + step)
        x, wanted = torch.randn(16, 5, generator=random), torch.randn(16, 3, generator=random)
        for leaf in leaves(network.parameters(), copies):
            leaf.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=lean):
            (network(x).float() - wanted).square().mean().mul(0.3).backward()
        if in_one:
            one_pass.ready(step)
            norms.append(float(one_pass.move()))
            continue
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 1.0)))
        optimiser.step()
        for average in averages:
            average.update(network, step)
    return network, averages, optimiser, norms


def test_one_pass_is_clipping_adamw_and_averages() -> None:
    apart, in_one = moved(8, in_one=False), moved(8, in_one=True)
    assert max(apart[3]) > 1 > min(apart[3])
    assert np.allclose(apart[3], in_one[3], rtol=1e-5)
    for name, weight in apart[0].state_dict().items():
        torch.testing.assert_close(in_one[0].state_dict()[name], weight, rtol=1e-5, atol=1e-6)
        for one, other in zip(apart[1], in_one[1], strict=True):
            torch.testing.assert_close(other.state[name], one.state[name], rtol=1e-5, atol=1e-6)
    one, other = (found[2].state_dict()["state"] for found in (apart, in_one))
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_copies_follow_the_weights_and_take_their_gradients() -> None:
    network, _, _, norms = moved(8, in_one=True, lean=True)
    apart = moved(8, in_one=False)
    assert np.allclose(norms, apart[3], rtol=0.05)
    for name, weight in apart[0].state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], weight, rtol=0, atol=4e-3)  # 8 bits of 1
    for layer in (network[0], network[2]):
        assert layer.weight.grad is None
        assert layer.weight_copy.grad.dtype == torch.bfloat16
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight_copy, layer.weight.bfloat16())
        assert not torch.equal(layer.weight_copy.float(), layer.weight)
    assert network.state_dict().keys() == apart[0].state_dict().keys()
    x = torch.randn(4, 5)
    network.eval()
    apart[0].load_state_dict(network.state_dict())
    assert torch.equal(network(x), apart[0](x))  # by the weights themselves


def lean(tmp_path: Path, base: Path, **changes: Any) -> str:
    values = {
        "precision": "bfloat16", "lean": True, "diffusion": {"alignment": 0}, "samples": None, "log_every": 1, "keep_last": 9,
        "optimiser": {"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": [0.9, 0.5]}, **changes,
    }  # fmt: skip
    return config(tmp_path, base, **values)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("part", [{}, {"lora": {"rank": 2}}, {"parts": ["blocks.1.*"]}], ids=["whole", "lora", "parts"])
def test_a_lean_run_learns_what_another_learns_and_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: dict[str, Any]
) -> None:
    base = make_base(tmp_path)
    train(load_config(lean(tmp_path, base, lean=False, finetune=part)), tmp_path / "plain", tmp_path / "cache")
    asked = load_config(lean(tmp_path, base, finetune=part))
    train(asked, tmp_path / "lean", tmp_path / "cache")
    cut_off(monkeypatch, asked, tmp_path / "cut", tmp_path / "cache")
    train(asked, tmp_path / "cut", tmp_path / "cache")
    assert same_averages(tmp_path / "lean", tmp_path / "cut")
    assert np.allclose(losses(tmp_path / "lean"), losses(tmp_path / "plain"), rtol=0.02)
    began = load_file(base / "sit.safetensors")
    one, other = (load_file(checkpoint.average_file(tmp_path / name)[1]) for name in ("plain", "lean"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        if name in began and torch.equal(weight, began[name]):
            assert torch.equal(other[name], weight), name  # what does not learn
    assert 0 < off_by(tmp_path / "plain", tmp_path / "lean") < 0.2


@pytest.mark.parametrize("how", [{"accumulate": 2}, {"kind": "muon"}], ids=["parts", "muon"])
def test_where_gradients_add_up_or_muon_moves_weights_have_no_copies(tmp_path: Path, how: dict[str, Any]) -> None:
    base = make_base(tmp_path)
    optimiser = {"steps": 4, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": 0.0, **how}
    for name, is_lean in (("plain", False), ("lean", True)):
        asked = load_config(lean(tmp_path, base, lean=is_lean, optimiser=optimiser))
        assert copies_of(asked, nn.Linear(2, 2), workers=1) is None
        train(asked, tmp_path / name, tmp_path / "cache")
    assert 0 < off_by(tmp_path / "plain", tmp_path / "lean") < 0.3  # what flows between the blocks is rounded


def test_lean_goes_with_bfloat16_and_a_sit(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    for wrong in ({"precision": "float32"}, {"mode": "vae", "diffusion": {}}):
        with pytest.raises(InputError, match="lean: goes with precision: bfloat16, and modes that train a SiT"):
            load_config(lean(tmp_path, base, **wrong))
