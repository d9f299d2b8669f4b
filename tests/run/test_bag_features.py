"""`synthfactory bags`: features in TRIDENT's layout that our own source reads back, resumed, and refused where they must not lie."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from bag_making import BAGS, CLASSES
from running import contents, run, write_spec
from tinymodel import EMBEDDING, make_tiny_model

from synthfactory.embeddings import features
from synthfactory.model.encoder import open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.run.prepare import prepare
from synthfactory.shards.reader import iter_tiles
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]


@pytest.fixture(scope="module")
def bagged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with out, lineage, and one export of it: features."""
    folder = tmp_path_factory.mktemp("bagged")
    given = {"model": str(tiny / "model"), "embeddings": {"bank": str(tiny / "bank.parquet")}}
    spec = write_spec(folder / "spec.yaml", bags=BAGS, classes=CLASSES, **given)
    assert run("build", spec, "--local").code == 0
    ended = run("bags", folder / "out", folder / "features", "--encoder", tiny / "model")
    assert ended.code == 0, ended.err
    assert "5 bags with 19 tiles, of width 16 by tiny-encoder; 5 made now, 0 there" in " ".join(ended.out.split())
    assert "1 bag of fewer than 4 tiles" in ended.out
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below, links to folders left alone."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def target(bagged: Path, tmp_path: Path) -> Path:
    """A copy of the export."""
    folder = tmp_path / "features"
    folder.mkdir()
    for path in (bagged / "features").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_each_bag_is_a_file_with_its_tiles_embeddings(bagged: Path, tiny: Path) -> None:
    encoder = load_encoder(open_encoder(str(tiny / "model")))
    wanted: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, image, record in iter_tiles(str(bagged / "out")):
        wanted.setdefault(record["bag_id"], []).append((key, encoder.embed(np.stack([image] * 4))[0]))
    files = sorted((bagged / "features").glob("*.h5"))
    assert [path.stem for path in files] == sorted(wanted)
    for path in files:
        with h5py.File(path) as handle:
            assert handle["features"].dtype == np.float32 and handle["coords"].dtype == np.int64
            vectors = np.stack([vector for _, vector in sorted(wanted[path.stem], key=lambda pair: pair[0])])
            np.testing.assert_allclose(handle["features"][:], vectors, atol=1e-5)
            coords = handle["coords"][:]
            assert coords.shape == (len(vectors), 2)
            assert len({tuple(place) for place in coords.tolist()}) == len(vectors)
            assert (coords % 32 == 0).all() and coords.min() == 0


def test_the_attributes_are_those_of_trident_and_say_that_all_is_synthetic(bagged: Path, tiny: Path) -> None:
    folder = open_encoder(str(tiny / "model"))
    with h5py.File(bagged / "features/tiny-alpha-bag-000001.h5") as handle:
        own, features_says, coords = (dict(holder.attrs) for holder in (handle, handle["features"], handle["coords"]))
    assert own["synthetic"] and own["bag_id"] == "tiny-alpha-bag-000001" and own["label"] == "alpha"
    assert (own["model_id"], own["mpp"], own["label_level"]) == ("tiny", 0.5, "tile")
    assert json.loads(own["licence"])["name"] == "Apache-2.0"
    assert features_says["name"] == "tiny-alpha-bag-000001"
    assert (features_says["encoder"], features_says["encoder_sha256"]) == (folder.id, folder.sha256)
    assert {"name", "savetodir"} <= features_says.keys()
    assert {
        "patch_size",
        "patch_size_level0",
        "level0_magnification",
        "target_magnification",
        "overlap",
        "name",
    } <= coords.keys()
    assert (coords["patch_size"], coords["patch_size_level0"], coords["target_magnification"]) == (32, 32, 20)
    assert coords["meaning"].startswith("invented")  # fmt: skip


def test_labels_and_terms_stand_beside_and_nothing_of_patients(bagged: Path) -> None:
    folder = bagged / "features"
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    assert [row["slide_id"] for row in rows] == sorted(path.stem for path in folder.glob("*.h5"))
    assert all(row["case_id"] == row["slide_id"] and row["label"] == row["slide_id"].split("-")[1] for row in rows)
    readme, about = (folder / "README.md").read_text(), json.loads((folder / "bags.json").read_text())
    assert (
        "Coordinates are invented" in readme
        and "a split by case_id is no split by patient" in readme
        and "Apache-2.0" in readme
    )
    assert about["synthetic"] is True and about["licence"]["name"] == "Apache-2.0"
    assert about["encoder"]["id"] == "tiny-encoder" and about["coords"].startswith("invented")
    assert not any(b"PATIENT" in data or b"SLIDE" in data or b"/tmp" in data for data in contents(folder).values())


def test_our_own_source_reads_it_back(bagged: Path, spec_file: MakeSpec) -> None:
    folder = bagged / "features"
    given = {"hdf5": str(folder), "labels": str(folder / "labels.csv")}
    spec = spec_file(embeddings=given, classes={"alpha": 3, "beta": 3})
    prepared = prepare(load_spec(str(spec)))
    bank = prepared.bank
    assert bank is not None and len(bank) == 19
    assert prepared.conditions.cohort == "unknown"  # and not that nobody of a training set is among them
    assert "column 'case_id' is not read" in " ".join(prepared.conditions.warnings)
    assert "5 of 5 files are features of synthetic tiles" in " ".join(prepared.conditions.warnings)
    for row in range(19):
        with h5py.File(folder / f"{bank.slide_ids[row]}.h5") as handle:
            assert (handle["features"][:] == bank.embeddings[row]).all(axis=1).sum() == 1
        assert bank.labels[row] in str(bank.slide_ids[row])
    assert run("plan", spec).code == 0


