"""What is trained on: tars listed and checked, patients kept apart, one order whatever the number of workers, tiles as they are."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from training import SIDE, data_of, image_of, plain, write_tar

from synthfactory.spec.errors import InputError
from train import shardset
from train.loader import Loader, Share
from train.sampler import Order
from train.shardset import Reader, open_index
from train.split import split
from train.symmetry import transformed, with_stain

if TYPE_CHECKING:
    from s3server import Bucket


def order_of(count: int, labels: Any = None, weights: Any = None, **more: Any) -> Order:
    rows = np.arange(count)
    return Order(
        3,
        rows,
        np.zeros(count, int) if labels is None else np.asarray(labels),
        np.ones(count) if weights is None else np.asarray(weights, float),
        **more,
    )


def test_every_tile_is_seen_once_a_pass_and_passes_differ() -> None:
    order = order_of(10)
    rows = order.rows(range(30))
    assert [sorted(rows[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert len({tuple(rows[start : start + 10]) for start in (0, 10, 20)}) == 3
    assert order.rows([17, 3]).tolist() == [rows[17], rows[3]]  # of the position alone


def test_weights_say_how_often_a_set_is_seen() -> None:
    order = order_of(14, weights=[2.0] * 4 + [0.5] * 8 + [1.25] * 2)
    counts = np.bincount(order.rows(range(58)), minlength=14)  # four passes of 8 + 4 + 2.5
    assert set(counts[:4]) == {8}
    assert (counts[4:12].sum(), counts[12:].sum()) == (16, 10)
    assert counts[4:12].max() <= 4
    assert order.pass_length == 15


@pytest.mark.parametrize(("weights", "wanted"), [([0.04] * 12, 48), ([0.5], 50), ([1.5] * 3, 450), ([0.01], 1)])
def test_a_weight_holds_on_average_however_few_tiles_have_it(weights: list[float], wanted: int) -> None:
    order = order_of(100 + len(weights), weights=[1.0] * 100 + weights)
    positions = 100 * 100 + wanted  # a hundred passes
    rows = order.rows(range(positions))
    assert (rows >= 100).sum() == wanted
    assert set(np.bincount(rows)[:100]) == {100}
    assert order.rows([777, 9, positions - 1]).tolist() == rows[[777, 9, -1]].tolist()
    alone = order_of(len(weights), weights=weights).rows(range(4 * len(weights)))
    assert set(alone) == set(range(len(weights)))  # against nothing else, a weight says nothing


def test_balanced_classes_stand_in_every_block() -> None:
    labels = [0] * 50 + [1] * 5 + [2] * 2
    rows = order_of(57, labels, sampling="balanced").rows(range(300))
    seen = np.asarray(labels)[rows].reshape(100, 3)
    assert (np.sort(seen, axis=1) == [0, 1, 2]).all()
    assert np.bincount(rows, minlength=57)[:50].max() <= 2
    assert set(np.bincount(rows, minlength=57)[55:]) == {50}


def test_workers_share_one_order() -> None:
    whole = Share().of(7, 12)
    assert np.concatenate([Share(rank, 3).of(7, 12) for rank in range(3)]).tolist() == whole.tolist()


def test_tars_are_listed_from_any_place(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(6), plain)
    write_tar(tmp_path / "a" / "deep" / "1.tar", range(6, 9), plain)
    (tmp_path / "a" / ".tmp-17-2.tar").write_bytes(b"somebody is still writing it")
    write_tar(tmp_path / "b" / "x.tar", range(20, 22), lambda n: {"label": "rare", "synthetic": True})
    cache = tmp_path / "cache"
    assert len(open_index(data_of(tmp_path / "a"), cache)) == 9
    assert len(open_index(data_of(tmp_path / "a" / "*.tar"), cache)) == 6
    index = open_index(
        data_of([{"shards": str(tmp_path / "a")}, {"shards": str(tmp_path / "b" / "x.tar"), "weight": 2}]), cache
    )
    assert index.classes == ("a", "b", "c", "rare")
    assert index.sets.tolist() == [0] * 9 + [1] * 2
    assert index.synthetic.tolist() == [False] * 9 + [True] * 2
    assert [index.patient_names[at] for at in index.patients[:4]] == ["p-a-0", "p-b-0", "p-c-0", "p-a-1"]
    assert index.patients[9] == -1
    reader = Reader(index)
    with Loader(index, order_of(11), seed=0, batch=2, threads=2) as loader:
        assert np.array_equal(loader.images(np.asarray([9, 4]))[0], image_of(20))
    assert reader.read(0)[:4] == b"\x89PNG"


def test_a_listing_is_kept_until_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a" / "0.tar", range(6), plain)
    first = open_index(data_of(path), tmp_path / "cache")
    real, calls = shardset._read, []
    monkeypatch.setattr(shardset, "_read", lambda tar: calls.append(tar) or real(tar))
    again = open_index(data_of(path), tmp_path / "cache")
    assert not calls
    assert again.digest == first.digest
    assert np.array_equal(again.offsets, first.offsets)
    write_tar(path, range(7), plain)
    assert len(open_index(data_of(path), tmp_path / "cache")) == 7
    for kept in (tmp_path / "cache" / "index").iterdir():
        kept.write_bytes(b"PK damaged")
    assert len(open_index(data_of(path), tmp_path / "cache")) == 7


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10_000])  # inside the last tile


def _cut_hard(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _garbage(path: Path) -> None:
    path.write_bytes(b"no tar" * 1000)


def _unlabelled(path: Path) -> None:
    write_tar(path, range(3), lambda n: {"patient_id": "p"})


def _flipped(path: Path) -> None:
    """One bit in the header of the second tile: to a reader of tars that is the end."""
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset + 150
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _joined(path: Path) -> None:
    path.write_bytes(path.read_bytes() + write_tar(path.with_name("more"), range(9, 12), plain).read_bytes())


def _says(**record: Any) -> Any:
    """Each tile's JSON says this as well."""
    return lambda path: write_tar(path, range(3), lambda n: {**plain(n), **record})


