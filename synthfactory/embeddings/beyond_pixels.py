"""What an image file holds beside its pixels: text, EXIF, private chunks, bytes behind its end. Any of it may name somebody. What hides
among the compressed pixels themselves is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

# Of the format itself, and of colour. An ICC profile describes the scanner's colours; its texts are the maker's.
PLAIN_PNG = {
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"bKGD", b"sBIT", b"hIST", b"cICP",
}  # fmt: skip
PLAIN_WEBP = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}
JFIF_BYTES = 14  # of a JFIF segment without a thumbnail
# Tables, frames and scans; all else that a segment may hold is nobody's to draw with.
DRAWN_JPEG = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDA, 0xDB, 0xDD}
STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length


def holds_more(data: bytes, kind: str) -> bool:
    """Whether a PNG, JPEG or WEBP file (by Pillow's name of its kind) holds more than pixels and their colours. A file that cannot be
    walked to its end does, since nobody knows then; so does one of another kind.
    """
    walk = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(kind)
    try:
        return walk is None or any(walk(data))
    except (IndexError, ValueError):
        return True


def _png(data: bytes) -> Iterator[bool]:
    at, name = 8, b""
    while name != b"IEND":
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield len(name) < 4 or name not in PLAIN_PNG
        at += 12 + size
    yield at != len(data)


def _jpeg(data: bytes) -> Iterator[bool]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xD9:  # end of image
            yield at + 2 != len(data)
            return
        at += 2
        if marker in STANDALONE:
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        yield not _is_plain(marker, data[at + 2 : at + size])
        at += size
        if marker == 0xDA:  # compressed data follows, in which FF stands before 00 and restarts alone
            while not (data[at] == 0xFF and data[at + 1] != 0 and data[at + 1] not in STANDALONE):
                at = data.index(b"\xff", at + 1)


def _is_plain(marker: int, content: bytes) -> bool:
    if marker == 0xE0:
        return content.startswith(b"JFIF\0") and len(content) == JFIF_BYTES
    if marker == 0xE2:  # its first part has the signature of a profile
        return content.startswith(b"ICC_PROFILE\0") and (content[12:13] != b"\1" or content[50:54] == b"acsp")
    if marker == 0xEE:
        return content.startswith(b"Adobe") and len(content) == 12
    return marker in DRAWN_JPEG


def _webp(data: bytes) -> Iterator[bool]:
    end = 8 + int.from_bytes(data[4:8], "little")
    yield end + end % 2 != len(data) + len(data) % 2
    at = 12
    while at < end:
        yield data[at : at + 4] not in PLAIN_WEBP
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
