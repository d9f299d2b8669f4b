"""A training process that is killed at any step, and started again by the same command, ends with an undisturbed run's weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tinymodel import make_tiny_model
from training import plain, same_averages, write_tar, write_yaml

STEPS = 400


def started(tmp_path: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.cli", "run", tmp_path / "config.yaml", "--run", tmp_path / name, "--cache", tmp_path / "cache"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def last_step(run: Path) -> int:
    """The last whole line's step in the log, 0 where there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def checkpoints(run: Path) -> int:
    folder = run / "checkpoints"
    return (
        max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.is_dir() else 0
    )


@pytest.mark.parametrize("kills", [pytest.param(1, id="once"), pytest.param(12, id="often", marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_weights(tmp_path: Path, kills: int) -> None:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    values = {
        "mode": "finetune", "base": str(make_tiny_model(tmp_path / "base")), "data": {"shards": str(tmp_path / "tars")},
        "threads": 1, "checkpoint_every": 7, "log_every": 1, "samples": None,
        "optimiser": {"steps": STEPS, "batch": 4, "rate": 1e-3, "warmup": 10, "ema": [0.99, 0.9]},
    }  # fmt: skip
    write_yaml(tmp_path / "config.yaml", values)
    whole = started(tmp_path, "whole")
    assert whole.wait(120) == 0, whole.communicate()[1].decode()
    chosen = random.Random(kills)
    for number in range(kills):
        before = checkpoints(tmp_path / "cut")
        process = started(tmp_path, "cut")
        until = time.monotonic() + 60
        # somewhere in the part that is left, or while it starts
        aim = before + chosen.randrange(0, max(2, 2 * (STEPS - before) // (kills - number + 1)))
        while process.poll() is None and last_step(tmp_path / "cut") < aim and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert process.stderr is not None
        process.stderr.close()
    assert checkpoints(tmp_path / "cut") < STEPS, "the run was over before it was killed"
    last = started(tmp_path, "cut")
    assert last.wait(120) == 0, last.communicate()[1].decode()
    assert same_averages(tmp_path / "whole", tmp_path / "cut")
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
