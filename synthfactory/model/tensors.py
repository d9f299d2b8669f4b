"""Safetensors files, read and written so that errors name the file and others may read what was written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown


def read_tensors(path: Path, mend: str = "make it again") -> dict[str, Tensor]:
    """All tensors of a file. InputError, naming it and what would `mend` it, where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: is damaged ({shown(str(error), 200)}); {mend}") from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes them, with the permissions that any new file gets here: safetensors' own leave a file to its owner alone.

    OSError, naming the file, where it cannot be written: a full disk, say.
    """
    with open(path, "wb") as opened:
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({shown(str(error), 200)})") from None
    with contextlib.suppress(PermissionError):  # of a file system that knows no modes
        path.chmod(mode)
