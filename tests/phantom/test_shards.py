"""Shards and folders of phantom tiles: repeatable, resumable, readable by the tools that will read them."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from running import run

from synthfactory.embeddings.tiles import scan_tiles
from synthfactory.phantom import (
    ATTRIBUTES,
    CLASSES,
    GENERATOR_VERSION,
    GRID_CHANNELS,
    TileRef,
    Truth,
    cohort_tiles,
    write_folder,
    write_shards,
)
from synthfactory.phantom import cohort as room
from synthfactory.spec.errors import InputError

TILES = cohort_tiles("train", dict.fromkeys(CLASSES, 2))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "shards"
    assert list(write_shards(out, TILES, shard_size=5)) == [0, 5, 5, 2]
    return out


def test_members_are_adjacent_and_carry_no_time(shards: Path) -> None:
    assert sorted(contents(shards)) == ["000000.tar", "000001.tar", "000002.tar"]
    names = []
    for path in sorted(shards.iterdir()):
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression
            for member in tar:
                names.append(member.name)
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.mode == 0o644
    assert names == [f"{tile.key}.{extension}" for tile in TILES for extension in ("png", "json")]


def test_a_tile_comes_back_pixel_for_pixel_with_its_truth(shards: Path) -> None:
    with tarfile.open(shards / "000002.tar") as tar:
        for tile in TILES[10:]:
            image, truth = tile.render()
            stored, record = tar.extractfile(f"{tile.key}.png"), tar.extractfile(f"{tile.key}.json")
            assert stored is not None and record is not None
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.read()))), image)
            fields = json.load(record)
            assert fields["label"] == tile.patient.class_name and fields["label_level"] == "tile"
            assert fields["patient_id"] == tile.patient.patient_id and fields["slide_id"] == tile.slide_id
            assert fields["site"] == tile.patient.site and fields["mpp"] == 0.5
            assert fields["generator_version"] == GENERATOR_VERSION
            assert fields["attributes"] == truth.attributes and set(fields["attributes"]) == set(ATTRIBUTES)
            assert fields["grid_channels"] == list(GRID_CHANNELS)
            ranges = [2 if name.startswith("orient") else 1 for name in GRID_CHANNELS]
            assert fields["grid_scale"] == pytest.approx([span / 255 for span in ranges])
            assert fields["grid_min"] == [1.0 - span for span in ranges]
            grid = np.frombuffer(base64.b64decode(fields["grid"]), np.uint8).reshape(16, 16, len(GRID_CHANNELS))
            restored = np.array(fields["grid_min"]) + np.array(fields["grid_scale"]) * grid
            assert (np.abs(restored - truth.grid) <= 0.51 * np.array(fields["grid_scale"])).all()


def test_webdataset_reads_them(shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.iterdir())]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [tile.key for tile in TILES]
    assert samples[0]["png"].shape == (224, 224, 3)
    assert samples[0]["json"]["label"] == TILES[0].patient.class_name


def test_any_number_of_workers_writes_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    assert sum(write_shards(tmp_path / "two", TILES, shard_size=5, workers=2)) == len(TILES)
    assert contents(tmp_path / "two") == contents(shards)


def test_a_second_run_writes_only_what_is_missing(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    for name in ("000000.tar", "000002.tar"):
        (out / name).write_bytes((shards / name).read_bytes())
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert list(write_shards(out, TILES, shard_size=5)) == [7, 5]
    assert contents(out) == contents(shards)
    assert all((out / name).stat().st_mtime_ns == then for name, then in before.items())
    assert list(write_shards(out, TILES, shard_size=5)) == [12]


def test_an_interrupted_shard_never_has_its_final_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = TileRef.render

    def fails(tile: TileRef) -> tuple[np.ndarray, Truth]:
        if tile.key == TILES[7].key:
            raise KeyboardInterrupt
        return drawn(tile)

    with monkeypatch.context() as patched:
        patched.setattr(TileRef, "render", fails)
        with pytest.raises(KeyboardInterrupt):
            list(write_shards(tmp_path, TILES, shard_size=5))
    assert sorted(path.name for path in tmp_path.glob("*.tar") if not path.name.startswith(".")) == ["000000.tar"]
    list(write_shards(tmp_path, TILES, shard_size=5))
    assert contents(tmp_path) == contents(shards)  # what the first call left half-written is gone


def test_a_folder_is_a_source_of_tiles(tmp_path: Path) -> None:
    tiles = TILES[:6]
    assert list(write_folder(tmp_path, tiles)) == [1] * 6
    with open(tmp_path / "tiles.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["patient_id"] for row in rows] == [tile.patient.patient_id for tile in tiles]
    assert [row["slide_id"] for row in rows] == [tile.slide_id for tile in tiles]
    assert all(float(row["mpp"]) == 0.5 for row in rows)
    for row, tile in zip(rows, tiles, strict=True):
        with Image.open(tmp_path / row["tile"]) as image:
            assert np.array_equal(np.asarray(image), tile.render()[0])
    classes = sorted({tile.patient.class_name for tile in tiles})
    found = scan_tiles(str(tmp_path), str(tmp_path / "tiles.csv"), "tile", classes)
    assert sorted(x for x in found.patient_ids if x) == sorted(tile.patient.patient_id for tile in tiles)


@pytest.mark.parametrize("kind", ["shards", "tiles"])
def test_a_folder_of_other_tiles_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    asked = ["phantom", kind, tmp_path / "out", "--cohort", "bank", "--per-class", 2, "--class"]
    assert run(*asked, "phantom-gland").code == 0
    before = contents(tmp_path / "out")
    for other in (("phantom-stroma",), ("phantom-gland", "--first-patient", 100)):
        ended = run(*asked, *other)
        assert ended.code == 2
        assert "holds other tiles already" in ended.err
        assert contents(tmp_path / "out") == before
    assert run(*asked, "phantom-gland").code == 0


def test_shards_of_another_version_of_the_generator_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(write_shards(tmp_path, TILES, shard_size=5))
    monkeypatch.setattr(room, "GENERATOR_VERSION", GENERATOR_VERSION + 1)
    with pytest.raises(InputError, match=r"holds other tiles already \(000000\.tar\)"):
        list(write_shards(tmp_path, TILES, shard_size=5))


def test_shards_beyond_those_asked_for_are_refused(shards: Path) -> None:
    with pytest.raises(InputError, match=r"holds other tiles already \(000002\.tar\)"):
        list(write_shards(shards, TILES[:10], shard_size=5))
