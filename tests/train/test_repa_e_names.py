"""REPA-E's names on request: what is written is read back by the importer, and the autoencoder's by diffusers' own conversion."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from tinymodel import SIZES, make_tiny_model
from training import plain, write_tar, write_yaml

from synthfactory.model.convert import Options
from synthfactory.model.folder import open_model
from synthfactory.model.importing import import_model
from synthfactory.model.vae import vae_from_dict
from synthfactory.model.weights import load_model
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Sampler
from train.cli import cli
from train.config import load_config
from train.loop import train
from train.repa_e_names import write_repa_e

F8 = {"channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": True}


def run_of(tmp_path: Path, base: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    values = {
        "mode": "finetune", "base": str(base), "data": {"shards": str(tmp_path / "tars")}, "threads": 1, "samples": None,
        "optimiser": {"steps": 1, "batch": 4, "rate": 1e-3, "warmup": 1, "ema": 0.0},
    }  # fmt: skip
    train(load_config(str(write_yaml(tmp_path / "config.yaml", values))), tmp_path / "run", tmp_path / "cache")
    return tmp_path / "run"


def with_plain_vae(base: Path) -> Path:
    """The tiny model with an autoencoder of the original form: no unshuffle, four levels, attention in the middle."""
    vae = vae_from_dict(F8)
    save_file({name: value.contiguous() for name, value in vae.state_dict().items()}, base / "vae.safetensors")
    values = json.loads((base / "config.json").read_text())
    values["vae"] = F8
    values["files"]["vae.safetensors"] = hashlib.sha256((base / "vae.safetensors").read_bytes()).hexdigest()
    (base / "config.json").write_text(json.dumps(values))
    return base


def test_the_checkpoint_is_read_back_as_the_same_model(tmp_path: Path) -> None:
    run = run_of(tmp_path, with_plain_vae(make_tiny_model(tmp_path / "base")))
    out = tmp_path / "model"
    told = CliRunner().invoke(cli, ["export", str(run), str(out), "--id", "m", "--repa-e"])
    assert told.exit_code == 0, told.output
    found = torch.load(out / "repa-e.pt", weights_only=True)
    assert found.keys() == {"ema", "vae"}
    assert "decoder.up.3.block.0.norm1.weight" in found["vae"]
    assert found["vae"]["encoder.mid.attn_1.q.weight"].ndim == 4
    ours = load_model(open_model(str(out)))
    state = {f"first_stage_model.{name}": value for name, value in found["vae"].items()}
    described = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    theirs = convert_ldm_vae_checkpoint(state, described)  # names and shapes by diffusers, not by us
    own = {name.removeprefix("kl."): value for name, value in ours.vae.state_dict().items()}
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[name].reshape(own[name].shape), own[name]) for name in own)
    list(import_model(str(out / "repa-e.pt"), str(tmp_path / "back"), Options(heads=2, norm_groups=4)))
    back = load_model(open_model(str(tmp_path / "back")))
    condition = np.ones((1, SIZES["sit"]["condition_width"]), np.float32)  # type: ignore[call-overload]
    one, other = (Engine(model, threads=1).draw(condition, [(1, 2)], Sampler(steps=2)) for model in (ours, back))
    assert np.array_equal(one, other)


def test_an_autoencoder_of_another_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = run_of(tmp_path, make_tiny_model(tmp_path / "base"))
    out = tmp_path / "model"
    told = CliRunner().invoke(cli, ["export", str(run), str(out), "--id", "m", "--repa-e"])
    assert "behind a pixel-unshuffle" in str(told.exception)
    assert not out.exists()
    told = CliRunner().invoke(cli, ["export", str(run), str(out), "--id", "m"])
    assert told.exit_code == 0
    assert not (out / "repa-e.pt").exists()


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing_half(tmp_path: Path) -> None:
    folder = with_plain_vae(make_tiny_model(tmp_path / "base"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match=r"repa-e\.pt: cannot be written"):
            write_repa_e(folder, F8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.glob("*repa-e*"))
