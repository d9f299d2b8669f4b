"""What trades time for memory, or minutes at the start for speed, must not change what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinymodel import make_tiny_model
from training import off_by, plain, same_averages, write_tar, write_yaml

from synthfactory.model.sit import SiT, SiTConfig
from synthfactory.spec.errors import InputError
from train.config import TrainConfig, load_config
from train.loop import train


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    if not (tmp_path / "base").exists():
        write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
        make_tiny_model(tmp_path / "base")
    values = {
        "mode": "finetune", "base": str(tmp_path / "base"), "data": {"shards": str(tmp_path / "tars")}, "threads": 1,
        "checkpoint_every": 2, "samples": None,
        "optimiser": {"steps": 4, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": 0.0}, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(tmp_path / "config.yaml", values)))


def kept_bytes(sit: SiT) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    x, t, condition = torch.randn(4, 4, 16, 16), torch.rand(4), torch.randn(4, 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sit(x, t, condition)[0].square().mean().backward()
    return total


def test_recomputed_activations_are_not_kept() -> None:
    sit = SiT(SiTConfig(latent_size=16, width=32, depth=6, heads=2, condition_width=8)).train()
    whole = kept_bytes(sit)
    sit.recompute = True
    assert kept_bytes(sit) < whole / 3
    sit.eval()
    assert kept_bytes(sit) == whole


def test_between_blocks_it_is_narrow_in_training_alone() -> None:
    sit, seen = SiT(SiTConfig(latent_size=16, width=32, depth=2, heads=2, condition_width=8)), list[torch.dtype]()
    sit.narrow = True
    sit.blocks[1].register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            sit.train(training)(torch.randn(4, 4, 16, 16), torch.rand(4), torch.randn(4, 8))
    assert seen == [torch.bfloat16, torch.float32]


def test_blocks_get_one_layout() -> None:
    """What was transposed, torch's compiler got attention's gradients wrong of (2.13, CPU)."""
    sit, seen = SiT(SiTConfig(latent_size=16, width=32, depth=3, heads=2, condition_width=8)), list[bool]()
    for block in sit.blocks:
        block.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))
    sit(torch.randn(4, 4, 16, 16), torch.rand(4), torch.randn(4, 8))
    assert seen == [True] * 3


def test_recomputing_learns_the_same(tmp_path: Path) -> None:
    for name, recompute in (("plain", False), ("again", True)):
        train(config(tmp_path, recompute=recompute), tmp_path / name, tmp_path / "cache")
    assert same_averages(tmp_path / "plain", tmp_path / "again")
    with pytest.raises(InputError, match="recompute: goes with modes that train a SiT"):
        config(tmp_path, mode="vae", recompute=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16", "lean": True, "checkpoint_every": 1, "keep_last": 9},
        {"mode": "vae", "vae": {"crop": 16}},
    ],
    ids=["sit", "lean sit", "vae"],
)
def test_compiled_networks_learn_the_same_up_to_rounding(tmp_path: Path, changes: dict[str, Any]) -> None:
    samples = {"every": 2, "tiles": 1, "steps": 1}
    for name, compiled in (("plain", False), ("compiled", True)):
        train(config(tmp_path, compile=compiled, samples=samples, **changes), tmp_path / name, tmp_path / "cache")
    assert off_by(tmp_path / "plain", tmp_path / "compiled") < (0.2 if "lean" in changes else 0.02)
