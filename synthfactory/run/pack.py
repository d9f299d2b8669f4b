"""`synthfactory pack`: real tiles into shards, byte for byte, with their patients in a parquet beside the tars.

The order is by a hash of the file's name, so that a shard mixes classes and patients, and a key tells nothing. The plan is a function
of the listing, and every shard is committed as a synthetic set's are: the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthfactory.embeddings.bank import MPP
from synthfactory.embeddings.beyond_pixels import holds_more
from synthfactory.embeddings.tiles import DECODING, FORMATS, TileFolder, decode_tile
from synthfactory.run.around import check_outside
from synthfactory.run.keys import guard
from synthfactory.run.pack_report import PackReport, report_of
from synthfactory.screen.verdict import tissue_fraction
from synthfactory.shards.base import is_temporary
from synthfactory.shards.commit import commit_shard, list_commits
from synthfactory.shards.real import PACK, SIDES, side_parquet, side_path
from synthfactory.shards.record import RealRecord, public_parquet, sha256_hex
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.shards.store import Store, open_store
from synthfactory.shards.tarfmt import encode_image, write_shard
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.names import new_name_problem, slug, slug_collisions
from synthfactory.spec.text import counted, shown

FORMAT = "synthfactory-pack/1"
LOOK_AHEAD = 256  # tiles
KEPT_AS_THEY_ARE = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}


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
    root = getattr(store, "root", None)
    made = [folder for folder in (root, root / SIDES) if not folder.exists()] if isinstance(root, Path) else []
    plan = _Plan.of(tiles, shard_size)
    size_px = _size_of(tiles, plan.order[0])
    done = list_commits(store)
    guard(store)
    created = _claim(store, plan, tiles, mpp)
    if isinstance(root, Path):
        (root / SIDES).mkdir(mode=0o700, exist_ok=True)
    for commit in done.values():
        tick(commit.tiles)
    waiting = [shard for shard in range(plan.shards) if shard not in done]
    if done:
        left = "" if waiting else ": nothing is left to do"
        say(f"{len(done):,} of {counted(plan.shards, 'shard')} already there{left}")
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        try:
            for shard in waiting:
                _pack_shard(store, plan, tiles, shard, size_px, mpp, pool, tick)
        except InputError as error:
            if created and not list_commits(store):
                store.delete(PACK)  # nothing was packed: what is mended may be another listing
                _remove_empty(made)
            if not isinstance(error, _BadTileError):
                raise
            say(f"{error}; looking through the other tiles for more")
            raise _all_bad(
                error, tiles, [row for shard in waiting for row in plan.rows(shard)], size_px, pool
            ) from None
    return report_of(store, plan.shards)


class _BadTileError(InputError):
    """Of a tile, and not of the place that is packed into."""


def _remove_empty(made: Sequence[Path]) -> None:
    """Folders of this call that nothing stands in; one that was there before is whoever's made it."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def _all_bad(
    first: InputError, tiles: TileFolder, rows: Sequence[int], size_px: int, pool: ThreadPoolExecutor
) -> InputError:
    """The error, with how many other tiles would be refused: one after the other would each take another run to be found."""
    read = tiles.reader()

    def looked_at(row: int) -> Iterator[Future[_Tile] | InputError]:
        try:
            yield pool.submit(_read, read(row), tiles.where(row), size_px)
        except OSError as error:
            yield InputError(f"{tiles.where(row)}: cannot be read ({error.strerror or error})")

    others = []
    for start in range(0, len(rows), LOOK_AHEAD):
        for found in [found for row in rows[start : start + LOOK_AHEAD] for found in looked_at(row)]:
            error = found if isinstance(found, InputError) else found.exception()
            if isinstance(error, InputError) and str(error) != str(first):
                others.append(str(error))
    if not others:
        return first
    return InputError(
        f"{first}; {counted(len(others), 'more tile')} cannot be packed either, among them: {'; '.join(others[:3])}"
    )


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
            problem = new_name_problem(name)
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


def _claim(store: Store, plan: _Plan, tiles: TileFolder, mpp: float | None) -> bool:
    """Writes pack.json (True), or finds it written, or refuses a place that holds another listing or something else."""
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
        stands = unsealed(read_json(store.read(PACK)))
    except FileNotFoundError:
        strange = next((path for path, _ in store.entries() if not is_temporary(path)), None)
        if strange is not None:
            raise InputError(f"{store.place}: holds {shown(strange)}, and no {PACK}; name an empty folder") from None
        if not store.create(PACK, json.dumps(sealed(values), indent=1, sort_keys=True).encode() + b"\n"):
            raise InputError(
                f"{store.place}: another pack has just begun there; wait for it, or name another folder"
            ) from None
        return True
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{store.place}/{PACK}: is damaged; restore it from a copy, or name another folder") from None
    if {"mpp_sha256": values["mpp_sha256"], **stands} != values:  # which packs of old do not hold
        raise InputError(
            f"{store.place}: was packed from another listing (files, labels, patients, mpp or shard size differ); name another folder"
        )
    return False


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
    tissue, seen = float(tissue_fraction(pixels[None])[0]), sha256_hex(np.ascontiguousarray(pixels).tobytes())
    if plain and kind in KEPT_AS_THEY_ARE:
        return _Tile(data, KEPT_AS_THEY_ARE[kind], tissue, False, holds_more(data, kind), seen)
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
                raise _BadTileError(
                    f"{where}: cannot be read ({error.strerror or error}); replace or remove it"
                ) from None

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
            try:
                tile = running.pop(0).result()
            except InputError as error:
                raise _BadTileError(str(error)) from None
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
