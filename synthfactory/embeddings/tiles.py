"""A folder of real tiles as a source: class folders of images, optionally a CSV of patients; embedded once, cached by content.

The cache is one small .npy per tile, named by sha256 of (encoder, file): tiles can come and go, and parallel builds share it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import secrets
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from synthfactory.embeddings.bank import MPP, MPP_TOLERANCE, Bank
from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.rows import known, shown
from synthfactory.shards.store import open_source, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
DECODING = (  # what Pillow raises on damaged files
    OSError, SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, EOFError, LookupError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True)
class TileFolder:
    """Tiles found on disk, not yet read: parallel tuples. None is an unknown patient or slide."""

    root: str
    files: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    label_level: str
    patient_ids: tuple[str | None, ...] = field(repr=False)
    slide_ids: tuple[str | None, ...] = field(repr=False)

    def reader(self) -> Callable[[str], bytes]:
        """CLASS/FILE -> the file's bytes, on disk or behind a URL; OSError where it cannot be read."""
        if is_url(self.root):
            return open_store(self.root, reading=True).read
        return lambda file: (_local(self.root) / file).read_bytes()


def _local(folder: str) -> Path:
    return Path(folder.partition("://")[2] if "://" in folder else folder).expanduser()


def _listing(folder: str, classes: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(names of all sub-folders, class -> its images' names in order; classes without a sub-folder are left out)."""
    if is_url(folder):
        store = open_store(folder, reading=True)
        names: dict[str, list[str]] = {}
        for path, _ in store.entries():
            top, _, rest = path.partition("/")
            names.setdefault(top, []).append(rest)
        present = sorted(name for name, files in names.items() if any(files))
        found = {name: [file for file in names[name] if "/" not in file] for name in classes if name in present}
    else:
        root = _local(folder)
        if not root.is_dir():
            raise InputError(f"{folder}: no such folder; embeddings.tiles names a folder with one sub-folder per class")
        present = sorted(path.name for path in root.iterdir() if path.is_dir())
        found = {
            name: [path.name for path in (root / name).iterdir() if path.is_file()]
            for name in classes
            if name in present
        }
    return present, {
        name: sorted(file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith("."))
        for name, files in found.items()
    }


def scan_tiles(folder: str, metadata: str | None, label_level: str, classes: Sequence[str]) -> TileFolder:
    """Lists CLASS/*.png (jpg, tif, webp) of the classes asked for. InputError for absent folders, empty classes, a wrong CSV."""
    present, images = _listing(folder, classes)
    files: list[tuple[str, str]] = []
    for name in classes:
        if name not in images:
            raise InputError(
                f"classes.{name}: {folder} has no sub-folder of that name; it has: {', '.join(present[:12]) or 'none'}"
            )
        found = images[name]
        if not found:
            raise InputError(f"classes.{name}: {folder}/{name} holds no images ({', '.join(SUFFIXES)})")
        files.extend((f"{name}/{file}", name) for file in found)
    known_of = _metadata(metadata) if metadata else {}
    missing = [file for file, _ in files if file not in known_of] if metadata else []
    if missing:
        raise InputError(
            f"{metadata}: has no row for {missing[0]} ({len(missing)} tiles in all); column 'tile' holds CLASS/FILE"
        )
    pairs = [known_of.get(file, (None, None)) for file, _ in files]
    return TileFolder(
        folder,
        tuple(file for file, _ in files),
        tuple(label for _, label in files),
        label_level,
        tuple(patient for patient, _ in pairs),
        tuple(slide for _, slide in pairs),
    )


def _metadata(path: str) -> dict[str, tuple[str | None, str | None]]:
    try:
        with open_source(path) as raw, io.TextIOWrapper(raw, newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(handle)
            if not rows.fieldnames or "tile" not in rows.fieldnames:
                raise InputError(
                    f"{path}: needs a column 'tile' (CLASS/FILE); patient_id, slide_id and mpp are optional"
                )
            found: dict[str, tuple[str | None, str | None]] = {}
            for row in rows:
                line = rows.line_num  # blank lines and quoted line breaks counted
                tile = (row["tile"] or "").strip()
                if not tile:
                    raise InputError(f"{path}:{line}: names no tile; column 'tile' holds CLASS/FILE")
                if tile in found:
                    raise InputError(f"{path}:{line}: {shown(tile)} stands there twice; keep one row per tile")
                _check_mpp(row.get("mpp"), path, line)
                found[tile] = known(row.get("patient_id")), known(row.get("slide_id"))
            return found
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; embeddings.metadata names a CSV with a column 'tile'") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV in UTF-8 ({error})") from None


def _check_mpp(text: str | None, path: str, line: int) -> None:
    if known(text) is None:
        return
    try:
        mpp = float(str(text))
    except ValueError:
        raise InputError(f"{path}:{line}: mpp '{shown(str(text))}' is no number; leave it empty or write 0.5") from None
    if not abs(mpp - MPP) <= MPP * MPP_TOLERANCE:
        raise InputError(f"{path}:{line}: mpp {mpp:g} is not {MPP} +- 5 %; give tiles of that resolution")


def decode_tile(data: bytes, where: str, size_px: int) -> np.ndarray:
    """uint8 (size, size, 3). InputError naming `where` the tile lies, if it is no whole 8-bit RGB image of that size."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.size != (size_px, size_px):
                raise InputError(
                    f"{where}: is {picture.size[0]} x {picture.size[1]} px; tiles are {size_px} x {size_px} px at {MPP} um/px, "
                    "so cut the slide anew at that size"
                )
            if getattr(picture, "n_frames", 1) != 1 or picture.mode not in ("RGB", "RGBA", "P"):
                raise InputError(
                    f"{where}: is {picture.mode} with {getattr(picture, 'n_frames', 1)} frames; one 8-bit RGB image is needed"
                )
            # A palette's transparency is in its own form.
            whole = picture.convert("RGBA") if picture.mode == "P" else picture
            return np.asarray(whole.convert("RGB"))
    except InputError:
        raise
    except DECODING as error:
        why = "no known format" if isinstance(error, UnidentifiedImageError) else shown(str(error))
        raise InputError(f"{where}: does not decode as an image ({why}); replace or remove it") from None


def embed_tiles(
    tiles: TileFolder,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    encoder: Mapping[str, str],
    width: int,
    size_px: int,
    cache: Path,
    batch_size: int = 32,
    tick: Callable[[int], None] = lambda count: None,
) -> Bank:
    """The folder as a bank. `embed` maps uint8 (B, H, W, 3) to float32 (B, width); what `cache` holds is not embedded again.

    Every call of `embed` has `batch_size` tiles (the last is padded): kernels round by batch, and what the cache holds would else
    decide the last bits of the rest.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = np.zeros((len(tiles.files), width), np.float32)
    waiting: list[tuple[int, Path, np.ndarray]] = []

    def flush() -> None:
        if not waiting:
            return
        images = [image for _, _, image in waiting]
        padded = images + images[-1:] * (batch_size - len(images))
        vectors = np.asarray(embed(np.stack(padded)), np.float32)
        if vectors.shape != (batch_size, width):
            raise InputError(
                f"model: its encoder gives embeddings of width {vectors.shape[-1]}, but the network is conditioned on width "
                f"{width}; export the model again"
            )
        for (row, place, _), vector in zip(waiting, vectors, strict=False):
            found[row] = vector
            temporary = place.with_name(f".tmp-{secrets.token_hex(8)}-{place.name}")
            temporary.write_bytes(_npy(vector))
            temporary.replace(place)
        tick(len(waiting))
        waiting.clear()

    read = tiles.reader()
    for row, file in enumerate(tiles.files):
        where = f"{tiles.root.rstrip('/')}/{file}"
        try:
            data = read(file)
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror or error}); replace or remove it") from None
        image = decode_tile(data, where, size_px)
        name = hashlib.sha256(str(encoder["sha256"]).encode() + b":" + data).hexdigest()
        place = cache / f"{name}.npy"
        stored = _cached(place, width)
        if stored is not None:
            found[row] = stored
            tick(1)
            continue
        waiting.append((row, place, image))
        if len(waiting) == batch_size:
            flush()
    flush()
    levels = [tiles.label_level] * len(tiles.files)
    return make_bank(
        found,
        tiles.labels,
        levels,
        tiles.patient_ids,
        tiles.slide_ids,
        encoder,
        tiles.root,
        name_of=tiles.files.__getitem__,
    )


def _npy(vector: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector.astype("<f4"))
    return buffer.getvalue()


def _cached(place: Path, width: int) -> np.ndarray | None:
    """The vector, or None where it is not there or damaged (it is embedded again). Nothing but our own header is parsed."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    blank = _npy(np.zeros(width))
    head = len(blank) - 4 * width
    if len(data) != len(blank) or data[:head] != blank[:head]:
        return None
    vector = np.frombuffer(data[head:], "<f4").astype(np.float32)
    return vector if np.isfinite(vector).all() else None