@pytest.mark.parametrize(
    "fault",
    [
        _cut, _cut_hard, _garbage, _unlabelled, _flipped, _joined, _says(attributes=[1, 2]), _says(attributes={"size": float("nan")}),
        _says(attributes={"size": 10**400}), _says(grid="AAAA", grid_channels=[]), _says(grid_channels=3),
        _says(grid="AAAA", grid_channels=["a"], grid_scale=float("inf"), grid_min=0),
    ],
)  # fmt: skip
def test_a_bad_tar_is_named_and_skipped_only_where_asked(tmp_path: Path, fault: Any) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(6), plain)
    fault(write_tar(tmp_path / "a" / "1.tar", range(6, 9), plain))
    with pytest.raises(InputError, match=r"data\.shards: .*/a/1\.tar: .*on_bad_shard: skip"):
        open_index(data_of(tmp_path / "a"), tmp_path / "cache")
    index = open_index(data_of(tmp_path / "a", on_bad_shard="skip"), tmp_path / "cache")
    assert len(index) == 6
    assert len(index.skipped) == 1
    assert "1.tar" in index.skipped[0]
    fault(write_tar(tmp_path / "a" / "2.tar", range(9, 12), plain))
    said = split(data_of(tmp_path / "a", on_bad_shard="skip"), tmp_path / "cache").warnings
    assert said[2] == "left out: 2 of 3 tars in all"
    (tmp_path / "a" / "0.tar").unlink()
    with pytest.raises(InputError, match="no tile is left"):
        open_index(data_of(tmp_path / "a", on_bad_shard="skip"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("shards", "more", "message"),
    [
        ("nowhere", {}, "nowhere: there is no such folder"),
        ("empty", {}, "holds no .tar"),
        ("nowhere.tar", {}, "nowhere.tar: is missing or cannot be read"),
        ("a", {"classes": ["a", "b"]}, "has a tile of label 'c', which is none of them"),
        ("a", {"validation": {"shards": [{"shards": "empty"}]}}, "holds no .tar"),
        ("one", {"validation": {"share": 0.5}}, "no tile is left for validation; there are too few patients"),
        ("a", {"validation": {"share": 0.1}, "classes": ["a", "b", "c"]}, None),
    ],
)
def test_what_cannot_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, more: Any, message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "a" / "0.tar", range(12), plain)
    write_tar(tmp_path / "one" / "0.tar", range(3), lambda n: {"label": "a", "patient_id": "p"})
    (tmp_path / "empty").mkdir()
    if message is None:
        split(data_of(shards, **more), tmp_path / "cache")
        return
    with pytest.raises(InputError) as caught:
        split(data_of(shards, **more), tmp_path / "cache")
    assert message in str(caught.value)


