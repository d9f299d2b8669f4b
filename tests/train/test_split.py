"""Who is trained on and who is only looked at: patients kept apart, whatever sets, lineages and names say of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import run
from tinymodel import make_bank_file, make_tiny_model
from training import data_of, image_of, plain, write_tar, write_yaml

from synthfactory.embeddings.rows import spelled
from synthfactory.spec.errors import InputError
from train.config import ShardSet
from train.shardset import open_index
from train.split import behind, split


def test_patients_are_on_one_side_and_stay_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(36), plain)
    held = split(data_of(tmp_path / "a", validation={"share": 0.25}), tmp_path / "cache")
    names = held.index.patient_names

    def patients(found: Any, rows: np.ndarray) -> set[str]:
        return {found.index.patient_names[at] for at in found.index.patients[rows]}

    assert patients(held, held.train).isdisjoint(patients(held, held.validation))
    assert len(names) == 12
    assert sorted(name[2] for name in patients(held, held.validation)) == [
        "a",
        "b",
        "c",
    ]  # a quarter of each class's four
    write_tar(tmp_path / "a" / "1.tar", range(36, 72), plain)
    more = split(data_of(tmp_path / "a", validation={"share": 0.25}), tmp_path / "cache")
    assert patients(more, more.validation) == patients(held, held.validation)
    assert len(more.validation) == 2 * len(held.validation)


def test_a_split_that_leaks_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(12), plain)
    write_tar(tmp_path / "b" / "0.tar", range(100, 106), plain)
    write_tar(tmp_path / "c" / "0.tar", range(200, 206), lambda n: {**plain(n), "patient_id": f"other-{n}"})
    apart = {"shards": [{"shards": str(tmp_path / "c")}]}
    found = split(data_of(tmp_path / "a", validation=apart), tmp_path / "cache")
    assert (len(found.train), len(found.validation)) == (12, 6)
    leaking = {"shards": [{"shards": str(tmp_path / "b")}]}
    with pytest.raises(InputError, match="patients of theirs are in the training tiles as well"):
        split(data_of(tmp_path / "a", validation=leaking), tmp_path / "cache")
    write_tar(tmp_path / "c" / "0.tar", range(200, 206), lambda n: {"label": "a", "patient_id": "unknown"})
    with pytest.raises(InputError, match="the patient of 6 tiles is unknown"):
        split(data_of(tmp_path / "a", validation=apart), tmp_path / "cache")
    found = split(data_of(tmp_path / "a", validation=apart, unknown_patients="train"), tmp_path / "cache")
    assert len(found.validation) == 6
    assert "the patient of 6 validation tiles is unknown, and may be trained on" in found.warnings
    write_tar(tmp_path / "c" / "0.tar", range(200, 206), lambda n: {"label": "a", "patient_id": "P-A- 1"})
    with pytest.raises(InputError, match=r'letters only \("p-a-1" in training and "P-A- 1" in validation\)'):
        split(data_of(tmp_path / "a", validation=apart), tmp_path / "cache")


def test_one_picture_of_two_patients_on_both_sides_is_said(tmp_path: Path) -> None:
    """As packed sets tell pictures apart, by their pixels."""
    for number in range(8):
        place = tmp_path / f"tiles/a/p{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of(0 if number < 4 else number)).save(place, compress_level=number)
    lines = ["tile,patient_id", *(f"a/p{number}.png,p{number}" for number in range(8))]
    (tmp_path / "tiles/tiles.csv").write_text("\n".join(lines))
    given = ["--metadata", tmp_path / "tiles/tiles.csv", "--label-level", "tile", "--mpp", 0.5]
    assert run("pack", tmp_path / "tiles", tmp_path / "packed", *given).code == 0
    said = split(data_of(tmp_path / "packed", validation={"share": 0.5}), tmp_path / "cache")
    held = {said.index.patient_names[at] for at in said.index.patients[said.validation]}
    assert 0 < len(held & {"p0", "p1", "p2", "p3"}) < 4  # else the case is not that of this test
    assert said.warnings == (
        "1 picture of packed tiles on both sides, under different patients: look whether one person has two names",
    )


def pq_bytes(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def test_sets_of_ours_bring_their_patients_and_their_conditions(tmp_path: Path) -> None:
    """A packed set, and a synthetic one whose lineage says on whose tiles it rests."""
    model = make_tiny_model(tmp_path / "model")
    bank = make_bank_file(tmp_path / "bank.parquet", model, classes={"one": 2, "two": 2})
    spec = {
        "name": "made", "model": str(model), "classes": {"one": 6, "two": 6}, "embeddings": {"bank": str(bank)}, "seed": 1,
        "sampler": {"steps": 2}, "output": {"path": str(tmp_path / "made")}, "lineage": str(tmp_path / "lineage"),
    }  # fmt: skip
    assert run("build", write_yaml(tmp_path / "spec.yaml", spec), "--local").code == 0
    made = {"shards": str(tmp_path / "made"), "lineage": str(tmp_path / "lineage")}
    index = open_index(data_of([made]), tmp_path / "cache")
    assert (len(index), bool(index.synthetic.all()), index.classes) == (12, True, ("one", "two"))
    import pyarrow.parquet as pq

    patients = pq.read_table(bank, columns=["label", "patient_id"]).to_pylist()
    assert behind(ShardSet.model_validate(made)) == {spelled(row["patient_id"]) for row in patients}
    write_tar(tmp_path / "real" / "0.tar", range(4), lambda n: patients[n], side=lambda n: 32)
    validation = {"shards": [{"shards": str(tmp_path / "real")}]}
    with pytest.raises(
        InputError, match=r"data\.shards\.0: its tiles were drawn from \d patients? of the validation side"
    ):
        split(data_of([made], validation=validation), tmp_path / "cache")
    write_tar(
        tmp_path / "real" / "0.tar", range(4), lambda n: {**patients[n], "patient_id": f"new-{n}"}, side=lambda n: 32
    )
    assert split(data_of([made], validation=validation), tmp_path / "cache").warnings == ()
    real = {"shards": str(tmp_path / "apart")}  # which rests on nobody, and so has no lineage
    write_tar(
        tmp_path / "apart" / "0.tar",
        range(4, 8),
        lambda n: {**patients[n], "patient_id": f"more-{n}"},
        side=lambda n: 32,
    )
    assert split(data_of([real, made], validation=validation), tmp_path / "cache").warnings == ()
    (tmp_path / "other/units").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "lineage/units").glob("*.parquet"))):
        shutil.copy(path, tmp_path / f"other/units/{number:06d}-0123456789ab.parquet")
    with pytest.raises(InputError, match=r"lineage .*other: says nothing of .*tar; name the lineage of that very set"):
        split(data_of([{**made, "lineage": str(tmp_path / "other")}], validation=validation), tmp_path / "cache")
    unsaid = split(data_of([{"shards": made["shards"]}], validation=validation), tmp_path / "cache")
    assert "name the set's lineage" in unsaid.warnings[0]
    write_tar(tmp_path / "old" / "0.tar", range(4), lambda n: patients[n], side=lambda n: 32)
    other_way = data_of(tmp_path / "old", validation={"shards": [made]})
    with pytest.raises(
        InputError, match=r"validation\.shards\.0: its tiles were drawn from \d patients? of the training"
    ):
        split(other_way, tmp_path / "cache")
    unsaid = split(data_of(tmp_path / "old", validation={"shards": [{"shards": made["shards"]}]}), tmp_path / "cache")
    assert "lineage under data.validation.shards" in unsaid.warnings[0]
    unit = next((tmp_path / "lineage" / "units").glob("*.parquet"))
    whole = unit.read_bytes()
    for damaged in (whole[:100], pq_bytes({"key": ["a"]})):
        unit.write_bytes(damaged)
        with pytest.raises(InputError, match=r"lineage .*parquet is damaged or no lineage"):
            split(data_of([made], validation=validation), tmp_path / "cache")
    unit.write_bytes(whole)
    (tmp_path / "made" / "shards").rename(tmp_path / "elsewhere")  # it was listed before
    with pytest.raises(InputError, match=r"\.tar: is missing or cannot be read"):
        open_index(data_of([made]), tmp_path / "cache")
    both = data_of([made, {"shards": str(tmp_path / "old")}], on_bad_shard="skip")
    left = open_index(both, tmp_path / "cache")
    assert ("is missing" in left.skipped[0], len(left)) == (True, 4)


def test_a_class_that_is_all_synthetic_beside_a_real_one_is_said(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(6), lambda n: {"label": "common"})
    write_tar(tmp_path / "a" / "1.tar", range(6, 9), lambda n: {"label": "rare", "synthetic": True})
    (warning,) = split(data_of(tmp_path / "a"), tmp_path / "cache").warnings
    assert "class 'rare' has synthetic tiles only and class 'common' real ones only" in warning


def test_the_very_same_tar_on_both_sides_is_refused_whatever_is_known_of_patients(tmp_path: Path) -> None:
    nobody = {"label": "a"}
    write_tar(tmp_path / "a" / "0.tar", range(6), lambda n: nobody)
    write_tar(tmp_path / "b" / "other.tar", range(6), lambda n: nobody)
    apart = {"shards": [{"shards": str(tmp_path / "b")}]}
    with pytest.raises(InputError, match=r"other\.tar is the very same tar as .*0\.tar in data\.shards"):
        split(data_of(tmp_path / "a", validation=apart, unknown_patients="train"), tmp_path / "cache")


def test_a_class_that_nothing_teaches_is_named(tmp_path: Path) -> None:
    """Class b's patient is held out for class a's sake; nobody has tiles of c."""
    people = {**{n: ("a", f"p{n % 4}") for n in range(12)}, 12: ("b", "p0"), 13: ("b", "p0")}
    write_tar(tmp_path / "a" / "0.tar", range(14), lambda n: {"label": people[n][0], "patient_id": people[n][1]})
    names = split(data_of(tmp_path / "a", validation={"share": 0.25}), tmp_path / "cache")
    held = {names.index.patient_names[at] for at in np.unique(names.index.patients[names.validation])}
    other = {**people, 12: ("b", held.copy().pop()), 13: ("b", held.copy().pop())}
    write_tar(tmp_path / "a" / "0.tar", range(14), lambda n: {"label": other[n][0], "patient_id": other[n][1]})
    found = split(data_of(tmp_path / "a", validation={"share": 0.25}, classes=["a", "b", "c"]), tmp_path / "cache")
    assert (
        "class 'b' has no training tile (all 2 tiles of it are validation tiles), so nothing is learnt of it"
        in found.warnings
    )
    assert "class 'c' has no training tile (no set holds one), so nothing is learnt of it" in found.warnings
