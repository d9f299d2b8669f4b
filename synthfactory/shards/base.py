"""What a store of objects can do, whatever lies behind it: whole objects by relative POSIX path, and two kinds of write.

`put` replaces whole objects (for names that contain their content's hash, where a second writer writes the same). `create` is
exclusive: of two writers one wins, and a lost reply is told from a lost race by reading back.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"(?:.*/)?\.tmp-[0-9a-f]{16}")
BLOCK_BYTES = 1 << 20


def temporary_name() -> str:
    """A fresh name for a file that is not finished; `is_temporary` knows it."""
    return f".tmp-{secrets.token_hex(8)}"


def is_temporary(path: str) -> bool:
    """Whether a path was made by `temporary_name`: nothing else is ever swept, so a user's own '.tmp-notes' is safe."""
    return _TEMPORARY.fullmatch(path) is not None


def checked(path: str) -> str:
    """The path itself; ValueError where it is no relative path that stays inside a store."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ValueError(f"{path!r} is no relative path inside a store")
    return path


LINK, FOLDER, SPECIAL = "a link", "a folder", "a pipe, socket or device"


class NotAFileError(OSError):
    """Where a file should be lies a link, a folder, a pipe, socket or device: never followed, and never waited for."""


class Store(ABC):
    """Objects by relative POSIX path. Every method raises ValueError for a path that leaves the store."""

    place: str
    at_once = 1  # threads that may call it, and gain by it

    @abstractmethod
    def read(self, path: str, *, through_links: bool = False) -> bytes:
        """The whole object; FileNotFoundError where there is none, NotAFileError where it is no file.

        `through_links` reads the file that a link leads to, where links exist at all.
        """

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """(path, the whole object or None where there is no such file) in order; stores that answer slowly are asked several at a time."""
        for path in paths:
            yield path, self._there(path)

    def _there(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except (FileNotFoundError, NotAFileError):
            return None

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, or fewer where the object ends before; FileNotFoundError where there is none."""
        with self.open(path) as handle:
            handle.seek(offset)
            return handle.read(length)

    @abstractmethod
    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """The object as a readable file; errors as of `read`."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes, or None where there is nothing of that name (what is no file counts as it lies there, a link as itself)."""

    @abstractmethod
    def put(self, path: str, content: bytes | Path) -> None:
        """Writes a whole object (bytes, or a local file) and checks its size; nobody ever sees a part of it under this name."""

    @abstractmethod
    def create(self, path: str, content: bytes) -> bool:
        """Writes only where there is nothing. True: the object holds `content` now (ours, or equal). False: it holds something else."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of every object below a folder ('' = all), never from a cache, in no order; temporary files included."""

    def irregular(self, prefix: str = "") -> dict[str, str]:
        """Path -> what it is (LINK, FOLDER, SPECIAL), of all below a folder that is no file; object stores hold objects only."""
        return {}

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; nothing where there is none."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """What interrupted writes left behind: temporary files, uploads begun and never finished."""

    @abstractmethod
    def sweep(self) -> int:
        """Removes the leftovers; returns how many. A writer that is still alive begins its write again."""

    def exists(self) -> bool:
        """Whether anything lies here."""
        return next(iter(self.entries()), None) is not None

    def move_out(self, path: str, other: Store, other_path: str) -> str:
        """Copies an object to another store, never over something there, then removes it here; returns its path there."""
        found = self.copy_out(path, other, other_path)
        self.delete(path)
        return found

    def copy_out(self, path: str, other: Store, other_path: str) -> str:
        """Copies an object to another store, never over something there; returns its path there."""
        free = free_path(other, other_path)
        with tempfile.TemporaryDirectory(prefix="synthfactory-") as scratch:
            spool = Path(scratch) / "object"
            with self.open(path) as source, open(spool, "xb") as target:
                for block in iter(lambda: source.read(BLOCK_BYTES), b""):
                    target.write(block)
            other.put(free, spool)
        return free


def free_path(store: Store, path: str) -> str:
    """The path, or path.1, path.2 ...: the first where nothing lies."""
    candidate, number = path, 1
    while store.size(candidate) is not None:
        candidate, number = f"{path}.{number}", number + 1
    return candidate
