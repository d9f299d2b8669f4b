"""Real tiles in WebDataset tars, KEY.png (jpg, tif, webp) beside KEY.json: listed by reading the tars' headers and the JSON alone.

JSON: label, and optionally label_level, patient_id, slide_id, site, mpp, x, y, tumour_fraction. Of packed sets what is known of patients
stands beside the tars. Nothing is unpacked, no link followed.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from synthfactory.embeddings.bank import LEVELS
from synthfactory.embeddings.checks import check_fraction, check_mpp_known
from synthfactory.embeddings.packed import said_beside, with_tars
from synthfactory.embeddings.places import expand
from synthfactory.embeddings.rows import known
from synthfactory.embeddings.tiles import SUFFIXES, TileFolder
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.text import shown

MAX_JSON_BYTES = 1 << 20
MAX_IMAGE_BYTES = 64 << 20
MAX_EXTENSIONS, MAX_PAX_BYTES, MAX_NAME_BYTES = 8, 1 << 14, 1 << 16  # headers before a member's own, and their sizes
MAX_MEMBERS = 5_000_000


@dataclass
class _Sample:
    """The two members of a tile, as far as they were met."""

    span: tuple[str, int, int] | None = None
    record: dict[str, Any] | None = None
    image: str = ""  # the image's name in the tar


def scan_shards(
    places: str | Sequence[str], label_level: str | None, classes: Sequence[str] | None, mpp: float | None = None
) -> TileFolder:
    """Lists the tiles of the classes asked for (None: of all). `label_level` and `mpp` are what the spec says where the JSON does not.

    InputError, naming the tar, for: no such file, no tar, two images or JSON of one key, no or wrong JSON, an absent label, a level or
    mpp that nobody states, synthetic tiles.
    """
    files = expand(with_tars(places), "WebDataset tars of tiles")
    rows: list[tuple[str, tuple[str, int, int], str, str, dict[str, Any]]] = []
    seen: set[str] = set()
    for path in files:
        beside = said_beside(path)
        for key, sample in tar_samples(path):
            where = f"{path}: {shown(key)}"
            if sample.record is None or sample.span is None:
                lacking, other = ("JSON", "image") if sample.record is None else ("image", "JSON")
                raise InputError(
                    f"{where}: has an {other}, but no {lacking}; a tile is KEY.png and KEY.json".replace(
                        "an JSON", "a JSON"
                    )
                )
            if beside and key not in beside:  # as where the two were made of different tiles: whose it is would be lost
                raise InputError(f"{where}: stands in no row beside its tar; pack the tiles anew")
            label = sample.record.get("label")
            if not isinstance(label, str) or not label:
                raise InputError(f'{where}: its JSON has no \'label\'; write one, such as {{"label": "gland"}}')
            seen.add(label)
            if classes is not None and label not in classes:
                continue
            if sample.record.get("synthetic") is True:
                raise InputError(f"{where}: is a synthetic tile; conditions come from real ones")
            level = sample.record.get("label_level") or label_level
            if level not in LEVELS:
                right = "write label_level: tile (or region, or slide) under embeddings"
                raise InputError(
                    f"{where}: label_level is {shown(str(level))}; {right}"
                    if level
                    else f"{where}: has no label_level; {right}"
                )
            check_mpp_known(_number(sample.record, "mpp", where), mpp, where)
            rows.append((f"{path}/{key}", sample.span, label, str(level), {**beside.get(key, {}), **sample.record}))
    listing = ", ".join(map(shown, sorted(seen)[:12])) or "none"
    for name in classes or ():
        if not any(row[2] == name for row in rows):
            raise InputError(f"classes.{name}: {files[0]} and the other tars have no such label; they have: {listing}")
    return TileFolder(
        files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
        tuple(row[0] for row in rows),
        tuple(row[2] for row in rows),
        tuple(row[3] for row in rows),
        tuple(known(row[4].get("patient_id")) for row in rows),
        tuple(known(row[4].get("slide_id")) for row in rows),
        tuple((_or_nan(row[4], "x", row[0]), _or_nan(row[4], "y", row[0])) for row in rows),
        tuple(_or_nan(row[4], "tumour_fraction", row[0]) for row in rows),
        tuple(row[1] for row in rows),
        tuple(known(row[4].get("site")) for row in rows),
        tuple(_number(row[4], "mpp", row[0]) for row in rows),
    )


def _number(record: dict[str, Any], name: str, where: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {name} {shown(json.dumps(value))} is no number; correct it or leave it out")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isinf(found) and name != "tumour_fraction":
        raise InputError(f"{where}: {name} is beyond all numbers; correct it or leave it out")
    if name == "tumour_fraction":
        check_fraction(found, name, where)
    return found


def _or_nan(record: dict[str, Any], name: str, where: str) -> float:
    found = _number(record, name, where)
    return math.nan if found is None else found


class _Bounded(tarfile.TarInfo):
    """A member whose extension headers are few and short: tarfile reads them whole before anybody knows the member, in a time that grows
    with the square of a pax header's length, and one inside the other.
    """

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        pax = self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if pax or self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            archive.extensions = getattr(archive, "extensions", 0) + 1
            if archive.extensions > MAX_EXTENSIONS or not 0 <= self.size <= (MAX_PAX_BYTES if pax else MAX_NAME_BYTES):
                raise tarfile.ReadError(f"extension header {archive.extensions} of {self.size:,} bytes")
        else:
            archive.extensions = 0
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


def tar_samples(path: str) -> Iterator[tuple[str, _Sample]]:
    """(key, members) in the order of the tar; members of a key need not be neighbours."""
    found: dict[str, _Sample] = {}
    try:
        with open_source(path) as raw, tarfile.open(fileobj=raw, mode="r:", tarinfo=_Bounded) as tar:
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise InputError(f"{path}: holds over {MAX_MEMBERS:,} members; write smaller tars")
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                if not member.isreg() or member.issparse() or not stem or not dot:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if f".{ending.lower()}" in SUFFIXES:
                    if member.size > MAX_IMAGE_BYTES:
                        raise InputError(f"{path}: {shown(member.name)} has {member.size:,} bytes; a tile has fewer")
                    sample = found.setdefault(key, _Sample())
                    if sample.span is not None:
                        raise _twice(path, sample.image, member.name)
                    sample.span, sample.image = (path, member.offset_data, member.size), member.name
                elif ending.lower() == "json":
                    sample = found.setdefault(key, _Sample())
                    if sample.record is not None:
                        raise _twice(path, f"{key}.json", member.name)
                    sample.record = _record(tar, member, path)
            _check_end(raw, tar.offset, path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name WebDataset tars of tiles") from None
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no readable tar ({shown(str(error))})") from None
    if not found:
        raise InputError(f"{path}: holds no tiles; a tile is KEY.png and KEY.json")
    yield from found.items()


def _check_end(raw: BinaryIO, at: int, path: str) -> None:
    """InputError where what follows the last member is no end of a tar: its reader takes a damaged header for one, and says nothing."""
    raw.seek(at)
    if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise InputError(f"{path}: is damaged at byte {at:,}, where neither a header nor an end stands; write it again")
    while block := raw.read(1 << 16):
        if block.strip(b"\0"):
            raise InputError(f"{path}: goes on after its end mark, as tars do that were joined; write one tar for each")


def _twice(path: str, first: str, second: str) -> InputError:
    what = (
        f"{shown(first)} stands there twice"
        if first == second
        else f"{shown(first)} and {shown(second)} are of one tile"
    )
    return InputError(f"{path}: {what}; a key has one image and one JSON, so rename or remove the other")


def _record(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> dict[str, Any]:
    handle = tar.extractfile(member) if member.size <= MAX_JSON_BYTES else None
    try:
        values = read_json(handle.read()) if handle is not None else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path}: {shown(member.name)} is no JSON object; write the tar again")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: {shown(member.name)} holds half a character; write the tar again") from None
    return values
