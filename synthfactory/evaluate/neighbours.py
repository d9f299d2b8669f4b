"""Exact nearest neighbours by cosine or Euclidean distance, block by block: memory does not grow with either set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

QUERIES, REFERENCES = 2048, 16_384  # rows of a block: 134 MB of similarities in float32


def unit(embeddings_NE: np.ndarray) -> np.ndarray:
    """float32 (N, E), each of length 1; rows of zeros stay zeros."""
    found = np.asarray(embeddings_NE, np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def nearest(
    queries_NE: np.ndarray,
    references_ME: np.ndarray,
    k: int = 1,
    *,
    by: Literal["cosine", "euclidean"] = "cosine",
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query the k nearest references: (rows int64 (N, k), distances float32 (N, k)), nearest first; equal ones by row.

    cosine: 1 - cosine of the angle, 0 to 2. euclidean: the length of the difference. ValueError where there are fewer than k references,
    widths differ, or a row is not finite.
    """
    if k < 1 or k > len(references_ME) or queries_NE.shape[1:] != references_ME.shape[1:]:
        raise ValueError(f"{k} nearest of {references_ME.shape} for queries of {queries_NE.shape} cannot be found")
    if not (np.isfinite(queries_NE).all() and np.isfinite(references_ME).all()):
        raise ValueError("embeddings hold numbers that are not finite")
    queries, references = (
        (unit(values) if by == "cosine" else np.asarray(values, np.float32)) for values in (queries_NE, references_ME)
    )
    rows = np.zeros((len(queries), k), np.int64)
    half = 0.5 * (references.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        best_rows, best_keys = np.zeros((len(block), 0), np.int64), np.zeros((len(block), 0), np.float32)
        for first in range(0, len(references), REFERENCES):
            part = references[first : first + REFERENCES]
            key = half[first : first + REFERENCES] - block @ part.T  # rises with the distance, for one query
            keep = min(k, len(part))
            found = np.argpartition(key, keep - 1, axis=1)[:, :keep]
            best_rows = np.concatenate([best_rows, found + first], axis=1)
            best_keys = np.concatenate([best_keys, np.take_along_axis(key, found, axis=1)], axis=1)
            order = np.lexsort((best_rows, best_keys), axis=1)[:, :k]
            best_rows = np.take_along_axis(best_rows, order, axis=1)
            best_keys = np.take_along_axis(best_keys, order, axis=1)
        rows[start : start + len(block)] = best_rows
        tick(start + len(block))
    return _exact(queries, references, rows, by)


def _exact(
    queries: np.ndarray, references: np.ndarray, rows: np.ndarray, by: Literal["cosine", "euclidean"]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the chosen pairs from their differences (no cancellation: copies are at 0), sorted by them."""
    distances = np.zeros(rows.shape, np.float32)
    for column in range(rows.shape[1]):
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            off = queries[part].astype(np.float64) - references[rows[part, column]]
            square = (off**2).sum(axis=1)
            distances[part, column] = square / 2 if by == "cosine" else np.sqrt(square)
    order = np.lexsort((rows, distances), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
