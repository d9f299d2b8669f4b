"""Columns of a bank: one value or vector per row, in memory or in a flat file that is mapped for each use and no longer.

A mapping that stays open keeps every page it has touched resident, so a bank of 300 GB would slowly fill the memory; a new one
costs microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Column:
    """An array of `shape` and `dtype`, held in memory or in `file` (raw little-endian values, row after row)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: Path | None = None
    held: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, values: np.ndarray) -> Column:
        """A column in memory."""
        return cls(values.dtype, values.shape, None, values)

    @classmethod
    def create(cls, folder: Path | None, name: str, dtype: str, shape: tuple[int, ...]) -> Column:
        """A new column of zeros, in memory without a folder. OSError where the disk cannot hold it."""
        kind = np.dtype(dtype)
        if folder is None:
            return cls.of(np.zeros(shape, kind))
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        with open(folder / name, "xb") as handle:
            if hasattr(
                os, "posix_fallocate"
            ):  # else a full disk would end the process by a signal, at some later write
                os.posix_fallocate(handle.fileno(), 0, size)
            else:
                handle.truncate(size)
        return cls(kind, shape, folder / name)

    @classmethod
    def opened(cls, file: Path, dtype: str, shape: tuple[int, ...]) -> Column:
        """A column that stands in a file. ValueError where the file has another size; OSError where it cannot be read."""
        kind = np.dtype(dtype)
        if file.stat().st_size != int(np.prod(shape, dtype=np.int64)) * kind.itemsize:
            raise ValueError(f"{file}: is not {shape} of {kind}")
        return cls(kind, shape, file)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def map(self, *, writable: bool = False) -> np.ndarray:
        """The values; drop the array after use. Changes go to the file (or the held array)."""
        if self.held is not None:
            return self.held
        assert self.file is not None
        return np.memmap(self.file, self.dtype, "r+" if writable else "r", 0, self.shape)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """A copy of these rows."""
        return np.array(self.map()[rows])

    def part(self, start: int, end: int) -> np.ndarray:
        """A copy of rows start to end."""
        return np.array(self.map()[start:end])

    def put(self, rows: np.ndarray | slice, values: np.ndarray) -> None:
        """Writes these rows."""
        self.map(writable=True)[rows] = values


def pieces(start: int, end: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive pieces of about 16 MB each."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for first in range(start, end, step):
        yield first, min(end, first + step)
