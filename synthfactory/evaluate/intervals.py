"""95 % intervals (of a share by Wilson, of anything else by a bootstrap over patients), and halves that share no patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

DRAWS = 1000
Interval = tuple[float, float]


class UnmeasurableError(ValueError):
    """There are too few tiles or patients for a figure; the message says of what, and stands in the figure's place."""


def student(value: float, draws: np.ndarray, patients: float, least: float, bounds: Interval) -> Interval:
    """Around a value, by the spread of draws of so many patients (`owners_worth` of them; percentiles of the draws are too narrow where
    these are few), and at least `least` to both sides: where all patients agree, draws have no spread.
    """
    half = max(float(t.ppf(0.975, max(patients - 1, 1))) * float(np.nanstd(draws)), least)
    return max(bounds[0], value - half), min(bounds[1], value + half)


def wilson(hits: Sequence[bool], patients: Sequence[int] | np.ndarray | None = None) -> Interval:
    """Of a share of tiles: independent ones, or several of each of `patients`. These count as fewer, by how much more the patients'
    shares vary than those of independent tiles would (the design effect), but never as fewer than `owners_worth` of them.
    """
    n, z = float(len(hits)), 1.959964
    p = sum(hits) / n
    if patients is not None:
        _, of_tile, counts = np.unique(patients, return_inverse=True, return_counts=True)
        off = np.bincount(of_tile, np.asarray(hits, float) - p)
        worth = owners_worth(counts)
        groups = len(counts)
        effect = (off**2).sum() * groups / max(groups - 1, 1) / (n * p * (1 - p)) if 0 < p < 1 else n / worth
        n = min(n, max(worth, n / max(effect, 1.0)))
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def owners_worth(counts: np.ndarray) -> float:
    """How many patients with equally many tiles say as much as patients with `counts` of tiles do (Kish's effective number): all of
    them where they have equally many, near to one where one has nearly all.
    """
    sizes = np.asarray(counts, np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def halves(patients_N: np.ndarray, classes_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two parts with no patient in common; patients of each class (that of their first tile) are shared out alike."""
    names, first = np.unique(patients_N, return_index=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(classes_N[first][order], kind="stable")]
    inside = np.isin(patients_N, names[order[::2]])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def patient_weights(patients_N: np.ndarray, random: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """How often each row counts in each bootstrap draw, (draws, N): whole patients are drawn with replacement."""
    _, of_row = np.unique(patients_N, return_inverse=True)
    count = int(of_row.max()) + 1
    return np.asarray(random.multinomial(count, np.full(count, 1 / count), size=draws)[:, of_row], np.float64)


def bootstrap(weights_BN: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """The middle 95 % of `statistic` (weights (B, N) -> (B,)) over the draws; draws without a value are left out."""
    low, high = np.nanquantile(statistic(weights_BN), [0.025, 0.975])
    return float(low), float(high)


def dealt(patients_N: np.ndarray, classes_N: np.ndarray, groups: int, seed: int) -> np.ndarray:
    """Group 0 to groups - 1 of each row: whole patients, those of each class (that of their first tile) shared out alike."""
    names, first, of_row = np.unique(patients_N, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(classes_N[first][order], kind="stable")]
    group = np.empty(len(names), np.int64)
    group[order] = np.arange(len(names)) % groups
    return np.asarray(group[of_row])


def jackknife(value: float, left_out: Sequence[float]) -> Interval:
    """Of a smooth figure that is biased by rows which repeat, so that a bootstrap would miss it: from its values with each of several
    groups of patients left out in turn (delete-a-group jackknife), by Student's t; not below 0.
    """
    found = np.asarray(left_out, np.float64)
    groups = len(found)
    half = float(t.ppf(0.975, groups - 1)) * float(np.sqrt((groups - 1) / groups * ((found - found.mean()) ** 2).sum()))
    return max(0.0, value - half), value + half


def rounded(interval: Interval, digits: int = 4) -> list[float]:
    """As figures.json holds it."""
    return [round(value, digits) for value in interval]
