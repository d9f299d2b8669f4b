"""What a patient contributes to a release: a vector of norm at most 1, whatever the patient's tiles are.

Tile z (norm <= 1) of class c: phi(z) = (w0 e_c, w1 e_c z, w2 vec(z z')) with w0^2 + w1^2 + w2^2 = 1, so that
|phi|^2 = w0^2 + w1^2 |z|^2 + w2^2 |z|^4 <= 1. A patient with tiles of m classes contributes a(m) times the sum, over these classes, of the
average of phi over own tiles of the class: a class of which the patient has few tiles counts as much as one with many. Counts and sums of
different classes stand in different entries, so their part has a squared norm of at most a^2 m (w0^2 + w1^2); second moments share theirs,
a^2 m^2 w2^2. With a(m) = (m (w0^2 + w1^2) + m^2 w2^2)^(-1/2) adding or removing one patient moves the sum over patients by at most 1 in L2
(adjacency: add or remove one patient), without truncation and however many tiles there are; a(1) = 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from synthfactory.privacy.projection import Projection

WEIGHTS = (0.4, 0.8, float(np.sqrt(1 - 0.4**2 - 0.8**2)))  # counts, sums, second moments
SENSITIVITY = 1.0 + 1e-6  # what rounding of float64 sums may add is far below

# Embeddings (N, E), class numbers (N,) and patients (N,) of some rows; asked for twice, so a function that gives them anew.
Rows = tuple[np.ndarray, np.ndarray, Sequence[str]]
Chunks = Callable[[], Iterable[Rows]]


@dataclass(frozen=True)
class Layout:
    """Which entry of a vector is what: K counts, K x d sums, d (d + 1) / 2 second moments pooled over classes."""

    classes: int
    dimension: int

    @property
    def length(self) -> int:
        """Entries of a contribution."""
        return self.classes * (1 + self.dimension) + self.dimension * (self.dimension + 1) // 2

    def split(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(counts (K,), sums (K, d), second moments (d, d)) with the weights taken off."""
        k, d = self.classes, self.dimension
        counts, sums, moments = np.split(np.asarray(vector, np.float64), [k, k + k * d])
        full = np.zeros((d, d))
        rows, columns = np.triu_indices(d)
        full[rows, columns] = moments / np.where(rows == columns, 1.0, np.sqrt(2.0))
        full = full + np.triu(full, 1).T
        return counts / WEIGHTS[0], sums.reshape(k, d) / WEIGHTS[1], full / WEIGHTS[2]


def weight(classes: int) -> float:
    """a(m): what a patient with tiles of m classes counts in each of them."""
    return 1.0 / math.sqrt(classes * (WEIGHTS[0] ** 2 + WEIGHTS[1] ** 2) + classes**2 * WEIGHTS[2] ** 2)


def features(z_ND: np.ndarray, classes_N: np.ndarray, layout: Layout) -> np.ndarray:
    """phi of each tile, float64 (N, length), of norm at most 1. ValueError where a z is longer, or a class none of the layout's."""
    if (np.linalg.norm(z_ND, axis=1) > 1 + 1e-9).any():
        raise ValueError("a tile's z is longer than 1: project (and clip) it first")
    if len(classes_N) and not (int(classes_N.min()) >= 0 and int(classes_N.max()) < layout.classes):
        raise ValueError("a class number is none of the layout's")
    k, d = layout.classes, layout.dimension
    found = np.zeros((len(z_ND), layout.length))
    at = np.arange(len(z_ND))
    found[at, classes_N] = WEIGHTS[0]
    for column in range(d):
        found[at, k + classes_N * d + column] = WEIGHTS[1] * z_ND[:, column]
    rows, columns = np.triu_indices(d)
    found[:, k + k * d :] = WEIGHTS[2] * z_ND[:, rows] * z_ND[:, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0))
    return found


def finite(rows: Rows) -> Rows:
    """Without the rows that are not finite: they are rejected before anything is counted, so no patient gains weight by them."""
    embeddings, classes, patients = rows
    kept = np.asarray(np.isfinite(embeddings).all(axis=1))
    if kept.all():
        return rows
    return embeddings[kept], classes[kept], [patient for patient, keep in zip(patients, kept, strict=True) if keep]


@dataclass(frozen=True)
class Summed:
    """The sum of all patients' contributions, not yet released. rejected: rows that were not finite."""

    vector: np.ndarray
    patients: int
    tiles: int
    rejected: int


def summed(chunks: Chunks, projection: Projection, layout: Layout) -> Summed:
    """The sum of all patients' contributions. Two passes over the rows: how many tiles of each class each patient has, then their sum."""
    tiles = Counter[tuple[str, int]]()
    rejected = 0
    for rows in chunks():
        _, classes, patients = finite(rows)
        rejected += len(rows[2]) - len(patients)
        tiles.update(zip(patients, classes.tolist(), strict=True))
    of = Counter(patient for patient, _ in tiles)
    total = np.zeros(layout.length)
    for embeddings, classes, patients in _finite_chunks(chunks):
        pairs = zip(patients, classes.tolist(), strict=True)
        share = np.array([weight(of[patient]) / tiles[patient, number] for patient, number in pairs])
        total += share @ features(projection.project(embeddings), classes, layout)
    return Summed(total, len(of), tiles.total(), rejected)


def _finite_chunks(chunks: Chunks) -> Iterator[Rows]:
    for rows in chunks():
        kept = finite(rows)
        if len(kept[2]):
            yield kept
