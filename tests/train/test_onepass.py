"""One pass of clipping, optimiser and averages, and bfloat16 copies of the weights, learn what they would apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_making import config, make_base
from safetensors.torch import load_file
from torch import nn
from training import cut_off, off_by, uncompiled

from synthfactory.spec.errors import InputError
from train import loop
from train.config import TrainConfig, load_config
from train.ema import Ema
from train.graphed import NORM
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
    one_pass = OnePass(optimiser, network, averages, 1.0, copies)
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


def test_one_pass_is_clipping_adamw_and_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    apart, in_one = moved(8, in_one=False), moved(8, in_one=True)
    assert max(apart[3]) > 1 > min(apart[3])
    assert np.allclose(apart[3], in_one[3], rtol=1e-5)
    for name, weight in apart[0].state_dict().items():
        torch.testing.assert_close(in_one[0].state_dict()[name], weight, rtol=1e-5, atol=1e-6)
        for one, other in zip(apart[1], in_one[1], strict=True):
            torch.testing.assert_close(other.state[name], one.state[name], rtol=1e-5, atol=1e-6)
    one, other = (found[2].state_dict()["state"] for found in (apart, in_one))
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_copies_follow_the_weights_and_take_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
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


PARTS: dict[str, dict[str, Any]] = {
    "whole": {}, "parts": {"finetune": {"parts": ["blocks.1.*"]}}, "lora": {"finetune": {"lora": {"rank": 2}}},
    "deeper": {"finetune": {"depth": 3}}, "aligned": {"diffusion": {"alignment": 0.5}}, "in parts": {"accumulate": 2},
}  # fmt: skip


def asked(tmp_path: Path, name: str, accumulate: int = 1, kind: str = "adamw", **changes: Any) -> TrainConfig:
    """A run that looks at validation and draws sheets on its way."""
    base = tmp_path / "base"
    base = base if base.exists() else make_base(tmp_path)
    values = {
        "compile": True, "log_every": 1, "keep_last": 9, "samples": {"every": 3, "tiles": 1, "steps": 1},
        "data": {"shards": str(tmp_path / "tars"), "validation": {"share": 0.25, "every": 2, "tiles": 3}},
        "optimiser": {
            "steps": 6, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": [0.9, 0.5], "weight_decay": 0.1, "accumulate": accumulate,
            "kind": kind,
        },
        **changes,
    }  # fmt: skip
    path = config(tmp_path, base, **values)
    Path(path).rename(tmp_path / f"{name}.yaml")
    return load_config(str(tmp_path / f"{name}.yaml"))


def files(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of the last checkpoint."""
    (*_, last) = sorted((run / "checkpoints").iterdir())
    return {path.name: load_file(path) for path in last.glob("*.safetensors")}


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "waiting")} for line in found]


@pytest.mark.parametrize("part", PARTS)
def test_a_run_in_one_pass_is_the_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    uncompiled(monkeypatch)
    for name, in_one in (("apart", False), ("one", True)):
        run = asked(tmp_path, name, compile=in_one, precision="float64", **PARTS[part])
        train(run, tmp_path / name, tmp_path / "cache")
    one, apart = files(tmp_path / "one"), files(tmp_path / "apart")
    assert sorted(one) == [
        "average-0.5.safetensors",
        "average.safetensors",
        "optimiser.safetensors",
        "weights.safetensors",
    ]
    torch.testing.assert_close(one, apart, rtol=1e-10, atol=1e-10)
    for line, other in zip(lines(tmp_path / "one"), lines(tmp_path / "apart"), strict=True):
        assert line == pytest.approx(other, rel=1e-8)
    assert off_by(tmp_path / "apart", tmp_path / "one") < 1e-9
    assert (tmp_path / "one/samples/000003.png").read_bytes() == (tmp_path / "apart/samples/000003.png").read_bytes()


