"""Whose a run folder is: its owner's alone, and one process's at a time."""

from __future__ import annotations

import fcntl
import shutil
import stat
from pathlib import Path

import pytest
from test_training import write_config, write_shard

from synthfactory.spec.errors import InputError
from train.config import load_config
from train.loop import train

STEPS = {"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 2}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "shards")
    return tmp_path


def test_a_run_and_its_cache_are_their_owners_alone(shards: Path) -> None:
    run, cache = shards / "run", shards / "cache"
    train(load_config(write_config(shards, optimiser={**STEPS, "steps": 1})), run, cache)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (run, cache)] == [0o700, 0o700]


def test_a_run_that_another_process_works_on_is_left_alone(shards: Path) -> None:
    checked, run = load_config(write_config(shards, optimiser={**STEPS, "steps": 1})), shards / "run"
    train(checked, run, shards / "cache")
    with open(run / ".lock", "ab") as other:  # a lock is of an open file: this one is as good as another process's
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="run: another process works on this run"):
            train(checked, run, shards / "cache")
        shutil.rmtree(run / "checkpoints")  # as of a run whose first is still to come
        other_rate = load_config(write_config(shards, optimiser={**STEPS, "steps": 1, "rate": 0.5}))
        with pytest.raises(InputError, match="run: another process works on this run"):
            train(other_rate, run, shards / "cache")
    assert load_config(str(run / "config.yaml")) == checked, "what the other one is begun with"
    assert train(checked, run, shards / "cache") == 1
