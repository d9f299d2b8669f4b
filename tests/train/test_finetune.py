"""Fine-tuning: what is to learn learns and nothing else does, adapters are merged, terms stay, and the export is the next spec's model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from finetune_making import SIDE, config, encoder_run, make_base
from PIL import Image
from running import run
from safetensors.torch import load_file, save_file
from tinymodel import make_bank_file
from training import cut_off, image_of, plain, same_averages, write_tar, write_yaml

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train import checkpoint
from train.cli import cli
from train.config import Samples, load_config
from train.export import export
from train.loader import Loader
from train.loop import train
from train.lora import LoRALinear, adapt, merged
from train.sampler import Order
from train.samples import Sheets
from train.split import split


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path)


def changed(tmp_path: Path, base: Path, **changes: Any) -> set[str]:
    """Names of the SiT's tensors that another model than the base has after training."""
    train(load_config(config(tmp_path, base, **changes)), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="1")
    before, after = load_model(open_model(str(base))), load_model(open_model(str(out)))
    one, other = before.sit.state_dict(), after.sit.state_dict()
    assert one.keys() == other.keys()
    for part in ("vae", "encoder"):
        assert (base / f"{part}.safetensors").read_bytes() == (out / f"{part}.safetensors").read_bytes()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_all_weights_learn_by_default_and_statistics_stay(tmp_path: Path, base: Path) -> None:
    found = changed(tmp_path, base)
    assert {"x_embedder.proj.weight", "final_layer.linear.weight", "y_embedder.proj.weight"} <= found
    assert not [name for name in found if name.startswith(("bn.", "pos_embed"))]


def test_named_parts_learn_alone(tmp_path: Path, base: Path) -> None:
    found = changed(tmp_path, base, finetune={"parts": ["blocks.*.attn.*", "y_embedder.null"]})
    assert found
    assert all(name == "y_embedder.null" or ".attn." in name for name in found)


def test_adapters_are_merged_and_only_their_layers_change(tmp_path: Path, base: Path) -> None:
    found = changed(tmp_path, base, finetune={"lora": {"rank": 2, "targets": ["attn.qkv", "mlp.fc1"]}})
    assert found
    assert all(name.endswith(("attn.qkv.weight", "mlp.fc1.weight")) for name in found)
    state = load_file(checkpoint.average_file(tmp_path / "run")[1])
    assert any(name.endswith(".lora_a") for name in state)


def test_a_merged_network_does_what_the_adapted_one_did() -> None:
    torch.manual_seed(0)
    plain_net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3)).double()
    adapted = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3)).double()
    adapted.load_state_dict(plain_net.state_dict())
    x = torch.randn(5, 6).double()
    assert adapt(adapted, ["0", "2"], 2, 4.0, torch.Generator().manual_seed(1)) == 2
    adapted.double()
    assert torch.equal(adapted(x), plain_net(x))  # at first it does what it did
    for layer in adapted:
        if isinstance(layer, LoRALinear):
            layer.lora_b.data.normal_()
    wanted = adapted(x)
    assert not torch.allclose(wanted, plain_net(x))
    plain_net.load_state_dict(merged(adapted.state_dict(), 4.0))
    assert torch.allclose(plain_net(x), wanted, atol=1e-12)
    assert sum(p.requires_grad for p in adapted.parameters()) == 4


