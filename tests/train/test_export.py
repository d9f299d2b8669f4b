"""Three runs -> one model folder that a spec loads; its card says what was measured and what was not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_training import NETWORK, write_config, write_shard

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.plan.calibration import Calibration, Row, Table, encoded
from synthfactory.sample.engine import Engine
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Guidance, Sampler
from train import checkpoint
from train.card import add_figures, write_card
from train.config import load_config
from train.export import export
from train.loop import train
from train.measure import figures_of
from train.plan import plan

VAE = {"unshuffle": 4, "channels": [8, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False}
SIT = {"width": 16, "depth": 1, "heads": 2, "projection_depth": 1, "projection_hidden": 8, "latent_size": 28}
TERMS = {"name": "Apache-2.0", "sharing": "allowed"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_shard(folder / "shards")
    cache = folder / "cache"
    train(load_config(write_config(folder, encoder={"layout": 1.0})), folder / "encoder", cache)  # with every head
    train(load_config(write_config(folder, mode="vae", network=VAE, vae={"crop": 64})), folder / "vae", cache)
    built_on = {"encoder_run": str(folder / "encoder"), "vae_run": str(folder / "vae")}
    for name, precision in (("sit", "float32"), ("sit16", "bfloat16")):
        config = write_config(folder, mode="diffusion", network=SIT, precision=precision, **built_on)
        train(load_config(config), folder / name, cache)
    return folder


@pytest.mark.parametrize("run", ["sit", "sit16"])
def test_an_export_is_a_model_that_draws(runs: Path, tmp_path: Path, run: str) -> None:
    folder = open_model(str(export(runs / run, tmp_path / "model", model_id="m", revision="3", licence=TERMS)))
    assert (folder.id, folder.revision, folder.tile_size_px, folder.licence) == ("m", "3", 224, TERMS)
    model = load_model(folder)
    condition = model.embed(np.zeros((2, 224, 224, 3), np.uint8))
    tiles = Engine(model, threads=1).draw(condition, [(1, 2), (3, 4)], Sampler(steps=2))
    assert tiles.shape == (2, 224, 224, 3)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(runs: Path, tmp_path: Path) -> None:
    def exported(program: str) -> subprocess.CompletedProcess[str]:
        asked = ["export", str(runs / "sit"), str(tmp_path / "model"), "--id", "m"]
        return subprocess.run(
            [sys.executable, "-c", f"{program}; from train.cli import main; main()", *asked],
            check=False, capture_output=True, text=True,
        )  # fmt: skip

    # The error comes from where that of a full disk would.
    full = exported("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    assert full.returncode == 1
    assert full.stderr.startswith("Error: ")
    assert "File too large" in full.stderr
    assert full.stderr.endswith("once that is mended, the same command goes on\n")
    assert "Traceback" not in full.stderr
    assert exported("pass").returncode == 0
    open_model(str(tmp_path / "model")).check_files()


def test_an_export_takes_the_place_of_another_whole_or_not_at_all(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="first", revision="1")
    for of_these_weights in ("calibration.json", "repa-e.pt"):
        (out / of_these_weights).write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("train.export.write_card", full)
        with pytest.raises(OSError, match="No space left"):
            export(runs / "sit16", out, model_id="second", revision="1")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "link").symlink_to(out)
    export(runs / "sit16", tmp_path / "link", model_id="second", revision="1")
    (tmp_path / "link").unlink()
    open_model(str(out)).check_files()
    assert open_model(str(out)).id == "second"
    assert {path.name for path in out.iterdir()} == set(before) - {"calibration.json", "repa-e.pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"model: holds notes\.txt, which is no part of a model; name a new folder"):
        export(runs / "sit", out, model_id="third", revision="1")
    assert (out / "notes.txt").read_text() == "mine"


def test_who_taught_stands_in_the_card_and_measure_is_for_phantom_tissue_alone(runs: Path, tmp_path: Path) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="m", revision="1")
    text = " ".join((out / "README.md").read_text().split())
    assert "12 tiles that taught it were not flagged synthetic: it may have kept something of these patients" in text
    values = json.loads((out / "config.json").read_text())
    learnt = values["training"]
    for before, words in (
        (learnt, "12 tiles that taught its base were not flagged"),
        (None, "What taught its base is not stated"),
    ):
        base = {"id": "b", "revision": "1", "sha256": "0" * 64, "training": before}
        values["training"] = {**learnt, "synthetic_tiles": 12, "base": base}
        (out / "config.json").write_text(json.dumps(values))
        write_card(out)
        assert words in " ".join((out / "README.md").read_text().split())
    with pytest.raises(
        InputError, match="would be of phantom tissue, and it learnt class-0, class-1, class-2; build a set"
    ):
        figures_of(str(out), tmp_path / "judge", per_class=2, sampler=Sampler(steps=1), threads=1)
    assert not (tmp_path / "judge").exists()


def test_what_is_no_run_is_not_exported(runs: Path, tmp_path: Path) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="m", revision="1")
    for run, words in ((out, "is an exported model already"), (tmp_path / "no", "is no run folder")):
        with pytest.raises(InputError, match=words):
            export(run, tmp_path / "x", model_id="m", revision="1")
    with pytest.raises(InputError, match="is a run of synthfactory-train"):
        open_model(str(runs / "sit"))


def test_a_log_that_was_cut_off_and_copies_of_checkpoints_are_passed_over(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "sit", tmp_path / "sit")
    with open(tmp_path / "sit/metrics.jsonl", "a") as log:
        log.write('{"step": 9, "seco')
    last = checkpoint.steps(tmp_path / "sit")[-1]
    shutil.copytree(tmp_path / f"sit/checkpoints/{last:06d}", tmp_path / f"sit/checkpoints/{last:06d}.bak")
    out = export(tmp_path / "sit", tmp_path / "model", model_id="m", revision="1")
    assert open_model(str(out)).figures["log"]["step"] == last


def test_equal_runs_give_the_same_identity_whatever_the_clock_says(runs: Path, tmp_path: Path) -> None:
    first = open_model(str(export(runs / "sit", tmp_path / "a", model_id="m", revision="1", licence=TERMS)))
    log = runs / "sit" / "metrics.jsonl"
    kept = log.read_text()
    line = json.loads(kept.splitlines()[-1])
    log.write_text(kept + json.dumps({**line, "seconds": 7200.0}) + "\n")
    try:
        second = open_model(str(export(runs / "sit", tmp_path / "b", model_id="m", revision="1", licence=TERMS)))
    finally:
        log.write_text(kept)
    assert first.sha256 == second.sha256
    assert second.figures["training_hours"]["sit"] == 2.0


def test_the_card_says_what_is_not_measured(runs: Path, tmp_path: Path) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="m", revision="1", licence=TERMS)
    before = open_model(str(out)).sha256
    text = (out / "README.md").read_text()
    assert "Tiles that it draws have not been measured" in text
    assert re.search(r"Last line of the run's log, at step \d: loss \d\.\d+, flow ", text)
    assert "12 tiles of 3 classes (class-0, class-1, class-2)" in text
    assert before in text
    found = {
        "command": "synthfactory-train measure FOLDER", "sampler": Sampler(steps=10).model_dump(), "tiles_per_class": 9,
        "judge_accuracy_on_real": 0.9, "agreement_of_generated": 0.81, "agreement_95": [0.7, 0.9], "ratio": 0.9,
        "per_class": {"class-0": {"real": 0.9, "generated": 0.81}}, "vae_psnr_db": 25.0,
    }  # fmt: skip
    timing = {"seconds_per_call": 0.01, "tiles_per_second": 2.0, "threads": 2, "machine": "a CPU"}
    add_figures(out, {"agreement": found, "timing": timing})
    text = (out / "README.md").read_text()
    assert "0.810 (0.700 to 0.900)" in text
    assert open_model(str(out)).sha256 == before  # figures are no part of the identity
    assert open_model(str(out)).seconds_per_call == 0.01
    assert open_model(str(out)).figures["training_hours"].keys() == {"encoder", "vae", "sit"}


def test_the_card_holds_the_table_of_solvers_where_there_is_one(runs: Path, tmp_path: Path) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="m", revision="1", licence=TERMS)
    assert "## Solvers" not in (out / "README.md").read_text()

    def row(solver: str, steps: int, distance: float) -> Row:
        near = (distance - 0.001, distance + 0.001)
        return Row(
            sampler=Sampler(method="sde" if solver == "euler_maruyama" else "ode", solver=solver, steps=steps),
            calls_per_tile=steps, tiles=500, class_agreement=0.9, class_agreement_95=(0.88, 0.92), cosine=0.8, cosine_95=(0.79, 0.81),
            kernel_distance=distance, kernel_distance_95=near, kernel_distance_off_95=(distance - 0.3, distance - 0.28),
        )  # fmt: skip

    table = Table(
        guidance=Guidance(), reference=row("euler_maruyama", 250, 0.3), rows=[row("heun", 5, 0.5), row("ab2", 20, 0.29)]
    )
    found = Calibration(
        model_sha256=open_model(str(out)).sha256, encoder_sha256="", command="calibrate it", tables=[table]
    )
    (out / "calibration.json").write_bytes(encoded(found))
    write_card(out)
    lines = [
        line.split("|")[1:-1]
        for line in (out / "README.md").read_text().split("## Solvers")[1].splitlines()
        if "|" in line
    ]
    assert [(cells[0].strip(), cells[-1].strip()) for cells in lines[2:]] == [
        ("euler_maruyama", "reference"), ("ab2", "yes"), ("heun", "no"),
    ]  # fmt: skip


def test_only_a_diffusion_run_is_exported_and_only_on_what_it_was_trained_with(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a run of mode encoder"):
        export(runs / "encoder", tmp_path / "x", model_id="m", revision="1", licence=TERMS)
    extra = runs / "sit" / "extra.json"
    kept = extra.read_text()
    extra.write_text(json.dumps({**json.loads(kept), "vae_step": 2}))
    try:
        with pytest.raises(InputError, match=r"vae_run: .* was trained on its step 2; it has moved on"):
            export(runs / "sit", tmp_path / "x", model_id="m", revision="1", licence=TERMS)
    finally:
        extra.write_text(kept)
    extra.write_text(json.dumps({**json.loads(kept), "encoder_sha256": "0" * 64}))
    try:
        with pytest.raises(InputError, match=r"encoder_run: .* moved on or was trained anew since"):
            export(runs / "sit", tmp_path / "x", model_id="m", revision="1", licence=TERMS)
        sit = write_config(
            runs, mode="diffusion", network=SIT, encoder_run=str(runs / "encoder"), vae_run=str(runs / "vae")
        )
        with pytest.raises(InputError, match="encoder_run changed since it was begun"):
            train(load_config(sit), runs / "sit", runs / "cache")
    finally:
        extra.write_text(kept)
    assert not (tmp_path / "x").exists()
    assert checkpoint.steps(runs / "sit") == [4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": 32}, "network.latent_size: is 32, but the autoencoder of vae_run makes 28 of tiles of 224 px"),
        ({"latent_channels": 8}, "network.latent_channels: is 8, but the autoencoder of vae_run makes 4"),
        (
            {"condition_width": 99},
            "network.condition_width: is 99, but the encoder of encoder_run has 16; leave it out",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_plan_and_run(
    runs: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    built_on = {"encoder_run": str(runs / "encoder"), "vae_run": str(runs / "vae")}
    config = load_config(
        write_config(
            tmp_path, mode="diffusion", network={**SIT, **change}, data={"shards": str(runs / "shards")}, **built_on
        )
    )
    for call in (lambda: plan(config, tmp_path / "cache"), lambda: train(config, tmp_path / "run", tmp_path / "cache")):
        with pytest.raises(InputError, match=message):
            call()


def test_tiles_of_another_size_than_the_encoder_takes_are_refused(runs: Path, tmp_path: Path) -> None:
    network = {**NETWORK, "image_size": 112}
    config = load_config(write_config(tmp_path, network=network, data={"shards": str(runs / "shards")}))
    for call in (lambda: plan(config, tmp_path / "cache"), lambda: train(config, tmp_path / "run", tmp_path / "cache")):
        with pytest.raises(InputError, match=r"network\.image_size: takes tiles of 112 px; .* have 224 px"):
            call()


def test_an_autoencoder_of_another_factor_is_exported_as_it_is(runs: Path, tmp_path: Path) -> None:
    vae = {**VAE, "unshuffle": 8}
    common = {"data": {"shards": str(runs / "shards")}}
    train(
        load_config(write_config(tmp_path, mode="vae", network=vae, vae={"crop": 64}, **common)),
        tmp_path / "vae",
        tmp_path / "cache",
    )
    built_on = {"encoder_run": str(runs / "encoder"), "vae_run": str(tmp_path / "vae"), **common}
    config = write_config(tmp_path, mode="diffusion", network={**SIT, "latent_size": 14}, **built_on)
    train(load_config(config), tmp_path / "sit", tmp_path / "cache")
    out = export(tmp_path / "sit", tmp_path / "model", model_id="m", revision="1", licence=TERMS)
    assert open_model(str(out)).tile_size_px == 224


@pytest.mark.parametrize("hostile", ["[1]", "{", '{"timing": {"seconds_per_call": "soon"}}', '{"timing": 3}'])
def test_figures_of_any_kind_never_stop_a_model(runs: Path, tmp_path: Path, hostile: str) -> None:
    out = export(runs / "sit", tmp_path / "model", model_id="m", revision="1", licence=TERMS)
    (out / "figures.json").write_text(hostile)
    assert open_model(str(out)).seconds_per_call is None
