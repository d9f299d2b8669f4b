"""Files of weights, read without torch: their hash, and what a safetensors header says is inside."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def pickle_problem(path: Path) -> str | None:
    """What a file is that poses as safetensors but is a pickle or a torch archive; None where it is neither. Nothing is unpickled."""
    with open(path, "rb") as handle:
        head = handle.read(9)
    if head[:4] == b"PK\x03\x04":
        return "is a zip archive (a torch checkpoint, which holds a pickle)"
    begins_json = head[8:] == b"{"  # a safetensors header of 896 bytes begins with 80 03 as well
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5 and not begins_json:
        return "is a pickle, which could run code when read"
    return None


def shapes_in(path: Path, again: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file, from its header; the file must be as long as the header says.

    InputError where it is a pickle, no safetensors, or cut short; `again` says what to do ('export the model again').
    """
    problem = pickle_problem(path)
    if problem:
        raise InputError(f"{path}: {problem}; safetensors are needed, so {again}")
    size = path.stat().st_size
    try:
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = read_json(handle.read(length))
        shapes, end = {}, 0
        for name, entry in header.items():
            if name != "__metadata__":
                shapes[str(name)] = tuple(int(side) for side in entry["shape"])
                end = max(end, int(entry["data_offsets"][1]))
    except (
        OSError,
        ValueError,
        OverflowError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        struct.error,
    ) as error:
        raise InputError(f"{path}: is no safetensors file ({error}); {again}") from None
    if 8 + length + end != size:
        raise InputError(f"{path}: is cut short: {size:,} bytes, its header speaks of {8 + length + end:,}; {again}")
    return shapes