def test_a_cut_off_run_with_adapters_ends_with_the_same_weights(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = load_config(config(tmp_path, base, finetune={"lora": {"rank": 2}}))
    train(checked, tmp_path / "whole", tmp_path / "cache")
    cut_off(monkeypatch, checked, tmp_path / "cut", tmp_path / "cache")
    assert train(checked, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")


def test_the_export_is_the_next_specs_model_and_says_where_it_comes_from(tmp_path: Path, base: Path) -> None:
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="2")
    folder = open_model(str(out))
    assert folder.config["training"]["base"]["sha256"] == open_model(str(base)).sha256
    assert folder.licence == {**open_model(str(base)).licence, "sharing": "local"}, (
        "it learnt from tiles not known to be synthetic"
    )
    card = (out / "README.md").read_text()
    assert "Goes on from" in card
    bank = make_bank_file(tmp_path / "bank.parquet", out, classes={"one": 3})
    spec = {
        "name": "next", "model": str(out), "classes": {"one": 4}, "embeddings": {"bank": str(bank)}, "seed": 1,
        "sampler": {"steps": 2}, "output": {"path": str(tmp_path / "out")}, "lineage": str(tmp_path / "lineage"),
    }  # fmt: skip
    assert run("build", write_yaml(tmp_path / "spec.yaml", spec), "--local").code == 0
    assert run("verify", tmp_path / "out").code == 0
    # and what is trained on that set can be found again, should a patient behind it withdraw
    train(
        load_config(config(tmp_path, out, data={"shards": str(tmp_path / "out")})),
        tmp_path / "again",
        tmp_path / "cache",
    )
    later = export(tmp_path / "again", tmp_path / "models" / "later", model_id="later", revision="3")
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    (known,) = open_model(str(later)).config["training"]["sets"]
    terms = {"licence": lock["model"]["licence"]["name"], "sharing": lock["terms"]["sharing"]}
    assert known == {"name": "next", "recipe_sha256": lock["recipe_sha256"], **terms, "rests_on": "real tiles"}
    told = run("revoke", tmp_path / "spec.yaml", "--patient", "nobody", "--models", tmp_path / "models")
    assert "later: trained on it" in " ".join(told.out.split())


def test_another_encoder_takes_the_place_of_the_bases(tmp_path: Path, base: Path) -> None:
    learned = encoder_run(tmp_path)
    chosen = load_config(config(tmp_path, base, encoder_run=str(learned)))
    train(chosen, tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="2")
    before, after = load_model(open_model(str(base))), load_model(open_model(str(out)))
    taught = load_file(checkpoint.average_file(learned)[1])
    assert after.encoder is not None and before.encoder is not None
    for name, value in after.encoder.state_dict().items():
        assert torch.allclose(value, taught[f"vit.{name}"].to(torch.float16).float()), name
    seen = after.encoder.embed(np.stack([image_of(number, SIDE) for number in range(12)]))
    sizes = open_model(str(out)).config["sit"]
    assert sizes["condition_mean"] == pytest.approx(float(seen.mean()), abs=1e-2)
    assert sizes["condition_std"] == pytest.approx(float(seen.std()), rel=1e-2)
    assert open_model(str(out)).config["training"]["runs"]["encoder"]["steps"] == 2
    assert (base / "vae.safetensors").read_bytes() == (out / "vae.safetensors").read_bytes()
    longer = yaml.safe_load((learned / "config.yaml").read_text())
    longer["optimiser"]["steps"] = 3
    (learned / "config.yaml").write_text(yaml.safe_dump(longer))
    train(load_config(str(learned / "config.yaml")), learned, tmp_path / "cache")
    with pytest.raises(InputError, match=r"its step 2; it has moved on or"):
        export(tmp_path / "run", tmp_path / "late", model_id="tuned", revision="2")
    assert not (tmp_path / "late").exists()


def test_an_export_of_a_run_that_is_not_done_says_so(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_config(config(tmp_path, base, samples=None))
    cut_off(monkeypatch, asked, tmp_path / "run", tmp_path / "cache")
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--id", "tuned", "--revision", "1"]
    told = CliRunner().invoke(cli, command)
    assert told.exit_code == 0, told.output
    assert "sit: after 2 of 4 steps" in told.output
    assert "| sit | 2 (of 4) | 4 |" in (tmp_path / "out" / "README.md").read_text()
    train(asked, tmp_path / "run", tmp_path / "cache")
    told = CliRunner().invoke(cli, command)
    assert told.exit_code == 0, told.output
    assert "sit: after" not in told.output
    assert "| sit | 4 | 4 |" in (tmp_path / "out" / "README.md").read_text()


def test_an_encoder_of_another_width_is_refused(tmp_path: Path, base: Path) -> None:
    learned = encoder_run(tmp_path, width=24)
    with pytest.raises(InputError, match=r"encoder_run: .* its embeddings are 24 wide; tiny takes 16"):
        train(load_config(config(tmp_path, base, encoder_run=str(learned))), tmp_path / "run", tmp_path / "cache")


def test_sheets_are_drawn_on_the_way_and_change_nothing(tmp_path: Path, base: Path) -> None:
    samples = {"every": 2, "tiles": 2, "steps": 2}
    for name, wanted in (("with", samples), ("without", None)):
        train(load_config(config(tmp_path, base, samples=wanted)), tmp_path / name, tmp_path / "cache")
    sheets = sorted((tmp_path / "with" / "samples").iterdir())
    assert [path.name for path in sheets] == ["000002.png", "000004.png"]
    one, other = (np.asarray(Image.open(path)) for path in sheets)
    assert one.shape == other.shape
    assert not np.array_equal(one, other)
    assert not (tmp_path / "without" / "samples").exists()
    assert same_averages(tmp_path / "with", tmp_path / "without")


def test_sheets_show_classes_of_which_nobody_is_held_out(tmp_path: Path, base: Path) -> None:
    checked = load_config(config(tmp_path, base))
    divided = split(checked.data, tmp_path / "cache")
    index = divided.index
    wanted = Samples(tiles=2)
    with Loader(index, Order(0, divided.train, index.labels, np.ones(len(index))), seed=0, batch=2) as loader:
        held = np.flatnonzero(index.labels == 1)
        rows = Sheets(wanted, loader, held, np.flatnonzero(index.labels != 1))._rows
    assert list(rows) == list(index.classes)
    assert rows[index.classes[1]].tolist() == held[:2].tolist()
    assert set(index.labels[rows[index.classes[0]]].tolist()) == {0}


def test_patients_that_were_corrected_are_no_resume(tmp_path: Path, base: Path) -> None:
    """The tars are the same; who is held out is not."""
    folders = tmp_path / "folders"
    for number in range(16):
        path = folders / "abc"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of(number, SIDE)).save(path)

    def packed(people: int) -> None:
        rows = [f"{'abc'[n % 2]}/{n}.png,{'abc'[n % 2]},p{n % people},0.5" for n in range(16)]
        (tmp_path / "tiles.csv").write_text("\n".join(["tile,label,patient_id,mpp", *rows]))
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        ended = run("pack", folders, tmp_path / "packed", "--metadata", tmp_path / "tiles.csv", "--label-level", "tile")
        assert ended.code == 0, ended.err

    packed(8)
    data = {"shards": str(tmp_path / "packed"), "validation": {"share": 0.25, "tiles": 2}}
    checked = load_config(config(tmp_path, base, data=data))
    train(checked, tmp_path / "run", tmp_path / "cache")
    before = split(checked.data, tmp_path / "cache")
    packed(4)
    assert split(checked.data, tmp_path / "cache").index.digest == before.index.digest
    with pytest.raises(
        InputError, match="the tiles' patients, or which of them are held out, changed since it was begun"
    ):
        train(checked, tmp_path / "run", tmp_path / "cache")


def test_a_run_keeps_the_statistics_of_conditions_that_it_was_begun_with(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = load_config(config(tmp_path, base, encoder_run=str(encoder_run(tmp_path))))
    cut_off(monkeypatch, checked, tmp_path / "run", tmp_path / "cache")
    noted = tmp_path / "run/extra.json"
    values = json.loads(noted.read_text())
    values["condition"] = {"condition_mean": 0.25, "condition_std": 2.0}
    noted.write_text(json.dumps(values))
    train(checked, tmp_path / "run", tmp_path / "cache")
    assert json.loads(noted.read_text())["condition"] == values["condition"]
    out = open_model(str(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="1")))
    assert out.config["sit"]["condition_std"] == 2.0


def test_an_autoencoder_is_compared_by_the_encoder_that_its_config_names(tmp_path: Path, base: Path) -> None:
    one, other = encoder_run(tmp_path), tmp_path / "nowhere"
    changes = {"mode": "vae", "vae": {"crop": 16}, "samples": None}
    checked = load_config(config(tmp_path, base, **changes, encoder_run=str(one)))
    train(checked, tmp_path / "run", tmp_path / "cache")
    train(load_config(config(tmp_path, base, **changes)), tmp_path / "by-base", tmp_path / "cache")
    assert not same_averages(tmp_path / "run", tmp_path / "by-base")
    with pytest.raises(InputError, match="nowhere"):
        train(
            load_config(config(tmp_path, base, **changes, encoder_run=str(other))), tmp_path / "x", tmp_path / "cache"
        )
    taught = checkpoint.average_file(one)[1]
    state = load_file(taught)
    save_file({name: value + 1 for name, value in state.items()}, taught)
    with pytest.raises(InputError, match="encoder_run changed since it was begun"):
        train(checked, tmp_path / "run", tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "base: is missing; name the model to go on from"),
        ({"network": {"width": 4}}, "network: is the base model's own"),
        ({"base": "nowhere"}, "base: "),
        ({"finetune": {"parts": ["nothing.*"]}}, r"finetune\.parts: no weight's name fits nothing\.\*"),
        ({"finetune": {"lora": {"targets": ["nothing"]}}}, r"finetune\.lora\.targets: no linear layer"),
        ({"finetune": {"lora": {"rank": 0}}}, r"finetune\.lora\.rank: 0 is too small"),
        ({"data": {"shards": "other"}}, r"base: .* draws tiles of 32 px; those of data\.shards have 24 px"),
        (
            {"data": {"shards": "tars", "stain_jitter": 0.1}},
            r"data\.stain_jitter: goes with modes encoder, vae and repa-e",
        ),
    ],
)
def test_what_cannot_be_fine_tuned(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "other" / "0.tar", range(3), plain)
    with pytest.raises(InputError, match=message):
        train(load_config(config(tmp_path, base, **change)), tmp_path / "run", tmp_path / "cache")


