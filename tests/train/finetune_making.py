"""A small model and tiles to fine-tune it on, and an encoder of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tinymodel import SIZES, make_tiny_model
from training import plain, write_tar, write_yaml

from synthfactory.model.files import sha256_of
from train.config import load_config
from train.loop import train

SIDE = 32


def make_base(tmp_path: Path) -> Path:
    """TMP/base, and twelve tiles in TMP/tars."""
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: SIDE)
    return make_tiny_model(tmp_path / "base")


def make_weaker(tmp_path: Path) -> Path:
    """TMP/weaker: another SiT beside the autoencoder and the encoder of TMP/base."""
    weaker = make_tiny_model(tmp_path / "weaker", seed=1)
    for part in ("vae", "encoder"):
        shutil.copyfile(tmp_path / f"base/{part}.safetensors", weaker / f"{part}.safetensors")
    description = json.loads((weaker / "config.json").read_text()) | {"id": "weak", "revision": "7"}
    description["files"] = {name: sha256_of(weaker / name) for name in description["files"]}
    (weaker / "config.json").write_text(json.dumps(description))
    return weaker


def config(tmp_path: Path, model: Path, **changes: Any) -> str:
    values = {
        "mode": "finetune", "base": str(model), "data": {"shards": str(tmp_path / "tars")}, "threads": 1, "checkpoint_every": 2,
        "optimiser": {"steps": 4, "batch": 4, "rate": 1e-2, "warmup": 1, "ema": 0.0}, **changes,
    }  # fmt: skip
    return str(write_yaml(tmp_path / "finetune.yaml", values))


def encoder_run(tmp_path: Path, width: int = 16) -> Path:
    values = {
        "mode": "encoder", "data": {"shards": str(tmp_path / "tars")}, "threads": 1, "seed": 4,
        "network": {**SIZES["encoder"], "width": width}, "optimiser": {"steps": 2, "batch": 4, "rate": 1e-2},
        "encoder": {"attributes": 0, "grid": 0},
    }  # fmt: skip
    train(load_config(str(write_yaml(tmp_path / "encoder.yaml", values))), tmp_path / "encoder-run", tmp_path / "cache")
    return tmp_path / "encoder-run"
