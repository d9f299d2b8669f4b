"""What an attacker who knows how embeddings of such tiles vary does first: takes off the mean of the class, and the covariance within
classes. A tile's own look is a small part of its embedding; what all tiles of a class share is the rest, and hides it from plain cosines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from synthfactory.evaluate.distance import PIECE, mean_of

Whiten = Callable[[np.ndarray, np.ndarray], np.ndarray]


def whitener(embeddings_NE: np.ndarray, classes_N: np.ndarray) -> Whiten:
    """(embeddings (M, E), classes (M,)) -> float32 (M, E) of spread about 1 in all directions, by means of classes and the covariance
    within them of these tiles. Of a class that has none, the mean of all is taken off.
    """
    names, of_row = np.unique(classes_N, return_inverse=True)
    width = embeddings_NE.shape[1]
    means = {str(name): mean_of(embeddings_NE[of_row == number]) for number, name in enumerate(names)}
    overall, outer = mean_of(embeddings_NE), np.zeros((width, width))
    for number, name in enumerate(names):
        rows = np.flatnonzero(of_row == number)
        for at in range(0, len(rows), PIECE):
            off = embeddings_NE[rows[at : at + PIECE]] - means[str(name)]
            outer += off.T @ off
    free = max(len(embeddings_NE) - len(names), 1)
    values, vectors = np.linalg.eigh(shrunk(outer / free, free))
    if values[-1] <= 0:  # all tiles of a class are alike: nothing tells them apart
        values = np.full(width, np.inf)
    matrix = vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1]))

    def whiten(given_ME: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
        found = np.empty(given_ME.shape, np.float32)
        for name in np.unique(labels_M):
            rows = np.flatnonzero(labels_M == name)
            for at in range(0, len(rows), PIECE):
                some = rows[at : at + PIECE]
                found[some] = (given_ME[some] - means.get(str(name), overall)) @ matrix
        return found

    return whiten


def shrunk(covariance_EE: np.ndarray, n: int) -> np.ndarray:
    """A covariance of n rows drawn towards a multiple of the identity: of fewer rows than coordinates too it can be inverted, unless it
    is 0 (the oracle-approximating shrinkage of Chen et al., arXiv 0907.4698).
    """
    width = len(covariance_EE)
    trace, square = float(np.trace(covariance_EE)), float((covariance_EE**2).sum())
    apart = square - trace**2 / width
    share = 1.0 if apart <= 0 else min(1.0, ((1 - 2 / width) * square + trace**2) / ((n + 1 - 2 / width) * apart))
    return np.asarray((1 - share) * covariance_EE + share * trace / width * np.eye(width))