REAL = Path(os.environ.get("SYNTHFACTORY_REAL_TILES", "no-such-folder"))  # class folders of 224 px tiles, and tiles.csv


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="SYNTHFACTORY_REAL_TILES names no folder of real tiles")
def test_real_tissue_of_an_unseen_patient_is_learnt(tmp_path: Path) -> None:
    """A smoke test: on tiles of a patient that was held out, the autoencoder's PSNR rises and the denoising loss falls.

    Nothing more is claimed, and nothing is kept.
    """
    packed = run(
        "pack", REAL, tmp_path / "packed", "--metadata", REAL / "tiles.csv", "--label-level", "region", "--mpp", 0.5
    )
    assert packed.code == 0, packed.err
    changes = {
        "threads": 2, "checkpoint_every": 30, "samples": None,
        "data": {
            "shards": str(tmp_path / "packed"), "validation": {"share": 0.3, "every": 30, "tiles": 32},
            "unknown_patients": "train",
        },
    }  # fmt: skip
    vae = {
        **changes, "mode": "vae",
        "optimiser": {"steps": 60, "batch": 16, "rate": 3e-4, "warmup": 10, "ema": 0.95},
    }  # fmt: skip
    train(load_config(config(tmp_path, Path("phantom"), **vae)), tmp_path / "vae", tmp_path / "cache")
    tuned = export(tmp_path / "vae", tmp_path / "model", model_id="tuned", revision="1")
    sit = {**changes, "optimiser": {"steps": 60, "batch": 16, "rate": 3e-4, "warmup": 10, "ema": 0.95}}
    train(load_config(config(tmp_path, tuned, **sit)), tmp_path / "sit", tmp_path / "cache")
    psnr, loss = (of_validation(tmp_path / name, what) for name, what in (("vae", "psnr_db"), ("sit", "flow")))
    print(
        f"PSNR before and after: {psnr[0]:.2f} and {psnr[-1]:.2f} dB; denoising loss: {loss[0]:.3f} and {loss[-1]:.3f}"
    )
    assert psnr[-1] > psnr[0] + 0.3
    assert loss[-1] < 0.95 * loss[0]