def test_tiles_come_as_they_are_but_for_what_was_asked(tmp_path: Path) -> None:
    index = open_index(data_of(write_tar(tmp_path / "0.tar", range(9), plain)), tmp_path / "cache")
    with Loader(index, order_of(9), seed=1, batch=4, threads=2) as loader:
        batches = [loader.batch(step) for step in (0, 1, 2)]
        jumped = loader.batch(1)
        for batch in batches:
            for row, symmetry, image in zip(batch.rows, batch.symmetries, batch.images, strict=True):
                assert np.array_equal(image, transformed(image_of(int(row)), int(symmetry)))
        assert np.array_equal(jumped.images, batches[1].images)
        assert len({int(s) for batch in batches for s in batch.symmetries}) > 2
    with Loader(index, order_of(9), seed=1, batch=4, share=Share(1, 2), threads=2) as half:
        assert np.array_equal(half.batch(1).images, batches[1].images[2:])
    with Loader(index, order_of(9), seed=1, batch=4, symmetries=False, stain_jitter=0.1, threads=2) as stained:
        batch = stained.batch(0)
        off = np.abs(batch.images.astype(int) - np.stack([image_of(int(row)) for row in batch.rows]).astype(int))
        assert 1 < off.mean() < 30


def test_stain_gains_multiply_optical_density() -> None:
    image = np.full((4, 4, 3), 99, np.uint8)
    density = -np.log10(100 / 256)
    found = -np.log10((with_stain(image, np.asarray([1.0, 1.5, 0.5]))[0, 0].astype(float) + 1) / 256)
    assert found == pytest.approx([density, 1.5 * density, 0.5 * density], abs=0.01)
    assert np.array_equal(with_stain(image_of(1), np.ones(3)), image_of(1))


def test_tiles_of_several_sizes_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", range(9), plain, side=lambda n: SIDE if n != 5 else 2 * SIDE)
    index = open_index(data_of(path), tmp_path / "cache")
    with (
        Loader(index, order_of(9), seed=1, batch=9, threads=2) as loader,
        pytest.raises(InputError, match=r"0\.tar: a tile of"),
    ):
        loader.batch(0)


def test_tars_are_read_from_a_bucket(s3: Bucket, tmp_path: Path) -> None:
    from synthfactory.shards.store import open_store

    path = write_tar(tmp_path / "0.tar", range(5), plain)
    open_store(f"{s3.url}/real").put("0.tar", path.read_bytes())
    index = open_index(data_of(f"{s3.url}/real"), tmp_path / "cache")
    with Loader(index, order_of(5), seed=1, batch=5, symmetries=False, threads=3) as loader:
        batch = loader.batch(0)
    assert all(np.array_equal(image, image_of(int(row))) for row, image in zip(batch.rows, batch.images, strict=True))


def test_first_statistics_are_of_all_classes_where_tars_are_sorted_by_class(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", range(60), lambda n: {"label": "abc"[n // 20]})
    index = open_index(data_of(tmp_path / "a"), tmp_path / "cache")
    with Loader(index, order_of(60), seed=0, batch=4, threads=2) as loader:
        rows = loader.first_rows(15)
    assert len(set(rows)) == 15
    assert set(index.labels[rows]) == {0, 1, 2}
