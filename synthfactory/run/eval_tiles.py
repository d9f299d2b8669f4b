"""The tiles of an evaluation: real ones with patients and sites, drawn ones of a verified set with what they rest on; their codecs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from synthfactory.embeddings.checks import members_of_cohort
from synthfactory.embeddings.rows import spelled
from synthfactory.embeddings.tiles import DECODING, FORMATS, TileFolder, decode_tile, tile_bytes
from synthfactory.evaluate.density import augmented
from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.utility import filled_to
from synthfactory.model.encoder import EncoderFolder
from synthfactory.run.audit_tiles import check_patients, list_tiles, open_bank
from synthfactory.run.spaces import Item
from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

LOSSLESS = ("PNG", "TIFF", "WEBP")
CODECS_LOOKED_AT = 512  # tiles whose container is looked at


@dataclass(frozen=True)
class RealSide:
    """Real tiles, listed: class, patient and site (None: unknown) of each; the tiles themselves, or a bank's vectors. `sites` as a whole is
    None where no site is known.
    """

    place: str
    option: str
    classes: np.ndarray
    patients: np.ndarray
    sites: tuple[str | None, ...] | None
    tiles: TileFolder | None
    vectors: np.ndarray | None  # of a bank
    codecs: tuple[str, ...]  # containers that were seen; () of a bank
    members: tuple[str | None, ...]  # the TCGA barcode of each, as a plan would find it

    def in_space(self, vectors_NE: np.ndarray) -> Tiles:
        """With these embeddings."""
        return Tiles(vectors_NE, self.classes, self.patients)

    def items(self, size_px: int) -> Iterator[Item]:
        """What `embedded_in` takes."""
        assert self.tiles is not None
        read = self.tiles.reader()
        for row in range(len(self.classes)):
            data = tile_bytes(self.tiles, read, row)
            yield hashlib.sha256(data).digest(), partial(decode_tile, data, self.tiles.where(row), size_px)


def open_real(place: str, option: str, encoder: EncoderFolder) -> RealSide:
    """Lists real tiles, or reads a bank of this encoder. InputError naming `option` for what cannot be used, and for tiles
    without a patient.
    """
    codecs: tuple[str, ...] = ()
    try:
        if place.endswith(".parquet"):
            bank = open_bank(place, encoder)
            labels, patients, tiles, vectors = bank.labels, bank.patient_ids, None, np.asarray(bank.embeddings)
            sites: tuple[str | None, ...] | None = bank.sites
            members = members_of_cohort(patients, bank.slide_ids)
        else:
            tiles = list_tiles(place)
            labels, patients, sites, vectors = tiles.labels, tiles.patient_ids, tiles.sites, None
            codecs, members = _codecs(tiles), tiles.members()
        check_patients(place, patients)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    known = sites if sites is not None and any(site is not None for site in sites) else None
    return RealSide(
        place,
        option,
        np.array(labels, np.str_),
        np.array([spelled(str(patient)) for patient in patients], np.str_),  # one person however spelt, as in LINEAGE's
        known,
        tiles,
        vectors,
        codecs,
        tuple(members),
    )


def _codecs(tiles: TileFolder) -> tuple[str, ...]:
    """Of some hundred tiles all over."""
    read, count = tiles.reader(), len(tiles.files)
    found = set()
    for row in np.unique(np.linspace(0, count - 1, min(count, CODECS_LOOKED_AT)).astype(int)).tolist():
        data = tile_bytes(tiles, read, row)
        try:
            found.add(codec_of(data))
        except DECODING:
            raise InputError(f"{tiles.where(row)}: is no image that can be read; replace or remove it") from None
    return tuple(sorted(found))


def codec_of(data: bytes) -> str:
    """Format of an encoded picture, such as PNG, JPEG or 'WEBP (lossy)'. One of DECODING where it is none."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        # A lossless WebP has its pixels in a chunk VP8L; others may stand before it.
        loses = picture.format == "WEBP" and b"VP8L" not in data
        loses = loses or picture.info.get("compression") == "jpeg"
        return f"{picture.format}{' (lossy)' if loses else ''}"


def lossy(codecs: tuple[str, ...]) -> bool:
    """Whether one of them loses detail."""
    return any(codec not in LOSSLESS for codec in codecs)


def mixed(codecs: tuple[str, ...]) -> bool:
    """Whether tiles of one side differ in what their codecs lose. Those that lose nothing are alike."""
    return lossy(codecs) and len(codecs) > 1


@dataclass(frozen=True)
class DrawnSide:
    """A set's tiles: key and class of each, its group, and the patients behind it (empty: a release; None: not known)."""

    keys: tuple[str, ...]
    classes: np.ndarray
    groups: np.ndarray
    groups_are: str
    sources: tuple[frozenset[str], ...] | None

    def in_space(self, vectors_NE: np.ndarray) -> Tiles:
        """With these embeddings."""
        return Tiles(vectors_NE, self.classes, self.groups, self._behind)

    @cached_property
    def _behind(self) -> np.ndarray | None:
        """As `Tiles` has it; None where no tile rests on two patients."""
        most = max((len(each) for each in self.sources or ()), default=0)
        if most < 2:
            return None
        assert self.sources is not None
        number = {name: at for at, name in enumerate(sorted(frozenset.union(*self.sources)))}
        found = np.full((len(self.sources), most), -1, np.int64)
        for row, each in enumerate(self.sources):
            found[row, : len(each)] = sorted(number[name] for name in each)
        return found


