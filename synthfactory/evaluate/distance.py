"""Kernel distance of two sets of embeddings: the unbiased squared MMD with the cubic kernel of KID (arXiv 1801.01401).

k(x, y) = (x.y / d + 1)^3 on embeddings that are standardised by the real set, so that no coordinate dominates by its unit.
"""

from __future__ import annotations

import numpy as np


def standardised(real_NE: np.ndarray, *others_NE: np.ndarray) -> list[np.ndarray]:
    """All sets, float64, by mean and spread of the first; coordinates that do not vary are left out."""
    mean, spread = real_NE.mean(axis=0, dtype=np.float64), real_NE.std(axis=0, dtype=np.float64)
    varies = spread > 1e-9
    return [(values[:, varies] - mean[varies]) / spread[varies] for values in (real_NE, *others_NE)]


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


class KernelDistance:
    """The distance of drawn sets to one real set of the same length, row i of both belonging together (a condition and its tile).

    Pairs that belong together are left out of the cross term: a tile resembles its own condition, whatever the distributions do.
    """

    def __init__(self, real_NE: np.ndarray) -> None:
        if len(real_NE) < 2:
            raise ValueError("a kernel distance needs at least two rows")
        self._raw = real_NE
        self._real = standardised(real_NE)[0]
        self._within_real = _kernel(self._real, self._real)

    def matrices(self, drawn_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kernels (real, real), (drawn, drawn), (real, drawn), each (N, N), for `of`."""
        if drawn_NE.shape != self._raw.shape:
            raise ValueError(f"drawn {drawn_NE.shape} and real {self._raw.shape} must be of one shape")
        drawn = standardised(self._raw, drawn_NE)[1]
        return self._within_real, _kernel(drawn, drawn), _kernel(self._real, drawn)

    @staticmethod
    def of(matrices: tuple[np.ndarray, np.ndarray, np.ndarray], weights_BN: np.ndarray | None = None) -> np.ndarray:
        """The unbiased distance, (B,); may be slightly negative. `weights` (whole numbers, (B, N)) repeat rows, for a bootstrap.

        Copies of one row do not count against one another: that would be a distance of zero by construction.
        """
        w = np.ones((1, len(matrices[0]))) if weights_BN is None else np.asarray(weights_BN, np.float64)
        total = w.sum(axis=1) ** 2 - (w**2).sum(axis=1)
        real, drawn, cross = (
            (((w @ matrix) * w).sum(axis=1) - (w**2) @ np.diag(matrix)) / total for matrix in matrices
        )
        return np.asarray(real + drawn - 2.0 * cross)
