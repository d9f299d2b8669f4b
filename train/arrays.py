"""Arrays that are made once, kept in the cache folder, and mapped by every later run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

Append = Callable[[np.ndarray], None]


def kept(paths: Sequence[Path], count: int, blocks: Callable[[], Iterable[Sequence[np.ndarray]]]) -> list[np.ndarray]:
    """The arrays of these .npy files, mapped, of `count` rows each. All are made where one is missing, or damaged by a power cut.

    `blocks` gives, of consecutive rows, one block for each file. OSError where they cannot be written.
    """
    if not all(_is_whole(path) for path in paths):
        with contextlib.ExitStack() as stack:
            sinks = [stack.enter_context(_written(path, count)) for path in paths]
            for found in blocks():
                for sink, block in zip(sinks, found, strict=True):
                    sink(block)
    return [np.asarray(np.load(path, mmap_mode="r")) for path in paths]


def _is_whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):  # of a file that is empty or cut short
        return False
    return True


@contextlib.contextmanager
def _written(path: Path, count: int) -> Iterator[Append]:
    """Gives a function that appends blocks of rows to a new array of `count` rows, of the first block's dtype and shape of a row.

    The file takes its name when it is whole and on the disk; where the block ends otherwise, nothing of it stays. It is written, not
    mapped: on a full disk that is an OSError, where a mapped page would be a signal that ends the process without a word.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{path.name}")
    rows = 0
    try:
        with open(temporary, "wb") as file:

            def append(block: np.ndarray) -> None:
                nonlocal rows
                if not rows:
                    kind = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(file, {**kind, "shape": (count, *block.shape[1:])})
                file.write(np.ascontiguousarray(block).tobytes())
                rows += len(block)

            yield append
            if rows != count:
                raise ValueError(f"{path}: {rows} of {count} rows were made")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Removes what killed processes of this machine left of the same array; those of other machines are not known to be dead."""
    before = f".tmp-{socket.gethostname()}-"
    for left in path.parent.glob(f"{before}*-{path.name}"):
        number = left.name.removeprefix(before).removesuffix(f"-{path.name}")
        if number.isdigit() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
