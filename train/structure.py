"""What stands in a tile, counted by image analysis alone, the same for real and drawn tiles: nuclei, lumina, rings, fibres, whorls.

Detectors know nothing of the generator; how well they agree with its truth is measured on real (invented) tiles and stands in the card.
Tiles are uint8 (H, W, 3) at 0.5 um/px. Numbers of pixels below are for that resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve
from scipy.stats import spearmanr, wasserstein_distance

from synthfactory.evaluate.density import optical_density
from synthfactory.evaluate.intervals import bootstrap, patient_weights, rounded
from train.streams import stream
from train.utility import Rows

MPP = 0.5
STAINS = np.array(
    [[0.65, 0.70, 0.29], [0.13, 0.90, 0.30]]
)  # hematoxylin, eosin (optical densities of the phantom's mean patient)
# measure -> what the generator calls the like
TRUTH = {
    "nuclei": "nuclear_density", "nuclear_area_um2": "nuclear_area_um2", "lumina": "lumen_count", "gland_rings": "gland_count",
    "fibre_coherence": "fibre_coherence", "whorls": "whorl_count",
}  # fmt: skip
MEASURES = tuple(TRUTH)
NUCLEUS_PX, LUMEN_PX = (30, 1400), (220, 14000)
SECTORS, RING_PX, RING_SHARE = 24, 18, 0.7
ROUND = 0.85  # area of a component over that of the ellipse with its second moments
WHORL_RADII, WHORL_SECTORS, WHORL_SHARE, WHORL_ENERGY, WHORL_APART_PX = (5.0, 28.0), 6, 0.75, 1e-4, 42


# What is compared in which class: structures where they belong, nuclei everywhere.
OF_CLASS = {
    "gland": ("lumina", "gland_rings"), "keratin": ("whorls",), "stroma": ("fibre_coherence",),
}  # fmt: skip
EVERYWHERE = ("nuclei", "nuclear_area_um2")


def compared(
    real_NM: np.ndarray, drawn_NM: np.ndarray, others_NM: np.ndarray, rows: Rows, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each class and measure: means of the conditions' tiles and of the tiles drawn from them, the difference with its 95 % interval
    (bootstrap by patient), and how far apart the distributions are, beside two sets of real tiles.

    The arrays hold `measured` row by row; `names` the classes without their prefix. Distances are Wasserstein's, in standard deviations
    of the real tiles.
    """
    found = []
    for number, name in enumerate(names):
        mine, theirs = rows.labels == number, rows.other_labels == number
        weights = patient_weights(rows.patients[mine], stream(11, "structure", number))
        for measure in (*OF_CLASS.get(name, ()), *EVERYWHERE):
            column = MEASURES.index(measure)
            real, drawn, others = real_NM[mine, column], drawn_NM[mine, column], others_NM[theirs, column]
            both = ~np.isnan(real) & ~np.isnan(drawn)
            off = np.where(both, drawn - real, 0.0)
            interval = bootstrap(weights, partial(_weighted_mean, off, both))
            scale = float(np.nanstd(real)) or 1.0
            found.append({
                "class": name, "measure": measure, "real": round(float(np.nanmean(real)), 4),
                "drawn": round(float(np.nanmean(drawn)), 4), "off_95": rounded(interval),
                "apart": _apart(real, drawn, scale), "apart_real": _apart(real, others, scale),
            })  # fmt: skip
    return found


def _weighted_mean(values: np.ndarray, there: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    count = weights_BN @ there
    return np.asarray((weights_BN @ values) / np.where(count > 0, count, np.nan))  # draws without a value have none


def _apart(one: np.ndarray, other: np.ndarray, scale: float) -> float:
    kept = [values[~np.isnan(values)] for values in (one, other)]
    return round(float(wasserstein_distance(*kept)) / scale, 4) if all(len(values) for values in kept) else float("nan")


def against_truth(measured_NM: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Rank correlation of each detector with what the generator drew, over all classes."""
    found = {}
    for column, (measure, called) in enumerate(TRUTH.items()):
        there = ~np.isnan(measured_NM[:, column])
        found[measure] = round(float(spearmanr(measured_NM[there, column], truth[called][there]).statistic), 3)
    return found


def unmixed(tile_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hematoxylin, eosin and total optical density, each float64 (H, W)."""
    density = optical_density(tile_HW3)
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    amounts = density @ np.linalg.pinv(unit)
    return amounts[..., 0], amounts[..., 1], density.mean(-1)


def measured(tile_HW3: np.ndarray) -> np.ndarray:
    """float64 (6,) in the order of MEASURES; fibre coherence is in [0, 1], NaN where less than an eighth of the tile is free of nuclei
    and holes, nuclear area NaN where there is no nucleus.
    """
    hematoxylin, eosin, total = unmixed(tile_HW3)
    nuclei = _nuclei(hematoxylin)
    count, area = _components(nuclei)
    lumina, rings = _lumina(total, nuclei)
    free = ~ndimage.binary_dilation(nuclei | (total < 0.1), iterations=3)
    gx, gy = (ndimage.gaussian_filter(eosin, 1.2, order=order) for order in ((0, 1), (1, 0)))
    gx, gy = gx * free, gy * free
    coherence = _coherence(gx, gy) if free.mean() > 1 / 8 else float("nan")
    return np.array([count, area * MPP**2, lumina, rings, coherence, _whorls(gx, gy, free)])


def _nuclei(hematoxylin: np.ndarray) -> np.ndarray:
    """Where hematoxylin stands out: above Otsu's threshold of the smoothed map."""
    smooth = ndimage.gaussian_filter(hematoxylin, 0.8)
    return np.asarray(ndimage.binary_opening(smooth > max(_otsu(smooth), 0.2), iterations=1))


def _otsu(values: np.ndarray) -> float:
    counts, edges = np.histogram(values, 128)
    middles = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * middles) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * middles)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[1 + int(between.argmax())])


