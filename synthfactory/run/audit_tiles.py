"""The tiles of an audit: real ones from a bank, class folders, tars or a packed set, with patients; drawn ones from a verified set.

Pixels are read again when they are needed: of each tile only its embedding and a fingerprint stay in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.packed import is_packed
from synthfactory.embeddings.parquet import load_bank
from synthfactory.embeddings.places import is_pattern, listed, local
from synthfactory.embeddings.rows import spelled
from synthfactory.embeddings.tile_shards import scan_shards
from synthfactory.embeddings.tiles import TileFolder, read_tile
from synthfactory.evaluate.audit import Drawn, Real
from synthfactory.evaluate.copies import SIDE, fingerprint, pattern
from synthfactory.model.encoder import EncoderFolder
from synthfactory.run.around import check_outside
from synthfactory.run.embedding import open_tiles
from synthfactory.shards.base import Store
from synthfactory.shards.beside import beside
from synthfactory.shards.commit import list_commits
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.real import PACK
from synthfactory.shards.store import open_store
from synthfactory.shards.tarfmt import DamagedShardError
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown

BATCH = 32
KEPT_PATTERNS = 20_000  # 16 KB each
MAX_REPORT = 64 << 20

Embed = Callable[[np.ndarray], np.ndarray]
Tick = Callable[[int], None]
Begin = Callable[[str, int], Tick]  # says what begins, of how many tiles
Pixels = Callable[[int], np.ndarray]  # row -> uint8 (H, H, 3)


@dataclass(frozen=True)
class Source:
    """Real tiles. Without `pixels` (a bank of embeddings) there are no fingerprints either."""

    place: str
    real: Real
    pixels: Pixels | None = None
    fingerprints: np.ndarray | None = None
    names: Callable[[int], str] = "row {}".format

    def of(self, rows: np.ndarray) -> Source:
        """Some of its tiles, by row."""
        pixels, names = self.pixels, self.names
        return Source(
            self.place,
            self.real.of(rows),
            None if pixels is None else lambda row: pixels(int(rows[row])),
            None if self.fingerprints is None else self.fingerprints[rows],
            lambda row: names(int(rows[row])),
        )

    def patterns(self) -> Callable[[int], np.ndarray]:
        """Row -> its pattern; those that were asked for last are kept."""
        assert self.pixels is not None
        pixels = self.pixels
        return lru_cache(KEPT_PATTERNS)(lambda row: pattern(pixels(row)))


@dataclass(frozen=True)
class DrawnTiles:
    """A set's tiles in order; `images` reads their pixels once more."""

    drawn: Drawn
    keys: list[str]
    images: Callable[[], Iterator[np.ndarray]]
    fingerprints: np.ndarray | None = None


def has_patterns(size_px: int) -> bool:
    """Whether tiles of that size are large enough for the pixel check."""
    return size_px >= SIDE


def open_source(place: str, option: str, encoder: EncoderFolder, embed: Embed, begin: Begin) -> Source:
    """Reads a source whole and embeds its tiles. InputError, naming `option`, for what cannot be used, and tiles without a patient."""
    try:
        if place.endswith(".parquet"):
            found = _bank(place, encoder)
        else:
            tiles = list_tiles(place)
            check_patients(place, tiles.patient_ids)
            tick = begin(f"{option}: {len(tiles.files):,} tiles to embed with {encoder.id}", len(tiles.files))
            found = _embedded(place, tiles, encoder, embed, tick)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    return found


def open_bank(place: str, encoder: EncoderFolder) -> Bank:
    """A bank of this very encoder. InputError for what is none."""
    return load_bank(
        place,
        width=encoder.width,
        encoder=encoder.facts(),
        classes=None,
        check_preprocessing=encoder.check_preprocessing,
    )


def _bank(place: str, encoder: EncoderFolder) -> Source:
    bank = open_bank(place, encoder)
    check_patients(place, bank.patient_ids)
    real = Real(np.asarray(bank.embeddings), np.array(bank.patient_ids, np.str_), np.array(bank.labels, np.str_))
    return Source(place, real)


def list_tiles(place: str) -> TileFolder:
    """The tiles of class folders with a tiles.csv, of a CSV, of tars (or a folder of them), or of a packed set."""
    if place.endswith((".csv", ".tar")) or is_pattern(place):
        return open_tiles(place, None, "tile", None)
    if not is_url(place) and not local(place).is_dir():
        raise InputError(
            f"{place}: no such file or folder; name a bank (.parquet), class folders with a tiles.csv, tars, or a packed set"
        )
    if is_packed(place):
        return scan_shards(place, None, None, None)
    store = open_store(place, reading=True)
    if store.size("tiles.csv") is not None:
        return open_tiles(place, f"{place.rstrip('/')}/tiles.csv", "tile", None)
    tars = listed(place if is_url(place) else str(local(place)), (".tar",))
    if tars:
        return scan_shards(tars, "tile", None, None)
    raise InputError(
        f"{place}: holds neither tiles.csv (class folders) nor {PACK} (a packed set) nor tars; patients must be known"
    )


def check_patients(place: str, patients: tuple[str | None, ...]) -> None:
    """InputError where a tile has no patient."""
    unknown = sum(name is None for name in patients)
    if unknown:
        raise InputError(
            f"{place}: {unknown:,} of {len(patients):,} tiles have no patient_id; figures count by patient, so state all or take them out"
        )


