"""On a GPU: a step as a CUDA graph learns what its kernels learn one by one, and noise is that of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_making import config, make_base, make_weaker
from safetensors.torch import load_file
from training import off_by

from train import checkpoint
from train.config import load_config
from train.loop import train
from train.streams import normal, uniform

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("recompute", "guided"), [(False, False), (True, False), (False, True)])
def test_a_graph_learns_what_its_kernels_learn(tmp_path: Path, recompute: bool, guided: bool) -> None:
    base, weaker = make_base(tmp_path), make_weaker(tmp_path)
    for name, graphs in (("graph", True), ("apart", False)):
        changes = {
            "graphs": graphs,
            "recompute": recompute,
            "finetune": {"guided": {"by": str(weaker)}} if guided else {},
            "diffusion": {"alignment": 0, "features": "cache"},
            "samples": None,
        }
        steps = {"steps": 12, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": 0.0}
        train(load_config(config(tmp_path, base, **changes, optimiser=steps)), tmp_path / name, tmp_path / "cache")
    one, other = (load_file(checkpoint.average_file(tmp_path / name)[1]) for name in ("graph", "apart"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_one_pass_and_copies_in_a_graph_learn_what_they_learn_apart(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    for name, lean, graphs in (("plain", False, False), ("apart", True, False), ("graph", True, True)):
        changes = {
            "graphs": graphs,
            "lean": lean,
            "compile": lean,
            "precision": "bfloat16",
            "diffusion": {"alignment": 0, "features": "cache"},
            "samples": None,
            "keep_last": 9,
        }
        steps = {"steps": 12, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": [0.9, 0.5]}
        train(load_config(config(tmp_path, base, **changes, optimiser=steps)), tmp_path / name, tmp_path / "cache")
    assert off_by(tmp_path / "apart", tmp_path / "graph") < 0.05
    assert off_by(tmp_path / "plain", tmp_path / "graph") < 0.4


def test_noise_is_that_of_the_cpu() -> None:
    there = torch.device("cuda")
    found = normal(3, "noise", range(50), (4, 7), there).cpu()
    torch.testing.assert_close(found, normal(3, "noise", range(50), (4, 7)), rtol=1e-5, atol=1e-6)
    assert torch.equal(uniform(3, "null", range(50), device=there).cpu(), uniform(3, "null", range(50)))
