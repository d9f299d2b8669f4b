"""Cohorts of tiles, as WebDataset shards (to train from), as class folders, or one by one (to make banks from)."""

from __future__ import annotations

import base64
import csv
import io
import json
import multiprocessing
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthfactory.phantom.patients import CLASSES, GENERATOR_VERSION, Patient, make_patient, stream
from synthfactory.phantom.tile import GRID_CHANNELS, MPP, Truth, render_tile, slide_of
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError

SHIPPED_COUNTS = dict(zip(CLASSES, (400, 200, 100, 50, 25, 12), strict=True))
GRID_MIN = tuple(-1.0 if name.startswith("orient") else 0.0 for name in GRID_CHANNELS)
GRID_SCALE = tuple((1.0 - low) / 255 for low in GRID_MIN)


@dataclass(frozen=True)
class TileRef:
    """One tile of a cohort, not yet drawn."""

    key: str
    patient: Patient
    tile_number: int

    @property
    def slide_id(self) -> str:
        """The slide it lies on."""
        return self.patient.slide_id(slide_of(self.patient, self.tile_number))

    def render(self) -> tuple[np.ndarray, Truth]:
        """uint8 (224, 224, 3) and its truth."""
        return render_tile(self.patient, self.tile_number)


def cohort_tiles(
    cohort: str, counts: Mapping[str, int], tiles_per_patient: int = 8, first_patient: int = 0
) -> list[TileRef]:
    """All tiles of a cohort, in an order that mixes classes at random but is always the same.

    Class c has counts[c] tiles of max(3, counts[c] / tiles_per_patient) patients (fewer where there are fewer tiles).
    """
    found = []
    for class_name, count in counts.items():
        patients = min(count, max(3, -(-count // tiles_per_patient)))
        for number in range(count):
            patient = make_patient(cohort, class_name, first_patient + number % patients)
            key = f"{cohort}-{class_name.removeprefix('phantom-')}-{first_patient + number % patients:05d}-{number // patients:03d}"
            found.append(TileRef(key, patient, number // patients))
    order = stream("order", cohort, len(found)).permutation(len(found))
    return [found[position] for position in order]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _record(tile: TileRef, truth: Truth) -> dict[str, Any]:
    quantised = np.clip((truth.grid - GRID_MIN) / GRID_SCALE + 0.5, 0, 255).astype(np.uint8)
    return {
        "label": tile.patient.class_name,
        "label_level": "tile",
        "patient_id": tile.patient.patient_id,
        "slide_id": tile.slide_id,
        "site": tile.patient.site,
        "mpp": MPP,
        "generator_version": GENERATOR_VERSION,
        "attributes": truth.attributes,
        "grid": base64.b64encode(quantised.tobytes()).decode(),
        "grid_channels": list(GRID_CHANNELS),
        "grid_min": list(GRID_MIN),
        "grid_scale": list(GRID_SCALE),
    }


def _write_shard(job: tuple[Path, list[TileRef]]) -> int:
    path, tiles = job
    with beside(path, shared=True) as new, tarfile.open(new, "w", format=tarfile.USTAR_FORMAT) as tar:
        for tile in tiles:
            image, truth = tile.render()
            record = json.dumps(_record(tile, truth), sort_keys=True).encode()
            for extension, data in (("png", _png(image)), ("json", record)):
                member = tarfile.TarInfo(f"{tile.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return len(tiles)


def _holds(path: Path, tiles: list[TileRef]) -> bool:
    """Whether a shard that is there already is the one that these tiles make, by its keys and the generator's version."""
    try:
        with tarfile.open(path, "r:") as tar:
            keys = [member.name.removesuffix(".json") for member in tar if member.name.endswith(".json")]
            first = tar.extractfile(f"{tiles[0].key}.json") if keys == [tile.key for tile in tiles] else None
            return first is not None and bool(json.load(first)["generator_version"] == GENERATOR_VERSION)
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError):
        return False


def _refuse_others(out: Path, others: list[Path]) -> None:
    if others:
        raise InputError(
            f"{out}: holds other tiles already ({others[0].relative_to(out)}): of another cohort, number, class, first patient or "
            "version of the generator; name another folder"
        )


def write_shards(out: Path, tiles: list[TileRef], shard_size: int = 500, workers: int = 1) -> Iterator[int]:
    """Writes OUT/000000.tar ... (KEY.png, KEY.json with label, patient and truth); skips shards that are there already.

    Yields the number of tiles done, shard by shard. The grid is uint8, value = grid_min + grid_scale x stored, per channel.
    InputError where the folder holds shards of other tiles.
    """
    starts = range(0, len(tiles), shard_size)
    jobs = [(out / f"{number:06d}.tar", tiles[start : start + shard_size]) for number, start in enumerate(starts)]
    missing = [job for job in jobs if not job[0].exists()]
    done = dict(job for job in jobs if job[0].exists())
    standing = sorted(path for path in out.glob("*.tar") if not path.name.startswith(".tmp-"))
    _refuse_others(out, [path for path in standing if path not in done or not _holds(path, done[path])])
    out.mkdir(parents=True, exist_ok=True)
    for left_behind in out.glob(".tmp-*.tar"):  # of an earlier call that was killed
        left_behind.unlink()
    yield len(tiles) - sum(len(job[1]) for job in missing)
    if workers <= 1:
        yield from map(_write_shard, missing)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_write_shard, missing)


COLUMNS = ("tile", "patient_id", "slide_id", "site", "mpp")


def _is_ours(table: Path) -> bool:
    """Whether a tiles.csv is one of invented tiles, or there is none."""
    if not table.exists() or not table.stat().st_size:  # empty: of an earlier call that was killed
        return True
    try:
        with open(table, newline="") as handle:
            head, first = next(csv.reader(handle)), next(csv.reader(handle))
        return tuple(head) == COLUMNS and first[1].startswith("ph-")
    except (OSError, ValueError, StopIteration, IndexError, csv.Error):
        return False


def write_folder(out: Path, tiles: list[TileRef]) -> Iterator[int]:
    """Writes OUT/CLASS/KEY.png and OUT/tiles.csv (tile, patient_id, slide_id, site, mpp); yields 1 per tile.

    InputError where the folder holds other tiles, which tiles.csv would no longer name.
    """
    expected = {out / tile.patient.class_name / f"{tile.key}.png" for tile in tiles}
    _refuse_others(out, sorted(set(out.glob("*/*.png")) - expected))
    if not _is_ours(out / "tiles.csv"):
        _refuse_others(out, [out / "tiles.csv"])
    rows = []
    for tile in tiles:
        path = out / tile.patient.class_name / f"{tile.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(tile.render()[0]))
        relative = f"{tile.patient.class_name}/{path.name}"
        rows.append((relative, tile.patient.patient_id, tile.slide_id, tile.patient.site, MPP))
        yield 1
    with open(out / "tiles.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
