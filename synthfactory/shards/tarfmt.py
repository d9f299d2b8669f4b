"""The tar of a shard, repeatable to the byte; and reading tars of unknown origin without trusting them.

Members KEY.png (or webp, jpg) and KEY.json, adjacent, in unit order; POSIX ustar (IEEE 1003.1), mtime 0, uid = gid = 0, no user or
group name, mode 0644. The reader below knows ustar's plain files only: no links, no extended headers, nothing to be fooled by.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from synthfactory.shards.record import EXTENSIONS, RealRecord, TileRecord, sha256_hex

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 1_000_000
MAX_IMAGE_PX = 4096
MAX_NAME = 100  # ustar's name field
_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_OCTAL = re.compile(rb"[0-7]{1,11}[ \0]+")
_PIL_FORMATS = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}


class DamagedShardError(ValueError):
    """A tar or a member is not what a shard may hold; the message says what."""


def encode_image(image: np.ndarray, image_format: str) -> bytes:
    """uint8 (H, W, 3) -> PNG (level 1) or WebP (lossless), both exact, or JPEG (quality 95, 4:4:4), which is not."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a tile is uint8 (H, W, 3), not {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if image_format == "png":
        picture.save(buffer, "PNG", compress_level=1)
    elif image_format == "webp":
        picture.save(buffer, "WEBP", lossless=True, quality=0, method=0, exact=True)
    elif image_format == "jpeg":
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        raise ValueError(f"no image format '{image_format}'; png, webp and jpeg exist")
    return buffer.getvalue()


def decode_image(
    data: bytes, expected_px: tuple[int, int] | None = None, image_format: str | None = None
) -> np.ndarray:
    """uint8 (H, W, 3). `expected_px` is (width, height); size, mode and format are checked in the header, before any decoding.

    DamagedShardError where the bytes are no whole RGB PNG, WebP or JPEG, or not of that size and format (at most 4096 px a side).
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(_PIL_FORMATS)) as picture:
            size, found = picture.size, _PIL_FORMATS.get(str(picture.format), "")
            if max(size) > MAX_IMAGE_PX or picture.mode != "RGB":
                raise DamagedShardError(
                    f"is a {picture.mode} image of {size[0]} x {size[1]} px; RGB tiles are expected"
                )
            if expected_px is not None and size != expected_px:
                raise DamagedShardError(
                    f"is {size[0]} x {size[1]} px; {expected_px[0]} x {expected_px[1]} are expected"
                )
            if image_format is not None and found != image_format:
                raise DamagedShardError(f"is {found}; {image_format} is expected")
            return np.asarray(picture)
    except DamagedShardError:
        raise
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error, MemoryError,
        Image.DecompressionBombError, Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise DamagedShardError(f"does not decode as an image ({error})") from None


@dataclass(frozen=True)
class ShardFile:
    """A finished tar on local disk; `rows` are the public rows of its tiles."""

    path: Path
    sha256: str
    size: int
    rows: list[dict[str, Any]]


class _Hashing:
    """A file that is written once from start to end, and hashed on the way."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self.digest, self.size = handle, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._handle.write(data)


def write_shard(path: Path, items: Iterable[tuple[TileRecord | RealRecord, bytes]]) -> ShardFile:
    """Writes the tar of (record, encoded image) pairs in the given order; equal items give equal bytes.

    `path` is a scratch file: where `items` raises, what is there is no whole tar (no end mark). ValueError for a key that does not
    fit a ustar name or stands twice.
    """
    rows: list[dict[str, Any]] = []
    keys: set[str] = set()
    with open(path, "wb") as handle:
        out = _Hashing(handle)
        for record, image in items:
            if record.key in keys:
                raise ValueError(f"key '{record.key}' stands twice in one shard")
            keys.add(record.key)
            for extension, content in ((EXTENSIONS[record.format], image), ("json", record.to_json())):
                out.write(_header(f"{record.key}.{extension}", len(content)))
                out.write(content)
                out.write(b"\0" * (-len(content) % BLOCK))
            rows.append(record.row(sha256_hex(image)))
        out.write(b"\0" * (2 * BLOCK + -(out.size + 2 * BLOCK) % tarfile.RECORDSIZE))
    return ShardFile(path, out.digest.hexdigest(), out.size, rows)


