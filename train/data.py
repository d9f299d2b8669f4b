"""Tiles for training: WebDataset shards -> one memory-mapped cache, and batches that are a function of (seed, step) alone.

Shapes: N tiles, B batch, A attributes, K grid channels.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthfactory.spec.errors import InputError


@dataclass(frozen=True)
class Tiles:
    """All tiles of a set of shards. `attributes` (N, A) and `grid` (N, G, G, K) are float32; A or K is 0 where shards have none."""

    images: np.ndarray  # uint8 (N, H, W, 3), memory-mapped
    labels: np.ndarray  # int64 (N,), index into classes
    attributes: np.ndarray
    grid: np.ndarray
    classes: tuple[str, ...]
    attribute_names: tuple[str, ...]
    grid_channels: tuple[str, ...]
    patients: tuple[str, ...]  # one per tile
    digest: str  # sha256 over the shards' sha256

    def __len__(self) -> int:
        return len(self.labels)


def _samples(shard: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with tarfile.open(shard, "r:") as tar:
        pending: dict[str, bytes] = {}
        stem = ""
        for member in tar:
            name, _, extension = member.name.partition(".")
            handle = tar.extractfile(member)
            if handle is None or member.size > 64 << 20:
                raise InputError(f"{shard}: member {member.name} is no plain file of at most 64 MiB")
            if name != stem:
                pending, stem = {}, name
            pending["json" if extension == "json" else "image"] = handle.read()
            if len(pending) == 2:
                yield pending["image"], json.loads(pending["json"])


def _grid_of(record: dict[str, Any]) -> np.ndarray:
    grid = record.get("grid")
    if grid is None:
        return np.zeros((0,), np.float32)
    channels = len(record["grid_channels"])
    values = np.frombuffer(base64.b64decode(grid), np.uint8).astype(np.float32)
    side = int(round((values.size / channels) ** 0.5))
    scale = np.asarray(record["grid_scale"], np.float32)
    minimum = np.asarray(record["grid_min"], np.float32)
    return np.asarray(values.reshape(side, side, channels) * scale + minimum, np.float32)


def open_tiles(folder: str, cache: Path) -> Tiles:
    """Reads all tars of `folder` once into `cache` (one .npy of pixels), later calls only map it. InputError where there are none."""
    shards = sorted(Path(folder).glob("*.tar"))
    if not shards:
        raise InputError(f"data.shards: {folder}: holds no .tar; name a folder of WebDataset shards")
    digest = hashlib.sha256("".join(f"{p.name}:{p.stat().st_size}" for p in shards).encode()).hexdigest()
    place = cache / digest[:16]
    if not (place / "index.json").exists():
        _fill(shards, place)
    index = json.loads((place / "index.json").read_text())
    classes = tuple(sorted(set(index["labels"])))
    number = {name: position for position, name in enumerate(classes)}
    return Tiles(
        images=np.load(place / "images.npy", mmap_mode="r"),
        labels=np.asarray([number[label] for label in index["labels"]], np.int64),
        attributes=np.load(place / "attributes.npy"),
        grid=np.load(place / "grid.npy"),
        classes=classes,
        attribute_names=tuple(index["attribute_names"]),
        grid_channels=tuple(index["grid_channels"]),
        patients=tuple(index["patients"]),
        digest=index["digest"],
    )


def _fill(shards: list[Path], final: Path) -> None:
    """Makes the cache under a name of its own and renames it: two runs may begin at once, and a killed one leaves no half."""
    place = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    place.mkdir(parents=True, exist_ok=True)
    labels, patients, attributes, grids, sums = [], [], [], [], []
    names: list[str] = []
    channels: list[str] = []
    with open(place / "pixels.raw", "wb") as raw:
        shape: tuple[int, ...] = ()
        for shard in shards:
            for image, record in _samples(shard):
                pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
                if shape and pixels.shape != shape:
                    raise InputError(f"{shard}: tiles of {pixels.shape} and {shape} pixels; all must have one size")
                shape = pixels.shape
                raw.write(pixels.tobytes())
                labels.append(str(record["label"]))
                patients.append(str(record.get("patient_id") or "unknown"))
                found = record.get("attributes") or {}
                names = names or list(found)
                channels = channels or list(record.get("grid_channels") or [])
                attributes.append([float(found[name]) for name in names])
                grids.append(_grid_of(record))
            sums.append(hashlib.sha256(shard.read_bytes()).hexdigest())
    if not labels:
        raise InputError(f"{shards[0].parent}: the shards hold no tiles")
    mapped = np.memmap(place / "pixels.raw", np.uint8, "r", shape=(len(labels), *shape))
    np.save(place / "images.npy", mapped)
    os.unlink(place / "pixels.raw")
    np.save(place / "attributes.npy", np.asarray(attributes, np.float32).reshape(len(labels), -1))
    np.save(place / "grid.npy", np.stack(grids))
    index = {
        "labels": labels,
        "patients": patients,
        "attribute_names": names,
        "grid_channels": channels,
        "digest": hashlib.sha256("".join(sums).encode()).hexdigest(),
    }
    (place / "index.json").write_text(json.dumps(index))
    try:
        place.rename(final)
    except OSError:  # another run was faster
        shutil.rmtree(place)


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator keyed by its arguments, so that resumed runs draw what an undisturbed one would."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.asarray(stream(seed, "epoch", epoch).permutation(count))


def batch_rows(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Row numbers (B,) of the batch of `step`: shuffled epochs laid end to end."""
    positions = np.arange(step * batch, (step + 1) * batch)
    return np.asarray([_epoch_order(seed, int(p // count), count)[p % count] for p in positions])


def symmetry_of(seed: int, step: int, batch: int, enabled: bool) -> np.ndarray:
    """One of the eight symmetries per row, 0-7 (B,): quarter turns k = s % 4, then a left-right flip where s >= 4."""
    if not enabled:
        return np.zeros(batch, np.int64)
    return np.asarray(stream(seed, "symmetry", step).integers(0, 8, batch))


def transformed(array: np.ndarray, symmetry: int, rows: int = 0) -> np.ndarray:
    """`array` with axes (rows, rows+1) turned and flipped by a symmetry number."""
    turned = np.rot90(array, symmetry % 4, axes=(rows, rows + 1))
    return np.asarray(np.flip(turned, axis=rows + 1) if symmetry >= 4 else turned)


def transformed_grid(grid: np.ndarray, symmetry: int, channels: tuple[str, ...]) -> np.ndarray:
    """A grid (G, G, K) under a symmetry: cells move, and orientation channels (cos 2a, sin 2a) turn with them."""
    moved = transformed(grid, symmetry).copy()
    for position, name in enumerate(channels):
        if name.endswith("cos2") and symmetry % 2 == 1:
            moved[..., position] *= -1  # a quarter turn adds 180 degrees to 2a
        if name.endswith("sin2") and (symmetry % 2 == 1) != (symmetry >= 4):
            moved[..., position] *= -1  # as above; a mirror turns the sign of sin 2a alone
    return np.asarray(moved)
