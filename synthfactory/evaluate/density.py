"""Optical density of tiles, and what of it is hematoxylin and eosin (Ruifrok and Johnston, 2001)."""

from __future__ import annotations

import numpy as np

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # hematoxylin, eosin: density in red, green, blue


def optical_density(tile_HW3: np.ndarray) -> np.ndarray:
    """uint8 -> float64 of the same shape, 0 for white."""
    return np.asarray(-np.log10((tile_HW3.astype(np.float64) + 1.0) / 256.0))


def pixels(density_HW3: np.ndarray) -> np.ndarray:
    """The inverse: uint8, rounded and clipped."""
    return np.asarray(np.clip(256.0 * 10.0**-density_HW3 - 1.0, 0, 255).round(), np.uint8)


def _basis() -> np.ndarray:
    """(3, 3): unit vectors of hematoxylin, eosin and what neither explains."""
    two = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    rest = np.cross(two[0], two[1])
    return np.stack([*two, rest / np.linalg.norm(rest)])


BASIS = _basis()


def unmixed(density_HW3: np.ndarray) -> np.ndarray:
    """Amounts of hematoxylin, eosin and the rest, float64 (..., 3)."""
    return np.asarray(density_HW3 @ np.linalg.inv(BASIS))


def mixed(amounts_HW3: np.ndarray) -> np.ndarray:
    """The inverse of `unmixed`."""
    return np.asarray(amounts_HW3 @ BASIS)


def stained_anew(tile_HW3: np.ndarray, random: np.random.Generator, spread: float = 0.12) -> np.ndarray:
    """The tile with each stain's amount scaled and shifted at random (HED jitter, Tellez et al., 2018), uint8.

    One affine map of densities, from a table and in float32, since augmentation meets every tile of every step.
    """
    gain, shift = random.normal(1.0, spread, 3), random.normal(0.0, spread / 10, 3)
    turn = (np.linalg.inv(BASIS) * gain) @ BASIS
    light = LIGHT[tile_HW3] @ turn.astype(np.float32) - (np.log2(10) * shift @ BASIS).astype(np.float32)
    np.exp2(np.minimum(light, 0.0), out=light)
    return np.asarray(np.clip(256.0 * light - 0.5, 0, 255), np.uint8)


def augmented(tile_HW3: np.ndarray, random: np.random.Generator, spread: float = 0.12) -> np.ndarray:
    """The tile turned, mirrored and, where `spread` is above 0, stained anew, at random; uint8 (H, H, 3)."""
    turned = np.rot90(tile_HW3, int(random.integers(4)))
    turned = turned[:, ::-1] if random.random() < 0.5 else turned
    return stained_anew(turned, random, spread) if spread else np.asarray(turned)


LIGHT = np.log2((np.arange(256, dtype=np.float32) + 1) / 256)  # of each pixel value; a density is -log10 of the same
