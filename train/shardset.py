"""Where every tile of the shards lies, and what is known of it: read once, kept in the cache, nothing unpacked.

Sets of ours name their shards by commits and their patients in a parquet beside the tars; other tars (KEY.png and KEY.json) say it in the
JSON: label, and where there are patient_id, attributes and a grid of local structure.
Shapes: N tiles, A attributes, G grid cells a side, K grid channels.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from synthfactory.embeddings.places import expand, identity, is_pattern, local
from synthfactory.embeddings.rows import known
from synthfactory.embeddings.tile_shards import tar_samples
from synthfactory.run.pack_report import read_patients
from synthfactory.shards.beside import beside
from synthfactory.shards.commit import list_commits
from synthfactory.shards.real import PACK
from synthfactory.shards.store import Store, open_source, open_store
from synthfactory.shards.tarfmt import DamagedShardError, decode_image
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown
from train.config import Data, ShardSet

END_BYTES = 1024  # two blocks of zeros end a tar
FORMAT = "4"  # of a cached piece


Terms = tuple[str, str]  # name of a licence, sharing


@dataclass(frozen=True)
class Index:
    """All tiles of all sets, in order. `attributes` (N, A) and `grid` (N, G, G, K) are float32; A or K is 0 where tars have none."""

    tars: tuple[str, ...]
    tar_of: np.ndarray = field(repr=False)  # int64 (N,), index into tars
    offsets: np.ndarray = field(repr=False)  # int64 (N,), of the image in its tar
    lengths: np.ndarray = field(repr=False)  # int64 (N,)
    labels: np.ndarray = field(repr=False)  # int64 (N,), index into classes
    patients: np.ndarray = field(repr=False)  # int64 (N,), index into patient_names; -1: unknown
    sets: np.ndarray = field(repr=False)  # int64 (N,), which entry of data.shards
    synthetic: np.ndarray = field(repr=False)  # bool (N,)
    attributes: np.ndarray = field(repr=False)
    grid: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    patient_names: tuple[str, ...] = field(repr=False)
    attribute_names: tuple[str, ...]
    grid_channels: tuple[str, ...]
    tar_sha256: tuple[str, ...] = field(repr=False)
    digest: str  # sha256 over the tars' sha256
    skipped: tuple[str, ...]  # what is wrong with each tar that was left out
    # uint64 (N,), equal for equal pictures; 0: unknown, as of all tars that are not packed
    pictures: np.ndarray = field(repr=False)
    tar_terms: tuple[tuple[Terms, ...], ...] = field(repr=False)  # of each tar, what its synthetic tiles state

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Tar:
    """A tar to read. `beside` gives what stands beside it of its tiles, by key; `size` is what lies there in a store
    that was listed, None where nothing does; `listing` is the sha256 of what a packed set says of its patients.
    """

    place: str
    sha256: str | None = None
    size: int | None = None
    beside: Callable[[], dict[str, dict[str, Any]]] | None = None
    listing: str = ""


@dataclass(frozen=True)
class _Piece:
    """What one tar holds."""

    sha256: str
    keys: list[str]
    labels: list[str]
    patients: list[str | None]
    synthetic: list[bool]
    attribute_names: list[str]
    grid_channels: list[str]
    terms: list[Terms]
    spans: np.ndarray  # int64 (n, 2): offset and length of the image
    pictures: np.ndarray
    attributes: np.ndarray
    grid: np.ndarray


class BadShardError(InputError):
    """A tar that is missing, cut off or damaged."""


def open_index(data: Data, cache: Path, sets: Sequence[ShardSet] | None = None) -> Index:
    """Lists the tiles of `sets` (default: those of data.shards). InputError where there are none, a tar is damaged
    (data.on_bad_shard: stop), or a label is none of data.classes.
    """
    pieces: list[tuple[int, str, _Piece]] = []
    skipped: list[str] = []
    for number, entry in enumerate(data.shards if sets is None else sets):
        for tar in _tars_of(entry):
            try:
                pieces.append((number, tar.place, _piece(tar, cache)))
            except BadShardError as error:
                if data.on_bad_shard == "stop":
                    raise InputError(
                        f"data.shards: {error}; mend it, or write on_bad_shard: skip under data to train on the others"
                    ) from None
                skipped.append(str(error))
    if not any(piece.keys for _, _, piece in pieces):
        raise InputError(f"data.shards: no tile is left{': ' + skipped[0] if skipped else ''}")
    return _joined(pieces, skipped, data.classes)


def _tars_of(entry: ShardSet) -> list[_Tar]:
    place = entry.shards
    if place.endswith(".tar") or is_pattern(place):
        return [_Tar(path) for path in expand(place, "WebDataset tars")]
    store = open_store(place, reading=True)
    commits = list_commits(store)
    if commits:
        packed = store.size(PACK) is not None
        listing = hashlib.sha256(store.read(PACK)).hexdigest() if packed else ""
        lying = dict(store.entries()) if is_url(place) else {}  # one listing, not a request for each tar
        found = []
        for commit in commits.values():

            def beside(commit: Any = commit) -> dict[str, dict[str, Any]]:
                return {row["key"]: row for row in read_patients(store, commit)}

            where = f"{place.rstrip('/')}/{commit.objects[0]}"
            sha256, size = str(commit.body["tar"]["sha256"]), lying.get(commit.objects[0])
            found.append(_Tar(where, sha256, size, beside if packed else None, listing))
        return found
    # Hidden files are what somebody is still writing, or left behind: tars have their names when they are whole.
    names = sorted(
        path
        for path, _ in store.entries()
        if path.endswith(".tar") and not any(p.startswith(".") for p in path.split("/"))
    )
    if not names:
        if not is_url(place) and not local(place).exists():
            raise InputError(f"data.shards: {place}: there is no such folder")
        raise InputError(
            f"data.shards: {place}: holds no .tar; name a folder of WebDataset shards, a built set, or what `synthfactory pack` has made"
        )
    return [_Tar(f"{place.rstrip('/')}/{name}") for name in names]


def _terms_of(record: Mapping[str, Any]) -> Terms | None:
    """What a synthetic tile states of its terms, as sets of ours do: licence {name, sharing}. Of real ones their holder decides."""
    licence = record.get("licence")
    if (
        record.get("synthetic") is not True
        or not isinstance(licence, dict)
        or not isinstance(licence.get("sharing"), str)
    ):
        return None
    return str(licence.get("name")), licence["sharing"]


def _piece(tar: _Tar, cache: Path) -> _Piece:
    """From the cache, or read and kept there. The name covers what the commit says of the tar, and what lies there: size and time."""
    try:
        if tar.sha256 is not None and is_url(tar.place):
            if tar.size is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            known_by = f"{tar.sha256}:{tar.size}"
        else:
            known_by = f"{tar.sha256}:{identity([tar.place])[0]}"
    except OSError as error:
        raise BadShardError(f"{tar.place}: is missing or cannot be read ({error.strerror or error})") from None
    kept = (
        cache
        / "index"
        / f"{hashlib.sha256(f'{FORMAT}:{tar.place}:{known_by}:{tar.listing}'.encode()).hexdigest()[:32]}.npz"
    )
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged: read again
        return _unpacked(kept.read_bytes())
    found = _read(tar)
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it names patients
    with beside(kept, shared=True) as new:
        new.write_bytes(_packed(found))
    return found


def _read(tar: _Tar) -> _Piece:
    """One pass over the tar for its checksum, one over its headers."""
    sha256, size = _checked(tar)
    beside = tar.beside() if tar.beside else None
    none = np.zeros(0)
    piece = _Piece(sha256, [], [], [], [], [], [], [], none, none, none, none)
    spans, attributes, grids, pictures = [], [], [], []
    try:
        for key, sample in tar_samples(tar.place):
            if sample.span is None or sample.record is None:
                raise BadShardError(f"{tar.place}: {shown(key)} has no {'image' if sample.record else 'JSON'}")
            _, offset, length = sample.span
            if offset + length > size - END_BYTES:
                raise BadShardError(f"{tar.place}: is cut off")
            record = sample.record
            label = record.get("label")
            if not isinstance(label, str) or not label:
                raise BadShardError(f"{tar.place}: the JSON of {shown(key)} has no label that is text")
            spans.append((offset, length))
            piece.keys.append(key)
            piece.labels.append(label)
            piece.synthetic.append(record.get("synthetic") is True)
            more = record if beside is None else beside.get(key, {})
            piece.patients.append(known(more.get("patient_id")))
            pictures.append(
                int(more["pixels_sha256"][:16], 16) if beside is not None and more.get("pixels_sha256") else 0
            )
            if (stated := _terms_of(record)) is not None and stated not in piece.terms:
                piece.terms.append(stated)
            found = record.get("attributes") or {}
            if not piece.keys[1:]:
                piece.attribute_names.extend(dict(found))
                piece.grid_channels.extend(record.get("grid_channels") or [])
            attributes.append([float(found[name]) for name in piece.attribute_names])
            grids.append(_grid_of(record))
            if not (np.isfinite(attributes[-1]).all() and np.isfinite(grids[-1]).all()):
                raise BadShardError(f"{tar.place}: attributes or grid of {shown(key)} hold NaN or infinity")
        grid = np.stack(grids)
    except BadShardError:
        raise
    except InputError as error:  # of the reader: no tar, cut off in a header
        raise BadShardError(str(error)) from None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise BadShardError(f"{tar.place}: attributes or grid are not of one form ({shown(str(error))})") from None
    return _Piece(
        sha256, piece.keys, piece.labels, piece.patients, piece.synthetic, piece.attribute_names, piece.grid_channels, piece.terms,
        np.asarray(spans, np.int64).reshape(-1, 2), np.asarray(pictures, np.uint64),
        np.asarray(attributes, np.float32).reshape(len(spans), -1), grid,
    )  # fmt: skip


def _checked(tar: _Tar) -> tuple[str, int]:
    """(sha256, size); BadShardError where it cannot be read, differs from its commit, or has no end."""
    digest, size, tail = hashlib.sha256(), 0, b""
    try:
        with open_source(tar.place) as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
                size += len(block)
                tail = (tail + block)[-END_BYTES:]
    except OSError as error:
        raise BadShardError(f"{tar.place}: is missing or cannot be read ({error.strerror or error})") from None
    if tar.sha256 is not None and digest.hexdigest() != tar.sha256:
        raise BadShardError(f"{tar.place}: differs from the checksum in its commit")
    if tail != bytes(END_BYTES):
        raise BadShardError(f"{tar.place}: is cut off (no end mark)")
    return digest.hexdigest(), size


def _grid_of(record: dict[str, Any]) -> np.ndarray:
    grid = record.get("grid")
    if grid is None:
        return np.zeros((0, 0, 0), np.float32)
    channels = len(record["grid_channels"])
    values = np.frombuffer(base64.b64decode(grid), np.uint8).astype(np.float32)
    side = int(round((values.size / channels) ** 0.5))
    scale = np.asarray(record["grid_scale"], np.float32)
    minimum = np.asarray(record["grid_min"], np.float32)
    return np.asarray(values.reshape(side, side, channels) * scale + minimum, np.float32)


_TEXTS = ("sha256", "keys", "labels", "patients", "synthetic", "attribute_names", "grid_channels")


def _packed(piece: _Piece) -> bytes:
    sink = io.BytesIO()
    text = json.dumps({name: getattr(piece, name) for name in (*_TEXTS, "terms")}).encode()
    arrays = {name: getattr(piece, name) for name in ("spans", "pictures", "attributes", "grid")}
    np.savez(sink, text=np.frombuffer(text, np.uint8), **arrays)
    return sink.getvalue()


def _unpacked(data: bytes) -> _Piece:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        text = read_json(arrays["text"].tobytes())
        return _Piece(
            terms=[(name, sharing) for name, sharing in text["terms"]],
            **{name: text[name] for name in _TEXTS},
            **{n: arrays[n] for n in ("spans", "pictures", "attributes", "grid")},
        )


def _joined(pieces: Sequence[tuple[int, str, _Piece]], skipped: Sequence[str], wanted: Sequence[str] | None) -> Index:
    parts = [piece for _, _, piece in pieces]
    labels = [label for piece in parts for label in piece.labels]
    classes = tuple(wanted) if wanted is not None else tuple(sorted(set(labels)))
    number = {name: at for at, name in enumerate(classes)}
    for _, place, piece in pieces:
        strange = next((label for label in piece.labels if label not in number), None)
        if strange is not None:
            raise InputError(
                f"data.classes: {place}: has a tile of label '{shown(strange)}', which is none of them; add it, or leave out the tar"
            )
    names = sorted({name for piece in parts for name in piece.patients if name is not None})
    patient = {name: at for at, name in enumerate(names)}
    extras = [(piece.attribute_names, piece.grid_channels, piece.grid.shape[1:]) for piece in parts]
    same = all(extra == extras[0] for extra in extras)  # mixed with tars that know less: what all know is nothing
    counts = [len(piece.keys) for piece in parts]
    spans = np.concatenate([piece.spans for piece in parts])
    return Index(
        tars=tuple(place for _, place, _ in pieces),
        tar_of=np.repeat(np.arange(len(parts)), counts),
        offsets=spans[:, 0],
        lengths=spans[:, 1],
        labels=np.asarray([number[label] for label in labels], np.int64),
        patients=np.asarray([-1 if n is None else patient[n] for piece in parts for n in piece.patients], np.int64),
        sets=np.repeat(np.asarray([at for at, _, _ in pieces]), counts),
        synthetic=np.asarray([flag for piece in parts for flag in piece.synthetic], bool),
        attributes=np.concatenate([piece.attributes for piece in parts])
        if same
        else np.zeros((len(labels), 0), np.float32),
        grid=np.concatenate([piece.grid for piece in parts]) if same else np.zeros((len(labels), 0, 0, 0), np.float32),
        classes=classes,
        patient_names=tuple(names),
        attribute_names=tuple(parts[0].attribute_names) if same else (),
        grid_channels=tuple(parts[0].grid_channels) if same else (),
        tar_sha256=tuple(piece.sha256 for piece in parts),
        digest=hashlib.sha256("".join(piece.sha256 for piece in parts).encode()).hexdigest(),
        skipped=tuple(skipped),
        pictures=np.concatenate([piece.pictures for piece in parts]),
        tar_terms=tuple(tuple(piece.terms) for piece in parts),
    )


class Reader:
    """Bytes of a tile's image by row, from disk or any fsspec store; for any number of threads."""

    MAX_OPEN = 32  # files that a thread keeps open

    def __init__(self, index: Index) -> None:
        self._index = index
        self._mine = threading.local()
        self._stores: dict[str, Store] = {}

    def read(self, row: int) -> bytes:
        """InputError where the tar is gone or shorter than it was."""
        tar = int(self._index.tar_of[row])
        place, offset, length = self._index.tars[tar], int(self._index.offsets[row]), int(self._index.lengths[row])
        try:
            data = self._remote(place, offset, length) if is_url(place) else self._local(place, offset, length)
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror or error})") from None
        if len(data) != length:
            raise InputError(f"{place}: is shorter than it was; put the same file back")
        return data

    def image(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3), decoded. InputError as above, or where it does not decode."""
        try:
            return decode_image(self.read(row))
        except DamagedShardError as error:
            raise InputError(
                f"{self._index.tars[int(self._index.tar_of[row])]}: a tile {error}; replace the tar"
            ) from None

    def _local(self, place: str, offset: int, length: int) -> bytes:
        files: OrderedDict[str, BinaryIO] = self._mine.__dict__.setdefault("files", OrderedDict())
        if place not in files:
            if len(files) >= self.MAX_OPEN:
                files.popitem(last=False)[1].close()
            files[place] = local(place).open("rb", buffering=0)
        files.move_to_end(place)
        return os.pread(files[place].fileno(), length, offset)

    def _remote(self, place: str, offset: int, length: int) -> bytes:
        parent, _, name = place.rpartition("/")
        if parent not in self._stores:
            self._stores[parent] = open_store(parent, reading=True)
        return self._stores[parent].read_range(name, offset, length)
