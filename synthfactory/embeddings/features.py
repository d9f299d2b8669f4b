"""Writes features as TRIDENT lays them out: one HDF5 file with `features` (n, E) and `coords` (n, 2), each with attributes.

`hdf5.py` reads such files. h5py is an optional dependency (extra `hdf5`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError

Attributes = Mapping[str, Mapping[str, Any]]  # '' (the file itself), features, coords -> their attributes


def check_h5py(where: str) -> None:
    """InputError, naming `where` something is to be written, where h5py is not installed."""
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise InputError(
            f"{where}: writing HDF5 needs h5py; install it with pip install 'synthfactory[hdf5]'"
        ) from None


def write_features(path: Path, features: np.ndarray, coords: np.ndarray, attributes: Attributes) -> None:
    """Writes float32 (n, E) and int64 (n, 2) to PATH: whole under its name, or not there. What was there is replaced."""
    import h5py

    with beside(path) as new, h5py.File(new, "x") as handle:
        handle.create_dataset("features", data=np.asarray(features, np.float32))
        handle.create_dataset("coords", data=np.asarray(coords, np.int64))
        for name, values in attributes.items():
            (handle[name] if name else handle).attrs.update(values)


def stated_text(path: Path, name: str, rows: int, width: int) -> str | None:
    """A text attribute of a file of features; None where there is no such file, attribute or text, nothing that is HDF5, or not
    `features` (rows, width) and `coords` (rows, 2) in it.
    """
    import h5py

    try:
        with h5py.File(path, "r") as handle:
            found = handle.attrs.get(name)
            if handle["features"].shape != (rows, width) or handle["coords"].shape != (rows, 2):
                return None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError):
        return None
    return found if isinstance(found, str) else None
