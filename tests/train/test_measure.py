"""Measuring a model: figures, sheet and card, the same again from what was kept, and going on after an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tinymodel import make_tiny_model

from synthfactory.model.folder import open_model
from synthfactory.sample.engine import Engine
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler
from train.cli import cli
from train.measure import CHUNK, measure


def test_what_cannot_be_measured_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    for name, message in (("phantom", "phantom: is no model folder"), (str(tiny), "224 px a tile, .* it draws 32 px")):
        with pytest.raises(InputError, match=message):
            measure(Path(name), tmp_path / "cache", per_class=2, sampler=Sampler(), threads=1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_the_built_in_model_is_measured_and_the_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(open_model("phantom").path, tmp_path / "model")
    drawn, real = [], Engine.draw

    def draw(engine: Engine, conditions: np.ndarray, *rest: Any) -> np.ndarray:
        drawn.append(len(conditions))
        if sum(drawn) > CHUNK and len(drawn) < 5:
            raise KeyboardInterrupt
        return real(engine, conditions, *rest)

    monkeypatch.setattr(Engine, "draw", draw)
    monkeypatch.setattr("train.measure.EACH", 2)
    command = [
        "measure",
        str(tmp_path / "model"),
        "--cache",
        str(tmp_path / "cache"),
        "--per-class",
        "12",
        "--steps",
        "4",
    ]
    assert CliRunner().invoke(cli, command).exit_code != 0
    before = sum(drawn[:-1])
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert before == CHUNK
    assert sum(drawn) - drawn[3] == 72 + 36  # nothing was drawn twice; of 12 tiles of a class there are 3 patients
    figures = open_model(str(tmp_path / "model")).figures
    assert figures["agreement"]["ratio"] > 0.7
    assert figures["agreement"]["command"].endswith("--per-class 12 --solver heun --steps 4 --scale 1.5")
    assert {"encoder", "judge"} == figures["probes"].keys() == figures["distances"].keys()
    card = (tmp_path / "model" / "README.md").read_text()
    for text in (
        "| keratin | whorls |",
        "| gland | gland rings |",
        "| stroma | fibre coherence |",
        "spread of 2 tiles",
        "kernel, drawn",
    ):
        assert text in card
    assert "too few tiles" in card  # for a Frechet distance
    count = len(drawn)
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 0
    assert len(drawn) == count
    after = open_model(str(tmp_path / "model")).figures
    assert after == figures
    told = CliRunner().invoke(cli, ["compare", "phantom", str(tmp_path / "model"), *command[2:]])
    assert told.exit_code == 0, told.output
    assert len(drawn) == count  # the same model: what was drawn before is taken
    lines = told.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (probe,) = [line for line in lines if line.startswith("probe drawn / real, encoder space")]
    assert probe.split()[-2:] == [f"{figures['probes']['encoder']['ratio']:.3f}"] * 2
