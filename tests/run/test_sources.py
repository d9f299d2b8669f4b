"""Whole builds from every source of conditions, and what a plan, a lock and a card say of them."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import source_making as making
import yaml
from running import contents, run

from synthfactory.run.prepare import prepare
from synthfactory.shards.reader import iter_tiles
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]
ARRAYS = ("npy", "npz", "safetensors")


def lineage_rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path, data in contents(folder / "lineage").items() if path.startswith("units/")
        for row in pq.read_table(io.BytesIO(data)).to_pylist()
    ]  # fmt: skip


def by_first_pixels(images: np.ndarray) -> np.ndarray:
    """Embeds tiles by their first pixels."""
    return images.reshape(len(images), -1)[:, : making.EMBEDDING].astype(np.float32)


@pytest.mark.parametrize("kind", ["hdf5", "tiles", "shards", *ARRAYS])
def test_a_set_is_built_from_every_source(kind: str, spec_file: MakeSpec, tmp_path: Path) -> None:
    spec = spec_file(embeddings=making.write_source(kind, tmp_path / "real"), classes={"alpha": 6, "beta": 3})
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    assert re.search(r"^alpha +6 +\d+ +3 +3 +12  region$", planned.out, re.M), planned.out
    assert "one site" not in planned.out
    bank = prepare(load_spec(str(spec))).with_embedded(by_first_pixels, tmp_path / "cache", lambda _: None).bank
    assert bank is not None
    assert bank.sites == tuple(making.site_of(str(patient)) for patient in bank.patient_ids)
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    assert run("verify", tmp_path / "out").out.endswith("no fault found\n")
    rows = lineage_rows(tmp_path)
    assert {part["patient_id"] for row in rows for part in row["sources"]} == {
        patient for _, _, patient in making.slides()
    }
    assert {record["label_level"] for _, _, record in iter_tiles(str(tmp_path / "out"))} == {"region"}
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    assert (lock["encoder"]["token"], lock["training_cohort"]) == ("class", "none")
    before = contents(tmp_path / "out")
    assert run("build", spec, "--local").code == 0
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["hdf5", *ARRAYS])
def test_features_are_the_same_bank_in_every_form(kind: str, spec_file: MakeSpec, tmp_path: Path) -> None:
    found = prepare(load_spec(str(spec_file(embeddings=making.write_source(kind, tmp_path / "real"))))).bank
    assert found is not None
    at = {(label, patient, slide): number for number, (slide, label, patient) in enumerate(making.slides())}
    for row in range(len(found)):
        number = at[found.labels[row], str(found.patient_ids[row]), str(found.slide_ids[row])] * making.PER_SLIDE
        own = making.vectors()[number : number + making.PER_SLIDE]
        assert (own == found.embeddings[row]).all(axis=1).sum() == 1
    assert len(found) == len(making.vectors())


def test_tiles_of_a_folder_and_of_tars_are_one_bank(spec_file: MakeSpec, tmp_path: Path) -> None:
    for kind in ("tiles", "shards"):
        out = {"path": str(tmp_path / kind), "shard_size": 8}
        given = making.write_source(kind, tmp_path / "real")
        spec = spec_file(f"{kind}.yaml", embeddings=given, output=out, lineage=f"{tmp_path}/{kind}-lineage")
        assert run("build", spec, "--local").code == 0
    shards = [contents(tmp_path / kind) for kind in ("tiles", "shards")]
    assert shards[0] == shards[1]


def test_sources_behind_urls(spec_file: MakeSpec, tmp_path: Path) -> None:
    memory, folder = fsspec.filesystem("memory"), tmp_path / "real"
    given = {kind: making.write_source(kind, folder) for kind in ("hdf5", "shards", "npz")}
    try:
        for path in folder.rglob("*"):
            if path.is_file():
                memory.pipe_file(f"/real/{path.relative_to(folder)}", path.read_bytes())
        for kind, source in given.items():
            there = json.loads(json.dumps(source).replace(str(folder), "memory://real"))
            banks = []
            for name, embeddings in (("here", source), ("there", there)):
                prepared = prepare(load_spec(str(spec_file(f"{kind}-{name}.yaml", embeddings=embeddings))))
                tiles = prepared.conditions.tiles
                banks.append(tiles.labels if tiles else prepared.bank.mac(b"k"))  # type: ignore[union-attr]
                if tiles:
                    assert tiles.reader()(3) == making.png(making.picture(3))
            assert banks[0] == banks[1], kind
    finally:
        memory.rm("/real", recursive=True)


def test_unconditional_tiles_say_so(spec_file: MakeSpec, tmp_path: Path) -> None:
    given = {
        "embeddings": {"unconditional": True},
        "classes": {"tissue": 9},
        "sampler": {"steps": 3, "guidance": {"scale": 1.0}},
    }
    spec = spec_file(**given)
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    assert "unconditional" in planned.out
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    tiles = list(iter_tiles(str(tmp_path / "out")))
    assert {record["label_level"] for _, _, record in tiles} == {"unconditional"}
    assert len({image.tobytes() for _, image, _ in tiles}) == 9
    card = (tmp_path / "out/README.md").read_text()
    assert "drawn without conditions" in card
    assert "embedding of one real tile" not in card
    assert "conditioned on one real tile" not in card
    assert all(row["sources"] == [] for row in lineage_rows(tmp_path))
    assert run("verify", tmp_path / "out").code == 0


def test_no_condition_is_the_null_condition_of_the_model(tiny: Path) -> None:
    from synthfactory.model.folder import open_model
    from synthfactory.model.weights import load_model
    from synthfactory.sample.engine import Engine
    from synthfactory.spec.sampler import Guidance, Sampler

    model = load_model(open_model(str(tiny / "model")))
    engine, keys = Engine(model), [(1, 2), (3, 4)]
    alone = engine.begin(None, keys, Sampler(steps=3, guidance=Guidance(scale=1.0))).wait()[0]
    # With scale s, d = u + s (c - u): where every condition is the null one, guidance changes nothing.
    guided = engine.begin(None, keys, Sampler(steps=3, guidance=Guidance(scale=7.0))).wait()[0]
    assert np.abs(alone.astype(int) - guided).max() <= 1
    given = engine.draw(np.ones((2, 16), np.float32), keys, Sampler(steps=3, guidance=Guidance(scale=1.0)))
    assert np.abs(alone.astype(int) - given).max() > 3


def test_barcodes_of_a_training_cohort_are_marked_and_named_nowhere(spec_file: MakeSpec, tmp_path: Path) -> None:
    rows = [
        {"label": label, "patient_id": f"TCGA-A1-A0S{n}", "slide_id": f"TCGA-A1-A0S{n}-01Z-00-DX1"}
        for n, (_, label, _) in enumerate(making.slides()) for _ in range(making.PER_SLIDE)
    ]  # fmt: skip
    given = making.write_source("npy", tmp_path / "real")
    spec = spec_file(embeddings={**given, "labels": making.write_csv(tmp_path / "tcga.csv", rows)})
    planned = run("plan", spec)
    assert "CytoSyn was trained on TCGA; evaluations on them are contaminated" in " ".join(planned.out.split())
    assert "note: alpha: 12 of its 12 rows are of 3 TCGA patients" in planned.out
    assert "note: beta: 12 of its 12 rows are of 3 TCGA patients" in planned.out
    assert run("build", spec, "--local").code == 0
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    assert lock["training_cohort"] == "some"
    assert "contaminated" in (tmp_path / "out/README.md").read_text()
    published = b"".join(contents(tmp_path / "out").values())
    assert b"TCGA-A1" not in published


@pytest.mark.parametrize("kind", ["npy", "tiles"])
def test_a_plan_says_which_classes_rest_on_a_training_cohort(kind: str, spec_file: MakeSpec, tmp_path: Path) -> None:
    given = making.write_source(kind, tmp_path / "real")
    csv = Path(given["labels" if kind == "npy" else "metadata"])
    text = csv.read_text().replace("PATIENT-alpha-0", "TCGA-A1-A0S0").replace("SLIDE-alpha-1", "tcga-a1-a0s1-01Z")
    csv.write_text(text)
    planned = run("plan", spec_file(embeddings=given))
    assert "note: alpha: 8 of its 12 rows are of 2 TCGA patients" in planned.out
    assert "note: no row of beta is known to be of TCGA" in planned.out
    assert "A0S0" not in planned.out


def test_first_768_of_1536_are_taken_and_recorded(tmp_path: Path) -> None:
    from synthfactory.embeddings.hdf5 import open_features
    from synthfactory.embeddings.indexing import build_bank

    model = {"id": "h0-mini", "sha256": "5" * 64, "token": "class"}
    source, warnings = open_features(
        making.write_features(tmp_path / "features", 1536, encoder="h0-mini"), making.slide_labels(tmp_path / "s.csv"),
        width=768, model_encoder=model, declared=None, token="first_768", label_level="slide", mpp=0.5, tile_size_px=32,
        classes=["alpha", "beta"],
    )  # fmt: skip
    assert open_features(
        making.write_features(tmp_path / "trident", 1536, encoder="h0-mini", token="cls+mean"), str(tmp_path / "s.csv"),
        width=768, model_encoder={**model, "id": "bioptimus/H0-mini"}, declared={"id": "h0-mini", "token": "class"},
        token="first_768", label_level="slide", mpp=0.5, tile_size_px=32, classes=None,
    )[0].encoder == {**model, "id": "bioptimus/H0-mini", "token": "first_768"}  # fmt: skip
    bank = build_bank(source, ["alpha", "beta"])
    assert (bank.width, bank.encoder["token"], warnings) == (768, "first_768", ())
    whole = {row[:768].tobytes() for row in making.vectors(1536)}
    assert {row.tobytes() for row in bank.embeddings} == whole


def test_a_pattern_may_stand_for_the_one_array(spec_file: MakeSpec, tmp_path: Path) -> None:
    given = making.write_source("npy", tmp_path / "real")
    planned = run("plan", spec_file(embeddings={**given, "arrays": str(tmp_path / "real/feat*.npy")}))
    assert planned.code == 0, planned.err


def test_an_npz_may_name_its_encoder(spec_file: MakeSpec, tmp_path: Path) -> None:
    given = making.write_source("npz", tmp_path / "real")
    np.savez(given["arrays"], x=making.vectors(), encoder="tiny-encoder", mpp=np.float32(0.5), token=np.bytes_(b"cls"))
    planned = run("plan", spec_file(embeddings={**given, "encoder": None, "mpp": None}))
    assert planned.code == 0, planned.err


def test_tumour_fraction_screens_rows_before_anything_is_drawn(spec_file: MakeSpec, tmp_path: Path) -> None:
    given = making.write_source("npy", tmp_path / "real")
    rows = [
        {"label": label, "patient_id": p, "slide_id": s, "tumour_fraction": 0.25 * n}
        for s, label, p in making.slides() for n in range(making.PER_SLIDE)
    ]  # fmt: skip
    labels = making.write_csv(tmp_path / "rows.csv", rows)
    spec = spec_file(embeddings={**given, "labels": labels, "screen": {"min_tumour_fraction": 0.5}})
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    assert "note: alpha: embeddings.screen left out 6 tumour_fraction; 6 rows remain" in planned.out
    bank = prepare(load_spec(str(spec))).bank
    assert bank is not None
    kept = {row.tobytes() for number, row in enumerate(making.vectors()) if number % 4 >= 2}
    assert {row.tobytes() for row in bank.embeddings} == kept


def test_features_of_h0_mini_go_with_a_model_that_names_its_repository(
    tiny: Path, spec_file: MakeSpec, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["encoder"] = {"id": "bioptimus/H0-mini"}  # as an import of CytoSyn writes it
    del config["files"]["encoder.safetensors"]
    (model / "config.json").write_text(json.dumps(config))
    (model / "encoder.safetensors").unlink()
    given, terms = making.write_source("hdf5", tmp_path / "real"), {"accept": ["CC-BY-NC-ND-4.0"]}
    for encoder in ({"id": "h0-mini"}, {"id": "hf-hub:bioptimus/H0-mini"}):
        spec = spec_file(model=str(model), embeddings={**given, "encoder": encoder}, terms=terms)
        planned = run("plan", spec)
        assert planned.code == 0, planned.err
    trident = making.write_features(tmp_path / "trident", encoder="h0-mini", token="cls_token")
    spec = spec_file(model=str(model), embeddings={**given, "hdf5": trident, "encoder": None}, terms=terms)
    assert run("build", spec, "--local").code == 0
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    assert (lock["encoder"]["id"], lock["encoder"]["token"]) == ("bioptimus/H0-mini", "class")


def test_overlapping_tiles_are_counted(spec_file: MakeSpec, tmp_path: Path) -> None:
    given = making.declared(
        hdf5=making.write_features(tmp_path / "f", patch_size_level0=65), labels=making.slide_labels(tmp_path / "s.csv")
    )
    planned = run("plan", spec_file(embeddings=given))
    assert planned.code == 0
    assert "24 tiles overlap another of their slide" in planned.err
    apart = {**given, "hdf5": making.write_features(tmp_path / "g", patch_size_level0=64)}
    assert "overlap" not in run("plan", spec_file(embeddings=apart)).err
