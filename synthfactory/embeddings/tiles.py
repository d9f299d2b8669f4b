"""Real tiles as a source: class folders of images, optionally a CSV of patients; embedded once, cached by content.

The cache is one small .npy per tile, named by sha256 of (encoder, file): tiles can come and go, and parallel builds share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from synthfactory.embeddings.bank import MPP, Bank
from synthfactory.embeddings.checks import check_mpp_known, members_of_cohort
from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.places import is_pattern, local
from synthfactory.embeddings.rows import known
from synthfactory.embeddings.table import line_mpp, number, read_lines
from synthfactory.shards.beside import beside
from synthfactory.shards.store import open_source, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
DECODING = (  # what Pillow raises on damaged files
    OSError, SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, EOFError, LookupError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True)
class TileFolder:
    """Tiles of a folder or of WebDataset tars, listed but not yet read: parallel tuples. None is an unknown patient or slide.

    `files` are their names for messages; `spans` say where in which tar each lies (path, offset, length), None for plain files.
    """

    root: str
    files: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    label_levels: tuple[str, ...] = field(repr=False)
    patient_ids: tuple[str | None, ...] = field(repr=False)
    slide_ids: tuple[str | None, ...] = field(repr=False)
    corners: tuple[tuple[float, float], ...] = field(repr=False)  # NaN where unknown
    tumour_fractions: tuple[float, ...] = field(repr=False)  # NaN where unknown
    spans: tuple[tuple[str, int, int], ...] | None = field(default=None, repr=False)
    sites: tuple[str | None, ...] | None = field(default=None, repr=False)
    mpps: tuple[float | None, ...] | None = field(default=None, repr=False)  # um per pixel, where a tile itself says it
    warnings: tuple[str, ...] = field(default=(), repr=False)  # of the source as a whole

    def where(self, row: int) -> str:
        """A tile's place, for messages."""
        return self.files[row] if self.spans is not None else f"{self.root.rstrip('/')}/{self.files[row]}"

    def members(self) -> list[str | None]:
        """Of each tile the TCGA barcode that stands in its patient, its slide or its file's name; None where there is none."""
        return members_of_cohort(self.patient_ids, self.slide_ids, self.files)

    def reader(self) -> Callable[[int], bytes]:
        """Number of a tile -> the file's bytes, on disk or behind a URL; OSError where it cannot be read."""
        if self.spans is not None:
            return SpanReader(self.spans).read
        if is_url(self.root):
            read = open_store(self.root, reading=True).read
            return lambda row: read(self.files[row])
        return lambda row: (local(self.root) / self.files[row]).read_bytes()

    def take(self, rows: Sequence[int]) -> TileFolder:
        """These tiles."""

        whole = ("root", "warnings")
        columns = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in whole}
        some = {name: tuple(column[row] for row in rows) for name, column in columns.items() if column is not None}
        return TileFolder(self.root, **some, warnings=self.warnings)


class SpanReader:
    """Reads pieces of files; the file that was read last stays open."""

    def __init__(self, spans: Sequence[tuple[str, int, int]]) -> None:
        self._spans = spans
        self._path, self._open = "", contextlib.ExitStack()

    def read(self, row: int) -> bytes:
        """The piece of that number; OSError where it cannot be read whole."""
        path, offset, length = self._spans[row]
        if path != self._path:
            self._open.close()
            self._handle, self._path = self._open.enter_context(open_source(path)), path
        self._handle.seek(offset)
        data = self._handle.read(length)
        if len(data) != length:
            raise OSError("it ends too early")
        return data


