"""Eight tiles, learnt by heart: where a loss cannot fall to next to nothing on them, something in it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinymodel import make_tiny_model
from training import plain, write_tar, write_yaml

from synthfactory.model.folder import open_model
from synthfactory.model.vae import pixels_from_uint8, pixels_to_uint8
from synthfactory.model.weights import load_model
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Sampler
from train.config import load_config
from train.export import export
from train.loop import train

TILES, SIDE = 8, 32
PSNR_DB, FLOW, DRAWN_DB = 27.0, 0.2, 20.0  # the values that are to be reached


def eight_tiles() -> np.ndarray:
    """Crops of eight phantom tiles, all different."""
    refs = cohort_tiles("heldout", {CLASSES[0]: 4, CLASSES[3]: 4}, tiles_per_patient=1, first_patient=900)
    return np.stack([ref.render()[0][:SIDE, :SIDE] for ref in refs])


def trained(folder: Path, name: str, base: Path, mode: str, **changes: Any) -> Path:
    values = {
        "mode": mode, "base": str(base), "data": {"shards": str(folder / "tars"), "symmetries": False}, "threads": 1, "samples": None,
        "checkpoint_every": 1000, "seed": 1, **changes,
    }  # fmt: skip
    train(load_config(str(write_yaml(folder / f"{name}.yaml", values))), folder / name, folder / "cache")
    return export(folder / name, folder / f"{name}-model", model_id=name, revision="1")


def psnr_db(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    error = ((one.astype(np.float64) - other) ** 2).mean((1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / error))


@pytest.mark.slow
def test_eight_tiles_are_learnt_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = eight_tiles()
    monkeypatch.setattr("training.image_of", lambda number, side: tiles[number])
    write_tar(tmp_path / "tars" / "0.tar", range(TILES), plain, side=lambda n: SIDE)
    base = make_tiny_model(tmp_path / "base")
    steps = {"batch": TILES, "rate": 3e-3, "warmup": 20, "ema": 0.98}
    losses = {"crop": SIDE, "equivariance": 0.0, "kl": 1e-6, "perceptual": 0.0}
    rebuilt_by = trained(tmp_path, "vae", base, "vae", vae=losses, optimiser={**steps, "steps": 1000})
    model = load_model(open_model(str(rebuilt_by)))
    with torch.inference_mode():
        latents, _ = model.vae.encode(pixels_from_uint8(torch.from_numpy(tiles)))
        rebuilt = pixels_to_uint8(model.vae.decode(latents)).numpy()
    assert psnr_db(rebuilt, tiles).min() > PSNR_DB
    # every rebuilt tile is its own tile, not another of the eight
    off = ((rebuilt[:, None].astype(float) - tiles[None]) ** 2).mean((2, 3, 4))
    assert off.argmin(1).tolist() == list(range(TILES))

    diffusion = {"alignment": 0.0, "null_share": 0.0, "condition_noise": 0.0, "time": "uniform"}
    drawn_by = trained(
        tmp_path, "sit", rebuilt_by, "finetune", diffusion=diffusion, finetune={"statistics": "measure"},
        optimiser={**steps, "steps": 5000, "kind": "muon", "ema": 0.99},
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "sit" / "metrics.jsonl").read_text().splitlines()]
    flow = float(np.mean([line["flow"] for line in lines[-20:]]))
    print(f"PSNR {psnr_db(rebuilt, tiles).min():.1f} dB at least; flow {flow:.3f}")
    assert flow < FLOW
    model = load_model(open_model(str(drawn_by)))
    drawn = Engine(model, threads=1).draw(model.embed(tiles), [(1, n) for n in range(TILES)], Sampler(steps=50))
    off = ((drawn[:, None].astype(float) - tiles[None]) ** 2).mean((2, 3, 4))
    assert off.argmin(1).tolist() == list(range(TILES))
    assert np.median(psnr_db(drawn, rebuilt)) > DRAWN_DB
