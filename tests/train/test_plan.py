"""plan: what a run would do, and that nothing is done."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from tinymodel import make_tiny_model
from training import plain, write_tar, write_yaml

import train as train_package
from synthfactory.model.vit import vit_from_dict
from synthfactory.spec.errors import InputError
from train.cli import cli
from train.config import load_config
from train.loop import train
from train.plan import plan, unwise
from train.split import split

VIT = {
    "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_hidden": 64, "registers": 0, "layer_scale": None,
}  # fmt: skip


SIT = {"width": 16, "depth": 1, "heads": 2, "projection_depth": 1}
CONFIGS = sorted(Path(train_package.__file__).parent.glob("configs/*.yaml"))


def config(tmp_path: Path, **changes: Any) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(24), plain, side=lambda n: 32)
    values = {
        "mode": "encoder", "network": VIT, "data": {"shards": str(tmp_path / "tars"), "validation": {"share": 0.25}},
        "optimiser": {"steps": 10, "batch": 9, "rate": 1e-3, "ema": [0.9, 0.99]}, **changes,
    }  # fmt: skip
    return write_yaml(tmp_path / "config.yaml", values)


def test_tiles_passes_parameters_and_memory_are_printed(tmp_path: Path) -> None:
    path = config(tmp_path)
    ended = CliRunner().invoke(cli, ["plan", str(path), "--cache", str(tmp_path / "cache")])
    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["class", "tiles", "synthetic", "patients", "unknown", "validation"]
    assert lines[1].split() == ["a", "6", "0", "3", "0", "2"]
    divided = split(load_config(str(path)).data, tmp_path / "cache")
    judged = sorted({divided.index.patient_names[at] for at in divided.index.patients[divided.validation]})
    assert f"held out    {len(judged)} patients: {', '.join(judged)}" in ended.output
    assert "10 of 9 tiles: 90, 5 passes (natural)" in ended.output
    count = sum(weight.numel() for weight in vit_from_dict(VIT).parameters())
    assert f"encoder     {count / 1e6:.2f}M parameters, {count / 1e6:.2f}M of them learn" in ended.output
    assert f"memory      {4 * count * (1 + 3 + 2) / 1e6:,.0f} MB" in ended.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "config.yaml", "tars"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {**VIT, "width": 0}}, "network.width: 0 is too small; at least 1"),
        ({"network": {**VIT, "width": "wide"}}, "network.width: 'wide' is no whole number"),
        ({"mode": "finetune", "network": {}, "base": "nowhere"}, "base: 'nowhere': neither a built-in model"),
    ],
)
def test_faults_of_networks_and_bases_name_the_field(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        plan(load_config(str(config(tmp_path, **changes))), tmp_path / "cache")


def test_muon_takes_less_memory_than_adamw(tmp_path: Path) -> None:
    network = {**VIT, "width": 256, "mlp_hidden": 1024, "image_size": 32}
    taken = {}
    for kind in ("adamw", "muon"):
        optimiser = {"kind": kind, "steps": 10, "batch": 9, "rate": 1e-3}
        lines = plan(load_config(str(config(tmp_path, network=network, optimiser=optimiser))), tmp_path / "cache")
        taken[kind] = int(next(line for line in lines if line.startswith("memory")).split()[1])
    matrices = sum(
        w.numel() for name, w in vit_from_dict(network).named_parameters() if "blocks." in name and w.ndim == 2
    )
    assert taken["adamw"] - taken["muon"] == pytest.approx(4 * matrices / 1e6, abs=1)


def test_a_base_is_measured_by_what_learns_of_it(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    changes = {"mode": "finetune", "network": {}, "base": str(base)}
    whole = plan(load_config(str(config(tmp_path, **changes))), tmp_path / "cache")
    some = plan(load_config(str(config(tmp_path, **changes, finetune={"lora": {"rank": 1}}))), tmp_path / "cache")
    one, other = (next(line for line in lines if line.startswith("sit")) for lines in (whole, some))
    assert float(one.split()[3].rstrip("M")) > float(other.split()[3].rstrip("M"))
    assert any(line.startswith("vae") and "0.00M of them learn" in line for line in whole)


def test_a_discriminator_counts(tmp_path: Path) -> None:
    sizes = {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
    for gan in (0.0, 0.5):
        changes = {"mode": "vae", "network": sizes, "vae": {"gan": gan, "crop": 16, "discriminator_layers": 1}}
        lines = plan(load_config(str(config(tmp_path, **changes))), tmp_path / "cache")
        assert any(line.startswith("critic ") for line in lines) == bool(gan)


def test_the_encoder_that_compares_counts_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    vae = {"mode": "vae", "network": {}, "base": str(base), "vae": {"crop": 16}}
    for perceptual in (None, 0):
        given = config(tmp_path, **{**vae, "vae": {"crop": 16, "perceptual": perceptual}})
        lines = plan(load_config(str(given)), tmp_path / "cache")
        assert any(line.startswith("compared by ") for line in lines) == (perceptual is None)
    (tmp_path / "coarse").mkdir()
    (tmp_path / "coarse/config.yaml").write_text(config(tmp_path, network={**VIT, "patch_size": 16}).read_text())
    with pytest.raises(InputError, match=r"vae\.crop: 24 px cannot be compared .* a multiple of 16 up to 32"):
        plan(
            load_config(str(config(tmp_path, **{**vae, "vae": {"crop": 24}}, encoder_run=str(tmp_path / "coarse")))),
            tmp_path / "cache",
        )
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide/config.yaml").write_text(config(tmp_path).read_text())
    finetune = {"mode": "finetune", "network": {}, "base": str(base)}
    for run, message in (("wide", r"encoder_run: .*wide: its embeddings are 32 wide; .* takes 16"),
                         ("no", r"encoder_run: .*no: is no run folder yet")):  # fmt: skip
        for mode in (finetune, vae) if run == "no" else (finetune,):
            with pytest.raises(InputError, match=message):
                plan(load_config(str(config(tmp_path, **mode, encoder_run=str(tmp_path / run)))), tmp_path / "cache")


def test_the_schema_describes_what_a_config_may_hold() -> None:
    ended = CliRunner().invoke(cli, ["schema"])
    assert ended.exit_code == 0
    described = json.loads(ended.output)
    assert "optimiser" in described["required"]
    assert "on_bad_shard" in described["$defs"]["Data"]["properties"]
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(described)
    for path in CONFIGS:
        validator.validate(yaml.safe_load(path.read_text()))
    right = yaml.safe_load(CONFIGS[0].read_text())
    for sets in ("one", ["one", {"shards": "two", "weight": 2}]):
        validator.validate({**right, "data": {"shards": sets, "validation": {"shards": sets}}})
    for name, wrong in {"mode": "dream", "optimiser": {}, "data": {"shards": []}, "seed": -1, "stepps": 3}.items():
        assert not validator.is_valid({**right, name: wrong}), name


def test_the_readmes_config_of_own_tiles_is_one(tmp_path: Path) -> None:
    text = (Path(train_package.__file__).parent / "README.md").read_text()
    example = text.partition("# own.yaml\n")[2].partition("\n\n")[0]
    (tmp_path / "own.yaml").write_text(example)
    assert load_config(str(tmp_path / "own.yaml")).mode == "finetune"


def test_numbers_that_do_not_go_together_are_said(tmp_path: Path) -> None:
    path = config(tmp_path, optimiser={"steps": 4, "batch": 500, "rate": 1e-3}, data={
        "shards": str(tmp_path / "tars"), "validation": {"shards": [{"shards": str(tmp_path / "apart")}]}})  # fmt: skip
    write_tar(tmp_path / "apart/0.tar", range(1), lambda n: {"label": "a", "patient_id": "q"}, side=lambda n: 32)
    said = "\n".join(plan(load_config(str(path)), tmp_path / "cache"))
    assert "warning: optimiser.warmup: 100 steps of 4: the rate never gets to its height" in said
    assert "warning: optimiser.batch: 500 of 24 tiles: a batch holds the same tile more than once" in said
    assert "warning: data.validation: no tile of b, c is held out" in said


def test_what_a_mode_does_not_read_is_said(tmp_path: Path) -> None:
    path = config(
        tmp_path, vae={"kl": 1e-5}, finetune={"parts": ["blocks.1.*"]}, encoder={"grid": 0.5}, vae_run="runs/vae"
    )
    said = [line for line in plan(load_config(str(path)), tmp_path / "cache") if "does not read it" in line]
    assert said == [f"warning: {name}: mode encoder does not read it" for name in ("vae", "finetune", "vae_run")]
    path = config(
        tmp_path, mode="finetune", network={}, base=str(make_tiny_model(tmp_path / "base")), vae_run="runs/vae"
    )
    said = [line for line in plan(load_config(str(path)), tmp_path / "cache") if "does not read it" in line]
    assert said == ["warning: vae_run: mode finetune with a base does not read it"]
    tiles = {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
    changes = {"samples": {"every": 5}, "finetune": {"parts": ["kl.decoder.*"]}, "encoder_run": "runs/encoder"}
    path = config(tmp_path, mode="vae", network=tiles, vae={"crop": 16, "perceptual": 0}, **changes)
    divided = split(load_config(str(path)).data, tmp_path / "cache")
    assert unwise(load_config(str(path)), divided, torch.device("cpu"))[-3:] == [
        "samples: mode vae does not read it",
        "finetune: mode vae without a base does not read it",
        "encoder_run: mode vae reads it where vae.perceptual compares the encoder's features",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_that_ship_are_read(path: Path) -> None:
    assert load_config(str(path)).optimiser.steps > 0


def test_runs_that_are_not_there_yet_are_named(tmp_path: Path) -> None:
    path = config(
        tmp_path, mode="diffusion", network=SIT, encoder_run=str(tmp_path / "no"), vae_run=str(tmp_path / "no")
    )
    with pytest.raises(InputError, match=r"encoder_run: .*no: is no run folder yet"):
        plan(load_config(str(path)), tmp_path / "cache")


def test_a_tile_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = config(tmp_path)
    tar = next((tmp_path / "tars").glob("*.tar"))
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x89BAD"))
    with pytest.raises(InputError, match=rf"{tar.name}: a tile does not decode.*; replace the tar"):
        plan(load_config(str(path)), tmp_path / "cache")


def test_what_run_would_refuse_of_sizes_plan_refuses(tmp_path: Path) -> None:
    sizes = {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
    small = {"mode": "vae", "network": sizes, "vae": {"gan": 0.5, "crop": 16, "discriminator_layers": 3}}
    with pytest.raises(
        InputError, match=r"vae\.discriminator_layers: 3 need a vae\.crop of 24 px or more; it is 16 px"
    ):
        plan(load_config(str(config(tmp_path, **small))), tmp_path / "cache")
    other = tmp_path / "encoder"
    other.mkdir()
    (other / "config.yaml").write_text(config(tmp_path).read_text())
    path = config(tmp_path, mode="diffusion", network=SIT, encoder_run=str(other), vae_run=str(other))
    with pytest.raises(InputError, match=r"vae_run: .*encoder: is a run of mode encoder; name one of mode vae"):
        plan(load_config(str(path)), tmp_path / "cache")
    grid = np.zeros((8, 8, 1), np.uint8)
    maps = {
        "grid": base64.b64encode(grid.tobytes()).decode(), "grid_channels": ["nuclei"], "grid_min": [0.0], "grid_scale": [1.0],
    }  # fmt: skip
    path = config(tmp_path)
    write_tar(tmp_path / "tars" / "0.tar", range(24), lambda n: {**plain(n), **maps}, side=lambda n: 32)
    message = r"network\.patch_size: makes 4 x 4 patches, and the tiles' maps have 8 x 8 cells; choose 4, or"
    with pytest.raises(InputError, match=message):
        plan(load_config(str(path)), tmp_path / "cache")
    with pytest.raises(InputError, match=message):
        train(load_config(str(path)), tmp_path / "run", tmp_path / "cache")


def test_an_autoencoder_that_went_on_from_a_model_is_refused_as_run_refuses_it(tmp_path: Path) -> None:
    for name, values in (("encoder", {"mode": "encoder", "network": VIT}), ("vae", {"mode": "vae", "base": "phantom"})):
        (tmp_path / name).mkdir()
        given = {"data": {"shards": str(tmp_path / "tars")}, "optimiser": {"steps": 1, "batch": 2, "rate": 1e-3}}
        write_yaml(tmp_path / name / "config.yaml", {**given, **values})
    runs = {"encoder_run": str(tmp_path / "encoder"), "vae_run": str(tmp_path / "vae")}
    path = config(tmp_path, mode="diffusion", network=SIT, **runs)
    with pytest.raises(InputError, match=r"vae_run: .*vae: goes on from a model; export it"):
        list(plan(load_config(str(path)), tmp_path / "cache"))
