"""Tars whose headers cost more than their members: refused in words and at once, whatever they declare."""

from __future__ import annotations

import io
import struct
import tarfile
import time
from pathlib import Path

import pytest

from synthfactory.embeddings.tile_shards import tar_samples
from synthfactory.spec.errors import InputError

PNG = b"\x89PNG, as far as this test goes"


def header(kind: bytes, size: int, name: bytes = b"././@LongLink") -> bytes:
    """A header of 512 bytes; sizes of any length in base 256."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = b"\x80" + bytes(3) + struct.pack(">Q", size)
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


LONG_NAME = header(b"L", 4) + padded(b"abc\0")
PAX = header(b"x", 12) + padded(b"12 comment=x")
END = header(b"0", len(PNG), b"a.png") + padded(PNG) + bytes(1024)


@pytest.mark.parametrize("first", [LONG_NAME, PAX], ids=["long names", "pax"])
def test_headers_one_inside_the_other(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(first * 1000 + END)
    with pytest.raises(InputError, match=r"a\.tar: is no readable tar \(extension header 9 of"):
        list(tar_samples(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [200_000, 6 << 30, 1 << 62])
def test_headers_that_are_long_or_say_that_they_are(tmp_path: Path, kind: bytes, size: int) -> None:
    (tmp_path / "a.tar").write_bytes(header(kind, size) + b"1" * 200_192 + END)  # of digits: quadratic for tarfile
    began = time.monotonic()
    with pytest.raises(InputError, match=r"a\.tar: is no readable tar \(extension header 1 of [\d,]+ bytes"):
        list(tar_samples(str(tmp_path / "a.tar")))
    assert time.monotonic() - began < 5  # 44 s where it was read


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_pax_headers_of_every_member_are_read(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for number in range(30):
            member = tarfile.TarInfo(f"{'deep/' * 60}ä{number}.png")
            member.size, member.pax_headers = len(PNG), {"mtime": "1.5", "comment": "x" * 2000}
            tar.addfile(member, io.BytesIO(PNG))
    assert len(list(tar_samples(str(tmp_path / "a.tar")))) == 30
