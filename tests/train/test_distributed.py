"""Several workers share a batch and hold the weights that one worker would hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file
from test_training import write_config, write_shard
from tinymodel import SIZES, make_tiny_model
from training import plain, write_tar, write_yaml

from train import distributed
from train.cli import main
from train.config import load_config
from train.loop import train

VAE = {"unshuffle": 4, "channels": [8, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
SIT = {"width": 16, "depth": 1, "heads": 2, "projection_depth": 1, "projection_hidden": 8, "latent_size": 28}


def by_ray(
    config: str, run: Path, cache: Path, workers: int = 2, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train.cli", "run", config, "--run", run, "--cache", cache, "--workers", workers]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # loopback alone
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


@pytest.mark.slow
def test_two_workers_follow_one_end_to_end(tmp_path: Path) -> None:
    """repa-e: three updates a step, statistics of latents and the pull of the discriminator over both workers."""
    write_shard(tmp_path / "shards")
    cache = tmp_path / "cache"
    train(load_config(write_config(tmp_path)), tmp_path / "encoder", cache)
    train(load_config(write_config(tmp_path, mode="vae", network=VAE, vae={"crop": 64})), tmp_path / "vae", cache)
    config = write_config(
        tmp_path, mode="repa-e", network=SIT, precision="float64", encoder_run=str(tmp_path / "encoder"),
        vae_run=str(tmp_path / "vae"), optimiser={"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 2}, checkpoint_every=6,
        repa_e={"discriminator_width": 8, "discriminator_layers": 2},
    )  # fmt: skip
    train(load_config(config), tmp_path / "one", cache)
    ended = by_ray(config, tmp_path / "two", cache)
    assert ended.returncode == 0, ended.stderr
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "000006" / "weights.safetensors") for name in ("one", "two")
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-8


@pytest.mark.slow
def test_two_workers_train_without_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's projector then has no gradient. Paths are as a user writes them: from where he stands."""
    monkeypatch.setitem(SIZES["sit"], "projection_depth", 1)
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    values = {
        "mode": "finetune", "base": "base", "data": {"shards": "tars"},
        "threads": 1, "samples": None, "precision": "float64", "diffusion": {"alignment": 0.0},
        "optimiser": {"steps": 3, "batch": 4, "rate": 1e-3},
    }  # fmt: skip
    make_tiny_model(tmp_path / "base")
    config = str(write_yaml(tmp_path / "config.yaml", values))
    monkeypatch.chdir(tmp_path)
    train(load_config(config), tmp_path / "one", tmp_path / "cache")
    ended = by_ray("config.yaml", Path("two"), Path("cache"), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "000003" / "weights.safetensors") for name in ("one", "two")
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-8


@pytest.mark.slow
def test_two_workers_follow_one(tmp_path: Path) -> None:
    """float64, 50 steps, half the batch each: weights within 1e-8."""
    write_shard(tmp_path / "shards")
    cache = tmp_path / "cache"
    train(load_config(write_config(tmp_path)), tmp_path / "encoder", cache)
    train(load_config(write_config(tmp_path, mode="vae", network=VAE, vae={"crop": 64})), tmp_path / "vae", cache)
    config = write_config(
        tmp_path, mode="diffusion", network=SIT, precision="float64", encoder_run=str(tmp_path / "encoder"),
        vae_run=str(tmp_path / "vae"), optimiser={"steps": 50, "batch": 4, "rate": 1e-3, "warmup": 5}, checkpoint_every=25,
    )  # fmt: skip
    train(load_config(config), tmp_path / "one", cache)
    ended = by_ray(config, tmp_path / "two", cache)
    assert ended.returncode == 0, ended.stderr
    assert "50 steps done (50 of them now)" in ended.stdout
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "000050" / "weights.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    start = load_file(tmp_path / "one" / "checkpoints" / "000025" / "weights.safetensors")
    assert (one["x_embedder.proj.weight"] - start["x_embedder.proj.weight"]).abs().max() > 1e-4  # it did learn
    off = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert off < 1e-8
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)  # as rounded in the log
    assert torch.equal(one["bn.running_mean"], two["bn.running_mean"])
    again = by_ray(config, tmp_path / "two", cache)
    assert "50 steps done (0 of them now)" in again.stdout
    refused = by_ray(config, tmp_path / "three", cache, workers=3)
    assert refused.returncode == 2
    assert "does not divide by 3 workers" in refused.stderr
    other = write_config(tmp_path, data={"shards": str(tmp_path / "nowhere")})
    missing = by_ray(other, tmp_path / "four", cache)
    assert missing.returncode == 2, missing.stderr
    assert "there is no such folder" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_workers_that_keep_dying_end_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself is left out: what it reports of dead workers is all that is made up here."""

    class DyingTrainer:
        def fit(self) -> None:
            raise ray.train.WorkerGroupError(
                "lost", {0: RuntimeError("Connection closed by peer"), 1: OSError("no space left")}
            )

    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    (tmp_path / "encoder").mkdir()
    values = {
        "mode": "finetune", "base": str(make_tiny_model(tmp_path / "base")), "encoder_run": str(tmp_path / "encoder"),
        "data": {"shards": str(tmp_path / "tars"), "validation": {"share": 0.5}}, "optimiser": {"steps": 3, "batch": 4, "rate": 1e-3},
    }  # fmt: skip
    config = str(write_yaml(tmp_path / "config.yaml", values))
    monkeypatch.setattr(distributed, "_trainer", lambda *given: DyingTrainer())
    monkeypatch.setattr(distributed, "start_ray", lambda *given: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    asked = ["run", config, "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--workers", "2"]
    monkeypatch.setattr(sys, "argv", ["synthfactory-train", *asked])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count(f"warning: encoder_run: {tmp_path}/encoder does not say of all tiles whom it learnt from") == 1
    assert said.count("a worker ended; going on from step 0") == 2
    assert said.splitlines()[-1].startswith("Error: workers ended 3 times, last with: no space left; 0 steps are kept")
    assert "Traceback" not in said
