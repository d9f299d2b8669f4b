"""Small sets to describe: a lock as a build writes it, real shards, real commits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.report.card import croissant_json, dataset_card
from synthfactory.shards.commit import Commit, commit_shard, list_commits
from synthfactory.shards.manifest import shards_txt
from synthfactory.shards.record import TileRecord, public_parquet
from synthfactory.shards.store import LocalStore
from synthfactory.shards.tarfmt import encode_image, write_shard

SIDE = 16
SAMPLER = {"method": "ode", "solver": "heun", "steps": 10, "guidance": {"scale": 1.5, "low": 0.0, "high": 1.0}}
OTHER_SAMPLER = {
    "method": "sde",
    "solver": "euler_maruyama",
    "steps": 250,
    "guidance": {"scale": 2.5, "low": 0.0, "high": 0.75},
}
CPU = {"device": "cpu AVX2", "torch": "2.6.0", "dtype": "float32", "batch_size": 16, "threads": 1, "attention": "sdpa"}
GPU = {**CPU, "device": "NVIDIA H100", "threads": 0}
ROUNDS = [
    {"round": 0, "ranges": {"A": [0, 4], "B": [0, 2]}, "first_shard": 0, "num_shards": 2},
    {"round": 1, "ranges": {"A": [4, 6]}, "first_shard": 2, "num_shards": 1},
]
TILES = [[("A", 0), ("A", 1), ("B", 0)], [("A", 2), ("B", 1)], [("A", 4), ("A", 5)]]  # A 3 is a shortfall of shard 1
SHORTFALLS: list[dict[str, list[int]]] = [{}, {"A": [3]}, {}]


def lock(image_format: str = "png", **model: Any) -> dict[str, Any]:
    described = {
        "id": "phantom",
        "revision": "1",
        "sha256": "a" * 64,
        "tile_size_px": SIDE,
        "resolution_mpp": 0.5,
        "licence": {"name": "Apache-2.0", "sharing": "allowed"},
        "source": "",
        "backend": "native",
        "noise": "start and streams",
        **model,
    }
    return {
        "format": "synthfactory/1",
        "name": "t",
        "recipe_sha256": "b" * 64,
        "recipe": {
            "name": "t",
            "model": {key: described[key] for key in ("id", "revision", "sha256")},
            "conditions_version": 2,
            "seed_kind": "integer",
            "privacy": {"mechanism": "none"},
            "sampler": copy.deepcopy(SAMPLER),
            "class_samplers": {"B": copy.deepcopy(OTHER_SAMPLER)},
            "class_banks": {"A": "c" * 64, "B": "d" * 64},
            "screen": {"tissue": {"min_fraction": 0.1}, "blur": None, "agreement": {"min": 0.3, "max": 0.999}},
            "format": image_format,
        },
        "model": described,
        "encoder_licence": {},
        "terms": {
            "accepted": [],
            "sharing": "allowed" if described["licence"].get("sharing") == "allowed" else "local",
            "permission": None,
        },
        "encoder": {"id": "phantom-encoder", "sha256": "e" * 64, "token": "class"},
        "label_levels": ["tile"],
        "training_cohort": "none",
        "classes": [{"name": "A", "class_index": 0}, {"name": "B", "class_index": 1}],
        "execution": {"batch_size": 16, "dtype": "float32", "threads": 1, "strict": False},
    }


def record(name: str, index: int, locked: dict[str, Any]) -> TileRecord:
    return TileRecord(
        key=f"t-{name.lower()}-{index:08d}",
        label=name,
        label_level="tile",
        class_index="AB".index(name),
        width_px=SIDE,
        height_px=SIDE,
        mpp=0.5,
        format=locked["recipe"]["format"],
        model=locked["recipe"]["model"],
        sampler=SAMPLER,
        licence=locked["model"]["licence"],
    )


def picture(name: str, index: int) -> np.ndarray:
    return np.random.default_rng([ord(name), index]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def make_out(folder: Path, locked: dict[str, Any]) -> dict[int, Commit]:
    """OUT with its three shards and every derived file but dataset.json."""
    store = LocalStore(str(folder))
    image_format = locked["recipe"]["format"]
    for shard, (tiles, missing) in enumerate(zip(TILES, SHORTFALLS, strict=True)):
        pairs = [(record(*tile, locked), encode_image(picture(*tile), image_format)) for tile in tiles]
        made = write_shard(folder.parent / f"scratch-{shard}.tar", pairs)
        names = [name for name, _ in tiles]
        body = {
            "tiles": len(tiles),
            "classes": {name: names.count(name) for name in sorted(set(names))},
            "shortfall": missing,
            "fingerprint": GPU if shard == 2 else CPU,
        }
        commit_shard(store, shard, made, public_parquet(made.rows, shard), body)
    commits = list_commits(store)
    store.put("README.md", dataset_card(locked, ROUNDS, commits))
    store.put("croissant.json", croissant_json(locked, ROUNDS, commits))
    store.put("shards.txt", shards_txt(commits))
    return commits
