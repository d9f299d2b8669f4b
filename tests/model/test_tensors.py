"""Weights on the disk: readable by whom any new file is, and named where they are damaged."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from synthfactory.model.tensors import read_tensors, write_tensors
from synthfactory.spec.errors import InputError

TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(2, 3, dtype=torch.float16)}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_others_may_read_them_as_the_umask_says(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors(TENSORS, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == mode
    found = read_tensors(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_tensors(TENSORS, tmp_path / "w.safetensors")
    os.truncate(tmp_path / "w.safetensors", 500)
    with pytest.raises(InputError, match=r"w\.safetensors: is damaged \(.*\); fetch it again"):
        read_tensors(tmp_path / "w.safetensors", "fetch it again")


def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match=r"w\.safetensors: cannot be written \(.*too large"):
            write_tensors(TENSORS, tmp_path / "w.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
