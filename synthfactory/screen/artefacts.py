"""What makes a real tile a bad condition: glass, pen ink, folds, blur. Simple rules on optical density, at 0.5 um/px; no torch.

Optical density of a channel: od = -log10((v + 1) / 256). In H&E green is absorbed most and blue little (haematoxylin 0.65, 0.70, 0.29,
eosin 0.07, 0.99, 0.11 in RGB), so that two kinds of ink stand out:
  blue and green ink absorb more red than green: od_r > od_g + 0.15, where the mean is above 0.15;
  black ink absorbs all alike: od_b > 0.75, channels within 0.3 of one another.
Red ink looks like blood and is not found. A fold is tissue lying double: the mean density over 16 um is above 0.6, which nuclei alone
do not reach; very dense tissue can. On 240 real tiles of five classes no pixel in 10,000 was taken for ink; see the tests.
"""

from __future__ import annotations

import numpy as np

from synthfactory.screen.verdict import sharpness, tissue_fraction

INK_ABOVE_GREEN, INK_DENSITY = 0.15, 0.15
BLACK_DENSITY, BLACK_SPREAD = 0.75, 0.3
FOLD_DENSITY, FOLD_WINDOW_PX = 0.6, 32
SCORES = ("tissue", "pen", "fold", "sharpness")
_DENSITY_OF = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256)


def pen_fraction(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> share of pixels of blue, green or black ink, (N,) in [0, 1]."""
    density = _DENSITY_OF[images]
    red, green, blue = np.moveaxis(density, -1, 0)
    coloured = (red > green + INK_ABOVE_GREEN) & (density.mean(axis=-1) > INK_DENSITY)
    black = (blue > BLACK_DENSITY) & (density.max(axis=-1) - density.min(axis=-1) < BLACK_SPREAD)
    return np.asarray((coloured | black).mean(axis=(1, 2)))


def fold_fraction(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> share of windows of 32 px whose mean density is that of tissue lying double, (N,) in [0, 1]."""
    density = _DENSITY_OF[images].mean(axis=-1)
    window = min(FOLD_WINDOW_PX, *density.shape[1:])
    sums = np.pad(density, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    means = (
        sums[:, window:, window:]
        - sums[:, :-window, window:]
        - sums[:, window:, :-window]
        + sums[:, :-window, :-window]
    )
    return np.asarray((means / window**2 > FOLD_DENSITY).mean(axis=(1, 2)))


def condition_scores(images: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (N, H, W, 3) -> every score that `embeddings.screen` can look at, float64 (N,) each."""
    return {
        "tissue": tissue_fraction(images),
        "pen": pen_fraction(images),
        "fold": fold_fraction(images),
        "sharpness": sharpness(images),
    }
