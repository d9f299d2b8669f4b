"""Small sets to test with: real tiles, real tars, real commits."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit, Outcome, commit_path, commit_shard, list_commits
from synthfactory.shards.manifest import append_round, dataset_json, put_if_changed, read_rounds, shards_txt
from synthfactory.shards.record import TileRecord, public_parquet
from synthfactory.shards.seal import sealed
from synthfactory.shards.tarfmt import ShardFile, encode_image, write_shard
from synthfactory.shards.verify import Report, verify

SIDE = 12
PER_SHARD = 4
LOCK: dict[str, Any] = {
    "format": "synthfactory/1",
    "name": "t",
    "recipe_sha256": "0" * 64,
    "model": {"id": "m", "revision": "1", "sha256": "0" * 64},
    "encoder_licence": {},
    "terms": {"accepted": [], "sharing": "local", "permission": None},
    "classes": [{"name": "A", "class_index": 0}, {"name": "B", "class_index": 1}],
}


def slots(shard: int) -> list[tuple[str, str, int]]:
    """(key, class, index) of a shard's tiles in order."""
    found = []
    for number in range(PER_SHARD):
        name = "AB"[number % 2]
        index = shard * PER_SHARD // 2 + number // 2
        found.append((f"t-{name.lower()}-{index:08d}", name, index))
    return found


def picture(key: str, side: int = SIDE) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def record(key: str, label: str = "A", image_format: str = "png", **other: Any) -> TileRecord:
    values: dict[str, Any] = {
        "key": key, "label": label, "label_level": "tile", "class_index": "AB".index(label), "width_px": SIDE, "height_px": SIDE,
        "mpp": 0.5, "format": image_format, "model": {"id": "m", "revision": "1", "sha256": "0" * 64},
        "sampler": {"steps": 10}, "licence": {"terms": "local use"},
    }  # fmt: skip
    return TileRecord(**{**values, **other})


def items(shard: int, image_format: str = "png") -> list[tuple[TileRecord, bytes]]:
    return [
        (record(key, name, image_format), encode_image(picture(key), image_format)) for key, name, _ in slots(shard)
    ]


def body_of(shard: int) -> dict[str, Any]:
    half = PER_SHARD // 2
    return {"tiles": PER_SHARD, "classes": {"A": half, "B": half}, "shortfall": {}, "fingerprint": {"torch": "1"}}


def make_shard(store: Store, shard: int) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        tar = write_shard(Path(folder) / "shard.tar", items(shard))
        return commit_shard(store, shard, tar, public_parquet(tar.rows, shard), body_of(shard))


def make_set(store: Store, shards: int = 3) -> None:
    """A whole OUT but for card and Croissant."""
    store.create("spec.lock.yaml", b"lock")
    append_round(
        store,
        {"round": 0, "ranges": {"A": [0, 2 * shards], "B": [0, 2 * shards]}, "first_shard": 0, "num_shards": shards},
    )
    for shard in range(shards):
        make_shard(store, shard)
    for path, content in derived(store).items():
        put_if_changed(store, path, content)


def derived(store: Store) -> dict[str, bytes]:
    commits = list_commits(store)
    return {"dataset.json": dataset_json(LOCK, read_rounds(store), commits), "shards.txt": shards_txt(commits)}


def check(store: Store, shards: int = 3, **options: Any) -> Report:
    return verify(store, shards, slots, derived=derived(store), **options)


def commit_by_hand(
    store: Store,
    shard: int,
    tar: bytes | None = None,
    parquet: bytes | None = None,
    change: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda body: body,
) -> None:
    """Replaces a shard by other content under a commit whose checksums and seal are right: what a faulty or hostile writer would leave."""
    standing = list_commits(store)[shard]
    body = json.loads(json.dumps(standing.body))
    for suffix, path, content in zip(("tar", "parquet"), standing.objects, (tar, parquet), strict=True):
        data = store.read(path) if content is None else content
        digest = hashlib.sha256(data).hexdigest()
        body[suffix] = {"name": f"shards/{shard:06d}-{digest[:12]}.{suffix}", "sha256": digest, "bytes": len(data)}
        store.delete(path)
        store.put(body[suffix]["name"], data)
    store.put(commit_path(shard), json.dumps(sealed(change(body))).encode())


def tar_of(pairs: Sequence[tuple[TileRecord, bytes]]) -> tuple[ShardFile, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        made = write_shard(path, pairs)
        return made, path.read_bytes()


def snapshot(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path, _ in store.entries()}


def tar_path(store: Store, shard: int) -> str:
    found: Commit = list_commits(store)[shard]
    return found.objects[0]
