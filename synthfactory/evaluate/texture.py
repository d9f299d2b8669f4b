"""Descriptors of stain and texture, computed and not learned: a second feature space that shares nothing with any trained encoder.

Of hematoxylin and eosin each: how its amount is distributed, how strong its pattern is at five scales, how peaked, and how much one
direction prevails; and how both go together at each scale. No descriptor depends on how a tile is turned or mirrored.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from synthfactory.evaluate.density import optical_density, unmixed

ID = "texture/1"
LEAST_PX = 32  # a side, for the coarsest level to have a gradient
LEVELS = 5  # of a pyramid: each level has half the resolution of the one before
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
WINDOW = 7  # pixels of a level over which a direction may prevail
WIDTH = 2 * (2 + len(QUANTILES)) + 2 + LEVELS * (2 * 3 + 1)


def texture(tile_HW3: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), at least 32 px a side -> float32 (WIDTH,)."""
    amounts = unmixed(optical_density(tile_HW3)).astype(np.float32)
    found: list[float] = []
    for stain in range(2):
        values = amounts[..., stain]
        found += [float(values.mean()), float(values.std()), *np.quantile(values, QUANTILES).tolist()]
    found += [float(amounts[..., 2].mean()), float(amounts[..., 2].std())]
    levels = [amounts[..., 0], amounts[..., 1]]
    for _ in range(LEVELS):
        bands = []
        for level in levels:
            smooth = ndimage.gaussian_filter(level, 1.0, truncate=3)
            bands.append(smooth - ndimage.gaussian_filter(level, 1.6, truncate=3))
            found += [*_strength(bands[-1]), _one_direction(smooth)]
        found.append(_together(*bands))
        levels = [_halved(level) for level in levels]
    return np.array(found, np.float32)


def textures(tiles_BHW3: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) -> float32 (B, WIDTH)."""
    return np.stack([texture(tile) for tile in tiles_BHW3])


def _halved(level: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in level.shape)
    return np.asarray(level[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))


def _strength(band: np.ndarray) -> tuple[float, float]:
    """(log of the mean square, log of the kurtosis)."""
    square = band.astype(np.float64) ** 2
    energy = float(square.mean()) + 1e-9
    return float(np.log(energy)), float(np.log(float((square * square).mean()) / energy**2 + 1e-3))


def _one_direction(smooth: np.ndarray) -> float:
    """Coherence of the structure tensor around each place, weighted by its energy: 0 no direction prevails, 1 one does."""
    gy, gx = np.gradient(smooth)
    xx, yy, xy = (ndimage.uniform_filter(part, WINDOW) for part in (gx * gx, gy * gy, gx * gy))
    return float(np.sqrt((xx - yy) ** 2 + 4 * xy * xy).sum() / ((xx + yy).sum() + 1e-9))


def _together(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).mean() / (one.std() * other.std() + 1e-9))
