"""Arrays that are made once, kept in the cache folder, and mapped by every later run. Making them goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

OLD_SEC = 86_400  # without a write: left before the machine's last start, or by another of the same name
Blocks = Callable[[int], Iterable[Sequence[np.ndarray]]]


def kept(paths: Sequence[Path], count: int, block: int, blocks: Blocks) -> list[np.ndarray]:
    """The arrays of these .npy files, mapped, of `count` rows each. All are made where one is missing, or damaged by a power cut.

    `blocks(first)` gives, from row `first` on, `block` consecutive rows at a time (the last time: what is left), one array for each
    file; `first` is a multiple of `block`, so that the same rows are always made together. OSError where they cannot be written.
    """
    if not all(_is_whole(path) for path in paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        parts = [_Part(path, count) for path in paths]
        first = min(part.rows for part in parts) // block * block
        try:
            for part in parts:
                part.open(first)
            for found in blocks(first):
                for part, rows in zip(parts, found, strict=True):
                    part.append(rows)
            for part in parts:
                part.finish()
        except OSError:  # most likely a full disk: make room
            for part in parts:
                part.temporary.unlink(missing_ok=True)
            raise
        finally:
            for part in parts:
                part.close()
    return [np.asarray(np.load(path, mmap_mode="r")) for path in paths]


def at_once(device: torch.device) -> int:
    """Tiles that are encoded together: many keep a GPU busy, few stay in a CPU's cache."""
    return 128 if device.type == "cuda" else 16


def batches(first: int, count: int, what: str, block: int) -> Iterable[np.ndarray]:
    """The rows from `first` on, `block` at a time, with a bar."""
    starts, done = range(0, count, block), first // block
    for start in tqdm(starts[done:], what, len(starts), leave=False, mininterval=5.0, initial=done):
        yield np.arange(start, min(start + block, count))


def _is_whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):  # of a file that is empty or cut short
        return False
    return True


class _Part:
    """A file that is being written under a name of this process's own, and takes its name when it is whole and on the disk.

    It is written, not mapped: on a full disk that is an OSError, where a mapped page would be a signal that ends the process without a
    word. What a dead process of this machine left is taken over, by a rename, so that only one takes it; not across a restart of the
    machine, which may have lost what was not on the disk yet.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count, self.rows = path, count, 0
        before = f".tmp-{socket.gethostname()}-"
        self.temporary = path.with_name(f"{before}{_boot()}-{os.getpid()}-{path.name}")
        self._file = contextlib.ExitStack()
        self._start = self._row_bytes = 0
        for left in sorted(path.parent.glob(f"{before}*-{path.name}")):
            parts = re.fullmatch(
                r"([0-9a-f]{8})?-([0-9]+)", left.name.removeprefix(before).removesuffix(f"-{path.name}")
            )
            if parts is None:  # of another machine, whose name begins like this one's
                continue
            boot, mine = parts[1] or "", left == self.temporary
            if boot != _boot() or not boot:
                if mine or _is_old(left):
                    left.unlink(missing_ok=True)
            elif (mine or not _lives(int(parts[2]))) and not self.rows:
                with contextlib.suppress(FileNotFoundError):
                    left.rename(self.temporary)
                self._look()
            elif not mine and not _lives(int(parts[2])):
                left.unlink(missing_ok=True)

    def _look(self) -> None:
        """How many rows the file holds, of which kind; none where its header is not whole or of another array."""
        self.rows = 0
        try:
            with open(self.temporary, "rb") as file:
                version = np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self._start = file.tell()
        except (OSError, ValueError, EOFError):
            return
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        if version == (1, 0) and shape[0] == self.count and self._row_bytes:
            self.rows = min(self.count, (self.temporary.stat().st_size - self._start) // self._row_bytes)

    def open(self, first: int) -> None:
        """Goes on after row `first`."""
        self.rows = first
        self.sink = self._file.enter_context(self.temporary.open("r+b" if first else "wb"))
        if first:
            self.sink.truncate(self._start + first * self._row_bytes)
            self.sink.seek(0, os.SEEK_END)

    def append(self, rows: np.ndarray) -> None:
        """The next rows; the first ones say the dtype and the shape of a row."""
        if not self.rows:
            kind = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(self.sink, {**kind, "shape": (self.count, *rows.shape[1:])})
        self.sink.write(np.ascontiguousarray(rows).tobytes())
        self.rows += len(rows)

    def finish(self) -> None:
        if self.rows != self.count:
            raise ValueError(f"{self.path}: {self.rows} of {self.count} rows were made")
        self.sink.flush()
        os.fsync(self.sink.fileno())
        self.temporary.rename(self.path)

    def close(self) -> None:
        self._file.close()


def _boot() -> str:
    """Which start of the machine this is; "" where it does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return ""


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD_SEC
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
