"""`synthfactory pack`: real tiles into shards, byte for byte, with their patients in a parquet beside the tars.

The order is by a hash of the file's name, so that a shard mixes classes and patients, and a key tells nothing. The plan is a function
of the listing, and every shard is committed as a synthetic set's are: the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthfactory.embeddings.bank import MPP
from synthfactory.embeddings.rows import two_spellings
from synthfactory.embeddings.tiles import DECODING, FORMATS, TileFolder, decode_tile
from synthfactory.run.around import check_outside
from synthfactory.screen.verdict import tissue_fraction
from synthfactory.shards.base import is_temporary
from synthfactory.shards.commit import Commit, commit_shard, list_commits
from synthfactory.shards.real import PACK, side_parquet, side_path, side_rows
from synthfactory.shards.record import RealRecord, public_parquet, sha256_hex
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.shards.store import Store, open_store
from synthfactory.shards.tarfmt import encode_image, write_shard
from synthfactory.spec.errors import InputError
from synthfactory.spec.names import class_name_problem, slug, slug_collisions
from synthfactory.spec.text import counted, shown

FORMAT = "synthfactory-pack/1"
BLANK_BELOW = 0.05  # share of tissue
UNLIKE = 0.5  # shares of JPEG in two classes
KEPT_AS_THEY_ARE = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}
PLAIN_INFO = {  # what Pillow says of an image that identifies nobody
    "dpi", "gamma", "srgb", "icc_profile", "transparency", "interlace", "jfif", "jfif_version", "jfif_unit", "jfif_density",
    "progressive", "progression", "loop", "background", "timestamp", "duration", "adobe", "adobe_transform", "compression", "aspect",
    "chromaticity",
}  # fmt: skip


@dataclass
class PackReport:
    """What was packed, and what a user should know of it. Keys, never file names."""

    tiles: int
    shards: int
    classes: dict[str, int]
    patients: dict[str, int]  # of each class
    unknown_patients: dict[str, int]  # tiles of each class
    duplicates: list[list[str]]  # keys of tiles with the very same picture
    across: int = 0  # of the duplicates: groups of more than one label or patient
    blank: list[str] = field(default_factory=list)
    lossy: dict[str, int] = field(default_factory=dict)  # JPEG tiles of each class
    alike: tuple[str, str] | None = None  # two spellings that may be one patient's
    converted: int = 0
    described: int = 0  # tiles whose files hold text or EXIF


def pack(
    tiles: TileFolder,
    out: str,
    *,
    mpp: float | None,
    shard_size: int = 1000,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    tick: Callable[[int], None] = lambda count: None,
) -> PackReport:
    """Packs the listed tiles into the folder or URL `out`. `mpp` is that of tiles which do not say it themselves.

    InputError for labels that cannot be classes, an `out` that holds something else, tiles that cannot be read, are no RGB images or not
    all of one size.
    """
    check_outside(out)
    store = open_store(out)
    plan = _Plan.of(tiles, shard_size)
    _claim(store, plan, tiles, mpp)
    done = list_commits(store)
    size_px = _size_of(tiles, plan.order[0])
    for commit in done.values():
        tick(commit.tiles)
    waiting = [shard for shard in range(plan.shards) if shard not in done]
    if done:
        left = "" if waiting else ": nothing is left to do"
        say(f"{len(done):,} of {counted(plan.shards, 'shard')} already there{left}")
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for shard in waiting:
            _pack_shard(store, plan, tiles, shard, size_px, mpp, pool, tick)
    return _report(store, plan)


@dataclass(frozen=True)
class _Plan:
    """Which tile stands where: rows in order, and the key of each row."""

    order: list[int]
    keys: dict[int, str]
    classes: list[str]
    shards: int

    @classmethod
    def of(cls, tiles: TileFolder, shard_size: int) -> _Plan:
        classes = sorted(set(tiles.labels))
        for name in classes:
            problem = class_name_problem(name)
            if problem:
                raise InputError(f"label '{shown(name)}': {problem}")
        for later, earlier in slug_collisions(classes):
            raise InputError(f"labels '{later}' and '{earlier}' give the same keys; rename one")
        order = sorted(range(len(tiles.files)), key=lambda row: hashlib.sha256(tiles.files[row].encode()).digest())
        number, keys = Counter[str](), dict[int, str]()
        for row in order:
            label = tiles.labels[row]
            keys[row] = f"real-{slug(label)}-{number[label]:08d}"
            number[label] += 1
        return cls(order, keys, classes, max(1, round(len(order) / shard_size)))

    def rows(self, shard: int) -> list[int]:
        """Rows of a shard in order; all shards hold alike."""
        count = len(self.order)
        return self.order[shard * count // self.shards : (shard + 1) * count // self.shards]


def _claim(store: Store, plan: _Plan, tiles: TileFolder, mpp: float | None) -> None:
    """Writes pack.json, or refuses a place that holds another listing or something else."""
    digest, resolutions = hashlib.sha256(), hashlib.sha256()
    for row in plan.order:
        resolutions.update(f"{_mpp(tiles, row, mpp)}\n".encode())
        facts = [
            plan.keys[row],
            tiles.files[row],
            tiles.labels[row],
            tiles.label_levels[row],
            *_facts(tiles, row).values(),
        ]
        digest.update(json.dumps(facts).encode() + b"\n")
    values = {
        "format": FORMAT, "tiles": len(plan.order), "shards": plan.shards, "classes": plan.classes, "listing_sha256": digest.hexdigest(),
        "mpp_sha256": resolutions.hexdigest(),
    }  # fmt: skip
    try:
        stands = unsealed(json.loads(store.read(PACK)))
    except FileNotFoundError:
        strange = next((path for path, _ in store.entries() if not is_temporary(path)), None)
        if strange is not None:
            raise InputError(f"{store.place}: holds {shown(strange)}, and no {PACK}; name an empty folder") from None
        if not store.create(PACK, json.dumps(sealed(values), indent=1, sort_keys=True).encode() + b"\n"):
            raise InputError(
                f"{store.place}: another pack has just begun there; wait for it, or name another folder"
            ) from None
        return
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{store.place}/{PACK}: is damaged; restore it from a copy, or name another folder") from None
    if {"mpp_sha256": values["mpp_sha256"], **stands} != values:  # which packs of old do not hold
        raise InputError(
            f"{store.place}: was packed from another listing (files, labels, patients, mpp or shard size differ); name another folder"
        )


def _facts(tiles: TileFolder, row: int) -> dict[str, Any]:
    """What the parquet beside the tar says of a tile, but for key, shard and what its pixels tell."""
    x, y = (None if math.isnan(value) else value for value in tiles.corners[row])
    share = tiles.tumour_fractions[row]
    return {
        "patient_id": tiles.patient_ids[row],
        "slide_id": tiles.slide_ids[row],
        "site": None if tiles.sites is None else tiles.sites[row],
        "x": x,
        "y": y,
        "tumour_fraction": None if math.isnan(share) else share,
    }


def _mpp(tiles: TileFolder, row: int, given: float | None) -> float:
    own = None if tiles.mpps is None else tiles.mpps[row]
    return own or given or MPP


def _size_of(tiles: TileFolder, row: int) -> int:
    where = tiles.where(row)
    try:
        with Image.open(io.BytesIO(tiles.reader()(row)), formats=FORMATS) as picture:
            width, height = picture.size
    except DECODING as error:
        raise InputError(f"{where}: does not decode as an image ({shown(str(error))}); replace or remove it") from None
    if width != height:
        raise InputError(f"{where}: is {width} x {height} px; tiles are square")
    return int(width)


@dataclass(frozen=True)
class _Tile:
    """One tile as it goes into the tar."""

    data: bytes
    format: str
    tissue: float
    converted: bool
    described: bool
    pixels_sha256: str


def _read(data: bytes, where: str, size_px: int) -> _Tile:
    pixels = decode_tile(data, where, size_px)
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        kind, plain = str(picture.format), picture.mode == "RGB"
        picture.load()  # of a PNG, what stands behind the pixels is known only now
        described = bool({str(name).lower() for name in picture.info} - PLAIN_INFO)
    tissue, seen = float(tissue_fraction(pixels[None])[0]), sha256_hex(np.ascontiguousarray(pixels).tobytes())
    if plain and kind in KEPT_AS_THEY_ARE:
        return _Tile(data, KEPT_AS_THEY_ARE[kind], tissue, False, described, seen)
    return _Tile(encode_image(np.ascontiguousarray(pixels), "png"), "png", tissue, True, False, seen)


def _pack_shard(
    store: Store,
    plan: _Plan,
    tiles: TileFolder,
    shard: int,
    size_px: int,
    mpp: float | None,
    pool: ThreadPoolExecutor,
    tick: Callable[[int], None],
) -> None:
    rows = plan.rows(shard)
    read = tiles.reader()  # not for threads: of a tar, the file that was read last stays open
    index = {name: number for number, name in enumerate(plan.classes)}
    sides: list[dict[str, Any]] = []

    def contents() -> Iterator[tuple[bytes, str]]:
        for row in rows:
            where = tiles.where(row)
            try:
                yield read(row), where
            except OSError as error:
                raise InputError(f"{where}: cannot be read ({error.strerror or error}); replace or remove it") from None

    def items() -> Iterator[tuple[RealRecord, bytes]]:
        window = 4 * (os.cpu_count() or 1)
        source = contents()
        running: list[Future[_Tile]] = []
        for row in rows:
            while len(running) < window:
                following = next(source, None)
                if following is None:
                    break
                running.append(pool.submit(_read, following[0], following[1], size_px))
            tile = running.pop(0).result()
            label = tiles.labels[row]
            record = RealRecord(
                key=plan.keys[row], label=label, label_level=tiles.label_levels[row], class_index=index[label], width_px=size_px,
                height_px=size_px, mpp=_mpp(tiles, row, mpp), format=tile.format,
            )  # fmt: skip
            sides.append(
                {
                    "key": record.key, "shard": shard, "label": label, **_facts(tiles, row), "tissue": tile.tissue,
                    "image_sha256": sha256_hex(tile.data), "source": tiles.files[row], "format": tile.format,
                    "converted": tile.converted, "described": tile.described, "pixels_sha256": tile.pixels_sha256,
                }
            )  # fmt: skip
            yield record, tile.data
            tick(1)

    with tempfile.TemporaryDirectory(prefix="synthfactory-") as scratch:
        made = write_shard(Path(scratch) / "shard.tar", items())
        counts = Counter(tiles.labels[row] for row in rows)
        body = {"tiles": len(rows), "classes": dict(sorted(counts.items())), "shortfall": {}, "fingerprint": {}}
        # Patients first: a committed tile must never be without the record of whose it is.
        store.put(side_path(shard, made.sha256), side_parquet(sides))
        commit_shard(store, shard, made, public_parquet(made.rows, shard), body)


def read_patients(store: Store, commit: Commit) -> list[dict[str, Any]]:
    """What is known of a packed shard's tiles, in the tar's order. InputError where it is missing or damaged."""
    path = side_path(commit.shard, str(commit.body["tar"]["sha256"]))
    rows = side_rows(store, path)
    if len(rows) != commit.tiles:
        raise InputError(f"{store.place}/{path}: has {len(rows)} rows for {commit.tiles} tiles; pack the tiles anew")
    return rows


def _report(store: Store, plan: _Plan) -> PackReport:
    classes, unknown, lossy = Counter[str](), Counter[str](), Counter[str]()
    patients: dict[str, set[str]] = defaultdict(set)
    alike: dict[bytes, list[tuple[str, str, str | None]]] = defaultdict(list)
    found = PackReport(len(plan.order), plan.shards, {}, {}, {}, [])
    for commit in list_commits(store).values():
        for row in read_patients(store, commit):
            classes[row["label"]] += 1
            if row["patient_id"] is None:
                unknown[row["label"]] += 1
            else:
                patients[row["label"]].add(row["patient_id"])
            seen = bytes.fromhex(row["pixels_sha256"] or row["image_sha256"])
            alike[seen].append((row["key"], row["label"], row["patient_id"]))
            if row["tissue"] < BLANK_BELOW:
                found.blank.append(row["key"])
            lossy[row["label"]] += row["format"] == "jpeg"
            found.converted += row["converted"]
            found.described += row["described"]
    groups = [rows for rows in alike.values() if len(rows) > 1]
    found.duplicates = [sorted(key for key, _, _ in rows) for rows in groups]
    found.across = sum(len({(label, patient) for _, label, patient in rows}) > 1 for rows in groups)
    found.classes = dict(sorted(classes.items()))
    found.patients = {name: len(patients[name]) for name in found.classes}
    found.unknown_patients = dict(sorted(unknown.items()))
    found.lossy = {name: lossy[name] for name in found.classes if lossy[name]}
    found.alike = two_spellings(name for names in patients.values() for name in names)
    return found


def render(report: PackReport, out: str, width: int = 80) -> Sequence[str]:
    """The report in lines."""
    lines = [f"{counted(report.tiles, 'tile')} in {counted(report.shards, 'shard')} in {out}"]
    longest = max(map(len, report.classes))
    lines.append(f"{'class':<{longest}} {'tiles':>8} {'patients':>8} {'of unknown patients':>20}")
    for name, count in report.classes.items():
        lines.append(
            f"{name:<{longest}} {count:>8,} {report.patients[name]:>8,} {report.unknown_patients.get(name, 0):>20,}"
        )
    if report.duplicates:
        extra = sum(len(keys) - 1 for keys in report.duplicates)
        across = f", in {counted(report.across, 'group')} of more than one label or patient" if report.across else ""
        lines.append(f"the very same picture again: {counted(extra, 'tile')}{across} ({_some(report.duplicates[0])})")
    if report.blank:
        lines.append(
            f"nearly blank (tissue below {BLANK_BELOW:.0%}): {counted(len(report.blank), 'tile')} ({_some(report.blank)})"
        )
    if report.lossy:
        lines.append(f"JPEG: {counted(sum(report.lossy.values()), 'tile')}; a model learns its artefacts too")
        shares = {name: report.lossy.get(name, 0) / count for name, count in report.classes.items()}
        most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
        if shares[most] - shares[least] >= UNLIKE:
            lines.append(
                f"JPEG tells the class: {shares[most]:.0%} of {shown(most)}, {shares[least]:.0%} of {shown(least)}; save all of them alike"
            )
    if report.alike:
        names = " and ".join(shown(json.dumps(name, ensure_ascii=False)) for name in report.alike)
        lines.append(f"{names} count as two patients; if they are one, spell one person one way")
    if report.converted:
        lines.append(
            f"no plain RGB PNG, WebP or JPEG: {counted(report.converted, 'tile')}, packed as PNG of the same colours (what is "
            "transparent is not kept)"
        )
    if report.described:
        lines.append(
            f"text or EXIF inside the image file: {counted(report.described, 'tile')}, kept as it is; look whether it names anybody"
        )
    return lines


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