def drawn_items(out: str, store: Store, size_px: int, seen: list[tuple[str, str]]) -> Iterator[Item]:
    """The tiles of a set in order, as `embedded_in` takes them; (key, label) of each is added to `seen`."""
    for key, image, record in iter_tiles(store):
        seen.append((key, str(record["label"])))
        if image.shape[0] != size_px:
            raise InputError(
                f"{out}: {shown(key)} has {image.shape[0]} px, and {size_px} px are needed; no tile is resized"
            )
        yield hashlib.sha256(image.tobytes()).digest(), partial(np.asarray, image)


Behind = Mapping[str, Sequence[tuple[str, float]]]  # key of a tile -> (patient, weight) of what its condition rests on


def drawn_side(seen: Sequence[tuple[str, str]], behind: Behind | None) -> DrawnSide:
    """What `drawn_items` saw, with whom each tile rests on (None: not known)."""
    keys, labels = tuple(key for key, _ in seen), np.array([label for _, label in seen], np.str_)
    if behind is None:
        return DrawnSide(
            keys, labels, np.array([f"\0{key}" for key in keys], np.str_), "each tile by itself: not known", None
        )
    groups = [max(behind[key], key=lambda part: part[1])[0] if behind[key] else f"\0{key}" for key in keys]
    sources = tuple(frozenset(name for name, _ in behind[key]) for key in keys)
    if all(each == {""} for each in sources):
        alone = np.array([f"\0{key}" for key in keys], np.str_)
        return DrawnSide(keys, labels, alone, "each tile by itself: no tile names a patient", None)
    if any("" in each for each in sources):
        return DrawnSide(keys, labels, np.array(groups, np.str_), "the patient, as far as tiles name one", None)
    words = (
        "the patient that weighs most in its condition"
        if any(sources)
        else "each tile by itself: a release of all patients"
    )
    return DrawnSide(keys, labels, np.array(groups, np.str_), words, sources)


def patients_behind(lineage: str, commits: Mapping[int, Commit]) -> dict[str, list[tuple[str, float]]]:
    """Key of every tile of these commits -> (patient, '' where unknown, and weight) of what its condition rests on. InputError where the
    place is not the lineage of that very set.
    """
    store = open_store(lineage, reading=True)
    found: dict[str, list[tuple[str, float]]] = {}
    for commit in commits.values():
        path = commit.unit
        try:
            table = pq.read_table(io.BytesIO(store.read(path)), columns=["key", "accepted", "sources"])
        except FileNotFoundError:
            raise InputError(f"--lineage: {lineage}: has no {path}; name the lineage of this very set") from None
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--lineage: {lineage}/{path}: is damaged ({error}); restore it from a copy") from None
        for row in table.filter(table["accepted"]).select(["key", "sources"]).to_pylist():
            parts = row["sources"] or ()
            found[row["key"]] = [(spelled(part["patient_id"] or ""), part["weight"]) for part in parts]
    return found


def check_unseen(unseen: RealSide, behind: Behind) -> None:
    """InputError where a tile of the set rests on a patient who is to be unseen."""
    known = set(unseen.patients.tolist()) - {""}
    seen = sorted({name for parts in behind.values() for name, _ in parts if name in known})
    if seen:
        raise InputError(
            f"--unseen: {unseen.place}: tiles of the set rest on {len(seen):,} of its patients, such as '{shown(seen[0])}'; name patients "
            "that the set has not seen"
        )


def check_content(real: RealSide, unseen: RealSide, of_real: np.ndarray, of_unseen: np.ndarray) -> None:
    """InputError where both hold the very same tile under two patients."""
    known = {row.tobytes() for row in of_real}
    again = sum(row.tobytes() in known for row in of_unseen)
    if again:
        raise InputError(
            f"--unseen: {unseen.place}: {again:,} of its tiles are tiles of {real.place} under another patient_id; take them out"
        )


def augmented_items(real: RealSide, plan: np.ndarray, size_px: int) -> Iterator[Item]:
    """Real tiles turned and stained anew: `plan` (A, 2) holds the row of each, and which copy of it this is."""
    assert real.tiles is not None
    read = real.tiles.reader()
    for row, copy in plan.tolist():
        data = tile_bytes(real.tiles, read, row)
        seed = int.from_bytes(hashlib.sha256(data + copy.to_bytes(4, "big")).digest()[:8], "big")
        decode = partial(decode_tile, data, real.tiles.where(row), size_px)
        yield (
            hashlib.sha256(b"augmented" + data + copy.to_bytes(4, "big")).digest(),
            partial(_augmented, decode, seed),
        )


def _augmented(decode: Callable[[], np.ndarray], seed: int) -> np.ndarray:
    return np.ascontiguousarray(augmented(decode(), np.random.default_rng(seed)))


def augmentation(classes: np.ndarray, most: int) -> np.ndarray:
    """(A, 2): which tiles to augment how often, so that every class could be filled up as `oversampled` does; at most `most` in all.

    Where a class's tiles are more than the copies it gets, these are of tiles all over it.
    """
    names, counts = np.unique(classes, return_counts=True)
    missing = filled_to(counts) - counts
    scale = min(1.0, most / max(1, int(missing.sum())))
    plan = []
    for name, lacks in zip(names, missing, strict=True):
        rows, count = np.flatnonzero(classes == name), int(scale * int(lacks))
        step = max(1, len(rows) // max(1, count))
        plan += [(int(rows[number * step % len(rows)]), number * step // len(rows)) for number in range(count)]
    return np.array(plan, np.int64).reshape(-1, 2)
