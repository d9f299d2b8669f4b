"""The tar of a shard, repeatable to the byte; and reading tars of unknown origin without trusting them.

Members KEY.png (or webp, jpg) and KEY.json, adjacent, in unit order; ustar, mtime 0, uid 0, mode 0644.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from webdataset import TarWriter

from synthfactory.shards.record import EXTENSIONS, TileRecord, sha256_hex

MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 1_000_000
MAX_IMAGE_PX = 4096


class DamagedShardError(ValueError):
    """A tar or a member is not what a shard may hold; the message says what."""


def encode_image(image: np.ndarray, image_format: str) -> bytes:
    """uint8 (H, W, 3) -> PNG (level 1) or WebP (lossless), both exact, or JPEG (quality 95, 4:4:4), which is not."""
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


def decode_image(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3). DamagedShardError where the bytes are no whole PNG, WebP or JPEG, or claim more than 4096 px a side."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as picture:
            if max(picture.size) > MAX_IMAGE_PX or picture.mode != "RGB":
                raise DamagedShardError(
                    f"is a {picture.mode} image of {picture.size[0]} x {picture.size[1]} px; RGB tiles are expected"
                )
            return np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DamagedShardError):
            raise
        raise DamagedShardError(f"does not decode as an image ({error})") from None


@dataclass(frozen=True)
class ShardFile:
    """A finished tar on local disk; `rows` are the public rows of its tiles."""

    path: Path
    sha256: str
    size: int
    rows: list[dict[str, Any]]


def write_shard(path: Path, items: Iterable[tuple[TileRecord, bytes]]) -> ShardFile:
    """Writes the tar of (record, encoded image) pairs in the given order; equal items give equal bytes."""
    rows = []
    with open(path, "wb") as handle, TarWriter(handle, encoder=False, mtime=0, user="", group="", mode=0o644) as tar:
        for record, image in items:
            tar.write({"__key__": record.key, EXTENSIONS[record.format]: image, "json": record.to_json()})
            rows.append(record.row(sha256_hex(image)))
    digest = hashlib.sha256()
    with open(path, "rb") as written:
        for block in iter(lambda: written.read(1 << 20), b""):
            digest.update(block)
    return ShardFile(path, digest.hexdigest(), path.stat().st_size, rows)


def scan_tar(handle: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """(member name, content) in order. DamagedShardError for truncation, links, devices, paths, doubled or huge members."""
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=handle, mode="r|") as tar:
            for member in tar:
                if not member.isreg() or "/" in member.name or "\\" in member.name or member.name.startswith("."):
                    raise DamagedShardError(f"member '{member.name[:80]}' is no plain file name")
                if member.size > MAX_MEMBER_BYTES or len(seen) >= MAX_MEMBERS:
                    raise DamagedShardError(f"member '{member.name[:80]}' is too large, or there are too many")
                if member.name in seen:
                    raise DamagedShardError(f"member '{member.name[:80]}' stands there twice")
                seen.add(member.name)
                source = tar.extractfile(member)
                content = source.read() if source else b""
                if len(content) != member.size:
                    raise DamagedShardError(f"member '{member.name[:80]}' is cut off")
                yield member.name, content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedShardError(f"is no whole tar ({error})") from None


def samples(handle: BinaryIO) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, image bytes, KEY.json bytes) of a shard's tiles; DamagedShardError where the pairs do not stand side by side."""
    pending: dict[str, bytes] = {}
    key = ""
    for name, content in scan_tar(handle):
        stem, _, extension = name.partition(".")
        kind = "json" if extension == "json" else "image"
        if kind == "image" and extension not in EXTENSIONS.values():
            raise DamagedShardError(f"member '{name[:80]}' is neither an image nor a record")
        if pending and (stem != key or kind in pending):
            raise DamagedShardError(f"member '{name[:80]}' stands where the other half of '{key[:80]}' should be")
        key = stem
        pending[kind] = content
        if len(pending) == 2:
            yield key, pending["image"], pending["json"]
            pending = {}
    if pending:
        raise DamagedShardError(f"the other half of '{key[:80]}' is missing at the end")
