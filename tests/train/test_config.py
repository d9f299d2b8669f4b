"""Configs that cannot be trained: one message at the place in the file, and nothing is written."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from training import plain, write_tar, write_yaml

from synthfactory.spec.errors import InputError
from train.cli import cli
from train.config import load_config

SIT = {"width": 16, "depth": 1, "heads": 2, "projection_depth": 1}
RUNS = {"encoder_run": "encoder", "vae_run": "vae"}
PLAN = {"steps": 2, "batch": 4, "rate": 1e-3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "vae", "network": {"unshufle": 4}}, r"network\.unshufle: unknown field; is 'unshuffle' meant\?"),
        ({"mode": "vae", "network": {"channels": [10, 10], "norm_groups": 4}}, r"network: num_channels .* divisible by num_groups"),
        ({"mode": "encoder", "network": {"width": "wide"}}, r"network\.width: 'wide'"),
        ({"mode": "diffusion", "network": {**SIT, "heads": 3}, **RUNS}, r"network\.heads: must divide width \(16\)"),
        (
            {"mode": "diffusion", "network": {"width": 16, "depth": 2, "heads": 2}, **RUNS},
            r"network\.projection_depth: must be 1 to depth \(2\), or null for no alignment; left out, it is 8",
        ),
        ({"mode": "encoder", "network": {"width": 24, "heads": 2}, "encoder": {"label_smoothing": 1.5}}, r"encoder\.label_smoothing: 1\.5"),
        (
            {"mode": "diffusion", "network": SIT, **RUNS, "diffusion": {"time": "uniform", "time_mean": 0.5}},
            r"diffusion\.time_mean: goes with time: logit_normal",
        ),
        ({"mode": "diffusion", "network": SIT, **RUNS, "base": "phantom"}, r"base: goes with modes finetune, repa-e and vae"),
        ({"mode": "encoder", "network": {"width": 24, "heads": 2}, "base": "phantom"}, r"base: goes with modes finetune, repa-e"),
        ({"mode": "finetune", "base": "phantom", "optimiser": {**PLAN, "betas": [1.0, 0.9]}}, r"optimiser\.betas\.0: 1\.0 is too large"),
        (
            {"mode": "finetune", "base": "phantom", "optimiser": {**PLAN, "ema": [0.9999991, 0.9999992]}},
            r"optimiser\.ema: holds decays that differ behind six digits",  # files of averages would have one name
        ),
        ({"mode": "finetune", "base": "phantom", "optimiser": {**PLAN, "betas": [0.9, -1]}}, r"optimiser\.betas\.1: -1 is too small"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_yaml(tmp_path / "config.yaml", {"data": {"shards": "tars"}, "optimiser": PLAN, **changes})
    with pytest.raises(InputError, match=rf"config\.yaml:\d+:\d+: {message}"):
        load_config(str(path))
    told = CliRunner().invoke(cli, ["run", str(path), "--run", str(tmp_path / "run")])
    assert isinstance(told.exception, InputError)
    assert not (tmp_path / "run").exists()


def test_a_set_is_named_by_its_place_alone_wherever_sets_are_named(tmp_path: Path) -> None:
    given = {"mode": "encoder", "network": {"width": 24, "heads": 2}, "optimiser": PLAN}
    for sets in ("one", ["one"], [{"shards": "one"}]):
        data = load_config(
            str(
                write_yaml(
                    tmp_path / "c.yaml", {**given, "data": {"shards": sets, "validation": {"shards": deepcopy(sets)}}}
                )
            )
        ).data
        assert data.validation is not None and data.validation.shards == data.shards
        assert [entry.shards for entry in data.shards] == ["one"]


def test_an_override_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "config.yaml", {"data": {"shards": "tars"}, "optimiser": PLAN, "mode": "vae"})
    told = CliRunner().invoke(cli, ["run", str(path), "--run", str(tmp_path / "run"), "--set", "optimiser.steps=["])
    assert isinstance(told.exception, InputError)
    assert "--set optimiser.steps=[: '[' is no YAML" in str(told.exception)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimiser.rate=-1", "--set optimiser.rate=-1: optimiser.rate: -1 is too small"),
        ("optimiser.stepz=3", "--set optimiser.stepz=3: optimiser.stepz: unknown field; is 'steps' meant?"),
        ("optimiser={steps: 0, batch: 4, rate: 1}", "--set optimiser={steps: 0, batch: 4, rate: 1}: optimiser.steps: 0 is too"),
        ("finetune.guided.scale=2", "--set finetune.guided.scale=2: finetune.guided.by: is missing"),
        ("seed=5", "config.yaml:6:10: optimiser.batch: 'many'"),
    ],
)  # fmt: skip
def test_what_the_command_line_gets_wrong_is_not_blamed_on_the_file(tmp_path: Path, option: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    batch = "many" if option == "seed=5" else "4"
    path.write_text(
        f"mode: finetune\nbase: phantom\ndata: {{shards: tars}}\noptimiser:\n  steps: 10\n  batch: {batch}\n  rate: 0.001\n"
    )
    told = CliRunner().invoke(cli, ["plan", str(path), "--set", option])
    assert isinstance(told.exception, InputError)
    assert message in str(told.exception)


def test_a_run_of_another_mode_is_no_encoder(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: 32)
    sizes = {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
    values = {
        "mode": "vae", "network": sizes, "data": {"shards": str(tmp_path / "tars")}, "optimiser": PLAN, "threads": 1,
        "vae": {"crop": 16},
    }  # fmt: skip
    command = ["--cache", str(tmp_path / "cache")]
    path = write_yaml(tmp_path / "first.yaml", values)
    assert CliRunner().invoke(cli, ["run", str(path), "--run", str(tmp_path / "first"), *command]).exit_code == 0
    path = write_yaml(tmp_path / "second.yaml", {**values, "encoder_run": str(tmp_path / "first")})
    told = CliRunner().invoke(cli, ["run", str(path), "--run", str(tmp_path / "second"), *command])
    assert isinstance(told.exception, InputError)
    assert "encoder_run: " in str(told.exception)
    assert "is a run of mode vae; name one of mode encoder" in str(told.exception)
