"""A blinded reader sheet: as many real tiles as synthetic ones of each class, in a secret order, on one page; its key in another file.

What could tell them apart besides their pixels is made equal: every tile is encoded anew by one encoder to one length, classes and
shown labels are the same on both sides tile by tile, and order, choice and wrong labels follow from a key that is in neither file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.embeddings.places import is_pattern, local
from synthfactory.embeddings.tiles import TileFolder, read_tile
from synthfactory.plan.keyed import entry
from synthfactory.report.facts import image_format, is_unconditional, label_levels
from synthfactory.report.reader import Sheet, png_base64, reader_page
from synthfactory.run.audit_setup import check_whole
from synthfactory.run.audit_tiles import list_tiles, report_place
from synthfactory.run.auditing import lock_sha256
from synthfactory.run.contamination import of_training_set
from synthfactory.run.eval_tiles import codec_of, lossy
from synthfactory.run.prepare import Standing, read_standing
from synthfactory.run.reader_choice import choose_real, quotas_of, wrong_labels
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.tarfmt import DamagedShardError
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.text import counted, shown

FORMAT = "synthfactory-reader-key/1"
INTERNAL = "Names real tiles, and says which are real: never published, and not for those who read the page."
LEAST_A_SIDE = 5
MAX_PAGE_BYTES = 192 << 20
EMBEDDINGS_ONLY = (".parquet", ".h5", ".hdf5", ".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class Trial:
    """A tile of the sheet. `owner`: real tiles of one patient have one number."""

    real: bool
    label: str
    shown: str
    name: str
    owner: int
    png: str = field(repr=False)

    def to_json(self, number: int) -> dict[str, Any]:
        """For the key: what is behind the tile of that number."""
        return {
            "tile": number,
            "real": self.real,
            "class": self.label,
            "shown": self.shown,
            "name": self.name,
            "owner": self.owner,
        }


@dataclass(frozen=True)
class Made:
    """What was written: the files, and what to say of them, a line each."""

    page: Path
    key: Path
    lines: list[str]


def make_study(out: str, source: str, count: int, target: str, seed: int | None, say: Callable[[str], None]) -> Made:
    """Writes page and key. InputError, and nothing written, where a place is in OUT or taken, or one side has too few tiles to show."""
    page = report_place(target, out, "-o", "the page", ".html")
    key = key_place(page)
    for path in (page, key):
        if path.exists() or path.is_symlink():
            raise InputError(f"-o {target}: {path} is there already, and answers rest on it; name another file")
    standing = read_standing(out)
    if standing.lock is None:
        raise InputError(f"{out}: holds no set (no {LOCK}); name the output.path of a build")
    check_whole(out, standing, quick=True)
    lock, tiles = standing.lock, _real_tiles(source)
    drawn, real = Counter[str](), Counter(tiles.labels)
    for commit in standing.commits.values():
        drawn.update(commit.classes)
    quotas = quotas_of(count // 2, {name: min(drawn[name], real[name]) for name in sorted(drawn.keys() & real.keys())})
    per_side, size_px = sum(quotas.values()), int(lock["model"]["tile_size_px"])
    if per_side < LEAST_A_SIDE:
        raise InputError(
            f"--real {source}: {counted(per_side, 'tile')} a side of a class that both have, and {LEAST_A_SIDE} are needed; the set has "
            f"{_names(drawn)}, {source} has {_names(real)}"
        )
    _check_size(2 * per_side, size_px)
    lock_hash = lock_sha256(standing.store.read(LOCK, through_links=True))
    secret = order_key(seed, lock_hash, tiles)
    say(f"{counted(per_side, 'tile')} of {source} and as many of {out} to read")
    rows, owners = choose_real(secret, tiles, quotas, partial(_pixels, tiles, tiles.reader(), size_px))
    ours, codecs = _real(tiles, rows, owners, size_px)
    trials = ours + _synthetic(out, standing, secret, quotas, size_px, max(owners) + 1)
    labels = wrong_labels(secret, list(quotas), [each.label for each in ours])
    trials = [replace(each, shown=label) for each, label in zip(trials, labels + labels, strict=True)]
    trials = [trials[entry(secret, "page", len(trials), position)] for position in range(len(trials))]
    sheet = Sheet(
        [(each.png, each.shown) for each in trials],
        size_px,
        float(lock["model"]["resolution_mpp"]),
        sorted(quotas),
        sum(each.shown != each.label for each in trials),
        "" if is_unconditional(lock) else label_levels(lock),
    )
    html, page_id = reader_page(sheet)
    members = tiles.members()
    contaminated = of_training_set(lock, [members[row] for row in rows])
    body = {
        "format": FORMAT,
        "internal": INTERNAL,
        "page": {"name": page.name, "sha256": hashlib.sha256(html).hexdigest(), "id": page_id},
        "set": {
            "place": out if is_url(out) else str(local(out).resolve()),
            "name": lock["name"],
            "lock_sha256": lock_hash,
        },
        "real": source,
        "contaminated": contaminated,
        "tiles": [each.to_json(at) for at, each in enumerate(trials, 1)],
    }
    _write_both(target, {key: (json.dumps(body, indent=1, allow_nan=False) + "\n").encode(), page: html})
    lines = [
        f"{page}: {counted(len(trials), 'tile')}, {per_side:,} real and {per_side:,} synthetic, of "
        f"{len(quotas):,} class{'es' * (len(quotas) != 1)}; {len(html) / 1e6:.1f} MB",
        f"{key}: the key, for its owner alone; readers must not have it, nor the set or the real tiles",
        "INTERNAL: the page shows tiles of real patients and the key names them; neither is to be published",
        *_told(tiles, rows, owners, sheet.wrong),
        *(f"left out: {text}" for text in _left_out(drawn, real, quotas)),
    ]
    if 2 * per_side < count - count % 2:
        lines.append(f"note: {count:,} tiles were asked for; no class that both sides have has more left")
    if contaminated is not None:
        lines.append(
            f"warning: {contaminated['tiles']:,} real tiles are of {counted(contaminated['patients'], 'patient')} of TCGA, on which "
            "CytoSyn was trained; what is scored is contaminated, and marked so"
        )
    codecs.add(image_format(lock)[0].upper())
    if lossy(tuple(codecs)):
        lines.append(f"note: files are {', '.join(sorted(codecs))}; what a lossy codec leaves may tell the sides apart")
    return Made(page, key, lines)


def key_place(page: Path) -> Path:
    """Of FILE.html: FILE.key.json."""
    return page.with_name(f"{page.stem}.key.json")


def _real_tiles(source: str) -> TileFolder:
    """As `list_tiles`; InputError for a bank, which has no pixels."""
    where = f"--real {source}"
    right = "name the tiles: class folders with a tiles.csv, a CSV, tars, or a packed set"
    if source.lower().endswith(EMBEDDINGS_ONLY):
        raise InputError(f"{where}: holds embeddings and no pixels, so there is nothing to look at; {right}")
    if not is_url(source) and not is_pattern(source) and not local(source).exists():
        raise InputError(f"{where}: no such file or folder; {right}")
    try:
        return list_tiles(source)
    except InputError as error:
        raise InputError(f"--real: {error}") from None


def _names(counts: Mapping[str, int]) -> str:
    return ", ".join(shown(name) for name in sorted(counts)[:12]) or "none"


def _check_size(count: int, size_px: int) -> None:
    each = size_px * size_px * 4  # three bytes a pixel, as base64
    if count * each > MAX_PAGE_BYTES:
        raise InputError(
            f"-n {count}: the page would have {count * each / 1e6:,.0f} MB, which no browser opens gladly; at most "
            f"{MAX_PAGE_BYTES // each // 2 * 2} tiles of {size_px} px fit"
        )


def order_key(seed: int | None, lock_hash: str, tiles: TileFolder) -> bytes:
    """16 bytes that choice, order and wrong labels follow from: of the operating system, or of a seed and what real tiles there are.

    The names of real tiles go in, since a seed alone could be guessed, and tried on the page.
    """
    if seed is None:
        return secrets.token_bytes(16)
    told = json.dumps([seed, lock_hash, tiles.files, tiles.labels, tiles.patient_ids])
    return hashlib.blake2b(told.encode(), digest_size=16, person=b"sf-reader").digest()


def _pixels(tiles: TileFolder, read: Callable[[int], bytes], size_px: int, row: int) -> bytes:
    """A hash of what a tile shows, whatever its file is."""
    return hashlib.sha256(read_tile(tiles, read, row, size_px)[1].tobytes()).digest()


def _real(tiles: TileFolder, rows: Sequence[int], owners: Sequence[int], size_px: int) -> tuple[list[Trial], set[str]]:
    """(the tiles of these rows, their codecs)."""
    read, trials, codecs = tiles.reader(), list[Trial](), set[str]()
    for row, owner in zip(rows, owners, strict=True):
        data, image = read_tile(tiles, read, row, size_px)
        codecs.add(codec_of(data))
        label = tiles.labels[row]
        trials.append(Trial(True, label, label, tiles.where(row), owner, png_base64(image)))
    return trials, codecs


def _synthetic(
    out: str, standing: Standing, secret: bytes, quotas: Mapping[str, int], size_px: int, owner: int
) -> list[Trial]:
    """Tiles of the set, `quotas` of each class, class by class in a secret order; only the shards that hold them are read.

    Each is its own owner, from number `owner` on.
    """
    places: dict[tuple[int, str, int], tuple[str, int]] = {}  # (shard, class, how many of it before) -> (class, rank)
    for label, quota in quotas.items():
        held = [(shard, commit.classes.get(label, 0)) for shard, commit in standing.commits.items()]
        ends = np.cumsum([count for _, count in held])
        for rank in range(quota):
            number = entry(secret, f"synthetic/{label}", int(ends[-1]), rank)
            at = int(np.searchsorted(ends, number, side="right"))
            places[held[at][0], label, number - int(ends[at]) + held[at][1]] = (label, rank)
    met, at_hand, found = Counter[tuple[int, str]](), list[tuple[str, int]](), dict[tuple[str, int], Trial]()

    def keep(shard: int, record: Mapping[str, Any]) -> bool:
        label = str(record["label"])
        place = places.get((shard, label, met[shard, label]))
        met[shard, label] += 1
        at_hand[:] = [place] if place else []
        return place is not None

    try:
        for key, image, _ in iter_tiles(standing.store, {shard for shard, _, _ in places}, keep):
            if image.shape[:2] != (size_px, size_px):
                raise DamagedShardError(f"{out}: {shown(key)} is not {size_px} px wide and high, as its lock says")
            label, _ = at_hand[0]
            found[at_hand[0]] = Trial(False, label, label, key, owner + len(found), png_base64(image))
        if len(found) != len(places):
            raise DamagedShardError(f"{out}: its shards hold other classes than its commits say")
    except DamagedShardError as error:
        raise InputError(
            f"{error}; `synthfactory verify {out}` names every fault, and the next build mends them"
        ) from None
    return [found[label, rank] for label, quota in quotas.items() for rank in range(quota)]


def _told(tiles: TileFolder, rows: Sequence[int], owners: Sequence[int], wrong: int) -> list[str]:
    """Patients, and how many labels are wrong."""
    patients, unknown = len(set(owners)), sum(not tiles.patient_ids[row] for row in rows)
    lines = [f"{len(rows):,} real tiles of {counted(patients, 'patient')}" + ", one each" * (patients == len(rows))]
    if unknown:
        lines = [
            f"note: {unknown:,} of {len(rows):,} real tiles name no patient; for them their slide counts as one, else the tile itself"
        ]
    if not wrong:
        return [*lines, "note: no label is wrong on purpose, since there is one class; label answers cannot be judged"]
    return [
        *lines,
        f"{wrong:,} of {2 * len(rows):,} labels are wrong on purpose, half of them of real tiles; the page says so",
    ]


def _left_out(drawn: Mapping[str, int], real: Mapping[str, int], quotas: Mapping[str, int]) -> list[str]:
    sides = [("the set alone has it", drawn.keys() - real.keys()), ("only real tiles have it", real.keys() - drawn.keys()),
             ("-n is too small for every class", (drawn.keys() & real.keys()) - quotas.keys())]  # fmt: skip
    return [f"{shown(name)}: {why}" for why, names in sides for name in sorted(names)]


def _placed(temporary: Path, path: Path) -> None:
    """Gives a file its name, unless that is taken; where the disk has no links, by writing it there once more."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            try:
                handle.write(temporary.read_bytes())
                handle.flush()
                os.fsync(handle.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise


def _write_both(target: str, files: Mapping[Path, bytes]) -> None:
    """Their owner's alone, whole, and both or neither; never over a file that is there."""
    beside = {path: path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}") for path in files}
    done: list[Path] = []
    try:
        for path, data in files.items():
            with open(os.open(beside[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        for path in files:
            _placed(beside[path], path)
            done.append(path)
    except BaseException as error:
        for path in done:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"-o {target}: cannot be written ({error.strerror or error}); name another file") from None
        raise
    finally:
        for path in beside.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
