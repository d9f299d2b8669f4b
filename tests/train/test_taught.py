"""A run says where the runs that it builds on have learnt from its own validation patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training import plain, write_tar, write_yaml

from synthfactory.spec.errors import InputError
from train.config import TrainConfig, load_config
from train.loop import train
from train.plan import plan

VIT = {
    "image_size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2, "mlp_hidden": 32, "registers": 0, "layer_scale": None,
}  # fmt: skip
VAE = {"unshuffle": 4, "channels": [8, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
SIT = {"width": 32, "depth": 1, "heads": 2, "projection_depth": 1, "latent_size": 4}
APART = {"validation": {"share": 0.25}}
FLATTERS = "learnt from 3 of 3 patients held out here, so what is measured on them flatters; hold the same patients out of every run"
UNSAID = "does not say of all tiles whom it learnt from, so what is measured here may flatter; hold the same patients out of every run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(24), plain, side=lambda n: 32)
    return tmp_path


def config(folder: Path, mode: str, network: dict[str, Any], data: dict[str, Any], **changes: Any) -> TrainConfig:
    values = {
        "mode": mode, "network": network, "data": {"shards": str(folder / "tars"), **data}, "samples": None, "threads": 1,
        "optimiser": {"steps": 1, "batch": 3, "rate": 1e-3, "warmup": 1}, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(folder / "config.yaml", values)))


def learnt(folder: Path, name: str, *given: Any, **changes: Any) -> str:
    train(config(folder, *given, **changes), folder / name, folder / "cache")
    return str(folder / name)


def warned(folder: Path, encoder: str, vae: str, data: dict[str, Any] = APART) -> list[str]:
    """What `plan` says of a run that builds on these two."""
    chosen = config(folder, "diffusion", SIT, data, encoder_run=encoder, vae_run=vae)
    return [line for line in plan(chosen, folder / "cache") if line.startswith("warning: ")]


def test_runs_that_held_the_same_patients_out_are_not_warned_of(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32}, encoder_run=encoder)
    assert warned(folder, encoder, vae) == []


def test_a_run_that_learnt_from_them_is_named(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    assert warned(folder, encoder, vae) == [f"warning: encoder_run: {encoder} {FLATTERS}"]
    said: list[str] = []
    train(
        config(folder, "diffusion", SIT, APART, encoder_run=encoder, vae_run=vae),
        folder / "run",
        folder / "cache",
        said.append,
    )
    assert said == warned(folder, encoder, vae)
    text = (folder / "encoder/taught.json").read_text()
    assert len(json.loads(text)["patients"]) == 12
    assert "p-a-" not in text


def test_so_is_one_whose_own_encoder_did(folder: Path) -> None:
    seen = learnt(folder, "seen", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32}, encoder_run=seen)
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    assert warned(folder, encoder, vae) == [f"warning: vae_run: {vae} {FLATTERS}"]
    Path(seen, "taught.json").unlink()  # what the run has noted of it stays, whatever becomes of it
    assert learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32}, encoder_run=seen) == vae
    assert warned(folder, encoder, vae) == [f"warning: vae_run: {vae} {FLATTERS}"]


def test_sets_that_are_held_out_whole_are_looked_at_too(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, {}, vae={"crop": 32, "perceptual": 0})
    write_tar(folder / "apart/0.tar", range(24, 30), lambda n: {**plain(n), "patient_id": " P-A-1"}, side=lambda n: 32)
    write_tar(folder / "tars/0.tar", range(24), lambda n: {**plain(n), "patient_id": f"new-{n}"}, side=lambda n: 32)
    lines = warned(folder, encoder, vae, {"validation": {"shards": [{"shards": str(folder / "apart")}]}})
    assert [line.partition(" learnt from ")[2].partition(",")[0] for line in lines] == [
        "1 of 1 patients held out here"
    ] * 2


def test_a_run_that_does_not_say_is_named_where_anything_is_held_out(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    chosen = config(folder, "diffusion", SIT, APART, encoder_run=encoder, vae_run=vae)
    nested = "[" * 100_000
    for damaged in ("[]", "{", nested, '{"format": 2, "patients": []}', '{"format": 1, "patients": "abc", "complete": true}',
                    '{"format": 1, "patients": [[1]], "complete": true}'):  # fmt: skip
        Path(vae, "taught.json").write_text(damaged)
        assert [line for line in plan(chosen, folder / "cache") if line.startswith("warning")] == [
            f"warning: vae_run: {vae} {UNSAID}"
        ]
    assert warned(folder, encoder, vae, {}) == []
    later = learnt(folder, "later", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    Path(encoder, "taught.json").unlink()
    heir = learnt(folder, "heir", "vae", VAE, APART, vae={"crop": 32}, encoder_run=encoder)  # nor does who learnt by it
    clean = learnt(folder, "clean", "encoder", VIT, APART)
    assert [line for line in plan(config(folder, "diffusion", SIT, APART, encoder_run=clean, vae_run=later), folder / "cache")
            if line.startswith("warning")] == []  # fmt: skip
    assert warned(folder, clean, heir) == [f"warning: vae_run: {heir} {UNSAID}"]


def test_tiles_of_nobody_knows_whom_are_not_nobodys(folder: Path) -> None:
    write_tar(folder / "tars/1.tar", range(24, 27), lambda n: {"label": "a"}, side=lambda n: 32)
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    (folder / "tars/1.tar").unlink()
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    Path(encoder, "taught.json").write_text(
        json.dumps({**json.loads(Path(encoder, "taught.json").read_text()), "patients": []})
    )
    assert warned(folder, encoder, vae) == [f"warning: encoder_run: {encoder} {UNSAID}"]


def test_a_run_that_is_named_but_not_used_is_not_looked_at(folder: Path) -> None:
    seen = learnt(folder, "seen", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0}, encoder_run=seen)
    encoder = learnt(folder, "encoder", "encoder", VIT, APART)
    assert warned(folder, encoder, vae) == []


def test_a_refused_command_changes_nothing_that_was_noted(folder: Path) -> None:
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    before = (folder / "encoder/taught.json").read_text()
    write_tar(folder / "tars/0.tar", range(24), lambda n: {**plain(n), "patient_id": f"new-{n}"}, side=lambda n: 32)
    with pytest.raises(InputError, match="changed since it was begun"):
        train(config(folder, "encoder", VIT, {}), Path(encoder), folder / "cache")
    assert (folder / "encoder/taught.json").read_text() == before


def test_a_lineage_that_is_gone_stops_no_run_that_holds_nobody_out(folder: Path) -> None:
    write_tar(folder / "made/0.tar", range(24, 27), lambda n: {"label": "a", "synthetic": True}, side=lambda n: 32)
    shards = [{"shards": str(folder / "tars")}, {"shards": str(folder / "made"), "lineage": str(folder / "gone")}]
    encoder = learnt(folder, "encoder", "encoder", VIT, {"shards": shards})
    assert json.loads(Path(encoder, "taught.json").read_text())["complete"] is False


def test_patients_behind_synthetic_tiles_count_and_a_lineage_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stands in a lineage is made up here; what reads one is tested beside the split."""
    read: list[str] = []
    monkeypatch.setattr("train.split._rests_on", lambda lineage: read.append(lineage) or [" P-A-1", "p-b-2"])
    encoder = learnt(folder, "encoder", "encoder", VIT, {})
    vae = learnt(folder, "vae", "vae", VAE, APART, vae={"crop": 32, "perceptual": 0})
    write_tar(folder / "made/0.tar", range(24, 27), lambda n: {"label": "a", "synthetic": True}, side=lambda n: 32)
    write_tar(folder / "tars/0.tar", range(24), lambda n: {**plain(n), "patient_id": f"new-{n}"}, side=lambda n: 32)
    made = [{"shards": str(folder / "made"), "lineage": "L"}]
    said = warned(folder, encoder, vae, {"validation": {"shards": made}})
    assert f"encoder_run: {encoder} learnt from 2 of 2 patients held out here" in said[0] + said[1]
    assert read == ["L"]
    shards = [{"shards": str(folder / "tars")}, *made]
    heir = learnt(folder, "heir", "encoder", VIT, {"shards": shards})
    noted = json.loads(Path(heir, "taught.json").read_text())
    assert (len(noted["patients"]), noted["complete"]) == (24 + 2, True)