def _header(name: str, size: int) -> bytes:
    if not _NAME.fullmatch(name.encode()) or name.count(".") != 1:
        raise ValueError(f"'{name}' is no member name: KEY.EXTENSION, at most {MAX_NAME} of A-Z, a-z, 0-9, '_' and '-'")
    info = tarfile.TarInfo(name)  # uid, gid, mtime 0, mode 0644, no user or group: tarfile's own defaults
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def scan_tar(handle: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """(member name, content) in order, one member in memory at a time.

    DamagedShardError for truncation (a missing end mark too), links, devices, folders, extended headers, paths, doubled or huge
    members, and bytes after the end.
    """
    seen: set[str] = set()
    while True:
        header = _exactly(handle, BLOCK)
        if header == b"\0" * BLOCK:
            break
        name, size = _member(header)
        if name in seen:
            raise DamagedShardError(f"member '{name}' stands there twice")
        if len(seen) >= MAX_MEMBERS:
            raise DamagedShardError(f"has more than {MAX_MEMBERS} members")
        seen.add(name)
        content = _exactly(handle, size)
        _exactly(handle, -size % BLOCK)
        yield name, content
    if _exactly(handle, BLOCK) != b"\0" * BLOCK or any(_rest(handle)):
        raise DamagedShardError("goes on after its end mark")


def _exactly(handle: BinaryIO, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = handle.read(count)
        if not part:
            raise DamagedShardError("is cut off")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _rest(handle: BinaryIO) -> Iterator[bytes]:
    """What is not zero of the rest."""
    for block in iter(lambda: handle.read(1 << 16), b""):
        yield block.strip(b"\0")


def _member(header: bytes) -> tuple[str, int]:
    """(name, size) of a plain file's ustar header."""
    if header[257:265] != b"ustar\x0000":
        raise DamagedShardError("is no tar, or not of the ustar kind")
    written = header[148:156]
    if not _OCTAL.fullmatch(written) or int(written.strip(b" \0"), 8) != sum(header[:148] + b" " * 8 + header[156:]):
        raise DamagedShardError("has a damaged member header")
    name = header[:100].rstrip(b"\0")
    if not _NAME.fullmatch(name) or header[156:157] != b"0" or header[345:500].strip(b"\0"):
        raise DamagedShardError(f"member {name[:80]!r} is no plain file in the tar's top folder")
    if not _OCTAL.fullmatch(header[124:136]):
        raise DamagedShardError(f"member {name[:80]!r} has no readable size")
    size = int(header[124:136].strip(b" \0"), 8)
    if size > MAX_MEMBER_BYTES:
        raise DamagedShardError(f"member {name[:80]!r} has {size} bytes; at most {MAX_MEMBER_BYTES} are allowed")
    return name.decode("ascii"), size


def samples(handle: BinaryIO) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, image bytes, KEY.json bytes) of a shard's tiles; DamagedShardError where the pairs do not stand side by side."""
    pending: dict[str, bytes] = {}
    key = ""
    for name, content in scan_tar(handle):
        stem, _, extension = name.partition(".")
        kind = "json" if extension == "json" else "image"
        if kind == "image" and extension not in EXTENSIONS.values():
            raise DamagedShardError(f"member '{name}' is neither an image nor a record")
        if pending and (stem != key or kind in pending):
            raise DamagedShardError(f"member '{name}' stands where the other half of '{key}' should be")
        key = stem
        pending[kind] = content
        if len(pending) == 2:
            yield key, pending["image"], pending["json"]
            pending = {}
    if pending:
        raise DamagedShardError(f"the other half of '{key}' is missing at the end")


class HashingReader:
    """A readable file that hashes what passes; `finish` reads the rest and returns the sha256 of all of it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._digest = handle, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        """As of a file."""
        data = self._handle.read(count)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """Hex sha256 of the whole file."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()

    def as_file(self) -> BinaryIO:
        """This reader, for functions that only read from a file."""
        return cast(BinaryIO, self)