def _listing(folder: str, classes: Sequence[str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """(names of all sub-folders, class (None: every sub-folder) -> its images' names in order; absent ones are left out)."""
    if is_url(folder):
        store = open_store(folder, reading=True)
        names: dict[str, list[str]] = {}
        for path, _ in store.entries():
            top, _, rest = path.partition("/")
            names.setdefault(top, []).append(rest)
        present = sorted(name for name, files in names.items() if any(files))
        found = {
            name: [file for file in names[name] if "/" not in file]
            for name in (present if classes is None else classes)
            if name in present
        }
    else:
        root = local(folder)
        if not root.is_dir():
            if is_pattern(folder):
                raise InputError(f"{folder}: is a pattern, and one folder is needed; name it")
            raise InputError(f"{folder}: no such folder; embeddings.tiles names a folder with one sub-folder per class")
        present = sorted(path.name for path in root.iterdir() if path.is_dir())
        found = {
            name: [path.name for path in (root / name).iterdir() if path.is_file()]
            for name in (present if classes is None else classes)
            if name in present
        }
    for name in (*present, *(file for files in found.values() for file in files)):
        if not _is_text(name):
            raise InputError(f"{folder}: the name '{ascii(name)[1:-1]}' is no UTF-8; rename the file or folder")
    return present, {
        name: sorted(file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith("."))
        for name, files in found.items()
    }


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding
        return False
    return True


@dataclass(frozen=True)
class Fact:
    """What CSV or JSON say of a tile. NaN and None are unknown."""

    patient: str | None = None
    slide: str | None = None
    corner: tuple[float, float] = (math.nan, math.nan)
    tumour_fraction: float = math.nan
    mpp: float | None = None
    site: str | None = None


def scan_tiles(
    folder: str, metadata: str | None, label_level: str, classes: Sequence[str] | None, mpp: float | None = None
) -> TileFolder:
    """Lists CLASS/*.png (jpg, tif, webp) of the classes asked for (None: of every sub-folder that holds images).

    `mpp` is what the spec says of tiles whose CSV says none.

    InputError for absent folders, empty classes, a wrong CSV, an mpp that nobody states.
    """
    present, images = _listing(folder, classes)
    files: list[tuple[str, str]] = []
    if classes is None:
        classes = [name for name in images if images[name]]
        if not classes:
            raise InputError(f"{folder}: has no sub-folder with images; a sub-folder's name is the label of its tiles")
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
    facts = [known_of.get(file, Fact()) for file, _ in files]
    for fact in facts:
        check_mpp_known(fact.mpp, mpp, metadata or folder)
    return TileFolder(
        folder,
        tuple(file for file, _ in files),
        tuple(label for _, label in files),
        (label_level,) * len(files),
        tuple(fact.patient for fact in facts),
        tuple(fact.slide for fact in facts),
        tuple(fact.corner for fact in facts),
        tuple(fact.tumour_fraction for fact in facts),
        sites=tuple(fact.site for fact in facts),
        mpps=tuple(fact.mpp for fact in facts),
        warnings=_absent(known_of, {file for file, _ in files}, set(classes), metadata or ""),
    )


def _absent(rows: Iterable[str], there: Container[str], classes: Container[str], metadata: str) -> tuple[str, ...]:
    """What is said of rows, of the classes that are read, whose tiles are not there: a wrong name, or a copy that broke off."""
    absent = [tile for tile in rows if tile not in there and tile.partition("/")[0] in classes]
    if not absent:
        return ()
    tiles = "tile, which is" if len(absent) == 1 else "tiles, which are"
    return (f"{metadata}: names {len(absent):,} {tiles} not there (first: {shown(absent[0])}); left out",)


def _metadata(path: str) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for line in read_lines(
        path, ("tile",), "embeddings.metadata names a CSV with CLASS/FILE of each tile, and its patient"
    ):
        tile = line[1].get("tile", "")
        if not tile:
            raise InputError(f"{path}:{line[0]}: names no tile; column 'tile' holds CLASS/FILE")
        if tile in found:
            raise InputError(f"{path}:{line[0]}: {shown(tile)} stands there twice; keep one row per tile")
        x, y, share = (number(line, name, path) for name in ("x", "y", "tumour_fraction"))
        found[tile] = Fact(
            known(line[1].get("patient_id")),
            known(line[1].get("slide_id")),
            (math.nan if x is None else x, math.nan if y is None else y),
            math.nan if share is None else share,
            line_mpp(line, path),
            known(line[1].get("site")),
        )
    return found


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
            with beside(place, shared=True) as new:
                new.write_bytes(_npy(vector))
        tick(len(waiting))
        waiting.clear()

    read = tiles.reader()
    for row in range(len(tiles.files)):
        data, image = read_tile(tiles, read, row, size_px)
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
    return make_bank(
        found,
        tiles.labels,
        tiles.label_levels,
        tiles.patient_ids,
        tiles.slide_ids,
        encoder,
        tiles.root,
        name_of=tiles.files.__getitem__,
        corners=np.asarray(tiles.corners, np.float64),
        extent=size_px,
        sites=tiles.sites,
    )


def read_tile(tiles: TileFolder, read: Callable[[int], bytes], row: int, size_px: int) -> tuple[bytes, np.ndarray]:
    """(the file's bytes, its pixels uint8 (size, size, 3)) of a tile. InputError where it cannot be read or is no such image."""
    data = tile_bytes(tiles, read, row)
    return data, decode_tile(data, tiles.where(row), size_px)


def tile_bytes(tiles: TileFolder, read: Callable[[int], bytes], row: int) -> bytes:
    """A tile's file, not decoded. InputError where it cannot be read."""
    try:
        return read(row)
    except OSError as error:
        raise InputError(
            f"{tiles.where(row)}: cannot be read ({error.strerror or error}); replace or remove it"
        ) from None


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
