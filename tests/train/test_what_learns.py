"""What of a base learns, and reaches the export: gentle runs are not rounded away, and what would learn nothing is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from finetune_making import config, make_base
from safetensors.torch import load_file, save_file

from synthfactory.spec.errors import InputError
from train.config import load_config
from train.export import export
from train.loop import train


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path)


def test_what_a_gentle_run_changed_is_in_its_export(tmp_path: Path, base: Path) -> None:
    """float16 tells weights of 0.05 apart by 3e-5: of a base of that form, a run of small steps would be rounded back to it."""
    stated = json.loads((base / "config.json").read_text())
    for name in ("sit", "vae", "encoder"):
        half = {key: value.half() for key, value in load_file(base / f"{name}.safetensors").items()}
        save_file(half, base / f"{name}.safetensors")
        stated["files"][f"{name}.safetensors"] = hashlib.sha256((base / f"{name}.safetensors").read_bytes()).hexdigest()
    (base / "config.json").write_text(json.dumps(stated))
    gentle = {"steps": 3, "batch": 4, "rate": 1e-6, "warmup": 1, "ema": 0.0}
    train(load_config(config(tmp_path, base, optimiser=gentle)), tmp_path / "run", tmp_path / "cache")
    trained = load_file(sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "average.safetensors")
    before = load_file(base / "sit.safetensors")
    for half, lost in ((False, 0.0), (True, 0.5)):
        out = export(tmp_path / "run", tmp_path / f"out-{half}", model_id="m", revision="1", half=half)
        made = load_file(out / "sit.safetensors")
        names = [name for name, value in trained.items() if value.is_floating_point() and name in made]
        moved = sum(float((trained[name].float() - before[name].float()).norm() ** 2) for name in names)
        off = sum(float((trained[name].float() - made[name].float()).norm() ** 2) for name in names)
        assert moved > 0
        assert (off / moved) ** 0.5 >= lost if half else off == 0.0


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"lora": {"rank": 2}, "parts": ["y_embedder.*"]}, "finetune.parts: would learn nothing beside lora"),
        ({"parts": ["blocks.*.attn.*", "blokcs.*"]}, r"no weight's name fits blokcs\.\*; for example"),
        ({"lora": {"rank": 2, "targets": ["attn.qkv", "mlp.fcx"]}}, r"no linear layer's name ends in mlp\.fcx;"),
    ],
)
def test_what_would_learn_nothing_is_refused(
    tmp_path: Path, base: Path, finetune: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(load_config(config(tmp_path, base, finetune=finetune)), tmp_path / "run", tmp_path / "cache")


@pytest.mark.parametrize(
    "losses", [{"null_share": 5}, {"condition_noise": -1}, {"alignment": -3}], ids=lambda each: next(iter(each))
)
def test_losses_out_of_range_are_refused(tmp_path: Path, base: Path, losses: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"diffusion\.{next(iter(losses))}"):
        load_config(config(tmp_path, base, diffusion=losses))