@pytest.mark.parametrize("part", ["whole", "parts", "deeper", "aligned"])
def test_a_lean_run_learns_what_another_learns_and_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    uncompiled(monkeypatch)
    changes = {"precision": "bfloat16", **PARTS[part]}
    train(asked(tmp_path, "plain", **changes), tmp_path / "plain", tmp_path / "cache")
    lean = asked(tmp_path, "lean", lean=True, **changes)
    train(lean, tmp_path / "lean", tmp_path / "cache")
    cut_off(monkeypatch, lean, tmp_path / "cut", tmp_path / "cache")
    train(lean, tmp_path / "cut", tmp_path / "cache")
    torch.testing.assert_close(files(tmp_path / "cut"), files(tmp_path / "lean"), rtol=0, atol=0)
    for line, other in zip(lines(tmp_path / "lean"), lines(tmp_path / "plain"), strict=True):
        for name in ("loss", "validation_loss"):
            assert line.get(name, 0) == pytest.approx(other.get(name, 0), rel=0.03)
    assert 0 < off_by(tmp_path / "plain", tmp_path / "lean") < 0.2
    began, one, other = (
        load_file(tmp_path / "base/sit.safetensors"),
        *(files(tmp_path / n) for n in ("plain", "lean")),
    )
    for name, weight in one["weights.safetensors"].items():
        if name in began and torch.equal(weight, began[name].float()):
            assert torch.equal(other["weights.safetensors"][name], weight), name  # what does not learn


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"accumulate": 2}, "optimiser.accumulate"),
        ({"kind": "muon"}, "optimiser.kind: muon"),
        ({"compile": False}, "compile: false"),
        (PARTS["lora"], "finetune.lora"),
    ],
    ids=["parts", "muon", "uncompiled", "lora"],
)
def test_where_weights_cannot_have_copies_what_flows_is_lean_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], why: str
) -> None:
    uncompiled(monkeypatch)
    changes = {"precision": "bfloat16", **how}
    train(asked(tmp_path, "plain", **changes), tmp_path / "plain", tmp_path / "cache")
    lean, said = asked(tmp_path, "lean", lean=True, **changes), list[str]()
    assert copies_of(lean, nn.Linear(2, 2), workers=1) is None
    train(lean, tmp_path / "lean", tmp_path / "cache", said.append)
    assert 0 < off_by(tmp_path / "plain", tmp_path / "lean") < 0.3
    assert [text for text in said if text.startswith("warning: lean:")] == [
        f"warning: lean: {why} leaves products without bfloat16 copies of the weights; what flows between blocks is bfloat16"
    ]


def test_several_workers_have_no_copies(tmp_path: Path) -> None:
    lean = asked(tmp_path, "lean", lean=True, precision="bfloat16")
    assert copies_of(lean, nn.Linear(2, 2), workers=2) is None  # whose gradients nobody would bring together
    assert copies_of(lean, nn.Linear(2, 2), workers=1) is not None


def test_what_draws_a_sheet_has_no_copies(tmp_path: Path) -> None:
    layer = nn.Sequential(nn.Linear(3, 3))
    Copies(layer)
    layer(torch.ones(2, 3).bfloat16()).sum().backward()
    again = copy.deepcopy(layer).eval()
    assert not hasattr(again[0], "weight_copy")
    assert torch.equal(again(torch.ones(2, 3)), layer.eval()(torch.ones(2, 3)))


def test_a_graph_that_holds_the_update_makes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the graph, which runs what it was given."""
    uncompiled(monkeypatch)

    class Graph:
        def __init__(self, loss: Any, leaves: Any, autocast: Any, device: Any, move: Any = None) -> None:
            self.loss, self.leaves, self.move = loss, leaves, move

        def __call__(self, batch: Any) -> dict[str, Any]:
            for leaf in self.leaves:
                leaf.grad = None
            loss, figures = self.loss(batch)
            loss.backward()
            return {"": loss.detach(), **figures, **({} if self.move is None else {NORM: self.move()})}

    def graphed(run: Any) -> Graph:
        move = run.one_pass.move if run.one_pass is not None else None
        return Graph(run.losses[0], run.leaves[run.phases[0].name], None, None, move)

    train(asked(tmp_path, "apart", precision="float64"), tmp_path / "apart", tmp_path / "cache")
    monkeypatch.setattr(loop._Run, "_graph", graphed)
    for name, in_one in (("whole", True), ("loss", False)):
        train(asked(tmp_path, name, precision="float64", compile=in_one), tmp_path / name, tmp_path / "cache")
        torch.testing.assert_close(files(tmp_path / name), files(tmp_path / "apart"), rtol=1e-10, atol=1e-10)


def test_lean_goes_with_bfloat16_and_a_sit(tmp_path: Path) -> None:
    for wrong in ({"precision": "float32"}, {"precision": "bfloat16", "mode": "vae"}):
        with pytest.raises(InputError, match="lean: goes with precision: bfloat16, and modes that train a SiT"):
            asked(tmp_path, "wrong", lean=True, **wrong)
