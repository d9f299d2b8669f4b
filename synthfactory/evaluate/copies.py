"""Is a tile a copy of another, shifted, turned, mirrored, stained anew, blended or compressed? Pixels decide, on a shortlist of neighbours.

A tile is reduced to what the copying leaves: the pattern of optical density at 64 x 64, without its slow part, of unit variance. Two
patterns are laid over one another in all eight symmetries and at all shifts up to a quarter; the score is the best correlation over the
part that overlaps (1 = a copy; unrelated tissue stays far below).
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

SIDE, PADDED = 64, 128
REACH = SIDE // 4  # the largest shift, in reduced pixels
SLOW_PX = 5.0  # reduced pixels: what varies more slowly is stain and light


def pattern(tile_HW3: np.ndarray) -> np.ndarray:
    """uint8 (H, H, 3), H at least 64 -> float32 (64, 64), mean 0, variance 1; zeros where a tile has no pattern."""
    density = -np.log10((tile_HW3.astype(np.float32) + 1.0) / 256.0).mean(axis=-1)
    small = ndimage.zoom(ndimage.gaussian_filter(density, 0.4 * len(density) / SIDE), SIDE / len(density), order=1)
    fast = small - ndimage.gaussian_filter(small, SLOW_PX, mode="nearest")
    spread = float(fast.std())
    return np.asarray((fast - fast.mean()) / spread if spread > 1e-4 else np.zeros_like(fast), np.float32)


def _turned(pattern_SS: np.ndarray) -> np.ndarray:
    """All eight symmetries, (8, S, S)."""
    turns = [np.rot90(pattern_SS, number) for number in range(4)]
    return np.stack([*turns, *(turn[:, ::-1] for turn in turns)])


def copy_scores(pattern_SS: np.ndarray, others_NSS: np.ndarray) -> np.ndarray:
    """Best correlation of one pattern with each of N others, (N,), -1 to 1."""
    shape, mask = (PADDED, PADDED), np.ones((SIDE, SIDE), np.float32)
    mine = _turned(pattern_SS)
    both = [fft.rfft2(values, shape) for values in (mine, mine**2)]
    there = fft.rfft2(mask, shape)
    shifts = np.r_[0 : REACH + 1, PADDED - REACH : PADDED]

    def laid_over(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        whole = fft.irfft2(one * np.conj(other), shape)
        return np.asarray(whole[..., shifts[:, None], shifts[None]])

    energy_mine = np.maximum(laid_over(both[1], there), 1e-6)
    found = np.zeros(len(others_NSS))
    for number, other in enumerate(others_NSS):
        theirs = [fft.rfft2(values, shape) for values in (other, other**2)]
        energy = energy_mine * np.maximum(laid_over(there[None], theirs[1]), 1e-6)
        found[number] = float((laid_over(both[0], theirs[0]) / np.sqrt(energy)).max())
    return found
