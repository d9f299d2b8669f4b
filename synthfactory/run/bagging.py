"""`synthfactory bags`: the tiles of each bag of a set as one file of features, in TRIDENT's layout, with labels beside them.

A file states a key of what is in it (encoder, keys and images of its tiles): the same command goes on where one stopped, and makes anew
what has changed. Tiles go through the encoder in the set's order; in memory stay the embeddings of bags that are not whole yet.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from synthfactory.embeddings.features import check_h5py, stated_text, write_features
from synthfactory.embeddings.places import local
from synthfactory.model.encoder import EncoderFolder
from synthfactory.model.weights import load_encoder
from synthfactory.report.bags import INVENTED, description, readme
from synthfactory.run.around import check_outside
from synthfactory.run.audit_setup import Steps, check_whole, fitting_encoder
from synthfactory.run.audit_tiles import in_batches
from synthfactory.run.prepare import Standing, read_standing
from synthfactory.shards.beside import beside
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.tarfmt import DamagedShardError
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import is_url, place_problem
from synthfactory.spec.text import shown

ABOUT, LABELS, README = "bags.json", "labels.csv", "README.md"
CONTENT = "content_key"
MAGNIFICATION = 10.0  # um a pixel at 1x, as scanners and TRIDENT count: 0.5 um/px is called 20x
LEVELS = ("unconditional", "slide", "region", "tile")  # a bag claims no more than the least of its tiles
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
MAX_ABOUT = 1 << 20


@dataclass
class Bag:
    """A bag as far as it is published: its label, least label level, and key and image sha256 of its tiles, by index."""

    label: str
    level: str
    tiles: list[tuple[str, str]] = field(default_factory=list)

    def in_order(self) -> list[tuple[str, str]]:
        """The tiles by their index, which ends the key with at least eight digits."""
        return sorted(self.tiles, key=lambda tile: (len(tile[0]), tile[0]))

    def content(self, encoder: Mapping[str, Any]) -> str:
        """sha256 of what decides its features."""
        return hashlib.sha256(json.dumps([dict(encoder), self.label, self.level, self.in_order()]).encode()).hexdigest()


@dataclass(frozen=True)
class Exported:
    """What an export came to."""

    made: int
    bags: int
    tiles: int
    short: int  # bags with fewer tiles than the set's size
    size: int
    width: int
    encoder: str


def exported(
    out: str,
    target: str,
    encoder: str | None,
    encoder_id: str | None,
    model: str | None,
    say: Callable[[str], None],
) -> Exported:
    """Writes DIR (`target`): BAG_ID.h5 of every bag, labels.csv, README.md, bags.json.

    InputError, and nothing is written, where the set has no bags or is not whole, where the encoder does not fit, or where `target` lies in
    a set or a lineage folder, or holds anything but an export of the same set by the same encoder.
    """
    folder = _checked(target)
    standing = read_standing(out)
    lock = standing.lock
    if lock is None:
        raise InputError(f"{out}: holds no set (no {LOCK}); name the output.path of a build")
    if "bags" not in lock["recipe"]:
        raise InputError(
            f"{out}: has no bags; write for example bags: {{size: 64}} in its spec, and build it into a new output.path"
        )
    check_h5py(target)
    looks = fitting_encoder(lock, out, encoder, encoder_id, model)
    about = description(lock, looks.facts(), looks.licence)
    check_whole(out, standing)
    bags = _bags(standing)
    _check_empty(folder, target, bags, about)
    stated = {**looks.facts(), "preprocessing": looks.preprocessing}
    contents = {name: bag.content(stated) for name, bag in bags.items()}
    missing = {
        name
        for name, bag in bags.items()
        if stated_text(folder / f"{name}.h5", CONTENT, len(bag.tiles), looks.width) != contents[name]
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / ABOUT, json.dumps(about, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); name another folder") from None
    _put(folder / README, readme(lock, about, looks.width))
    if missing:
        _embed(out, standing, folder, looks, {name: bags[name] for name in sorted(missing)}, contents, about, say)
    _put(folder / LABELS, _labels(bags))
    size, tiles = int(lock["recipe"]["bags"]["size"]), [len(bag.tiles) for bag in bags.values()]
    short = sum(count < size for count in tiles)
    return Exported(len(missing), len(bags), sum(tiles), short, size, looks.width, looks.id)


def _checked(target: str) -> Path:
    """The folder to write to. InputError where it lies in a set or in a lineage folder, this one's or another's."""
    if is_url(target) or (problem := place_problem(target)):
        raise InputError(
            f"{shown(target)}: " + ("is a URL; name a folder on this machine" if is_url(target) else str(problem))
        )
    folder = local(target)
    if str(folder).startswith("~"):
        raise InputError(f"{shown(target)}: there is no such user here; write the folder out")
    check_outside(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{target}: is no folder; name one, or a place where it can be made")
    return folder


def _check_empty(folder: Path, target: str, bags: Mapping[str, Bag], about: Mapping[str, Any]) -> None:
    """InputError where the folder holds anything but an export of this set by this encoder."""
    begun = f".tmp-{ABOUT}"  # all there is where an export was cut off at its first file
    if not folder.is_dir() or all(entry.name == begun for entry in folder.iterdir()):
        return
    ours = {ABOUT, LABELS, README, *(f"{name}.h5" for name in bags)}
    for entry in sorted(folder.iterdir()):
        if entry.name.removeprefix(".tmp-") not in ours or entry.is_dir() or entry.is_symlink():
            raise InputError(
                f"{target}: holds {shown(entry.name)}, which is no file of this export; name an empty folder"
            )
    try:
        with open(folder / ABOUT, "rb") as handle:
            known = read_json(handle.read(MAX_ABOUT))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        raise InputError(f"{target}: holds files, but no readable {ABOUT} of an export; name an empty folder")
    other = sorted(key for key, value in json.loads(json.dumps(about)).items() if known.get(key) != value)
    if other:
        raise InputError(f"{target}: holds an export with another {', '.join(other)}; name a folder of its own")


def _bags(standing: Standing) -> dict[str, Bag]:
    """The bags of a set that was verified, by bag_id, from its tables."""
    found: dict[str, Bag] = {}
    for _, commit in sorted(standing.commits.items()):
        columns = ["key", "label", "label_level", "image_sha256", "bag_id"]
        table = pq.ParquetFile(io.BytesIO(standing.store.read(commit.objects[1])), pre_buffer=False)
        for row in table.read(columns=columns, use_threads=False).to_pylist():
            name = str(row["bag_id"])
            if not NAME.fullmatch(name):  # it becomes a file's name
                raise InputError(f"{standing.store.place}: changed while it was read; run the command again")
            bag = found.setdefault(name, Bag(row["label"], row["label_level"]))
            bag.level = min(bag.level, row["label_level"], key=LEVELS.index)
            bag.tiles.append((row["key"], row["image_sha256"]))
    return dict(sorted(found.items()))


def _embed(
    out: str,
    standing: Standing,
    folder: Path,
    encoder: EncoderFolder,
    bags: Mapping[str, Bag],
    contents: Mapping[str, str],
    about: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Embeds the tiles of these bags, and writes each once all its tiles are there."""
    bag_of = {key: name for name, bag in bags.items() for key, _ in bag.tiles}
    waiting: dict[str, dict[str, np.ndarray]] = {name: {} for name in bags}
    on_their_way: deque[str] = deque()

    def images() -> Iterator[np.ndarray]:
        for key, image, _ in iter_tiles(standing.store):
            if key in bag_of:
                on_their_way.append(key)
                yield image

    embed, steps = load_encoder(encoder).embed, Steps(say)
    try:
        tick = steps.begin(
            f"{out}: {len(bag_of):,} tiles of {len(bags):,} bags to embed with {encoder.id}", len(bag_of)
        )
        for vectors in in_batches(images(), embed, tick):
            if not np.isfinite(vectors).all():
                raise InputError(f"{encoder.id}: gives NaN or infinity for tiles of {out}; its weights are damaged")
            for vector in vectors:
                key = on_their_way.popleft()
                name = bag_of[key]
                waiting[name][key] = vector
                if len(waiting[name]) == len(bags[name].tiles):
                    _write(folder, name, bags[name], waiting.pop(name), contents[name], about)
    except DamagedShardError as error:
        raise InputError(f"{error}; `synthfactory verify {out}` names every fault") from None
    finally:
        steps.close()
    if waiting:
        raise InputError(f"{out}: changed while it was read; run the command again")


