"""What makes a real tile a bad condition: glass, pen ink, folds, blur. Simple rules on optical density, at 0.5 um/px; no torch.

Optical density of a channel: od = -log10((v + 1) / 256). In H&E green is absorbed most and blue little (haematoxylin 0.65, 0.70, 0.29,
eosin 0.07, 0.99, 0.11 in RGB), so that ink stands out, even where it lies over tissue:
  green and teal absorb more red than green: od_r > od_g + 0.08, where the mean is above 0.15;
  blue absorbs much red and hardly any blue: od_r > 0.45, od_b < 0.35 od_r;
  black absorbs all alike: od_b > 0.75, channels within 0.4 of one another.
Red ink looks like blood and is not found. A fold is tissue lying on itself: the mean density over 16 um is above 0.45 and 1.5 times
the tile's median over tissue.

Measured on real tiles (240, five classes, none with ink or folds): at most 2 pixels in 10,000 of a tile are taken for ink, and a half of
them put to the fold rule gave not one fold. A band drawn into them in which tissue lies double is found in 5 of 10 tiles, threefold in 7 of
10 (more than 0.05 of the tile); in pale tissue neither is dense enough. Both are coarse sieves, to be set by looking.
"""

from __future__ import annotations

import numpy as np

from synthfactory.screen.verdict import TISSUE_DENSITY, sharpness, tissue_fraction

INK_ABOVE_GREEN, INK_DENSITY = 0.08, 0.15
BLUE_RED_DENSITY, BLUE_SHARE = 0.45, 0.35
BLACK_DENSITY, BLACK_SPREAD = 0.75, 0.4
FOLD_DENSITY, FOLD_ABOVE_MEDIAN, FOLD_WINDOW_PX = 0.45, 1.5, 32
SCORES = ("tissue", "pen", "fold", "sharpness")
_DENSITY_OF = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256)


def pen_fraction(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> share of pixels of blue, green or black ink, (N,) in [0, 1]."""
    density = _DENSITY_OF[images]
    red, green, blue = np.moveaxis(density, -1, 0)
    green_ink = (red > green + INK_ABOVE_GREEN) & (density.mean(axis=-1) > INK_DENSITY)
    blue_ink = (red > BLUE_RED_DENSITY) & (blue < BLUE_SHARE * red)
    black = (blue > BLACK_DENSITY) & (density.max(axis=-1) - density.min(axis=-1) < BLACK_SPREAD)
    return np.asarray((green_ink | blue_ink | black).mean(axis=(1, 2)))


def fold_fraction(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> share of windows of 32 px that are as dense as tissue lying on itself, (N,) in [0, 1]."""
    density = _DENSITY_OF[images].mean(axis=-1)
    window = min(FOLD_WINDOW_PX, *density.shape[1:])
    sums = np.pad(density, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    means = (
        sums[:, window:, window:]
        - sums[:, :-window, window:]
        - sums[:, window:, :-window]
        + sums[:, :-window, :-window]
    ) / window**2
    shares = []
    for tile, mean in zip(density, means, strict=True):
        tissue = tile[tile > TISSUE_DENSITY]
        usual = float(np.median(tissue)) if len(tissue) else 0.0
        shares.append((mean > max(FOLD_DENSITY, FOLD_ABOVE_MEDIAN * usual)).mean())
    return np.asarray(shares)


def condition_scores(images: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (N, H, W, 3) -> every score that `embeddings.screen` can look at, float64 (N,) each."""
    return {
        "tissue": tissue_fraction(images),
        "pen": pen_fraction(images),
        "fold": fold_fraction(images),
        "sharpness": sharpness(images),
    }
