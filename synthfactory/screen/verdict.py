"""The first screens: tissue fraction, blur, agreement with the condition. Vectorised over a batch, float64, order fixed.

Optical density of a pixel: od = -log10((v + 1) / 256), mean over channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthfactory.screen.nearest import Nearest
from synthfactory.spec.sections import Screen

TISSUE_DENSITY = 0.06  # glass and lumina lie below, pale stroma above
_DENSITY_OF = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256)  # of each pixel value


@dataclass(frozen=True)
class Verdict:
    """Whether a tile is kept; why not; and every score that was looked at."""

    keep: bool
    reasons: tuple[str, ...]
    scores: dict[str, float]


def _density(images: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(images, -1, 0)
    density: np.ndarray = _DENSITY_OF[red]
    density += _DENSITY_OF[green]
    density += _DENSITY_OF[blue]
    density /= 3
    return density


def tissue_fraction(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> share of pixels with optical density above 0.06, (N,) in [0, 1]."""
    return _tissue(_density(images))


def sharpness(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> mean absolute Laplacian of optical density, (N,): 0 is flat, real H&E in focus mostly 0.01 to 0.2."""
    return _laplacian(_density(images))


def _tissue(density: np.ndarray) -> np.ndarray:
    return np.asarray((density > TISSUE_DENSITY).mean(axis=(1, 2)))


def _laplacian(d: np.ndarray) -> np.ndarray:
    found = 4 * d[:, 1:-1, 1:-1] - d[:, :-2, 1:-1] - d[:, 2:, 1:-1] - d[:, 1:-1, :-2] - d[:, 1:-1, 2:]
    return np.asarray(np.abs(found).mean(axis=(1, 2)))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine similarity, (N,); NaN where a row is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def screen_tiles(
    images: np.ndarray,
    conditions: np.ndarray | None,
    screen: Screen,
    embeddings: np.ndarray | None,
    nearest: Nearest | None = None,
) -> list[Verdict]:
    """A verdict per tile, uint8 (N, H, W, 3), drawn for conditions float32 (N, E).

    `embeddings`, float32 (N, E), are the encoder's of the tiles; only the screens `agreement` and `nearest_real` need them, and the latter
    `nearest`.
    Limits are inclusive. A score that is not finite drops the tile, for a reason of its own.
    """
    scores: dict[str, np.ndarray] = {}
    limits: list[tuple[str, str, float, float]] = []  # score, reason stem, least, most
    if screen.tissue is not None or screen.blur is not None:
        density = _density(images)
    if screen.tissue is not None:
        scores["tissue"] = _tissue(density)
        limits.append(("tissue", "little tissue", screen.tissue.min_fraction, np.inf))
    if screen.blur is not None:
        scores["sharpness"] = _laplacian(density)
        limits.append(("sharpness", "blurred", screen.blur.min_sharpness, np.inf))
    if screen.agreement is not None:
        if embeddings is None or conditions is None:
            raise ValueError("the agreement screen needs the tiles' embeddings and their conditions")
        scores["agreement"] = cosine(embeddings, conditions)
        limits.append(("agreement", "far from its condition", screen.agreement.min, np.inf))
        limits.append(("agreement", "too near its condition", -np.inf, screen.agreement.max))
    if screen.nearest_real is not None:
        if embeddings is None or nearest is None:
            raise ValueError("the nearest_real screen needs the tiles' embeddings and the bank's directions")
        scores["nearest_real"] = nearest.cosine(embeddings)
        limits.append(("nearest_real", "too near a real tile", -np.inf, nearest.threshold))
    verdicts = []
    for row in range(len(images)):
        values = {name: float(score[row]) for name, score in scores.items()}
        lost = [f"{name} is no number" for name, value in values.items() if not np.isfinite(value)]
        outside = [
            reason
            for name, reason, least, most in limits
            if np.isfinite(values[name]) and not least <= values[name] <= most
        ]
        verdicts.append(
            Verdict(not lost and not outside, (*lost, *outside), {name: round(v, 6) for name, v in values.items()})
        )
    return verdicts