def _embedded(place: str, tiles: TileFolder, encoder: EncoderFolder, embed: Embed, tick: Tick) -> Source:
    read, size = tiles.reader(), encoder.image_size_px

    def pixels(row: int) -> np.ndarray:
        return read_tile(tiles, read, row, size)[1]

    vectors, prints = _through((pixels(row) for row in range(len(tiles.files))), embed, size, tick)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{tiles.where(int(bad[0]))}: its embedding holds NaN or infinity; the encoder's weights are damaged"
        )
    real = Real(vectors, np.array(tiles.patient_ids, np.str_), np.array(tiles.labels, np.str_))
    return Source(place, real, None if prints is None else pixels, prints, tiles.where)


def _through(
    images: Iterator[np.ndarray], embed: Embed, size_px: int, tick: Tick
) -> tuple[np.ndarray, np.ndarray | None]:
    """(embeddings, fingerprints or None where tiles are too small) of images, a batch at a time."""
    prints = list[np.ndarray]()

    def seen() -> Iterator[np.ndarray]:
        for image in images:
            if has_patterns(size_px):
                prints.append(fingerprint(pattern(image)))
            yield image

    vectors = list(in_batches(seen(), embed, tick))
    return np.concatenate(vectors), np.stack(prints) if prints else None


def in_batches(images: Iterator[np.ndarray], embed: Embed, tick: Tick) -> Iterator[np.ndarray]:
    """Embeddings float32 (n, E) of up to 32 images at a time, in order."""
    while batch := list(islice(images, BATCH)):
        padded = batch + batch[-1:] * (BATCH - len(batch))  # kernels round by batch
        yield np.asarray(embed(np.stack(padded)), np.float32)[: len(batch)]
        tick(len(batch))


def embedded(images: Iterator[np.ndarray], embed: Embed, size_px: int) -> tuple[np.ndarray, np.ndarray | None]:
    """As `_through`, of a few images."""
    return _through(images, embed, size_px, lambda count: None)


def open_drawn(out: str, store: Store, encoder: EncoderFolder, embed: Embed, tick: Tick) -> DrawnTiles:
    """Reads and embeds a set's tiles. InputError where there are none, or they are not of the encoder's size."""
    keys: list[str] = []
    labels: list[str] = []

    def images() -> Iterator[np.ndarray]:
        for key, image, record in iter_tiles(store):
            keys.append(key)
            labels.append(str(record["label"]))
            if image.shape[0] != encoder.image_size_px:
                raise InputError(
                    f"{out}: {shown(key)} has {image.shape[0]} px, but {encoder.id} takes {encoder.image_size_px} px; no tile is resized, "
                    "so name an encoder of that size"
                )
            yield image

    try:
        if not list_commits(store):
            raise InputError(f"{out}: holds no tile yet; build it first")
        vectors, prints = _through(images(), embed, encoder.image_size_px, tick)
    except DamagedShardError as error:
        raise InputError(
            f"{error}; `synthfactory verify {out}` names every fault, and the next build mends them"
        ) from None
    except ValueError as error:
        if isinstance(error, InputError) or keys:
            raise
        raise InputError(f"{out}: holds no tile; build it first") from None
    if not np.isfinite(vectors).all():
        raise InputError(f"{encoder.id}: gives NaN or infinity for tiles of {out}; its weights are damaged")
    return DrawnTiles(
        Drawn(vectors, np.array(labels, np.str_)), keys, lambda: (image for _, image, _ in iter_tiles(store)), prints
    )


def check_apart(members: Source, holdout: Source) -> None:
    """InputError where members and holdout share a patient, or the very same tile: nothing could tell them apart then."""
    of_members = {spelled(name) for name in members.real.patients.tolist()}
    shared = sorted(name for name in set(holdout.real.patients.tolist()) if spelled(name) in of_members)
    if shared:
        raise InputError(
            f"--holdout: {holdout.place}: {len(shared):,} of its patients stand in {members.place} too, such as '{shown(shared[0])}'; "
            "the holdout must be of patients that the set was not made from"
        )
    seen = {row.tobytes() for row in members.real.embeddings}
    again = sum(row.tobytes() in seen for row in holdout.real.embeddings)
    if again:
        raise InputError(
            f"--holdout: {holdout.place}: {again:,} of its tiles have the embedding of one in {members.place} under another patient_id; "
            "take them out"
        )


def report_place(
    target: str,
    out: str,
    option: str = "--report",
    what: str = "the report",
    suffix: str = ".json",
    form: str | None = None,
) -> Path:
    """Where what is internal goes. InputError where it could be published with the set, ends otherwise, cannot be written, or would
    replace anything but a report of this `form` (any version of it).
    """
    path = Path(os.path.expanduser(target))
    if path.suffix.lower() != suffix or is_url(target):
        raise InputError(f"{option} {target}: is no local {suffix[1:].upper()} file; name one that ends in {suffix}")
    if not is_url(out):
        root = local(out).resolve()
        if root in path.resolve().parents:
            raise InputError(f"{option} {target}: lies in the set, and {what} is internal; name a file outside {out}")
    check_outside(path, option)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"{option} {target}: cannot be written; name a file in a folder that is there")
    if form is not None and path.exists() and not _has_form(path, form):
        raise InputError(f"{option} {target}: is there already and is no report of this kind; name another file")
    return path


def _has_form(path: Path, form: str) -> bool:
    try:
        with open(path, "rb") as handle:
            stated = read_json(handle.read(MAX_REPORT))["format"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return isinstance(stated, str) and stated.partition("/")[0] == form.partition("/")[0]


def write_report(path: Path, report: object) -> None:
    """Its owner's alone, whole or not at all."""
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    try:
        with (
            beside(path, shared=True) as new,
            open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle,
        ):
            handle.write(text)
    except OSError as error:
        raise InputError(f"--report {path}: cannot be written ({error.strerror or error}); name another file") from None
