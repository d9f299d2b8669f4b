"""Image files that hold more than pixels are told from those that do not, by every way in which a name can hide in one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from synthfactory.embeddings.beyond_pixels import holds_more

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NAME = b"TCGA-AB-1234"


def saved(kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **how)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("PNG", {}),
        ("PNG", {"dpi": (72, 72), "icc_profile": PROFILE, "compress_level": 1}),
        ("JPEG", {}),
        ("JPEG", {"quality": 30, "dpi": (300, 300), "icc_profile": PROFILE}),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0, "restart_marker_blocks": 1}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "icc_profile": PROFILE}),
    ],
)
def test_pixels_and_colours_are_nothing_more(kind: str, how: dict[str, Any]) -> None:
    assert not holds_more(saved(kind, **how), kind)


def test_what_may_name_somebody_is_seen() -> None:
    info = PngInfo()
    info.add_text("Description", NAME.decode())
    exif = Image.Exif()
    exif[0x9286] = NAME.decode()
    png, jpeg, webp = saved("PNG"), saved("JPEG"), saved("WEBP")
    jpeg_segment = b"\xff\xeb" + struct.pack(">H", 2 + len(NAME)) + NAME
    riff = webp + b"note" + struct.pack("<I", len(NAME)) + NAME
    files = {
        "PNG text": ("PNG", saved("PNG", pnginfo=info)),
        "PNG EXIF": ("PNG", saved("PNG", exif=exif)),
        "PNG private chunk": ("PNG", png[:33] + chunk(b"prVt", NAME) + png[33:]),
        "PNG date": ("PNG", png[:33] + chunk(b"tIME", bytes(7)) + png[33:]),
        "PNG behind its end": ("PNG", png + NAME),
        "JPEG comment": ("JPEG", saved("JPEG", comment=NAME)),
        "JPEG EXIF": ("JPEG", saved("JPEG", exif=exif)),
        "JPEG private segment": ("JPEG", jpeg[:2] + jpeg_segment + jpeg[2:]),
        "JPEG number of lines": ("JPEG", jpeg[:2] + b"\xff\xdc" + struct.pack(">H", 2 + len(NAME)) + NAME + jpeg[2:]),
        "JPEG colours that are none": ("JPEG", saved("JPEG", icc_profile=NAME * 9)),
        "JPEG behind its end": ("JPEG", jpeg + NAME),
        "JPEG two in one": ("JPEG", jpeg + jpeg),
        "WEBP EXIF": ("WEBP", saved("WEBP", exif=exif)),
        "WEBP private chunk": ("WEBP", riff[:4] + struct.pack("<I", len(riff) - 8) + riff[8:]),
        "WEBP behind its end": ("WEBP", webp + NAME),
    }
    assert [name for name, (kind, data) in files.items() if not holds_more(data, kind)] == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_cannot_be_walked_is_not_taken_for_clean(kind: str) -> None:
    whole = saved(kind)
    assert all(holds_more(whole[:cut], kind) for cut in range(12, len(whole), 7))
    assert holds_more(whole, "TIFF")