def test_what_is_there_is_not_made_again_and_what_is_missing_is(bagged: Path, target: Path, tiny: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.h5")}
    whole = contents(target)
    (target / "tiny-beta-bag-000001.h5").unlink()
    (target / "tiny-alpha-bag-000000.h5").write_bytes(b"cut off")
    with h5py.File(target / "tiny-beta-bag-000000.h5", "r+") as handle:
        del handle["features"]
    (target / "labels.csv").unlink()
    (target / ".tmp-tiny-beta-bag-000001.h5").write_bytes(b"left by a run that was killed")
    ended = run("bags", bagged / "out", target, "--encoder", tiny / "model")
    assert ended.code == 0, ended.err
    assert "3 made now, 2 there before" in " ".join(ended.out.split())
    after = {path.name: path.stat().st_mtime_ns for path in target.glob("*.h5")}
    assert {name for name in after if after[name] != before[name]} == {
        "tiny-beta-bag-000000.h5",
        "tiny-beta-bag-000001.h5",
        "tiny-alpha-bag-000000.h5",
    }
    assert contents(target).keys() == whole.keys()
    assert contents(target)["labels.csv"] == whole["labels.csv"]
    for name in ("tiny-beta-bag-000001.h5", "tiny-alpha-bag-000000.h5"):
        with h5py.File(target / name) as one, h5py.File(bagged / "features" / name) as other:
            np.testing.assert_allclose(one["features"][:], other["features"][:], atol=1e-5)


def test_a_bag_that_grew_is_made_again(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    made = []
    for count in (6, 8):
        assert run("build", spec_file(bags=BAGS, classes={"alpha": count}), "--local").code == 0
        made.append(run("bags", tmp_path / "out", tmp_path / "features", "--encoder", tiny / "model").out)
    assert "2 made now" in made[0] and "1 made now, 1 there before" in " ".join(made[1].split())
    with h5py.File(tmp_path / "features/tiny-alpha-bag-000001.h5") as handle:
        assert handle["features"].shape == (4, EMBEDDING)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    place = tmp_path / "a.h5"
    with pytest.raises(TypeError):
        features.write_features(place, np.ones((2, 3)), np.ones((2, 2)), {"": {"odd": object()}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of", ["another set", "the set itself"])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("out/features", "is a tile set and is published whole; name a place outside"),
        ("out", "is a tile set and is published whole; name a place outside"),
        ("link/features", "is a tile set and is published whole; name a place outside"),
        ("lineage/features", "is a lineage folder; name a place outside"),
        ("secret/features", "is a lineage folder; name a place outside"),
        ("spec.yaml", "is no folder"),
        ("other", "holds notes.txt, which is no file of this export"),
        ("unknown", "holds files, but no readable bags.json"),
        ("s3://bucket/features", "is a URL; name a folder on this machine"),
    ],
)
def test_where_it_must_not_lie(bagged: Path, tiny: Path, tmp_path: Path, of: str, where: str, words: str) -> None:
    for name in ("out", "lineage"):
        shutil.copytree(bagged / name, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "out/shards")
    (tmp_path / "spec.yaml").touch()
    for name, file in (("secret", "secret.json"), ("other", "notes.txt"), ("unknown", "labels.csv")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("mine")
    (tmp_path / "secret/leases").mkdir()
    before = listing(tmp_path)
    out = (bagged if of == "another set" else tmp_path) / "out"
    ended = run("bags", out, where if "://" in where else tmp_path / where, "--encoder", tiny / "model")
    assert ended.code == 2 and words in ended.err, ended.err
    assert listing(tmp_path) == before


def test_another_encoder_goes_elsewhere(bagged: Path, target: Path, tmp_path: Path) -> None:
    before = contents(target)
    other = make_tiny_model(tmp_path / "second", seed=9)
    ended = run("bags", bagged / "out", target, "--encoder", other)
    assert ended.code == 2 and "holds an export with another encoder; name a folder of its own" in ended.err
    assert contents(target) == before


def test_a_set_without_bags_is_told_how_to_get_them(place: Path, tiny: Path) -> None:
    ended = run("bags", place / "out", place / "features", "--encoder", tiny / "model")
    assert ended.code == 2 and "has no bags; write for example bags: {size: 64} in its spec" in ended.err
    assert not (place / "features").exists()


def test_a_damaged_set_is_refused(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    assert run("build", spec_file(bags=BAGS, classes={"alpha": 6}), "--local").code == 0
    (tar,) = (tmp_path / "out/shards").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-9] + b"x" * 9)
    ended = run("bags", tmp_path / "out", tmp_path / "features", "--encoder", tiny / "model")
    assert ended.code == 2 and "has 1 fault" in ended.err
    assert not (tmp_path / "features").exists()


def test_without_h5py_it_says_what_to_install(
    bagged: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    ended = run("bags", bagged / "out", tmp_path / "features", "--encoder", tiny / "model")
    assert ended.code == 2 and "pip install 'synthfactory[hdf5]'" in ended.err
    assert not (tmp_path / "features").exists()


def test_an_export_cut_off_at_its_first_file_goes_on(bagged: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/.tmp-bags.json").write_text("{")
    ended = run("bags", bagged / "out", tmp_path / "cut", "--model", tiny / "model")
    assert ended.code == 0, ended.err
    refused = run("bags", bagged / "out", "~nosuchuser/x", "--model", tiny / "model")
    assert refused.code == 2 and "no such user" in refused.err
