"""Banks in files: the same rows, digests and messages as in memory, found again, bounded where the source is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from bank_making import ENCODER, WIDTH, rows, write_parquet

from synthfactory.embeddings import columns as columns_module
from synthfactory.embeddings import indexing, ordering, parquet
from synthfactory.embeddings.arrays import open_array
from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.columns import Column
from synthfactory.embeddings.hdf5 import open_features
from synthfactory.embeddings.indexing import build_bank
from synthfactory.embeddings.parquet import load_bank
from synthfactory.spec.errors import InputError

KEY = b"k" * 16


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is cut into pieces of a few rows, as a hundred million rows would be."""
    monkeypatch.setattr(indexing, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(build_bank, "__kwdefaults__", {**(build_bank.__kwdefaults__ or {}), "in_memory_bytes": 0})
    monkeypatch.setattr(columns_module, "CHUNK_BYTES", 40 * WIDTH)
    monkeypatch.setattr(ordering, "SORT_BYTES", 1500)
    monkeypatch.setattr(ordering, "SAMPLE", 8)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 64)
    monkeypatch.setattr(parquet, "TEXT_ROWS", 100)


def values(count: int = 500, seed: int = 0, repeated: int = 40) -> dict[str, Any]:
    """Few labels, patients and slides, one large group without either, embeddings that repeat within it, three levels."""
    random_numbers = np.random.default_rng(seed)
    vectors = random_numbers.normal(size=(count, WIDTH)).round(1).astype(np.float32)
    labels = [("fat", "gland", "gland")[row % 3] for row in range(count)]
    group = [row for row in range(count) if labels[row] == "gland"]
    vectors[group[:repeated]] = vectors[group[0]]
    return {
        "embedding": list(vectors),
        "label": labels,
        "label_level": [("slide", "tile", "region")[int(number)] for number in random_numbers.integers(0, 3, count)],
        "patient_id": [f"P{row % 5}" if row % 3 == 0 else None for row in range(count)],
        "slide_id": [f"S{row % 7}" if row % 3 == 0 else None for row in range(count)],
        "site": [f"site-{row % 7 % 2}" if row % 3 == 0 else None for row in range(count)],
    }


def load(path: str, cache: Path | None, classes: list[str] | None = None) -> Bank:
    return load_bank(path, width=WIDTH, encoder=ENCODER, classes=classes or ["fat", "gland"], cache=cache)


def test_a_bank_in_files_is_the_bank_in_memory(tmp_path: Path, small_pieces: None) -> None:
    path = write_parquet(tmp_path / "bank.parquet", values())
    held, filed = load(path, None), load(path, tmp_path / "cache")
    assert held.vectors.file is None
    assert filed.vectors.file is not None
    assert rows(held) == rows(filed)
    assert held.sites == filed.sites and set(held.sites) == {"site-0", "site-1", None}
    assert sorted(rows(held), key=lambda row: (row[0], row[2] or "", row[3] or "", row[4], row[1])) == rows(held)
    assert held.mac(KEY) == filed.mac(KEY)
    assert held.warnings == filed.warnings
    assert "rows repeat an embedding" in held.warnings[0]


def test_the_order_of_the_file_changes_nothing_in_files_either(tmp_path: Path, small_pieces: None) -> None:
    path = write_parquet(tmp_path / "bank.parquet", values())
    expected, table = load(path, tmp_path / "cache"), pq.read_table(path)
    order = list(range(table.num_rows))
    random.Random(3).shuffle(order)
    pq.write_table(table.take(order), tmp_path / "other.parquet", row_group_size=17)
    other = load(str(tmp_path / "other.parquet"), tmp_path / "cache")
    assert rows(other) == rows(expected)
    assert other.mac(KEY) == expected.mac(KEY)


