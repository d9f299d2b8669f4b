"""Arrays in the cache: whole or not there, made anew where they are damaged; a full disk is an error and not a signal."""

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

from train.arrays import kept

WIDE, FLAT = np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10, dtype=np.float16)


def blocks() -> Iterator[list[np.ndarray]]:
    for start in (0, 4, 8):
        yield [WIDE[start : start + 4], FLAT[start : start + 4]]


def never() -> Iterator[list[np.ndarray]]:
    raise AssertionError("made again")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / "cache" / "wide.npy", tmp_path / "cache" / "flat.npy"]


def test_they_are_made_once_and_mapped(paths: list[Path]) -> None:
    for made in (blocks, never):
        wide, flat = kept(paths, 10, made)
        assert np.array_equal(wide, WIDE)
        assert np.array_equal(flat, FLAT)
        assert (wide.dtype, flat.dtype) == (np.float32, np.float16)


@pytest.mark.parametrize("left", [0, 3, 150])  # bytes: nothing, half a header, half the rows
def test_what_a_power_cut_left_is_made_anew(paths: list[Path], left: int) -> None:
    kept(paths, 10, blocks)
    os.truncate(paths[0], left)
    assert np.array_equal(kept(paths, 10, blocks)[0], WIDE)


def test_a_stop_and_a_full_disk_leave_nothing_behind(paths: list[Path]) -> None:
    def stopped() -> Iterator[list[np.ndarray]]:
        yield from list(blocks())[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(paths, 10, stopped)
    assert not list(paths[0].parent.iterdir())
    with pytest.raises(ValueError, match="8 of 10 rows"):
        kept(paths, 10, lambda: list(blocks())[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError, match="too large"):
            kept(paths, 10, blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(paths[0].parent.iterdir())


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(paths: list[Path]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    folder = paths[0].parent
    folder.mkdir()
    here = socket.gethostname()
    left = {pid: folder / f".tmp-{here}-{pid}-wide.npy" for pid in (dead.pid, os.getppid())}
    elsewhere = folder / f".tmp-another-machine-{dead.pid}-wide.npy"
    for path in (*left.values(), elsewhere):
        path.write_bytes(b"half")
    kept(paths, 10, blocks)
    assert not left[dead.pid].exists()
    assert left[os.getppid()].exists()
    assert elsewhere.exists()