def of_validation(run_folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [line[f"validation_{name}"] for line in lines if f"validation_{name}" in line]


def test_another_base_of_the_same_name_is_no_resume(tmp_path: Path, base: Path) -> None:
    checked = load_config(config(tmp_path, base))
    train(checked, tmp_path / "run", tmp_path / "cache")
    stated = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**stated, "revision": "another"}))
    with pytest.raises(InputError, match="run: the model named as base changed since it was begun"):
        train(checked, tmp_path / "run", tmp_path / "cache")
    with pytest.raises(InputError, match="is another model than the run went on from"):
        export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="1")


def test_the_card_says_what_was_taken_anew_and_how_weights_are_kept(tmp_path: Path, base: Path) -> None:
    stated = json.loads((base / "config.json").read_text())
    wide = {name: value.float() for name, value in load_file(base / "sit.safetensors").items()}
    save_file(wide, base / "sit.safetensors")
    stated["files"]["sit.safetensors"] = hashlib.sha256((base / "sit.safetensors").read_bytes()).hexdigest()
    for name in ("vae", "encoder"):
        half = {key: value.half() for key, value in load_file(base / f"{name}.safetensors").items()}
        save_file(half, base / f"{name}.safetensors")
        stated["files"][f"{name}.safetensors"] = hashlib.sha256((base / f"{name}.safetensors").read_bytes()).hexdigest()
    (base / "config.json").write_text(json.dumps(stated))
    train(load_config(config(tmp_path, base, finetune={"statistics": "measure"})), tmp_path / "run", tmp_path / "cache")
    card = (export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="1") / "README.md").read_text()
    assert "MB, float16 and float32 safetensors" in card
    assert "mean and variance of latents taken anew" in card


def test_an_export_does_not_overwrite_its_base(tmp_path: Path, base: Path) -> None:
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(InputError, match="base: is the model that the run went on from, and stays"):
        export(tmp_path / "run", tmp_path / "run" / ".." / "base", model_id="tuned", revision="1")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_nothing_is_aligned_unless_it_is_asked_for(tmp_path: Path, base: Path) -> None:
    def weight(**changes: Any) -> float:
        return load_config(config(tmp_path, base, **changes)).diffusion.alignment

    assert weight() == weight(diffusion={"time": "uniform"}) == 0
    assert weight(diffusion={"alignment": 0.25}) == 0.25
    assert weight(mode="repa-e") == 0.5
    with pytest.raises(InputError, match="diffusion"):
        weight(diffusion=3)