def test_rows_facts_and_patients_agree_with_the_columns(tmp_path: Path, small_pieces: None) -> None:
    bank = load(write_parquet(tmp_path / "bank.parquet", values()), tmp_path / "cache")
    some = np.array([3, 499, 0, 250, 250])
    np.testing.assert_array_equal(bank.take(some), bank.embeddings[some])
    assert bank.facts(some) == [(bank.label_levels[i], bank.patient_ids[i], bank.slide_ids[i]) for i in some]
    for name in ("fat", "gland"):
        low, high = bank.span(name)
        assert {bank.labels[row] for row in range(low, high)} == {name}
        patients, starts = bank.patients_of(name)
        assert [p for p, n in zip(patients, np.diff(starts), strict=True) for _ in range(n)] == [
            p or "" for p in bank.patient_ids[low:high]
        ]
        pairs = list(zip(bank.patient_ids[low:high], bank.slide_ids[low:high], strict=True))
        changes = [row for row in range(1, high - low) if pairs[row] != pairs[row - 1]]
        assert bank.slides_of(name).tolist() == [0, *changes, high - low]


def test_an_unchanged_source_is_not_read_again(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write_parquet(tmp_path / "bank.parquet", values()), tmp_path / "cache"
    first = load(path, cache)
    assert [entry.name[:6] for entry in cache.iterdir()] == ["index-"]
    with monkeypatch.context() as patched:
        patched.setattr(indexing, "_count", lambda *_: pytest.fail("the source is read again"))
        again = load(path, cache)
    assert (rows(again), again.mac(KEY), again.warnings) == (rows(first), first.mac(KEY), first.warnings)
    write_parquet(tmp_path / "bank.parquet", values(seed=1))
    assert load(path, cache).mac(KEY) != first.mac(KEY)
    assert len(load(path, cache, ["fat"])) < len(first)


@pytest.mark.parametrize("kind", ["arrays", "hdf5"])
def test_another_level_or_mpp_of_the_spec_is_another_index(tmp_path: Path, small_pieces: None, kind: str) -> None:
    count = 300
    path, labels = tmp_path / ("f.npy" if kind == "arrays" else "f.h5"), tmp_path / "labels.csv"
    vectors = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    if kind == "arrays":
        np.save(path, vectors)
        labels.write_text("label\n" + "fat\n" * count)
    else:
        with h5py.File(path, "w") as file:
            file["features"] = vectors
        labels.write_text("slide_id,label\nf,fat\n")

    def opened(label_level: str | None, mpp: float | None) -> Bank:
        given: dict[str, Any] = {
            "width": WIDTH, "model_encoder": None, "declared": ENCODER, "token": "class", "label_level": label_level,
            "mpp": mpp, "classes": None,
        }  # fmt: skip
        source = (
            open_array(str(path), str(labels), extent=224, **given)
            if kind == "arrays"
            else open_features(str(path), str(labels), tile_size_px=224, **given)[0]
        )
        return build_bank(source, None, cache=tmp_path / "cache")

    assert opened("tile", 0.5).classes["fat"].levels == ("tile",)
    assert opened("slide", 0.5).classes["fat"].levels == ("slide",)
    assert opened("tile", 0.49).classes["fat"].levels == ("tile",)
    for level, mpp, message in (
        (None, 0.5, "no column 'label_level'"),
        ("tile", 0.25, "mpp 0.25"),
        ("tile", None, "um a pixel"),
    ):
        with pytest.raises(InputError, match=message):
            opened(level, mpp)


def test_another_mpp_of_the_spec_is_another_index_of_a_parquet_bank(tmp_path: Path, small_pieces: None) -> None:
    given = {**values(), "mpp": [None] * 500}
    path = write_parquet(tmp_path / "bank.parquet", given, json.dumps({"encoder": ENCODER}).encode())

    def opened(mpp: float | None) -> Bank:
        asked: dict[str, Any] = {"width": WIDTH, "encoder": ENCODER, "classes": ["fat"], "cache": tmp_path / "cache"}
        return load_bank(path, mpp=mpp, **asked)

    assert opened(0.5).vectors.file is not None
    for mpp in (0.25, None):
        with pytest.raises(InputError, match=r"um a pixel|mpp 0\.25"):
            opened(mpp)


def test_a_damaged_index_is_made_again(tmp_path: Path, small_pieces: None) -> None:
    path, cache = write_parquet(tmp_path / "bank.parquet", values()), tmp_path / "cache"
    first = load(path, cache)
    folder = next(cache.iterdir())
    for damage in (
        lambda: (folder / "bank.json").write_text("{"),
        lambda: (folder / "bank.json").write_text("[]"),
        lambda: (folder / "levels.u1").unlink(),
        lambda: (folder / "embeddings.f4").write_bytes(b"short"),
    ):
        damage()
        assert rows(load(path, cache)) == rows(first)


@pytest.mark.parametrize("what", ["NaN", "two labels", "absent"])
def test_a_refused_source_leaves_nothing(tmp_path: Path, small_pieces: None, what: str) -> None:
    given = values()
    if what == "NaN":
        given["embedding"][77] = given["embedding"][77] * np.nan
    if what == "two labels":
        given["embedding"][300] = given["embedding"][1]  # fat as gland
    path = write_parquet(tmp_path / "bank.parquet", given)
    message = {
        "NaN": "1 embeddings hold NaN or infinity, the first in row 77;",
        "two labels": "row 300 and row 1 hold the same embedding under the labels 'fat' and 'gland'",
        "absent": r"classes\.glnd: the bank .* is 'gland' meant",
    }[what]
    for cache in (None, tmp_path / "below" / "cache"):
        with pytest.raises(InputError, match=message):
            load(path, cache, ["fat", "glnd"] if what == "absent" else None)
    assert not (tmp_path / "below").exists()


def test_a_source_that_changes_between_the_passes_is_named(tmp_path: Path) -> None:
    one = indexing.Rows(np.arange(2), *[indexing.Coded.all(text, 2) for text in ("fat", "tile", None, None)])
    more = indexing.Rows(
        np.arange(3), *[indexing.Coded.all(text, 3) for text in ("fat", "tile", None, None)], np.eye(3, 4, dtype="f4")
    )

    def changing(with_vectors: bool) -> Iterator[Any]:
        yield more if with_vectors else one

    with pytest.raises(InputError, match="here: changed while it was read"):
        build_bank(indexing.RowSource("here", ENCODER, 4, changing), None)


def test_a_full_disk_is_an_error_not_a_signal(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"space|large"):
        Column.create(tmp_path, "huge", "<f4", (1 << 58,))


def test_files_and_patterns_are_one_bank(tmp_path: Path) -> None:
    whole = values(90, repeated=0)
    path = write_parquet(tmp_path / "whole.parquet", whole)
    for number in range(3):
        part = {name: column[30 * number : 30 * number + 30] for name, column in whole.items()}
        write_parquet(tmp_path / f"part-{number}.parquet", part)
    pattern = str(tmp_path / "part-*.parquet")
    files = [str(tmp_path / f"part-{number}.parquet") for number in (2, 0, 1)]
    expected = load(path, None)
    for places in (pattern, files, f"file://{pattern}"):
        assert rows(load_bank(places, width=WIDTH, encoder=ENCODER, classes=["fat", "gland"])) == rows(expected)
    bad = {name: column[:3] for name, column in whole.items()}
    bad["embedding"] = [*bad["embedding"][:2], np.full(WIDTH, np.inf)]
    write_parquet(tmp_path / "part-1.parquet", bad)
    with pytest.raises(InputError, match=r"the first in row 2 of .*part-1\.parquet"):
        load_bank(pattern, width=WIDTH, encoder=ENCODER, classes=["fat", "gland"])
    write_parquet(tmp_path / "part-1.parquet", bad, {**ENCODER, "id": "other"})
    with pytest.raises(InputError, match=r"part-1\.parquet: names another encoder or token than .*part-0"):
        load_bank(pattern, width=WIDTH, encoder=None, classes=["fat", "gland"])
    with pytest.raises(InputError, match="matches no file"):
        load_bank(str(tmp_path / "none-*.parquet"), width=WIDTH, encoder=None, classes=["fat"])
    with pytest.raises(InputError, match="stands there twice"):
        load_bank([files[0], files[0]], width=WIDTH, encoder=None, classes=["fat"])
