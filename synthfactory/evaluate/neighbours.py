"""Exact nearest neighbours by cosine or Euclidean distance, block by block: memory does not grow with either set.

Two steps: products of whole blocks give each query a shortlist, and its distances are then taken from the differences themselves. Where
the products are coarse (bfloat16 on hardware that has it), a bound of their error says whether the shortlist can have missed a nearer
one; such queries are searched again in float32. What is left is float32's own rounding of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from synthfactory.embeddings.vectors import unit

QUERIES, REFERENCES = 2048, 16_384  # rows of a block: 134 MB of products in float32
FIRST = 1024
SPARE = 8  # of a shortlist, beyond the k that are asked for
ROUNDOFF = 2.0**-24  # of float32

By = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class Product:
    """How blocks are multiplied: (B, E) and (C, E) -> (B, C), all float32.

    `roundoff` is that of each factor and of the result (0: float32's own).
    """

    multiply: Callable[[np.ndarray, np.ndarray], np.ndarray]
    roundoff: float = 0.0
    spare: int = SPARE


FLOAT32 = Product(lambda a, b: np.asarray(a @ b.T))


def nearest(
    queries_NE: np.ndarray,
    references_ME: np.ndarray,
    k: int = 1,
    *,
    by: By = "cosine",
    apart: tuple[np.ndarray, np.ndarray] | None = None,
    product: Product = FLOAT32,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query the k nearest references: (rows int64 (N, k), distances float32 (N, k)), nearest first; equal ones by row.

    cosine: 1 - cosine of the angle, 0 to 2. euclidean: the length of the difference. `apart` holds whole numbers of queries and
    references: pairs of the same number do not count, and where fewer than k are left the distance is infinite. ValueError where there
    are fewer than k references, widths differ, or a row is not finite.
    """
    if k < 1 or k > len(references_ME) or queries_NE.shape[1:] != references_ME.shape[1:]:
        raise ValueError(f"{k} nearest of {references_ME.shape} for queries of {queries_NE.shape} cannot be found")
    search = _Search(queries_NE, references_ME, by, apart)
    every = np.arange(len(queries_NE))
    rows, distances, sure = search.run(every, k, product, tick)
    again = np.flatnonzero(~sure)
    if len(again) and product.roundoff:
        rows[again], distances[again], _ = search.run(again, k, FLOAT32, lambda done: None)
    return rows, distances


class _Search:
    """Both sets, made ready block by block: of length 1 where angles are meant, and less the references' mean.

    Differences stay what they are, but products and their errors become smaller.
    """

    def __init__(
        self, queries: np.ndarray, references: np.ndarray, by: By, apart: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        self._queries, self._references, self._by, self._apart = queries, references, by, apart
        total = np.zeros(references.shape[1], np.float64)
        for start in range(0, len(references), REFERENCES):
            total += self._plain(references[start : start + REFERENCES]).sum(axis=0, dtype=np.float64)
        self._mean = (total / len(references)).astype(np.float32)

    def _plain(self, rows: np.ndarray) -> np.ndarray:
        if not np.isfinite(rows).all():
            raise ValueError("embeddings hold numbers that are not finite")
        return unit(rows) if self._by == "cosine" else np.asarray(rows, np.float32)

    def run(
        self, which: np.ndarray, k: int, product: Product, tick: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, distances, whether none nearer can have been missed) of these queries."""
        size = min(k + product.spare, len(self._references))
        rows = np.zeros((len(which), size), np.int64)
        keys = np.full((len(which), size), np.inf, np.float32)
        blocks = range(0, len(which), QUERIES)
        steps, done, longest = len(blocks) * -(-len(self._references) // REFERENCES), 0, 0.0
        for first in range(0, len(self._references), REFERENCES):
            part = self._plain(self._references[first : first + REFERENCES]) - self._mean
            half = 0.5 * (part.astype(np.float64) ** 2).sum(axis=1)
            longest = max(longest, float(np.sqrt(2 * half.max())))
            for start in blocks:
                chosen = slice(start, min(start + QUERIES, len(which)))
                block = self._plain(self._queries[which[chosen]]) - self._mean
                key = product.multiply(block, part)
                np.subtract(half.astype(np.float32), key, out=key)  # rises with the distance, for one query
                if self._apart is not None:
                    mine, theirs = self._apart[0][which[chosen]], self._apart[1][first : first + REFERENCES]
                    key[mine[:, None] == theirs[None]] = np.inf
                rows[chosen], keys[chosen] = _merged(rows[chosen], keys[chosen], key, first)
                done += 1
                tick(done * len(which) // steps)
        return self._exact(which, rows, keys, k, product, longest)

    def _exact(
        self, which: np.ndarray, rows: np.ndarray, keys: np.ndarray, k: int, product: Product, longest: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distances of a shortlist from the differences (no cancellation: copies are at 0), sorted by them."""
        found = np.zeros((len(which), k), np.int64)
        distances, sure = np.zeros((len(which), k), np.float32), np.ones(len(which), bool)
        whole = rows.shape[1] == len(self._references)
        width = self._references.shape[1]
        factor = 3 * product.roundoff + product.roundoff**2 + (width + 8) * ROUNDOFF
        for start in range(0, len(which), QUERIES):
            part = slice(start, min(start + QUERIES, len(which)))
            query = self._plain(self._queries[which[part]])
            squares = np.zeros(rows[part].shape)
            for column in range(rows.shape[1]):
                other = self._plain(self._references[rows[part, column]])
                squares[:, column] = ((query.astype(np.float64) - other) ** 2).sum(axis=1)
                if self._apart is not None:
                    same = self._apart[0][which[part]] == self._apart[1][rows[part, column]]
                    squares[same, column] = np.inf
            squares[~np.isfinite(keys[part])] = np.inf  # a place of the shortlist that nothing took
            order = np.lexsort((rows[part], squares), axis=1)[:, :k]
            found[part] = np.take_along_axis(rows[part], order, axis=1)
            best = np.take_along_axis(squares, order, axis=1)
            distances[part] = best / 2 if self._by == "cosine" else np.sqrt(best)
            if not whole:
                own = ((query - self._mean).astype(np.float64) ** 2).sum(axis=1)
                error = factor * np.sqrt(own) * longest
                sure[part] = keys[part, -1] - error >= 0.5 * (best[:, -1] - own)
        return found, distances, sure


def _merged(rows: np.ndarray, keys: np.ndarray, key: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The shortlist (rows, keys; ascending) with what is better in a block `key` of the references from row `first` on."""
    size = rows.shape[1]
    if not np.isfinite(keys[:, -1]).all():  # not full yet: a few columns give a first limit
        head = key[:, :FIRST]
        keep = min(size, head.shape[1])
        new = np.argpartition(head, keep - 1, axis=1)[:, :keep]
        rows = np.concatenate([rows, new + first], axis=1)
        keys = np.concatenate([keys, np.take_along_axis(head, new, axis=1)], axis=1)
        order = np.lexsort((rows, keys), axis=1)[:, :size]
        rows, keys = np.take_along_axis(rows, order, axis=1), np.take_along_axis(keys, order, axis=1)
        key, first = key[:, FIRST:], first + FIRST
        if not key.shape[1]:
            return rows, keys
        if not np.isfinite(keys[:, -1]).all():
            return _merged(rows, keys, key, first)
    query, column = np.nonzero(key < keys[:, -1:])
    touched = np.unique(query)
    if not len(touched):
        return rows, keys
    owner = np.concatenate([np.repeat(touched, size), query])
    all_rows = np.concatenate([rows[touched].ravel(), column + first])
    all_keys = np.concatenate([keys[touched].ravel(), key[query, column]])
    order = np.lexsort((all_rows, all_keys, owner))
    counts = np.bincount(owner, minlength=len(rows))[touched]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    taken = order[starts[:, None] + np.arange(size)[None]]
    rows, keys = rows.copy(), keys.copy()
    rows[touched], keys[touched] = all_rows[taken], all_keys[taken]
    return rows, keys
