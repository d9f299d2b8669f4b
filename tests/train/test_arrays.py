"""Arrays in the cache: whole or not there, made anew where they are damaged, gone on with where interrupted; a full disk is an error."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from train import arrays
from train.arrays import kept

WIDE, FLAT = np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10, dtype=np.float16)


def blocks(first: int) -> Iterator[list[np.ndarray]]:
    for start in range(first, 10, 4):
        yield [WIDE[start : start + 4], FLAT[start : start + 4]]


def never(first: int) -> Iterator[list[np.ndarray]]:
    raise AssertionError("made again")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / "cache" / "wide.npy", tmp_path / "cache" / "flat.npy"]


def test_they_are_made_once_and_mapped(paths: list[Path]) -> None:
    for made in (blocks, never):
        wide, flat = kept(paths, 10, 4, made)
        assert np.array_equal(wide, WIDE)
        assert np.array_equal(flat, FLAT)
        assert (wide.dtype, flat.dtype) == (np.float32, np.float16)


@pytest.mark.parametrize("left", [0, 3, 150])  # bytes: nothing, half a header, half the rows
def test_what_a_power_cut_left_is_made_anew(paths: list[Path], left: int) -> None:
    kept(paths, 10, 4, blocks)
    os.truncate(paths[0], left)
    assert np.array_equal(kept(paths, 10, 4, blocks)[0], WIDE)


class Stopping:
    """Blocks that end with the error after so many; `began` says from which row they were asked for."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.after, self.began = error, after, -1

    def __call__(self, first: int) -> Iterator[list[np.ndarray]]:
        self.began = first
        yield from list(blocks(first))[: self.after]
        raise self.error


def test_what_was_stopped_goes_on_from_there(paths: list[Path]) -> None:
    for began, after in ((0, 1), (4, 1), (8, 0)):
        stop = Stopping(KeyboardInterrupt(), after)
        with pytest.raises(KeyboardInterrupt):
            kept(paths, 10, 4, stop)
        assert stop.began == began
        assert not any(path.exists() for path in paths)
    again = Stopping(KeyboardInterrupt(), 99)
    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, 4, again)
    assert again.began == 8
    wide, flat = kept(paths, 10, 4, blocks)
    assert np.array_equal(wide, WIDE)
    assert np.array_equal(flat, FLAT)
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)


def test_rows_of_a_batch_are_made_together_again(paths: list[Path]) -> None:
    """What stands in one of the files alone, or of half a batch, is made anew; so is what is no array."""
    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, 4, Stopping(KeyboardInterrupt(), 2))
    left = {name: next(paths[0].parent.glob(f".tmp-*-{name}")) for name in ("wide.npy", "flat.npy")}
    os.truncate(left["flat.npy"], left["flat.npy"].stat().st_size - 1)
    once = Stopping(KeyboardInterrupt(), 1)
    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, 4, once)
    assert once.began == 4
    left["wide.npy"].write_bytes(b"no array")
    wide, flat = kept(paths, 10, 4, blocks)
    assert np.array_equal(wide, WIDE)
    assert np.array_equal(flat, FLAT)


def test_a_full_disk_leaves_nothing_behind(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="8 of 10 rows"):
        kept(paths, 10, 4, lambda first: list(blocks(first))[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError, match="too large"):
            kept(paths, 10, 4, blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(paths[0].parent.iterdir())


def test_what_a_killed_process_left_is_taken_over_and_a_living_ones_is_not(paths: list[Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, 4, Stopping(KeyboardInterrupt(), 1))
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    folder, here, boot = paths[0].parent, socket.gethostname(), arrays._boot()
    for path in paths:
        own = next(folder.glob(f".tmp-*-{path.name}"))
        own.rename(folder / f".tmp-{here}-{boot}-{dead.pid}-{path.name}")
    living = folder / f".tmp-{here}-{boot}-{os.getppid()}-wide.npy"
    elsewhere = folder / f".tmp-another-machine-{boot}-{dead.pid}-wide.npy"
    alike = folder / f".tmp-{here}-1-{boot}-{dead.pid}-wide.npy"  # of a machine whose name begins like this one's
    namesake = folder / f".tmp-{here}-fedcba98-{os.getppid()}-wide.npy"
    before = folder / f".tmp-{here}-0123abcd-{os.getppid()}-wide.npy"  # of an earlier start of this machine
    for path in (living, elsewhere, alike, namesake, before):
        path.write_bytes(b"half")
    os.utime(before, (0, 0))
    begun = Stopping(KeyboardInterrupt(), 0)
    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, 4, begun)
    assert begun.began == (4 if boot else 0)
    assert np.array_equal(kept(paths, 10, 4, blocks)[0], WIDE)
    assert sorted(folder.iterdir()) == sorted([*paths, living, elsewhere, alike, namesake])
