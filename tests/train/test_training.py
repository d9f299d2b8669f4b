"""Training: exact resume, data that follows its symmetries, losses with known values."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from training import cut_off, same_averages

from synthfactory.spec.errors import InputError
from train import losses
from train.cli import cli
from train.config import load_config
from train.encoder_step import quarters
from train.loop import train
from train.losses import alignment, kl_to_unit
from train.objectives import DiffusionLosses
from train.place import Place
from train.symmetry import transformed, transformed_grid

NETWORK = {
    "image_size": 224,
    "patch_size": 28,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_hidden": 32,
    "registers": 1,
    "layer_scale": None,
}


def write_shard(folder: Path, tiles: int = 12, classes: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for number in range(tiles):
            pixels = random.integers(0, 255, (224, 224, 3), dtype=np.uint8)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG", compress_level=0)
            grid = random.integers(0, 255, (8, 8, 2), dtype=np.uint8)
            record = {
                "label": f"class-{number % classes}", "patient_id": f"p{number % 4}", "attributes": {"density": number / 7},
                "grid": base64.b64encode(grid.tobytes()).decode(), "grid_channels": ["orient_cos2", "orient_sin2"],
                "grid_scale": [1 / 255, 1 / 255], "grid_min": [0.0, 0.0],
            }  # fmt: skip
            for extension, data in (("png", picture.getvalue()), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"tile-{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_config(tmp_path: Path, **changes) -> str:
    values = {
        "mode": "encoder", "data": {"shards": str(tmp_path / "shards")}, "network": NETWORK, "threads": 1,
        "optimiser": {"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 2}, "checkpoint_every": 2, "log_every": 2, **changes,
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("mode", ["encoder", "vae", "diffusion"])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, mode, monkeypatch):
    write_shard(tmp_path / "shards")
    changes = {}
    if mode != "encoder":
        changes["network"] = {
            "unshuffle": 4,
            "channels": [8, 16],
            "layers_per_block": 1,
            "norm_groups": 4,
            "mid_attention": False,
        }
        changes["vae"] = {"crop": 64}
    if mode == "diffusion":
        train(load_config(write_config(tmp_path)), tmp_path / "encoder", tmp_path / "cache")
        train(load_config(write_config(tmp_path, mode="vae", **changes)), tmp_path / "vae", tmp_path / "cache")
        changes = {
            "network": {"width": 16, "depth": 1, "heads": 2, "projection_depth": 1, "projection_hidden": 8},
            "encoder_run": str(tmp_path / "encoder"), "vae_run": str(tmp_path / "vae"),
        }  # fmt: skip
    config = load_config(write_config(tmp_path, mode=mode, **changes))
    train(config, tmp_path / "whole", tmp_path / "cache")

    cut_off(monkeypatch, config, tmp_path / "cut", tmp_path / "cache", after=2)
    assert train(config, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    assert train(config, tmp_path / "cut", tmp_path / "cache") == 0


def test_layout_is_learnt_where_asked_for(tmp_path):
    """Its loss falls on tiles that are seen over and over; without a weight, nothing of it is computed."""
    write_shard(tmp_path / "shards", tiles=4)
    optimiser = {"steps": 40, "batch": 4, "rate": 3e-3, "warmup": 2}
    asked = {"encoder": {"layout": 1.0, "classes": 0.0, "attributes": 0.0, "grid": 0.0, "photometric": 0.0}}
    data = {"shards": str(tmp_path / "shards"), "symmetries": False}
    figures = {}
    for name, changes in (("with", asked), ("without", {})):
        config = load_config(write_config(tmp_path, optimiser=optimiser, data=data, **changes))
        train(config, tmp_path / name, tmp_path / "cache")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        figures[name] = [json.loads(line).get("layout") for line in lines]
    assert figures["with"][-1] < 0.5 * figures["with"][0]
    assert set(figures["without"]) == {None}


def test_quarters_turn_with_the_tile():
    grid = np.zeros((1, 3, 3, 1), np.float32)
    grid[0, ..., 0] = [[1, 9, 2], [9, 9, 9], [3, 9, 4]]
    assert quarters(grid).tolist() == [[1, 2, 3, 4]]  # the middle row and column are in none
    turned = transformed_grid(grid[0], 1, ("nuclei",))[None]
    assert quarters(turned).tolist() == [[2, 4, 1, 3]]


def test_another_config_into_the_same_run_is_refused(tmp_path):
    write_shard(tmp_path / "shards")
    train(
        load_config(write_config(tmp_path, optimiser={"steps": 1, "batch": 2, "rate": 1e-3})),
        tmp_path / "run",
        tmp_path / "cache",
    )
    with pytest.raises(InputError, match=r"another config \(seed: was 0, now 5\); use"):
        train(
            load_config(write_config(tmp_path, seed=5, optimiser={"steps": 1, "batch": 2, "rate": 1e-3})),
            tmp_path / "run",
            tmp_path / "cache",
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "gan"}, "mode: 'gan' is not 'encoder', 'vae', 'diffusion', 'finetune' or 'repa-e'"),
        ({"mode": "diffusion"}, "encoder_run: is missing; mode diffusion builds on"),
        ({"stpes": 3}, "stpes: unknown field"),
        ({"optimiser": {"steps": 0, "batch": 1, "rate": 1e-3}}, "optimiser.steps"),
    ],
)
def test_wrong_configs_end_with_one_message_and_status_2(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_config(write_config(tmp_path, **change))


def test_the_command_trains_and_says_so(tmp_path):
    write_shard(tmp_path / "shards")
    result = CliRunner().invoke(
        cli, ["run", write_config(tmp_path), "--run", str(tmp_path / "run"), "--set", "optimiser.steps=2"]
    )
    assert result.exit_code == 0, result.output
    assert "2 steps done (2 of them now)" in result.output


def test_orientation_turns_with_the_picture():
    """Stripes at an angle: the grid's angle after a symmetry is the angle measured on the turned picture."""
    y, x = np.mgrid[0:64, 0:64]
    for degrees in (10, 35, 80, 120):
        a = np.deg2rad(degrees)
        picture = np.sin(0.5 * (x * np.sin(a) - y * np.cos(a)))  # stripes along direction a (x right, y down)
        grid = np.zeros((1, 1, 2), np.float32)
        grid[..., 0], grid[..., 1] = np.cos(2 * a), np.sin(2 * a)
        for symmetry in range(8):
            turned = transformed(picture, symmetry)
            gy, gx = np.gradient(turned)
            along = 0.5 * np.arctan2(2 * (gx * gy).sum(), (gx * gx - gy * gy).sum()) + np.pi / 2
            expected = transformed_grid(grid, symmetry, ("orient_cos2", "orient_sin2"))[0, 0]
            assert np.cos(2 * along) == pytest.approx(expected[0], abs=0.06)
            assert np.sin(2 * along) == pytest.approx(expected[1], abs=0.06)


