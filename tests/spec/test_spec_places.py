"""Places of a spec that are none, or lie inside one another: each is refused at its line, as other wrong specs are."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_spec_wrong import check_wrong

# id: (what is replaced in GOOD, by what, line, column, spec path, words that the message has)
PLACES: dict[str, tuple[str, str, int, int, str, str]] = {
    "lineage inside output": ("lineage: out/demo-lineage", "lineage: out/demo/l", 17, 10, "lineage", "of its own"),
    "lineage is output": ("lineage: out/demo-lineage", "lineage: ./out//demo/", 17, 10, "lineage", "of its own"),
    "output inside lineage": ("lineage: out/demo-lineage", "lineage: out", 17, 10, "lineage", "lie inside one another"),
    "output inside lineage on S3": (
        "path: out/demo\n  shard_size: 18\n  format: png\nlineage: out/demo-lineage",
        "path: s3://b/x/out\n  shard_size: 18\n  format: png\nlineage: S3://b/x",
        17,
        10,
        "lineage",
        "of its own",
    ),
    "bank inside output": ("bank: bank.parquet", "bank: out/demo/b.parquet", 7, 9, "embeddings.bank", "keep real data"),
    "tiles around output": (
        "bank: bank.parquet",
        "tiles: out\n  label_level: tile",
        7,
        10,
        "embeddings.tiles",
        "keep real tiles apart",
    ),
    "bank inside lineage": (
        "bank: bank.parquet",
        "bank: out/demo-lineage/embeddings/b.parquet",
        7,
        9,
        "embeddings.bank",
        "lies inside lineage",
    ),
    "lineage inside tiles": (
        "bank: bank.parquet\n",
        "tiles: out/demo-lineage/..\n  label_level: tile\n",
        7,
        10,
        "embeddings.tiles",
        "and output.path lie inside",
    ),
    "output inside packed tiles": (
        "bank: bank.parquet",
        "shards: out",
        7,
        11,
        "embeddings.shards",
        "keep real tiles apart",
    ),
    "holdout inside output": (
        "agreement: {min: 0.3, max: 0.9}",
        "nearest_real: {holdout: out/demo/h.parquet}",
        12,
        63,
        "screen.nearest_real.holdout",
        "lies inside output.path",
    ),
    "holdout inside lineage": (
        "agreement: {min: 0.3, max: 0.9}",
        "nearest_real: {holdout: out/demo-lineage/h.parquet}",
        12,
        63,
        "screen.nearest_real.holdout",
        "lies inside lineage",
    ),
    "model inside output": (
        "model: phantom",
        "model: out/demo/m",
        2,
        8,
        "model",
        "keep it apart from what is published",
    ),
    "empty bank": ("bank: bank.parquet", 'bank: ""', 7, 9, "embeddings.bank", "is empty"),
    "empty output path": ("path: out/demo", 'path: " "', 14, 9, "output.path", "is empty"),
    "up inside a URL": ("path: out/demo", "path: s3://b/../c", 14, 9, "output.path", "write the path without it"),
}


@pytest.mark.parametrize("case", PLACES.values(), ids=PLACES)
def test_wrong_place(tmp_path: Path, case: tuple[str, str, int, int, str, str]) -> None:
    check_wrong(tmp_path, *case)