def _components(mask: np.ndarray) -> tuple[int, float]:
    """(number, median area in pixels) of components of a nucleus' size; clumps count as their area in median nuclei."""
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel())[1:]
    single = areas[(areas >= NUCLEUS_PX[0]) & (areas <= NUCLEUS_PX[1])]
    if not count or not len(single):
        return 0, float("nan")
    median = float(np.median(single))
    return int(len(single) + round(areas[areas > NUCLEUS_PX[1]].sum() / median)), median


def _lumina(total: np.ndarray, nuclei: np.ndarray) -> tuple[int, int]:
    """(round pale holes off the border, those of them that nuclei surround)."""
    labels, _ = ndimage.label(ndimage.binary_opening(ndimage.gaussian_filter(total, 0.8) < 0.1, iterations=1))
    lumina = rings = 0
    for number, where in enumerate(ndimage.find_objects(labels), start=1):
        touches = any(part.start == 0 or part.stop == side for part, side in zip(where, labels.shape, strict=True))
        hole = labels[where] == number
        if touches or not LUMEN_PX[0] <= hole.sum() <= LUMEN_PX[1] or _roundness(hole) < ROUND:
            continue
        lumina += 1
        rings += _surrounded(labels == number, nuclei)
    return lumina, rings


def _roundness(hole: np.ndarray) -> float:
    points = np.argwhere(hole).astype(np.float64)
    spread = np.linalg.eigvalsh(np.cov(points.T))
    flat = np.sqrt(max(spread[0], 0.05) / max(spread[1], 0.05))
    return float(len(points) / (4 * np.pi * np.sqrt(np.prod(np.maximum(spread, 0.05))))) * float(flat > 0.5)


def _surrounded(hole: np.ndarray, nuclei: np.ndarray) -> bool:
    """Whether a nucleus lies within reach of the hole in most directions from its middle."""
    cy, cx = ndimage.center_of_mass(hole)
    near = (ndimage.distance_transform_edt(~hole) <= RING_PX) & nuclei & ~hole
    y, x = np.nonzero(near)
    sectors = ((np.arctan2(y - cy, x - cx) + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS
    return len(np.unique(sectors)) >= RING_SHARE * SECTORS


def _coherence(gx: np.ndarray, gy: np.ndarray) -> float:
    """How much one direction prevails around each place: structure tensors over 10 px, weighted by their energy."""
    xx, yy, xy = (ndimage.gaussian_filter(part, 10.0) for part in (gx * gx, gy * gy, gx * gy))
    energy = xx + yy
    return float(np.sqrt((xx - yy) ** 2 + 4 * xy**2).sum() / max(float(energy.sum()), 1e-12))


def _whorls(gx: np.ndarray, gy: np.ndarray, free: np.ndarray) -> int:
    """Places around which, in every direction, gradients point to or from the middle: rings within rings.

    Straight fibres do so in two directions and not in the two between, so the worst of the sectors counts.
    """
    reach = int(WHORL_RADII[1])
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    radius, turn = np.hypot(x, y), (np.arctan2(y, x) + np.pi) / (2 * np.pi)
    disc = (radius >= WHORL_RADII[0]) & (radius <= WHORL_RADII[1])
    square = np.maximum(radius**2, 1.0)
    xx, yy, xy = gx * gx, gy * gy, gx * gy
    worst = np.ones_like(gx)
    for number in range(WHORL_SECTORS):
        sector = (disc & ((turn * WHORL_SECTORS).astype(int) % WHORL_SECTORS == number)).astype(np.float64)

        def around(field: np.ndarray, kernel: np.ndarray) -> np.ndarray:
            return np.asarray(fftconvolve(field, kernel[::-1, ::-1], mode="same"))

        radial = (
            around(xx, sector * x * x / square)
            + around(yy, sector * y * y / square)
            + around(xy, 2 * sector * x * y / square)
        )
        energy, seen = around(xx + yy, sector), around(free.astype(np.float64), sector)
        strong = (seen > 0.4 * sector.sum()) & (energy / np.maximum(seen, 1e-9) > WHORL_ENERGY)
        worst = np.minimum(worst, np.where(strong, radial / np.maximum(energy, 1e-12), 0.0))
    peaks = (worst == ndimage.maximum_filter(worst, WHORL_APART_PX)) & (worst > WHORL_SHARE)
    return int(peaks.sum())