def test_losses_at_known_points():
    assert kl_to_unit(torch.zeros(5), torch.zeros(5)).item() == 0.0
    tokens = torch.randn(2, 16, 6)
    assert alignment(tokens, tokens).item() == pytest.approx(-1.0, abs=1e-5)
    assert alignment(-tokens, tokens).item() == pytest.approx(1.0, abs=1e-5)
    down, across = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ramps = torch.stack([down, across], dim=-1).reshape(
        1, 16, 2
    )  # of a 4 x 4 grid; halved, its cells lie at 0.5 and 2.5
    halved = torch.tensor([[[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]])
    assert alignment(halved, ramps).item() == pytest.approx(-1.0, abs=1e-6)
    assert alignment(halved.flip(-1), ramps).item() > -0.9


def test_times_are_keyed_by_position_and_lie_where_the_recipe_says() -> None:
    def shares(**given: Any) -> tuple[float, float]:
        weights = DiffusionLosses(**given)
        found = losses.draws(3, np.arange(4000), 1, (1, 1, 1), weights, Place()).t
        assert ((found > 0) & (found < 1)).all()
        assert torch.equal(found[5:7], losses.draws(3, np.asarray([5, 6]), 1, (1, 1, 1), weights, Place()).t)
        return float((found < 0.3).double().mean()), float((found > 0.7).double().mean())

    assert shares(time="uniform") == (pytest.approx(0.3, abs=0.03), pytest.approx(0.3, abs=0.03))
    assert shares() == (pytest.approx(0.198, abs=0.03), pytest.approx(0.198, abs=0.03))
    assert shares(time_mean=0.7) == (pytest.approx(0.061, abs=0.02), pytest.approx(0.441, abs=0.03))