def _write(
    folder: Path, name: str, bag: Bag, vectors: Mapping[str, np.ndarray], content: str, about: Mapping[str, Any]
) -> None:
    """One bag: tiles in the order of their indices, on a grid."""
    side, count = int(about["tile_size_px"]), len(bag.tiles)
    columns = math.ceil(math.sqrt(count))
    at = np.arange(count)
    magnification = round(MAGNIFICATION / float(about["mpp"]))
    attributes = {
        "": {
            "synthetic": True, "bag_id": name, "label": bag.label, "label_level": bag.level, "mpp": float(about["mpp"]),
            "model_id": about["model"]["id"], "model_revision": about["model"]["revision"], "model_sha256": about["model"]["sha256"],
            "licence": json.dumps(about["licence"], sort_keys=True), "privacy": about["privacy"], CONTENT: content,
            "encoder_licence": json.dumps(about["encoder_licence"], sort_keys=True),
        },
        "features": {
            "name": name, "savetodir": ".", "encoder": about["encoder"]["id"], "encoder_sha256": about["encoder"]["sha256"],
            "token": about["encoder"]["token"],
        },
        "coords": {
            "name": name, "savetodir": ".", "patch_size": side, "patch_size_level0": side, "overlap": 0,
            "level0_magnification": magnification, "target_magnification": magnification,
            "level0_width": columns * side, "level0_height": math.ceil(count / columns) * side, "meaning": INVENTED,
        },
    }  # fmt: skip
    features = np.stack([vectors[key] for key, _ in bag.in_order()])
    coords = np.stack([at % columns, at // columns], axis=1) * side
    write_features(folder / f"{name}.h5", features, coords, attributes)


def _labels(bags: Mapping[str, Bag]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["case_id", "slide_id", "label", "label_level"])
    lines.writerows([name, name, bag.label, bag.level] for name, bag in bags.items())
    return text.getvalue()


def _put(path: Path, text: str) -> None:
    """Whole or not at all."""
    with beside(path) as new:
        new.write_text(text, encoding="utf-8")
