"""The eight symmetries of the square, and random gains of stain: what a tile may look like without being another tissue.

Shapes: G grid cells a side, K channels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def transformed(array: np.ndarray, symmetry: int, rows: int = 0) -> np.ndarray:
    """`array` with axes (rows, rows+1) turned k = s % 4 quarters, then flipped left to right where s >= 4."""
    turned = np.rot90(array, symmetry % 4, axes=(rows, rows + 1))
    return np.asarray(np.flip(turned, axis=rows + 1) if symmetry >= 4 else turned)


def turned(x_BCHW: Tensor, symmetry: int) -> Tensor:
    """The same for the last two axes of a tensor."""
    found = torch.rot90(x_BCHW, symmetry % 4, (2, 3))
    return torch.flip(found, (3,)) if symmetry >= 4 else found


def turned_each(x_BKHH: Tensor, symmetries_B: Tensor) -> Tensor:
    """(B, K, H, H) under a symmetry of each row's own, int64 (B,) from 0 to 7, on the device of `x`."""
    moved = _moved(x_BKHH.shape[-1], x_BKHH.device)[symmetries_B]
    return x_BKHH.flatten(2).gather(2, moved[:, None].expand(-1, x_BKHH.shape[1], -1)).reshape(x_BKHH.shape)


@lru_cache(maxsize=8)
def _moved(side: int, device: torch.device) -> Tensor:
    """int64 (8, side²): which cell each one takes its value from."""
    cells = np.arange(side * side).reshape(side, side)
    return torch.from_numpy(np.stack([transformed(cells, way).ravel() for way in range(8)])).to(device)


def transformed_grid(grid: np.ndarray, symmetry: int, channels: tuple[str, ...]) -> np.ndarray:
    """A grid (G, G, K) under a symmetry: cells move, and orientation channels (cos 2a, sin 2a) turn with them."""
    moved = transformed(grid, symmetry).copy()
    for position, name in enumerate(channels):
        if name.endswith("cos2") and symmetry % 2 == 1:
            moved[..., position] *= -1  # a quarter turn adds 180 degrees to 2a
        if name.endswith("sin2") and (symmetry % 2 == 1) != (symmetry >= 4):
            moved[..., position] *= -1  # as above; a mirror turns the sign of sin 2a alone
    return np.asarray(moved)


def with_stain(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with the optical density of each channel multiplied by gains (3,): od = -log10((v + 1) / 256)."""
    values = np.arange(1, 257, dtype=np.float64) / 256
    tables = np.clip(np.rint(256 * values[:, None] ** gains[None] - 1), 0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([tables[image[..., channel], channel] for channel in range(3)], axis=-1)
