"""`synthfactory embed`: real tiles -> a parquet bank, unit by unit, resumable, the same bytes locally and on Ray.

A unit is 128 tiles in the order of the source. Its result is kept beside the bank under a name made of what is in it (encoder and
content of every tile), so that the same command goes on where any stopped. Every call of the encoder has 32 tiles and a fixed number
of threads: kernels round by both. This file knows no Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from synthfactory.embeddings.bank import MPP
from synthfactory.embeddings.packed import is_packed
from synthfactory.embeddings.parquet import METADATA_KEY
from synthfactory.embeddings.places import is_pattern, local, whole_file
from synthfactory.embeddings.tile_csv import scan_csv
from synthfactory.embeddings.tile_shards import scan_shards
from synthfactory.embeddings.tiles import TileFolder, read_tile, scan_tiles
from synthfactory.model.encoder import EncoderFolder, open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.run.around import check_outside
from synthfactory.run.keys import guard
from synthfactory.screen.artefacts import SCORES, condition_scores
from synthfactory.shards.remote import open_url
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import repo_of
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown

UNIT_TILES, BATCH = 128, 32
FORMAT = "synthfactory-embed/1"


@dataclass(frozen=True)
class EmbedSetup:
    """What a worker needs once: the encoder by name (a repository by its commit), its sha256 as the bank will state it, the place of
    finished units.
    """

    encoder: str
    encoder_id: str | None
    sha256: str
    parts: str
    threads: int


class EmbedPool(Protocol):
    """Embeds units; yields (unit's number, the name of its result) in any order."""

    def run(self, units: Sequence[TileFolder]) -> Iterator[tuple[int, str]]:
        """Works through all units."""

    def describe(self) -> str:
        """Who works, in words."""


class UnitEmbedder:
    """Holds the encoder; `run` makes one unit, or finds it made."""

    def __init__(self, setup: EmbedSetup) -> None:
        torch.set_num_threads(setup.threads)
        self._folder = open_encoder(setup.encoder, setup.encoder_id)
        if self._folder.sha256 != setup.sha256:
            raise InputError(
                f"encoder: {setup.encoder}: has sha256 {self._folder.sha256[:12]} where a worker opened it, but {setup.sha256[:12]} "
                "where the run began; let nothing change it (on a cluster: the same file on every node), and run again"
            )
        self._encoder = load_encoder(self._folder)
        self._store = open_store(setup.parts)

    def run(self, tiles: TileFolder) -> str:
        """Embeds the unit's tiles; the name of the result, float32 (n, E + 4): embedding and the scores of condition screens."""
        read, size = tiles.reader(), self._folder.image_size_px
        digest, images = hashlib.sha256(json.dumps([FORMAT, self._folder.sha256]).encode()), []
        for row in range(len(tiles.files)):
            data, image = read_tile(tiles, read, row, size)
            digest.update(hashlib.sha256(data).digest())
            images.append(image)
        name = f"{digest.hexdigest()}.f4"
        shape = (len(images), self._folder.width + len(SCORES))
        if self._store.size(name) == 4 * shape[0] * shape[1]:
            return name
        whole = np.stack(images + images[-1:] * (-len(images) % BATCH))
        vectors = self._encoder.embed(whole, BATCH)[: len(images)]
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise InputError(
                f"{tiles.where(bad)}: its embedding holds NaN or infinity; the encoder's weights are damaged"
            )
        scores = condition_scores(whole[: len(images)])
        columns = [vectors, *(scores[score][:, None] for score in SCORES)]
        self._store.put(name, np.ascontiguousarray(np.concatenate(columns, axis=1), "<f4").tobytes())
        return name


class LocalEmbedPool:
    """In this process."""

    def __init__(self, setup: EmbedSetup) -> None:
        self._worker = UnitEmbedder(setup)

    def run(self, units: Sequence[TileFolder]) -> Iterator[tuple[int, str]]:
        """One unit after the other."""
        for number, unit in enumerate(units):
            yield number, self._worker.run(unit)

    def describe(self) -> str:
        """Who works, in words."""
        return "this process, without Ray"


def open_tiles(source: str, metadata: str | None, label_level: str | None, mpp: float | None) -> TileFolder:
    """The tiles of class folders, of a CSV (.csv), of WebDataset tars (.tar, or a pattern), or of a packed set. InputError names what is
    wrong.
    """
    if source.endswith(".csv"):
        return scan_csv(source, label_level, mpp)
    if source.endswith(".tar") or is_pattern(source) or is_packed(source):
        return scan_shards(source, label_level, None, mpp)
    if label_level is None:
        raise InputError(
            "--label-level: is missing; say what the class folders' labels were given to: slide, region or tile"
        )
    return scan_tiles(source, metadata, label_level, None, mpp)


def check_target(target: str) -> None:
    """InputError where a file stands there already, or none can be made."""
    if not target.endswith(".parquet"):
        raise InputError(f"{target}: is no name of a bank; end it with .parquet")
    check_outside(target)
    system, path = open_url(target if is_url(target) else str(local(target)))
    if system.exists(path):
        raise InputError(f"{target}: is there already, and banks are never written over; name another, or remove it")


def embed(
    tiles: TileFolder,
    target: str,
    encoder: str,
    *,
    encoder_id: str | None = None,
    threads: int,
    make_pool: Callable[[EmbedSetup], EmbedPool],
    say: Callable[[str], None],
    tick: Callable[[int], None],
) -> EncoderFolder:
    """Embeds all tiles and writes the bank; returns who embedded them. What is finished lies in TARGET.parts until the bank is whole.

    `encoder_id` as in `open_encoder`. InputError, besides what a source and an encoder raise, for one image under two labels.
    """
    folder = open_encoder(encoder, encoder_id)
    if encoder_id and folder.id != repo_of(encoder_id):
        raise InputError(
            f"--encoder-id: {encoder} is a model that names its encoder, {folder.id}; leave the option out"
        )
    # A branch may move while workers start; all of them get the commit that was looked at here.
    at = f"{folder.source.partition('@')[0]}@{folder.revision}" if folder.source else encoder
    parts = open_store(f"{target}.parts")
    guard(parts)
    units = [
        tiles.take(range(start, min(start + UNIT_TILES, len(tiles.files))))
        for start in range(0, len(tiles.files), UNIT_TILES)
    ]
    pool = make_pool(EmbedSetup(at, encoder_id, folder.sha256, f"{target}.parts", threads))
    say(
        f"{len(tiles.files):,} tiles in {len(units):,} unit{'s' * (len(units) > 1)} to embed with {folder.id}: {pool.describe()}"
    )
    names: dict[int, str] = {}
    seen: dict[bytes, int] = {}
    for number, name in pool.run(units):
        names[number] = name
        _check_labels(tiles, number * UNIT_TILES, _values(parts, name, units[number])[:, : folder.width], seen)
        tick(len(units[number].files))
    _write(target, units, [names[number] for number in range(len(units))], parts, folder)
    for path, _ in list(parts.entries()):
        parts.delete(path)
    root = getattr(parts, "root", None)
    if isinstance(root, Path):
        root.rmdir()
    return folder


def _values(parts: Store, name: str, unit: TileFolder) -> np.ndarray:
    """What a worker left of a unit, float32 (n, E + 4)."""
    return np.frombuffer(parts.read(name), "<f4").reshape(len(unit.files), -1)


def _check_labels(tiles: TileFolder, start: int, vectors: np.ndarray, seen: dict[bytes, int]) -> None:
    """InputError for an embedding (of the tiles from `start` on) that was `seen` under another label: no build takes such a bank."""
    for row, vector in enumerate(vectors, start):
        first = seen.setdefault(hashlib.blake2b(vector.tobytes(), digest_size=16).digest(), row)
        if tiles.labels[first] != tiles.labels[row]:
            raise InputError(
                f"{tiles.where(first)} and {tiles.where(row)} hold the same image under the labels '{shown(tiles.labels[first])}' and "
                f"'{shown(tiles.labels[row])}'; one tile has one label, so remove one of them"
            )


def _write(target: str, units: Sequence[TileFolder], names: Sequence[str], parts: Store, folder: EncoderFolder) -> None:
    """The parquet file, a row group a few units, under its own name only when whole."""
    described = {
        "encoder": folder.facts(),
        "preprocessing": folder.preprocessing,
        "mpp": MPP,
        "width": folder.width,
        "tile_size_px": folder.image_size_px,
    }
    schema = _schema(folder.width).with_metadata({METADATA_KEY: json.dumps(described, sort_keys=True).encode()})
    with whole_file(target, private=True) as handle, pq.ParquetWriter(handle, schema, compression="zstd") as writer:
        for unit, name in zip(units, names, strict=True):
            writer.write_table(pa.table(_columns(unit, _values(parts, name, unit), folder.width), schema=schema))


def _schema(width: int) -> pa.Schema:
    texts = ("tile", "label", "label_level", "patient_id", "slide_id", "site")
    numbers = ("x", "y", "tumour_fraction", *SCORES)
    return pa.schema(
        [
            ("embedding", pa.list_(pa.float32(), width)),
            *((name, pa.string()) for name in texts),
            *((name, pa.float64()) for name in numbers),
        ]
    )


def _columns(unit: TileFolder, values: np.ndarray, width: int) -> dict[str, Any]:
    def floats(column: Any) -> pa.Array:
        return pa.array(np.asarray(column, np.float64), from_pandas=True)  # NaN: not known

    flat = pa.array(np.ascontiguousarray(values[:, :width], np.float32).ravel())
    return {
        "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        "tile": pa.array(unit.files),
        "label": pa.array(unit.labels),
        "label_level": pa.array(unit.label_levels),
        "patient_id": pa.array(unit.patient_ids, pa.string()),
        "slide_id": pa.array(unit.slide_ids, pa.string()),
        "site": pa.array(unit.sites or [None] * len(unit.files), pa.string()),
        "x": floats([x for x, _ in unit.corners]),
        "y": floats([y for _, y in unit.corners]),
        "tumour_fraction": floats(unit.tumour_fractions),
        **{score: floats(values[:, width + at]) for at, score in enumerate(SCORES)},
    }
