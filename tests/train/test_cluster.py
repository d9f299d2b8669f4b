"""Training on a Ray cluster that runs already; a worker of it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raycluster import serve_cluster, workers_named
from safetensors.torch import load_file
from tinymodel import make_tiny_model
from training import plain, write_tar, write_yaml

from train import checkpoint
from train.config import load_config
from train.loop import train


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    values = {
        "mode": "finetune", "base": str(make_tiny_model(tmp_path / "base")), "data": {"shards": str(tmp_path / "tars")},
        "threads": 1, "samples": None, "precision": "float64", "checkpoint_every": 20,
        "optimiser": {"steps": 400, "batch": 4, "rate": 1e-3},
    }  # fmt: skip
    config = str(write_yaml(tmp_path / "config.yaml", values))
    run, cache = tmp_path / "two", tmp_path / "cache"
    train(load_config(config), tmp_path / "one", cache)
    command = [
        sys.executable, "-m", "train.cli", "run", config, "--run", run, "--cache", cache, "--workers", 2, "--address",
    ]  # fmt: skip
    with serve_cluster(tmp_path / "token") as cluster:
        child = subprocess.Popen(
            list(map(str, [*command, cluster.ray_address])),
            env={**cluster.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 120
            while not checkpoint.steps(run):
                assert child.poll() is None, child.communicate()
                assert time.monotonic() < until
                time.sleep(0.02)
            found = workers_named(cluster, "RayTrainWorker")
            assert len(found) == 2
            os.kill(found[0], signal.SIGKILL)
            out, err = child.communicate(timeout=200)
        finally:
            child.kill()
    assert child.returncode == 0, err
    assert "a worker ended; going on from step " in err
    assert f"Ray at {cluster.ray_address}" in err
    assert "400 steps done" in out
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "000400" / "weights.safetensors") for name in ("one", "two")
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-8
