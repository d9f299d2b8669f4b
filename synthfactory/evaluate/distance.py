"""Distances of two sets of embeddings: the unbiased squared MMD with the cubic kernel of KID (arXiv 1801.01401), and Frechet's.

k(x, y) = (x.y / d + 1)^3 on embeddings that are standardised by the real set, so that no coordinate dominates by its unit.
"""

from __future__ import annotations

import numpy as np


def standardised(real_NE: np.ndarray, *others_NE: np.ndarray) -> list[np.ndarray]:
    """All sets, float64, by mean and spread of the first; coordinates that do not vary are left out."""
    mean, spread = real_NE.mean(axis=0, dtype=np.float64), real_NE.std(axis=0, dtype=np.float64)
    varies = spread > 1e-9
    return [(values[:, varies] - mean[varies]) / spread[varies] for values in (real_NE, *others_NE)]


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3 of all pairs, (N, M)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1.0
    return np.asarray(base * base * base)  # a power would go through logarithms, at ten times the cost


class KernelDistance:
    """The distance of drawn sets to one real set of the same length, row i of both belonging together (a condition and its tile).

    Pairs that belong together are left out of the cross term: a tile resembles its own condition, whatever the distributions do. With
    `patients` (N,), pairs of one patient's rows are left out of all terms: they resemble one another, and would make two sets of
    different patients differ where their distributions do not.
    """

    def __init__(self, real_NE: np.ndarray, patients_N: np.ndarray | None = None) -> None:
        if len(real_NE) < 2:
            raise ValueError("a kernel distance needs at least two rows")
        self._raw = real_NE
        self._real = standardised(real_NE)[0]
        self._within_real = cubic_kernel(self._real, self._real)
        who = np.arange(len(real_NE)) if patients_N is None else patients_N
        self._counted = (who[:, None] != who[None]).astype(np.float64)  # (N, N): pairs that may be compared
        if not self._counted.any():
            raise ValueError("a kernel distance needs rows of two patients")

    def matrices(self, drawn_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kernels (real, real), (drawn, drawn), (real, drawn), each (N, N), for `of`."""
        if drawn_NE.shape != self._raw.shape:
            raise ValueError(f"drawn {drawn_NE.shape} and real {self._raw.shape} must be of one shape")
        drawn = standardised(self._raw, drawn_NE)[1]
        return self._within_real, cubic_kernel(drawn, drawn), cubic_kernel(self._real, drawn)

    def of(
        self, matrices: tuple[np.ndarray, np.ndarray, np.ndarray], weights_BN: np.ndarray | None = None
    ) -> np.ndarray:
        """The unbiased distance, (B,); may be slightly negative. `weights` (whole numbers, (B, N)) repeat rows, for a bootstrap; nan
        where they leave nothing to compare.

        Copies of one row do not count against one another: that would be a distance of zero by construction.
        """
        w = np.ones((1, len(matrices[0]))) if weights_BN is None else np.asarray(weights_BN, np.float64)
        total = ((w @ self._counted) * w).sum(axis=1)
        total = np.where(total > 0, total, np.nan)
        real, drawn, cross = (((w @ (matrix * self._counted)) * w).sum(axis=1) / total for matrix in matrices)
        return np.asarray(real + drawn - 2.0 * cross)


PIECE = 8192  # rows that are held in float64 at a time


def mean_of(values_NE: np.ndarray) -> np.ndarray:
    """float64 (E,), in pieces of rows: no copy of the whole."""
    total = np.zeros(values_NE.shape[1])
    for at in range(0, len(values_NE), PIECE):
        total += values_NE[at : at + PIECE].sum(axis=0, dtype=np.float64)
    return total / max(len(values_NE), 1)


def moments(values_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (E,) and covariance (E, E) with N - 1, float64, in pieces of rows."""
    (rows, width), mean = values_NE.shape, mean_of(values_NE)
    outer = np.zeros((width, width))
    for at in range(0, rows, PIECE):
        off = values_NE[at : at + PIECE] - mean
        outer += off.T @ off
    return mean, outer / max(rows - 1, 1)


ROWS_PER_DIMENSION = 10  # fewer, and the Frechet distance says more about the number of rows than about the sets


def frechet_distance(one_NE: np.ndarray, other_ME: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets (FID's formula, arXiv 1706.08500); in squared units of the embeddings.

    ValueError unless both have the same number of rows, at least ten for each coordinate: the estimate is biased by the number.
    """
    rows, width = one_NE.shape
    if one_NE.shape != other_ME.shape or rows < ROWS_PER_DIMENSION * width:
        raise ValueError(
            f"a Frechet distance needs equal numbers of rows, at least {ROWS_PER_DIMENSION} for each of {width} coordinates; "
            f"there are {rows} and {len(other_ME)}"
        )
    return gaussian_distance(one_NE, other_ME)


def gaussian_distance(one_NE: np.ndarray, other_ME: np.ndarray) -> float:
    """FID's formula of any two sets, however few rows there are: for parts of sets that are large enough."""
    (mean, a), (other_mean, b) = (moments(values) for values in (one_NE, other_ME))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0.0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * crossed)
