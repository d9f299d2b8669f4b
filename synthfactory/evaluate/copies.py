"""Is a tile a copy of another, shifted, turned, mirrored, stained anew, blended or compressed? Pixels decide, on a shortlist of neighbours.

A tile is reduced to what the copying leaves: the pattern of optical density at 64 x 64, without its slow part, of unit variance. Two
patterns are laid over one another in all eight symmetries and at all shifts up to a quarter; the score is the best correlation over the
part that overlaps (1 = a copy; unrelated tissue stays far below). Which tiles are laid over one another is for shortlists to say: an
encoder's, and that of fingerprints, which no turn and little of a shift changes.
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


REACHED = 20  # frequencies that a fingerprint looks at, in periods a pattern
RING = 1.5


def _orbits() -> tuple[np.ndarray, np.ndarray]:
    """(number of each cell of a half spectrum (S, S // 2 + 1), -1 outside; ring of each number): turns and mirrors map cells of one
    number onto one another, and a ring holds the numbers of about one frequency.
    """
    rows = np.abs(np.fft.fftfreq(SIDE, 1 / SIDE)).astype(int)[:, None] + np.zeros((1, SIDE // 2 + 1), int)
    columns = np.zeros((SIDE, 1), int) + np.arange(SIDE // 2 + 1)
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    inside = (high <= REACHED) & (high > 1)
    names, numbers = np.unique((high * SIDE + low)[inside], return_inverse=True)
    found = np.full(rows.shape, -1)
    found[inside] = numbers
    rings = np.round(np.hypot(names // SIDE, names % SIDE) / RING).astype(int)
    return found, np.unique(rings, return_inverse=True)[1]


_ORBITS, _RINGS = _orbits()
FINGERPRINT = len(_RINGS)
_FALL = 0.5 - 0.5 * np.cos(np.pi * np.arange(SIDE // 8) / (SIDE // 8))
_EDGE = np.concatenate([_FALL, np.ones(SIDE - 2 * len(_FALL)), _FALL[::-1]])  # Tukey's window: the middle counts whole
_WINDOW = np.outer(_EDGE, _EDGE).astype(np.float32)


def fingerprint(pattern_SS: np.ndarray) -> np.ndarray:
    """float32 (FINGERPRINT,): log power of the pattern by frequency, mean over all symmetries, less the mean of its ring.

    Shifts change little of it, turns nothing; what softens or roughens a tile everywhere changes whole rings. It makes shortlists: near
    fingerprints (less the mean of all, by cosine) are looked at pixel by pixel.
    """
    power = np.abs(fft.rfft2(pattern_SS * _WINDOW)) ** 2
    inside = _ORBITS >= 0
    total, count = (np.bincount(_ORBITS[inside], each, FINGERPRINT) for each in (power[inside], None))
    found = np.log(total / count + 1e-3)
    return np.asarray(found - (np.bincount(_RINGS, found) / np.bincount(_RINGS))[_RINGS], np.float32)
