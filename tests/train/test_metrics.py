"""Figures of a run: JSON lines, and TensorBoard where it is wanted."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import write_config, write_shard
from training import cut_off

from synthfactory.spec.errors import InputError
from train.cli import cli
from train.config import load_config
from train.loop import train

STEPS = {"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 2}


def test_tensorboard_shows_what_the_log_says_once_also_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "shards")
    config = load_config(write_config(tmp_path, optimiser=STEPS, tensorboard=True, log_every=1, checkpoint_every=2))
    cut_off(monkeypatch, config, tmp_path / "run", tmp_path / "cache", after=2)
    train(config, tmp_path / "run", tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    shown.Reload()
    assert {"loss", "rate", "accuracy", "waiting"} <= set(shown.Tags()["scalars"])
    points = shown.Scalars("loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in points] == pytest.approx([line["loss"] for line in lines], rel=1e-5)


def test_tensorboard_shows_a_run_once_that_ended_before_its_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "shards")
    config = load_config(write_config(tmp_path, optimiser=STEPS, tensorboard=True, log_every=1, checkpoint_every=6))
    with monkeypatch.context() as patched:
        patched.setattr("train.loop.checkpoint.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", tmp_path / "cache")
    time.sleep(1.1)  # its files are in order of their seconds
    train(config, tmp_path / "run", tmp_path / "cache")
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    shown.Reload()
    assert [point.step for point in shown.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_without_tensorboard_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "shards")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    config = load_config(write_config(tmp_path, optimiser=STEPS, tensorboard=True))
    with pytest.raises(InputError, match=r"tensorboard: cannot be imported .*synthfactory\[tensorboard\]"):
        train(config, tmp_path / "run", tmp_path / "cache")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_tensorboard_is_looked_for_before_anything_begins(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "shards")
    config = write_config(tmp_path, optimiser=STEPS, tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = [command, config, "--cache", str(tmp_path / "cache")] + (
        ["--run", str(tmp_path / "run")] * (command == "run")
    )
    before = sorted(tmp_path.iterdir())
    ended = CliRunner().invoke(cli, words)
    assert isinstance(ended.exception, InputError)
    assert "synthfactory[tensorboard]" in str(ended.exception)
    assert sorted(tmp_path.iterdir()) == before
